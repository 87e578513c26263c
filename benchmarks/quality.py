"""Quality on labelled real data: which method names the right label of sets that it has not seen.

python benchmarks/quality.py                                     # all sets, all methods
python benchmarks/quality.py --sets granja --methods lsi-knn,lsi-lr --folds 0,1
python benchmarks/quality.py --table                             # only print what has been measured

Every cell of the table is one line of JSON in the results file as soon as it is known; what is there is not measured
again unless `--again`. Macro-F1 is over the labels that the test sets have; `pooled` is that of all folds together,
steadier for rare labels. Times are CPU seconds to learn.
"""

import argparse
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality_data import SETS, Codes, Split, splits
from quality_methods import METHODS, NEEDS_BATCHES
from report import RESULTS, SHARED


@dataclass(frozen=True)
class Cell:
    """One method on one fold of one set."""

    set: str
    fold: str
    method: str
    n_train: int
    n_test: int
    accuracy: float
    macro_f1: float
    cpu: float  # seconds, to learn
    confusion: list[list[int]]  # [truth][said], by position among the set's labels
    labels: list[str]
    processor: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is one measurement of."""
        return self.set, self.fold, self.method


def measured(name: str, split: Split, method: str) -> Cell:
    """Run one method on one split."""
    answer = METHODS[method](split)
    confusion = confused(split.test_codes, answer.codes, len(split.labels))
    return Cell(
        name, split.fold, method, len(split.train), len(split.test), accuracy(confusion), macro_f1(confusion),
        answer.cpu, confusion.tolist(), list(split.labels), platform.processor() or platform.machine(),
    )  # fmt: skip


def confused(truth: Codes, said: Codes, n_labels: int) -> NDArray[np.int64]:
    """Count pairs of truth and answer, (labels, labels + 1); the last column is no answer."""
    said = np.where(said < 0, n_labels, said)
    return np.bincount(truth * (n_labels + 1) + said, minlength=n_labels * (n_labels + 1)).reshape(n_labels, -1)


def accuracy(confusion: NDArray[np.int64]) -> float:
    """The share of right answers."""
    return float(np.trace(confusion[:, : len(confusion)]) / confusion.sum())


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """The mean F1 of the labels that are the truth of something."""
    there = confusion.sum(axis=1) > 0
    right = np.diagonal(confusion)
    f1 = 2 * right / np.maximum(confusion.sum(axis=1) + confusion[:, : len(confusion)].sum(axis=0), 1)
    return float(f1[there].mean())


def read(path: Path) -> dict[tuple[str, str, str], Cell]:
    """What has been measured; a later line is the newer measurement."""
    lines = path.read_text().splitlines() if path.exists() else []
    cells = [Cell(**json.loads(line)) for line in lines]
    return {cell.key: cell for cell in cells}


def table(cells: Iterable[Cell]) -> str:
    """A table of every set, then one of all sets by macro-F1."""
    by_set: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        by_set.setdefault(cell.set, {}).setdefault(cell.method, []).append(cell)
    names = [name for name in SETS if name in by_set]
    parts = [_of_set(name, by_set[name]) for name in names]
    methods = [method for method in METHODS if any(method in by_set[name] for name in names)]
    lines = [f"| macro-F1 | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method in methods:
        folds = [by_set[name].get(method, []) for name in names]
        figures = [f"{np.mean([cell.macro_f1 for cell in found]):.3f}" if found else "" for found in folds]
        lines.append(f"| {method} | {' | '.join(figures)} |")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _of_set(name: str, methods: dict[str, list[Cell]]) -> str:
    lines = [
        f"### `{name}`",
        "",
        "| method | accuracy | macro-F1 | pooled macro-F1 | CPU s | folds |",
        "|---" * 6 + "|",
    ]
    for method in METHODS:
        if found := methods.get(method):
            pooled = macro_f1(np.sum([cell.confusion for cell in found], axis=0))
            figures = [_spread([cell.accuracy for cell in found]), _spread([cell.macro_f1 for cell in found])]
            cpu = np.mean([cell.cpu for cell in found])
            lines.append(f"| {method} | {' | '.join(figures)} | {pooled:.3f} | {cpu:.1f} | {len(found)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def chosen(text: str, among: Iterable[str]) -> list[str]:
    """The names in a list with commas. Ends the script at an unknown one."""
    names, known = text.split(","), list(among)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folds", help="those whose name is in this list; all by default")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.jsonl")
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    methods = chosen(options.methods, METHODS)
    known = read(options.results)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in [] if options.table else chosen(options.sets, SETS):
        for split in splits(name, options.data):
            if options.folds and split.fold not in options.folds.split(","):
                continue
            for method in methods:
                if method in NEEDS_BATCHES and split.train_batches is None:
                    continue
                if (name, split.fold, method) in known and not options.again:
                    continue
                cell = measured(name, split, method)
                with options.results.open("a") as file:  # a line at a time: several processes may write
                    file.write(json.dumps(asdict(cell)) + "\n")
                known[cell.key] = cell
                print(
                    f"{name} {split.fold} {method}: accuracy {cell.accuracy:.3f}, macro-F1 {cell.macro_f1:.3f}, "
                    f"{cell.cpu:.1f} CPU s",
                    flush=True,
                )
    print(table(known.values()))


if __name__ == "__main__":
    main()

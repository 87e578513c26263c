"""Tokenization beside gtars: a BED file and a fragments file, file to tokens, CPU seconds, in turn in one process.

Inputs are simulated: a universe of 1 M regions, 100,000 query regions, 1 M fragments of 2,000 barcodes.
"""

import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import Figure, forget_peak, peak_megabytes, report

from chromseek.data.bed import read_bed
from chromseek.data.fragments import read_fragments
from chromseek.data.genome import assembly
from chromseek.data.universe import Universe

ROUNDS = 5


def write_inputs(folder: Path) -> None:
    """Universe, query BED and fragments with real chromosome lengths."""
    rng = np.random.default_rng(0)
    hg38 = assembly("hg38")
    lengths = np.array(hg38.lengths[:24])
    starts = np.sort(rng.choice(lengths.sum() // 1500, 1_000_000, replace=False)) * 1500 + rng.integers(
        0, 500, 1_000_000
    )
    ends = starts + rng.integers(200, 900, len(starts))
    chrom = np.searchsorted(hg38.offsets[1:25], starts, side="right")
    fits = (ends <= hg38.offsets[chrom + 1]) & (chrom < 24)
    chrom, starts, ends = chrom[fits], (starts - hg38.offsets[chrom])[fits], (ends - hg38.offsets[chrom])[fits]
    names = np.array(hg38.chroms)
    lines = [f"{names[c]}\t{s}\t{e}\n" for c, s, e in zip(chrom, starts, ends, strict=True)]
    (folder / "universe.bed").write_text("".join(lines))
    chosen = np.sort(rng.choice(len(starts), 100_000, replace=False))
    moved = np.maximum(0, starts[chosen] + rng.integers(-400, 400, len(chosen)))
    query = [f"{names[chrom[i]]}\t{s}\t{s + 300}\n" for i, s in zip(chosen, moved, strict=True)]
    (folder / "query.bed").write_text("".join(query))
    places = np.sort(rng.integers(0, len(starts), 1_000_000))
    begins = np.maximum(0, starts[places] + rng.integers(-1500, 1500, len(places)))
    barcodes = rng.integers(0, 2000, len(places))
    text = "".join(
        f"{names[chrom[p]]}\t{s}\t{s + 150}\tAAACGAAAG{b:07d}-1\t1\n"
        for p, s, b in zip(places, begins, barcodes, strict=True)
    )
    (folder / "fragments.tsv").write_text(text)
    with gzip.open(folder / "fragments.tsv.gz", "wt", compresslevel=6) as out:
        out.write(text)


def in_turn(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median CPU seconds of each, called alternately."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, times in ((ours, spent[0]), (theirs, spent[1])):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def memory_of(folder: Path, side: str) -> float:
    """Peak MB of a process that reads the gz fragments by one side."""
    done = subprocess.run([sys.executable, __file__, side, str(folder)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def read_alone(side: str, folder: Path) -> None:
    """Read the fragments in this process and print its peak memory above that before reading."""
    if side == "gtars":
        from gtars.tokenizers import Tokenizer, tokenize_fragment_file

        tokenizer = Tokenizer.from_bed(str(folder / "universe.bed"))
        forget_peak()
        before = peak_megabytes()
        tokenize_fragment_file(str(folder / "fragments.tsv.gz"), tokenizer)
    else:
        universe = Universe.load(folder / "universe.bed", assembly("hg38"))
        forget_peak()
        before = peak_megabytes()
        for _ in read_fragments(folder / "fragments.tsv.gz", universe, max_pairs_in_memory=1_000_000):
            pass
    print(peak_megabytes() - before)


def main() -> None:
    from gtars.tokenizers import Tokenizer, tokenize_fragment_file

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder)
        universe = Universe.load(folder / "universe.bed", assembly("hg38"))
        tokenizer = Tokenizer.from_bed(str(folder / "universe.bed"))
        query = folder / "query.bed"
        found = universe.tokenize(read_bed(query, assembly=universe.assembly).regions)[0]
        assert set(found.tolist()) == set(tokenizer(str(query))["input_ids"]), "the two disagree"
        mine, other = in_turn(
            lambda: universe.tokenize(read_bed(query, assembly=universe.assembly).regions),
            lambda: tokenizer(str(query))["input_ids"],
        )
        figures = [
            Figure("BED, 100,000 regions: chromseek", mine * 1000, "CPU ms"),
            Figure("BED, 100,000 regions: gtars", other * 1000, "CPU ms"),
            Figure("BED: gtars / chromseek", other / mine, "x", at_least=2),
        ]
        for name in ("fragments.tsv", "fragments.tsv.gz"):
            mine, other = in_turn(
                lambda name=name: list(read_fragments(folder / name, universe)),
                lambda name=name: tokenize_fragment_file(str(folder / name), tokenizer),
            )
            figures += [
                Figure(f"{name}, 1 M: chromseek", mine, "CPU s"),
                Figure(f"{name}, 1 M: gtars", other, "CPU s"),
                Figure(f"{name}: gtars / chromseek", other / mine, "x", at_least=1.5),
            ]
        figures += [
            Figure("fragments.tsv.gz, memory above the universe: chromseek", memory_of(folder, "chromseek"), "MB"),
            Figure("fragments.tsv.gz, memory above the universe: gtars", memory_of(folder, "gtars"), "MB"),
        ]
        report("tokens", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read_alone(sys.argv[1], Path(sys.argv[2]))
    else:
        main()

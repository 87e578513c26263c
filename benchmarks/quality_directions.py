"""One space for cells, regions and BED sets: do sorted blood populations, never seen, lie among the cells they are of?

python benchmarks/quality_directions.py --encoders lsi,bag

An encoder learns from all granja cells (with their lineages where it needs labels), beside DNase and ChIP sets. Asked
are the ATAC peaks of sorted populations, in every direction:

bed → cell      share of the population's lineage among the nearest 200 cells, the mean of lineages
cell → bed      cells whose nearest population is of their lineage: accuracy, the mean of lineages
region → cell   regions that populations of one lineage alone have: its share among the nearest 200 cells
region → bed    regions that some populations have: area under the curve of the ranking of populations
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from quality import chosen
from quality_data import GRANJA, Codes, Split, cells, manifest
from quality_methods import LEARNERS, SEED
from report import RESULTS, SHARED
from sklearn.metrics import roc_auc_score

from chromseek.data.bed import read_bed
from chromseek.data.genome import assembly
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder
from chromseek.encoder.placing import singles

NEAREST = 200
ASKED = 2000  # regions, at most
SORTED = {
    "HSC": "HSPC", "MPP": "HSPC", "CLP": "HSPC", "GMP-A": "HSPC", "GMP-C": "HSPC",
    "Mono": "Mono", "B": "B", "CD4": "T", "NK": "NK",
}  # fmt: skip
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """How right the answers of an encoder are."""

    encoder: str
    bed_to_cell: float
    cell_to_bed: float
    region_to_cell: float
    region_to_bed: float
    cpu: float  # seconds, to learn


@dataclass(frozen=True)
class Blood:
    """The cells to learn from, and the sorted populations to ask for."""

    split: Split
    populations: TokenSets
    lineages: Codes  # (populations) position in the split's labels


def blood(data: Path) -> Blood:
    """Read granja's cells, BED sets over their regions, and the sorted populations."""
    read = cells(data / GRANJA)
    codes, labels = pd.factorize(read.obs["lineage"].astype(str), sort=True)
    files = [file for folder in ("dnase", "chip") for file in manifest(data, folder)["file"]]
    none = TokenSets.from_lists([])
    split = Split(
        "heme", "all", "cell", read.universe, read.sets, codes, none, np.empty(0, np.int64), tuple(labels), (15, 30),
        beds=_beds(data, files, read.universe),
    )  # fmt: skip
    populations = _beds(data, [f"atac_heme/{name}.bed.gz" for name in SORTED], read.universe)
    return Blood(split, populations, np.array([split.labels.index(lineage) for lineage in SORTED.values()]))


def _beds(data: Path, files: list[str], universe: Universe) -> TokenSets:
    found = [read_bed(data / "bed" / file, assembly=assembly("hg19")).regions for file in files]
    return TokenSets.from_lists([universe.tokenize(regions)[0] for regions in found])


def scored(name: str, asked: Blood) -> Scores:
    """Learn, and ask in every direction."""
    learnt = LEARNERS[name](asked.split)
    known, truth = learnt.encoder.encode(asked.split.train, "cell"), asked.split.train_codes
    populations = learnt.encoder.encode(asked.populations, "bed")
    found = _nearest_share(populations, asked.lineages, known, truth)
    said = asked.lineages[np.argmax(known @ populations.T, axis=1)]
    to_cell, to_bed = _regions(learnt.encoder, asked, known, populations)
    return Scores(
        name, _by_lineage(found, asked.lineages), _by_lineage(said == truth, truth), to_cell, to_bed, learnt.cpu
    )


def _nearest_share(vectors: Vectors, lineages: Codes, known: Vectors, truth: Codes) -> NDArray[np.float64]:
    """The share of its lineage among the nearest cells of each query, (q)."""
    nearest = np.argpartition(-(vectors @ known.T), NEAREST - 1, axis=1)[:, :NEAREST]
    return np.asarray((truth[nearest] == lineages[:, None]).mean(axis=1))


def _by_lineage(values: NDArray[np.float64] | NDArray[np.bool_], lineages: Codes) -> float:
    """The mean of the means of lineages, so that the commonest does not decide."""
    return float(np.mean([values[lineages == lineage].mean() for lineage in np.unique(lineages)]))


def _regions(encoder: Encoder, asked: Blood, known: Vectors, populations: Vectors) -> tuple[float, float]:
    """Ask regions for cells, and for populations."""
    rng = np.random.default_rng(SEED)
    has = asked.populations.to_csr(len(asked.split.universe)).toarray().T > 0  # (regions, populations)
    seen = np.bincount(asked.split.train.tokens, minlength=len(has)) > 0
    per_lineage = np.stack(
        [has[:, asked.lineages == one].any(axis=1) for one in range(len(asked.split.labels))], axis=1
    )
    alone = rng.permutation(np.flatnonzero(seen & (per_lineage.sum(axis=1) == 1)))[:ASKED].astype(np.int32)
    lineages = per_lineage[alone].argmax(axis=1)
    to_cell = _nearest_share(encoder.encode(singles(alone), "region"), lineages, known, asked.split.train_codes)
    some = rng.permutation(np.flatnonzero(seen & has.any(axis=1) & ~has.all(axis=1)))[:ASKED].astype(np.int32)
    scores = encoder.encode(singles(some), "region") @ populations.T
    areas = [roc_auc_score(has[region], row) for region, row in zip(some, scores, strict=True)]
    return _by_lineage(to_cell, lineages), float(np.mean(areas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default=",".join(LEARNERS))
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--results", type=Path, default=RESULTS / "quality_directions.jsonl")
    options = parser.parse_args()
    asked = blood(options.data)
    print("| encoder | bed → cell | cell → bed | region → cell | region → bed | CPU s |", "|---" * 6 + "|", sep="\n")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen(options.encoders, LEARNERS):
        scores = scored(name, asked)
        with options.results.open("a") as file:
            file.write(json.dumps(asdict(scores)) + "\n")
        figures = (scores.bed_to_cell, scores.cell_to_bed, scores.region_to_cell, scores.region_to_bed)
        print(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} | {scores.cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""The labelled real data of the quality benchmark, and how each is split; every method gets the same splits.

An encoder may learn from the train sets of a split alone. The universe is the regions of the data set itself; for
the DNase sets, which have none, the merged regions of the train sets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from chromseek.data.bed import read_bed
from chromseek.data.cell_sources import MatrixSource
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.sources import ReadOptions, cell_sources
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Kind

FOLDS = 5
GRANJA = "cells/granja2019_bmmc_D6T1_hg19.h5ad"
SCHEP = "cells/schep2017_celllines_hg19.h5ad"
CORCES = "cells/corces2016_aml_hg19.h5ad"
SNARE = "multiome/snareseq_cortex_mm10.dev.atac.h5ad"
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """What a method gets: labelled sets to learn from, and sets whose labels it has to say."""

    source: str  # the data and the way they are split, whatever the label: what needs no labels may be kept by it
    fold: str
    kind: Kind
    universe: Universe
    train: TokenSets
    train_codes: Codes  # (train) position in `labels`
    test: TokenSets
    test_codes: Codes  # (test), for the judge alone
    labels: tuple[str, ...]
    k: tuple[int, int]  # neighbours that vote: usual, wide
    train_batches: Codes | None = None  # (train), None where batches have no meaning
    test_batches: Codes | None = None  # (test)
    beds: TokenSets = field(default_factory=lambda: TokenSets.from_lists([]))  # to be placed beside train cells

    def as_kinds(self) -> tuple[TokenSets, TokenSets]:
        """What there is to learn from, as cells and BED sets."""
        return (self.train, self.beds) if self.kind == "cell" else (self.beds, self.train)


@dataclass(frozen=True)
class Cells:
    """One h5ad as token sets over its own regions."""

    universe: Universe
    sets: TokenSets
    obs: pd.DataFrame


def splits(name: str, data: Path) -> list[Split]:
    """All folds of one of the SETS."""
    return SETS[name](data)


@cache
def cells(path: Path) -> Cells:
    """Read the cells of an h5ad."""
    (source,) = cell_sources(path, ReadOptions(), assembly=None)
    assert isinstance(source, MatrixSource)
    universe = Universe.of(source.regions)
    blocks = list(source.blocks(universe))
    obs = pd.concat([block.metadata.to_pandas() for block in blocks], ignore_index=True)
    return Cells(universe, TokenSets.concat([block.sets for block in blocks]), obs)


def _folds(
    data: Path, file: str, label: str, tests: Callable[[pd.DataFrame], list[NDArray[np.bool_]]],
    *, source: str, batch: str | None = None,
) -> list[Split]:  # fmt: skip
    """A split for each mask of test cells that `tests` finds in obs."""
    read = cells(data / file)
    codes, labels = pd.factorize(read.obs[label].astype(str), sort=True)
    batches = None if batch is None else pd.factorize(read.obs[batch], sort=True)[0]
    found = []
    for number, chosen in enumerate(tests(read.obs)):
        train, test = np.flatnonzero(~chosen), np.flatnonzero(chosen)
        found.append(
            Split(
                source, str(number), "cell", read.universe,
                read.sets.take(train), codes[train], read.sets.take(test), codes[test], tuple(labels), (15, 30),
                None if batches is None else batches[train], None if batches is None else batches[test],
            )
        )  # fmt: skip
    return found


def _stratified(label: str) -> Callable[[pd.DataFrame], list[NDArray[np.bool_]]]:
    """Five folds, each with its share of every label."""

    def tests(obs: pd.DataFrame) -> list[NDArray[np.bool_]]:
        parts = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(obs)), obs[label].astype(str))
        return [np.isin(np.arange(len(obs)), test) for _, test in parts]

    return tests


def _left_out(column: str, n: int) -> Callable[[pd.DataFrame], list[NDArray[np.bool_]]]:
    """Folds of n whole batches, drawn once."""

    def tests(obs: pd.DataFrame) -> list[NDArray[np.bool_]]:
        values = np.random.default_rng(0).permutation(np.unique(obs[column].astype(str)))
        return [obs[column].isin(values[first : first + n]).to_numpy() for first in range(0, len(values), n)]

    return tests


def granja(data: Path) -> list[Split]:
    """16 cell types of bone marrow, by 5 folds."""
    return _folds(data, GRANJA, "cell_type", _stratified("cell_type"), source="granja")


def granja_lineage(data: Path) -> list[Split]:
    """The same folds, 5 lineages."""
    return _folds(data, GRANJA, "lineage", _stratified("cell_type"), source="granja")


def snare(data: Path) -> list[Split]:
    """15 cell types of mouse cortex, two whole libraries of eight left out at a time."""
    return _folds(data, SNARE, "cell_type", _left_out("batch", 2), source="snare", batch="batch")


def schep(data: Path) -> list[Split]:
    """11 lines and sorted populations, by 5 folds."""
    return _folds(data, SCHEP, "cell_type_merged", _stratified("cell_type_merged"), source="schep")


def corces(data: Path) -> list[Split]:
    """Blasts and leukaemic stem cells of two patients, by 5 folds."""
    return _folds(data, CORCES, "sample", _stratified("sample"), source="corces")


def corces_patient(data: Path) -> list[Split]:
    """Blast or stem cell, of a patient who was never seen."""
    return _folds(data, CORCES, "cell_type", _left_out("donor", 1), source="corces-patient", batch="donor")


def dnase(data: Path) -> list[Split]:
    """28 lineages of BED sets: one laboratory asks, the other answers, and the reverse."""
    return [_laboratories(data, ("Duke",), "Uw"), _laboratories(data, ("Uw",), "Duke")]


def dnase_roadmap(data: Path) -> list[Split]:
    """BED sets of Roadmap ask those of ENCODE, which another pipeline called."""
    return [_laboratories(data, ("Uw", "Duke", "Uwduke"), "roadmap")]


def _laboratories(data: Path, known: tuple[str, ...], asking: str) -> Split:
    """Some laboratories are the reference; another asks, with the sets whose lineage the reference has."""
    table = manifest(data, "dnase")
    names = table["file"].str.extract(r"(?:encode_)?([A-Za-z]+)_")[0]
    codes, labels = pd.factorize(table["lineage"], sort=True)
    train = np.flatnonzero(names.isin(known))
    test = np.flatnonzero((names == asking) & np.isin(codes, codes[train]))
    regions = [read_bed(data / "bed" / file, assembly=assembly("hg19")).regions for file in table["file"]]
    universe = merged([regions[row] for row in train])
    sets = TokenSets.from_lists([universe.tokenize(one)[0] for one in regions])
    source = "dnase-roadmap" if asking == "roadmap" else "dnase"
    return Split(
        source, asking.lower(), "bed", universe,
        sets.take(train), codes[train], sets.take(test), codes[test], tuple(labels), (1, 5),
    )  # fmt: skip


def manifest(data: Path, folder: str) -> pd.DataFrame:
    """The rows of the hg19 BED sets of one folder."""
    table = pd.read_csv(data / "bed" / "manifest.tsv", sep="\t")
    chosen = table["file"].str.startswith(f"{folder}/") & (table["genome"] == "hg19")
    return table[chosen].sort_values("file", ignore_index=True)


def merged(sources: list[Regions]) -> Universe:
    """The regions of several sources, those that overlap made one."""
    spans = [one.spans() for one in sources]
    starts, ends = (np.concatenate([span[side] for span in spans]) for side in (0, 1))
    chroms = np.concatenate([one.chroms for one in sources])
    order = np.argsort(starts, kind="stable")
    starts, ends, chroms = starts[order], ends[order], chroms[order]
    reach = np.maximum.accumulate(ends)
    first = np.flatnonzero(np.r_[True, starts[1:] >= reach[:-1]])
    offsets = sources[0].assembly.offsets[chroms[first]]
    last = reach[np.r_[first[1:], len(starts)] - 1]
    return Universe(
        Regions(
            sources[0].assembly,
            chroms[first],
            (starts[first] - offsets).astype(np.int32),
            (last - offsets).astype(np.int32),
        )
    )


SETS: dict[str, Callable[[Path], list[Split]]] = {
    "granja": granja,
    "granja-lineage": granja_lineage,
    "snare": snare,
    "schep": schep,
    "corces": corces,
    "corces-patient": corces_patient,
    "dnase": dnase,
    "dnase-roadmap": dnase_roadmap,
}

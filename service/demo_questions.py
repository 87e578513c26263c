"""The five questions of the demo: each asked through the public face, and held against what the simulation knows."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.search.atlas import Atlas
from chromseek.search.collection import Collection
from chromseek.search.hits import Hits
from chromseek.search.measure import recall

if TYPE_CHECKING:
    from anndata import AnnData

T = TypeVar("T")
ROWS = 5  # of an answer are shown
K = 20  # neighbours asked for
SURE = 0.8  # confidence
FOLD = 2.0  # a region belongs to a type when that many times more of its cells have it open


@dataclass(frozen=True)
class Material:
    """What is asked, and what is known of it."""

    path: str  # of the atlas, as it was given
    atlas: Atlas
    query: str  # the held-out donor's h5ad
    donor: str
    beds: pd.DataFrame  # the held-out BED sets: path, cell_type, lineage
    lineage: Mapping[str, str]  # of each cell type

    @property
    def counts(self) -> "pd.Series[int]":
        """How many cells the atlas has of each type, the commonest first."""
        return self.column("cells", "cell_type").value_counts()

    def column(self, collection: str, name: str) -> "pd.Series[str]":
        """The labels of all rows of a collection."""
        values: pd.Series[str] = self.atlas.collection(collection).metadata.column(name).to_pandas().astype(str)
        return values

    def bed_of(self, cell_type: str) -> str:
        """The path of the held-out BED set of a type."""
        return str(self.beds.loc[self.beds["cell_type"] == cell_type, "path"].iloc[0])


@dataclass(frozen=True)
class Answer:
    """A question in words and as it is asked, the top of its answer, how long that took, and how right it was."""

    question: str
    python: str
    shell: str
    table: dict[str, list[Any]]
    seconds: float
    verdicts: tuple[str, ...]
    measures: dict[str, float]


def annotate_donor(material: Material) -> tuple[Answer, "AnnData"]:
    """Label the cells of the donor that the atlas has not seen; the labelled cells come too."""
    names = ["cell_type", "lineage"]
    adata, seconds = _timed(lambda: material.atlas.annotate(material.query, names))
    obs = adata.obs
    right = {name: _same(obs[f"{name}_pred"], obs[name]) for name in names}
    sure = obs["cell_type_conf"].to_numpy() >= SURE
    by_type = pd.Series(right["cell_type"]).groupby(obs["cell_type"].astype(str).to_numpy()).mean()
    measures = {
        "accuracy": float(right["cell_type"].mean()),
        "balanced_accuracy": float(by_type.mean()),
        "lineage_accuracy": float(right["lineage"].mean()),
        "chance": float(obs["cell_type"].value_counts(normalize=True).iloc[0]),
        "sure": float(sure.mean()),
        "sure_accuracy": float(right["cell_type"][sure].mean()) if sure.any() else 0.0,
    }
    verdicts = (
        f"right cell type for {measures['accuracy']:.1%} of {len(obs):,} cells, right lineage for "
        f"{measures['lineage_accuracy']:.1%}; calling all of them the commonest type: {measures['chance']:.1%}",
        f"averaged over the {len(by_type)} types, rare and common alike: {measures['balanced_accuracy']:.1%}; "
        f"the hardest is {by_type.idxmin()}, {by_type.min():.0%} right",
        f"confidence is at least {SURE} for {measures['sure']:.0%} of the cells, and "
        f"{measures['sure_accuracy']:.1%} of these are right",
    )
    shown = obs.iloc[np.linspace(0, len(obs) - 1, ROWS).astype(int)]
    columns = ["cell_type_pred", "cell_type_conf", "lineage_pred", "cell_type"]
    table = {"cell": shown.index.tolist()} | {name: shown[name].tolist() for name in columns}
    table["true cell_type"] = table.pop("cell_type")
    answer = Answer(
        f"Which cell types are in a new sample? The cells of donor {material.donor}, none of which is in the atlas.",
        f'atlas.annotate("{material.query}", label=["cell_type", "lineage"])',
        f"chromseek annotate {_words(material.path, material.query)} --label cell_type --label lineage "
        f"-o {_words(str(Path(material.path).with_name('annotated.h5ad')))}",
        table, seconds, verdicts, measures,
    )  # fmt: skip
    return answer, adata


def cells_like_bed(material: Material) -> Answer:
    """The cells most like the peaks of a bulk sample."""
    cell_type = str(material.counts.index[0])
    question = f"Which cells look like these peaks? A bulk ATAC-seq sample of {cell_type}, as a BED file."
    return _like_bed(material, "cells", cell_type, question, ["name", "cell_type", "donor", "tissue"])[0]


def beds_like_bed(material: Material) -> Answer:
    """The BED sets most like one that is not among them."""
    cell_type = str(material.counts.index[1])
    question = f"Which published peak sets are like mine? A BED file of {cell_type} that is not in the atlas."
    return _like_bed(material, "beds", cell_type, question, ["name", "cell_type", "assay", "tissue"])[0]


def filtered(material: Material) -> Answer:
    """The cells most like a BED set, among those that a filter lets through."""
    where = "tissue IN ('blood', 'spleen') AND sex = 'female' AND tsse > 10"
    cell_type = str(material.counts.index[3])
    question = (
        f"And with a condition? Cells like this BED file of {cell_type}, but of good quality, and from blood or "
        "spleen of women only."
    )
    columns = ["name", "cell_type", "tissue", "sex", "tsse"]
    answer, hits = _like_bed(material, "cells", cell_type, question, columns, where=where)
    matching = material.atlas.cells.where(where)
    kept = bool(np.isin(hits.ids[hits.found], matching).all())
    note = f"{len(matching):,} of {len(material.atlas.cells):,} cells match the filter; " + (
        "every hit does" if kept else "NOT EVERY HIT DOES"
    )
    measures = answer.measures | {"filter_kept": float(kept), "matching": float(len(matching))}
    return replace(answer, verdicts=(note, *answer.verdicts), measures=measures)


def regions_like_region(material: Material, adata: "AnnData") -> Answer:
    """The regions that open in the same cells as one region; `adata` says in which cells of the query each is open."""
    regions, names = material.atlas.regions, material.atlas.universe.regions.names()
    cell_type, shares = str(material.counts.index[2]), open_shares(adata)
    typical = {name: int(np.argmax(inside - outside)) for name, (inside, outside) in shares.items()}
    token, (inside, outside) = typical[cell_type], shares[cell_type]
    hits, seconds = _timed(lambda: regions.search(names[token], K + 1))
    exact = recall(hits.ids, regions.search(names[token], K + 1, exact=True).ids)
    right = _open_more(hits.rows[0], token, inside, outside)
    everything = regions.search([names[other] for other in typical.values()], K + 1).rows
    by_type = [
        _open_more(rows, other, *shares[name]).mean()
        for rows, (name, other) in zip(everything, typical.items(), strict=True)
    ]
    measures = {
        "right": float(right.mean()),
        "right_all": float(np.mean(by_type)),
        "chance": float((inside > FOLD * outside).mean()),
        "recall": exact,
        "self_first": float(hits.rows[0, 0] == token),
    }
    verdicts = (
        f"the first hit is the region itself; {right.sum()} of the {len(right)} others are open more than {FOLD:g} "
        f"times as often in {cell_type} as in other cells of donor {material.donor}, of all regions "
        f"{measures['chance']:.0%}",
        f"over the most typical region of each of the {len(typical)} types: {measures['right_all']:.0%}; a region "
        "that all cells have open has no such company",
        f"recall against exact search {exact:.2f}",
    )
    top = hits.rows[0, :ROWS]
    table = _top(hits, ["name", "score", "gene", "tss_distance"])
    table[f"open in {cell_type}"] = [f"{share:.0%}" for share in inside[top].tolist()]
    table["in other cells"] = [f"{share:.0%}" for share in outside[top].tolist()]
    return Answer(
        f"Which regions open in the same cells as this one? A region that is typical of {cell_type}.",
        f'atlas.regions.search("{names[token]}", k={K + 1})',
        f"chromseek search {_words(material.path)} regions {names[token]} -k {K + 1}",
        table, seconds, verdicts, measures,
    )  # fmt: skip


def open_shares(adata: "AnnData") -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each cell type the share of its cells, and of all others, that have each region open, (regions) each."""
    types = adata.obs["cell_type"].astype(str).to_numpy()
    n_open = {name: np.bincount(adata.X[types == name].indices, minlength=adata.n_vars) for name in np.unique(types)}
    n_cells = {name: int((types == name).sum()) for name in n_open}
    n_all, cells_all = sum(n_open.values()), len(types)
    return {
        name: (mine / n_cells[name], (n_all - mine) / max(1, cells_all - n_cells[name]))
        for name, mine in n_open.items()
    }


def _open_more(
    rows: NDArray[np.int64], token: int, inside: NDArray[np.float64], outside: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which of the regions that were found, the asked one left out, are open more often inside than outside."""
    others = rows[(rows >= 0) & (rows != token)]  # the rows of regions are their tokens
    more: NDArray[np.bool_] = inside[others] > FOLD * outside[others]
    return more


def _like_bed(
    material: Material, name: str, cell_type: str, question: str, columns: Sequence[str], *, where: str | None = None
) -> tuple[Answer, Hits]:
    """Search a collection with the held-out BED set of a type, and for the measure with all of them."""
    collection, bed, k = material.atlas.collection(name), material.bed_of(cell_type), K if name == "cells" else 10
    hits, seconds = _timed(lambda: collection.search(bed, k, where=where))
    exact = recall(hits.ids, collection.search(bed, k, where=where, exact=True).ids)
    allowed = collection.get(collection.where(where), ["cell_type"])["cell_type"].to_pandas().astype(str)
    one, lineage, n = _precision(collection, hits, [cell_type], material.lineage, allowed)
    measures = {"right": one, "right_lineage": lineage, "n": float(n), "recall": exact}
    measures["chance"] = float((allowed == cell_type).mean())
    scarce = "" if n == k else ", all that there are,"
    verdicts = [
        f"{round(one * n)} of the nearest {n}{scarce} are {cell_type}, {round(lineage * n)} of its lineage "
        f"({material.lineage[cell_type]}); by chance {measures['chance'] * n:.1f} would be {cell_type}"
    ]
    if where is None:
        everything = collection.search(material.beds["path"].tolist(), k)
        types = material.beds["cell_type"].tolist()
        measures["right_all"], measures["right_lineage_all"], _ = _precision(
            collection, everything, types, material.lineage, allowed
        )
        verdicts.append(
            f"over the {len(types)} held-out BED files, one of each type: {measures['right_all']:.0%} of the right "
            f"type, {measures['right_lineage_all']:.0%} of the right lineage"
        )
    verdicts.append(f"recall against exact search {exact:.2f}" + (
        f" (with {len(collection):,} {name} every row is compared)" if hits.receipt["path"] == "exact" else ""
    ))  # fmt: skip
    condition = "" if where is None else f', where="{where}"'
    option = "" if where is None else f' --where "{where}"'
    answer = Answer(
        question,
        f'atlas.{name}.search("{bed}", k={k}{condition})',
        f"chromseek search {_words(material.path)} {name} {_words(bed)} -k {k}{option}",
        _top(hits, [*columns[:1], "score", *columns[1:]]), seconds, tuple(verdicts), measures,
    )  # fmt: skip
    return answer, hits


def _precision(
    collection: Collection, hits: Hits, types: Sequence[str], lineage: Mapping[str, str], allowed: "pd.Series[str]"
) -> tuple[float, float, int]:
    """The mean share of the first n hits of each query that have its type and its lineage, and the last n.

    n is k, or the number of rows of the query's type where there are fewer.
    """
    flat = collection.metadata.take(hits.rows.ravel(), ["cell_type"])["cell_type"].to_pandas()
    labels = flat.to_numpy(object).reshape(hits.rows.shape)
    shares, n = [], hits.k
    for row, cell_type in zip(labels, types, strict=True):
        n = max(1, min(hits.k, int((allowed == cell_type).sum())))
        family = lineage[cell_type]
        shares.append(
            [np.mean(row[:n] == cell_type), np.mean([lineage.get(str(label)) == family for label in row[:n]])]
        )
    right, related = np.mean(shares, axis=0).tolist()
    return right, related, n


def _top(hits: Hits, columns: Sequence[str]) -> dict[str, list[Any]]:
    frame = hits.to_pandas().head(ROWS)
    return {name: frame[name].tolist() for name in columns}


def _same(predicted: "pd.Series[str]", true: "pd.Series[str]") -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = predicted.astype(str).to_numpy() == true.astype(str).to_numpy()
    return same


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    value = call()
    return value, time.perf_counter() - began


def _words(*paths: str) -> str:
    return shlex.join(paths)

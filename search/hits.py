"""Hits: the columnar answer to one query or many, and what is made of it.

A Hits never changes shape: q queries, k places each, best first; a place without a hit holds id -1. Metadata is read
once, for all hits, when it is first asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument
from chromseek.search.transfer import kernel_weights, vote, weighted_mean

if TYPE_CHECKING:
    from anndata import AnnData

SHARES = 1 << 22  # shares of labels that are held at a time


@dataclass(frozen=True)
class Hits:
    """Answers to q questions, k places each, best first; score is cosine similarity, distance is 1 - score."""

    ids: NDArray[np.int64]  # (q, k), -1 where there is no hit
    scores: NDArray[np.float32]  # (q, k), -inf where there is no hit
    rows: NDArray[np.int64]  # (q, k), positions in the collection at this version
    queries: tuple[str, ...]  # (q) what each query is called
    coverage: NDArray[np.float32]  # (q) share of the query's regions, or fragments, that found a token; NaN for vectors
    reasons: dict[int, str]  # query number → why it has no hits
    receipt: dict[str, Any]  # atlas, version, encoder, filter, parameters: enough to repeat the query
    take: Callable[[NDArray[np.int64], Sequence[str] | None], pa.Table] = field(repr=False)  # rows → metadata

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        """One line: how many, of what, and what to mind."""
        text = f"<Hits: {len(self):,} queries x {self.k} {self.receipt['collection']}, {int(self.found.sum()):,} found"
        if self.reasons:
            place, why = next(iter(self.reasons.items()))
            text += f"; {len(self.reasons):,} without an answer, such as {self.queries[place]!r}: {why}"
        notes = self.receipt.get("notes", [])
        return f"{text}; {'; '.join(notes)}>" if notes else f"{text}>"

    @property
    def k(self) -> int:
        """Places per query."""
        return int(self.ids.shape[1])

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which places hold a hit, (q, k)."""
        return self.ids >= 0

    @property
    def n_found(self) -> NDArray[np.int64]:
        """Hits per query, (q)."""
        counts: NDArray[np.int64] = np.count_nonzero(self.found, axis=1)
        return counts

    def to_arrow(self) -> pa.Table:
        """One row per hit: query, rank (from 1), id, score, and all metadata of the hit."""
        query, place = np.nonzero(self.found)
        metadata = self.take(self.rows[query, place], None)
        own = {
            "query": pa.array(self.queries, pa.string()).take(pa.array(query)),
            "rank": pa.array(place + 1),
            "id": pa.array(self.ids[query, place]),
            "score": pa.array(self.scores[query, place]),
        }
        return pa.table(own | {name: metadata[name] for name in metadata.column_names if name not in own})

    def to_pandas(self) -> pd.DataFrame:
        """One row per hit: query, rank (from 1), id, score, and all metadata of the hit."""
        return self.to_arrow().to_pandas()

    def to_anndata(self) -> "AnnData":
        """The hits as cells of an AnnData without X: metadata in obs, the receipt in uns."""
        import json

        from anndata import AnnData

        frame = self.to_pandas()
        frame.index = [f"hit{i}" for i in range(len(frame))]
        for name in frame.columns:
            if frame[name].dtype == object:
                frame[name] = frame[name].astype("string").astype("category")
        return AnnData(obs=frame, uns={"chromseek": json.dumps(self.receipt)})

    def to_bed(self, path: str | Path | None = None) -> pd.DataFrame:
        """Region hits as a BED frame (chrom, start, end, name, score 0-1000), written to `path` if given.

        Raises BadArgument when the hits are not regions.
        """
        frame = self.to_pandas()
        if not {"chrom", "start", "end"} <= set(frame.columns):
            raise BadArgument(
                "only region hits can be written as BED", code="HITS-BED", fix="search atlas.regions, or write a table"
            )
        score = (frame["score"].clip(0, 1) * 1000).round().astype(int)
        bed = pd.DataFrame(
            {
                "chrom": frame["chrom"].astype(str),
                "start": frame["start"],
                "end": frame["end"],
                "name": frame["query"].astype(str),
                "score": score,
            }
        )
        if path is not None:
            bed.to_csv(path, sep="\t", header=False, index=False)
        return bed

    def predict(self, columns: str | Sequence[str]) -> pd.DataFrame:
        """Predict metadata of the queries from their kept neighbours, (q rows).

        Text, true/false and whole numbers (a cluster's number is its name) give `<column>_pred` by weighted vote and
        `<column>_conf`, the winner's share of the weight of all neighbours that have a value; decimal numbers give
        `<column>_pred`, the weighted mean, and `<column>_sd`.
        Queries without a neighbour with a value get null and 0. Weights fall with distance relative to the query's own
        neighbours, so the scale of the space does not matter.
        """
        names = [columns] if isinstance(columns, str) else list(columns)
        table = self.take(np.where(self.found, self.rows, -1).ravel(), names)
        weights = kernel_weights(1 - self.scores, self.found)
        out: dict[str, Any] = {}
        for name in names:
            column = table[name]
            if pa.types.is_floating(column.type):
                values = column.to_numpy().astype(np.float64).reshape(self.ids.shape)
                out[f"{name}_pred"], out[f"{name}_sd"] = weighted_mean(values, weights)
            else:
                labels, codes = encode_labels(column)
                winner, share = _votes(codes.reshape(self.ids.shape), weights, len(labels))
                predicted = np.append(labels, None)[winner]  # type: ignore[call-overload]
                whole = pa.types.is_integer(column.type)
                out[f"{name}_pred"] = pd.array(pd.to_numeric(predicted), "Int64") if whole else predicted
                out[f"{name}_conf"] = share
        return pd.DataFrame(out, index=pd.Index(self.queries, name="query"))


def _votes(
    codes: NDArray[np.int64], weights: NDArray[np.float64], n_labels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The winner of each query and its share, (q), (q), a part of the queries at a time."""
    winner, share = np.empty(len(codes), np.int64), np.empty(len(codes))
    step = max(1, SHARES // max(1, n_labels))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        winner[part], share[part], _ = vote(codes[part], weights[part], n_labels)
    return winner, share


def encode_labels(column: pa.ChunkedArray) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """A column of text as sorted labels (c) and codes (n), -1 for null."""
    codes, labels = pd.factorize(column.cast(pa.string()).to_pandas(), sort=True)
    return np.asarray(labels, dtype=object), codes.astype(np.int64)

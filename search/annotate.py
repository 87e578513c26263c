"""Annotate cells: read once, search the view of each label, write predictions where scanpy users look."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, printable
from chromseek.data.h5ad_check import check_h5ad
from chromseek.data.sources import ReadOptions
from chromseek.data.tokens import TokenSets
from chromseek.encoder.base import Encoder, Kind
from chromseek.indexer.filter_tree import IsNull
from chromseek.search.query import Question, explained

if TYPE_CHECKING:
    from anndata import AnnData

    from chromseek.search.atlas import Atlas
    from chromseek.search.collection import Collection


class SideBySide:
    """The primary encoder, whose vectors are followed by what the label-aware ones make of the same sets."""

    def __init__(self, primary: Encoder, views: Mapping[str, "Collection"]) -> None:
        self.name, self.universe, self.context = primary.name, primary.universe, primary.context
        self.dim = primary.dim  # of vectors that are given as such
        self._primary, self._views = primary, views

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into the vectors of all encoders, (n, sum of their widths)."""
        others = [cells.encoder.encode(sets, kind) for cells in self._views.values()]
        return np.hstack([self._primary.encode(sets, kind), *others])

    def split(self, question: Question) -> tuple[Question, dict[str, Question]]:
        """The question for the primary view, and for each label whose view can be asked.

        Stored cells have vectors there; vectors given as such and other stored rows have none.
        """
        widths = [self.dim, *(cells.encoder.dim for cells in self._views.values())]
        if question.vectors.shape[1] == sum(widths):
            parts = np.split(question.vectors, np.cumsum(widths)[:-1], axis=1)
            first, *others = [explained(replace(question, vectors=np.ascontiguousarray(part))) for part in parts]
            return first, dict(zip(self._views, others, strict=True))
        if question.stored is None or question.stored[0] != "cells":
            return question, {}
        ids = question.stored[1]
        return question, {
            label: explained(replace(question, vectors=cells.vectors_of(ids))) for label, cells in self._views.items()
        }


def annotate(
    atlas: "Atlas",
    query: Any,
    label: str | Sequence[str],
    *,
    k: int,
    where: str | Mapping[str, Any] | None,
    exclude_same: str | Sequence[str] | None,
    copy: bool,
    read: ReadOptions,
) -> "AnnData":
    """Transfer labels to the query's cells by a weighted vote of their k nearest cells in the atlas.

    A label that a view was fitted for is voted on by the nearest in that view, others by the nearest in the primary
    one. Writes `obs["<label>_pred"]` and `obs["<label>_conf"]` (decimal numbers: `_pred` and `_sd`),
    `obsm["X_chromseek"]` (primary vectors) and `uns["chromseek"]` (receipts, views, notes, coverage). AnnData is
    changed in place unless `copy`; a path is read. The confidence is the winner's share of the neighbours' weight; it
    is not calibrated, and a type that the atlas lacks gets the label of its nearest. Cells without a token get no label
    and confidence 0.
    """
    labels = [label] if isinstance(label, str) else list(dict.fromkeys(label))
    _check_labels(atlas, labels)
    encoder = atlas.annotator(labels)
    question = atlas.cells.resolve(query, read, encoder)
    plain, own = encoder.split(question)
    hits = {
        name: (atlas.cells if name is None else _view(atlas, name)).search(
            plain if name is None else own[name], k, where=where, exclude_same=exclude_same
        )
        for name in dict.fromkeys(label if label in own else None for label in labels)
    }
    adata = _adata(query, question, copy=copy)
    for each in labels:
        predicted = hits[each if each in own else None].predict([each])
        for name in predicted.columns:
            values = predicted[name].to_numpy()
            adata.obs[name] = pd.Categorical(values) if values.dtype == object else values
    adata.obs["chromseek_coverage"] = question.coverage
    adata.obsm["X_chromseek"] = plain.vectors
    receipts = [json.dumps(found.receipt) for found in hits.values()]
    adata.uns["chromseek"] = {
        "labels": labels,
        "receipt": receipts[0],
        "receipts": receipts,  # one for each view that was asked
        "views": [_view(atlas, name).encoder.name if name in own else "primary" for name in labels],
        "notes": json.dumps([_unfitted(atlas, name) for name in labels if name not in own]),
        "n_without_hits": len({place for found in hits.values() for place in found.reasons}),
        "median_coverage": float(np.median(question.coverage)),
    }
    return adata


def _view(atlas: "Atlas", label: str) -> "Collection":
    cells = atlas.label_view(label)
    assert cells is not None  # only labels that have one are asked for it
    return cells


def _unfitted(atlas: "Atlas", label: str) -> str:
    """Say that the primary view voted, and why."""
    entry = atlas.content["label_views"].get(label)
    why = "the query has no vectors there" if entry is not None else "the atlas was not built with labels= for it"
    if entry is not None and entry["why"] is not None:
        why = str(entry["why"])
    return f"{printable(label)}: no view of its own ({why}); the neighbours by {atlas.encoder.name} voted"


def _check_labels(atlas: "Atlas", labels: Sequence[str]) -> None:
    cells = atlas.cells
    usable = [name for name in cells.schema.names if name not in ("id", "name", "n_tokens")]
    if not labels:
        raise BadArgument("no label", code="LABEL-COLUMN", fix=f"one of {', '.join(usable[:12])}")
    for label in labels:
        if label not in usable:
            raise BadArgument(
                f"the atlas's cells have no label {printable(label)}",
                code="LABEL-COLUMN",
                got=label,
                fix=f"one of {', '.join(usable[:12])}",
            )
        if len(cells.where(IsNull(label))) == len(cells):
            raise BadArgument(
                f"label {printable(label)} is empty in every cell",
                code="LABEL-EMPTY",
                got=label,
                fix="choose another column, or add cells that have it",
            )


def _adata(query: Any, question: Question, *, copy: bool) -> "AnnData":
    """The AnnData to write to: the one given, the h5ad read, or a new one with what is known of other cells."""
    from anndata import AnnData, read_h5ad

    if isinstance(query, AnnData):
        if not copy:
            return query
        return query.to_memory() if query.isbacked else query.copy()
    if isinstance(query, str | Path) and Path(query).suffix.lower() in (".h5ad", ".h5"):
        check_h5ad(Path(query))  # all of it: anndata loads layers and graphs that the search did not look at
        return read_h5ad(query)
    obs = pd.DataFrame(index=range(len(question))) if question.metadata is None else question.metadata
    return AnnData(obs=obs.set_index(pd.Index(question.names, name="barcode")))

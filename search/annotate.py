"""Annotate cells: search once, predict many columns, write them where scanpy users look."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chromseek.data.errors import BadArgument, printable
from chromseek.data.h5ad_check import check_h5ad
from chromseek.data.sources import ReadOptions
from chromseek.indexer.filter_tree import IsNull
from chromseek.search.query import Question

if TYPE_CHECKING:
    from anndata import AnnData

    from chromseek.search.atlas import Atlas


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

    Writes `obs["<label>_pred"]` and `obs["<label>_conf"]` (decimal numbers: `_pred` and `_sd`),
    `obsm["X_chromseek"]` and `uns["chromseek"]` (receipt, coverage). AnnData is changed in place unless `copy`; a
    path is read. The confidence is the winner's share of the neighbours' weight; it is not calibrated, and a type
    that the atlas lacks gets the label of its nearest. Cells without a token get no label and confidence 0.
    """
    labels = [label] if isinstance(label, str) else list(dict.fromkeys(label))
    _check_labels(atlas, labels)
    question = atlas.cells.resolve(query, read)
    hits = atlas.cells.search(question, k, where=where, exclude_same=exclude_same)
    predicted = hits.predict(labels)
    adata = _adata(query, question, copy=copy)
    for name in predicted.columns:
        values = predicted[name].to_numpy()
        adata.obs[name] = pd.Categorical(values) if values.dtype == object else values
    adata.obs["chromseek_coverage"] = question.coverage
    adata.obsm["X_chromseek"] = question.vectors
    adata.uns["chromseek"] = {
        "labels": labels,
        "receipt": json.dumps(hits.receipt),
        "n_without_hits": len(hits.reasons),
        "median_coverage": float(np.median(question.coverage)),
    }
    return adata


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

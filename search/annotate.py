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

    Writes `obs["<label>_pred"]` and `obs["<label>_conf"]` (numbers: `_pred` and `_sd`), `obsm["X_chromseek"]` and
    `uns["chromseek"]` (receipt, coverage). AnnData is changed in place unless `copy`; a path is read. The
    confidence is the winner's share of the neighbours' weight; it is not calibrated. Cells without a token get
    no label and confidence 0.
    """
    labels = [label] if isinstance(label, str) else list(label)
    _check_labels(atlas, labels)
    adata = _adata(query, copy)
    question = atlas.cells.resolve(query, read)
    hits = atlas.cells.search(question, k, where=where, exclude_same=exclude_same)
    if adata is None:
        adata = _empty_adata(question.names, question.metadata)
    predicted = hits.predict(labels)
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
    schema = atlas.cells.schema
    own = ("id", "name", "n_tokens")
    for label in labels:
        if label not in schema.names or label in own:
            usable = [name for name in schema.names if name not in own]
            raise BadArgument(
                f"the atlas's cells have no label {printable(label)}",
                code="LABEL-COLUMN",
                got=label,
                fix=f"one of {', '.join(usable[:12])}",
            )
        if atlas.cells.metadata.column(label).null_count == atlas.cells.metadata.n_rows:
            raise BadArgument(f"label {printable(label)} is empty in every cell", code="LABEL-EMPTY", got=label,
                              fix="choose another column, or add cells that have it")  # fmt: skip


def _adata(query: Any, copy: bool) -> "AnnData | None":
    """The AnnData to write to; None for fragments, whose cells are known only after reading."""
    if hasattr(query, "obs"):
        return query.copy() if copy else query  # type: ignore[no-any-return]
    if isinstance(query, str | Path) and str(query).endswith(".h5ad"):
        from anndata import read_h5ad

        check_h5ad(Path(query))
        return read_h5ad(query)
    return None


def _empty_adata(names: Sequence[str], metadata: pd.DataFrame | None) -> "AnnData":
    from anndata import AnnData

    obs = pd.DataFrame(index=pd.Index(names, name="barcode")) if metadata is None else metadata
    return AnnData(obs=obs.set_index(pd.Index(names, name="barcode")))

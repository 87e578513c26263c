"""Write rows and vectors of a collection to a file of the user's."""

import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, StorageError, printable
from chromseek.search.collection import Collection

Writer = Callable[[Collection, NDArray[np.int64], Path], None]
ROWS = 65_536  # written at a time


def export(collection: Collection, path: Path, *, where: Any, overwrite: bool) -> int:
    """Write the rows that match, with their vectors where the format has a place for them; return how many.

    `.parquet` has a column `vector`, `.h5ad` has `obsm["X_chromseek"]`; `.bed` and `.bed.gz` take regions only;
    `.tsv` and `.csv` hold metadata only. The file appears whole or not at all.
    """
    writer = writer_for(path)
    if path.exists() and not overwrite:
        raise StorageError(
            f"{printable(path)} exists",
            code="OUTPUT-EXISTS",
            file=str(path),
            fix="choose another name, or pass --overwrite",
            exit_code=73,
            status=409,
        )
    ids = collection.where(where)
    draft = path.with_name(f".{uuid4().hex[:8]}-{path.name}")
    try:
        writer(collection, ids, draft)
        draft.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        raise StorageError(
            f"cannot write: {printable(error.strerror or error)}",
            code="OUTPUT-WRITE",
            file=str(path),
            fix="check the folder, its permissions and the space on the disk",
            exit_code=74 if full else 77 if isinstance(error, PermissionError) else 73,
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return len(ids)


def writer_for(path: Path) -> Writer:
    """The writer for a file's suffix. Raises BadArgument for another."""
    for suffix, writer in _WRITERS.items():
        if path.name.endswith(suffix):
            return writer
    raise BadArgument(
        f"cannot write {printable(path.name)}",
        code="OUTPUT-KIND",
        got=path.suffix,
        fix=f"end the name in {', '.join(_WRITERS)}",
    )


def _parquet(collection: Collection, ids: NDArray[np.int64], path: Path) -> None:
    kind = pa.list_(pa.float32(), collection.vectors.dim)
    schema = collection.schema.append(pa.field("vector", kind))
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            flat = pa.array(collection.vectors_of(part).ravel())
            vectors = pa.FixedSizeListArray.from_arrays(flat, collection.vectors.dim)
            out.write_table(collection.get(part).append_column("vector", vectors).cast(schema))


def _h5ad(collection: Collection, ids: NDArray[np.int64], path: Path) -> None:
    from anndata import AnnData

    table = collection.get(ids)
    needed = table.nbytes + 4 * len(ids) * collection.vectors.dim
    if shutil.disk_usage(path.parent).free < needed:  # HDF5 does not always live through a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    obs = table.to_pandas()
    obs.index = pd.Index(obs["dataset"].astype(str) + ":" + obs["name"])
    for name in obs.columns:
        if obs[name].dtype == object:
            obs[name] = obs[name].astype("category")
    AnnData(obs=obs, obsm={"X_chromseek": collection.vectors_of(ids)}).write_h5ad(path)


def _bed(collection: Collection, ids: NDArray[np.int64], path: Path) -> None:
    if collection.name != "regions":
        raise BadArgument(
            f"{collection.name} cannot be written as BED", code="OUTPUT-BED", fix="export regions, or choose .parquet"
        )
    table = collection.get(ids, ["chrom", "start", "end", "name"]).to_pandas()
    opened = gzip.open(path, "wt") if path.name.endswith(".gz") else open(path, "w")  # noqa: SIM115
    with opened as out:
        table.to_csv(out, sep="\t", header=False, index=False)


def _text(separator: str) -> Writer:
    def write(collection: Collection, ids: NDArray[np.int64], path: Path) -> None:
        with open(path, "w", newline="") as out:
            for start in range(0, max(1, len(ids)), ROWS):
                frame = collection.get(ids[start : start + ROWS]).to_pandas()
                frame.to_csv(out, sep=separator, index=False, header=start == 0)

    return write


_WRITERS: dict[str, Writer] = {
    ".parquet": _parquet,
    ".h5ad": _h5ad,
    ".bed": _bed,
    ".bed.gz": _bed,
    ".tsv": _text("\t"),
    ".csv": _text(","),
}

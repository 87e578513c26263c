"""Frames of users: regions from their coordinates, and metadata as Arrow columns that a filter can use."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chromseek.data.errors import BadData, printable
from chromseek.data.rows import HIGHEST, Fault, Rows

_COORDINATES = (
    ("chrom", "chr", "Chromosome", "chromosome", "seqnames"),
    ("start", "Start", "chromStart"),
    ("end", "End", "chromEnd"),
)
_NAME = r"^(?P<chrom>[^\s:]+?)[:_-](?P<start>[0-9]{1,10})[_-](?P<end>[0-9]{1,10})$"


def coordinate_columns(frame: pd.DataFrame) -> list[Any] | None:
    """The columns that hold chromosome, start and end, by their names; None when one is missing."""
    found = [next((name for name in names if name in frame.columns), None) for names in _COORDINATES]
    return None if None in found else found


def rows_of_columns(frame: pd.DataFrame) -> Rows:
    """The three columns of a frame, chromosome, start and end, as rows like those of a file."""
    labels, names = pd.factorize(frame.iloc[:, 0].astype(object), use_na_sentinel=False)
    starts, start_read = _numbers(frame.iloc[:, 1])
    ends, end_read = _numbers(frame.iloc[:, 2])
    read = start_read & end_read

    def line(place: int) -> str:
        return "\t".join(str(value) for value in frame.iloc[place])

    faults = {
        place: Fault("BED-NUMBER", f"whole numbers wanted, got {printable(line(place))}", "write digits only", "")
        for place in np.flatnonzero(~read).tolist()
    }
    return Rows(
        first=1,
        places=np.flatnonzero(read),
        names=[str(name) for name in names],
        chroms=labels[read].astype(np.int32),
        starts=starts[read],
        ends=ends[read],
        labels=[],
        barcodes=np.empty(0, np.int32),
        counts=np.empty(0, np.int64),
        faults=faults,
        notes=frozenset(),
        line=line,
    )


def rows_of_names(names: pd.Index, file: str) -> Rows:
    """Region names such as `chr1:100-200`, `chr1-100-200` or `chr1_100_200` as rows.

    Raises BadData with the first name of another form.
    """
    texts = pa.array(names.astype(str), pa.string())
    parts = pc.extract_regex(texts, _NAME)
    if parts.null_count:
        row = int(np.argmax(parts.is_null().to_numpy(zero_copy_only=False)))
        name = str(names[row])
        raise BadData(
            f"region {row + 1} is named {printable(name)}, which is not chr:start-end",
            code="H5AD-REGIONS",
            file=file,
            got=name,
            fix="give var columns chrom, start, end, or names like chr1:1000-2000, chr1-1000-2000 or chr1_1000_2000",
        )
    chroms = parts.field("chrom").dictionary_encode()
    return Rows(
        first=1,
        places=np.arange(len(texts)),
        names=chroms.dictionary.to_pylist(),
        chroms=chroms.indices.to_numpy(),
        starts=parts.field("start").cast(pa.int64()).to_numpy(),
        ends=parts.field("end").cast(pa.int64()).to_numpy(),
        labels=[],
        barcodes=np.empty(0, np.int32),
        counts=np.empty(0, np.int64),
        faults={},
        notes=frozenset(),
        line=lambda place: str(names[place]),
    )


def table_of(frame: pd.DataFrame) -> tuple[pa.Table, list[str]]:
    """Metadata as Arrow columns (text, categories of text, booleans, numbers), and notes on what was changed."""
    columns: dict[str, pa.Array] = {}
    notes = []
    for place, label in enumerate(frame.columns):
        name = str(label)
        if name in columns:
            notes.append(f"a second column {printable(name)} left out")
            continue
        columns[name], as_text = arrow_column(frame.iloc[:, place])
        if as_text:
            notes.append(f"column {printable(name)} kept as text")
    if not columns:
        return pa.table({"": np.arange(len(frame))}).select([]), notes
    return pa.table(columns), notes


def arrow_column(column: "pd.Series[Any]") -> tuple[pa.Array, bool]:
    """One column, and whether its values had to be turned into text.

    >>> arrow_column(pd.Series([1, "a", None]))[1]
    True
    """
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy().astype(np.int32)
        labels = pa.array([str(label) for label in kind.categories], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), labels), False
    if isinstance(kind, np.dtype) and kind.kind in "biuf":
        wide = {2: np.float32, 16: np.float64}.get(kind.itemsize) if kind.kind == "f" else None
        return pa.array(column.to_numpy(wide or kind), from_pandas=True), False
    if isinstance(kind, pd.StringDtype):
        return pa.array(column.astype(object), pa.string(), from_pandas=True), False
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_integer_dtype(kind) or pd.api.types.is_float_dtype(kind):
        return pa.array(column, from_pandas=True), False  # pandas' types with missing values
    values = column.tolist()
    missing = column.isna().to_numpy()
    texts = [None if gone else as_text(value) for value, gone in zip(values, missing, strict=True)]
    changed = any(not isinstance(value, str) for value, gone in zip(values, missing, strict=True) if not gone)
    return pa.array(texts, pa.string()), changed


def as_text(value: Any) -> str:
    """Any value as text; times in ISO form."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value.isoformat() if isinstance(value, pd.Timestamp) else value)


def _numbers(column: "pd.Series[Any]") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The column as whole numbers, and which of its values are such and not below 0, (n), (n)."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        numbers = column.to_numpy().astype(np.float64)
    else:
        texts = column.astype(object).map(lambda value: value if isinstance(value, str) else str(value))
        whole = texts.map(lambda text: re.fullmatch(r"[0-9]{1,15}(\.0+)?", text) is not None).astype(bool)
        numbers = pd.to_numeric(texts.where(whole)).to_numpy(np.float64)
    read = (numbers >= 0) & (numbers <= HIGHEST)
    return np.where(read, numbers, 0).astype(np.int64), read

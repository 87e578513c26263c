"""A segment: at most 262,144 rows of one collection, in files that are written once.

rows.parquet                        id, name, dataset, n_tokens, n_fragments, coverage, and the users' columns
tokens.parquet                      the token sets, one list a row
views/<sha12>/vectors.npy           float16, one row a row
views/<sha12>/codes.faiss           the inverted lists, where the view is large enough to have any
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.indexer.schemas import conform

MAX_ROWS = 262_144
GROUP_ROWS = 8_192  # rows of a parquet row group: the unit in which token sets are read back
OWN_COLUMNS = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        ("n_tokens", pa.int32()),
        ("n_fragments", pa.int64()),
        ("coverage", pa.float32()),
    ]
)
_TOKENS = pa.schema([("tokens", pa.large_list(pa.int32()))])


class SegmentWriter:
    """Writes rows and token sets, block by block, in bounded memory."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Start a segment in an empty folder; `schema` is that of the users' columns."""
        self.folder = folder
        self.n_rows = 0
        self._schema = schema
        self._full = pa.schema([*OWN_COLUMNS, *schema])
        self._rows = pq.ParquetWriter(folder / "rows.parquet", self._full, compression="zstd")
        self._tokens = TokenWriter(folder)

    def add(self, block: SetBlock, dataset: str, first_id: int) -> None:
        """Append a block; its rows get the ids from first_id on."""
        n = len(block)
        fragments = pa.nulls(n, pa.int64()) if block.n_fragments is None else pa.array(block.n_fragments, pa.int64())
        own = [
            pa.array(np.arange(first_id, first_id + n)),
            pa.array(block.names, pa.string()),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([dataset])),
            pa.array(block.sets.sizes.astype(np.int32)),
            fragments,
            pa.array(block.coverage),
        ]
        users = conform(block.metadata, self._schema)
        self._rows.write_table(
            pa.Table.from_arrays([*map(as_chunked, own), *users.columns], schema=self._full), GROUP_ROWS
        )
        self._tokens.add(block.sets)
        self.n_rows += n

    def close(self) -> None:
        """Finish both files."""
        self._rows.close()
        self._tokens.close()


class TokenWriter:
    """Writes the token sets of a segment, block by block."""

    def __init__(self, folder: Path) -> None:
        self._file = pq.ParquetWriter(
            folder / "tokens.parquet",
            _TOKENS,
            compression="zstd",
            use_dictionary=False,
            column_encoding={"tokens.list.element": "DELTA_BINARY_PACKED"},
        )

    def add(self, sets: TokenSets) -> None:
        """Append sets."""
        self._file.write_table(pa.table([sets.to_arrow()], schema=_TOKENS), GROUP_ROWS)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def as_chunked(array: pa.Array) -> pa.ChunkedArray:
    """One array as a column."""
    return pa.chunked_array([array])


def read_sets(folder: Path) -> Iterator[TokenSets]:
    """The token sets of a segment, a row group at a time."""
    with pq.ParquetFile(folder / "tokens.parquet") as file:
        for group in range(file.num_row_groups):
            yield TokenSets.from_arrow(file.read_row_group(group).column(0))


def take_sets(folder: Path, rows: NDArray[np.int64]) -> TokenSets:
    """The token sets of some rows of a segment, in the order of `rows`."""
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    parts = []
    with pq.ParquetFile(folder / "tokens.parquet") as file:
        first = 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            mine = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, stop)] - first
            if len(mine):
                parts.append(TokenSets.from_arrow(file.read_row_group(group).column(0)).take(mine))
            first = stop
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return TokenSets.concat(parts).take(back)


class VectorWriter:
    """Writes a float16 `.npy` row by row; nothing is held in memory or mapped."""

    def __init__(self, path: Path, n_rows: int, dim: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115  closed in close()
        header = {"descr": "<f2", "fortran_order": False, "shape": (n_rows, dim)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append rows, (n, dim)."""
        self._file.write(vectors.astype("<f2").tobytes())

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

"""Matrices of cells x regions, in memory or in an h5ad, read piece by piece as sparse rows or columns."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from chromseek.data.errors import BadArgument
from chromseek.data.h5ad_check import PIECE, Layout, check_indices, layout_of, pointers, reading


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive rows of a matrix, or columns of one that is stored by column: the lines."""

    first: int  # number of the first line
    offsets: NDArray[np.int64]  # (lines + 1)
    places: NDArray[np.int64]  # (entries) the column of each entry, or its row
    values: NDArray[Any]  # (entries) zeros may be among them

    @property
    def lines(self) -> NDArray[np.int64]:
        """The line of each entry, counted from `first`, (entries)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class Matrix:
    """One matrix; `layout.kind` tells whether its pieces are rows (csr, dense) or columns (csc)."""

    def __init__(self, source: Any) -> None:
        """Take an HDF5 group or dataset that passed the guard, a scipy sparse matrix, or an array.

        Raises BadData when a sparse matrix in a file is broken.
        """
        if not isinstance(source, h5py.Group | h5py.Dataset):
            source = _in_memory(source)
        self.layout = layout_of(source) if isinstance(source, h5py.Group | h5py.Dataset) else _layout(source)
        self._source = source
        self._group = source if isinstance(source, h5py.Group) else None
        if self._group is not None:
            self._offsets = pointers(self._group, self.layout)
            self._indices, self._values = self._group["indices"], self._group["data"]
        elif self.layout.kind != "dense":
            self._offsets = source.indptr.astype(np.int64)
            self._indices, self._values = source.indices, source.data

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """The lines start..stop in pieces of about a million entries.

        Raises BadData for indices outside of the shape.
        """
        shape = self.layout.shape
        stop = (shape[1] if self.layout.kind == "csc" else shape[0]) if stop is None else stop
        return self._dense(start, stop) if self.layout.kind == "dense" else self._sparse(start, stop)

    def _sparse(self, start: int, stop: int) -> Iterator[Piece]:
        minor = self.layout.shape[0 if self.layout.kind == "csc" else 1]
        while start < stop:
            low = self._offsets[start]
            last = int(np.searchsorted(self._offsets, low + PIECE, side="right")) - 1
            last = min(stop, max(last, start + 1))
            high = self._offsets[last]
            with self._reading():
                indices, values = self._indices[low:high], self._values[low:high]
            if self._group is not None:
                check_indices(self._group, indices, minor)
            yield Piece(start, self._offsets[start : last + 1] - low, indices, values)
            start = last

    def _dense(self, start: int, stop: int) -> Iterator[Piece]:
        width = max(1, self.layout.shape[1])
        step = max(1, 4 * PIECE // width)
        chunks = getattr(self._source, "chunks", None)
        if chunks and chunks[0] * width <= 16 * PIECE:  # a chunk is unpacked whole: read each only once
            step = max(chunks[0], step // chunks[0] * chunks[0])
        while start < stop:
            last = min(stop, (start // step + 1) * step)
            with self._reading():
                block = np.asarray(self._source[start:last])
            filled = np.flatnonzero(block)
            rows, columns = np.divmod(filled, width)
            offsets = np.searchsorted(rows, np.arange(last - start + 1))
            yield Piece(start, offsets, columns, block.reshape(-1)[filled])
            start = last

    def _reading(self) -> AbstractContextManager[None]:
        in_file = isinstance(self._source, h5py.Group | h5py.Dataset)
        return reading(self._source.file.filename) if in_file else nullcontext()


def _in_memory(source: Any) -> Any:
    if sparse.issparse(source):
        matrix: Any = source
        return matrix if matrix.format == "csr" else matrix.tocsr()
    if not isinstance(source, np.ndarray) or source.dtype.kind not in "buif" or source.ndim != 2:
        raise BadArgument(
            f"cannot read a matrix from a {type(source).__name__}",
            code="H5AD-FORM",
            got=type(source).__name__,
            fix="give X as a scipy sparse matrix or a numpy array of numbers",
        )
    return np.asarray(source)


def _layout(source: Any) -> Layout:
    return Layout("csr" if sparse.issparse(source) else "dense", (int(source.shape[0]), int(source.shape[1])))

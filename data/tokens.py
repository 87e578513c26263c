"""Token sets: what every cell, region and BED set becomes before it is encoded.

A token is the position of a region in the universe. `TokenSets` holds many sets, ragged, in two arrays;
`SetBlock` is a block of them with what its source knew: the unit that flows from the readers to the encoder.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True, slots=True)
class TokenSets:
    """Many sets of tokens; each set is sorted and free of repeats.

    >>> sets = TokenSets.from_lists([[5, 2, 5], [], [7]])
    >>> sets.offsets.tolist(), sets.tokens.tolist(), len(sets)
    ([0, 2, 2, 3], [2, 5, 7], 3)
    """

    offsets: NDArray[np.int64]  # (n + 1)
    tokens: NDArray[np.int32]  # (offsets[-1])

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | NDArray[np.int32]]) -> "TokenSets":
        """Make sets of plain lists; order and repeats do not matter."""
        arrays = [rising(np.asarray(tokens, dtype=np.int32)) for tokens in lists]
        return cls(offsets_of([len(a) for a in arrays]), np.concatenate([np.empty(0, np.int32), *arrays]))

    @classmethod
    def from_pairs(cls, rows: NDArray[np.int64], tokens: NDArray[np.int32], n: int) -> "TokenSets":
        """Make `n` sets of unordered (row, token) pairs; repeats are dropped."""
        pairs = rising((rows.astype(np.int64) << 32) | tokens)
        counts = np.bincount(pairs >> 32, minlength=n)
        return cls(offsets_of(counts), (pairs & 0xFFFFFFFF).astype(np.int32))

    @classmethod
    def concat(cls, parts: Sequence["TokenSets"]) -> "TokenSets":
        """Put the sets of several one after the other."""
        sizes = [part.sizes for part in parts]
        tokens = [part.tokens for part in parts]
        return cls(
            offsets_of(np.concatenate([np.empty(0, np.int64), *sizes])),
            np.concatenate([np.empty(0, np.int32), *tokens]),
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of tokens of each set, (n)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def slice(self, start: int, stop: int) -> "TokenSets":
        """Rows start..stop, without copying the tokens."""
        offsets = self.offsets[start : stop + 1]
        return TokenSets(offsets - offsets[0], self.tokens[offsets[0] : offsets[-1]])

    def take(self, rows: NDArray[np.int64]) -> "TokenSets":
        """The given rows, in the given order."""
        sizes = self.sizes[rows]
        offsets = offsets_of(sizes)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], sizes)
        return TokenSets(offsets, self.tokens[places])

    def to_csr(self, n_tokens: int) -> sparse.csr_matrix:
        """The sets as a binary matrix, (n, n_tokens)."""
        ones = np.ones(len(self.tokens), np.float32)
        return sparse.csr_matrix((ones, self.tokens, self.offsets), shape=(len(self), n_tokens))

    def to_arrow(self) -> pa.LargeListArray:
        """The sets as one Arrow column of int32 lists."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(self.tokens))

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> "TokenSets":
        """The sets of an Arrow column of int32 lists."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        parts = []
        for chunk in chunks:
            offsets = chunk.offsets.to_numpy().astype(np.int64)
            tokens = chunk.values.to_numpy(zero_copy_only=False).astype(np.int32)  # a copy that torch may write to
            parts.append(cls(offsets - offsets[0], tokens[offsets[0] : offsets[-1]]))
        return cls.concat(parts) if len(parts) != 1 else parts[0]


@dataclass(frozen=True, slots=True)
class SetBlock:
    """A block of cells or BED sets as a reader gives it: n names, n token sets, n rows of metadata."""

    names: list[str]
    sets: TokenSets
    n_source: NDArray[np.int64]  # (n) regions (h5ad, BED) or fragments that the source had
    n_placed: NDArray[np.int64]  # (n) those of them that found a token
    n_fragments: NDArray[np.int64] | None  # (n) fragments, or summed counts; None where the source has no such thing
    metadata: pa.Table  # n rows: obs columns, or the manifest's columns

    def __len__(self) -> int:
        return len(self.names)

    @property
    def coverage(self) -> NDArray[np.float32]:
        """Share of what the source had that found a token, (n); 0 for an empty source."""
        return (self.n_placed / np.maximum(self.n_source, 1)).astype(np.float32)

    def slice(self, start: int, stop: int) -> "SetBlock":
        """Rows start..stop."""
        return SetBlock(
            self.names[start:stop],
            self.sets.slice(start, stop),
            self.n_source[start:stop],
            self.n_placed[start:stop],
            None if self.n_fragments is None else self.n_fragments[start:stop],
            self.metadata.slice(start, stop - start),
        )


def rising(values: NDArray[Any]) -> NDArray[Any]:
    """Sort and drop repeats; several times faster than np.unique, the more so where the order is nearly right.

    >>> rising(np.array([3, 1, 3, 2])).tolist()
    [1, 2, 3]
    """
    if (values[1:] < values[:-1]).any():
        values = np.sort(values, kind="stable")
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def offsets_of(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of consecutive pieces starts, and the end of the last.

    >>> offsets_of([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets

"""Columns out of a block of lines, by numpy on its bytes: no Python object is made per line.

These kernels read only what is plain beyond doubt (tabs, digits) and say which lines are not; those few go to a
parser that takes one line at a time and knows the reasons. Words of eight bytes are handled as one number each.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.lines import MARGIN, Block

Places = NDArray[np.int64]  # positions in a block's bytes

_TAB, _NEWLINE = 9, 10
_ZEROS = np.uint64(0x3030303030303030)
_LAST_BYTES = np.array([256**8 - 256 ** (8 - n) for n in range(9)], np.uint64)  # a mask that keeps the last n of eight
_FIRST_BYTES = np.array([256**n - 1 for n in range(9)], np.uint64)
_PAIRINGS = (  # neighbours are joined: eight digits to four numbers of two, those to two of four, those to one of eight
    (np.uint64(10 * (1 << 8) + 1), np.uint64(8), np.uint64(0x00FF00FF00FF00FF)),
    (np.uint64(100 * (1 << 16) + 1), np.uint64(16), np.uint64(0x0000FFFF0000FFFF)),
    (np.uint64(10_000 * (1 << 32) + 1), np.uint64(32), np.uint64(0xFFFFFFFF)),
)


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the first `wanted` fields of each of n lines lie in a block's bytes."""

    text: NDArray[np.uint8]
    stops: Places  # (wanted, n) where each field ends: the place of a tab or newline
    line_stops: Places  # (n) the place of the newline
    counts: NDArray[np.int64]  # (n) fields of the line
    plain: NDArray[np.bool_]  # (n) the line has all wanted fields, and no control characters but tabs

    def __len__(self) -> int:
        return len(self.line_stops)

    def span(self, column: int) -> tuple[Places, Places]:
        """Where a field starts and stops in each line, (n), (n)."""
        starts = np.empty(len(self), np.int64)
        if column:
            np.add(self.stops[column - 1], 1, out=starts)
        else:
            starts[:1] = MARGIN
            np.add(self.line_stops[:-1], 1, out=starts[1:])
        return starts, self.stops[column]

    def line(self, row: int) -> str:
        """One line as text, without its newline."""
        start = self.line_stops[row - 1] + 1 if row else MARGIN
        return self.text[start : self.line_stops[row]].tobytes().decode("utf-8", "replace")


def fields(block: Block, wanted: int) -> Fields:
    r"""Find the first fields of each line.

    >>> fields(Block.of(b"chr1\t5\t9\nx\n"), 3).plain.tolist()
    [True, False]
    """
    text = block.array
    inner = text[MARGIN : len(text) - MARGIN]
    marks = np.flatnonzero(inner < 32)
    width, ragged = divmod(len(marks), max(1, block.n_lines))
    if width >= wanted and not ragged:
        grid = marks.reshape(-1, width)  # most files: each line has as many columns, none has other control characters
        tabs = np.count_nonzero(inner == _TAB)
        if tabs == len(marks) - block.n_lines and (inner[grid[:, -1]] == _NEWLINE).all():
            stops = np.empty((wanted, block.n_lines), np.int64)
            np.add(grid.T[:wanted], MARGIN, out=stops)
            every = np.ones(block.n_lines, bool)
            return Fields(text, stops, grid[:, -1] + MARGIN, np.full(block.n_lines, width), every)
    marks += MARGIN
    kinds = text[marks]
    newlines = np.flatnonzero(kinds == _NEWLINE)
    first = np.zeros(len(newlines), np.int64)
    first[1:] = newlines[:-1] + 1
    stops = marks[np.minimum(first + np.arange(wanted)[:, None], newlines)]
    counts = newlines - first + 1
    plain = counts >= wanted
    plain[np.searchsorted(newlines, np.flatnonzero((kinds != _TAB) & (kinds != _NEWLINE)))] = False
    return Fields(text, stops, marks[newlines], counts, plain)


def whole_numbers(
    text: NDArray[np.uint8], starts: Places, stops: Places
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Read numbers of 1 to 9 digits: values (n), and which fields are such (n); the values of others mean nothing.

    >>> text = Block.of(b"123 x12").array
    >>> values, read = whole_numbers(text, np.array([0, 4]) + MARGIN, np.array([3, 7]) + MARGIN)
    >>> values[0], read.tolist()
    (np.int64(123), [True, False])
    """
    length = stops - starts
    read = (length >= 1) & (length <= 9)
    words = windows(text, 8).view("<u8")[stops - 8]
    words ^= _ZEROS
    words &= _LAST_BYTES.take(length, mode="clip")  # what stands before the field counts as leading zeros
    if words.view(np.uint8).max(initial=0) > 9:
        read &= (words.view(np.uint8).reshape(-1, 8) <= 9).all(axis=1)
    for factor, shift, keep in _PAIRINGS:
        words *= factor
        words >>= shift
        words &= keep
    values = words.view(np.int64)
    long = np.flatnonzero(length == 9)
    leading = text[stops[long] - 9] ^ np.uint8(48)
    read[long] &= leading <= 9
    values[long] += leading * np.int64(100_000_000)
    return values, read


def distinct(text: NDArray[np.uint8], starts: Places, stops: Places) -> tuple[list[bytes], NDArray[np.int32]]:
    """The distinct contents of fields in order of first appearance, and which of them each field has, (n).

    Fields have no NUL and at most MARGIN bytes, and should be short: all are laid out at the length of the longest.

    >>> text = Block.of(b"chr1 chrX chr1").array
    >>> distinct(text, np.array([0, 5, 10]) + MARGIN, np.array([4, 9, 14]) + MARGIN)
    ([b'chr1', b'chrX'], array([0, 1, 0], dtype=int32))
    """
    length = stops - starts
    width = int(length.max(initial=1))
    if width <= 8:
        words = windows(text, 8).view("<u8")[starts]
        words &= _FIRST_BYTES.take(length)
        heads = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]])[: len(words)])
        if len(heads) < len(words) // 4:  # sorted by this column
            names, codes = _encoded(words[heads].view(np.uint8).reshape(-1, 8))
            return names, np.repeat(codes, np.diff(heads, append=len(words)))
        return _encoded(words.view(np.uint8).reshape(-1, 8))
    cells = windows(text, width)[starts].view(np.uint8).reshape(-1, width)
    if length.min(initial=width) < width:
        cells *= np.arange(width, dtype=np.int16) < length.astype(np.int16)[:, None]
    return _encoded(cells)


def _encoded(cells: NDArray[np.uint8]) -> tuple[list[bytes], NDArray[np.int32]]:
    rows, width = cells.shape
    column = pa.Array.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(cells)]).dictionary_encode()
    return [name.rstrip(b"\0") for name in column.dictionary.to_pylist()], column.indices.to_numpy()


def windows(text: NDArray[np.uint8], width: int) -> NDArray[Any]:
    """A view of the text as overlapping words of `width` bytes, one from each place, (len(text) - width + 1)."""
    return np.ndarray((len(text) - width + 1,), f"V{width}", text, strides=(1,))

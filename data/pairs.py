"""(row, token) pairs that come in any order → token sets by row, in bounded memory.

Pairs are gathered, sorted and freed of repeats; what passes the limit is spilled to a nameless temporary file as a
sorted run. A range of rows is then one slice of each run. The file lies in the folder that is given, or else where the
environment's TMPDIR says (/tmp): where that is held in memory (tmpfs), TMPDIR should name a folder on a disk.
"""

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import StorageError
from chromseek.data.tokens import TokenSets, offsets_of, rising

_TOKEN = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Run:
    """Sorted pairs without repeats, in memory or in the file."""

    keys: NDArray[np.int64] | int  # (n), or where they begin in the file
    offsets: NDArray[np.int64]  # (rows + 1) where the pairs of each row begin


class PairSorter:
    """Takes pairs block by block, then gives the token sets of any rows, in rising order."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._counts = np.zeros(0, np.int64)  # (rows) pairs that were taken; repeats within a block are not
        self._limit = limit
        self._folder = folder
        self._blocks: list[NDArray[np.int64]] = []
        self._waiting = 0
        self._runs: list[_Run] = []
        self._file: int | None = None
        self._written = 0

    def add(self, rows: NDArray[np.integer[Any]], tokens: NDArray[np.int32]) -> None:
        """Take pairs; raises StorageError when the temporary disk is full."""
        keys = rising((rows.astype(np.int64) << 32) | tokens)
        counts = np.bincount(keys >> 32, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        self._blocks.append(keys)
        self._waiting += len(keys)
        if self._waiting > self._limit:
            keys = self._gathered()
            if len(keys) > self._limit // 2:
                self._runs.append(_Run(self._spilled(keys), self._offsets(keys)))
            else:
                self._blocks, self._waiting = [keys], len(keys)

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """At least as many as the tokens of each row, (n)."""
        known = rows < len(self._counts)
        return np.where(known, self._counts[np.where(known, rows, 0)] if len(self._counts) else 0, 0)

    def sets(self, rows: NDArray[np.int64]) -> TokenSets:
        """The token sets of rows that are given in rising order."""
        if self._blocks:
            keys = self._gathered()
            self._runs.append(_Run(keys, self._offsets(keys)))
        if len(rows) == 0:
            return TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32))
        first, last = int(rows[0]), int(rows[-1])
        wanted = np.zeros(last + 1 - first, bool)
        wanted[rows - first] = True
        parts = [self._slice(run, first, last) for run in self._runs]
        if not wanted.all():
            parts = [part[wanted[(part >> 32) - first]] for part in parts]
        keys = parts[0] if len(parts) == 1 else rising(np.concatenate([np.empty(0, np.int64), *parts]))
        counts = np.bincount((keys >> 32) - first, minlength=last + 1 - first)
        return TokenSets(offsets_of(counts[wanted]), (keys & _TOKEN).astype(np.int32))

    def _gathered(self) -> NDArray[np.int64]:
        blocks, self._blocks, self._waiting = self._blocks, [], 0
        return rising(np.concatenate(blocks)) if len(blocks) > 1 else blocks[0]

    def _offsets(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return offsets_of(np.bincount(keys >> 32, minlength=len(self._counts)))

    def _slice(self, run: _Run, first: int, last: int) -> NDArray[np.int64]:
        """The pairs of rows first..last; rows that came after the run have none in it."""
        start, stop = (int(run.offsets[min(row, len(run.offsets) - 1)]) for row in (first, last + 1))
        if not isinstance(run.keys, int):
            return run.keys[start:stop]
        return self._read(run.keys + 8 * start, 8 * (stop - start))

    def _spilled(self, keys: NDArray[np.int64]) -> int:
        try:
            if self._file is None:
                self._file, path = tempfile.mkstemp(prefix="chromseek-pairs-", dir=self._folder)
                os.unlink(path)  # nameless: it is gone with the process, however that ends
                weakref.finalize(self, os.close, self._file)
            place, rest = self._written, keys.data.cast("B")
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise StorageError(
                f"cannot write temporary data: {error.strerror}",
                code="PAIRS-SPILL",
                file=str(self._folder or tempfile.gettempdir()),
                fix="make room there, or set TMPDIR to a larger disk",
            ) from error
        self._written += keys.nbytes
        return place

    def _read(self, place: int, n_bytes: int) -> NDArray[np.int64]:
        assert self._file is not None
        data = np.empty(n_bytes, np.uint8)
        done = 0
        while done < n_bytes:
            read = os.preadv(self._file, [data.data[done:]], place + done)
            if read == 0:
                raise StorageError("temporary data are cut", code="PAIRS-SPILL", fix="check the temporary disk")
            done += read
        return data.view(np.int64)

"""Matrices of cells x regions, from AnnData in memory or an h5ad on disk, → token sets of cells, block by block."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.data.bed import fitting
from chromseek.data.checks import Checker
from chromseek.data.errors import BadArgument, BadData, printable
from chromseek.data.frames import coordinate_columns, rows_of_columns, rows_of_names, table_of
from chromseek.data.genome import Assembly, guess_assembly
from chromseek.data.h5ad_check import check_h5ad, is_null, open_h5ad, reading
from chromseek.data.matrix import Matrix, Piece
from chromseek.data.pairs import PairSorter
from chromseek.data.regions import Regions
from chromseek.data.tokens import SetBlock, TokenSets, offsets_of, rising
from chromseek.data.universe import Universe, expand

if TYPE_CHECKING:
    from anndata import AnnData

MAX_PAIRS = 16_000_000  # pairs (cell, token) kept in memory when a matrix is stored by column


class CellMatrix:
    """Cells x regions: what the cells are called, where the regions lie, and the open regions of each cell."""

    def __init__(
        self,
        source: "Path | str | AnnData",
        *,
        assembly: Assembly | None,
        layer: str | None = None,
        rename_chroms: str | None = None,
        on_bad_line: str = "error",
        make_unique: bool = False,
    ) -> None:
        """Open an h5ad, or take an AnnData; only names, metadata and coordinates are read now.

        Raises BadData for a file that is dangerous, broken or empty, for names that come twice (unless `make_unique`)
        and for regions that cannot be read or lie outside the assembly (unless `on_bad_line="skip"`).
        """
        self.notes: list[str] = []
        self._layer = layer
        self._path, data, obs, var = _opened(source)
        self.file = "AnnData" if self._path is None else str(self._path)
        self._loaded = None if data is None else self._in_memory(data)
        with self._matrix() as matrix:
            self._layout = matrix.layout
        self._check_shape(obs, var)
        self.n_cells = len(obs)
        self.names = unique_names([str(name) for name in obs.index], self.file, make_unique=make_unique)
        self.obs, notes = table_of(obs)
        self.regions, self.region_rows = self._read_regions(var, assembly, rename_chroms, on_bad_line)
        self.notes += [f"obs: {note}" for note in notes]
        self._var_names = var.index

    def blocks(self, universe: Universe, *, block_size: int = 8192, start: int = 0) -> Iterator[SetBlock]:
        """The token sets of cells, `block_size` at a time, from cell `start` on.

        A matrix that is stored by column is turned over first; what passes MAX_PAIRS goes to a temporary file in
        TMPDIR, which should be on a disk: 8 bytes per cell and token. Raises BadData for values that are no counts,
        naming cell and region.
        """
        tokens = TokenMap(universe, self.regions, self.region_rows, self._layout.shape[1])
        with self._matrix() as matrix:
            if matrix.layout.kind == "csc":
                yield from self._blocks_by_column(matrix, tokens, block_size, start)
                return
            for first in range(start, self.n_cells, block_size):
                last = min(first + block_size, self.n_cells)
                parts = [self._part(piece, tokens) for piece in matrix.pieces(first, last)]
                sets = TokenSets.concat([part.sets for part in parts])
                counts = np.concatenate([part.counts for part in parts], axis=1)
                yield self._block(first, last, sets, counts)

    def _block(self, first: int, last: int, sets: TokenSets, counts: NDArray[np.int64]) -> SetBlock:
        metadata = self.obs.slice(first, last - first)
        return SetBlock(self.names[first:last], sets, counts[0], counts[1], counts[2], metadata)

    def _part(self, piece: Piece, tokens: "TokenMap") -> "Part":
        """The token sets of the rows of a piece."""
        n = len(piece.offsets) - 1
        rows = piece.lines
        self._check_values(piece, rows, piece.places)
        filled = piece.values != 0
        values, columns = piece.values, piece.places
        if not filled.all():
            rows, columns, values = rows[filled], columns[filled], values[filled]
        placed, pair_rows, pair_tokens = tokens.pairs(rows, columns)
        keys = rising((pair_rows << 32) | pair_tokens)
        sets = TokenSets(offsets_of(np.bincount(keys >> 32, minlength=n)), (keys & 0xFFFFFFFF).astype(np.int32))
        return Part(sets, counts_of(rows, values, placed, n))

    def _blocks_by_column(self, matrix: Matrix, tokens: "TokenMap", block_size: int, start: int) -> Iterator[SetBlock]:
        """Go through all columns once, gather (cell, token) pairs, then give the cells."""
        pairs = PairSorter(MAX_PAIRS)
        counts = np.zeros((3, self.n_cells), np.int64)
        for piece in matrix.pieces():
            cells, columns = piece.places, piece.first + piece.lines
            self._check_values(piece, cells, columns)
            kept = (piece.values != 0) & (cells >= start)
            cells, columns = cells[kept].astype(np.int64), columns[kept]
            placed, pair_cells, pair_tokens = tokens.pairs(cells, columns)
            pairs.add(pair_cells, pair_tokens)
            counts += counts_of(cells, piece.values[kept], placed, self.n_cells)
        for first in range(start, self.n_cells, block_size):
            last = min(first + block_size, self.n_cells)
            yield self._block(first, last, pairs.sets(np.arange(first, last)), counts[:, first:last])

    @contextmanager
    def _matrix(self) -> Iterator[Matrix]:
        """The matrix that was asked for, open while in use."""
        if self._path is None:
            assert self._loaded is not None
            yield self._loaded
            return
        where = "X" if self._layer is None else f"layers/{self._layer}"
        with open_h5ad(self._path) as file:
            with reading(self._path):
                if where not in file or is_null(file[where]):
                    raise self._missing(where, list(file.get("layers", ())))
                matrix = Matrix(file[where])
            yield matrix

    def _in_memory(self, data: "AnnData") -> Matrix:
        matrix = data.X if self._layer is None else data.layers.get(self._layer)
        if matrix is None:
            raise self._missing("X" if self._layer is None else f"layers/{self._layer}", list(data.layers))
        return Matrix(matrix)

    def _missing(self, where: str, layers: list[str]) -> BadArgument:
        there = ", ".join(printable(layer) for layer in layers) or "none"
        return BadArgument(
            f"there is no {printable(where)}; layers: {there}",
            code="H5AD-LAYER",
            file=self.file,
            got=where,
            fix="choose one with --layer, or leave it out for X",
        )

    def _check_shape(self, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        if self._layout.shape != (len(obs), len(var)):
            raise BadData(
                f"the matrix is {self._layout.shape[0]} x {self._layout.shape[1]}, "
                f"but there are {len(obs)} obs and {len(var)} var",
                code="H5AD-SHAPE",
                file=self.file,
                fix="write the file again",
            )
        if 0 in self._layout.shape:
            what = "cells" if len(obs) == 0 else "regions"
            raise BadData(f"0 {what}", code="H5AD-EMPTY", file=self.file, fix=f"give a matrix that has {what}")

    def _read_regions(
        self, var: pd.DataFrame, assembly: Assembly | None, rename_chroms: str | None, on_bad_line: str
    ) -> tuple[Regions, NDArray[np.int64]]:
        columns = coordinate_columns(var)
        rows = rows_of_names(var.index, self.file) if columns is None else rows_of_columns(var[columns])
        if assembly is None:
            assembly = fitting(self.file, guess_assembly(rows.names, rows.chroms.astype(np.int64), rows.ends))
        with Checker(
            self.file, assembly, rename_chroms=rename_chroms, on_bad_line=on_bad_line, unit="region"
        ) as checker:
            regions, kept = checker.check(rows)
            self.notes += checker.finish()
        return regions, rows.places[kept]

    def _check_values(self, piece: Piece, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        """Refuse what is no count; note fractions once."""
        values = piece.values
        if values.dtype.kind in "bu" or len(values) == 0:
            return
        if not values.min() >= 0 or not values.max() < np.inf:  # NaN fails both
            at = int(np.argmax(~((values >= 0) & (values < np.inf))))
            row = int(rows[at]) + (piece.first if self._layout.kind != "csc" else 0)
            raise BadData(
                f"cell {printable(self.names[row])}, region {printable(self._var_names[columns[at]])}: "
                f"{values[at]} is not a count",
                code="H5AD-VALUES",
                file=self.file,
                got=float(values[at]),
                fix="give raw counts: choose their layer with --layer",
            )
        fractions = "fractional values: what is not zero counts as open"
        if values.dtype.kind == "f" and fractions not in self.notes and (values != np.rint(values)).any():
            self.notes.append(fractions)


@dataclass(frozen=True, slots=True)
class Part:
    """The token sets of some cells, and n_source, n_placed, n_fragments of each."""

    sets: TokenSets  # (n)
    counts: NDArray[np.int64]  # (3, n)


class TokenMap:
    """The tokens of each column of a matrix."""

    def __init__(self, universe: Universe, regions: Regions, columns: NDArray[np.int64], n_columns: int) -> None:
        """Map regions, which stand in the given columns, to the universe by overlap.

        Raises BadData when both are of different assemblies.
        """
        if regions.assembly != universe.assembly:
            raise BadData(
                f"the cells are of {regions.assembly.name}, the universe of {universe.assembly.name}",
                code="H5AD-ASSEMBLY",
                got=regions.assembly.name,
                fix="lift one of them over (--liftover)",
            )
        sets = universe.token_map(regions)
        self._first, self._count = np.zeros((2, n_columns), np.int64)
        self._first[columns], self._count[columns] = sets.offsets[:-1], sets.sizes
        self._tokens = sets.tokens
        self._only: NDArray[np.int32] | None = None  # the token of each column, -1 for none, where none has more
        if self._count.max() <= 1:
            self._only = np.full(n_columns, -1, np.int32)
            self._only[columns[sets.sizes > 0]] = sets.tokens

    def pairs(
        self, rows: NDArray[np.int64], columns: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int32]]:
        """Of entries (e): which have a token (e), and the pairs of row and token (p), (p)."""
        if self._only is not None:
            tokens = self._only[columns]
            placed = tokens >= 0
            return (placed, rows, tokens) if placed.all() else (placed, rows[placed], tokens[placed])
        count = self._count[columns]
        return count > 0, np.repeat(rows, count), self._tokens[expand(self._first[columns], count)]


def counts_of(rows: NDArray[np.int64], values: NDArray[Any], placed: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """For each of n rows: its entries, those that have a token, and the sum of values, (3, n)."""
    entries = np.bincount(rows, minlength=n)
    found = entries if placed.all() else np.bincount(rows[placed], minlength=n)
    sums = np.rint(np.bincount(rows, weights=values, minlength=n)).astype(np.int64)
    return np.stack([entries, found, sums])


def unique_names(names: list[str], file: str, *, make_unique: bool) -> list[str]:
    """The names as they are, or with `-1`, `-2` after those that come again.

    Raises BadData for repeats unless `make_unique`.

    >>> unique_names(["a", "b", "a", "a"], "x.h5ad", make_unique=True)
    ['a', 'b', 'a-1', 'a-2']
    """
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if first.setdefault(name, row) != row and not make_unique:
            raise BadData(
                f"two cells are named {printable(name)} (rows {first[name] + 1} and {row + 1})",
                code="H5AD-TWICE",
                file=file,
                got=name,
                fix="make the names unique (obs_names_make_unique), or pass --make-unique",
            )
    if len(first) == len(names):
        return names
    taken, used = set(names), set[str]()
    numbers: dict[str, int] = {}
    unique = []
    for name in names:
        fresh = name
        while fresh in used or (fresh != name and fresh in taken):
            numbers[name] = numbers.get(name, 0) + 1
            fresh = f"{name}-{numbers[name]}"
        used.add(fresh)
        unique.append(fresh)
    return unique


def _opened(source: Any) -> tuple[Path | None, Any, pd.DataFrame, pd.DataFrame]:
    """Where the matrix is (a path, or an AnnData in memory), with obs and var."""
    if isinstance(source, str | Path):
        check_h5ad(source, indices=False)
        with open_h5ad(source) as file, reading(source):
            return Path(source), None, read_frame(file, "obs"), read_frame(file, "var")
    if not all(hasattr(source, part) for part in ("obs", "var", "layers", "isbacked")):
        raise BadArgument(
            f"cannot read cells from a {type(source).__name__}",
            code="H5AD-SOURCE",
            got=type(source).__name__,
            fix="give the path of an h5ad, or an AnnData",
        )
    if source.isbacked and source.is_view:
        source = source.to_memory()
    if source.isbacked:
        check_h5ad(source.filename, indices=False)
        return Path(source.filename), None, source.obs, source.var
    return None, source, source.obs, source.var


def read_frame(file: h5py.File, part: str) -> pd.DataFrame:
    """obs or var of an h5ad, also of one written by anndata before 0.7."""
    from anndata.io import read_elem

    item = file[part]
    if isinstance(item, h5py.Group):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # anndata's advice to write old files again
                frame = read_elem(item)
        except Exception as error:  # whatever anndata meets in a file that is broken, or newer than itself
            raise _no_table(file, part, printable(str(error).partition("\n")[0], 150)) from error
        if not isinstance(frame, pd.DataFrame):
            raise _no_table(file, part, "another kind of data")
        return frame
    table = item[:]
    columns: dict[str, Any] = {}
    for name in table.dtype.names:
        values = table[name]
        labels = file.get(f"uns/{name}_categories")
        if labels is not None and values.dtype.kind in "iu":
            categories = pd.CategoricalDtype([_plain(label) for label in labels[:]])
            columns[name] = pd.Categorical.from_codes(values, dtype=categories)
        else:
            columns[name] = [_plain(value) for value in values] if values.dtype.kind in "OS" else values
    frame = pd.DataFrame(columns)
    return frame.set_index(frame.columns[0])


def _no_table(file: h5py.File, part: str, reason: str) -> BadData:
    return BadData(
        f"/{part} is no table that can be read: {reason}",
        code="H5AD-FORM",
        file=file.filename,
        fix="write the file again with the newest anndata",
    )


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

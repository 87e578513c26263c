"""Cells as sources of a build: matrices of cells x regions, and fragments files."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa

from chromseek.data.bed import guess_file
from chromseek.data.errors import BadData, printable
from chromseek.data.fragments import FragmentFile, read_fragments
from chromseek.data.frames import coordinate_columns, rows_of_columns, rows_of_names
from chromseek.data.genome import ASSEMBLIES, Assembly, AssemblyGuess, guess_assembly
from chromseek.data.h5ad import CellMatrix, read_frame
from chromseek.data.h5ad_check import check_h5ad, open_h5ad, reading
from chromseek.data.inputs import (
    BLOCK_ROWS,
    BLOCK_TOKENS,
    Estimate,
    ReadOptions,
    Target,
    assembly_checked,
    file_identity,
    known_assembly,
    left_out,
    options_identity,
    repeated,
    side_by_side,
    stem,
    table_digest,
)
from chromseek.data.lines import TextFile, opened
from chromseek.data.matrix import Matrix
from chromseek.data.regions import Regions
from chromseek.data.tables import read_table
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe

NO_COLUMNS = pa.table({"": [0]}).select([])  # one row without columns


class MatrixSource:
    """The cells of an h5ad, or of an AnnData in memory or backed."""

    kind: Literal["cell"] = "cell"

    def __init__(
        self,
        source: Any,
        options: ReadOptions,
        target: Target,
        *,
        dataset: str | None = None,
        constants: pa.Table = NO_COLUMNS,
        named: str | None = None,
    ) -> None:
        """Read names, metadata and coordinates. `constants` is one row of metadata that all cells share.

        Raises BadData when the matrix cannot be read, or is of an assembly that has no way to the atlas'.
        """
        in_memory = not isinstance(source, str | Path)
        self._source, self._options, self._target, self._constants = source, options, target, constants
        self.label = "AnnData" if in_memory else str(source)
        self.dataset = dataset or ("cells" if in_memory else stem(source))
        named = named or _named_assembly(source)
        own = target.assembly_of(self.label, named, lambda: _guess_matrix(source, self.label))
        with assembly_checked(self.label, target):
            self._cells = CellMatrix(
                source,
                assembly=own,
                layer=options.layer,
                rename_chroms=options.rename_chroms,
                on_bad_line=options.on_bad_line,
                make_unique=options.make_unique,
            )
        check_columns(self.label, self._cells.obs.schema.names, constants.schema.names)
        self.schema = side_by_side(self._cells.obs.slice(0, 0), repeated(constants, 0)).schema
        self.n_sets: int | None = self._cells.n_cells
        self._left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped or changed; complete once the blocks have been read."""
        return (*self._cells.notes, *self._left_out)

    @property
    def regions(self) -> Regions:
        """The matrix's regions in the atlas' assembly, in their order."""
        regions, chain = self._cells.regions, self._target.chain
        lifted = chain is not None and regions.assembly == chain.source
        return chain.lift(regions)[0] if lifted and chain is not None else regions

    def identity(self) -> dict[str, Any]:
        """The file, or the digest of what is in memory."""
        if isinstance(self._source, str | Path):
            return {"matrix": file_identity(self._source), **self._read_as()}
        content: Any = None if self._source.isbacked else _matrix_digest(self._matrix_in_memory())
        cells = hashlib.sha256("\0".join(self._cells.names).encode("utf-8", "replace")).hexdigest()
        obs, regions = table_digest(self._cells.obs), Universe.of(self._cells.regions).digest
        file = file_identity(self._source.filename) if self._source.isbacked else None
        return {"matrix": [content, cells, obs, regions, file], **self._read_as()}

    def _read_as(self) -> dict[str, Any]:
        return {"constants": table_digest(self._constants), "options": options_identity(self._options)}

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The cells from `start` on. Raises BadData for values that are no counts."""
        asked = self._target.universe_for(self._cells.regions.assembly, universe, self.label)
        size = int(np.clip(BLOCK_TOKENS / max(1.0, self._entries_per_cell()), 1, BLOCK_ROWS))
        for block in self._cells.blocks(asked, block_size=size, start=start):
            self._left_out = left_out(asked)
            yield replace(block, metadata=side_by_side(block.metadata, repeated(self._constants, len(block))))

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count by the first million entries; coverage by all regions."""
        n_bytes = 0 if not isinstance(self._source, str | Path) else file_identity(self._source)["size"]
        entries, coverage = self._entries_per_cell() * self._cells.n_cells, None
        if universe is not None:
            asked = self._target.universe_for(self._cells.regions.assembly, universe, self.label)
            sizes = asked.token_map(self._cells.regions).sizes
            entries, coverage = entries * float(sizes.mean()), float((sizes > 0).mean())
        return Estimate(self.n_sets, round(entries), n_bytes, coverage)

    def _entries_per_cell(self) -> float:
        """The mean number of entries of a cell; of a file, in the first piece of its matrix."""
        source = self._source
        if not isinstance(source, str | Path) and not source.isbacked:
            stored = self._matrix_in_memory()
            return float(stored.nnz if hasattr(stored, "nnz") else np.count_nonzero(stored)) / self._cells.n_cells
        path = source if isinstance(source, str | Path) else source.filename
        with open_h5ad(path) as file, reading(path):
            matrix = Matrix(file["X" if self._options.layer is None else f"layers/{self._options.layer}"])
            piece = next(matrix.pieces())
            share = (len(piece.offsets) - 1) / matrix.layout.shape[1 if matrix.layout.kind == "csc" else 0]
            return float(len(piece.values)) / share / self._cells.n_cells

    def _matrix_in_memory(self) -> Any:
        return self._source.X if self._options.layer is None else self._source.layers[self._options.layer]


class FragmentSource:
    """The barcodes of a fragments file: all, or those that an obs table lists, with its other columns."""

    kind: Literal["cell"] = "cell"

    def __init__(
        self,
        path: str | Path,
        options: ReadOptions,
        target: Target,
        *,
        dataset: str | None = None,
        obs: str | Path | None = None,
        constants: pa.Table = NO_COLUMNS,
        named: str | None = None,
    ) -> None:
        """Read the obs table and the first piece of the file. `constants` is one row that all barcodes share.

        Raises BadData when either cannot be read, or when the fragments have no way to the atlas' assembly.
        """
        self._path, self._options, self._target, self._constants = Path(path), options, target, constants
        self.label, self.dataset = str(path), dataset or stem(path)
        self._obs_path = None if obs is None else Path(obs)
        self._barcodes: list[str] | None = None
        self._obs = NO_COLUMNS.slice(0, 0)
        if obs is not None:
            self._barcodes, self._obs = read_obs(obs)
        check_columns(self.label, self._obs.schema.names, constants.schema.names)
        self.schema = side_by_side(repeated(constants, 0), self._obs.slice(0, 0)).schema
        self.n_sets = None if self._barcodes is None else len(self._barcodes)
        self._peek(target.assembly)
        self._own = target.assembly_of(self.label, named, lambda: guess_file(self._path, 1 << 62))
        self.notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """The file and the obs table."""
        return {
            "fragments": file_identity(self._path),
            "obs": None if self._obs_path is None else file_identity(self._obs_path),
            "constants": table_digest(self._constants),
            "options": options_identity(self._options),
        }

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The barcodes from row `start` on; the file is read whole before the first.

        What passes the memory's share goes to a temporary file in TMPDIR, which should be on a disk: about 8 bytes per
        barcode and token. Raises BadData for bad lines, and when the barcodes listed are not those of the file.
        """
        asked = self._target.universe_for(self._own, universe, self.label)
        with assembly_checked(self.label, self._target):
            sets = read_fragments(
                self._path,
                asked,
                barcodes=self._barcodes,
                min_fragments=self._options.min_fragments if self._barcodes is None else 0,
                rename_chroms=self._options.rename_chroms,
                on_bad_line=self._options.on_bad_line,
                block_size=BLOCK_ROWS,
                max_pairs_in_memory=BLOCK_TOKENS,
            )
        self.notes = (*sets.notes, *left_out(asked))
        first = 0
        for block in sets:
            rest = block.slice(min(max(start - first, 0), len(block)), len(block))
            first += len(block)
            if len(rest):
                metadata = side_by_side(rest.metadata, repeated(self._constants, len(rest)))
                obs = self._obs.slice(first - len(rest), len(rest))
                yield replace(rest, metadata=side_by_side(metadata, obs))

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count by the first piece of the file, as if each fragment that is placed were a token of its own."""
        text, regions = self._peek(self._own if universe is None else self._own or universe.assembly)
        size, packed = file_identity(self._path)["size"], len(text)
        if is_gz(self._path):
            packed = len(zlib.compress(text, 6))
        n_tokens, coverage = len(regions) * size / max(1, packed), None
        if universe is not None:
            asked = self._target.universe_for(self._own, universe, self.label)
            coverage = asked.tokenize(regions)[1] / max(1, len(regions))
            n_tokens *= coverage
        return Estimate(self.n_sets, round(n_tokens), size, coverage)

    def _peek(self, assembly: Assembly | None) -> tuple[bytes, Regions]:
        """The first megabytes of text and the fragments in them; raises BadData when they are no fragments."""
        known = assembly or next(iter(ASSEMBLIES.values()))  # where none is known, only the columns matter
        file = FragmentFile(self._path, known, rename_chroms=self._options.rename_chroms)
        block = next(file.blocks())
        return next(TextFile(self._path).blocks()).lines, block.regions


def read_obs(path: str | Path) -> tuple[list[str], pa.Table]:
    """Read a table of barcodes: those of column `barcode`, or else of the first one, and the other columns.

    Raises BadData when a barcode is missing or comes twice.
    """
    table = read_table(path, index=True)
    name = "barcode" if "barcode" in table.column_names else table.column_names[0]
    if len(set(table.column_names)) < len(table.column_names):
        fix = "give each column one name"
        raise BadData("two columns have one name", code="OBS-COLUMNS", file=str(path), fix=fix)
    barcodes = table.column(name).to_pylist()
    first: dict[str, int] = {}
    for row, barcode in enumerate(barcodes, 1):
        if not barcode or first.setdefault(barcode, row) != row:
            what = f"is listed twice (rows {first[barcode]} and {row})" if barcode else f"is missing in row {row}"
            raise BadData(
                f"barcode {printable(barcode)} {what}" if barcode else f"the barcode {what}",
                code="OBS-BARCODES",
                file=str(path),
                got=barcode,
                fix="list each barcode once, in the first column or in one named barcode",
            )
    if not barcodes:
        raise BadData("no barcodes", code="OBS-BARCODES", file=str(path), fix="list the barcodes of the cells")
    unnamed = [column for column in table.column_names if not column and column != name]
    return barcodes, table.drop_columns([name, *unnamed])


def check_columns(label: str, own: list[str], constants: list[str]) -> None:
    """Raise BadData when a column is both in an input and in the manifest that lists it."""
    both = [name for name in constants if name in own]
    if both:
        raise BadData(
            f"column {printable(both[0])} is in the manifest and in the obs table",
            code="SOURCE-COLUMN",
            file=label,
            got=both[0],
            fix="leave it out of one of them",
        )


def is_gz(path: Path) -> bool:
    """Whether the first bytes of a file are those of gz."""
    with opened(path) as raw:
        return raw.read(2) == b"\x1f\x8b"


def _named_assembly(source: Any) -> str | None:
    """What uns of an h5ad or an AnnData says of the assembly, where it is a known name."""
    if not isinstance(source, str | Path):
        found = [source.uns.get(key) for key in ("assembly", "genome")]
    else:
        check_h5ad(source, indices=False)
        with open_h5ad(source) as file, reading(source):
            uns = file["uns"] if isinstance(file.get("uns"), h5py.Group) else {}
            items = [uns.get(key) for key in ("assembly", "genome")]
            found = [item[()] for item in items if isinstance(item, h5py.Dataset) and item.size == 1]
    for value in found:
        text = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        name = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if isinstance(name, str) and known_assembly(name) is not None:
            return name
    return None


def _guess_matrix(source: Any, label: str) -> AssemblyGuess:
    """Guess the assembly of a matrix by all of its regions."""
    if isinstance(source, str | Path):
        with open_h5ad(source) as file, reading(source):
            var: pd.DataFrame = read_frame(file, "var")
    else:
        var = source.var
    columns = coordinate_columns(var)
    rows = rows_of_names(var.index, label) if columns is None else rows_of_columns(var[columns])
    return guess_assembly(rows.names, rows.chroms.astype(np.int64), rows.ends)


def _matrix_digest(matrix: Any) -> str:
    digest = hashlib.sha256(str(matrix.shape).encode())
    arrays = [matrix]
    if hasattr(matrix, "tocsr"):
        rows = matrix.tocsr()
        arrays = [rows.indptr, rows.indices, rows.data]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

"""A corpus: token sets on disk, from which an encoder is trained without holding them in memory.

tokens.npy       int32, all sets one after the other; memory-mapped
offsets.npy      int64, where each set starts, and the end of the last
rows.parquet     name, and the columns of metadata
universe.bed.gz  the regions that the tokens stand for
corpus.json      the assembly, and the counts and digest that the rest must fit
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, BadData, NotFound, StorageError, printable
from chromseek.data.genome import assembly
from chromseek.data.tokens import SetBlock, TokenSets, offsets_of
from chromseek.data.universe import Universe

DESCRIPTION = "corpus.json"
PRETOKENIZED = "input_ids"  # the list column of published, pre-tokenized Parquet files
N_SPECIALS = 7  # ids after the regions that such files may hold
_ROWS = 8192  # of a Parquet file, read at a time
_NAMES = ("name", "barcode", "cell", "cell_id", "id")


@dataclass(frozen=True)
class Corpus:
    """Token sets on disk, with their universe and metadata."""

    folder: Path
    universe: Universe
    all: TokenSets  # tokens are memory-mapped; take() reads only what it needs
    rows: pa.Table  # name, and the columns of metadata

    @classmethod
    def write(cls, folder: str | Path, blocks: Iterable[SetBlock], universe: Universe) -> "Corpus":
        """Write blocks of token sets to a new folder, which appears whole or not at all, in bounded memory.

        Raises StorageError (73) when something is there, BadData for tokens or columns that do not fit.
        """
        folder = Path(folder).absolute()
        check_new(folder)
        draft = folder.with_name(f".{os.getpid()}-{folder.name}")
        (draft / "rows").mkdir(parents=True)
        try:
            sizes = _write_sets(draft, blocks, len(universe))
            np.save(draft / "offsets.npy", offsets_of(sizes))
            _join_rows(draft)
            universe.save(draft / "universe.bed.gz")
            described = {
                "assembly": universe.assembly.name,
                "universe": universe.digest,
                "sets": len(sizes),
                "tokens": int(sizes.sum()),
            }
            (draft / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")
            if folder.is_dir():
                folder.rmdir()
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "Corpus":
        """Open a corpus; nothing is read but its metadata. Raises NotFound, or BadData when its parts do not fit."""
        folder = Path(folder)
        if not is_corpus(folder):
            raise NotFound("this is no corpus", code="CORPUS-NONE", file=str(folder), fix=f"it has no {DESCRIPTION}")
        try:
            described = json.loads((folder / DESCRIPTION).read_text())
            tokens = np.load(folder / "tokens.npy", mmap_mode="r")
            offsets = np.load(folder / "offsets.npy")
            rows = pq.read_table(folder / "rows.parquet")
            universe = Universe.load(folder / "universe.bed.gz", assembly(described["assembly"]))
            fits = [
                tokens.dtype == np.int32,
                offsets.dtype == np.int64 and offsets.shape == (described["sets"] + 1,) and offsets[0] == 0,
                offsets[-1] == len(tokens) == described["tokens"] and bool((np.diff(offsets) >= 0).all()),
                len(rows) == described["sets"] and "name" in rows.column_names,
                universe.digest == described["universe"],
            ]
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise _damaged(folder, printable(error, 200)) from error
        if not all(fits):
            raise _damaged(folder, "its files do not fit together")
        return cls(folder, universe, TokenSets(offsets, tokens), rows)

    def __len__(self) -> int:
        return len(self.all)

    def sets(self, rows: NDArray[np.int64]) -> TokenSets:
        """The token sets of some rows, in their order."""
        return self.all.take(rows)

    def labels(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """A column of metadata as codes (n), -1 where there is no value, and what the codes stand for.

        Raises BadArgument when there is no such column.
        """
        return label_codes(self.rows, column)


def is_corpus(folder: Path) -> bool:
    """Whether a folder is a corpus."""
    return (folder / DESCRIPTION).is_file()


def check_new(folder: Path) -> None:
    """Refuse an output folder that holds anything. Raises StorageError (73)."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        fix = "give the path of a new folder"
        raise StorageError(
            "there is something here already", code="OUTPUT-EXISTS", file=str(folder), fix=fix, exit_code=73, status=409
        )


def label_codes(rows: pa.Table, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """A column as codes (n), -1 for null and empty text, and the sorted values that they stand for.

    Raises BadArgument when there is no such column, and for numbers with decimals, which are no labels.
    """
    if column not in rows.column_names:
        raise BadArgument(
            f"no input has a column {printable(column)}",
            code="LABEL-COLUMN",
            got=column,
            fix=f"there is {', '.join(map(printable, rows.column_names[:20])) or 'none'}",
        )
    if pa.types.is_floating(rows.schema.field(column).type):
        fix = "name a column of words or whole numbers"
        raise BadArgument(f"{printable(column)} holds numbers with decimals", code="LABEL-NUMBERS", got=column, fix=fix)
    values = rows.column(column).cast(pa.string())
    values = pc.if_else(pc.equal(values, ""), None, values)
    names = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    codes = pc.fill_null(pc.index_in(values, pa.array(names, pa.string())), -1)
    return codes.to_numpy().astype(np.int64), names


def parquet_blocks(path: str | Path, universe: Universe) -> Iterator[SetBlock]:
    """The sets of a pre-tokenized Parquet file, a few thousand at a time: ids of regions, special ones dropped.

    Raises BadData for ids that the universe cannot have given.
    """
    try:
        with pq.ParquetFile(path) as file:
            if PRETOKENIZED not in file.schema_arrow.names:
                raise _no_tokens(path, f"there is no column {PRETOKENIZED}")
            first = 0
            for batch in file.iter_batches(_ROWS):
                yield _block(pa.table(batch), first, path, len(universe))
                first += len(batch)
    except (OSError, pa.ArrowException, AttributeError) as error:
        raise _no_tokens(path, printable(error, 200)) from error


def _block(table: pa.Table, first: int, path: str | Path, n_regions: int) -> SetBlock:
    given = TokenSets.from_arrow(table.column(PRETOKENIZED))
    if len(given.tokens) and not 0 <= given.tokens.min() <= given.tokens.max() < n_regions + N_SPECIALS:
        bad = given.tokens.max() if given.tokens.min() >= 0 else given.tokens.min()
        raise _no_tokens(path, f"token {bad} is none of a universe of {n_regions} regions")
    owners = np.repeat(np.arange(len(given)), given.sizes)
    region = given.tokens < n_regions
    sets = TokenSets.from_pairs(owners[region], given.tokens[region], len(given))
    named = next((name for name in _NAMES if name in table.column_names), None)
    numbers = [str(row) for row in range(first, first + len(table))]
    names = numbers if named is None else table.column(named).cast(pa.string()).fill_null("").to_pylist()
    metadata = table.drop_columns([PRETOKENIZED, *([named] if named else [])])
    return SetBlock(names, sets, given.sizes, sets.sizes, None, metadata)


def _write_sets(draft: Path, blocks: Iterable[SetBlock], n_regions: int) -> NDArray[np.int64]:
    """Write the tokens as they come, and the rows of each block to a file of their own; the sizes of all sets."""
    sizes = [np.empty(0, np.int64)]
    with open(draft / "tokens.npy", "wb") as file:
        _write_header(file, 0)
        for number, block in enumerate(blocks):
            tokens = block.sets.tokens
            if len(tokens) and not 0 <= tokens.min() <= tokens.max() < n_regions:
                raise BadData("a token is none of the universe", code="CORPUS-TOKEN", fix="give the right universe")
            file.write(np.ascontiguousarray(tokens, "<i4").tobytes())
            sizes.append(block.sets.sizes)
            pq.write_table(_rows_of(block), draft / "rows" / f"{number:08}.parquet")
        _write_header(file, int(sum(part.sum() for part in sizes)))  # numpy leaves room for a longer number
    return np.concatenate(sizes)


def _write_header(file: Any, n_tokens: int) -> None:
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (n_tokens,)})


def _rows_of(block: SetBlock) -> pa.Table:
    """The names and the metadata of a block; categories as plain text."""
    columns = {"name": pa.array(block.names, pa.string())}
    for field, column in zip(block.metadata.schema, block.metadata.columns, strict=True):
        plain = column.cast(field.type.value_type) if pa.types.is_dictionary(field.type) else column
        columns[field.name if field.name != "name" else "name_given"] = plain
    return pa.table(columns)


def _join_rows(draft: Path) -> None:
    """Make one file of the blocks' rows: columns joined by name, missing values null."""
    parts = sorted((draft / "rows").iterdir())
    try:
        schemas = [pq.read_schema(part) for part in parts] or [pa.schema([("name", pa.string())])]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with pq.ParquetWriter(draft / "rows.parquet", schema, compression="zstd") as writer:
            for part in parts:
                table = pa.concat_tables([schema.empty_table(), pq.read_table(part)], promote_options="permissive")
                writer.write_table(table.select(schema.names).cast(schema))
    except pa.ArrowException as error:
        raise BadData(
            f"columns of the inputs do not join: {printable(error, 200)}",
            code="SCHEMA-CLASH",
            fix="give each column one type in all files",
        ) from error
    shutil.rmtree(draft / "rows")


def _no_tokens(path: str | Path, what: str) -> BadData:
    fix = f"give a Parquet file with a list column {PRETOKENIZED} of token ids, made over the same universe"
    return BadData(what, code="CORPUS-PARQUET", file=str(path), fix=fix)


def _damaged(folder: Path, what: str) -> BadData:
    return BadData(what, code="CORPUS-DAMAGED", file=str(folder), fix="write the corpus again")

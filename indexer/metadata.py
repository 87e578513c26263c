"""The metadata of a collection: which rows match a filter (DuckDB), and what they hold (Arrow).

Parquet is the truth. The database is a cache made of it: one immutable file per version that any number of processes
read at once. Where it is absent, damaged or of other files, the parquet is loaded into a database in memory.
Inside, columns are `c0`, `c1`.. by position, so that no name that users give is ever part of SQL.
"""

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.errors import BadData, NotFound, StorageError, printable
from chromseek.indexer.filter_sql import column_kind, to_sql
from chromseek.indexer.filter_tree import Filter, cache_key
from chromseek.indexer.schemas import conform, join_schemas

__all__ = ["Metadata", "RowSets", "conform", "join_schemas", "write_database"]

_log = logging.getLogger(__name__)
_LAYOUT = 1  # of the database file; another number in a file makes it one to be ignored
_LOCKED = {  # no files, no network, no Python variables, no settings; one thread, the caller's, keeps row order
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "max_temp_directory_size": "0KB",
    "preserve_insertion_order": "true",
    "threads": "1",
    "lock_configuration": "true",
}
_READ_ONLY = {**_LOCKED, "memory_limit": "1GB"}


class Metadata:
    """The rows of one collection of one version; safe between threads."""

    def __init__(
        self,
        name: str,
        parquet_paths: Sequence[Path],
        *,
        database: Path | None = None,
        deleted: NDArray[np.bool_] | None = None,
        cache_bytes: int = 256 << 20,
    ) -> None:
        """Open the files that hold the rows of a collection, in order, and the database made of them, if it is good.

        `deleted` (n_rows) marks rows that no filter finds. `note` says why the database is not used.
        Raises BadData for a parquet file that is missing or damaged.
        """
        self._files = _Files(parquet_paths)
        self.n_rows: int = self._files.n_rows
        self.schema: pa.Schema = self._files.schema
        assert deleted is None or deleted.shape == (self.n_rows,)
        self._kept = None if deleted is None or not deleted.any() else ~deleted
        self._lock = threading.Lock()
        self._row_sets = RowSets(cache_bytes)
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._everything: NDArray[np.int64] | None = None
        self._connection: Any = None
        self._table = "t0"
        self.note = "no database"
        if database is not None:
            try:
                self._connection, self._table = _open_database(Path(database), name, self._files.fingerprint)
                self.note = ""
            except BadData as reason:
                self.note = reason.message
                level = logging.WARNING if Path(database).exists() else logging.INFO
                _log.log(level, "%s: filters of %s are answered from memory", reason.message, name)

    def where(self, tree: Filter | None) -> NDArray[np.int64]:
        """The row numbers that match and are not deleted, sorted, read-only; all of them without a filter.

        Raises BadArgument for a filter that does not fit the columns, StorageError when the database fails.
        """
        if tree is None:
            return self._all_rows()
        key = cache_key(tree)
        rows = self._row_sets.get(key)
        if rows is None:
            condition, parameters = to_sql(tree, self.schema)
            rows = self._select(f"SELECT row_number FROM {self._table} WHERE {condition}", parameters)
            rows = rows if self._kept is None else rows[self._kept[rows]]
            rows.flags.writeable = False
            self._row_sets.put(key, rows)
        return rows

    def take(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """The values of rows (m), in that order, repeats and all; a row of -1 is null in every column.

        Raises NotFound for an unknown column, IndexError for a row past the end.
        """
        rows = np.asarray(rows, np.int64)
        absent = rows < 0
        places = pa.array(rows, mask=absent if absent.any() else None)
        return self._columns_of(self.schema.names if columns is None else columns).take(places)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, of all rows, deleted ones too. Raises NotFound for an unknown one."""
        return self._columns_of([name]).column(0)

    def close(self) -> None:
        """Let the files go."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._files.close()

    def _all_rows(self) -> NDArray[np.int64]:
        if self._everything is None:
            rows = np.arange(self.n_rows) if self._kept is None else np.flatnonzero(self._kept)
            rows.flags.writeable = False
            self._everything = rows
        return self._everything

    def _select(self, sql: str, parameters: list[Any]) -> NDArray[np.int64]:
        try:
            with self._cursor() as cursor:  # a connection serves one query at a time, its cursors many
                rows: NDArray[np.int64] = cursor.execute(sql, parameters).fetchnumpy()["row_number"]
        except duckdb.Error as error:
            raise StorageError(
                f"the metadata database failed ({type(error).__name__})",
                code="METADATA-READ",
                fix="open the atlas again; delete its cache folder if that does not help",
            ) from error
        return rows

    def _cursor(self) -> Any:
        with self._lock:
            if self._connection is None:
                connection = duckdb.connect(":memory:", config=_LOCKED)
                _fill(connection, self._table, self._files)
                self._connection = connection
            return self._connection.cursor()

    def _columns_of(self, names: Sequence[str]) -> pa.Table:
        """The columns as one table, read on first use and kept."""
        for name in names:
            if name not in self._columns and name not in self.schema.names:
                near = ", ".join(map(printable, get_close_matches(name[:100], self.schema.names, n=3, cutoff=0.0)))
                raise NotFound(f"no column {printable(name)}", code="COLUMN", got=printable(name), fix=f"one of {near}")
        with self._lock:
            missing = [name for name in dict.fromkeys(names) if name not in self._columns]
            if missing:
                table = self._files.read(missing)
                self._columns.update(zip(missing, table.columns, strict=True))
            return pa.Table.from_arrays([self._columns[name] for name in names], names=list(names))


class RowSets:
    """Row sets by filter, bounded by bytes: the least recently used go first. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._sets: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> NDArray[np.int64] | None:
        """The rows kept for a filter, None when there are none."""
        with self._lock:
            rows = self._sets.get(key)
            if rows is not None:
                self._sets.move_to_end(key)
            return rows

    def put(self, key: str, rows: NDArray[np.int64]) -> None:
        """Keep the rows of a filter, unless they alone are past the bound."""
        with self._lock:
            if key in self._sets or _weight(key, rows) > self._max_bytes:
                return
            self._sets[key] = rows
            self._bytes += _weight(key, rows)
            while self._bytes > self._max_bytes:
                self._bytes -= _weight(*self._sets.popitem(last=False))

    @property
    def n_bytes(self) -> int:
        """What is kept now."""
        return self._bytes


def _weight(key: str, rows: NDArray[np.int64]) -> int:
    return rows.nbytes + 4 * len(key) + 256  # text takes up to four bytes a character; the objects around take some


class _Files:
    """The parquet files of a collection, read as one table with one schema."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._names = [f"{Path(path).parent.name}/{Path(path).name}" for path in paths]
        self._files = []
        for path, name in zip(paths, self._names, strict=True):
            with _damage_named(name):
                self._files.append(pq.ParquetFile(path, memory_map=True))
        schemas = [(name, file.schema_arrow) for name, file in zip(self._names, self._files, strict=True)]
        self.schema = join_schemas(schemas, reserved=())
        self.n_rows = sum(file.metadata.num_rows for file in self._files)
        parts = [
            [name, os.path.getsize(path), file.metadata.num_rows]
            for path, name, file in zip(paths, self._names, self._files, strict=True)
        ]
        columns = [[field.name, str(field.type)] for field in self.schema]
        self.fingerprint = json.dumps([_LAYOUT, parts, columns])

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The columns of all rows; one chunk and one dictionary each, since taking from many is slow."""
        schema = pa.schema([self.schema.field(name) for name in columns])
        tables = [schema.empty_table()]
        for name, file in zip(self._names, self._files, strict=True):
            there = [column for column in columns if column in file.schema_arrow.names]
            with _damage_named(name):
                table = file.read(columns=there)
            tables.append(conform(table, schema))
        return pa.concat_tables(tables).combine_chunks()

    def blocks(self) -> Iterator[pa.Table]:
        """All rows in order, one row group at a time."""
        for name, file in zip(self._names, self._files, strict=True):
            for group in range(file.num_row_groups):
                with _damage_named(name):
                    table = file.read_row_group(group)
                yield conform(table, self.schema)

    def close(self) -> None:
        """Close the files; what was read stays."""
        for file in self._files:
            file.close()


@contextmanager
def _damage_named(file: str) -> Iterator[None]:
    """Turn what Arrow raises over a missing or damaged file into BadData."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BadData(
            f"the metadata rows cannot be read: {_reason(error)}",
            code="ROWS-DAMAGED",
            file=file,
            fix="run `chromseek verify`, then restore the file, or open an earlier version",
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, without the path, where the system says it."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error)


def write_database(path: Path, collections: Mapping[str, Sequence[Path]]) -> None:
    """Write the database of the collections (name → its parquet files in order), and `<path>.sha256` beside it.

    It appears under its name whole or not at all, and is never changed afterwards.
    Raises BadData for a damaged parquet file, StorageError when the disk refuses; neither leaves a file.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(unfinished, config=_LOCKED) as connection:
            connection.execute("CREATE TABLE origin (collection VARCHAR, number BIGINT, fingerprint VARCHAR)")
            for number, (name, paths) in enumerate(collections.items()):
                files = _Files(paths)
                _fill(connection, f"t{number}", files)
                connection.execute("INSERT INTO origin VALUES (?, ?, ?)", [name, number, files.fingerprint])
                files.close()
            connection.execute("CHECKPOINT")
        digest = _sha256(unfinished)
        os.replace(unfinished, path)
        unfinished.write_text(f"{digest}  {path.name}\n")  # last: a database without its checksum is not used
        os.replace(unfinished, _beside(path, ".sha256"))
    except (duckdb.Error, OSError) as error:
        raise StorageError(
            f"the metadata database cannot be written: {_reason(error).replace(f'{path.parent}/', '')}",
            code="METADATA-WRITE",
            file=path.name,
            fix="free space, or make the folder writable",
            exit_code=77 if isinstance(error, PermissionError) else None,
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
        _beside(unfinished, ".wal").unlink(missing_ok=True)


def _fill(connection: Any, table: str, files: _Files) -> None:
    """Make a table of the rows: `row_number`, and `c` with its position for every column that filters can compare."""
    first = 0
    connection.register("incoming", _native(files.schema.empty_table(), first))
    connection.execute(f"CREATE TABLE {table} AS FROM incoming")
    for block in files.blocks():
        connection.register("incoming", _native(block, first))
        connection.execute(f"INSERT INTO {table} FROM incoming")
        first += len(block)
    connection.unregister("incoming")


def _native(block: pa.Table, first: int) -> pa.Table:
    """A block as DuckDB keeps it; times lose their zone (they are UTC) and become microseconds."""
    columns: dict[str, Any] = {"row_number": np.arange(first, first + len(block))}
    for position, column in enumerate(block.columns):
        kind = column_kind(column.type)
        if kind == "time":
            zone = getattr(column.type, "tz", None)
            column = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.timestamp("us"))
        if kind is not None:
            columns[f"c{position}"] = column
    return pa.table(columns)


def _open_database(path: Path, name: str, fingerprint: str) -> tuple[Any, str]:
    """Open the database file for reading; the connection, and the table of the collection.

    Raises BadData when it is absent, damaged, or made of other rows.
    """
    stray, sums = _beside(path, ".wal"), _beside(path, ".sha256")
    if not path.is_file() or not sums.is_file():
        raise _unusable(path, "is absent" if not path.is_file() else "has no checksum beside it")
    if stray.exists():  # opening would replay it, and it is not ours
        raise _unusable(path, "has a stray .wal beside it")
    if sums.read_text(errors="replace").split(" ")[0] != _sha256(path):
        raise _unusable(path, "does not have its checksum")
    try:
        connection = duckdb.connect(path, read_only=True, config=_READ_ONLY)
        found = connection.execute("SELECT number, fingerprint FROM origin WHERE collection = ?", [name]).fetchone()
    except duckdb.Error as error:
        raise _unusable(path, f"cannot be opened ({type(error).__name__})") from error
    if found is None or found[1] != fingerprint:
        connection.close()
        raise _unusable(path, "was made of other rows")
    return connection, f"t{int(found[0])}"


def _unusable(path: Path, what: str) -> BadData:
    return BadData(f"{path.name} {what}", code="METADATA-DATABASE", file=path.name, fix="it is made again on commit")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sha256(path: Path) -> str:
    status = path.stat()
    return _hashed(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(path: Path, _inode: int, _size: int, _changed: int) -> str:
    """The hash of one file; all collections share the database, so it is taken once while the file is the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

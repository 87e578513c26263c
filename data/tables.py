"""Tables that users keep beside their data: TSV, CSV or Parquet, with the columns named in the first line."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from chromseek.data.errors import BadData, printable
from chromseek.data.lines import TextFile, opened

TABLE_LIMIT = 512 << 20  # bytes of text


def read_table(path: str | Path, *, text: Collection[str] = ()) -> pa.Table:
    """Read a table; what it is, is told by its first bytes, and tabs in the first line part its columns.

    The first column and those named in `text` are kept as text, whatever they look like.
    Raises BadData for what is no table, NotFound and StorageError.
    """
    path = Path(path)
    if is_parquet(path):
        return _read_parquet(path, text)
    lines = b"".join(_limited(path))
    first = lines.partition(b"\n")[0].decode("utf-8", "replace")
    delimiter = "\t" if "\t" in first else ","
    header = words(first)
    kinds = {name: pa.string() for name in header[:1] + [name for name in header if name in text]}
    try:
        return pa.csv.read_csv(
            pa.BufferReader(lines),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=True, column_types=kinds),
        )
    except pa.ArrowInvalid as error:
        raise _no_table(path, error) from error


def is_parquet(path: Path) -> bool:
    """Whether the first bytes of a file are those of Parquet."""
    with opened(path) as raw:
        return raw.read(4) == b"PAR1"


def first_words(path: Path) -> list[str]:
    """The words of the first line of a text file, parted by tabs or commas; [] when it is empty."""
    block = next(TextFile(path).blocks(), None)
    return [] if block is None else words(block.lines.partition(b"\n")[0].decode("utf-8", "replace"))


def words(line: str) -> list[str]:
    """The cells of a line, without their quotes.

    >>> words('"path",donor')
    ['path', 'donor']
    """
    return [word.strip().strip('"') for word in line.split("\t" if "\t" in line else ",")] if line else []


def _limited(path: Path) -> list[bytes]:
    blocks, length = [], 0
    for block in TextFile(path).blocks():
        blocks.append(block.lines)
        length += len(block.lines)
        if length > TABLE_LIMIT:
            message = f"more than {TABLE_LIMIT >> 20} MB of text"
            raise BadData(message, code="TABLE-SIZE", file=str(path), fix="write it as Parquet", status=413)
    if not any(block.strip() for block in blocks):
        fix = "name the columns in the first line"
        raise BadData("the table is empty", code="TABLE-EMPTY", file=str(path), fix=fix)
    return blocks


def _read_parquet(path: Path, text: Collection[str]) -> pa.Table:
    try:
        table = pa.parquet.read_table(path)
        for place, field in enumerate(table.schema):
            if place == 0 or field.name in text:
                table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
        return table
    except (pa.ArrowException, OSError) as error:
        raise _no_table(path, error) from error


def _no_table(path: Path, error: Exception) -> BadData:
    return BadData(
        f"not a readable table ({printable(error, 200)})",
        code="TABLE-FORM",
        file=str(path),
        fix="give a TSV, CSV or Parquet file in which every row has all columns",
    )

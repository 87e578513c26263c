"""Tables that users keep beside their data: TSV, CSV or Parquet, with the columns named in the first line.

All text is read as text. A column becomes numbers only where each of its values is written as that number is, so
that a name like 007, 1e5 or 1.10 stays what it is; what is missing is an empty cell, and in numbers also NA.
"""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from chromseek.data.errors import BadData, printable
from chromseek.data.lines import TextFile, opened

TABLE_LIMIT = 512 << 20  # bytes of text
TEXT = ("name", "sample", "dataset", "donor", "genome", "assembly", "path", "file", "obs", "barcode")
_MISSING = ("NA", "N/A", "NaN", "nan", "NULL", "null")  # in a column of numbers
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
_PLAIN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_WAYS = (  # to write fractions so that no two texts are one number
    r"^[^.]+(\.[0-9]*[1-9])?$",  # 5 or 5.25, but not 5.0
    r"\.(0|[0-9]*[1-9])$",  # 5.0 or 5.25, as pandas does
)
_EXACT = 15  # digits that a float64 holds, whatever they are


def read_table(path: str | Path, *, index: bool = False) -> pa.Table:
    """Read a table; what it is, is told by its first bytes, and tabs in the first line part its columns.

    Columns named as in TEXT, and the first one where it is an `index`, are text, whatever they look like.
    Raises BadData for what is no table, NotFound and StorageError.
    """
    path = Path(path)
    return _read_parquet(path, index) if is_parquet(path) else _read_text(path, index)


def numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as whole numbers or fractions, where that loses nothing; otherwise as it is.

    >>> [str(numbers(pa.chunked_array([words])).type) for words in (["7", "NA"], ["0.5"], ["007"], ["1e5"])]
    ['int64', 'double', 'string', 'string']
    """
    known = pc.if_else(pc.is_in(texts, pa.array(_MISSING)), pa.scalar(None, pa.string()), texts)
    if known.null_count == len(known):
        return texts if texts.null_count < len(texts) else pa.chunked_array([pa.nulls(len(texts))])
    if _all_match(known, _WHOLE):
        try:
            return known.cast(pa.int64())
        except pa.ArrowInvalid:  # 19 digits may be too many
            return texts
    return known.cast(pa.float64()) if _all_match(known, _PLAIN) and _fractions_kept(known) else texts


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


def _all_match(texts: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, pattern)).as_py())


def _fractions_kept(texts: pa.ChunkedArray) -> bool:
    """Whether plain numbers can be told again from their float64."""
    decimals = pc.binary_length(pc.replace_substring_regex(texts, r"^[^.]*\.?", ""))
    span = pc.min_max(decimals).as_py()
    if span["max"] == 0:
        return False  # whole numbers that are no int64
    if span["min"] != span["max"] and not any(_all_match(texts, way) for way in _WAYS):
        return False
    digits = pc.binary_length(pc.replace_substring_regex(texts, r"[-.]", ""))
    return all(repr(float(text)) == text for text in texts.filter(pc.greater(digits, _EXACT)).to_pylist())


def _read_text(path: Path, index: bool) -> pa.Table:
    lines = b"".join(_limited(path)).lstrip(b"\n")
    first, _, rest = lines.partition(b"\n")
    delimiter = "\t" if b"\t" in first else ","
    header = next(csv.reader([first.decode("utf-8", "replace")], delimiter=delimiter))
    if not rest.strip(b"\n"):
        return pa.table([pa.array([], pa.string())] * len(header), names=header)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(lines),
            read_options=pa.csv.ReadOptions(column_names=header, skip_rows=1),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(
                strings_can_be_null=True, null_values=[""], column_types=dict.fromkeys(header, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        raise _no_table(path, error) from error
    columns = [
        column if name in TEXT or (index and place == 0) else numbers(column)
        for place, (name, column) in enumerate(zip(header, table.columns, strict=True))
    ]
    return pa.table(columns, names=header)


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


def _read_parquet(path: Path, index: bool) -> pa.Table:
    try:
        table = pa.parquet.read_table(path)
        for place, field in enumerate(table.schema):
            if field.name in TEXT or (index and place == 0):
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

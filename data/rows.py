"""Rows out of a block of lines: chromosome, start, end, and for fragments barcode and count.

Plain lines are read all at once (columns.py); every other line by `read_line`, which is slow, exact, and knows the
reason why it refuses one. Nothing is known here of assemblies: checks.py compares the rows with one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chromseek.data.columns import Fields, distinct, fields, whole_numbers
from chromseek.data.errors import printable
from chromseek.data.lines import Block

CHROM_LIMIT = 64
BARCODE_LIMIT = 256
HIGHEST = 2**31 - 1  # no chromosome is as long
SPACES = "spaces instead of tabs"
RAGGED = "lines have different numbers of columns"
HEADER = "header line skipped"
_HEADER = re.compile(r"\W*(chrom|chromosome|chr|seqnames?|seqid)\W+(chrom_?)?start\W+(chrom_?)?end\b", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]+")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line cannot be used."""

    code: str
    message: str
    fix: str
    got: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line, read by itself."""

    chrom: str
    start: int
    end: int
    barcode: bytes
    count: int
    n_fields: int
    spaced: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """The lines of a block that hold data, as columns, and the faults of those that cannot be read."""

    first: int  # number of the block's first line
    places: NDArray[np.int64]  # (n) which lines of the block
    names: list[str]  # the chromosome names that occur
    chroms: NDArray[np.int32]  # (n) position in names
    starts: NDArray[np.int64]  # (n)
    ends: NDArray[np.int64]  # (n)
    labels: list[bytes]  # the barcodes that occur
    barcodes: NDArray[np.int32]  # (n) position in labels; empty when fewer than 4 columns are wanted
    counts: NDArray[np.int64]  # (n) empty when fewer than 5 columns are wanted
    faults: dict[int, Fault]  # by place
    notes: frozenset[str]
    line: Callable[[int], str]  # the text at a place


def read_rows(block: Block, wanted: int, *, header: bool) -> Rows:
    """Read a block of which the first `wanted` columns count: 3 for BED, 4 or 5 for fragments.

    `header`: a line with column names may come before the first data.
    """
    found = fields(block, wanted)
    columns, plain = _columns(found, wanted)
    names, chroms = _texts(found, 0, plain)
    remarks = [code for code, name in enumerate(names) if _is_remark(name.decode("utf-8", "replace"))]
    if remarks:
        plain[np.flatnonzero(plain)[np.isin(chroms, remarks)]] = False
        names, chroms = _texts(found, 0, plain)
    labels, barcodes = _texts(found, 3, plain) if wanted > 3 else ([], np.empty(0, np.int32))
    faults: dict[int, Fault] = {}
    notes: set[str] = set()
    if not plain.all():
        rows = _odd_rows(found, plain, wanted, header, faults, notes)
        for place, row in rows.items():
            columns[:, place] = (row.start, row.end, row.count)[: len(columns)]
        chroms = _joined(names, chroms, {place: row.chrom.encode() for place, row in rows.items()}, plain)
        if wanted > 3:
            barcodes = _joined(labels, barcodes, {place: row.barcode for place, row in rows.items()}, plain)
        plain[list(rows)] = True
        columns = columns[:, plain]
    elif len(found) and found.counts.min() != found.counts.max():
        notes.add(RAGGED)
    return Rows(
        first=block.line,
        places=np.flatnonzero(plain),
        names=[name.decode("utf-8", "replace") for name in names],
        chroms=chroms,
        starts=columns[0],
        ends=columns[1],
        labels=labels,
        barcodes=barcodes,
        counts=columns[2] if wanted > 4 else np.empty(0, np.int64),
        faults=faults,
        notes=frozenset(notes),
        line=found.line,
    )


def _columns(found: Fields, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The number columns (start, end, count), and which lines are plain: all of their fields can be taken as read."""
    plain = found.plain.copy()
    numbers = [1, 2, 4][: 3 if wanted > 4 else 2]
    columns = np.empty((len(numbers), len(found)), np.int64)
    for row, column in enumerate(numbers):
        columns[row], read = whole_numbers(found.text, *found.span(column))
        plain &= read
    for column, limit in ((0, CHROM_LIMIT), (3, BARCODE_LIMIT))[: 2 if wanted > 3 else 1]:
        starts, stops = found.span(column)
        length = stops - starts
        plain &= (length > 0) & (length <= limit)
    return columns, plain


def _texts(found: Fields, column: int, plain: NDArray[np.bool_]) -> tuple[list[bytes], NDArray[np.int32]]:
    starts, stops = found.span(column)
    return distinct(found.text, starts, stops) if plain.all() else distinct(found.text, starts[plain], stops[plain])


def _odd_rows(
    found: Fields,
    plain: NDArray[np.bool_],
    wanted: int,
    header: bool,
    faults: dict[int, Fault],
    notes: set[str],
) -> dict[int, Row]:
    """Read the lines that are not plain one by one: rows by place; faults and notes are added to."""
    rows: dict[int, Row] = {}
    widths = set(np.unique(found.counts[plain]).tolist())
    first_data = int(np.argmax(plain)) if plain.any() else len(found)
    for place in np.flatnonzero(~plain).tolist():
        line = found.line(place)
        if is_comment(line):
            continue
        if header and place < first_data and not rows and not faults and is_header(line):
            notes.add(HEADER)
            header = False
            continue
        row = read_line(line, wanted)
        if isinstance(row, Fault):
            faults[place] = row
            continue
        rows[place] = row
        widths.add(row.n_fields)
        if row.spaced:
            notes.add(SPACES)
    if len(widths) > 1:
        notes.add(RAGGED)
    return rows


def _joined(
    names: list[bytes], codes: NDArray[np.int32], odd: dict[int, bytes], plain: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Put the names of odd lines between those of plain ones: the codes of both, in order; `names` grows."""
    known = {name: code for code, name in enumerate(names)}
    joined = np.full(len(plain), -1, np.int32)
    joined[plain] = codes
    for place, name in odd.items():
        joined[place] = known.setdefault(name, len(known))
    names[:] = list(known)
    return joined[joined >= 0]


def is_comment(line: str) -> bool:
    """Whether a line says nothing: blank, a comment, or for a browser only."""
    return not line.strip(" \t") or _is_remark(line)


def is_header(line: str) -> bool:
    """Whether a line names the columns: chrom, start, end."""
    return _HEADER.match(line) is not None


def words_of(line: str, wanted: int) -> list[str]:
    """The fields of a line: parted by tabs, or by blanks where that gives too few or leaves a blank in a number."""
    words = line.split("\t")
    if len(words) < wanted or any(" " in word for word in words[1:3]):
        return _BLANKS.split(line.strip(" \t"))
    return words


def _is_remark(line: str) -> bool:
    return line.startswith("#") or _BLANKS.split(line, maxsplit=1)[0] in ("track", "browser")


def read_line(line: str, wanted: int) -> Row | Fault:
    r"""Read one line exactly.

    >>> read_line("chr1 5 9", 3).end, read_line("chr1\t5\t1e3", 3).message
    (9, 'end 1e3 is not a whole number')
    """
    words = words_of(line, wanted)
    spaced = len(words) > line.count("\t") + 1
    if len(words) < 3:
        message = f"{len(words)} columns, at least 3 wanted: {printable(line)}"
        return Fault("BED-COLUMNS", message, "write chromosome, start and end, parted by tabs", line)
    if not 0 < len(words[0].encode()) <= CHROM_LIMIT:
        return Fault("BED-CHROM", f"no chromosome name: {printable(line)}", "put the chromosome first", words[0])
    start, end = _number(words[1], "start"), _number(words[2], "end")
    if isinstance(start, Fault):
        return start
    if isinstance(end, Fault):
        return end
    if wanted == 3:
        return Row(words[0], start, end, b"", 1, len(words), spaced)
    barcode, count = _barcode(words), _count(words, wanted)
    if isinstance(barcode, Fault):
        return barcode
    if isinstance(count, Fault):
        return count
    return Row(words[0], start, end, barcode, count, len(words), spaced)


def _number(word: str, what: str) -> int | Fault:
    if re.fullmatch("[0-9]+", word):
        value = int(word[-19:]) if len(word.lstrip("0")) < 19 else HIGHEST + 1
        if value <= HIGHEST:
            return value
        message = f"{what} {printable(word)} is past the end of any chromosome"
        return Fault("BED-END", message, "check the number", word)
    if re.fullmatch("-[0-9]+", word):
        return Fault("BED-NEGATIVE", f"{what} {printable(word)} is negative", "BED counts from 0", word)
    if re.fullmatch(r"[\d_,']+", word):
        message = f"{what} {printable(word)} has other characters than the digits 0-9"
        return Fault("BED-NUMBER", message, "write the digits 0-9 only", word)
    message = f"{what} {printable(word)} is not a whole number"
    return Fault("BED-NUMBER", message, "write a whole number, digits 0-9 only", word)


def _barcode(words: list[str]) -> bytes | Fault:
    if len(words) < 4 or not words[3]:
        return Fault("FRAG-COLUMNS", "column 4 must be a barcode", "give chrom, start, end, barcode, count", "")
    barcode = words[3].encode("utf-8", "replace")
    if len(barcode) > BARCODE_LIMIT:
        message = f"barcode of {len(barcode):,} bytes, at most {BARCODE_LIMIT}: {printable(words[3], 20)}"
        return Fault("FRAG-BARCODE", message, "check that column 4 is the barcode", words[3][:BARCODE_LIMIT])
    return barcode


def _count(words: list[str], wanted: int) -> int | Fault:
    if wanted < 5:
        return 1
    count = _number(words[4], "count") if len(words) > 4 else None
    if isinstance(count, int):
        return count
    got = words[4] if len(words) > 4 else ""
    message = f"count {printable(got)!r} is not a whole number" if got else "no count in column 5"
    return Fault("FRAG-COUNT", message, "column 5 must be the number of reads, 1 or more", got)

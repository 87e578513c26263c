"""Text files, plain or gz, as blocks of whole lines: the first to look at a user's BED or fragments file.

What a file is, is decided by its first bytes and not by its name. Whatever is not text, is damaged, ends early or
unpacks to far more than it holds is refused here, so that the parsers after it meet only lines.
"""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadData, NotFound, StorageError, printable

BLOCK = 4 << 20  # bytes of text that are parsed together: columns of a block stay in the cache
LINE_LIMIT = 65_536
RATIO_LIMIT = 200  # a gz that unpacks to more than this many times its size is a bomb, once past RATIO_FREE bytes
RATIO_FREE = 16 << 20
MARGIN = 256
_MARGIN = bytes(MARGIN)
_CHUNK = 64 << 10  # compressed bytes read at a time: bgzip has a member every 20 kB, and each copies what is left
_GZ, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_FIRST_BYTES = (
    (_GZ, "gz within gz"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\xfd7zXZ\x00", "xz-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"BAM\x01", "a BAM file"),
    (b"CRAM", "a CRAM file"),
    (b"\xeb\xf2\x89\x87", "a bigBed file"),
    (b"\x26\xfc\x8f\x88", "a bigWig file"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a file, each ended by a newline; no carriage return or NUL is left in them."""

    data: bytes  # the lines between two margins of MARGIN NUL bytes, so that kernels may read words over both ends
    line: int  # number of the first line, from 1
    n_lines: int

    @classmethod
    def of(cls, *lines: bytes | memoryview, line: int = 1) -> "Block":
        """Make a block of pieces of text."""
        data = b"".join((_MARGIN, *lines, _MARGIN))
        return cls(data, line, int(np.count_nonzero(np.frombuffer(data, np.uint8) == 10)))

    @property
    def array(self) -> NDArray[np.uint8]:
        """All bytes, margins included."""
        return np.frombuffer(self.data, np.uint8)

    @property
    def lines(self) -> bytes:
        """The lines without the margins."""
        return self.data[MARGIN:-MARGIN]


class TextFile:
    """A text file that is read once, from front to end. `notes` fills while it is read."""

    def __init__(self, path: str | Path, block_size: int = BLOCK) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._block_size = block_size

    def blocks(self) -> Iterator[Block]:
        """The lines of the file, some megabytes at a time.

        Raises NotFound, StorageError, and BadData for what is no text, is damaged, or passes a limit.
        """
        line, offset, rest = 1, 0, b""
        with opened(self.path) as raw:
            pieces = gathered(self._unpacked(raw), self._block_size)
            while True:
                try:
                    piece = next(pieces, b"")
                except (EOFError, zlib.error) as error:
                    raise self._broken(error, line - 1) from error
                if offset == 0:
                    self._check_start(piece)
                if b"\0" in piece:
                    fix = "remove the NUL bytes, or fetch the file again"
                    raise self._bad(f"NUL byte at offset {offset + piece.index(0)}", "TEXT-NUL", fix)
                last = not piece
                piece, offset = piece if offset else piece.removeprefix(_BOM), offset + len(piece)
                lines, rest = whole_lines(rest, piece, last=last)
                block = Block.of(*lines, line=line)
                self._check_lengths(block, rest)
                line += block.n_lines
                if block.n_lines:
                    yield block
                if last:
                    return

    def _unpacked(self, raw: BinaryIO) -> Iterator[bytes]:
        """The text in pieces; the first bytes tell how it is stored."""
        head = raw.read(_CHUNK)
        packed = head.startswith(_GZ)
        if head and packed != (self.path.suffix.lower() in (".gz", ".bgz")):
            self.notes.append(f"{printable(self.path.name)} is {'gz' if packed else 'plain text'}, unlike its name")
        return self._inflated(raw, head) if packed else as_it_is(raw, head)

    def _inflated(self, raw: BinaryIO, head: bytes) -> Iterator[bytes]:
        """Unpack all members; raises EOFError when the last one is cut, zlib.error when one is damaged."""
        packed, unpacked, first = len(head), 0, True
        inflater: zlib._Decompress | None = zlib.decompressobj(31)
        while True:
            if not head:
                head = raw.read(_CHUNK)
                packed += len(head)
                if not head and inflater is None:
                    return
                if not head:
                    raise EOFError
            if inflater is None:
                head = head.lstrip(b"\0")  # gz files may be padded with zeros
                if not head:
                    continue
                inflater, first = zlib.decompressobj(31), False
            try:
                piece = inflater.decompress(head, BLOCK)
            except zlib.error as error:
                if first or "header" not in str(error):
                    raise
                fix = "fetch or compress the file again"
                raise self._bad("something that is not gz follows the gz data", "TEXT-AFTER", fix) from error
            unpacked += len(piece)
            if unpacked > max(RATIO_FREE, RATIO_LIMIT * packed):
                message = f"unpacks to more than {RATIO_LIMIT} times its size"
                raise self._bad(message, "TEXT-RATIO", "if it is honest, give it unpacked", status=413)
            yield piece
            head = inflater.unconsumed_tail
            if inflater.eof:
                head, inflater = inflater.unused_data, None

    def _check_start(self, piece: bytes) -> None:
        """Refuse what is no text, by the first bytes of the (unpacked) content."""
        head = piece[:8192]
        accepted = "give a text file, plain or gz (.bed, .bed.gz, .narrowPeak, .tsv, .tsv.gz)"
        kind = next((kind for magic, kind in _FIRST_BYTES if head.startswith(magic)), None)
        if head[257:262] == b"ustar":
            kind = "a tar archive"
        if kind is not None:
            raise self._bad(f"not a text file but {kind}", "TEXT-KIND", accepted, status=415)
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or is_wide(head):
            raise self._bad("the text is UTF-16", "TEXT-UTF16", "save it as UTF-8")
        if head.removeprefix(_BOM).lstrip().startswith(b"<"):
            raise self._bad("looks like HTML; did a download fail?", "TEXT-HTML", "fetch the file again", status=415)
        if strangeness(head) > 0.2:
            raise self._bad("not text", "TEXT-KIND", accepted, status=415)
        if b"\r" in head and b"\n" not in head:
            self.notes.append("old Mac line ends (carriage returns)")

    def _check_lengths(self, block: Block, rest: bytes) -> None:
        place = MARGIN
        while len(block.data) - MARGIN - place > LINE_LIMIT:
            newline = block.data.rfind(b"\n", place, place + LINE_LIMIT + 1)
            if newline < 0:
                raise self._long(block.line + block.data.count(b"\n", 0, place))
            place = newline + 1
        if len(rest) > LINE_LIMIT:
            raise self._long(block.line + block.n_lines)

    def _long(self, line: int) -> BadData:
        message = f"line {line} is longer than {LINE_LIMIT:,} bytes"
        return self._bad(message, "TEXT-LINE", "is this a BED or fragments file?", line=line, status=413)

    def _broken(self, error: EOFError | zlib.error, line: int) -> BadData:
        fix = "fetch or copy the file again"
        if isinstance(error, EOFError):
            return self._bad(f"the gz file ends early after line {line}", "TEXT-ENDS", fix, line=line)
        return self._bad(f"the gz file is damaged after line {line} ({error})", "TEXT-DAMAGED", fix, line=line)

    def _bad(self, message: str, code: str, fix: str, *, line: int | None = None, status: int | None = None) -> BadData:
        return BadData(message, code=code, fix=fix, file=str(self.path), line=line, status=status)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a user's file for reading bytes.

    Raises NotFound when there is none, StorageError when the disk or the rights refuse.
    """
    name = str(path)
    try:
        with open(path, "rb") as raw:
            yield raw
    except FileNotFoundError as error:
        raise NotFound("no such file", code="FILE-MISSING", file=name, fix="check the path") from error
    except IsADirectoryError as error:
        raise NotFound("this is a folder", code="FILE-FOLDER", file=name, fix="name a file in it") from error
    except PermissionError as error:
        raise StorageError(
            "not allowed to read", code="FILE-RIGHTS", file=name, fix="check the rights", exit_code=77
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read: {error.strerror}", code="FILE-READ", file=name, fix="check the disk"
        ) from error


def as_it_is(raw: BinaryIO, head: bytes) -> Iterator[bytes]:
    """What was read, and the rest."""
    yield head
    while piece := raw.read(BLOCK):
        yield piece


def gathered(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Join small pieces until they have at least `size` bytes; what came before a failure is given before it is raised.

    >>> list(gathered([b"ab", b"c", b"de", b"f"], 3))
    [b'abc', b'def']
    """
    waiting: list[bytes] = []
    length, failure = 0, None
    try:
        for piece in pieces:
            waiting.append(piece)
            length += len(piece)
            if length >= size:
                yield b"".join(waiting)
                waiting, length = [], 0
    except (EOFError, zlib.error) as error:
        failure = error
    if length:
        yield b"".join(waiting)
    if failure is not None:
        raise failure


def whole_lines(rest: bytes, piece: bytes, *, last: bool) -> tuple[list[bytes | memoryview], bytes]:
    r"""Put a piece after the rest of the one before and cut after the last newline: lines in parts, and the new rest.

    >>> whole_lines(b"a", b"b\r\nc\rd\r", last=False), whole_lines(b"c", b"", last=True)
    (([b'ab\nc\n'], b'd\r'), ([b'c', b'\n'], b''))
    """
    if b"\r" in piece or rest.endswith(b"\r"):
        text = rest + piece
        held = b"\r" if text.endswith(b"\r") and not last else b""  # its newline may be in the next piece
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = len(text) if last else text.rfind(b"\n") + 1
        return [text[:cut]], text[cut:] + held
    if last:
        return ([rest, b"\n"] if rest else []), b""
    cut = piece.rfind(b"\n") + 1
    return ([rest, memoryview(piece)[:cut]], piece[cut:]) if cut else ([], rest + piece)


def is_wide(head: bytes) -> bool:
    """Whether the bytes look like UTF-16 without a mark: every other one is NUL."""
    odd, even = head[1::2], head[::2]
    shares = sorted((odd.count(0) / max(1, len(odd)), even.count(0) / max(1, len(even))))
    return shares[0] < 0.1 and shares[1] > 0.8


def strangeness(head: bytes) -> float:
    """The share of characters that no text has: control characters and what is not UTF-8."""
    text = head.decode("utf-8", "replace")
    strange = sum(c == "\ufffd" or (c < " " and c not in "\t\n\r\f\v") for c in text)
    return strange / max(1, len(text))

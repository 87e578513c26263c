"""Uploads: a multipart form streamed to a file of our own name, and that file read as what it is.

The name that a sender gives is a label: it is shown, cut and escaped, and tells fragments from BED; no path is made
of it. Nothing in an upload is taken for a list of other files.
"""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal, NoReturn

import anyio.to_thread
import pyarrow as pa
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from chromseek.data.bed_sources import BedSource
from chromseek.data.cell_sources import FragmentSource, MatrixSource
from chromseek.data.errors import BadArgument, ChromseekError, StorageError, printable
from chromseek.data.h5ad_check import check_h5ad
from chromseek.data.inputs import ReadOptions, Source, Target, stem
from chromseek.encoder.base import Kind
from chromseek.search.query import CELL_FILE, QueryEncoder, Question, from_sources

Format = Literal["bed", "fragments", "h5ad"]
MAX_OPTIONS = 2_000_000  # bytes
MAX_PART_HEADER = 16_384  # bytes: a file name may be long, it is cut afterwards
MIN_FREE = 0.05  # of the disk
PIECE = 1 << 20  # bytes written at a time
_HDF5, _GZ = b"\x89HDF\r\n\x1a\n", b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent: where it lies, and what its sender calls it."""

    path: Path
    label: str

    @classmethod
    def of_text(cls, text: str, label: str, folder: Path) -> "Upload":
        """Store a text as if it had been uploaded."""
        path = folder / uuid.uuid4().hex
        path.write_text(text, encoding="utf-8", newline="")
        return cls(path, label_of(label))

    def kind(self) -> Format:
        """What it is: HDF5 by its first bytes, fragments by its name, else BED."""
        if self._head().startswith(_HDF5):
            return "h5ad"
        return "fragments" if CELL_FILE.search(self.label) else "bed"

    def question(self, encoder: QueryEncoder, kind: Format, options: ReadOptions) -> Question:
        """Read and encode it: a query per cell, or one for a BED set.

        Raises BadData, by the name that its sender gave it; an h5ad is checked before anything else reads it.
        """
        path = self.path.rename(self.path.with_suffix(f".{kind}{'.gz' if self._head().startswith(_GZ) else ''}"))
        with self._named(path):
            source = self._source(path, kind, options, Target.of(options, encoder.universe.assembly))
            what: Kind = "bed" if kind == "bed" else "cell"
            return replace(from_sources([source], encoder, what, self.label), described={"upload": self.label})

    def _source(self, path: Path, kind: Format, options: ReadOptions, target: Target) -> Source:
        match kind:
            case "h5ad":
                check_h5ad(path)
                return MatrixSource(path, options, target, dataset=self.label)
            case "fragments":
                return FragmentSource(path, options, target, dataset=self.label)
        names = pa.table({"name": [stem(self.label)]})
        return BedSource([path], names, options, target, label=self.label, dataset=self.label)

    def _head(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(8)

    @contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Let errors name the file as its sender does, and not where it lies."""
        try:
            yield
        except ChromseekError as error:
            texts = [error.message, error.fix]
            for own in (str(path), path.name):
                texts = [text.replace(own, self.label) for text in texts]
            raise type(error)(
                texts[0],
                code=error.code,
                file=self.label,
                line=error.line,
                got=error.got,
                fix=texts[1],
                status=error.status,
            ) from error


@contextmanager
def upload_folder(parent: Path | None) -> Iterator[Path]:
    """A folder that only we can read, removed with all that is in it; in the system's own place by default."""
    with TemporaryDirectory(prefix="chromseek-upload-", dir=parent) as folder:
        yield Path(folder)


async def receive(request: Request, folder: Path) -> tuple[bytes, Upload]:
    """Stream a form to the folder: the JSON of its part `options` ({} without one), and its part `file`.

    Raises BadArgument for a broken form, StorageError when the disk is full.
    """
    usage = shutil.disk_usage(folder)
    refuse_full(usage.total, usage.free)
    form = _Form(parse_options_header(request.headers["content-type"])[1].get(b"boundary", b""), folder)
    waiting = bytearray()
    with form:
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= PIECE:
                await anyio.to_thread.run_sync(form.write, bytes(waiting))
                waiting.clear()
        await anyio.to_thread.run_sync(form.write, bytes(waiting))
    return form.finish()


def refuse_full(total: int, free: int) -> None:
    """Raise StorageError when less than a twentieth of the disk is free."""
    if free < MIN_FREE * total:
        raise StorageError(
            "the server's disk is nearly full, so uploads are refused",
            code="UPLOAD-DISK",
            fix="try again later; searches with JSON go on",
        )


def label_of(name: str) -> str:
    r"""What a file is called: the last part of the name, escaped and cut.

    >>> label_of("../../etc/x\x1b[2J.bed"), label_of("C:\\peaks.bed"), label_of("/")
    ('x\\x1b[2J.bed', 'peaks.bed', 'upload')
    """
    return printable(name.replace("\\", "/").rstrip("/").rpartition("/")[2], 254) or "upload"


@dataclass
class _Part:
    """A part of a form while it is read."""

    disposition: bytes = b""
    name: str = ""
    header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))


class _Form:
    """A form with the parts `file` and `options`, read piece by piece; `with` closes its file."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self._path = folder / uuid.uuid4().hex
        self._file: BinaryIO | None = None
        self._label: str | None = None
        self._options: bytearray | None = None
        self._part = _Part()
        self._ended = False
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        callbacks: Any = {f"on_{name}": getattr(self, f"_on_{name}") for name in names}
        try:
            if not boundary:
                _refuse("it names no boundary")
            self._parser = MultipartParser(boundary, callbacks, max_header_size=MAX_PART_HEADER)
        except FormParserError as error:
            _refuse(str(error), error)

    def __enter__(self) -> "_Form":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises BadArgument when they are no form, StorageError."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            _refuse(str(error), error)
        except OSError as error:
            raise StorageError(
                f"the upload cannot be stored ({error.strerror})", code="UPLOAD-DISK", fix="try again later"
            ) from error

    def finish(self) -> tuple[bytes, Upload]:
        """The options and the file. Raises BadArgument when the body ended early or has no file."""
        if not self._ended:
            _refuse("it ends before its last boundary")
        if self._label is None:
            _refuse("it has no part named file")
        return bytes(b"{}" if self._options is None else self._options), Upload(self._path, self._label)

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        if self._part.header[0].lower() == b"content-disposition":
            self._part.disposition = bytes(self._part.header[1])
        self._part.header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        options = parse_options_header(self._part.disposition.decode("latin-1"))[1]
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        match self._part.name:
            case "file" if self._label is None:
                self._label = label_of(options.get(b"filename", b"").decode("utf-8", "replace"))
                self._file = self._path.open("xb")
            case "options" if self._options is None:
                self._options = bytearray()
            case "file" | "options":
                _refuse(f"part {self._part.name} comes twice")
            case _:
                _refuse(f"part {printable(self._part.name) or 'without a name'}: only file and options are known")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file" and self._file is not None:
            self._file.write(memoryview(data)[start:end])
        elif self._options is not None:
            if len(self._options) + end - start > MAX_OPTIONS:
                _refuse(f"part options is longer than {MAX_OPTIONS:,} bytes")
            self._options += data[start:end]

    def _on_end(self) -> None:
        self._ended = True


def _refuse(reason: str, cause: Exception | None = None) -> NoReturn:
    raise BadArgument(
        f"not a good form: {reason}",
        code="UPLOAD-FORM",
        fix="send multipart/form-data with one part `file` and at most one part `options` that holds JSON",
        status=400,
    ) from cause

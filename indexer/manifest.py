"""A version of an atlas as one file: what belongs to it, checked by its own sha256.

A sealed file is JSON whose first line holds the sha256 of all the bytes after that line, so that no byte of it
can change unseen.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, TooNew, printable

FORMAT = (0, 0)
FOLDERS = ("segments", "encoders", "quantisers", "postings", "calibration", "deletes")
LOOSE = ("universe.bed.gz",)  # data files that lie in the atlas folder itself
FEATURES: frozenset[str] = frozenset()  # optional parts of the format that this code can read and write
UPGRADE = "upgrade chromseek, or export the atlas with the version that wrote it"
_BIGGEST = 64 << 20
_NAME = re.compile(r"v(\d{8,18})\.json")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a version: its path from the atlas folder with `/`, its size in bytes, its content's sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One version, whole. `content` belongs to the builder; `sha256` is the manifest's own, empty until written."""

    version: int
    operation: str
    created: str  # ISO 8601, UTC
    parent: int | None
    content: dict[str, Any]
    files: tuple[FileEntry, ...]
    required_features: tuple[str, ...] = ()  # a reader that lacks one must refuse
    writer_features: tuple[str, ...] = ()  # a writer that lacks one must refuse
    writer: str = ""
    format: tuple[int, int] = FORMAT
    sha256: str = ""

    @cached_property
    def entries(self) -> dict[str, FileEntry]:
        """Path → its entry."""
        return {entry.path: entry for entry in self.files}


def manifest_path(root: Path, version: int) -> Path:
    """Where a version's manifest lies."""
    return root / "manifests" / f"v{version:08d}.json"


def list_versions(root: Path) -> list[int]:
    """The versions that an atlas folder has, oldest first. Raises NotFound when it is no atlas."""
    try:
        names = os.listdir(root / "manifests")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            "there is no atlas here", code="ATLAS-MISSING", file=str(root), fix="check the path, or `chromseek build`"
        ) from None
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def version_gone(root: Path, version: int) -> NotFound:
    """The error for a version that is not there."""
    there = ", ".join(map(str, list_versions(root))) or "none yet"
    return NotFound(
        f"version {version} is not there", code="ATLAS-VERSION", file=str(root), got=version, fix=f"there are: {there}"
    )


def seal(body: Mapping[str, Any]) -> bytes:
    """Serialise to JSON with its own sha256 in front. Raises BadArgument for what JSON cannot hold."""
    try:
        rest = json.dumps(body, indent=1, allow_nan=False)[1:].lstrip().encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise BadArgument(f"a manifest cannot hold this: {error}", code="MANIFEST-CONTENT") from error
    return b'{"sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest


def unseal(data: bytes) -> dict[str, Any]:
    """Check and parse what `seal` wrote. Raises ValueError saying what is wrong."""
    if not data:
        raise ValueError("it is empty (0 bytes)")
    head = _SEAL.match(data)
    if head is None:
        raise ValueError("it does not begin with its own sha256")
    expected, found = head[1].decode(), hashlib.sha256(data[head.end() :]).hexdigest()
    if expected != found:
        raise ValueError(f"it was changed or cut: its sha256 should be {expected} and is {found}")
    try:
        body = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return {**body, "sha256": expected}


def write_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest's file."""
    files = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in manifest.files]
    plain = ("version", "operation", "created", "parent", "writer", "format", "required_features", "writer_features")
    return seal({name: getattr(manifest, name) for name in plain} | {"content": manifest.content, "files": files})


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check the bytes of a manifest's file. Raises ValueError saying what is wrong."""
    body = unseal(data)
    major, minor = _list(body, "format", int)
    parent = body.get("parent")
    files = tuple(_entry(item) for item in _list(body, "files", dict))
    if len({entry.path for entry in files}) < len(files):
        raise ValueError("it lists a file twice")
    return Manifest(
        version=_get(body, "version", int),
        operation=_get(body, "operation", str),
        created=_get(body, "created", str),
        parent=None if parent is None else _get(body, "parent", int),
        content=_get(body, "content", dict),
        files=files,
        required_features=_list(body, "required_features", str),
        writer_features=_list(body, "writer_features", str),
        writer=_get(body, "writer", str),
        format=(major, minor),
        sha256=body["sha256"],
    )


def _get(body: Mapping[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if type(value) is not kind:  # a bool is an int to isinstance
        raise ValueError(f"{name!r} should be {kind.__name__} and is {printable(repr(value))}")
    return value


def _list(body: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = _get(body, name, list)
    return tuple(_get({name: value}, name, kind) for value in values)


def _entry(item: Mapping[str, Any]) -> FileEntry:
    entry = FileEntry(_get(item, "path", str), _get(item, "size", int), _get(item, "sha256", str))
    if entry.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise ValueError(f"{printable(entry.path)!r} has an impossible size or sha256")
    return entry


def read_manifest(root: Path, version: int) -> Manifest:
    """Read one version's manifest and check all of it that needs no other file.

    Raises BadData when it is damaged or names a path outside the atlas, TooNew when this code is too old for it.
    """
    path = manifest_path(root, version)
    try:
        if regular(root, f"manifests/{path.name}").st_size > _BIGGEST:
            raise ValueError(f"it is larger than {_BIGGEST} bytes")
        manifest = parse_manifest(path.read_bytes())
        if manifest.version != version:
            raise ValueError(f"it is that of version {manifest.version}")
    except FileNotFoundError:
        raise damaged(path, "it is gone", older=list_versions(root)) from None
    except ValueError as error:
        if isinstance(error, ChromseekError):
            raise
        raise damaged(path, str(error), older=[v for v in list_versions(root) if v < version]) from error
    check_format(manifest.format, path, manifest.writer)
    if unknown := sorted(set(manifest.required_features) - FEATURES):
        raise _too_new(f"this version needs {', '.join(map(printable, unknown))}", path, manifest.writer)
    for entry in manifest.files:
        if not is_data_path(entry.path):
            outside = entry.path.startswith("/") or ".." in entry.path.split("/")
            what = "path leaves the atlas" if outside else "path is not that of a data file"
            raise _distrusted(f"{what}: {printable(entry.path)}", path)
    return manifest


def check_writable(manifest: Manifest, root: Path) -> None:
    """Refuse to write on top of a version with parts that this code cannot keep. Raises TooNew."""
    if unknown := sorted(set(manifest.writer_features) - FEATURES):
        path = manifest_path(root, manifest.version)
        raise _too_new(f"writing needs {', '.join(map(printable, unknown))}", path, manifest.writer)


def check_format(found: tuple[int, int], path: Path, writer: str = "") -> None:
    """Refuse a format whose major number this code does not know. Raises TooNew."""
    if found[0] > FORMAT[0]:
        raise _too_new(f"this is format {found[0]}.{found[1]}", path, writer)


def _too_new(what: str, path: Path, writer: str) -> TooNew:
    by = f"written by {printable(writer)}, " if writer else ""
    ours = f"this chromseek reads format {FORMAT[0]}.{FORMAT[1]}"
    return TooNew(f"{by}{what}; {ours}", code="FORMAT-NEW", file=str(path), fix=UPGRADE)


def damaged(path: Path, what: str, *, older: list[int], got: object = None) -> BadData:
    """The error for a file of the atlas that is not as it was written; the newest of `older` is offered."""
    choice = f"; or open an older version with `--version {older[-1]}`" if older else ""
    return BadData(
        f"this file of the atlas is damaged: {what}",
        code="ATLAS-DAMAGED",
        file=str(path),
        got=got,
        fix=f"restore the file from a backup, or build the atlas again{choice}",
    )


def is_data_path(relative: str) -> bool:
    """Whether a path's text is that of a data file of an atlas.

    >>> is_data_path("segments/1/rows.parquet"), is_data_path("segments/../../x"), is_data_path("/etc/passwd")
    (True, False, False)
    """
    parts = relative.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        return False
    return relative in LOOSE or (len(parts) > 1 and parts[0] in FOLDERS)


def regular(root: Path, relative: str) -> os.stat_result:
    """Stat a file of the atlas, following no link on the way.

    Raises FileNotFoundError, and BadData when a part of the path is a symbolic link or the file is no regular one.
    """
    path, status = root, os.stat(root)
    for part in relative.split("/"):
        path = path / part
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise _distrusted(f"path leaves the atlas: {relative} goes through a symbolic link", path)
    if not stat.S_ISREG(status.st_mode):
        raise _distrusted(f"{relative} is no regular file", path)
    return status


def _distrusted(what: str, path: Path) -> BadData:
    fix = "do not use this atlas: get it again from where it came"
    return BadData(what, code="MANIFEST-PATH", file=str(path), fix=fix)

"""The atlas folder: its files are written once, and a version is a manifest that lists them.

    with store.write("add") as writer:                       # one writer at a time
        folder = writer.new_folder("segments")               # files are written here
        writer.commit(content, files=folder.iterdir(), keep=writer.parent.entries)   # readers see all of it or nothing

It knows nothing of vectors. Readers take no lock: what a version lists never changes, and gc spares what is in use.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import ClassVar

from chromseek.data.errors import BadData, StorageError
from chromseek.indexer import gc
from chromseek.indexer.check import (
    Problem,
    check_format_of,
    format_bytes,
    inspect,
    listed_file,
    read_format,
    refuse,
    survey,
    unopenable,
)
from chromseek.indexer.durable import checkpoint, disk_errors, sync, write_new
from chromseek.indexer.lock import Pin, pin, writing
from chromseek.indexer.manifest import (
    FOLDERS,
    FORMAT,
    LOOSE,
    FileEntry,
    Manifest,
    check_writable,
    list_versions,
    manifest_path,
    read_manifest,
)
from chromseek.indexer.writer import Writer, link_new

HASHED_AT_OPEN = 64 << 20  # larger files are hashed by verify() only
_OURS = {*FOLDERS, *LOOSE, "FORMAT.json", "LOCK", "manifests", "cache", "tmp"}


class Store:
    """An atlas folder, opened at one version. `manifest` is None from `create` until the first commit."""

    FORMAT: ClassVar[tuple[int, int]] = FORMAT

    def __init__(self, path: Path, manifest: Manifest | None) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path | str) -> "Store":
        """Make the folder of a new atlas, or take up one that a stopped build left without any version.

        Raises StorageError, with exit code 73 when something else is there.
        """
        root = Path(path).absolute()
        with disk_errors(Path(root.anchor)):
            there = next(folder for folder in (root, *root.parents) if os.path.lexists(folder))
            if not (_is_unfinished(root) if there == root else there.is_dir()):
                raise StorageError(
                    "there is something here already",
                    code="ATLAS-EXISTS",
                    file=str(there),
                    fix="give the path of a new folder; to add to an atlas, use `chromseek add`",
                    exit_code=73,
                )
            _make_folders(root)
            if not (root / "FORMAT.json").exists():
                draft = root / f".tmp-{uuid.uuid4().hex}"
                write_new(draft, format_bytes(FORMAT))
                try:
                    link_new(draft, root / "FORMAT.json")
                    checkpoint("format-linked")
                finally:
                    draft.unlink(missing_ok=True)
            sync(root)
            checkpoint("created")
        read_format(root)
        return cls(root, None)

    @classmethod
    def open(cls, path: Path | str, *, version: int | None = None, verify: bool = False) -> "Store":
        """Open the newest version, or another one, and check it; `verify` also hashes files of 64 MB and more.

        Raises NotFound when there is no such atlas or version, TooNew when this code is too old for it, and
        BadData when it is damaged: an older version is never opened unasked.
        """
        root = Path(path).absolute()
        read_format(root)
        while True:
            there = list_versions(root)
            if not there or (version is not None and version not in there):
                raise unopenable(root, version)
            number = there[-1] if version is None else version
            try:
                store = cls(root, read_manifest(root, number))
                check_format_of(root, store._opened())
                store._check(below=None if verify else HASHED_AT_OPEN)
            except BadData:
                # gc removes only what has a successor, so a version that vanishes meanwhile is no damage
                if not manifest_path(root, number).exists() and list_versions(root)[-1:] > [number]:
                    continue
                raise
            return store

    @classmethod
    def versions(cls, path: Path | str) -> list[int]:
        """The versions of an atlas, oldest first. Raises NotFound when there is no atlas."""
        return list_versions(Path(path).absolute())

    @property
    def cache(self) -> Path:
        """The folder for what can be made again; gc drops a name like `metadata-v7.duckdb` with version 7."""
        return self.path / "cache"

    def file(self, relative: str) -> Path:
        """Where a file of this version lies. Raises NotFound when it lists none such, BadData behind a link."""
        return listed_file(self.path, self._opened(), relative)

    def check(self) -> None:
        """Check every file's size, and the sha256 of those below 64 MB. Raises BadData naming the first fault."""
        self._check(below=HASHED_AT_OPEN)

    def verify(self) -> list[Problem]:
        """Hash every file of this version, read every other manifest, and list files that no version has."""
        return survey(self.path, self._opened())

    def pin(self) -> Pin | None:
        """Hold this version against gc until released, or until the process ends; None in a read-only folder."""
        return pin(self.path, self._opened().version)

    @contextmanager
    def write(self, operation: str) -> Iterator[Writer]:
        """Be the only writer, on top of the newest version; a commit moves this store to the new one.

        New files that were not committed are removed at the end of the block, unless a work folder is there to
        resume from. Raises Busy; TooNew; StorageError for whatever the disk refuses inside the block.
        """
        with disk_errors(self.path), writing(self.path, operation):
            there = list_versions(self.path)
            parent = read_manifest(self.path, there[-1]) if there else None
            if parent is not None:
                check_format_of(self.path, parent)
                check_writable(parent, self.path)
            writer = Writer(self.path, operation, parent=parent, committed=self._move)
            try:
                yield writer
            finally:
                writer.clean_up()

    def gc(self, *, grace_hours: float = 24.0, keep: int = 2, dry_run: bool = False) -> list[Path]:
        """Remove old versions and files that none lists, and return their paths (gc.py says which).

        Raises Busy while somebody writes, BadData when a manifest is damaged.
        """
        with disk_errors(self.path), writing(self.path, "gc"):
            return gc.collect(self.path, grace_hours=grace_hours, keep=keep, dry_run=dry_run, now=time())

    def _check(self, *, below: int | None) -> None:
        manifest = self._opened()
        refuse(self.path, manifest, inspect(self.path, manifest, below=below))

    def _move(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def _opened(self) -> Manifest:
        if self.manifest is None:
            raise unopenable(self.path, None)
        return self.manifest


def _is_unfinished(root: Path) -> bool:
    if not root.is_dir():
        return False
    names = {name for name in os.listdir(root) if not name.startswith(".tmp-")}
    return not names or ("manifests" in names and names <= _OURS and not list_versions(root))


def _make_folders(root: Path) -> None:
    new = [folder for folder in root.parents if not folder.exists()]
    (root / "manifests").mkdir(parents=True, exist_ok=True)
    (root / "cache" / "pins").mkdir(parents=True, exist_ok=True)
    checkpoint("folders-made")
    for folder in (root, *new):
        sync(folder.parent)
        checkpoint("parent-synced")


__all__ = ["FileEntry", "Manifest", "Pin", "Problem", "Store", "Writer", "checkpoint"]

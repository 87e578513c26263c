"""How a version is added: new files, synced, hashed, and then one link that makes them part of the atlas.

The order of the steps must not change: all data is durable before the manifest is, the manifest before its name.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from chromseek import __version__
from chromseek.data.errors import BadArgument, Busy, ChromseekError, StorageError, printable
from chromseek.indexer.check import inspect, listed_file, refuse, unopenable
from chromseek.indexer.durable import checkpoint, digest, digests, disk_errors, remove, sync, write_new
from chromseek.indexer.manifest import (
    FOLDERS,
    LOOSE,
    FileEntry,
    Manifest,
    damaged,
    is_data_path,
    list_versions,
    manifest_path,
    parse_manifest,
    read_manifest,
    regular,
    write_manifest,
)

HEADROOM = 1.2


class Writer:
    """The right to add versions; `parent` is the newest one, or None before the first. `Store.write` makes it."""

    def __init__(
        self, root: Path, operation: str, *, parent: Manifest | None, committed: Callable[[Manifest], None]
    ) -> None:
        self.parent = parent
        self._root = root
        self._operation = operation
        self._committed = committed
        self._uncommitted: set[Path] = set()
        self._works: set[str] = set()
        self._failed = False

    def file(self, relative: str) -> Path:
        """Where a file of the parent version lies. Raises NotFound when it has none such."""
        if self.parent is None:
            raise unopenable(self._root, None)
        return listed_file(self._root, self.parent, relative)

    def has(self, relative: str) -> bool:
        """Whether a version on disk, the parent or an older one, has this file, as it was written.

        Raises BadData when one lists it and it is damaged.
        """
        entry = self._everywhere.get(relative)
        if entry is None:
            return False
        try:
            regular(self._root, relative)
            found = digest(self._root / relative)
        except FileNotFoundError:
            found = None
        if found != (entry.size, entry.sha256):
            raise damaged(self._root / relative, "it was changed or cut", older=[])
        return True

    def under(self, folder: str) -> list[str]:
        """The files that versions on disk have in a folder. Raises BadData when one is damaged."""
        return [path for path in self._everywhere if path.startswith(f"{folder}/") and self.has(path)]

    @cached_property
    def _everywhere(self) -> dict[str, FileEntry]:
        """Path → entry, of all versions that could be read when first asked."""
        found: dict[str, FileEntry] = {}
        for version in list_versions(self._root):
            with suppress(ChromseekError):  # a damaged manifest is no reason not to write beside it
                found |= read_manifest(self._root, version).entries
        return found

    def need(self, n_bytes: int) -> None:
        """Check that there is room for files of this size in all, and a fifth more. Raises StorageError."""
        disk = os.statvfs(self._root)
        free, wanted = disk.f_bavail * disk.f_frsize, int(n_bytes * HEADROOM)
        if free < wanted:
            raise StorageError(
                f"{wanted / 1e9:,.3f} GB are needed and {free / 1e9:,.3f} GB are free",
                code="DISK-FULL",
                file=str(self._root),
                got=free,
                fix="free some space (`chromseek gc` removes old versions), or choose another disk",
            )

    def new_folder(self, kind: str, name: str | None = None) -> Path:
        """Make an empty folder `<kind>/<name>`, of a random name by default.

        What a killed writer left there is removed. Raises BadArgument when a version has files there.
        """
        relative = f"{kind}/{name or uuid.uuid4().hex}"
        self._claim(relative, inside=f"{relative}/x")
        path = self._root / relative
        with disk_errors(self._root):
            path.mkdir(parents=True)
        return path

    def new_file(self, relative: str) -> Path:
        """Give the path for a new file like `deletes/1.parquet`, its folder made.

        What a killed writer left there is removed. Raises BadArgument when a version has that file.
        """
        self._claim(relative, inside=relative)
        path = self._root / relative
        with disk_errors(self._root):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _claim(self, relative: str, *, inside: str) -> None:
        _check_path(inside)
        path = self._root / relative
        if os.path.lexists(path):
            for version in list_versions(self._root):
                if any(f"{each}/".startswith(f"{relative}/") for each in read_manifest(self._root, version).entries):
                    raise _twice(f"version {version} has {relative} already", path)
            with disk_errors(self._root):
                remove(path)
        self._uncommitted.add(path)

    def work_folder(self, name: str) -> Path:
        """The folder `tmp/<name>`, made, or found as a killed build left it.

        Until `drop_work`, new files are left for a resumed build even when this one ends by an exception.
        """
        path = self._work(name)
        with disk_errors(self._root):
            path.mkdir(parents=True, exist_ok=True)
        self._works.add(name)
        return path

    def drop_work(self, name: str) -> None:
        """Remove a work folder and all in it."""
        shutil.rmtree(self._work(name), ignore_errors=True)  # gc takes what stays
        self._works.discard(name)

    def _work(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise BadArgument(f"not a plain name for a folder: {printable(name)}", code="WORK-NAME", got=name)
        return self._root / "tmp" / name

    def commit(
        self,
        content: dict[str, Any],
        *,
        files: Iterable[Path | str] = (),
        keep: Iterable[str] = (),
        operation: str | None = None,
        required_features: Iterable[str] = (),
        writer_features: Iterable[str] = (),
    ) -> Manifest:
        """Make the next version: new `files` (below the atlas folder) and the parent's paths to `keep`.

        When it returns, the version outlives a power cut; when it raises or dies, the atlas is as it was (or, after
        the link, perhaps the new version, whole). Raises StorageError, Busy when somebody else was first,
        BadData when a kept file is damaged, BadArgument for a file that is not there, not new, or not of the atlas.
        """
        if self._failed:
            raise StorageError(
                "an earlier commit failed on the disk, so its files may be incomplete",
                code="DISK-ERROR",
                file=str(self._root),
                fix="start again with new files",
            )
        new, kept = self._new_paths(files), self._kept_entries(keep)
        draft = Manifest(
            version=self.parent.version + 1 if self.parent else 1,
            operation=operation or self._operation,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parent=self.parent.version if self.parent else None,
            content=content,
            files=kept,
            required_features=tuple(required_features),
            writer_features=tuple(writer_features),
            writer=f"chromseek {__version__}",
        )
        write_manifest(draft)  # content that JSON cannot hold is refused before the disk is touched
        try:
            with disk_errors(self._root):
                data = write_manifest(replace(draft, files=_sorted(kept + self._sync_files(new))))
                self._publish(draft.version, data, new)
        except StorageError:
            self._failed = True  # what an fsync reported once, a second one may hide
            raise
        self.parent = parse_manifest(data)
        self._committed(self.parent)
        return self.parent

    def _new_paths(self, files: Iterable[Path | str]) -> list[str]:
        paths: dict[str, None] = {}
        for file in files:
            path = self._root / file
            relative = path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(file)
            _check_path(relative)
            try:
                regular(self._root, relative)
            except FileNotFoundError:
                raise BadArgument("a file to commit is not there", code="COMMIT-FILE", file=str(path)) from None
            if relative in paths or (self.parent and relative in self.parent.entries):
                raise _twice(f"{relative} is committed already", path)
            paths[relative] = None
        return list(paths)

    def _kept_entries(self, keep: Iterable[str]) -> tuple[FileEntry, ...]:
        paths = set(keep)
        there = self.parent.entries if self.parent else {}
        if lacks := sorted(paths - there.keys()):
            raise BadArgument(f"the parent version has no {printable(lacks[0])} to keep", code="COMMIT-KEEP", got=lacks)
        kept = tuple(there[path] for path in paths)
        if self.parent:
            refuse(self._root, self.parent, inspect(self._root, replace(self.parent, files=kept), below=0))
        return kept

    def _sync_files(self, paths: list[str]) -> tuple[FileEntry, ...]:
        for path in paths:
            sync(self._root / path)
            checkpoint("data-synced")
        sums = digests([self._root / path for path in paths])
        folders = {folder for path in paths for folder in Path(path).parents}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            sync(self._root / folder)
            checkpoint("folder-synced")
        return tuple(FileEntry(path, size, sha256) for path, (size, sha256) in zip(paths, sums, strict=True))

    def _publish(self, version: int, data: bytes, new: list[str]) -> None:
        target = manifest_path(self._root, version)
        draft = target.with_name(f".tmp-{uuid.uuid4().hex}")
        write_new(draft, data)
        # From here on a reader may hold the version, whatever is raised: its files are no longer ours to clean up.
        self._uncommitted -= {path for file in new for path in (self._root / file, *(self._root / file).parents)}
        try:
            link_new(draft, target)  # the commit point
            checkpoint("linked")
            sync(target.parent)
            checkpoint("manifests-synced")
        finally:
            draft.unlink(missing_ok=True)
        checkpoint("draft-removed")

    def clean_up(self) -> None:
        """Remove what was made and not committed, unless a work folder is there to resume from."""
        if not self._works:
            for path in self._uncommitted:
                remove(path)


def link_new(draft: Path, target: Path) -> None:
    """Give a written file its name, unless somebody has it. Raises Busy; StorageError (73) on a disk without links."""
    try:
        os.link(draft, target)
    except FileExistsError:
        if not os.path.samefile(draft, target):  # a network disk may do it and then lose its answer
            raise Busy(f"another process wrote {target.name} first", code="ATLAS-RACE", file=str(target)) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise StorageError(
            "this disk has no hard links, which a safe commit needs",
            code="DISK-LINKS",
            file=str(target.parent),
            fix="put the atlas on another disk (ext4, xfs, btrfs, APFS, NFS)",
            exit_code=73,
        ) from error


def _sorted(entries: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _check_path(relative: str) -> None:
    if not is_data_path(relative):
        raise BadArgument(
            f"not the path of a data file of an atlas: {printable(relative)}",
            code="COMMIT-PATH",
            got=relative,
            fix=f"plain names below {', '.join(FOLDERS)}; or {', '.join(LOOSE)}",
        )


def _twice(what: str, path: Path) -> BadArgument:
    return BadArgument(
        what, code="COMMIT-TWICE", file=str(path), fix="a committed file never changes: give a new name, or keep it"
    )

"""What may be thrown away: versions nobody can want any more, and files that no version lists."""

import fcntl
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from chromseek.data.errors import BadArgument, BadData
from chromseek.indexer.durable import checkpoint, remove, sync
from chromseek.indexer.lock import pinned_versions, pins_gate
from chromseek.indexer.manifest import (
    FOLDERS,
    LOOSE,
    Manifest,
    check_writable,
    list_versions,
    manifest_path,
    read_manifest,
    version_gone,
)

_CACHE_OF = re.compile(r"-v(\d+)(?!\d)")


def collect(root: Path, *, grace_hours: float, keep: int, dry_run: bool, now: float) -> list[Path]:
    """Remove what no kept version needs, and return it. Call it under the writer's lock.

    Kept are the last `keep` versions, pinned ones, and those that were the newest at any time within the grace
    period. Files that no version lists go when they are older than that; all of them stay while a younger work
    folder could resume from them. Manifests go first, so that a kill in between leaves only unlisted files.
    Raises BadData when a manifest is damaged: what it lists is then unknown.
    """
    if keep < 1 or not grace_hours >= 0:
        raise BadArgument(
            f"keep is {keep} and grace_hours is {grace_hours}",
            code="GC-RANGE",
            got=[keep, grace_hours],
            fix="keep 1 version or more, for 0 hours or more",
        )
    manifests = {version: _read(root, version) for version in list_versions(root)}
    if not manifests:
        raise version_gone(root, 1)
    check_writable(manifests[max(manifests)], root)
    since = now - grace_hours * 3600 if grace_hours else float("inf")
    with pins_gate(root, fcntl.LOCK_EX):
        kept = _kept_versions(root, sorted(manifests), keep=keep, since=since) | pinned_versions(root)
        gone = [manifest_path(root, version) for version in manifests if version not in kept]
        if gone and not dry_run:
            for path in gone:
                path.unlink()
                checkpoint("gc-manifest-removed")
            sync(root / "manifests")
            checkpoint("gc-manifests-synced")
    needed = _paths(manifests[version] for version in manifests if version in kept)
    files = _spare_files(root, needed, _paths(manifests.values()), since)
    caches = [path for path in _cache_files(root) if int(_CACHE_OF.findall(path.name)[-1]) not in kept & {*manifests}]
    works = [path for path in work_folders(root) if newest_stamp(path) < since]
    if not dry_run:
        for path in [*files, *caches, *works]:
            remove(path)
            checkpoint("gc-file-removed")
        _drop_empty_folders(root)
    return [*gone, *files, *caches, *works]


def _read(root: Path, version: int) -> Manifest:
    try:
        return read_manifest(root, version)
    except BadData as error:
        fix = f"restore it from a backup, or remove it to give up version {version}"
        raise BadData(error.message, code="GC-UNSURE", file=error.file, fix=fix) from error


def _kept_versions(root: Path, versions: list[int], *, keep: int, since: float) -> set[int]:
    kept = set(versions[-keep:])
    for version, successor in itertools.pairwise(versions):
        if newest_stamp(manifest_path(root, successor)) >= since:  # the newest until then
            kept.add(version)
    return kept


def _paths(manifests: Iterable[Manifest]) -> set[str]:
    return {entry.path for manifest in manifests for entry in manifest.files}


def _spare_files(root: Path, needed: set[str], listed: set[str], since: float) -> list[Path]:
    resumable = any(newest_stamp(path) >= since for path in work_folders(root))
    spare = []
    for path in [*unlisted_files(root, needed), *leftovers(root)]:
        waits = resumable and path.relative_to(root).as_posix() not in listed
        if not waits and newest_stamp(path) < since:
            spare.append(path)
    return spare


def unlisted_files(root: Path, listed: set[str]) -> Iterator[Path]:
    """The data files of an atlas that are not among `listed`; other people's files are never among them."""
    for name in LOOSE:
        if name not in listed and os.path.lexists(root / name):
            yield root / name
    for name in FOLDERS:
        for path in _walk(root / name):
            if path.relative_to(root).as_posix() not in listed:
                yield path


def leftovers(root: Path) -> Iterator[Path]:
    """What a killed commit leaves beside its manifest."""
    for folder in (root, root / "manifests"):
        yield from sorted(folder.glob(".tmp-*"))


def work_folders(root: Path) -> list[Path]:
    """The work folders that killed or running builds have."""
    folder = root / "tmp"
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def newest_stamp(path: Path) -> float:
    """When a file, or anything in a folder, was last changed; a copied old time of change does not count."""
    stamps = [0.0]
    for each in (path, *(_walk(path) if path.is_dir() and not path.is_symlink() else ())):
        with suppress(FileNotFoundError):  # verify also looks while a writer works
            status = os.lstat(each)
            stamps.append(max(status.st_mtime, status.st_ctime))
    return max(stamps)


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def _cache_files(root: Path) -> list[Path]:
    """The cached files whose names say which version they are of, like `metadata-v7.duckdb`."""
    folder = root / "cache"
    there = folder.is_dir() and not folder.is_symlink()
    return sorted(path for path in folder.iterdir() if _CACHE_OF.search(path.name)) if there else []


def _drop_empty_folders(root: Path) -> None:
    for name in FOLDERS:
        for folder, _, _ in os.walk(root / name, topdown=False):
            if Path(folder) != root / name:
                with suppress(OSError):  # not empty
                    os.rmdir(folder)

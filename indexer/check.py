"""Whether the files of an atlas are those that its manifests list, byte for byte."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chromseek.data.errors import BadData, ChromseekError, NotFound
from chromseek.indexer.durable import digests
from chromseek.indexer.gc import leftovers, unlisted_files
from chromseek.indexer.manifest import (
    Manifest,
    check_format,
    damaged,
    list_versions,
    manifest_path,
    read_manifest,
    regular,
    version_gone,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found amiss. An orphan is information: a file that no version lists."""

    path: str
    what: str  # "missing", "size", "sha256", "path", "manifest", "orphan"
    expected: str = ""
    found: str = ""

    @property
    def fatal(self) -> bool:
        """Whether the atlas is damaged."""
        return self.what != "orphan"

    def __str__(self) -> str:
        if self.what in ("size", "sha256"):
            return f"its {self.what} should be {self.expected} and is {self.found}"
        return self.found


def format_bytes(numbers: tuple[int, int]) -> bytes:
    """The content of FORMAT.json."""
    return json.dumps({"major": numbers[0], "minor": numbers[1]}).encode() + b"\n"


def read_format(root: Path) -> tuple[int, int]:
    """Read FORMAT.json. Raises NotFound when this is no atlas, TooNew, BadData when the file is damaged."""
    path = root / "FORMAT.json"
    try:
        regular(root, path.name)
        data = path.read_bytes()
        body = json.loads(data)
        numbers = int(body["major"]), int(body["minor"])
    except FileNotFoundError:
        if not list_versions(root):
            raise unopenable(root, None) from None
        raise damaged(path, "it is gone", older=[]) from None
    except NotADirectoryError:
        raise NotFound("this is a file, not an atlas", code="ATLAS-MISSING", file=str(root)) from None
    except (TypeError, KeyError, RecursionError, ValueError) as error:
        if isinstance(error, ChromseekError):
            raise
        raise damaged(path, "it does not hold the numbers `major` and `minor`", older=[]) from error
    check_format(numbers, path)
    if data != format_bytes(numbers):
        raise damaged(path, f"it should be {format_bytes(numbers)!r} and is {data[:80]!r}", older=[])
    return numbers


def check_format_of(root: Path, manifest: Manifest) -> None:
    """Compare FORMAT.json with a manifest: the newest must agree, older ones may be of an older format.

    Raises BadData when they do not, and what `read_format` raises.
    """
    found, written = read_format(root), manifest.format
    newest = manifest.version >= list_versions(root)[-1]
    if found < written or (newest and found != written):
        what = f"it says {found[0]}.{found[1]}, the manifest of version {manifest.version} {written[0]}.{written[1]}"
        raise damaged(root / "FORMAT.json", what, older=[], got=list(found))


def inspect(root: Path, manifest: Manifest, *, below: int | None = None) -> list[Problem]:
    """Compare the files of a version with its entries: the size of each, and the sha256 of those of size < `below`."""
    problems, hashed = [], []
    for entry in manifest.files:
        try:
            size = regular(root, entry.path).st_size
        except (FileNotFoundError, NotADirectoryError):
            problems.append(Problem(entry.path, "missing", found="it is gone"))
        except BadData as error:
            problems.append(Problem(entry.path, "path", found=error.message))
        else:
            if size != entry.size:
                problems.append(Problem(entry.path, "size", f"{entry.size} bytes", f"{size} bytes"))
            elif below is None or size < below:
                hashed.append(entry)
    sums = digests([root / entry.path for entry in hashed])
    for entry, (_, sha256) in zip(hashed, sums, strict=True):
        if sha256 != entry.sha256:
            problems.append(Problem(entry.path, "sha256", entry.sha256, sha256))
    return problems


def survey(root: Path, manifest: Manifest) -> list[Problem]:
    """Hash every file of a version, read every other manifest, and look for files that no version lists."""
    problems = inspect(root, manifest)
    listed, readable = set(manifest.entries), True
    for version in list_versions(root):
        name = manifest_path(root, version).relative_to(root).as_posix()
        try:
            other = read_manifest(root, version)
        except ChromseekError as error:
            readable = False
            problems.append(Problem(name, "manifest", found=error.message))
            continue
        listed |= other.entries.keys()
        if version == manifest.version and other.sha256 != manifest.sha256:
            problems.append(Problem(name, "sha256", manifest.sha256, other.sha256))
    try:
        check_format_of(root, manifest)
    except ChromseekError as error:
        problems.append(Problem("FORMAT.json", "manifest", found=error.message))
    if readable:
        spare = [*unlisted_files(root, listed), *leftovers(root)]
        problems += [Problem(p.relative_to(root).as_posix(), "orphan", found="no version lists it") for p in spare]
    return problems


def refuse(root: Path, manifest: Manifest, problems: Iterable[Problem]) -> None:
    """Raise BadData for the first fatal problem, offering the newest older version that lists no such file."""
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    first = fatal[0]
    more = f"; {len(fatal) - 1} more files are damaged" if len(fatal) > 1 else ""
    older = []
    for version in list_versions(root):
        if version < manifest.version:
            try:
                whole = read_manifest(root, version).entries.get(first.path) != manifest.entries.get(first.path)
            except ChromseekError:
                continue  # nothing to offer
            if whole:
                older.append(version)
    raise damaged(root / first.path, f"{first}{more}", older=older, got=first.found)


def listed_file(root: Path, manifest: Manifest, relative: str) -> Path:
    """Where a file of a version lies. Raises NotFound when the version lists none such, BadData when it is gone."""
    if relative not in manifest.entries:
        raise NotFound(
            f"version {manifest.version} has no such file",
            code="ATLAS-FILE",
            file=str(root / relative),
            got=relative,
        )
    try:
        regular(root, relative)
    except (FileNotFoundError, NotADirectoryError):
        refuse(root, manifest, [Problem(relative, "missing", found="it is gone")])
    return root / relative


def unopenable(root: Path, version: int | None) -> NotFound:
    """The error for an atlas without the version that is wanted, or without any."""
    if version is not None:
        return version_gone(root, version)
    return NotFound(
        "no version of this atlas has been committed: a build was stopped, or runs",
        code="ATLAS-UNFINISHED",
        file=str(root),
        fix="run the same `chromseek build` again",
    )

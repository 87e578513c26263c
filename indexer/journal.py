"""The journal of a build: what is finished, so that a killed build goes on where it was.

It lies in `tmp/<plan>/journal.json`, where <plan> is the digest of the inputs and parameters: another plan starts anew.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chromseek.indexer.durable import checkpoint, digest, remove, sync, write_new


@dataclass
class Part:
    """A finished segment: its folder and its rows, and the size and sha256 of its files at that time."""

    folder: str  # relative to the atlas
    n_rows: int
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    owned: bool = True  # False for a segment of an older version, to which files are added

    @classmethod
    def of(cls, root: Path, folder: Path, n_rows: int) -> "Part":
        """Record a segment that was written just now, made durable."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        for path in paths:
            sync(path)
        checkpoint("segment-synced")
        return cls(str(folder.relative_to(root)), n_rows, {str(p.relative_to(folder)): digest(p) for p in paths})

    def record(self, root: Path, path: Path) -> None:
        """Add a file that was written just now, made durable."""
        sync(path)
        checkpoint("file-recorded")
        self.files[path.relative_to(root / self.folder).as_posix()] = digest(path)

    def is_whole(self, root: Path) -> bool:
        """Whether every file still is what was recorded."""
        folder = root / self.folder
        return all((folder / n).is_file() and digest(folder / n) == tuple(d) for n, d in self.files.items())


@dataclass
class Ingested:
    """How far the inputs of one collection have been read; of what was read, only finished parts count."""

    parts: list[Part] = field(default_factory=list)
    source: int = 0  # number of the source that is being read
    row: int = 0  # rows of it that are in finished parts
    reports: list[dict[str, Any]] = field(default_factory=list)  # one per source
    done: bool = False

    @property
    def n_rows(self) -> int:
        """Rows in finished parts."""
        return sum(part.n_rows for part in self.parts)


class Journal:
    """What is finished, written down at every step."""

    def __init__(self, work: Path, root: Path) -> None:
        """Read the journal of a work folder; a collection with a part that is gone or damaged is forgotten."""
        self.root = root
        self.work = work
        self._path = work / "journal.json"
        self.collections: dict[str, Ingested] = {}
        if self._path.is_file():
            for name, entry in json.loads(self._path.read_text()).items():
                parts = [Part(**part) for part in entry.pop("parts")]
                if all(part.is_whole(root) for part in parts):
                    self.collections[name] = Ingested(parts=parts, **entry)

    def of(self, collection: str) -> Ingested:
        """How far a collection has come."""
        return self.collections.setdefault(collection, Ingested())

    @property
    def n_bytes(self) -> int:
        """The size of what is finished."""
        parts = [part for entry in self.collections.values() for part in entry.parts]
        return sum(size for part in parts for size, _ in part.files.values())

    @property
    def paths(self) -> set[str]:
        """The files that are finished, relative to the atlas."""
        parts = [part for entry in self.collections.values() for part in entry.parts]
        return {f"{part.folder}/{file}" for part in parts for file in part.files}

    def save(self) -> None:
        """Write all of it, atomically."""
        text = json.dumps({name: asdict(entry) for name, entry in self.collections.items()})
        draft = self._path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        write_new(draft, text.encode())
        draft.replace(self._path)
        sync(self._path.parent)
        checkpoint("journal-saved")

    def discard(self) -> None:
        """Remove the finished parts: nothing will come of them."""
        for entry in self.collections.values():
            for part in entry.parts:
                folder = self.root / part.folder
                for path in [folder] if part.owned else [folder / file for file in part.files]:
                    remove(path)
        self.collections.clear()

"""BED sets as a source of a build: many BED files, each of which is one row."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.bed import Bed, guess_file, read_bed
from chromseek.data.errors import BadData, ChromseekError, NotFound, printable
from chromseek.data.genome import Assembly
from chromseek.data.h5ad import unique_names
from chromseek.data.inputs import (
    BLOCK_ROWS,
    BLOCK_TOKENS,
    Estimate,
    ReadOptions,
    Target,
    assembly_checked,
    file_identity,
    known_assembly,
    left_out,
    manifest_place,
    options_identity,
    placed,
    stem,
    table_digest,
    texts_of,
)
from chromseek.data.lines import opened
from chromseek.data.tables import is_parquet
from chromseek.data.tokens import SetBlock, TokenSets, offsets_of
from chromseek.data.universe import Universe

NOTES = 20  # files whose notes are told one by one


class BedSource:
    """BED files, one set each; the metadata are the manifest's columns, and the md5 of each file's bytes."""

    kind: Literal["bed"] = "bed"

    def __init__(
        self,
        files: Sequence[Path],
        metadata: pa.Table | None,
        options: ReadOptions,
        target: Target,
        *,
        label: str,
        dataset: str,
        manifest: Path | None = None,
    ) -> None:
        """Take n files and n rows of metadata, if any: `name` names a set, `genome` or `assembly` its assembly.

        Raises BadData for names that come twice, and for rows whose assembly has no way to the atlas'.
        """
        self.label, self.dataset = label, dataset
        self._files, self._options, self._target, self._manifest = list(files), options, target.among(files), manifest
        self._in_rows = manifest is not None and is_parquet(manifest)  # which has rows, but no lines
        if metadata is None or metadata.num_columns == 0:
            metadata = pa.table({"": np.arange(len(self._files))}).select([])
        named = zip(texts_of(metadata, "assembly"), texts_of(metadata, "genome"), strict=True)
        self._named = [assembly or genome for assembly, genome in named]
        for file in self._files:
            if not file.is_file():
                raise NotFound("no such file", code="FILE-MISSING", file=str(file), fix="check the path")
        if target.assembly is not None:
            self._check_assemblies(target.assembly)
        names = texts_of(metadata, "name")
        self._names = self._unique([name or stem(file) for name, file in zip(names, self._files, strict=True)])
        self._metadata = metadata.drop_columns([name for name in ("name", "md5") if name in metadata.column_names])
        self.schema = self._metadata.schema.append(pa.field("md5", pa.string()))
        self.n_sets: int | None = len(self._files)
        self._notes: list[str] = []
        self._asked: dict[str | None, Universe] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped or changed; complete once the blocks have been read."""
        more = [f"and {len(self._notes) - NOTES:,} notes more"] if len(self._notes) > NOTES else []
        lost = dict.fromkeys(note for universe in self._asked.values() for note in left_out(universe))
        return (*self._notes[:NOTES], *more, *lost)

    def identity(self) -> dict[str, Any]:
        """Each file, and the metadata."""
        return {
            "beds": [file_identity(file) for file in self._files],
            "names": self._names,
            "metadata": table_digest(self._metadata),
            "options": options_identity(self._options),
        }

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The BED sets from row `start` on. Raises BadData for a bad file, naming it and its place in the manifest."""
        self._check_assemblies(universe.assembly)
        self._notes, self._asked = [], {}
        found: list[_Set] = []
        n_tokens, first = 0, start
        for row in range(start, len(self._files)):
            with self._placed(row):
                found.append(self._read(row, universe))
            n_tokens += len(found[-1].tokens)
            if len(found) == BLOCK_ROWS or n_tokens >= BLOCK_TOKENS or row + 1 == len(self._files):
                yield self._block(first, found)
                found, n_tokens, first = [], 0, row + 1

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count by up to three of the files."""
        sizes = [file_identity(file)["size"] for file in self._files]
        some = sorted({0, len(sizes) // 2, len(sizes) - 1})
        n_tokens = n_source = n_placed = 0
        for row in some:
            with self._placed(row):
                own = self._assembly_of(row) if universe is None else self._assembly_of(row) or universe.assembly
                regions = self._bed(row, own).regions
                n_source += len(regions)
                if universe is not None:
                    asked = self._target.universe_for(own, universe, str(self._files[row]))
                    tokens, placed = asked.tokenize(regions)
                    n_tokens, n_placed = n_tokens + len(tokens), n_placed + placed
        share = sum(sizes) / max(1, sum(sizes[row] for row in some))
        if universe is None:
            return Estimate(self.n_sets, round(n_source * share), sum(sizes), None)
        return Estimate(self.n_sets, round(n_tokens * share), sum(sizes), n_placed / max(1, n_source))

    def _bed(self, row: int, own: Assembly | None) -> Bed:
        file, options = self._files[row], self._options
        with assembly_checked(str(file), self._target):
            return read_bed(
                file,
                assembly=own,
                rename_chroms=options.rename_chroms,
                on_bad_line=options.on_bad_line,
                max_regions=options.max_regions,
            )

    def _read(self, row: int, universe: Universe) -> "_Set":
        own = self._assembly_of(row) or universe.assembly
        bed = self._bed(row, own)
        self._notes += [f"{printable(self._names[row])}: {note}" for note in bed.notes]
        tokens, n_placed = self._universe_for(row, own, universe).tokenize(bed.regions)
        return _Set(tokens, len(bed.regions), n_placed, file_md5(self._files[row]))

    def _block(self, first: int, found: "list[_Set]") -> SetBlock:
        metadata = self._metadata.slice(first, len(found))
        return SetBlock(
            self._names[first : first + len(found)],
            TokenSets(offsets_of([len(one.tokens) for one in found]), np.concatenate([one.tokens for one in found])),
            np.array([one.n_source for one in found], np.int64),
            np.array([one.n_placed for one in found], np.int64),
            None,
            metadata.append_column("md5", pa.array([one.md5 for one in found], pa.string())),
        )

    def _assembly_of(self, row: int) -> Assembly | None:
        file = self._files[row]
        return self._target.assembly_of(
            str(file), self._named[row], lambda: guess_file(file, self._options.max_regions)
        )

    def _universe_for(self, row: int, own: Assembly | None, universe: Universe) -> Universe:
        name = None if own is None else own.name
        if name not in self._asked:
            self._asked[name] = self._target.universe_for(own, universe, str(self._files[row]))
        return self._asked[name]

    def _check_assemblies(self, atlas: Assembly) -> None:
        """Refuse the rows of another assembly together, and say how to leave them out."""
        away = []
        for row, name in enumerate(self._named):
            own = None if name is None else known_assembly(name)
            if name is not None and (own is None or not (own == atlas or self._target.accepts(own))):
                away.append(row)
        if not away:
            return
        counts = Counter(self._named[row] for row in away)
        listed = ", ".join(f"{count:,} of {printable(name)}" for name, count in counts.most_common(5))
        raise BadData(
            f"the atlas is {atlas.name}, but some BED sets are not ({listed}), first {self._told(away[0])}",
            code="SOURCE-ASSEMBLY",
            file=self.label,
            line=None,
            got=printable(self._named[away[0]]),
            fix=f"leave them out: keep the rows of {atlas.name} in the manifest; or pass a chain file (--liftover)",
        )

    def _place(self, row: int) -> str:
        """Where a row stands in the manifest; nothing where there is none."""
        return "" if self._manifest is None else manifest_place(self._manifest, row, in_rows=self._in_rows)

    def _told(self, row: int) -> str:
        """A file with its place in the manifest."""
        place = self._place(row)
        return printable(self._files[row], 200) + (f" ({place})" if place else "")

    @contextmanager
    def _placed(self, row: int) -> Iterator[None]:
        """Name the place in the manifest in whatever is wrong with a file."""
        try:
            yield
        except ChromseekError as error:
            if self._manifest is None:
                raise
            raise placed(error, self._place(row), str(self._files[row])) from error

    def _unique(self, names: list[str]) -> list[str]:
        first: dict[str, int] = {}
        for row, name in enumerate(names):
            if first.setdefault(name, row) != row and not self._options.make_unique:
                both = " and ".join(self._told(at) for at in (first[name], row))
                raise BadData(
                    f"two BED sets are named {printable(name)}: {both}",
                    code="SOURCE-TWICE",
                    file=self.label,
                    got=name,
                    fix="give each a name of its own in a column name of a manifest, or pass --make-unique",
                )
        return unique_names(names, self.label, make_unique=True)


@dataclass(frozen=True, slots=True)
class _Set:
    """One BED file as tokens."""

    tokens: NDArray[np.int32]
    n_source: int
    n_placed: int
    md5: str


def file_md5(path: Path) -> str:
    """The md5 of a file's bytes: a name for its content, as portals give it."""
    digest = hashlib.md5(usedforsecurity=False)
    with opened(path) as raw:
        while piece := raw.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

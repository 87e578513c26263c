"""What all sources share: the protocol, the options of reading, and the assembly that every input is brought to."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadArgument, BadData, ChromseekError, printable
from chromseek.data.genome import ASSEMBLIES, Assembly, AssemblyGuess
from chromseek.data.liftover import Chain, LiftedUniverse, chain_assemblies
from chromseek.data.lines import opened
from chromseek.data.regions import Regions
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe

BLOCK_ROWS = 8192  # at most, in a block
BLOCK_TOKENS = 16_000_000  # about, in a block
_OTHER_NAMES = {"grch37": "hg19", "b37": "hg19", "hs37d5": "hg19", "grch38": "hg38", "grcm38": "mm10"}
_PACKED = re.compile(r"\.(gz|bgz)$", re.IGNORECASE)
_FORMAT = re.compile(r"\.(h5ad|h5|tsv|csv|txt|bed\d*|(narrow|broad|gapped)peak|parquet|pq)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How inputs are read; each kind of source takes what concerns it."""

    rename_chroms: str | None = None
    on_bad_line: str = "error"
    layer: str | None = None  # of an h5ad, in place of X
    min_fragments: int = 0  # of a barcode, where no obs table lists the barcodes
    make_unique: bool = False  # number repeated names instead of refusing them
    liftover: Path | None = None  # a chain file that leads to the atlas' assembly
    blacklist: Path | None = None  # a BED file of the atlas' assembly: what overlaps it finds no token
    max_regions: int = 20_000_000  # of one BED file


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a source holds, as far as its headers and a first piece tell."""

    n_sets: int | None  # None: not known before it is read
    n_tokens: int | None  # in all sets; a guess from above
    n_bytes: int  # on disk
    coverage: float | None  # share of the regions (or of the first fragments) that find a token; None without universe


class Source(Protocol):
    """One input of a build: rows of one dataset, read in blocks."""

    @property
    def dataset(self) -> str:
        """The name of the dataset that its rows belong to."""

    @property
    def kind(self) -> Literal["cell", "bed"]:
        """What its rows are."""

    @property
    def label(self) -> str:
        """What errors and progress call it: the path as it was given."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of its metadata, known before anything is read."""

    @property
    def n_sets(self) -> int | None:
        """How many rows it has; None for fragments without a list of barcodes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped or changed; complete once the blocks have been read."""

    def identity(self) -> dict[str, Any]:
        """What it is made of, as JSON: as long as it is the same, blocks() gives the same rows."""

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """Its rows from `start` on, at most 8,192 and about 16 million tokens at a time."""

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """How much it holds, without reading it whole."""


class MaskedUniverse(Universe):
    """A universe in which regions that overlap a blacklist find no token, so that they show in the coverage."""

    def __init__(self, universe: Universe, blacklist: Regions) -> None:
        self.universe, self.blacklist = universe, Universe.of(blacklist)
        self.regions = universe.regions.take(slice(0))  # none, so that no matrix's equal them
        self.n_masked = 0  # regions that were looked up and overlap the blacklist

    def __len__(self) -> int:
        return len(self.universe)

    @cached_property
    def digest(self) -> str:
        """sha256 of both digests; never that of a universe itself."""
        return hashlib.sha256(f"{self.universe.digest} without {self.blacklist.digest}".encode()).hexdigest()

    def overlaps(self, regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All pairs (query region, token) that share a base, of regions off the blacklist: rows (p), tokens (p)."""
        masked = np.zeros(len(regions), bool)
        masked[self.blacklist.overlaps(regions)[0]] = True
        self.n_masked += int(masked.sum())
        rows, tokens = self.universe.overlaps(regions)
        kept = ~masked[rows]
        return rows[kept], tokens[kept]


@dataclass(frozen=True, slots=True)
class Target:
    """The assembly of the atlas, what leads to it from another one, and what is left out there."""

    assembly: Assembly | None  # None: that of the universe, which is not known yet
    chain: Chain | None
    blacklist: Regions | None
    lone: bool = False  # there is one input: where a chain is given, it is given for this one

    @classmethod
    def of(cls, options: ReadOptions, assembly: Assembly | None, *, lone: bool = False) -> "Target":
        """Read the chain and the blacklist; with a chain, its target is the atlas' assembly.

        Raises BadArgument when the chain leads elsewhere.
        """
        chain = None
        if options.liftover is not None:
            source, target = chain_assemblies(options.liftover)
            if assembly is not None and target != assembly:
                raise BadArgument(
                    f"the chain leads from {source.name} to {target.name}, the atlas is {assembly.name}",
                    code="SOURCE-CHAIN",
                    file=str(options.liftover),
                    got=target.name,
                    fix=f"give a chain file that leads to {assembly.name}",
                )
            chain, assembly = Chain.load(options.liftover, source, target), target
        blacklist = None
        if options.blacklist is not None:
            blacklist = read_bed(options.blacklist, assembly=assembly, rename_chroms=options.rename_chroms).regions
        return cls(assembly, chain, blacklist, lone)

    def among(self, files: Sequence[Any]) -> "Target":
        """The same for one of several inputs."""
        return replace(self, lone=self.lone and len(files) == 1)

    def named(self, label: str, name: str) -> Assembly:
        """The assembly that an input names itself.

        Raises BadData when it is not known, or has no way to the atlas'.
        """
        own = known_assembly(name)
        if own is None or not self.accepts(own):
            raise self.refused(label, f"it says that it is {printable(name)}", own or name)
        return own

    def accepts(self, own: Assembly) -> bool:
        """Whether inputs of this assembly can be brought to the atlas'."""
        return self.assembly in (None, own) or (self.chain is not None and self.chain.source == own)

    def assembly_of(self, label: str, named: str | None, guess: Callable[[], AssemblyGuess]) -> Assembly | None:
        """The assembly of an input: as it is named, or as its regions tell where there is a choice.

        None: that of the universe, whatever that will be. Raises BadData for an assembly that has no way to the
        atlas', and when the regions do not tell.
        """
        if named is not None:
            return self.named(label, named)
        if self.chain is None or self.assembly is None:
            return self.assembly
        found = guess()
        choices = (self.chain.source, self.assembly)
        likely = [own for own in choices if own.name == found.name] or [
            own for own in choices if found.evidence[own.name] == "fits"
        ]
        if len(likely) == 1:
            return likely[0]
        if self.lone and found.name is None:
            return self.chain.source
        evidence = "; ".join(f"{name}: {reason}" for name, reason in found.evidence.items())
        if found.name is not None:
            raise self.refused(label, evidence, found.name)
        raise BadData(
            f"cannot tell whether it is {choices[0].name} or {choices[1].name} ({evidence})",
            code="SOURCE-ASSEMBLY",
            file=label,
            fix="say it: column genome in a manifest, uns['assembly'] in an AnnData",
        )

    def universe_for(self, own: Assembly | None, universe: Universe, label: str) -> Universe:
        """The universe as readers of an input of this assembly see it.

        Raises BadData when the assemblies differ and no chain joins them.
        """
        seen = universe
        if self.blacklist is not None:
            if self.blacklist.assembly != universe.assembly:
                names = f"{self.blacklist.assembly.name}, the atlas is {universe.assembly.name}"
                fix = "give the blacklist of the atlas' assembly"
                raise BadArgument(f"the blacklist is {names}", code="SOURCE-BLACKLIST", fix=fix)
            seen = MaskedUniverse(universe, self.blacklist)
        if own is None or own == universe.assembly:
            return seen
        if self.chain is None or self.chain.source != own or self.chain.target != universe.assembly:
            raise refused(label, f"it is {own.name}", own.name, universe.assembly.name)
        return LiftedUniverse(seen, self.chain)

    def refused(self, label: str, evidence: str, own: "Assembly | str") -> BadData:
        """The error for an input of another assembly."""
        name = own if isinstance(own, str) else own.name
        atlas = f"one of {', '.join(ASSEMBLIES)}" if self.assembly is None else self.assembly.name
        return refused(label, evidence, name, atlas)


def refused(label: str, evidence: str, own: str, atlas: str) -> BadData:
    """The error for an input of another assembly than the atlas'."""
    way = f"pass a chain file from {own} to {atlas} (liftover=, --liftover)" if known_assembly(own) else "lift it first"
    return BadData(
        f"the atlas is {atlas}, but {evidence}",
        code="SOURCE-ASSEMBLY",
        file=label,
        got=printable(own),
        fix=f"{way}, or leave it out",
    )


def known_assembly(name: str) -> Assembly | None:
    """The assembly of this name, or of this other name; None when it is not one that is known.

    >>> known_assembly("GRCh38").name, known_assembly("mm9")
    ('hg38', None)
    """
    text = name.strip().lower()
    return ASSEMBLIES.get(_OTHER_NAMES.get(text, text))


@contextmanager
def assembly_checked(label: str, target: Target) -> Iterator[None]:
    """Tell of the chain where a reader finds that an input looks like another assembly."""
    try:
        yield
    except BadData as error:
        if error.code != "BED-ASSEMBLY" or error.got is None or target.assembly is None:
            raise
        cure = target.refused(label, error.message, str(error.got)).fix
        raise BadData(
            error.message, code="SOURCE-ASSEMBLY", file=error.file or label, line=error.line, got=error.got, fix=cure
        ) from error


def left_out(universe: Universe) -> tuple[str, ...]:
    """Notes on the regions that a universe did not let through."""
    if isinstance(universe, LiftedUniverse):
        lost = f"lifted over from {universe.chain.source.name}: {100 * universe.lost_share:.2f} % of the regions lost"
        return (lost, *left_out(universe.universe))
    if isinstance(universe, MaskedUniverse) and universe.n_masked:
        return (f"{universe.n_masked:,} regions overlap the blacklist",)
    return ()


def stem(path: str | Path) -> str:
    """What a file is about: its name without the endings that tell its format.

    >>> stem("a/pbmc.fragments.tsv.gz"), stem("B.narrowPeak.gz"), stem("x.v2.h5ad")
    ('pbmc', 'B', 'x.v2')
    """
    name = os.fsencode(Path(path).name).decode("utf-8", "replace")
    short = _FORMAT.sub("", _PACKED.sub("", name)).removesuffix(".fragments")
    return short or name


def file_identity(path: str | Path) -> dict[str, Any]:
    """Where a file is, how long, and when it was changed.

    Raises NotFound or StorageError when it cannot be read.
    """
    with opened(Path(path)) as raw:
        found = os.fstat(raw.fileno())
    return {"path": str(Path(path).absolute()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def options_identity(options: ReadOptions) -> dict[str, Any]:
    """The options that change what is read, as JSON."""
    files = {"liftover": options.liftover, "blacklist": options.blacklist}
    return {
        "rename_chroms": options.rename_chroms,
        "on_bad_line": options.on_bad_line,
        "layer": options.layer,
        "min_fragments": options.min_fragments,
        "make_unique": options.make_unique,
    } | {name: None if path is None else file_identity(path) for name, path in files.items()}


def table_digest(table: pa.Table) -> str:
    """sha256 of a table's columns and values."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def repeated(row: pa.Table, n: int) -> pa.Table:
    """A table of one row, n times; text becomes a category of one."""
    for place, field in enumerate(row.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            row = row.set_column(place, field.name, row.column(place).cast(pa.string()).dictionary_encode())
    return row.take(pa.array(np.zeros(n, np.int64)))


def side_by_side(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of both tables of n rows."""
    for field in right.schema:
        left = left.append_column(field, right.column(field.name))
    return left


def texts_of(table: pa.Table, name: str) -> list[str | None]:
    """A column as texts, empty ones as None; all None where there is no such column."""
    if name not in table.column_names:
        return [None] * len(table)
    return [text or None for text in table.column(name).cast(pa.string()).to_pylist()]


def manifest_place(manifest: Path, row: int, *, in_rows: bool) -> str:
    """Where the row of a manifest stands: its line, or its row in Parquet, which has no lines.

    >>> manifest_place(Path("a/manifest.tsv"), 0, in_rows=False)
    'manifest.tsv line 2'
    """
    return f"{printable(manifest.name)} {f'row {row + 1}' if in_rows else f'line {row + 2}'}"


def placed(error: ChromseekError, place: str, file: str) -> ChromseekError:
    """The same error, saying too where the file is listed."""
    return type(error)(
        f"{place}: {error.message}",
        code=error.code,
        file=error.file or file,
        line=error.line,
        got=error.got,
        fix=error.fix,
        exit_code=error.exit_code,
        status=error.status,
    )

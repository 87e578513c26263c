"""Regions of one assembly carried to another by a UCSC chain file, as liftOver does it.

A chain is a run of blocks that align without gaps. A region maps through a chain when enough of its bases lie in
the chain's blocks; its image runs from its first to its last such base.
"""

import hashlib
from array import array
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, BadData, printable
from chromseek.data.genome import ASSEMBLIES, Assembly, is_contig
from chromseek.data.lines import TextFile
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe, expand, hit_ranges, layers

_HEADER = "chain score chrom size + start end chrom size strand start end id"


@dataclass(frozen=True, slots=True)
class Chain:
    """The chains between two assemblies: m chains, b blocks, chain by chain and rising within each."""

    source: Assembly
    target: Assembly
    starts: NDArray[np.int64]  # (m) extent in the source, chromosomes laid end to end
    ends: NDArray[np.int64]  # (m)
    scores: NDArray[np.int64]  # (m)
    target_chroms: NDArray[np.int16]  # (m)
    reverse: NDArray[np.bool_]  # (m) whether the target runs backwards
    block_chains: NDArray[np.int64]  # (b)
    block_starts: NDArray[np.int64]  # (b) in the source, chromosomes laid end to end
    block_sizes: NDArray[np.int64]  # (b)
    block_targets: NDArray[np.int64]  # (b) start in the target's chromosome; from its end where reverse
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path, source: Assembly, target: Assembly) -> "Chain":
        """Read a chain file, plain or gz; chains from or to contigs are left out.

        Raises BadData naming the line when it is no chain file, or one of other assemblies.
        """
        reading = _Reading(str(path), source, target)
        for block in TextFile(path).blocks():
            for number, line in enumerate(block.lines.splitlines(), block.line):
                reading.read(number, line.decode("utf-8", "replace"))
        return reading.chain()

    def lift(self, regions: Regions, min_match: float = 0.95) -> tuple[Regions, NDArray[np.int64]]:
        """Carry regions over: the images of those that map, (r), and their rows in the input, (r).

        A region maps through the best-scoring chain that has at least `min_match` of its bases in blocks.
        Raises BadArgument for regions of another assembly and for a `min_match` outside 0 to 1.
        """
        if regions.assembly.name != self.source.name:
            message = f"the regions are of {regions.assembly.name}, the chain leads from {self.source.name}"
            raise BadArgument(message, code="LIFT-ASSEMBLY", got=regions.assembly.name, fix="give the other chain file")
        if not 0 < min_match <= 1:
            fix = "give a share above 0, up to 1"
            raise BadArgument(f"min_match is {min_match}", code="LIFT-MATCH", got=min_match, fix=fix)
        starts, ends = regions.spans()
        rows, chains = self._pairs(starts, ends)
        shared = self._covered(chains, ends[rows]) - self._covered(chains, starts[rows])
        enough = np.flatnonzero((shared > 0) & (shared >= min_match * (ends - starts)[rows]))
        best = enough[np.lexsort((chains[enough], -self.scores[chains[enough]], rows[enough]))]
        kept, first = np.unique(rows[best], return_index=True)
        return self._images(chains[best[first]], starts[kept], ends[kept]), kept

    def _pairs(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All (region, chain) whose extents share a base, (p), (p)."""
        order = np.lexsort((self.ends, self.starts))
        rows, chains = [], []
        for layer_starts, layer_ends, layer in layers(self.starts[order], self.ends[order], order.astype(np.int32)):
            first, count = hit_ranges(layer_starts, layer_ends, starts, ends)
            rows.append(np.repeat(np.arange(len(starts)), count))
            chains.append(layer[expand(first, count)].astype(np.int64))
        return np.concatenate(rows), np.concatenate(chains)

    def _covered(self, chains: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many bases of a chain's blocks lie before a place, counted from the first block of all, (p)."""
        block = self._block_before(chains, places)
        before = np.concatenate([[0], np.cumsum(self.block_sizes)])
        inside = np.minimum(places - self.block_starts[block], self.block_sizes[block])
        return np.where((block >= 0) & (self.block_chains[block] == chains), before[block] + inside, before[block + 1])

    def _block_before(self, chains: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last block that starts before a place in this chain or in an earlier one, -1 for none, (p)."""
        keys = _key(self.block_chains, self.block_starts)
        return np.searchsorted(keys, _key(chains, places)) - 1

    def _images(self, chains: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Regions:
        """The images of regions that have bases in blocks of their chain, (r)."""
        block_ends = self.block_starts + self.block_sizes
        first = np.searchsorted(_key(self.block_chains, block_ends), _key(chains, starts), side="right")
        last = self._block_before(chains, ends)
        images = [
            self.block_targets[block] + place - self.block_starts[block]
            for block, place in (
                (first, np.maximum(starts, self.block_starts[first])),
                (last, np.minimum(ends, block_ends[last])),
            )
        ]
        chroms, reverse = self.target_chroms[chains], self.reverse[chains]
        lengths = np.array(self.target.lengths)[chroms]
        begin = np.where(reverse, lengths - images[1], images[0])
        end = np.where(reverse, lengths - images[0], images[1])
        return Regions(self.target, chroms, begin.astype(np.int32), end.astype(np.int32))


class LiftedUniverse(Universe):
    """A universe as readers of another assembly see it: regions are carried over, then looked up.

    What does not map finds no token, so it shows in the coverage. It has no regions in the readers' coordinates.
    """

    def __init__(self, universe: Universe, chain: Chain) -> None:
        """Raises BadArgument when the chain leads to another assembly than the universe's."""
        if chain.target.name != universe.assembly.name:
            raise BadArgument(
                f"the chain leads to {chain.target.name}, the universe is of {universe.assembly.name}",
                code="LIFT-ASSEMBLY",
                got=chain.target.name,
                fix="give the other chain file",
            )
        self.universe, self.chain = universe, chain
        none = np.empty(0, np.int32)
        self.regions = Regions(chain.source, none.astype(np.int16), none, none)  # so that no matrix's equal them
        self.n_seen = 0  # regions that were looked up
        self.n_lost = 0  # those of them that do not map

    def __len__(self) -> int:
        return len(self.universe)

    @property
    def lost_share(self) -> float:
        """The share of all regions looked up so far that did not map."""
        return self.n_lost / max(1, self.n_seen)

    @cached_property
    def digest(self) -> str:
        """sha256 of the universe's digest and the chain; never that of a universe itself."""
        digest = hashlib.sha256(f"{self.universe.digest} from {self.chain.source.name}".encode())
        for name in ("starts", "ends", "target_chroms", "reverse", "block_starts", "block_sizes", "block_targets"):
            digest.update(getattr(self.chain, name).tobytes())
        return digest.hexdigest()

    def overlaps(self, regions: Regions) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All pairs (query region, token) that share a base once the query is carried over: rows (p), tokens (p)."""
        lifted, kept = self.chain.lift(regions)
        self.n_seen += len(regions)
        self.n_lost += len(regions) - len(kept)
        rows, tokens = self.universe.overlaps(lifted)
        return kept[rows], tokens


def chain_assemblies(path: str | Path) -> tuple[Assembly, Assembly]:
    """The assemblies that a chain file leads from and to, by the chromosome lengths in its headers.

    Raises BadData when no header is of two known assemblies.
    """
    for block in TextFile(path).blocks():
        for line in block.lines.splitlines():
            cells = line.decode("utf-8", "replace").split() if line.startswith(b"chain") else []
            if len(cells) < 12:
                continue
            source, target = _by_length(cells[2], cells[3]), _by_length(cells[7], cells[8])
            if source is not None and target is not None:
                return source, target
    raise BadData(
        f"no chain between two of the assemblies {', '.join(ASSEMBLIES)}",
        code="CHAIN-ASSEMBLY",
        file=str(path),
        fix="give a UCSC chain file, such as hg19ToHg38.over.chain.gz",
    )


def _by_length(chrom: str, size: str) -> Assembly | None:
    for candidate in ASSEMBLIES.values():
        if chrom in candidate.codes and size == str(candidate.lengths[candidate.codes[chrom]]):
            return candidate
    return None


@dataclass(slots=True)
class _Open:
    """A chain whose blocks are being read: where it stands and where it must end."""

    line: int
    source: int
    source_end: int
    target: int
    target_end: int
    kept: bool


@dataclass(slots=True)
class _Reading:
    """A chain file while it is read."""

    path: str
    source: Assembly
    target: Assembly
    heads: list[tuple[int, int, int, int, bool]] = field(default_factory=list)  # start, end, score, chrom, reverse
    blocks: "array[int]" = field(default_factory=lambda: array("q"))  # chain, start, size, target, one after the other
    open: _Open | None = None
    n_away: int = 0

    def read(self, number: int, line: str) -> None:
        """Take one line: a header, a block, or nothing."""
        cells = line.split()
        if not cells or line.startswith("#"):
            return
        if cells[0] == "chain":
            if self.open is not None:
                raise self._bad(number, "a chain starts before the one before it ended", "CHAIN-CUT")
            self._read_header(number, line, cells)
        else:
            self._read_block(number, line, cells)

    def _read_header(self, number: int, line: str, cells: list[str]) -> None:
        numbers = [cells[place] for place in (1, 3, 5, 6, 8, 10, 11)] if len(cells) in (12, 13) else ["?"]
        if not all(_is_number(text) for text in numbers) or cells[4] != "+" or cells[9] not in ("+", "-"):
            raise self._bad(number, f"not a chain header: {printable(line)} (wanted {_HEADER})", "CHAIN-HEADER")
        score, size, start, end, target_size, target_start, target_end = map(int, numbers)
        source = self._chrom(number, self.source, cells[2], size)
        target = self._chrom(number, self.target, cells[7], target_size)
        if not (start < end <= size and target_start < target_end <= target_size):
            raise self._bad(number, f"the chain does not lie in its chromosomes: {printable(line)}", "CHAIN-HEADER")
        kept = source is not None and target is not None
        if source is not None and target is not None:
            offset = int(self.source.offsets[source])
            start, end = start + offset, end + offset
            self.heads.append((start, end, score, target, cells[9] == "-"))
        else:
            self.n_away += 1
        self.open = _Open(number, start, end, target_start, target_end, kept)

    def _chrom(self, number: int, assembly: Assembly, name: str, size: int) -> int | None:
        """A chromosome's code, None for a contig; its length tells whether the chain is of this assembly."""
        code = assembly.codes.get(name)
        if code is None and not is_contig(name):
            near = ", ".join(assembly.nearest(name))
            raise self._bad(
                number, f"unknown chromosome {printable(name)} in {assembly.name} (nearest: {near})", "CHAIN-CHROM"
            )
        if code is not None and size != assembly.lengths[code]:
            expected = f"{assembly.lengths[code]} in {assembly.name}"
            raise self._bad(number, f"{name} has {size} bases in the chain, {expected}", "CHAIN-ASSEMBLY")
        return code

    def _read_block(self, number: int, line: str, cells: list[str]) -> None:
        if self.open is None or len(cells) not in (1, 3) or not all(_is_number(text) for text in cells):
            raise self._bad(number, f"not a block of a chain: {printable(line)} (wanted size, gap, gap)", "CHAIN-BLOCK")
        at, size = self.open, int(cells[0])
        if at.kept and size:
            self.blocks.extend((len(self.heads) - 1, at.source, size, at.target))
        at.source += size
        at.target += size
        if len(cells) == 3:
            at.source += int(cells[1])
            at.target += int(cells[2])
        over = at.source > at.source_end or at.target > at.target_end
        if over or (len(cells) == 1 and (at.source, at.target) != (at.source_end, at.target_end)):
            raise self._bad(number, f"the blocks do not add up to the chain of line {at.line}", "CHAIN-SUM")
        if len(cells) == 1:
            self.open = None

    def _bad(self, number: int, message: str, code: str) -> BadData:
        fix = f"give a UCSC chain file from {self.source.name} to {self.target.name}"
        return BadData(message, code=code, file=self.path, line=number, fix=fix)

    def chain(self) -> Chain:
        """What was read; raises BadData when the last chain is cut or none is left."""
        if self.open is not None:
            raise self._bad(self.open.line, "the file ends within this chain", "CHAIN-CUT")
        if not self.blocks:
            message = f"no chain between chromosomes ({self.n_away} of contigs)"
            fix = f"give a UCSC chain file from {self.source.name} to {self.target.name}"
            raise BadData(message, code="CHAIN-EMPTY", file=self.path, fix=fix)
        starts, ends, scores, chroms, reverse = np.array(self.heads, dtype=np.int64).T
        chains, block_starts, sizes, targets = np.array(self.blocks, dtype=np.int64).reshape(-1, 4).T.copy()
        notes = (f"{self.n_away} chains of contigs left out",) if self.n_away else ()
        extents = (starts, ends, scores, chroms.astype(np.int16), reverse.astype(bool))
        return Chain(self.source, self.target, *extents, chains, block_starts, sizes, targets, notes)


def _key(chains: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number that sorts by chain, then by place."""
    return (chains << 33) | places


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16

"""Sources that are no files: a simulation's cells and BED sets, a frame of regions, and token sets at hand."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from chromseek.data.bed import Bed, frame_rows, read_bed
from chromseek.data.errors import BadData
from chromseek.data.genome import AssemblyGuess, assembly, guess_assembly
from chromseek.data.inputs import (
    BLOCK_ROWS,
    BLOCK_TOKENS,
    Estimate,
    ReadOptions,
    Target,
    assembly_checked,
    left_out,
    options_identity,
    table_digest,
)
from chromseek.data.regions import Regions
from chromseek.data.simulate import Simulation
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe


class SimulatedSource:
    """The cells of a simulation; over another universe than its own, they are mapped by overlap."""

    kind: Literal["cell"] = "cell"
    label = "simulation"

    def __init__(self, simulation: Simulation, target: Target, *, dataset: str = "simulated") -> None:
        """Raises BadData when the simulation's assembly has no way to the atlas'."""
        self.dataset, self._simulation, self._target = dataset, simulation, target
        self._own = assembly(simulation.assembly)
        target.named(self.label, simulation.assembly)
        first = next(simulation.cells(block_size=1, stop=1), None)
        self.schema = pa.schema([]) if first is None else first.metadata.schema
        self.n_sets: int | None = simulation.n_cells
        self.notes: tuple[str, ...] = ()

    @property
    def regions(self) -> Regions:
        """The simulation's regions."""
        return self._simulation.universe.regions

    def identity(self) -> dict[str, Any]:
        """The simulation's parameters: they say all about it."""
        return {"simulation": asdict(self._simulation)}

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The cells from `start` on."""
        asked = self._target.universe_for(self._own, universe, self.label)
        mapping = _mapping(asked, self._simulation.universe)
        size = max(1, min(BLOCK_ROWS, BLOCK_TOKENS // (2 * self._simulation.tokens_per_cell)))
        for block in self._simulation.cells(block_size=size, start=start):
            self.notes = ("simulated by chromseek", *left_out(asked))
            yield block if mapping is None else remapped(block, mapping)

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count by the median cell."""
        simulation, coverage = self._simulation, None
        if universe is not None:
            asked = self._target.universe_for(self._own, universe, self.label)
            coverage = asked.tokenize(simulation.universe.regions)[1] / simulation.n_regions
        return Estimate(simulation.n_cells, simulation.n_cells * simulation.tokens_per_cell, 0, coverage)


class FrameSource:
    """One BED set: a frame with chrom, start and end, or a pyranges object."""

    kind: Literal["bed"] = "bed"
    label = "frame"
    schema = pa.schema([("md5", pa.string())])

    def __init__(self, frame: Any, options: ReadOptions, target: Target, *, dataset: str = "beds") -> None:
        """Raises BadData when the regions have no way to the atlas' assembly."""
        self.dataset = dataset
        self.n_sets: int | None = 1
        self.notes: tuple[str, ...] = ()
        self._frame: pd.DataFrame = frame if isinstance(frame, pd.DataFrame) else frame.df
        self._options, self._target = options, target
        self._own = target.assembly_of(self.label, None, self._guess)

    def identity(self) -> dict[str, Any]:
        """The digest of the frame's content."""
        rows = pd.util.hash_pandas_object(self._frame, index=False).to_numpy()
        return {"frame": hashlib.sha256(rows.tobytes()).hexdigest(), "options": options_identity(self._options)}

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The one set, unless `start` is past it. Raises BadData for rows that are no regions."""
        if start:
            return
        asked, bed = self._read(universe)
        tokens, n_placed = asked.tokenize(bed.regions)
        self.notes = (*bed.notes, *left_out(asked))
        numbers = [column.tobytes() for column in (bed.regions.chroms, bed.regions.starts, bed.regions.ends)]
        md5 = hashlib.md5(b"".join(numbers), usedforsecurity=False).hexdigest()
        yield SetBlock(
            [self.label],
            TokenSets(np.array([0, len(tokens)]), tokens),
            np.array([len(bed.regions)]),
            np.array([n_placed]),
            None,
            pa.table({"md5": [md5]}),
        )

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count what is there."""
        if universe is None:
            return Estimate(1, len(self._frame), 0, None)
        asked, bed = self._read(universe)
        tokens, n_placed = asked.tokenize(bed.regions)
        return Estimate(1, len(tokens), 0, n_placed / max(1, len(bed.regions)))

    def _read(self, universe: Universe) -> tuple[Universe, Bed]:
        own = self._own or universe.assembly
        with assembly_checked(self.label, self._target):
            bed = read_bed(
                self._frame,
                assembly=own,
                rename_chroms=self._options.rename_chroms,
                on_bad_line=self._options.on_bad_line,
            )
        return self._target.universe_for(own, universe, self.label), bed

    def _guess(self) -> AssemblyGuess:
        rows = frame_rows(self._frame)
        return guess_assembly(rows.names, rows.chroms.astype(np.int64), rows.ends)


class BlockSource:
    """Token sets in memory: over `universe` where that is known, else over that of the build."""

    def __init__(
        self,
        block: SetBlock,
        kind: Literal["cell", "bed"],
        target: Target,
        *,
        label: str,
        dataset: str,
        universe: Universe | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        """`origin` says what the block was made of; without it, its content does. BED sets get the md5 of their tokens.

        Raises BadData when the universe's assembly has no way to the atlas'.
        """
        if kind == "bed" and "md5" not in block.metadata.column_names:
            digests = [
                hashlib.md5(block.sets[row].data, usedforsecurity=False).hexdigest() for row in range(len(block))
            ]
            block = replace(block, metadata=block.metadata.append_column("md5", pa.array(digests, pa.string())))
        if universe is not None:
            target.named(label, universe.assembly.name)
        self.kind: Literal["cell", "bed"] = kind
        self.label, self.dataset = label, dataset
        self._block, self._target, self._universe, self._origin = block, target, universe, origin
        self.schema: pa.Schema = block.metadata.schema
        self.n_sets: int | None = len(block)
        self.notes: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What the block was made of, or the digest of its content."""
        if self._origin is not None:
            return {"block": self._origin}
        digest = hashlib.sha256("\0".join(self._block.names).encode("utf-8", "replace"))
        for array in (self._block.sets.offsets, self._block.sets.tokens, self._block.n_source, self._block.n_placed):
            digest.update(np.ascontiguousarray(array).data)
        return {"block": [digest.hexdigest(), table_digest(self._block.metadata)]}

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        """The sets from `start` on. Raises BadData for tokens that the universe does not have."""
        own = self._universe or universe
        asked = self._target.universe_for(own.assembly, universe, self.label)
        if self._block.sets.tokens.max(initial=-1) >= len(own):
            raise BadData(
                f"token {self._block.sets.tokens.max()} is not one of the {len(own):,} of the universe",
                code="SOURCE-TOKENS",
                file=self.label,
                fix="tokenize the sets over the universe of the atlas",
            )
        mapping = _mapping(asked, own)
        sizes = np.cumsum(self._block.sets.sizes)
        while start < len(self._block):
            before = sizes[start - 1] if start else 0
            stop = int(np.searchsorted(sizes, before + BLOCK_TOKENS, side="right"))
            stop = min(max(stop, start + 1), start + BLOCK_ROWS)
            block = self._block.slice(start, stop)
            yield block if mapping is None else remapped(block, mapping)
            self.notes, start = left_out(asked), stop

    def estimate(self, universe: Universe | None = None) -> Estimate:
        """Count what is there."""
        n_source = int(self._block.n_source.sum())
        coverage = None if universe is None else int(self._block.n_placed.sum()) / max(1, n_source)
        return Estimate(self.n_sets, len(self._block.sets.tokens), 0, coverage)


def simulated_beds(simulation: Simulation, target: Target) -> BlockSource:
    """The BED sets of a simulation."""
    origin = {"simulation": asdict(simulation), "part": "beds"}
    return BlockSource(
        simulation.beds(),
        "bed",
        target,
        label="simulation",
        dataset="simulated",
        universe=simulation.universe,
        origin=origin,
    )


def remapped(block: SetBlock, mapping: TokenSets) -> SetBlock:
    """A block over another universe: each token becomes those that `mapping` gives for it."""
    tokens = block.sets.tokens.astype(np.int64)
    rows = np.repeat(np.arange(len(block)), block.sets.sizes)
    count = mapping.sizes[tokens]
    sets = TokenSets.from_pairs(np.repeat(rows, count), mapping.take(tokens).tokens, len(block))
    placed = np.bincount(rows[count > 0], minlength=len(block))
    return replace(block, sets=sets, n_placed=placed)


def _mapping(asked: Universe, own: Universe) -> TokenSets | None:
    """The tokens of `asked` for each token of `own`; None when they are the same."""
    return None if asked.digest == own.digest else asked.token_map(own.regions)

"""A simulated atlas of any size as a stream: cells, bulk BED sets and paired RNA, all from a seed, nothing measured.

Cells come in blocks that are drawn alone from (seed, block), so that a stream starts anywhere and memory is bounded
by the block. A longer simulation begins with the cells of a shorter one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from chromseek.data.errors import BadArgument
from chromseek.data.genes import Genes
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.simulate_model import SLOTS, TISSUES, Library, Model, make_model
from chromseek.data.tokens import SetBlock, TokenSets, offsets_of
from chromseek.data.universe import Universe

ORIGIN = "simulated by chromseek"
ASSAYS = ("ATAC", "DNase", "H3K27ac")
_DEPTH_SPREAD = 0.5  # standard deviation of the logarithm of a cell's draws
_STATE, _TOKENS, _RNA, _BEDS, _GENES = 1, 2, 3, 4, 5  # one stream of random numbers each; the model's is 0


@dataclass(frozen=True, slots=True)
class _State:
    """What the cells of one block are, before anything is drawn from their urns."""

    libraries: NDArray[np.int64]  # (n)
    types: NDArray[np.int64]  # (n)
    urns: NDArray[np.int64]  # (n, slots)
    shares: NDArray[np.float64]  # (n, slots) of the cell's draws, sum 1
    draws: NDArray[np.float64]  # (n) expected
    tsse: NDArray[np.float32]  # (n)


@dataclass(frozen=True)
class Simulation:
    """An atlas that does not exist: its size and its seed say all about it."""

    n_cells: int = 20_000
    n_regions: int = 100_000
    n_beds: int = 200
    n_types: int = 16
    n_donors: int = 6
    assembly: str = "hg38"
    tokens_per_cell: int = 2000  # median
    n_genes: int = 2000
    contrast: float = 1.0  # how much of a cell is its type and lineage; higher is easier
    seed: int = 0

    def __post_init__(self) -> None:
        sizes: dict[str, float] = {name: getattr(self, name) for name in ("n_cells", "n_beds", "n_genes")}
        sizes |= {name: getattr(self, name) - 1 for name in ("n_types", "n_donors", "tokens_per_cell")}
        sizes["contrast"] = self.contrast
        for name, size in sizes.items():
            if not size >= 0:
                raise BadArgument(f"{name} is {getattr(self, name)}", code="SIMULATE-SIZE", fix="give a larger number")
        most = sum(assembly(self.assembly).lengths) // 1000
        if not max(100, self.n_genes, 4 * self.tokens_per_cell) <= self.n_regions <= most:
            raise BadArgument(
                f"n_regions is {self.n_regions}",
                code="SIMULATE-REGIONS",
                got=self.n_regions,
                fix=f"between 100 and {most}, at least 4 for each token of a cell and 1 for each gene",
            )

    @cached_property
    def model(self) -> Model:
        """Regions, tree of types, libraries and programmes: what all blocks share."""
        return make_model(
            assembly(self.assembly),
            n_regions=self.n_regions,
            n_types=self.n_types,
            n_donors=self.n_donors,
            seed=self.seed,
        )

    @cached_property
    def universe(self) -> Universe:
        """The simulated regions, sorted, none sharing a base."""
        return Universe(self.model.regions)

    @property
    def types(self) -> pa.Table:
        """The tree: one row per cell type, with its lineage."""
        tree = self.model.tree
        lineages = [tree.lineages[code] for code in tree.lineage]
        return pa.table({"cell_type": list(tree.types), "lineage": lineages})

    @property
    def held_out_donor(self) -> str:
        """The donor that `write` keeps out of the atlas as a query."""
        return _donors(self.n_donors)[-1]

    def cells(self, *, block_size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[SetBlock]:
        """Rows start..stop in blocks: token sets, and cell_type, lineage, donor, tissue, batch, age, sex, tsse."""
        for block, _ in self._stream(block_size, start, stop, counted=False):
            yield block

    def counted_cells(
        self, *, block_size: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[SetBlock, NDArray[np.uint8]]]:
        """As `cells`, with the fragments of each token, (tokens of the block)."""
        return self._stream(block_size, start, stop, counted=True)

    def _stream(
        self, block_size: int, start: int, stop: int | None, *, counted: bool
    ) -> Iterator[tuple[SetBlock, NDArray[np.uint8]]]:
        if block_size < 1 or start < 0:
            message = f"block_size is {block_size}, start is {start}"
            raise BadArgument(message, code="SIMULATE-BLOCK", fix="give a block_size from 1 and a start from 0")
        stop = self.n_cells if stop is None else min(stop, self.n_cells)
        size = self._block_cells
        known, number = self._draw(start // size, counted=counted), start // size
        for first in range(start, stop, block_size):
            last = min(first + block_size, stop)
            pieces = []
            for block in range(first // size, (last - 1) // size + 1):
                if block != number:
                    number, known = block, self._draw(block, counted=counted)
                pieces.append(_cut(*known, max(first - block * size, 0), min(last - block * size, size)))
            yield _join(pieces)

    @cached_property
    def _block_cells(self) -> int:
        """Cells drawn together: their keys fit 32 bits, and their draws a few megabytes."""
        return int(max(1, min(4096, 1_000_000 // self.tokens_per_cell, (2**32 - 1) // self.n_regions)))

    @cached_property
    def _draws(self) -> float:
        """The draws after which a typical cell has `tokens_per_cell` different regions."""
        chances = self.model.type_chances(0, self._shares)
        low, high = float(self.tokens_per_cell), 100.0 * self.tokens_per_cell
        for _ in range(30):
            middle = (low * high) ** 0.5
            found = -np.expm1(-middle * chances).sum()
            low, high = (middle, high) if found < self.tokens_per_cell else (low, middle)
        return low

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """The share of each slot in a typical cell's draws before noise, (slots)."""
        typical = {"lineage": 0.04, "type": 0.05, "sibling": 0.0, "donor": 0.04, "tissue": 0.03, "batch": 0.03}
        typical["lineage"] *= self.contrast
        typical["type"] *= self.contrast
        typical["ambient"] = 0.0
        typical["common"] = max(0.0, 1 - sum(typical.values()))
        total = sum(typical.values())
        return np.array([typical[slot] / total for slot in SLOTS])

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, stream, number])))

    def _state(self, block: int) -> _State:
        """Draw what the cells of a block are."""
        rng, n, model = self._random(_STATE, block), self._block_cells, self.model
        designs = model.libraries
        libraries = _pick(_column(designs, "share")[None, :].repeat(n, 0), rng)
        types = _pick(np.stack([lib.types for lib in designs])[libraries], rng)
        siblings = model.tree.sibling[types]
        shares = self._shares * rng.lognormal(0, 0.25, (n, len(SLOTS)))
        lean = rng.beta(0.5, 3.0, n) * 0.6  # most cells are clean, some lie between two types
        own, sibling = SLOTS.index("type"), SLOTS.index("sibling")
        shares[:, sibling], shares[:, own] = shares[:, own] * lean, shares[:, own] * (1 - lean)
        shares /= shares.sum(axis=1, keepdims=True)
        ambient = np.clip(_column(designs, "ambient")[libraries] * rng.lognormal(0, 0.4, n), 0, 0.7)
        shares *= 1 - ambient[:, None]
        shares[:, SLOTS.index("ambient")] = ambient
        draws = self._draws * _column(designs, "depth")[libraries] * rng.lognormal(0, _DEPTH_SPREAD, n)
        tsse = np.maximum(22 * (1 - ambient) ** 3 + rng.normal(0, 1.5, n), 1).astype(np.float32)
        return _State(libraries, types, model.urns_of(types, siblings, libraries), shares, draws, tsse)

    def _draw(self, block: int, *, counted: bool) -> tuple[SetBlock, NDArray[np.uint8]]:
        """Draw a whole block: the cells' balls from the urns, made unique; their counts only where asked for."""
        state, model, rng = self._state(block), self.model, self._random(_TOKENS, block)
        n = len(state.types)
        reps = rng.poisson(state.draws[:, None] * state.shares)
        flat, urns = reps.ravel(), state.urns.ravel()
        sizes = (np.diff(model.bounds)[urns] * (1 - 2.0**-22)).astype(np.float32)  # never rounds into the next urn
        balls = (rng.random(int(flat.sum()), dtype=np.float32) * np.repeat(sizes, flat)).astype(np.int64)
        balls += np.repeat(model.bounds[urns], flat)
        drawn = reps.sum(axis=1)
        bases = np.arange(n + 1, dtype=np.uint32) * np.uint32(self.n_regions)
        keys = np.repeat(bases[:-1], drawn) + model.balls[balls].astype(np.uint32)
        keys.sort()
        fresh = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        times = np.empty(0, np.uint8)
        if counted:
            times = np.minimum(np.diff(np.flatnonzero(fresh), append=len(keys)), 255).astype(np.uint8)
        keys = keys[fresh]
        offsets = np.searchsorted(keys, bases).astype(np.int64)
        tokens = (keys - np.repeat(bases[:-1], np.diff(offsets))).astype(np.int32)
        sets = TokenSets(offsets, tokens)
        names = [f"sim{self.seed}-{row:08d}" for row in range(block * n, block * n + n)]
        return SetBlock(names, sets, sets.sizes, sets.sizes, drawn, self._metadata(state)), times

    def _metadata(self, state: _State) -> pa.Table:
        """The columns of a block's cells."""
        model = self.model
        tree = model.tree
        donors, tissues, batches = model.design[state.libraries].T
        n_batches = int(model.design[:, 2].max()) + 1
        return pa.table(
            {
                "cell_type": _category(state.types, tree.types),
                "lineage": _category(tree.lineage[state.types], tree.lineages),
                "donor": _category(donors, _donors(self.n_donors)),
                "tissue": _category(tissues, TISSUES),
                "batch": _category(batches, tuple(f"run {k + 1}" for k in range(n_batches))),
                "age": model.ages[donors],
                "sex": _category(model.sexes[donors], ("female", "male")),
                "tsse": state.tsse,
            }
        )

    def beds(self) -> SetBlock:
        """Bulk sets, type by type and assay by assay: cell_type, lineage, assay, tissue.

        `n_source` counts the few peaks too that lie outside the universe.
        """
        tree, n_types = self.model.tree, self.n_types
        bias = self._random(_BEDS, 0).normal(0, 0.6, (len(ASSAYS), self.n_regions)).astype(np.float32)
        first, share = self.model.first["tissue"], self._shares[SLOTS.index("tissue")]
        by_tissue = [share * self.model.chances(first + tissue) for tissue in range(len(TISSUES))]
        sets: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * self.n_beds
        tissues, sources = np.zeros(self.n_beds, np.int64), np.zeros(self.n_beds, np.int64)
        numbers = np.arange(self.n_beds)
        types, assays = numbers % n_types, numbers // n_types % len(ASSAYS)
        for code in range(min(n_types, self.n_beds)):
            chances = self.model.type_chances(code, self._shares)
            for row in numbers[types == code].tolist():
                rng = self._random(_BEDS, row + 1)
                tissues[row] = rng.integers(len(TISSUES))
                score = np.log((chances + by_tissue[tissues[row]]) * self.n_regions + 0.05)
                size = int(np.clip(rng.lognormal(np.log(0.12), 0.35), 0.02, 0.4) * self.n_regions)
                noisy = score + bias[assays[row]] + rng.normal(0, 0.5, self.n_regions)
                sets[row] = np.sort(np.argpartition(noisy, -size)[-size:]).astype(np.int32)
                sources[row] = size + rng.binomial(size, 0.04)
        offsets = offsets_of([len(tokens) for tokens in sets])
        tokens = TokenSets(offsets, np.concatenate([np.empty(0, np.int32), *sets]))
        replicate = numbers // (n_types * len(ASSAYS)) + 1
        names = [
            f"{tree.types[t]} {ASSAYS[a]} {TISSUES[s]} {r}".replace(" ", "_")
            for t, a, s, r in zip(types, assays, tissues, replicate, strict=True)
        ]
        table = {
            "cell_type": _category(types, tree.types),
            "lineage": _category(tree.lineage[types], tree.lineages),
            "assay": _category(assays, ASSAYS),
            "tissue": _category(tissues, TISSUES),
        }
        return SetBlock(names, tokens, sources, tokens.sizes, None, pa.table(table))

    @cached_property
    def genes(self) -> Genes:
        """Simulated genes, each of which starts in a region that many cells open; no real gene."""
        rng, regions = self._random(_GENES, 0), self.model.regions
        openness = self.model.chances(0) + 1e-9
        promoters = rng.choice(self.n_regions, self.n_genes, replace=False, p=openness / openness.sum())
        at = regions.take(np.sort(promoters))
        centres = ((at.starts.astype(np.int64) + at.ends) // 2).astype(np.int64)
        forward = rng.random(self.n_genes) < 0.5
        lengths = rng.lognormal(np.log(20_000), 1.0, self.n_genes).astype(np.int64) + 200
        ends = np.array(at.assembly.lengths)[at.chroms]
        starts = np.where(forward, centres, np.maximum(centres + 1 - lengths, 0))
        stops = np.where(forward, np.minimum(centres + lengths, ends), centres + 1)
        bodies = Regions(at.assembly, at.chroms, starts.astype(np.int32), stops.astype(np.int32))
        symbols = np.array([f"SIM{number + 1:05d}" for number in range(self.n_genes)], dtype=object)
        return Genes(symbols, bodies, forward)

    def rna(self, start: int = 0, stop: int | None = None) -> sparse.csr_matrix:
        """RNA counts of cells start..stop, (cells, genes): a gene follows the regions within 100 kb of its start."""
        stop = self.n_cells if stop is None else min(stop, self.n_cells)
        size, parts = self._block_cells, [sparse.csr_matrix(np.empty((0, self.n_genes), np.int32))]
        for block in range(start // size, -(-stop // size)):
            state, rng = self._state(block), self._random(_RNA, block)
            weights = np.zeros((size, len(self._activity)))
            np.add.at(weights, (np.arange(size)[:, None], state.urns), state.shares)
            rates = weights @ self._activity * rng.lognormal(0, 0.4, (size, 1))
            counts = rng.poisson(rates)[max(start - block * size, 0) : max(stop - block * size, 0)]
            parts.append(sparse.csr_matrix(counts.astype(np.int32)))
        return sparse.csr_matrix(sparse.vstack(parts))

    @cached_property
    def _activity(self) -> NDArray[np.float64]:
        """The RNA that each urn makes of each gene, (urns, genes): the mean openness of the gene's regions."""
        regions, tss = self.model.regions, self.genes.tss
        at = self.universe.tokenize(tss)[0].astype(np.int64)  # genes are in the order of their promoters
        near = np.clip(at[:, None] + np.arange(-2, 3), 0, self.n_regions - 1)
        apart = np.abs(regions.starts[near].astype(np.int64) - tss.starts[:, None])
        near = np.where((apart < 100_000) & (regions.chroms[near] == tss.chroms[:, None]), near, at[:, None])
        base = self._random(_GENES, 1).lognormal(-1.0, 1.0, self.n_genes)
        urns = range(len(self.model.bounds) - 1)
        return np.stack([self.model.chances(urn)[near].mean(axis=1) * self.n_regions * base for urn in urns])

    def write(self, folder: str | Path, *, hold_out_donor: bool = True, rna: bool = False) -> dict[str, Path]:
        """Write the atlas's inputs as files, in bounded memory, each marked as simulated.

        Gives the paths of universe, cells, query (the held-out donor), beds (a folder), manifest, genes and rna.
        Raises StorageError when the folder holds anything.
        """
        from chromseek.data.simulate_files import write  # h5py and anndata only where files are written

        return write(self, Path(folder), hold_out_donor=hold_out_donor, rna=rna)


def toy(seed: int = 0) -> Simulation:
    """A simulation for tests: seconds to build, types still told apart."""
    return Simulation(
        n_cells=600,
        n_regions=3000,
        n_beds=24,
        n_types=8,
        n_donors=4,
        tokens_per_cell=120,
        n_genes=120,
        contrast=3.3,
        seed=seed,
    )


def _column(libraries: tuple[Library, ...], name: str) -> NDArray[np.float64]:
    return np.array([getattr(library, name) for library in libraries])


def _donors(n: int) -> tuple[str, ...]:
    return tuple(f"D{number + 1}" for number in range(n))


def _pick(shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Pick one column per row in proportion to its shares, (n)."""
    edges = np.cumsum(shares, axis=1)
    points = rng.random(len(shares)) * edges[:, -1]
    picked: NDArray[np.int64] = (points[:, None] >= edges[:, :-1]).sum(axis=1)
    return picked


def _category(codes: NDArray[np.int64], names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(names))


def _cut(block: SetBlock, times: NDArray[np.uint8], start: int, stop: int) -> tuple[SetBlock, NDArray[np.uint8]]:
    offsets = block.sets.offsets
    return block.slice(start, stop), times[offsets[start] : offsets[stop]]


def _join(pieces: list[tuple[SetBlock, NDArray[np.uint8]]]) -> tuple[SetBlock, NDArray[np.uint8]]:
    """Put consecutive pieces together."""
    if len(pieces) == 1:
        return pieces[0]
    blocks = [block for block, _ in pieces]
    fragments = [block.n_fragments for block in blocks if block.n_fragments is not None]
    joined = SetBlock(
        [name for block in blocks for name in block.names],
        TokenSets.concat([block.sets for block in blocks]),
        np.concatenate([block.n_source for block in blocks]),
        np.concatenate([block.n_placed for block in blocks]),
        np.concatenate(fragments),
        pa.concat_tables([block.metadata for block in blocks]),
    )
    return joined, np.concatenate([times for _, times in pieces])

"""What a simulated atlas is made of: regions on a genome, a tree of types, donors, libraries, and their programmes.

A programme is an urn: region numbers, each repeated in proportion to how often the programme opens it. A cell is a
number of draws from a few urns (what all cells share, its lineage, its type, a sibling type, its donor, tissue and
batch, and ambient noise); a BED set is the top of the same sum. All of it is drawn from the seed, nothing is measured.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chromseek.data.genome import Assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import offsets_of

# In this order, so that a few types already make several lineages with more than one type each.
_CATALOGUE = (
    ("CD4 naive T", "T and NK"),
    ("B naive", "B"),
    ("CD14 monocyte", "Myeloid"),
    ("HSC", "Progenitor"),
    ("CD8 T", "T and NK"),
    ("B memory", "B"),
    ("CD16 monocyte", "Myeloid"),
    ("GMP", "Progenitor"),
    ("NK", "T and NK"),
    ("Plasma", "B"),
    ("Dendritic", "Myeloid"),
    ("Erythroid", "Progenitor"),
    ("CD4 memory T", "T and NK"),
    ("Macrophage", "Myeloid"),
    ("Fibroblast", "Stromal"),
    ("Endothelial", "Stromal"),
    ("Treg", "T and NK"),
    ("Epithelial basal", "Epithelial"),
    ("Epithelial luminal", "Epithelial"),
    ("Smooth muscle", "Stromal"),
)
TISSUES = ("blood", "bone marrow", "spleen", "lung")
SLOTS = ("common", "ambient", "lineage", "type", "sibling", "donor", "tissue", "batch")  # the urns one cell draws from


@dataclass(frozen=True, slots=True)
class Library:
    """One tissue of one donor, as sequenced: its depth, its noise, and which cell types it holds."""

    donor: int
    tissue: int
    batch: int
    share: float  # of all cells
    depth: float  # factor
    ambient: float  # share of a typical cell's draws
    types: NDArray[np.float64]  # (types) shares, sum 1


@dataclass(frozen=True, slots=True)
class Tree:
    """Cell types and the lineage of each, with one sibling that a cell may lean towards."""

    types: tuple[str, ...]
    lineages: tuple[str, ...]
    lineage: NDArray[np.int64]  # (types) position in lineages
    sibling: NDArray[np.int64]  # (types) a type of the same lineage; itself where it has none

    @classmethod
    def of(cls, n_types: int) -> "Tree":
        """Take the first types of the catalogue; further rounds through it make numbered subtypes."""
        rounds = [(k // len(_CATALOGUE) + 1, *_CATALOGUE[k % len(_CATALOGUE)]) for k in range(n_types)]
        types = tuple(name if turn == 1 else f"{name} {turn}" for turn, name, _ in rounds)
        lineages = tuple(dict.fromkeys(lineage for _, _, lineage in rounds))
        lineage = np.array([lineages.index(name) for _, _, name in rounds])
        sibling = np.arange(n_types)
        for code in range(len(lineages)):
            members = np.flatnonzero(lineage == code)
            sibling[members] = np.roll(members, 1)
        return cls(types, lineages, lineage, sibling)


@dataclass(frozen=True)
class Model:
    """Everything that all blocks of one simulation share. Urns lie end to end, in the order of SLOTS."""

    regions: Regions
    tree: Tree
    libraries: tuple[Library, ...]
    balls: NDArray[np.int32]  # (b) region numbers
    bounds: NDArray[np.int64]  # (urns + 1) where each urn starts in balls
    first: dict[str, int]  # slot → its first urn
    ages: NDArray[np.float32]  # (donors)
    sexes: NDArray[np.int64]  # (donors) 0 female, 1 male

    def urns_of(
        self, types: NDArray[np.int64], siblings: NDArray[np.int64], libraries: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The urn of each slot for each cell, (n, slots)."""
        first = self.first
        donor, tissue, batch = self.design[libraries].T
        none = np.zeros(len(types), np.int64)
        columns = (none, none + 1, self.tree.lineage[types], types, siblings, donor, tissue, batch)
        starts = [0, 0, first["lineage"], first["type"], first["type"], first["donor"], first["tissue"], first["batch"]]
        urns: NDArray[np.int64] = np.stack(columns, axis=1) + np.array(starts)
        return urns

    @cached_property
    def design(self) -> NDArray[np.int64]:
        """Donor, tissue and batch of each library, (libraries, 3)."""
        return np.array([(lib.donor, lib.tissue, lib.batch) for lib in self.libraries])

    def chances(self, urn: int) -> NDArray[np.float64]:
        """How likely one draw from an urn is each region, (regions)."""
        balls = self.balls[self.bounds[urn] : self.bounds[urn + 1]]
        return np.bincount(balls, minlength=len(self.regions)) / len(balls)

    def type_chances(self, code: int, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """How likely a draw of a clean cell of one type is each region, (regions); `shares` are those of SLOTS."""
        shared = {"common": 0, "lineage": self.first["lineage"] + int(self.tree.lineage[code])}
        urns = {**shared, "type": self.first["type"] + code}
        weights = {slot: shares[SLOTS.index(slot)] for slot in urns}
        total = sum(weights.values())
        return sum((weights[slot] / total * self.chances(urn) for slot, urn in urns.items()), np.zeros(1))


def make_model(assembly: Assembly, *, n_regions: int, n_types: int, n_donors: int, seed: int) -> Model:
    """Draw the regions, the tree, the design and every programme from the seed."""
    rng = np.random.default_rng([seed, 0])
    regions = place_regions(assembly, n_regions, rng)
    tree = Tree.of(n_types)
    n_batches = max(2, (n_donors + 1) // 2)
    libraries = _libraries(n_types, n_donors, n_batches, rng)
    urns = [_urn(np.arange(n_regions), rng.lognormal(0, 1.1, n_regions), 2), np.arange(n_regions, dtype=np.int32)]
    first = {"common": 0, "ambient": 1}
    plan = [("lineage", len(tree.lineages), 0.03), ("type", n_types, 0.03), ("donor", n_donors, 0.04)]
    for slot, count, share in [*plan, ("tissue", len(TISSUES), 0.04), ("batch", n_batches, 0.04)]:
        first[slot] = len(urns)
        urns += [_programme(n_regions, share, rng) for _ in range(count)]
    bounds = offsets_of([len(urn) for urn in urns])
    ages = rng.uniform(20, 80, n_donors).round(1).astype(np.float32)
    sexes = rng.permutation(np.arange(n_donors) % 2)
    return Model(regions, tree, libraries, np.concatenate(urns), bounds, first, ages, sexes)


def place_regions(assembly: Assembly, n: int, rng: np.random.Generator) -> Regions:
    """Place `n` regions that share no base along the chromosomes, clustered as peaks are; sorted.

    Widths are log-normal with median 600. The logarithm of the gaps is a slow, a fast and a white noise, fitted to
    10x peaks: quartiles of a factor 8, correlation 0.4 between neighbours and 0.1 at 20 apart.
    """
    lengths = np.array(assembly.lengths[:-1])  # no regions on chrM
    weight = lengths * rng.lognormal(0, 0.25, len(lengths))
    weight[-1] *= 0.2  # chrY
    edges = np.round(np.cumsum(weight) / weight.sum() * n).astype(np.int64)
    counts = np.diff(edges, prepend=0)
    field = wander(n, 0.97, rng) * 0.7 + wander(n, 0.7, rng) * 0.77 + rng.standard_normal(n) * 1.1
    widths = np.clip(rng.lognormal(np.log(600), 0.6, n), 150, 5000).astype(np.int64)
    starts = np.empty(n, np.int64)
    for length, stop, count in zip(lengths, edges, counts, strict=True):
        rows = slice(stop - count, stop)
        shrink = max(1.0, widths[rows].sum() / (0.4 * length))  # dense universes get narrower regions
        widths[rows] = np.maximum(widths[rows] / shrink, 1)
        taken = offsets_of(widths[rows])
        gaps = np.append(np.exp(field[rows]), 1.0)
        places = np.cumsum(gaps)[:-1] / gaps.sum() * (length - taken[-1])
        starts[rows] = places.astype(np.int64) + taken[:-1]
    chroms = np.repeat(np.arange(len(lengths), dtype=np.int16), counts)
    return Regions(assembly, chroms, starts.astype(np.int32), (starts + widths).astype(np.int32))


def wander(n: int, memory: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Standard normal noise in which neighbours are correlated by `memory`, (n)."""
    from scipy.signal import lfilter  # half a second to import, and every reader of inputs imports this file

    steps = rng.standard_normal(n) * np.sqrt(1 - memory**2)
    if n:
        steps[0] /= np.sqrt(1 - memory**2)
    return np.asarray(lfilter([1.0], [1.0, -memory], steps))


def _programme(n: int, share: float, rng: np.random.Generator) -> NDArray[np.int32]:
    """An urn over a share of the regions, which come in runs along the genome."""
    size = min(n, max(5, round(share * n)))
    chosen = np.sort(np.argpartition(wander(n, 0.8, rng) + rng.standard_normal(n) * 0.7, n - size)[n - size :])
    return _urn(chosen, rng.lognormal(0, 0.8, size), 4)


def _urn(regions: NDArray[np.int64], weights: NDArray[np.float64], slots: int) -> NDArray[np.int32]:
    """Fill an urn with `slots` balls a region on average, in proportion to the weights, (balls)."""
    edges = np.round(np.cumsum(weights) / weights.sum() * slots * len(regions)).astype(np.int64)
    return np.repeat(regions.astype(np.int32), np.diff(edges, prepend=0))


def _libraries(n_types: int, n_donors: int, n_batches: int, rng: np.random.Generator) -> tuple[Library, ...]:
    """One library per donor and tissue; types run from common to rare, and differ by tissue and donor."""
    common = rng.permutation(np.exp(-2.0 * np.arange(n_types) / max(1, n_types - 1)))
    by_tissue = rng.lognormal(0, 0.7, (len(TISSUES), n_types))
    by_donor = rng.lognormal(0, 0.3, (n_donors, n_types))
    sizes = rng.lognormal(0, 0.4, (n_donors, len(TISSUES)))
    sizes /= sizes.sum()
    depths = rng.lognormal(0, 0.25, sizes.shape)
    depths /= np.exp((sizes * np.log(depths)).sum())  # the typical cell's depth stays what was asked for
    libraries = []
    for donor in range(n_donors):
        for tissue in range(len(TISSUES)):
            types = common * by_tissue[tissue] * by_donor[donor]
            ambient = float(np.clip(rng.lognormal(np.log(0.12), 0.4), 0.02, 0.5))
            depth, share = float(depths[donor, tissue]), float(sizes[donor, tissue])
            batch = (donor + tissue) % n_batches
            libraries.append(Library(donor, tissue, batch, share, depth, ambient, types / types.sum()))
    return tuple(libraries)

"""LSI: latent semantic indexing of chromatin accessibility, the plain baseline and the default encoder.

The log TF-IDF of a cell has the weight log(1 + 0.2 · idf(t)) at each of its tokens t, where idf(t) = N / df(t) over
the N cells of the sample; rows are scaled to length 1, so that depth does not enter, and reduced by a randomised
truncated SVD (Halko et al. 2011; LSI for scATAC: Cusanovich et al. 2015). The first component is dropped where it
tracks depth. A vector is the weighted sum of its tokens' components, scaled to length 1, less the mean of its
kind, scaled again. In a BED set, which holds hundreds of times the tokens of a cell, the log is in its linear part:
its weights are idf(t) itself. A region is its tokens' components alone.

The factor 0.2 was chosen among 0.01 .. 50 by nearest-neighbour accuracy averaged over six public labelled sets, with
the SVD fitted on each by itself; benchmarks/README.md has the table.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from chromseek.data.errors import BadData
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import KINDS, Arrays, Kind, centred, require, unit
from chromseek.encoder.devices import device_named, dtype_named
from chromseek.encoder.placing import kind_means

DIM = 64
FACTOR = 0.2
DEPTH_CORRELATION = 0.5  # a first component correlated with log depth beyond this is dropped
MIN_FIT = 3  # sets with tokens, at the least
PIECE = 16_384  # tokens of a set summed at once: weights and components are at most 1, so float16 holds the sum
PLACE_BLOCK = 1_000_000  # tokens summed at a time


class LSI:
    """Log TF-IDF and truncated SVD over a universe."""

    name = "lsi"
    context = None

    def __init__(
        self,
        universe: Universe,
        idf: NDArray[np.float32],  # (regions), 0 where the sample never had the region
        components: NDArray[np.floating[Any]],  # (regions, dim), none above 1; kept as float16, read twice as fast
        means: NDArray[np.float32],  # (3, dim): cell, region, bed
    ) -> None:
        fix = "copy the encoder folder again"
        require(idf.shape == (len(universe),), "idf does not fit the universe", fix, idf.shape)
        require(components.shape[0] == len(universe), "components do not fit the universe", fix, components.shape)
        require(means.shape == (len(KINDS), components.shape[1]), "means do not fit the components", fix, means.shape)
        self.universe = universe
        self._idf = torch.from_numpy(np.ascontiguousarray(idf, dtype=np.float32))
        self._components = torch.from_numpy(np.ascontiguousarray(components)).half()
        self._means = np.ascontiguousarray(means, dtype=np.float32)
        weights = {"cell": torch.log1p(FACTOR * self._idf), "bed": self._idf}
        self._weights = {kind: (w / w.max().clamp(min=1e-9)).half() for kind, w in weights.items()}

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return int(self._components.shape[1])

    @classmethod
    def fit(
        cls, cells: TokenSets, beds: TokenSets, universe: Universe, *, dim: int | None = None, seed: int = 0,
        device: str = "cpu",  # noqa: ARG003 - the SVD runs on the CPU
    ) -> "LSI":  # fmt: skip
        """Fit on a sample of cells; without cells, on the BED sets.

        Regions that only BED sets have get the mean vector of these sets. Raises BadData when fewer than
        three sets have a token.
        """
        cells, beds = (sets.take(np.flatnonzero(sets.sizes)) for sets in (cells, beds))
        sample = cells if len(cells) >= MIN_FIT else TokenSets.concat([cells, beds])
        if len(sample) < MIN_FIT:
            raise BadData(
                f"{len(sample)} sets with tokens are too few to fit an encoder on",
                code="LSI-FEW",
                got=len(sample),
                fix="give more cells or BED sets, or a saved encoder; were they made for the universe's assembly?",
            )
        df = np.bincount(sample.tokens, minlength=len(universe))
        idf = np.divide(len(sample), df, out=np.zeros(len(df)), where=df > 0).astype(np.float32)
        matrix = _log_tf_idf(sample, idf)
        dim = dim or DIM
        rank = min(dim + 1, *(n - 1 for n in matrix.shape))
        if rank < 1:
            raise BadData(
                f"{len(sample)} sets over {len(universe)} regions leave nothing to tell them apart by",
                code="LSI-FEW",
                got=len(universe),
                fix="give a universe of more regions",
            )
        left, _, right = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
        first = _depth_component(left[:, 0], sample.sizes) if rank > 1 else 0
        components = np.ascontiguousarray(right[first : first + dim].T)
        components /= np.abs(components).max()
        encoder = cls(universe, idf, components, np.zeros((len(KINDS), components.shape[1]), np.float32))
        encoder._means = kind_means(encoder._project, cells, beds, seed=seed)
        encoder._place_unseen(beds)
        return encoder

    @classmethod
    def from_parts(cls, config: dict[str, Any], arrays: Arrays, universe: Universe) -> "LSI":
        """Make the encoder again of what `config` and `arrays` gave."""
        missing = [key for key in ("idf", "components", "means") if key not in arrays]
        require(not missing, f"the weights lack {', '.join(missing)}", "copy the encoder folder again")
        require(config.get("factor") == FACTOR, "made with another factor", "fit it again", config.get("factor"))
        return cls(universe, arrays["idf"], arrays["components"], arrays["means"])

    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"factor": FACTOR}

    def arrays(self) -> Arrays:
        """The weights."""
        return {"idf": self._idf.numpy(), "components": self._components.numpy(), "means": self._means}

    def weighted_components(self) -> NDArray[np.float32]:
        """What each token of a cell adds to its vector, (regions, dim)."""
        rows: NDArray[np.float32] = (self._components * self._weights["cell"][:, None]).float().numpy()
        return rows

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into unit vectors, (n, dim)."""
        return centred(self._project(sets, kind), self._means, kind)

    def on(self, device: str, dtype: str) -> "LSI":
        """Itself: its table fits the CPU, whose memory it is bound by."""
        dtype_named(dtype, device_named(device))
        return self

    def placed(self, cells: TokenSets, beds: TokenSets, *, seed: int = 0) -> "LSI":  # noqa: ARG002
        """Itself: the fit has placed the kinds."""
        return self

    def _project(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Weigh, sum and scale to length 1; no mean is taken off, (n, dim)."""
        if len(sets.tokens) == 0:
            return np.zeros((len(sets), self.dim), np.float32)
        tokens = torch.from_numpy(sets.tokens)
        weights = None if kind == "region" else self._weights[kind].index_select(0, tokens)
        owners, starts = pieces(sets.offsets)
        sums = torch.nn.functional.embedding_bag(
            tokens, self._components, torch.from_numpy(starts), mode="sum", per_sample_weights=weights
        ).float()
        if len(owners) > len(sets):
            sums = torch.zeros(len(sets), self.dim).index_add_(0, torch.from_numpy(owners), sums)
        return unit(sums.numpy())

    def _place_unseen(self, beds: TokenSets) -> None:
        """Give each region that no sampled cell has the mean vector of the BED sets that have it.

        Seen from the mean of the regions, it lies where these sets lie seen from the mean of the BED sets.
        """
        vectors = torch.from_numpy(self.encode(beds, "bed"))
        unseen = self._idf[torch.from_numpy(beds.tokens).long()] == 0
        tokens = torch.from_numpy(beds.tokens).long()[unseen]
        owners = torch.repeat_interleave(torch.arange(len(beds)), torch.from_numpy(beds.sizes))[unseen]
        regions, places = torch.unique(tokens, return_inverse=True)
        sums = torch.zeros(len(regions), self.dim)
        for start in range(0, len(tokens), PLACE_BLOCK):
            part = slice(start, start + PLACE_BLOCK)
            sums.index_add_(0, places[part], vectors[owners[part]])
        mean = self._means[KINDS.index("region")]
        self._components[regions] = torch.from_numpy(unit(unit(sums.numpy()) + mean)).half()


def pieces(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Cut sets into pieces of at most PIECE tokens: the set of each piece and where it starts, (p), (p).

    >>> pieces(np.array([0, 3, 3, 40_000]))
    (array([0, 1, 2, 2, 2]), array([    0,     3,     3, 16387, 32771], dtype=int32))
    """
    counts = np.maximum(-(-np.diff(offsets) // PIECE), 1)
    owners = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, (offsets[:-1][owners] + within * PIECE).astype(np.int32)


def _log_tf_idf(sets: TokenSets, idf: NDArray[np.float32]) -> sparse.csr_matrix:
    """The log TF-IDF matrix of the sets with rows of length 1, (n, regions)."""
    matrix = sets.to_csr(len(idf))
    matrix.data = np.log1p(FACTOR * idf)[sets.tokens]
    squares = np.add.reduceat(matrix.data**2, sets.offsets[:-1])  # every set has a token here
    matrix.data /= np.repeat(np.sqrt(squares), sets.sizes)
    return matrix


def _depth_component(scores: NDArray[np.float32], sizes: NDArray[np.int64]) -> int:
    """1 when the first component's scores track log depth, else 0."""
    depth = np.log(sizes)
    if np.ptp(depth) == 0 or np.ptp(scores) == 0:
        return 0
    return int(abs(np.corrcoef(scores, depth)[0, 1]) > DEPTH_CORRELATION)

"""Bag: an embedding bag over regions, for people without a GPU. The network whole, and the encoder made of it.

A set is the sum of its regions' embeddings; LayerNorm takes its depth away, and a residual net of one hidden layer
turns it into the vector. It learns in one of three ways (bag_training.py): from the sets alone, from a metadata
column, or from the vectors of another encoder. Sums are memory bound, so those of a batch are taken from one block of
the table after the other, each small enough for the cache.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from chromseek.data.errors import BadArgument
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import KINDS, Arrays, Kind, centred, require, unit
from chromseek.encoder.devices import device_named, dtype_named
from chromseek.encoder.placing import kind_means

WIDTH = 128
DROPOUT = 0.1
BLOCK_BITS = 15  # 2^15 regions are a block: 16 MB of float32, 8 MB of bfloat16
MIN_PIECE = 32  # tokens that a set has in a block, in the mean; with fewer, blocks cost more than they save
ROWS = 8_192  # sets encoded at a time, and the tokens that they may have together: a block is read once for them all
TOKENS = 8_000_000
PLACED_AT_ONCE = 1_000_000  # tokens
FIX = "copy the encoder folder again, whole"
NO_SETS = TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32))


class Network(nn.Module):
    """Token sets to vectors: a table of region embeddings, LayerNorm, a residual MLP."""

    def __init__(self, n_regions: int, width: int = WIDTH) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(n_regions, width))
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        nn.init.zeros_(self.narrow.weight)  # at first the vector is the normed sum
        nn.init.zeros_(self.narrow.bias)

    def forward(self, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
        """Vectors of sets that lie one after the other: tokens (T), sizes (n) → (n, width)."""
        starts = torch.tensor([0, *sizes[:-1]], device=tokens.device).cumsum(0)
        return self.read(F.embedding_bag(tokens, self.table, starts, mode="sum"))

    def read(self, sums: Tensor) -> Tensor:
        """Vectors of sums of embeddings, (n, width) → (n, width)."""
        x = F.dropout(self.norm(sums), DROPOUT, self.training)
        out: Tensor = x + self.narrow(F.dropout(F.gelu(self.widen(x)), DROPOUT, self.training))
        return out


class Bag:
    """The encoder: a network, its universe, where the kinds lie, and a head where labels taught it."""

    name = "bag"
    context = None

    def __init__(
        self,
        universe: Universe,
        network: Network,
        *,
        means: NDArray[np.float32] | None = None,  # (3, dim): cell, region, bed; None until it is placed in an atlas
        head: nn.Linear | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        width = network.table.shape[1]
        require(len(network.table) == len(universe), "the table does not fit the universe", FIX, len(network.table))
        require(means is None or means.shape == (len(KINDS), width), "means do not fit the table", FIX)
        n_classes = 0 if head is None else head.out_features
        require(n_classes == len(classes), f"{len(classes)} classes do not fit the head", FIX, n_classes)
        self.universe, self.network, self.head, self.classes = universe, network.eval(), head, tuple(classes)
        self.dim = int(width)
        self._means = means
        with torch.no_grad():
            network.table.copy_(network.table.half())
        self.on("cpu", "float32")

    @classmethod
    def fit(
        cls, cells: TokenSets, beds: TokenSets, universe: Universe, *, dim: int | None = None, seed: int = 0,
        device: str = "auto",
    ) -> "Bag":  # fmt: skip
        """Learn from a sample of cells, without cells from the BED sets, to tell which tokens were left out of a set.

        Raises BadData when fewer than three sets have a token.
        """
        from chromseek.encoder.bag_training import self_taught

        sample = cells if np.count_nonzero(cells.sizes) else beds
        network = self_taught(sample, universe, dim=dim or WIDTH, seed=seed, device=device)
        return cls(universe, network).placed(cells, beds, seed=seed)

    @classmethod
    def fit_labelled(
        cls,
        cells: TokenSets,
        labels: NDArray[np.integer[Any]],  # (n) places in `classes`, -1 where not known
        classes: Sequence[str],
        universe: Universe,
        *,
        beds: TokenSets = NO_SETS,
        dim: int | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> "Bag":
        """Learn a metadata column of cells; those without a label are left out, BED sets are only placed.

        Raises BadArgument for labels that do not fit the cells or the classes, BadData when fewer than two classes
        have a cell.
        """
        from chromseek.encoder.bag_training import label_taught

        network, head = label_taught(cells, labels, len(classes), universe, dim=dim or WIDTH, seed=seed, device=device)
        return cls(universe, network, head=head, classes=classes).placed(cells, beds, seed=seed)

    @classmethod
    def distil(
        cls,
        sets: TokenSets,
        vectors: NDArray[np.floating[Any]],  # (n, dim): what another encoder makes of the sets; zero rows are left out
        universe: Universe,
        *,
        seed: int = 0,
        device: str = "auto",
    ) -> "Bag":
        """Learn to reproduce the unit vectors of another encoder; until it is placed, no mean is taken off them.

        Raises BadArgument for vectors that do not fit the sets, or that are no numbers.
        """
        from chromseek.encoder.bag_training import teacher_taught

        return cls(universe, teacher_taught(sets, vectors, universe, seed=seed, device=device))

    @classmethod
    def from_parts(cls, config: dict[str, Any], arrays: Arrays, universe: Universe) -> "Bag":
        """Make the encoder again of what `config` and `arrays` gave."""
        table, means, classes = arrays.get("table"), arrays.get("means"), config.get("classes", [])
        require(table is not None and table.ndim == 2, "the weights lack a table of regions", FIX)
        assert table is not None
        network = Network(*table.shape)
        head = nn.Linear(table.shape[1], len(classes)) if classes else None
        weights = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items() if key != "means"}
        of_head = {key: weights.pop(key) for key in list(weights) if key.startswith("head.")}
        _fill(network, weights)
        if head is not None:
            _fill(head, {key.removeprefix("head."): weight for key, weight in of_head.items()})
        require(head is not None or not of_head, "the weights have a head, the settings no classes", FIX)
        return cls(universe, network, means=means, head=head, classes=classes)

    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"classes": list(self.classes)}

    def arrays(self) -> Arrays:
        """The weights; the table in float16, to which it was rounded."""
        arrays = {key: weight.detach().cpu().numpy() for key, weight in self.network.state_dict().items()}
        arrays["table"] = arrays["table"].astype(np.float16)
        if self.head is not None:
            arrays |= {f"head.{key}": weight.detach().cpu().numpy() for key, weight in self.head.state_dict().items()}
        return arrays if self._means is None else arrays | {"means": self._means}

    def on(self, device: str, dtype: str) -> "Bag":
        """Itself, to encode on this device, the table in this precision; the net behind it is always in float32."""
        self._device, self._running = device_named(device), (device, dtype)
        self.network.to(self._device)
        if self.head is not None:
            self.head.to(self._device)
        self._table = self.network.table.detach().to(dtype_named(dtype, self._device))
        return self

    def placed(self, cells: TokenSets, beds: TokenSets, *, seed: int = 0) -> "Bag":
        """Its kinds placed by a sample of an atlas, and regions it never saw; itself where they are already."""
        cells, beds = (sets.take(np.flatnonzero(sets.sizes)) for sets in (cells, beds))
        if self._means is not None or len(cells) + len(beds) == 0:
            return self
        placed = Bag(self.universe, deepcopy(self.network), head=deepcopy(self.head), classes=self.classes)
        placed.on(*self._running)
        placed._place_unseen(beds)
        placed._means = kind_means(placed._project, cells, beds, seed=seed)
        return placed

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into unit vectors, (n, dim)."""
        raw = self._project(sets, kind)
        return raw if self._means is None else centred(raw, self._means, kind)

    def logits(self, sets: TokenSets) -> NDArray[np.float32]:
        """What the head says of each class, (n, classes); zero rows for sets of which nothing is known.

        Raises BadArgument when no labels taught it.
        """
        head = self.head
        if head is None:
            raise BadArgument("this bag learned no labels", code="BAG-LABELS", fix="fit it with labels")
        return self._read(sets, head)

    def probabilities(self, sets: TokenSets) -> NDArray[np.float32]:
        """How likely each class is by the head, (n, classes); zero rows for sets of which nothing is known."""
        logits = self.logits(sets)
        shares = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
        return np.where(logits.any(axis=1, keepdims=True), shares, np.float32(0))

    def _project(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:  # noqa: ARG002
        """Unit vectors from which no mean is taken, (n, dim)."""
        return unit(self._read(sets, nn.Identity()))

    def _read(self, sets: TokenSets, last: nn.Module) -> NDArray[np.float32]:
        """What the network and a last layer make of sets, (n, width of the layer); zeros where nothing is known."""
        parts = []
        with torch.inference_mode():
            for start, stop in _portions(sets.offsets):
                sums = self._sums(sets.slice(start, stop))
                known = sums.any(dim=1, keepdim=True)
                parts.append(torch.where(known, last(self.network.read(sums)), 0).cpu().numpy())
            width = last.out_features if isinstance(last, nn.Linear) else self.dim
        return np.concatenate([np.empty((0, width), np.float32), *parts])

    def _sums(self, sets: TokenSets) -> Tensor:
        """The sums of the embeddings of sets, on the device in float32, (n, dim)."""
        out = torch.zeros(len(sets), self.dim, device=self._device)
        if len(sets.tokens) == 0:
            return out
        pieces = _by_block(sets, len(self._table), self._device)
        tokens, starts, owners = (torch.from_numpy(part).to(self._device) for part in pieces)
        return out.index_add_(0, owners, F.embedding_bag(tokens, self._table, starts, mode="sum").float())

    def _place_unseen(self, beds: TokenSets) -> None:
        """Give each region that the training never had an embedding by the BED sets that have it.

        Seen from the mean of the regions, it lies where these sets lie seen from the mean of the BED sets, as far
        away as the median region does.
        """
        table = self.network.table.detach().cpu()
        known = table.any(dim=1)
        tokens = torch.from_numpy(beds.tokens).long()
        owners = torch.repeat_interleave(torch.arange(len(beds)), torch.from_numpy(beds.sizes))
        if known[tokens].all() or not known.any():
            return
        counts = torch.zeros(len(beds)).index_add_(0, owners, known[tokens].float())
        sums = self._sums(beds).cpu() / counts.clamp(min=1)[:, None]
        away = F.normalize(torch.where(counts[:, None] > 0, sums - sums[counts > 0].mean(dim=0), 0))
        unseen = ~known[tokens]
        regions, places = torch.unique(tokens[unseen], return_inverse=True)
        near = torch.zeros(len(regions), self.dim)
        owners = owners[unseen]
        for start in range(0, len(places), PLACED_AT_ONCE):
            part = slice(start, start + PLACED_AT_ONCE)
            near.index_add_(0, places[part], away[owners[part]])
        mean = table[known].mean(dim=0)
        reach = (table[known] - mean).norm(dim=1).median()
        table[regions] = (mean + reach * F.normalize(near)).half().float()


def _by_block(
    sets: TokenSets, n_regions: int, device: torch.device
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The tokens of all sets in the order of the table's blocks, where each piece starts, and the set it is of.

    A piece is what a set has in a block. A GPU, a small table and sets of few tokens are better off without blocks:
    there a piece is a set.
    """
    n_blocks = (n_regions >> BLOCK_BITS) + 1
    if device.type != "cpu" or n_blocks == 1 or len(sets.tokens) < MIN_PIECE * n_blocks * len(sets):
        return sets.tokens, sets.offsets[:-1].astype(np.int32), np.arange(len(sets), dtype=np.int32)
    matrix = sparse.csr_array((sets.tokens, sets.tokens >> BLOCK_BITS, sets.offsets), shape=(len(sets), n_blocks))
    blocks = matrix.tocsc()  # one stable pass in C; a cell of the matrix may be there many times
    first = np.empty(len(blocks.indices), bool)
    np.not_equal(blocks.indices[1:], blocks.indices[:-1], out=first[1:])
    first[blocks.indptr[:-1][np.diff(blocks.indptr) > 0]] = True
    starts = np.flatnonzero(first).astype(np.int32)
    return blocks.data, starts, blocks.indices[starts]


def _portions(offsets: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut rows into runs of at most ROWS, and TOKENS unless one row has more.

    >>> _portions(np.array([0, 5, TOKENS, 3 * TOKENS, 3 * TOKENS]))
    [(0, 2), (2, 3), (3, 4)]
    """
    found, start, n = [], 0, len(offsets) - 1
    while start < n:
        stop = int(np.searchsorted(offsets, offsets[start] + TOKENS, side="right")) - 1
        stop = min(max(stop, start + 1), start + ROWS, n)
        found.append((start, stop))
        start = stop
    return found


def _fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module its weights."""
    expected = module.state_dict()
    require(set(expected) == set(weights), "weights lack or add keys", FIX, sorted(set(expected) ^ set(weights))[:5])
    for key, tensor in weights.items():
        require(tensor.shape == expected[key].shape, f"{key} has another shape", FIX, tuple(tensor.shape))
    module.load_state_dict(weights)

"""Atacformer: a transformer over regions as tokens, the network whole and the encoder made of it.

The network is that of LeRoy et al. (2025, Atacformer): token embeddings, then post-norm transformer layers with ReLU
and biases, without positions unless a checkpoint was trained with them; a vector is the mean of a set's contextual
tokens. Names of modules and settings are those of the published checkpoints. Sets are packed one after the other, so
that no work is done on padding.
"""

import logging
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from chromseek.data.errors import BadArgument, StorageError, printable
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.attention import attend, pool
from chromseek.encoder.base import KINDS, Arrays, Kind, centred, require, unit
from chromseek.encoder.devices import device_named, dtype_named, is_out_of_memory
from chromseek.encoder.packing import batches, chunked, shortened
from chromseek.encoder.placing import kind_means
from chromseek.encoder.reference_tokens import SPECIALS
from chromseek.encoder.weights import AGAIN, fill, head_of

_log = logging.getLogger(__name__)

N_SPECIALS = len(SPECIALS)
CONFIG_IDS = ("pad", "cls", "eos", "bos", "sep")  # those that a published config.json names
DROPOUT = 0.1
TOKEN_BUDGET = 32_768  # tokens encoded at a time
HEAD_SCALE = 8.0
LongSets = Literal["sample", "chunk"]
RegionVectors = Literal["alone", "static", "contextual"]  # a region: a set of one, its embedding, or among others


@dataclass(frozen=True)
class Settings:
    """The shape of a network, in the words of the published `config.json`."""

    vocab_size: int  # regions + 7
    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    max_position_embeddings: int = 8192  # the context: tokens of a set that are read together
    use_pos_embeddings: bool = False
    norm_eps: float = 1e-5  # of the discriminator; the layers' is torch's own
    num_batches: int | None = None  # batch correction only


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
    "base": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
}


class Network(nn.Module):
    """Token sets, packed, to contextual vectors, one per token."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.embeddings = Embeddings(settings)
        self.encoder = Stack(settings)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
        """Contextual vectors of sets that lie one after the other: tokens (T), sizes (sets) → (T, hidden)."""
        contextual: Tensor = self.encoder(self.embeddings(tokens, sizes), sizes)
        return contextual

    def set_dropout(self, share: float) -> None:
        """Drop this share of activations in training; it is 0.1 as published."""
        for layer in self.layers:
            layer.dropout.p = share

    @property
    def layers(self) -> list["Layer"]:
        """The layers, first to last."""
        return [layer for layer in self.encoder.layers if isinstance(layer, Layer)]


class Embeddings(nn.Module):
    """One vector per region; one per place as well, used only where the settings say so."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.use_positions = settings.use_pos_embeddings
        self.token_embeddings = nn.Embedding(
            settings.vocab_size, settings.hidden_size, padding_idx=settings.vocab_size - N_SPECIALS + 1
        )
        self.position_embeddings = nn.Embedding(settings.max_position_embeddings, settings.hidden_size)

    def forward(self, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
        """Look the tokens up: (T) → (T, hidden)."""
        x: Tensor = self.token_embeddings(tokens)
        if self.use_positions:
            places = torch.cat([torch.arange(size, device=tokens.device) for size in sizes])
            x = x + self.position_embeddings(places)
        return x


class Stack(nn.Module):
    """The layers; a module of its own so that the names of the weights are the published ones."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """(T, hidden) → (T, hidden), in the precision of the weights."""
        x = x.to(next(self.parameters()).dtype)
        for layer in self.layers:
            x = layer(x, sizes)
        return x


class Layer(nn.Module):
    """Attention and a feed-forward net, each followed by adding up and LayerNorm (post-norm)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.self_attn = Attention(width, settings.num_attention_heads)
        self.linear1 = nn.Linear(width, settings.intermediate_size)
        self.linear2 = nn.Linear(settings.intermediate_size, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)  # none on the attention weights: that costs the fused kernel, 1.7 x the time

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """(T, hidden) → (T, hidden)."""
        x = self.norm1(x + self.dropout(self.self_attn(x, sizes)))
        fed = self.linear2(self.dropout(F.relu(self.linear1(x))))
        out: Tensor = self.norm2(x + self.dropout(fed))
        return out


class Attention(nn.Module):
    """Multi-head attention of each token over the tokens of its own set."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """(T, hidden) → (T, hidden)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(len(x), 3, self.heads, x.shape[1] // self.heads)
        mixed: Tensor = self.out_proj(attend(qkv, sizes).flatten(1))
        return mixed


class Discriminator(nn.Module):
    """The head of replaced-token detection: was this token put in another's place?"""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.dense = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.norm_eps)
        self.classifier = nn.Linear(settings.hidden_size, 1)
        self.apply(_initialise)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, hidden) → logits (T)."""
        logits: Tensor = self.classifier(self.norm(F.gelu(self.dense(hidden)))).squeeze(-1)
        return logits


def _initialise(module: nn.Module) -> None:
    """Draw weights as the published code does: N(0, 0.02), biases 0, the pad token 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


class Atacformer:
    """The encoder: a network, its universe, and where the kinds lie."""

    name = "atacformer"

    def __init__(
        self,
        universe: Universe,
        network: Network,
        *,
        discriminator: Discriminator | None = None,
        means: NDArray[np.float32] | None = None,  # (3, dim): cell, region, bed; None until it is placed in an atlas
        regions: NDArray[np.float16] | None = None,  # (regions, dim), contextual; None: a region is a set of one
        head: nn.Linear | None = None,  # unit vectors, times HEAD_SCALE, to the logits of classes
        classes: Sequence[str] = (),
        context: int | None = None,  # tokens read together; the network's own is the default and the most
        long_sets: LongSets = "sample",
    ) -> None:
        settings, fix, n_known = network.settings, AGAIN, network.settings.vocab_size - N_SPECIALS
        require(len(universe) == n_known, f"the universe has {len(universe)} regions, the weights {n_known}", fix)
        for name, array, rows in (("means", means, len(KINDS)), ("regions", regions, n_known)):
            shape = (rows, settings.hidden_size) if array is None else array.shape
            require(shape == (rows, settings.hidden_size), f"{name} do not fit the weights", fix, shape)
        n_classes = 0 if head is None else head.out_features
        require(n_classes == len(classes), f"{len(classes)} classes do not fit the head", fix, n_classes)
        self.universe, self.network, self.discriminator = universe, network.eval(), discriminator
        self.head, self.classes = head, tuple(classes)
        if (
            not isinstance(context, int | None)
            or context == 0
            or (context or 1) < 0
            or long_sets not in get_args(LongSets)
        ):
            message, fix = f"context {context}, long sets {printable(long_sets)}", "a token or more; sample or chunk"
            raise BadArgument(message, code="ENCODER-CONTEXT", got=context, fix=fix)
        self.dim = settings.hidden_size
        self.context = min(context or settings.max_position_embeddings, settings.max_position_embeddings)
        self.long_sets: LongSets = long_sets
        self._means, self._regions = means, regions
        self._device, self._stack = torch.device("cpu"), network.encoder
        self._budget = TOKEN_BUDGET

    @classmethod
    def fit(
        cls, cells: TokenSets, beds: TokenSets, universe: Universe, *, dim: int | None = None, seed: int = 0,
        device: str = "auto", size: str = "small",
    ) -> "Atacformer":  # fmt: skip
        """Train a network of one of the SIZES on these sets by replaced-token detection, and place the kinds."""
        from chromseek.encoder.pretrain import pretrained, short_run, sized

        settings = sized(len(universe), size, dim)
        sample = cells if len(cells) else beds
        encoder = pretrained(sample, universe, settings, run=short_run(sample, size, seed, device))
        return encoder.placed(cells, beds, seed=seed)

    @classmethod
    def from_parts(cls, config: dict[str, Any], arrays: Arrays, universe: Universe) -> "Atacformer":
        """Make the encoder again of what `config` and `arrays` gave; keys may lack the prefix `atacformer.`."""
        from chromseek.encoder.checkpoint_layout import settings_of

        settings = settings_of(config)
        parts: dict[str, dict[str, Tensor]] = {"atacformer": {}, "discriminator": {}}
        for key, array in arrays.items():
            part, _, rest = key.partition(".")
            part, rest = (part, rest) if part in (*parts, "chromseek", "batch_prediction_head") else ("atacformer", key)
            if part in parts:
                parts[part][rest] = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        with torch.device("meta"):
            network, head = Network(settings), Discriminator(settings)
        fill(network, parts["atacformer"])
        if parts["discriminator"]:
            fill(head, parts["discriminator"])
        namer, classes = head_of(config, arrays, settings.hidden_size)
        return cls(
            universe,
            network,
            discriminator=head if parts["discriminator"] else None,
            head=namer,
            classes=classes,
            means=arrays.get("chromseek.means"),
            regions=arrays.get("chromseek.regions"),
            context=config.get("context"),
            long_sets=config.get("long_sets", "sample"),
        )

    def config(self) -> dict[str, Any]:
        """The settings, and those that the published stack wants to read."""
        head = "CellClustering" if self.discriminator is None else "ReplacedTokenDetection"
        n_regions = len(self.universe)
        ids = {f"{name}_token_id": n_regions + place for place, name in enumerate(SPECIALS) if name in CONFIG_IDS}
        named = {"architectures": [f"AtacformerFor{head}"], "context": self.context, "long_sets": self.long_sets}
        return asdict(self.network.settings) | ids | named | ({"classes": [*self.classes]} if self.classes else {})

    def arrays(self) -> Arrays:
        """The weights, under their published names; what is ours alone is called `chromseek.…`."""
        modules = {"atacformer": self.network, "discriminator": self.discriminator, "chromseek.head": self.head}
        arrays: Arrays = {
            f"{part}.{key}": tensor.detach().cpu().numpy()
            for part, module in modules.items()
            if module is not None
            for key, tensor in module.state_dict().items()
        }
        own = {"chromseek.means": self._means, "chromseek.regions": self._regions}
        return arrays | {key: array for key, array in own.items() if array is not None}

    def reading(self, *, context: int | None = None, long_sets: LongSets = "sample") -> "Atacformer":
        """The encoder with another context, at most the network's own, and way with longer sets; not placed yet."""
        return Atacformer(
            self.universe, self.network, discriminator=self.discriminator, head=self.head, classes=self.classes,
            context=context, long_sets=long_sets,
        )  # fmt: skip

    def on(self, device: str, dtype: str) -> "Atacformer":
        """Itself, to encode on this device, the layers in this precision; embeddings stay as they are."""
        self._device = device_named(device)
        precision = dtype_named(dtype, self._device)
        self.network.to(self._device)
        stack = self.network.encoder
        self._stack = stack if precision == torch.float32 else deepcopy(stack).to(precision)
        return self

    def placed(
        self, cells: TokenSets, beds: TokenSets, *, seed: int = 0, regions: RegionVectors = "alone"
    ) -> "Atacformer":
        """The encoder with its kinds placed by a sample of an atlas; itself where they are placed already."""
        if self._means is not None:
            return self
        from chromseek.encoder.contextual import region_vectors

        cells, beds = (sets.take(np.flatnonzero(sets.sizes)) for sets in (cells, beds))
        if len(cells) + len(beds) == 0:
            return self
        placed = copy(self)
        placed._regions = region_vectors(self, cells if len(cells) else beds, regions, seed=seed)
        placed._means = kind_means(placed._project, cells, beds, seed=seed)
        return placed

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into unit vectors, (n, dim)."""
        raw = self._project(sets, kind)
        return raw if self._means is None else centred(raw, self._means, kind)

    def contextual(self, tokens: NDArray[np.integer[Any]], sizes: Sequence[int]) -> Tensor:
        """The contextual vector of each token of sets that lie one after the other, float32 on the CPU, (T, dim)."""
        with torch.inference_mode():
            return self._contextual(tokens, sizes).float().cpu()

    def pooled(self, tokens: NDArray[np.integer[Any]], sizes: Sequence[int]) -> NDArray[np.float32]:
        """The mean contextual vector of each set, (n, dim): repeats and specials count, as published; none is cut."""
        with torch.inference_mode():
            return pool(self._contextual(tokens, sizes), sizes).cpu().numpy()

    def logits(self, sets: TokenSets) -> NDArray[np.float32]:
        """What the head says of each set, (n, classes)."""
        require(self.head is not None, "this encoder has no head", "train one on labels")
        assert self.head is not None
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.head(HEAD_SCALE * torch.from_numpy(self._project(sets, "cell"))).numpy()
        return logits

    def _project(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Unit vectors from which no mean is taken, (n, dim)."""
        if kind == "region" and self._regions is not None:
            sums = np.zeros((len(sets), self.dim), np.float32)
            np.add.at(sums, np.repeat(np.arange(len(sets)), sets.sizes), self._regions[sets.tokens].astype(np.float32))
            return unit(sums)
        return unit(self.pooled_sets(sets))

    def pooled_sets(self, sets: TokenSets) -> NDArray[np.float32]:
        """The mean contextual vector of each set, (n, dim); long ones are sampled, or cut and averaged."""
        if self.long_sets == "chunk":
            pieces, owners = chunked(sets, self.context)
        else:
            pieces, owners = shortened(sets, self.context), np.arange(len(sets))
        vectors = np.zeros((len(sets), self.dim), np.float32)
        waiting = batches(pieces.sizes, self._budget)
        while waiting:
            rows = waiting[0]
            batch = pieces.take(rows)
            try:
                pooled = self.pooled(batch.tokens, batch.sizes.tolist())
            except (MemoryError, RuntimeError) as error:
                self._halve(batch, error)
                left = np.concatenate(waiting)
                waiting = [left[part] for part in batches(pieces.sizes[left], self._budget)]
                continue
            np.add.at(vectors, owners[rows], pooled * batch.sizes[:, None])
            waiting = waiting[1:]
        counts = np.bincount(owners, weights=pieces.sizes, minlength=len(sets)).astype(np.float32)
        vectors /= np.maximum(counts, 1)[:, None]
        return vectors

    def _contextual(self, tokens: NDArray[np.integer[Any]], sizes: Sequence[int]) -> Tensor:
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).long().to(self._device)
        out: Tensor = self._stack(self.network.embeddings(ids, sizes), sizes)
        return out

    def _halve(self, batch: TokenSets, error: Exception) -> None:
        """Go on with half the budget where memory was too short for a batch. Raises StorageError for a single set."""
        if not is_out_of_memory(error):
            raise error
        if len(batch) == 1:
            fix = "choose a smaller context, bfloat16, or a larger machine"
            raise StorageError("the memory does not suffice for one set", code="MEMORY", fix=fix) from error
        if self._budget == TOKEN_BUDGET:
            _log.warning("out of memory at %d tokens a batch: going on with smaller batches", len(batch.tokens))
        self._budget = max(1, len(batch.tokens) // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

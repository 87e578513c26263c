"""Fine-tuning of Atacformer: cell types by triplets or by contrast, and batches made alike by an adversary.

Each gives a new encoder, not placed in an atlas yet; the one it starts from stays as it is. Continued training on
other sets, such as BED files, is `pretrained(..., start=encoder)`.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.tokens import TokenSets
from chromseek.encoder.atacformer import Atacformer, Discriminator, Network
from chromseek.encoder.attention import pool
from chromseek.encoder.contrast import TEMPERATURE, seen_from_mean, supervised_contrast
from chromseek.encoder.evaluate import VectorCheck
from chromseek.encoder.pretrain import Detection, detection_loss, split
from chromseek.encoder.training import Run, train
from chromseek.encoder.training_batches import Batch, sampled, shuffled

HELD_OUT = 0.05  # of the labelled sets
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """How labelled sets are drawn and varied."""

    keep_least: float = 0.3  # of a set's tokens are kept at random, from this share on to all
    balance: float = 0.5  # a row's chance falls with this power of how many rows have its label; 0: every row once
    views: int = 2  # of each set in a batch


@dataclass(frozen=True)
class Aim:
    """What a contrastive fine-tune learns: both terms are taken by their weights."""

    contrast: float = 1.0  # supervised contrast
    temperature: float = TEMPERATURE
    head: float = 1.0  # cross-entropy of a linear head, which is not kept
    smoothing: float = 0.1  # of the head's labels


def triplet(
    encoder: Atacformer, sets: TokenSets, codes: Codes, *, run: Run, draw: Draw | None = None, resume: bool = False
) -> Atacformer:
    """Bring sets of a label closer to each other than to those of any other, by a margin of 1.

    `codes` are labels (n), -1 for none. An anchor may be of any label; each has a positive and a negative.
    """
    kept, held_out = labelled_rows(sets, codes, run.seed)
    network = deepcopy(encoder.network)
    batches = Triplets(sets, codes, kept, encoder.context, run, draw or Draw())

    def loss_of(batch: Batch) -> Tensor:
        anchors, positives, negatives = pool(network(batch.tokens, batch.sizes), batch.sizes).chunk(3)
        return F.triplet_margin_loss(anchors, positives, negatives, margin=1.0, p=2)

    tuned = _like(encoder, network)
    check = VectorCheck(tuned, sets, codes, held_out, run)
    train(network, loss_of, batches, run, check=check, resume=resume)
    return tuned.on("cpu", "float32")


def contrastive(
    encoder: Atacformer,
    sets: TokenSets,
    codes: Codes,
    *,
    run: Run,
    draw: Draw | None = None,
    aim: Aim | None = None,
    resume: bool = False,
) -> Atacformer:
    """Bring sets of a label together and others apart: supervised contrast (Khosla et al. 2020) and a linear head.

    `codes` are labels (n), -1 for none. Vectors are compared as the encoder gives them: unit, seen from their mean.
    """
    aim, draw = aim or Aim(), draw or Draw()
    kept, held_out = labelled_rows(sets, codes, run.seed)
    # What the draw leaves of the labels' frequencies is given to the head, so that the vectors need not learn it.
    frequencies = np.bincount(codes[kept], minlength=int(codes.max()) + 1).clip(1)
    prior = torch.from_numpy((1 - draw.balance) * np.log(frequencies)).float()
    network = deepcopy(encoder.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        head = nn.Linear(encoder.dim, int(codes.max()) + 1)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        pooled = pool(network(batch.tokens, batch.sizes), batch.sizes)
        contrast = supervised_contrast(seen_from_mean(pooled), batch.targets, aim.temperature)
        logits = head(pooled).float() + prior.to(pooled.device)
        named = F.cross_entropy(logits, batch.targets, label_smoothing=aim.smoothing)
        return aim.contrast * contrast + aim.head * named, {"contrast": contrast, "head": named}

    tuned = _like(encoder, network)
    check = VectorCheck(tuned, sets, codes, held_out, run)
    batches = Views(sets, codes, kept, encoder.context, run, draw)
    train(nn.ModuleDict({"network": network, "head": head}), loss_of, batches, run, check=check, resume=resume)
    return tuned.on("cpu", "float32")


def batch_corrected(
    encoder: Atacformer,
    sets: TokenSets,
    codes: Codes,
    *,
    run: Run,
    unfrozen: int = 2,
    weight: float = 1.0,
    alpha: float = 1.0,
    resume: bool = False,
) -> Atacformer:
    """Train on by replaced-token detection, while an adversary reads the batch off the vectors in vain.

    `codes` are batches (n), -1 for sets to be left out; gradients of the adversary are reversed, `alpha` times as
    strong. All but the last `unfrozen` layers and the norms stay as they are; 0 freezes nothing.
    """
    network = deepcopy(encoder.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        head = deepcopy(encoder.discriminator) or Discriminator(network.settings)
        adversary = nn.Linear(encoder.dim, int(codes.max(initial=0)) + 1)
    freeze(network, unfrozen)
    kept, held_out = labelled_rows(sets, codes, run.seed)
    detection = Detection(sets, kept, len(encoder.universe), encoder.context, run)
    detected = detection_loss(head)

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        hidden = network(batch.tokens, batch.sizes)
        told = adversary(reversed_gradient(pool(hidden, batch.sizes), alpha)).float()
        parts = {"detection": detected(hidden, batch), "batch": F.cross_entropy(told, batch.labels)}
        return parts["detection"] + weight * parts["batch"], parts

    tuned = _like(encoder, network, head)
    check = VectorCheck(tuned, sets, codes, held_out, run)
    model = nn.ModuleDict({"atacformer": network, "discriminator": head, "batch_prediction_head": adversary})
    train(model, loss_of, WithCodes(detection, codes), run, check=check, resume=resume)
    network.requires_grad_(True)
    head.cpu()
    return tuned.on("cpu", "float32")


class _Reversed(torch.autograd.Function):
    """The identity, with the gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.alpha * gradients[0], None


def reversed_gradient(x: Tensor, alpha: float) -> Tensor:
    """The same values, whose gradient comes back as -alpha times itself (gradient reversal, Ganin et al. 2016)."""
    same: Tensor = _Reversed.apply(x, alpha)  # type: ignore[no-untyped-call]
    return same


def freeze(network: Network, unfrozen: int) -> None:
    """Let only the last layers and every LayerNorm be trained; 0 leaves all as it is. Raises BadArgument."""
    n_layers = len(network.encoder.layers)
    if not 0 <= unfrozen <= n_layers:
        fix = f"choose from 0 (nothing is frozen) to {n_layers}"
        raise BadArgument(f"unfrozen is {unfrozen}", code="TRAIN-FROZEN", got=unfrozen, fix=fix)
    if unfrozen == 0:
        return
    network.requires_grad_(False)
    network.encoder.layers[n_layers - unfrozen :].requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


@dataclass(frozen=True)
class Views:
    """Labelled sets, each several times in a batch with other tokens left out."""

    sets: TokenSets
    codes: Codes  # (n)
    rows: NDArray[np.int64]  # those that are learnt from
    context: int
    run: Run
    draw: Draw = field(default_factory=Draw)

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """As many rows as there are, drawn by how rare their labels are; those of like length together."""
        return self.planned(epoch, self.draw.views)

    def planned(self, epoch: int, views: int) -> list[NDArray[np.int64]]:
        """The plan for sets that come so many times."""
        rows, seed = self.rows, self.run.seed
        if self.draw.balance > 0:
            chances = np.bincount(self.codes[rows])[self.codes[rows]] ** -self.draw.balance
            rng = np.random.default_rng([seed, epoch, 1])
            rows = rng.choice(rows, len(rows), p=chances / chances.sum())
        sizes = np.minimum(self.sets.sizes, self.context) * views
        return shuffled(sizes, self.run.batch_tokens, seed=seed, epoch=epoch, rows=rows)

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """The views of some rows, and their labels."""
        rows = np.tile(rows, self.draw.views)
        return Batch.of(self.varied(rows, rng), targets=torch.from_numpy(self.codes[rows]))

    def varied(self, rows: NDArray[np.int64], rng: np.random.Generator) -> TokenSets:
        """Sets without some of their tokens."""
        sets = self.sets.take(rows)
        shares = rng.uniform(self.draw.keep_least, 1, len(rows))
        counts = np.minimum(np.ceil(sets.sizes * shares).astype(np.int64), self.context)
        return sampled(sets, counts, rng)


class Triplets(Views):
    """Anchors of any label, each with another set of its label and one of another label."""

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The anchors."""
        return self.planned(epoch, 3)

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Anchors, then positives, then negatives."""
        order = self.rows[np.argsort(self.codes[self.rows], kind="stable")]
        codes = self.codes[order]
        first, last = (np.searchsorted(codes, self.codes[rows], side=side) for side in ("left", "right"))
        own = last - first
        place = first + rng.integers(0, own)
        place = np.where((order[place] == rows) & (own > 1), first + (place + 1 - first) % own, place)
        other = rng.integers(0, len(order) - own)
        other = np.where(other >= first, other + own, other)
        return Batch.of(self.varied(np.concatenate([rows, order[place], order[other]]), rng))


@dataclass(frozen=True)
class WithCodes:
    """Sets with replaced tokens, and a code for each set."""

    detection: Detection
    codes: Codes

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """That of the detection."""
        return self.detection.plan(epoch)

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """That of the detection, and the codes."""
        made = self.detection.make(rows, rng)
        return Batch(made.tokens, made.sizes, made.targets, torch.from_numpy(self.codes[rows]))


def labelled_rows(
    sets: TokenSets, codes: Codes, seed: int, *, held_out: float = HELD_OUT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows with a label and tokens: to learn from, and held out. Raises BadData when they have one label only."""
    rows = np.flatnonzero((codes >= 0) & (sets.sizes > 0))
    kept, rest = (rows[part] for part in split(len(rows), held_out, seed))
    if len(np.unique(codes[kept])) < 2:
        raise BadData(
            f"{len(np.unique(codes[kept]))} labels among {len(rows)} sets leave nothing to tell apart",
            code="TRAIN-LABELS",
            got=len(rows),
            fix="name a column with two values or more",
        )
    return kept, rest


def _like(encoder: Atacformer, network: Network, head: Discriminator | None = None) -> Atacformer:
    """An encoder of another network that reads sets as this one does."""
    return Atacformer(
        encoder.universe, network, discriminator=head, context=encoder.context, long_sets=encoder.long_sets
    )

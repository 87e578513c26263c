"""Pretraining of Atacformer by replaced-token detection (after ELECTRA, without a generator).

Each token of a set is put in another's place with probability 0.45, the new one drawn uniformly from the regions; the
network says of each token whether it is one of the set. A set longer than the context is sampled anew in every epoch.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import roc_auc_score
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from chromseek.data.errors import BadArgument
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Atacformer, Discriminator, Network, Settings
from chromseek.encoder.devices import device_named
from chromseek.encoder.evaluate import CHECKED, VectorCheck
from chromseek.encoder.training import Optimiser, Run, train
from chromseek.encoder.training_batches import Batch, sampled, shuffled

REPLACED = 0.45
IGNORED = -100.0  # the target of a special token
HELD_OUT = 0.02  # of the sets
LR = {"tiny": 2e-3, "small": 1e-3, "base": 3e-4}  # by the name of the size; the published 1.5e-4 is for a million cells
EPOCHS, STEPS = 5, {"cpu": 100, "cuda": 2_000}  # of a build, at most
SPECTRAL_SETS, SPECTRAL_TOKENS = 20_000, 20_000_000  # that the first vectors of regions are made of, at most
SPECTRAL_STD = 0.05


def sized(n_regions: int, size: str, dim: int | None) -> Settings:
    """The settings of a network of one of the SIZES, or of another width. Raises BadArgument for one that cannot be."""
    width = {} if dim is None else {"hidden_size": dim, "intermediate_size": 4 * dim}
    settings = Settings(n_regions + N_SPECIALS, **SIZES[size] | width)
    heads = settings.num_attention_heads
    if settings.hidden_size % heads:
        fix = f"a multiple of {heads}, one part for each attention head"
        raise BadArgument(f"dim {dim} does not fit atacformer:{size}", code="DIM-RANGE", got=dim, fix=fix)
    return settings


def short_run(sets: TokenSets, size: str, seed: int, device: str) -> Run:
    """The run of a build, some minutes long; longer ones are to be had from `chromseek encoder pretrain`."""
    run = Run(optimiser=Optimiser(lr=LR[size]), dtype="auto", device=str(device_named(device)), seed=seed)
    steps = -(-EPOCHS * len(sets.tokens) // run.batch_tokens)
    return replace(run, steps=min(max(steps, 1), STEPS[run.device.partition(":")[0]]))


def pretrained(
    sets: TokenSets,
    universe: Universe,
    settings: Settings,
    *,
    run: Run | None = None,
    seed: int = 0,
    codes: NDArray[np.int64] | None = None,
    start: Atacformer | None = None,
    spectral: bool = True,
    resume: bool = False,
) -> Atacformer:
    """Train a network on token sets, or train a copy of `start` on; give the encoder, not placed in an atlas yet.

    `codes` are labels (n), -1 for none, by which the log tells how good the vectors are; nothing is learnt from them.
    A new network's region vectors start from the sets' singular vectors, or at random as published (`spectral`).
    `seed` is that of the run that is made when none is given.
    """
    run = run or Run(seed=seed, optimiser=Optimiser(lr=LR["small"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        network = Network(settings) if start is None else deepcopy(start.network)
        head = deepcopy(start.discriminator) if start is not None else None
        head = head or Discriminator(network.settings)
    if spectral and start is None and not resume:
        first = spectral_regions(sets, len(universe), settings.hidden_size, run.seed)
        with torch.no_grad():
            network.embeddings.token_embeddings.weight[: len(universe)] += torch.from_numpy(first)
    encoder = Atacformer(universe, network, discriminator=head)
    if start is not None:
        encoder = encoder.reading(context=start.context, long_sets=start.long_sets)
    kept, held_out = split(len(sets), HELD_OUT, run.seed)
    detection = Detection(sets, kept, len(universe), encoder.context, run)
    detected = detection_loss(head)
    labelled = VectorCheck(encoder, sets, codes, None, run)
    unseen = detection.held_out(held_out)

    def check() -> dict[str, float]:
        return detection_figures(encoder, unseen) | labelled()

    train(
        nn.ModuleDict({"atacformer": network, "discriminator": head}),
        lambda batch: detected(network(batch.tokens, batch.sizes), batch),
        detection,
        run,
        check=check,
        resume=resume,
    )
    head.cpu()
    return encoder.on("cpu", "float32")


def spectral_regions(sets: TokenSets, n_regions: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Vectors of regions (n_regions, dim) to start from: the leading right singular vectors of a sample of the sets.

    Rows and columns are scaled by the root of their sums, components by their singular values; the first one, which
    is how common a region is, is left out. Regions that the sample lacks, and dimensions beyond its rank, are zero.
    """
    rng = np.random.default_rng([seed, 3])
    rows = rng.permutation(np.flatnonzero(sets.sizes))[:SPECTRAL_SETS]
    rows = np.sort(rows[np.cumsum(sets.sizes[rows]) <= SPECTRAL_TOKENS])
    matrix = sets.take(rows).to_csr(n_regions + N_SPECIALS)[:, :n_regions]
    found = np.zeros((n_regions, dim), np.float32)
    rank = min(dim + 1, *(side - 1 for side in matrix.shape))
    if rank < 2:
        return found
    scales = [1 / np.sqrt(np.maximum(matrix.sum(axis=axis).A1, 1)) for axis in (1, 0)]
    matrix = sparse.diags(scales[0]) @ matrix @ sparse.diags(scales[1])
    _, values, right = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
    found[:, : rank - 1] = right[1:].T * values[1:]
    return found * np.float32(SPECTRAL_STD / max(found.std(), 1e-9))


@dataclass(frozen=True)
class Detection:
    """Token sets with some of their tokens replaced."""

    sets: TokenSets
    rows: NDArray[np.int64]  # those that are learnt from
    n_regions: int
    context: int
    run: Run
    share: float = REPLACED

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """All rows, those of like length together."""
        sizes = np.minimum(self.sets.sizes, self.context)
        return shuffled(sizes, self.run.batch_tokens, seed=self.run.seed, epoch=epoch, rows=self.rows)

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Sample sets that are too long, and replace tokens; the targets say which ones are new."""
        sets = self.sets.take(rows)
        return corrupted(sampled(sets, np.minimum(sets.sizes, self.context), rng), self.n_regions, self.share, rng)

    def held_out(self, rows: NDArray[np.int64]) -> list[Batch]:
        """Batches of rows that are not learnt from, the same for every check."""
        rng = np.random.default_rng([self.run.seed, 1])
        plan = shuffled(self.sets.sizes, self.run.batch_tokens, seed=self.run.seed, epoch=0, rows=rows)
        return [self.make(batch, rng) for batch in plan]


def corrupted(sets: TokenSets, n_regions: int, share: float, rng: np.random.Generator) -> Batch:
    """Replace a share of the tokens by uniform ones; a token that is replaced by itself is not a new one."""
    special = sets.tokens >= n_regions
    chosen = (rng.random(len(sets.tokens)) < share) & ~special
    tokens = np.where(chosen, rng.integers(0, n_regions, len(sets.tokens), dtype=np.int32), sets.tokens)
    targets = np.where(special, IGNORED, tokens != sets.tokens).astype(np.float32)
    return Batch.of(TokenSets(sets.offsets, tokens), targets=torch.from_numpy(targets))


def detection_loss(head: Discriminator) -> Callable[[Tensor, Batch], Tensor]:
    """The loss of contextual vectors (T, d): binary cross-entropy, the mean over all tokens that are not special."""

    def loss_of(hidden: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        logits, real = head(hidden).float(), batch.targets != IGNORED
        return F.binary_cross_entropy_with_logits(logits[real], batch.targets[real])

    return loss_of


def split(n: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows held out, CHECKED at most; one is held out from 20 rows on."""
    order = np.random.default_rng([seed, n]).permutation(n)
    n_out = min(CHECKED, max(int(n * share), n >= 20))
    return np.sort(order[n_out:]), np.sort(order[:n_out])


def detection_figures(encoder: Atacformer, batches: list[Batch]) -> dict[str, float]:
    """Loss and area under the ROC curve of replaced-token detection; none without tokens."""
    assert encoder.discriminator is not None
    device = str(next(encoder.network.parameters()).device)
    logits, targets = [], []
    with torch.no_grad():
        for batch in (one.to(device) for one in batches):
            assert batch.targets is not None
            logits.append(encoder.discriminator(encoder.network(batch.tokens, batch.sizes)).float().cpu())
            targets.append(batch.targets.cpu())
    if not logits:
        return {}
    said, true = torch.cat(logits), torch.cat(targets)
    said, true = said[true != IGNORED], true[true != IGNORED]
    loss = float(F.binary_cross_entropy_with_logits(said, true))
    both = {"held_out_auroc": float(roc_auc_score(true.numpy(), said.numpy()))} if 0 < true.mean() < 1 else {}
    return {"held_out_loss": loss} | both

"""Labels: an Atacformer that starts as a bag of regions, and learns to name sets by a metadata column.

From random weights, a few thousand labelled cells teach a transformer less than they teach a bag. So a bag is taught
first, and the transformer starts as that bag. Its table is the bag's. Attention looks at all tokens alike and gives
their mean, many times as long as a token's own vector, so that the first LayerNorm of every token is the bag's of the
sum; the feed-forward net is the bag's. From there it learns which tokens to look at.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import HEAD_SCALE, N_SPECIALS, Atacformer, Network, Settings
from chromseek.encoder.attention import pool
from chromseek.encoder.bag import Bag
from chromseek.encoder.contrast import seen_from_mean, supervised_contrast
from chromseek.encoder.finetune import Codes, Draw, Views, labelled_rows
from chromseek.encoder.training import Optimiser, Run, train
from chromseek.encoder.training_batches import Batch

HEADS = 4
MEAN = 16.0  # how long the mean of the tokens is made, against a token's own vector
OPTIMISER = Optimiser(lr=3e-4, tables=0.3, weight_decay=0.01)
BATCH_SETS, BATCH_TOKENS = 128, 32_768  # of a batch, at most
EPOCHS, LEAST_STEPS = 3, 100
BALANCE = 0.5  # rows are drawn by how rare their label is, to this power
CONTRAST, SMOOTHING = 0.3, 0.1


def labelled(
    sets: TokenSets,
    codes: Codes,
    classes: Sequence[str],
    universe: Universe,
    *,
    run: Run | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Atacformer:
    """Learn the label of each set, its place in `classes` or -1 where not known; the head is kept.

    Raises BadData where one label is all there is.
    """
    bag = Bag.fit_labelled(sets, codes, classes, universe, seed=seed, device=device)
    assert bag.head is not None
    settings = Settings(len(universe) + N_SPECIALS, bag.dim, 4 * bag.dim, 1, HEADS)
    rows, _ = labelled_rows(sets, codes, seed, held_out=0.0)
    run = run or _run_for(sets.sizes[rows].clip(max=settings.max_position_embeddings), seed, device)
    network, head = from_bag(bag, settings, seed=run.seed), deepcopy(bag.head)
    with torch.no_grad():
        head.weight.mul_(bag.dim**0.5 / HEAD_SCALE)
    # What the draw leaves of the labels' frequencies is given to the head, so that the vectors need not learn it.
    prior = torch.from_numpy((1 - BALANCE) * np.log(np.bincount(codes[rows], minlength=len(classes)).clip(1))).float()

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        pooled = pool(network(batch.tokens, batch.sizes), batch.sizes)
        logits = head(HEAD_SCALE * F.normalize(pooled, dim=1)).float() + prior.to(pooled.device)
        named = F.cross_entropy(logits, batch.targets, label_smoothing=SMOOTHING)
        contrast = supervised_contrast(seen_from_mean(pooled), batch.targets)
        return named + CONTRAST * contrast, {"head": named, "contrast": contrast}

    network.set_dropout(0.0)  # leaving tokens out is enough
    draw = Draw(balance=BALANCE, views=1)
    batches = Views(sets, codes, rows, settings.max_position_embeddings, run, draw)
    train(nn.ModuleDict({"network": network, "head": head}), loss_of, batches, run)
    return Atacformer(universe, network.cpu(), head=head.cpu(), classes=classes)


def from_bag(bag: Bag, settings: Settings, *, seed: int) -> Network:
    """A network of one layer whose pooled vectors are those of a bag, but for ReLU in the place of GELU."""
    width, own = settings.hidden_size, bag.network
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = Network(settings)
        table, layer = network.embeddings.token_embeddings.weight, network.layers[0]
        table.zero_()
        table[: len(own.table)] = own.table
        attention = layer.self_attn
        attention.in_proj_weight[2 * width :] = torch.eye(width)
        attention.out_proj.weight.copy_(MEAN * torch.eye(width))
        for mine, bags in ((layer.norm1, own.norm), (layer.linear1, own.widen), (layer.linear2, own.narrow)):
            mine.load_state_dict(bags.state_dict())
    return network


def _run_for(sizes: NDArray[np.int64], seed: int, device: str) -> Run:
    """A run as long as so many tokens need."""
    budget = int(min(BATCH_SETS * sizes.mean(), BATCH_TOKENS))
    per_epoch = max(1, int(sizes.sum() / budget))
    epochs = max(EPOCHS, -(-LEAST_STEPS // per_epoch))
    return Run(epochs=epochs, batch_tokens=budget, optimiser=OPTIMISER, device=device, seed=seed)

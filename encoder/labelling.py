"""Labels: an Atacformer that starts where LSI stands, and learns to name sets by a metadata column.

From random weights, a few thousand labelled cells teach a transformer less than they teach a bag of regions. So it
starts as LSI. Its table holds the weighted components of LSI. All layers are silent but for one bias, which moves
every token the same way, far against the length of its vector: so LayerNorm acts on them as a linear map, and the
mean of a set's tokens goes on weighing each of them as LSI does. The last LayerNorm is set so that the vectors of
the sample have mean 0 and the same spread in every dimension, and the head starts as logistic regression on them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import HEAD_SCALE, N_SPECIALS, Atacformer, Network, Settings, pool
from chromseek.encoder.finetune import Codes, Draw, Views, labelled_rows, supervised_contrast
from chromseek.encoder.lsi import LSI
from chromseek.encoder.training import Optimiser, Run, train
from chromseek.encoder.training_batches import Batch

SHAPE = Settings(0, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
LENGTH = 0.3  # of a token's vector against that of the common direction
OPTIMISER = Optimiser(lr=3e-4, tables=20.0, weight_decay=0.01)
BATCH_SETS, BATCH_TOKENS = 128, 32_768  # of a batch, at most
EPOCHS, LEAST_STEPS = 6, 100
BALANCE = 0.5  # rows are drawn by how rare their label is, to this power
CONTRAST, TEMPERATURE, SMOOTHING = 0.3, 0.1, 0.1


def labelled(
    sets: TokenSets,
    codes: Codes,
    classes: Sequence[str],
    universe: Universe,
    *,
    shape: Settings = SHAPE,
    run: Run | None = None,
    seed: int = 0,
) -> Atacformer:
    """Learn the label of each set, its place in `classes` or -1 where not known; the head is kept.

    `shape` is that of the network, whose vocabulary is the universe's. Raises BadData where one label is all there is.
    """
    rows, _ = labelled_rows(sets, codes, seed, held_out=0.0)
    settings = replace(shape, vocab_size=len(universe) + N_SPECIALS)
    run = run or _run_for(sets.sizes[rows].clip(max=settings.max_position_embeddings), seed)
    network = started(sets.take(rows), universe, settings, seed=run.seed)
    # What the draw leaves of the labels' frequencies is given to the head, so that the vectors need not learn it.
    prior = torch.from_numpy((1 - BALANCE) * np.log(np.bincount(codes[rows], minlength=len(classes)).clip(1))).float()
    head = _first_head(Atacformer(universe, network).pooled_sets(sets.take(rows)), codes[rows], len(classes))

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.targets is not None
        pooled = pool(network(batch.tokens, batch.sizes), batch.sizes)
        logits = head(HEAD_SCALE * F.normalize(pooled, dim=1)).float() + prior.to(pooled.device)
        named = F.cross_entropy(logits, batch.targets, label_smoothing=SMOOTHING)
        contrast = supervised_contrast(pooled, batch.targets, TEMPERATURE)
        return named + CONTRAST * contrast, {"head": named, "contrast": contrast}

    network.set_dropout(0.0)  # leaving tokens out is enough
    draw = Draw(balance=BALANCE, views=1)
    batches = Views(sets, codes, rows, settings.max_position_embeddings, run, draw)
    train(nn.ModuleDict({"network": network, "head": head}), loss_of, batches, run)
    return Atacformer(universe, network.cpu(), head=head.cpu(), classes=classes)


def started(sets: TokenSets, universe: Universe, settings: Settings, *, seed: int) -> Network:
    """A network whose pooled vectors are those of LSI, fitted on these sets, with mean 0 and the same spread."""
    lsi = LSI.fit(sets, TokenSets.from_lists([]), universe, dim=settings.hidden_size, seed=seed)
    table = torch.from_numpy(lsi.weighted_components())
    table -= table.mean(dim=1, keepdim=True)
    norms = table.norm(dim=1)
    table *= LENGTH * settings.hidden_size**0.5 / norms[norms > 0].mean()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = Network(settings)
        network.embeddings.token_embeddings.weight.zero_()
        network.embeddings.token_embeddings.weight[: len(universe), : table.shape[1]] = table
        layers = network.layers
        for layer in layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.linear2.weight.zero_()
        common = F.layer_norm(torch.randn(settings.hidden_size), [settings.hidden_size])
        layers[0].self_attn.out_proj.bias.copy_(common)
        pooled = torch.from_numpy(Atacformer(universe, network).pooled_sets(sets))
        spread, last = pooled.std(dim=0), layers[-1].norm2
        spread /= spread.mean() * (spread / spread.mean()).mean()
        last.weight.div_(spread)
        last.bias.sub_(pooled.mean(dim=0)).div_(spread)
    return network


def _first_head(pooled: NDArray[np.float32], codes: Codes, n_classes: int) -> nn.Linear:
    """Logistic regression as a linear layer; classes that no set has are never said."""
    units = F.normalize(torch.from_numpy(pooled), dim=1).numpy() * HEAD_SCALE
    fit = LogisticRegression(C=0.1, max_iter=300, class_weight="balanced").fit(units, codes)
    head = nn.Linear(pooled.shape[1], n_classes)
    binary = len(fit.classes_) == 2  # one row of weights stands for both
    weights, biases = (np.concatenate([-one, one]) if binary else one for one in (fit.coef_, fit.intercept_))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-8.0)
        head.weight[fit.classes_] = torch.from_numpy(weights).float()
        head.bias[fit.classes_] = torch.from_numpy(biases).float()
    return head


def _run_for(sizes: NDArray[np.int64], seed: int) -> Run:
    """A run as long as so many tokens need."""
    budget = int(min(BATCH_SETS * sizes.mean(), BATCH_TOKENS))
    per_epoch = max(1, int(sizes.sum() / budget))
    epochs = max(EPOCHS, -(-LEAST_STEPS // per_epoch))
    return Run(epochs=epochs, batch_tokens=budget, optimiser=OPTIMISER, seed=seed)

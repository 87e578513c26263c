"""Fine-tuning and scoring: what is drawn, what the losses are, and that labels, or batches, show as they should."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pretrain import CELLS, SIMULATION, TINY, TYPES, run_of

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.tokens import TokenSets
from chromseek.encoder.atacformer import Atacformer, Network, Settings
from chromseek.encoder.contrast import seen_from_mean, supervised_contrast
from chromseek.encoder.evaluate import evaluate, linear_head, neighbours_labels
from chromseek.encoder.finetune import (
    Aim,
    Draw,
    Triplets,
    Views,
    batch_corrected,
    contrastive,
    freeze,
    reversed_gradient,
    triplet,
)
from chromseek.encoder.pretrain import pretrained
from chromseek.encoder.training import Optimiser, Run

HALF = np.arange(len(CELLS)) % 2 == 0  # learnt from; the others only tell how well


@pytest.fixture(scope="module")
def start() -> Atacformer:
    """A network that was trained a little, from random region vectors."""
    return pretrained(CELLS.sets, SIMULATION.universe, TINY, run=run_of(steps=10), spectral=False)


def accuracy(encoder: Atacformer, codes: np.ndarray) -> float:
    """How often the nearest neighbours of the cells that were not learnt from, among those that were, are right."""
    vectors = encoder.encode(CELLS.sets, "cell")
    return float((neighbours_labels(vectors[HALF], codes[HALF], vectors[~HALF]) == codes[~HALF]).mean())


@pytest.mark.parametrize("tune", [contrastive, triplet])
def test_labels_are_learnt(start: Atacformer, tune: object) -> None:
    assert callable(tune)
    before = accuracy(start, TYPES)
    run = Run(steps=40, batch_tokens=8192, optimiser=Optimiser(lr=2e-3, warmup=5))
    tuned = tune(start, CELLS.sets, np.where(HALF, TYPES, -1), run=run)
    assert accuracy(tuned, TYPES) > before + 0.15
    assert accuracy(start, TYPES) == before, "the start stays as it is"
    assert tuned.discriminator is None


def test_batches_are_unlearnt(start: Atacformer) -> None:
    """Cells of two batches, of which one has regions that the other lacks."""
    batches = np.arange(len(CELLS)) % 3 // 2
    marked = TokenSets.from_lists(
        [np.append(CELLS.sets[row], range(20)) if batches[row] else CELLS.sets[row] for row in range(len(CELLS))]
    )
    run = Run(steps=30, batch_tokens=8192, optimiser=Optimiser(lr=3e-3, warmup=3))
    aware = batch_corrected(start, marked, batches, run=run, unfrozen=0, alpha=-1.0)  # not reversed: batches are learnt
    blind = batch_corrected(start, marked, batches, run=run, unfrozen=0, weight=3.0)
    told = []
    for encoder in (aware, blind):
        vectors = encoder.encode(marked, "cell")
        found = linear_head(vectors[HALF], batches[HALF]).decision_function(vectors[~HALF])
        told.append(abs(np.corrcoef(found, batches[~HALF])[0, 1]))
        assert encoder.discriminator is not None
    assert told[1] < told[0] - 0.1


def test_gradients_are_reversed() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (reversed_gradient(x, 0.5) * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.5, -2.0]


def test_all_but_the_last_layers_and_norms_are_frozen() -> None:
    network = Network(Settings(107, 16, 32, 3, 2))
    freeze(network, 1)
    free = {name for name, weight in network.named_parameters() if weight.requires_grad}
    everything = {name for name, _ in network.named_parameters()}
    assert free == {name for name in everything if name.startswith("encoder.layers.2.") or ".norm" in name}
    untouched = Network(Settings(107, 16, 32, 3, 2))
    freeze(untouched, 0)
    assert all(weight.requires_grad for weight in untouched.parameters())
    with pytest.raises(BadArgument, match="unfrozen is 4"):
        freeze(network, 4)


def test_contrast_is_the_published_sum() -> None:
    vectors, codes = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    units = F.normalize(vectors, dim=1)
    units = F.normalize(units - units.mean(dim=0), dim=1)
    losses = []
    for i in range(7):
        like = [p for p in range(7) if p != i and codes[p] == codes[i]]
        if not like:
            continue  # the only one of its label
        total = sum(math.exp(float(units[i] @ units[a]) / 0.1) for a in range(7) if a != i)
        losses.append(-sum(math.log(math.exp(float(units[i] @ units[p]) / 0.1) / total) for p in like) / len(like))
    assert float(supervised_contrast(seen_from_mean(vectors), codes, 0.1)) == pytest.approx(
        float(np.mean(losses)), abs=1e-5
    )


def test_a_contrast_without_likes_is_nothing() -> None:
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrast(seen_from_mean(vectors), torch.arange(3), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert not vectors.grad.isnan().any()


def test_views_are_varied_and_rare_labels_drawn_more_often() -> None:
    sets = TokenSets.from_lists([range(100)] * 100)
    codes = (np.arange(100) < 10).astype(np.int64)
    run = Run(batch_tokens=1000)
    even = Views(sets, codes, np.arange(100), 1000, run, Draw(balance=0.0))
    assert sorted(np.concatenate(even.plan(0)).tolist()) == list(range(100))
    assert max(len(batch) for batch in even.plan(0)) == 5, "two views of 100 tokens each"
    drawn = np.concatenate([np.concatenate(Views(*parts(even), Draw(balance=1.0)).plan(n)) for n in range(20)])
    assert codes[drawn].mean() == pytest.approx(0.5, abs=0.05)
    batch = even.make(np.array([3, 50]), np.random.default_rng(0))
    assert batch.targets is not None
    assert batch.targets.tolist() == [1, 0, 1, 0]
    assert len(set(batch.sizes)) > 1
    assert min(batch.sizes) >= 30
    short = Views(sets, codes, np.arange(100), 20, run).make(np.array([3]), np.random.default_rng(0))
    assert short.sizes == [20, 20]


def parts(views: Views) -> tuple[TokenSets, np.ndarray, np.ndarray, int, Run]:
    """What views are made of, but for the draw."""
    return views.sets, views.codes, views.rows, views.context, views.run


def test_triplets_are_of_the_right_labels() -> None:
    codes = np.array([0, 0, 1, 1, 1, 2, -1])
    sets = TokenSets.from_lists([[row] for row in range(7)])  # a set's token is its row
    batches = Triplets(sets, codes, np.arange(6), 10, Run(batch_tokens=30))
    assert sorted(np.concatenate(Triplets(*parts(batches), Draw(balance=0)).plan(0)).tolist()) == list(range(6))
    rows = np.repeat(np.arange(6), 50)
    made = batches.make(rows, np.random.default_rng(0)).tokens.numpy().reshape(3, -1)
    assert np.array_equal(made[0], rows)
    assert np.array_equal(codes[made[1]], codes[rows])
    assert (codes[made[2]] != codes[rows]).all()
    assert codes[made[2]].min() >= 0
    assert (made[1] != rows)[codes[rows] < 2].all(), "a label with two sets has another one"
    assert set(made[1][rows == 2]) == {3, 4}
    assert set(made[2][rows == 0]) == {2, 3, 4, 5}


def test_one_label_is_too_few(start: Atacformer) -> None:
    for codes in (np.zeros(len(CELLS), np.int64), np.full(len(CELLS), -1)):
        for tune in (contrastive, triplet, batch_corrected):
            with pytest.raises(BadData, match="nothing to tell apart"):
                tune(start, CELLS.sets, codes, run=Run(steps=1))


def test_the_head_may_do_without_contrast(start: Atacformer) -> None:
    run = Run(steps=2, batch_tokens=8192)
    tuned = contrastive(start, CELLS.sets, TYPES, run=run, draw=Draw(views=1), aim=Aim(contrast=0.0))
    assert not np.array_equal(tuned.encode(CELLS.sets, "cell"), start.encode(CELLS.sets, "cell"))


def test_scores_of_vectors_with_and_without_labels_in_them() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), 50)
    centres = rng.normal(size=(4, 8))
    good = evaluate((centres[codes] + 0.1 * rng.normal(size=(200, 8))).astype(np.float32), codes)
    assert min(good.knn_accuracy, good.knn_macro_f1, good.linear_accuracy, good.linear_macro_f1) > 0.98
    assert min(good.ari, good.nmi) > 0.98
    assert (good.n_rows, good.n_labels) == (200, 4)
    bad = evaluate(rng.normal(size=(200, 8)).astype(np.float32), np.where(codes == 3, -1, codes))
    assert max(bad.knn_accuracy, bad.linear_accuracy) < 0.5
    assert abs(bad.ari) < 0.1
    assert (bad.n_rows, bad.n_labels) == (150, 3)


def test_groups_are_left_out_whole() -> None:
    """Where a label is told by its group alone, nothing is told of a group that was left out."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    codes = groups % 2
    vectors = (rng.normal(size=(10, 30))[groups] + 0.1 * rng.normal(size=(200, 30))).astype(np.float32)
    assert evaluate(vectors, codes).knn_accuracy > 0.95
    assert evaluate(vectors, codes, groups=groups).knn_accuracy < 0.8


def test_too_few_to_score() -> None:
    vectors = np.eye(4, dtype=np.float32)
    for codes, groups in (
        ([0, 0, 0, 0], None),
        ([0, 1, 2, 3], None),
        ([0, 0, 1, 1], [5, 5, 5, 5]),
        ([-1] * 4, None),
        ([0, 0, 1, 1], [5, 5, 6, 6]),
    ):
        with pytest.raises(BadData, match="too few"):
            evaluate(vectors, np.array(codes), groups=None if groups is None else np.array(groups))


def test_neighbours_vote_and_the_nearer_breaks_ties() -> None:
    known = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    codes = np.array([0, 0, 1, 1])
    asked = np.array([[1, 0.1], [0.2, 1]], np.float32)
    assert neighbours_labels(known, codes, asked).tolist() == [0, 1]
    assert neighbours_labels(known[:1], codes[:1], known[:1]).tolist() == [0]
    assert neighbours_labels(known, codes, known, itself=True).tolist() == [1, 1, 0, 0], "three are left: two others"

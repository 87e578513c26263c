"""The three ways in which a bag learns: from token sets alone, from a label of each, from the vectors of a teacher.

All start from the components of LSI, which know already which regions go together, and run through the loop of
training.py. A batch shows each set with a random share of its tokens, so that depth and single regions do not matter.

What is fixed here was chosen by the neighbours and the head on splits of the training part of one fold, of granja and
SNARE (LEAST_STEPS of schep and corces); the test part of that fold had no say.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.tokens import TokenSets, offsets_of
from chromseek.data.universe import Universe
from chromseek.encoder.bag import NO_SETS, Network
from chromseek.encoder.contrast import supervised_contrast
from chromseek.encoder.lsi import LSI
from chromseek.encoder.training import Optimiser, Run, train
from chromseek.encoder.training_batches import Batch

ROWS = (128, 1024)  # sets of a batch, least and most: a step costs by the size of the table, so a large one takes more
REGIONS_PER_ROW = 500
LEAST_STEPS = 100
SPREAD = 0.15  # standard deviation of the table at the start
SMOOTHING = 0.1
TOGETHER = 0.3  # weight of the supervised contrast beside the cross-entropy
LEFT_OUT = 8  # tokens of a set that are to be told from those of the other sets
SHARPNESS = 10.0  # of the cosines between sets and left-out tokens, at the start


@dataclass(frozen=True)
class Lesson:
    """Sets, and what is to be said of each when only a share of its tokens is shown."""

    sets: TokenSets  # none of them empty
    least: float  # share of the tokens shown; the share itself is uniform from here to 1
    seed: int
    rows: int  # of a batch
    targets: Tensor | None = None  # (n, ...); None: tell tokens that are left out
    chances: NDArray[np.float64] | None = None  # (n) that a row is drawn; None: each comes once an epoch

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """Rows in another order every epoch; those that do not fill a batch wait for the next."""
        n, rng = len(self.sets), np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.chances is None else rng.choice(n, n, p=self.chances)
        return [order[start : start + self.rows] for start in range(0, max(1, n - self.rows + 1), self.rows)]

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Drop tokens of each set; without targets they are (rows, LEFT_OUT) tokens, which are dropped for certain."""
        sets = self.sets.take(rows)
        owners = np.repeat(np.arange(len(rows)), sets.sizes)
        shown = rng.random(len(owners)) < rng.uniform(self.least, 1, len(rows))[owners]
        if self.targets is None:
            places = sets.offsets[:-1, None] + (rng.random((len(rows), LEFT_OUT)) * sets.sizes[:, None]).astype(int)
            shown[places] = False
            targets = torch.from_numpy(sets.tokens[places].astype(np.int64))
        else:
            targets = self.targets[torch.from_numpy(rows)]
        sizes = np.bincount(owners[shown], minlength=len(rows))
        return Batch.of(TokenSets(offsets_of(sizes), sets.tokens[shown]), targets=targets)


def self_taught(sets: TokenSets, universe: Universe, *, dim: int, seed: int, device: str) -> Network:
    """Learn which tokens were left out of a set: they lie nearer to it than those left out of the other sets.

    A left-out token is read as the region alone, so that sets and regions come to lie in one space.
    """
    sets = sets.take(np.flatnonzero(sets.sizes))
    network = started(sets, universe, dim, seed)
    sharpness = nn.Linear(1, 1, bias=False)
    nn.init.constant_(sharpness.weight, math.log(SHARPNESS))

    def loss_of(batch: Batch) -> Tensor:
        assert batch.targets is not None
        regions = batch.targets.flatten()
        near = F.normalize(network(regions, [1] * len(regions)))
        cosines = F.normalize(network(batch.tokens, batch.sizes)) @ near.T
        scores = cosines * sharpness.weight.exp()
        own = torch.arange(len(regions), device=scores.device).view(batch.targets.shape)
        right = scores.gather(1, own)
        others = scores.scatter(1, own, -math.inf).logsumexp(dim=1, keepdim=True)
        return (torch.logaddexp(right, others) - right).mean()

    model = nn.ModuleDict({"network": network, "sharpness": sharpness})
    lesson = Lesson(sets, 0.3, seed, _rows(universe))
    train(model, loss_of, lesson, _run(lesson, device, epochs=10))
    return _finished(network, sets)


def label_taught(
    sets: TokenSets,
    codes: NDArray[np.integer[Any]],
    n_classes: int,
    universe: Universe,
    *,
    dim: int,
    seed: int,
    device: str,
) -> tuple[Network, nn.Linear]:
    """Learn the label of each set, -1 where it has none; give the head too.

    Rows are drawn by 1 / sqrt(size of their class). What is left of the classes' sizes is given to the logits and
    need not be learned: they are those of classes of one size.
    """
    codes = np.asarray(codes)
    rows = _labelled(sets, codes, n_classes)
    sets, targets = sets.take(rows), torch.from_numpy(codes[rows].astype(np.int64))
    network = started(sets, universe, dim, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(dim, n_classes)
    counts = np.bincount(targets, minlength=n_classes)
    chances = 1 / np.sqrt(counts[targets])
    prior = torch.from_numpy(np.log(counts.clip(1)) / 2).float()

    def loss_of(batch: Batch) -> Tensor:
        assert batch.targets is not None
        vectors = network(batch.tokens, batch.sizes)
        guesses = head(vectors) + prior.to(vectors.device)
        named = F.cross_entropy(guesses, batch.targets, label_smoothing=SMOOTHING)
        return named + TOGETHER * supervised_contrast(F.normalize(vectors), batch.targets)

    model = nn.ModuleDict({"network": network, "head": head})
    lesson = Lesson(sets, 0.3, seed, _rows(universe), targets, chances / chances.sum())
    train(model, loss_of, lesson, _run(lesson, device, epochs=12))
    return _finished(network, sets), head.cpu()


def teacher_taught(
    sets: TokenSets, vectors: NDArray[np.floating[Any]], universe: Universe, *, seed: int, device: str
) -> Network:  # fmt: skip
    """Learn to make the teacher's unit vectors, as wide as they are."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(sets) or vectors.shape[1] < 2 or not np.isfinite(vectors).all():
        raise BadArgument(
            f"{vectors.shape} vectors cannot teach {len(sets)} sets",
            code="BAG-VECTORS",
            got=vectors.shape,
            fix="give one vector of finite numbers for each set",
        )
    rows = np.flatnonzero(vectors.any(axis=1) & (sets.sizes > 0))
    sets, targets = sets.take(rows), F.normalize(torch.from_numpy(vectors[rows]))
    network = started(sets, universe, vectors.shape[1], seed)

    def loss_of(batch: Batch) -> Tensor:
        assert batch.targets is not None
        return (1 - F.cosine_similarity(network(batch.tokens, batch.sizes), batch.targets)).mean()

    lesson = Lesson(sets, 0.5, seed, _rows(universe), targets)
    train(network, loss_of, lesson, _run(lesson, device, epochs=30))
    return _finished(network, sets)


def started(sets: TokenSets, universe: Universe, dim: int, seed: int) -> Network:
    """The network before it learns: the components of LSI as its table; noise where LSI has fewer dimensions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(len(universe), dim)
        components = torch.from_numpy(LSI.fit(sets, NO_SETS, universe, dim=dim, seed=seed).arrays()["components"])
        found = components.shape[1]
        with torch.no_grad():
            network.table[:, :found] = SPREAD * components.float() / components.float().std()
            network.table[:, found:].normal_(0, 0.1 * SPREAD)
    return network


def _labelled(sets: TokenSets, codes: NDArray[np.integer[Any]], n_classes: int) -> NDArray[np.int64]:
    """The rows to learn from. Raises BadArgument for labels that do not fit, BadData when they tell nothing apart."""
    if codes.shape != (len(sets),) or codes.dtype.kind not in "iu":
        raise BadArgument(
            f"{codes.shape} {codes.dtype} labels do not fit {len(sets)} sets",
            code="BAG-LABELS",
            got=codes.shape,
            fix="give one whole number for each set, -1 where the label is not known",
        )
    if codes.max(initial=-1) >= n_classes or codes.min(initial=0) < -1:
        raise BadArgument(
            f"labels run from {codes.min()} to {codes.max()}, but there are {n_classes} classes",
            code="BAG-LABELS",
            got=int(codes.max()),
            fix="give places in the list of classes, -1 where the label is not known",
        )
    rows = np.flatnonzero((codes >= 0) & (sets.sizes > 0))
    there = len(np.unique(codes[rows]))
    if there < 2:
        raise BadData(
            f"the labels have {there} classes among {len(rows)} sets with a label and tokens",
            code="BAG-CLASSES",
            got=there,
            fix="give a column with two classes at least, or fit without labels",
        )
    return rows


def _finished(network: Network, sets: TokenSets) -> Network:
    """Forget the embeddings of regions that no set had: nothing was learned of them."""
    network.cpu()
    seen = torch.zeros(len(network.table), dtype=torch.bool)
    seen[torch.from_numpy(sets.tokens).long()] = True
    with torch.no_grad():
        network.table[~seen] = 0
    return network


def _rows(universe: Universe) -> int:
    return min(max(len(universe) // REGIONS_PER_ROW, ROWS[0]), ROWS[1])


def _run(lesson: Lesson, device: str, *, epochs: int) -> Run:
    """So many epochs; more where they are short."""
    steps = max(LEAST_STEPS, epochs * len(lesson.plan(0)))
    return Run(steps=steps, optimiser=Optimiser(lr=2e-3, weight_decay=0.01), device=device, seed=lesson.seed)

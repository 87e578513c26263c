"""What a model learns from: batches of token sets, planned by epoch, dealt out to processes, and made ahead of time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chromseek.data.tokens import TokenSets, offsets_of
from chromseek.encoder.packing import batches as packed

POOL = 64  # batches: rows within so many are sorted by length


@dataclass(frozen=True)
class Batch:
    """Sets one after the other, and what the loss compares them with."""

    tokens: Tensor  # (T) int64
    sizes: list[int]  # tokens of each set
    targets: Tensor | None = None  # of tokens or of sets, as the loss wants them
    labels: Tensor | None = None  # a second kind of them

    @classmethod
    def of(cls, sets: TokenSets, *, targets: Tensor | None = None, labels: Tensor | None = None) -> "Batch":
        """The batch of these sets."""
        return cls(torch.from_numpy(sets.tokens.astype(np.int64)), sets.sizes.tolist(), targets, labels)

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        moved = (None if one is None else one.to(device) for one in (self.targets, self.labels))
        return Batch(self.tokens.to(device), self.sizes, *moved)


class Batches(Protocol):
    """What a model learns from."""

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of each batch of an epoch, the same whenever it is asked for."""

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Make the batch of some rows; all that is random comes from `rng`."""


def shuffled(
    sizes: NDArray[np.int64], budget: int, *, seed: int, epoch: int, rows: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """Deal rows out to batches of like length, at most `budget` tokens or one row each, in another order every epoch.

    `sizes` are the tokens of each row as they enter the model; `rows` names some of the rows, repeats allowed.
    Rows without tokens are left out.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(np.arange(len(sizes)) if rows is None else rows)
    order = order[sizes[order] > 0]
    if len(order) == 0:
        return []
    per_pool = max(1, int(POOL * budget / sizes[order].mean()))
    pools = [order[start : start + per_pool] for start in range(0, len(order), per_pool)]
    found = [pool[batch] for pool in pools for batch in packed(sizes[pool], budget)]
    return [found[place] for place in rng.permutation(len(found))]


def sampled(sets: TokenSets, counts: NDArray[np.int64], rng: np.random.Generator) -> TokenSets:
    """Sample `counts` tokens of each set (n) without replacement; no more than it has.

    >>> sampled(TokenSets.from_lists([range(9), [7]]), np.array([4, 1]), np.random.default_rng(0)).sizes.tolist()
    [4, 1]
    """
    sizes = sets.sizes
    if (counts >= sizes).all():
        return sets
    owners = np.repeat(np.arange(len(sets)), sizes)
    order = np.lexsort((rng.random(len(sets.tokens)), owners))
    keep = np.zeros(len(order), bool)
    keep[order] = np.arange(len(order)) - sets.offsets[:-1][owners] < counts[owners]
    return TokenSets(offsets_of(np.minimum(counts, sizes)), sets.tokens[keep])


@dataclass(frozen=True)
class Step:
    """The batches of one step that fall to this process."""

    epoch: int
    stop: int  # batches of the epoch that are done after it, in all processes
    jobs: list[tuple[int, NDArray[np.int64]]]  # the batch's number in the epoch, its rows
    made: list[list[Batch]] = field(default_factory=list)  # the batches, each whole


def steps_from(batches: Batches, epoch: int, start: int, *, accumulate: int, rank: int, world: int) -> Iterator[Step]:
    """All steps from a batch of an epoch on, without end; batches that do not fill a step wait for another epoch."""
    stride = accumulate * world
    while True:
        plan = batches.plan(epoch)
        for stop in range(start + stride, len(plan) + 1, stride):
            mine = range(stop - stride + rank, stop, world)
            yield Step(epoch, stop, [(number, plan[number]) for number in mine])
        epoch, start = epoch + 1, 0


def made_ahead(steps: Iterator[Step], batches: Batches, seed: int, maker: ThreadPoolExecutor) -> Iterator[Step]:
    """Make the batches of the next step while the model works on this one."""

    def next_made() -> Step:
        step = next(steps)
        return replace(step, made=make(batches, step, seed, 1))

    waiting = maker.submit(next_made)
    while True:
        step = waiting.result()
        waiting = maker.submit(next_made)
        yield step


def make(batches: Batches, step: Step, seed: int, n_parts: int) -> list[list[Batch]]:
    """The batches of a step, each in so many parts, or one for each of its rows."""
    return [
        [
            batches.make(some, np.random.default_rng([seed, step.epoch, number, part]))
            for part, some in enumerate(np.array_split(rows, min(n_parts, len(rows))))
        ]
        for number, rows in step.jobs
    ]

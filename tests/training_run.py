"""A small model to train, in this process or another one.

`python training_run.py FOLDER STEPS [KILL_AT]` trains in FOLDER, is killed by SIGKILL before step KILL_AT, and resumes
where FOLDER has a checkpoint. Under torchrun each process writes its weights and its rows to FOLDER/rank<N>.pt.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chromseek.data.tokens import TokenSets
from chromseek.encoder.training import Optimiser, Run, train
from chromseek.encoder.training_batches import Batch, shuffled

N_ROWS, N_REGIONS, BUDGET = 60, 40, 50


class Toy(nn.Module):
    """A bag of regions that tells odd sets from even ones; dropout, so that random numbers matter."""

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.regions, self.out = nn.Embedding(N_REGIONS, 8), nn.Linear(8, 2)
        self.drop = nn.Dropout(drop)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (sets, 2)."""
        starts = torch.tensor(np.cumsum([0, *batch.sizes[:-1]]), device=batch.tokens.device)
        bags = nn.functional.embedding_bag(batch.tokens, self.regions.weight, starts, mode="mean")
        logits: Tensor = self.out(self.drop(bags))
        return logits


class OddOrEven:
    """Sets of tokens that are all odd or all even."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        lists = [rng.integers(0, N_REGIONS // 2, rng.integers(1, 12)) * 2 + row % 2 for row in range(N_ROWS)]
        self.sets, self.seed = TokenSets.from_lists(lists), seed
        self.seen: list[int] = []

    def plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """Every row once."""
        return shuffled(self.sets.sizes, BUDGET, seed=self.seed, epoch=epoch)

    def make(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """The sets, with a random number beside each, that the loss adds as noise."""
        self.seen += rows.tolist()
        noise = torch.from_numpy(rng.random(len(rows)).astype(np.float32))
        return Batch.of(self.sets.take(rows), targets=torch.from_numpy(rows % 2), labels=noise)


def loss_of(model: Toy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy, weighted by the batch's random numbers."""
    assert batch.targets is not None
    assert batch.labels is not None
    losses = nn.functional.cross_entropy(model(batch), batch.targets, reduction="none")
    return (losses * (0.5 + batch.labels)).mean(), {"plain": losses.mean()}


def main() -> None:
    """Train as the command line says."""
    folder, steps, kill_at = Path(sys.argv[1]), int(sys.argv[2]), int((*sys.argv, -1)[3])
    model, data, rank = Toy(0.1 if "RANK" not in os.environ else 0.0), OddOrEven(), os.environ.get("RANK", "0")
    calls = 0

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of(model, batch)

    run = Run(folder, steps=steps, batch_tokens=BUDGET, checkpoint_every=4, log_every=1, optimiser=Optimiser(lr=0.05))
    train(model, loss, data, run, resume=(folder / "checkpoint.pt").exists())
    torch.save({"weights": model.state_dict(), "seen": data.seen}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""Pretraining by replaced-token detection: what is corrupted, and that something is learnt."""

import _thread
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chromseek.data.simulate import Simulation, toy
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.encoder.atacformer import N_SPECIALS, SIZES, Atacformer, Settings
from chromseek.encoder.base import load, save
from chromseek.encoder.pretrain import (
    IGNORED,
    Detection,
    corrupted,
    detection_figures,
    pretrained,
    spectral_regions,
    split,
)
from chromseek.encoder.training import Optimiser, Run

SIMULATION = toy()
N_REGIONS = len(SIMULATION.universe)
TINY = Settings(N_REGIONS + N_SPECIALS, **SIZES["tiny"])


def cells_of(simulation: Simulation) -> tuple[SetBlock, np.ndarray]:
    """All cells, and their types as codes."""
    block = next(iter(simulation.cells(block_size=10_000)))
    return block, block.metadata["cell_type"].combine_chunks().indices.to_numpy().astype(np.int64)


CELLS, TYPES = cells_of(SIMULATION)


def run_of(folder: Path | None = None, steps: int = 100, *, seed: int = 0) -> Run:
    """A short run."""
    how = Optimiser(lr=2e-3, warmup=10)
    return Run(folder, steps=steps, batch_tokens=4096, optimiser=how, log_every=1, checkpoint_every=5, seed=seed)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Atacformer, Path]:
    """A tiny network after 60 steps, and the folder of the run."""
    folder = tmp_path_factory.mktemp("run")
    return pretrained(CELLS.sets, SIMULATION.universe, TINY, run=run_of(folder, 60), codes=TYPES), folder


def test_tokens_are_replaced_as_published() -> None:
    tokens = np.arange(40)
    sets = TokenSets.from_lists([np.append(tokens, [50, 56])] * 500)
    rng = np.random.default_rng(0)
    batch = corrupted(sets, 50, 0.45, rng)
    assert batch.targets is not None
    old, new, targets = sets.tokens, batch.tokens.numpy(), batch.targets.numpy()
    special = old >= 50
    assert (new[special] == old[special]).all()
    assert (targets[special] == IGNORED).all()
    assert np.array_equal(targets[~special], (new != old)[~special])
    assert (new != old)[~special].mean() == pytest.approx(0.45 * 49 / 50, abs=0.01)
    replacing = np.bincount(new[~special & (new != old)], minlength=50)
    assert np.abs(replacing / replacing.sum() - 1 / 50).max() < 0.005
    assert batch.sizes == [42] * 500


def test_long_sets_are_sampled_anew() -> None:
    sets = TokenSets.from_lists([range(100), range(5)])
    detection = Detection(sets, np.arange(2), 200, 10, Run(batch_tokens=100), share=0.0)
    first, second = (detection.make(np.arange(2), np.random.default_rng(seed)) for seed in (0, 1))
    assert first.sizes == second.sizes == [10, 5]
    assert first.tokens[10:].tolist() == list(range(5))
    assert first.tokens.tolist() != second.tokens.tolist()
    assert set(first.tokens[:10].tolist()) <= set(range(100))


def test_some_sets_are_held_out() -> None:
    kept, held_out = split(1000, 0.02, 0)
    assert len(held_out) == 20
    assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(1000))
    assert [len(part) for part in split(5, 0.02, 0)] == [5, 0]


def test_the_loss_falls_and_replaced_tokens_are_told(learnt: tuple[Atacformer, Path]) -> None:
    encoder, folder = learnt
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-10:]) < np.mean(losses[:3]) - 0.05
    last = lines[-1]
    assert last.keys() >= {"held_out_loss", "held_out_auroc", "ari", "knn_accuracy"}
    unseen = next(iter(replace(SIMULATION, n_cells=700).cells(start=600)))  # cells that no run has had
    batch = corrupted(unseen.sets, N_REGIONS, 0.45, np.random.default_rng(9))
    figures = detection_figures(encoder, [batch])
    assert figures["held_out_auroc"] > 0.65
    assert figures["held_out_loss"] < 0.66, "chance is 0.688"


def test_the_encoder_is_saved_and_loaded(learnt: tuple[Atacformer, Path], tmp_path: Path) -> None:
    encoder = learnt[0]
    assert not encoder.network.training
    save(encoder, tmp_path / "e")
    again = load(tmp_path / "e")
    some = CELLS.sets.slice(0, 20)
    assert np.abs(again.encode(some, "cell") - encoder.encode(some, "cell")).max() < 1e-5


def test_a_stopped_run_resumes_exactly(tmp_path: Path) -> None:
    few, steps = CELLS.sets.slice(0, 60), 40
    whole = pretrained(few, SIMULATION.universe, TINY, run=run_of(steps=steps))
    watcher = threading.Thread(target=interrupted_once_there, args=(tmp_path / "checkpoint.pt",))
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        pretrained(few, SIMULATION.universe, TINY, run=run_of(tmp_path, steps))
    watcher.join()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["place"]["step"] < steps
    resumed = pretrained(few, SIMULATION.universe, TINY, run=run_of(tmp_path, steps), resume=True)
    for one, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def interrupted_once_there(file: Path) -> None:
    """Wait for a file, and press Ctrl-C."""
    while not file.exists():
        time.sleep(0.002)
    _thread.interrupt_main()


def test_training_on_leaves_the_start_alone(learnt: tuple[Atacformer, Path]) -> None:
    start = learnt[0]
    before = {key: array.copy() for key, array in start.arrays().items()}
    beds = SIMULATION.beds().sets
    tuned = pretrained(beds, SIMULATION.universe, start.network.settings, run=run_of(steps=3), start=start)
    assert all(np.array_equal(array, start.arrays()[key]) for key, array in before.items())
    assert not np.array_equal(tuned.arrays()["discriminator.dense.weight"], before["discriminator.dense.weight"])


def test_first_vectors_come_from_the_sets() -> None:
    first = spectral_regions(CELLS.sets, N_REGIONS, 16, 0)
    assert first.shape == (N_REGIONS, 16)
    means = np.stack([first[CELLS.sets[row]].mean(axis=0) for row in range(len(CELLS))])
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    scores = units @ units.T
    np.fill_diagonal(scores, -2)
    assert (TYPES[scores.argmax(axis=1)] == TYPES).mean() > 0.7
    nothing = spectral_regions(TokenSets.from_lists([[1], []]), 5, 4, 0)
    assert not nothing.any()

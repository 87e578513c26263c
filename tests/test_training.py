"""The training loop: learning, resuming exactly, several processes, and what may go wrong."""

import io
import json
import logging
import math
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_run import BUDGET, OddOrEven, Toy, loss_of

from chromseek.data.errors import BadArgument, BadData, NotFound, StorageError
from chromseek.data.tokens import TokenSets
from chromseek.encoder.training import Optimiser, Run, factor, train
from chromseek.encoder.training_batches import Batch, sampled, shuffled
from chromseek.encoder.training_files import load_checkpoint

FAST = Optimiser(lr=0.05)


def run_of(folder: Path | None = None, **changed: Any) -> Run:
    """A short run."""
    settings: dict[str, Any] = {"steps": 20, "batch_tokens": BUDGET, "optimiser": FAST, "log_every": 1}
    return Run(folder, **(settings | changed))


def weights_of(run: Run, *, drop: float = 0.1) -> dict[str, Tensor]:
    """The weights after a run of the toy model."""
    model = Toy(drop)
    train(model, lambda batch: loss_of(model, batch), OddOrEven(), run)
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether weights are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    model = Toy()
    run = run_of(tmp_path, steps=150, checkpoint_every=0, check_every=50)
    done = train(model, lambda batch: loss_of(model, batch), OddOrEven(), run, check=lambda: {"two": 2.0})
    lines = logged(tmp_path)
    figures = [line for line in lines if "loss" in line]
    assert [line["step"] for line in figures] == list(range(1, 151))
    assert {"plain", "lr", "grad_norm", "tokens_per_second", "epoch", "tokens"} <= figures[0].keys()
    assert [line["step"] for line in lines if "two" in line] == [50, 100, 150]
    assert figures[0]["plain"] > 0.6
    assert figures[-1]["plain"] < 0.1
    assert (done.steps, done.tokens, done.loss) == (150, figures[-1]["tokens"], figures[-1]["loss"])
    assert not model.training


def test_a_run_is_a_function_of_its_seed() -> None:
    assert same(weights_of(run_of()), weights_of(run_of()))
    assert not same(weights_of(run_of()), weights_of(run_of(seed=1)))


def test_checks_leave_no_trace() -> None:
    model = Toy()
    run = run_of(check_every=3)
    train(model, lambda b: loss_of(model, b), OddOrEven(), run, check=lambda: {"x": float(torch.rand(1))})
    assert same(model.state_dict(), weights_of(run_of()))


@pytest.mark.parametrize("stopped_at", [3, 7, 12])
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, stopped_at: int) -> None:
    run = run_of(tmp_path, checkpoint_every=2, accumulate=2)
    model, calls = Toy(), 0

    def stopping(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == 2 * stopped_at:
            raise KeyboardInterrupt
        return loss_of(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(model, stopping, OddOrEven(), run)
    again = Toy(0.1)
    train(again, lambda batch: loss_of(again, batch), OddOrEven(), run, resume=True)
    assert same(again.state_dict(), weights_of(run_of(accumulate=2)))
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, 21))


def test_killed_processes_resume_exactly(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("training_run.py")), str(tmp_path), "20"]
    for kill_at in ("6", "7"):
        killed = subprocess.run([*command, kill_at], timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "rank0.pt").exists()
    subprocess.run(command, timeout=120, check=True)
    found = torch.load(tmp_path / "rank0.pt", weights_only=True)["weights"]
    assert same(found, weights_of(run_of()))


def test_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    before = weights_of(run_of(tmp_path))
    model = Toy()
    train(model, lambda batch: loss_of(model, batch), OddOrEven(), run_of(tmp_path), resume=True)
    assert same(model.state_dict(), before)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("training_run.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, script, str(tmp_path), "12"], timeout=300, check=True, capture_output=True)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(one["weights"], two["weights"])
    alone = weights_of(run_of(steps=12, accumulate=2), drop=0.0)
    assert all(torch.allclose(alone[key], one["weights"][key], atol=1e-5) for key in alone)
    n_first = min(len(plan) // 2 * 2 for plan in map(OddOrEven().plan, range(2)))  # batches of one epoch, in pairs
    rows = [row for batch in OddOrEven().plan(0)[:n_first] for row in batch]
    n_rows = [sum(len(batch) for batch in OddOrEven().plan(0)[rank:n_first:2]) for rank in (0, 1)]
    first = [seen["seen"][:n] for seen, n in zip((one, two), n_rows, strict=True)]
    assert not set(first[0]) & set(first[1])
    assert sorted(first[0] + first[1]) == sorted(rows)
    assert [line["step"] for line in logged(tmp_path)] == list(range(1, 13))


def test_no_number_stops_the_run(tmp_path: Path) -> None:
    model, steps = Toy(), 0

    def breaking(batch: Batch) -> Tensor:
        nonlocal steps
        steps += 1
        return loss_of(model, batch)[0] * (math.nan if steps == 7 else 1)

    with pytest.raises(BadData, match=r"no number at step 6 .*; the checkpoint of step 5 is kept"):
        train(model, breaking, OddOrEven(), run_of(tmp_path, checkpoint_every=5))
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["place"]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in [*kept["model"].values(), *model.state_dict().values()])


def test_short_memory_halves_the_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, sizes = Toy(0.0), []

    def greedy(batch: Batch) -> Tensor:
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > BUDGET // 2 + 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(model, batch)[0]

    with caplog.at_level(logging.WARNING):
        train(model, greedy, OddOrEven(), run_of(tmp_path, steps=10))
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory at step 0: going on with smaller batches"
    ]
    assert max(sizes[1:]) <= BUDGET // 2 + 12
    assert load_checkpoint(tmp_path, {})["place"]["halvings"] == 1


def test_the_halves_of_a_batch_weigh_what_they_hold() -> None:
    whole, halved = Toy(0.0), Toy(0.0)
    calls = 0

    def short(batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryError
        return per_token(halved, batch)

    one_step = run_of(steps=1)
    train(whole, lambda batch: per_token(whole, batch), OddOrEven(), one_step)
    train(halved, short, OddOrEven(), one_step)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), halved.parameters(), strict=True))


def per_token(model: Toy, batch: Batch) -> Tensor:
    """A mean over tokens: what pretraining has."""
    return model.regions(batch.tokens).square().sum(dim=1).mean()


def test_no_memory_for_one_set() -> None:
    def never(_: Batch) -> Tensor:
        raise MemoryError

    with pytest.raises(StorageError, match="one set"):
        train(Toy(), never, OddOrEven(), run_of())


def test_other_errors_pass() -> None:
    def wrong(_: Batch) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(Toy(), wrong, OddOrEven(), run_of())


def test_frozen_weights_stay() -> None:
    model = Toy()
    model.regions.weight.requires_grad_(False)
    before = model.regions.weight.clone()
    train(model, lambda batch: loss_of(model, batch), OddOrEven(), run_of())
    assert torch.equal(model.regions.weight, before)
    model.requires_grad_(False)
    with pytest.raises(BadArgument, match="nothing is left to train"):
        train(model, lambda batch: loss_of(model, batch), OddOrEven(), run_of())


def test_bfloat16_learns_and_keeps_float32_weights() -> None:
    model = Toy()
    done = train(model, lambda batch: loss_of(model, batch), OddOrEven(), run_of(steps=150, dtype="bfloat16"))
    assert done.loss < 0.2
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changed", "said"), [({"seed": 3}, "another seed"), ({"accumulate": 2}, "another accumulate")]
)
def test_another_run_does_not_resume(tmp_path: Path, changed: dict[str, int], said: str) -> None:
    weights_of(run_of(tmp_path))
    with pytest.raises(BadArgument, match=said):
        train(Toy(), lambda _: torch.zeros(()), OddOrEven(), run_of(tmp_path, **changed), resume=True)


def test_another_model_or_other_data_do_not_resume(tmp_path: Path) -> None:
    weights_of(run_of(tmp_path))
    with pytest.raises(BadArgument, match="another model"):
        train(nn.Linear(2, 2), lambda _: torch.zeros(()), OddOrEven(), run_of(tmp_path), resume=True)
    data = OddOrEven()
    data.sets = data.sets.slice(0, 50)
    with pytest.raises(BadArgument, match="another inputs"):
        train(Toy(), lambda _: torch.zeros(()), data, run_of(tmp_path), resume=True)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_checkpoint(tmp_path, {})
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"nonsense", pickle.dumps(print, protocol=2), pickle.dumps(print)):
        path.write_bytes(content)
        with pytest.raises(BadData):
            load_checkpoint(tmp_path, {})
    for value in ({"model": {}}, {"model": print, "optimiser": 0, "place": 0, "plan": 0}):
        torch.save(value, path)
        with pytest.raises(BadData):
            load_checkpoint(tmp_path, {})


def test_too_few_batches_for_a_step() -> None:
    with pytest.raises(BadData, match="do not make one step of 64"):
        train(Toy(), lambda _: torch.zeros(()), OddOrEven(), run_of(accumulate=64))


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    weights_of(run_of())
    assert "20/20" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()


def test_plans_hold_every_row_once() -> None:
    sizes = np.random.default_rng(0).integers(0, 100, 500)
    plans = [shuffled(sizes, 300, seed=1, epoch=epoch) for epoch in (0, 0, 1)]
    for plan in plans:
        assert np.array_equal(np.sort(np.concatenate(plan)), np.flatnonzero(sizes))
        assert max(sizes[batch].sum() for batch in plan) <= 300
    assert [batch.tolist() for batch in plans[0]] == [batch.tolist() for batch in plans[1]]
    assert [batch.tolist() for batch in plans[0]] != [batch.tolist() for batch in plans[2]]
    spread = np.mean([np.ptp(sizes[batch]) for batch in plans[0]])
    assert spread < 10, "rows of like length are together"
    assert shuffled(np.array([900, 1]), 300, seed=0, epoch=0, rows=np.array([0]))[0].tolist() == [0]


def test_samples_are_fair() -> None:
    sets = TokenSets.from_lists([range(10), range(10, 13), []])
    counts, seen = np.array([4, 5, 2]), np.zeros(13)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        some = sampled(sets, counts, rng)
        assert some.sizes.tolist() == [4, 3, 0]
        assert (np.diff(some[0]) > 0).all()
        seen[some.tokens] += 1
    assert seen[10:].tolist() == [2000] * 3
    assert np.abs(seen[:10] / 2000 - 0.4).max() < 0.05


def test_schedules_are_the_documented_ones() -> None:
    how = {name: Optimiser(warmup=10, schedule=name) for name in ("cosine", "restarts", "linear", "constant")}  # type: ignore[arg-type]
    for schedule in how.values():
        assert [factor(step, 1000, schedule) for step in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
        assert factor(10, 1000, schedule) == 1
        assert factor(0, 5, schedule) == 1, "no warm-up in a run of five steps"
    assert factor(505, 1000, how["cosine"]) == pytest.approx(0.5)
    assert factor(1000, 1000, how["cosine"]) == pytest.approx(0)
    t, n, w = 300, 1000, 10
    amplitude = (n + w - t) / (2 * n)
    expected = amplitude * (1 + math.cos(math.pi * (4 * (t - w) / (n - w) % 1)))
    assert factor(t, n, how["restarts"]) == pytest.approx(expected)
    assert [factor(step, 1000, how["linear"]) for step in (258, 505, 900)] == pytest.approx([742 / 990, 0.5, 0.5])
    assert factor(999, 1000, how["constant"]) == 1

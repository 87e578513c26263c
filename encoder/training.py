"""Training: one loop for every model, `train`.

A run is a function of its seed. The plan of an epoch (which rows make which batch), what is done to a batch (sampling,
corruption) and dropout draw from generators that are seeded anew from the seed and the place in the run, so that a
checkpoint needs no generator's state: a run that was killed and resumed gives the same weights, bit for bit on a CPU.

Under torchrun the batches of a step are dealt out to the processes and their gradients are summed, so that two
processes do what one does that accumulates two batches. Gradients are summed here and not by
DistributedDataParallel, since a loss may call the model more than once or only parts of it.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from chromseek.data.errors import BadArgument, BadData, StorageError
from chromseek.encoder.devices import device_named, dtype_named, is_out_of_memory
from chromseek.encoder.training_batches import Batch, Batches, Step, made_ahead, make, steps_from
from chromseek.encoder.training_files import Place, Record, live_line, load_checkpoint

_log = logging.getLogger(__name__)
CYCLES = 4  # of the schedule with restarts
Schedule = Literal["cosine", "restarts", "linear", "constant"]


@dataclass(frozen=True)
class Optimiser:
    """How AdamW steps."""

    lr: float = 1.5e-4
    tables: float = 1.0  # times lr: the rate of embedding tables, of which a step moves few rows
    warmup: int = 500  # steps; at most a tenth of the run
    schedule: Schedule = "cosine"
    weight_decay: float = 0.0  # of matrices, not of biases and norms
    clip: float = 1.0  # the largest norm of a gradient


@dataclass(frozen=True)
class Run:
    """One training run: how long, in what portions, where."""

    folder: Path | None = None  # of the log and the checkpoint; None: nothing is written
    epochs: int = 25
    steps: int | None = None  # the end, whatever `epochs` says
    batch_tokens: int = 32_768  # of one batch, at most
    accumulate: int = 1  # batches of a step, in each process
    optimiser: Optimiser = field(default_factory=Optimiser)
    dtype: str = "float32"  # or bfloat16, by autocast: the weights stay float32; auto: bfloat16 on a GPU
    device: str = "cpu"
    seed: int = 0
    log_every: int = 10  # steps
    checkpoint_every: int = 500
    check_every: int = 0  # 0: at the end only


LossOf = Callable[[Batch], Tensor | tuple[Tensor, dict[str, Tensor]]]  # the mean over a batch, and parts to be logged
Check = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Trained:
    """What a run did."""

    steps: int
    tokens: int
    loss: float  # mean of the last steps: those of the newest line of the log


def train(
    model: nn.Module, loss_of: LossOf, batches: Batches, run: Run, *, check: Check | None = None, resume: bool = False
) -> Trained:
    """Train a model in place, and leave it in eval mode.

    `check` gives figures to log: process 0 calls it with the model in eval mode. Raises BadData when a loss or a
    gradient is no number (the last checkpoint stays), StorageError when the memory does not suffice for one set.
    """
    with _processes(run.device) as here, ThreadPoolExecutor(1) as maker:
        model.to(here.device).train()
        optimiser = _adamw(model, run.optimiser)
        n_steps, plan = _planned(batches, run, here)
        place = _resumed(model, optimiser, run.folder, plan) if resume else Place()
        _share_weights(model, here)
        steps = steps_from(
            batches, place.epoch, place.batch, accumulate=run.accumulate, rank=here.rank, world=here.world
        )
        ahead = made_ahead(steps, batches, run.seed, maker)
        with (
            Record(run.folder if here.rank == 0 else None, place) as record,
            live_line(n_steps, here.rank == 0) as show,
        ):
            for step in islice(ahead, n_steps - place.step):
                lr = _set_lr(optimiser, run.optimiser, place.step, n_steps)
                torch.manual_seed(_seed(run.seed, place.step, here.rank))
                sums = _gradient(model, loss_of, batches, step, run, place, here)
                sums, norm = _joined(model, sums, here, run.optimiser.clip)
                if not all(map(math.isfinite, [norm, *sums.values()])):
                    raise _no_number(place.step, record.saved, lr, run.folder)
                optimiser.step()
                place.step, place.epoch, place.batch = place.step + 1, step.epoch, step.stop
                record.add(sums)
                is_last, saves = place.step == n_steps, place.due(run.checkpoint_every)
                if is_last or saves or place.due(run.log_every):
                    record.line({"lr": lr, "grad_norm": norm})
                if check is not None and here.rank == 0 and (is_last or place.due(run.check_every)):
                    record.note(_checked(model, check))
                if is_last or saves:
                    record.save(model, optimiser, plan)
                show(place.step, record.newest)
        model.eval()
        return Trained(place.step, place.tokens, record.newest.get("loss", math.nan))


def factor(step: int, n_steps: int, how: Optimiser) -> float:
    """The share of the learning rate that a step has, counted from 0: a linear warm-up, then the schedule.

    `restarts` decays from peak to peak; `linear` never falls below one half.
    """
    warmup = min(how.warmup, n_steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, n_steps - warmup)
    if how.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if how.schedule == "restarts":
        return (1 + math.cos(math.pi * (CYCLES * done % 1))) * (n_steps + warmup - step) / (2 * n_steps)
    return max(0.5, 1 - done) if how.schedule == "linear" else 1.0


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or torchrun's rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class _Here:
    """Which of the processes this one is."""

    rank: int
    world: int
    device: str


@contextmanager
def _processes(device: str) -> Iterator[_Here]:
    """Join the other processes where torchrun started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = str(device_named(device))
    if world == 1:
        yield _Here(0, 1, device)
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield _Here(dist.get_rank(), world, device)
    finally:
        dist.destroy_process_group()


def _adamw(model: nn.Module, how: Optimiser) -> torch.optim.AdamW:
    weights = _trained(model)
    if not weights:
        raise BadArgument("nothing is left to train", code="TRAIN-FROZEN", fix="freeze fewer layers")
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay = how.weight_decay
    groups = [
        {"params": [w for w in weights if id(w) in tables], "weight_decay": decay, "times": how.tables},
        {"params": [w for w in weights if w.ndim > 1 and id(w) not in tables], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=how.lr, fused=True)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _set_lr(optimiser: torch.optim.Optimizer, how: Optimiser, step: int, n_steps: int) -> float:
    lr = how.lr * factor(step, n_steps, how)
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("times", 1.0)
    return lr


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def _planned(batches: Batches, run: Run, here: _Here) -> tuple[int, dict[str, Any]]:
    """The steps of a run, and what must be the same when it is resumed."""
    first, stride = batches.plan(0), run.accumulate * here.world
    if len(first) < stride:
        raise BadData(
            f"{len(first)} batches with tokens do not make one step of {stride}",
            code="TRAIN-FEW",
            got=len(first),
            fix="give more sets, or a smaller token budget, accumulation or number of processes",
        )
    digest = hashlib.sha256(np.concatenate(first).tobytes()).hexdigest()
    shape = {"accumulate": run.accumulate, "processes": here.world, "inputs or batch_tokens": digest}
    return run.steps or run.epochs * (len(first) // stride), {"seed": run.seed} | shape


def _resumed(model: nn.Module, optimiser: torch.optim.Optimizer, folder: Path | None, plan: dict[str, Any]) -> Place:
    """Put a checkpoint's weights and averages back. Raises BadArgument when it is of another run."""
    if folder is None:
        raise BadArgument("a run without a folder cannot be resumed", code="TRAIN-RESUME", fix="give its folder")
    saved = load_checkpoint(folder, plan)
    try:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict({"state": saved["optimiser"], "param_groups": optimiser.state_dict()["param_groups"]})
    except (RuntimeError, ValueError) as error:
        fix = "give the size and the kind of training that the run was started with"
        raise BadArgument(
            "the checkpoint is of another model", code="TRAIN-RESUME", file=str(folder), fix=fix
        ) from error
    return Place(**saved["place"])


def _share_weights(model: nn.Module, here: _Here) -> None:
    """Let every process start from the weights of process 0."""
    if here.world > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def _gradient(
    model: nn.Module, loss_of: LossOf, batches: Batches, step: Step, run: Run, place: Place, here: _Here
) -> dict[str, float]:
    """Leave the mean gradient of this process's batches in the weights; give loss, parts and tokens.

    When the memory runs out the step is done again with batches cut in half, and so are those that follow.
    """
    while True:
        made = step.made if place.halvings == 0 else make(batches, step, run.seed, 1 << place.halvings)
        model.zero_grad(set_to_none=True)
        try:
            return _summed(loss_of, made, run, here)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if all(len(rows) <= 1 << place.halvings for _, rows in step.jobs):
                fix = "choose a smaller context or model, bfloat16, or a larger machine"
                raise StorageError("the memory does not suffice for one set", code="MEMORY", fix=fix) from error
        place.halvings += 1
        if here.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if place.halvings == 1:
            _log.warning("out of memory at step %d: going on with smaller batches", place.step)


def _summed(loss_of: LossOf, made: list[list[Batch]], run: Run, here: _Here) -> dict[str, float]:
    """Add up the gradients of batches, all alike; the parts of a batch count by their tokens."""
    sums, device = dict[str, Tensor](), torch.device(here.device)
    n_tokens = [sum(len(part.tokens) for part in parts) for parts in made]
    for parts, size in zip(made, n_tokens, strict=True):
        for part in parts:
            share = len(part.tokens) / max(1, size) / len(made)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype_named(run.dtype, device) == torch.bfloat16):
                found = loss_of(part.to(here.device))
            loss, named = found if isinstance(found, tuple) else (found, {})
            torch.autograd.backward(loss * share)
            for name, value in ({"loss": loss} | named).items():
                sums[name] = sums.get(name, torch.zeros((), device=here.device)) + value.detach().float() * share
    return {name: float(value) for name, value in sums.items()} | {"tokens": float(sum(n_tokens))}


def _joined(model: nn.Module, sums: dict[str, float], here: _Here, clip: float) -> tuple[dict[str, float], float]:
    """Average gradients and figures over the processes, add up the tokens, clip; gives also the gradient's norm."""
    weights = _trained(model)
    if here.world > 1:
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            dist.all_reduce(weight.grad.div_(here.world))
        figures = torch.tensor([*sums.values()], dtype=torch.float32, device=here.device)
        dist.all_reduce(figures)
        sums = dict(zip(sums, (figures / here.world).tolist(), strict=True)) | {"tokens": float(figures[-1])}
    return sums, float(nn.utils.clip_grad_norm_(weights, clip if clip > 0 else math.inf))


def _checked(model: nn.Module, check: Check) -> Mapping[str, float]:
    """Call the check without leaving a trace in the training."""
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        figures = check()
    model.train()
    return figures


def _no_number(step: int, saved: int | None, lr: float, folder: Path | None) -> BadData:
    kept = "nothing was saved" if folder is None or saved is None else f"the checkpoint of step {saved} is kept"
    return BadData(
        f"the loss or its gradient is no number at step {step} (learning rate {lr:.2g}); {kept}",
        code="TRAIN-NAN",
        file=None if folder is None else str(folder),
        fix="use a smaller learning rate or float32",
    )

"""What a training run leaves on disk, and shows: the checkpoint, the log of figures, and a live line on a terminal."""

import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from chromseek.data.errors import BadArgument, BadData, NotFound, StorageError, printable

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
Show = Callable[[int, Mapping[str, float]], None]


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint of a run as a whole: a reader, or a process that was killed, has the old or the new one.

    Raises StorageError when the disk refuses.
    """
    draft = folder / f".{CHECKPOINT}"
    try:
        with open(draft, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / CHECKPOINT)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        draft.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the checkpoint: {printable(error, 200)}",
            code="TRAIN-WRITE",
            file=str(folder / CHECKPOINT),
            fix="free some space and go on from the last checkpoint with --resume",
        ) from error


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint of a run. Raises NotFound without one."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise NotFound(
            "no checkpoint to resume from", code="TRAIN-RESUME", file=str(path), fix="start without --resume"
        )
    return path


def load_checkpoint(folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run's checkpoint: tensors and plain values only, nothing in it is executed.

    Raises NotFound without one, BadData for any other content, BadArgument where `plan` would deal out other batches.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise NotFound(
            "no checkpoint to resume from", code="TRAIN-RESUME", file=str(path), fix="start without --resume"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an odd pickle, which is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or {"model", "optimiser", "place", "plan"} - state.keys():
            raise ValueError("not a training checkpoint")
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise BadData(
            f"not readable as a checkpoint: {printable(error, 200)}",
            code="TRAIN-CHECKPOINT",
            file=str(path),
            fix="train again from the start",
        ) from None
    changed = [name for name, value in plan.items() if state["plan"].get(name) != value]
    if changed:
        raise BadArgument(
            f"the run was started with another {', '.join(changed)}",
            code="TRAIN-RESUME",
            file=str(path),
            fix="give the same, or start in a new folder",
        )
    return state


@dataclass
class Place:
    """Where a run is: part of the checkpoint."""

    step: int = 0  # steps done
    epoch: int = 0
    batch: int = 0  # the next one of the epoch
    tokens: int = 0  # seen
    halvings: int = 0  # of the batches, since memory ran out

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; 0 is never."""
        return every > 0 and self.step % every == 0


class Record:
    """The log and the checkpoints of a run; without a folder they go nowhere."""

    def __init__(self, folder: Path | None, place: Place) -> None:
        """Go on from a place: what a killed run logged of later steps is cut off."""
        self.newest: dict[str, float] = {}
        self.saved = place.step or None
        self._folder, self._place = folder, place
        self._sums: dict[str, float] = {}
        self._n, self._since = 0, time.perf_counter()
        self._file: IO[str] | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path, draft = folder / LOG, folder / f".{LOG}"
        kept = [line for line in _lines(path) if line["step"] <= place.step] if place.step else []
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        draft.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed in __exit__()

    def add(self, sums: Mapping[str, float]) -> None:
        """Count a step in: loss, parts and tokens."""
        self._place.tokens += int(sums["tokens"])
        self._n += 1
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def line(self, figures: Mapping[str, float]) -> None:
        """Log the mean of the steps since the last line."""
        now = time.perf_counter()
        tokens = self._sums.pop("tokens")
        means = {name: value / self._n for name, value in self._sums.items()}
        self.newest = means | dict(figures) | {"tokens_per_second": tokens / (now - self._since)}
        self.note(self.newest)
        self._sums, self._n, self._since = {}, 0, now

    def note(self, figures: Mapping[str, float]) -> None:
        """Log figures of the step that was done last."""
        if self._file is not None:
            at = {"step": self._place.step, "epoch": self._place.epoch, "tokens": self._place.tokens}
            self._file.write(json.dumps(at | dict(figures)) + "\n")
            self._file.flush()

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer, plan: Mapping[str, Any]) -> None:
        """Write the checkpoint of the step that was done last."""
        if self._folder is not None:
            weights, averages = model.state_dict(), optimiser.state_dict()["state"]
            place = asdict(self._place)
            save_checkpoint(self._folder, {"model": weights, "optimiser": averages, "place": place, "plan": dict(plan)})
            self.saved = self._place.step

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; a last one that was cut off is no line."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


@contextmanager
def live_line(total: int, shown: bool) -> Iterator[Show]:
    """Show on stderr, where `shown` and a terminal, how far a run of `total` steps is, with its newest figures."""
    if not shown or not sys.stderr.isatty():
        yield lambda _step, _figures: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, figures="")

        def show(step: int, newest: Mapping[str, float]) -> None:
            if newest:
                text = f"loss {newest['loss']:.4f}  {newest['tokens_per_second']:,.0f} tokens/s"
                bar.update(task, completed=step, figures=text)
            else:
                bar.update(task, completed=step)

        yield show

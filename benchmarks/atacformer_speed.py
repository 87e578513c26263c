"""Atacformer encoding on a CPU, beside the published stack: the base configuration with random weights.

python benchmarks/atacformer_speed.py --reference-venv FOLDER    # made by benchmarks/reference/install.sh
python benchmarks/atacformer_speed.py                            # ours alone

Both sides take turns, each in a process of its own that waits idle for the other's turn; times are CPU seconds
(getrusage), medians. Peaks of memory are above what a process held with its weights loaded.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Figure, peak_megabytes, report

from chromseek.data.simulate import Simulation
from chromseek.data.tokens import TokenSets
from chromseek.encoder.atacformer import N_SPECIALS, Atacformer, Network, Settings

N_REGIONS = 890_704  # of the published universe; these are simulated
THREADS = 2
BATCH = 8


@dataclass(frozen=True)
class Case:
    """Cells of these many tokens, and how often they are timed."""

    name: str
    sizes: tuple[int, ...]
    repeats: int
    slow_repeats: int  # of the published default path
    gates: dict[str, float]  # by our precision: at least so many times the published default path


RAGGED = tuple(np.random.default_rng(7).integers(1_000, 3_001, 16).tolist())
CASES = (
    Case("8 cells of 2,000 tokens", (2_000,) * 8, 5, 3, {"float32": 3.8, "bfloat16": 8}),
    Case("16 cells of 1,000-3,000 tokens", RAGGED, 3, 2, {"bfloat16": 10}),
    Case("1 cell of 8,192 tokens", (8_192,), 3, 1, {}),
)


class Ours:
    """chromseek, in this process."""

    def __init__(self, dtype: str) -> None:
        torch.manual_seed(0)
        universe = Simulation(n_regions=N_REGIONS, n_cells=1, seed=0).universe
        self.encoder = Atacformer(universe, Network(Settings(N_REGIONS + N_SPECIALS))).on("cpu", dtype)

    def spend(self, sizes: Sequence[int], seed: int) -> dict[str, float]:
        """CPU seconds, wall seconds and peak of memory (MB) for cells of these sizes."""
        rng = np.random.default_rng(seed)
        cells = TokenSets.from_lists([np.sort(rng.choice(N_REGIONS, size, replace=False)) for size in sizes])
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed counts as free
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        held = peak_megabytes()
        cpu, wall = time.process_time(), time.perf_counter()
        self.encoder.encode(cells, "cell")
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return spent | {"peak": peak_megabytes() - held}


class Published:
    """The published stack, in a process of its environment."""

    def __init__(self, venv: Path, *, fast_path: bool) -> None:
        script = Path(__file__).parent / "reference" / "time_reference.py"
        command = [str(venv / "bin" / "python"), str(script), str(N_REGIONS + N_SPECIALS), str(THREADS)]
        self.fast_path = fast_path
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def spend(self, sizes: Sequence[int], seed: int) -> dict[str, float]:
        """CPU seconds, wall seconds and peak of memory (MB) for cells of these sizes."""
        assert self.process.stdin is not None
        asked = {"sizes": list(sizes), "batch": BATCH, "fast_path": self.fast_path, "seed": seed}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        spent: dict[str, float] = json.loads(self._answer())
        return spent

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the published stack gave no answer: run benchmarks/reference/install.sh again")
        return line


def figures_of(case: Case, sides: dict[str, Any]) -> list[Figure]:
    """Time one case, the sides in turn; the ratios are to the published default path."""
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(case.repeats):
        for name, side in sides.items():
            if not (name.startswith("published") and turn >= case.slow_repeats):
                spent[name].append(side.spend(case.sizes, turn))
    cpu = {name: statistics.median(one["cpu"] for one in runs) for name, runs in spent.items()}
    figures = []
    for name, runs in spent.items():
        figures.append(Figure(f"{case.name}: {name}", cpu[name], "CPU s"))
        gate = 2_048 if len(case.sizes) == 1 and name.startswith("chromseek") else None
        peak = max(one["peak"] for one in runs)
        figures.append(Figure(f"{case.name}: {name}, memory above the weights", peak, "MB", at_most=gate))
    default = cpu.get("published, default")
    for name in [name for name in cpu if default and name != "published, default"]:
        gate = case.gates.get(name.removeprefix("chromseek, "))
        figures.append(Figure(f"{case.name}: published, default / {name}", default / cpu[name], "x", at_least=gate))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference-venv", type=Path)
    venv = parser.parse_args().reference_venv
    torch.set_num_threads(THREADS)
    sides: dict[str, Any] = {f"chromseek, {dtype}": Ours(dtype) for dtype in ("float32", "bfloat16")}
    for side in sides.values():
        side.spend((300,), 0)  # builds what is built on first use
    if venv is not None:
        sides["published, default"] = Published(venv, fast_path=True)
        sides["published, fast path off"] = Published(venv, fast_path=False)
    report("atacformer_speed", [figure for case in CASES for figure in figures_of(case, sides)])


if __name__ == "__main__":
    main()

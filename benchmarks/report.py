"""How a benchmark reports: each figure with its gate, as a line for people and as JSON for machines."""

import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Figure:
    """One measured number and, where the project promises one, its gate."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """PASS, MISS, or nothing for a figure without a gate."""
        if self.at_least is None and self.at_most is None:
            return ""
        good = (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )
        return "PASS" if good else "MISS"

    def line(self) -> str:
        """The figure as a line of a table."""
        gate = f">= {self.at_least:g}" if self.at_least is not None else ""
        gate = f"<= {self.at_most:g}" if self.at_most is not None else gate
        return f"{self.name:<72} {self.value:>12.4g} {self.unit:<10} {gate:>10} {self.verdict}"


def report(script: str, figures: list[Figure]) -> None:
    """Print the table and write `results/<script>.json`."""
    for figure in figures:
        print(figure.line(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": platform.processor(), "python": sys.version.split()[0], "cores": cores()}
    body = {"script": script, "machine": machine, "figures": [asdict(f) | {"verdict": f.verdict} for f in figures]}
    (RESULTS / f"{script}.json").write_text(json.dumps(body, indent=2) + "\n")


def cores() -> int:
    """The cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0))


def peak_megabytes() -> float:
    """The most memory that this process held, since it began or since `forget_peak`, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Count the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def need_shared() -> Path:
    """The real data, or the end of the script with a reason."""
    if not SHARED.is_dir():
        raise SystemExit(f"the real data are not at {SHARED}; this benchmark needs them")
    return SHARED

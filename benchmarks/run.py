"""Run benchmarks, one after the other, each in a process of its own; then print all figures that have a gate.

python benchmarks/run.py                             # all but those that take hours
python benchmarks/run.py --reference-venv FOLDER     # those beside the published Atacformer stack, too
python benchmarks/run.py tokens quality              # those named

FOLDER is made by benchmarks/reference/install.sh.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from report import RESULTS, SHARED

HERE = Path(__file__).parent
BESIDE = ("atacformer_speed",)  # the published stack
LABELLED = ("quality", "quality_directions")  # real labelled data; hours on a CPU, so only where named
USUAL = ("real", "tokens", "encode", "growth", "search_speed", "bag_speed", "atacformer_fullsize", *BESIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*USUAL, *LABELLED]))
    parser.add_argument("--reference-venv", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in (*USUAL, *LABELLED)]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}")
    done, failed = [], []
    for name in options.names or USUAL:
        lack = lacking(name, options.reference_venv)
        if lack:
            print(f"{name}: skipped, {lack}", flush=True)
            continue
        given = ["--reference-venv", str(options.reference_venv)] if name in BESIDE else []
        returned = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *given]).returncode
        (failed if returned else done).append(name)
    missed = gates(done)
    if failed:
        raise SystemExit(f"did not finish: {', '.join(failed)}")
    if missed:
        raise SystemExit(f"{missed} gates missed")


def lacking(name: str, venv: Path | None) -> str:
    """What a benchmark cannot do without, and has not; nothing where it can run."""
    if name in BESIDE and venv is None:
        return f"it needs --reference-venv; `python benchmarks/{name}.py` times our side alone"
    if name in LABELLED and not SHARED.is_dir():
        return f"it needs the real data at {SHARED}"
    return ""


def gates(names: list[str]) -> int:
    """Print the figures that have a gate, and count those that miss it."""
    print("\nGates")
    missed = 0
    for path in (RESULTS / f"{name}.json" for name in names):
        figures = json.loads(path.read_text())["figures"] if path.exists() else []
        for figure in figures:
            if figure["verdict"]:
                print(f"{figure['verdict']}  {path.stem}: {figure['name']} = {figure['value']:.4g} {figure['unit']}")
            missed += figure["verdict"] == "MISS"
    return missed


if __name__ == "__main__":
    main()

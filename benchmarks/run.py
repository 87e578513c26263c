"""Run every benchmark, one after the other, each in a process of its own; then print all figures that have a gate.

python benchmarks/run.py            # all
python benchmarks/run.py tokens     # those named
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = ("real", "tokens", "encode", "growth", "search_speed")


def main() -> None:
    chosen = sys.argv[1:] or SCRIPTS
    failed = [name for name in chosen if subprocess.run([sys.executable, str(HERE / f"{name}.py")]).returncode]
    print("\nGates")
    missed = 0
    for name in chosen:
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            for figure in json.loads(path.read_text())["figures"]:
                if figure["verdict"]:
                    print(f"{figure['verdict']}  {name}: {figure['name']} = {figure['value']:.4g} {figure['unit']}")
                missed += figure["verdict"] == "MISS"
    if failed:
        raise SystemExit(f"did not finish: {', '.join(failed)}")
    if missed:
        raise SystemExit(f"{missed} gates missed")


if __name__ == "__main__":
    main()

"""A simulated build end to end, at 100,000 and 200,000 cells x 500,000 regions, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Figure, peak_megabytes, report

N_REGIONS = 500_000


def build(n_cells: int) -> None:
    """Build in this process; print its wall and CPU seconds and its peak memory."""
    import chromseek
    from chromseek.data.simulate import Simulation

    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(n_cells=n_cells, n_regions=N_REGIONS, n_beds=100, seed=0)
        wall, cpu = time.perf_counter(), time.process_time()
        atlas = chromseek.build(Path(folder) / "atlas", cells=simulation, beds=simulation, universe=simulation.universe)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak_megabytes()}
        size = sum(path.stat().st_size for path in atlas.path.rglob("*") if path.is_file())
        print(json.dumps(spent | {"megabytes": size / 1e6, "rows": len(atlas.cells)}))


def main() -> None:
    found = {}
    for n_cells in (100_000, 200_000):
        done = subprocess.run([sys.executable, __file__, str(n_cells)], stdout=subprocess.PIPE, text=True, check=True)
        found[n_cells] = json.loads(done.stdout.splitlines()[-1])
    figures = []
    for n_cells, spent in found.items():
        figures += [
            Figure(f"build of {n_cells:,} cells x {N_REGIONS:,} regions, simulated: wall", spent["wall"], "s"),
            Figure(f"build of {n_cells:,} cells: CPU", spent["cpu"], "s"),
            Figure(f"build of {n_cells:,} cells: peak memory", spent["peak"], "MB"),
            Figure(f"build of {n_cells:,} cells: on disk", spent["megabytes"], "MB"),
        ]
    ratio = found[200_000]["peak"] / found[100_000]["peak"]
    figures.append(Figure("peak memory at 200,000 / at 100,000 cells", ratio, "x", at_most=1.1))
    report("growth", figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        build(int(sys.argv[1]))
    else:
        main()

"""LSI encoding: simulated cells of about 2,000 tokens over 500,000 regions, beside scipy's sparse product."""

import statistics
import time

import numpy as np
from report import Figure, report

from chromseek.data.simulate import Simulation
from chromseek.data.tokens import TokenSets
from chromseek.encoder.lsi import LSI

N_CELLS = 20_000


def main() -> None:
    simulation = Simulation(n_cells=N_CELLS, n_regions=500_000, seed=0)
    cells = TokenSets.concat([block.sets for block in simulation.cells()])
    few = cells.take(np.arange(0, N_CELLS, 10))
    encoder = LSI.fit(few, TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32)), simulation.universe)
    components = encoder.arrays()["components"].astype(np.float32)
    spent: dict[str, list[float]] = {"chromseek": [], "scipy": []}
    for _ in range(5):
        start = time.process_time()
        for first in range(0, N_CELLS, 2_048):
            encoder.encode(cells.slice(first, min(first + 2_048, N_CELLS)), "cell")
        spent["chromseek"].append(time.process_time() - start)
    for _ in range(2):
        start = time.process_time()
        for first in range(0, N_CELLS, 2_048):
            cells.slice(first, min(first + 2_048, N_CELLS)).to_csr(len(simulation.universe)) @ components
        spent["scipy"].append(time.process_time() - start)
    ours, theirs = statistics.median(spent["chromseek"]), statistics.median(spent["scipy"])
    report(
        "encode",
        [
            Figure("mean tokens a cell", float(cells.sizes.mean())),
            Figure("LSI, cells per CPU second", N_CELLS / ours, "cells/s"),
            Figure("LSI, cells/s on 2 idle cores", 2 * N_CELLS / ours, "cells/s", at_least=20_000),
            Figure("scipy product alone / LSI, CPU seconds", theirs / ours, "x"),
        ],
    )


if __name__ == "__main__":
    main()

"""Bag encoding: simulated and uniform cells over 500,000 regions at width 128, in both precisions, beside plain sums.

The simulated cells have the popularity of regions that chromseek.data.simulate gives them (median 2,000 tokens);
gates hold for these, per 2,000 tokens. Uniform cells have exactly 2,000 tokens that are drawn evenly, which leaves
the caches less to keep. The weights are random: they do not matter for speed. One thread is measured and counted
twice, since two that wait for each other on a busy machine spend CPU time on waiting.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from report import Figure, report

from chromseek.data.simulate import Simulation
from chromseek.data.tokens import TokenSets
from chromseek.encoder.bag import Bag, Network

N_CELLS, N_REGIONS, TOKENS = 8_192, 500_000, 2_000
GATES = {"float32": 15_000, "bfloat16": 35_000}


def rate(encode: Callable[[TokenSets], object], cells: TokenSets) -> float:
    """Cells of 2,000 tokens that two idle cores encode in a second, by the median CPU time of five rounds."""
    encode(cells.slice(0, 1024))
    spent = []
    for _ in range(5):
        start = time.process_time()
        encode(cells)
        spent.append(time.process_time() - start)
    return 2 * len(cells.tokens) / TOKENS / statistics.median(spent)


def main() -> None:
    torch.set_num_threads(1)
    simulation = Simulation(n_cells=N_CELLS, n_regions=N_REGIONS, seed=0)
    rng = np.random.default_rng(0)
    uniform = [np.sort(rng.choice(N_REGIONS, TOKENS, replace=False)) for _ in range(N_CELLS)]
    cells = {
        "simulated": TokenSets.concat([block.sets for block in simulation.cells()]),
        "uniform": TokenSets.from_lists(uniform),
    }
    torch.manual_seed(0)
    network = Network(N_REGIONS)
    with torch.no_grad():
        network.table.normal_()
        network.narrow.weight.normal_(0, 0.02)
    bag = Bag(simulation.universe, network)
    exact = bag.encode(cells["simulated"].slice(0, 1024), "cell")
    figures = [Figure("mean tokens of a simulated cell", float(cells["simulated"].sizes.mean()))]
    for dtype, gate in GATES.items():
        bag.on("cpu", dtype)
        table = network.table.detach().to(getattr(torch, dtype))

        def plain(sets: TokenSets, table: torch.Tensor = table) -> object:
            return F.embedding_bag(torch.from_numpy(sets.tokens), table, torch.from_numpy(sets.offsets[:-1]).int())

        for name, sets in cells.items():
            found = rate(lambda some: bag.encode(some, "cell"), sets)
            promised = gate if name == "simulated" else None
            figures.append(Figure(f"bag {dtype}, {name}, 2,000 tokens, 2 cores", found, "cells/s", at_least=promised))
            figures.append(Figure(f"  beside embedding_bag alone, {dtype}, {name}", found / rate(plain, sets), "x"))
    near = (bag.encode(cells["simulated"].slice(0, 1024), "cell") * exact).sum(axis=1)
    figures.append(Figure("cosine of bfloat16 and float32 vectors, least", float(near.min()), "", at_least=0.999))
    report("bag_speed", figures)


if __name__ == "__main__":
    main()

"""Search at 200,000 cells x 64 from Python: single queries, recall against exact, filters, opening an atlas.

The atlas is simulated: 200,000 cells over 100,000 regions. Queries are cells of the held-out donor's kind: drawn anew
from the simulation, never stored.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from report import Figure, report

import chromseek
from chromseek.data.simulate import Simulation
from chromseek.search.measure import recall

N_CELLS, N_QUERIES = 200_000, 1_000


def per_query(search: object, vectors: np.ndarray) -> tuple[list[float], list[float]]:
    """Wall and CPU milliseconds of each single query."""
    wall, cpu = [], []
    for number in range(len(vectors)):
        start, thread = time.perf_counter(), time.thread_time()
        search(vectors[number : number + 1])  # type: ignore[operator]
        wall.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.thread_time() - thread))
    return wall, cpu


def main() -> None:
    simulation = Simulation(n_cells=N_CELLS + N_QUERIES, n_regions=100_000, tokens_per_cell=1_000, n_beds=50, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "atlas"
        stored = Simulation(n_cells=N_CELLS, n_regions=100_000, tokens_per_cell=1_000, n_beds=50, seed=0)
        chromseek.build(path, cells=stored, beds=stored, universe=stored.universe).close()
        opening = []
        for _ in range(5):
            start = time.perf_counter()
            atlas = chromseek.open(path)
            opening.append(time.perf_counter() - start)
        block = next(iter(simulation.cells(start=N_CELLS, block_size=N_QUERIES)))
        vectors = atlas.encoder.encode(block.sets, "cell")
        truth = atlas.cells.search(vectors, 10, exact=True).ids
        wall, cpu = per_query(lambda q: atlas.cells.search(q, 10), vectors)
        found = atlas.cells.search(vectors, 10)
        figures = [
            Figure("rows", len(atlas.cells)),
            Figure("open an atlas, median of 5, wall", statistics.median(opening), "s", at_most=1.0),
            Figure("recall@10, unfiltered", recall(found.ids, truth), "", at_least=0.98),
            Figure("single query, p50, wall", statistics.median(wall), "ms", at_most=1.0),
            Figure("single query, p50, CPU", statistics.median(cpu), "ms"),
            Figure("single query, p99, CPU", float(np.percentile(cpu, 99)), "ms"),
        ]
        start = time.process_time()
        atlas.cells.search(vectors, 10)
        figures.append(Figure("batch of 1,000", N_QUERIES / (time.process_time() - start), "queries/CPU s"))
        types = atlas.cells.get(np.arange(100), ["cell_type"])["cell_type"].cast("string").to_pylist()
        for name, where in {
            "a tissue": f"tissue = '{atlas.cells.get([0], ['tissue'])['tissue'][0].as_py()}'",
            "a cell type": f"cell_type = '{types[0]}'",
            "n_fragments > 1000": "n_fragments > 1000",
        }.items():
            allowed = len(atlas.cells.where(where))
            exact = atlas.cells.search(vectors[:200], 10, where=where, exact=True).ids
            hits = atlas.cells.search(vectors[:200], 10, where=where)
            wall, cpu = per_query(lambda q, where=where: atlas.cells.search(q, 10, where=where), vectors[:200])
            figures += [
                Figure(f"filter {name} ({allowed:,} rows): recall@10", recall(hits.ids, exact)),
                Figure(f"filter {name}: single query, p50, CPU", statistics.median(cpu), "ms"),
            ]
        report("search_speed", figures)


if __name__ == "__main__":
    main()

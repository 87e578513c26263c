"""What the tests of builds share: a small simulation, sources that are watched, and builds that are killed.

`python building.py FOLDER kill POINT…` builds in FOLDER/<point>, once for each point, and is killed there: `read`,
`encode`, `index`, or the number of a durable step. It prints how many steps a build has.
`python building.py FOLDER reencode PLAN-STEP…` copies FOLDER/template for each and re-encodes it by `same` or `other`
(`reencoded` below), killed at that durable step; it prints the step's signal, and for step 0 how many there are.
`python building.py FOLDER memory N…` builds with N cells, and prints the most memory that it had, in kilobytes.
"""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import chromseek
from chromseek.data.genome import assembly
from chromseek.data.inputs import Target
from chromseek.data.memory_sources import BlockSource
from chromseek.data.regions import Regions
from chromseek.data.simulate import Simulation
from chromseek.data.sources import ReadOptions, Source, bed_sources, cell_sources
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import save
from chromseek.encoder.lsi import LSI
from chromseek.indexer import durable, fitting, ingest, views
from chromseek.search.atlas import Atlas

SMALL = Simulation(
    n_cells=150, n_regions=400, n_beds=12, n_types=4, n_donors=3, tokens_per_cell=40, n_genes=20, contrast=3.3
)
BLOCK = 16  # rows that a watched source gives at a time


class Watched:
    """A source that gives small blocks, says from which row it was read, and calls `at` before each block."""

    def __init__(self, source: Source, at: Callable[[int], None] = lambda _row: None) -> None:
        self._source, self._at = source, at
        self.dataset, self.kind, self.label, self.schema = source.dataset, source.kind, source.label, source.schema
        self.n_sets, self.notes = source.n_sets, ("watched",)
        self.starts: list[int] = []

    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    def blocks(self, universe: Universe, start: int = 0) -> Iterator[SetBlock]:
        self.starts.append(start)
        for block in self._source.blocks(universe, start):
            for first in range(0, len(block), BLOCK):
                self._at(start + first)
                yield block.slice(first, min(first + BLOCK, len(block)))
            start += len(block)

    def estimate(self, universe: Universe | None = None) -> Any:
        return self._source.estimate(universe)


def watched(at: Callable[[int], None] = lambda _row: None) -> tuple[Watched, Watched]:
    """The cells and the BED sets of the small simulation."""
    cells = cell_sources(SMALL, ReadOptions(), assembly=None)[0]
    beds = bed_sources(SMALL, ReadOptions(), assembly=None)[0]
    return Watched(cells, at), Watched(beds)


def given(names: list[str], seed: int = 0, *, dataset: str = "given", kind: str = "cell", **columns: Any) -> Source:
    """Cells or BED sets at hand, over the small universe, as a source."""
    rng = np.random.default_rng(seed)
    sets = TokenSets.from_lists([rng.choice(400, 40, replace=False) for _ in names])
    metadata = pa.table({"": np.arange(len(names))} | columns).drop_columns([""])
    block = SetBlock(names, sets, sets.sizes, sets.sizes, None, metadata)
    target = Target.of(ReadOptions(), None)
    return BlockSource(block, kind, target, label=f"{dataset}.file", dataset=dataset)  # type: ignore[arg-type]


def build_small(path: Path, cells: Any = SMALL, beds: Any = SMALL, **options: Any) -> Atlas:
    """Build the small simulation; the parameters are those of every killed build."""
    return chromseek.build(path, cells, beds, options.pop("universe", SMALL.universe), **{"dim": 8, **options})


def other_universe(of: str = "hg38") -> Universe:
    """Regions that overlap three quarters of the small simulation's, each of them two, in `of`'s coordinates."""
    ours = SMALL.universe.regions
    keep = np.flatnonzero(np.arange(len(ours)) % 4)
    starts, ends = ours.starts[keep], ours.ends[keep]
    middle = (starts + ends) // 2
    regions = Regions(assembly(of), np.repeat(ours.chroms[keep], 2), *map(_alternate, (starts, middle), (middle, ends)))
    return Universe.of(regions)


def _alternate(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.stack([first, second], axis=1).ravel()


def other_encoder(of: str = "hg38", dim: int = 6) -> LSI:
    """An encoder over the other universe, fitted on random sets."""
    rng, universe = np.random.default_rng(3), other_universe(of)
    cells, beds = (TokenSets.from_lists([rng.choice(len(universe), 60) for _ in range(n)]) for n in (60, 30))
    return LSI.fit(cells, beds, universe, dim=dim)


def reencoded(path: Path, plan: str) -> Atlas:
    """The atlas under an encoder of its own universe, or of the other one, which lies saved beside it."""
    atlas = chromseek.open(path)
    if plan == "same":
        atlas.reencode("lsi", dim=5)
    else:
        atlas.reencode(path.parent / "encoder")
    return atlas


def content(atlas: Atlas) -> dict[str, Any]:
    """All that an atlas holds, apart from the names of files: rows, token sets, vectors, reports, calibration."""
    found: dict[str, Any] = {"calibration": atlas.content["calibration"], "encoder": atlas.content["primary"]}
    for name in ("cells", "beds", "regions"):
        if name not in atlas.content["collections"]:
            continue
        collection, entry = atlas.collection(name), atlas.content["collections"][name]
        found[name] = {
            "rows": collection.get(collection.where(None)).to_pylist(),
            "vectors": collection.vectors_of(collection.where(None)).tolist(),
            "tokens": [
                pq.read_table(atlas.path / segment["folder"] / "tokens.parquet").column(0).to_pylist()
                for segment in entry["segments"]
            ],
            "sources": entry["sources"],
            "lists": collection.vectors.n_lists,
        }
    return found


def die() -> None:
    """What kill -9 and a power cut do."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_build(path: Path, point: str) -> None:
    """Build, and die at a point."""
    cells, beds = watched(lambda row: die() if point == "read" and row >= 96 else None)
    if point.isdigit():
        os.environ["CHROMSEEK_CRASH_AT"] = point
    if point == "encode":
        calls, encode = itertools.count(), LSI.encode
        LSI.encode = lambda *args: die() if next(calls) == 4 else encode(*args)  # type: ignore[method-assign]
    if point == "index":
        written, write_codes = itertools.count(), views.write_codes
        views.write_codes = lambda *args: die() if next(written) == 1 else write_codes(*args)
    build_small(path, cells, beds).close()


def kill_builds(folder: Path, points: list[str]) -> None:
    """Build at every point in a child of its own; then once without being killed, to count the steps."""
    ingest.MAX_ROWS, views.INDEX_FROM = 64, 300
    for point in points:
        status, _ = in_child(lambda point=point: killed_build(folder / point, point))
        say(point, os.WTERMSIG(status))
    build_small(folder / "whole", *watched()).close()
    say("steps", next(durable._calls) - 1)


def kill_reencodings(folder: Path, points: list[str]) -> None:
    """Re-encode copies of one atlas, each in a child of its own."""
    ingest.MAX_ROWS, views.INDEX_FROM = 64, 300

    def begin() -> None:
        build_small(folder / "template", *watched()).close()
        save(other_encoder(), folder / "encoder")

    def run(plan: str, step: str, path: Path) -> None:
        os.environ["CHROMSEEK_CRASH_AT"] = step
        reencoded(path, plan).close()
        say("steps", next(durable._calls) - 1)

    in_child(begin)
    for point in points:
        plan, _, step = point.partition("-")
        path = Path(shutil.copytree(folder / "template", folder / point))
        status, _ = in_child(lambda plan=plan, step=step, path=path: run(plan, step, path))
        say(point, os.WTERMSIG(status))


def measure_builds(folder: Path, sizes: list[str]) -> None:
    """Build with more and more cells, each in a child of its own."""
    ingest.MAX_ROWS, fitting.FIT_SETS = 2_000, 1_000

    def build(n_cells: str) -> None:
        simulated = Simulation(int(n_cells), n_regions=4_000, n_beds=0, tokens_per_cell=400, n_genes=10)
        chromseek.build(folder / n_cells, simulated, universe=simulated.universe, dim=8).close()

    for size in sizes:
        status, most = in_child(lambda size=size: build(size))
        say(most if status == 0 else "failed")


def say(*words: object) -> None:
    """Tell whoever started this."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def in_child(work: Callable[[], None]) -> tuple[int, int]:
    """Do it in a fork, since nothing has run on more than one thread here; its status, and the most memory it had."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    return status, usage.ru_maxrss


if __name__ == "__main__":
    jobs = {"kill": kill_builds, "reencode": kill_reencodings, "memory": measure_builds}
    jobs[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])

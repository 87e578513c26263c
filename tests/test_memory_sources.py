"""What lies in memory as a source: simulations, token sets, objects of a user's own."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reading import (
    HG19,
    HG38,
    PLAIN,
    REGIONS,
    read,
    same,
    starts_anywhere,
    universe,
)

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.regions import Regions
from chromseek.data.simulate import Simulation, toy
from chromseek.data.sources import Estimate, bed_sources, cell_sources, first_regions
from chromseek.data.tokens import SetBlock, TokenSets, offsets_of
from chromseek.data.universe import Universe


def test_a_simulation_is_a_source_of_cells_and_of_bed_sets() -> None:
    simulation = toy()
    (cells,), (sets,) = (make(simulation, PLAIN, assembly=HG38) for make in (cell_sources, bed_sources))
    block = read(cells, simulation.universe)
    (direct,) = simulation.cells(block_size=600)
    assert same(block, direct)
    starts_anywhere(cells, simulation.universe)
    assert (
        cells.identity()
        == {"simulation": asdict(simulation)}
        != cell_sources(toy(seed=1), PLAIN, assembly=HG38)[0].identity()
    )
    block, drawn = read(sets, simulation.universe), simulation.beds()
    assert block.names == drawn.names
    assert np.array_equal(block.sets.tokens, drawn.sets.tokens)
    assert len(set(block.metadata.column("md5").to_pylist())) == len(block)
    starts_anywhere(sets, simulation.universe)
    assert first_regions(simulation, PLAIN, None) == simulation.universe.regions
    with pytest.raises(BadData, match="it says that it is hg38"):
        cell_sources(simulation, PLAIN, assembly=HG19)


def test_a_simulation_over_another_universe_is_mapped_by_overlap() -> None:
    simulation = Simulation(n_cells=20, n_regions=400, n_beds=3, n_types=2, n_donors=2, tokens_per_cell=40, n_genes=5)
    own = simulation.universe.regions
    merged = Regions(own.assembly, own.chroms[::3], own.starts[::3], own.ends[::3])
    shifted = Regions(own.assembly, own.chroms[::7], own.starts[::7] - 50, own.starts[::7] + 50)
    other = Universe.of(Regions(
        own.assembly, *(np.concatenate([getattr(one, name) for one in (merged, shifted)])
        for name in ("chroms", "starts", "ends"))
    ))  # fmt: skip
    rows, found = other.overlaps(own)
    by_token = {row: set(found[rows == row].tolist()) for row in range(len(own))}
    for make, drawn in ((cell_sources, next(simulation.cells())), (bed_sources, simulation.beds())):
        block = read(make(simulation, PLAIN, assembly=HG38)[0], other)
        for row, name in enumerate(block.names):
            here = [by_token[token] for token in drawn.sets[row].tolist()]
            assert block.sets[row].tolist() == sorted(set().union(*here)), name
            assert block.n_placed[row] == sum(map(bool, here))
        assert np.array_equal(block.n_source, drawn.n_source)


def test_token_sets_at_hand_are_a_source() -> None:
    sizes = np.arange(9000) % 3
    sets = TokenSets(offsets_of(sizes), np.concatenate([np.arange(n, dtype=np.int32) for n in sizes]))
    names = [f"s{row}" for row in range(9000)]
    given_sets = SetBlock(names, sets, sizes, sizes, None, pa.table({"row": np.arange(9000)}))
    (source,) = bed_sources(given_sets, PLAIN, assembly=HG38)
    assert [len(block) for block in source.blocks(universe())] == [8192, 808]
    assert source.schema.names == ["row", "md5"]
    assert read(source, universe()).metadata["md5"][1].as_py() == hashlib.md5(np.int32(0).tobytes()).hexdigest()
    starts_anywhere(source, universe())
    (cells,) = cell_sources(given_sets, PLAIN, assembly=HG38)
    assert cells.schema.names == ["row"]
    assert json.loads(json.dumps(cells.identity())) == cells.identity()
    with pytest.raises(BadData, match="token 1 is not one of the 1 of the universe"):
        next(source.blocks(universe(texts=REGIONS[:1])))


class Handmade:
    """A source of a user's own."""

    dataset, label, n_sets, notes, schema = "mine", "mine", 0, (), pa.schema([])

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def identity(self) -> dict[str, Any]:
        return {}

    def blocks(self, _: Universe, start: int = 0) -> Iterator[SetBlock]:
        return iter([][start:])

    def estimate(self, _: Universe | None = None) -> Estimate:
        return Estimate(0, 0, 0, None)


def test_a_source_of_ones_own_passes() -> None:
    cell, peaks = Handmade("cell"), Handmade("bed")
    assert cell_sources(cell, PLAIN, assembly=HG38) == [cell]
    assert bed_sources([peaks], PLAIN, assembly=HG38) == [peaks]
    with pytest.raises(BadArgument, match="cannot read cells from a Handmade"):
        cell_sources(peaks, PLAIN, assembly=HG38)

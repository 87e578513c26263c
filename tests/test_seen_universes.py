"""A universe as other inputs see it, lifted or masked, against pair-by-pair twins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import HG19, HG38, SHIFT, universe, write

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.genome import Assembly
from chromseek.data.inputs import MaskedUniverse
from chromseek.data.liftover import Chain, LiftedUniverse, chain_assemblies
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe

OLD = Assembly("old", ("chr1", "chr2"), (120, 90))
NEW = Assembly("new", ("chr1", "chr2", "chr3"), (200, 150, 130))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return write(tmp_path / "hg19ToHg38.chain", SHIFT)


def region_lists(of: Assembly) -> st.SearchStrategy[Regions]:
    def made(rows: list[tuple[int, int, int]]) -> Regions:
        chroms = np.array([chrom for chrom, _, _ in rows], np.int16)
        limits = np.array(of.lengths)[chroms] if rows else np.empty(0, np.int64)
        first = np.array([start for _, start, _ in rows], np.int64) % np.maximum(limits - 1, 1)
        last = np.minimum(first + np.array([size for _, _, size in rows], np.int64), limits)
        return Regions(of, chroms, first.astype(np.int32), last.astype(np.int32))

    row = st.tuples(st.integers(0, len(of.chroms) - 1), st.integers(0, 250), st.integers(1, 60))
    return st.lists(row, max_size=12).map(made)


CHAIN = """chain 100 chr1 120 + 10 40 chr1 200 + 20 52 1
10 5 7
15

chain 50 chr2 90 + 0 30 chr3 130 - 100 130 2
30
"""


@given(region_lists(NEW).filter(len), region_lists(OLD))
@settings(max_examples=60, deadline=None)
def test_a_lifted_universe_is_lift_then_overlap(tmp_path_factory: Any, regions: Regions, asked: Regions) -> None:
    path = tmp_path_factory.mktemp("chain") / "a.chain"
    path.write_text(CHAIN)
    over, chain = Universe.of(regions), Chain.load(path, OLD, NEW)
    lifted = LiftedUniverse(over, chain)
    rows, found = lifted.overlaps(asked)
    expected, lost = set(), 0
    for row in range(len(asked)):
        image, kept = chain.lift(asked.take(slice(row, row + 1)))
        lost += 1 - len(kept)
        for token, (start, end) in enumerate(zip(*over.regions.spans(), strict=True)):
            (begin,), (stop,) = image.spans() if len(kept) else (np.zeros(1), np.zeros(1))
            if start < stop and begin < end:
                expected.add((row, token))
    assert set(zip(rows.tolist(), found.tolist(), strict=True)) == expected
    assert (lifted.assembly, len(lifted)) == (OLD, len(over))
    assert (lifted.n_seen, lifted.n_lost) == (len(asked), lost)
    assert lifted.lost_share == pytest.approx(lost / max(1, len(asked)))
    sets, (all_tokens, n_placed) = lifted.token_map(asked), lifted.tokenize(asked)
    assert {(row, int(token)) for row in range(len(sets)) for token in sets[row]} == expected
    assert (all_tokens.tolist(), n_placed) == (sorted({t for _, t in expected}), len({r for r, _ in expected}))
    assert lifted.digest != over.digest


def test_a_lifted_universe_needs_a_chain_to_it(chain: Path) -> None:
    with pytest.raises(BadArgument, match="leads to hg38") as caught:
        LiftedUniverse(universe(HG19), Chain.load(chain, HG19, HG38))
    assert caught.value.code == "LIFT-ASSEMBLY"


@given(region_lists(NEW).filter(len), region_lists(NEW).filter(len), region_lists(NEW))
@settings(max_examples=60, deadline=None)
def test_a_masked_universe_finds_nothing_on_the_blacklist(regions: Regions, black: Regions, asked: Regions) -> None:
    over = Universe.of(regions)
    masked = MaskedUniverse(over, black)
    rows, found = masked.overlaps(asked)
    away = {
        row
        for row, (start, end) in enumerate(zip(*asked.spans(), strict=True))
        for begin, stop in zip(*black.spans(), strict=True)
        if start < stop and begin < end
    }
    expected = [pair for pair in zip(*(a.tolist() for a in over.overlaps(asked)), strict=True) if pair[0] not in away]
    assert sorted(zip(rows.tolist(), found.tolist(), strict=True)) == sorted(expected)
    assert (masked.n_masked, masked.assembly, len(masked)) == (len(away), NEW, len(over))
    assert masked.digest != over.digest


def test_the_assemblies_of_a_chain_are_told_by_its_lengths(chain: Path, tmp_path: Path) -> None:
    assert chain_assemblies(chain) == (HG19, HG38)
    with pytest.raises(BadData, match="no chain between two of the assemblies"):
        chain_assemblies(write(tmp_path / "x.chain", CHAIN))


def test_the_real_chain_leads_from_hg19_to_hg38(shared: Path) -> None:
    assert chain_assemblies(shared / "data/ref/hg19ToHg38.over.chain.gz") == (HG19, HG38)

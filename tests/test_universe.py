"""Overlaps with a universe against brute force, pyranges and gtars; its order, digest and file."""

import hashlib
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chromseek.data.bed import read_bed
from chromseek.data.errors import BadData
from chromseek.data.genome import Assembly, assembly
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe, expand, hit_ranges, layers

SMALL = Assembly("small", ("chr1", "chr2", "chr3"), (60, 40, 12))
WHOLE = [(code, 0, length) for code, length in enumerate(SMALL.lengths)]
Triple = tuple[int, int, int]  # chromosome code, start, end
NESTED: list[Triple] = [(0, 30, 31), (1, 0, 40), (0, 0, 60), (0, 10, 20), (0, 12, 15), (0, 20, 30), (0, 59, 60)]


@st.composite
def triples(draw: st.DrawFn) -> Triple:
    """A region anywhere: any length, one base, to the chromosome's end, or a whole chromosome."""
    code = draw(st.integers(0, 2))
    length = SMALL.lengths[code]
    start = draw(st.integers(0, length - 1))
    end = draw(st.integers(start + 1, length) | st.sampled_from([start + 1, length]))
    return draw(st.sampled_from([(code, start, end)] * 9 + [(code, 0, length)]))


@st.composite
def universes(draw: st.DrawFn) -> list[Triple]:
    """Different regions in any order, with the neighbour that abuts added to some."""
    found = draw(st.lists(triples(), min_size=1, max_size=25))
    abutting = [(c, end, min(end + 5, SMALL.lengths[c])) for c, _, end in found if end < SMALL.lengths[c]]
    return draw(st.permutations(list(dict.fromkeys(found + abutting[: draw(st.integers(0, 3))]))))


QUERIES = st.lists(triples(), min_size=1, max_size=15)


def regions(rows: list[Triple], of: Assembly = SMALL) -> Regions:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Regions(of, table[:, 0].astype(np.int16), table[:, 1].astype(np.int32), table[:, 2].astype(np.int32))


def shared_bases(queries: list[Triple], universe: list[Triple]) -> list[tuple[int, int]]:
    """Every (query, token) with a base in common, by trying all."""
    return [
        (row, token)
        for row, (chrom, start, end) in enumerate(queries)
        for token, (other, left, right) in enumerate(universe)
        if chrom == other and max(start, left) < min(end, right)
    ]


def pairs_of(universe: Universe, queries: Regions) -> list[tuple[int, int]]:
    rows, tokens = universe.overlaps(queries)
    assert (rows.dtype.name, tokens.dtype.name) == ("int64", "int32")
    return sorted(zip(rows.tolist(), tokens.tolist(), strict=True))


def bed(folder: str | Path, name: str, rows: list[Triple]) -> str:
    path = Path(folder) / name
    path.write_text("".join(f"{SMALL.chroms[c]}\t{s}\t{e}\n" for c, s, e in rows))
    return str(path)


def gtars_tokens(tokenizer: Any, path: str | Path, n: int) -> list[int]:
    """The distinct tokens that gtars finds; its special tokens come after the `n` of the universe."""
    return sorted({token for token in tokenizer(str(path))["input_ids"] if token < n})


# Against others


@settings(deadline=None, max_examples=200)
@given(universes(), QUERIES)
@example(NESTED, WHOLE)
@example([*WHOLE, (0, 59, 60), (1, 0, 1)], [(0, 59, 60), (1, 0, 1), (2, 11, 12)])
def test_overlaps_are_those_of_brute_force(universe: list[Triple], queries: list[Triple]) -> None:
    made, asked = Universe(regions(universe)), regions(queries)
    wanted = shared_bases(queries, universe)
    assert pairs_of(made, asked) == wanted
    tokens, placed = made.tokenize(asked)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == sorted({token for _, token in wanted})
    assert placed == len({row for row, _ in wanted})
    table = made.token_map(asked)
    assert len(table) == len(queries)
    for row in range(len(queries)):
        assert table[row].tolist() == [token for r, token in wanted if r == row]


@settings(deadline=None, max_examples=50)
@given(universes(), QUERIES)
@example(NESTED, WHOLE)
def test_overlaps_are_those_of_pyranges(universe: list[Triple], queries: list[Triple]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyranges uses what pandas is about to drop
        pyranges = pytest.importorskip("pyranges")
        names = {"chrom": "Chromosome", "start": "Start", "end": "End"}
        made, asked = (
            pyranges.PyRanges(regions(rows).to_frame().rename(columns=names).assign(**{key: np.arange(len(rows))}))
            for rows, key in ((universe, "token"), (queries, "row"))
        )
        joined = asked.join(made).df
    wanted = sorted(zip(joined["row"].tolist(), joined["token"].tolist(), strict=True)) if len(joined) else []
    assert pairs_of(Universe(regions(universe)), regions(queries)) == wanted


@settings(deadline=None, max_examples=60)
@given(universes(), QUERIES)
@example(NESTED, WHOLE)
@example([(0, 5, 9)], [(0, 9, 12), (1, 5, 9)])
def test_tokens_are_those_of_gtars(universe: list[Triple], queries: list[Triple]) -> None:
    tokenizers = pytest.importorskip("gtars.tokenizers")
    with tempfile.TemporaryDirectory() as folder:
        path = bed(folder, "universe.bed", universe)
        asked = bed(folder, "queries.bed", queries)
        wanted = gtars_tokens(tokenizers.Tokenizer.from_bed(path), asked, len(universe))
        tokens, _ = Universe.load(path, SMALL).tokenize(read_bed(asked, assembly=SMALL).regions)
    assert tokens.tolist() == wanted


def test_real_peaks_give_the_tokens_of_gtars(shared: Path) -> None:
    tokenizers = pytest.importorskip("gtars.tokenizers")
    path = shared / "data" / "ref" / "heme_peaks_universe_hg19.bed.gz"
    asked = shared / "data" / "bed" / "atac_heme" / "B.bed.gz"
    hg19 = assembly("hg19")
    universe = Universe.load(path, hg19)
    tokens, placed = universe.tokenize(read_bed(asked, assembly=hg19).regions)
    assert 0 < len(tokens) < len(universe)
    assert placed > 0
    assert tokens.tolist() == gtars_tokens(tokenizers.Tokenizer.from_bed(str(path)), asked, len(universe))


# Edges


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("chr1:50-60", [0]),
        ("chr1:0-60", [0]),
        ("chr2:0-1", [1]),
        ("chr2:39-40", [2]),
        ("chr3:0-12", [3]),
        ("chr1:0-59", []),
    ],
)
def test_what_ends_with_its_chromosome_does_not_reach_the_next(query: str, wanted: list[int]) -> None:
    universe = Universe(regions([(0, 59, 60), (1, 0, 1), (1, 39, 40), (2, 0, 12)]))
    assert universe.tokenize(Regions.from_text([query], SMALL))[0].tolist() == wanted


@pytest.mark.parametrize(
    ("query", "hit"), [((0, 5, 10), False), ((0, 20, 25), False), ((0, 5, 11), True), ((0, 19, 25), True)]
)
def test_touching_is_no_overlap_and_one_base_is(query: Triple, hit: bool) -> None:
    tokens, placed = Universe(regions([(0, 10, 20)])).tokenize(regions([query]))
    assert (tokens.tolist(), placed) == (([0], 1) if hit else ([], 0))


def test_no_query_has_no_tokens() -> None:
    universe, none = Universe(regions(NESTED)), regions([])
    assert pairs_of(universe, none) == []
    assert universe.tokenize(none)[0].tolist() == []
    assert len(universe.token_map(none)) == 0


def test_a_query_in_twice_is_placed_twice_with_one_token() -> None:
    tokens, placed = Universe(regions([(0, 10, 20)])).tokenize(regions([(0, 12, 13)] * 2 + [(1, 12, 13)]))
    assert (tokens.tolist(), placed) == ([0], 2)


# Layers


@settings(deadline=None)
@given(st.lists(triples(), min_size=1, max_size=30, unique=True))
def test_layers_rise_hold_all_and_are_as_many_as_the_deepest_nest(universe: list[Triple]) -> None:
    starts, ends = regions(universe).spans()
    order = np.lexsort((ends, starts))
    starts, ends = starts[order], ends[order]
    found = layers(starts, ends, order.astype(np.int32))
    for layer_starts, layer_ends, _ in found:
        assert (np.diff(layer_starts) >= 0).all()
        assert (np.diff(layer_ends) >= 0).all()
    assert sorted(token for _, _, tokens in found for token in tokens.tolist()) == list(range(len(universe)))
    depth = np.ones(len(starts), np.int64)  # how many regions lie each within the one before, down to this one
    for i in range(len(starts)):
        around = [depth[j] for j in range(i) if ends[j] > ends[i]]
        depth[i] += max(around, default=0)
    assert len(found) == depth.max()


@pytest.mark.parametrize(
    ("universe", "depth"),
    [
        ([(0, 0, 10), (0, 10, 20), (0, 20, 30)], 1),
        ([(0, 0, 10), (0, 5, 15), (0, 9, 16)], 1),
        ([(0, 0, 10), (0, 0, 15)], 1),
        ([(0, 0, 10), (0, 2, 3), (0, 4, 5)], 2),
        ([(0, i, 60 - i) for i in range(30)], 30),
    ],
    ids=["abutting", "overlapping", "one start", "nested", "onion"],
)
def test_layers_by_shape(universe: list[Triple], depth: int) -> None:
    starts, ends = regions(universe).spans()
    order = np.lexsort((ends, starts))
    assert len(layers(starts[order], ends[order], order.astype(np.int32))) == depth


def test_hit_ranges_and_expand_of_nothing() -> None:
    none = np.empty(0, np.int64)
    first, count = hit_ranges(none, none, np.array([1, 5]), np.array([2, 9]))
    assert count.tolist() == [0, 0]
    assert expand(first, count).tolist() == []
    assert expand(none, none).tolist() == []


# Order, digest, file


@settings(deadline=None, max_examples=50)
@given(universes(), st.data())
def test_of_sorts_and_drops_repeats_where_the_plain_one_keeps_the_order(
    universe: list[Triple], data: st.DataObject
) -> None:
    again = data.draw(st.permutations(universe + universe[:3]))
    assert Universe.of(regions(again)).regions.names() == regions(sorted(universe)).names()
    assert Universe.of(regions(again)).digest == Universe(regions(sorted(universe))).digest
    kept = Universe(regions(universe))
    assert len(kept) == len(universe)
    assert kept.assembly is SMALL
    assert kept.regions.names() == regions(universe).names()


def test_repeats_are_refused() -> None:
    with pytest.raises(BadData, match=r"2 regions of the universe come twice, such as chr1:5-9") as caught:
        Universe(regions([(1, 5, 9), (0, 5, 9), (1, 5, 9), (0, 5, 9), (0, 5, 8)]))
    assert (caught.value.code, caught.value.exit_code) == ("UNIVERSE-TWICE", 65)
    assert (caught.value.got, caught.value.fix) == ("chr1:5-9", "remove the repeats (sort -u)")


@pytest.mark.parametrize("make", [Universe, Universe.of])
def test_no_regions_are_refused(make: Any) -> None:
    with pytest.raises(BadData, match="at least one region") as caught:
        make(regions([]))
    assert (caught.value.code, caught.value.exit_code) == ("UNIVERSE-EMPTY", 65)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "universe.bed").write_text("")
    with pytest.raises(BadData):
        Universe.load(tmp_path / "universe.bed", SMALL)


@settings(deadline=None, max_examples=50)
@given(universes())
def test_a_saved_universe_comes_back_in_its_order_and_always_as_the_same_bytes(universe: list[Triple]) -> None:
    made = Universe(regions(universe))
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first.bed.gz"), Path(folder, "second.bed.gz")
        made.save(first)
        loaded = Universe.load(first, SMALL)
        loaded.save(second)
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes()[4:8] == bytes(4)  # where gzip would write the time
    assert loaded.regions.names() == made.regions.names()
    assert loaded.digest == made.digest


def test_the_digest_is_of_the_regions_their_order_and_the_assembly() -> None:
    two = [(0, 5, 9), (1, 5, 9)]
    other = Assembly("other", SMALL.chroms, SMALL.lengths)
    made = [
        Universe(regions(two)),
        Universe(regions(two[::-1])),
        Universe(regions(two[:1])),
        Universe(regions([(0, 5, 10), (1, 5, 9)])),
        Universe(regions([(0, 4, 9), (1, 5, 9)])),
        Universe(regions([(0, 5, 9), (2, 5, 9)])),
        Universe(regions(two, other)),
    ]
    assert len({universe.digest for universe in made}) == len(made)
    assert Universe(regions(two)).digest == made[0].digest
    columns = struct.pack("<2h2i2i", 0, 1, 5, 5, 9, 9)  # atlases keep digests, so this form stays
    assert made[0].digest == hashlib.sha256(b"small" + columns).hexdigest()

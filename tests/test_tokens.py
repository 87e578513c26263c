"""Token sets against plain Python sets: making, cutting, choosing, matrices and Arrow columns."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.tokens import SetBlock, TokenSets, offsets_of, rising

TOKEN = st.integers(0, 2**31 - 1) | st.integers(0, 9)
LISTS = st.lists(st.lists(TOKEN, max_size=6), max_size=8)
LARGE = pa.large_list(pa.int32())


def plain(sets: TokenSets) -> list[list[int]]:
    """The sets as lists, with the invariants checked on the way."""
    assert sets.offsets.dtype == np.int64
    assert sets.tokens.dtype == np.int32
    assert (sets.offsets[0], sets.offsets[-1]) == (0, len(sets.tokens))
    lists = [sets[row].tolist() for row in range(len(sets))]
    assert sets.sizes.tolist() == [len(tokens) for tokens in lists]
    return lists


def expected(lists: list[list[int]]) -> list[list[int]]:
    return [sorted(set(tokens)) for tokens in lists]


def block(lists: list[list[int]], *, fragments: bool = True) -> SetBlock:
    n = len(lists)
    return SetBlock(
        [f"c{i}" for i in range(n)],
        TokenSets.from_lists(lists),
        np.arange(n, dtype=np.int64) * 4,
        np.arange(n, dtype=np.int64),
        np.arange(n, dtype=np.int64) + 100 if fragments else None,
        pa.table({"row": np.arange(n)}),
    )


@settings(deadline=None)
@given(LISTS)
def test_lists_become_sorted_sets(lists: list[list[int]]) -> None:
    assert plain(TokenSets.from_lists(lists)) == expected(lists)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), TOKEN), max_size=30), st.integers(0, 3))
def test_pairs_in_any_order_become_sets(pairs: list[tuple[int, int]], more: int) -> None:
    n = max((row for row, _ in pairs), default=-1) + 1 + more
    rows = np.array([row for row, _ in pairs], np.int64)
    tokens = np.array([token for _, token in pairs], np.int32)
    sets = TokenSets.from_pairs(rows, tokens, n)
    assert plain(sets) == expected([[token for r, token in pairs if r == row] for row in range(n)])


@settings(deadline=None)
@given(st.lists(LISTS, max_size=4))
def test_concat_puts_one_after_the_other(parts: list[list[list[int]]]) -> None:
    joined = TokenSets.concat([TokenSets.from_lists(part) for part in parts])
    assert plain(joined) == expected([tokens for part in parts for tokens in part])


@settings(deadline=None)
@given(LISTS, st.data())
def test_slice_and_take_choose_rows(lists: list[list[int]], data: st.DataObject) -> None:
    sets, n = TokenSets.from_lists(lists), len(lists)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    part = sets.slice(start, stop)
    assert plain(part) == expected(lists)[start:stop]
    assert part.tokens.size == 0 or np.shares_memory(part.tokens, sets.tokens)
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=10)) if n else []
    chosen = sets.take(np.array(rows, np.int64))
    assert plain(chosen) == [expected(lists)[row] for row in rows]
    inner = [row for row in rows if row < stop - start]
    assert plain(part.take(np.array(inner, np.int64))) == [expected(lists)[start + row] for row in inner]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), max_size=6), max_size=8))
def test_csr_is_the_binary_matrix(lists: list[list[int]]) -> None:
    matrix = TokenSets.from_lists(lists).to_csr(12)
    wanted = np.zeros((len(lists), 12), np.float32)
    for row, tokens in enumerate(lists):
        wanted[row, tokens] = 1
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), wanted, strict=True)


@settings(deadline=None)
@given(st.lists(LISTS, max_size=4), st.data())
def test_arrow_there_and_back_chunked_and_sliced(parts: list[list[list[int]]], data: st.DataObject) -> None:
    columns = [TokenSets.from_lists(part).to_arrow() for part in parts]
    wanted = expected([tokens for part in parts for tokens in part])
    assert all(column.type == LARGE for column in columns)
    assert [tokens for column in columns for tokens in column.to_pylist()] == wanted
    for column, part in zip(columns, parts, strict=True):
        assert plain(TokenSets.from_arrow(column)) == expected(part)
    chunked = pa.chunked_array(columns, LARGE)
    assert plain(TokenSets.from_arrow(chunked)) == wanted
    start = data.draw(st.integers(0, len(wanted)))
    length = data.draw(st.integers(0, len(wanted) - start))
    part = wanted[start : start + length]
    assert plain(TokenSets.from_arrow(chunked.slice(start, length))) == part
    assert plain(TokenSets.from_arrow(chunked.combine_chunks().slice(start, length))) == part
    assert plain(TokenSets.from_arrow(chunked.slice(start, length).cast(pa.list_(pa.int32())))) == part


def test_arrow_column_without_chunks_is_no_sets() -> None:
    assert plain(TokenSets.from_arrow(pa.chunked_array([], LARGE))) == []
    assert plain(TokenSets.from_arrow(pa.array([], LARGE))) == []


def test_tokens_from_arrow_may_be_written_to() -> None:
    column = TokenSets.from_lists([[1, 2], [3]]).to_arrow()
    TokenSets.from_arrow(column).tokens[0] = 9
    assert column.to_pylist() == [[1, 2], [3]]


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5) | st.integers(-(2**40), 2**40), max_size=30), st.booleans())
def test_rising_is_unique(values: list[int], ordered: bool) -> None:
    array = np.array(sorted(values) if ordered else values, np.int64)
    before = array.copy()
    np.testing.assert_array_equal(rising(array), np.unique(array), strict=True)
    np.testing.assert_array_equal(array, before)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), max_size=10))
def test_offsets_are_the_running_sum(sizes: list[int]) -> None:
    offsets = offsets_of(sizes)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [sum(sizes[:i]) for i in range(len(sizes) + 1)]


@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 3), (2, 2), (4, 4)])
@pytest.mark.parametrize("fragments", [True, False])
def test_a_slice_of_a_block_cuts_every_part(start: int, stop: int, fragments: bool) -> None:
    lists = [[5, 2], [], [7], [1, 2, 3]]
    part = block(lists, fragments=fragments).slice(start, stop)
    assert len(part) == stop - start
    assert part.names == ["c0", "c1", "c2", "c3"][start:stop]
    assert plain(part.sets) == expected(lists)[start:stop]
    rows = list(range(start, stop))
    assert part.n_source.tolist() == [4 * row for row in rows]
    assert part.n_placed.tolist() == rows
    assert part.metadata.column("row").to_pylist() == rows
    if part.n_fragments is None:
        assert not fragments
    else:
        assert part.n_fragments.tolist() == [100 + row for row in rows]


def test_coverage_is_the_share_placed_and_0_for_nothing() -> None:
    coverage = block([[1], [2], [3]]).coverage
    assert coverage.dtype == np.float32
    assert coverage.tolist() == [0.0, 0.25, 0.25]

"""Regions as text and as columns: every broken form has its code, and what is read can be written again."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument
from chromseek.data.genome import Assembly, assembly
from chromseek.data.regions import Regions, is_region_text, parse_region

HG38 = assembly("hg38")
SMALL = Assembly("small", ("chr1", "chr2", "chr3"), (60, 50, 40))


@st.composite
def triples(draw: st.DrawFn) -> tuple[int, int, int]:
    code = draw(st.integers(0, 2))
    start = draw(st.integers(0, SMALL.lengths[code] - 1))
    return code, start, draw(st.integers(start + 1, SMALL.lengths[code]))


def regions(rows: list[tuple[int, int, int]]) -> Regions:
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Regions(SMALL, table[:, 0].astype(np.int16), table[:, 1].astype(np.int32), table[:, 2].astype(np.int32))


def test_text_is_read_in_order_with_and_without_commas() -> None:
    read = Regions.from_text(["chr2:1,000-2,000", "chr1:0-1", " chrM:16568-16569 "], HG38)
    assert read.names() == ["chr2:1000-2000", "chr1:0-1", "chrM:16568-16569"]
    assert [column.dtype.name for column in (read.chroms, read.starts, read.ends)] == ["int16", "int32", "int32"]
    assert read.assembly is HG38


def test_no_text_is_no_regions() -> None:
    none = Regions.from_text([], HG38)
    assert len(none) == 0
    assert none.names() == []
    assert none.to_frame().shape == (0, 3)
    assert [a.size for a in none.spans()] == [0, 0]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "REGION-FORM", "not a region"),
        ("chr1", "REGION-FORM", "not a region: chr1"),
        ("chr1:5", "REGION-FORM", "not a region"),
        ("chr1:5-", "REGION-FORM", "not a region"),
        ("chr1:-5-9", "REGION-FORM", "not a region"),
        ("chr1:1.5-9", "REGION-FORM", "not a region"),
        ("chr1:1e3-2e3", "REGION-FORM", "not a region"),
        ("chr1 5 9", "REGION-FORM", "not a region"),
        ("chr1:5-9 x", "REGION-FORM", "not a region"),
        ("chr1:5-9\nchr1:7-9", "REGION-FORM", "not a region"),
        (":5-9", "REGION-FORM", "not a region"),
        ("chr1:,-,", "REGION-FORM", "not a region"),
        ("chr1:,5-9", "REGION-FORM", "not a region"),
        ("chr1:\u0663-\u0669", "REGION-FORM", "not a region"),
        ("chr1:1-" + "9" * 5000, "REGION-FORM", "not a region"),
        ("1:5-9", "REGION-CHROM", "unknown chromosome 1 in hg38"),
        ("chr23:5-9", "REGION-CHROM", "unknown chromosome chr23"),
        ("chr1_random:5-9", "REGION-CHROM", "unknown chromosome chr1_random"),
        ("chr1:9-5", "REGION-ORDER", "start 9 is not before end 5"),
        ("chr1:9-9", "REGION-ORDER", "start 9 is not before end 9"),
        ("chr1:5-248956423", "REGION-END", "past the end of chr1"),
        ("chrM:5-99999999999999999999", "REGION-END", "16569"),
    ],
)
def test_broken_text_is_refused(text: str, code: str, words: str) -> None:
    with pytest.raises(BadArgument, match=re.escape(words)) as caught:
        Regions.from_text(["chr1:5-9", text], HG38)
    assert caught.value.code == code
    assert caught.value.fix
    assert len(str(caught.value)) < 500


def test_the_whole_chromosome_is_a_region_and_the_nearest_names_are_offered() -> None:
    assert parse_region("chr1:0-248956422", HG38) == (0, 0, 248_956_422)
    with pytest.raises(BadArgument, match="chr2"):
        parse_region("Chr2:1-5", HG38)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=30), st.from_regex(r"chr[0-9XYM]{1,2}:[\d,]{1,12}-[\d,]{1,12}", fullmatch=True)))
def test_any_text_is_read_or_refused_with_a_code(text: str) -> None:
    refused = None
    try:
        code, start, end = parse_region(text, HG38)
    except BadArgument as error:
        refused = error.code
    else:
        assert 0 <= start < end <= HG38.lengths[code]
    assert refused in {None, "REGION-FORM", "REGION-CHROM", "REGION-ORDER", "REGION-END"}
    assert is_region_text(text) or refused == "REGION-FORM"


@pytest.mark.parametrize(("text", "yes"), [("chr1:1-2", True), (" x:5-1 ", True), ("beds:3", False), ("a.bed", False)])
def test_the_form_alone_says_what_is_a_region(text: str, yes: bool) -> None:
    assert is_region_text(text) is yes


@settings(deadline=None)
@given(st.lists(triples(), max_size=20))
def test_names_are_read_back_as_the_same_regions(rows: list[tuple[int, int, int]]) -> None:
    first = regions(rows)
    again = Regions.from_text(first.names(), SMALL)
    for a, b in zip((first.chroms, first.starts, first.ends), (again.chroms, again.starts, again.ends), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@settings(deadline=None)
@given(st.lists(triples(), max_size=20))
def test_frames_and_spans_hold_what_the_regions_hold(rows: list[tuple[int, int, int]]) -> None:
    these = regions(rows)
    frame = these.to_frame()
    assert list(frame.columns) == ["chrom", "start", "end"]
    names = [SMALL.chroms[code] for code, _, _ in rows]
    assert list(frame.itertuples(index=False, name=None)) == [
        (name, start, end) for name, (_, start, end) in zip(names, rows, strict=True)
    ]
    assert these.chrom_names().tolist() == names
    offsets = [0, 60, 110]
    starts, ends = these.spans()
    assert starts.tolist() == [offsets[code] + start for code, start, _ in rows]
    assert ends.tolist() == [offsets[code] + end for code, _, end in rows]
    assert starts.dtype == ends.dtype == np.int64


def test_spans_of_a_whole_genome_need_more_than_32_bits() -> None:
    ends = Regions.from_text(["chrM:0-16569"], HG38).spans()[1]
    assert ends.tolist() == [sum(HG38.lengths)]
    assert sum(HG38.lengths) > 2**31


def test_take_by_rows_mask_and_slice() -> None:
    these = regions([(0, 1, 2), (1, 3, 4), (2, 5, 6)])
    assert these.take(np.array([2, 0, 0])).names() == ["chr3:5-6", "chr1:1-2", "chr1:1-2"]
    assert these.take(np.array([False, True, False])).names() == ["chr2:3-4"]
    assert these.take(slice(1, None)).names() == ["chr2:3-4", "chr3:5-6"]
    assert len(these.take(np.empty(0, np.int64))) == 0
    assert these.take(slice(0, 1)).assembly is SMALL

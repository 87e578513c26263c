"""Tokens as the published tokenizer gives them, id for id: regions, BED files, cells and fragments against gtars."""

import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from chromseek.data.errors import BadData
from chromseek.data.genome import Assembly
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe
from chromseek.encoder import atacformer
from chromseek.encoder.reference_tokens import (
    SPECIALS,
    IdLists,
    anndata_tokens,
    bed_tokens,
    fragment_tokens,
    special_ids,
)

tokenizers = pytest.importorskip("gtars.tokenizers")
models = pytest.importorskip("gtars.models")

# chr10 sorts before chr2 as text, after it by number; the universe has nothing on chr3
SMALL = Assembly("small", ("chr1", "chr2", "chr10", "chr3"), (60, 40, 12, 30))
Triple = tuple[str, int, int]


@st.composite
def triples(draw: st.DrawFn, *chroms: str) -> Triple:
    """A region anywhere: any length, one base, to the chromosome's end, or a whole chromosome."""
    chrom = draw(st.sampled_from(chroms or SMALL.chroms))
    length = SMALL.lengths[SMALL.codes[chrom]]
    start = draw(st.integers(0, length - 1))
    end = draw(st.integers(start + 1, length) | st.sampled_from([start + 1, length]))
    return draw(st.sampled_from([(chrom, start, end)] * 9 + [(chrom, 0, length)]))


@st.composite
def universes(draw: st.DrawFn) -> list[Triple]:
    """Different regions in any order: overlapping, nested, and some with the neighbour that abuts."""
    found = draw(st.lists(triples("chr1", "chr2", "chr10"), min_size=1, max_size=20))
    abutting = [(c, end, min(end + 5, SMALL.lengths[SMALL.codes[c]])) for c, _, end in found]
    real = [region for region in abutting if region[1] < region[2]]
    return draw(st.permutations(list(dict.fromkeys(found + real[: draw(st.integers(0, 3))]))))


QUERIES = st.lists(triples(), min_size=1, max_size=12).flatmap(
    lambda rows: st.lists(st.sampled_from(rows), max_size=4).map(lambda again: rows + again)
)
NESTED: list[Triple] = [("chr1", 30, 31), ("chr1", 0, 60), ("chr1", 0, 20), ("chr1", 0, 10), ("chr2", 5, 9)]
ASKED: list[Triple] = [("chr2", 0, 40), ("chr1", 0, 60), ("chr3", 1, 2), ("chr1", 20, 30), ("chr10", 0, 1)]


def made(rows: list[Triple]) -> Regions:
    columns = [np.array(column) for column in zip(*[(SMALL.codes[c], s, e) for c, s, e in rows], strict=True)]
    return Regions(SMALL, columns[0].astype(np.int16), columns[1].astype(np.int32), columns[2].astype(np.int32))


def written(folder: str, name: str, rows: list[Any]) -> Path:
    path = Path(folder) / name
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def tokenizer_of(folder: str, universe: list[Triple]) -> Any:
    return tokenizers.Tokenizer.from_bed(str(written(folder, "universe.bed", universe)))


def gtars_list(tokenizer: Any, rows: list[Triple]) -> list[int]:
    """What gtars makes of a list of regions, in its order."""
    ids: list[int] = tokenizer([models.Region(*row, None) for row in rows])["input_ids"]
    return ids


def as_lists(found: IdLists) -> list[list[int]]:
    assert (found.offsets.dtype, found.ids.dtype) == (np.int64, np.int64)
    return [found[row].tolist() for row in range(len(found))]


# Special tokens


@pytest.mark.parametrize("n", [1, 4])
def test_special_ids_are_those_of_gtars(n: int, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(str(tmp_path), [("chr1", 10 * row, 10 * row + 5) for row in range(n)])
    assert special_ids(n)._asdict() == {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIALS}
    assert SPECIALS == atacformer.SPECIALS
    assert len(SPECIALS) == tokenizer.vocab_size - n


# Lists of regions and BED files


@settings(deadline=None, max_examples=120)
@given(universes(), QUERIES)
@example(NESTED, ASKED)
@example([("chr1", 5, 9)], [("chr1", 9, 12), ("chr2", 5, 9)])
def test_lists_of_regions_are_those_of_gtars(universe: list[Triple], queries: list[Triple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = gtars_list(tokenizer_of(folder, universe), queries)
    over = Universe(made(universe))
    assert bed_tokens(made(queries), over).tolist() == wanted
    assert bed_tokens(made(queries), over, duplicates=False).tolist() == sorted(set(wanted))


@settings(deadline=None, max_examples=100)
@given(universes(), QUERIES)
@example(NESTED, ASKED)
def test_bed_files_are_those_of_gtars(universe: list[Triple], queries: list[Triple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, "queries.bed", queries)
        wanted = tokenizer_of(folder, universe)(str(path))["input_ids"]
        assert bed_tokens(path, Universe(made(universe))).tolist() == wanted


def test_repeats_and_unknown_are_kept_only_where_asked() -> None:
    over = Universe(made(NESTED))
    twice = made([("chr1", 0, 5), ("chr1", 0, 5), ("chr3", 1, 2)])
    assert bed_tokens(twice, over).tolist() == [3, 2, 1, 3, 2, 1]
    assert bed_tokens(twice, over, duplicates=False).tolist() == [1, 2, 3]
    nothing = made([("chr3", 1, 2), ("chr10", 0, 1)])
    assert bed_tokens(nothing, over).tolist() == bed_tokens(nothing, over, duplicates=False).tolist() == [5]
    assert bed_tokens(nothing.take(slice(0, 0)), over).tolist() == [5]


# Cells


@settings(deadline=None, max_examples=100)
@given(universes(), QUERIES, st.integers(0, 2**32 - 1))
@example(NESTED, ASKED, 0)
def test_cells_are_those_of_gtars(universe: list[Triple], columns: list[Triple], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, (4, len(columns))) * rng.integers(0, 2, (4, len(columns)))
    counts[rng.integers(4)] = 0
    var = pd.DataFrame(columns, columns=["chr", "start", "end"], index=[str(row) for row in range(len(columns))])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(folder, universe)
        wanted = [gtars_list(tokenizer, [columns[place] for place in np.flatnonzero(row)]) for row in counts]
    over = Universe(made(universe))
    for form in (sparse.csr_matrix, sparse.csc_matrix, np.asarray):
        cells = anndata.AnnData(form(counts.astype(np.float32)), var=var)
        assert as_lists(anndata_tokens(cells, over)) == wanted
    unordered = [sorted(set(ids)) for ids in wanted]
    assert as_lists(anndata_tokens(cells, over, duplicates=False)) == unordered


def test_columns_are_taken_as_they_are_stored() -> None:
    over = Universe(made(NESTED))
    var = pd.DataFrame([("chr1", 30, 31), ("chr2", 0, 40)], columns=["chr", "start", "end"], index=["first", "second"])
    stored = sparse.csr_matrix((np.ones(3), np.array([1, 0, 0]), np.array([0, 2, 3])), shape=(2, 2))
    zeros = sparse.csr_matrix((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 1, 2])), shape=(2, 2))
    cells = anndata.AnnData(stored, var=var, layers={"raw": zeros})
    assert as_lists(anndata_tokens(cells, over)) == [[4, 1, 0], [1, 0]]
    assert as_lists(anndata_tokens(cells, over, layer="raw")) == [[5], [4]]


# Fragments


@st.composite
def fragments(draw: st.DrawFn) -> list[tuple[str, int, int, str, int]]:
    """Fragments of three barcodes: also on chromosomes that nobody knows, past a chromosome's end, and empty ones."""
    strange = st.tuples(st.sampled_from(["chr9", "KI270728.1", "chrUn_x"]), st.integers(0, 50), st.integers(51, 99))
    past = st.sampled_from([("chr1", 55, 90), ("chr1", 60, 61), ("chr2", 39, 10**9), ("chr1", 5, 5), ("chr10", 0, 0)])
    rows = draw(st.lists(triples() | strange | past, min_size=1, max_size=25))
    return [(*row, draw(st.sampled_from(["A-1", "B-1", "C"])), draw(st.integers(1, 9))) for row in rows]


@settings(deadline=None, max_examples=120)
@given(universes(), fragments())
def test_fragments_are_those_of_gtars(universe: list[Triple], rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, "fragments.tsv", [("# made by hand",), *rows])
        wanted = tokenizers.tokenize_fragment_file(str(path), tokenizer_of(folder, universe))
        over = Universe(made(universe))
        found, once = fragment_tokens(path, over), fragment_tokens(path, over, duplicates=False)
    assert found.barcodes == once.barcodes
    assert len(found.barcodes) == len(wanted)
    assert dict(zip(found.barcodes, as_lists(found.lists), strict=True)) == wanted
    assert as_lists(once.lists) == [sorted(set(wanted[barcode])) for barcode in once.barcodes]


def test_fragments_of_many_blocks_keep_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chroms = np.array(["chr1", "chr2", "chr10", "chr7"])[rng.integers(0, 4, 250_000)]
    starts, sizes, cells = rng.integers(0, 50, 250_000), rng.integers(1, 9, 250_000), rng.integers(0, 30, 250_000)
    rows = zip(chroms, starts, starts + sizes, (f"AACGTTAGGCCTTAGA-{cell}" for cell in cells), cells, strict=True)
    path = written(str(tmp_path), "fragments.tsv", list(rows))
    assert path.stat().st_size > 7 << 20
    wanted = tokenizers.tokenize_fragment_file(str(path), tokenizer_of(str(tmp_path), NESTED))
    found = fragment_tokens(path, Universe(made(NESTED)))
    assert dict(zip(found.barcodes, as_lists(found.lists), strict=True)) == wanted


def test_real_files_give_the_ids_of_gtars(shared: Path) -> None:
    from chromseek.data.genome import assembly

    path = shared / "data" / "ref" / "heme_peaks_universe_hg19.bed.gz"
    asked = shared / "data" / "bed" / "atac_heme" / "B.bed.gz"
    wanted = tokenizers.Tokenizer.from_bed(str(path))(str(asked))["input_ids"]
    assert bed_tokens(asked, Universe.load(path, assembly("hg19"))).tolist() == wanted


def test_a_line_that_is_no_fragment_is_named(tmp_path: Path) -> None:
    path = written(str(tmp_path), "fragments.tsv", [("chr1", 1, 5, "A", 1), ("chr1", "x", 5, "A", 1)])
    with pytest.raises(BadData, match="start x is not a whole number") as caught:
        fragment_tokens(path, Universe(made(NESTED)))
    assert caught.value.line == 2
    few = written(str(tmp_path), "few.tsv", [("chr1", 1, 5, "A")])
    with pytest.raises(BadData, match="no count in column 5"):
        fragment_tokens(few, Universe(made(NESTED)))

"""Search: every form of query in every direction, filters, exclusion, the edges, receipts; against brute force."""

import gzip
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from building import SMALL, build_small
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import chromseek
from chromseek.data.bed import read_bed
from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound
from chromseek.data.sources import ReadOptions
from chromseek.indexer.filter_tree import Compare
from chromseek.search.atlas import Atlas
from chromseek.search.collection import Collection
from chromseek.search.hits import Hits

COLLECTIONS = ("cells", "regions", "beds")
FORMS = (
    "AnnData", "h5ad", "fragments", "BED", "frame", "pyranges", "region", "regions", "dict", "list", "id", "ids",
    "stored", "vectors", "vector", "resolved",
)  # fmt: skip


@pytest.fixture(scope="module")
def fragments(toy_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few cells of the query as a fragments file."""
    adata = anndata.read_h5ad(toy_files["query"])[:4]
    path = tmp_path_factory.mktemp("fragments") / "query.fragments.tsv.gz"
    cells, regions = adata.X.nonzero()
    with gzip.open(path, "wt") as out:
        for cell, region in sorted(zip(cells.tolist(), regions.tolist(), strict=True), key=lambda pair: pair[1]):
            chrom, start, end = adata.var.iloc[region][["chrom", "start", "end"]]
            out.write(f"{chrom}\t{start}\t{end}\t{adata.obs_names[cell]}\t1\n")
    return path


@pytest.fixture(scope="module")
def queries(atlas: Atlas, toy_files: dict[str, Path], fragments: Path) -> dict[str, Any]:
    """The same few things in every form that a query may have."""
    import pyranges

    adata = anndata.read_h5ad(toy_files["query"])[:3].copy()
    bed = sorted(toy_files["beds"].glob("*.bed.gz"))[5]
    regions = read_bed(bed, assembly=atlas.universe.assembly).regions.to_frame()
    names = atlas.universe.regions.names()
    wide = regions.rename(columns={"chrom": "Chromosome", "start": "Start", "end": "End"})
    return {
        "AnnData": adata,
        "h5ad": toy_files["query"],
        "fragments": fragments,
        "BED": str(bed),
        "frame": regions,
        "pyranges": pyranges.PyRanges(wide),
        "region": names[7],
        "regions": names[20:24],
        "dict": {"mine": bed, "yours": regions},
        "list": [bed, regions],
        "id": 3,
        "ids": np.array([1, 5]),
        "stored": "beds:3,4",
        "vectors": atlas.cells.vectors_of([2, 3, 4]),
        "vector": atlas.cells.vectors_of([2])[0],
        "resolved": atlas.regions.resolve("beds:1"),
    }


def names_of(collection: Collection) -> list[str]:
    return [str(name) for name in collection.get(collection.where(None), ["name"])["name"].to_pylist()]


def brute(collection: Collection, vectors: np.ndarray, k: int, skip: list[set[int]] | None = None) -> np.ndarray:
    """The ids of the k rows with the highest cosine, equal ones by id, the slow way; -1 where there are fewer."""
    ids = collection.where(None)
    stored = collection.vectors_of(ids).astype(np.float64)
    out = np.full((len(vectors), k), -1)
    for query, vector in enumerate(vectors.astype(np.float64)):
        scores = np.round(np.clip(stored @ vector, -1, 1), 6)
        best = sorted(
            (-score, i) for score, i in zip(scores, ids.tolist(), strict=True) if not skip or i not in skip[query]
        )
        out[query, : min(k, len(best))] = [i for _, i in best[:k]]
    return out


def same(found: Hits, expected: np.ndarray) -> bool:
    """Whether the hits are those expected, but for places whose scores differ by rounding only."""
    if (found.ids == expected).all():
        return True
    swapped = found.ids != expected
    by_id = [dict(zip(ids, scores, strict=True)) for ids, scores in zip(found.ids.tolist(), found.scores, strict=True)]
    return all(
        abs(by_id[query].get(int(expected[query, place]), 9.0) - found.scores[query, place]) < 2e-6
        for query, place in np.argwhere(swapped)
    )


# Every form of query, every direction


@pytest.mark.parametrize("target", COLLECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_asks_every_collection(atlas: Atlas, queries: dict[str, Any], form: str, target: str) -> None:
    collection = atlas.collection(target)
    question = collection.resolve(queries[form])
    found = collection.search(queries[form], 6)
    n_queries = {"AnnData": 3, "h5ad": 149, "fragments": 4, "regions": 4, "vectors": 3}.get(form)
    n_queries = n_queries or (2 if form in ("dict", "list", "ids", "stored") else 1)
    assert found.ids.shape == found.scores.shape == found.rows.shape == (n_queries, 6)
    assert len(found.queries) == len(found.coverage) == n_queries
    assert found.n_found.tolist() == [6] * n_queries
    own = None
    if question.stored is not None and question.stored[0] == target:
        own = [{i} for i in question.stored[1].tolist()]
    assert same(found, brute(collection, question.vectors, 6, own))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert found.receipt["collection"] == target
    json.dumps(found.receipt)
    known = form not in ("id", "ids", "stored", "vectors", "vector", "resolved")
    assert np.isfinite(found.coverage).all() == known
    if known:
        assert (found.coverage > 0.5).all()


@pytest.mark.parametrize("target", COLLECTIONS)
def test_a_query_alone_is_answered_as_in_company(
    atlas: Atlas, queries: dict[str, Any], toy_files: dict[str, Path], target: str
) -> None:
    adata = anndata.read_h5ad(toy_files["query"])
    company: list[tuple[Any, dict[int, Any]]] = [
        (adata, {n: adata[n : n + 1].copy() for n in (0, 3, 50, 148)}),
        (queries["regions"], dict(enumerate(queries["regions"]))),
        (queries["vectors"], dict(enumerate(queries["vectors"]))),
        (list(range(20)), {0: 0, 7: 7, 19: [19]}),
        ("cells:3,5", {0: "cells:3", 1: "cells:5"}),
        (queries["dict"], {0: queries["BED"], 1: queries["frame"]}),
    ]
    for many, ones in company:
        together = atlas.collection(target).search(many, 9)
        for number, one in ones.items():
            alone = atlas.collection(target).search(one, 9)
            assert (alone.ids[0] == together.ids[number]).all()
            assert (alone.scores[0] == together.scores[number]).all()


def test_one_thing_in_several_forms_has_one_answer(
    atlas: Atlas, queries: dict[str, Any], toy_files: dict[str, Path], fragments: Path
) -> None:
    answers = [atlas.cells.search(queries[form], 8).ids[-1].tolist() for form in ("BED", "frame", "pyranges", "list")]
    assert answers == [answers[0]] * 4
    cells = atlas.beds.search(fragments, 8)
    whole = atlas.beds.search(toy_files["query"], 8)
    place = {name: number for number, name in enumerate(whole.queries)}
    for number, name in enumerate(cells.queries):
        assert (cells.ids[number] == whole.ids[place[name]]).all()
    assert (atlas.beds.search(queries["AnnData"], 8).ids == whole.ids[:3]).all()


def test_names_of_queries_are_kept(atlas: Atlas, queries: dict[str, Any], toy_files: dict[str, Path]) -> None:
    obs_names = anndata.read_h5ad(toy_files["query"]).obs_names
    assert atlas.cells.search(toy_files["query"], 1).queries == tuple(obs_names)
    assert atlas.cells.search(queries["dict"], 1).queries == ("mine", "yours")
    assert atlas.cells.search({"a": queries["regions"]}, 1).queries == tuple(f"a/{n}" for n in queries["regions"])
    assert atlas.cells.search("beds:3,4", 1).queries == tuple(names_of(atlas.beds)[3:5])
    assert atlas.cells.search(queries["BED"], 1).queries == (Path(queries["BED"]).name.removesuffix(".bed.gz"),)


def test_columns_of_other_libraries_are_queries_too(atlas: Atlas) -> None:
    frame = atlas.cells.search("beds:2", 4).to_pandas()
    expected = atlas.cells.search(frame["id"].tolist(), 3).ids
    assert (atlas.cells.search(frame["id"], 3).ids == expected).all()
    assert (atlas.cells.search(pd.Index(frame["id"]), 3).ids == expected).all()
    names = pd.Series(atlas.universe.regions.names()[3:5])
    assert atlas.cells.search(names, 3).queries == tuple(names)


# Scores, ties, ranges


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from(COLLECTIONS), st.booleans())
def test_exact_search_equals_brute_force(atlas: Atlas, seed: int, k: int, name: str, exact: bool) -> None:
    rng = np.random.default_rng(seed)
    collection = atlas.collection(name)
    vectors = rng.standard_normal((3, atlas.encoder.dim)).astype(np.float32)
    found = collection.search(vectors, k, exact=exact)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert same(found, brute(collection, unit, k))
    stored = collection.vectors_of(found.ids[found.found])
    queries = np.repeat(unit, found.n_found, axis=0)
    assert found.scores[found.found] == pytest.approx((stored * queries).sum(axis=1), abs=1e-5)


def test_equal_rows_come_by_id(tmp_path: Path) -> None:
    original = SMALL.universe.regions.take(SMALL.beds().sets[3].astype(np.int64)).to_frame()
    files = [tmp_path / f"copy{n}.bed" for n in range(30)]
    for file in files:
        original.to_csv(file, sep="\t", header=False, index=False)
    with build_small(tmp_path / "a", None, [SMALL, *files]) as built:
        copies = built.beds.where("name LIKE 'copy%'")
        equal = [3, *copies.tolist()]
        hits = built.beds.search(int(copies[11]), 40)
        assert hits.ids[0, :30].tolist() == [i for i in equal if i != copies[11]]
        few = built.beds.search(built.beds.vectors_of(copies[:1]), 7)
        assert few.ids[0].tolist() == equal[:7]
        assert len(set(few.scores[0].tolist())) == 1


@pytest.mark.parametrize("name", COLLECTIONS)
def test_k_may_be_larger_than_there_are_rows(atlas: Atlas, name: str) -> None:
    collection = atlas.collection(name)
    hits = collection.search("beds:1", 5_000)
    there = len(collection) - (name == "beds")
    assert hits.ids.shape == (1, 5_000)
    assert hits.n_found.tolist() == [there]
    assert (hits.ids[0, there:] == -1).all()
    assert np.isneginf(hits.scores[0, there:]).all()
    assert len(np.unique(hits.ids[0, :there])) == there
    assert len(hits.to_pandas()) == there


def test_scores_are_cosines(atlas: Atlas, queries: dict[str, Any]) -> None:
    hits = atlas.cells.search(atlas.cells.vectors_of([5]), 1)
    assert hits.ids.tolist() == [[5]]
    assert hits.scores[0, 0] == pytest.approx(1, abs=1e-3)
    far = atlas.cells.search(-atlas.cells.vectors_of([5]), len(atlas.cells))
    assert far.ids[0, -1] == 5
    assert far.scores[0, -1] == pytest.approx(-1, abs=1e-3)
    assert (atlas.cells.search(queries["vectors"] * 1e30, 5).ids == atlas.cells.search(queries["vectors"], 5).ids).all()
    assert (
        atlas.cells.search(queries["vectors"] * 1e-30, 5).ids == atlas.cells.search(queries["vectors"], 5).ids
    ).all()


def test_a_stored_row_is_not_its_own_hit(atlas: Atlas) -> None:
    for asked in (7, [7, 8], "cells:7", {"x": "cells:7"}, ["cells:7", "cells:8"], np.array([7])):
        hits = atlas.cells.search(asked, 20)
        assert 7 not in hits.ids[0]
        assert (hits.ids[0] == atlas.cells.search(7, 20).ids[0]).all()
    assert 7 in atlas.cells.search(atlas.cells.vectors_of([7]), 20).ids[0]
    assert atlas.beds.search("cells:7", len(atlas.beds)).n_found.tolist() == [len(atlas.beds)]


def test_hits_stay_within_the_distance(atlas: Atlas) -> None:
    everything = atlas.cells.search("beds:2", len(atlas.cells))
    limit = float(1 - everything.scores[0, 40])
    near = atlas.cells.search("beds:2", len(atlas.cells), max_distance=limit)
    assert near.n_found[0] == (1 - everything.scores[0] <= limit + 1e-6).sum()
    assert (near.ids[0, : near.n_found[0]] == everything.ids[0, : near.n_found[0]]).all()
    nothing = atlas.cells.search("beds:2", 5, max_distance=0)
    assert nothing.n_found.tolist() == [0]
    assert nothing.reasons == {0: "nothing within distance 0"}
    assert atlas.cells.search("beds:2", 5, max_distance=2).n_found.tolist() == [5]


# Filters


def test_a_filter_in_text_json_and_tree_is_one(atlas: Atlas) -> None:
    text = "donor = 'D1' AND (age > 30 OR tissue IN ('blood', 'lung')) AND NOT cell_type IS NULL"
    tree = atlas.cells.filter(text)
    hits = atlas.cells.search("beds:1,2", 400, where=text)
    for form in (tree, hits.receipt["where"], json.loads(json.dumps(hits.receipt["where"]))):
        again = atlas.cells.search("beds:1,2", 400, where=form)
        assert (again.ids == hits.ids).all()
        assert again.receipt == hits.receipt
    rows = atlas.cells.get(atlas.cells.where(None)).to_pandas()
    wanted = rows[
        (rows.donor == "D1") & ((rows.age > 30) | rows.tissue.isin(["blood", "lung"])) & rows.cell_type.notna()
    ]
    assert atlas.cells.where(text).tolist() == wanted["id"].tolist()
    assert sorted(hits.ids[0][hits.found[0]].tolist()) == wanted["id"].tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_a_filtered_search_equals_brute_force(atlas: Atlas, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    low = int(rng.integers(60, 200))
    allowed = set(atlas.cells.where(f"n_tokens >= {low}").tolist())
    outside = set(atlas.cells.where(None).tolist()) - allowed
    rows = rng.choice(len(atlas.beds), 2, replace=False).tolist()
    vectors = atlas.beds.vectors_of(rows)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = atlas.cells.search([f"beds:{row}" for row in rows], k, where=Compare("n_tokens", "ge", low))
    assert same(found, brute(atlas.cells, unit, k, [outside, outside]))
    assert found.n_found.tolist() == [min(k, len(allowed))] * 2


def test_a_filter_that_matches_nothing(atlas: Atlas) -> None:
    hits = atlas.cells.search("beds:1,2", 5, where="donor = 'nobody'")
    assert (hits.ids == -1).all()
    assert hits.reasons == {0: "no row matches the filter", 1: "no row matches the filter"}
    assert hits.receipt["path"] == "none"
    assert len(hits.to_pandas()) == 0
    assert hits.predict("cell_type")["cell_type_pred"].isna().all()


@pytest.mark.parametrize(
    "where", ["mood = 1", "donor = 1", "n_tokens = 'x'", "donor ==", "", {"col": "x", "op": "eq", "value": 1}, {}, 5]
)
def test_bad_filters_are_refused(atlas: Atlas, where: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        atlas.cells.search(1, where=where)
    assert caught.value.code.startswith("FILTER")


# Leaving out what is the same


@pytest.mark.parametrize("columns", ["donor", ["donor"], ["donor", "tissue"]])
def test_rows_that_share_a_value_are_left_out(atlas: Atlas, columns: Any) -> None:
    rows = atlas.cells.get(atlas.cells.where(None)).to_pandas().set_index("id")
    asked = [0, 7, 30, 31, 99, 200]
    found = atlas.cells.search(asked, 12, exclude_same=columns)
    names = [columns] if isinstance(columns, str) else columns
    skip = [
        {i} | set(rows.index[np.logical_or.reduce([rows[name] == rows.loc[i, name] for name in names])]) for i in asked
    ]
    assert same(found, brute(atlas.cells, atlas.cells.vectors_of(asked), 12, skip))
    one = atlas.cells.search(asked[2], 12, exclude_same=columns)
    assert (one.ids[0] == found.ids[2]).all()


def test_a_query_from_a_file_brings_its_own_values(atlas: Atlas, toy_files: dict[str, Path]) -> None:
    adata = anndata.read_h5ad(toy_files["query"])[:6].copy()
    adata.obs["donor"] = pd.Categorical(["D1", "D2", None, "D9", "D1", "D3"])
    found = atlas.cells.search(adata, 20, exclude_same="donor", where="age > 0")
    frame = found.to_pandas()
    for number, donor in enumerate(adata.obs["donor"]):
        donors = set(frame[frame["query"] == adata.obs_names[number]]["donor"])
        assert donors
        assert donor not in donors
    plain = atlas.cells.search(adata, 20)
    assert (found.ids[[2, 3]] == plain.ids[[2, 3]]).all()  # no donor, or one that the atlas has not


def test_null_values_exclude_nothing(tmp_path: Path) -> None:
    with build_small(tmp_path / "a") as built:
        adata = anndata.AnnData(
            X=np.eye(4, 400, dtype=np.float32) + np.roll(np.eye(4, 400, dtype=np.float32), 5, axis=1),
            obs=pd.DataFrame({"donor": ["D1", None, "D1", None]}, index=list("abcd")),
            var=pd.DataFrame(index=built.universe.regions.names()),
        )
        built.add(cells=adata)
        rows = built.cells.get(built.cells.where(None)).to_pandas()
        d1 = set(rows[rows["donor"] == "D1"]["id"])
        found = built.cells.search([150, 151], 200, exclude_same="donor")
        assert set(found.ids[0][found.found[0]].tolist()) == set(range(154)) - d1  # rows without a donor stay
        assert set(found.ids[1][found.found[1]].tolist()) == set(range(154)) - {151}
        everything = built.cells.search("cells:0", 5, exclude_same="donor", where="donor = 'D1' OR donor = 'D2'")
        assert everything.n_found.tolist() == [5]
        same_donor = f"donor = '{rows['donor'][0]}'"
        assert built.cells.search(0, 5, exclude_same="donor", where=same_donor).n_found.tolist() == [0]


@pytest.mark.parametrize(
    ("asked", "columns"),
    [
        ("cells:1", "mood"),
        ("cells:1", ["donor", "mood"]),
        ("beds:1", "cell_type"),
        ("chr1:1-1000000", "donor"),
        (1, []),
    ],
)
def test_exclusion_needs_the_column_on_both_sides(atlas: Atlas, asked: Any, columns: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        atlas.cells.search(asked, 3, exclude_same=columns)
    assert caught.value.code.startswith("EXCLUDE")


# Centroids, and like these but not those


def test_a_centroid_is_one_query_with_its_coherence(atlas: Atlas) -> None:
    group = [1, 5, 9, 200, 300]
    vectors = atlas.cells.vectors_of(group)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    hits = atlas.beds.search(f"cells:{','.join(map(str, group))}", 5, centroid=True)
    assert hits.ids.shape == (1, 5)
    assert same(hits, brute(atlas.beds, mean[None] / np.linalg.norm(mean), 5))
    assert hits.receipt["query"]["n"] == len(group)
    assert hits.receipt["query"]["coherence"] == pytest.approx(np.linalg.norm(mean), abs=2e-3)
    same_row = atlas.beds.search("cells:1,1,1", 5, centroid=True)
    assert same_row.receipt["query"]["coherence"] == pytest.approx(1, abs=1e-3)
    assert (same_row.ids == atlas.beds.search("cells:1", 5).ids).all()


def test_opposite_members_have_no_centre(atlas: Atlas) -> None:
    vector = atlas.cells.vectors_of([3])
    hits = atlas.cells.search(np.concatenate([vector, -vector]), 4, centroid=True)
    assert hits.n_found.tolist() == [0]
    assert "no centre" in hits.reasons[0]


def test_unlike_takes_out_what_is_shared(atlas: Atlas) -> None:
    like, other = atlas.cells.vectors_of([3])[0], atlas.beds.vectors_of([2])[0]
    like, other = like / np.linalg.norm(like), other / np.linalg.norm(other)
    rest = like - (like @ other) * other
    hits = atlas.regions.search("cells:3", 6, unlike="beds:2")
    assert same(hits, brute(atlas.regions, rest[None] / np.linalg.norm(rest), 6))
    assert 3 not in atlas.cells.search(3, 400, unlike="beds:2").ids
    itself = atlas.regions.search("cells:3", 6, unlike="cells:3")
    assert itself.n_found.tolist() == [0]
    assert "nothing sets it apart" in itself.reasons[0]
    with pytest.raises(BadArgument, match="nothing to be unlike"):
        atlas.regions.search("cells:3", 6, unlike="chrY:1-2")


# Queries that have no answer, and arguments that make no sense


def test_queries_off_the_universe_say_so(atlas: Atlas, toy_files: dict[str, Path]) -> None:
    name = atlas.universe.regions.names()[0]
    hits = atlas.cells.search(["chrY:1-2", name], 4)
    assert hits.ids[0].tolist() == [-1] * 4
    assert hits.n_found.tolist() == [0, 4]
    assert hits.coverage.tolist() == [0, 1]
    assert hits.reasons == {0: "no overlap with the universe"}
    assert set(hits.to_pandas()["query"]) == {name}
    adata = anndata.read_h5ad(toy_files["query"])[:3].copy()
    adata.X = sparse.csr_matrix(adata.X.multiply([[1], [0], [1]]))
    empty = atlas.beds.search(adata, 4)
    assert empty.n_found.tolist() == [4, 0, 4]
    assert empty.reasons == {1: "no overlap with the universe"}


@pytest.mark.parametrize("k", [0, -1, 10_001, 10**21, 2.5, "5", None, True])
def test_k_has_a_range(atlas: Atlas, k: Any) -> None:
    with pytest.raises(BadArgument, match="k is") as caught:
        atlas.cells.search(1, k)
    assert caught.value.code == "K-RANGE"


def test_hits_have_a_limit(atlas: Atlas) -> None:
    with pytest.raises(BadArgument, match=r"60,000,000 hits") as caught:
        atlas.cells.search(np.ones((6_000, 64)), 10_000)
    assert caught.value.code == "K-RANGE"


@pytest.mark.parametrize("distance", [-0.1, 2.1, float("nan"), float("inf"), "x", True])
def test_distances_have_a_range(atlas: Atlas, distance: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        atlas.cells.search(1, max_distance=distance)
    assert caught.value.code == "DISTANCE-RANGE"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([np.nan] * 64, "VECTOR-FINITE"),
        ([np.inf] * 64, "VECTOR-FINITE"),
        ([1e39] * 64, "VECTOR-FINITE"),
        ([0.0] * 64, "VECTOR-ZERO"),
        ([1.0] * 63, "VECTOR-SHAPE"),
        ([[[1.0] * 64]], "VECTOR-SHAPE"),
        (np.empty((0, 64)), "VECTOR-SHAPE"),
        (np.ones(64, complex), "VECTOR-SHAPE"),
        (np.ones(64, bool), "VECTOR-SHAPE"),
        (np.float64(3.0), "QUERY-KIND"),
    ],
)
def test_vectors_are_checked(atlas: Atlas, values: Any, code: str) -> None:
    with pytest.raises(BadArgument) as caught:
        atlas.cells.search(np.array(values) if isinstance(values, list) else values)
    assert caught.value.code == code


def test_a_bad_vector_is_named(atlas: Atlas) -> None:
    vectors = np.ones((5, 64))
    vectors[3, 10] = np.nan
    with pytest.raises(ValueError, match="vector 3"):
        atlas.cells.search(vectors)


@pytest.mark.parametrize(
    ("asked", "code", "exit_code"),
    [
        (10**6, "ID", 66),
        (10**40, "ID", 66),
        (-1, "ID", 66),
        ("cells:99999999999999999999999", "ID", 66),
        ("beds:24", "ID", 66),
        (np.array([2**64 - 1], np.uint64), "ID", 66),
        ([], "QUERY-KIND", 64),
        ({}, "QUERY-KIND", 64),
        (None, "QUERY-KIND", 64),
        (True, "QUERY-KIND", 64),
        ([True], "QUERY-KIND", 64),
        (3.5, "QUERY-KIND", 64),
        (object(), "QUERY-KIND", 64),
        ("nowhere.bed", "QUERY-FILE", 66),
        ("x" * 100_000, "QUERY-FILE", 66),
        ("a\0b", "QUERY-FILE", 66),
        ("chr1", "QUERY-FILE", 66),
        ("chrQ:1-2", "REGION-CHROM", 64),
        ("chr1:5-5", "REGION-ORDER", 64),
        ("chr1:1-999999999", "REGION-END", 64),
        ([3, "chr1:1-100"], "QUERY-MIXED", 64),
        (["beds:1", "cells:1"], "QUERY-MIXED", 64),
        (["chr1:1-1000000", np.ones(64)], "QUERY-MIXED", 64),
    ],
)
def test_queries_that_are_none_are_refused(atlas: Atlas, asked: Any, code: str, exit_code: int) -> None:
    with pytest.raises(ChromseekError) as caught:
        atlas.cells.search(asked)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.fix
    assert len(str(caught.value)) < 1500


def test_files_that_are_no_queries(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="folder"):
        atlas.cells.search(tmp_path)
    (tmp_path / "x.h5ad").write_bytes(b"rubbish")
    with pytest.raises(BadData):
        atlas.cells.search(tmp_path / "x.h5ad")
    (tmp_path / "x.bed").write_text("chr1\t500\t100\n")
    with pytest.raises(BadData, match=r"x\.bed:1"):
        atlas.cells.search(tmp_path / "x.bed")
    (tmp_path / "fragments_of_interest.bed.gz").write_bytes(
        gzip.compress(b"chr1\t1\t500000\n")
    )  # BED, for all its name
    assert len(atlas.cells.search(tmp_path / "fragments_of_interest.bed.gz", 1)) == 1


def test_foreign_assemblies_are_refused(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "m.bed").write_text("".join(f"chr1\t{248956422 + n}\t{248956500 + n}\n" for n in range(50)))
    with pytest.raises(BadData, match="hg38"):
        atlas.cells.search(tmp_path / "m.bed")


def test_ensembl_names_on_demand(atlas: Atlas, queries: dict[str, Any], tmp_path: Path) -> None:
    frame = queries["frame"].assign(chrom=queries["frame"]["chrom"].str.removeprefix("chr"))
    frame.to_csv(tmp_path / "e.bed", sep="\t", header=False, index=False)
    with pytest.raises(BadData, match="rename"):
        atlas.cells.search(tmp_path / "e.bed")
    hits = atlas.cells.search(tmp_path / "e.bed", 8, read=ReadOptions(rename_chroms="ensembl"))
    assert (hits.ids == atlas.cells.search(queries["frame"], 8).ids).all()
    assert (atlas.replay(hits.receipt).ids == hits.ids).all()


def test_unknown_columns_and_collections(atlas: Atlas) -> None:
    with pytest.raises(NotFound, match="no column mood"):
        atlas.cells.search(1).predict("mood")
    with pytest.raises(NotFound, match="no column mood"):
        atlas.cells.get([1], ["mood"])
    with pytest.raises(NotFound, match="this atlas has no moods"):
        atlas.collection("moods")
    with pytest.raises(BadArgument, match="only region hits"):
        atlas.cells.search(1).to_bed()


def test_a_closed_atlas_says_so(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.path, tmp_path / "a")
    opened = chromseek.open(tmp_path / "a")
    cells, hits = opened.cells, opened.cells.search(1, 3)
    opened.close()
    opened.close()
    uses: list[Callable[[], Any]] = [
        lambda: opened.cells,
        lambda: cells.search(1),
        lambda: cells.get([1]),
        lambda: cells.where("n_tokens > 1"),
        lambda: cells.vectors_of([1]),
        lambda: opened.annotate("x.h5ad", "cell_type"),
        lambda: opened.export(tmp_path / "x.parquet"),
        lambda: opened.add(beds=tmp_path),
        lambda: opened.delete("cells", ids=[1]),
        lambda: opened.calibrate(),
        lambda: opened.replay(hits.receipt),
        lambda: hits.to_pandas(),
        lambda: hits.predict("cell_type"),
    ]
    for use in uses:
        with pytest.raises(BadArgument, match="closed"):
            use()
    assert not (tmp_path / "x.parquet").exists()


def test_atlases_that_cannot_be_opened(tmp_path: Path, atlas: Atlas) -> None:
    with pytest.raises(NotFound):
        chromseek.open(tmp_path / "nowhere")
    with pytest.raises(NotFound, match="version 99"):
        chromseek.open(atlas.path, version=99)
    shutil.copytree(atlas.path, tmp_path / "a")
    victim = next((tmp_path / "a").rglob("vectors.npy"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(BadData, match="sha256"):
        chromseek.open(tmp_path / "a")


# What is made of hits


@pytest.mark.parametrize("name", COLLECTIONS)
def test_hits_bring_the_stored_metadata(atlas: Atlas, name: str) -> None:
    collection = atlas.collection(name)
    hits = collection.search(["cells:1", "cells:2", "cells:3"], 11)
    frame, table = hits.to_pandas(), hits.to_arrow()
    assert frame.columns.tolist()[:4] == ["query", "rank", "id", "score"]
    assert set(frame.columns) == {"query", "rank", "score", *collection.schema.names}
    assert table.num_rows == len(frame) == hits.n_found.sum()
    assert frame["rank"].tolist() == [*range(1, 12)] * 3
    stored = collection.get(frame["id"].to_numpy())
    for column in stored.column_names:
        assert table[column].to_pylist() == stored[column].to_pylist(), column
    assert frame["score"].to_numpy() == pytest.approx(hits.scores.ravel())


def test_one_query_and_many_have_one_shape(atlas: Atlas, tmp_path: Path) -> None:
    for asked, n_queries in (("cells:1", 1), ("cells:1,2,3", 3)):
        hits = atlas.regions.search(asked, 4)
        assert (len(hits), hits.k, hits.ids.shape) == (n_queries, 4, (n_queries, 4))
        adata = hits.to_anndata()
        assert adata.shape == (4 * n_queries, 0)
        assert json.loads(adata.uns["chromseek"])["k"] == 4
        adata.write_h5ad(tmp_path / "hits.h5ad")
        again = anndata.read_h5ad(tmp_path / "hits.h5ad")
        assert again.obs["id"].tolist() == hits.ids.ravel().tolist()
        assert again.obs["gene"].astype(object).where(again.obs["gene"].notna(), None).tolist() == (
            hits.to_arrow()["gene"].to_pylist()
        )
        bed = hits.to_bed(tmp_path / "hits.bed")
        assert bed.columns.tolist() == ["chrom", "start", "end", "name", "score"]
        assert bed["score"].between(0, 1000).all()
        read = read_bed(tmp_path / "hits.bed", assembly=atlas.universe.assembly)
        assert read.regions.names() == [atlas.universe.regions.names()[i] for i in hits.ids.ravel()]
        predicted = atlas.cells.search(asked, 9).predict(["cell_type", "age"])
        assert predicted.columns.tolist() == ["cell_type_pred", "cell_type_conf", "age_pred", "age_sd"]
        assert len(predicted) == n_queries


def test_no_hits_at_all_are_still_a_table(atlas: Atlas, tmp_path: Path) -> None:
    hits = atlas.regions.search("chrY:1-2", 4)
    assert hits.to_arrow().num_rows == 0
    assert hits.to_anndata().shape == (0, 0)
    assert len(hits.to_bed(tmp_path / "none.bed")) == 0
    predicted = hits.predict(["gene", "start"])
    assert predicted["gene_pred"].tolist() == [None]
    assert predicted["gene_conf"].tolist() == [0]
    assert predicted["start_pred"].isna().all()


# Receipts


@pytest.mark.parametrize("form", ["h5ad", "fragments", "BED", "region", "regions", "id", "ids", "stored"])
def test_a_receipt_repeats_its_search(atlas: Atlas, queries: dict[str, Any], form: str) -> None:
    hits = atlas.cells.search(queries[form], 7, where="age > 20", max_distance=0.9)
    receipt = json.loads(json.dumps(hits.receipt))
    again = atlas.replay(receipt)
    assert (again.ids == hits.ids).all()
    assert (again.scores == hits.scores).all()
    assert again.queries == hits.queries
    assert json.loads(json.dumps(again.receipt)) == receipt


@pytest.mark.parametrize(
    "options",
    [
        {"centroid": True},
        {"unlike": "beds:1,2"},
        {"centroid": True, "unlike": "chr1:1-100000000"},
        {"exclude_same": "donor", "exact": True},
        {"where": {"col": "donor", "op": "in", "value": ["D1", "D2"]}},
    ],
)
def test_receipts_hold_all_options(atlas: Atlas, options: dict[str, Any]) -> None:
    hits = atlas.cells.search("cells:4,5,6", 7, **options)
    again = atlas.replay(json.loads(json.dumps(hits.receipt)))
    assert (again.ids == hits.ids).all()
    assert again.receipt == hits.receipt


def test_receipts_of_named_queries_keep_the_names(atlas: Atlas, queries: dict[str, Any]) -> None:
    asked = {"mine": queries["BED"], "other": [queries["BED"]]}
    hits = atlas.cells.search(asked, 7)
    again = atlas.replay(hits.receipt)
    assert again.queries == hits.queries == ("mine", "other")
    assert (again.ids == hits.ids).all()


def test_a_query_that_was_no_file_is_given_again(atlas: Atlas, queries: dict[str, Any]) -> None:
    for form in ("AnnData", "frame", "vectors", "pyranges"):
        hits = atlas.cells.search(queries[form], 7, unlike=queries["vectors"])
        with pytest.raises(BadArgument, match="does not hold the query"):
            atlas.replay(hits.receipt)
        again = atlas.replay(hits.receipt, queries[form], unlike=queries["vectors"])
        assert (again.ids == hits.ids).all()


def test_a_receipt_of_something_else_is_refused(atlas: Atlas, queries: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(atlas.path, tmp_path / "a")
    shutil.copy(queries["BED"], tmp_path / "q.bed.gz")
    with chromseek.open(tmp_path / "a") as copy:
        hits = copy.cells.search(tmp_path / "q.bed.gz", 3)
        assert (copy.replay(hits.receipt).ids == hits.ids).all()
        copy.delete("cells", ids=[int(hits.ids[0, 0])])
        with pytest.raises(BadArgument, match="the receipt is of version 2"):
            copy.replay(hits.receipt)
    with chromseek.open(tmp_path / "a", version=2) as old:
        assert (old.replay(hits.receipt).ids == hits.ids).all()
        with gzip.open(tmp_path / "q.bed.gz", "at") as file:
            file.write("chr1\t1\t100000\n")
        with pytest.raises(BadArgument, match="was changed"):
            old.replay(hits.receipt)
        with pytest.raises(BadArgument, match="encoder"):
            old.replay(hits.receipt | {"encoder": "0" * 64})
        (tmp_path / "q.bed.gz").unlink()
        with pytest.raises(NotFound):
            old.replay(hits.receipt)


# Many at once


def test_threads_give_what_one_gives(atlas: Atlas, queries: dict[str, Any]) -> None:
    wheres = [None, "age > 30", "donor = 'D2'", "n_tokens > 100 AND tissue IS NOT NULL"]

    def ask(number: int) -> list[Any]:
        name, where = COLLECTIONS[number % 3], wheres[number % 4]
        form = ("vectors", "stored", "region", "BED", "ids")[number % 5]
        hits = atlas.collection(name).search(queries[form], 9, where=where if name == "cells" else None)
        return [hits.ids.tolist(), hits.scores.tolist(), hits.to_pandas()["name"].tolist()]

    expected = [ask(number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert list(pool.map(ask, range(60))) == expected


def test_searching_writes_nothing(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.path, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "cache")
    (tmp_path / "a" / "LOCK").unlink()
    before = sorted(tmp_path.rglob("*"))
    with chromseek.open(tmp_path / "a") as opened:
        assert (opened.cells.search(3, 5, where="age > 0").ids == atlas.cells.search(3, 5, where="age > 0").ids).all()
    assert sorted(tmp_path.rglob("*")) == before

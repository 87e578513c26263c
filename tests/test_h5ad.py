"""Matrices of cells: every way to store one gives the same sets, names, coordinates and metadata."""

import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from chromseek.data import h5ad
from chromseek.data.errors import BadArgument, BadData, ChromseekError
from chromseek.data.genome import assembly
from chromseek.data.h5ad import CellMatrix
from chromseek.data.regions import Regions
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe

HG38 = assembly("hg38")
NAMES = ["chr1:100-200", "chr1:300-400", "chrUn_KI270302v1:5-9", "chr2:0-50", "chrX:7-9"]
COUNTS = np.array([[1, 0, 2, 0, 3], [0, 0, 0, 0, 0], [0, 4, 0, 1, 0], [1, 1, 1, 1, 1]])
UNIVERSE = Universe(Regions.from_text(["chr1:150-160", "chr1:190-350", "chr2:40-60"], HG38))
SETS = [[0, 1], [], [1, 2], [0, 1, 2]]  # the second universe region lies over two of the matrix
Storage = Callable[[np.ndarray], Any]
STORAGE: dict[str, Storage] = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dense": np.asarray,
}


def adata(counts: Any = COUNTS, names: list[str] = NAMES, **parts: Any) -> ad.AnnData:
    counts = sparse.csr_matrix(counts) if isinstance(counts, np.ndarray) else counts
    obs = pd.DataFrame({"donor": ["d"] * counts.shape[0]}, index=[f"c{k}" for k in range(counts.shape[0])])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names), **parts)


def write(folder: Path, data: ad.AnnData, **options: Any) -> Path:
    path = folder / "x.h5ad"
    data.write_h5ad(path, **options)
    return path


def sets_of(cells: CellMatrix, universe: Universe = UNIVERSE, **options: int) -> list[list[int]]:
    return [block.sets[k].tolist() for block in cells.blocks(universe, **options) for k in range(len(block))]


def refusal(source: Any, **options: Any) -> ChromseekError:
    with pytest.raises(ChromseekError) as caught:
        sets_of(CellMatrix(source, assembly=HG38, **options))
    assert caught.value.fix
    return caught.value


# ---- good input


def sources(folder: Path, data: ad.AnnData) -> Iterator[Any]:
    """The same data in memory, on disk, and backed."""
    yield data
    path = write(folder, data)
    yield path
    backed = ad.read_h5ad(path, backed="r")
    yield backed
    backed.file.close()
    yield str(write(folder, data, compression="gzip"))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, bool])
@pytest.mark.parametrize("storage", STORAGE)
def test_all_storages_give_the_same_sets(tmp_path: Path, storage: str, kind: type) -> None:
    counts = COUNTS.astype(kind)
    for source in sources(tmp_path, adata(STORAGE[storage](counts))):
        cells = CellMatrix(source, assembly=HG38)
        assert sets_of(cells, block_size=3) == SETS
        assert sets_of(cells, start=2) == SETS[2:]
        (block,) = cells.blocks(UNIVERSE)
        assert block.names == ["c0", "c1", "c2", "c3"]
        assert block.n_source.tolist() == [3, 0, 2, 5]
        assert block.n_placed.tolist() == [1, 0, 2, 3]
        assert block.n_fragments is not None
        assert block.n_fragments.tolist() == counts.astype(int).sum(axis=1).tolist()
        assert cells.region_rows.tolist() == [0, 1, 3, 4]
        assert cells.notes == ["1 regions on contigs skipped"]


def test_layers(tmp_path: Path) -> None:
    data = adata(COUNTS * 0.5, layers={"raw": sparse.csc_matrix(COUNTS)})
    for source in (data, write(tmp_path, data)):
        assert sets_of(CellMatrix(source, assembly=HG38, layer="raw")) == SETS
        error = refusal(source, layer="counts")
        assert isinstance(error, BadArgument)
        assert "layers: raw" in error.message
    data.X = None
    for source in (data, write(tmp_path, data)):
        assert refusal(source).code == "H5AD-LAYER"
        assert sets_of(CellMatrix(source, assembly=HG38, layer="raw")) == SETS


def test_views_and_matrices(tmp_path: Path) -> None:
    data = adata()
    assert sets_of(CellMatrix(data[[2, 0]], assembly=HG38)) == [SETS[2], SETS[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata and numpy advise against it
        dense = ad.AnnData(np.asmatrix(COUNTS), obs=data.obs, var=data.var)
        assert sets_of(CellMatrix(dense, assembly=HG38)) == SETS
    backed = ad.read_h5ad(write(tmp_path, data), backed="r")
    assert sets_of(CellMatrix(backed[[2, 0]], assembly=HG38)) == [SETS[2], SETS[0]]
    backed.file.close()


def test_explicit_zeros_are_closed(tmp_path: Path) -> None:
    counts = sparse.csr_matrix(COUNTS)
    counts.data[:] = 0
    cells = CellMatrix(write(tmp_path, adata(counts)), assembly=HG38)
    (block,) = cells.blocks(UNIVERSE)
    assert block.n_source.sum() == block.sets.sizes.sum() == 0


def test_tokens_do_not_depend_on_the_order_of_columns() -> None:
    names = ["chr2:0-50", "chr1:100-200", "chr1:120-130"]  # the last two overlap
    universe = Universe(Regions.from_text(names, HG38))
    counts = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    for order in permutations(range(3)):
        permuted = adata(counts[:, order], [names[column] for column in order])
        assert sets_of(CellMatrix(permuted, assembly=HG38), universe) == [[1, 2], [1, 2], [0], [0, 1, 2]]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sets_are_those_of_brute_force(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    interval = st.tuples(st.sampled_from(["chr1", "chr2"]), st.integers(0, 90), st.integers(1, 30))
    places = data.draw(st.lists(interval, min_size=1, max_size=7))
    universe = Universe.of(
        Regions.from_text(
            [f"{c}:{s}-{s + w}" for c, s, w in data.draw(st.lists(interval, min_size=1, max_size=7))], HG38
        )
    )
    shape = data.draw(st.integers(1, 9)), len(places)
    counts = np.array(
        data.draw(st.lists(st.integers(0, 2), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    )
    counts = counts.reshape(shape)
    storage = STORAGE[data.draw(st.sampled_from(list(STORAGE)))]
    names = [f"{c}-{s}-{s + w}" for c, s, w in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's on repeated var names
        source: Any = adata(storage(counts), names)
        if data.draw(st.booleans()):
            source = write(tmp_path_factory.getbasetemp(), source)
    regions = Regions.from_text([f"{c}:{s}-{s + w}" for c, s, w in places], HG38)
    expected = [universe.tokenize(regions.take(row > 0))[0].tolist() for row in counts]
    cells = CellMatrix(source, assembly=HG38)
    assert sets_of(cells, universe, block_size=data.draw(st.integers(1, 4))) == expected


def test_pieces_and_spilled_pairs_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts = (rng.random((300, 5)) < 0.4).astype(np.uint8)
    expected = [block.sets.tokens.tolist() for block in CellMatrix(adata(counts), assembly=HG38).blocks(UNIVERSE)]
    monkeypatch.setattr("chromseek.data.matrix.PIECE", 7)
    monkeypatch.setattr(h5ad, "MAX_PAIRS", 50)
    for storage in STORAGE.values():
        cells = CellMatrix(write(tmp_path, adata(storage(counts))), assembly=HG38)
        assert [block.sets.tokens.tolist() for block in cells.blocks(UNIVERSE)] == expected


# ---- names, coordinates, metadata


@pytest.mark.parametrize(
    "columns",
    [("chrom", "start", "end"), ("chr", "start", "end"), ("Chromosome", "Start", "End"), ("seqnames", "start", "end")],
)
def test_coordinates_from_columns(tmp_path: Path, columns: tuple[str, str, str]) -> None:
    data = adata(names=[f"peak{k}" for k in range(5)])
    words = [name.replace(":", "-").split("-") for name in NAMES]
    data.var[columns[0]] = pd.Categorical([word[0] for word in words])
    data.var[columns[1]] = [int(word[1]) for word in words]
    data.var[columns[2]] = [word[2] for word in words]
    for source in (data, write(tmp_path, data)):
        assert sets_of(CellMatrix(source, assembly=HG38)) == SETS


@pytest.mark.parametrize("form", ["{}:{}-{}", "{}-{}-{}", "{}_{}_{}"])
def test_coordinates_from_names(form: str) -> None:
    names = [form.format(*name.replace(":", "-").split("-")) for name in [*NAMES, "chr1_KI270706v1_random:5-9"]]
    counts = np.hstack([COUNTS, COUNTS[:, :1]])
    cells = CellMatrix(adata(counts, names), assembly=HG38)
    assert sets_of(cells) == SETS
    assert cells.notes == ["2 regions on contigs skipped"]


def test_regions_that_cannot_be_read() -> None:
    error = refusal(adata(names=[*NAMES[:3], "GENE1", "x"]))
    assert error.code == "H5AD-REGIONS"
    assert "region 4 is named GENE1, which is not chr:start-end" in error.message
    error = refusal(adata(names=[*NAMES[:4], "chr1:9-5"]))
    assert (error.code, error.line) == ("BED-ORDER", 5)
    assert refusal(adata(names=[f"chrUn_{k}:1-2" for k in range(5)])).code == "BED-EMPTY"
    past = adata(np.ones((2, 2001), np.uint8), [f"chr1:{k}-{k + 9}" for k in range(2000)] + ["chr1:5-248956423"])
    assert "past the end of chr1 (248956422 bases in hg38)" in refusal(past).message
    cells = CellMatrix(past, assembly=HG38, on_bad_line="skip")
    assert len(cells.regions) == 2000
    assert cells.notes == ["1 bad regions skipped"]


def test_another_assembly(shared: Path) -> None:
    path = shared / "data/cells/corces2016_aml_hg19.h5ad"
    assert "looks like hg19, this is hg38" in refusal(path).message
    cells = CellMatrix(path, assembly=None)
    assert cells.regions.assembly.name == "hg19"
    with pytest.raises(BadData, match="the cells are of hg19, the universe of hg38"):
        next(cells.blocks(UNIVERSE))
    with pytest.raises(BadData, match="cannot tell the assembly"):
        CellMatrix(adata(), assembly=None)


def test_repeated_names() -> None:
    data = adata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data.obs_names = ["a", "b", "a", "a-1"]
    error = refusal(data)
    assert error.code == "H5AD-TWICE"
    assert "two cells are named a (rows 1 and 3)" in error.message
    assert CellMatrix(data, assembly=HG38, make_unique=True).names == ["a", "b", "a-2", "a-1"]


def test_metadata_of_many_kinds(tmp_path: Path) -> None:
    data = adata()
    data.obs = pd.DataFrame(
        {
            "type": pd.Categorical(["B", None, "T", "B"]),
            "age": [1.5, np.nan, 3, 4],
            "half": np.float16([1, 2, 3, 4]),
            "n": np.uint16([1, 2, 3, 4]),
            "good": [True, False, True, True],
            "maybe": pd.array([True, None, False, True], "boolean"),
            "count": pd.array([1, None, 3, 4], "Int64"),
            "text": ["a", None, "é", "<script>alert(1)</script>"],
        },
        index=data.obs_names,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's notes on types
        path = write(tmp_path, data)
    for source in (data, path):
        table = CellMatrix(source, assembly=HG38).obs.to_pydict()
        assert table == {
            "type": ["B", None, "T", "B"],
            "age": [1.5, None, 3, 4],
            "half": [1, 2, 3, 4],
            "n": [1, 2, 3, 4],
            "good": [True, False, True, True],
            "maybe": [True, None, False, True],
            "count": [1, None, 3, 4],
            "text": ["a", None, "é", "<script>alert(1)</script>"],
        }


def test_metadata_that_must_become_text() -> None:
    data = adata()
    data.obs = pd.DataFrame(
        {
            "mixed": [1, "a", None, [2]],
            "day": pd.to_datetime(["2024-01-02", None, "2024-01-04", "2024-01-05"]),
            "raw": [b"x", b"y", None, b"z"],
            7: pd.Categorical([1, 2, 1, 2]),
        },
        index=data.obs_names,
    )
    cells = CellMatrix(data, assembly=HG38)
    assert cells.obs.to_pydict() == {
        "mixed": ["1", "a", None, "[2]"],
        "day": ["2024-01-02T00:00:00", None, "2024-01-04T00:00:00", "2024-01-05T00:00:00"],
        "raw": ["x", "y", None, "z"],
        "7": ["1", "2", "1", "2"],
    }
    assert cells.notes[1:] == [f"obs: column {name} kept as text" for name in ("mixed", "day", "raw")]


def test_no_metadata() -> None:
    data = adata()
    data.obs = pd.DataFrame(index=data.obs_names)
    (block,) = CellMatrix(data, assembly=HG38).blocks(UNIVERSE)
    assert (block.metadata.num_rows, block.metadata.num_columns) == (4, 0)


def test_files_of_old_anndata(tmp_path: Path) -> None:
    path = tmp_path / "old.h5ad"
    counts = sparse.csr_matrix(COUNTS)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", COUNTS.shape
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
        kind = [("index", "S4"), ("type", "i1"), ("n", "i8"), ("word", "S4")]
        file["obs"] = np.array([(f"c{k}", k % 2 - (k == 3), k, f"w{k}") for k in range(4)], kind)
        file["uns/type_categories"] = np.array(["B", "T"], "S4")
        file["var"] = np.array([(name,) for name in NAMES], [("index", "S40")])
    cells = CellMatrix(path, assembly=HG38)
    assert sets_of(cells) == SETS
    assert cells.names == ["c0", "c1", "c2", "c3"]
    assert cells.obs.to_pydict() == {
        "type": ["B", "T", "B", "B"],
        "n": [0, 1, 2, 3],
        "word": ["w0", "w1", "w2", "w3"],
    }


# ---- values


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_counts(tmp_path: Path, storage: str, value: float) -> None:
    counts = COUNTS.astype(np.float32)
    counts[2, 3] = value
    for source in (adata(STORAGE[storage](counts)), write(tmp_path, adata(STORAGE[storage](counts)))):
        error = refusal(source)
        assert error.code == "H5AD-VALUES"
        assert f"cell c2, region chr2:0-50: {value} is not a count" in error.message


def test_fractions_are_noted_once() -> None:
    cells = CellMatrix(adata(COUNTS * 0.5), assembly=HG38)
    assert sets_of(cells, block_size=1) == SETS
    assert cells.notes[1:] == ["fractional values: what is not zero counts as open"]
    (block,) = cells.blocks(UNIVERSE)
    assert block.n_fragments is not None
    assert block.n_fragments.tolist() == [3, 0, 2, 2]


@pytest.mark.parametrize(("shape", "what"), [((0, 5), "0 cells"), ((4, 0), "0 regions")])
def test_empty_matrices(tmp_path: Path, shape: tuple[int, int], what: str) -> None:
    data = adata(np.zeros(shape), NAMES[: shape[1]])
    for source in (data, write(tmp_path, data)):
        assert refusal(source).message == what


# ---- real data


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("cells/corces2016_aml_hg19", "hg19"),
        ("cells/schep2017_celllines_hg19", "hg19"),
        ("multiome/neurips_bmmc_hg38_v1.s1d1.atac", "hg38"),
    ],
)
def test_real_cells_match_brute_force(shared: Path, name: str, of: str) -> None:
    path = shared / f"data/{name}.h5ad"
    cells = CellMatrix(path, assembly=assembly(of))
    universe = Universe.of(cells.regions.take(slice(0, None, 2)))
    data = ad.read_h5ad(path)
    found: list[SetBlock] = list(cells.blocks(universe, block_size=100))
    assert [name for block in found for name in block.names] == data.obs_names.tolist()
    matrix = data.X.tocsr()
    for row in (0, 99, 100, data.n_obs - 1):
        here = np.isin(cells.region_rows, matrix[row].nonzero()[1])
        tokens, placed = universe.tokenize(cells.regions.take(here))
        block = found[row // 100]
        assert block.sets[row % 100].tolist() == tokens.tolist()
        assert block.n_placed[row % 100] == placed
    total = np.concatenate([block.n_fragments for block in found if block.n_fragments is not None])
    assert np.array_equal(total, np.asarray(data.X.sum(axis=1)).ravel().astype(int))
    assert cells.obs.column("cell_type").to_pylist() == data.obs["cell_type"].astype(object).tolist()

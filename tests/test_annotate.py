"""Annotation: a donor that the atlas has never seen, and what is written where."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from anndata import AnnData
from building import SMALL, build_small
from scipy import sparse

from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound
from chromseek.data.sources import ReadOptions
from chromseek.search.atlas import Atlas
from chromseek.search.collection import Collection

LABELS = ["cell_type", "lineage", "age"]


@pytest.fixture
def query(toy_files: dict[str, Path]) -> AnnData:
    """The held-out donor: 149 cells."""
    return anndata.read_h5ad(toy_files["query"])


def label_view(atlas: Atlas) -> Collection:
    """The cells by the view that was fitted for their types."""
    cells = atlas.label_view("cell_type")
    assert cells is not None
    return cells


def test_a_held_out_donor_is_annotated_well(atlas: Atlas, query: AnnData) -> None:
    truth = query.obs[["cell_type", "lineage"]].astype(str)
    majority = truth["cell_type"].value_counts(normalize=True).iloc[0]
    written = atlas.annotate(query, ["cell_type", "lineage"])
    right = (written.obs["cell_type_pred"].astype(str) == truth["cell_type"]).to_numpy()
    assert right.mean() > max(0.75, majority + 0.4)
    assert (written.obs["lineage_pred"].astype(str) == truth["lineage"]).mean() > 0.9
    confidence = written.obs["cell_type_conf"].to_numpy()
    assert ((confidence > 0) & (confidence <= 1)).all()
    assert confidence[right].mean() > confidence[~right].mean() + 0.1


def test_columns_are_written_where_they_are_looked_for(atlas: Atlas, query: AnnData) -> None:
    before = query.obs.copy()
    written = atlas.annotate(query, LABELS, k=15)
    assert written is query
    pd.testing.assert_frame_equal(written.obs[before.columns.tolist()], before)
    assert list(written.obs.columns.drop(before.columns)) == [
        "cell_type_pred", "cell_type_conf", "lineage_pred", "lineage_conf", "age_pred", "age_sd", "chromseek_coverage",
    ]  # fmt: skip
    assert written.obs["cell_type_pred"].dtype == "category"
    assert (written.obs["chromseek_coverage"] == 1).all()
    own, hits = label_view(atlas).search(query, 15), atlas.cells.search(query, 15)
    assert written.obs["cell_type_pred"].tolist() == own.predict("cell_type")["cell_type_pred"].tolist()
    for name in ("lineage_pred", "age_pred"):  # no view was fitted for these
        assert written.obs[name].tolist() == hits.predict(LABELS)[name].tolist()
    assert (written.obsm["X_chromseek"] == atlas.cells.resolve(query).vectors).all()
    assert [json.loads(one) for one in written.uns["chromseek"]["receipts"]] == [own.receipt, hits.receipt]
    assert written.uns["chromseek"]["receipt"] == written.uns["chromseek"]["receipts"][0]
    assert written.uns["chromseek"]["views"] == ["bag", "primary", "primary"]
    notes = json.loads(written.uns["chromseek"]["notes"])
    assert [note.partition(":")[0] for note in notes] == ["lineage", "age"]
    assert "built with labels=" in notes[0]
    assert written.uns["chromseek"]["labels"] == LABELS
    ages = atlas.cells.get(atlas.cells.where(None), ["age"])["age"].to_numpy()
    assert written.obs["age_pred"].between(ages.min(), ages.max()).all()


def test_a_file_is_read_and_written_again(atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path) -> None:
    written = atlas.annotate(toy_files["query"], LABELS)
    assert written.n_vars == 3_000
    written.write_h5ad(tmp_path / "out.h5ad")
    again = anndata.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(again.obs, written.obs)
    assert (again.obsm["X_chromseek"] == written.obsm["X_chromseek"]).all()
    assert json.loads(again.uns["chromseek"]["receipt"])["k"] == 30
    in_memory = atlas.annotate(anndata.read_h5ad(toy_files["query"]), LABELS)
    pd.testing.assert_frame_equal(in_memory.obs, written.obs)
    twice = atlas.annotate(tmp_path / "out.h5ad", "cell_type")  # over what is there
    assert twice.obs["cell_type_pred"].tolist() == written.obs["cell_type_pred"].tolist()


def test_copies_views_and_backed_data(atlas: Atlas, query: AnnData, toy_files: dict[str, Path]) -> None:
    written = atlas.annotate(query, "cell_type", copy=True)
    assert written is not query
    assert "cell_type_pred" not in query.obs
    expected = written.obs["cell_type_pred"].tolist()
    view = query[10:20]
    assert atlas.annotate(view, "cell_type", copy=True).obs["cell_type_pred"].tolist() == expected[10:20]
    assert "cell_type_pred" not in query.obs
    backed = anndata.read_h5ad(toy_files["query"], backed="r")
    assert atlas.annotate(backed, "cell_type", copy=True).obs["cell_type_pred"].tolist() == expected
    assert "cell_type_pred" not in backed.obs
    backed.file.close()


@pytest.mark.parametrize("n_cells", [1, 70])
def test_queries_of_any_size(atlas: Atlas, query: AnnData, n_cells: int) -> None:
    expected = atlas.annotate(query.copy(), LABELS).obs[:n_cells]
    some = atlas.annotate(query[:n_cells].copy(), LABELS).obs
    assert len(some) == n_cells
    for column in ("cell_type_pred", "cell_type_conf", "age_pred", "chromseek_coverage"):
        assert some[column].tolist() == expected[column].tolist()


def test_filters_and_exclusion_choose_the_neighbours(atlas: Atlas, query: AnnData) -> None:
    one = atlas.annotate(query.copy(), "donor", where="donor = 'D2'").obs
    assert (one["donor_pred"] == "D2").all()
    assert (one["donor_conf"] == 1).all()
    query.obs["donor"] = "D1"
    other = atlas.annotate(query, "donor", exclude_same="donor").obs
    assert set(other["donor_pred"]) == {"D2", "D3"}
    nothing = atlas.annotate(query[:3].copy(), LABELS, where="donor = 'nobody'")
    assert nothing.obs["cell_type_pred"].isna().all()
    assert (nothing.obs["cell_type_conf"] == 0).all()
    assert nothing.obs["age_pred"].isna().all()
    assert nothing.uns["chromseek"]["n_without_hits"] == 3


def test_cells_without_a_token_get_no_label(atlas: Atlas, query: AnnData, tmp_path: Path) -> None:
    some = query[:4].copy()
    some.X = sparse.csr_matrix(some.X.multiply([[1], [0], [1], [0]]))
    written = atlas.annotate(some, LABELS)
    assert written.obs["cell_type_pred"].isna().tolist() == [False, True, False, True]
    assert written.obs["cell_type_conf"].eq(0).tolist() == [False, True, False, True]
    assert written.obs["age_pred"].isna().tolist() == [False, True, False, True]
    assert written.obs["chromseek_coverage"].tolist() == [1, 0, 1, 0]
    assert written.uns["chromseek"]["n_without_hits"] == 2
    written.write_h5ad(tmp_path / "out.h5ad")
    none = some[[1, 3]].copy()
    atlas.annotate(none, LABELS).write_h5ad(tmp_path / "none.h5ad")
    assert anndata.read_h5ad(tmp_path / "none.h5ad").obs["cell_type_pred"].isna().all()


@pytest.mark.parametrize(
    ("label", "code"),
    [("mood", "LABEL-COLUMN"), (["cell_type", "mood"], "LABEL-COLUMN"), ("id", "LABEL-COLUMN"), ([], "LABEL-COLUMN")],
)
def test_labels_that_the_atlas_lacks(atlas: Atlas, query: AnnData, label: Any, code: str) -> None:
    with pytest.raises(BadArgument) as caught:
        atlas.annotate(query, label)
    assert caught.value.code == code
    assert "cell_type" in caught.value.fix
    assert not any(column.endswith("_pred") for column in query.obs)


def test_a_label_without_any_value_is_refused(tmp_path: Path) -> None:
    block = next(SMALL.cells())
    nothing = block.metadata.append_column("empty", pa.nulls(150, pa.string()))
    half = nothing.append_column("half", pa.array(["x", None] * 75))
    with build_small(tmp_path / "a", replace(block, metadata=half)) as built:
        adata = AnnData(
            X=np.roll(np.tri(5, 400, 40, dtype=np.float32), 30, axis=1),
            var=pd.DataFrame(index=built.universe.regions.names()),
            obs=pd.DataFrame(index=list("abcde")),
        )
        with pytest.raises(BadArgument, match="empty in every cell"):
            built.annotate(adata, "empty")
        written = built.annotate(adata, "half")
        assert set(written.obs["half_pred"]) == {"x"}
        assert (written.obs["half_conf"] == 1).all()  # neighbours without a value do not vote
        built.delete("cells", where="half = 'x'")
        with pytest.raises(BadArgument, match="empty in every cell"):
            built.annotate(adata, "half")


def test_repeated_names_are_refused_or_numbered(atlas: Atlas, query: AnnData) -> None:
    some = query[:3].copy()
    some.obs_names = ["a", "b", "a"]
    with pytest.raises(BadData, match="a"):
        atlas.annotate(some, "cell_type")
    assert "cell_type_pred" not in some.obs
    written = atlas.annotate(some, "cell_type", read=ReadOptions(make_unique=True))
    assert written.obs_names.tolist() == ["a", "b", "a"]
    expected = atlas.annotate(query[:3].copy(), "cell_type")
    assert written.obs["cell_type_pred"].tolist() == expected.obs["cell_type_pred"].tolist()


def test_fragments_become_cells(atlas: Atlas, query: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "x.fragments.tsv.gz"
    cells, regions = query[:5].X.nonzero()
    lines = [
        "\t".join(map(str, [*query.var.iloc[r][["chrom", "start", "end"]], query.obs_names[c], 1])) + "\n"
        for r, c in sorted(zip(regions.tolist(), cells.tolist(), strict=True))
    ]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    written = atlas.annotate(path, LABELS)
    expected = atlas.annotate(query[:5].copy(), LABELS).obs
    assert sorted(written.obs_names) == sorted(expected.index)
    assert written.obs.loc[expected.index, "cell_type_pred"].tolist() == expected["cell_type_pred"].tolist()
    assert written.obsm["X_chromseek"].shape == (5, 64)
    written.write_h5ad(tmp_path / "out.h5ad")


def test_what_cannot_be_annotated(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        atlas.annotate(tmp_path / "nowhere.h5ad", "cell_type")
    (tmp_path / "x.h5ad").write_bytes(b"rubbish")
    with pytest.raises(ChromseekError, match=r"x\.h5ad"):
        atlas.annotate(tmp_path / "x.h5ad", "cell_type")
    with build_small(tmp_path / "a", None) as built, pytest.raises(NotFound, match="no cells"):
        built.annotate(tmp_path / "x.h5ad", "cell_type")

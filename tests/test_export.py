"""Export: every format, whole or not at all, and what comes back when it is read."""

import resource
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from building import SMALL, build_small

import chromseek
from chromseek.data.bed import read_bed
from chromseek.data.errors import ChromseekError, StorageError
from chromseek.search import export
from chromseek.search.atlas import Atlas


@pytest.mark.parametrize("name", ["cells", "regions", "beds"])
@pytest.mark.parametrize("where", [None, "n_tokens > 100", {"col": "id", "op": "lt", "value": 7}])
def test_parquet_has_rows_and_vectors(atlas: Atlas, tmp_path: Path, name: str, where: Any) -> None:
    path, collection = tmp_path / "x.parquet", atlas.collection(name)
    ids = collection.where(where)
    assert atlas.export(path, name, where=where) == len(ids)
    table = pq.read_table(path)
    assert table.column("id").to_pylist() == ids.tolist()
    assert table.drop_columns("vector").to_pylist() == collection.get(ids).to_pylist()
    vectors = np.array(table.column("vector").to_pylist(), np.float32).reshape(-1, 64)
    assert (vectors == collection.vectors_of(ids)).all()


def test_large_exports_are_written_in_parts(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {}
    for suffix in ("parquet", "tsv", "csv"):
        atlas.export(tmp_path / f"whole.{suffix}")
        whole[suffix] = tmp_path / f"whole.{suffix}"
    monkeypatch.setattr(export, "ROWS", 100)
    for suffix, path in whole.items():
        atlas.export(tmp_path / f"parts.{suffix}")
        if suffix == "parquet":
            assert pq.read_table(tmp_path / "parts.parquet").to_pylist() == pq.read_table(path).to_pylist()
        else:
            assert (tmp_path / f"parts.{suffix}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["cells", "regions", "beds"])
def test_h5ad_opens_in_anndata(atlas: Atlas, tmp_path: Path, name: str) -> None:
    path, collection = tmp_path / "x.h5ad", atlas.collection(name)
    n = atlas.export(path, name, where="n_tokens > 0")
    adata = anndata.read_h5ad(path)
    ids = collection.where("n_tokens > 0")
    assert adata.shape == (n, 0)
    assert adata.obs["id"].tolist() == ids.tolist()
    rows = collection.get(ids).to_pandas()
    assert adata.obs_names.tolist() == (rows["dataset"].astype(str) + ":" + rows["name"]).tolist()
    assert set(adata.obs.columns) == set(rows.columns)
    assert (adata.obsm["X_chromseek"] == collection.vectors_of(ids)).all()
    for column in rows.columns:
        ours, theirs = adata.obs[column].astype(object), rows[column].astype(object)
        assert ours[ours.notna()].tolist() == theirs[theirs.notna()].tolist(), column


def test_columns_with_gaps_survive_h5ad(tmp_path: Path) -> None:
    adata = anndata.AnnData(
        X=np.tri(6, 400, 50, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "flag": pd.array([True, None, False] * 2, dtype="boolean"),
                "count": pd.array([1, None, 3] * 2, dtype="Int64"),
                "text": ["a", None, "b"] * 2,
                "number": [0.5, np.nan, 2] * 2,
            },
            index=list("abcdef"),
        ),
        var=pd.DataFrame(index=SMALL.universe.regions.names()),
    )
    with build_small(tmp_path / "a", adata) as built:
        assert built.export(tmp_path / "x.h5ad") == 6
        obs = anndata.read_h5ad(tmp_path / "x.h5ad").obs
        assert obs["count"].isna().tolist() == [False, True, False] * 2
        assert obs["flag"].isna().tolist() == [False, True, False] * 2
        assert [str(v) for v in obs["flag"].dropna()] == ["True", "False"] * 2
        assert obs["text"].dropna().tolist() == ["a", "b"] * 2
        assert built.export(tmp_path / "x.csv") == 6
        assert pd.read_csv(tmp_path / "x.csv")["count"].dropna().tolist() == [1, 3] * 2


@pytest.mark.parametrize("name", ["x.bed", "x.bed.gz"])
def test_regions_are_written_as_bed(atlas: Atlas, tmp_path: Path, name: str) -> None:
    where = "chrom = 'chr1' AND start > 1000000"
    n = atlas.export(tmp_path / name, "regions", where=where)
    ids = atlas.regions.where(where)
    assert n == len(ids) > 0
    written = read_bed(tmp_path / name, assembly=atlas.universe.assembly).regions
    assert written.names() == [atlas.universe.regions.names()[i] for i in ids]
    assert (atlas.cells.search(tmp_path / name, 3).n_found == 3).all()


@pytest.mark.parametrize(("suffix", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_text_has_the_metadata(atlas: Atlas, tmp_path: Path, suffix: str, separator: str) -> None:
    path = tmp_path / f"x.{suffix}"
    assert atlas.export(path, "beds") == 24
    read = pd.read_csv(path, sep=separator)
    assert read.columns.tolist() == atlas.beds.schema.names
    assert read["name"].tolist() == atlas.beds.get(range(24), ["name"])["name"].to_pylist()


@pytest.mark.parametrize("suffix", ["parquet", "h5ad", "tsv", "csv", "bed"])
def test_no_rows_are_an_empty_file(atlas: Atlas, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    assert atlas.export(path, "regions", where="n_tokens > 5") == 0
    if suffix == "parquet":
        assert pq.read_table(path).num_rows == 0
        assert "vector" in pq.read_schema(path).names
    if suffix in ("tsv", "csv"):
        assert path.read_text().split("\n")[0].startswith("id")
        assert path.read_text().count("\n") == 1
    if suffix == "h5ad":
        assert anndata.read_h5ad(path).n_obs == 0


def test_a_file_is_not_overwritten_unasked(atlas: Atlas, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(StorageError, match="exists") as caught:
        atlas.export(path)
    assert (caught.value.exit_code, caught.value.status) == (73, 409)
    assert path.read_text() == "mine"
    atlas.export(path, overwrite=True)
    assert path.read_text() != "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize(
    ("path", "name", "where", "code"),
    [
        ("x.xlsx", "cells", None, "OUTPUT-KIND"),
        ("x", "cells", None, "OUTPUT-KIND"),
        ("x.bed", "cells", None, "OUTPUT-BED"),
        ("x.bed.gz", "beds", None, "OUTPUT-BED"),
        ("nowhere/x.parquet", "cells", None, "OUTPUT-WRITE"),
        ("nowhere/x.h5ad", "cells", None, "OUTPUT-WRITE"),
        ("nowhere/x.csv", "cells", None, "OUTPUT-WRITE"),
        ("x.csv", "cells", "mood = 1", "FILTER-COLUMN"),
        ("x.csv", "moods", None, "COLLECTION"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    atlas: Atlas, tmp_path: Path, path: str, name: str, where: str | None, code: str
) -> None:
    with pytest.raises(ChromseekError) as caught:
        atlas.export(tmp_path / path, name, where=where)
    assert caught.value.code.startswith(code)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_disk_that_is_full_leaves_nothing(atlas: Atlas, tmp_path: Path, suffix: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))  # no file may be longer
    try:
        with pytest.raises(StorageError, match="cannot write") as caught:
            atlas.export(tmp_path / f"x.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 74
    assert not [*tmp_path.iterdir()]


def test_deleted_rows_are_not_exported(atlas: Atlas, tmp_path: Path) -> None:
    shutil.copytree(atlas.path, tmp_path / "a")
    with chromseek.open(tmp_path / "a") as copy:
        copy.delete("beds", ids=[0, 5])
        for suffix in ("parquet", "h5ad", "csv"):
            assert copy.export(tmp_path / f"x.{suffix}", "beds") == 22
        assert pd.read_csv(tmp_path / "x.csv")["id"].tolist() == [i for i in range(24) if i not in (0, 5)]

"""Builds: every kind of input, killed and resumed, in segments, with lists; adding, deleting; what is refused."""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import SMALL, build_small, content, given, watched

import chromseek
from chromseek.data.bed import read_bed
from chromseek.data.errors import BadArgument, BadData, Busy, ChromseekError, NotFound, StorageError
from chromseek.data.genome import assembly
from chromseek.data.simulate import Simulation
from chromseek.data.sources import ReadOptions
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import save
from chromseek.indexer import build as builder
from chromseek.indexer import ingest, views
from chromseek.indexer.store import Store
from chromseek.search import plan
from chromseek.search.atlas import Atlas, plan_build

HG38 = assembly("hg38")


def verified(atlas: Atlas) -> Atlas:
    """The atlas, when every file of it is as it was written and none is there that no version lists."""
    assert [(problem.path, str(problem)) for problem in atlas.verify()] == []
    return atlas


def tokens_of(atlas: Atlas, name: str) -> list[list[int]]:
    """The stored token sets of a collection."""
    folders = [atlas.path / segment["folder"] for segment in atlas.content["collections"][name]["segments"]]
    return [row for f in folders for row in pq.read_table(f / "tokens.parquet").column(0).to_pylist()]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small atlas to be copied."""
    path = tmp_path_factory.mktemp("template") / "atlas"
    build_small(path, labels=["cell_type"]).close()
    return path


@pytest.fixture
def small(template: Path, tmp_path: Path) -> Iterator[Atlas]:
    """A small atlas of one's own: 150 cells, 12 BED sets, 400 regions."""
    shutil.copytree(template, tmp_path / "small")
    with chromseek.open(tmp_path / "small") as opened:
        yield opened


# What is built from what


def test_files_become_rows_tokens_and_reports(atlas: Atlas, toy_files: dict[str, Path]) -> None:
    cells = anndata.read_h5ad(toy_files["cells"])
    rows = atlas.cells.get(atlas.cells.ids).to_pandas()
    assert rows["name"].tolist() == cells.obs_names.tolist()
    assert (rows["id"] == np.arange(len(cells))).all()
    assert (rows["dataset"] == "cells").all()
    for column in ("cell_type", "donor", "age"):
        assert rows[column].tolist() == cells.obs[column].tolist()
    opened = np.asarray((cells.X > 0).sum(axis=1)).ravel()
    assert rows["n_tokens"].tolist() == opened.tolist()
    assert rows["n_fragments"].tolist() == np.asarray(cells.X.sum(axis=1)).ravel().tolist()
    assert [len(row) for row in tokens_of(atlas, "cells")] == opened.tolist()
    report = atlas.info()["collections"]["cells"]["sources"][0]
    assert report["n_sets"] == len(cells)
    assert report["n_below_500"] == (opened < 500).sum()
    assert (report["n_empty"], report["n_above_100000"]) == ((opened == 0).sum(), 0)
    assert report["n_source"] == report["n_placed"] == opened.sum()
    verified(atlas)


def test_bed_files_become_sets_with_the_manifests_columns(atlas: Atlas, toy_files: dict[str, Path]) -> None:
    manifest = pd.read_csv(toy_files["manifest"], sep="\t")
    rows = atlas.beds.get(atlas.beds.ids).to_pandas()
    assert rows["assay"].tolist() == manifest["assay"].tolist()
    stored = tokens_of(atlas, "beds")
    for row, file in enumerate(manifest["file"]):
        regions = read_bed(toy_files["beds"] / file, assembly=HG38).regions
        tokens, placed = atlas.universe.tokenize(regions)
        assert stored[row] == tokens.tolist()
        assert rows["coverage"][row] == pytest.approx(placed / len(regions))


def test_every_region_of_the_universe_is_a_row(atlas: Atlas) -> None:
    rows = atlas.regions.get(atlas.regions.ids).to_pandas()
    assert rows["name"].tolist() == atlas.universe.regions.names()
    assert (
        rows["chrom"].astype(str) + ":" + rows["start"].astype(str) + "-" + rows["end"].astype(str) == rows["name"]
    ).all()
    assert rows["gene"].str.startswith("SIM").mean() > 0.5
    assert rows["tss_distance"].notna().mean() > 0.5


def test_stored_vectors_are_what_the_encoder_gives(atlas: Atlas) -> None:
    for name, kind in (("cells", "cell"), ("beds", "bed"), ("regions", "region")):
        sets = TokenSets.from_lists(tokens_of(atlas, name))
        stored = atlas.collection(name).vectors_of(atlas.collection(name).ids)
        assert np.abs(stored - atlas.encoder.encode(sets, kind)).max() < 1e-3  # type: ignore[arg-type]
        norms = np.linalg.norm(stored, axis=1)
        assert ((np.abs(norms - 1) < 1e-3) | (norms == 0)).all()


def test_anndata_in_memory_gives_what_its_file_gives(atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path) -> None:
    with chromseek.build(
        tmp_path / "a",
        anndata.read_h5ad(toy_files["cells"]),
        toy_files["manifest"],
        toy_files["universe"],
        genes=toy_files["genes"],
    ) as built:
        ours, theirs = content(verified(built)), content(atlas)
        for name in ("cells", "beds", "regions"):
            for part in ("rows", "vectors", "tokens"):
                assert ours[name][part] == theirs[name][part], (name, part)


def fragments_file(path: Path, block: SetBlock) -> None:
    """Write each token of each cell as a fragment inside its region."""
    regions = SMALL.universe.regions
    rows = np.repeat(np.arange(len(block)), block.sets.sizes)
    tokens = block.sets.tokens
    order = np.argsort(tokens, kind="stable")
    chroms = regions.chrom_names()
    lines = [
        f"{chroms[t]}\t{regions.starts[t]}\t{regions.ends[t]}\t{block.names[r]}\t1\n"
        for r, t in zip(rows[order].tolist(), tokens[order].tolist(), strict=True)
    ]
    with gzip.open(path, "wt") as out:
        out.write("# simulated\n" + "".join(lines))


def test_fragments_of_a_sample_manifest(tmp_path: Path) -> None:
    first, second = SMALL.cells(block_size=75)
    for name, block in (("one", first), ("two", second)):
        fragments_file(tmp_path / f"{name}.tsv.gz", block)
        obs = pd.DataFrame({"barcode": block.names, "cell_type": block.metadata["cell_type"].to_pylist()})
        obs.to_csv(tmp_path / f"{name}.csv", index=False)
    manifest = tmp_path / "samples.tsv"
    manifest.write_text("path\tobs\tsample\tdonor\none.tsv.gz\tone.csv\tS1\tA\ntwo.tsv.gz\ttwo.csv\tS2\tB\n")
    with chromseek.build(
        tmp_path / "a", manifest, universe=SMALL.universe, labels=["cell_type"], groups="donor", dim=8
    ) as built:
        rows = verified(built).cells.get(built.cells.ids).to_pandas()
        assert rows["name"].tolist() == first.names + second.names
        assert rows["dataset"].tolist() == ["S1"] * 75 + ["S2"] * 75
        assert rows["donor"].tolist() == ["A"] * 75 + ["B"] * 75
        whole = TokenSets.concat([first.sets, second.sets])
        assert tokens_of(built, "cells") == [whole[row].tolist() for row in range(len(whole))]
        assert rows["n_fragments"].tolist() == whole.sizes.tolist()
        assert rows["coverage"].tolist() == [1.0] * 150


def test_bed_sets_alone_need_a_universe(toy_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="need a universe"):
        chromseek.build(tmp_path / "a", beds=toy_files["manifest"])
    assert not (tmp_path / "a").exists()
    with chromseek.build(tmp_path / "a", beds=toy_files["beds"], universe=toy_files["universe"], dim=8) as built:
        assert (len(built.beds), len(built.regions)) == (24, 3000)
        with pytest.raises(NotFound, match="no cells"):
            _ = verified(built).cells
        assert built.beds.search("beds:3", 2).n_found.tolist() == [2]


def test_cells_alone_bring_their_regions(toy_files: dict[str, Path], tmp_path: Path) -> None:
    with chromseek.build(tmp_path / "a", cells=toy_files["cells"], dim=8) as built:
        assert verified(built).universe.digest == Universe.load(toy_files["universe"], HG38).digest
        assert list(built.content["collections"]) == ["cells", "regions"]


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        ({}, "BUILD-NOTHING", 64),
        ({"cells": [], "beds": ()}, "BUILD-NOTHING", 64),
        ({"cells": SMALL, "dim": 1}, "DIM-RANGE", 64),
        ({"cells": SMALL, "dim": 8.0}, "DIM-RANGE", 64),
        ({"cells": SMALL, "seed": -1}, "SEED-RANGE", 64),
        ({"cells": SMALL, "universe": SMALL.universe, "assembly": "hg19"}, "BUILD-ASSEMBLY", 64),
        ({"cells": SMALL, "labels": "mood"}, "LABEL-COLUMN", 64),
        ({"cells": SMALL, "genes": "nowhere.gtf"}, "FILE-MISSING", 66),
        ({"cells": SMALL, "universe": "nowhere.bed"}, "FILE-MISSING", 66),
        ({"cells": SMALL, "labels": ["mood"]}, "LABEL-COLUMN", 64),
        ({"cells": SMALL, "groups": "hospital"}, "LABEL-COLUMN", 64),
        ({"cells": SMALL, "encoder": "magic"}, "ENCODER-NAME", 66),
        ({"cells": "nowhere.h5ad"}, "FILE-MISSING", 66),
        ({"cells": 5}, "SOURCE-KIND", 64),
        ({"cells": SMALL, "assembly": "hg99"}, "ASSEMBLY", 64),
    ],
)
def test_what_is_wrong_is_said_before_work_begins(
    tmp_path: Path, arguments: dict[str, Any], code: str, exit_code: int
) -> None:
    with pytest.raises(ChromseekError) as caught:
        chromseek.build(tmp_path / "a", **arguments)
    assert caught.value.code.startswith(code)
    assert caught.value.exit_code == exit_code
    assert caught.value.fix
    assert not (tmp_path / "a").exists()


def test_one_dataset_comes_once(tmp_path: Path, toy_files: dict[str, Path]) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(toy_files["query"], tmp_path / folder / "sample.h5ad")
    both = [tmp_path / "x" / "sample.h5ad", tmp_path / "y" / "sample.h5ad"]
    with pytest.raises(BadData, match="dataset sample") as caught:
        chromseek.build(tmp_path / "a", both, dim=8)
    assert caught.value.status == 409
    assert str(both[0]) in str(caught.value)
    assert str(both[1]) in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_bad_input_in_the_middle_leaves_nothing_behind(tmp_path: Path, toy_files: dict[str, Path]) -> None:
    names = sorted(toy_files["beds"].glob("*.bed.gz"))[:5]
    for name in names:
        (tmp_path / name.name.removesuffix(".gz")).write_bytes(gzip.decompress(name.read_bytes()))
    beds = sorted(tmp_path.glob("*.bed"))
    beds[3].write_text(beds[3].read_text() + "chr1\t500\t100\n")
    with pytest.raises(BadData) as caught:
        chromseek.build(tmp_path / "a", beds=beds, universe=toy_files["universe"], dim=8)
    assert caught.value.code == "BED-ORDER"
    assert caught.value.line == len(beds[3].read_text().splitlines())
    assert not (tmp_path / "a").exists()


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError) as caught:
        build_small(tmp_path / "a")
    assert caught.value.exit_code == 73
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_an_atlas_is_not_built_over(small: Atlas) -> None:
    with pytest.raises(StorageError) as caught:
        build_small(small.path, labels=["cell_type"])
    assert caught.value.exit_code == 73


def test_two_builds_at_once_are_told(tmp_path: Path) -> None:
    with Store.create(tmp_path / "a").write("build"), pytest.raises(Busy, match=str(os.getpid())):
        build_small(tmp_path / "a")


def test_a_disk_that_is_too_small_is_told_first(tmp_path: Path) -> None:
    planned = plan_build(
        SMALL, None, SMALL.universe, "lsi", labels=[], groups=None, assembly=None, genes=None, dim=8,
        keep_tokens=True, seed=0, read=None,
    )  # fmt: skip
    with pytest.raises(StorageError, match="are needed") as caught:
        builder.build(tmp_path / "a", planned, n_bytes=1 << 60)
    assert caught.value.exit_code == 74
    builder.build(tmp_path / "a", planned, n_bytes=1 << 10)
    assert len(chromseek.open(tmp_path / "a").cells) == 150


# Killed, and the same call again


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds that were killed at several points, each in a folder of that name."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parent / "building.py"
    points = ["read", "encode", "index", "9", "55", "187"]
    path = os.pathsep.join([str(script.parent), str(script.parents[1] / "src")])
    ran = subprocess.run(
        [sys.executable, script, folder, "kill", *points],
        env=os.environ | {"PYTHONPATH": path, "CHROMSEEK_CRASH_AT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert ran.stdout.split()[: 2 * len(points)] == [word for point in points for word in (point, "9")]
    return folder


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, and lists from 300 on: what the killed builds had."""
    monkeypatch.setattr(ingest, "MAX_ROWS", 64)
    monkeypatch.setattr(views, "INDEX_FROM", 300)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize(
    ("point", "starts"),
    [("read", [64]), ("encode", []), ("index", []), ("9", [0]), ("55", []), ("187", [])],
)
def test_a_killed_build_goes_on_where_it_was(killed: Path, tmp_path: Path, point: str, starts: list[int]) -> None:
    path = tmp_path / "a"
    shutil.copytree(killed / point, path)
    if point != "187":  # which is between the build's commit and that of the calibration
        with pytest.raises(NotFound, match="no version of this atlas"):
            chromseek.open(path)
    with chromseek.open(killed / "whole") as whole:
        expected = content(whole)
    cells, beds = watched()
    with build_small(path, cells, beds) as built:
        assert cells.starts == starts  # finished segments are not read again
        found = content(built)
        for name, part in expected.items():
            assert found[name] == part, name
        assert not [problem for problem in built.verify() if problem.fatal]
        built.gc(grace_hours=0)
        verified(built)
        assert not list((path / "tmp").iterdir())


@pytest.mark.usefixtures("segments")
def test_another_plan_starts_anew(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed / "encode", tmp_path / "a")
    cells, beds = watched()
    with build_small(tmp_path / "a", cells, beds, seed=1) as built:
        assert cells.starts == [0]
        assert len(built.cells) == 150


@pytest.mark.usefixtures("segments")
def test_a_damaged_segment_is_read_again(killed: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    shutil.copytree(killed / "encode", path)
    for segment in (path / "segments").iterdir():
        with open(segment / "rows.parquet", "r+b") as file:
            file.write(b"?")
    cells, beds = watched()
    with build_small(path, cells, beds) as built, chromseek.open(killed / "whole") as whole:
        assert cells.starts == [0]
        assert content(built)["cells"] == content(whole)["cells"]


# Segments, lists, memory


def test_segments_change_nothing_but_files(small: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_ROWS", 64)
    with build_small(tmp_path / "a", *watched()) as built:
        assert [s["n_rows"] for s in built.content["collections"]["cells"]["segments"]] == [64, 64, 22]
        assert built.cells.get(built.cells.ids).equals(small.cells.get(small.cells.ids))
        for name in ("cells", "beds", "regions"):
            ours, theirs = built.collection(name), small.collection(name)
            assert tokens_of(built, name) == tokens_of(small, name)
            assert (ours.vectors_of(ours.ids) == theirs.vectors_of(theirs.ids)).all()
            assert (ours.search("cells:3,9", 7).ids == theirs.search("cells:3,9", 7).ids).all()
        where = "cell_type IS NOT NULL AND n_tokens > 35"
        assert built.cells.where(where).tolist() == small.cells.where(where).tolist()
        verified(built)


def test_large_views_get_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_ROWS", 1_000)
    monkeypatch.setattr(views, "INDEX_FROM", 2_000)
    monkeypatch.setattr(plan, "GATHER", 100)
    simulated = Simulation(n_cells=2_500, n_regions=600, n_beds=5, tokens_per_cell=60, n_genes=10)
    with chromseek.build(tmp_path / "a", simulated, simulated, simulated.universe, dim=16) as built:
        assert [built.collection(name).vectors.n_lists > 0 for name in ("cells", "beds", "regions")] == [1, 0, 0]
        calibrated = built.info()["calibration"]["recall"]["cells"]
        assert calibrated["recall@10"] >= 0.98
        queries = built.cells.vectors_of(range(0, 2_500, 25))
        found, truth = built.cells.search(queries, 10), built.cells.search(queries, 10, exact=True)
        assert (found.receipt["path"], found.receipt["n_probe"]) == ("lists", calibrated["n_probe"])
        assert (truth.receipt["path"], truth.receipt["recall@10"]) == ("exact", 1.0)
        shares = [len(np.intersect1d(f, t)) / 10 for f, t in zip(found.ids, truth.ids, strict=True)]
        assert np.mean(shares) > 0.97
        for number in (0, 17, 99):  # a query alone is answered as in company
            assert (built.cells.search(queries[number], 10).ids == found.ids[number]).all()
        some = built.cells.search(queries, 10, where="donor != 'D1'")
        assert some.receipt["path"] == "lists"
        assert (some.to_pandas()["donor"] != "D1").all()
        assert (some.n_found == 10).all()
        with ThreadPoolExecutor(8) as pool:

            def ask(number: int) -> list[int]:
                return built.cells.search(queries[number], 10, where="donor != 'D1'").ids[0].tolist()

            assert list(pool.map(ask, range(100))) == some.ids.tolist()
        verified(built)


def test_lists_come_with_the_add_that_makes_a_view_large(small: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "INDEX_FROM", 200)
    monkeypatch.setattr(plan, "GATHER", 0)
    assert small.cells.vectors.n_lists == 0
    before = {path: path.stat().st_mtime_ns for path in small.path.rglob("vectors.npy")}
    small.add(cells=given([f"new{n}" for n in range(100)]))
    assert small.cells.vectors.n_lists > 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    found = small.cells.search(small.cells.vectors_of([3, 200]), 3)
    assert found.receipt["path"] == "lists"
    assert found.ids[:, 0].tolist() == [3, 200]
    assert (small.cells.search(3, 249).n_found == 249).all()
    small.add(cells=given([f"newer{n}" for n in range(30)], 1, dataset="newer"))  # which has lists from the start
    assert small.cells.search(small.cells.vectors_of([260]), 1).ids.tolist() == [[260]]
    verified(small)
    with chromseek.open(small.path, version=2) as old:
        assert (len(old.cells), old.cells.vectors.n_lists) == (150, 0)


def test_sets_without_tokens_alone_get_no_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "INDEX_FROM", 10)
    sets = TokenSets(np.zeros(21, np.int64), np.empty(0, np.int32))
    metadata = pa.table({"x": np.arange(20)})
    nothing = SetBlock([f"c{n}" for n in range(20)], sets, sets.sizes, sets.sizes, None, metadata)
    with chromseek.build(tmp_path / "a", nothing, SMALL, SMALL.universe, dim=8) as built:
        assert built.cells.vectors.n_lists == 0
        assert built.cells.search("beds:1", 3).ids.tolist() == [[0, 1, 2]]  # all are as far: by id
        assert any("20 of 20 cells" in warning for warning in built.warnings())
        hits = built.beds.search("cells:1", 3)
        assert hits.n_found.tolist() == [0]
        assert hits.reasons[0]


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    script = Path(__file__).parent / "building.py"
    path = os.pathsep.join([str(script.parent), str(script.parents[1] / "src")])
    ran = subprocess.run(
        [sys.executable, script, tmp_path, "memory", "3000", "16000"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    few, many = map(int, ran.stdout.split())
    assert many < 1.1 * few  # kilobytes; the token sets alone are 20 megabytes more


# Adding


def test_an_add_is_a_new_segment_of_a_new_version(small: Atlas) -> None:
    before = content(small)
    small.add(cells=given(["a", "b", "c"], cell_type=["B", None, "T"]), beds=given(["x"], 1, kind="bed"))
    assert (small.version, len(small.cells), len(small.beds)) == (3, 153, 13)
    rows = small.cells.get([150, 151, 152]).to_pylist()
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [row["cell_type"] for row in rows] == ["B", None, "T"]
    assert [row["donor"] for row in rows] == [None] * 3
    after = content(small)
    assert after["cells"]["rows"][:150] == before["cells"]["rows"]
    assert after["regions"] == before["regions"]
    sets = next(given(["a", "b", "c"]).blocks(SMALL.universe)).sets
    assert tokens_of(small, "cells")[150:] == [sets[row].tolist() for row in range(3)]
    assert (small.cells.vectors_of([150, 151, 152]) - small.encoder.encode(sets, "cell")).max() < 1e-3
    assert small.cells.search("cells:150", 5).n_found.tolist() == [5]
    assert small.cells.where("cell_type = 'B'").tolist() == [150]
    assert [report["n_sets"] for report in small.info()["collections"]["cells"]["sources"]] == [150, 3]
    assert any("calibrated at v1" in warning for warning in small.warnings())
    verified(small)
    small.calibrate()
    assert not any("calibrated at" in warning for warning in small.warnings())
    with chromseek.open(small.path, version=2) as old:
        assert len(old.cells) == 150
        assert content(old) == before


def test_a_collection_can_come_later(tmp_path: Path) -> None:
    with build_small(tmp_path / "a", beds=None) as built:
        built.add(beds=SMALL)
        assert len(built.beds) == 12
        assert built.cells.search("beds:0", 3).n_found.tolist() == [3]
        verified(built)


def test_columns_widen_across_inputs(tmp_path: Path) -> None:
    category = pa.array(["x", "y"]).dictionary_encode()
    first = given(["a", "b"], n=[1, 2], label=category, only=[True, None])
    with build_small(tmp_path / "a", first) as built:
        built.add(cells=given(["c"], 1, dataset="more", n=[0.5], label=["z"], late=["q"]))
        rows = built.cells.get([0, 1, 2], ["n", "label", "only", "late"]).to_pylist()
        assert rows == [
            {"n": 1.0, "label": "x", "only": True, "late": None},
            {"n": 2.0, "label": "y", "only": None, "late": None},
            {"n": 0.5, "label": "z", "only": None, "late": "q"},
        ]
        assert built.cells.where("n < 1.5 AND late IS NULL").tolist() == [0]
        verified(built)


def test_columns_that_clash_are_refused_naming_both_files(small: Atlas) -> None:
    before = sorted(path for path in small.path.rglob("*") if path.is_file())
    with pytest.raises(BadData, match="cell_type") as caught:
        small.add(cells=[given(["a"], dataset="good"), given(["b"], dataset="bad", cell_type=[3])])
    assert caught.value.code == "SCHEMA-CLASH"
    assert "bad.file" in str(caught.value)
    assert "the atlas" in str(caught.value)
    with pytest.raises(BadData, match=r"one\.file") as caught:
        small.add(cells=[given(["a"], dataset="one", q=[1]), given(["b"], dataset="two", q=["x"])])
    assert "two.file" in str(caught.value)
    with pytest.raises(BadData, match="score"):
        small.add(cells=given(["a"], score=[1]))
    assert sorted(path for path in small.path.rglob("*") if path.is_file()) == before
    assert (small.version, len(small.cells)) == (2, 150)
    verified(small)


def test_a_dataset_comes_again_only_when_its_rows_are_gone(small: Atlas) -> None:
    with pytest.raises(BadData, match="dataset simulated") as caught:
        small.add(cells=SMALL)
    assert (caught.value.code, caught.value.status) == ("DATASET-TWICE", 409)
    assert small.delete("cells", where="n_tokens > 40 OR n_tokens <= 40") == 150
    small.add(cells=SMALL)
    assert small.cells.where(None).tolist() == list(range(150, 300))
    reports = small.info()["collections"]["cells"]["sources"]
    assert [(report["n_sets"], report.get("n_deleted", 0)) for report in reports] == [(150, 150), (150, 0)]
    with pytest.raises(BadData, match="dataset simulated"):
        small.add(cells=SMALL)
    small.delete("cells", ids=range(200, 300))
    with pytest.raises(BadData, match="dataset simulated"):  # some are left
        small.add(cells=SMALL)
    verified(small)


def test_nothing_to_add_is_said(small: Atlas) -> None:
    with pytest.raises(BadArgument, match="nothing to add"):
        small.add()


def test_two_openings_add_one_after_the_other(small: Atlas) -> None:
    with chromseek.open(small.path) as other:
        small.delete("beds", ids=[3])
        small.add(cells=given(["a"]))
        other.add(cells=given(["b"], 1, dataset="other"))  # on top of what it has not seen
        assert (other.version, len(other.cells), len(other.beds)) == (5, 152, 11)
        assert other.delete("beds", ids=[4]) == 1
        assert other.beds.where(None).tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
        assert small.delete("beds", ids=[5]) == 1
        assert len(small.beds) == 9


def test_an_add_goes_on_where_it_was_stopped(small: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_ROWS", 50)
    cells, _ = watched(lambda row: 1 // 0 if row >= 96 else None)
    cells.dataset = "again"
    with pytest.raises(ZeroDivisionError):
        small.add(cells=cells)
    assert (chromseek.open(small.path).version, len(small.cells)) == (2, 150)
    cells, _ = watched()
    cells.dataset = "again"
    small.add(cells=cells)
    assert cells.starts == [50]
    assert (small.cells.vectors_of(range(150, 300)) == small.cells.vectors_of(range(150))).all()
    report = small.info()["collections"]["cells"]["sources"][1]
    assert report["n_sets"] == 150
    assert report | {"dataset": "", "label": "", "first_id": 0, "notes": []} == (
        small.info()["collections"]["cells"]["sources"][0] | {"dataset": "", "label": "", "first_id": 0, "notes": []}
    )


# Deleting


def test_deleted_rows_never_come_back(small: Atlas, tmp_path: Path) -> None:
    before = small.cells.search("cells:0", 150)
    gone = small.cells.where("donor = 'D1'")
    assert small.delete("cells", where="donor = 'D1'") == len(gone) > 20
    assert small.delete("cells", ids=[1, 1]) == (1 not in gone)
    gone = np.union1d(gone, [1])
    assert len(small.cells) == 150 - len(gone)
    kept = np.setdiff1d(np.arange(150), gone)
    assert small.cells.where(None).tolist() == kept.tolist()
    assert not np.isin(small.cells.where("n_tokens > 0"), gone).any()
    first = int(kept[0])
    hits = small.cells.search([first, int(kept[1])], 150)
    assert not np.isin(hits.ids, gone).any()
    assert hits.n_found.tolist() == [len(kept) - 1] * 2
    assert not np.isin(small.cells.search("cells:2", 5, where="donor = 'D1'").ids, gone).any()
    for number in (int(gone[0]), 1):
        with pytest.raises(NotFound, match=f"no row {number}"):
            small.cells.get([number])
        with pytest.raises(NotFound):
            small.cells.search(number)
        with pytest.raises(NotFound):
            small.delete("cells", ids=[number])
    assert small.export(tmp_path / "x.parquet") == len(kept)
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == kept.tolist()
    assert small.delete("cells", where="donor = 'D1'") == 0
    verified(small)
    with chromseek.open(small.path, version=2) as old:
        assert (old.cells.search("cells:0", 150).ids == before.ids).all()


def test_deletes_outlive_adds_and_calibration(small: Atlas) -> None:
    small.delete("cells", ids=range(0, 150, 2))
    small.delete("beds", ids=[0])
    small.add(cells=given(["a"]))
    small.calibrate()
    with chromseek.open(small.path) as again:
        assert again.cells.where(None).tolist() == [*range(1, 150, 2), 150]
        assert again.info()["calibration"]["n_rows"] == {"cells": 76, "beds": 11, "regions": 400}
        assert again.warnings() == []
        verified(again)


def test_a_collection_may_become_empty(small: Atlas) -> None:
    assert small.delete("beds", ids=range(12)) == 12
    hits = small.beds.search("cells:1,2", 3)
    assert (hits.ids == -1).all()
    assert hits.reasons == {0: "there are no beds", 1: "there are no beds"}
    assert len(hits.to_pandas()) == 0
    small.calibrate()
    assert small.info()["calibration"]["sanity"]["beds → cells"] is None
    verified(small)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "DELETE-WHAT"),
        ({"where": "id = 1", "ids": [1]}, "DELETE-WHAT"),
        ({"where": "mood = 1"}, "FILTER-COLUMN"),
        ({"ids": [10**30]}, "ID"),
        ({"ids": [-1]}, "ID"),
        ({"ids": [150]}, "ID"),
    ],
)
def test_deletes_that_make_no_sense_change_nothing(small: Atlas, arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(ChromseekError) as caught:
        small.delete("cells", **arguments)
    assert caught.value.code.startswith(code)
    with pytest.raises(BadArgument, match="universe"):
        small.delete("regions", ids=[1])
    assert chromseek.open(small.path).version == 2


# Choices of a build


def test_token_sets_of_cells_need_not_be_kept(small: Atlas, tmp_path: Path) -> None:
    with build_small(tmp_path / "a", keep_tokens=False) as built:
        kept = [path for path in built.path.rglob("tokens.parquet")]
        assert len(kept) == 2  # BED sets and regions
        assert (built.cells.vectors_of(built.cells.ids) == small.cells.vectors_of(small.cells.ids)).all()
        assert any("token sets" in warning for warning in built.warnings())
        built.add(cells=given(["a"]))
        assert len([*built.path.rglob("tokens.parquet")]) == 2
        assert len(built.cells) == 151
        verified(built)


def test_a_saved_encoder_serves_another_atlas(small: Atlas, tmp_path: Path) -> None:
    save(small.encoder, tmp_path / "encoder")
    for number, encoder in enumerate([tmp_path / "encoder", small.encoder]):
        with build_small(tmp_path / str(number), universe=None, encoder=encoder) as built:
            assert built.content["primary"] == small.content["primary"]
            assert (built.cells.vectors_of(range(150)) == small.cells.vectors_of(range(150))).all()
            verified(built)
    with pytest.raises(BadArgument, match="own universe"):
        build_small(tmp_path / "a", encoder=tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadData, match="pickle"):
        build_small(tmp_path / "a", universe=None, encoder=tmp_path / "encoder")


def test_an_encoder_of_another_assembly_is_refused(small: Atlas, tmp_path: Path) -> None:
    foreign = Simulation(n_cells=30, n_regions=400, n_beds=0, tokens_per_cell=20, n_genes=5, assembly="mm10")
    with pytest.raises(BadData, match="mm10") as caught:
        chromseek.build(tmp_path / "a", foreign, encoder=small.encoder)
    assert "hg38" in str(caught.value)
    assert not (tmp_path / "a").exists()
    with pytest.raises(BadData, match="mm10"):
        small.add(cells=foreign)


def test_a_blacklist_leaves_its_regions_out(tmp_path: Path, small: Atlas) -> None:
    regions = SMALL.universe.regions
    listed = regions.take(slice(100, 150))
    path = tmp_path / "black.bed"
    listed.to_frame().to_csv(path, sep="\t", header=False, index=False)
    read = ReadOptions(blacklist=path)
    with build_small(tmp_path / "a", read=read) as built:
        kept = np.setdiff1d(np.arange(400), np.arange(100, 150))
        assert built.universe.regions.names() == regions.take(kept).names()
        rows = small.cells.get(small.cells.ids).to_pandas()
        lost = np.array([sum(100 <= t < 150 for t in tokens) for tokens in tokens_of(small, "cells")])
        ours = built.cells.get(built.cells.ids).to_pandas()
        assert (ours["n_tokens"] == rows["n_tokens"] - lost).all()
        assert ours["coverage"].to_numpy() == pytest.approx(1 - lost / rows["n_tokens"].to_numpy(), abs=1e-6)
    with pytest.raises(BadArgument, match="covers the whole universe"):
        build_small(tmp_path / "b", universe=listed.to_frame(), read=read, assembly="hg38")


def test_a_build_is_the_same_every_time(small: Atlas, tmp_path: Path) -> None:
    with build_small(tmp_path / "a", labels="cell_type") as built:
        assert built.info()["labels"] == ["cell_type"]
        assert content(built) == content(small)
    with build_small(tmp_path / "b", seed=5) as built:
        assert built.content["primary"] != small.content["primary"]


def test_an_atlas_may_be_moved(small: Atlas, tmp_path: Path) -> None:
    expected = small.cells.search("beds:2", 9).ids
    small.path.rename(tmp_path / "elsewhere")
    with chromseek.open(tmp_path / "elsewhere", verify=True) as moved:
        assert (moved.cells.search("beds:2", 9).ids == expected).all()
        moved.add(cells=given(["a"]))
        assert len(verified(moved).cells) == 151


def test_filters_work_without_the_cache(small: Atlas) -> None:
    expected = small.cells.where("tissue IS NOT NULL AND n_tokens > 38").tolist()
    shutil.rmtree(small.path / "cache")
    with chromseek.open(small.path) as again:
        assert again.cells.where("tissue IS NOT NULL AND n_tokens > 38").tolist() == expected
        assert verified(again).delete("cells", ids=[expected[0]]) == 1
        assert again.cells.where("tissue IS NOT NULL AND n_tokens > 38").tolist() == expected[1:]


def test_few_sets_do_not_make_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="too few"):
        build_small(tmp_path / "a", given(["a"]), None)
    assert not (tmp_path / "a").exists()

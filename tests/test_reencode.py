"""Re-encoding: another encoder over the same regions, over others, over another assembly; killed, refused, repeated."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest
from building import SMALL, build_small, content, given, other_encoder, other_universe, reencoded
from scipy import sparse

import chromseek
from chromseek.data.errors import BadArgument, BadData, Busy, NotFound
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import save
from chromseek.encoder.lsi import LSI
from chromseek.indexer import ingest, views
from chromseek.indexer.store import Store
from chromseek.search.atlas import Atlas


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small atlas to be copied."""
    path = tmp_path_factory.mktemp("template") / "atlas"
    build_small(path).close()
    return path


@pytest.fixture
def small(template: Path, tmp_path: Path) -> Iterator[Atlas]:
    """A small atlas of one's own: 150 cells, 12 BED sets, 400 regions."""
    shutil.copytree(template, tmp_path / "small")
    with chromseek.open(tmp_path / "small") as opened:
        yield opened


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 64 rows, and lists from 300 on."""
    monkeypatch.setattr(ingest, "MAX_ROWS", 64)
    monkeypatch.setattr(views, "INDEX_FROM", 300)


def tokens_of(atlas: Atlas, name: str) -> list[list[int]]:
    """The stored token sets of a collection."""
    folders = [atlas.path / segment["folder"] for segment in atlas.content["collections"][name]["segments"]]
    return [row for f in folders for row in pq.read_table(f / "tokens.parquet").column(0).to_pylist()]


def whole(atlas: Atlas) -> Atlas:
    """The atlas, when every file of it is as it was written and none is there that no version lists."""
    assert [(problem.path, str(problem)) for problem in atlas.verify()] == []
    return atlas


def chain_file(path: Path, source: str, target: str, chroms: list[str]) -> Path:
    """A chain that leaves every base of these chromosomes where it is."""
    old, new = assembly(source), assembly(target)
    text = ""
    for number, chrom in enumerate(chroms, 1):
        sizes = old.lengths[old.codes[chrom]], new.lengths[new.codes[chrom]]
        n = min(sizes)
        text += f"chain 1000 {chrom} {sizes[0]} + 0 {n} {chrom} {sizes[1]} + 0 {n} {number}\n{n}\n\n"
    path.write_text(text)
    return path


# The same universe


@pytest.mark.usefixtures("segments")
def test_over_the_same_regions_it_is_what_a_build_gives(tmp_path: Path) -> None:
    with build_small(tmp_path / "a") as atlas, build_small(tmp_path / "b", dim=5) as built:
        before = {path for path in atlas.path.rglob("*.parquet") if path.is_file()}
        atlas.reencode("lsi", dim=5)
        assert {path for path in atlas.path.rglob("*.parquet") if path.is_file()} == before
        assert atlas.version == 4
        assert atlas.info()["encoder"]["dim"] == 5
        ours, theirs = content(atlas), content(built)
        assert theirs["regions"]["lists"] > 0
        assert ours.pop("calibration")["sanity"] == theirs.pop("calibration")["sanity"]
        assert ours == theirs
        whole(atlas)


@pytest.mark.usefixtures("segments")
def test_back_again_is_the_same_atlas_without_new_work(tmp_path: Path) -> None:
    with build_small(tmp_path / "a") as atlas:
        before, recall = content(atlas), atlas.info()["calibration"]["recall"]
        files = {path: path.stat().st_mtime_ns for path in atlas.path.rglob("*.[nf]*") if path.is_file()}
        encoder = atlas.encoder
        atlas.reencode("lsi", dim=5)
        with chromseek.open(atlas.path, version=2) as old:  # whose vectors are there until gc
            assert content(old) == before
        atlas.reencode(encoder)
        after = content(atlas)
        assert before | {"calibration": None} == after | {"calibration": None}
        assert atlas.info()["calibration"]["recall"] == recall
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in files.items())
        whole(atlas)
        atlas.gc(grace_hours=0, keep=1)
        assert len([*(atlas.path / "encoders").iterdir()]) == 1
        assert content(whole(atlas)) == after


def test_the_same_encoder_gives_the_same_hits(small: Atlas) -> None:
    hits = small.cells.search("beds:1,4", 9)
    small.reencode(small.encoder)
    again = small.cells.search("beds:1,4", 9)
    assert (again.ids == hits.ids).all()
    assert (again.scores == hits.scores).all()
    whole(small)


def test_rows_added_and_deleted_since_are_in_it(small: Atlas) -> None:
    small.delete("cells", ids=[3, 5])
    small.add(cells=given([f"new{n}" for n in range(40)]))
    small.reencode("lsi", dim=5)
    assert len(small.cells) == 148 + 40
    assert not {3, 5} & set(small.cells.where(None).tolist())
    stored = small.cells.vectors_of(small.cells.where(None))
    kept = small.cells.rows_of(small.cells.where(None))
    expected = small.encoder.encode(TokenSets.from_lists(tokens_of(small, "cells")).take(kept), "cell")
    assert np.abs(stored - expected).max() < 1e-3
    small.add(cells=given([f"more{n}" for n in range(20)], 1, dataset="more"))
    assert len(whole(small).cells) == 148 + 40 + 20


# Another universe


def mapped(atlas: Atlas, name: str, table: list[list[int]]) -> list[list[int]]:
    """The token sets of a collection over another universe, one by one."""
    return [sorted({new for token in tokens for new in table[token]}) for tokens in tokens_of(atlas, name)]


@pytest.mark.usefixtures("segments")
def test_over_other_regions_tokens_are_those_that_overlap(tmp_path: Path) -> None:
    other = other_universe()
    table = [[int(t) for t in other.token_map(SMALL.universe.regions)[row]] for row in range(400)]
    with build_small(tmp_path / "a") as atlas:
        atlas.delete("cells", ids=[7])
        expected = {name: mapped(atlas, name, table) for name in ("cells", "beds")}
        before = {
            name: atlas.collection(name).metadata.take(np.arange(n)) for name, n in (("cells", 150), ("beds", 12))
        }
        sizes = {name: [len(row) for row in tokens_of(atlas, name)] for name in expected}
        found = {name: [sum(bool(table[t]) for t in row) for row in tokens_of(atlas, name)] for name in expected}
        encoder = other_encoder()
        atlas.reencode(encoder)
        for name, sets in expected.items():
            collection = atlas.collection(name)
            assert tokens_of(atlas, name) == sets
            rows = collection.metadata.take(np.arange(len(sets)))
            changed = ["n_tokens", "coverage"]
            assert rows.drop_columns(changed).equals(before[name].drop_columns(changed))
            assert rows["n_tokens"].to_pylist() == [len(row) for row in sets]
            share = np.array(found[name]) / np.maximum(sizes[name], 1)
            assert np.allclose(rows["coverage"], before[name]["coverage"].to_numpy() * share, atol=1e-6)
            vectors = encoder.encode(TokenSets.from_lists(sets), "cell" if name == "cells" else "bed")
            assert np.abs(collection.vectors.get(np.arange(len(sets))) - vectors).max() < 1e-3
            lost = atlas.info()["reencoded"][-1]["losses"][name]
            assert lost["n_old_tokens"] == sum(sizes[name])
            assert lost["n_carried"] == sum(found[name]) < lost["n_old_tokens"]
            report = atlas.info()["collections"][name]["sources"][0]
            assert report["n_empty"] == sum(not row for row in sets)
            assert "n_carried" not in report
        assert not set(atlas.cells.where(None).tolist()) & {7}
        assert len(atlas.cells) == 149
        whole(atlas)


def test_the_regions_are_the_new_ones_under_new_ids(small: Atlas, toy_files: dict[str, Path]) -> None:
    encoder = other_encoder()
    small.reencode(encoder, genes=toy_files["genes"])
    regions = small.regions.get(small.regions.ids)
    assert regions["name"].to_pylist() == other_universe().regions.names()
    assert small.regions.ids.tolist() == [*range(400, 1000)]
    assert "gene" in regions.column_names
    assert small.universe.digest == encoder.universe.digest
    assert small.info()["universe"]["n_regions"] == 600
    hits = small.cells.search(regions["name"][0].as_py(), 5)
    assert hits.n_found.tolist() == [5]
    assert (small.beds.search("cells:1,2", 3).ids >= 0).all()
    assert small.info()["calibration"]["sanity"]["cells → cells"] is not None


def test_what_was_lost_is_said(small: Atlas) -> None:
    small.reencode(other_encoder())
    (cells, beds) = small.info()["losses"]
    assert "of the tokens of the cells found a place, 0 of 150 cells were left empty" in cells
    assert "of the beds" in beds
    assert not [warning for warning in small.warnings() if "carried over" in warning]  # three quarters are there
    few = Universe(SMALL.universe.regions.take(np.arange(3, 400, 40)))
    rng = np.random.default_rng(0)
    sets = TokenSets.from_lists([rng.choice(10, 4) for _ in range(50)])
    small.reencode(LSI.fit(sets, sets, few, dim=3))
    assert len(small.info()["reencoded"]) == 2
    assert len([warning for warning in small.warnings() if "carried over" in warning]) == 2
    empty = sum(not tokens for tokens in tokens_of(small, "cells"))
    assert small.info()["collections"]["cells"]["sources"][0]["n_empty"] == empty > 0
    assert any(f"{empty} of 150 cells" in warning for warning in small.warnings())


def test_cells_can_be_added_afterwards(small: Atlas) -> None:
    small.reencode(other_encoder())
    table = SMALL.universe
    wanted = small.universe.token_map(table.regions)
    matrix = sparse.random(20, 400, 0.1, "csr", random_state=0)
    cells = anndata.AnnData(matrix)
    cells.var_names, cells.obs_names = table.regions.names(), [f"new{n}" for n in range(20)]
    small.add(cells=cells)
    added = tokens_of(small, "cells")[150:]
    for row, tokens in zip(matrix, added, strict=True):
        assert tokens == sorted({int(new) for token in row.indices for new in wanted[token]})
    assert small.cells.ids.tolist() == [*range(170)]
    whole(small)


def test_a_move_that_leaves_nothing_is_refused(small: Atlas) -> None:
    regions = SMALL.universe.regions
    away = Universe(Regions(regions.assembly, regions.chroms, regions.ends + 1, regions.ends + 2).take(np.arange(50)))
    assert away.token_map(regions).sizes.sum() == 0
    rng = np.random.default_rng(0)
    sets = TokenSets.from_lists([rng.choice(50, 10) for _ in range(50)])
    version = small.version
    with pytest.raises(BadData) as caught:
        small.reencode(LSI.fit(sets, sets, away, dim=4))
    assert caught.value.code == "REENCODE-LOST"
    assert small.version == version
    whole(small)


# Another assembly


def test_another_assembly_needs_its_chain(small: Atlas, tmp_path: Path) -> None:
    encoder = other_encoder("hg19")
    with pytest.raises(BadArgument, match="hg38, the encoder of hg19") as caught:
        small.reencode(encoder)
    assert "--liftover" in str(caught.value)
    chroms = sorted({name.split(":")[0] for name in SMALL.universe.regions.names()})
    back = chain_file(tmp_path / "back.chain", "hg19", "hg38", chroms)
    with pytest.raises(BadArgument, match="leads to hg38"):
        small.reencode(encoder, chain=back)
    assert small.version == 2
    small.reencode(encoder, chain=chain_file(tmp_path / "a.chain", "hg38", "hg19", chroms))
    assert small.info()["assembly"] == "hg19"
    straight = [
        [int(t) for t in row] for row in map(other_universe().token_map(SMALL.universe.regions).__getitem__, range(400))
    ]
    with chromseek.open(small.path, version=2) as old:
        assert old.info()["assembly"] == "hg38"
        assert tokens_of(small, "cells") == mapped(old, "cells", straight)
    whole(small)
    with chromseek.open(small.path) as again:
        assert again.universe.assembly.name == "hg19"
        assert again.cells.search("cells:3", 4).ids.tolist() == small.cells.search("cells:3", 4).ids.tolist()


def test_a_chain_of_few_chromosomes_loses_the_others(small: Atlas, tmp_path: Path) -> None:
    small.reencode(other_encoder("hg19"), chain=chain_file(tmp_path / "a.chain", "hg38", "hg19", ["chr1", "chr2"]))
    lost = small.info()["reencoded"][-1]["losses"]["cells"]
    assert 0.05 < lost["n_carried"] / lost["n_old_tokens"] < 0.3
    assert any("carried over from v2 (hg38, 400 regions)" in warning for warning in small.warnings())


# What is refused


def test_token_sets_are_needed(tmp_path: Path) -> None:
    with build_small(tmp_path / "a", keep_tokens=False) as atlas:
        with pytest.raises(BadArgument, match="token sets of the cells were not kept") as caught:
            atlas.reencode("lsi")
        assert caught.value.exit_code == 64
        assert atlas.version == 2
        whole(atlas)


@pytest.mark.parametrize("name", ["lsy", "atacformer", "atacformer:huge", "no/such/folder", ""])
def test_unknown_encoders_are_told_what_there_is(small: Atlas, name: str) -> None:
    with pytest.raises(NotFound, match="atacformer:tiny, atacformer:small") as caught:
        small.reencode(name)
    assert "hub" in str(caught.value)
    with pytest.raises(NotFound, match="lsi, bag"):
        build_small(small.path.parent / "new", encoder=name)
    assert not (small.path.parent / "new").exists()


def test_a_gpu_that_is_not_there(small: Atlas, tmp_path: Path) -> None:
    save(small.encoder, tmp_path / "encoder")
    for encoder in ("lsi", tmp_path / "encoder", small.encoder):
        with pytest.raises(BadArgument, match="cuda:99"):
            small.reencode(encoder, device="cuda:99")
    with pytest.raises(BadArgument, match="unknown precision float8"):
        chromseek.open(small.path, dtype="float8")


@pytest.mark.parametrize(
    ("options", "code"), [({"dim": 1}, "DIM-RANGE"), ({"dim": 2.5}, "DIM-RANGE"), ({"seed": -1}, "SEED-RANGE")]
)
def test_numbers_have_their_range(small: Atlas, options: dict[str, Any], code: str) -> None:
    with pytest.raises(BadArgument) as caught:
        small.reencode("lsi", **options)
    assert caught.value.code == code


def test_one_writer_at_a_time(small: Atlas) -> None:
    with Store.open(small.path).write("add"), pytest.raises(Busy, match="is writing this atlas"):
        small.reencode("lsi", dim=5)
    with chromseek.open(small.path) as stale:
        small.reencode("lsi", dim=5)
        for work in (lambda: stale.add(cells=given(["a"])), stale.calibrate, lambda: stale.reencode("lsi", dim=4)):
            with pytest.raises(Busy, match="another encoder has taken over"):
                work()
        assert stale.delete("cells", ids=[1]) == 1  # an id is an id under any encoder
    whole(small)


def test_what_cannot_be_fitted_leaves_the_atlas_as_it_was(small: Atlas) -> None:
    expected = content(small)
    small.delete("cells", where="id >= 0")
    small.delete("beds", where="id >= 0")
    with pytest.raises(BadData, match="too few"):
        small.reencode("lsi", dim=5)
    assert not [*(small.path / "tmp").iterdir()]
    whole(small)
    with chromseek.open(small.path, version=2) as old:
        assert content(old) == expected


# Killed, and the same call again


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Re-encodings that were killed at several steps, each in a folder of that name; step 0 is none."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parent / "building.py"
    path = os.pathsep.join([str(script.parent), str(script.parents[1] / "src")])
    ran = subprocess.run(
        [sys.executable, script, folder, "reencode", "same-0", "other-0", *POINTS],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said = ran.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["steps", "same-0", "steps", "other-0", *POINTS], said
    steps = {"same": int(said[0].split()[1]), "other": int(said[2].split()[1])}
    assert all(int(point.split("-")[1]) <= steps[point.split("-")[0]] for point in POINTS), steps
    assert all(line.endswith(" 9") for line in said[4:])
    return folder


POINTS = [f"same-{step}" for step in (1, 4, 10, 20, 30, 40)] + [f"other-{step}" for step in (2, 9, 20, 40, 60, 80)]


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_one_goes_on_where_it_was(killed: Path, tmp_path: Path, point: str) -> None:
    for name in (point, "encoder"):
        shutil.copytree(killed / name, tmp_path / name)
    plan = point.split("-")[0]
    with chromseek.open(killed / f"{plan}-0") as done, chromseek.open(killed / "template") as before:
        expected, old = content(done), content(before)
    with chromseek.open(tmp_path / point) as found:  # the old version or the new one, whole
        assert not [problem for problem in found.verify() if problem.fatal]
        now = content(found) if "calibration" in found.content else None
        assert now in (None, old, expected)
    with reencoded(tmp_path / point, plan) as atlas:
        again = content(atlas)
        for name, part in expected.items():
            assert again[name] == part, name
        assert atlas.version == 4
        assert len(atlas.info()["reencoded"]) == 1
        atlas.gc(grace_hours=0)
        whole(atlas)
        assert not [*(tmp_path / point / "tmp").iterdir()]

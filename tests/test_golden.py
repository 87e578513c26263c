"""Atlases of every released format open, verify and answer as they did."""

import json
import shutil
from pathlib import Path

import pytest

import chromseek
from chromseek.indexer.store import Store

GOLDEN = sorted(path for path in (Path(__file__).parent / "golden").glob("format-*") if path.is_dir())


def test_the_current_format_has_a_golden_atlas() -> None:
    assert f"format-{Store.FORMAT[0]}.{Store.FORMAT[1]}" in [path.name for path in GOLDEN]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_it_opens_and_answers_as_it_did(folder: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 1_000_000
    expected = json.loads((folder / "expected.json").read_text())
    shutil.copytree(folder / "atlas", tmp_path / "atlas")
    with chromseek.open(tmp_path / "atlas", verify=True) as atlas:
        assert not [problem for problem in atlas.verify() if problem.fatal]
        for direction, ids in expected["answers"].items():
            source, target = direction.split(" -> ")
            assert atlas.collection(target).search(f"{source}:1,7", 5).ids.tolist() == ids, direction
        assert atlas.cells.where(expected["where"]).tolist() == expected["rows"]
        assert not {3, 5} & set(atlas.cells.where(None).tolist())


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_it_can_be_added_to(folder: Path, tmp_path: Path) -> None:
    from chromseek.data.simulate import toy

    shutil.copytree(folder / "atlas", tmp_path / "atlas")
    files = toy().write(tmp_path / "files")
    with chromseek.open(tmp_path / "atlas") as atlas:
        before = len(atlas.beds)
        atlas.add(beds=files["manifest"])
        assert len(atlas.beds) == before + 24


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_it_can_be_encoded_anew(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "atlas", tmp_path / "atlas")
    with chromseek.open(tmp_path / "atlas") as atlas:
        n_cells = len(atlas.cells)
        atlas.reencode("lsi", dim=4)
        assert (atlas.encoder.dim, len(atlas.cells)) == (4, n_cells)
        assert not {3, 5} & set(atlas.cells.where(None).tolist())
        assert atlas.label_view("cell_type") is not None
        assert not atlas.verify()

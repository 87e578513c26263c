"""What `build --check` says, against what a build then takes."""

from pathlib import Path

import pytest

from chromseek.data.inputs import ReadOptions
from chromseek.indexer.build import Plan
from chromseek.search.atlas import Atlas
from chromseek.search.build_plan import plan_build
from chromseek.search.estimate import BuildEstimate, estimate


def plan_of(cells: object = None, beds: object = None, universe: object = None, **given: object) -> Plan:
    options = {
        "labels": (),
        "groups": None,
        "assembly": None,
        "genes": None,
        "dim": None,
        "keep_tokens": True,
        "seed": 0,
    }
    encoder = given.pop("encoder", "lsi")
    return plan_build(cells, beds, universe, encoder, read=ReadOptions(), **(options | given))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(toy_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildEstimate:
    plan = plan_of(toy_files["cells"], toy_files["manifest"], toy_files["universe"], labels=["cell_type"])
    return estimate(plan, tmp_path_factory.mktemp("new") / "x.atlas")


def test_what_is_read(found: BuildEstimate, atlas: Atlas) -> None:
    cells, beds = found.sources
    assert (cells.n_sets, beds.n_sets) == (len(atlas.cells), len(atlas.beds))
    assert (cells.kind, beds.kind) == ("cell", "bed")
    assert found.n_regions == len(atlas.regions)
    assert found.assembly == "hg38"
    for source, name in ((cells, "cells"), (beds, "beds")):
        report = atlas.content["collections"][name]["sources"][0]
        assert source.coverage == pytest.approx(report["n_placed"] / report["n_source"], abs=0.05)
        tokens = sum(atlas.collection(name).metadata.column("n_tokens").to_pylist())
        assert source.n_tokens == pytest.approx(tokens, rel=0.2)


def test_encoders_and_labels_have_their_price(toy_files: dict[str, Path], tmp_path: Path) -> None:
    def of(**given: object) -> BuildEstimate:
        return estimate(plan_of(toy_files["cells"], None, toy_files["universe"], **given), tmp_path / "x")

    plain, labelled = of(), of(labels=["cell_type"])
    bag, narrow = of(encoder="bag"), of(encoder="bag", dim=16)
    small, base = of(encoder="atacformer:small"), of(encoder="atacformer:base")
    assert plain.disk < labelled.disk
    assert narrow.disk < plain.disk < bag.disk < base.disk
    assert plain.seconds < labelled.seconds
    assert bag.seconds < small.seconds < base.seconds


def test_the_disk_it_takes(found: BuildEstimate, atlas: Atlas) -> None:
    taken = sum(file.stat().st_size for file in atlas.path.rglob("*") if file.is_file() and file.suffix != ".duckdb")
    assert 0.5 * taken < found.disk < 3 * taken
    assert found.free > 0
    assert found.seconds < 60


def test_the_wrong_universe_is_told(toy_files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.bed"
    other.write_text("chr1\t100\t200\nchr2\t1000\t1500\n")
    found = estimate(plan_of(toy_files["cells"], None, other, assembly="hg38"), tmp_path / "x.atlas")
    assert found.sources[0].coverage == 0
    assert "only 0% of the regions" in found.warnings[0]


def test_fragments_have_as_many_cells_as_they_have(toy_files: dict[str, Path], tmp_path: Path) -> None:
    fragments = tmp_path / "f.tsv"
    fragments.write_text("chr1\t343800\t343900\tAAAC-1\t2\nchr1\t100\t200\tAAAG-1\t1\n")
    found = estimate(plan_of(fragments, None, toy_files["universe"]), tmp_path / "x.atlas")
    assert found.sources[0].n_sets is None
    assert found.sources[0].coverage == 0.5
    assert found.disk > 0


def test_what_is_in_the_way(toy_files: dict[str, Path], atlas: Atlas) -> None:
    found = estimate(plan_of(toy_files["cells"]), atlas.path)
    assert "already: the build will refuse it" in found.warnings[0]

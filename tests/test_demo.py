"""The demo, end to end in process: its lines work as printed, its figures hold, and it replaces only demos."""

import io
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import chromseek
from chromseek.data.errors import BadArgument, Busy, StorageError
from chromseek.indexer.lock import writing
from chromseek.search import plot
from chromseek.search.hits import Hits
from chromseek.service.cli import main
from chromseek.service.demo import MARK, MARKER, PICTURES, run


def run_tiny(folder: Path) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        run("tiny", folder)
    return out.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """The folder, the text and the report of one tiny demo."""
    folder = tmp_path_factory.mktemp("demo") / "my demo"
    text = run_tiny(folder)
    return folder, text, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def atlas(demo: tuple[Path, str, dict[str, Any]]) -> Iterator[chromseek.Atlas]:
    with chromseek.open(demo[0] / "demo.atlas") as opened:
        yield opened


def test_the_text_says_that_all_is_simulated_and_what_to_do_next(demo: tuple[Path, str, dict[str, Any]]) -> None:
    _, text, report = demo
    assert "SIMULATED" in text.splitlines()[0]
    assert report["origin"] == "simulated by chromseek"
    assert "\x1b" not in text
    for line in ("chromseek build my.atlas", "chromseek annotate my.atlas", "chromseek serve my.atlas"):
        assert line in text
    for asked in report["questions"]:
        assert asked["python"] in text
        assert asked["shell"] in text


def test_the_answers_are_right(demo: tuple[Path, str, dict[str, Any]]) -> None:
    first, cells, beds, regions, filtered = (asked["measures"] for asked in demo[2]["questions"])
    assert first["accuracy"] > 0.75
    assert first["lineage_accuracy"] > 0.95
    assert first["sure_accuracy"] > 0.9
    for measures in (cells, beds):
        assert measures["right_all"] > 0.7
        assert measures["right_lineage_all"] > 0.9
    for measures in (cells, beds, regions, filtered):
        assert measures["right"] > 2 * measures["chance"]
        assert measures["recall"] >= 0.99
    assert regions["self_first"] == 1
    assert filtered["filter_kept"] == 1


def test_every_python_line_gives_the_answer_that_was_shown(
    demo: tuple[Path, str, dict[str, Any]], atlas: chromseek.Atlas
) -> None:
    for asked in demo[2]["questions"]:
        answer = eval(asked["python"], {"atlas": atlas})
        if isinstance(answer, Hits):
            assert answer.to_pandas()["name"].head(5).tolist() == asked["answer"]["name"]
        else:
            shown = answer.obs.loc[asked["answer"]["cell"], "cell_type_pred"]
            assert shown.astype(str).tolist() == asked["answer"]["cell_type_pred"]


def test_every_shell_line_runs(
    demo: tuple[Path, str, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, text, report = demo
    for asked in report["questions"]:
        command, *words = shlex.split(asked["shell"])
        assert command == "chromseek"
        assert main(words) == 0
        out = capfd.readouterr().out
        assert all(name in out for name in asked["answer"].get("name", []))
    (folder / "annotated.h5ad").unlink()
    build = next(line for line in text.splitlines() if "shell    chromseek build" in line)
    words = shlex.split(build)[2:]
    assert words[:2] == ["build", str(folder / "demo.atlas")]
    assert main(["build", str(tmp_path / "again.atlas"), *words[2:], "--check"]) == 0


def test_what_is_asked_is_not_in_the_atlas(demo: tuple[Path, str, dict[str, Any]], atlas: chromseek.Atlas) -> None:
    held = [path.name.removesuffix(".bed.gz") for path in (demo[0] / "data" / "query_beds").iterdir()]
    assert len(held) == 8
    assert not set(held) & set(atlas.beds.metadata.column("name").to_pylist())
    assert len(atlas.cells.where("donor = 'D4'")) == 0


def test_pictures_are_drawn_where_the_extra_is(demo: tuple[Path, str, dict[str, Any]]) -> None:
    folder, text, report = demo
    if plot.available():
        assert report["pictures"] == list(PICTURES)
        for name in PICTURES:
            assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    else:
        assert report["pictures"] == []
        assert "pip install 'chromseek[plot]'" in text


def test_a_demo_replaces_a_demo_and_only_what_is_its_own(
    demo: tuple[Path, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / MARKER).write_text(MARK)
    for name in ("notes.txt", PICTURES[0]):
        (folder / name).write_text("of before")
    (folder / "demo.atlas").mkdir()
    (folder / "demo.atlas" / "half.parquet").write_text("of a demo that was killed")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (folder / "data").symlink_to(outside)
    monkeypatch.setitem(sys.modules, "umap", None)  # as where the extra is not installed
    text = run_tiny(folder)
    assert "pip install 'chromseek[plot]'" in text
    assert (folder / "notes.txt").read_text() == "of before"
    assert (outside / "kept").exists()
    assert not (folder / PICTURES[0]).exists()
    assert not (folder / "demo.atlas" / "half.parquet").exists()
    again = json.loads((folder / "report.json").read_text())
    for one, other in zip(again["questions"], demo[2]["questions"], strict=True):
        assert one["measures"] == other["measures"]


@pytest.mark.parametrize("marker", [None, "something else\n"])
def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.h5ad").write_text("mine")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match="no folder of an earlier demo") as caught:
        run("tiny", tmp_path)
    assert caught.value.exit_code == 73
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_or_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(StorageError) as caught:
            run("tiny", tmp_path / name)
        assert caught.value.exit_code == 73
    assert (tmp_path / "file").read_text() == "mine"


def test_a_demo_under_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(MARK)
    (tmp_path / "report.json").write_text("{}")
    with writing(tmp_path, "demo"), pytest.raises(Busy):
        run("tiny", tmp_path)
    assert (tmp_path / "report.json").exists()


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="tiny, small, full"):
        run("huge", tmp_path)
    assert not any(tmp_path.iterdir())

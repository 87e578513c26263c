"""The atlas folder: versions, commits, the lock, and the order in which things reach the disk."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import chromseek
from chromseek.data.errors import BadArgument, BadData, Busy, NotFound, StorageError
from chromseek.indexer.manifest import manifest_path, read_manifest
from chromseek.indexer.store import Manifest, Store, Writer


def add(store: Store, *contents: bytes, keep_all: bool = True, operation: str = "add") -> Manifest:
    """Commit one segment with a file per content."""
    with store.write(operation) as writer:
        folder = writer.new_folder("segments")
        for i, content in enumerate(contents):
            (folder / f"part{i}.bin").write_bytes(content)
        keep = writer.parent.entries if writer.parent and keep_all else ()
        return writer.commit({"stamp": len(contents)}, files=folder.iterdir(), keep=keep)


def files_below(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of two versions."""
    store = Store.create(tmp_path_factory.mktemp("template") / "atlas")
    with store.write("build") as writer:
        folder = writer.new_folder("segments", "one")
        (folder / "rows.bin").write_bytes(b"rows" * 99)
        (folder / "views").mkdir()
        (folder / "views" / "codes.bin").write_bytes(b"codes")
        writer.new_file("universe.bed.gz").write_bytes(b"universe")
        files: list[Path | str] = [folder / "rows.bin", "segments/one/views/codes.bin", store.path / "universe.bed.gz"]
        writer.commit({"n": 1, "views": [{"dim": 64}]}, files=files)
    with store.write("add") as writer:
        folder = writer.new_folder("segments", "two")
        (folder / "rows.bin").write_bytes(b"more")
        (folder / "none.bin").write_bytes(b"")
        assert writer.parent is not None
        writer.commit({"n": 2}, files=folder.iterdir(), keep=writer.parent.entries)
    return store.path


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of it: syncing every file anew would take most of the time."""
    return Path(shutil.copytree(template, tmp_path / "atlas"))


def test_versions_stay_as_they_were_written(root: Path) -> None:
    assert Store.versions(root) == [1, 2]
    new, old = Store.open(str(root)), Store.open(root, version=1, verify=True)
    assert new.manifest is not None
    assert old.manifest is not None
    assert (new.manifest.version, new.manifest.parent, new.manifest.operation) == (2, 1, "add")
    assert old.manifest.content == {"n": 1, "views": [{"dim": 64}]}
    assert old.manifest.entries.keys() < new.manifest.entries.keys()
    assert new.file("segments/one/views/codes.bin").read_bytes() == b"codes"
    assert new.verify() == []
    assert len(new.manifest.sha256) == 64
    assert json.loads(manifest_path(root, 2).read_text())["writer"].startswith("chromseek ")


def test_a_writer_may_commit_twice_and_builds_on_the_newest(root: Path) -> None:
    store = Store.open(root, version=1)
    with store.write("build") as writer:
        assert writer.parent is not None
        assert writer.parent.version == 2
        assert writer.file("segments/two/rows.bin").read_bytes() == b"more"
        writer.commit({"n": 3}, keep=["segments/two/rows.bin"])
        folder = writer.new_folder("calibration")
        (folder / "recall.json").write_text("{}")
        last = writer.commit({"n": 4}, files=folder.iterdir(), keep=writer.parent.entries, operation="calibrate")
    assert (last.version, last.operation, len(last.files)) == (4, "calibrate", 2)
    assert store.manifest == last == read_manifest(root, 4)


def test_a_store_before_its_first_commit(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "new" / "deep" / "atlas")
    assert store.manifest is None
    with pytest.raises(NotFound, match="no version of this atlas has been committed"):
        Store.open(store.path)
    with pytest.raises(NotFound):
        store.verify()
    with store.write("build") as writer, pytest.raises(NotFound):
        writer.file("universe.bed.gz")
    again = Store.create(store.path)  # a killed build is taken up again
    add(again, b"x")
    with pytest.raises(StorageError) as failure:
        Store.create(store.path)
    assert failure.value.exit_code == 73


def test_create_leaves_other_peoples_things_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "link", tmp_path / "notes.txt" / "x" / "atlas"):
        with pytest.raises(StorageError, match="something here already") as failure:
            Store.create(path)
        assert failure.value.exit_code == 73
    (tmp_path / "empty").mkdir()
    assert Store.create(tmp_path / "empty").path.is_dir()


def test_no_atlas_and_no_such_version(root: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(NotFound, match="no atlas") as failure:
            Store.open(path)
        assert failure.value.exit_code == 66
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound):
        Store.open(tmp_path / "file")
    with pytest.raises(NotFound, match=r"version 7 is not there.*there are: 1, 2"):
        Store.open(root, version=7)
    with pytest.raises(NotFound):
        Store.open(root).file("segments/none/rows.bin")


def test_a_commit_takes_only_new_files_of_the_atlas(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"x")
    store = Store.open(root)
    with store.write("add") as writer:
        wrong: list[dict[str, Any]] = [
            {"files": [tmp_path / "outside.bin"]},
            {"files": ["segments/two/gone.bin"]},
            {"files": ["segments/two/rows.bin"]},
            {"keep": ["segments/two/gone.bin"]},
        ]
        for arguments in wrong:
            with pytest.raises(BadArgument):
                writer.commit({}, **arguments)
        for content in ({"x": float("nan")}, {"x": object()}):
            with pytest.raises(BadArgument, match="cannot hold"):
                writer.commit(content)
        for taken in ("one", "two"):
            with pytest.raises(BadArgument, match="already"):
                writer.new_folder("segments", taken)
        with pytest.raises(BadArgument):
            writer.new_file("universe.bed.gz")
        with pytest.raises(BadArgument):
            writer.new_folder("notes")
        with pytest.raises(BadArgument):
            writer.work_folder("../x")
        (root / "segments" / "two" / "rows.bin").unlink()
        with pytest.raises(BadData, match="gone"):
            writer.commit({}, keep=["segments/two/rows.bin"])
    assert Store.versions(root) == [1, 2]


def stop(store: Store, half: Callable[[Writer], object], work: str | None = None) -> None:
    """Stop a writer by an exception when half of its work is done."""
    with suppress(KeyboardInterrupt), store.write("add") as writer:
        half(writer)
        if work:
            (writer.work_folder(work) / "journal.json").write_text("{}")
        raise KeyboardInterrupt


def test_uncommitted_files_go_unless_there_is_work_to_resume(root: Path) -> None:
    before, store = files_below(root), Store.open(root)
    stop(store, lambda writer: (writer.new_folder("segments") / "x").write_bytes(b"x"))
    assert files_below(root) == before
    stop(store, lambda writer: (writer.new_folder("segments", "half") / "x").write_bytes(b"x"), work="plan")
    assert files_below(root) == before | {"segments/half/x", "tmp/plan/journal.json"}
    assert [p.path for p in store.verify()] == ["segments/half/x"]
    with store.write("add") as writer:
        assert (writer.work_folder("plan") / "journal.json").read_text() == "{}"
        writer.commit({}, files=["segments/half/x"])
        writer.drop_work("plan")
    assert files_below(root) == before | {"segments/half/x", "manifests/v00000003.json"}
    with store.write("add") as writer:  # what a killed writer left under the same name is no obstacle
        (root / "encoders" / "abc").mkdir(parents=True)
        (root / "encoders" / "abc" / "config.json").write_text("half")
        assert list(writer.new_folder("encoders", "abc").iterdir()) == []


def test_free_space_is_asked_for_before_it_is_used(root: Path) -> None:
    with Store.open(root).write("add") as writer:
        writer.need(1000)
        disk = os.statvfs(root)
        with pytest.raises(StorageError, match="GB are needed and") as failure:
            writer.need(disk.f_bavail * disk.f_frsize)  # a fifth more is wanted
    assert failure.value.exit_code == 74


def test_a_second_writer_is_told_who_is_writing(root: Path) -> None:
    store = Store.open(root)
    with store.write("compact"):
        with (
            pytest.raises(Busy, match=rf"pid {os.getpid()} .* \(compact: .* since 20\d\d-") as failure,
            store.write("add"),
        ):
            pass
        assert failure.value.exit_code == 75
        assert failure.value.got == os.getpid()
        with pytest.raises(Busy):
            store.gc()
        Store.open(root)  # readers are not in the way
        (root / "LOCK").write_text("[1]")
        with pytest.raises(Busy, match="another process"), store.write("add"):
            pass
    with store.write("add"):
        pass


def test_a_commit_made_without_the_lock_does_not_overwrite(root: Path) -> None:
    store = Store.open(root)
    with store.write("add") as writer:
        (root / "LOCK").unlink()
        add(Store.open(root), b"the other")
        with pytest.raises(Busy, match=r"wrote v00000003.json first"):
            writer.commit({})
    assert Store.versions(root) == [1, 2, 3]


def test_a_folder_that_cannot_be_written_can_be_read(root: Path) -> None:
    code = """
import concurrent.futures.thread, os, sys
from contextlib import suppress
from chromseek.data.errors import StorageError
from chromseek.indexer.store import Store

os.chdir(sys.argv[1])
with suppress(PermissionError):  # root ignores modes, so it becomes nobody
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
store = Store.open("atlas")
assert store.pin() is None
try:
    with store.write("add"):
        pass
except StorageError as error:
    sys.exit(error.exit_code)
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        shutil.copytree(root, Path(folder) / "atlas")
        for path in (p for p in (Path(folder) / "atlas").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (Path(folder) / "atlas").chmod(0o555)
        home = str(Path(chromseek.__file__).parents[1])
        done = subprocess.run([sys.executable, "-S", "-c", code, folder], env={"PYTHONPATH": home}, check=False)
        for path in (Path(folder) / "atlas", *(Path(folder) / "atlas").rglob("*")):
            path.chmod(0o755)
    assert done.returncode == 77


def test_every_file_is_safe_before_the_commit_and_the_commit_before_the_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Follow every fsync and link of a commit by the real calls: power may go at any time."""
    trace: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def seen_fsync(descriptor: int) -> None:
        fsync(descriptor)
        trace.append(("fsync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), root)))

    def seen_link(source: Path, target: Path) -> None:
        link(source, target)
        trace.append(("link", os.path.relpath(target, root)))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name file descriptors")
    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "link", seen_link)
    store = Store.open(root)
    with store.write("add") as writer:
        folder = writer.new_folder("segments", "new")
        (folder / "views").mkdir()
        for name in ("rows", "views/codes"):
            (folder / name).write_bytes(b"x")
        writer.commit({}, files=[folder / "rows", folder / "views" / "codes"])
    steps = [name if kind == "fsync" else kind for kind, name in trace]
    assert steps[:2] == ["segments/new/rows", "segments/new/views/codes"]
    assert steps[2:6] == ["segments/new/views", "segments/new", "segments", "."]
    assert steps[6].startswith("manifests/.tmp-")
    assert trace[7:] == [("link", "manifests/v00000003.json"), ("fsync", "manifests")]


def test_the_store_is_light() -> None:
    code = "import sys, json, chromseek.indexer.store; print(json.dumps(sorted(sys.modules)))"
    home = str(Path(chromseek.__file__).parents[1])
    out = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": home}, capture_output=True, check=True)
    assert not {"torch", "faiss", "anndata", "numpy", "pyarrow", "duckdb", "fastapi"} & set(json.loads(out.stdout))

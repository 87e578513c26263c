"""What gc takes and what it spares, and random histories of an atlas against a plain model."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chromseek
from chromseek.data.errors import BadArgument, NotFound
from chromseek.indexer import gc
from chromseek.indexer.manifest import read_manifest
from chromseek.indexer.store import Manifest, Store, Writer

DAY = 24 * 3600


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


def test_gc_keeps_the_last_versions_the_young_and_the_pinned(root: Path) -> None:
    store = Store.open(root)
    for i in range(4):
        add(store, b"%d" % i, keep_all=False)
    assert store.gc() == []  # all were the newest less than a day ago
    sweep: dict[str, Any] = {"keep": 2, "grace_hours": 24.0, "dry_run": True}
    assert gc.collect(root, now=time() - 99 * DAY, **sweep) == []  # a clock that was set back
    tomorrow = gc.collect(root, now=time() + 2 * DAY, **sweep)
    assert {p.name for p in tomorrow if p.parent.name == "manifests"} == {f"v0000000{v}.json" for v in (1, 2, 3, 4)}
    pin, cached = Store.open(root, version=3).pin(), root / "cache" / "metadata-v4.duckdb"
    cached.write_text("")
    (root / "cache" / "metadata-v3.duckdb.sha256").write_text("")
    planned = store.gc(grace_hours=0, dry_run=True)
    assert planned == store.gc(grace_hours=0)
    assert cached in planned
    assert not cached.exists()
    assert Store.versions(root) == [3, 5, 6]
    assert Store.open(root, version=3).verify() == []
    assert pin is not None
    pin.release()
    pin.release()
    store.gc(grace_hours=0, keep=1)
    assert Store.versions(root) == [6]
    left = {n for n in files_below(root) if not n.startswith(("LOCK", "FORMAT", "cache/pins"))}
    assert left == {"manifests/v00000006.json", *read_manifest(root, 6).entries}
    for wrong in ({"keep": 0}, {"grace_hours": -1}, {"grace_hours": float("nan")}):
        with pytest.raises(BadArgument):
            store.gc(**wrong)


def test_gc_takes_orphans_after_grace_and_nothing_of_other_people(root: Path) -> None:
    (root / "notes.txt").write_text("mine")
    (root / "my").mkdir()
    (root / "my" / "data.bin").write_text("mine")
    orphans = [root / "manifests" / ".tmp-1", root / "segments" / "killed" / "views" / "x", root / ".tmp-2"]
    for path in orphans:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (0, 0))  # a copied old date does not make a file old
    store = Store.open(root)
    assert {p.path for p in store.verify()} == {p.relative_to(root).as_posix() for p in orphans}
    assert store.gc() == []
    (root / "tmp" / "plan").mkdir(parents=True)
    later: dict[str, Any] = {"keep": 2, "grace_hours": 24.0, "now": time() + 2 * DAY}
    assert set(gc.collect(root, dry_run=True, **later)) == {*orphans, root / "tmp" / "plan"}
    os.utime(root / "tmp" / "plan", (later["now"],) * 2)
    assert gc.collect(root, dry_run=True, **later) == []  # a build may still go on from them
    store.gc(grace_hours=0)
    assert not any(path.exists() for path in (*orphans, root / "segments" / "killed", root / "tmp" / "plan"))
    assert (root / "my" / "data.bin").exists()
    assert (root / "notes.txt").exists()
    assert Store.versions(root) == [1, 2]


def test_a_pin_outlived_by_gc_says_so(root: Path) -> None:
    old, store = Store.open(root, version=1), Store.open(root)
    add(store, b"x", keep_all=False)
    store.gc(keep=1, grace_hours=0)
    with pytest.raises(NotFound, match="version 1 is not there"):
        old.pin()


def test_a_version_held_by_another_process_survives_gc_until_it_dies(root: Path) -> None:
    code = "import sys; from chromseek.indexer.store import Store; pin = Store.open(sys.argv[1], version=1).pin()\n"
    code += "print('held', flush=True); sys.stdin.read()"
    home, pipe = str(Path(chromseek.__file__).parents[1]), subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(root)], env={"PYTHONPATH": home}, stdin=pipe, stdout=pipe
    )
    assert child.stdout is not None
    child.stdout.readline()
    store = Store.open(root)
    for _ in range(3):
        add(store, b"x")
        store.gc(keep=1, grace_hours=0)
    assert Store.versions(root) == [1, 5]
    assert Store.open(root, version=1).verify() == []
    child.kill()
    child.communicate()
    store.gc(keep=1, grace_hours=0)
    assert Store.versions(root) == [5]
    assert not list((root / "cache" / "pins").glob("*-v1-*"))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("commit"), st.integers(0, 3), st.integers(0, 255)),
            st.tuples(st.just("abandon"), st.integers(0, 1), st.just(0)),
            st.tuples(st.just("pin"), st.integers(0, 9), st.just(0)),
            st.tuples(st.just("gc"), st.integers(1, 3), st.integers(0, 1)),
        ),
        min_size=3,
        max_size=10,
    )
)
def test_any_history_leaves_what_a_plain_model_says(history: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "atlas")
        model: dict[int, dict[str, bytes]] = {}
        pins: dict[int, Any] = {}
        try:
            for step, (what, n, bits) in enumerate(history):
                if what == "commit":
                    with store.write("x") as writer:
                        model[max(model, default=0) + 1] = commit_some(writer, model, n, bits, step)
                elif what == "abandon":
                    path = store.path / "segments" / f"left{step}" / "x"
                    path.parent.mkdir(parents=True)
                    path.write_bytes(b"x")
                elif what == "pin" and model:
                    version = sorted(model)[n % len(model)]
                    pins.setdefault(version, Store.open(store.path, version=version).pin())
                elif what == "gc" and model:
                    kept = {*sorted(model)[-n:], *pins} if bits else set(model)
                    store.gc(keep=n, grace_hours=0 if bits else 24)
                    model = {version: model[version] for version in kept}
                    if bits:
                        listed = {path for files in model.values() for path in files}
                        assert files_below(store.path / "segments") == {p.removeprefix("segments/") for p in listed}
                assert set(Store.versions(store.path)) == set(model)
                for version, files in model.items():
                    opened = Store.open(store.path, version=version)
                    assert opened.manifest is not None
                    assert {p: opened.file(p).read_bytes() for p in opened.manifest.entries} == files
        finally:
            for pin in pins.values():
                pin.release()


def commit_some(writer: Writer, model: dict[int, dict[str, bytes]], n: int, bits: int, step: int) -> dict[str, bytes]:
    parent = model[max(model)] if model else {}
    keep = {path: content for i, (path, content) in enumerate(sorted(parent.items())) if bits >> (i % 8) & 1}
    folder = writer.new_folder("segments")
    new = {f"segments/{folder.name}/{i}": bytes([i, step]) for i in range(n)}
    for path, content in new.items():
        (folder / path.rpartition("/")[2]).write_bytes(content)
    writer.commit({"step": step}, files=new, keep=keep)
    return keep | new

"""What a commit survives: SIGKILL at every step, a full or failing disk, a second writer, readers in between.

The children are real processes that import nothing but the store; the failures are the operating system's own,
except for EIO, which is put in the place of the n-th call.
"""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import chromseek
from chromseek.data.errors import Busy, NotFound, StorageError
from chromseek.indexer.store import Manifest, Store

JOBS = """
import os, sys, time
from chromseek.indexer.store import Store

def fill(folder, number, size=40):
    for name in ("rows", "codes"):
        (folder / name).write_bytes(f"{name} of {number} ".encode() * size)
    return folder.iterdir()

def append(store, size=40):
    with store.write("add") as writer:
        number = writer.parent.version + 1
        files = fill(writer.new_folder("segments"), number, size)
        return writer.commit({"number": number}, files=files, keep=writer.parent.entries).version

def create(root):
    store = Store.create(root)
    with store.write("build") as writer:
        work = writer.work_folder("plan")
        (work / "journal.json").write_text("{}")
        files = [*fill(writer.new_folder("segments"), 1), writer.new_file("universe.bed.gz")]
        files[-1].write_bytes(b"universe")
        writer.commit({"number": 1}, files=files)
        writer.drop_work("plan")

def replace(root):
    with Store.open(root).write("compact") as writer:
        number = writer.parent.version + 1
        files = fill(writer.new_folder("segments"), number)
        writer.commit({"number": number}, files=files, keep=["universe.bed.gz"])

def gc(root):
    Store.open(root).gc(keep=1, grace_hours=0)

def hold(root):
    with Store.open(root).write("compact"):
        print("held", flush=True)
        sys.stdin.read()

def forever(root):
    store = Store.open(root)
    while True:
        print(append(store), flush=True)
        if store.manifest.version % 5 == 0:
            replace(root)
            store.gc(keep=1, grace_hours=0)

def overfill(root):
    import resource, signal
    from chromseek.data.errors import StorageError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        append(Store.open(root))
    except StorageError as error:
        print(error.code, error)
        sys.exit(error.exit_code)

globals()[sys.argv[2]](sys.argv[1])
"""


def start(root: Path, job: str, *arguments: str, crash_at: int | None = None) -> subprocess.Popen[str]:
    home = str(Path(chromseek.__file__).parents[1])
    env = {"PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"}
    if crash_at is not None:
        env["CHROMSEEK_CRASH_AT"] = str(crash_at)
    command = [sys.executable, "-S", "-c", JOBS, str(root), job, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(root: Path, job: str, *arguments: str, crash_at: int | None = None) -> tuple[int, str]:
    """Run a job to its end. Return its exit status and all that it said."""
    out, errors = (child := start(root, job, *arguments, crash_at=crash_at)).communicate(timeout=60)
    return child.returncode, out + errors


def check_whole(store: Store) -> Manifest:
    """Check that a version's content is what its number says, and that all of its files are as written."""
    manifest = store.manifest
    assert manifest is not None
    assert manifest.content == {"number": manifest.version}
    numbers = set()
    for entry in manifest.files:
        content = store.file(entry.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        if entry.path != "universe.bed.gz":
            numbers.add(int(content.split()[2]))
    assert max(numbers) == manifest.version
    return manifest


def append(store: Store, content: bytes = b"") -> Manifest:
    """Commit one more version as the children do."""
    with store.write("add") as writer:
        number = writer.parent.version + 1 if writer.parent else 1
        folder = writer.new_folder("segments")
        (folder / "rows").write_bytes(b"rows of %d " % number + content)
        keep = writer.parent.entries if writer.parent else ()
        return writer.commit({"number": number}, files=folder.iterdir(), keep=keep)


def data_files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in (root / "segments").rglob("*") if p.is_file()}


def check_all_works(root: Path) -> None:
    """Check that a store goes on as if nothing had been: commit, gc, no file too many and none too few."""
    store = Store.open(root, verify=True)
    before = check_whole(store).version
    append(store)
    assert check_whole(Store.open(root)).version == before + 1
    store.gc(keep=1, grace_hours=0)
    opened = Store.open(root)
    assert check_whole(opened).version == before + 1
    assert opened.verify() == []  # no orphans
    assert not list((root / "manifests").glob(".tmp-*"))
    assert not list((root / "tmp").glob("*"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of three versions."""
    root = tmp_path_factory.mktemp("template") / "atlas"
    assert run(root, "create") == (0, "")
    for _ in range(2):
        append(Store.open(root))
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "atlas"))


def kill_everywhere(job: str, tmp_path: Path, template: Path | None) -> Iterator[Path]:
    """Kill the job at its first step, at its second..., and yield the atlas each time, until it runs to its end."""
    for n in range(1, 100):
        root = tmp_path / str(n) / "atlas"
        root.parent.mkdir()
        if template is not None:
            shutil.copytree(template, root)
        status, said = run(root, job, crash_at=n)
        if status == 0:
            assert n > 5
            return
        assert status == -signal.SIGKILL, said
        assert said.startswith("killed at ")
        yield root
    raise AssertionError(f"{job} never came to its end")


def test_a_build_killed_at_any_step_can_be_run_again(tmp_path: Path) -> None:
    for root in kill_everywhere("create", tmp_path, None):
        try:
            assert check_whole(Store.open(root)).version == 1
        except NotFound:  # nothing was committed: the same command goes on
            assert run(root, "create") == (0, "")
        check_all_works(root)


def test_a_commit_killed_at_any_step_leaves_the_old_or_the_new_version_whole(tmp_path: Path, template: Path) -> None:
    versions = []
    for root in kill_everywhere("replace", tmp_path, template):
        versions.append(check_whole(Store.open(root, verify=True)).version)
        assert check_whole(Store.open(root, version=3)).version == 3
        check_all_works(root)
    assert versions == sorted(versions)
    assert set(versions) == {3, 4}


def test_gc_killed_at_any_step_leaves_the_last_version_whole_and_the_rest_to_the_next(
    tmp_path: Path, template: Path
) -> None:
    old = tmp_path / "old" / "atlas"
    shutil.copytree(template, old)
    assert run(old, "replace")[0] == 0
    for root in kill_everywhere("gc", tmp_path, old):
        assert check_whole(Store.open(root)).version == 4
        for version in Store.versions(root):
            check_whole(Store.open(root, version=version))
        check_all_works(root)


def test_readers_see_one_version_whole_while_a_writer_commits_and_is_killed(root: Path) -> None:
    chance, newest, n_opened = random.Random(11), 3, 0
    for _ in range(4):
        child = start(root, "forever")
        assert child.stdout is not None
        child.stdout.readline()
        end = time.monotonic() + chance.uniform(0.2, 0.7)
        while time.monotonic() < end:
            store = Store.open(root)
            try:
                pin = store.pin()
            except NotFound:  # two commits and a gc since it was opened
                continue
            assert pin is not None
            with pin:
                version = check_whole(store).version
                assert version >= newest  # never back
                check_whole(Store.open(root, version=version))  # pinned: gc of keep=1 leaves it
            newest, n_opened = version, n_opened + 1
        child.kill()
        acknowledged = [int(line) for line in child.communicate()[0].split()]
        newest = check_whole(Store.open(root)).version
        assert newest >= max(acknowledged, default=0)
    assert n_opened
    assert newest >= 7
    check_all_works(root)


def test_of_two_writers_one_is_told_who_the_other_is(root: Path) -> None:
    child = start(root, "hold")
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Busy) as failure:
        append(Store.open(root))
    assert failure.value.got == child.pid
    assert f"pid {child.pid} " in failure.value.message
    assert "compact: `-c " in failure.value.message
    assert failure.value.exit_code == 75
    child.kill()  # and a killed writer leaves no lock
    child.communicate()
    append(Store.open(root))
    check_all_works(root)


def failing(real: Callable[..., Any], at: int, code: int) -> Callable[..., Any]:
    """The same call, except that the one number `at` fails as the operating system would let it."""
    count = iter(range(1, 1_000))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(count) == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize(("name", "code"), [("fsync", errno.EIO), ("link", errno.ENOSPC), ("open", errno.ENOSPC)])
def test_a_disk_that_fails_at_any_call_leaves_a_whole_version(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    for n in range(1, 50):
        root = tmp_path / str(n)
        shutil.copytree(template, root)
        store = Store.open(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(getattr(os, name), n, code))
            try:
                append(store)
                break
            except StorageError as error:
                assert error.exit_code == 74  # noqa: PT017
        assert check_whole(Store.open(root)).version in (3, 4)
        check_all_works(root)
    assert n > 1


def test_after_a_failed_sync_a_writer_gives_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(root).write("add") as writer:
        path = writer.new_file("deletes/1.parquet")
        path.write_bytes(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync, 1, errno.EIO))
            with pytest.raises(StorageError, match="failed or was taken away"):
                writer.commit({"number": 4}, files=[path])
        with pytest.raises(StorageError, match="earlier commit failed"):  # the second fsync would say all is well
            writer.commit({"number": 4}, files=[path])
    assert Store.versions(root) == [1, 2, 3]


def test_a_disk_without_hard_links_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", failing(os.link, 1, errno.EPERM))
        with pytest.raises(StorageError, match="no hard links") as failure:
            Store.create(tmp_path / "atlas")
    assert failure.value.exit_code == 73
    assert Store.create(tmp_path / "atlas").manifest is None


@pytest.mark.parametrize("limit", [64, 600])  # a data file is too large; the manifest is
def test_a_file_that_may_not_grow_leaves_the_old_version(root: Path, limit: int) -> None:
    before = data_files(root)
    status, said = run(root, "overfill", str(limit))
    assert (status, said.split()[0]) == (74, "DISK-FULL"), said
    assert data_files(root) == before
    check_all_works(root)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, real; only root may have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_version_and_works_again_when_there_is_room(tiny_disk: Path, template: Path) -> None:
    root = Path(shutil.copytree(template, tiny_disk / "atlas"))
    store = Store.open(root)
    ballast = tiny_disk / "ballast"
    for left in range(0, 60_000, 4096):  # so that it ends in the data, in the manifest, or not at all
        ballast.write_bytes(b"")
        with ballast.open("r+b") as file:
            free = os.statvfs(tiny_disk)
            file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))
        try:
            append(store, b"x" * 8192)
            break
        except StorageError as error:
            assert (error.exit_code, error.code) == (74, "DISK-FULL")  # noqa: PT017
            assert check_whole(Store.open(root)).version == 3
    assert left > 4096
    ballast.unlink()
    with store.write("add") as writer, pytest.raises(StorageError):
        writer.need(1 << 20)
    check_all_works(root)


def test_a_full_disk_can_be_emptied_by_gc(tiny_disk: Path, template: Path) -> None:
    root = Path(shutil.copytree(template, tiny_disk / "atlas"))
    with (tiny_disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with pytest.raises(StorageError, match="the disk is full"):
        append(Store.open(root))
    assert Store.open(root).gc(keep=1, grace_hours=0)
    assert Store.versions(root) == [3]


def test_a_disk_that_is_read_only_can_be_searched_and_not_written(tiny_disk: Path, template: Path) -> None:
    root = Path(shutil.copytree(template, tiny_disk / "atlas"))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    store = Store.open(root, verify=True)
    check_whole(store)
    assert store.pin() is None
    for work in (lambda: append(store), store.gc, lambda: Store.create(tiny_disk / "new" / "deep")):
        with pytest.raises(StorageError, match="cannot be written") as failure:
            work()
        assert failure.value.exit_code == 77

"""An atlas that was hurt, forged, or written by a newer chromseek: every byte counts, and no error is but ours."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromseek.data.errors import BadArgument, BadData, ChromseekError, TooNew
from chromseek.indexer.manifest import FORMAT, manifest_path, read_manifest, seal
from chromseek.indexer.store import Store


def forge(path: Path, **changes: Any) -> None:
    """Edit a manifest and seal it again, as an attacker would."""
    body = json.loads(path.read_bytes())
    del body["sha256"]
    path.write_bytes(seal(body | changes))


def names(error: ChromseekError, path: Path) -> bool:
    """Whether an error names this file; a very long path may be shown cut."""
    return error.file is not None and str(path).startswith(error.file.rstrip("…"))


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


def damages(content: bytes, seed: int) -> Iterator[bytes | None]:
    """Ways in which a file may be hurt; None removes it."""
    chance = random.Random(seed)
    for _ in range(4):
        at = chance.randrange(len(content))
        yield content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    at = chance.randrange(len(content))
    yield content[:at] + bytes(len(content) - at)
    yield content[:at]
    yield content[:-1]
    yield content + b"\0"
    yield b""
    yield None


def test_every_damage_is_named_at_open_and_by_verify(root: Path) -> None:
    store = Store.open(root)
    paths = sorted(n for n in files_below(root) if not n.startswith(("LOCK", "cache", "manifests/v00000001")))
    paths.remove("segments/two/none.bin")
    n_cases = 0
    for name in paths:
        path, content = root / name, (root / name).read_bytes()
        for hurt in damages(content, seed=len(name)):
            if hurt is None:
                path.unlink()
            else:
                path.write_bytes(hurt)
            if path.parent.name == "manifests" and hurt is None:
                assert Store.open(root).manifest == read_manifest(root, 1)  # the newest there is
            else:
                with pytest.raises((BadData, TooNew)) as failure:
                    Store.open(root)
                assert names(failure.value, path)
                assert any(p.path == name and p.fatal for p in store.verify())
            n_cases += 1
            path.write_bytes(content)
    assert n_cases == 60
    assert store.verify() == []


def test_the_error_holds_both_sums_and_the_cure(root: Path) -> None:
    (root / "segments" / "two" / "rows.bin").write_bytes(b"mORE")
    with pytest.raises(BadData) as failure:
        Store.open(root)
    entry = read_manifest(root, 2).entries["segments/two/rows.bin"]
    assert failure.value.exit_code == 65
    assert entry.sha256 in failure.value.message
    assert failure.value.got != entry.sha256
    assert str(failure.value.got) in failure.value.message
    assert "--version 1" in failure.value.fix
    assert Store.open(root, version=1).manifest == read_manifest(root, 1)
    (root / "segments" / "one" / "rows.bin").unlink()  # now version 1 is hurt too
    with pytest.raises(BadData, match="1 more files are damaged") as failure:
        Store.open(root)
    assert "--version" not in failure.value.fix
    with pytest.raises(BadData, match="gone"):
        Store.open(root, version=1)


def test_a_file_of_64_mb_is_hashed_by_verify_only(root: Path) -> None:
    store = Store.open(root)
    with store.write("add") as writer:
        big = writer.new_file("quantisers/big.faiss")
        with big.open("wb") as file:
            file.truncate(64 << 20)
        writer.commit({}, files=[big])
    with big.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"x")
    Store.open(root)
    assert [p.path for p in store.verify() if p.fatal] == ["quantisers/big.faiss"]
    with pytest.raises(BadData, match="sha256"):
        Store.open(root, verify=True)
    os.truncate(big, 5)
    with pytest.raises(BadData, match="size should be 67108864 bytes and is 5 bytes"):
        Store.open(root)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"sha256": "' + b"0" * 64 + b'",\n"a": 1}\n'])
def test_a_damaged_manifest_offers_the_version_before_and_takes_it_only_when_asked(root: Path, content: bytes) -> None:
    manifest_path(root, 2).write_bytes(content)
    with pytest.raises(BadData) as failure:
        Store.open(root)
    assert names(failure.value, manifest_path(root, 2))
    assert "--version 1" in failure.value.fix
    assert len(Store.open(root, version=1).verify()) == 1
    with pytest.raises(BadData), Store.open(root, version=1).write("add"):
        pass
    with pytest.raises(BadData, match="remove it to give up version 2"):
        Store.open(root, version=1).gc()
    manifest_path(root, 1).write_bytes(content)
    with pytest.raises(BadData) as failure:
        Store.open(root, version=1)
    assert "--version" not in failure.value.fix


def entry(path: object = "segments/a/b", size: object = 4, sha256: object = "0" * 64) -> dict[str, object]:
    return {"path": path, "size": size, "sha256": sha256}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"version": True},
        {"version": "2"},
        {"parent": 1.5},
        {"created": None},
        {"content": []},
        {"format": [0]},
        {"required_features": [1]},
        {"files": {}},
        {"files": ["segments/a/b"]},
        {"files": [entry(), entry()]},
        {"files": [entry(size=-1)]},
        {"files": [entry(sha256="0" * 63)]},
        {"files": [entry(path=7)]},
    ],
)
def test_a_forged_manifest_of_the_wrong_shape_is_refused(root: Path, changes: dict[str, Any]) -> None:
    forge(manifest_path(root, 2), **changes)
    with pytest.raises(BadData) as failure:
        Store.open(root)
    assert names(failure.value, manifest_path(root, 2))


def test_a_manifest_nested_too_deeply_is_refused(root: Path) -> None:
    bomb = b'"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    manifest_path(root, 2).write_bytes(b'{"sha256": "' + hashlib.sha256(bomb).hexdigest().encode() + b'",\n' + bomb)
    with pytest.raises(BadData, match="nested too deeply"):
        Store.open(root)


OUTSIDE = ["/etc/passwd", "../outside", "segments/../../outside", "segments/a/.."]
STRANGE = ["", ".", "segments", "segments//a", "segments/./a", "LOCK", "cache/x", "tmp/x", "manifests/v00000001.json"]
ODD = ["segments/a\\b", "segments/a\0b", "segments/\ud800", "segments/a\nb", "segments/.hidden", "FORMAT.json", "c:/x"]


@pytest.mark.parametrize("path", OUTSIDE + STRANGE + ODD)
def test_no_path_leaves_the_atlas(root: Path, path: str) -> None:
    forge(manifest_path(root, 2), files=[entry(path)])
    with pytest.raises(BadData) as failure:
        Store.open(root)
    assert failure.value.code == "MANIFEST-PATH"
    assert ("path leaves the atlas" in failure.value.message) == (path in OUTSIDE)
    manifest_path(root, 2).unlink()
    with Store.open(root).write("add") as writer, pytest.raises(BadArgument):
        writer.commit({}, files=[path])


def test_no_link_leaves_the_atlas(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "segments", tmp_path / "elsewhere")
    inner = root / "segments" / "one" / "rows.bin"
    for path, target in ((inner, "one/rows.bin"), (inner.parent, "one"), (root / "segments", "")):
        path.rename(tmp_path / "aside")
        path.symlink_to(tmp_path / "elsewhere" / target)
        with pytest.raises(BadData, match="path leaves the atlas"):
            Store.open(root)
        assert Store(root, read_manifest(root, 2)).verify()
        path.unlink()
        (tmp_path / "aside").rename(path)
    inner.unlink()
    os.mkfifo(inner)  # reading it would never end
    with pytest.raises(BadData, match="no regular file"):
        Store.open(root)
    (root / "manifests" / "v00000003.json").symlink_to("v00000002.json")
    with pytest.raises(BadData, match="path leaves the atlas"):
        Store.open(root)


def test_what_a_newer_chromseek_wrote_is_refused(root: Path) -> None:
    (root / "FORMAT.json").write_text('{"major": 2, "minor": 1}')
    with pytest.raises(TooNew, match=r"format 2\.1.*upgrade") as failure:
        Store.open(root)
    assert failure.value.exit_code == 76
    (root / "FORMAT.json").write_text(f'{{"major": {FORMAT[0]}, "minor": {FORMAT[1] + 1}}}\n')
    with pytest.raises(BadData, match=r"it says 0\.1, the manifest of version 2 0\.0"):
        Store.open(root)
    (root / "FORMAT.json").write_text(f'{{"major": {FORMAT[0]}, "minor": {FORMAT[1]}}}\n')
    forge(manifest_path(root, 2), writer="chromseek 2.1", format=[1, 0])
    with pytest.raises(TooNew, match=r"written by chromseek 2\.1, this is format 1\.0"):
        Store.open(root)
    forge(manifest_path(root, 2), format=[0, 0], required_features=["turbo"])
    with pytest.raises(TooNew, match="needs turbo"):
        Store.open(root)
    forge(manifest_path(root, 2), required_features=[], writer_features=["turbo"])
    store = Store.open(root)  # reading is allowed
    with pytest.raises(TooNew, match="writing needs turbo"), store.write("add"):
        pass
    with pytest.raises(TooNew, match="writing needs turbo"):
        store.gc()


def test_every_error_is_one_of_ours(root: Path) -> None:
    chance = random.Random(7)
    whole = manifest_path(root, 2).read_bytes()
    body = json.loads(whole)
    del body["sha256"]
    for _ in range(150):  # sealed rubbish: any value in any place
        mad = dict(body)
        for key in chance.sample(sorted(mad), 2):
            mad[key] = chance.choice([None, -1, 2**70, 0.5, "x", [], {}, [[]], [{"path": []}], ["segments/x"]])
        manifest_path(root, 2).write_bytes(seal(mad))
        try:
            Store.open(root)
        except ChromseekError as error:
            assert error.exit_code in (65, 76)  # noqa: PT017

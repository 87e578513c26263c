"""Names on the hub: a real client against a real cache and a real server, both of ours; no network is used."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chromseek.encoder.hub import FILES, fetched, is_hub_name

ROOT = Path(__file__).parents[1]
COMMIT, NEWER = "1" * 40, "2" * 40
NAME = "some-lab/atacformer-tiny"
NOWHERE = "http://127.0.0.1:9"  # nobody listens there
ASK = """
import json, sys
from chromseek.data.errors import ChromseekError
from chromseek.encoder.hub import fetched
try:
    print(json.dumps({"folder": str(fetched(*sys.argv[1:]))}))
except ChromseekError as error:
    found = {"kind": type(error).__name__, "exit": error.exit_code, "code": error.code, "text": str(error)}
    print(json.dumps(found))
"""


def asked(home: Path, *arguments: str, endpoint: str = NOWHERE, offline: bool = False) -> dict[str, Any]:
    """What `fetched` gives in a process of its own: the client reads its settings when it is imported."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    plain = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_TELEMETRY": "1"}
    inherited = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and key[:3] != "HF_"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT / "src",
        env=inherited | settings | plain,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def cached(home: Path, files: tuple[str, ...] = FILES, commit: str = COMMIT) -> Path:
    """A cache as the client makes it: blobs, a snapshot of links to them, and a branch."""
    folder = home / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for number, file in enumerate(files):
        (folder / "blobs" / f"{number}{commit}").write_text(f"{file} of {commit}")
        (snapshot / file).symlink_to(Path("../../blobs") / f"{number}{commit}")
    return snapshot


@dataclass
class Hub:
    """A server that answers as the hub does, as far as a download needs it."""

    files: dict[str, bytes]
    failure: tuple[int, str] | None = None  # status and code of every answer
    breaks_off: bool = False  # amid a file
    asked: list[str] = field(default_factory=list)
    url: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            owner, name, _, revision, file = self.path.lstrip("/").split("/")
            hub.asked.append(f"{revision[:4]}/{file}")
            fault = hub.failure
            if fault is None and f"{owner}/{name}" != NAME:
                fault = 404, "RepoNotFound"
            elif fault is None and revision not in ("main", COMMIT):
                fault = 404, "RevisionNotFound"
            elif fault is None and file not in hub.files:
                fault = 404, "EntryNotFound"
            body = b"" if fault else hub.files[file]
            self.send_response(fault[0] if fault else 200)
            for key, value in (("X-Error-Code", fault[1]),) if fault else ():
                self.send_header(key, value)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{file}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body[: len(body) // 2] if hub.breaks_off else body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server with one encoder, and a file that is no business of ours."""
    made = Hub({name: f"{name} of the hub".encode() * 1000 for name in (*FILES, "pytorch_model.bin")})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("databio/atacformer-base-hg38", True),
        ("a/b_c.d", True),
        ("a", False),
        ("a/b/c", False),
        ("./b", False),
        ("../b", False),
        ("a/..", False),
        ("a/", False),
        ("/a", False),
        ("a b/c", False),
        ("a/b\n", False),
        (f"a/{'b' * 97}", False),
        (Path("a/b"), False),
    ],
)
def test_a_name_is_an_owner_and_a_model(text: Any, is_one: bool) -> None:
    assert is_hub_name(text) == is_one


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(NAME)
    assert fetched(NAME) == Path(NAME)
    assert "huggingface_hub" not in sys.modules


@pytest.mark.parametrize("name", ["mine", "./mine", "a/b/c", "a/..", "a b/c", "x\x1b[2J/y"])
def test_what_is_neither_folder_nor_name_is_refused(tmp_path: Path, name: str) -> None:
    answer = asked(tmp_path, name)
    assert (answer["kind"], answer["exit"], answer["code"]) == ("NotFound", 66, "ENCODER-FOLDER")
    assert "\x1b" not in answer["text"]


@pytest.mark.parametrize("offline", [True, False])
def test_the_cache_serves_where_there_is_no_hub(tmp_path: Path, offline: bool) -> None:
    snapshot = cached(tmp_path)
    assert Path(asked(tmp_path, NAME, offline=offline)["folder"]).resolve() == snapshot.resolve()
    assert Path(asked(tmp_path, NAME, COMMIT, offline=offline)["folder"]).resolve() == snapshot.resolve()
    assert (snapshot / FILES[1]).read_text() == f"{FILES[1]} of {COMMIT}"


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("spoil", ["empty", "partly", "dangling", "other version"])
def test_without_hub_and_cache_the_way_by_hand_is_told(tmp_path: Path, offline: bool, spoil: str) -> None:
    revision = []
    if spoil == "partly":
        cached(tmp_path, FILES[:1])
    elif spoil == "dangling":
        (cached(tmp_path) / FILES[1]).resolve().unlink()
    elif spoil == "other version":
        cached(tmp_path)
        revision = [NEWER]
    answer = asked(tmp_path, NAME, *revision, offline=offline)
    assert (answer["kind"], answer["exit"], answer["code"]) == ("NotFound", 66, "ENCODER-HUB")
    assert "the hub cannot be reached" in answer["text"]
    assert f"from https://huggingface.co/{NAME} by hand and give their folder" in answer["text"]


def test_three_files_are_downloaded_and_kept(tmp_path: Path, hub: Hub) -> None:
    folder = Path(asked(tmp_path, NAME, endpoint=hub.url)["folder"])
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert all((folder / name).read_bytes() == hub.files[name] for name in FILES)
    assert {place[:4] for place in hub.asked if not place.endswith(FILES[0])} == {COMMIT[:4]}
    assert asked(tmp_path, NAME, offline=True)["folder"] == str(folder)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ((401, "RepoNotFound"), "neither a folder here nor a public name on the hub"),
        ((404, "RepoNotFound"), "neither a folder here nor a public name on the hub"),
        ((403, "GatedRepo"), "is on the hub, but not open to everyone"),
        ((404, "RevisionNotFound"), "the hub has no such version"),
        ((404, "EntryNotFound"), "lacks one of config.json"),
    ],
)
def test_what_the_hub_refuses_is_told(tmp_path: Path, hub: Hub, failure: tuple[int, str], text: str) -> None:
    hub.failure = failure
    answer = asked(tmp_path, NAME, endpoint=hub.url)
    assert (answer["kind"], answer["exit"], answer["code"]) == ("NotFound", 66, "ENCODER-HUB")
    assert text in answer["text"]
    assert "by hand" in answer["text"]


def test_a_name_without_our_weights_is_told(tmp_path: Path, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    answer = asked(tmp_path, NAME, endpoint=hub.url)
    assert (answer["kind"], answer["exit"]) == ("NotFound", 66)
    assert "lacks one of" in answer["text"]
    assert not any("pytorch_model.bin" in place for place in hub.asked)


def test_a_download_that_breaks_off_is_told_and_mended(tmp_path: Path, hub: Hub) -> None:
    hub.breaks_off = True
    answer = asked(tmp_path, NAME, endpoint=hub.url)
    assert (answer["kind"], answer["exit"], answer["code"]) == ("StorageError", 74, "ENCODER-HUB")
    assert "could not be downloaded" in answer["text"]
    hub.breaks_off = False
    folder = Path(asked(tmp_path, NAME, endpoint=hub.url)["folder"])
    assert all((folder / name).read_bytes() == hub.files[name] for name in FILES)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "hub").write_text("a file in the cache's place")
    answer = asked(tmp_path, NAME, endpoint=hub.url)
    assert (answer["kind"], answer["code"]) == ("StorageError", "ENCODER-HUB")


def test_importing_is_light() -> None:
    code = "import sys, chromseek.encoder.hub; print([m for m in ('huggingface_hub', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", timeout=60)
    assert done.stdout.strip() == "[]"

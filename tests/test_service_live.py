"""The service as a process of its own on loopback: uvicorn, real sockets, many clients at once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import chromseek
from chromseek.data.errors import BadArgument, NotFound, StorageError
from chromseek.search.atlas import Atlas
from chromseek.service.app import serve

SERVE = "import sys; from chromseek.service.app import serve; serve(sys.argv[1], port=0)"


class Served:
    """A service process: where it answers, where its uploads lie, what it logs."""

    def __init__(self, atlas: Path, folder: Path) -> None:
        self.uploads, self._log = folder / "uploads", folder / "log"
        self.uploads.mkdir()
        source = str(Path(chromseek.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(self.uploads)}
        with self._log.open("wb") as log:
            command = [sys.executable, "-W", "error", "-c", SERVE, str(atlas)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        began = time.monotonic()
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.log)) or not self._answers(int(found[1])):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < began + 60, self.log
            time.sleep(0.1)
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    @staticmethod
    def _answers(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def stop(self) -> int:
        """End it as a service manager does, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def served(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    process = Served(atlas.path, tmp_path_factory.mktemp("served"))
    yield process
    if process.process.poll() is None:
        process.process.kill()
        process.process.wait()


def raw(port: int, sent: bytes) -> bytes:
    """Send bytes and read until the other side closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := connection.recv(65_536)):
            answer += piece
        return answer


def wait_until(check: Any, seconds: float = 5) -> None:
    """Wait until something is true; it must be in time."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_eight_threads_get_what_one_gets(served: Served, atlas: Atlas) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []
    for n in range(48):
        where = {"col": "n_tokens", "op": "gt", "value": 40 + n % 4} if n % 3 else None
        query: dict[str, Any] = {"ids": [n, n + 1]} if n % 2 else {"regions": atlas.universe.regions.names()[n : n + 2]}
        body = {"query": query, "k": 5 + n % 3, "where": where if n % 2 else None, "exact": bool(n % 5)}
        bodies.append((("cells", "regions")[n % 2], body))
    with httpx.Client(base_url=served.url) as client:

        def ask(one: tuple[str, dict[str, Any]]) -> Any:
            answer = client.post(f"/v1/{one[0]}/search", json=one[1])
            assert answer.status_code == 200, answer.text
            return answer.json()

        alone = [ask(one) for one in bodies]
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(ask, bodies * 4))
    assert together == alone * 4
    for (name, body), answer in zip(bodies, alone, strict=True):
        query = body["query"].get("regions") or body["query"]["ids"]
        hits = atlas.collection(name).search(query, body["k"], where=body["where"], exact=body["exact"])
        assert answer["ids"] == hits.ids.tolist()


def test_an_upload_over_a_socket(served: Served, toy_files: dict[str, Path], atlas: Atlas) -> None:
    path = toy_files["query"]
    with path.open("rb") as file:
        options = {"options": json.dumps({"labels": ["cell_type"], "k": 10})}
        answer = httpx.post(f"{served.url}/v1/annotate", files={"file": file}, data=options, timeout=30)
    predicted = atlas.annotate(path, "cell_type", k=10).obs["cell_type_pred"]
    assert answer.json()["predictions"]["cell_type_pred"] == predicted.astype(str).tolist()
    assert list(served.uploads.glob("chromseek-upload-*")) == []


def test_95_lengths(served: Served) -> None:
    start = b"POST /v1/cells/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(served.port, start + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    answer = raw(served.port, start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 100_000

    reply = None
    with suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # closed while we still sent
        reply = httpx.post(
            f"{served.url}/v1/cells/search", content=endless(), headers={"Content-Type": "application/json"}
        )
    assert reply is None or reply.status_code == 413
    assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_96_a_long_header(served: Served) -> None:
    answer = raw(served.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_99_another_host_name(served: Served) -> None:
    assert raw(served.port, b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert raw(served.port, b"GET /healthz HTTP/1.1\r\nHost: localhost:1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_103_a_client_that_leaves_takes_its_upload_along(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/cells/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.bed"\r\n\r\n' + b"chr1\t1\t2\n" * 300_000
        )
        wait_until(lambda: list(served.uploads.glob("chromseek-upload-*")))
    wait_until(lambda: not list(served.uploads.glob("chromseek-upload-*")))
    assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_the_log_holds_no_user_text(served: Served) -> None:
    body = {"query": {"regions": ["chr1:1-2"]}, "where": {"col": "my_secret", "op": "eq", "value": "my_secret"}}
    assert httpx.post(f"{served.url}/v1/cells/search?my_secret=1", json=body).status_code == 422
    assert httpx.get(f"{served.url}/my_secret").status_code == 404
    assert "my_secret" not in served.log
    assert "Traceback" not in served.log


def test_105_a_stopped_service_ends_in_order(served: Served, atlas: Atlas) -> None:
    pins = atlas.path / "cache" / "pins"
    assert any(pin.name.startswith(f"{served.process.pid}-") for pin in pins.iterdir())
    assert served.stop() in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in served.log
    assert not any(pin.name.startswith(f"{served.process.pid}-") for pin in pins.iterdir())


def test_what_cannot_be_served_is_told(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        serve(tmp_path / "nothing", port=0)
    with pytest.raises(BadArgument, match="other machines"):
        serve(atlas.path, host="0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StorageError) as told:
        serve(atlas.path, port=taken.getsockname()[1])
    assert (told.value.code, told.value.exit_code) == ("SERVE-PORT", 69)

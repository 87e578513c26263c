"""What the service refuses, and how: problem+json with a code, a cure, and nothing of the server in it.

The numbers in the names are those of the table of bad inputs.
"""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
from asking import Ask, asking, form, multipart, problem
from fastapi import FastAPI

from chromseek.data.errors import BadArgument, Busy, StorageError
from chromseek.search.atlas import Atlas
from chromseek.service.app import check_loopback, create_app
from chromseek.service.uploads import label_of, refuse_full
from chromseek.service.workers import Workers


@pytest.fixture(scope="module")
def app(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(atlas, uploads=tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def ask(app: FastAPI) -> Ask:
    return asking(app)


@pytest.mark.parametrize("k", [-1, 0, 1001, 10**21, 1.5, "5", True, None])
def test_90_k_out_of_range(ask: Ask, k: Any) -> None:
    told = problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "k": k}), 422, "REQUEST-FIELD")
    assert told["detail"].startswith("k: ")
    assert "from 1 to 1,000" in told["fix"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"query": {"vectors": [[NaN]]}}', "NaN"),
        (b'{"query": {"vectors": [[-Infinity]]}}', "-Infinity"),
        (b'{"query": {"vectors": [[1e999]]}}', "1e999"),
        (b'{"query": {"ids": [0]}, "k": 3, "k": 4}', "key k comes twice"),
        (b'{"query": {"regions": ["\\ud800"]}}', "surrogate"),
        (b'{"query": {"regions": ["\xff"]}}', "byte 24 is not UTF-8"),
        (b'{"query": {"ids": [' + b"9" * 5000 + b"]}}", "too long"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"a":' * 100_000, "nests too deeply"),
        (b"k=5", "line 1 column 1"),
        (b"", "line 1 column 1"),
        (b'\xef\xbb\xbf{"query": {"ids": [0]}}', "BOM"),
    ],
)
def test_90_not_json(ask: Ask, raw: bytes, said: str) -> None:
    answer = ask("/v1/cells/search", content=raw, headers={"Content-Type": "application/json"})
    assert said in problem(answer, 422, "REQUEST-JSON")["detail"]


def test_90_numbers_past_float32(ask: Ask, atlas: Atlas) -> None:
    vector = [0.5] * atlas.encoder.dim
    body = {"query": {"vectors": [vector, [*vector[1:], 1e39]]}}
    told = problem(ask("/v1/cells/search", json=body), 422, "REQUEST-FIELD")
    assert f"value {atlas.encoder.dim - 1} of vector 1 is 1e+39" in told["detail"]
    for vectors, code in (([[1, 2]], "VECTOR-SHAPE"), ([vector, [1.0]], "REQUEST-FIELD"), ([[0] * 64], "VECTOR-ZERO")):
        problem(ask("/v1/cells/search", json={"query": {"vectors": vectors}}), 422, code)
    told = problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "max_distance": 3}), 422, "REQUEST-FIELD")
    assert "from 0 to 2" in told["fix"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_90_another_content_type(ask: Ask, kind: str) -> None:
    answer = ask("/v1/cells/search", content=b'{"query": {"ids": [0]}}', headers={"Content-Type": kind})
    problem(answer, 415, "REQUEST-TYPE")


def test_90_compressed_bodies(ask: Ask) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = ask("/v1/cells/search", content=gzip.compress(b'{"query": {"ids": [0]}}'), headers=headers)
    problem(answer, 415, "REQUEST-ENCODING")


def test_90_fields_that_do_not_exist(ask: Ask) -> None:
    told = problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "limit": 5}), 422, "REQUEST-FIELD")
    assert told["detail"].startswith("limit: ")
    faults = {"query": {"ids": ["a"] * 50}, "k": 0}
    assert problem(ask("/v1/cells/search", json=faults), 422, "REQUEST-FIELD")["detail"].endswith("and 31 more")
    assert "labels" in problem(ask("/v1/annotate", json={"query": {"ids": [0]}}), 422, "REQUEST-FIELD")["detail"]
    problem(ask("/v1/annotate", json={"query": {"ids": [0]}, "labels": []}), 422, "REQUEST-FIELD")
    problem(ask("/v1/annotate", json={"query": {"ids": [0]}, "labels": ["nope"]}), 422, "LABEL-COLUMN")


def test_91_sizes(ask: Ask) -> None:
    async def chunks() -> Any:
        for _ in range(60):
            yield b" " * 1_000_000

    headers = {"Content-Type": "application/json"}
    for body in (b" " * 2_000_001, chunks()):  # with a length, and without one
        answer = ask("/v1/cells/search", content=body, headers=headers)
        assert "2,000,000 bytes" in problem(answer, 413, "REQUEST-SIZE")["detail"]
    padded = b'{"query": {"ids": [0]}}'.ljust(2_000_000)
    assert ask("/v1/cells/search", content=padded, headers=headers).status_code == 200
    many = {"col": "n_tokens", "op": "in", "value": list(range(100_000))}
    told = problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "where": many}), 422, "FILTER-MANY")
    assert "1..1000" in told["detail"]
    for query in ({"ids": [0] * 257}, {"ids": []}, {"regions": ["chr1:1-2"] * 257}, {"vectors": [[1.0]] * 257}):
        problem(ask("/v1/cells/search", json={"query": query}), 422, "REQUEST-FIELD")
    assert ask("/v1/cells/search", json={"query": {"ids": [0] * 256}, "k": 1}).status_code == 200


@pytest.mark.parametrize("where", ["tissue = 'blood'", "1=1) OR (1=1", [], 5, {"sql": "1=1"}, {"col": "x; DROP"}])
def test_92_a_filter_is_json(ask: Ask, where: Any) -> None:
    answer = ask("/v1/cells/search", json={"query": {"ids": [0]}, "where": where})
    problem(answer, 422, "FILTER-JSON" if isinstance(where, dict) else "REQUEST-FIELD")


def test_92_a_filter_names_columns(ask: Ask) -> None:
    where = {"col": "tisue", "op": "eq", "value": "blood"}
    told = problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "where": where}), 422, "FILTER-COLUMN")
    assert "tissue" in told["fix"]
    assert "SELECT" not in json.dumps(told)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("/etc/cron.d/x", "x"),
        ("../../x.bed", "x.bed"),
        ("n" * 5000, "n" * 254 + "…"),
        ("<img onerror=alert(1)>.bed", "<img onerror=alert(1)>.bed"),
        ("C:\\x\x1b[2J.bed", "x\\x1b[2J.bed"),
        ("", "upload"),
    ],
)
def test_93_file_names_are_labels(ask: Ask, atlas: Atlas, name: str, label: str) -> None:
    assert label_of(name) == label
    text = "\n".join(region.replace(":", "\t").replace("-", "\t") for region in atlas.universe.regions.names()[:9])
    body = multipart(("file", name.encode(), text.encode()))
    answer = ask("/v1/cells/search", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200, answer.text
    assert "\x1b" not in answer.text
    assert answer.json()["receipt"]["query"] == {"upload": label}


BED = ("file", b"x.bed", b"chr1\t1\t2\n")


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (multipart(BED, *[(f"f{n}", None, b"") for n in range(1500)]), "; boundary=b", "part f0"),
        (multipart(BED, BED), "; boundary=b", "comes twice"),
        (multipart(BED, ("options", None, b" " * 3_000_000)), "; boundary=b", "longer than"),
        (multipart(("file", b"n" * 200_000, b"")), "; boundary=b", "header"),
        (multipart(BED), "", "no boundary"),
        (multipart(BED), "; boundary=" + "b" * 300, "oundary"),
        (multipart(BED, end=b"")[:-5], "; boundary=b", "ends before"),
        (multipart(("options", None, b"{}")), "; boundary=b", "no part named file"),
        (b"chr1\t1\t2\n", "; boundary=b", ""),
        (b"", "; boundary=b", "ends before"),
    ],
)
def test_94_broken_forms(ask: Ask, body: bytes, kind: str, said: str) -> None:
    answer = ask("/v1/cells/search", content=body, headers={"Content-Type": f"multipart/form-data{kind}"})
    assert said in problem(answer, 400, "UPLOAD-FORM")["detail"]


def test_95_uploads_end_at_their_limit(atlas: Atlas, tmp_path: Path) -> None:
    ask = asking(create_app(atlas, uploads=tmp_path, max_upload=3_000_000))
    endless = {"n": 0}

    async def chunks() -> Any:
        yield multipart(BED)[:-10]
        while True:
            endless["n"] += 1
            yield b"chr1\t1\t2\n" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    told = problem(ask("/v1/cells/search", content=chunks(), headers=headers), 413, "REQUEST-SIZE")
    assert "3,000,000" in told["detail"]
    assert endless["n"] < 50
    assert list(tmp_path.iterdir()) == []
    sent = {**headers, "Content-Length": "99999999999"}
    problem(ask("/v1/cells/search", content=multipart(BED), headers=sent), 413, "REQUEST-SIZE")
    sent = {**headers, "Content-Length": "5", "Transfer-Encoding": "chunked"}
    problem(ask("/v1/cells/search", content=multipart(BED), headers=sent), 400, "REQUEST-LENGTH")


def test_99_names_and_origins(atlas: Atlas) -> None:
    ask = asking(create_app(atlas, hosts=["127.0.0.1", "atlas.lab"]))
    body = {"json": {"query": {"ids": [0]}}}
    assert ask("/v1/cells/search", **body).status_code == 200
    for name in ("evil.example", "127.0.0.1.evil", "[", ""):
        problem(ask("/healthz", method="GET", headers={"Host": name}), 400, "REQUEST-HOST")
    for name in ("atlas.lab", "ATLAS.LAB:8000", "127.0.0.1:99"):
        assert ask("/healthz", method="GET", headers={"Host": name}).status_code == 200
    for origin in ("http://evil.example", "null", "http://["):
        problem(ask("/v1/cells/search", headers={"Origin": origin}, **body), 403, "REQUEST-ORIGIN")
    problem(ask("/v1/cells/search", headers={"Sec-Fetch-Site": "cross-site"}, **body), 403, "REQUEST-ORIGIN")
    assert ask("/v1/cells/search", headers={"Origin": "https://atlas.lab"}, **body).status_code == 200
    open_to_all = asking(create_app(atlas))
    problem(open_to_all("/nothing", method="GET", headers={"Host": "["}), 404, "ROUTE")
    assert "location" not in ask("//evil.example/", method="GET").headers


@pytest.mark.parametrize(
    "query",
    [
        {"url": "http://169.254.169.254/"},
        {"path": "/etc/passwd"},
        {"regions": ["http://169.254.169.254/"]},
        {"regions": ["/etc/passwd"]},
        {"regions": ["file:///etc/passwd"]},
        {"ids": ["/etc/passwd"]},
        {"bed": "/etc/passwd"},
        {"bed": "http://127.0.0.1/x.bed"},
        "/etc/passwd",
        ["/etc/passwd"],
        {"ids": [0], "regions": ["chr1:1-2"]},
        {},
        None,
    ],
)
def test_100_no_paths_and_no_urls(ask: Ask, query: Any) -> None:
    answer = ask("/v1/cells/search", json={"query": query})
    told = problem(answer, 422, answer.json()["code"])
    assert "root:" not in answer.text
    if not isinstance(query, dict) or not query.keys() & {"regions", "ids", "bed"}:
        assert "upload the file" in told["detail"]


def test_100_an_upload_lists_no_other_files(ask: Ask, toy_files: dict[str, Path], tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.tsv"
    bed = sorted(toy_files["beds"].glob("*.bed.gz"))[0]
    manifest.write_text(f"path\tname\n{bed}\tx\n{toy_files['query']}\ty\n")
    for options in ({}, {"format": "bed"}, {"format": "fragments"}):
        answer = ask("/v1/cells/search", **form(manifest, **options))
        problem(answer, 422, answer.json()["code"])
    pd.DataFrame({"path": [str(bed)]}).to_parquet(tmp_path / "x.parquet")
    problem(ask("/v1/cells/search", **form(tmp_path / "x.parquet")), 415, "TEXT-KIND")


def test_an_h5ad_that_reads_other_files_is_refused(ask: Ask, toy_files: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(toy_files["query"].read_bytes())
    with h5py.File(bad, "r+") as file:
        file["uns/stolen"] = h5py.ExternalLink("/etc/passwd", "/")
    for path in ("/v1/cells/search", "/v1/annotate"):
        told = problem(ask(path, **form(bad, **({"labels": ["cell_type"]} if "ann" in path else {}))), 422, "H5AD-LINK")
        assert told["file"] == "bad.h5ad"
    with h5py.File(bad, "r+") as file:
        del file["uns/stolen"]
        file["X/indices"][0] = 10**6
    problem(ask("/v1/cells/search", **form(bad)), 422, "H5AD-INDICES")
    bad.write_bytes(toy_files["query"].read_bytes()[:20_000])
    problem(ask("/v1/cells/search", **form(bad)), 422, "H5AD-DAMAGED")


def test_a_bad_line_is_named_by_the_senders_name(ask: Ask) -> None:
    lines = "chr1\t1\t2\n" * 3 + "chr1\t500\t100\n"
    told = problem(ask("/v1/beds/search", files={"file": ("dir/mine.bed", lines)}), 422, "BED-ORDER")
    assert (told["file"], told["line"], told["got"]) == ("mine.bed", 4, "500 100")
    told = problem(ask("/v1/beds/search", json={"query": {"bed": lines, "name": "pasted"}}), 422, "BED-ORDER")
    assert (told["file"], told["line"]) == ("pasted", 4)


def test_an_answer_may_be_too_large(ask: Ask, tmp_path: Path) -> None:
    lines = "".join(f"chr1\t{1000 + n}\t{1100 + n}\tB{n}\t1\n" for n in range(300))
    path = tmp_path / "fragments.tsv"
    path.write_text(lines)
    told = problem(ask("/v1/cells/search", **form(path, k=1000)), 413, "ANSWER-SIZE")
    assert told["detail"] == "300,000 hits, at most 256,000"
    assert ask("/v1/cells/search", **form(path, k=1000, centroid=True)).status_code == 200


def test_102_a_full_queue_is_told() -> None:
    async def go() -> None:
        workers = Workers(1, max_waiting=1)
        first = [asyncio.create_task(workers.run(asyncio.run, asyncio.sleep(0.2))) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as told:
            await workers.run(int)
        assert (told.value.status, told.value.code) == (503, "SERVICE-BUSY")
        await asyncio.gather(*first)
        assert await workers.run(int) == 0
        workers.close()

    asyncio.run(go())


def test_104_uploads_end_when_the_disk_is_nearly_full() -> None:
    refuse_full(100, 5)
    with pytest.raises(StorageError) as told:
        refuse_full(100, 4)
    assert told.value.status == 507


def test_107_routes_and_methods(ask: Ask) -> None:
    for path in ("/", "/v1", "/v1/", "/v1/cells", "/static/..%2f..%2fetc/passwd", "/docs", "/v1/info/", "/v1/jobs/x"):
        problem(ask(path, method="GET"), 404, "ROUTE")
    for method, path, allowed in (("GET", "/v1/annotate", "POST"), ("PUT", "/v1/info", "GET")):
        answer = ask(path, method=method)
        problem(answer, 405, "METHOD")
        assert answer.headers["allow"] == allowed
    told = problem(ask("/v1/genes/search", json={}), 404, "COLLECTION")
    assert "cells" in told["fix"]
    problem(ask("/v1/cells/search", json={"query": {"ids": [10**9]}}), 404, "ID")
    problem(ask("/v1/cells/search", json={"query": {"ids": [0]}, "columns": ["nope"]}), 404, "COLUMN")


def test_what_nobody_foresaw_is_500_without_its_reason(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(atlas)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the secret reason")

    answer = asking(app)("/broken")
    told = problem(answer, 500, "INTERNAL")
    assert "secret" not in answer.text
    assert told["request_id"] in caplog.text
    assert "the secret reason" in caplog.text


def test_only_loopback_is_served() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(BadArgument, match="other machines"):
            check_loopback(host)

"""The API in process, against the same questions asked in Python; the real app over the toy atlas."""

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI

from chromseek.data.errors import BadArgument, Busy, StorageError
from chromseek.search.atlas import Atlas
from chromseek.service import models
from chromseek.service.app import check_loopback, create_app
from chromseek.service.bodies import strict_json
from chromseek.service.uploads import label_of, refuse_full
from chromseek.service.workers import Workers

Ask = Callable[..., httpx.Response]


def asking(app: FastAPI) -> Ask:
    """A client of an app in this process: `ask(path, json=…)` posts, `ask(path)` gets."""

    def ask(path: str, *, method: str | None = None, **sent: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method or ("POST" if sent else "GET"), path, **sent)

        return asyncio.run(go())

    return ask


@pytest.fixture(scope="module")
def app(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(atlas, uploads=tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def ask(app: FastAPI) -> Ask:
    return asking(app)


def form(path: Path, name: str | None = None, **options: Any) -> dict[str, Any]:
    """A file and its options as a multipart form."""
    return {"files": {"file": (name or path.name, path.read_bytes())}, "data": {"options": json.dumps(options)}}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem of this kind, and give its content."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = models.Problem.model_validate(answer.json()).model_dump()
    assert content["code"] == code, content
    assert content["type"] == f"urn:chromseek:problem:{code}"
    assert content["status"] == status
    assert content["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert "/tmp/" not in answer.text
    assert "\x1b" not in answer.text
    return content


# Answers


@pytest.mark.parametrize("source", ["cells", "regions", "beds"])
@pytest.mark.parametrize("target", ["cells", "regions", "beds"])
def test_all_nine_directions_answer_as_python_does(ask: Ask, atlas: Atlas, source: str, target: str) -> None:
    body = {"query": {"ids": [3, 7], "collection": source}, "k": 5}
    answer = ask(f"/v1/{target}/search", json=body)
    assert answer.status_code == 200, answer.text
    found = models.SearchAnswer.model_validate(answer.json())
    hits = atlas.collection(target).search(f"{source}:3,7", 5)
    assert found.ids == hits.ids.tolist()
    np.testing.assert_allclose(np.array(found.scores, float), hits.scores, rtol=1e-6)
    assert found.queries == list(hits.queries)
    assert found.coverage == [None, None]
    assert list(found.metadata) == [name for name in atlas.collection(target).schema.names if name != "id"]
    table = hits.to_arrow()
    for name, values in found.metadata.items():
        flat = [value for row in values for value in row]
        expected = table["name" if name == "name" else name].to_pylist()
        assert flat == [pytest.approx(value) if isinstance(value, float) else value for value in expected], name
    assert found.receipt["atlas"] == atlas.path.name
    assert {**found.receipt, "atlas": hits.receipt["atlas"]} == hits.receipt
    assert answer.headers["x-atlas-version"] == str(atlas.version) == str(found.version)


def test_options_mean_what_they_mean_in_python(ask: Ask, atlas: Atlas) -> None:
    where = {"and": [{"col": "tissue", "op": "eq", "value": "blood"}, {"col": "n_tokens", "op": "gt", "value": 50}]}
    body = {
        "query": {"ids": [1, 2, 5]}, "unlike": {"ids": [9]}, "k": 7, "where": where, "exact": True,
        "exclude_same": "donor", "max_distance": 0.99, "columns": ["donor", "donor", "age"],
    }  # fmt: skip
    found = ask("/v1/cells/search", json=body).json()
    hits = atlas.cells.search(
        [1, 2, 5], 7, where=where, exact=True, exclude_same="donor", max_distance=0.99, unlike=[9]
    )
    assert found["ids"] == hits.ids.tolist()
    assert list(found["metadata"]) == ["donor", "age"]
    absent = np.array(found["ids"]) < 0
    assert [[score is None for score in row] for row in found["scores"]] == absent.tolist()
    assert [[donor is None for donor in row] for row in found["metadata"]["donor"]] == absent.tolist()


def test_a_centroid_is_one_query(ask: Ask, atlas: Atlas) -> None:
    found = ask("/v1/beds/search", json={"query": {"ids": [1, 2], "collection": "cells"}, "k": 3, "centroid": True})
    hits = atlas.beds.search("cells:1,2", 3, centroid=True)
    assert found.json()["ids"] == hits.ids.tolist()
    assert found.json()["receipt"]["query"]["coherence"] == hits.receipt["query"]["coherence"]


def test_regions_and_vectors_answer_as_python_does(ask: Ask, atlas: Atlas) -> None:
    texts = [*atlas.universe.regions.names()[:2], "chrY:1-2"]
    found = ask("/v1/cells/search", json={"query": {"regions": texts}, "k": 4}).json()
    hits = atlas.cells.search(texts, 4)
    assert (found["ids"], found["queries"]) == (hits.ids.tolist(), texts)
    assert found["coverage"] == [1, 1, 0]
    assert found["reasons"] == [None, None, "no overlap with the universe"]
    assert found["ids"][2] == [-1] * 4
    vectors = (atlas.cells.vectors_of([4, 5]) * 3e20).tolist()
    found = ask("/v1/cells/search", json={"query": {"vectors": vectors}, "k": 1}).json()
    assert found["ids"] == [[4], [5]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_bed_file_answers_as_python_does(ask: Ask, atlas: Atlas, toy_files: dict[str, Path], packed: bool) -> None:
    path = sorted(toy_files["beds"].glob("*.bed.gz"))[3]
    text = gzip.decompress(path.read_bytes())
    hits = atlas.cells.search(path, 6)
    name = "../../peaks.bed.gz" if packed else "peaks.bed"
    sent = {"files": {"file": (name, path.read_bytes() if packed else text)}, "data": {"options": '{"k": 6}'}}
    found = ask("/v1/cells/search", **sent).json()
    assert found["ids"] == hits.ids.tolist()
    assert found["queries"] == ["peaks"]
    assert found["coverage"] == pytest.approx(hits.coverage.tolist())
    assert found["receipt"]["query"] == {"upload": name.rpartition("/")[2]}
    query = {"bed": text.decode(), "name": "mine"}
    found = ask("/v1/cells/search", json={"query": query, "k": 6}).json()
    assert (found["ids"], found["queries"]) == (hits.ids.tolist(), ["mine"])


def test_options_of_an_upload_may_be_left_out(ask: Ask, toy_files: dict[str, Path]) -> None:
    path = sorted(toy_files["beds"].glob("*.bed.gz"))[0]
    found = ask("/v1/beds/search", files={"file": (path.name, path.read_bytes())})
    assert np.array(found.json()["ids"]).shape == (1, 10)


def test_cells_of_an_h5ad_are_searched_and_annotated(ask: Ask, atlas: Atlas, toy_files: dict[str, Path]) -> None:
    path = toy_files["query"]
    hits = atlas.cells.search(path, 30)
    found = ask("/v1/cells/search", **form(path, k=30)).json()
    assert found["ids"] == hits.ids.tolist()
    assert found["queries"] == list(hits.queries)
    answer = ask("/v1/annotate", **form(path, labels=["cell_type", "age"])).json()
    models.AnnotateAnswer.model_validate(answer)
    predicted = hits.predict(["cell_type", "age"])
    assert list(answer["predictions"]) == list(predicted.columns)
    assert answer["predictions"]["cell_type_pred"] == predicted["cell_type_pred"].tolist()
    np.testing.assert_allclose(answer["predictions"]["age_pred"], predicted["age_pred"])
    assert answer["queries"] == list(hits.queries)
    assert answer["reasons"] == [None] * len(hits)
    assert answer["receipt"]["k"] == 30


def test_fragments_are_cells(ask: Ask, atlas: Atlas, tmp_path: Path) -> None:
    regions = atlas.universe.regions.take(slice(0, 300)).to_frame()
    regions["barcode"] = [f"C{place % 3}-1" for place in range(len(regions))]
    path = tmp_path / "fragments.tsv.gz"
    regions.assign(count=1).sort_values(["chrom", "start"]).to_csv(path, sep="\t", header=False, index=False)
    hits = atlas.cells.search(path, 5)
    found = ask("/v1/cells/search", **form(path, k=5)).json()
    assert (found["ids"], found["queries"]) == (hits.ids.tolist(), list(hits.queries))
    assert found == ask("/v1/cells/search", **form(path, "x", k=5, format="fragments")).json() | {
        "receipt": found["receipt"]
    }
    assert len(ask("/v1/annotate", **form(path, labels=["cell_type"])).json()["queries"]) == 3


def test_annotate_takes_vectors_and_ids(ask: Ask, atlas: Atlas) -> None:
    vectors = atlas.cells.vectors_of([3, 4]).tolist()
    answer = ask("/v1/annotate", json={"query": {"vectors": vectors}, "labels": ["cell_type", "cell_type"], "k": 1})
    assert answer.json()["predictions"] == {
        "cell_type_pred": atlas.cells.get([3, 4], ["cell_type"])["cell_type"].to_pylist(),
        "cell_type_conf": [1.0, 1.0],
    }
    assert ask("/v1/annotate", json={"query": {"ids": [3]}, "labels": ["age"]}).status_code == 200


def test_info_and_health(ask: Ask, atlas: Atlas) -> None:
    answer = ask("/v1/info")
    found = models.Info.model_validate(answer.json())
    assert found.collections["cells"].rows == len(atlas.cells)
    assert found.collections["cells"].columns["age"]
    assert found.limits.k == 1000
    assert str(atlas.path.parent) not in answer.text
    assert "/tmp/" not in answer.text
    assert ask("/healthz").json() == {"status": "ok", "version": atlas.version}


def test_every_answer_has_its_headers(ask: Ask, atlas: Atlas) -> None:
    for path in ("/healthz", "/v1/info", "/openapi.json", "/nothing"):
        answer = ask(path, method="GET", headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-atlas-version"] == str(atlas.version)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert len(ask("/healthz", method="GET", headers={"X-Request-ID": "a\x01b"}).headers["x-request-id"]) == 32


def test_nothing_of_an_upload_stays(app: FastAPI, ask: Ask, toy_files: dict[str, Path]) -> None:
    ask("/v1/annotate", **form(toy_files["query"], labels=["cell_type"]))
    ask("/v1/cells/search", json={"query": {"bed": "chr1\t5\t1\n"}})
    assert list(app.state.service.uploads.iterdir()) == []


# The description


def test_the_description_is_complete(app: FastAPI, ask: Ask) -> None:
    described = ask("/openapi.json").json()
    schemas = described["components"]["schemas"]
    references = {part.partition('"')[0] for part in json.dumps(described).split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)
    routes = set(app.openapi()["paths"])
    assert routes == {"/v1/{collection}/search", "/v1/annotate", "/v1/info", "/healthz"}
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route["summary"], path
            assert route["description"], path
            for status, answer in route["responses"].items():
                kind = "application/json" if status == "200" else "application/problem+json"
                assert list(answer["content"]) == [kind], (path, method, status)
                assert {"X-Request-ID", "X-Atlas-Version"} <= set(answer["headers"])
    for name, schema in schemas.items():
        for field, content in schema.get("properties", {}).items():
            assert {"description", "$ref"} & set(content), (name, field)


def test_the_examples_are_good(ask: Ask) -> None:
    schemas = ask("/openapi.json").json()["components"]["schemas"]
    for name, path in (("SearchRequest", "/v1/cells/search"), ("AnnotateRequest", "/v1/annotate")):
        for example in schemas[name]["examples"]:
            assert ask(path, json=example).status_code == 200, example
    for model in (models.SearchUpload, models.AnnotateUpload):
        for example in schemas[model.__name__]["examples"]:
            model.model_validate(example)


# Refusals: the numbers are those of the table of bad inputs


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


def multipart(*parts: tuple[str, bytes | None, bytes], end: bytes = b"--b--\r\n") -> bytes:
    """A form of (name, file name, content) with boundary `b`, written by hand."""
    whole = b""
    for name, filename, content in parts:
        shown = b"" if filename is None else b'; filename="' + filename + b'"'
        whole += b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + shown + b"\r\n\r\n"
        whole += content + b"\r\n"
    return whole + end


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


def test_strict_json_takes_what_is_json() -> None:
    assert strict_json(rb'{"a": [1, 2.5, "\ud83d\ude00", null, true, 1e3]}') == {"a": [1, 2.5, "😀", None, True, 1000]}

"""The API in process, against the same questions asked in Python; the real app over the toy atlas."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from asking import Ask, asking, form
from fastapi import FastAPI

from chromseek.search.atlas import Atlas
from chromseek.service import models
from chromseek.service.app import create_app
from chromseek.service.bodies import strict_json


@pytest.fixture(scope="module")
def app(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(atlas, uploads=tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def ask(app: FastAPI) -> Ask:
    return asking(app)


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
    own = atlas.label_view("cell_type")
    assert own is not None
    expected = own.search(path, 30).predict("cell_type")
    assert answer["predictions"]["cell_type_pred"] == expected["cell_type_pred"].tolist()
    assert [note.partition(":")[0] for note in answer["notes"]] == ["age"]
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
    twice = ask("/v1/annotate", json={"query": {"ids": [3, 3]}, "labels": ["age"]}).json()
    assert twice["predictions"]["age_pred"][0] == twice["predictions"]["age_pred"][1]
    assert list(twice["predictions"]) == ["age_pred", "age_sd"]


def test_a_query_without_a_prediction_says_why(ask: Ask, atlas: Atlas) -> None:
    regions = [atlas.universe.regions.names()[0], "chrY:1-2"]
    answer = ask("/v1/annotate", json={"query": {"regions": regions}, "labels": ["cell_type", "age"]}).json()
    assert answer["reasons"] == [None, "no overlap with the universe"]
    assert answer["predictions"]["cell_type_pred"][1] is answer["predictions"]["age_pred"][1] is None
    where = {"col": "n_tokens", "op": "lt", "value": 0}
    answer = ask("/v1/annotate", json={"query": {"ids": [3]}, "labels": ["cell_type"], "where": where}).json()
    assert answer["reasons"] == ["no neighbour has a value"]


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


def test_strict_json_takes_what_is_json() -> None:
    assert strict_json(rb'{"a": [1, 2.5, "\ud83d\ude00", null, true, 1e3]}') == {"a": [1, 2.5, "😀", None, True, 1000]}

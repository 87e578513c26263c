"""Answers as JSON: what a search, an annotation and the atlas itself say, column by column."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from chromseek.search.atlas import Atlas
from chromseek.search.hits import Hits
from chromseek.search.query import Question
from chromseek.service.asking import AskedAnnotate, AskedSearch, check_size, query_question, question_of
from chromseek.service.models import MAX_CELLS, MAX_HITS, MAX_K, MAX_QUERIES, MAX_VOTES, SearchRequest

MAX_BODY = 2_000_000  # bytes of JSON
MAX_UPLOAD = 200_000_000  # bytes of a form


def search(atlas: Atlas, name: str, asked: AskedSearch, folder: Path | None) -> Response:
    """Search a collection. Raises what is wrong with the query, its file or its filter."""
    collection, options = atlas.collection(name), asked.options
    question = question_of(atlas, name, asked, folder)
    n_queries = 1 if options.centroid else len(question)
    fix = f"ask for fewer hits, or split the query: k times queries is at most {MAX_HITS:,}"
    check_size(n_queries * options.k, MAX_HITS, "hits", fix)
    unlike = options.unlike if isinstance(options, SearchRequest) else None
    hits = collection.search(
        question,
        options.k,
        where=options.where,
        exact=options.exact,
        exclude_same=options.exclude_same,
        max_distance=options.max_distance,
        centroid=options.centroid,
        unlike=None
        if unlike is None
        else query_question(atlas, atlas.encoder, name, unlike, options.rename_chroms, folder),
    )
    columns = collection.schema.names if options.columns is None else options.columns
    return _json(_hits(hits, name, [column for column in dict.fromkeys(columns) if column != "id"], atlas))


def annotate(atlas: Atlas, asked: AskedAnnotate, folder: Path | None) -> Response:
    """Predict labels of the query's cells. Raises what is wrong with the query, its file, a label or the filter."""
    options = asked.options
    labels = list(dict.fromkeys(options.labels))
    question = question_of(atlas, "cells", asked, folder)
    fix = "send fewer cells, or annotate in Python"
    check_size(len(question), MAX_CELLS, "cells", fix)
    check_size(len(question) * options.k, MAX_VOTES, "neighbours", fix)
    names = [f"{label}_{part}" for label in labels for part in ("pred", "conf", "sd")]
    written = atlas.annotate(
        _numbered(question, names), labels, k=options.k, where=options.where, exclude_same=options.exclude_same
    )
    nothing = written.obs[[f"{label}_pred" for label in labels]].isna().all(axis=1).tolist()
    reasons = [question.reasons.get(n, "no neighbour has a value" if none else None) for n, none in enumerate(nothing)]
    return _json(
        {
            "version": atlas.version,
            "queries": question.names,
            "coverage": _plain(question.coverage),
            "reasons": reasons,
            "predictions": {
                name: _plain(written.obs[name].to_numpy()) for name in names if name in written.obs.columns
            },
            "receipt": json.loads(written.uns["chromseek"]["receipt"]) | {"atlas": atlas.path.name},
            "notes": json.loads(written.uns["chromseek"]["notes"]),
        }
    )


def _numbered(question: Question, names: Sequence[str]) -> Question:
    """Queries named by their place, since obs wants names without repeats, and without old columns of these names."""
    metadata = question.metadata
    kept = None if metadata is None else metadata.drop(columns=list(names), errors="ignore")
    return replace(question, names=tuple(map(str, range(len(question)))), metadata=kept)


def info(atlas: Atlas, max_upload: int) -> Response:
    """What the atlas holds; no path of the server is in it."""
    found = atlas.info()
    path = Path(found.pop("path"))
    for collection in found["collections"].values():
        collection["sources"] = [one | {"label": Path(one["label"]).name} for one in collection["sources"]]
    limits = {
        "k": MAX_K,
        "queries": MAX_QUERIES,
        "hits": MAX_HITS,
        "cells": MAX_CELLS,
        "neighbours": MAX_VOTES,
        "body_bytes": MAX_BODY,
        "upload_bytes": max_upload,
    }
    return _json({"name": path.name, **found, "limits": limits})


def health(atlas: Atlas) -> Response:
    """The version that is served."""
    return _json({"status": "ok", "version": atlas.version})


def _hits(hits: Hits, name: str, columns: Sequence[str], atlas: Atlas) -> dict[str, Any]:
    """The columns of an answer; metadata is taken once for all hits."""
    rows = np.where(hits.found, hits.rows, -1)
    table = hits.take(rows.ravel(), columns)
    return {
        "version": atlas.version,
        "collection": name,
        "queries": hits.queries,
        "coverage": _plain(hits.coverage),
        "reasons": [hits.reasons.get(place) for place in range(len(hits))],
        "ids": hits.ids.tolist(),
        "scores": _plain(hits.scores),
        "metadata": {column: _rows(table[column], hits.k) for column in columns},
        "receipt": hits.receipt | {"atlas": atlas.path.name},
    }


def _rows(column: pa.ChunkedArray, k: int) -> list[list[Any]]:
    """A column of q * k values as q lists of k."""
    values = _plain(column.to_numpy()) if pa.types.is_float32(column.type) else column.to_pylist()
    return [values[first : first + k] for first in range(0, len(values), k)]


def _plain(array: NDArray[Any]) -> list[Any]:
    """An array as lists; float32 as its own shortest decimals (0.1, not 0.10000000149)."""
    values: list[Any] = array.tolist()
    if array.dtype == np.float32:
        values = array.astype(str).astype(np.float64).tolist()
    return values


def _json(answer: dict[str, Any]) -> Response:
    """What is not finite (absent scores, unknown coverage) becomes null."""
    return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")

"""The description of the API: bodies and errors that the framework cannot see, since we read them ourselves."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chromseek.service import models

_REF = "#/components/schemas/{model}"
_BY_HAND: tuple[type[BaseModel], ...] = (
    models.SearchRequest,
    models.SearchUpload,
    models.AnnotateRequest,
    models.AnnotateUpload,
    models.Problem,
)
_REASONS = {
    400: "The form, the length or the host name of the request is not good.",
    403: "A page of another site asked.",
    404: "The atlas has no such collection, row or column.",
    413: "The body, the file or the answer would be too large.",
    415: "Neither JSON nor a form, or a file of a kind that is not read.",
    422: "The query, an option, the filter or a line of the file is wrong.",
    423: "The file is open for writing.",
    500: "Our fault: the log has the reason under the request id.",
    503: "Too many requests wait; the header Retry-After says when to try again.",
    507: "The server's disk is full.",
}
_HEADERS = {
    "X-Request-ID": {"description": "The request's own id, if it sent a good one.", "schema": {"type": "string"}},
    "X-Atlas-Version": {"description": "The version of the atlas that answered.", "schema": {"type": "string"}},
}
_ABOUT = (
    "Give it cells, regions or BED sets, and it finds the ones like them in a scATAC-seq atlas. Queries come as JSON "
    "or as an uploaded file; files and addresses of the server are never read. Filters are JSON. Every error is "
    "problem+json."
)


def responses(answer: type[BaseModel], *errors: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer: its model, and problems."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": answer, "headers": _HEADERS}}
    for status in errors:
        headers = _HEADERS if status != 503 else _HEADERS | {"Retry-After": {"schema": {"type": "string"}}}
        schema = {"$ref": _REF.format(model="Problem")}
        content = {"application/problem+json": {"schema": schema}}
        found[status] = {"description": _REASONS[status], "headers": headers, "content": content}
    return found


def body_of(request: type[BaseModel], upload: type[BaseModel]) -> dict[str, Any]:
    """A body that is JSON, or a form with a file and its options."""
    form = {
        "type": "object",
        "required": ["file", *(["options"] if any(f.is_required() for f in upload.model_fields.values()) else [])],
        "additionalProperties": False,
        "properties": {
            "file": {
                "type": "string",
                "format": "binary",
                "description": "BED, 10x fragments or h5ad; BED and fragments may be gz.",
            },
            "options": {"$ref": _REF.format(model=upload.__name__)},
        },
    }
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model=request.__name__)}},
            "multipart/form-data": {"schema": form, "encoding": {"options": {"contentType": "application/json"}}},
        },
    }


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What makes an app's description, once."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
            wanted = [(model, "validation") for model in _BY_HAND]
            _, own = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components.update(own["$defs"] | {"Filter": models.FILTER_SCHEMA})
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi

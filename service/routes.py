"""The routes of the API, version 1. Each reads what was asked, hands it to a worker, and answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Path as PathParameter

from chromseek.search.atlas import COLLECTIONS, Atlas
from chromseek.service import answers
from chromseek.service.asking import AskedAnnotate, AskedSearch
from chromseek.service.bodies import Body
from chromseek.service.models import (
    AnnotateAnswer,
    AnnotateRequest,
    AnnotateUpload,
    Health,
    Info,
    SearchAnswer,
    SearchRequest,
    SearchUpload,
)
from chromseek.service.openapi import body_of, responses
from chromseek.service.workers import Workers


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with; it never changes while the app lives."""

    atlas: Atlas
    workers: Workers
    uploads: Path | None  # where uploads lie while they are read; None: the system's place for such files
    max_upload: int  # bytes


async def service_of(request: Request) -> Service:
    """The service that an app was made for."""
    service: Service = request.app.state.service
    return service


router = APIRouter()
Here = Annotated[Service, Depends(service_of)]
_names = PathParameter(description="What to find.", json_schema_extra={"enum": list(COLLECTIONS)})


async def collection_of(collection: Annotated[str, _names], here: Here) -> str:
    """The name of a collection, before the body is read. Raises NotFound when the atlas has none of it."""
    return here.atlas.collection(collection).name


_search = Depends(Body(SearchRequest, SearchUpload))
_annotate = Depends(Body(AnnotateRequest, AnnotateUpload))
_ASK_ERRORS = (400, 403, 404, 413, 415, 422, 423, 500, 503, 507)


def _documented(answer: Any, *errors: int, **more: Any) -> dict[str, Any]:
    return {"response_model": None, "responses": responses(answer, *errors), "openapi_extra": more}


@router.post(
    "/v1/{collection}/search",
    summary="Find what is like the query",
    tags=["search"],
    **_documented(SearchAnswer, *_ASK_ERRORS, requestBody=body_of(SearchRequest, SearchUpload)),
)
async def search(
    collection: Annotated[str, Depends(collection_of)], asked: Annotated[AskedSearch, _search], here: Here
) -> Response:
    """Cells, regions or BED sets most like each query, which may be of any of these kinds."""
    return await here.workers.run(answers.search, here.atlas, collection, asked, here.uploads)


@router.post(
    "/v1/annotate",
    summary="Predict labels of cells",
    tags=["search"],
    **_documented(AnnotateAnswer, *_ASK_ERRORS, requestBody=body_of(AnnotateRequest, AnnotateUpload)),
)
async def annotate(asked: Annotated[AskedAnnotate, _annotate], here: Here) -> Response:
    """Labels and numbers of the atlas's cells, carried over to the query by a weighted vote of its neighbours."""
    return await here.workers.run(answers.annotate, here.atlas, asked, here.uploads)


@router.get("/v1/info", summary="What the atlas holds", tags=["atlas"], **_documented(Info, 400, 500, 503))
async def info(here: Here) -> Response:
    """Rows, columns, sources, encoder, measured recall, warnings, and the limits of one request."""
    return await here.workers.run(answers.info, here.atlas, here.max_upload)


@router.get("/healthz", summary="Does it answer?", tags=["operations"], **_documented(Health, 400))
async def healthz(here: Here) -> Response:
    """Constant while the process answers."""
    return answers.health(here.atlas)

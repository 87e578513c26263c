"""Errors as problem+json (RFC 9457): what, where, the value, the cure; never a traceback or a path of the server."""

import json
import logging
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, TooNew, printable

_log = logging.getLogger("chromseek.service")
_WRONG_ROUTE = {404: ("ROUTE", "the routes are listed in /openapi.json"), 405: ("METHOD", "see the header Allow")}


def handle_errors(app: FastAPI, atlas: Path) -> None:
    """Let an app answer every error as a problem; `atlas` is the path that no answer shows."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ChromseekError)
        return problem(error, request.state.request_id, atlas)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code, fix = _WRONG_ROUTE.get(error.status_code, ("HTTP", "see /openapi.json"))
        what = f"{request.method} {request.scope['path']}: {error.detail}"
        fault = BadArgument(printable(what, 200), code=code, fix=fix, status=error.status_code)
        return problem(fault, request.state.request_id, atlas, headers=error.headers)

    app.add_exception_handler(ChromseekError, known)
    app.add_exception_handler(HTTPException, http)


def problem(error: ChromseekError, request_id: str, atlas: Path, *, headers: Any = None) -> Response:
    """An error as an answer. What is wrong with a file of the server is our fault, and its path stays here."""
    ours = error.file is not None and "/" in error.file
    status = 500 if ours and isinstance(error, BadData | NotFound | TooNew) else error.status
    if status == 500:
        _log.error("request %s: %s %s", request_id, error.code, error, exc_info=error)
    hidden = [str(atlas), str(atlas.resolve()), tempfile.gettempdir(), *([error.file] if ours and error.file else [])]

    def shown(text: str) -> str:
        for path in sorted(hidden, key=len, reverse=True):
            text = text.replace(path, Path(path).name)
        return printable(text.replace("\n", "; "), 4_000)

    body = {
        "type": f"urn:chromseek:problem:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": shown(error.message),
        "code": error.code,
        "file": None if ours else error.file,
        "line": error.line,
        "got": None if error.got is None else shown(printable(error.got)),
        "fix": shown(error.fix) or None,
        "request_id": request_id,
    }
    answer = Response(json.dumps(body), status, media_type="application/problem+json", headers=dict(headers or {}))
    if status == 503:
        answer.headers["Retry-After"] = "1"
    if status == 413:
        answer.headers["Connection"] = "close"  # the rest of the body is not read
    return answer


def unexpected(error: Exception, request_id: str, atlas: Path) -> Response:
    """The answer to an error that nobody foresaw: what it was is in the log only."""
    _log.error("request %s failed", request_id, exc_info=error)
    fix = "tell whoever runs this service the request id; the log has the reason under it"
    return problem(ChromseekError("something went wrong in here", code="INTERNAL", fix=fix), request_id, atlas)

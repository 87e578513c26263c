"""The gate before the app: who may ask under which name, how long a body may be, and what every answer carries."""

import logging
import re
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chromseek.data.errors import BadArgument, ChromseekError, printable
from chromseek.service.problems import problem, unexpected

_log = logging.getLogger("chromseek.service")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around a whole app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        atlas: Path,
        version: Callable[[], int],
        hosts: Collection[str] | None,
        max_body: int,
        max_upload: int,
    ) -> None:
        """`hosts` are the names under which the service may be asked; None allows any."""
        self._app, self._atlas, self._version = app, atlas, version
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._max_body, self._max_upload = max_body, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                sent = MutableHeaders(scope=message)
                sent.update({**_HEADERS, "X-Request-ID": request_id, "X-Atlas-Version": str(self._version())})
            await send(message)

        try:
            self._check_names(scope["method"], headers)
            await self._app(scope, limited(receive, headers, self._limit(headers)), answer)
        except ClientDisconnect:
            _log.info("request %s: the client left", request_id)
        except ChromseekError as error:
            await problem(error, request_id, self._atlas)(scope, receive, answer)
        except Exception as error:
            reply = unexpected(error, request_id, self._atlas)
            if not started:
                await reply(scope, receive, answer)

    def _limit(self, headers: Headers) -> int:
        form = headers.get("content-type", "").lower().startswith("multipart/")
        return self._max_upload if form else self._max_body

    def _check_names(self, method: str, headers: Headers) -> None:
        """Refuse a name that is not ours (400), and what another site's page sends (403)."""
        host = _hostname(f"//{headers.get('host', '')}")
        if self._hosts is not None and host not in self._hosts:
            raise BadArgument(
                f"this service is not {printable(headers.get('host', ''))}",
                code="REQUEST-HOST",
                got=printable(headers.get("host", "")),
                fix="ask it under its own name; whoever runs it can allow more names",
                status=400,
            )
        origin = headers.get("origin")
        allowed = {host, *(self._hosts or ())}
        foreign = origin is not None and _hostname(origin) not in allowed
        if method not in _SAFE and (foreign or headers.get("sec-fetch-site") == "cross-site"):
            raise BadArgument(
                "a page of another site may not ask here",
                code="REQUEST-ORIGIN",
                got=printable(origin),
                fix="ask from a script, or from a page of this service",
                status=403,
            )


def limited(receive: Receive, headers: Headers, limit: int) -> Receive:
    """A `receive` that stops at a limit. Raises BadArgument: 413 over it, 400 for lengths that contradict."""
    length = headers.get("content-length")
    if length is not None and (not re.fullmatch(r"[0-9]{1,19}", length) or "transfer-encoding" in headers):
        fix = "send either Content-Length or Transfer-Encoding: chunked"
        raise BadArgument("unclear length of the body", code="REQUEST-LENGTH", fix=fix, status=400)
    if headers.get("content-encoding", "identity") != "identity":
        fix = "send the body as it is; a file may be gz"
        raise BadArgument("compressed bodies are not read", code="REQUEST-ENCODING", fix=fix, status=415)
    if int(length or 0) > limit:
        raise _too_long(limit)
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise _too_long(limit)
        return message

    return counted


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as an unclosed bracket
        return None


def _too_long(limit: int) -> BadArgument:
    return BadArgument(
        f"the body is longer than {limit:,} bytes", code="REQUEST-SIZE", fix="send less, or in parts", status=413
    )

"""How tests ask the service: a client of an app in this process, forms, and the check of a problem."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from chromseek.service import models

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


def multipart(*parts: tuple[str, bytes | None, bytes], end: bytes = b"--b--\r\n") -> bytes:
    """A form of (name, file name, content) with boundary `b`, written by hand."""
    whole = b""
    for name, filename, content in parts:
        shown = b"" if filename is None else b'; filename="' + filename + b'"'
        whole += b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"' + shown + b"\r\n\r\n"
        whole += content + b"\r\n"
    return whole + end

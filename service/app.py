"""The HTTP service: an app over one opened atlas, and the process that serves it."""

import copy
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

import chromseek
from chromseek.data.errors import BadArgument, StorageError, printable

if TYPE_CHECKING:
    from chromseek.search.atlas import Atlas

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DRAIN = 10  # seconds that requests get to end when the process is told to
_log = logging.getLogger("chromseek.service")


def create_app(
    atlas: "Atlas | str | Path",
    *,
    threads: int | None = None,
    hosts: Sequence[str] | None = None,
    uploads: Path | None = None,
    max_upload: int | None = None,
) -> FastAPI:
    """Make the app over an atlas, opened here if it is a path; what is served never changes.

    threads: that search, each on one core; as many as there are cores by default.
    hosts: the names under which it may be asked; any, when left out.
    uploads: where uploads lie while they are read; the system's place for such files by default.
    max_upload: the longest upload in bytes; 200 MB by default.

    Raises NotFound, BadData or TooNew when the atlas cannot be opened.
    """
    from chromseek.indexer.lock import pin
    from chromseek.search.atlas import open as open_atlas
    from chromseek.service import answers
    from chromseek.service.guard import Guard
    from chromseek.service.openapi import describe
    from chromseek.service.problems import handle_errors
    from chromseek.service.routes import Service, router
    from chromseek.service.workers import Workers

    opened = open_atlas(atlas) if isinstance(atlas, str | Path) else atlas
    service = Service(opened, Workers(threads), uploads, answers.MAX_UPLOAD if max_upload is None else max_upload)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        held = pin(opened.path, opened.version)
        yield
        service.workers.close()
        if held is not None:
            held.release()
        if opened is not atlas:
            opened.close()

    app = FastAPI(
        title="chromseek",
        version=chromseek.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # which would lead to wherever the header Host says
    )
    app.state.service = service
    app.include_router(router)
    app.openapi = describe(app)  # type: ignore[method-assign]
    handle_errors(app, opened.path)
    app.add_middleware(
        Guard,
        atlas=opened.path,
        version=lambda: opened.version,
        hosts=hosts,
        max_body=answers.MAX_BODY,
        max_upload=service.max_upload,
    )
    return app


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    threads: int | None = None,
    names: Sequence[str] = (),
) -> None:
    """Serve an atlas until the process is told to stop; port 0 takes a free one, and the log says which.

    threads: that search, as in create_app.
    names: more names under which it may be asked, such as that of a proxy before it.

    Raises what is wrong with the atlas, BadArgument for an address that is not loopback (there are no keys yet, so
    nothing would keep anybody out), StorageError (69) when the port is taken.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch and faiss are loaded, by create_app
    check_loopback(host)
    with _listening(host, port) as listener:
        app = create_app(path, threads=threads, hosts=[*LOOPBACK, host, *names])
        config = uvicorn.Config(
            app,
            log_config=_log_config(),
            access_log=False,  # what users ask stays out of the log
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=DRAIN,
        )
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(config)  # which sets up the log
        _log.info("serving %s on http://%s:%d", printable(path), shown, listener.getsockname()[1])
        server.run(sockets=[listener])


def check_loopback(host: str) -> None:
    """Raise BadArgument for an address that other machines could reach."""
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise BadArgument(
            f"{printable(host)} can be reached from other machines, and the service has no keys yet",
            code="SERVE-HOST",
            got=host,
            fix="serve on 127.0.0.1, behind a proxy that lets in whom you trust",
        )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's delay on and every second answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise StorageError(
            f"cannot listen on {printable(host)}:{port} ({getattr(error, 'strerror', None) or error})",
            code="SERVE-PORT",
            got=port,
            fix="choose another port with --port",
            exit_code=69,
        ) from error
    return listener


def _log_config() -> dict[str, Any]:
    """uvicorn's, with our own lines among them."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["chromseek"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config

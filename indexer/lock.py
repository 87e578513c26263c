"""Who uses an atlas: the one writer, and the readers that hold a version."""

import fcntl
import json
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from chromseek.data.errors import Busy, StorageError, printable
from chromseek.indexer.durable import disk_errors
from chromseek.indexer.manifest import manifest_path, version_gone

_PIN = re.compile(r"\d+-v(\d+)-[0-9a-f]+")


@contextmanager
def writing(root: Path, operation: str) -> Iterator[None]:
    """Be the only writer of an atlas. Raises Busy naming the one who is, StorageError (77) where nobody may write.

    The lock goes with the process: a killed writer leaves none.
    """
    with disk_errors(root):
        descriptor = os.open(root / "LOCK", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(root, _holder(descriptor)) from None
        _sign(descriptor, operation)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _sign(descriptor: int, operation: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "operation": operation,
        "command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # the name is a courtesy: a full disk must not keep gc from making room
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> dict[str, Any]:
    holder: dict[str, Any] = {}
    for _ in range(10):  # it may be about to sign, over the name of one that was killed
        with suppress(ValueError, TypeError):
            holder = dict(json.loads(os.pread(descriptor, 65_536, 0)))
            if holder.get("host") != os.uname().nodename or _runs(int(holder.get("pid", ""))):
                break
        time.sleep(0.02)
    return holder


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _busy(root: Path, holder: dict[str, Any]) -> Busy:
    if not holder:
        what = "another process is writing this atlas"
    else:
        command = printable(holder.get("command", ""), 200)
        what = (
            f"pid {printable(holder.get('pid'))} on {printable(holder.get('host'))} is writing this atlas "
            f"({printable(holder.get('operation'))}: `{command}`) since {printable(holder.get('since'))}"
        )
    return Busy(what, code="ATLAS-BUSY", file=str(root), got=holder.get("pid"), fix="wait until it ends, or stop it")


class Pin:
    """A version held against gc by this process, until released or until the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the version go; a second call does nothing."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Pin":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def pin(root: Path, version: int) -> Pin | None:
    """Hold a version against gc; None in a folder that cannot be written.

    Raises NotFound when gc has already taken the version.
    """
    try:
        with pins_gate(root, fcntl.LOCK_SH), disk_errors(root):
            if not manifest_path(root, version).exists():
                raise version_gone(root, version)
            path = root / "cache" / "pins" / f"{os.getpid()}-v{version}-{uuid.uuid4().hex[:8]}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return Pin(path, descriptor)
    except StorageError as error:
        if error.exit_code == 77:
            return None
        raise


@contextmanager
def pins_gate(root: Path, mode: int) -> Iterator[None]:
    """Keep pinning (LOCK_SH) and gc's choice of versions (LOCK_EX) apart, so that neither misses the other."""
    with disk_errors(root):
        (root / "cache" / "pins").mkdir(parents=True, exist_ok=True)
        gate = os.open(root / "cache" / "pins" / "gate", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(gate, mode)
        yield
    finally:
        os.close(gate)


def pinned_versions(root: Path) -> set[int]:
    """The versions that living processes hold; pins of dead ones are removed. Call it inside the gate."""
    versions = set()
    for path in (root / "cache" / "pins").iterdir():
        match = _PIN.fullmatch(path.name)
        if match is None:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # released since the listing
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            versions.add(int(match[1]))
        finally:
            os.close(descriptor)
    return versions

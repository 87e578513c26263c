"""What must outlive a power cut: syncing, hashing, and the points at which tests kill the process."""

import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from chromseek.data.errors import StorageError, printable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO}
_calls = itertools.count(1)


def checkpoint(step: str) -> None:
    """Do nothing; under CHROMSEEK_CRASH_AT=n, die by SIGKILL at the n-th call, so that tests reach every step."""
    wanted = os.environ.get("CHROMSEEK_CRASH_AT")
    if wanted and next(_calls) == int(wanted):
        os.write(2, f"killed at {step}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn what the operating system says about the disk under `root` into StorageError; other errors pass.

    Raises StorageError: disk full, I/O error or folder gone (74), no permission to write (77).
    """
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(root)
        inside = Path(name).is_relative_to(root)
        reason = printable(error.strerror or error)
        if error.errno in _FULL:
            raise StorageError(
                f"the disk is full ({reason})",
                code="DISK-FULL",
                file=name,
                fix="free some space and run the same command again; the committed versions are untouched",
            ) from error
        if error.errno == errno.EROFS or (inside and error.errno in _REFUSED):
            raise StorageError(
                f"this atlas cannot be written ({reason})",
                code="DISK-READONLY",
                file=name,
                fix="ask for write permission, or copy the atlas to a place of your own; searching works as it is",
                exit_code=77,
            ) from error
        if error.errno == errno.EIO or (inside and error.errno in _GONE):
            raise StorageError(
                f"the disk failed or was taken away ({reason})",
                code="DISK-ERROR",
                file=name,
                fix="check the disk, then run the same command again; the committed versions are untouched",
            ) from error
        raise


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # there fsync stops at the drive's own cache
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a file that must not exist yet; nothing is left of it when that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        checkpoint("file-written")
        sync(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    checkpoint("file-synced")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder and all in it; what is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(path: Path) -> tuple[int, str]:
    """The size and sha256 of a regular file; a link or a pipe raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return status.st_size, hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Sequence[Path]) -> list[tuple[int, str]]:
    """`digest` of many files, a few at a time (hashing leaves the interpreter lock)."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, paths))

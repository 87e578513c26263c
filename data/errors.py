"""The errors that users see: one tree, each with its exit code and HTTP status.

ChromseekError                70 / 500   our fault
  BadArgument (ValueError)    64 / 422   the call is wrong: an option, a filter, a vector
  BadData     (ValueError)    65 / 422   the file is wrong: line, value and cure are named
  NotFound                    66 / 404   the file, atlas or id is not there
  StorageError                74 / 507   the disk refuses: full, gone, read-only (77), output exists (73)
  Busy                        75 / 503   somebody else is writing; try again
  TooNew                      76 / 500   written by a newer chromseek
"""

from typing import ClassVar


class ChromseekError(Exception):
    """What is wrong, where, the value that was got, and how to mend it.

    `message` says what is wrong with the value in it. `code` is stable and machine-readable, like
    `BED-ORDER`. `exit_code` and `status` belong to the class; a raise may narrow them.
    """

    exit_code: ClassVar[int] = 70
    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str,
        fix: str = "",
        file: str | None = None,
        line: int | None = None,
        got: object = None,
        exit_code: int | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.file = None if file is None else printable(file, 1024)
        self.line = line
        self.got = got
        self.fix = fix
        if exit_code is not None:
            self.exit_code = exit_code  # type: ignore[misc]
        if status is not None:
            self.status = status  # type: ignore[misc]

    def __str__(self) -> str:
        place = "" if self.file is None else f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        text = f"{place}{self.message}"
        return f"{text}. Fix: {self.fix}" if self.fix else text


class BadArgument(ChromseekError, ValueError):
    """The call itself is wrong."""

    exit_code = 64
    status = 422


class BadData(ChromseekError, ValueError):
    """A file holds what it must not."""

    exit_code = 65
    status = 422


class NotFound(ChromseekError):
    """A file, atlas, column or id is not there."""

    exit_code = 66
    status = 404


class StorageError(ChromseekError):
    """The disk refuses."""

    exit_code = 74
    status = 507


class Busy(ChromseekError):
    """Another process holds what is needed."""

    exit_code = 75
    status = 503


class TooNew(ChromseekError):
    """Written by a newer version than this one."""

    exit_code = 76
    status = 500


def printable(value: object, limit: int = 80) -> str:
    r"""Show foreign text safely: control characters escaped, long text cut.

    >>> printable("a\tb\x1b[2J")
    'a\\tb\\x1b[2J'
    """
    text = str(value)
    cut = text[:limit] + ("…" if len(text) > limit else "")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)

"""The command line: which commands there are, and the one place where errors become text and exit codes."""

import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from typer.main import get_command

from chromseek import __version__
from chromseek.data.errors import BadArgument, ChromseekError, StorageError, printable
from chromseek.service import commands_atlas, commands_build, commands_evaluate, commands_search  # noqa: F401
from chromseek.service.commands_encoder import encoder_app

_MANY = ("--cells", "--beds", "--labels")  # options that take all values up to the next option
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_INTERRUPTED = 130

app = typer.Typer(
    name="chromseek",
    help="The search engine for open chromatin: cells, regions and BED sets that are like yours, in a whole atlas.",
    epilog="Start with `chromseek demo`, and `chromseek build --help` for your own data.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chromseek {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _command, _examples in (
    (commands_build.build, commands_build.BUILD_EXAMPLES),
    (commands_build.add, commands_build.ADD_EXAMPLES),
    (commands_build.reencode, commands_build.REENCODE_EXAMPLES),
    (commands_build.delete, commands_build.DELETE_EXAMPLES),
    (commands_search.search, commands_search.SEARCH_EXAMPLES),
    (commands_search.annotate, commands_search.ANNOTATE_EXAMPLES),
    (commands_search.export, commands_search.EXPORT_EXAMPLES),
    (commands_atlas.info, commands_atlas.INFO_EXAMPLES),
    (commands_atlas.calibrate, commands_atlas.CALIBRATE_EXAMPLES),
    (commands_atlas.verify, commands_atlas.VERIFY_EXAMPLES),
    (commands_atlas.gc, commands_atlas.GC_EXAMPLES),
    (commands_atlas.serve, commands_atlas.SERVE_EXAMPLES),
    (commands_atlas.demo, commands_atlas.DEMO_EXAMPLES),
):
    app.command(epilog=_examples)(_command)
app.add_typer(encoder_app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no exception leaves it.

    0 ok, 64 usage, 65 bad data, 66 no input, 69 port taken, 70 our bug, 73 cannot create, 74 disk or memory, 75 busy,
    76 format too new, 77 no permission, 130 Ctrl-C.
    """
    args = spread(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings(), _interruptible():
            if not _debugging():
                warnings.simplefilter("ignore")
            code = _run(args or ["--help"])
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except KeyboardInterrupt as stop:
        typer.echo(": ".join(["stopped", *map(str, stop.args)]), err=True)
        return _INTERRUPTED
    except ChromseekError as error:
        return _failed(error)
    except BrokenPipeError:
        _abandon_stdout()
        return 0
    except OSError as error:
        return _failed(_of_the_disk(error) or _bug(error))
    except MemoryError:
        fix = "close other programs, ask for fewer neighbours or queries at a time, or use a larger machine"
        return _failed(StorageError("the memory does not suffice", code="MEMORY", fix=fix))
    except Exception as error:
        return _failed(_bug(error))


def spread(args: list[str]) -> list[str]:
    """Repeat an option before each of its values: `--cells a b` as `--cells a --cells b`.

    Only where the atlas was named first, since it would else be taken for a value.

    >>> spread(["build", "x", "--cells", "a", "b", "--seed", "1"])
    ['build', 'x', '--cells', 'a', '--cells', 'b', '--seed', '1']
    """
    if args[:1] not in (["build"], ["add"]) or args[1:2] == [] or args[1].startswith("-"):
        return args
    out, option = args[:2], ""
    for place, arg in enumerate(args[2:], 2):
        if arg.startswith("-"):
            option = arg if arg in _MANY else ""
        elif option and args[place - 1] != option:
            out.append(option)
        out.append(arg)
    return out


def _run(args: list[str]) -> int:
    """Parse and run. Raises BadArgument for a wrong command line."""
    command = get_command(app)
    try:
        with command.make_context("chromseek", args) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.TyperException as error:
        place = getattr(getattr(error, "ctx", None), "command_path", "chromseek")
        message = printable(error.format_message().replace("\n", " ").rstrip("."), 500)
        raise BadArgument(message, code="USAGE", fix=f"see {place} --help") from error
    return 0


def _failed(error: ChromseekError) -> int:
    typer.echo(f"error[{error.code}] {error}", err=True)
    if error.exit_code == ChromseekError.exit_code and _debugging():
        traceback.print_exception(error.__cause__ or error)
    return error.exit_code


def _bug(error: Exception) -> ChromseekError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    found = ChromseekError(
        f"{type(error).__name__}: {printable(error, 300)} ({os.path.basename(place.filename)} line {place.lineno}); "
        "this is a bug in chromseek",
        code="BUG",
        fix="report it with what CHROMSEEK_DEBUG=1 shows when you run the command again",
    )
    found.__cause__ = error
    return found


def _of_the_disk(error: OSError) -> ChromseekError | None:
    """An error of the operating system that is no bug of ours, as one of ours."""
    file = None if error.filename is None else os.fsdecode(error.filename)
    message = printable(error.strerror or error)
    if error.errno in _FULL:
        return StorageError(message, code="DISK-ERROR", file=file, fix="check the disk and the space on it")
    if error.errno in _REFUSED:
        return StorageError(message, code="DISK-RIGHTS", file=file, fix="check the permissions", exit_code=77)
    return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first Ctrl-C stop the command in good order, and a second one at once."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        typer.echo("stopping; Ctrl-C again stops at once", err=True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere: whoever read it has gone."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _debugging() -> bool:
    return os.environ.get("CHROMSEEK_DEBUG", "") not in ("", "0")


if __name__ == "__main__":
    sys.exit(main())

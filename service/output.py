"""What commands give back: text for a terminal, TSV for a pipe, JSON for programs, and files that appear whole."""

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from chromseek.data.errors import BadArgument, StorageError, printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from chromseek.search.hits import Hits

WIDEST = 40  # characters of one cell of a table on a terminal
LISTED = 20  # messages of one kind that are told one by one
_CHUNK = 4096  # rows of TSV written at a time
_NUMBER = re.compile(r"[-+\d.,e%?]*")


def say(text: str) -> None:
    """Write a line of the answer."""
    typer.echo(text)


def tell(text: str) -> None:
    """Write a line about the answer, to stderr, so that a pipe gets only the answer."""
    typer.echo(text, err=True)


def warn(messages: Iterable[str]) -> None:
    """Write warnings to stderr."""
    for message in messages:
        tell(f"warning: {message}")


@contextmanager
def if_stopped(left: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, let main say what is left of the command."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(left()) from stop


def say_json(value: Any) -> None:
    """Write a value as JSON; numbers that JSON does not know (NaN, infinity) become null."""
    say(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """A value as JSON knows it.

    >>> plain({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def say_table(columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length: aligned and cut to the width of a terminal, or whole as TSV to a pipe."""
    if sys.stdout is None or not sys.stdout.isatty():
        for text in tsv(columns):
            say(text)
        return
    lines, left_out = aligned(columns, shutil.get_terminal_size().columns)
    for line in lines:
        say(line)
    if left_out:
        tell(f"not shown: {', '.join(left_out)} (--json or -o FILE has all)")


def aligned(columns: Mapping[str, Sequence[Any]], width: int) -> tuple[list[str], list[str]]:
    """Lay columns side by side, at most `width` wide: the lines, and the names of those that found no room.

    >>> aligned({"n": [1, 20], "name": ["a", "b"]}, 80)[0]
    [' n  name', ' 1  a', '20  b']
    """
    laid: list[list[str]] = []
    room, left_out = width, []
    for name, values in columns.items():
        texts = [printable(name, WIDEST), *(shown(value) for value in values)]
        number = all(_NUMBER.fullmatch(text) for text in texts[1:])
        longest = max(len(text) for text in texts)
        if laid and longest + 2 > room:
            left_out.append(printable(name, WIDEST))
            continue
        if longest > room:
            texts = [text if len(text) <= room else f"{text[: max(0, room - 1)]}…" for text in texts]
            longest = room
        laid.append([text.rjust(longest) if number else text.ljust(longest) for text in texts])
        room -= longest + 2
    return ["  ".join(row).rstrip() for row in zip(*laid, strict=True)], left_out


def shown(value: Any) -> str:
    """One value for a person: numbers rounded to four digits, foreign text made safe and cut.

    >>> shown(0.123456), shown(123456.7), shown(None), shown("a\\tb")
    ('0.1235', '123457', '', 'a\\\\tb')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return printable(value, WIDEST)


def tsv(columns: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Columns as tab-separated text, some thousand lines at a time; tabs and control characters are escaped."""
    yield "\t".join(_cell(name) for name in columns)
    values = list(columns.values())
    n_rows = len(values[0]) if values else 0
    for start in range(0, n_rows, _CHUNK):
        rows = zip(*(column[start : start + _CHUNK] for column in values), strict=True)
        yield "\n".join("\t".join(_cell(value) for value in row) for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    text = shown(value) if isinstance(value, bool) else str(value)
    return text if text.isprintable() else printable(text, len(text))


def size_text(n_bytes: float) -> str:
    """A size for a person.

    >>> size_text(999), size_text(1_234_567)
    ('999 bytes', '1.2 MB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} bytes"


def time_text(seconds: float) -> str:
    """A time for a person.

    >>> time_text(0.0123), time_text(75), time_text(9000)
    ('12 ms', '75 s', '2.5 h')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a draft to write to, which becomes `path` at the end of the block, or nothing does.

    Raises StorageError when the place cannot be written.
    """
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write: {printable(error.strerror or error)}",
            code="OUTPUT-WRITE",
            file=str(path),
            fix="check the folder, its permissions and the space on the disk",
            exit_code=73,
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def check_output(path: Path | None, kinds: Iterable[str], *, overwrite: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises BadArgument for a suffix that is not among `kinds`, StorageError (73) when it exists or has no folder.
    """
    if path is None:
        return
    kinds = tuple(kinds)
    if kinds and not path.name.endswith(kinds):
        raise BadArgument(
            f"cannot write {printable(path.name)}",
            code="OUTPUT-KIND",
            got=path.suffix,
            fix=f"end the name in {', '.join(kinds)}",
        )
    what, fix = "", ""
    if path.is_dir():
        what, fix = "this is a folder", "name a file in it"
    elif os.path.lexists(path) and not overwrite:
        what, fix = "there is such a file already", "choose another name, or pass --overwrite"
    elif not path.parent.is_dir():
        what, fix = "the folder does not exist", f"make it first: mkdir -p {printable(path.parent, 200)}"
    if what:
        code = "OUTPUT-EXISTS" if os.path.lexists(path) else "OUTPUT-FOLDER"
        raise StorageError(what, code=code, file=str(path), fix=fix, exit_code=73, status=409)


def write_json(value: Any, path: Path) -> None:
    """Write a value as a JSON file."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_hits(hits: "Hits", path: Path) -> None:
    """Write hits in the format that the name asks for; the receipt goes into Parquet and h5ad."""
    with whole_file(path) as draft:
        if path.name.endswith((".bed", ".bed.gz")):
            hits.to_bed(draft)
        elif path.name.endswith(".h5ad"):
            hits.to_anndata().write_h5ad(draft)
        elif path.name.endswith(".parquet"):
            write_parquet(hits.to_arrow(), draft, hits.receipt)
        else:
            write_text(hits.to_pandas(), draft)


def write_parquet(table: "pa.Table", path: Path, receipt: Mapping[str, Any]) -> None:
    """Write a table with its receipt as Parquet."""
    import pyarrow.parquet as pq

    kept = {**(table.schema.metadata or {}), "chromseek": json.dumps(plain(receipt))}
    pq.write_table(table.replace_schema_metadata(kept), path, compression="zstd")


def write_text(frame: "pd.DataFrame", path: Path) -> None:
    """Write a frame as TSV or CSV, by the suffix."""
    frame.to_csv(path, sep="," if path.name.endswith(".csv") else "\t", index=False)


def write_cells(adata: Any, path: Path) -> None:
    """Write an annotated AnnData: whole as h5ad, else its obs with the cells' names in a first column `cell`."""
    with whole_file(path) as draft:
        if path.name.endswith(".h5ad"):
            adata.write_h5ad(draft)
            return
        import pyarrow as pa

        obs = adata.obs.copy()
        obs.insert(0, "cell" if "cell" not in obs.columns else "obs_name", adata.obs_names)
        if path.name.endswith(".parquet"):
            table = pa.Table.from_pandas(obs, preserve_index=False)
            write_parquet(table, draft, json.loads(adata.uns["chromseek"]["receipt"]))
        else:
            write_text(obs, draft)


TABLES = (".parquet", ".tsv", ".csv", ".h5ad")
HITS = (*TABLES, ".bed", ".bed.gz")

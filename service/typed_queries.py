"""Queries as people type them: files, regions in a row, stored rows, BED on standard input."""

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from chromseek.data.errors import BadArgument, BadData, ChromseekError
from chromseek.data.regions import is_region_text

if TYPE_CHECKING:
    from chromseek.data.sources import ReadOptions
    from chromseek.search.collection import Collection
    from chromseek.search.query import Question

_BETWEEN = re.compile(r",\s*(?=[^\s,:]+:)")  # the comma in chr1:1,000-2,000 is none of these
_LIMIT = 2 << 30  # bytes of standard input


def as_query(text: str) -> str | list[str]:
    """One region, several in a row as a list, or the text as it is.

    >>> as_query("chr1:1,000-2,000,chr2:5-9"), as_query("peaks.bed"), as_query("cells:1,2")
    (['chr1:1,000-2,000', 'chr2:5-9'], 'peaks.bed', 'cells:1,2')
    """
    parts = _BETWEEN.split(text.strip())
    return parts if len(parts) > 1 and all(is_region_text(part) for part in parts) else text


def resolved(collection: "Collection", texts: Sequence[str], read: "ReadOptions") -> "Question":
    """The question that the arguments of a command ask of a collection."""
    if "-" not in texts:
        queries: list[Any] = [part for text in texts for part in listed(as_query(text))]
        return collection.resolve(queries[0] if len(queries) == 1 else queries, read)
    if len(texts) > 1:
        raise BadArgument("standard input (-) comes with other queries", code="QUERY-STDIN", fix="give - alone")
    with standard_input() as path:
        question = collection.resolve(path, read)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(question, described={"stdin": f"sha256:{digest}"})


def listed(query: str | list[str]) -> list[str]:
    """A list of one or more."""
    return query if isinstance(query, list) else [query]


@contextmanager
def standard_input() -> Iterator[Path]:
    """Standard input as a file, which is removed at the end; errors call it stdin.

    Raises BadArgument when a person would have to type it, BadData when it is too long.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise BadArgument("nothing comes on standard input", code="QUERY-STDIN", fix="cat x.bed | chromseek search …")
    with TemporaryDirectory(prefix="chromseek-") as folder:
        path = Path(folder) / "stdin.bed"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        if path.stat().st_size > _LIMIT:
            raise BadData("more than 2 GiB", code="QUERY-STDIN", file="stdin", fix="give a file")
        try:
            yield path
        except ChromseekError as error:
            if error.file == str(path):
                error.file = "stdin"
            raise

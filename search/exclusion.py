"""exclude_same: which rows a query must not find, because they share its donor, its dataset, or another value."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, printable
from chromseek.indexer.filter_tree import And, Filter, In, IsNull, Not, Or, Value

Held = tuple[frozenset[Value], ...]  # what one query holds in each column; nothing where it is null


def held_values(frame: pd.DataFrame | None, columns: Sequence[str], known: Sequence[str]) -> list[Held]:
    """What each query holds in some columns, (q); `frame` is the queries' metadata, `known` the atlas's columns.

    Raises BadArgument for a column that the queries or the atlas lack.
    """
    there = [] if frame is None else [str(name) for name in frame.columns]
    missing = [column for column in columns if column not in there or column not in known]
    if missing or not columns:
        raise BadArgument(
            f"exclude_same: the query, or the atlas, has no column {printable(missing[0] if missing else '')}",
            code="EXCLUDE-COLUMN",
            got=printable(missing),
            fix=f"the query has {', '.join(there[:8]) or 'no metadata'}",
        )
    assert frame is not None
    values = [[_set_of(value) for value in frame[column]] for column in columns]
    return list(zip(*values, strict=True))


def together(held: Sequence[Held]) -> list[Held]:
    """What several queries hold when they are asked as one: all of their values."""
    return [tuple(frozenset().union(*column) for column in zip(*held, strict=True))]


def groups(
    held: Sequence[Held], columns: Sequence[str], tree: Filter | None
) -> Iterator[tuple[NDArray[np.int64], Filter | None]]:
    """Queries that share a row set: their numbers, and the filter with what they hold struck out.

    A row without a value in a column is not the query's own there, and stays.
    """
    members: dict[Held, list[int]] = {}
    for place, key in enumerate(held):
        members.setdefault(key, []).append(place)
    for key, places in members.items():
        others = [
            Or((Not(In(column, tuple(sorted(values, key=repr)))), IsNull(column)))
            for column, values in zip(columns, key, strict=True)
            if values
        ]
        parts = (*others, *([] if tree is None else [tree]))
        yield np.array(places), And(parts) if parts else None


def _set_of(value: Any) -> frozenset[Value]:
    if pd.isna(value):
        return frozenset()
    plain: Any = value.item() if isinstance(value, np.generic) else value
    return frozenset([plain])

"""Filters over metadata: the tree, its limits, its canonical and its serial form.

Filters come as text or JSON (search/filters.py) and end as SQL (filter_sql.py). The serial form is JSON:
{"and": [{"col": "age", "op": "gt", "value": 5}, …]}. Null is SQL's: a comparison with null is neither true nor false,
and only rows for which the whole filter is true match.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chromseek.data.errors import BadArgument, printable

MAX_NODES = 200
MAX_DEPTH = 50
MAX_VALUES = 1_000  # of one `in`
MAX_ALL_VALUES = 10_000  # of all of them: a full `in` costs as much as a dozen comparisons
MAX_TEXT = 10_000  # characters of one value or column name
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and half a surrogate pair, which no encoding can write

Value = str | int | float | bool
Op = Literal["eq", "ne", "lt", "le", "gt", "ge"]


@dataclass(frozen=True, slots=True)
class And:
    """All of the items."""

    items: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """Any of the items."""

    items: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; what is unknown stays unknown."""

    item: "Filter"


@dataclass(frozen=True, slots=True)
class Compare:
    """A column against one value."""

    column: str
    op: Op
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """A column equals one of the values."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    """A column has no value; the only filter that is never unknown."""

    column: str


@dataclass(frozen=True, slots=True)
class Between:
    """A column lies between two values, both included."""

    column: str
    low: Value
    high: Value


@dataclass(frozen=True, slots=True)
class Prefix:
    """A text column starts with a text."""

    column: str
    text: str


Filter = And | Or | Not | Compare | In | IsNull | Between | Prefix
SIGNS: dict[Op, str] = {"eq": "=", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def canonical(tree: Filter) -> Filter:
    """Write a filter in the one form that all equal ways to write it share.

    And and Or are flat, sorted and free of repeats, values of In are too, 5.0 is 5, NOT NOT is nothing.
    Raises BadArgument for a filter past the limits or with a value that is none.

    >>> canonical(And((Compare("b", "eq", 5.0), And((Compare("a", "eq", 1), In("b", (5,)))))))
    And(items=(Compare(column='a', op='eq', value=1), Compare(column='b', op='eq', value=5)))
    """
    measure(tree)
    return _canonical(tree)


def measure(tree: object) -> None:
    """Raise BadArgument when a tree is too large or deep, or holds what is not a filter, a name or a value."""
    stack = [(tree, 1)]
    n_nodes = n_values = 0
    while stack:
        node, depth = stack.pop()
        n_nodes += 1
        if depth > MAX_DEPTH:
            raise too_deep()
        if n_nodes > MAX_NODES:
            raise too_large()
        match node:
            case And(tuple() | list() as items) | Or(tuple() | list() as items):
                if not items:
                    raise BadArgument("AND or OR of nothing", code="FILTER-EMPTY", fix="give it one condition or more")
                stack.extend((item, depth + 1) for item in items)
            case Not(item):
                stack.append((item, depth + 1))
            case _:
                n_values += _measure_leaf(node)
        if n_values > MAX_ALL_VALUES:
            raise BadArgument(
                f"all conditions together hold more than {MAX_ALL_VALUES} values",
                code="FILTER-MANY",
                fix="filter by a column that groups these values",
            )


def _measure_leaf(node: object) -> int:
    """Check names and values of one condition; count the values."""
    column: object
    values: Sequence[object]
    match node:
        case Compare(column, str() as op, value) if op in SIGNS:
            values = (value,)
        case Between(column, low, high):
            values = (low, high)
        case Prefix(column, str() as text):
            values = (text,)
        case IsNull(column):
            values = ()
        case In(column, tuple() | list() as values):
            if not 0 < len(values) <= MAX_VALUES:
                raise too_many_values(column, len(values))
        case _:
            raise BadArgument(
                f"not a filter: a {type(node).__name__}, or one with parts of the wrong kind",
                code="FILTER-FORM",
                fix="build it with parse or from_json",
            )
    if not isinstance(column, str):
        raise BadArgument(
            f"a column name must be text, not {type(column).__name__}", code="FILTER-COLUMN", fix="name the column"
        )
    for value in (column, *values):
        _measure_value(column, value)
    return len(values)


def _measure_value(column: str, value: object) -> None:
    if value is None:
        raise BadArgument(f"null {_on(column)}", code="FILTER-NULL", fix="ask for IS NULL (JSON: op is_null)")
    if isinstance(value, str):
        if len(value) > MAX_TEXT or _NO_TEXT.search(value):
            raise BadArgument(
                f"text {printable(value, 40)} {_on(column)} is longer than {MAX_TEXT} characters or holds a character "
                "that is none (NUL, half a surrogate pair)",
                code="FILTER-TEXT",
                got=printable(value),
                fix="give plain Unicode text",
            )
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise no_number(f"of {value.bit_length()} bits", _on(column))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise no_number(f"{value}, which is not finite,", _on(column))
    else:
        raise BadArgument(
            f"a value of type {type(value).__name__} {_on(column)}: it is no text, number, true or false",
            code="FILTER-VALUE",
            got=type(value).__name__,
            fix="give a plain value",
        )


def _on(column: str) -> str:
    return f"in the filter on {printable(column)}"


def _canonical(tree: Filter) -> Filter:
    match tree:
        case And(items) | Or(items):
            kind = type(tree)
            flat = [
                part for item in map(_canonical, items) for part in (item.items if isinstance(item, kind) else (item,))
            ]
            unique = {_text_of(item): item for item in flat}
            ordered = tuple(unique[text] for text in sorted(unique))
            return ordered[0] if len(ordered) == 1 else kind(ordered)
        case Not(item):
            inner = _canonical(item)
            return inner.item if isinstance(inner, Not) else Not(inner)
        case Compare(column, op, value):
            return Compare(column, op, _plain(value))
        case Between(column, low, high):
            return Between(column, _plain(low), _plain(high))
        case In(column, values):
            kept = {json.dumps(value): value for value in map(_plain, values)}  # by text, since True == 1
            ordered_values = tuple(sorted(kept.values(), key=lambda v: (isinstance(v, str), isinstance(v, bool), v)))
            return In(column, ordered_values) if len(kept) > 1 else Compare(column, "eq", ordered_values[0])
        case _:
            return tree


def _plain(value: Value) -> Value:
    fits = isinstance(value, float) and value.is_integer() and -(2.0**63) <= value < 2.0**63
    return int(value) if fits else value


def too_deep() -> BadArgument:
    """Say that a filter nests too deep."""
    return BadArgument(
        f"a filter nests deeper than {MAX_DEPTH}", code="FILTER-DEPTH", fix="drop parentheses that change nothing"
    )


def too_large() -> BadArgument:
    """Say that a filter has too many conditions."""
    return BadArgument(
        f"a filter has more than {MAX_NODES} conditions",
        code="FILTER-SIZE",
        fix="put many values of one column into one IN",
    )


def too_long(n: int, limit: int) -> BadArgument:
    """Say that a filter has too many characters."""
    return BadArgument(
        f"the filter has {n} characters, more than {limit}",
        code="FILTER-LONG",
        got=n,
        fix="put values into one IN; the JSON form takes more than the text form",
    )


def too_many_values(column: object, n: int) -> BadArgument:
    """Say that one `in` has no value, or more than it may."""
    return BadArgument(
        f"IN of {printable(column, 40)} has {n} values, not 1..{MAX_VALUES}",
        code="FILTER-MANY",
        got=n,
        fix="filter by a column that groups these values",
    )


def no_number(what: str, where: str) -> BadArgument:
    """Say that a number is past what a column can hold."""
    return BadArgument(f"number {what} {where}", code="FILTER-NUMBER", fix="give a finite number that fits 64 bits")


def read_number(text: str, where: str) -> int | float:
    """Read a number in decimal or scientific form. Raises BadArgument, with `where`, for one past 64 bits."""
    if re.fullmatch("[+-]?[0-9]+", text):
        if len(text) > 30:  # int() takes quadratic time, and past 64 bits nothing counts
            raise no_number(f"{printable(text, 20)} of {len(text)} digits", where)
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise no_number(f"{printable(text, 20)}, which is not finite,", where)
    return value


def to_json(tree: Filter) -> dict[str, Any]:
    """The serial form of a filter: canonical, plain dicts and lists."""
    return _to_json(canonical(tree))


def cache_key(tree: Filter) -> str:
    """The serial form as compact text; filters that differ only in how they are written share it.

    >>> cache_key(And((Compare("b", "gt", 5), In("a", ("y", "x")))))
    '{"and":[{"col":"a","op":"in","value":["x","y"]},{"col":"b","op":"gt","value":5}]}'
    """
    return _text_of(canonical(tree))


def _text_of(tree: Filter) -> str:
    return json.dumps(_to_json(tree), separators=(",", ":"), ensure_ascii=False)


def _to_json(tree: Filter) -> dict[str, Any]:
    match tree:
        case And(items):
            return {"and": [_to_json(item) for item in items]}
        case Or(items):
            return {"or": [_to_json(item) for item in items]}
        case Not(item):
            return {"not": _to_json(item)}
        case Compare(column, op, value):
            return {"col": column, "op": op, "value": value}
        case In(column, values):
            return {"col": column, "op": "in", "value": list(values)}
        case IsNull(column):
            return {"col": column, "op": "is_null"}
        case Between(column, low, high):
            return {"col": column, "op": "between", "value": [low, high]}
        case Prefix(column, text):
            return {"col": column, "op": "prefix", "value": text}

"""Filters on their way into DuckDB: checked against a schema, then written as a condition with parameters.

A filter is made of what users write, so nothing of it gets into SQL as text: a column becomes `c` and its position
in the schema, a value becomes a parameter with its exact type.
"""

import difflib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from chromseek.data.errors import BadArgument, printable
from chromseek.indexer.filter_tree import (
    SIGNS,
    And,
    Between,
    Compare,
    Filter,
    In,
    IsNull,
    Not,
    Or,
    Prefix,
    Value,
    canonical,
    no_number,
)

Kind = Literal["text", "bool", "int", "float", "time"]
_KIND_WORDS: dict[Kind | None, tuple[str, str]] = {  # what the column holds, what to compare it with
    "text": ("text", "compare it with text; in a text filter that goes in single quotes, 'like this'"),
    "bool": ("true or false", "compare it with true or false, for = and != only"),
    "int": ("whole numbers", "compare it with a number, without quotes"),
    "float": ("numbers", "compare it with a number, without quotes"),
    "time": ("times", "compare it with an ISO time as text, '2024-05-31' or '2024-05-31T12:00:00'"),
    None: ("values of a kind that filters do not know", "filter by another column"),
}


def check(tree: Filter, schema: pa.Schema) -> Filter:
    """Check a filter against the columns it is meant for; the canonical form of it, values coerced to the columns.

    Raises BadArgument for an unknown column (naming the three nearest) and for a value that a column cannot hold.
    """
    return canonical(_check(canonical(tree), schema))


def _check(tree: Filter, schema: pa.Schema) -> Filter:
    match tree:
        case And(items) | Or(items):
            return type(tree)(tuple(_check(item, schema) for item in items))
        case Not(item):
            return Not(_check(item, schema))
    kind = column_kind(schema.field(_position(tree.column, schema)).type)
    match tree:
        case Compare(column, op, value):
            if kind == "bool" and op not in ("eq", "ne"):
                raise _wrong_type(column, kind, value)
            return replace(tree, value=_coerce(column, kind, value))
        case In(column, values):
            return In(column, tuple(_coerce(column, kind, value) for value in values))
        case Between(column, low, high):
            if kind == "bool":
                raise _wrong_type(column, kind, low)
            return Between(column, _coerce(column, kind, low), _coerce(column, kind, high))
        case Prefix(column, text):
            if kind != "text":
                raise _wrong_type(column, kind, text)
            return tree
        case _:
            return tree if kind else _refuse_kind(tree.column)


def column_kind(kind: pa.DataType) -> Kind | None:
    """How filters see an Arrow type; None for one that they cannot compare."""
    if pa.types.is_dictionary(kind):
        return column_kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    return "time" if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else None


def _position(column: str, schema: pa.Schema) -> int:
    position: int = schema.get_field_index(column)
    if position < 0:
        near = difflib.get_close_matches(column[:100], schema.names, n=3, cutoff=0.0)
        raise BadArgument(
            f"no column {printable(column)}",
            code="FILTER-COLUMN",
            got=printable(column),
            fix=f"nearest are {', '.join(map(printable, near))}" if near else "there are no columns to filter by",
        )
    return position


def _coerce(column: str, kind: Kind | None, value: Value) -> Value:
    match kind:
        case "text" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int" | "float" if isinstance(value, int | float) and not isinstance(value, bool):
            if kind == "int" and isinstance(value, float) and value.is_integer():  # one of 64 bits is an int by now
                raise no_number(f"{value}, past 64 bits,", f"in the filter on {printable(column)}")
            return value
        case "time" if isinstance(value, str):
            return _iso(column, value)
    raise _wrong_type(column, kind, value)


def _iso(column: str, text: str) -> str:
    """An ISO time, with or without zone, as UTC without zone to the microsecond."""
    try:
        time = datetime.fromisoformat(text)
        time = time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise _wrong_type(column, "time", text) from error
    return time.isoformat()


def _wrong_type(column: str, kind: Kind | None, value: Value) -> BadArgument:
    holds, fix = _KIND_WORDS[kind]
    shown = f"the text {printable(repr(value))}" if isinstance(value, str) else json.dumps(value)
    return BadArgument(
        f"column {printable(column)} holds {holds}; it cannot be compared so with {shown}",
        code="FILTER-TYPE",
        got=value,
        fix=fix,
    )


def _refuse_kind(column: str) -> Filter:
    holds, fix = _KIND_WORDS[None]
    raise BadArgument(f"column {printable(column)} holds {holds}", code="FILTER-TYPE", got=column, fix=fix)


def to_sql(tree: Filter, schema: pa.Schema) -> tuple[str, list[Any]]:
    """Check a filter and write it as a DuckDB condition over the columns `c0`, `c1`.. of a schema, and its parameters.

    >>> to_sql(Compare("age", "gt", 30), pa.schema([("id", pa.int64()), ("age", pa.float64())]))
    ('c1 > CAST(? AS DOUBLE)', [30.0])
    """
    parameters: list[Any] = []
    return _sql(check(tree, schema), schema, parameters.append), parameters


def _sql(tree: Filter, schema: pa.Schema, bind: Callable[[Any], None]) -> str:
    match tree:
        case And(items):
            return f"({' AND '.join(_sql(item, schema, bind) for item in items)})"
        case Or(items):
            return f"({' OR '.join(_sql(item, schema, bind) for item in items)})"
        case Not(item):
            return f"(NOT {_sql(item, schema, bind)})"
    position = _position(tree.column, schema)
    kind = schema.field(position).type
    match tree:
        case IsNull():
            return f"c{position} IS NULL"
        case Prefix(_, text):
            bind(text)
            return f"starts_with(c{position}, CAST(? AS VARCHAR))"
        case Compare(_, op, value):
            return f"c{position} {SIGNS[op]} {_parameter(kind, (value,), bind)}"
        case Between(_, low, high):  # one by one, since the common type of 1.5 and 2**60 would round
            low_sql, high_sql = _parameter(kind, (low,), bind), _parameter(kind, (high,), bind)
            return f"(c{position} >= {low_sql} AND c{position} <= {high_sql})"
        case In(_, values):
            return f"c{position} = ANY({_parameter(kind, values, bind, many=True)})"


def _parameter(kind: pa.DataType, values: tuple[Value, ...], bind: Callable[[Any], None], many: bool = False) -> str:
    """Bind one value, or many as one list; the SQL that stands for it, with its exact type."""
    sql_type, bound = _typed(kind, values)
    bind(bound if many else bound[0])
    return f"CAST(? AS {sql_type}{'[]' if many else ''})"


def _typed(kind: pa.DataType, values: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """The SQL type in which values meet a column without rounding either, and the values in it."""
    match column_kind(kind):
        case "text":
            return "VARCHAR", list(values)
        case "bool":
            return "BOOLEAN", list(values)
        case "time":
            return "TIMESTAMP", [datetime.fromisoformat(value) for value in values]
        case "int":  # a fraction equals no whole number; alone it is compared as DOUBLE, exact below 2**53
            whole = [value for value in values if isinstance(value, int)]
            return ("BIGINT", whole) if whole else ("DOUBLE", list(values))
    narrow = pa.types.is_float32(kind)  # values are rounded as the column's are, so that 0.1 finds 0.1
    return "DOUBLE", [float(np.float32(value) if narrow and abs(value) < 3.4e38 else value) for value in values]

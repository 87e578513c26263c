"""Filters as people and programs write them: text and JSON, both read into the tree of indexer/filter_tree.py.

The text form looks like SQL's WHERE and is read by the small grammar below; none of it reaches a database as text.

    filter  =  all {OR all}          all  =  one {AND one}          one  =  NOT one | ( filter ) | test
    test    =  column (= == != <> < <= > >=) value
            |  column [NOT] IN ( value, … )    |  column [NOT] BETWEEN value AND value
            |  column [NOT] LIKE 'start%'      |  column IS [NOT] NULL

A column is a bare name (letters, digits, _ and .) or stands in "double quotes"; text stands in 'single quotes'; a
quote inside is written twice.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NoReturn

from chromseek.data.errors import BadArgument, printable
from chromseek.indexer.filter_sql import check, to_sql
from chromseek.indexer.filter_tree import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_VALUES,
    SIGNS,
    And,
    Between,
    Compare,
    Filter,
    In,
    IsNull,
    Not,
    Op,
    Or,
    Prefix,
    Value,
    cache_key,
    canonical,
    no_number,
    read_number,
    to_json,
    too_deep,
    too_large,
    too_long,
    too_many_values,
)

__all__ = [
    "Filter",
    "cache_key",
    "canonical",
    "check",
    "from_json",
    "parse",
    "to_json",
    "to_sql",
    "to_text",
]

MAX_CHARS = 10_000  # of a text filter
MAX_JSON = 2_000_000

_TOKEN = re.compile(  # quotes are possessive: a closing one is never found by giving an escaped one up
    r"""\s*+(?:
        (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])
      | (?P<word>[^\W\d][\w.]*)
      | (?P<text>'(?:[^']|'')*+')
      | (?P<column>"(?:[^"]|"")*+")
      | (?P<sign>==|!=|<>|<=|>=|[=<>(),])
      | (?P<end>\Z) )""",
    re.VERBOSE,
)
_WORDS = frozenset(["AND", "OR", "NOT", "IN", "IS", "NULL", "BETWEEN", "LIKE", "TRUE", "FALSE"])
_OPS: dict[str, Op] = {**{sign: op for op, sign in SIGNS.items()}, "==": "eq", "<>": "ne"}
_LIKE = re.compile(r"((?:[^%\\]|\\[%_\\])*+)%", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, column, text, sign, end, or the keyword itself
    text: str  # without quotes
    at: int  # position of its first character, from 1


def parse(text: str) -> Filter:
    """Read the text form of a filter; the tree is canonical.

    Raises BadArgument that names what was found, what was expected, and where.

    >>> parse("n_tokens > 1e3 and cell_type in ('T', 'B')")
    And(items=(In(column='cell_type', values=('B', 'T')), Compare(column='n_tokens', op='gt', value=1000)))
    """
    if not isinstance(text, str):
        raise BadArgument("a filter in text form must be text", code="FILTER-FORM", fix="write age > 5")
    if len(text) > MAX_CHARS:
        raise too_long(len(text), MAX_CHARS)
    reader = _Reader(_tokens(text))
    tree = reader.any_of(1)
    if reader.here.kind != "end":
        reader.refuse("AND, OR or the end")
    return canonical(tree)


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            _refuse_character(text, at + len(text[at:]) - len(text[at:].lstrip()))
        kind, found, start = str(match.lastgroup), match[str(match.lastgroup)], match.start(str(match.lastgroup)) + 1
        if kind in ("text", "column"):
            found = found[1:-1].replace(found[0] * 2, found[0])
        elif kind == "word":
            kind = found.upper() if found.isascii() and found.upper() in _WORDS else "column"
        yield _Token(kind, found, start)
        if kind == "end":
            return
        at = match.end()


def _refuse_character(text: str, at: int) -> NoReturn:
    if text[at] in "'\"":
        raise BadArgument(
            f"the quote at position {at + 1} is never closed: {printable(text[at:], 30)}",
            code="FILTER-QUOTE",
            got=printable(text[at:], 30),
            fix="close it; a quote inside is written twice",
        )
    raise BadArgument(
        f"no filter can hold what stands at position {at + 1}: {printable(text[at:], 30)}",
        code="FILTER-SYNTAX",
        got=printable(text[at:], 30),
        fix='text goes in single quotes, an unusual column name in "double quotes"',
    )


class _Reader:
    """Reads tokens from left to right, no further than the first that is wrong; one method per line of the grammar."""

    def __init__(self, tokens: Iterator[_Token]) -> None:
        self._tokens = tokens
        self.here = next(tokens)
        self._n_tests = 0

    def refuse(self, wanted: str, fix: str = "") -> NoReturn:
        here = self.here
        found = "the filter ends" if here.kind == "end" else f"found {printable(here.text, 40) or 'an empty name'}"
        raise BadArgument(
            f"expected {wanted} at position {here.at}, {found}",
            code="FILTER-SYNTAX",
            got=printable(here.text),
            fix=fix or "write it like: tissue = 'blood' AND n_fragments > 1000",
        )

    def _take(self, *kinds: str) -> _Token | None:
        """The next token and a step on, when it is of one of these kinds or signs."""
        here = self.here
        if here.kind not in kinds and not (here.kind == "sign" and here.text in kinds):
            return None
        self.here = next(self._tokens, here)
        return here

    def _need(self, kind: str) -> _Token:
        return self._take(kind) or self.refuse(kind)

    def any_of(self, depth: int) -> Filter:
        items = [self._all_of(depth)]
        while self._take("OR"):
            items.append(self._all_of(depth))
        return Or(tuple(items)) if len(items) > 1 else items[0]

    def _all_of(self, depth: int) -> Filter:
        items = [self._one(depth)]
        while self._take("AND"):
            items.append(self._one(depth))
        return And(tuple(items)) if len(items) > 1 else items[0]

    def _one(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise too_deep()
        if self._take("NOT"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inside = self.any_of(depth + 1)
            self._need(")")
            return inside
        return self._test()

    def _test(self) -> Filter:
        self._n_tests += 1
        if self._n_tests > MAX_NODES:
            raise too_large()
        column = self._take("column")
        if column is None:
            self.refuse("a column name, NOT or (", "the column comes first: age > 5")
        if self._take("IS"):
            opposite = self._take("NOT")
            self._need("NULL")
            return Not(IsNull(column.text)) if opposite else IsNull(column.text)
        opposite = self._take("NOT")
        test = self._set_test(column.text)
        if test is not None:
            return Not(test) if opposite else test
        sign = None if opposite else self._take(*_OPS)
        if sign is None:
            wanted = "IN, BETWEEN or LIKE" if opposite else "a comparison (= != < <= > >= IN BETWEEN LIKE IS)"
            self.refuse(f"{wanted} after {printable(column.text)}")
        return Compare(column.text, _OPS[sign.text], self._value())

    def _set_test(self, column: str) -> Filter | None:
        if self._take("IN"):
            self._need("(")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
                if len(values) > MAX_VALUES:
                    raise too_many_values(column, len(values))
            self._need(")")
            return In(column, tuple(values))
        if self._take("BETWEEN"):
            low = self._value()
            self._need("AND")
            return Between(column, low, self._value())
        if self._take("LIKE"):
            pattern = self._take("text") or self.refuse("a pattern in single quotes")
            start = _LIKE.fullmatch(pattern.text)
            if start is None:
                raise BadArgument(
                    f"LIKE at position {pattern.at} knows no pattern but a start: {printable(pattern.text)}",
                    code="FILTER-LIKE",
                    got=printable(pattern.text),
                    fix=r"write 'start%', with \% for a percent sign that is meant; use = for a whole value",
                )
            return Prefix(column, re.sub(r"\\(.)", r"\1", start[1], flags=re.DOTALL))
        return None

    def _value(self) -> Value:
        token = self._take("text", "number", "TRUE", "FALSE")
        if token is None:
            here = self.here
            if here.kind == "NULL":
                raise BadArgument(
                    f"nothing equals NULL (position {here.at})", code="FILTER-NULL", fix="write column IS NULL"
                )
            hint = f"text goes in single quotes: '{printable(here.text)}'" if here.kind == "column" else ""
            self.refuse("a value", hint)
        if token.kind == "text":
            return token.text
        if token.kind == "number":
            return read_number(token.text, f"at position {token.at}")
        return token.kind == "TRUE"


def to_text(tree: Filter) -> str:
    """Write a filter in its text form, canonical; `parse` reads it back, up to the length that it takes.

    >>> print(to_text(parse("b.c > 1.50 and not (a is null or x like 'y%')")))
    b.c > 1.5 AND NOT (a IS NULL OR x LIKE 'y%')
    """
    return _write(canonical(tree))


def _write(tree: Filter) -> str:
    match tree:
        case And(items) | Or(items):
            word = " AND " if isinstance(tree, And) else " OR "
            return word.join(f"({_write(item)})" if isinstance(item, And | Or) else _write(item) for item in items)
        case Not(item):
            match item:
                case And() | Or():
                    return f"NOT ({_write(item)})"
                case Compare():
                    return f"NOT {_write(item)}"
            return _write_test(item, "NOT ")
    return _write_test(tree, "")


def _write_test(tree: Filter, opposite: str) -> str:
    match tree:
        case Compare(column, op, value):
            return f"{_name(column)} {SIGNS[op]} {_literal(value)}"
        case In(column, values):
            return f"{_name(column)} {opposite}IN ({', '.join(map(_literal, values))})"
        case IsNull(column):
            return f"{_name(column)} IS {opposite}NULL"
        case Between(column, low, high):
            return f"{_name(column)} {opposite}BETWEEN {_literal(low)} AND {_literal(high)}"
        case Prefix(column, text):
            escaped = re.sub(r"([\\%])", r"\\\1", text)
            return f"{_name(column)} {opposite}LIKE {_literal(escaped + '%')}"
        case _:
            raise AssertionError(tree)


def _name(column: str) -> str:
    bare = re.fullmatch(r"[^\W\d][\w.]*", column) and column.upper() not in _WORDS
    return column if bare else '"' + column.replace('"', '""') + '"'


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).upper() if isinstance(value, bool) else repr(value)


def from_json(source: object) -> Filter:
    """Read the JSON form of a filter, as text or already decoded; the tree is canonical.

    Raises BadArgument for what is no JSON (repeated keys and NaN included), for unknown keys and operators.

    >>> from_json('{"and":[{"col":"tsse","op":"gt","value":5},{"not":{"col":"cell_type","op":"is_null"}}]}')
    And(items=(Compare(column='tsse', op='gt', value=5), Not(item=IsNull(column='cell_type'))))
    """
    return canonical(_node(_decode(source) if isinstance(source, str | bytes) else source, "$", 1, count(1)))


def _decode(source: str | bytes) -> object:
    if len(source) > MAX_JSON:
        raise too_long(len(source), MAX_JSON)
    counter = count(1)

    def whole_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _bad_json("a key comes twice", "$", found)
        if next(counter) > MAX_NODES:  # here, since decoding the rest would take its time
            raise too_large()
        return found

    try:
        return json.loads(
            source if isinstance(source, str) else source.decode(),
            object_pairs_hook=whole_object,
            parse_constant=_refuse_constant,
            parse_int=lambda text: read_number(text, "in the filter"),
            parse_float=lambda text: read_number(text, "in the filter"),
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadArgument(f"the filter is not JSON: {error}", code="FILTER-JSON", fix="check the quotes") from error
    except RecursionError as error:
        raise too_deep() from error


def _refuse_constant(name: str) -> NoReturn:
    raise no_number(name, "in the filter")


def _bad_json(message: str, path: str, got: object) -> BadArgument:
    if isinstance(got, dict):
        got = f"keys {', '.join(key for key in got if isinstance(key, str))}"
    shown = printable(got if isinstance(got, str) else type(got).__name__)
    return BadArgument(
        f"{message} at {path}: {shown}",
        code="FILTER-JSON",
        got=shown,
        fix='write {"and": [...]}, {"or": [...]}, {"not": {...}} or {"col": "age", "op": "gt", "value": 5}',
    )


def _node(source: object, path: str, depth: int, counter: Iterator[int]) -> Filter:
    if depth > MAX_DEPTH:
        raise too_deep()
    if next(counter) > MAX_NODES:
        raise too_large()
    if not isinstance(source, dict):
        raise _bad_json("expected an object", path, source)
    match source:
        case {"and": list(items), **rest} | {"or": list(items), **rest} if not rest:
            kind, word = (And, "and") if "and" in source else (Or, "or")
            return kind(tuple(_node(item, f"{path}.{word}[{at}]", depth + 1, counter) for at, item in enumerate(items)))
        case {"not": item, **rest} if not rest:
            return Not(_node(item, f"{path}.not", depth + 1, counter))
        case {"col": str(column), "op": str(op), **rest} if rest.keys() <= {"value"}:
            return _condition(column, op, rest, path)
    raise _bad_json("unknown keys, or a key with a value of the wrong kind,", path, source)


def _condition(column: str, op: str, rest: dict[str, Any], path: str) -> Filter:
    match op, rest:
        case "is_null", {"value": _}:
            raise _bad_json("is_null takes no value", path, op)
        case "is_null", _:
            return IsNull(column)
        case "in", {"value": list(values)}:
            return In(column, tuple(values))
        case "between", {"value": [low, high]}:
            return Between(column, low, high)
        case "prefix", {"value": str(text)}:
            return Prefix(column, text)
        case (("eq" | "ne" | "lt" | "le" | "gt" | "ge"), {"value": value}):
            return Compare(column, op, value)
    if op in (*SIGNS, "in", "between", "prefix"):
        raise _bad_json(f"{op} needs another kind of value", f"{path}.value", rest.get("value"))
    raise _bad_json("unknown op", f"{path}.op", op)

"""Filters: their text, their JSON, their check, and that DuckDB answers them as plain Python does."""

import json
import math
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument
from chromseek.indexer.filter_sql import column_kind
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
    cache_key,
    canonical,
    to_json,
)
from chromseek.indexer.metadata import Metadata, write_database
from chromseek.search.filters import check, from_json, parse, to_sql, to_text

UTC_US = pa.timestamp("us", "UTC")
TYPES = {  # names that a user may well give, each with a type
    "cell type": pa.string(),
    "select": pa.dictionary(pa.int32(), pa.string()),
    'say "hi"': pa.bool_(),
    "row_number": pa.int64(),
    "percent.mt": pa.float32(),
    "percent": pa.float64(),
    "größe": pa.int8(),
    "Age": pa.uint64(),
    "age": pa.float64(),
    "c0": pa.timestamp("us"),
    "'; DROP TABLE t0; --": UTC_US,
    "day": pa.date32(),
    "LIKE": pa.timestamp("s"),
}
SCHEMA = pa.schema(list(TYPES.items()))
POOLS = {
    "cell type": ["", "B", "B cell", "T", "100%", "a_b", "é", "it's", "\\"],
    "select": ["B", "B cell", "T", "ß", '"', "%"],
    'say "hi"': [True, False],
    "row_number": [-1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)],
    "percent.mt": [0.0, -0.0, 0.1, 2.5, math.inf, -math.inf],
    "percent": [0.0, -0.0, 0.1, 1.0, 1e300, -math.inf],
    "größe": [-128, 0, 1, 127],
    "Age": [0, 1, 2**53 + 1, 2**64 - 1],
    "age": [0.5, 1.0, 2.0],
    "c0": [datetime(2024, 5, 31), datetime(2024, 5, 31, 12, 0, 0, 1), datetime(1969, 1, 1)],
    "'; DROP TABLE t0; --": [datetime(2024, 5, 31, tzinfo=UTC), datetime(2030, 1, 1, 1, tzinfo=UTC)],
    "day": [date(2024, 5, 31), date(1969, 1, 1)],
    "LIKE": [datetime(2024, 5, 31), datetime(1969, 1, 1)],
}
NUMBERS = st.sampled_from([-1, 0, 0.1, 0.5, 1, 1.0, 1.5, 2.5, 127, 1000, 2**53, 2**53 + 1, 2**63 - 1, 1e300, -0.0])
TIMES = st.sampled_from(["2024-05-31", "2024-05-31T12:00:00.000001", "2024-05-31T02:00:00+02:00", "1969-01-01"])


def code_of(value: object) -> str:
    """The name of a case: its code; the inputs are too strange for names."""
    return value if isinstance(value, str) and value.startswith("FILTER-") else ""


def values(column: str) -> st.SearchStrategy:
    kind = TYPES[column]
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        return st.sampled_from(POOLS[column]) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    if pa.types.is_integer(kind):
        return NUMBERS.filter(lambda value: abs(value) < 2**63)
    return NUMBERS if pa.types.is_floating(kind) else TIMES


@st.composite
def leaves(draw: st.DrawFn) -> Filter:
    column = draw(st.sampled_from(list(TYPES)))
    ops = ["compare", "in", "null"]
    if not pa.types.is_boolean(TYPES[column]):
        ops.append("between")
    if column in ("cell type", "select"):
        ops.append("prefix")
    match draw(st.sampled_from(ops)):
        case "in":
            return In(column, tuple(draw(st.lists(values(column), min_size=1, max_size=5))))
        case "null":
            return IsNull(column)
        case "between":
            return Between(column, draw(values(column)), draw(values(column)))
        case "prefix":
            return Prefix(column, draw(values(column)))
    signs = ["eq", "ne"] if pa.types.is_boolean(TYPES[column]) else list(SIGNS)
    return Compare(column, draw(st.sampled_from(signs)), draw(values(column)))


def groups(items: st.SearchStrategy) -> st.SearchStrategy:
    some = st.lists(items, min_size=1, max_size=4).map(tuple)
    return st.builds(And, some) | st.builds(Or, some) | st.builds(Not, items)


TREES = st.recursive(leaves(), groups, max_leaves=12)


def as_type(values: list, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind.value_type).cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    n = draw(st.integers(0, 12))
    columns = [
        as_type(draw(st.lists(st.none() | st.sampled_from(POOLS[name]), min_size=n, max_size=n)), kind)
        for name, kind in TYPES.items()
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def truth(tree: Filter, row: dict) -> bool | None:
    """A filter on one row in three-valued logic, by plain Python: True, False, or None for unknown."""
    match tree:
        case And(items):
            found = [truth(item, row) for item in items]
            return False if False in found else None if None in found else True
        case Or(items):
            found = [truth(item, row) for item in items]
            return True if True in found else None if None in found else False
        case Not(item):
            inside = truth(item, row)
            return None if inside is None else not inside
        case IsNull(column):
            return row[column] is None
    if row[tree.column] is None:
        return None
    value, kind = plain(row[tree.column]), TYPES[tree.column]
    match tree:
        case In(_, wanted):
            return any(value == meant(one, kind) for one in wanted)
        case Between(_, low, high):
            return meant(low, kind) <= value <= meant(high, kind)
        case Prefix(_, start):
            return value.startswith(start)
        case Compare(_, op, one):
            other = meant(one, kind)
            return {
                "eq": value == other,
                "ne": value != other,
                "lt": value < other,
                "le": value <= other,
                "gt": value > other,
                "ge": value >= other,
            }[op]
    raise AssertionError(tree)


def plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return datetime(value.year, value.month, value.day) if isinstance(value, date) else value


def meant(value: object, kind: pa.DataType) -> object:
    if pa.types.is_float32(kind):
        return float(np.float32(value)) if abs(value) < 3e38 else value
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    return value


LITERALS = {  # what each sort of column is compared with
    "text": ["", "B", "B cell", "cell", "100%", "a_b", "it's", "\\", '"', "zz"],
    "bool": [True, False],
    "int": [-129, -128, -1, 0, 0.5, 1, 1.0, 1.5, 127, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1e18],
    "float": [-1, -0.0, 0, 0.1, 0.5, 1, 2.5, 1e39, -1e300, 1e300, 2**60],
    "time": [
        "2024-05-31",
        "2024-05-31T12:00:00.000001",
        "2024-05-31T02:00:00+02:00",
        "1969-01-01",
        "2030-01-01T01:00Z",
    ],
}


def conditions(column: str) -> Iterator[Filter]:
    """Every kind of condition on a column, with every literal."""
    kind = column_kind(TYPES[column])
    literals = LITERALS[kind]
    yield IsNull(column)
    for one, other in product(literals, literals):
        yield In(column, (one, other))
        yield Not(In(column, (one, other)))
        if kind != "bool":
            yield Between(column, one, other)
    for literal in literals:
        for op in ("eq", "ne") if kind == "bool" else SIGNS:
            yield Compare(column, op, literal)
            yield Not(Compare(column, op, literal))
        if kind == "text":
            yield Prefix(column, literal)


@pytest.mark.parametrize("column", TYPES)
def test_every_condition_on_every_type(column: str, tmp_path: Path) -> None:
    table = pa.table({column: as_type([*POOLS[column], None], TYPES[column])})
    pq.write_table(table, tmp_path / "rows.parquet")
    metadata = Metadata("cells", [tmp_path / "rows.parquet"])
    rows = table.to_pylist()
    for tree in conditions(column):
        wanted = [at for at, row in enumerate(rows) if truth(tree, row) is True]
        assert metadata.where(tree).tolist() == wanted, to_text(tree)


@settings(max_examples=25, deadline=None)
@given(tables(), st.lists(TREES, min_size=1, max_size=8))
def test_duckdb_answers_as_plain_python_does(table: pa.Table, trees: list[Filter]) -> None:
    rows = table.to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        cut = len(table) // 3
        paths = [Path(folder, "first.parquet"), Path(folder, "second.parquet")]
        pq.write_table(table.slice(0, cut), paths[0])
        pq.write_table(table.slice(cut), paths[1], row_group_size=3)
        database = Path(folder, "metadata.duckdb")
        write_database(database, {"cells": paths})
        from_file, from_memory = Metadata("cells", paths, database=database), Metadata("cells", paths)
        assert from_file.note == ""
        for tree in trees:
            wanted = [at for at, row in enumerate(rows) if truth(tree, row) is True]
            assert from_file.where(tree).tolist() == wanted, to_text(tree)
            assert from_memory.where(tree).tolist() == wanted
            assert from_file.where(check(tree, SCHEMA)).tolist() == wanted
        from_file.close()
        from_memory.close()


@given(TREES)
def test_every_form_reads_back_to_the_same_tree(tree: Filter) -> None:
    simple = canonical(tree)
    assert canonical(simple) == simple
    assert from_json(to_json(tree)) == simple
    assert from_json(json.dumps(to_json(tree))) == simple
    assert cache_key(from_json(cache_key(tree))) == cache_key(tree)
    assert cache_key(parse(to_text(tree))) == cache_key(tree)
    assert cache_key(check(check(tree, SCHEMA), SCHEMA)) == cache_key(check(tree, SCHEMA))


@given(TREES, st.randoms())
def test_order_repeats_and_nesting_do_not_change_the_key(tree: Filter, random: Random) -> None:
    def disguise(tree: Filter) -> Filter:
        match tree:
            case And(items) | Or(items):
                mixed = [disguise(item) for item in items] + [items[0]]
                random.shuffle(mixed)
                return type(tree)((type(tree)((mixed[0],)), *mixed))
            case Not(item):
                return Not(Not(Not(disguise(item))))
            case In(column, values):
                mixed = [*values, *values]
                random.shuffle(mixed)
                return In(column, tuple(mixed))
        return tree

    assert cache_key(disguise(tree)) == cache_key(tree)


def test_a_prefix_is_written_so_that_it_is_read_back() -> None:
    for start in ("100%", "%", "\\", "a\\%", "\\\\%_", "_", "it's", ""):
        assert parse(to_text(Prefix("x", start))) == Prefix("x", start)


def test_true_and_one_are_two_filters() -> None:
    assert cache_key(Compare("a", "eq", True)) != cache_key(Compare("a", "eq", 1))
    assert cache_key(Compare("a", "eq", 1.0)) == cache_key(Compare("a", "eq", 1))
    both = Or((Compare("a", "eq", True), Compare("a", "eq", 1)))
    assert len(canonical(both).items) == 2
    assert cache_key(In("a", (1, True))) == cache_key(In("a", (True, 1)))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("age > 5", Compare("age", "gt", 5)),
        ("age>-5.50", Compare("age", "gt", -5.5)),
        ("age == 1e3", Compare("age", "eq", 1000)),
        ("age <> +.5", Compare("age", "ne", 0.5)),
        ("Tissue = 'it''s'", Compare("Tissue", "eq", "it's")),
        ('"a ""b""" != \'x\'', Compare('a "b"', "ne", "x")),
        ("percent.mt<=5", Compare("percent.mt", "le", 5)),
        ("größe >= 1", Compare("größe", "ge", 1)),
        ("x = TRUE", Compare("x", "eq", True)),
        ("x = false", Compare("x", "eq", False)),
        ("x IS NULL", IsNull("x")),
        ("x is not null", Not(IsNull("x"))),
        ("x IN ('b','a','b')", In("x", ("a", "b"))),
        ("x in ('a')", Compare("x", "eq", "a")),
        ("x NOT IN (1, 2)", Not(In("x", (1, 2)))),
        ("x BETWEEN 1 AND 2 AND y = 3", And((Between("x", 1, 2), Compare("y", "eq", 3)))),
        ("x NOT BETWEEN 'a' AND 'b'", Not(Between("x", "a", "b"))),
        ("x LIKE 'CD4_%'", Prefix("x", "CD4_")),
        (r"x LIKE '100\%%'", Prefix("x", "100%")),
        (r"x LIKE '\\\_%'", Prefix("x", "\\_")),
        ("x LIKE '%'", Prefix("x", "")),
        ("x NOT LIKE 'a%'", Not(Prefix("x", "a"))),
        ("NOT NOT a = 1", Compare("a", "eq", 1)),
        ("a=1 OR b=2 AND c=3", Or((Compare("a", "eq", 1), And((Compare("b", "eq", 2), Compare("c", "eq", 3)))))),
        ("(a=1 OR b=2) AND c=3", And((Or((Compare("a", "eq", 1), Compare("b", "eq", 2))), Compare("c", "eq", 3)))),
        ("NOT a=1 AND b=2", And((Not(Compare("a", "eq", 1)), Compare("b", "eq", 2)))),
        ("\n\ta = 1\r\nand\u00a0b = 2 ", And((Compare("a", "eq", 1), Compare("b", "eq", 2)))),
        ("nothing = 'a\nb'", Compare("nothing", "eq", "a\nb")),
        ('"in" = 1', Compare("in", "eq", 1)),
        ("n = 9223372036854775807", Compare("n", "eq", 2**63 - 1)),
    ],
)
def test_text(text: str, tree: Filter) -> None:
    assert cache_key(parse(text)) == cache_key(tree)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "FILTER-SYNTAX", "expected a column name, NOT or ( at position 1, the filter ends"),
        ("tissue = blood", "FILTER-SYNTAX", "expected a value at position 10, found blood"),
        ('tissue = "blood"', "FILTER-SYNTAX", "text goes in single quotes: 'blood'"),
        ("tissue = 'blood", "FILTER-QUOTE", "the quote at position 10 is never closed"),
        ("tissue 'blood'", "FILTER-SYNTAX", "expected a comparison"),
        ("5 < age", "FILTER-SYNTAX", "the column comes first"),
        ("age > 5 age < 9", "FILTER-SYNTAX", "expected AND, OR or the end at position 9, found age"),
        ("(age > 5", "FILTER-SYNTAX", "expected ) at position 9, the filter ends"),
        ("age = NULL", "FILTER-NULL", "IS NULL"),
        ("age IN (1, NULL)", "FILTER-NULL", "IS NULL"),
        ("age IN ()", "FILTER-SYNTAX", "expected a value at position 9"),
        ("age NOT = 5", "FILTER-SYNTAX", "expected IN, BETWEEN or LIKE after age"),
        ("x LIKE '%cell%'", "FILTER-LIKE", "knows no pattern but a start: %cell%"),
        ("x LIKE 'a'", "FILTER-LIKE", "use = for a whole value"),
        ("x LIKE 5", "FILTER-SYNTAX", "a pattern in single quotes"),
        ("age > 1e999", "FILTER-NUMBER", "1e999, which is not finite, at position 7"),
        ("age > 99999999999999999999", "FILTER-NUMBER", "of 67 bits"),
        ("age > 1_000", "FILTER-SYNTAX", "what stands at position 7: 1_000"),
        ("age > \u0661", "FILTER-SYNTAX", "position 7"),
        ("age > 0x10", "FILTER-SYNTAX", "position 7"),
        ("age > 5; DROP", "FILTER-SYNTAX", "position 8: ; DROP"),
        ("age > \x1b[2J", "FILTER-SYNTAX", r"\x1b[2J"),
        ("x = '\ud800'", "FILTER-TEXT", "surrogate"),
        ("x = 'a\0'", "FILTER-TEXT", "NUL"),
        ("a=1 OR " * 2000, "FILTER-LONG", "14000 characters"),
        ("(" * 60 + "a=1" + ")" * 60, "FILTER-DEPTH", "deeper than 50"),
        (" OR ".join(f"a={n}" for n in range(200)), "FILTER-SIZE", "more than 200"),
        ("a IN (" + ",".join("1" for _ in range(1001)) + ")", "FILTER-MANY", "1001 values, not 1..1000"),
        (5, "FILTER-FORM", "text"),
    ],
    ids=code_of,
)
def test_text_that_is_no_filter(text: str, code: str, words: str) -> None:
    with pytest.raises(BadArgument) as raised:
        parse(text)
    assert raised.value.code == code
    assert words in str(raised.value)
    assert str(raised.value).isprintable()


def test_limits_are_where_they_are_said_to_be() -> None:
    assert len(parse(" OR ".join(f"a={n}" for n in range(199))).items) == 199
    assert len(parse("a IN (" + ",".join(map(str, range(1000))) + ")").values) == 1000
    assert parse("(" * 49 + "a=1" + ")" * 49) == Compare("a", "eq", 1)
    assert len(parse("a = '" + "x" * 9994 + "'").value) == 9994
    deep: Filter = Compare("a", "eq", 1)
    for _ in range(49):
        deep = And((deep, deep))
    with pytest.raises(BadArgument, match="more than 200"):
        canonical(deep)
    for _ in range(100_000):
        deep = Not(deep)
    with pytest.raises(BadArgument, match="deeper than 50"):
        canonical(deep)
    full = In("a", tuple(range(1000)))
    assert canonical(Or((full,) * 10)) == full
    with pytest.raises(BadArgument, match="more than 10000 values"):
        canonical(Or((full,) * 11))


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("{", "FILTER-JSON", "line 1 column 2"),
        (b"\xff", "FILTER-JSON", "not JSON"),
        ("[]", "FILTER-JSON", "expected an object at $: list"),
        ("5", "FILTER-JSON", "expected an object"),
        ("{}", "FILTER-JSON", "unknown keys"),
        ('{"and":[]}', "FILTER-EMPTY", "of nothing"),
        ('{"and":{}}', "FILTER-JSON", "wrong kind"),
        ('{"and":[{"col":"a","op":"eq","value":1}],"or":[]}', "FILTER-JSON", "unknown keys"),
        ('{"and":[{"col":"a","op":"eq","value":1},{"not":7}]}', "FILTER-JSON", "at $.and[1].not: int"),
        ('{"col":"a","op":"eq","value":1,"col":"b"}', "FILTER-JSON", "a key comes twice"),
        ('{"col":"a","op":"eq","value":1,"x":2}', "FILTER-JSON", "unknown keys"),
        ('{"col":"a","op":"regex","value":"(a+)+$"}', "FILTER-JSON", "unknown op at $.op: regex"),
        ('{"col":"a","op":"eq"}', "FILTER-JSON", "eq needs another kind of value at $.value: NoneType"),
        ('{"col":"a","op":"is_null","value":true}', "FILTER-JSON", "is_null takes no value"),
        ('{"col":5,"op":"eq","value":1}', "FILTER-JSON", "wrong kind"),
        ('{"col":"a","op":"eq","value":null}', "FILTER-NULL", "is_null"),
        ('{"col":"a","op":"eq","value":[1]}', "FILTER-VALUE", "type list"),
        ('{"col":"a","op":"eq","value":{"col":"b"}}', "FILTER-VALUE", "type dict"),
        ('{"col":"a","op":"in","value":5}', "FILTER-JSON", "in needs another kind of value at $.value: int"),
        ('{"col":"a","op":"in","value":[]}', "FILTER-MANY", "0 values"),
        ('{"col":"a","op":"in","value":[[]]}', "FILTER-VALUE", "type list"),
        ('{"col":"a","op":"between","value":[1]}', "FILTER-JSON", "between needs"),
        ('{"col":"a","op":"prefix","value":1}', "FILTER-JSON", "prefix needs"),
        ('{"col":"a","op":"eq","value":NaN}', "FILTER-NUMBER", "NaN"),
        ('{"col":"a","op":"eq","value":-Infinity}', "FILTER-NUMBER", "Infinity"),
        ('{"col":"a","op":"eq","value":1e999}', "FILTER-NUMBER", "1e999"),
        ('{"col":"a","op":"eq","value":1' + "0" * 5000 + "}", "FILTER-NUMBER", "5001 digits"),
        ('{"col":"a","op":"eq","value":9223372036854775808}', "FILTER-NUMBER", "64 bits"),
        ('{"col":"a","op":"eq","value":"\\ud800"}', "FILTER-TEXT", "surrogate"),
        ('{"col":"\\ud800","op":"is_null"}', "FILTER-TEXT", r"\ud800"),
        ('{"not":' * 100_000, "FILTER-DEPTH", "deeper than 50"),
        ("[" * 100_000, "FILTER-DEPTH", "deeper than 50"),
        ('{"not":' * 60 + '{"col":"a","op":"is_null"}' + "}" * 60, "FILTER-DEPTH", "deeper than 50"),
        ('{"col":"a","op":"eq","value":' + "[" * 900 + "]" * 900 + "}", "FILTER-VALUE", "type list"),
        (" " * 3_000_000, "FILTER-LONG", "3000000"),
        ({"col": "a", "op": "eq", "value": math.nan}, "FILTER-NUMBER", "nan"),
        ({"col": "a", "op": "eq", "value": 10**5000}, "FILTER-NUMBER", "bits"),
        ({"col": 10**5000, "op": "eq"}, "FILTER-JSON", "col"),
        (10**5000, "FILTER-JSON", "int"),
        (None, "FILTER-JSON", "NoneType"),
    ],
    ids=code_of,
)
def test_json_that_is_no_filter(source: object, code: str, words: str) -> None:
    with pytest.raises(BadArgument) as raised:
        from_json(source)
    assert raised.value.code == code
    assert words in str(raised.value)
    json.dumps(raised.value.got, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("tree", [None, 5, "a = 1", Compare("a", "like", "x"), Compare("a", [], "x"), In("a", "xyz")])
def test_trees_made_by_hand_are_checked_too(tree: object) -> None:
    with pytest.raises(BadArgument, match="not a filter"):
        canonical(tree)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"cell type" = 5', ["cell type", "text", "5", "single quotes"]),
        ('"select" LIKE \'B%\' AND "select" < 5', ["select", "text", "5"]),
        ("age = 'old'", ["age", "numbers", "'old'"]),
        ("größe BETWEEN 1 AND '5'", ["größe", "whole numbers", "'5'"]),
        ("größe = TRUE", ["größe", "whole numbers", "true"]),
        ('"say ""hi""" = 1', ["say", "true or false", "1"]),
        ('"say ""hi""" > FALSE', ["say", "true or false", "false"]),
        ('"say ""hi""" BETWEEN FALSE AND TRUE', ["say", "true or false"]),
        ('"say ""hi""" LIKE \'a%\'', ["say", "true or false"]),
        ("age LIKE '1%'", ["age", "numbers", "'1'"]),
        ("c0 > 2024", ["c0", "times", "2024", "ISO"]),
        ("c0 > 'yesterday'", ["c0", "times", "'yesterday'"]),
        ("c0 > '0001-01-01T00:00:00+14:00'", ["c0", "times"]),
        ("age IN (1, 'two')", ["age", "numbers", "'two'"]),
    ],
)
def test_values_of_the_wrong_type(text: str, words: list[str]) -> None:
    with pytest.raises(BadArgument) as raised:
        check(parse(text), SCHEMA)
    assert raised.value.code == "FILTER-TYPE"
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("number", ["1e300", "-1e19", "9223372036854775808.0"])
def test_numbers_past_64_bits_in_a_column_of_whole_numbers(number: str) -> None:
    with pytest.raises(BadArgument, match="past 64 bits, in the filter on größe") as raised:
        check(parse(f"größe > {number}"), SCHEMA)
    assert raised.value.code == "FILTER-NUMBER"
    assert check(parse(f"age > {number}"), SCHEMA).value == float(number)


def test_unknown_columns_name_the_nearest() -> None:
    schema = pa.schema([(name, pa.string()) for name in ("cell_type", "tissue", "donor", "cell_state", "age")])
    with pytest.raises(
        BadArgument, match=r"no column celltype. Fix: nearest are cell_type, cell_state, tissue"
    ) as raised:
        check(parse("tissue = 'blood' AND celltype = 'B'"), schema)
    assert raised.value.code == "FILTER-COLUMN"
    with pytest.raises(BadArgument, match="there are no columns"):
        check(parse("a IS NULL"), pa.schema([]))
    with pytest.raises(BadArgument, match="no column Tissue"):
        to_sql(parse("Tissue = 'blood'"), schema)


def test_columns_of_no_known_kind_are_refused() -> None:
    schema = pa.schema([("genes", pa.list_(pa.string()))])
    for text in ("genes = 'a'", "genes IS NULL", "genes LIKE 'a%'", "genes IN ('a', 'b')"):
        with pytest.raises(BadArgument, match="filters do not know") as raised:
            check(parse(text), schema)
        assert raised.value.code == "FILTER-TYPE"


def test_sql_holds_neither_names_nor_values() -> None:
    tree = parse("\"'; DROP TABLE t0; --\" > '2024-05-31' AND \"cell type\" IN ('x'') --', 'y') AND age > 1.5")
    sql, parameters = to_sql(tree, SCHEMA)
    assert sql == "(c10 > CAST(? AS TIMESTAMP) AND c8 > CAST(? AS DOUBLE) AND c0 = ANY(CAST(? AS VARCHAR[])))"
    assert parameters == [datetime(2024, 5, 31), 1.5, ["x') --", "y"]]

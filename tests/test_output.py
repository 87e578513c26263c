"""What commands write: tables that fit, TSV that parses, files that appear whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument, StorageError
from chromseek.service.output import aligned, check_output, plain, shown, tsv, whole_file, write_json

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60)
names = st.lists(st.text(max_size=12), min_size=1, max_size=6, unique=True)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    n_rows = draw(st.integers(0, 5))
    return {name: draw(st.lists(values, min_size=n_rows, max_size=n_rows)) for name in draw(names)}


@given(tables(), st.integers(1, 120))
def test_no_line_is_wider_than_the_terminal(columns: dict[str, list[Any]], width: int) -> None:
    lines, left_out = aligned(columns, width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 1 + len(next(iter(columns.values())))
    assert len(left_out) < len(columns)
    assert all(line.isprintable() for line in lines)


@given(tables())
def test_tsv_holds_every_cell_in_its_place(columns: dict[str, list[Any]]) -> None:
    rows = [line.split("\t") for line in "\n".join(tsv(columns)).split("\n")]
    rows = rows if next(iter(columns.values())) else rows[:1]
    assert all(len(row) == len(columns) for row in rows)
    for place, cells in enumerate(columns.values()):
        for row, value in zip(rows[1:], cells, strict=True):
            if isinstance(value, str):
                assert row[place].isprintable()
                assert not value.isprintable() or row[place] == value
            elif isinstance(value, float) and math.isfinite(value):
                assert float(row[place]) == pytest.approx(value, rel=1e-6)
            elif isinstance(value, int) and not isinstance(value, bool):
                assert int(row[place]) == value


@given(values)
def test_a_value_for_a_person_is_short_and_safe(value: Any) -> None:
    assert len(shown(value)) <= 10 * 41 or isinstance(value, int)
    assert shown(value).isprintable()


@given(st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_everything_becomes_json(value: Any) -> None:
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)


def test_numpy_becomes_json() -> None:
    assert plain({"a": np.arange(2), "b": np.float32("nan"), "c": np.int8(1)}) == {"a": [0, 1], "b": None, "c": 1}


def test_columns_that_find_no_room_are_named() -> None:
    lines, left_out = aligned({"rank": [1, 2], "name": ["abc", "d"], "tissue": ["lung", "blood"], "n": [7, None]}, 14)
    assert lines == ["rank  name", "   1  abc", "   2  d"]
    assert left_out == ["tissue", "n"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    write_json({"a": 1}, out)
    assert json.loads(out.read_text()) == {"a": 1}
    with pytest.raises(UnicodeEncodeError), whole_file(out) as draft:
        draft.write_bytes(b"half" + "\ud800".encode())
    assert json.loads(out.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["o.json"]
    with pytest.raises(StorageError) as caught:
        write_json({}, tmp_path / "gone" / "o.json")
    assert caught.value.exit_code == 73


def test_outputs_are_refused_before_any_work(tmp_path: Path) -> None:
    check_output(None, (".tsv",), overwrite=False)
    check_output(tmp_path / "o.tsv", (".tsv",), overwrite=False)
    with pytest.raises(BadArgument, match=r"end the name in \.tsv"):
        check_output(tmp_path / "o.txt", (".tsv",), overwrite=True)
    (tmp_path / "o.tsv").symlink_to("nowhere")
    with pytest.raises(StorageError, match="--overwrite"):
        check_output(tmp_path / "o.tsv", (".tsv",), overwrite=False)
    check_output(tmp_path / "o.tsv", (".tsv",), overwrite=True)
    with pytest.raises(StorageError, match="mkdir -p"):
        check_output(tmp_path / "gone" / "o.tsv", (".tsv",), overwrite=True)

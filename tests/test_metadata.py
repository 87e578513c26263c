"""Metadata: the database file and what happens when it is not good, row sets, takes, and joined schemas."""

import hashlib
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument, BadData, NotFound, StorageError
from chromseek.indexer.filter_tree import Compare, In, Prefix
from chromseek.indexer.metadata import Metadata, RowSets, conform, join_schemas, write_database
from chromseek.search.filters import parse

N = 5_000
CATEGORY = pa.dictionary(pa.int32(), pa.string())


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "id": np.arange(N) + 7,
            "name": [f"cell-{row}" for row in range(N)],
            "n_fragments": pa.array(random.integers(0, 1000, N), mask=random.random(N) < 0.1),
            "coverage": random.random(N).astype(np.float32),
            "cell type": pa.array(random.choice(["B", "T", "NK"], N)).dictionary_encode(),
            "is.doublet": random.random(N) < 0.2,
            "is": random.random(N),
        }
    )


@pytest.fixture
def parts(rows: pa.Table, tmp_path: Path) -> list[Path]:
    """The rows as three files, as three segments of an atlas would hold them."""
    cuts = [0, 1_000, 1_001, N]
    paths = [tmp_path / name / "rows.parquet" for name in ("one", "two", "three")]
    for path, start, stop in zip(paths, cuts[:-1], cuts[1:], strict=True):
        path.parent.mkdir()
        pq.write_table(rows.slice(start, stop - start), path, row_group_size=700)
    return paths


@pytest.fixture
def database(parts: list[Path], tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "metadata-v7.duckdb"
    write_database(path, {"cells": parts, "beds": parts[:1]})
    return path


def is_type(rows: pa.Table, name: str) -> np.ndarray:
    return np.flatnonzero(np.array(rows["cell type"].to_pylist()) == name)


def test_the_database_is_one_file_and_its_checksum(database: Path) -> None:
    assert sorted(os.listdir(database.parent)) == ["metadata-v7.duckdb", "metadata-v7.duckdb.sha256"]
    digest, name = Path(f"{database}.sha256").read_text().split()
    assert name == database.name
    assert digest == hashlib.sha256(database.read_bytes()).hexdigest()


def test_where(rows: pa.Table, parts: list[Path], database: Path) -> None:
    metadata = Metadata("cells", parts, database=database)
    assert metadata.note == ""
    assert metadata.n_rows == N
    assert metadata.schema.names == rows.column_names
    found = metadata.where(parse("\"cell type\" = 'B'"))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, is_type(rows, "B"))
    assert not found.flags.writeable
    assert metadata.where(parse("'B' = 'B'".replace("'B'", '"cell type"', 1))) is found  # the same object: cached
    np.testing.assert_array_equal(metadata.where(None), np.arange(N))
    assert metadata.where(parse("name = 'nobody'")).tolist() == []
    assert metadata.where(parse("name IN ('cell-4999', 'cell-0')")).tolist() == [0, N - 1]
    assert len(Metadata("beds", parts[:1], database=database).where(None)) == 1_000


def test_deleted_rows_are_never_found(rows: pa.Table, parts: list[Path], database: Path) -> None:
    deleted = np.zeros(N, bool)
    deleted[::3] = True
    metadata = Metadata("cells", parts, database=database, deleted=deleted)
    np.testing.assert_array_equal(metadata.where(None), np.flatnonzero(~deleted))
    kept = is_type(rows, "T")
    np.testing.assert_array_equal(metadata.where(parse("\"cell type\" = 'T'")), kept[kept % 3 != 0])
    np.testing.assert_array_equal(Metadata("cells", parts, deleted=np.zeros(N, bool)).where(None), np.arange(N))


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FAULTS = {
    "is absent": lambda path: path.unlink(),
    "has no checksum beside it": lambda path: Path(f"{path}.sha256").unlink(),
    "has a stray .wal beside it": lambda path: Path(f"{path}.wal").write_bytes(b"anything"),
    "does not have its checksum": damage_byte,
    "cannot be opened (IOException)": lambda path: (
        path.write_bytes(b"no database"),
        Path(f"{path}.sha256").write_text(hashlib.sha256(b"no database").hexdigest()),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_database_that_is_not_good_is_not_used(fault: str, rows: pa.Table, parts: list[Path], database: Path) -> None:
    FAULTS[fault](database)
    metadata = Metadata("cells", parts, database=database)
    assert metadata.note == f"metadata-v7.duckdb {fault}"
    np.testing.assert_array_equal(metadata.where(parse("\"cell type\" = 'NK'")), is_type(rows, "NK"))


def test_every_flipped_byte_is_noticed(parts: list[Path], database: Path) -> None:
    content = database.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 20):
        database.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert "checksum" in Metadata("cells", parts, database=database).note
    database.write_bytes(content)
    assert Metadata("cells", parts, database=database).note == ""


def test_a_database_of_other_rows_is_not_used(parts: list[Path], database: Path) -> None:
    for name, paths in (("cells", parts[:2]), ("cells", parts[::-1]), ("regions", parts)):
        metadata = Metadata(name, paths, database=database)
        assert metadata.note.endswith("was made of other rows")
        assert metadata.where(parse("name IS NOT NULL")).tolist() == list(range(metadata.n_rows))


def test_a_stray_wal_is_left_alone(parts: list[Path], database: Path) -> None:
    stray = Path(f"{database}.wal")
    stray.write_bytes(b"of somebody else")
    before = database.read_bytes()
    Metadata("cells", parts, database=database).where(parse('"is" > 0.5'))
    assert stray.read_bytes() == b"of somebody else"
    assert database.read_bytes() == before


def _count_in_child(parts: list[Path], database: Path, answers: "multiprocessing.Queue[object]") -> None:
    metadata = Metadata("cells", parts, database=database)
    answers.put((metadata.note, len(metadata.where(parse("\"cell type\" = 'B'")))))


def test_processes_share_the_file(rows: pa.Table, parts: list[Path], database: Path) -> None:
    metadata = Metadata("cells", parts, database=database)
    again = Metadata("beds", parts[:1], database=database)  # twice in one process: the settings must not clash
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    child = spawn.Process(target=_count_in_child, args=(parts, database, answers))
    child.start()
    assert answers.get(timeout=60) == ("", len(is_type(rows, "B")))
    child.join()
    assert (metadata.note, again.note) == ("", "")
    answers.close()
    answers.join_thread()


def test_replacing_the_file_does_not_disturb_a_reader(rows: pa.Table, parts: list[Path], database: Path) -> None:
    metadata = Metadata("cells", parts, database=database)
    write_database(database, {"cells": parts[:1]})
    np.testing.assert_array_equal(metadata.where(parse("\"cell type\" = 'B'")), is_type(rows, "B"))


def test_a_write_that_fails_leaves_nothing(parts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "taken.duckdb").mkdir()
    with pytest.raises(StorageError, match="cannot be written") as raised:
        write_database(folder / "taken.duckdb", {"cells": parts})
    assert raised.value.code == "METADATA-WRITE"
    damage = parts[1]
    damage.write_bytes(damage.read_bytes()[:-20])
    with pytest.raises(BadData) as refused:
        write_database(folder / "new.duckdb", {"cells": parts})
    assert (refused.value.code, refused.value.file) == ("ROWS-DAMAGED", "two/rows.parquet")
    assert os.listdir(folder) == ["taken.duckdb"]


def test_missing_and_damaged_rows_are_named(parts: list[Path]) -> None:
    with pytest.raises(BadData, match=r"gone/rows.parquet: .*No such file") as raised:
        Metadata("cells", [parts[0], parts[0].parent.parent / "gone" / "rows.parquet"])
    assert str(parts[0].parent.parent) not in str(raised.value)
    content = bytearray(parts[2].read_bytes())
    content[4:2000] = b"\xff" * 1996
    parts[2].write_bytes(content)
    metadata = Metadata("cells", parts)
    with pytest.raises(BadData, match=r"three/rows\.parquet"):
        metadata.take(np.array([N - 1]))
    with pytest.raises(BadData, match=r"three/rows\.parquet"):
        metadata.where(parse("name = 'cell-1'"))


@pytest.mark.parametrize("from_memory", [False, True])
def test_the_connection_can_do_nothing_but_read(parts: list[Path], database: Path, from_memory: bool) -> None:
    metadata = Metadata("cells", parts, database=None if from_memory else database)
    metadata.where(parse("name = 'cell-1'"))
    before = sorted(os.walk(database.parent.parent))
    target = database.parent / "stolen"
    for attack in (
        "FROM read_text('/etc/passwd')",
        "FROM read_csv('/etc/passwd')",
        "FROM glob('/*')",
        "FROM '/etc/passwd'",
        f"COPY t0 TO '{target}'",
        f"EXPORT DATABASE '{target}'",
        f"ATTACH '{target}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 2",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "FROM target",
        "FROM parts",
    ):
        with pytest.raises(duckdb.Error):
            metadata._cursor().execute(attack)
    assert sorted(os.walk(database.parent.parent)) == before


def test_after_close_there_is_an_error_not_an_answer(parts: list[Path], database: Path) -> None:
    metadata = Metadata("cells", parts, database=database)
    metadata.close()
    with pytest.raises(StorageError, match="failed"):
        metadata.where(parse("name = 'cell-1'"))


def test_take(rows: pa.Table, parts: list[Path], database: Path) -> None:
    metadata = Metadata("cells", parts, database=database)
    places = np.array([4_999, 0, 0, 1_000, 1_001])
    taken = metadata.take(places)
    assert taken.to_pydict() == rows.take(places).to_pydict()
    assert taken.schema == metadata.schema
    some = metadata.take(np.array([3, -1, 2]), ["cell type", "id"])
    assert some.column_names == ["cell type", "id"]
    assert some["id"].to_pylist() == [10, None, 9]
    assert some["cell type"].to_pylist()[1] is None
    assert metadata.take(np.array([5]), ["is"]).to_pydict() == rows.select(["is"]).take([5]).to_pydict()
    assert metadata.take(np.array([5]), ["is.doublet"]).column_names == ["is.doublet"]
    assert metadata.take(np.array([], np.int64)).num_rows == 0
    assert metadata.column("name").to_pylist() == rows["name"].to_pylist()
    assert metadata.column("cell type").num_chunks == 1
    with pytest.raises(IndexError):
        metadata.take(np.array([N]))
    with pytest.raises(NotFound, match=r"no column celltype. Fix: one of cell type"):
        metadata.take(np.array([0]), ["celltype"])
    with pytest.raises(NotFound, match="no column nothing"):
        metadata.column("nothing")


def test_a_collection_without_rows(tmp_path: Path) -> None:
    write_database(tmp_path / "m.duckdb", {"cells": []})
    metadata = Metadata("cells", [], database=tmp_path / "m.duckdb")
    assert (metadata.note, metadata.n_rows, len(metadata.where(None))) == ("", 0, 0)
    assert metadata.take(np.array([], np.int64)).num_columns == 0
    with pytest.raises(BadArgument, match="no column a"):
        metadata.where(parse("a = 1"))
    pq.write_table(pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], CATEGORY)}), tmp_path / "rows.parquet")
    empty = Metadata("cells", [tmp_path / "rows.parquet"])
    assert empty.where(parse("a = 1 OR b = 'x'")).tolist() == []
    assert empty.take(np.array([-1])).to_pydict() == {"a": [None], "b": [None]}


def test_segments_with_other_columns_are_one_table(tmp_path: Path) -> None:
    tables = [
        pa.table({"a": [1, 2], "label": pa.array(["x", "y"]).dictionary_encode()}),
        pa.table({"b": [0.5], "label": pa.array(["z"]).dictionary_encode()}),
        pa.table({"c": [True, None]}),
        pa.table({"a": [2.5, float("nan")], "label": ["x", None]}),
    ]
    paths = [tmp_path / f"{number}.parquet" for number in range(len(tables))]
    for table, path in zip(tables, paths, strict=True):
        pq.write_table(table, path)
    write_database(tmp_path / "m.duckdb", {"cells": paths})
    for metadata in (Metadata("cells", paths, database=tmp_path / "m.duckdb"), Metadata("cells", paths)):
        assert metadata.take(np.arange(7)).to_pydict() == {
            "a": [1, 2, None, None, None, 2.5, None],
            "label": ["x", "y", "z", None, None, "x", None],
            "b": [None, None, 0.5, None, None, None, None],
            "c": [None, None, None, True, None, None, None],
        }
        assert metadata.take(np.array([3]), ["b"]).to_pydict() == {"b": [None]}
        assert metadata.where(parse("label = 'x'")).tolist() == [0, 5]
        assert metadata.where(parse("a IS NULL")).tolist() == [2, 3, 4, 6]
        assert metadata.where(parse("c = TRUE OR b < 1")).tolist() == [2, 3]


def test_times_finer_than_filters_can_say_are_cut(tmp_path: Path) -> None:
    nanoseconds = pa.array([1_500, None, 2**62], pa.timestamp("ns", "Europe/Berlin"))
    pq.write_table(pa.table({"at": nanoseconds}), tmp_path / "rows.parquet")
    metadata = Metadata("cells", [tmp_path / "rows.parquet"])
    assert metadata.where(parse("at = '1970-01-01T00:00:00.000001'")).tolist() == [0]
    assert metadata.where(parse("at = '1970-01-01T01:00:00.000001+01:00'")).tolist() == [0]
    assert metadata.where(parse("at > '2100-01-01'")).tolist() == [2]


def test_eight_threads(rows: pa.Table, parts: list[Path], database: Path) -> None:
    fragments = np.array([-1 if value is None else value for value in rows["n_fragments"].to_pylist()])
    for metadata in (
        Metadata("cells", parts, database=database, cache_bytes=40_000),
        Metadata("cells", parts, cache_bytes=40_000),
    ):
        start = threading.Barrier(8)

        def work(seed: int, metadata: Metadata = metadata, start: threading.Barrier = start) -> None:
            random = np.random.default_rng(seed)
            start.wait()
            for limit in random.integers(0, 40, 25) * 25:
                found = metadata.where(Compare("n_fragments", "ge", int(limit)))
                np.testing.assert_array_equal(found, np.flatnonzero((fragments >= limit) & (fragments >= 0)))
                places = random.integers(0, N, 5)
                assert metadata.take(places)["id"].to_pylist() == (places + 7).tolist()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert 0 < metadata._row_sets.n_bytes <= 40_000


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60), st.integers(0, 3000))
def test_row_sets_stay_below_their_bound(puts: list[tuple[int, int]], bound: int) -> None:
    sets, sizes = RowSets(bound), {}
    for key, size in puts:
        found = sets.get(str(key))
        assert found is None or len(found) == sizes[str(key)]
        if found is None:
            sets.put(str(key), np.zeros(size, np.int64))
            sizes[str(key)] = size
        assert 0 <= sets.n_bytes <= bound


def test_the_least_recently_used_row_set_goes_first() -> None:
    sets = RowSets(3 * (80 + 4 + 256))
    for key in "abc":
        sets.put(key, np.zeros(10, np.int64))
    assert sets.get("a") is not None
    sets.put("d", np.zeros(10, np.int64))
    assert [key for key in "abcd" if sets.get(key) is not None] == ["a", "c", "d"]
    sets.put("huge", np.zeros(10**6, np.int64))
    assert sets.get("huge") is None
    assert sets.get("a") is not None


KINDS = [
    pa.int8(),
    pa.uint16(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    CATEGORY,
    pa.dictionary(pa.int8(), pa.large_string()),
    pa.dictionary(pa.int8(), pa.int64()),
    pa.bool_(),
    pa.null(),
    pa.timestamp("us"),
]


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (pa.int8(), pa.int8(), pa.int8()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (CATEGORY, pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.large_string()), CATEGORY, CATEGORY),
        (pa.dictionary(pa.int8(), pa.int32()), pa.int32(), pa.int32()),
        (pa.null(), CATEGORY, CATEGORY),
        (pa.null(), pa.null(), pa.string()),
        (pa.float16(), pa.float32(), pa.float32()),
    ],
)
def test_types_that_join(first: pa.DataType, second: pa.DataType, joined: pa.DataType) -> None:
    for pair in ((first, second), (second, first)):
        schemas = [(name, pa.schema([("x", kind)])) for name, kind in zip("ab", pair, strict=True)]
        assert join_schemas(schemas) == pa.schema([("x", joined)])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (pa.string(), pa.int64(), "holds whole numbers here but text in a.h5ad"),
        (pa.float64(), CATEGORY, "holds categories here but numbers in a.h5ad"),
        (pa.bool_(), pa.int8(), "holds whole numbers here but true or false in a.h5ad"),
        (pa.timestamp("us"), pa.string(), "holds text here but timestamp"),
    ],
)
def test_types_that_clash(first: pa.DataType, second: pa.DataType, words: str) -> None:
    schemas = [
        ("0.h5ad", pa.schema([("y", pa.string())])),
        ("a.h5ad", pa.schema([("y", pa.string()), ("x\x1b", first)])),
        ("b.h5ad", pa.schema([("x\x1b", second)])),
    ]
    with pytest.raises(BadData, match=rf"b.h5ad: column x\\x1b {words}") as raised:
        join_schemas(schemas)
    assert (raised.value.code, raised.value.file) == ("SCHEMA-CLASH", "b.h5ad")


def test_a_clash_names_the_file_that_gave_the_type() -> None:
    kinds = [("a.h5ad", pa.null()), ("b.h5ad", pa.int64()), ("c.h5ad", pa.float64()), ("d.h5ad", pa.bool_())]
    with pytest.raises(BadData, match=r"d.h5ad: .* but numbers in c.h5ad"):
        join_schemas([(name, pa.schema([("x", kind)])) for name, kind in kinds])


def test_reserved_and_repeated_names() -> None:
    with pytest.raises(BadData, match=r"b.tsv: column score .* Fix: rename the column") as raised:
        join_schemas([("a.tsv", pa.schema([("x", pa.int8())])), ("b.tsv", pa.schema([("score", pa.int8())]))])
    assert raised.value.code == "SCHEMA-RESERVED"
    assert join_schemas([("rows", pa.schema([("id", pa.int64())]))], reserved=()).names == ["id"]
    with pytest.raises(BadData, match="column x comes twice") as twice:
        join_schemas([("a.tsv", pa.schema([("x", pa.int8()), ("x", pa.int8())]))])
    assert twice.value.code == "SCHEMA-TWICE"


def test_conform() -> None:
    schema = pa.schema([("new", CATEGORY), ("x", pa.float64()), ("label", pa.string()), ("n", pa.int64())])
    table = pa.table({"label": pa.array(["a", None]).dictionary_encode(), "x": pa.array([1, None], pa.int8())})
    conformed = conform(table, schema)
    assert conformed.schema == schema
    assert conformed.to_pydict() == {"new": [None] * 2, "x": [1.0, None], "label": ["a", None], "n": [None] * 2}
    nan = conform(pa.table({"x": [float("nan"), float("inf"), float("-inf")]}), pa.schema([("x", pa.float64())]))
    assert nan["x"].to_pylist() == [None, float("inf"), float("-inf")]
    assert conform(table.slice(0, 0), schema).num_rows == 0
    with pytest.raises(BadData, match="column x was not there"):
        conform(table, schema.remove(1))
    with pytest.raises(BadData, match="does not fit") as raised:
        conform(pa.table({"x": [2**53 + 1]}), schema)
    assert raised.value.code == "SCHEMA-CLASH"


def family(kind: pa.DataType) -> str:
    """What holds the same sort of value, to those who read it."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "text" if "string" in str(kind) else str(kind)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
def test_whatever_joins_holds_the_values_of_all(kinds: list[pa.DataType]) -> None:
    def sample(kind: pa.DataType) -> pa.Array:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_null(plain):
            return pa.nulls(2)
        one = "a" if pa.types.is_string(plain) or pa.types.is_large_string(plain) else 1
        values = pa.array([one, None]).cast(plain)
        return values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values

    tables = [pa.table({"x": sample(kind)}) for kind in kinds]
    schemas = [(str(at), table.schema) for at, table in enumerate(tables)]
    families = {family(kind) for kind in kinds} - {"null"}
    if len(families) > 1:
        with pytest.raises(BadData, match="column x holds"):
            join_schemas(schemas)
        return
    schema = join_schemas(schemas)
    for table in tables:
        before, after = table["x"].to_pylist(), conform(table, schema)["x"].to_pylist()
        assert [value is None for value in before] == [value is None for value in after]
        assert before == after
    assert join_schemas([("joined", schema)]) == schema


def test_values_of_dictionaries_compare_as_text(parts: list[Path]) -> None:
    metadata = Metadata("cells", parts)
    found = metadata.where(In("cell type", ("B", "T")))
    np.testing.assert_array_equal(found, metadata.where(parse("\"cell type\" < 'NK' OR \"cell type\" > 'NK'")))
    np.testing.assert_array_equal(
        metadata.where(Prefix("cell type", "N")), metadata.where(Compare("cell type", "eq", "NK"))
    )

"""Corpora: written in blocks, opened again, and refused when their parts do not fit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chromseek.data.errors import BadArgument, BadData, NotFound, StorageError
from chromseek.data.simulate import Simulation, toy
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.encoder.corpus import Corpus, is_corpus, parquet_blocks


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    """600 cells over 3,000 regions."""
    return toy()


@pytest.fixture(scope="module")
def cells(simulation: Simulation) -> SetBlock:
    """All of them in one block."""
    return next(iter(simulation.cells(block_size=10_000)))


@pytest.fixture(scope="module")
def corpus(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Written in blocks of 100."""
    folder = tmp_path_factory.mktemp("corpus") / "cells"
    return Corpus.write(folder, simulation.cells(block_size=100), simulation.universe)


def block(tokens: list[list[int]], **columns: pa.Array) -> SetBlock:
    """A block of these sets and columns."""
    sets = TokenSets.from_lists(tokens)
    return SetBlock([f"c{n}" for n in range(len(sets))], sets, sets.sizes, sets.sizes, None, pa.table(columns))


def test_what_was_written_is_read(corpus: Corpus, cells: SetBlock, simulation: Simulation) -> None:
    assert len(corpus) == len(cells)
    assert isinstance(corpus.all.tokens, np.memmap)
    assert np.array_equal(corpus.all.tokens, cells.sets.tokens)
    assert np.array_equal(corpus.all.offsets, cells.sets.offsets)
    assert corpus.rows.column("name").to_pylist() == cells.names
    assert corpus.universe.digest == simulation.universe.digest


def test_some_rows_in_their_order(corpus: Corpus, cells: SetBlock) -> None:
    rows = np.array([7, 3, 3, 599])
    some = corpus.sets(rows)
    assert [set_.tolist() for set_ in map(some.__getitem__, range(4))] == [cells.sets[row].tolist() for row in rows]


def test_labels_are_codes(corpus: Corpus, cells: SetBlock) -> None:
    codes, names = corpus.labels("cell_type")
    assert [names[code] for code in codes] == cells.metadata["cell_type"].cast(pa.string()).to_pylist()
    with pytest.raises(BadArgument, match="no input has a column nothing"):
        corpus.labels("nothing")


def test_nulls_have_no_label_and_columns_join(simulation: Simulation, tmp_path: Path) -> None:
    category = pa.array(["b", "a"]).dictionary_encode()
    blocks = [block([[1], []], kind=category), block([[2, 3]], other=pa.array([1])), block([[4]], kind=pa.array([""]))]
    corpus = Corpus.write(tmp_path / "c", blocks, simulation.universe)
    codes, names = corpus.labels("kind")
    assert (codes.tolist(), names) == ([1, 0, -1, -1], ["a", "b"])
    assert corpus.rows.column("other").to_pylist() == [None, None, 1, None]
    assert corpus.all.sizes.tolist() == [1, 0, 2, 1]


def test_a_corpus_of_nothing(simulation: Simulation, tmp_path: Path) -> None:
    corpus = Corpus.write(tmp_path / "c", [], simulation.universe)
    assert len(corpus) == 0
    assert len(corpus.sets(np.empty(0, np.int64))) == 0


def test_nothing_is_left_of_what_fails(simulation: Simulation, tmp_path: Path) -> None:
    bad = [block([[1]]), block([[len(simulation.universe)]])]
    with pytest.raises(BadData, match="none of the universe"):
        Corpus.write(tmp_path / "c", bad, simulation.universe)
    clash = [block([[1]], kind=pa.array(["a"])), block([[1]], kind=pa.array([1.5]))]
    with pytest.raises(BadData, match="do not join"):
        Corpus.write(tmp_path / "c", clash, simulation.universe)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError) as refused:
        Corpus.write(tmp_path, [], simulation.universe)
    assert refused.value.exit_code == 73
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("damage", ["tokens.npy", "offsets.npy", "rows.parquet", "universe.bed.gz", "corpus.json"])
def test_damage_is_found(corpus: Corpus, tmp_path: Path, damage: str) -> None:
    for file in corpus.folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.name == damage else content)
    with pytest.raises(BadData):
        Corpus.open(tmp_path)
    assert is_corpus(tmp_path)
    with pytest.raises(NotFound):
        Corpus.open(tmp_path / "nowhere")


def test_parts_of_another_corpus_do_not_fit(corpus: Corpus, simulation: Simulation, tmp_path: Path) -> None:
    other = Corpus.write(tmp_path / "other", simulation.cells(stop=50), simulation.universe)
    (other.folder / "tokens.npy").write_bytes((corpus.folder / "tokens.npy").read_bytes())
    with pytest.raises(BadData, match="do not fit"):
        Corpus.open(other.folder)


def test_pretokenized_parquet(simulation: Simulation, tmp_path: Path) -> None:
    n = len(simulation.universe)
    ids = [[5, 2, 5, n], [], [n + 6, 7]]  # repeats, an unknown, a special
    pq.write_table(pa.table({"input_ids": ids, "barcode": ["x", "y", "z"], "kind": ["a", "b", "a"]}), tmp_path / "p")
    corpus = Corpus.write(tmp_path / "c", parquet_blocks(tmp_path / "p", simulation.universe), simulation.universe)
    assert [corpus.all[row].tolist() for row in range(3)] == [[2, 5], [], [7]]
    assert corpus.rows.to_pydict() == {"name": ["x", "y", "z"], "kind": ["a", "b", "a"]}


def test_parquet_over_another_universe_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    for ids, said in (([[10**6]], "token 1000000 is none"), ([[-1]], "token -1")):
        pq.write_table(pa.table({"input_ids": ids}), tmp_path / "p")
        with pytest.raises(BadData, match=said):
            list(parquet_blocks(tmp_path / "p", simulation.universe))
    pq.write_table(pa.table({"ids": [[1]]}), tmp_path / "p")
    with pytest.raises(BadData, match="no column input_ids"):
        list(parquet_blocks(tmp_path / "p", simulation.universe))
    (tmp_path / "p").write_text("no parquet")
    with pytest.raises(BadData):
        list(parquet_blocks(tmp_path / "p", simulation.universe))

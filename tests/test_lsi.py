"""LSI: fitted, saved, loaded, and what it makes of odd sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from chromseek.data.errors import BadArgument, BadData, NotFound
from chromseek.data.simulate import toy
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.encoder import base
from chromseek.encoder.lsi import FACTOR, LSI, PIECE, pieces

NO_SETS = TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32))


@pytest.fixture(scope="module")
def cells() -> SetBlock:
    """The cells of the toy simulation, in one block."""
    return next(iter(toy().cells(block_size=10_000)))


@pytest.fixture(scope="module")
def encoder(cells: SetBlock) -> LSI:
    """Fitted on the toy's cells and BED sets."""
    return LSI.fit(cells.sets, toy().beds().sets, toy().universe, dim=16)


def nearest_label_share(vectors: np.ndarray, labels: np.ndarray) -> float:
    """How often the nearest other row has the same label."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    return float((labels[similarity.argmax(axis=1)] == labels).mean())


def test_neighbours_share_their_lineage(cells: SetBlock, encoder: LSI) -> None:
    labels = np.array(cells.metadata["lineage"].cast("string").to_pylist())
    assert nearest_label_share(encoder.encode(cells.sets, "cell"), labels) > 0.9


def test_vectors_are_unit_and_empty_sets_zero(encoder: LSI) -> None:
    sets = TokenSets.from_lists([[1, 2, 3], [], [5]])
    for kind in base.KINDS:
        norms = np.linalg.norm(encoder.encode(sets, kind), axis=1)
        assert norms[1] == 0
        assert norms[[0, 2]] == pytest.approx(1, abs=1e-5)
    assert encoder.encode(NO_SETS, "cell").shape == (0, 16)


def test_a_block_encodes_as_its_rows_do(cells: SetBlock, encoder: LSI) -> None:
    whole = encoder.encode(cells.sets.slice(0, 50), "cell")
    single = np.concatenate([encoder.encode(cells.sets.slice(i, i + 1), "cell") for i in range(50)])
    assert np.abs(whole - single).max() < 1e-5


def test_weights_are_the_documented_formula(cells: SetBlock) -> None:
    encoder = LSI.fit(cells.sets, NO_SETS, toy().universe, dim=8)
    arrays = encoder.arrays()
    kept = cells.sets.take(np.flatnonzero(cells.sets.sizes))
    df = np.bincount(kept.tokens, minlength=len(toy().universe))
    seen = df > 0
    assert arrays["idf"][seen] == pytest.approx((len(kept) / df[seen]), rel=1e-5)
    tokens = kept[0]
    weights = np.log1p(FACTOR * arrays["idf"][tokens])
    raw = (weights[:, None] * arrays["components"][tokens].astype(np.float64)).sum(axis=0)
    expected = base.centred(base.unit(raw[None].astype(np.float32)), arrays["means"], "cell")[0]
    assert float(expected @ encoder.encode(kept.slice(0, 1), "cell")[0]) > 0.9999


def test_the_mean_of_each_kind_is_taken_off(cells: SetBlock, encoder: LSI) -> None:
    vectors = encoder.encode(cells.sets, "cell")
    assert np.linalg.norm(vectors.mean(axis=0)) < 0.2  # cosines are spread around zero, not around a common direction


def test_large_sets_are_summed_in_pieces(encoder: LSI) -> None:
    rng = np.random.default_rng(0)
    tokens = np.sort(rng.integers(0, len(encoder.universe), 3 * PIECE + 7)).astype(np.int32)
    large = TokenSets(np.array([0, 5, len(tokens)]), tokens)
    owners, starts = pieces(large.offsets)
    assert owners.tolist() == [0, 1, 1, 1, 1]
    assert starts.tolist() == [0, 5, 5 + PIECE, 5 + 2 * PIECE, 5 + 3 * PIECE]
    components = encoder.arrays()["components"].astype(np.float64)
    expected = components[tokens[5:]].sum(axis=0)
    found = encoder._project(large, "region")[1]
    assert float(expected @ found) / np.linalg.norm(expected) > 0.9999


def test_regions_only_in_bed_sets_have_vectors(cells: SetBlock) -> None:
    half = len(toy().universe) // 2
    low = TokenSets.from_lists([t[t < half] for t in (cells.sets[i] for i in range(len(cells)))])
    encoder = LSI.fit(low, toy().beds().sets, toy().universe, dim=8)
    in_beds = np.unique(toy().beds().sets.tokens)
    singles = TokenSets(np.arange(len(in_beds) + 1), in_beds)
    assert (np.linalg.norm(encoder.encode(singles, "region"), axis=1) > 0.99).all()


def test_bed_sets_alone_can_be_fitted() -> None:
    beds = toy().beds()
    encoder = LSI.fit(NO_SETS, beds.sets, toy().universe, dim=8)
    labels = np.array(beds.metadata["lineage"].cast("string").to_pylist())
    assert nearest_label_share(encoder.encode(beds.sets, "bed"), labels) > 0.7


def test_too_few_sets_are_refused() -> None:
    with pytest.raises(BadData, match="2 sets with tokens are too few"):
        LSI.fit(TokenSets.from_lists([[1], [2], []]), NO_SETS, toy().universe)


def test_saved_and_loaded_it_is_the_same(encoder: LSI, cells: SetBlock, tmp_path: Path) -> None:
    base.save(encoder, tmp_path / "lsi")
    loaded = base.load(tmp_path / "lsi")
    assert base.fingerprint(loaded) == base.fingerprint(encoder)
    assert (loaded.encode(cells.sets, "cell") == encoder.encode(cells.sets, "cell")).all()
    assert sorted(p.name for p in (tmp_path / "lsi").iterdir()) == [
        "config.json",
        "model.safetensors",
        "universe.bed.gz",
    ]


def test_fitting_is_repeatable(encoder: LSI, cells: SetBlock) -> None:
    again = LSI.fit(cells.sets, toy().beds().sets, toy().universe, dim=16)
    assert base.fingerprint(again) == base.fingerprint(encoder)


@pytest.fixture
def folder(encoder: LSI, tmp_path: Path) -> Path:
    """A saved encoder to be damaged."""
    base.save(encoder, tmp_path / "lsi")
    return tmp_path / "lsi"


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"no model\.safetensors"):
        base.load(folder)


def test_a_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    with pytest.raises(BadData, match="pickle"):
        base.load(folder)


@pytest.mark.parametrize("content", [b"", b"garbage that is no safetensors file at all", b"\xff" * 100])
def test_rubbish_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BadData, match="safetensors"):
        base.load(folder)


def test_rubbish_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{]")
    with pytest.raises(BadData, match="not JSON"):
        base.load(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadData, match="lacks model_type"):
        base.load(folder)


def test_another_universe_is_refused(folder: Path) -> None:
    toy(seed=1).universe.save(folder / "universe.bed.gz")
    with pytest.raises(BadData, match="universe is not the one"):
        base.load(folder)


def test_nan_weights_are_refused(folder: Path, encoder: LSI) -> None:
    from safetensors.numpy import save_file

    arrays = {key: np.array(value) for key, value in encoder.arrays().items()}
    arrays["means"][0, 0] = np.nan
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(BadData, match="NaN"):
        base.load(folder)


def test_weights_of_another_shape_are_refused(folder: Path, encoder: LSI) -> None:
    from safetensors.numpy import save_file

    arrays = {key: np.array(value) for key, value in encoder.arrays().items()}
    save_file(arrays | {"idf": arrays["idf"][:-1]}, folder / "model.safetensors")
    with pytest.raises(BadData, match="idf does not fit"):
        base.load(folder)
    del arrays["idf"]
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(BadData, match="lack idf"):
        base.load(folder)


def test_unknown_encoders_are_named(folder: Path) -> None:
    with pytest.raises(BadArgument, match="unknown encoder nope"):
        base.encoder_class("nope")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "other"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadArgument, match="unknown encoder other"):
        base.load(folder)

"""Vectors: exact search against brute force, lists against exact, filters near and far."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadData
from chromseek.indexer import vectors as module
from chromseek.indexer.segment import VectorWriter
from chromseek.indexer.vectors import Vectors, ranked, train_quantiser, write_codes


def clustered(n: int, dim: int, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around cluster centres, and their clusters."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((n_clusters, dim))
    labels = rng.integers(0, n_clusters, n)
    points = centres[labels] + 0.5 * rng.standard_normal((n, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def stored(folder: Path, parts: list[np.ndarray], *, indexed: bool) -> Vectors:
    """Write vectors as segments and open them."""
    paths, codes = [], []
    whole = np.concatenate(parts).astype(np.float32)
    centroids = train_quantiser(whole, len(whole)) if indexed else None
    for number, part in enumerate(parts):
        paths.append(folder / f"{number}.npy")
        writer = VectorWriter(paths[-1], len(part), part.shape[1])
        writer.add(part)
        writer.close()
        if centroids is not None:
            codes.append(folder / f"{number}.faiss")
            write_codes(codes[-1], centroids, part.astype(np.float16), whole)
    return Vectors(paths, codes)


def brute(whole: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None) -> np.ndarray:
    """The k best rows by score, equal scores by row, the slow way."""
    data = whole.astype(np.float16).astype(np.float32)
    out = np.full((len(queries), k), -1)
    for number, query in enumerate(queries):
        scored = [(-float(np.float32(data[r] @ query)), r) for r in (range(len(data)) if rows is None else rows)]
        best = [r for _, r in sorted(scored)[:k]]
        out[number, : len(best)] = best
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 10_000), st.booleans())
def test_exact_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory, n: int, n_queries: int, k: int, some: bool, seed: int, two: bool
) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(-2, 3, (n, 4)).astype(np.float32) / 4  # few small numbers: many ties, no rounding
    queries = rng.integers(-2, 3, (n_queries, 4)).astype(np.float32) / 4
    rows = np.flatnonzero(rng.random(n) < 0.5) if some else None
    parts = np.array_split(whole, 2) if two and n > 1 else [whole]
    view = stored(tmp_path_factory.mktemp("v"), parts, indexed=False)
    found, scores = view.exact(queries, k, rows)
    assert (found == brute(whole, queries, k, rows)).all()
    assert (np.isneginf(scores) == (found < 0)).all()


def test_exact_in_many_blocks_equals_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = clustered(1_000, 8, 5, 1)
    view = stored(tmp_path, [whole[:400], whole[400:]], indexed=False)
    expected = view.exact(whole[:20], 7)
    monkeypatch.setattr(module, "BLOCK", 8 * 90)
    again = stored(tmp_path, [whole[:400], whole[400:]], indexed=False).exact(whole[:20], 7)
    assert (again[0] == expected[0]).all()
    assert again[1] == pytest.approx(expected[1], abs=1e-6)


def test_duplicates_beyond_the_spare_places_come_by_row(tmp_path: Path) -> None:
    whole = np.tile(np.array([[1.0, 0.0]], np.float32), (100, 1))
    view = stored(tmp_path, [whole], indexed=False)
    assert view.exact(whole[:1], 5)[0][0].tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, np.ndarray, np.ndarray]:
    """12,000 vectors in 30 clusters, in two segments with lists."""
    whole, labels = clustered(12_000, 32, 30, 2)
    return stored(tmp_path_factory.mktemp("indexed"), [whole[:7_000], whole[7_000:]], indexed=True), whole, labels


def share(found: np.ndarray, truth: np.ndarray) -> float:
    """Recall over all places that the truth fills."""
    return float(
        np.mean([len(np.intersect1d(f[f >= 0], t[t >= 0])) / (t >= 0).sum() for f, t in zip(found, truth, strict=True)])
    )


def test_lists_reach_their_recall(indexed: tuple[Vectors, np.ndarray, np.ndarray]) -> None:
    view, _, _ = indexed
    queries, _ = clustered(100, 32, 30, 3)
    found, scores = view.probed(queries, 10, 32)
    truth, true_scores = view.exact(queries, 10)
    assert share(found, truth) > 0.95
    same = found == truth
    assert scores[same] == pytest.approx(true_scores[same], abs=1e-5)


@pytest.mark.parametrize("n_allowed", [3, 40, 400])
def test_a_filter_far_from_the_query_costs_no_recall(
    indexed: tuple[Vectors, np.ndarray, np.ndarray], n_allowed: int
) -> None:
    view, whole, labels = indexed
    for cluster in range(5):
        rows = np.flatnonzero(labels == cluster)[:n_allowed]
        queries = whole[labels == cluster + 10][:20]
        found, _ = view.probed(queries, 10, 8, rows)
        truth, _ = view.exact(queries, 10, rows)
        assert np.isin(found[found >= 0], rows).all()
        assert ((found >= 0).sum(axis=1) == min(10, len(rows))).all()
        assert share(found, truth) > 0.97


def test_k_beyond_the_rows_leaves_places_empty(indexed: tuple[Vectors, np.ndarray, np.ndarray]) -> None:
    view, whole, _ = indexed
    found, scores = view.probed(whole[:2], 300, 1, np.arange(100))
    assert ((found >= 0).sum(axis=1) == 100).all()
    assert np.isneginf(scores[found < 0]).all()
    nothing, _ = view.probed(whole[:2], 3, 1, np.empty(0, np.int64))
    assert (nothing == -1).all()


def test_all_rows_can_be_had_from_lists(indexed: tuple[Vectors, np.ndarray, np.ndarray]) -> None:
    view, whole, _ = indexed
    found, _ = view.probed(whole[:1], len(whole), 1)
    assert sorted(found[0].tolist()) == list(range(len(whole)))


def test_ranked_puts_absent_rows_last() -> None:
    rows, scores = ranked(np.array([[5, -1, 3]]), np.array([[0.5, -np.inf, 0.5]], np.float32), 4)
    assert rows.tolist() == [[3, 5, -1, -1]]
    assert scores[0, :2].tolist() == [0.5, 0.5]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole, _ = clustered(500, 8, 5, 1)
    stored(tmp_path, [whole], indexed=True)
    (tmp_path / "0.faiss").write_bytes(b"rubbish")
    with pytest.raises(BadData, match="not readable as an index"):
        Vectors([tmp_path / "0.npy"], [tmp_path / "0.faiss"])
    (tmp_path / "0.npy").write_bytes(b"rubbish")
    with pytest.raises(BadData, match="not readable as vectors"):
        Vectors([tmp_path / "0.npy"], [])
    np.save(tmp_path / "0.npy", np.zeros((3, 4)))
    with pytest.raises(BadData, match="float16"):
        Vectors([tmp_path / "0.npy"], [])


def test_an_index_of_other_vectors_is_refused(tmp_path: Path) -> None:
    whole, _ = clustered(500, 8, 5, 1)
    stored(tmp_path, [whole], indexed=True)
    writer = VectorWriter(tmp_path / "short.npy", 400, 8)
    writer.add(whole[:400])
    writer.close()
    with pytest.raises(BadData, match="index of 500 rows"):
        Vectors([tmp_path / "short.npy"], [tmp_path / "0.faiss"])

"""Label transfer: the kernel, the vote and the mean against brute force, and what they promise."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from chromseek.search.hits import Hits, encode_labels
from chromseek.search.transfer import kernel_weights, vote, weighted_mean

NEIGHBOURS = st.tuples(st.integers(1, 6), st.integers(1, 12))
distances = NEIGHBOURS.flatmap(
    lambda shape: npst.arrays(np.float64, shape, elements=st.one_of(st.just(0.0), st.floats(1e-6, 2)))
)


def neighbours(seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64], int]:
    """Distances in order, which places are filled, and labels, -1 for none."""
    rng = np.random.default_rng(seed)
    q, k, n_labels = rng.integers(1, 6), rng.integers(1, 12), int(rng.integers(1, 5))
    d = np.sort(rng.choice([0, 0.1, 0.2, 0.5, 1.0, 1.9], (q, k)), axis=1)
    found = np.arange(k) < rng.integers(0, k + 1, (q, 1))
    return d, found, np.where(found, rng.integers(-1, n_labels, (q, k)), -1), n_labels


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100_000))
def test_votes_equal_brute_force(seed: int) -> None:
    d, found, codes, n_labels = neighbours(seed)
    weights = kernel_weights(np.where(found, d, np.inf), found)
    winner, share, shares = vote(codes, weights, n_labels)
    for query in range(len(d)):
        there = np.flatnonzero(found[query])
        mean = sum(d[query, there]) / max(1, len(there))
        masses = [0.0] * n_labels
        first = [len(d[query])] * n_labels
        for place in there:
            weight = math.exp(-d[query, place] / mean) if mean > 0 else 1.0
            assert weights[query, place] == pytest.approx(weight)
            if codes[query, place] >= 0:
                masses[codes[query, place]] += weight
                first[codes[query, place]] = min(first[codes[query, place]], int(place))
        total = sum(masses)
        if total == 0:
            assert (winner[query], share[query]) == (-1, 0)
            assert (shares[query] == 0).all()
            continue
        best = max(masses)
        tied = [label for label in range(n_labels) if masses[label] >= best * (1 - 1e-9)]
        assert winner[query] == min(tied, key=lambda label: first[label])
        assert share[query] == pytest.approx(best / total)
        assert shares[query] == pytest.approx(np.array(masses) / total)


@given(distances, st.floats(1e-3, 1e3))
def test_the_scale_of_the_space_does_not_matter(d: NDArray[np.float64], factor: float) -> None:
    found = np.ones(d.shape, bool)
    assert kernel_weights(d * factor, found) == pytest.approx(kernel_weights(d, found), rel=1e-9)


@given(distances)
def test_weights_fall_with_distance_and_are_never_nan(d: NDArray[np.float64]) -> None:
    d = np.sort(d, axis=1)
    weights = kernel_weights(d, np.ones(d.shape, bool))
    assert (np.diff(weights, axis=1) <= 1e-12).all()
    assert ((weights >= 0) & (weights <= 1)).all()


def test_nothing_is_divided_by_zero() -> None:
    with np.errstate(all="raise"):
        weights = kernel_weights(np.zeros((2, 3)), np.array([[True] * 3, [False] * 3]))
        assert weights.tolist() == [[1, 1, 1], [0, 0, 0]]
        winner, share, shares = vote(np.full((2, 3), -1), weights, 2)
        assert (winner.tolist(), share.tolist(), shares.tolist()) == ([-1, -1], [0, 0], [[0, 0], [0, 0]])
        winner, share, _ = vote(np.full((1, 3), -1), weights[:1], 0)  # a label that no neighbour has
        assert (winner.tolist(), share.tolist()) == ([-1], [0])
        mean, sd = weighted_mean(np.full((2, 3), np.nan), weights)
        assert np.isnan(mean).all()
        assert np.isnan(sd).all()


@settings(max_examples=200, deadline=None)
@given(npst.arrays(np.float64, st.integers(5, 40), elements=st.floats(1e-6, 2)))
def test_a_duplicate_cannot_outvote_the_others(d: NDArray[np.float64]) -> None:
    d = np.sort(np.append(0.0, d))[None]
    codes = np.ones(d.shape, np.int64)
    codes[0, 0] = 0
    winner, share, _ = vote(codes, kernel_weights(d, np.ones(d.shape, bool)), 2)
    assert winner.tolist() == [1]
    assert share[0] > 0.5


def test_a_tie_goes_to_the_nearest_not_to_the_alphabet() -> None:
    weights = np.ones((2, 4))
    winner, share, _ = vote(np.array([[3, 0, 0, 3], [-1, 0, 3, -1]]), weights, 4)
    assert winner.tolist() == [3, 0]
    assert share.tolist() == [0.5, 0.5]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100_000))
def test_means_equal_numpys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(0, 100, (3, 8)), rng.random((3, 8)) + 1e-3
    values[rng.random((3, 8)) < 0.3] = np.nan
    values[:, 0] = 1.0
    mean, sd = weighted_mean(values, weights)
    for query in range(3):
        known = np.isfinite(values[query])
        expected = np.average(values[query, known], weights=weights[query, known])
        spread = np.average((values[query, known] - expected) ** 2, weights=weights[query, known])
        assert mean[query] == pytest.approx(expected)
        assert sd[query] == pytest.approx(np.sqrt(spread))


def test_labels_are_sorted_and_null_is_none_of_them() -> None:
    for column in (pa.array(["b", None, "a", "b"]), pa.array(["b", None, "a", "b"]).dictionary_encode()):
        labels, codes = encode_labels(pa.chunked_array([column]))
        assert (labels.tolist(), codes.tolist()) == (["a", "b"], [1, -1, 0, 1])
    labels, codes = encode_labels(pa.chunked_array([pa.array([True, False, None])]))
    assert (labels.tolist(), codes.tolist()) == (["false", "true"], [1, 0, -1])
    labels, codes = encode_labels(pa.chunked_array([pa.nulls(2, pa.string())]))
    assert (labels.tolist(), codes.tolist()) == ([], [-1, -1])


def test_predictions_of_many_queries_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"label": rng.choice(["x", "y", "z"], 50), "age": rng.integers(20, 60, 50)})
    rows = rng.integers(-1, 50, (30, 6))

    def take(wanted: NDArray[np.int64], columns: object) -> pa.Table:
        return table.select(columns).take(pa.array(wanted, mask=wanted < 0))

    scores = np.where(rows >= 0, rng.random((30, 6)), -np.inf).astype(np.float32)
    hits = Hits(rows, scores, rows, tuple("q" * 30), np.ones(30, np.float32), {}, {}, take)
    whole = hits.predict(["label", "age"])
    monkeypatch.setattr("chromseek.search.hits.SHARES", 10)
    pd.testing.assert_frame_equal(hits.predict(["label", "age"]), whole)

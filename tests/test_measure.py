"""How good answers are: recall, the choice of probes, and the sanity score of a direction."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.indexer.segment import VectorWriter
from chromseek.indexer.vectors import Vectors, train_quantiser, write_codes
from chromseek.search.atlas import Atlas
from chromseek.search.measure import CHANCE, choose_probes, mean_auc, recall, sanity

N_TOKENS = 300


def programme_sets(n: int, size: int, rng: np.random.Generator) -> tuple[TokenSets, NDArray[np.float32]]:
    """Sets of one of three programmes, and vectors that say which."""
    of = rng.integers(0, 3, n)
    sets = TokenSets.from_lists([rng.choice(np.arange(100 * p, 100 * p + 100), size, replace=False) for p in of])
    vectors = np.eye(3)[of] + 0.1 * rng.standard_normal((n, 3))
    return sets, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def samples(*, true: bool) -> dict[str, tuple[TokenSets, NDArray[np.float32]]]:
    """Cells, BED sets and regions with vectors that are right, or random."""
    rng = np.random.default_rng(1)
    found = {"cells": programme_sets(150, 20, rng), "beds": programme_sets(40, 60, rng)}
    found["regions"] = programme_sets(100, 1, rng)
    if not true:
        noise = {name: rng.standard_normal((len(sets), 16)).astype(np.float32) for name, (sets, _) in found.items()}
        return {name: (sets, noise[name]) for name, (sets, _) in found.items()}
    return found


def test_true_vectors_score_high_and_random_ones_at_chance() -> None:
    good, bad = sanity(samples(true=True), N_TOKENS), sanity(samples(true=False), N_TOKENS)
    assert list(good) == [f"{a} → {b}" for a in samples(true=True) for b in samples(true=True)]
    for direction, score in good.items():
        assert score is not None
        assert score > 0.8, direction
    for direction, score in bad.items():
        assert score == pytest.approx(0.5, abs=0.05), direction
        assert score is not None
        assert score < CHANCE


def test_vectors_turned_round_score_below_chance() -> None:
    given = samples(true=True)
    given["beds"] = (given["beds"][0], -given["beds"][1])
    scores = sanity(given, N_TOKENS)
    assert (scores["cells → beds"] or 1) < 0.3
    assert (scores["beds → beds"] or 0) > 0.8  # among themselves they agree


def test_too_few_rows_give_no_score() -> None:
    given = samples(true=True)
    sets, vectors = given["beds"]
    given["beds"] = (sets.slice(0, 5), vectors[:5])
    scores = sanity(given, N_TOKENS)
    assert scores["cells → beds"] is None
    assert scores["beds → beds"] is None
    assert scores["cells → cells"] is not None
    nothing = (TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32)), np.empty((0, 3), np.float32))
    assert set(sanity({"cells": nothing}, N_TOKENS).values()) == {None}
    assert sanity({"regions": given["regions"]}, N_TOKENS) == {"regions → regions": None}
    assert sanity({}, N_TOKENS) == {}


def test_the_area_equals_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (6, 30)).astype(np.float32)  # many ties
    shared = rng.random((6, 30))
    areas = []
    for query in range(6):
        related = shared[query] - shared[query].mean() - shared.mean(axis=0)
        top = np.argsort(-related)[:3]
        others = np.setdiff1d(np.arange(30), top)
        wins = [(scores[query, t] > scores[query, o]) + 0.5 * (scores[query, t] == scores[query, o])
                for t in top for o in others]  # fmt: skip
        areas.append(np.mean(wins))
    assert mean_auc(scores, shared, same=False) == pytest.approx(np.mean(areas), abs=1e-4)
    assert mean_auc(scores, np.zeros((6, 30)), same=False) is None


def test_recall_counts_what_is_there() -> None:
    truth = np.array([[1, 2, 3, -1], [4, -1, -1, -1]])
    assert recall(np.array([[3, 2, 9, -1], [4, 8, -1, -1]]), truth) == pytest.approx((2 / 3 + 1) / 2)
    assert recall(truth, truth) == 1
    assert recall(np.full((2, 4), -1), truth) == 0
    assert recall(np.empty((0, 4)), np.empty((0, 4))) == 1


@pytest.mark.parametrize("share_empty", [0.0, 0.3])
def test_probes_are_chosen_for_recall(tmp_path: Path, share_empty: float) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((6_000, 16)).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    data[rng.random(6_000) < share_empty] = 0  # cells without a token: as far from all, so they tell nothing
    writer = VectorWriter(tmp_path / "v.npy", 6_000, 16)
    writer.add(data)
    writer.close()
    known = data[data.any(axis=1)]
    write_codes(tmp_path / "c.faiss", train_quantiser(known, 6_000), data.astype(np.float16), known)
    vectors = Vectors([tmp_path / "v.npy"], [tmp_path / "c.faiss"])
    n_probe, reached = choose_probes(vectors, target=0.9)
    assert n_probe < vectors.n_lists / 2
    queries = known[1_000:1_200]
    truth = vectors.exact(queries, 11)[0][:, 1:]
    measured = recall(vectors.probed(queries, 11, n_probe)[0][:, 1:], truth)
    assert reached >= 0.9
    assert measured == pytest.approx(reached, abs=0.03)
    assert choose_probes(vectors, target=1.1) == (vectors.n_lists, pytest.approx(1, abs=0.01))


def test_every_direction_of_the_toy_is_sane(atlas: Atlas) -> None:
    scores = atlas.info()["calibration"]["sanity"]
    assert len(scores) == 9
    assert min(scores.values()) > 0.65
    assert not any("chance" in warning for warning in atlas.warnings())

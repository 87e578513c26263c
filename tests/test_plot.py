"""Pictures: the kernels against brute force, and files that appear whatever the labels are called."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument
from chromseek.encoder.base import unit
from chromseek.search import plot

extra = pytest.mark.skipif(not plot.available(), reason="the plot extra is not installed")
FAMILIES = {"CD4 T": "T", "CD8 T": "T", "$x_{": "_odd", "_hidden": "_odd", "B": "B"}


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32))


@given(st.integers(2, 60), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_those_of_brute_force(n: int, seed: int) -> None:
    vectors, k = unit_vectors(n, seed), min(n, 7)
    rows, distances = plot.neighbours(vectors, k)
    every = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)
    np.fill_diagonal(every, -1)
    assert rows[:, 0].tolist() == list(range(n))
    assert distances[:, 0].tolist() == [0] * n
    assert np.allclose(distances[:, 1:], np.sort(every, axis=1)[:, 1:k], atol=2e-3)


def test_neighbours_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(50)
    whole = plot.neighbours(vectors, 5)[0]
    monkeypatch.setattr(plot, "BLOCK", 7)
    assert np.array_equal(plot.neighbours(vectors, 5)[0], whole)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2, st.floats(1, 20), st.floats(1, 8)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_texts_do_not_overlap_where_there_is_room(boxes: list[tuple[float, float, float, float]]) -> None:
    corners = np.array([(x, y, x + width, y + height) for x, y, width, height in boxes]).reshape(-1, 4)
    limits = np.array([-300.0, -300, 400, 400])
    centres = plot.moved_apart(corners, limits)
    halves = (corners[:, 2:] - corners[:, :2]) / 2
    for a in range(len(boxes)):
        for b in range(a):
            assert (np.abs(centres[a] - centres[b]) >= halves[a] + halves[b] - 1e-6).any()
        assert (centres[a] - halves[a] >= limits[:2]).all()
        assert (centres[a] + halves[a] <= limits[2:]).all()


def test_each_label_has_a_colour_and_marker_of_its_own() -> None:
    families = {f"type {k}": f"lineage {k % 6}" for k in range(24)}
    assert len(set(plot.styles(families).values())) == 24


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert not plot.available()
    with pytest.raises(BadArgument, match=r"pip install 'chromseek\[plot\]'"):
        plot.layout(unit_vectors(20))


@extra
def test_a_layout_keeps_groups_together_and_is_repeatable() -> None:
    rng = np.random.default_rng(1)
    centres = unit_vectors(3, 5)
    group = np.repeat(np.arange(3), 20)
    vectors = unit((centres[group] + rng.normal(0, 0.05, (60, 8))).astype(np.float32))
    plane = plot.layout(vectors)
    assert plane.shape == (60, 2)
    assert np.isfinite(plane).all()
    assert np.array_equal(plane, plot.layout(vectors))
    middles = np.stack([plane[group == g].mean(axis=0) for g in range(3)])
    nearest = np.argmin(np.linalg.norm(plane[:, None] - middles[None], axis=2), axis=1)
    assert (nearest == group).all()


@extra
@pytest.mark.parametrize("n", [0, 4, plot.MAX_POINTS + 1])
def test_a_layout_of_too_few_or_too_many_points_is_refused(n: int) -> None:
    with pytest.raises(BadArgument, match="points"):
        plot.layout(np.zeros((n, 2), np.float32))


@extra
def test_pictures_of_labels_with_any_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(list(FAMILIES), 40)
    points, behind = rng.normal(size=(40, 2)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    confidence, right = rng.random(40), rng.random(40) < 0.5
    files = [tmp_path / name for name in ("maps.png", "confidence.png", "confusion.png")]
    plot.label_maps(
        files[0], points, {"true": labels, "predicted $": labels[::-1]}, families=FAMILIES, background=behind,
        background_labels=labels[:30], title="Simulated",
    )  # fmt: skip
    plot.confidence_map(files[1], points, confidence, background=behind, right=(confidence, right), title="Simulated")
    plot.confusion(files[2], labels, ["B"] * 40, families=FAMILIES, title="Simulated")
    for file in files:
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

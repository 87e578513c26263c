"""Pictures of an annotation: maps by label and by confidence, and a confusion matrix, as PNG.

Needs matplotlib and umap-learn, the `plot` extra; nothing else in chromseek does. Colours hold for colour-blind
readers: a family of labels is a hue, its members differ in lightness and in marker, and each label is written on
the map.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument

HUES = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#56B4E9", "#666666", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
GREY, INK = "#DDDDDD", "#222222"
MAX_POINTS = 20_000  # of a layout: its neighbours are found by comparing all with all
N_NEIGHBOURS = 15
N_EPOCHS = 200
BLOCK = 1024  # rows compared with all others at a time
Style = dict[str, tuple[str, str]]  # label → colour, marker


def available() -> bool:
    """Say whether the `plot` extra is installed."""
    return all(find_spec(name) is not None for name in ("matplotlib", "umap"))


def require() -> None:
    """Raise BadArgument when the `plot` extra is missing."""
    if not available():
        raise BadArgument(
            "pictures need matplotlib and umap-learn, which are not installed",
            code="PLOT-EXTRA",
            fix="pip install 'chromseek[plot]'",
        )


def neighbours(vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest rows of each unit vector, itself first: rows (n, k) and Euclidean distances (n, k).

    >>> neighbours(np.eye(3, dtype=np.float32)[[0, 1, 0]], 2)[0].tolist()
    [[0, 2], [1, 0], [2, 0]]
    """
    n = len(vectors)
    rows, distances = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, BLOCK):
        scores = vectors[start : start + BLOCK] @ vectors.T
        own = np.arange(len(scores))
        scores[own, start + own] = np.inf
        near = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows[start : start + BLOCK] = near
        distances[start : start + BLOCK] = np.sqrt(np.maximum(2 - 2 * np.take_along_axis(scores, near, 1), 0))
    return rows, distances


def layout(vectors: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Lay unit vectors out on a plane by UMAP, (n, dim) → (n, 2); the same seed gives the same plane.

    Raises BadArgument for fewer than 5 or more than 20,000 vectors, or without the extra.
    """
    require()
    if not 5 <= len(vectors) <= MAX_POINTS:
        raise BadArgument(
            f"a map of {len(vectors)} points",
            code="PLOT-POINTS",
            got=len(vectors),
            fix=f"give 5 to {MAX_POINTS} vectors, a random sample of larger sets",
        )
    k = min(N_NEIGHBOURS, len(vectors) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensorflow, which is not used, and about placing new points later
        from umap import UMAP

        found = (*neighbours(vectors, k), None)  # umap's own search for few points takes ten times as long
        plane = UMAP(
            n_neighbors=k, min_dist=0.6, spread=2.0, n_epochs=N_EPOCHS, init="pca", random_state=seed, n_jobs=1,
            precomputed_knn=found,
        ).fit_transform(vectors)  # fmt: skip
    return np.asarray(plane, np.float32)


def styles(families: Mapping[str, str]) -> Style:
    """Give each label of label → family a colour and a marker; a family has a hue, its members a lightness each."""
    members: dict[str, list[str]] = {}
    for label, family in families.items():
        members.setdefault(family, []).append(label)
    chosen: Style = {}
    for number, labels in enumerate(members.values()):
        hue = HUES[number % len(HUES)]
        for place, label in enumerate(labels):
            step = place / max(1, len(labels) - 1)
            light = _mix(hue, "#FFFFFF", (step - 0.5) * min(1.0, len(labels) / 4))
            colour = _mix(hue, "#000000", 0.35 * (1 - 2 * step)) if step < 0.5 else light
            chosen[label] = (colour if len(labels) > 1 else hue, MARKERS[place % len(MARKERS)])
    return chosen


def label_maps(
    path: str | Path,
    points: NDArray[np.float32],
    panels: Mapping[str, Sequence[str]],
    *,
    families: Mapping[str, str],
    background: NDArray[np.float32],
    background_labels: Sequence[str],
    title: str,
) -> None:
    """Draw points (n, 2) once per panel (name → n labels) over the paler background (b, 2), side by side.

    `families` says the family of each label: {"NK": "T and NK", "Plasma": "B"}; others are not drawn.
    """
    require()
    style, dark = styles(families), _dark(families)
    figure = _figure(6.6 * len(panels), 7.9)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(left=0.02, right=0.98, top=0.87, bottom=0.2, wspace=0.04)
    behind, size = np.asarray(background_labels, object), _size(len(points) + len(background))
    for axes, (name, labels) in zip(all_axes, panels.items(), strict=True):
        shown = np.asarray(labels, object)
        for label, (colour, _) in style.items():
            axes.scatter(*background[behind == label].T, s=size / 2, c=_mix(colour, "#FFFFFF", 0.72), linewidths=0)
        for label, (colour, marker) in style.items():
            axes.scatter(*points[shown == label].T, s=size, c=colour, marker=marker, linewidths=0)
        _frame(axes, name)
        _write_labels(figure, axes, points, shown, dark)
    figure.suptitle(_plain(title), fontsize=15, fontweight="bold", color=INK, y=0.965)
    _family_legend(figure, style, families)
    figure.savefig(path, dpi=120)


def confidence_map(
    path: str | Path,
    points: NDArray[np.float32],
    confidence: NDArray[np.float64],
    *,
    background: NDArray[np.float32],
    right: tuple[NDArray[np.float64], NDArray[np.bool_]],
    title: str,
) -> None:
    """Draw points (n, 2) by confidence (n), and beside it how often each level of confidence was right.

    `right` holds the confidence and the outcome of all predictions (m), of which the points are a sample.
    """
    require()
    figure = _figure(13.2, 6.9, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, wspace=0.04)
    axes, bars = figure.subplots(1, 2, width_ratios=(1.9, 1))
    size = _size(len(points) + len(background))
    axes.scatter(*background.T, s=size / 2, c=GREY, linewidths=0)
    order = np.argsort(-confidence)  # the doubtful on top
    dots = axes.scatter(*points[order].T, s=size, c=confidence[order], cmap="viridis", vmin=0, vmax=1, linewidths=0)
    _frame(axes, "cells of the query (the atlas in grey)")
    scale = figure.colorbar(dots, ax=axes, fraction=0.03, pad=0.01, aspect=35)
    scale.set_label("confidence: share of the neighbours' vote", color=INK)
    scale.outline.set_visible(False)
    _reliability(bars, *right)
    figure.suptitle(_plain(title), fontsize=15, fontweight="bold", color=INK)
    figure.savefig(path, dpi=120)


def confusion(
    path: str | Path, true: Sequence[str], predicted: Sequence[str], *, families: Mapping[str, str], title: str
) -> None:
    """Draw which label (rows, in the order of `families`) was predicted as which (columns), in % of the row."""
    require()
    labels = list(families)
    counts = confusion_counts(true, predicted, labels)
    totals = counts.sum(axis=1)
    percent = 100 * counts / np.maximum(totals, 1)[:, None]
    side = 2.4 + 0.44 * len(labels)
    figure = _figure(side + 1.6, side + 0.2, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(percent >= 1).tolist():
        value = percent[row, column]
        colour = "white" if value > 55 else INK
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    shown = [_plain(label) for label in labels]
    axes.set_xticks(range(len(labels)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    names = [f"{label}  ({total:,})" for label, total in zip(shown, totals.tolist(), strict=True)]
    axes.set_yticks(range(len(labels)), names, fontsize=9)
    axes.set_xlabel("predicted", fontsize=11, color=INK)
    axes.set_ylabel("true (cells)", fontsize=11, color=INK)
    edges = [at for at in range(1, len(labels)) if families[labels[at]] != families[labels[at - 1]]]
    for edge in edges:
        axes.axhline(edge - 0.5, color="#888888", linewidth=0.8)
        axes.axvline(edge - 0.5, color="#888888", linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    scale = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=35)
    scale.set_label("% of the cells of the true type", color=INK)
    scale.outline.set_visible(False)
    figure.suptitle(_plain(title), fontsize=14, fontweight="bold", color=INK)
    figure.savefig(path, dpi=120)


def confusion_counts(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Count pairs of true and predicted label, (labels, labels); pairs with another label do not count.

    >>> confusion_counts(["B", "B", "T"], ["B", "T", "T"], ["B", "T"]).tolist()
    [[1, 1], [0, 1]]
    """
    code = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for t, p in zip(true, predicted, strict=True):
        if t in code and p in code:
            counts[code[t], code[p]] += 1
    return counts


def _size(n: int) -> float:
    """The area of a dot where n are drawn."""
    return float(np.clip(60_000 / max(1, n), 12, 30))


def _plain(text: object) -> str:
    """Keep a user's text from being read as a formula, or as a label to hide."""
    safe = str(text).replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe


def _figure(width: float, height: float, layout: str | None = None) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, any thread

    return Figure(figsize=(width, height), facecolor="white", layout=layout)


def _mix(colour: str, other: str, share: float) -> str:
    """Move a colour towards another by a share of the way; a negative share moves nothing."""
    share = max(0.0, share)
    pairs = [(int(colour[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in pairs)


def _frame(axes: Any, name: str) -> None:
    axes.set_title(_plain(name), fontsize=12, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#BBBBBB")
    axes.margins(0.04)


def _reliability(axes: Any, confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> None:
    """Bars: of the predictions with that much confidence, how many were right."""
    edges = np.linspace(0, 1, 6)
    level = np.clip(np.digitize(confidence, edges) - 1, 0, len(edges) - 2)
    counts = np.bincount(level, minlength=len(edges) - 1)
    share = np.bincount(level, right, minlength=len(edges) - 1) / np.maximum(counts, 1)
    axes.bar(np.arange(len(counts)), share * 100, color=HUES[0], width=0.8)
    for at, (count, value) in enumerate(zip(counts.tolist(), share.tolist(), strict=True)):
        text = f"{value:.0%}\n{count:,}" if count else "no\ncells"
        axes.text(at, value * 100 + 1.5, text, ha="center", va="bottom", fontsize=9, color=INK)
    names = [f"{low:.1f} to {high:.1f}" for low, high in pairwise(edges)]
    axes.set_xticks(range(len(counts)), names, fontsize=9)
    axes.set_ylim(0, 115)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel("confidence", color=INK)
    axes.set_ylabel("right (%)", color=INK)
    axes.set_title("how often it was right, of how many cells", fontsize=12, color=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _family_legend(figure: Any, style: Style, families: Mapping[str, str]) -> None:
    """One column per family below the panels."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(families.values()))
    for number, family in enumerate(names):
        members = [label for label in style if families[label] == family]
        dots = [
            Line2D([], [], linestyle="", color=style[label][0], marker=style[label][1], markersize=7)
            for label in members
        ]
        place = ((number + 0.5) / len(names), 0.185)
        figure.legend(
            dots, [_plain(label) for label in members], title=_plain(family), loc="upper center", bbox_to_anchor=place,
            fontsize=9.5, title_fontproperties={"weight": "bold", "size": 10.5}, handletextpad=0.2, labelspacing=0.3,
            frameon=False,
        )  # fmt: skip


def _dark(families: Mapping[str, str]) -> dict[str, str]:
    """The hue of each label's family, dark enough to read as text."""
    names = list(dict.fromkeys(families.values()))
    return {label: _mix(HUES[names.index(family) % len(HUES)], "#000000", 0.45) for label, family in families.items()}


def _write_labels(
    figure: Any, axes: Any, points: NDArray[np.float32], labels: NDArray[np.object_], colours: Mapping[str, str]
) -> None:
    """Write each label at the middle of its points, moved apart where texts would overlap."""
    from matplotlib.patheffects import withStroke

    texts = []
    font = {"ha": "center", "va": "center", "fontsize": 9.5, "fontweight": "bold"}
    for label, colour in colours.items():
        mine = points[labels == label]
        if len(mine):
            halo = [withStroke(linewidth=3, foreground="white")]
            texts.append(axes.text(*np.median(mine, axis=0), _plain(label), color=colour, path_effects=halo, **font))
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    boxes = np.array([text.get_window_extent().extents for text in texts]).reshape(-1, 4)
    limits = np.array(inside.extents)
    to_data = axes.transData.inverted()
    for text, centre in zip(texts, moved_apart(boxes, limits), strict=True):
        text.set_position(to_data.transform(centre))


def moved_apart(boxes: NDArray[np.float64], limits: NDArray[np.float64], *, gap: float = 2.0) -> NDArray[np.float64]:
    """Shift boxes (n, 4: left, bottom, right, top) until none overlap inside the limits (4); return centres (n, 2).

    >>> moved_apart(np.array([[0, 0, 10, 4], [0, 1, 10, 5]]), np.array([0, -20, 20, 20]))[:, 1].round().tolist()
    [-1.0, 6.0]
    """
    halves = (boxes[:, 2:] - boxes[:, :2]) / 2 + gap / 2
    centres = (boxes[:, 2:] + boxes[:, :2]) / 2
    for _ in range(300):
        low, high = limits[:2] + halves, limits[2:] - halves
        centres = np.clip(centres, low, np.maximum(low, high))
        apart = centres[:, None] - centres[None]
        over = halves[:, None] + halves[None] - np.abs(apart)
        touching = (over > 1e-6).all(axis=2) & ~np.eye(len(boxes), dtype=bool)
        if not touching.any():
            break
        a, b = np.argwhere(touching)[0].tolist()
        axis = int(np.argmin(over[a, b]))
        sign = 1.0 if apart[a, b, axis] > 0 or (apart[a, b, axis] == 0 and a > b) else -1.0
        shift = sign * (over[a, b, axis] / 2 + 1e-3)
        centres[a, axis] += shift
        centres[b, axis] -= shift
    return centres

"""Label transfer: what the neighbours of a query say about it. Pure functions over arrays."""

import numpy as np
from numpy.typing import NDArray


def kernel_weights(distances: NDArray[np.floating], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weigh neighbours by exp(-d / mean d of the query's own neighbours), (q, k); absent places weigh 0.

    The kernel is scale-free: multiplying all distances by a number changes nothing. A duplicate at distance 0 weighs
    at most e times the average neighbour (itself among them), so that of six or more it cannot outvote the others.
    """
    d = np.where(found, np.maximum(distances, 0), 0).astype(np.float64)
    mean = d.sum(axis=1, keepdims=True) / np.maximum(found.sum(axis=1, keepdims=True), 1)
    relative = np.divide(d, mean, out=np.zeros_like(d), where=mean > 0)
    return np.where(found, np.exp(-relative), 0.0)


def vote(
    codes: NDArray[np.int64], weights: NDArray[np.float64], n_labels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Let neighbours vote: winner (q), its share (q) and the shares of all labels (q, labels).

    `codes` (q, k) are labels or -1 for neighbours without one, which do not vote. A tie goes to the label of
    the nearest neighbour among the tied, not to the alphabet. Without voters the winner is -1 with share 0.
    """
    queries, valid, width = np.arange(len(codes)), codes >= 0, max(1, n_labels)
    places = np.where(valid, codes, 0) + queries[:, None] * width
    masses = np.bincount(places.ravel(), np.where(valid, weights, 0).ravel(), len(codes) * width)
    masses = masses.reshape(len(codes), width)
    total = masses.sum(axis=1)
    best = masses.max(axis=1)
    shares = np.divide(masses, total[:, None], out=np.zeros_like(masses), where=total[:, None] > 0)
    tied = np.take_along_axis(masses, np.where(valid, codes, 0), 1) >= best[:, None] * (1 - 1e-12)
    nearest = np.argmax(tied & valid, axis=1)
    winner = np.where(total > 0, codes[queries, nearest], -1)
    share = np.divide(best, total, out=np.zeros_like(best), where=total > 0)
    return winner, share, shares


def weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weighted mean and standard deviation of numbers, (q), (q); NaN values do not count."""
    valid = np.isfinite(values)
    w = np.where(valid, weights, 0)
    v = np.where(valid, values, 0)
    total = w.sum(axis=1)
    mean = np.divide((w * v).sum(axis=1), total, out=np.full(len(v), np.nan), where=total > 0)
    spread = w * (v - np.nan_to_num(mean)[:, None]) ** 2
    variance = np.divide(spread.sum(axis=1), total, out=np.full(len(v), np.nan), where=total > 0)
    return mean, np.sqrt(variance)

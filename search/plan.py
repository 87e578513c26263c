"""Which rows are searched, and how: exactly, over gathered rows, or by lists."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chromseek.indexer.vectors import MIN_PROBED, Vectors

GATHER = 20_000  # rows; up to here an exact scan of the matching rows costs little more than probing


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search runs: `exact` over all rows or the allowed ones, else `lists` with this many probes."""

    path: str  # "exact" or "lists"
    n_probe: int


def choose(vectors: Vectors, n_allowed: int, k: int, *, exact: bool, n_probe: int) -> Plan:
    """Choose by cost: exact when asked for, without an index, or when few rows are allowed or most would be probed."""
    few = n_allowed <= max(GATHER, MIN_PROBED * k)
    return Plan("exact", 0) if exact or vectors.n_lists == 0 or few else Plan("lists", n_probe)


def run(
    plan: Plan, vectors: Vectors, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k nearest of the allowed rows (all when None): rows (q, k), scores (q, k)."""
    if plan.path == "exact":
        return vectors.exact(queries, k, rows)
    return vectors.probed(queries, k, plan.n_probe, rows)

"""How good answers are: recall against exact search, and a sanity score for each direction of search."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from chromseek.data.tokens import TokenSets
from chromseek.indexer.vectors import Vectors

CHANCE = 0.55  # a sanity score up to here is no better than guessing
N_SETS, N_REGIONS = 400, 1_000  # sampled for the sanity scores
N_QUERIES = 300  # sampled for recall
SEED = 7_301  # not that of the fit: the rows that an encoder was fitted on lie apart from the others
MIN_ROWS = 10  # a collection with fewer rows gives no score


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The mean share of the true neighbours (q, k) that were found (q, k); absent places (-1) do not count."""
    shares = [
        len(np.intersect1d(f[f >= 0], t[t >= 0])) / max(1, (t >= 0).sum()) for f, t in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares)) if shares else 1.0


def choose_probes(vectors: Vectors, *, target: float = 0.985, k: int = 10) -> tuple[int, float]:
    """The fewest probed lists that reach a recall of `target` on stored rows, and the recall measured with them."""
    queries = vectors.get(np.random.default_rng(SEED).permutation(len(vectors))[: 2 * N_QUERIES])
    queries = queries[queries.any(axis=1)][:N_QUERIES]  # an empty set is as far from all
    truth = vectors.exact(queries, k + 1)[0]  # the row itself, and k others

    def reached(n_probe: int) -> float:
        return (recall(vectors.probed(queries, k + 1, n_probe)[0], truth) * (k + 1) - 1) / k

    few, many = 0, min(8, vectors.n_lists)
    while (found := reached(many)) < target and many < vectors.n_lists:
        few, many = many, min(2 * many, vectors.n_lists)
    while many - few > 1 + many // 16:
        middle = (few + many) // 2
        there = reached(middle)
        if there >= target:
            many, found = middle, there
        else:
            few = middle
    return many, round(found, 4)


def sanity(samples: Mapping[str, tuple[TokenSets, NDArray[np.float32]]], n_tokens: int) -> dict[str, float | None]:
    """Score each direction between collections by how well vectors rank what token sets say is related.

    For each query the targets that share most with it (cosine of idf-weighted token sets, common offsets of query
    and target taken off; of those that share anything, a tenth of all at most) should score higher than the others:
    the mean area under the ROC curve, 0.5 at chance. `samples` holds, per collection, token sets and their vectors.
    None: too few rows, or none that share anything.
    """
    sets = [sample[0] for name, sample in samples.items() if name != "regions"]
    everything = TokenSets.concat(sets) if sets else TokenSets(np.zeros(1, np.int64), np.empty(0, np.int32))
    df = np.bincount(everything.tokens, minlength=n_tokens)
    idf = np.log1p(len(everything) / np.maximum(df, 1)).astype(np.float32)
    profiles = {name: _profiles(name, sample[0], everything, idf) for name, sample in samples.items()}
    scores: dict[str, float | None] = {}
    for source, (_, queries) in samples.items():
        for target, (_, vectors) in samples.items():
            score = None
            if min(len(queries), len(vectors)) >= MIN_ROWS:
                a, b = profiles[source], profiles[target]
                by = int(source == target == "regions")  # which share no token: they are alike in who has them
                score = mean_auc(queries @ vectors.T, (a[by] @ b[by].T).toarray(), same=source == target)
            scores[f"{source} → {target}"] = score
    return scores


def _profiles(
    name: str, sets: TokenSets, everything: TokenSets, idf: NDArray[np.float32]
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Unit rows over tokens and, for regions only, unit rows over the sampled sets that have them."""
    binary = sets.to_csr(len(idf))
    rows = _unit_rows(binary @ sparse.diags(idf))
    return rows, _unit_rows((binary @ everything.to_csr(len(idf)).T).tocsr()) if name == "regions" else rows


def _unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.maximum(norms, 1e-12)) @ matrix).tocsr()


def mean_auc(scores: NDArray[np.float32], shared: NDArray[np.floating[Any]], *, same: bool) -> float | None:
    """The mean AUC over queries, (q, t) and (q, t); with `same`, a query is not its own target."""
    related = shared - shared.mean(axis=1, keepdims=True) - shared.mean(axis=0, keepdims=True)
    related[shared <= 0] = -np.inf
    areas = []
    for query, (truth, score) in enumerate(zip(related, scores, strict=True)):
        if same:
            truth, score = np.delete(truth, query), np.delete(score, query)
        n_top = min(max(1, len(truth) // 10), int(np.isfinite(truth).sum()))
        if n_top == 0:
            continue
        order = np.argpartition(-truth, n_top - 1)
        top, others = score[order[:n_top]], np.sort(score[order[n_top:]])
        below = np.searchsorted(others, top, "left") + np.searchsorted(others, top, "right")  # a tie is half a win
        areas.append(below.mean() / (2 * len(others)))
    return round(float(np.mean(areas)), 4) if areas else None

"""How good vectors are: labels from their neighbours, from a linear head, and from clusters of them."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.model_selection import GroupKFold, StratifiedKFold

from chromseek.data.errors import BadData
from chromseek.data.tokens import TokenSets
from chromseek.encoder.atacformer import Atacformer
from chromseek.encoder.base import Encoder, Kind, unit
from chromseek.encoder.training import Run

NEIGHBOURS = 15
BLOCK = 2048  # rows compared at a time
ENCODED = 8192  # sets encoded at a time
CHECKED = 2000  # sets, at most, that a check of a training run looks at
Vectors = NDArray[np.float32]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """What labels can be read off vectors; shares of 1, over rows that were left out of what predicts them."""

    knn_accuracy: float
    knn_macro_f1: float
    linear_accuracy: float
    linear_macro_f1: float
    ari: float  # of KMeans with as many clusters as labels
    nmi: float
    n_rows: int
    n_labels: int


def evaluate(vectors: Vectors, codes: Codes, *, groups: Codes | None = None, folds: int = 5, seed: int = 0) -> Scores:
    """Score vectors (n, d) by labels (n), -1 where there is none; whole groups are left out together where given.

    Raises BadData when the labels, or the groups, do not allow so many folds.
    """
    known = codes >= 0
    vectors, codes = unit(vectors[known]), codes[known]
    parts = _folds(codes, None if groups is None else groups[known], folds, seed)
    by_neighbours, by_head = np.full(len(codes), -1), np.full(len(codes), -1)
    for kept, left_out in parts:
        by_neighbours[left_out] = neighbours_labels(vectors[kept], codes[kept], vectors[left_out])
        by_head[left_out] = linear_head(vectors[kept], codes[kept], seed=seed).predict(vectors[left_out])
    clusters = clustered(vectors, len(np.unique(codes)), seed)
    return Scores(
        knn_accuracy=float((by_neighbours == codes).mean()),
        knn_macro_f1=_macro_f1(codes, by_neighbours),
        linear_accuracy=float((by_head == codes).mean()),
        linear_macro_f1=_macro_f1(codes, by_head),
        ari=float(adjusted_rand_score(codes, clusters)),
        nmi=float(normalized_mutual_info_score(codes, clusters)),
        n_rows=len(codes),
        n_labels=len(np.unique(codes)),
    )


def embedding_check(vectors: Vectors, codes: Codes, seed: int) -> dict[str, float]:
    """Score vectors in passing, as a training run does: ARI of KMeans, accuracy by the other rows nearest to each.

    They are seen from their mean, as those of an encoder are that is placed in an atlas.
    """
    vectors = unit(vectors)
    vectors = unit(vectors - vectors.mean(axis=0))
    clusters = clustered(vectors, len(np.unique(codes)), seed)
    nearest = neighbours_labels(vectors, codes, vectors, itself=True)
    return {"ari": float(adjusted_rand_score(codes, clusters)), "knn_accuracy": float((nearest == codes).mean())}


def vectors_of(encoder: Encoder, sets: TokenSets, kind: Kind, *, seed: int = 0) -> Vectors:
    """Encode sets of one kind (n, dim), a block at a time; an encoder that is placed nowhere is placed by a sample."""
    rows = np.random.default_rng([seed, 4]).permutation(np.flatnonzero(sets.sizes))[:CHECKED]
    sample, nothing = sets.take(np.sort(rows)), sets.slice(0, 0)
    if len(sample):
        encoder = encoder.placed(*((nothing, sample) if kind == "bed" else (sample, nothing)), seed=seed)
    blocks = np.array_split(np.arange(len(sets)), max(1, len(sets) // ENCODED))
    return np.concatenate([encoder.encode(sets.take(block), kind) for block in blocks])


class VectorCheck:
    """A check of a training run: labels read off the vectors of some sets; no figures without two labels."""

    def __init__(
        self, encoder: Atacformer, sets: TokenSets, codes: Codes | None, rows: NDArray[np.int64] | None, run: Run
    ) -> None:
        """Look at `rows`, or at all, CHECKED at most: those with a label and tokens."""
        rows = np.arange(len(sets)) if rows is None else rows
        rows = rows[:0] if codes is None else rows[(codes[rows] >= 0) & (sets.sizes[rows] > 0)]
        rows = np.sort(np.random.default_rng([run.seed, 2]).permutation(rows)[:CHECKED])
        self._encoder, self._run = encoder, run
        self._sets = sets.take(rows)
        self._codes = np.empty(0, np.int64) if codes is None else codes[rows]

    def __call__(self) -> dict[str, float]:
        """ARI of KMeans, and accuracy by nearest neighbours."""
        if len(np.unique(self._codes)) < 2:
            return {}
        device = str(next(self._encoder.network.parameters()).device)
        vectors = self._encoder.on(device, self._run.dtype).encode(self._sets, "cell")
        return embedding_check(vectors, self._codes, self._run.seed)


def neighbours_labels(known: Vectors, codes: Codes, asked: Vectors, *, itself: bool = False) -> Codes:
    """The commonest label of the nearest known unit vectors, (asked); the nearer one where labels tie.

    `itself`: the asked are the known, and none votes for itself.
    """
    k = min(NEIGHBOURS, len(known) - itself)
    n_codes = int(codes.max()) + 1
    found = np.empty(len(asked), np.int64)
    for start in range(0, len(asked), BLOCK):
        scores = asked[start : start + BLOCK] @ known.T
        rows = np.arange(len(scores))
        if itself:
            scores[rows, start + rows] = -np.inf
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(scores), n_codes))
        weights = 1 + np.take_along_axis(scores, nearest, axis=1) / (4 * k)  # all of them together make no vote
        np.add.at(votes, (rows[:, None], codes[nearest]), weights)
        found[start : start + BLOCK] = votes.argmax(axis=1)
    return found


def linear_head(vectors: Vectors, codes: Codes, *, seed: int = 0) -> LogisticRegression:
    """Fit a logistic regression on unit vectors, its penalty lighter in more dimensions.

    Raises BadData when there is one label only.
    """
    if len(np.unique(codes)) < 2:
        raise _too_few("labels among the rows that are kept")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 iterations are enough for a head
        return LogisticRegression(C=10 * vectors.shape[1] ** 0.5, max_iter=500, random_state=seed).fit(vectors, codes)


def clustered(vectors: Vectors, n_clusters: int, seed: int) -> Codes:
    """KMeans of the vectors, (n)."""
    found: Codes = KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(vectors)
    return found


def _folds(codes: Codes, groups: Codes | None, folds: int, seed: int) -> list[tuple[Codes, Codes]]:
    """The rows that are kept and those that are left out, fold by fold."""
    counted = np.bincount(codes) if groups is None else np.unique(groups, return_counts=True)[1]
    most = int(counted.max()) if groups is None and len(codes) else len(counted)
    if len(np.unique(codes)) < 2 or most < 2:
        what = "labels" if len(np.unique(codes)) < 2 else "rows with the same label" if groups is None else "groups"
        raise _too_few(what)
    if groups is not None:
        return list(GroupKFold(min(folds, most)).split(codes, codes, groups))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare labels are missing from some folds
        split = StratifiedKFold(min(folds, most), shuffle=True, random_state=seed)
        return list(split.split(codes, codes))


def _too_few(what: str) -> BadData:
    fix = "name a column with two values or more, each in two groups or more"
    return BadData(f"too few {what} to score anything", code="EVALUATE-FEW", fix=fix)


def _macro_f1(codes: Codes, predicted: Codes) -> float:
    return float(f1_score(codes, predicted, average="macro", labels=np.unique(codes), zero_division=0))

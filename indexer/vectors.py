"""Vectors on disk, and the two ways to find the nearest of them: exact, and by lists with an exact re-rank.

A segment keeps its vectors as float16 in `vectors.npy`, memory-mapped: they are the truth for every score. A large
view has beside them `codes.faiss`, an inverted file of 8-bit codes that only proposes candidates. All segments of
a view share one coarse quantiser, so that a query is compared with the centroids once.

FAISS is set here and nowhere else: the BLAS threshold (the default makes batches 18 times slower), one
thread for a single query, all cores for a batch.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from chromseek.data.errors import BadData, printable
from chromseek.data.tokens import offsets_of

faiss.cvar.distance_compute_blas_threshold = 800
BATCH = 16  # from this many queries on, all cores work on one call
BLOCK = 1 << 22  # vector elements converted to float32 at a time
PIECE = 32_000  # elements that torch converts on one thread
SCORES = 1 << 24  # scores of a block that are held at a time
SHORT_LIST = 4  # candidates per wanted hit that the exact re-rank sees
SPARE = 8  # places beyond the wanted ones in which near-ties at the last rank are looked for first
NEAR = 1e-5  # more than the rounding errors by which a matrix product may differ from `scored`
RECENT = 8  # row sets that are kept as the lists take them
MIN_PROBED = 64  # rows that the probed lists hold at least, for each wanted hit


@contextmanager
def threads(n_queries: int) -> Iterator[None]:
    """One thread for a few queries, all cores for many; the setting belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(cores() if n_queries >= BATCH else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)  # torch may share it, and the caller may train with it


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Vectors:
    """All rows of one view: float16 memory maps laid end to end, and their index where there is one."""

    def __init__(self, parts: Sequence[Path], codes: Sequence[Path]) -> None:
        """Open the `vectors.npy` of each segment and, for an indexed view, the `codes.faiss` of each.

        Raises BadData when a file is not what the manifest promised.
        """
        self._parts = [_mapped(path) for path in parts]
        self.offsets = offsets_of([len(part) for part in self._parts])
        self.dim = self._parts[0].shape[1] if self._parts else 0
        self._lists = [_Lists(path, part) for path, part in zip(codes, self._parts, strict=True)] if codes else []
        self._centroids = self._lists[0].centroids() if self._lists else None
        self._whole: NDArray[np.float32] | None = None
        sizes = np.sum([lists.sizes for lists in self._lists], axis=0, initial=0)
        self._everything = _Allowed(self.offsets[:0], sizes, [None] * len(self._lists))
        self._recent: list[_Allowed] = []

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def n_lists(self) -> int:
        """Lists of the index; 0 where every search is exact."""
        return 0 if self._centroids is None else len(self._centroids)

    def get(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of rows, (n, dim)."""
        if len(self._parts) == 1:
            return _float32(self._parts[0].take(rows, axis=0))
        out = np.empty((len(rows), self.dim), np.float32)
        owners = np.searchsorted(self.offsets, rows, side="right") - 1
        for part in np.unique(owners).tolist():
            mine = owners == part
            out[mine] = _float32(self._parts[part].take(rows[mine] - self.offsets[part], axis=0))
        return out

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All rows, or the given ones, in blocks: row numbers (m) and vectors (m, dim)."""
        size = max(1, BLOCK // max(1, self.dim))
        if rows is not None:
            for start in range(0, len(rows), size):
                yield rows[start : start + size], self.get(rows[start : start + size])
        elif len(self) <= size:  # small enough to keep as float32: exact search is its only search
            if self._whole is None:
                self._whole = self.get(np.arange(len(self)))
            yield np.arange(len(self)), self._whole
        else:
            for part, first in zip(self._parts, self.offsets[:-1], strict=True):
                for start in range(0, len(part), size):
                    block = np.array(part[start : start + size])  # a copy: torch wants memory that it could write to
                    yield first + np.arange(start, start + len(block)), _float32(block)

    def exact(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest of all rows, or of the given sorted ones: rows (q, k) and scores (q, k), best first.

        Equal scores come by row. Places without a row hold -1 and -inf.
        """
        best_rows, best = _no_rows(len(queries), k)
        for block_rows, vectors in self.blocks(rows):
            step = max(1, SCORES // len(vectors))
            for start in range(0, len(queries), step):
                part = slice(start, start + step)
                found, scores = _block_best(queries[part], vectors, k)
                candidates = np.hstack([best_rows[part], np.where(found >= 0, block_rows[found], -1)])
                best_rows[part], best[part] = ranked(candidates, np.hstack([best[part], scores]), k)
        return best_rows, best

    def probed(
        self, queries: NDArray[np.float32], k: int, n_probe: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k nearest by lists, out of all rows or the given sorted ones; shapes and order as in `exact`.

        Lists without an allowed row are struck out; of the others the nearest are probed, at least `n_probe` of
        them, until they hold enough allowed rows. So a filter far from the query costs no recall, and no
        allowed hit is missing while there are k.
        """
        assert self._centroids is not None
        best_rows, best = _no_rows(len(queries), k)
        if rows is not None and len(rows) == 0:
            return best_rows, best
        allowed = self._everything if rows is None else self._prepared(rows)
        enough = MIN_PROBED * k
        if rows is not None:  # as many allowed rows as these probes hold without a filter, so that recall stays
            enough = max(enough, n_probe * len(self) // self.n_lists)
        step = max(1, BLOCK // (SHORT_LIST * k * self.dim * len(self._lists)))
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            nearest, similarity = _lists_to_probe(scored(some, self._centroids), allowed.sizes, n_probe, enough)
            found = []
            with threads(len(some)):
                for lists, first, selector in zip(self._lists, self.offsets[:-1], allowed.selectors, strict=True):
                    local = lists.candidates(some, SHORT_LIST * k, nearest, similarity, selector)
                    found.append(np.where(local >= 0, local + first, -1))
            candidates = np.hstack(found)
            vectors = self.get(np.maximum(candidates, 0).ravel()).reshape(*candidates.shape, self.dim)
            scores = np.where(candidates >= 0, scored(some, vectors), -np.inf)
            best_rows[start : start + step], best[start : start + step] = ranked(candidates, scores, k)
        return best_rows, best

    def _prepared(self, rows: NDArray[np.int64]) -> "_Allowed":
        """Sorted rows as the lists take them; kept for the last few arrays, which a filter gives again unchanged."""
        for one in self._recent:
            if one.rows is rows:
                return one
        cuts = np.searchsorted(rows, self.offsets).tolist()
        parts = [rows[a:b] - first for a, b, first in zip(cuts, cuts[1:], self.offsets.tolist(), strict=False)]
        sizes = np.sum([lists.count(part) for lists, part in zip(self._lists, parts, strict=True)], axis=0)
        selectors = [lists.selector(part) for lists, part in zip(self._lists, parts, strict=True)]
        made = _Allowed(rows, sizes, selectors)
        if not rows.flags.writeable:
            self._recent = [made, *self._recent[: RECENT - 1]]
        return made


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Rows that a search may find."""

    rows: NDArray[np.int64]  # sorted
    sizes: NDArray[np.int64]  # (lists) how many of them lie in each list
    selectors: list[Any]  # the rows of each segment as FAISS takes them; None allows all


class _Lists:
    """The inverted lists of one segment."""

    def __init__(self, path: Path, vectors: NDArray[np.float16]) -> None:
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise BadData(
                f"not readable as an index: {printable(error)}",
                code="INDEX-DAMAGED",
                file=str(path),
                fix="restore the atlas, or build it again",
            ) from None
        if self._index.ntotal != len(vectors) or self._index.d != vectors.shape[1]:
            raise BadData(
                f"index of {self._index.ntotal} rows beside vectors of shape {vectors.shape}",
                code="INDEX-SHAPE",
                file=str(path),
                fix="restore the atlas, or build it again",
            )
        inverted = self._index.invlists
        self.sizes = np.array([inverted.list_size(i) for i in range(self._index.nlist)])
        self._list_of = np.empty(len(vectors), np.int32)
        for number in np.flatnonzero(self.sizes).tolist():
            ids = faiss.rev_swig_ptr(inverted.get_ids(number), int(self.sizes[number]))
            self._list_of[ids] = number

    def centroids(self) -> NDArray[np.float32]:
        """The coarse quantiser's centroids, (lists, dim)."""
        quantiser = faiss.downcast_index(self._index.quantizer)
        return np.asarray(quantiser.reconstruct_n(0, self._index.nlist), dtype=np.float32)

    def count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the rows lie in each list, (lists)."""
        return np.bincount(self._list_of[rows], minlength=self._index.nlist)

    def selector(self, rows: NDArray[np.int64]) -> Any:
        """The rows as FAISS takes them."""
        allowed = np.zeros(len(self._list_of), bool)
        allowed[rows] = True
        return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))

    def candidates(
        self,
        queries: NDArray[np.float32],
        n: int,
        lists: NDArray[np.int64],
        similarity: NDArray[np.float32],
        selector: Any,
    ) -> NDArray[np.int64]:
        """The n rows that score best by their codes in the lists (q, p) of each query, (q, n); -1 for none.

        A list of -1 is none. `selector` says which rows are allowed; None allows all.
        """
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1])
        if selector is not None:
            parameters.sel = selector
        inputs = [np.ascontiguousarray(a) for a in (queries, lists, similarity)]
        scores, found = np.empty((len(queries), n), np.float32), np.empty((len(queries), n), np.int64)
        pointers = [faiss.swig_ptr(a) for a in (*inputs, scores, found)]
        self._index.search_preassigned_c(len(queries), pointers[0], n, *pointers[1:], False, parameters)
        return found


def write_codes(
    path: Path, quantiser: NDArray[np.float32], vectors: NDArray[np.float16], sample: NDArray[np.float32]
) -> None:
    """Write the inverted file of one segment: 8-bit codes of the residuals, trained on a sample of the view."""
    n_lists, dim = quantiser.shape
    coarse = faiss.IndexFlatIP(dim)
    coarse.add(quantiser)
    index = faiss.IndexIVFScalarQuantizer(
        coarse, dim, n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True
    )
    with threads(BATCH):
        index.train(sample)
        step = max(1, BLOCK // dim)
        for start in range(0, len(vectors), step):
            index.add(vectors[start : start + step].astype(np.float32))
    faiss.write_index(index, str(path))


def train_quantiser(sample: NDArray[np.float32], n_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Centroids for the lists of a view with n_rows rows: about 4 √n of them, by spherical k-means on a sample."""
    n_lists = max(1, min(int(4 * np.sqrt(n_rows)), len(sample) // 39))  # k-means wants 39 points a centroid
    with threads(BATCH):
        kmeans = faiss.Kmeans(
            sample.shape[1], n_lists, niter=10, spherical=True, seed=seed + 1, max_points_per_centroid=64
        )
        kmeans.train(sample)
    return np.asarray(kmeans.centroids, dtype=np.float32)


def scored(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarities of unit vectors: (q, dim) with (n, dim) or with each query's own (q, n, dim), → (q, n).

    Not by a matrix product, whose last bits change with the shape and place of its operands: here one pair has one
    score wherever it stands, so equal vectors tie, and a query's answer does not depend on those asked with it.
    """
    scores: NDArray[np.float32] = np.einsum("qd,nd->qn" if vectors.ndim == 2 else "qd,qnd->qn", queries, vectors)
    return np.clip(scores, -1, 1, out=scores)


def ranked(
    rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of each line, best first, equal scores by row; absent ones (-1) last, (q, k), (q, k)."""
    if rows.shape[1] < k:
        gap = ((0, 0), (0, k - rows.shape[1]))
        rows, scores = np.pad(rows, gap, constant_values=-1), np.pad(scores, gap, constant_values=-np.inf)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _no_rows(n: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)


def _block_best(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best rows of one block with room for ties: positions (q, m) or -1, scores (q, m)."""
    # A matrix product is faster, but BLAS wakes other cores for it: where they are busy, a single query waits for them.
    rough = scored(queries, vectors) if len(queries) < BATCH else queries @ vectors.T
    wanted, room = min(k, len(vectors)), min(k + SPARE, len(vectors))
    found = np.argpartition(rough, len(vectors) - room, axis=1)[:, len(vectors) - room :]
    scores = scored(queries, vectors[found])
    if room == len(vectors):
        return found, scores
    # Where all spare places nearly tie with the last wanted one, others outside them may belong inside.
    inside = np.take_along_axis(rough, found, 1)
    least = np.partition(inside, room - wanted, axis=1)[:, room - wanted] - NEAR
    for query in np.flatnonzero(inside.min(axis=1) >= least).tolist():
        near = np.flatnonzero(rough[query] >= least[query])
        best = ranked(near[None], scored(queries[query : query + 1], vectors[near]), room)
        found[query], scores[query] = best[0][0], best[1][0]
    return found, scores


def _lists_to_probe(
    similarity: NDArray[np.float32], sizes: NDArray[np.int64], n_probe: int, n_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest non-empty lists of each query, -1 where it needs no more, and their similarity, (q, p), (q, p).

    Each gets n_probe of them, or as many as it takes to hold n_rows rows.
    """
    alive = np.flatnonzero(sizes)
    similarity = similarity[:, alive]
    most = min(len(alive), n_probe)
    while True:
        nearest = np.argpartition(similarity, len(alive) - most, axis=1)[:, len(alive) - most :]
        if most == len(alive) or sizes[alive[nearest]].sum(axis=1).min() >= n_rows:
            break
        most = min(len(alive), 2 * most)
    close = np.take_along_axis(similarity, nearest, 1)
    lists = alive[nearest]
    if most > n_probe:  # for some of the queries: the others keep to what they need
        order = np.argsort(-close, axis=1, kind="stable")
        lists, close = np.take_along_axis(lists, order, 1), np.take_along_axis(close, order, 1)
        before = np.cumsum(sizes[lists], axis=1) - sizes[lists]
        spare = (before >= n_rows) & (np.arange(most) >= n_probe)
        lists = np.where(spare, -1, lists)
    return lists, close


def _float32(half: NDArray[np.float16]) -> NDArray[np.float32]:
    """Convert; torch does it several times faster than numpy, in pieces that it does not wake other threads for."""
    out = np.empty(half.shape, np.float32)
    source, target = torch.from_numpy(half.reshape(-1)), torch.from_numpy(out.reshape(-1))
    for start in range(0, half.size, PIECE):
        target[start : start + PIECE] = source[start : start + PIECE]
    return out


def _mapped(path: Path) -> NDArray[np.float16]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise BadData(
            f"not readable as vectors: {printable(error)}",
            code="VECTORS-DAMAGED",
            file=str(path),
            fix="restore the atlas, or build it again",
        ) from None
    if array.ndim != 2 or array.dtype != np.float16:
        raise BadData(
            f"vectors of {array.dtype} {array.shape}, not float16 of two dimensions",
            code="VECTORS-SHAPE",
            file=str(path),
            got=array.dtype.str,
            fix="restore the atlas, or build it again",
        )
    return np.asarray(array)  # still mapped, without the cost of the subclass at every access

"""One collection of an atlas version: its rows, its vectors, and the search over them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.sources import ReadOptions
from chromseek.encoder.base import Encoder
from chromseek.indexer.filter_sql import check
from chromseek.indexer.filter_tree import Filter, to_json
from chromseek.indexer.metadata import Metadata
from chromseek.indexer.vectors import Vectors
from chromseek.search import plan
from chromseek.search import query as questions
from chromseek.search.cautions import cautions
from chromseek.search.exclusion import groups, held_values, together
from chromseek.search.filters import from_json, parse
from chromseek.search.hits import Hits
from chromseek.search.query import Question, StoredVectors

MAX_K = 10_000
MAX_PLACES = 50_000_000  # queries times k
DEFAULT_PROBES = 32


class Collection:
    """Rows of one kind; frozen, so any number of threads may search it."""

    def __init__(
        self,
        name: str,
        metadata: Metadata,
        vectors: Vectors,
        encoder: Encoder,
        *,
        n_probe: int,
        recall: float | None,
        receipt: dict[str, Any],
        stored: StoredVectors,
    ) -> None:
        self.name = name
        self.metadata = metadata
        self.vectors = vectors
        self.ids = np.asarray(metadata.column("id").to_numpy(), np.int64)  # (rows), rising
        self.encoder, self._stored = encoder, stored
        self._n_probe, self._recall, self._receipt = n_probe, recall, receipt
        self._live = metadata.where(None)
        self._closed = False
        if not (len(vectors) == metadata.n_rows == len(self.ids)):
            raise BadArgument(
                f"{name}: {len(vectors)} vectors beside {metadata.n_rows} rows",
                code="ATLAS-ROWS",
                fix="restore the atlas, or build it again",
            )

    def __len__(self) -> int:
        return len(self._live)

    def close(self) -> None:
        """Let files go; whatever is asked afterwards raises BadArgument."""
        self.metadata.close()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise BadArgument("the atlas is closed", code="ATLAS-CLOSED", fix="open it again with chromseek.open")

    @property
    def schema(self) -> pa.Schema:
        """The metadata columns."""
        return self.metadata.schema

    def where(self, condition: str | Mapping[str, Any] | Filter | None) -> NDArray[np.int64]:
        """The ids of the rows that match a filter, sorted."""
        self._check_open()
        return self.ids[self._allowed(self.filter(condition))]

    def get(self, ids: Sequence[int] | NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata of rows by id, in that order. Raises NotFound for an unknown or deleted id."""
        return self.metadata.take(self.rows_of(ids), columns)

    def _take(self, rows: NDArray[np.int64], columns: Sequence[str] | None) -> pa.Table:
        """The metadata of rows by position, for hits."""
        self._check_open()
        return self.metadata.take(rows, columns)

    def vectors_of(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of rows by id, (n, dim)."""
        return self.vectors.get(self.rows_of(ids))

    def rows_of(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows lie, by id. Raises NotFound for an unknown or deleted id."""
        self._check_open()
        wanted = _as_ids(ids)
        rows = np.minimum(np.searchsorted(self.ids, wanted), max(0, len(self.ids) - 1))
        known = (self.ids[rows] == wanted) if len(self.ids) else np.zeros(len(wanted), bool)
        if len(self._live) < len(self.ids):
            known &= np.isin(rows, self._live)
        if not known.all():
            missing = int(wanted[~known][0])
            raise NotFound(
                f"no row {missing} in {self.name}",
                code="ID",
                got=missing,
                fix="ids are those that hits and exports show; deleted rows are gone",
            )
        return rows

    def filter(self, condition: str | Mapping[str, Any] | Filter | None) -> Filter | None:
        """A condition as a checked tree: text, JSON, or a tree already. Raises BadArgument naming what is wrong."""
        if condition is None:
            return None
        if isinstance(condition, str):
            tree: Filter = parse(condition)
        else:
            tree = from_json(condition) if isinstance(condition, Mapping) else condition
        return check(tree, self.schema)

    def _allowed(self, tree: Filter | None) -> NDArray[np.int64]:
        return self._live if tree is None else self.metadata.where(tree)

    def resolve(
        self, query: Any, read: ReadOptions | None = None, encoder: questions.QueryEncoder | None = None
    ) -> Question:
        """A query in any form as vectors, by the collection's own encoder if none is given; see search/query.py."""
        return questions.resolve(query, encoder or self.encoder, self.name, self._stored, read or ReadOptions())

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: str | Mapping[str, Any] | Filter | None = None,
        exact: bool = False,
        exclude_same: str | Sequence[str] | None = None,
        max_distance: float | None = None,
        centroid: bool = False,
        unlike: Any = None,
        read: ReadOptions | None = None,
    ) -> Hits:
        """Find the k rows most like each query.

        query: cells (AnnData, h5ad, fragments), a BED set (path, frame, pyranges), regions (`chr1:1000-2000`, a list),
            stored ids, vectors, or a dict of these by name.
        where: only rows that match, as text (`tissue = 'blood' AND n_fragments > 1000`) or its JSON form.
        exact: compare with every allowed row instead of the nearest lists.
        exclude_same: columns; rows that hold the query's own value there are left out (its donor, its dataset).
        max_distance: only hits with 1 - score up to this.
        centroid: all queries as one, their mean; the receipt has its coherence.
        unlike: a second query in any form; what the first shares with it is taken out.
        read: how files are read (liftOver, chromosome names).

        A query that is a stored row is not its own hit. Each query gets min(k, matching rows) hits, and where it gets
        none, Hits.reasons says why.
        """
        self._check_open()
        _check_range(k, max_distance)
        tree = self.filter(where)
        columns = [exclude_same] if isinstance(exclude_same, str) else exclude_same and list(exclude_same)
        question, parts = self._asked(query, read, columns, tree, centroid=centroid, unlike=unlike)
        rows, scores, reasons, paths = self._nearest(question, parts, k, exact=exact)
        if max_distance is not None:
            far = scores < 1 - max_distance - 1e-6
            rows[far], scores[far] = -1, -np.inf
        why = "no other row to compare with" if max_distance is None else f"nothing within distance {max_distance:g}"
        for place in np.flatnonzero(rows[:, 0] < 0).tolist():
            reasons.setdefault(place, why)
        receipt = self._receipt | {
            "collection": self.name,
            "query": question.described,
            "k": int(k),
            "where": None if tree is None else to_json(tree),
            "exact": bool(exact),
            "exclude_same": columns,
            "max_distance": None if max_distance is None else float(max_distance),
            "path": "+".join(sorted(paths)) or "none",
            "n_probe": self._n_probe if "lists" in paths else None,
            "recall@10": self._recall if "lists" in paths else 1.0,
        }
        doubts = cautions(question.coverage, scores, assembly=self._receipt["assembly"], collection=self.name)
        if question.notes or doubts:
            receipt["notes"] = [*question.notes, *doubts]
        ids = np.where(rows >= 0, self.ids[rows], -1) if len(self.ids) else rows
        return Hits(ids, scores, rows, question.names, question.coverage, reasons, receipt, self._take)

    def _asked(
        self,
        query: Any,
        read: ReadOptions | None,
        columns: Sequence[str] | None,
        tree: Filter | None,
        *,
        centroid: bool,
        unlike: Any,
    ) -> tuple[Question, list[tuple[NDArray[np.int64], Filter | None]]]:
        """The question, and its parts: numbers of queries that share a row set, with the filter for it."""
        question = self.resolve(query, read)
        held = None if columns is None else held_values(self._metadata_of(question), columns, self.schema.names)
        if centroid:
            question, _ = questions.centroid(question)
            held = None if held is None else together(held)
        if unlike is not None:
            question = questions.unlike(question, self.resolve(unlike, read))
        if held is None or columns is None:
            return question, [(np.arange(len(question)), tree)]
        return question, list(groups(held, columns, tree))

    def _nearest(
        self,
        question: Question,
        parts: Sequence[tuple[NDArray[np.int64], Filter | None]],
        k: int,
        *,
        exact: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[int, str], set[str]]:
        """Rows (q, k) and scores (q, k), why queries have none, and the paths taken."""
        if len(question) * k > MAX_PLACES:
            raise BadArgument(
                f"{len(question):,} queries with k = {k} are {len(question) * k:,} hits",
                code="K-RANGE",
                got=int(k),
                fix=f"choose a smaller k, or search in parts: {MAX_PLACES:,} at most",
            )
        own = self._own_rows(question)
        wanted = min(k + (own is not None), max(1, self.metadata.n_rows))
        rows = np.full((len(question), k), -1, np.int64)
        scores = np.full((len(question), k), -np.inf, np.float32)
        reasons, paths = dict(question.reasons), set()
        for numbers, limit in parts:
            allowed = self._allowed(limit)
            members = numbers[question.vectors[numbers].any(axis=1)]
            if len(allowed) == 0:
                why = "no row matches the filter" if limit is not None else f"there are no {self.name}"
                reasons |= dict.fromkeys(members.tolist(), why)
            if len(allowed) == 0 or len(members) == 0:
                continue
            chosen = plan.choose(self.vectors, len(allowed), wanted, exact=exact, n_probe=self._n_probe)
            paths.add(chosen.path)
            limited = None if len(allowed) == self.metadata.n_rows else allowed
            found, close = plan.run(chosen, self.vectors, question.vectors[members], wanted, limited)
            if own is not None:
                found, close = _without(found, close, own[members])
            rows[members, : found.shape[1]], scores[members, : found.shape[1]] = found[:, :k], close[:, :k]
        return rows, scores, reasons, paths

    def _metadata_of(self, question: Question) -> pd.DataFrame | None:
        """What is known of each query: of stored rows their own metadata, else what its file had."""
        if question.stored is None:
            return question.metadata
        where, ids = question.stored
        return self.get(ids).to_pandas() if where == self.name else None

    def _own_rows(self, question: Question) -> NDArray[np.int64] | None:
        """The rows that the queries themselves are, if they are stored here."""
        if question.stored is None or question.stored[0] != self.name:
            return None
        return self.rows_of(question.stored[1])


def _as_ids(ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    given = np.asarray(ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):  # objects are numbers past 64 bits
        raise BadArgument(
            f"not ids: {printable(ids)}", code="ID", fix="give a list of whole numbers, as hits show them"
        )
    return given.astype(np.int64)


def _check_range(k: int, max_distance: float | None) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise BadArgument(f"k is {printable(k)}", code="K-RANGE", got=printable(k), fix=f"choose k from 1 to {MAX_K}")
    if max_distance is not None and not (_is_number(max_distance) and 0 <= max_distance <= 2):
        raise BadArgument(
            f"max_distance is {printable(max_distance)}",
            code="DISTANCE-RANGE",
            got=printable(max_distance),
            fix="cosine distances lie between 0 and 2",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _without(
    rows: NDArray[np.int64], scores: NDArray[np.float32], own: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Strike each query's own row out and close the gap, (q, k+1) → (q, k+1)."""
    mine = rows == own[:, None]
    order = np.argsort(mine, axis=1, kind="stable")
    rows = np.where(mine, -1, rows)
    scores = np.where(mine, -np.inf, scores).astype(np.float32)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

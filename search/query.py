"""A question in any form becomes vectors: one row per query, with its name, coverage and, if it has no answer, why."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.inputs import file_identity
from chromseek.data.regions import Regions, is_region_text
from chromseek.data.sources import ReadOptions, Source, bed_sources, cell_sources
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Kind, unit
from chromseek.indexer.schemas import conform, join_schemas

STORED = re.compile(r"(cells|regions|beds):([0-9]{1,100}(?:,[0-9]{1,100})*)")
CELL_FILE = re.compile(r"\.(h5ad|h5)$|\.tsv(\.b?gz)?$|fragments?(\.bed|\.txt)?(\.b?gz)?$", re.IGNORECASE)
LEAST = 1e-3  # of a vector's length must be left when something is taken off; what is less is rounding
StoredVectors = Callable[[str, Sequence[int]], tuple[NDArray[np.float32], list[str]]]


class QueryEncoder(Protocol):
    """What questions need of an encoder."""

    @property
    def universe(self) -> Universe:
        """The regions whose tokens it reads."""

    @property
    def dim(self) -> int:
        """The width of vectors that are given as such."""

    @property
    def context(self) -> int | None:
        """Tokens of the longest set that it reads whole; None where any set is."""

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into unit vectors."""


@dataclass(frozen=True)
class Question:
    """q queries as vectors."""

    kind: Kind | None  # None for vectors as such
    vectors: NDArray[np.float32]  # (q, dim), zero where there is nothing to search with
    names: tuple[str, ...]  # (q)
    coverage: NDArray[np.float32]  # (q), NaN for vectors and stored ids
    reasons: dict[int, str] = field(default_factory=dict)
    stored: tuple[str, NDArray[np.int64]] | None = None  # the collection and ids that the queries are
    metadata: pd.DataFrame | None = None  # (q rows) what the source knew of each query
    notes: tuple[str, ...] = ()
    described: Any = None  # JSON that says what was asked, for the receipt

    def __len__(self) -> int:
        return len(self.vectors)


def resolve(query: Any, encoder: QueryEncoder, collection: str, stored: StoredVectors, read: ReadOptions) -> Question:
    """Turn a question into vectors.

    A path is read by its kind (h5ad and fragments: cells; BED: one set); `chr1:1000-2000` is a region, a list of
    these as many; a frame with chrom, start, end or a pyranges object is one BED set; whole numbers are ids stored
    in the searched collection and `beds:3` is one of another; an array of floats is vectors; AnnData is cells; a
    mapping is queries by name. Raises BadArgument for anything else.
    """
    if isinstance(query, Question):
        return query
    if isinstance(query, pd.Series | pd.Index):
        query = query.to_numpy()
    if isinstance(query, np.ndarray) and query.dtype.kind in "OUST":
        query = query.tolist()
    ids = stored_ids(query, collection)
    if ids is not None:
        return from_stored(*ids, stored)
    if isinstance(query, np.ndarray):
        return from_vectors(query, encoder.dim)
    texts = [query] if isinstance(query, str) else query
    if isinstance(texts, Sequence) and texts and all(isinstance(t, str) and is_region_text(t) for t in texts):
        return from_regions(list(texts), encoder)
    if hasattr(query, "obs") and hasattr(query, "var"):
        return from_sources(cell_sources(query, read, assembly=encoder.universe.assembly), encoder, "cell", "AnnData")
    if isinstance(query, str | Path):
        return from_path(Path(query), encoder, read)
    if isinstance(query, pd.DataFrame) or hasattr(query, "df"):
        return from_sources(bed_sources(query, read, assembly=encoder.universe.assembly), encoder, "bed", "frame")
    if isinstance(query, Mapping) and query:
        return joined([named(resolve(q, encoder, collection, stored, read), str(n)) for n, q in query.items()])
    if isinstance(query, Sequence) and query:
        return joined([resolve(q, encoder, collection, stored, read) for q in query])
    raise BadArgument(
        f"cannot search with a {type(query).__name__}"
        + (" that is empty" if isinstance(query, Sequence | Mapping) else ""),
        code="QUERY-KIND",
        got=type(query).__name__,
        fix="give a path (h5ad, fragments, BED), AnnData, a frame or pyranges object, chr1:1000-2000, ids, "
        "or a numpy array of vectors",
    )


def stored_ids(query: Any, collection: str) -> tuple[str, list[int]] | None:
    """The collection and ids that a query names, if it is of that form."""
    if isinstance(query, str) and (match := STORED.fullmatch(query.strip())):
        return match[1], [int(n) for n in match[2].split(",")]
    if isinstance(query, np.ndarray) and query.dtype.kind in "iu" and query.ndim <= 1 and query.size:
        return collection, query.ravel().tolist()
    items = query if isinstance(query, Sequence) and not isinstance(query, str) else [query]
    if items and all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in items):
        return collection, [int(n) for n in items]
    return None


def from_stored(collection: str, ids: list[int], stored: StoredVectors) -> Question:
    """Rows of a collection of the atlas. Raises NotFound for an unknown id."""
    far = [number for number in ids if not 0 <= number < 1 << 63]
    if far:
        raise NotFound(f"no row {far[0]} in {collection}", code="ID", got=far[0], fix="ids are those that hits show")
    vectors, names = stored(collection, ids)
    key = (collection, np.asarray(ids, np.int64))
    described = {"stored": collection, "ids": ids}
    return explained(Question(None, vectors, tuple(names), _unknown(len(ids)), stored=key, described=described))


def from_vectors(array: NDArray[Any], dim: int) -> Question:
    """Check vectors, (q, dim) or (dim), and scale them to length 1."""
    vectors = np.atleast_2d(array)
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind not in "fiu" or len(vectors) == 0:
        raise BadArgument(
            f"vectors of {vectors.dtype} {array.shape} do not fit an atlas of width {dim}",
            code="VECTOR-SHAPE",
            got=list(array.shape),
            fix=f"give floats of shape (queries, {dim}), made by this atlas's encoder",
        )
    with np.errstate(over="ignore"):
        vectors = vectors.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise BadArgument(
            f"vector {bad[0]} holds NaN, infinity or a number past float32",
            code="VECTOR-FINITE",
            got=int(bad[0]),
            fix="leave such vectors out",
        )
    zero = np.flatnonzero(~vectors.any(axis=1))
    if len(zero):
        raise BadArgument(
            f"vector {zero[0]} is all zero and has no direction under cosine",
            code="VECTOR-ZERO",
            got=int(zero[0]),
            fix="leave such vectors out",
        )
    names = tuple(f"vector{i}" for i in range(len(vectors)))
    peak = np.abs(vectors).max(axis=1, keepdims=True)  # so that squares neither overflow nor vanish
    described = {"vectors": list(vectors.shape)}
    return Question(None, unit(vectors / peak), names, _unknown(len(vectors)), described=described)


def _unknown(n: int) -> NDArray[np.float32]:
    """The coverage of what was no regions, (n)."""
    return np.full(n, np.nan, np.float32)


def from_regions(texts: list[str], encoder: QueryEncoder) -> Question:
    """Each region is one query: the regions of the universe that it overlaps."""
    regions = Regions.from_text(texts, encoder.universe.assembly)
    sets = encoder.universe.token_map(regions)
    question = Question(
        "region",
        encoder.encode(sets, "region"),
        tuple(texts),
        (sets.sizes > 0).astype(np.float32),
        described={"regions": texts},
    )
    return explained(question, sets)


def from_path(path: Path, encoder: QueryEncoder, read: ReadOptions) -> Question:
    """A file of cells gives a query per cell, a BED file one."""
    if not os.path.exists(path):  # which has no trouble with any text
        raise NotFound(
            f"no such file: {printable(path)}",
            code="QUERY-FILE",
            file=str(path),
            fix="check the path; a region is written chr1:1000-2000, a stored row beds:3",
        )
    if path.is_dir():
        raise NotFound(
            f"{printable(path)} is a folder",
            code="QUERY-FOLDER",
            file=str(path),
            fix="give one file, or a list of BED files",
        )
    assembly = encoder.universe.assembly
    described = file_identity(path) | ({"read": chosen} if (chosen := _chosen(read)) else {})
    if CELL_FILE.search(path.name):
        question = from_sources(cell_sources(path, read, assembly=assembly), encoder, "cell", str(path))
    else:
        question = from_sources(bed_sources([path], read, assembly=assembly), encoder, "bed", str(path))
    return replace(question, described=described)


def _chosen(read: ReadOptions) -> dict[str, Any]:
    """The options of reading that are not as usual, as JSON."""
    usual = asdict(ReadOptions())
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(read).items()
        if value != usual[name]
    }


def from_sources(sources: Sequence[Source], encoder: QueryEncoder, kind: Kind, label: str) -> Question:
    """Read and encode all sets of the sources, block by block; `label` says in the receipt what they are."""
    parts: list[Question] = []
    metadata: list[tuple[str, pa.Table]] = []
    n_longer = 0
    for source in sources:
        for block in source.blocks(encoder.universe):
            n_longer += 0 if encoder.context is None else int((block.sets.sizes > encoder.context).sum())
            part = Question(kind, encoder.encode(block.sets, kind), tuple(block.names), block.coverage)
            parts.append(explained(part, block.sets))
            metadata.append((source.label, block.metadata))
    if not parts:
        raise BadArgument(
            f"no cells or regions in {printable(label)}",
            code="QUERY-EMPTY",
            file=label,
            fix="check that this is the file you meant",
        )
    question = joined(parts)
    longer = (
        f"{n_longer:,} of {len(question):,} queries have more regions than the encoder's context of {encoder.context}"
    )
    return replace(
        question,
        metadata=_one_table(metadata),
        notes=(*(note for source in sources for note in source.notes), *([longer] if n_longer else [])),
        described={"source": label},
    )


def _one_table(tables: Sequence[tuple[str, pa.Table]]) -> pd.DataFrame:
    """Tables of several blocks or files as one frame; columns are joined by name."""
    schema = join_schemas([(label, table.schema) for label, table in tables], reserved=())
    if len(schema) == 0:  # a table without columns forgets its rows
        return pd.DataFrame(index=range(sum(len(table) for _, table in tables)))
    frame: pd.DataFrame = pa.concat_tables([conform(table, schema) for _, table in tables]).to_pandas()
    return frame


def centroid(question: Question, name: str = "centroid") -> tuple[Question, float]:
    """All queries as one: the mean of their unit vectors, and its coherence.

    Coherence is the mean cosine of the members to their centroid: 1 for identical ones, near 0 for a mixture.
    """
    members = question.vectors[question.vectors.any(axis=1)]
    vectors, coherence = question.vectors[:1] * 0, 0.0
    reason = next(iter(question.reasons.values()), "no member has a vector")
    if len(members):
        mean = members.mean(axis=0, keepdims=True)
        reason = "the members point in all directions: they have no centre"
        if np.linalg.norm(mean) > LEAST:
            vectors = unit(mean)
            coherence = float((members @ vectors[0]).mean())
    known = question.coverage[np.isfinite(question.coverage)]
    coverage = np.array([known.mean() if len(known) else np.nan], np.float32)
    described = {"centroid of": question.described, "n": len(question), "coherence": round(coherence, 4)}
    reasons = {} if vectors.any() else {0: reason}
    return Question(
        question.kind, vectors, (name,), coverage, reasons, notes=question.notes, described=described
    ), coherence


def unlike(question: Question, other: Question) -> Question:
    """Each query moved away from the centroid of others: the unit vector of q - (q·o) o, where o is that centroid.

    What the query shares with the others is taken out, so hits are like the query in what sets it apart.
    Raises BadArgument when the others have no centroid.
    """
    away, _ = centroid(other)
    if not away.vectors.any():
        raise BadArgument(
            f"nothing to be unlike: {away.reasons[0]}",
            code="UNLIKE-EMPTY",
            got=other.names[0],
            fix="give cells, regions or BED sets that the atlas can place",
        )
    o = away.vectors[0]
    rest = question.vectors - (question.vectors @ o)[:, None] * o
    rest[np.linalg.norm(rest, axis=1) < LEAST] = 0
    reasons = dict(question.reasons)
    for place in np.flatnonzero(~rest.any(axis=1)).tolist():
        reasons.setdefault(place, "nothing sets it apart from what it should be unlike")
    described = {"like": question.described, "unlike": other.described}
    notes = (*question.notes, *other.notes)
    return replace(question, vectors=unit(rest), reasons=reasons, notes=notes, described=described)


def named(question: Question, name: str) -> Question:
    """A query under the name that the user gave it; many keep their own behind it."""
    names = (name,) if len(question) == 1 else tuple(f"{name}/{own}" for own in question.names)
    return replace(question, names=names, described={"named": name, "query": question.described})


def joined(questions: Sequence[Question]) -> Question:
    """Several questions of one kind as one. Raises BadArgument where kinds are mixed."""
    first = questions[0]
    if any(_sort(question) != _sort(first) for question in questions):
        raise BadArgument(
            "a list of queries must be of one kind", code="QUERY-MIXED", fix="search with each kind by itself"
        )
    if len(questions) == 1:
        return first
    reasons: dict[int, str] = {}
    n = 0
    for question in questions:
        reasons |= {n + place: reason for place, reason in question.reasons.items()}
        n += len(question)
    stored = [question.stored for question in questions if question.stored is not None]
    frames = [question.metadata for question in questions if question.metadata is not None]
    tables = [(f"query {place + 1}", pa.Table.from_pandas(frame)) for place, frame in enumerate(frames)]
    return Question(
        first.kind,
        np.concatenate([question.vectors for question in questions]),
        tuple(name for question in questions for name in question.names),
        np.concatenate([question.coverage for question in questions]),
        reasons,
        stored=(stored[0][0], np.concatenate([ids for _, ids in stored])) if stored else None,
        metadata=_one_table(tables) if len(frames) == len(questions) else None,
        notes=tuple(dict.fromkeys(note for question in questions for note in question.notes)),
        described=[question.described for question in questions],
    )


def _sort(question: Question) -> tuple[Kind | None, str | None]:
    """What queries must have in common to be asked together: their kind, and the collection that holds them."""
    return question.kind, None if question.stored is None else question.stored[0]


def explained(question: Question, sets: TokenSets | None = None) -> Question:
    """Say for each zero vector why it cannot be searched with."""
    reasons = dict(question.reasons)
    for place in np.flatnonzero(~question.vectors.any(axis=1)).tolist():
        empty = sets is not None and sets.sizes[place] == 0
        reasons.setdefault(
            place, "no overlap with the universe" if empty else "nothing in it that the encoder learned from"
        )
    return replace(question, reasons=reasons)

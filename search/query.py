"""A question in any form becomes vectors: one row per query, with its name, coverage and, if it has no answer, why."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.regions import Regions, is_region_text
from chromseek.data.sources import ReadOptions, Source, bed_sources, cell_sources
from chromseek.data.tokens import TokenSets
from chromseek.encoder.base import Encoder, Kind, unit

STORED = re.compile(r"(cells|regions|beds):(\d+(?:,\d+)*)")
CELL_FILE = re.compile(r"\.h5ad$|fragments?.*\.gz$|\.tsv(\.gz|\.bgz)?$|fragments?\.bed$", re.IGNORECASE)
StoredVectors = Callable[[str, Sequence[int]], tuple[NDArray[np.float32], list[str]]]


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


def resolve(query: Any, encoder: Encoder, collection: str, stored: StoredVectors, read: ReadOptions) -> Question:
    """Turn a question into vectors.

    A path is read by its kind (h5ad and fragments: cells; BED: one set); `chr1:1000-2000` is a region, a list of
    these as many; a frame with chrom, start, end or a pyranges object is one BED set; whole numbers are ids stored
    in the searched collection and `beds:3` is one of another; an array of floats is vectors; AnnData is cells.
    Raises BadArgument for anything else.
    """
    if isinstance(query, Question):
        return query
    ids = stored_ids(query, collection)
    if ids is not None:
        where, numbers = ids
        vectors, names = stored(where, numbers)
        nothing = np.full(len(names), np.nan, np.float32)
        key = (where, np.asarray(numbers, np.int64))
        described = {"stored": where, "ids": list(numbers)}
        return _explained(Question(None, vectors, tuple(names), nothing, stored=key, described=described))
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
    if isinstance(query, Mapping):
        return joined([named(resolve(q, encoder, collection, stored, read), n) for n, q in query.items()])
    if isinstance(query, Sequence) and len(query):
        return joined([resolve(q, encoder, collection, stored, read) for q in query])
    raise BadArgument(
        f"cannot search with a {type(query).__name__}" + (" that is empty" if isinstance(query, Sequence) else ""),
        code="QUERY-KIND",
        got=type(query).__name__,
        fix="give a path (h5ad, fragments, BED), AnnData, a frame or pyranges object, chr1:1000-2000, ids, or vectors",
    )


def stored_ids(query: Any, collection: str) -> tuple[str, list[int]] | None:
    """The collection and ids that a query names, if it is of that form."""
    if isinstance(query, str) and (match := STORED.fullmatch(query.strip())):
        return match[1], [int(n) for n in match[2].split(",")]
    if isinstance(query, int | np.integer) and not isinstance(query, bool):
        return collection, [int(query)]
    if isinstance(query, np.ndarray) and query.dtype.kind in "iu" and query.ndim == 1:
        return collection, query.tolist()
    whole = isinstance(query, Sequence) and not isinstance(query, str)
    if whole and len(query) and all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in query):
        return collection, [int(n) for n in query]
    return None


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
    peak = np.abs(vectors).max(axis=1, keepdims=True)  # so that the square of a large number does not overflow
    coverage = np.full(len(vectors), np.nan, np.float32)
    return Question(None, unit(vectors / peak), names, coverage, described={"vectors": list(vectors.shape)})


def from_regions(texts: list[str], encoder: Encoder) -> Question:
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
    return _explained(question, sets)


def from_path(path: Path, encoder: Encoder, read: ReadOptions) -> Question:
    """A file of cells gives a query per cell, a BED file one."""
    if not path.exists():
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
    if CELL_FILE.search(path.name):
        return from_sources(cell_sources(path, read, assembly=assembly), encoder, "cell", str(path))
    return from_sources(bed_sources([path], read, assembly=assembly), encoder, "bed", str(path))


def from_sources(sources: Sequence[Source], encoder: Encoder, kind: Kind, described: str) -> Question:
    """Read and encode all sets of the sources, block by block."""
    vectors, names, coverage, reasons, metadata = [], [], [], {}, []
    for source in sources:
        for block in source.blocks(encoder.universe):
            part = Question(kind, encoder.encode(block.sets, kind), tuple(block.names), block.coverage)
            for place, reason in _explained(part, block.sets).reasons.items():
                reasons[len(names) + place] = reason
            vectors.append(part.vectors)
            names += block.names
            coverage.append(block.coverage)
            metadata.append(block.metadata.to_pandas())
    if not names:
        raise BadArgument(
            f"no cells or regions in {printable(described)}",
            code="QUERY-EMPTY",
            file=described,
            fix="check that this is the file you meant",
        )
    return Question(
        kind,
        np.concatenate(vectors),
        tuple(names),
        np.concatenate(coverage),
        reasons,
        metadata=pd.concat(metadata, ignore_index=True),
        notes=tuple(note for source in sources for note in source.notes),
        described={"path": described},
    )


def centroid(question: Question, name: str = "centroid") -> tuple[Question, float]:
    """All queries as one: the mean of their unit vectors, and its coherence.

    Coherence is the mean cosine of the members to their centroid: 1 for identical ones, near 0 for a mixture.
    """
    members = question.vectors[question.vectors.any(axis=1)]
    mean = unit(members.mean(axis=0, keepdims=True)) if len(members) else question.vectors[:1] * 0
    coherence = float((members @ mean[0]).mean()) if len(members) else 0.0
    known = question.coverage[np.isfinite(question.coverage)]
    coverage = np.array([known.mean() if len(known) else np.nan], np.float32)
    described = {"centroid of": question.described, "n": len(question), "coherence": round(coherence, 4)}
    whole = Question(question.kind, mean, (name,), coverage, notes=question.notes, described=described)
    return _explained(whole), coherence


def unlike(question: Question, other: Question) -> Question:
    """Each query moved away from the centroid of others: the unit vector of q - (q·o) o, where o is that centroid.

    What the query shares with the others is taken out, so hits are like the query in what sets it apart.
    """
    away, _ = centroid(other)
    o = away.vectors[0]
    vectors = unit(question.vectors - (question.vectors @ o)[:, None] * o)
    described = {"like": question.described, "unlike": other.described}
    return _explained(replace(question, vectors=vectors, reasons=dict(question.reasons), described=described))


def named(question: Question, name: str) -> Question:
    """A query under the name that the user gave it; many keep their own behind it."""
    names = (name,) if len(question) == 1 else tuple(f"{name}/{own}" for own in question.names)
    return replace(question, names=names)


def joined(questions: Sequence[Question]) -> Question:
    """Several questions of one kind as one."""
    kinds = {question.kind for question in questions}
    if len(kinds) > 1:
        raise BadArgument(
            "a list of queries must be of one kind", code="QUERY-MIXED", fix="search with each kind by itself"
        )
    reasons, first = {}, 0
    for question in questions:
        reasons.update({first + place: reason for place, reason in question.reasons.items()})
        first += len(question)
    return Question(
        questions[0].kind,
        np.concatenate([q.vectors for q in questions]),
        tuple(name for q in questions for name in q.names),
        np.concatenate([q.coverage for q in questions]),
        reasons,
        notes=tuple(note for q in questions for note in q.notes),
        described=[q.described for q in questions],
    )


def _explained(question: Question, sets: TokenSets | None = None) -> Question:
    """Say for each zero vector why it cannot be searched with."""
    reasons = dict(question.reasons)
    for place in np.flatnonzero(~question.vectors.any(axis=1)).tolist():
        empty = sets is not None and sets.sizes[place] == 0
        reasons.setdefault(
            place, "no overlap with the universe" if empty else "nothing in it that the encoder learned from"
        )
    return replace(question, reasons=reasons)

"""Build an atlas version: read and tokenize, fit, encode, index, commit.

    inputs ── blocks ──► segments (rows, token sets) ── sample ──► encoder ──► vectors ──► lists ──► one commit

Inputs are read once. Everything after works on the stored token sets, so memory is bounded by a block, a build that
was killed goes on at its last finished segment, and another encoder needs no input again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, BadData, printable
from chromseek.data.genes import Genes
from chromseek.data.sources import Source
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, Kind, encoder_class, fingerprint, load, save
from chromseek.indexer.journal import Ingested, Journal, Part
from chromseek.indexer.manifest import Manifest
from chromseek.indexer.metadata import write_database
from chromseek.indexer.progress import progress
from chromseek.indexer.region_source import RegionSource
from chromseek.indexer.schemas import join_schemas
from chromseek.indexer.segment import MAX_ROWS, OWN_COLUMNS, SegmentWriter, VectorWriter, read_sets, take_sets
from chromseek.indexer.store import Store, Writer
from chromseek.indexer.vectors import train_quantiser, write_codes

INDEX_FROM = 50_000  # rows; below, a view has no lists and every search is exact
FIT_CELLS = 20_000  # cells and
FIT_TOKENS = 12_000_000  # tokens that an encoder is fitted on, at most
FEW_TOKENS, MANY_TOKENS = 500, 100_000  # cells outside are counted and reported
KIND_OF: dict[str, Kind] = {"cells": "cell", "regions": "region", "beds": "bed"}
ENCODE_ROWS = 2_048  # sets encoded at a time


@dataclass(frozen=True)
class Plan:
    """What to build; its digest names the work folder, so that the same command resumes it."""

    universe: Universe
    cells: tuple[Source, ...]
    beds: tuple[Source, ...]
    encoder: Encoder | str  # one at hand, or the name of one to fit
    dim: int = 64
    genes: Genes | None = None
    labels: tuple[str, ...] = ()
    groups: str | None = None
    keep_tokens: bool = True
    seed: int = 0

    def digest(self) -> str:
        """sha256 of the inputs as they lie on disk and of every parameter."""
        encoder = self.encoder if isinstance(self.encoder, str) else fingerprint(self.encoder)
        inputs = [[source.dataset, source.identity()] for source in (*self.cells, *self.beds)]
        genes = None if self.genes is None else len(self.genes)
        rest = [encoder, self.dim, genes, self.labels, self.groups, self.keep_tokens, self.seed]
        return hashlib.sha256(json.dumps([self.universe.digest, inputs, rest]).encode()).hexdigest()


def build(store: Store, plan: Plan) -> Manifest:
    """Make the first version of an atlas. The same plan goes on where a killed build of it stopped."""
    with store.write("build") as writer:
        if writer.parent is not None:
            raise BadArgument(
                f"{printable(store.path)} is an atlas already",
                code="ATLAS-EXISTS",
                fix="add to it with `chromseek add`, or choose another folder",
                exit_code=73,
            )
        work = writer.work_folder(plan.digest()[:32])
        job = _Job(store, writer, Journal(work, store.path), plan.universe)
        job.ingest("cells", plan.cells, {})
        job.ingest("beds", plan.beds, {})
        job.ingest("regions", (RegionSource(plan.universe, plan.genes),), {})
        encoder = job.fit(work, plan)
        content = job.encode(encoder, {})
        if not plan.keep_tokens:
            job.drop_tokens("cells")
        content["labels"], content["groups"] = list(plan.labels), plan.groups
        manifest = job.commit(content, encoder, keep=())
        writer.drop_work(work.name)
    return manifest


def add(store: Store, cells: Sequence[Source], beds: Sequence[Source], encoder: Encoder) -> Manifest:
    """Append cells and BED sets to an atlas, as new segments of a new version."""
    with store.write("add") as writer:
        assert writer.parent is not None
        parent = writer.parent.content
        names = [[source.dataset, source.identity()] for source in (*cells, *beds)]
        plan = hashlib.sha256(json.dumps([writer.parent.version, names]).encode()).hexdigest()[:32]
        work = writer.work_folder(plan)
        job = _Job(store, writer, Journal(work, store.path), encoder.universe)
        for name, sources in (("cells", cells), ("beds", beds)):
            job.ingest(name, sources, parent["collections"].get(name, {}))
        manifest = job.commit(job.encode(encoder, parent), encoder, keep=writer.parent.entries)
        writer.drop_work(work.name)
    return manifest


def delete(store: Store, collection: str, ids: NDArray[np.int64]) -> Manifest:
    """Take rows out of sight by id, in a new version; their space is freed when segments are rewritten."""
    with store.write("delete") as writer:
        assert writer.parent is not None
        content = json.loads(json.dumps(writer.parent.content))
        entry = content["collections"][collection]
        before = deleted_ids(store, entry)
        path = writer.new_file(
            f"deletes/{hashlib.sha256(ids.tobytes()).hexdigest()[:12]}-{collection}-"
            f"v{writer.parent.version + 1}.parquet"
        )
        pq.write_table(pa.table({"id": np.union1d(before, ids)}), path)
        keep = [name for name in writer.parent.entries if name != entry.get("deletes")]
        entry["deletes"] = str(path.relative_to(store.path))
        manifest = writer.commit(content, files=[path], keep=keep)
    write_cache(store, manifest)
    return manifest


def deleted_ids(store: Store, collection: dict[str, Any]) -> NDArray[np.int64]:
    """The ids that a collection's deletes name, sorted."""
    if not collection.get("deletes"):
        return np.empty(0, np.int64)
    return np.asarray(pq.read_table(store.file(collection["deletes"])).column("id").to_numpy(), np.int64)


def rows_files(store: Store, collection: dict[str, Any]) -> list[Path]:
    """The `rows.parquet` of each segment of a collection."""
    return [store.file(f"{segment['folder']}/rows.parquet") for segment in collection["segments"]]


def write_cache(store: Store, manifest: Manifest) -> None:
    """Make the version's DuckDB file, a cache: filters work without it, slower at first."""
    collections = {name: rows_files(store, entry) for name, entry in manifest.content["collections"].items()}
    write_database(store.cache / f"metadata-v{manifest.version}.duckdb", collections)


class _Job:
    """One build or add under way: the writer, the journal, and the collections that it has touched."""

    def __init__(self, store: Store, writer: Writer, journal: Journal, universe: Universe) -> None:
        self._store, self._writer, self._journal, self._universe = store, writer, journal, universe
        self._files: list[Path] = []

    def ingest(self, name: str, sources: Sequence[Source], parent: dict[str, Any]) -> None:
        """Read the sources of one collection into segments of rows and token sets."""
        if not sources:
            return
        done = self._journal.of(name)
        self._check_datasets(sources, parent)
        schema = self._schema(sources, parent)
        first_id = parent.get("next_id", 0) + sum(part.n_rows for part in done.parts)
        known = [source.n_sets for source in sources]
        total = None if None in known else sum(n for n in known if n)
        writer: SegmentWriter | None = None
        with progress(f"reading {name}", total) as tick:
            tick(sum(part.n_rows for part in done.parts))
            for source, block in self._blocks(sources, done):
                for piece in _cut(block, 0 if writer is None else writer.n_rows):
                    if writer is not None and writer.n_rows == MAX_ROWS:
                        self._finish(done, writer)
                        writer = None
                    writer = writer or SegmentWriter(self._writer.new_folder("segments"), schema)
                    writer.add(piece, source.dataset, first_id)
                    first_id += len(piece)
                    done.row += len(piece)
                    _count(done.reports[done.source], piece)
                tick(len(block))
        if writer is not None:
            self._finish(done, writer)
        done.done = True
        self._journal.save()

    def _blocks(self, sources: Sequence[Source], done: Ingested) -> Iterator[tuple[Source, SetBlock]]:
        """What is still to be read, with a report kept for each source."""
        while not done.done and done.source < len(sources):
            source = sources[done.source]
            if len(done.reports) == done.source:
                done.reports.append(_empty_report(source))
            report = done.reports[done.source]
            for block in source.blocks(self._universe, done.row):
                yield source, block
            report["notes"] = list(source.notes)
            done.source, done.row = done.source + 1, 0

    def _finish(self, done: Ingested, writer: SegmentWriter) -> None:
        writer.close()
        done.parts.append(Part.of(self._store.path, writer.folder, writer.n_rows))
        self._journal.save()

    def _check_datasets(self, sources: Sequence[Source], parent: dict[str, Any]) -> None:
        seen = {report["dataset"]: "the atlas" for report in parent.get("sources", [])}
        for source in sources:
            if source.dataset in seen:
                raise BadData(
                    f"dataset {printable(source.dataset)} is in {printable(seen[source.dataset])} already",
                    code="DATASET-TWICE",
                    file=source.label,
                    got=source.dataset,
                    fix="rename one of the files, name it in a manifest's dataset column, or delete the old rows first",
                    status=409,
                )
            seen[source.dataset] = source.label

    def _schema(self, sources: Sequence[Source], parent: dict[str, Any]) -> pa.Schema:
        """The users' columns of all segments, old and new, as one schema."""
        schemas = []
        for path in rows_files(self._store, parent) if parent else []:
            old = pq.read_schema(path)
            schemas.append(("the atlas", pa.schema([f for f in old if f.name not in OWN_COLUMNS.names])))
        return join_schemas([*schemas, *((source.label, source.schema) for source in sources)])

    def fit(self, work: Path, plan: Plan) -> Encoder:
        """The encoder of the plan, fitted on a sample of what was read unless it is at hand."""
        if not isinstance(plan.encoder, str):
            return plan.encoder
        folder = work / "encoder"
        if (folder / "done").exists():
            return load(folder, plan.universe)
        with progress(f"fitting {plan.encoder}", None):
            cells, beds = self._sample("cells", plan.seed), self._sample("beds", plan.seed)
            encoder: Encoder = encoder_class(plan.encoder).fit(cells, beds, plan.universe, dim=plan.dim, seed=plan.seed)
        save(encoder, folder)
        (folder / "done").touch()
        return encoder

    def _sample(self, name: str, seed: int) -> TokenSets:
        """Some of the sets of a collection at random, FIT_CELLS and FIT_TOKENS at most."""
        parts = self._journal.of(name).parts
        n = sum(part.n_rows for part in parts)
        rows = np.sort(np.random.default_rng(seed).choice(n, min(n, FIT_CELLS), replace=False))
        taken, first = [], 0
        for part in parts:
            mine = rows[(rows >= first) & (rows < first + part.n_rows)] - first
            taken.append(take_sets(self._store.path / part.folder, mine))
            first += part.n_rows
        sets = TokenSets.concat(taken)
        keep = int(len(sets) * min(1.0, FIT_TOKENS / max(1, len(sets.tokens))))
        return sets if keep == len(sets) else sets.take(np.arange(0, len(sets), len(sets) / keep).astype(np.int64))

    def encode(self, encoder: Encoder, parent: dict[str, Any]) -> dict[str, Any]:
        """Encode and index what was read; return the content of the new manifest."""
        view = fingerprint(encoder)[:12]
        content: dict[str, Any] = json.loads(json.dumps(parent)) if parent else self._new_content(encoder, view)
        for name, done in self._journal.collections.items():
            if not done.parts:
                continue
            entry = content["collections"].setdefault(
                name, {"n_rows": 0, "next_id": 0, "segments": [], "sources": [], "deletes": None, "quantiser": None}
            )
            total = sum(part.n_rows for part in done.parts)
            with progress(f"encoding {name}", total) as tick:
                for part in done.parts:
                    self._encode_part(encoder, view, name, part, tick)
            self._index(view, name, entry, done.parts)
            entry["segments"] += [{"folder": part.folder, "n_rows": part.n_rows} for part in done.parts]
            entry["sources"] += done.reports
            entry["n_rows"] += total
            entry["next_id"] += total
        return content

    def _new_content(self, encoder: Encoder, view: str) -> dict[str, Any]:
        universe = encoder.universe
        return {
            "assembly": universe.assembly.name,
            "universe": {"path": "universe.bed.gz", "n_regions": len(universe), "digest": universe.digest},
            "encoders": {view: {"name": encoder.name, "fingerprint": fingerprint(encoder), "dim": encoder.dim}},
            "primary": view,
            "collections": {},
        }

    def _encode_part(self, encoder: Encoder, view: str, name: str, part: Part, tick: Any) -> None:
        """Write the vectors of one segment, unless the journal has them."""
        relative = f"views/{view}/vectors.npy"
        folder = self._store.path / part.folder
        if relative not in part.files:
            writer = VectorWriter(folder / relative, part.n_rows, encoder.dim)
            for sets in read_sets(folder):
                for start in range(0, len(sets), ENCODE_ROWS):
                    block = sets.slice(start, min(start + ENCODE_ROWS, len(sets)))
                    writer.add(encoder.encode(block, KIND_OF[name]))
                    tick(len(block))
            writer.close()
            part.files = Part.of(self._store.path, folder, part.n_rows).files
            self._journal.save()
        self._files += [folder / file for file in part.files]

    def _index(self, view: str, name: str, entry: dict[str, Any], parts: Sequence[Part]) -> None:
        """Give each segment its lists, once the view is large enough; older segments too when it just became so."""
        n_rows = entry["n_rows"] + sum(part.n_rows for part in parts)
        if n_rows < INDEX_FROM:
            return
        folders = [self._store.path / part.folder for part in parts]
        if entry["quantiser"] is None:
            folders += [self._store.path / segment["folder"] for segment in entry["segments"]]
        arrays = [np.load(folder / f"views/{view}/vectors.npy", mmap_mode="r") for folder in folders]
        sample = _vector_sample(arrays, 64 * int(4 * np.sqrt(n_rows)))
        with progress(f"indexing {name}", n_rows) as tick:
            if entry["quantiser"] is None:
                path = self._writer.new_file(f"quantisers/{view}-{name}.faiss")
                centroids = train_quantiser(sample, n_rows)
                quantiser = faiss.IndexFlatIP(centroids.shape[1])
                quantiser.add(centroids)
                faiss.write_index(quantiser, str(path))
                self._files.append(path)
                entry["quantiser"] = str(path.relative_to(self._store.path))
            else:
                quantiser = faiss.read_index(str(self._store.file(entry["quantiser"])))
                centroids = quantiser.reconstruct_n(0, quantiser.ntotal)
            for folder, array in zip(folders, arrays, strict=True):
                path = folder / f"views/{view}/codes.faiss"
                write_codes(path, centroids, array, sample)
                self._files.append(path)
                tick(len(array))

    def drop_tokens(self, name: str) -> None:
        """Leave the token sets of a collection out of the version."""
        for part in self._journal.of(name).parts:
            path = self._store.path / part.folder / "tokens.parquet"
            self._files.remove(path)
            path.unlink()

    def commit(self, content: dict[str, Any], encoder: Encoder, *, keep: Any) -> Manifest:
        """Make what was built a version that readers see."""
        if self._writer.parent is None:
            path = self._writer.new_file("universe.bed.gz")
            encoder.universe.save(path)
            self._files += [path, *save(encoder, self._writer.new_folder("encoders", content["primary"]))]
        manifest = self._writer.commit(content, files=dict.fromkeys(self._files), keep=keep)
        write_cache(self._store, manifest)
        return manifest


def _cut(block: SetBlock, filled: int) -> Iterator[SetBlock]:
    """A block in pieces that end where a segment with `filled` rows is full."""
    start = 0
    while start < len(block):
        room = MAX_ROWS - (filled + start) % MAX_ROWS
        stop = min(len(block), start + room)
        yield block.slice(start, stop)
        start = stop


def _empty_report(source: Source) -> dict[str, Any]:
    report: dict[str, Any] = {"dataset": source.dataset, "label": source.label}
    counted = ("n_sets", "n_empty", f"n_below_{FEW_TOKENS}", f"n_above_{MANY_TOKENS}", "n_source", "n_placed")
    return report | dict.fromkeys(counted, 0) | {"notes": []}


def _count(report: dict[str, Any], block: SetBlock) -> None:
    """Add a block to the report of its source: sets outside the token limits are kept, and counted."""
    sizes = block.sets.sizes
    report["n_sets"] += len(block)
    report["n_empty"] += int((sizes == 0).sum())
    report[f"n_below_{FEW_TOKENS}"] += int((sizes < FEW_TOKENS).sum())
    report[f"n_above_{MANY_TOKENS}"] += int((sizes > MANY_TOKENS).sum())
    report["n_source"] += int(block.n_source.sum())
    report["n_placed"] += int(block.n_placed.sum())


def _vector_sample(arrays: Sequence[NDArray[np.float16]], n: int) -> NDArray[np.float32]:
    """Some non-zero vectors of all segments, at random, (≤ n, dim)."""
    total = sum(len(array) for array in arrays)
    rng = np.random.default_rng(0)
    parts = []
    for array in arrays:
        wanted = min(len(array), max(1, n * len(array) // total))
        parts.append(array[np.sort(rng.choice(len(array), wanted, replace=False))].astype(np.float32))
    sample = np.concatenate(parts)
    return sample[sample.any(axis=1)]

"""Build an atlas version: read and tokenize, fit, encode, index, commit.

    inputs ── blocks ──► segments (rows, token sets) ── sample ──► encoder ──► vectors ──► lists ──► one commit

Inputs are read once. Everything after works on the stored token sets, so memory is bounded by a block, a build that
was killed goes on at its last finished segment, and another encoder needs no input again.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek import __version__
from chromseek.data.errors import BadArgument, BadData, Busy, NotFound, StorageError
from chromseek.data.genes import Genes
from chromseek.data.sources import Source
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, fingerprint, load
from chromseek.indexer.content import described_universe, upgraded, views_of
from chromseek.indexer.fitting import FIT_TOKENS, Fitting
from chromseek.indexer.ingest import Ingest
from chromseek.indexer.journal import Journal
from chromseek.indexer.manifest import Manifest
from chromseek.indexer.metadata import write_database
from chromseek.indexer.region_source import RegionSource
from chromseek.indexer.store import Store, Writer
from chromseek.indexer.views import INDEX_FROM, View, write_label_views

__all__ = [
    "FIT_TOKENS", "INDEX_FROM", "Plan", "add", "build", "check_primary", "delete", "deleted_ids",
    "deleted_rows", "digest_of", "genes_digest", "keep_cache", "rows_files", "write_cache",
]  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to build; its digest names the work folder, so that the same command resumes it."""

    universe: Universe
    cells: tuple[Source, ...]
    beds: tuple[Source, ...]
    encoder: Encoder | str  # one at hand, or the name of one to fit
    dim: int | None = None  # None: the encoder's own
    genes: Genes | None = None
    labels: tuple[str, ...] = ()
    groups: str | None = None
    keep_tokens: bool = True
    seed: int = 0
    device: str = "auto"  # which, like the precision, is no part of what is built
    dtype: str = "auto"

    def digest(self) -> str:
        """sha256 of the inputs as they lie on disk, of every parameter, and of the version of this code."""
        encoder = self.encoder if isinstance(self.encoder, str) else fingerprint(self.encoder)
        inputs = [[[s.dataset, s.identity()] for s in sources] for sources in (self.cells, self.beds)]
        parameters = [encoder, self.dim, self.labels, self.groups, self.keep_tokens, self.seed]
        return digest_of([__version__, self.universe.digest, inputs, genes_digest(self.genes), parameters])


def build(path: str | Path, plan: Plan, *, n_bytes: int = 0) -> Store:
    """Make the first version of an atlas, for which the disk needs room for n_bytes, and open it.

    The same plan goes on where a killed build of it stopped. Bad input leaves nothing behind.
    """
    digest = plan.digest()
    made = _made_before(Path(path), digest)
    if made is not None:
        return made
    existed = os.path.lexists(path)
    fresh = not existed or (Path(path).is_dir() and not any(Path(path).iterdir()))
    store = Store.create(path)
    with store.write("build") as writer:
        if writer.parent is not None:
            raise _built_meanwhile(store.path)
        journal = Journal(writer.work_folder(digest[:32]), store.path)
        try:
            writer.need(n_bytes - journal.n_bytes)
            reader = Ingest(writer, journal, plan.universe)
            reader.read("cells", plan.cells)
            reader.read("beds", plan.beds)
            reader.read("regions", [RegionSource(plan.universe, plan.genes)])
            fitting = Fitting(journal, plan.universe, plan.dim, plan.seed, plan.device, plan.dtype)
            view = View(writer, journal, fitting.primary(plan.encoder))
            content = _content(plan, view.name) | {"plan": digest}
            view.add_to(content["collections"], [*journal.collections])
            view.save_encoder(content)
            files = view.files | write_label_views(writer, journal, content, fitting)
            enter(journal, content["collections"])
        except (BadArgument, BadData):  # the same plan would fail again: it will never be resumed
            journal.discard()
            writer.drop_work(journal.work.name)
            if fresh:
                shutil.rmtree(store.path, ignore_errors=True)
            if fresh and existed:
                store.path.mkdir()
            raise
        universe = writer.new_file(content["universe"]["path"])
        plan.universe.save(universe)
        _commit(store, writer, journal, content, {*files, content["universe"]["path"]})
    return store


def add(
    store: Store, cells: Sequence[Source], beds: Sequence[Source], encoder: Encoder, *, device: str, dtype: str
) -> Manifest:
    """Append cells and BED sets to an atlas, as new segments of a new version; `encoder` is its primary one.

    Raises Busy when another encoder has taken over since the atlas was opened.
    """
    with store.write("add") as writer:
        assert writer.parent is not None
        content = upgraded(writer.parent.content)
        check_primary(store.path, content, fingerprint(encoder)[:12])
        inputs = [[[s.dataset, s.identity()] for s in sources] for sources in (cells, beds)]
        digest = digest_of([__version__, writer.parent.version, fingerprint(encoder), inputs])
        journal = Journal(writer.work_folder(digest[:32]), store.path)
        files: set[str] = set()
        try:
            reader = Ingest(writer, journal, encoder.universe)
            for name, sources in (("cells", cells), ("beds", beds)):
                reader.read(name, sources, content["collections"].get(name))
            for name in views_of(content, "cells"):
                primary = name == content["primary"]
                folder = store.path / "encoders" / name
                made = encoder if primary else load(folder, encoder.universe, device=device, dtype=dtype)
                view = View(writer, journal, made)
                view.add_to(content["collections"], [*journal.collections] if primary else ["cells"])
                files |= view.files
            enter(journal, content["collections"])
        except (BadArgument, BadData):
            journal.discard()
            writer.drop_work(journal.work.name)
            raise
        return _commit(store, writer, journal, content, files)


def check_primary(path: Path, content: dict[str, Any], view: str) -> None:
    """Refuse to write for an encoder that is not the newest version's. Raises Busy."""
    if content["primary"] != view:
        raise Busy(
            "another encoder has taken over since this atlas was opened",
            code="ATLAS-MOVED",
            file=str(path),
            got=view,
            fix="open the atlas again and repeat what you did",
        )


def enter(journal: Journal, collections: dict[str, Any]) -> None:
    """Enter what was read in the manifest's collections, once all views have it."""
    for name, done in journal.collections.items():
        if done.parts:
            entry = collections[name]
            entry["segments"] += [{"folder": part.folder, "n_rows": part.n_rows} for part in done.parts]
            entry["sources"] += done.reports
            entry["n_rows"] += done.n_rows
            entry["next_id"] += done.n_rows


def delete(store: Store, collection: str, ids: NDArray[np.int64]) -> Manifest:
    """Take rows out of sight by id, in a new version; their space is freed when segments are rewritten."""
    with store.write("delete") as writer:
        assert writer.parent is not None
        content = upgraded(writer.parent.content)
        entry = content["collections"][collection]
        gone = np.union1d(_ids_in(writer, entry["deletes"]), ids)
        path = writer.new_file(f"deletes/v{writer.parent.version + 1}-{collection}.parquet")
        pq.write_table(pa.table({"id": gone}), path)
        _count_deleted(entry, gone)
        old, entry["deletes"] = entry["deletes"], path.relative_to(store.path).as_posix()
        keep = [name for name in writer.parent.entries if name != old]
        manifest = writer.commit(content, files=[path], keep=keep)
        keep_cache(store, manifest)
    return manifest


def deleted_ids(store: Store | Writer, collection: dict[str, Any]) -> NDArray[np.int64]:
    """The ids of a collection that are deleted, sorted."""
    return _ids_in(store, collection["deletes"])


def deleted_rows(store: Store, collection: dict[str, Any]) -> NDArray[np.bool_] | None:
    """Which rows of a collection are deleted, (rows); None when none is."""
    gone = deleted_ids(store, collection)
    if len(gone) == 0:
        return None
    ids = [pq.read_table(path, columns=["id"]).column(0).to_numpy() for path in rows_files(store, collection)]
    return np.isin(np.concatenate(ids), gone)


def rows_files(store: Store | Writer, collection: dict[str, Any]) -> list[Path]:
    """The `rows.parquet` of each segment of a collection."""
    return [store.file(f"{segment['folder']}/rows.parquet") for segment in collection["segments"]]


def write_cache(store: Store, manifest: Manifest) -> None:
    """Make the version's DuckDB file, a cache: where it fails, filters work without it, slower at first."""
    collections = {name: rows_files(store, entry) for name, entry in manifest.content["collections"].items()}
    try:
        write_database(store.cache / f"metadata-v{manifest.version}.duckdb", collections)
    except StorageError as error:
        _log.warning("version %d is committed, but its cache is not written: %s", manifest.version, error)


def keep_cache(store: Store, manifest: Manifest) -> None:
    """Let a version with the same rows have the DuckDB file of its parent; make it where there is none."""
    old, new = (store.cache / f"metadata-v{version}.duckdb" for version in (manifest.parent, manifest.version))
    try:
        for suffix in ("", ".sha256"):  # in this order: a database without its checksum is not used
            new.with_name(new.name + suffix).unlink(missing_ok=True)
            os.link(old.with_name(old.name + suffix), new.with_name(new.name + suffix))
    except OSError:
        write_cache(store, manifest)


def _made_before(path: Path, digest: str) -> Store | None:
    """The atlas that this plan made and that nothing was done to since: its build was killed after the commit."""
    with suppress(NotFound):
        if Store.versions(path) == [1]:
            store = Store.open(path)
            assert store.manifest is not None
            return store if store.manifest.content.get("plan") == digest else None
    return None


def _built_meanwhile(path: Path) -> StorageError:
    return StorageError(
        "another process has built an atlas here",
        code="ATLAS-EXISTS",
        file=str(path),
        fix="add to it with `chromseek add`, or choose another folder",
        exit_code=73,
    )


def _content(plan: Plan, view: str) -> dict[str, Any]:
    """What the manifest says of an atlas as a whole; its encoders and collections are still to come."""
    return {
        "assembly": plan.universe.assembly.name,
        "universe": described_universe(plan.universe, "universe.bed.gz"),
        "encoders": {},
        "primary": view,
        "label_views": {},
        "labels": list(plan.labels),
        "groups": plan.groups,
        "keep_tokens": plan.keep_tokens,
        "collections": {},
        "reencoded": [],
    }


def _commit(store: Store, writer: Writer, journal: Journal, content: dict[str, Any], files: set[str]) -> Manifest:
    """Make what was built a version that readers see, without the cells' token sets where they are not kept.

    `files` are those of the views; what the journal has, and what the parent has already, need not be among them.
    """
    dropped = set()
    if not content.get("keep_tokens", True):
        dropped = {f"{part.folder}/tokens.parquet" for part in journal.of("cells").parts}
    keep = () if writer.parent is None else writer.parent.entries
    manifest = writer.commit(content, files=sorted((files | journal.paths) - dropped - {*keep}), keep=keep)
    for path in dropped:  # only now: until the commit a killed build resumes from them
        (store.path / path).unlink()
    write_cache(store, manifest)
    writer.drop_work(journal.work.name)
    return manifest


def _count_deleted(entry: dict[str, Any], gone: NDArray[np.int64]) -> None:
    """Note in the report of each source how many of its rows are deleted; one without any left may come again."""
    for report in entry["sources"]:
        first, last = np.searchsorted(gone, [report["first_id"], report["first_id"] + report["n_sets"]])
        report["n_deleted"] = int(last - first)


def _ids_in(store: Store | Writer, relative: str | None) -> NDArray[np.int64]:
    if relative is None:
        return np.empty(0, np.int64)
    return np.asarray(pq.read_table(store.file(relative)).column("id").to_numpy(), np.int64)


def genes_digest(genes: Genes | None) -> str | None:
    """sha256 of genes."""
    if genes is None:
        return None
    regions = genes.regions
    digest = hashlib.sha256("\0".join(genes.symbols).encode())
    for column in (regions.chroms, regions.starts, regions.ends, genes.forward):
        digest.update(column.tobytes())
    return digest.hexdigest()


def digest_of(described: Any) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

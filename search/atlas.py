"""The front door: build an atlas, open one, ask it.

atlas = chromseek.build("blood.atlas", cells="cells.h5ad", beds="peaks/")
atlas = chromseek.open("blood.atlas")
atlas.cells.search(adata, k=10, where="tissue = 'blood'").to_pandas()
atlas.annotate(adata, label="cell_type")
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.genome import assembly as assembly_named
from chromseek.data.sources import ReadOptions
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, load
from chromseek.indexer import build as builder
from chromseek.indexer.metadata import Metadata
from chromseek.indexer.segment import take_sets
from chromseek.indexer.store import Problem, Store
from chromseek.indexer.vectors import Vectors
from chromseek.search.build_plan import plan_build, sources_of
from chromseek.search.collection import DEFAULT_PROBES, Collection
from chromseek.search.estimate import estimate
from chromseek.search.hits import Hits
from chromseek.search.measure import CHANCE, N_REGIONS, N_SETS, SEED, choose_probes, sanity

__all__ = ["COLLECTIONS", "Atlas", "build", "open", "plan_build"]

STALE = 0.05  # share of rows changed since the calibration from which a warning says so
COLLECTIONS = ("cells", "regions", "beds")


class Atlas:
    """One version of an atlas; what is opened never changes. `add` and `delete` move to the version they made."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.content: dict[str, Any] = {}
        self._load()

    def _load(self) -> None:
        """Open encoder, universe and collections of the store's version."""
        assert self._store.manifest is not None
        before = self.content.get("primary")
        self.version = self._store.manifest.version
        self.content = self._store.manifest.content
        self._closed = False
        primary = self.content["primary"]
        if primary != before:
            universe = Universe.load(self._store.file("universe.bed.gz"), assembly_named(self.content["assembly"]))
            self.encoder: Encoder = load(self._store.path / "encoders" / primary, universe)
            self.universe = self.encoder.universe
        self._collections = {name: self._collection(name) for name in self.content["collections"]}

    def _collection(self, name: str) -> Collection:
        entry, primary = self.content["collections"][name], self.content["primary"]
        calibration = self.content.get("calibration", {}).get("recall", {}).get(name, {})
        views = [f"{segment['folder']}/views/{primary}" for segment in entry["segments"]]
        codes = [self._store.file(f"{view}/codes.faiss") for view in views] if entry["quantiser"] else []
        vectors = Vectors([self._store.file(f"{view}/vectors.npy") for view in views], codes)
        paths = builder.rows_files(self._store, entry)
        database = self._store.cache / f"metadata-v{self.version}.duckdb"
        return Collection(
            name,
            Metadata(name, paths, database=database, deleted=builder.deleted_rows(self._store, entry)),
            vectors,
            self.encoder,
            n_probe=calibration.get("n_probe", DEFAULT_PROBES),
            recall=calibration.get("recall@10"),
            receipt={
                "atlas": str(self._store.path),
                "version": self.version,
                "encoder": self.content["encoders"][primary]["fingerprint"],
                "assembly": self.content["assembly"],
                "universe": self.content["universe"]["digest"],
            },
            stored=self._stored,
        )

    def _stored(self, name: str, ids: Sequence[int]) -> tuple[NDArray[np.float32], list[str]]:
        """Vectors and names of stored rows, for queries by id."""
        collection = self.collection(name)
        return collection.vectors_of(ids), collection.get(ids, ["name"])["name"].to_pylist()

    def collection(self, name: str) -> Collection:
        """A collection by name. Raises NotFound when the atlas has none of it, BadArgument after close()."""
        self._check_open()
        if name not in self._collections:
            raise NotFound(
                f"this atlas has no {printable(name)}",
                code="COLLECTION",
                got=name,
                fix=f"it has {', '.join(self._collections)}; `chromseek add` takes --cells and --beds",
            )
        return self._collections[name]

    def _check_open(self) -> None:
        if self._closed:
            raise BadArgument("the atlas is closed", code="ATLAS-CLOSED", fix="open it again with chromseek.open")

    @property
    def cells(self) -> Collection:
        """The cells."""
        return self.collection("cells")

    @property
    def regions(self) -> Collection:
        """The regions of the universe, each as a set of one."""
        return self.collection("regions")

    @property
    def beds(self) -> Collection:
        """The BED sets."""
        return self.collection("beds")

    @property
    def path(self) -> Path:
        """The atlas folder."""
        return self._store.path

    def add(self, *, cells: Any = None, beds: Any = None, read: ReadOptions | None = None) -> None:
        """Append cells and BED sets with the atlas's own encoder, as a new version, and move to it.

        What was calibrated stays in use; info() says on which version it was made.
        """
        self._check_open()
        read = read or ReadOptions()
        assembly = self.universe.assembly
        found = sources_of(cells, beds, read, assembly)
        if not found[0] and not found[1]:
            raise BadArgument("nothing to add", code="ADD-NOTHING", fix="give cells= or beds=")
        builder.add(self._store, *found, self.encoder)
        self._load()

    def delete(
        self, collection: str, *, where: str | Mapping[str, Any] | None = None, ids: Sequence[int] | None = None
    ) -> int:
        """Take rows out by filter or by id, as a new version, and move to it; return how many."""
        if (where is None) == (ids is None):
            raise BadArgument("give either where= or ids=", code="DELETE-WHAT", fix="one of the two")
        if collection == "regions":
            raise BadArgument(
                "regions are the universe and cannot be deleted", code="DELETE-REGIONS", fix="build another atlas"
            )
        chosen = self.collection(collection)
        if where is not None:
            gone = chosen.where(where)
        else:
            assert ids is not None
            gone = chosen.ids[np.unique(chosen.rows_of(ids))]
        if len(gone):
            builder.delete(self._store, collection, gone)
            self._load()
        return len(gone)

    def calibrate(self) -> None:
        """Measure recall and the sanity of each direction on this version, and store both in a new one."""
        self._check_open()
        recalls = {}
        for name, collection in self._collections.items():
            if collection.vectors.n_lists:
                n_probe, reached = choose_probes(collection.vectors)
                recalls[name] = {"n_probe": n_probe, "recall@10": reached}
        samples = {name: sample for name in self._collections if (sample := self._sample(name)) is not None}
        with self._store.write("calibrate") as writer:
            assert writer.parent is not None
            content = json.loads(json.dumps(writer.parent.content))
            content["calibration"] = {
                "made_at": self.version,
                "n_rows": {name: len(collection) for name, collection in self._collections.items()},
                "n_ever": {name: entry["next_id"] for name, entry in self.content["collections"].items()},
                "recall": recalls,
                "sanity": sanity(samples, len(self.universe)),
            }
            manifest = writer.commit(content, keep=writer.parent.entries)
            builder.keep_cache(self._store, manifest)
        self._load()

    def _sample(self, name: str) -> tuple[TokenSets, NDArray[np.float32]] | None:
        """Token sets and vectors of some rows at random; None where the token sets were not kept."""
        collection = self._collections[name]
        segments = self.content["collections"][name]["segments"]
        assert self._store.manifest is not None
        if not all(f"{segment['folder']}/tokens.parquet" in self._store.manifest.entries for segment in segments):
            return None
        live = collection.metadata.where(None)
        live = live[collection.metadata.column("n_tokens").to_numpy()[live] > 0]
        n = min(len(live), N_REGIONS if name == "regions" else N_SETS)
        rows = np.sort(np.random.default_rng(SEED).choice(live, n, replace=False))
        vectors = collection.vectors.get(rows)
        known = vectors.any(axis=1)
        rows, vectors = rows[known], vectors[known]
        parts, first = [], 0
        for segment in segments:
            mine = rows[(rows >= first) & (rows < first + segment["n_rows"])] - first
            if len(mine):
                parts.append(take_sets(self.path / segment["folder"], mine))
            first += segment["n_rows"]
        return TokenSets.concat(parts), vectors

    def info(self) -> dict[str, Any]:
        """What the atlas holds and how good it is: rows, columns, sources with QC, recall, sanity, warnings."""
        calibration = self.content.get("calibration", {})
        collections = {}
        for name, collection in self._collections.items():
            entry = self.content["collections"][name]
            collections[name] = {
                "rows": len(collection),
                "segments": len(entry["segments"]),
                "lists": collection.vectors.n_lists,
                "columns": {field.name: str(field.type) for field in collection.schema},
                "sources": entry["sources"],
            }
        return {
            "path": str(self.path),
            "version": self.version,
            "versions": Store.versions(self.path),
            "assembly": self.content["assembly"],
            "universe": self.content["universe"],
            "encoder": self.content["encoders"][self.content["primary"]],
            "labels": self.content.get("labels", []),
            "groups": self.content.get("groups"),
            "collections": collections,
            "calibration": calibration,
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """What a user should know before trusting an answer."""
        calibration = self.content.get("calibration", {})
        found = [
            f"search {direction} is no better than chance on this atlas (sanity {score}): do not rely on it"
            for direction, score in calibration.get("sanity", {}).items()
            if score is not None and score <= CHANCE
        ]
        changed = self._changed_since(calibration) if calibration else 0.0
        if changed >= STALE:
            found.append(
                f"calibrated at v{calibration['made_at']}, {changed:.0%} of rows since: run `chromseek calibrate` "
                "or atlas.calibrate()"
            )
        if not self.content.get("keep_tokens", True):
            found.append("the token sets of cells were not kept: no sanity of searches by or of cells was measured")
        for name, entry in self.content["collections"].items():
            for source in entry["sources"]:
                if source["n_empty"]:
                    found.append(
                        f"{source['n_empty']} of {source['n_sets']} {name} of {source['dataset']} have no token"
                    )
        return found

    def _changed_since(self, calibration: Mapping[str, Any]) -> float:
        """The share of rows added or deleted since a calibration, in the collection that changed most."""
        shares = [0.0]
        for name, entry in self.content["collections"].items():
            ever, live = calibration["n_ever"].get(name, 0), calibration["n_rows"].get(name, 0)
            now = len(self._collections[name])
            deleted = entry["next_id"] - now
            changed = (entry["next_id"] - ever) + (deleted - (ever - live))
            shares.append(min(1.0, changed / max(1, now)))
        return max(shares)

    def annotate(
        self,
        query: Any,
        label: str | Sequence[str],
        *,
        k: int = 30,
        where: str | Mapping[str, Any] | None = None,
        exclude_same: str | Sequence[str] | None = None,
        copy: bool = False,
        read: ReadOptions | None = None,
    ) -> Any:
        """Transfer labels from the atlas's cells to a query's; see chromseek.search.annotate."""
        from chromseek.search.annotate import annotate

        return annotate(
            self, query, label, k=k, where=where, exclude_same=exclude_same, copy=copy, read=read or ReadOptions()
        )

    def export(self, path: str | Path, collection: str = "cells", *, where: Any = None, overwrite: bool = False) -> int:
        """Write rows and vectors of a collection; the suffix says how: .parquet, .h5ad, .bed, .bed.gz, .tsv, .csv."""
        from chromseek.search.export import export

        return export(self.collection(collection), Path(path), where=where, overwrite=overwrite)

    def replay(self, receipt: Mapping[str, Any], query: Any = None, *, unlike: Any = None) -> Hits:
        """Repeat the search of a receipt; give query and unlike again where they were no paths, regions or ids."""
        from chromseek.search.replay import replay

        return replay(self, receipt, query, unlike)

    def verify(self) -> list[Problem]:
        """Check every file of the version against its checksum; an empty list is good."""
        return self._store.verify()

    def gc(self, *, grace_hours: float = 24.0, keep: int = 2, dry_run: bool = False) -> list[Path]:
        """Remove what no kept version needs; return what was, or would be, removed."""
        return self._store.gc(grace_hours=grace_hours, keep=keep, dry_run=dry_run)

    def close(self) -> None:
        """Let files go; searching afterwards raises BadArgument."""
        for collection in self._collections.values():
            collection.close()
        self._closed = True

    def __enter__(self) -> "Atlas":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(c):,} {name}" for name, c in self._collections.items())
        return f"<Atlas {self.path.name} v{self.version} ({self.content['assembly']}): {counts}>"


def open(path: str | Path, *, version: int | None = None, verify: bool = False) -> Atlas:
    """Open an atlas, the newest version by default; `verify` hashes every file first."""
    return Atlas(Store.open(path, version=version, verify=verify))


def build(
    path: str | Path,
    cells: Any = None,
    beds: Any = None,
    universe: str | Path | Universe | Any = None,
    encoder: str | Path | Encoder = "lsi",
    *,
    labels: str | Sequence[str] = (),
    groups: str | None = None,
    assembly: str | None = None,
    genes: str | Path | None = None,
    dim: int = 64,
    keep_tokens: bool = True,
    seed: int = 0,
    read: ReadOptions | None = None,
) -> Atlas:
    """Build an atlas from cells, BED sets or both, and open it.

    cells: h5ad, AnnData, fragments, a sample manifest (TSV with a path column), a Simulation, or a list of these.
    beds: a folder, a glob, a manifest (TSV, CSV or Parquet with a `path` or `file` column), or a list of paths.
    universe: a BED file, frame or Universe; without it the regions of the first cells file serve.
    encoder: the name of one to fit, a saved folder, or an Encoder.
    labels, groups: obs columns that annotations are meant for, and the one (donor, library) to leave out whole when
        they are judged; recorded in the atlas. Any other column can be transferred too.
    assembly: hg19, hg38 or mm10; guessed from the regions where they allow.
    genes: GTF or BED with symbols: the regions get their nearest gene and its distance.
    read: how files are read: chain, blacklist (its regions leave the universe too), chromosome names, bad lines.

    A killed build leaves no atlas; the same call goes on where it stopped. Raises BadData and BadArgument, which leave
    nothing behind, and StorageError; nothing half written can be opened.
    """
    plan = plan_build(
        cells, beds, universe, encoder, labels=labels, groups=groups, assembly=assembly, genes=genes,
        dim=dim, keep_tokens=keep_tokens, seed=seed, read=read,
    )  # fmt: skip
    atlas = Atlas(builder.build(path, plan, n_bytes=estimate(plan, Path(path)).disk))
    atlas.calibrate()
    return atlas

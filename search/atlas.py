"""The front door: build an atlas, open one, ask it.

atlas = chromseek.build("blood.atlas", cells="cells.h5ad", beds="peaks/")
atlas = chromseek.open("blood.atlas")
atlas.cells.search(adata, k=10, where="tissue = 'blood'").to_pandas()
atlas.annotate(adata, label="cell_type")
"""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, NotFound, printable
from chromseek.data.genome import assembly as assembly_named
from chromseek.data.sources import ReadOptions
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, load
from chromseek.indexer import build as builder
from chromseek.indexer.content import upgraded
from chromseek.indexer.metadata import Metadata
from chromseek.indexer.reencode import reencode
from chromseek.indexer.store import Problem, Store
from chromseek.indexer.vectors import Vectors
from chromseek.search.annotate import SideBySide, annotate
from chromseek.search.build_plan import plan_build, plan_reencoding, sources_of
from chromseek.search.calibration import calibrate
from chromseek.search.collection import DEFAULT_PROBES, Collection
from chromseek.search.estimate import estimate
from chromseek.search.hits import Hits
from chromseek.search.report import info, warnings

__all__ = ["COLLECTIONS", "Atlas", "build", "open", "plan_build"]

COLLECTIONS = ("cells", "regions", "beds")


class Atlas:
    """One version of an atlas; what is opened never changes. `add` and `delete` move to the version they made."""

    def __init__(self, store: Store, *, device: str = "auto", dtype: str = "auto") -> None:
        self._store, self._device, self._dtype = store, device, dtype
        self.content: dict[str, Any] = {}
        self._label_views: dict[str, Collection] = {}
        self._loading = threading.Lock()
        self._load()

    def _load(self) -> None:
        """Open encoder, universe and collections of the store's version."""
        assert self._store.manifest is not None
        before = self.content.get("primary")
        self.version = self._store.manifest.version
        self.content = upgraded(self._store.manifest.content)
        self._closed = False
        self._label_views = {}
        primary = self.content["primary"]
        if primary != before:
            path = self._store.file(self.content["universe"]["path"])
            universe = Universe.load(path, assembly_named(self.content["assembly"]))
            self.encoder: Encoder = self._encoder(primary, universe)
            self.universe = self.encoder.universe
        self._collections = {name: self._collection(name) for name in self.content["collections"]}

    def _encoder(self, view: str, universe: Universe) -> Encoder:
        return load(self._store.path / "encoders" / view, universe, device=self._device, dtype=self._dtype)

    def _collection(self, name: str) -> Collection:
        entry = self.content["collections"][name]
        database = self._store.cache / f"metadata-v{self.version}.duckdb"
        paths = builder.rows_files(self._store, entry)
        metadata = Metadata(name, paths, database=database, deleted=builder.deleted_rows(self._store, entry))
        measured = self.content.get("calibration", {}).get("recall", {}).get(name, {})
        return self._viewed(name, metadata, self.content["primary"], self.encoder, measured)

    def _viewed(
        self,
        name: str,
        metadata: Metadata,
        view: str,
        encoder: Encoder,
        measured: Mapping[str, Any],
        label: str | None = None,
    ) -> Collection:
        """A collection by one of its views, that of a label if one is given; `measured` is the calibration of it."""
        entry = self.content["collections"][name]
        folders = [f"{segment['folder']}/views/{view}" for segment in entry["segments"]]
        codes = [self._store.file(f"{folder}/codes.faiss") for folder in folders] if view in entry["quantisers"] else []
        return Collection(
            name,
            metadata,
            Vectors([self._store.file(f"{folder}/vectors.npy") for folder in folders], codes),
            encoder,
            n_probe=measured.get("n_probe", DEFAULT_PROBES),
            recall=measured.get("recall@10"),
            receipt={
                "atlas": str(self._store.path),
                "version": self.version,
                "encoder": self.content["encoders"][view]["fingerprint"],
                "assembly": self.content["assembly"],
                "universe": self.content["universe"]["digest"],
                **({} if label is None else {"label_view": label}),
            },
            stored=partial(self._stored, label),
        )

    def label_view(self, label: str) -> Collection | None:
        """The cells by the view that was fitted for a label, loaded when first asked for; None where there is none."""
        self._check_open()
        view = self.content["label_views"].get(label, {}).get("view")
        if view is None:
            return None
        with self._loading:
            if label not in self._label_views:
                measured = self.content.get("calibration", {}).get("label_recall", {}).get(label, {})
                encoder = self._encoder(view, self.universe)
                cells = self._viewed("cells", self.cells.metadata, view, encoder, measured, label)
                self._label_views[label] = cells
            return self._label_views[label]

    def _stored(self, label: str | None, name: str, ids: Sequence[int]) -> tuple[NDArray[np.float32], list[str]]:
        """Vectors, by the view of a label or the primary one, and names of stored rows, for queries by id."""
        collection = self.collection(name)
        viewed = collection if label is None else self.label_view(label)
        if viewed is None or viewed.name != name:
            raise BadArgument(
                f"the {name} have no vectors by the view of {printable(label)}",
                code="LABEL-VIEW",
                got=name,
                fix="ask with cells, or search without that view",
            )
        return viewed.vectors_of(ids), collection.get(ids, ["name"])["name"].to_pylist()

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
        builder.add(self._store, *found, self.encoder, device=self._device, dtype=self._dtype)
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
        calibrate(self, self._store)
        self._load()

    def reencode(
        self,
        encoder: str | Path | Encoder,
        *,
        chain: str | Path | None = None,
        genes: str | Path | None = None,
        dim: int | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Make a new version under another encoder from the stored token sets alone, and move to it.

        encoder: as in `build`; a name to fit keeps the universe. Regions of another universe are found by overlap.
        chain: a liftOver chain file to the encoder's assembly, where the atlas is of another one.
        genes: GTF or BED with symbols, for the regions of another universe.

        info()["reencoded"] has what was lost. A killed one goes on where it stopped when it is called again. Raises
        BadArgument for an atlas without token sets or for another assembly without a chain, Busy while another process
        writes.
        """
        self._check_open()
        plan = plan_reencoding(
            self, encoder, chain=chain, genes=genes, dim=dim, seed=seed, device=device, dtype=dtype
        )  # fmt: skip
        self._store.manifest = reencode(self._store, plan)
        self._device, self._dtype = device, dtype
        self.content = {}  # so that the encoder is loaded for this device
        self._load()
        self.calibrate()

    def info(self) -> dict[str, Any]:
        """What the atlas holds and how good it is: rows, columns, sources with QC, views, recall, sanity, warnings."""
        self._check_open()
        return info(self)

    def warnings(self) -> list[str]:
        """What a user should know before trusting an answer."""
        self._check_open()
        return warnings(self)

    def annotator(self, labels: Sequence[str]) -> SideBySide:
        """The encoder of the questions that `annotate` asks for these labels."""
        views = {label: self.label_view(label) for label in labels}
        return SideBySide(self.encoder, {label: view for label, view in views.items() if view is not None})

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


def open(
    path: str | Path,
    *,
    version: int | None = None,
    verify: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> Atlas:
    """Open an atlas, the newest version by default; `verify` hashes every file first.

    device, dtype: where queries are encoded (auto, cpu, cuda) and in which precision (auto, float32, bfloat16).
    """
    return Atlas(Store.open(path, version=version, verify=verify), device=device, dtype=dtype)


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
    dim: int | None = None,
    keep_tokens: bool = True,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    read: ReadOptions | None = None,
) -> Atlas:
    """Build an atlas from cells, BED sets or both, and open it.

    cells: h5ad, AnnData, fragments, a sample manifest (TSV with a path column), a Simulation, or a list of these.
    beds: a folder, a glob, a manifest (TSV, CSV or Parquet with a `path` or `file` column), or a list of paths.
    universe: a BED file, frame or Universe; without it the regions of the first cells file serve.
    encoder: lsi or bag, fitted here; atacformer:tiny, :small or :base, trained here; the folder of a saved one; a name
        on the Hugging Face hub (org/name); or an Encoder.
    labels: obs columns that annotations are meant for: for each a label-aware view of the cells is fitted, which
        `annotate` alone uses. Any other column can be transferred too.
    groups: the column (donor, library) to leave out whole when labels are judged; recorded in the atlas.
    assembly: hg19, hg38 or mm10; guessed from the regions where they allow.
    genes: GTF or BED with symbols: the regions get their nearest gene and its distance.
    dim: the width of the vectors of an encoder that is fitted; its own by default (lsi 64, bag 128).
    device, dtype: where sets are encoded (auto, cpu, cuda) and in which precision (auto, float32, bfloat16).
    read: how files are read: chain, blacklist (its regions leave the universe too), chromosome names, bad lines.

    A killed build leaves no atlas; the same call goes on where it stopped. Raises BadData and BadArgument, which leave
    nothing behind, and StorageError; nothing half written can be opened.
    """
    plan = plan_build(
        cells, beds, universe, encoder, labels=labels, groups=groups, assembly=assembly, genes=genes,
        dim=dim, keep_tokens=keep_tokens, seed=seed, device=device, dtype=dtype, read=read,
    )  # fmt: skip
    atlas = Atlas(builder.build(path, plan, n_bytes=estimate(plan, Path(path)).disk), device=device, dtype=dtype)
    atlas.calibrate()
    return atlas

"""Views: from stored token sets to vectors and lists. Inputs are not read again, and memory is bounded by a block."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.base import Encoder, Kind, encoder_class, fingerprint, load, save
from chromseek.indexer.durable import checkpoint, sync
from chromseek.indexer.journal import Journal, Part
from chromseek.indexer.progress import progress
from chromseek.indexer.segment import VectorWriter, read_sets, take_sets
from chromseek.indexer.store import Writer
from chromseek.indexer.vectors import train_quantiser, write_codes

INDEX_FROM = 50_000  # rows; below, a view has no lists and every search is exact
FIT_SETS = 20_000  # sets of a kind and
FIT_TOKENS = 12_000_000  # tokens of a kind that an encoder is fitted on, at most
ENCODE_ROWS = 2_048  # sets encoded at a time
KIND_OF: dict[str, Kind] = {"cells": "cell", "regions": "region", "beds": "bed"}


def fitted(name: str, journal: Journal, universe: Universe, *, dim: int, seed: int) -> Encoder:
    """Fit an encoder on a sample of what was read; a resumed build finds the one that was fitted."""
    folder = journal.work / "encoder"
    mark = folder / "done"
    if mark.exists():
        return load(folder, universe)
    with progress(f"fitting {name}", None):
        cells, beds = _sample(journal, "cells", seed), _sample(journal, "beds", seed)
        encoder: Encoder = encoder_class(name).fit(cells, beds, universe, dim=dim, seed=seed)
    for path in save(encoder, folder):
        sync(path)
    checkpoint("encoder-saved")
    mark.touch()
    return encoder


def _sample(journal: Journal, name: str, seed: int) -> TokenSets:
    """Some of the sets of a collection at random, FIT_SETS and about FIT_TOKENS at most."""
    parts = journal.of(name).parts
    columns = [pq.read_table(journal.root / part.folder / "rows.parquet", columns=["n_tokens"]) for part in parts]
    sizes = np.concatenate([np.empty(0, np.int64), *(table.column(0).to_numpy() for table in columns)])
    rows = np.random.default_rng(seed).permutation(len(sizes))[:FIT_SETS]
    fits = np.cumsum(sizes[rows]) <= FIT_TOKENS
    fits[:3] = True  # however large they are
    rows = np.sort(rows[fits])
    taken, first = [], 0
    for part in parts:
        mine = rows[(rows >= first) & (rows < first + part.n_rows)] - first
        if len(mine):
            taken.append(take_sets(journal.root / part.folder, mine))
        first += part.n_rows
    return TokenSets.concat(taken)


class Views:
    """Writes the vectors of one encoder over what was read, and their lists; `files` are those of the new version."""

    def __init__(self, writer: Writer, journal: Journal, encoder: Encoder) -> None:
        self._writer, self._journal, self._encoder = writer, journal, encoder
        self.name = fingerprint(encoder)[:12]
        self.files: list[Path] = []

    def add_to(self, collections: dict[str, Any]) -> None:
        """Encode and index what was read, and enter it in the manifest's collections."""
        for name, done in self._journal.collections.items():
            if not done.parts:
                continue
            entry = collections.setdefault(
                name, {"n_rows": 0, "next_id": 0, "segments": [], "sources": [], "deletes": None, "quantiser": None}
            )
            with progress(f"encoding {name}", done.n_rows) as tick:
                for part in done.parts:
                    self._encode(part, KIND_OF[name], tick)
            if entry["n_rows"] + done.n_rows >= INDEX_FROM:
                self._index(name, entry, done.parts)
            entry["segments"] += [{"folder": part.folder, "n_rows": part.n_rows} for part in done.parts]
            entry["sources"] += done.reports
            entry["n_rows"] += done.n_rows
            entry["next_id"] += done.n_rows

    def _encode(self, part: Part, kind: Kind, tick: Callable[[int], None]) -> None:
        """Write the vectors of one segment, unless the journal has them."""
        relative = f"views/{self.name}/vectors.npy"
        folder = self._journal.root / part.folder
        if relative not in part.files:
            writer = VectorWriter(folder / relative, part.n_rows, self._encoder.dim)
            for sets in read_sets(folder):
                for start in range(0, len(sets), ENCODE_ROWS):
                    block = sets.slice(start, min(start + ENCODE_ROWS, len(sets)))
                    writer.add(self._encoder.encode(block, kind))
                    tick(len(block))
            writer.close()
            part.files = Part.of(self._journal.root, folder, part.n_rows).files
            self._journal.save()
        self.files += [folder / file for file in part.files]

    def _index(self, name: str, entry: dict[str, Any], parts: Sequence[Part]) -> None:
        """Give each new segment its lists; older ones too when the view has just become large enough."""
        root = self._journal.root
        new = [root / part.folder for part in parts]
        old = [root / segment["folder"] for segment in entry["segments"]]
        views = {folder: folder / f"views/{self.name}" for folder in (*old, *new)}
        arrays = {folder: np.load(view / "vectors.npy", mmap_mode="r") for folder, view in views.items()}
        n_rows = sum(map(len, arrays.values()))
        sample = _vector_sample([*arrays.values()], 64 * int(4 * np.sqrt(n_rows)))
        if len(sample) == 0:  # every set is empty
            return
        with progress(f"indexing {name}", n_rows) as tick:
            if entry["quantiser"] is None:
                path = self._writer.new_file(f"quantisers/{self.name}-{name}.faiss")
                centroids = train_quantiser(sample, n_rows)
                quantiser = faiss.IndexFlatIP(centroids.shape[1])
                quantiser.add(centroids)
                faiss.write_index(quantiser, str(path))
                self.files.append(path)
                entry["quantiser"] = path.relative_to(root).as_posix()
                new += old
            else:
                quantiser = faiss.read_index(str(self._writer.file(entry["quantiser"])))
                centroids = quantiser.reconstruct_n(0, quantiser.ntotal)
            for folder in new:
                path = views[folder] / "codes.faiss"
                write_codes(path, centroids, arrays[folder], sample)
                checkpoint("codes-written")
                self.files.append(path)
                tick(len(arrays[folder]))


def _vector_sample(arrays: Sequence[NDArray[np.float16]], n: int) -> NDArray[np.float32]:
    """Some non-zero vectors of all segments, at random, (about n or fewer, dim)."""
    total = sum(map(len, arrays))
    rng = np.random.default_rng(0)
    parts = []
    for array in arrays:
        wanted = min(len(array), -(-n * len(array) // total))
        parts.append(array[np.sort(rng.choice(len(array), wanted, replace=False))].astype(np.float32))
    sample = np.concatenate(parts)
    return sample[sample.any(axis=1)]

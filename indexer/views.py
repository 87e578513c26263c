"""Views: from stored token sets to vectors and lists. Inputs are not read again, and memory is bounded by a block."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chromseek.encoder.base import Encoder, Kind, fingerprint, save
from chromseek.indexer.content import described_encoder, new_collection
from chromseek.indexer.durable import checkpoint
from chromseek.indexer.fitting import Fitting
from chromseek.indexer.journal import Journal, Part
from chromseek.indexer.progress import progress
from chromseek.indexer.segment import VectorWriter, read_sets
from chromseek.indexer.store import Writer
from chromseek.indexer.vectors import train_quantiser, write_codes

INDEX_FROM = 50_000  # rows; below, a view has no lists and every search is exact
ENCODE_ROWS = 2_048  # sets encoded at a time
KIND_OF: dict[str, Kind] = {"cells": "cell", "regions": "region", "beds": "bed"}


class View:
    """Writes the vectors of one encoder over what was read, and their lists; `files` are those of the new version.

    A file that an older version has, of this encoder over the same segment, is taken over and not written again.
    """

    def __init__(self, writer: Writer, journal: Journal, encoder: Encoder) -> None:
        self._writer, self._journal, self._encoder = writer, journal, encoder
        self.name = fingerprint(encoder)[:12]
        self.files: set[str] = set()  # relative to the atlas

    def add_to(self, collections: dict[str, Any], names: Sequence[str]) -> None:
        """Encode and index what was read of these collections, before their entries say that it is there."""
        for name in names:
            parts = self._journal.of(name).parts
            if not parts:
                continue
            entry = collections.setdefault(name, new_collection())
            n_rows = sum(part.n_rows for part in parts)
            with progress(f"encoding {name}", n_rows) as tick:
                for part in parts:
                    self._encode(part, KIND_OF[name], tick)
            if entry["n_rows"] + n_rows >= INDEX_FROM:
                self._index(name, entry, parts)
            if self._encoder.context is not None:
                longer = sum(self._n_longer(part, self._encoder.context) for part in parts)
                entry["longer"][self.name] = entry["longer"].get(self.name, 0) + longer

    def save_encoder(self, content: dict[str, Any]) -> None:
        """Keep the encoder in the atlas, and enter it in the manifest's content."""
        folder = f"encoders/{self.name}"
        there = self._writer.under(folder)
        if not there:
            saved = save(self._encoder, self._writer.new_folder("encoders", self.name))
            there = [f"{folder}/{path.name}" for path in saved]
        self.files |= set(there)
        content["encoders"][self.name] = described_encoder(self._encoder)

    def _encode(self, part: Part, kind: Kind, tick: Callable[[int], None]) -> None:
        """Write the vectors of one segment, unless the journal or an older version has them."""
        own = f"views/{self.name}/vectors.npy"
        relative = f"{part.folder}/{own}"
        self.files.add(relative)
        if own in part.files or self._writer.has(relative):
            tick(part.n_rows)
            return
        path = self._writer.new_file(relative)
        with closing(VectorWriter(path, part.n_rows, self._encoder.dim)) as writer:
            for sets in read_sets(self._journal.root / part.folder):
                for start in range(0, len(sets), ENCODE_ROWS):
                    block = sets.slice(start, min(start + ENCODE_ROWS, len(sets)))
                    writer.add(self._encoder.encode(block, kind))
                    tick(len(block))
        part.record(self._journal.root, path)
        self._journal.save()

    def _n_longer(self, part: Part, context: int) -> int:
        """How many sets of a segment have more tokens than the encoder reads at once."""
        rows = pq.read_table(self._journal.root / part.folder / "rows.parquet", columns=["n_tokens"])
        return int((rows.column(0).to_numpy() > context).sum())

    def _index(self, name: str, entry: dict[str, Any], parts: Sequence[Part]) -> None:
        """Give each new segment its lists; older ones too when the view has just become large enough."""
        root = self._journal.root
        new = [part.folder for part in parts]
        old = [segment["folder"] for segment in entry["segments"]]
        arrays = {f: np.load(root / f / f"views/{self.name}/vectors.npy", mmap_mode="r") for f in (*old, *new)}
        n_rows = sum(map(len, arrays.values()))
        sample = _vector_sample([*arrays.values()], 64 * int(4 * np.sqrt(n_rows)))
        if len(sample) == 0:  # every set is empty
            return
        with progress(f"indexing {name}", n_rows) as tick:
            new += [] if self.name in entry["quantisers"] else old
            centroids = self._quantiser(name, entry, sample, n_rows)
            for folder in new:
                relative = f"{folder}/views/{self.name}/codes.faiss"
                self.files.add(relative)
                if not self._writer.has(relative):
                    write_codes(self._writer.new_file(relative), centroids, arrays[folder], sample)
                    checkpoint("codes-written")
                tick(len(arrays[folder]))

    def _quantiser(
        self, name: str, entry: dict[str, Any], sample: NDArray[np.float32], n_rows: int
    ) -> NDArray[np.float32]:
        """The centroids of the view's lists, trained where it has none yet, (lists, dim)."""
        relative = entry["quantisers"].setdefault(self.name, f"quantisers/{self.name}-{name}.faiss")
        self.files.add(relative)
        if self._writer.has(relative):
            quantiser = faiss.read_index(str(self._journal.root / relative))
            return np.asarray(quantiser.reconstruct_n(0, quantiser.ntotal), np.float32)
        centroids = train_quantiser(sample, n_rows)
        quantiser = faiss.IndexFlatIP(centroids.shape[1])
        quantiser.add(centroids)
        faiss.write_index(quantiser, str(self._writer.new_file(relative)))
        return centroids


def write_label_views(writer: Writer, journal: Journal, content: dict[str, Any], fitting: Fitting) -> set[str]:
    """Fit a label-aware view of the cells for each label of the atlas, and write it; return the files."""
    files: set[str] = set()
    content["label_views"] = {}
    for label in content["labels"]:
        encoder, why = fitting.labelled(label)
        name = None
        if encoder is not None:
            view = View(writer, journal, encoder)
            view.add_to(content["collections"], ["cells"])
            view.save_encoder(content)
            files |= view.files
            name = view.name
        content["label_views"][label] = {"view": name, "why": why}
    return files


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

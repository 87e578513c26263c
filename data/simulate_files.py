"""A simulated atlas as files: what a user would have, and every one of them says that it is simulated."""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from chromseek.data.errors import StorageError
from chromseek.data.regions import Regions
from chromseek.data.simulate import ORIGIN, Simulation
from chromseek.data.tokens import SetBlock, TokenSets

_CHUNK = 1 << 18  # values in one HDF5 chunk


class MatrixFile:
    """An h5ad of cells x regions (or genes) that grows block by block; only its obs table is held in memory."""

    def __init__(self, path: Path, var: pd.DataFrame, uns: dict[str, str], dtype: type) -> None:
        self._file = h5py.File(path, "w", track_order=True)
        self._var, self._uns, self._obs, self._names = var, uns, list[pa.Table](), list[str]()
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = self._file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        for name, kind in (("data", dtype), ("indices", np.int32), ("indptr", np.int64)):
            options = {"chunks": (_CHUNK,), "compression": "gzip", "compression_opts": 1, "shuffle": True}
            group.create_dataset(name, (0,), kind, maxshape=(None,), **options)
        self._append("indptr", np.zeros(1, np.int64))

    def add(self, names: list[str], obs: pa.Table, sets: TokenSets, values: NDArray[np.generic]) -> None:
        """Append rows: their columns (sets) and values, (sets.offsets[-1])."""
        filled = self._file["X/data"].shape[0]
        self._append("data", values)
        self._append("indices", sets.tokens)
        self._append("indptr", filled + sets.offsets[1:])
        self._obs.append(obs)
        self._names += names

    def close(self) -> None:
        """Write obs, var and uns, and close the file."""
        obs = pa.concat_tables(self._obs).to_pandas() if self._obs else pd.DataFrame()
        obs.index = pd.Index(self._names, dtype=object)
        self._file["X"].attrs["shape"] = np.array([len(self._names), len(self._var)])
        for name, value in (("obs", obs), ("var", self._var), ("uns", self._uns)):
            anndata.io.write_elem(self._file, name, value)
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            anndata.io.write_elem(self._file, name, {})
        self._file.close()

    def _append(self, name: str, values: NDArray[Any]) -> None:
        dataset = self._file[f"X/{name}"]
        filled = dataset.shape[0]
        dataset.resize(filled + len(values), axis=0)
        dataset[filled:] = values


def write(simulation: Simulation, folder: Path, *, hold_out_donor: bool, rna: bool) -> dict[str, Path]:
    """Write universe, genes, BED sets and cells; the folder must be new or empty.

    Raises StorageError when it holds anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        fix = "give a new folder, or remove what is in it"
        raise StorageError("the folder is not empty", code="SIMULATE-EXISTS", file=str(folder), fix=fix, exit_code=73)
    note = f"{ORIGIN}, seed {simulation.seed}, {simulation.assembly}"
    paths = {"universe": folder / "universe.bed.gz", "genes": folder / "genes.bed.gz"}
    write_bed(paths["universe"], note, simulation.universe.regions)
    genes = simulation.genes
    strands = np.where(genes.forward, "+", "-")
    write_bed(paths["genes"], note, genes.regions, name=genes.symbols, score=np.zeros(len(genes), int), strand=strands)
    paths["beds"] = folder / "beds"
    paths["manifest"] = _write_beds(simulation, paths["beds"], note)
    return paths | _write_cells(simulation, folder, hold_out_donor) | (_write_rna(simulation, folder) if rna else {})


def write_bed(path: Path, note: str, regions: Regions, **columns: Iterable[object]) -> None:
    """Write a gzipped BED with a first comment line; the same regions always give the same bytes."""
    chroms = pa.DictionaryArray.from_arrays(pa.array(regions.chroms), pa.array(regions.assembly.chroms))
    table = pa.table({"chrom": chroms.cast(pa.string()), "start": regions.starts, "end": regions.ends, **columns})
    text = io.BytesIO(f"# {note}\n".encode())
    text.seek(0, io.SEEK_END)
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pa.csv.write_csv(table, text, options)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 3, raw, mtime=0) as out:
        out.write(text.getbuffer())


def peaks_of(tokens: NDArray[np.int32], n_source: int, universe: Regions, rng: np.random.Generator) -> Regions:
    """Make a BED set look called: edges inside those of its regions, and a few peaks where the universe has none.

    `n_source` - tokens of them are wanted; fewer come where the gaps are too narrow.
    """
    inside = universe.take(tokens.astype(np.int64))
    widths = inside.ends - inside.starts
    trims = (rng.random((2, len(tokens))) * 0.3 * widths).astype(np.int32)
    next_start = np.append(universe.starts[1:], 0)
    roomy = np.append(universe.chroms[1:] == universe.chroms[:-1], False) & (next_start - universe.ends > 1000)
    places = np.flatnonzero(roomy)
    extra = np.sort(rng.choice(places, min(n_source - len(tokens), len(places)), replace=False))
    starts = np.concatenate([inside.starts + trims[0], universe.ends[extra] + 200])
    ends = np.concatenate([inside.ends - trims[1], universe.ends[extra] + 600])
    chroms = np.concatenate([inside.chroms, universe.chroms[extra]])
    order = np.lexsort((starts, chroms))
    return Regions(universe.assembly, chroms, starts, ends).take(order)


def _write_beds(simulation: Simulation, folder: Path, note: str) -> Path:
    """Write each BED set, and a manifest with its metadata; give the manifest."""
    folder.mkdir()
    beds = simulation.beds()
    rng = np.random.default_rng([simulation.seed, 6])
    files = [f"{name}.bed.gz" for name in beds.names]
    for row, file in enumerate(files):
        peaks = peaks_of(beds.sets[row], int(beds.n_source[row]), simulation.universe.regions, rng)
        write_bed(folder / file, note, peaks)
    manifest = folder / "manifest.tsv"
    table = beds.metadata.to_pandas().assign(origin=ORIGIN)
    table.insert(0, "file", files)
    table.to_csv(manifest, sep="\t", index=False)
    return manifest


def _write_cells(simulation: Simulation, folder: Path, hold_out_donor: bool) -> dict[str, Path]:
    """Stream the cells into cells.h5ad, and those of the held-out donor into query.h5ad."""
    regions = simulation.universe.regions
    var = pd.DataFrame(regions.to_frame()).astype({"chrom": "category"})
    var.index = pd.Index(regions.names(), dtype=object)
    uns = {"origin": ORIGIN, "assembly": simulation.assembly, "seed": str(simulation.seed)}
    paths = {"cells": folder / "cells.h5ad"} | ({"query": folder / "query.h5ad"} if hold_out_donor else {})
    files = {name: MatrixFile(path, var, uns, np.uint8) for name, path in paths.items()}
    for block, times in simulation.counted_cells():
        away = np.zeros(len(block), bool)
        if hold_out_donor:
            away = pc.equal(block.metadata["donor"].cast(pa.string()), simulation.held_out_donor).to_numpy()
            _add_rows(files["query"], block, times, np.flatnonzero(away))
        _add_rows(files["cells"], block, times, np.flatnonzero(~away))
    for file in files.values():
        file.close()
    return paths


def _add_rows(file: MatrixFile, block: SetBlock, times: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
    kept = np.zeros(len(block), bool)
    kept[rows] = True
    values = times[np.repeat(kept, block.sets.sizes)]
    file.add([block.names[row] for row in rows], block.metadata.take(pa.array(rows)), block.sets.take(rows), values)


def _write_rna(simulation: Simulation, folder: Path) -> dict[str, Path]:
    """Stream the RNA of all cells, the held-out donor's too, into rna.h5ad."""
    genes = simulation.genes
    var = pd.DataFrame(genes.regions.to_frame()).astype({"chrom": "category"})
    var["strand"] = pd.Categorical(np.where(genes.forward, "+", "-"))
    var.index = pd.Index(genes.symbols, dtype=object)
    path, at = folder / "rna.h5ad", 0
    file = MatrixFile(path, var, {"origin": ORIGIN, "assembly": simulation.assembly}, np.int32)
    for block in simulation.cells():
        counts = simulation.rna(at, at + len(block))
        at += len(block)
        sets = TokenSets(counts.indptr.astype(np.int64), counts.indices.astype(np.int32))
        file.add(block.names, block.metadata, sets, counts.data)
    file.close()
    return {"rna": path}

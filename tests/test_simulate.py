"""The simulated atlas: the same stream however it is cut, the structure that it claims, and honest files."""

import gzip
import tracemalloc
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD

from chromseek.data.errors import BadArgument, StorageError
from chromseek.data.genome import assembly
from chromseek.data.simulate import ORIGIN, Simulation, toy
from chromseek.data.simulate_files import peaks_of
from chromseek.data.simulate_model import Tree, place_regions, wander
from chromseek.data.tokens import SetBlock, TokenSets
from chromseek.data.universe import Universe

TOY = toy()
MANY = replace(TOY, n_cells=30_000)  # several blocks of draws


def joined(simulation: Simulation, **cut: int) -> tuple[list[str], TokenSets, pa.Table]:
    blocks = list(simulation.cells(**cut))
    names = [name for block in blocks for name in block.names]
    table = pa.concat_tables([block.metadata for block in blocks])
    return names, TokenSets.concat([block.sets for block in blocks]), table


def lsi(sets: TokenSets, n_tokens: int, fit: int, dim: int) -> np.ndarray:
    """Unit rows of log TF-IDF and SVD fitted on the first `fit` sets, without the first dimension (depth)."""
    matrix = sets.to_csr(n_tokens)
    idf = np.log1p(fit / np.maximum(1, np.asarray(matrix[:fit].sum(axis=0)).ravel()))
    matrix = matrix.multiply(1 / np.maximum(1, sets.sizes)[:, None]).multiply(idf[None, :]).tocsr()
    matrix.data = np.log1p(matrix.data * 1e4)
    svd = TruncatedSVD(dim, random_state=0).fit(matrix[:fit])
    vectors = svd.transform(matrix)[:, 1:]
    vectors -= vectors[:fit].mean(axis=0)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_same_seed_gives_the_same_atlas() -> None:
    first, second = joined(toy()), joined(toy())
    assert first[0] == second[0]
    assert np.array_equal(first[1].tokens, second[1].tokens)
    assert first[2].equals(second[2])
    assert toy().universe.digest == TOY.universe.digest
    assert toy(1).universe.digest != TOY.universe.digest
    assert not np.array_equal(joined(toy(1))[1].sizes, first[1].sizes)


@given(st.integers(0, 12_000), st.integers(0, 9000), st.integers(1, 5000))
@settings(max_examples=15, deadline=None)
def test_any_cut_of_the_stream_gives_the_same_rows(start: int, length: int, block_size: int) -> None:
    names, sets, table = joined(replace(MANY, n_cells=12_000), block_size=12_000)
    stop = min(start + length, 12_000)
    if start >= stop:
        assert list(MANY.cells(start=start, stop=start)) == []
        return
    part = joined(MANY, start=start, stop=stop, block_size=block_size)
    assert part[0] == names[start:stop]
    assert np.array_equal(part[1].offsets, sets.slice(start, stop).offsets)
    assert np.array_equal(part[1].tokens, sets.slice(start, stop).tokens)
    assert part[2].to_pylist() == table.slice(start, stop - start).to_pylist()


def test_blocks_have_the_size_asked_for_and_end_with_the_cells() -> None:
    assert [len(block) for block in TOY.cells(block_size=250)] == [250, 250, 100]
    assert [len(block) for block in TOY.cells(block_size=250, start=100, stop=10_000)] == [250, 250]


def test_sets_are_sorted_and_count_their_fragments() -> None:
    for block, times in TOY.counted_cells(block_size=200):
        assert isinstance(block, SetBlock)
        assert len(times) == len(block.sets.tokens)
        assert (block.n_source == block.sets.sizes).all()
        assert block.n_fragments is not None
        counts = np.add.reduceat(times.astype(np.int64), block.sets.offsets[:-1])
        assert (counts == block.n_fragments).all()
        for row in range(len(block)):
            tokens = block.sets[row]
            assert (np.diff(tokens) > 0).all()
            assert tokens[0] >= 0
            assert tokens[-1] < TOY.n_regions


def test_memory_is_bounded_by_the_block() -> None:
    next(MANY.cells())  # what is cached is there before anything is measured
    peaks = []
    for stop in (5_000, 30_000):
        tracemalloc.start()
        for _ in MANY.cells(block_size=1000, stop=stop):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(("build", "n"), [("hg38", 3000), ("hg19", 50_000), ("mm10", 1_000_000)])
def test_regions_lie_apart_in_real_chromosomes(build: str, n: int) -> None:
    regions = place_regions(assembly(build), n, np.random.default_rng(0))
    assert len(regions) == n
    assert (regions.starts >= 0).all()
    assert (regions.starts < regions.ends).all()
    assert (regions.ends <= np.array(regions.assembly.lengths)[regions.chroms]).all()
    starts, ends = regions.spans()
    assert (starts[1:] >= ends[:-1]).all()
    assert set(regions.assembly.chroms) - set(regions.chrom_names()) == {"chrM"}


def test_regions_look_like_peaks(shared: Path) -> None:
    """Widths, gaps and their clustering against a real peak set of 10x, of the same size."""
    frame = pd.read_csv(
        shared / "data/ref/pbmc3k_multiome_peaks_universe_hg38.bed.gz",
        sep="\t",
        header=None,
        comment="#",
        usecols=[0, 1, 2],
    )
    frame = frame[frame[0].str.fullmatch(r"chr[\dXY]+")].sort_values([0, 1])
    simulated = place_regions(assembly("hg38"), len(frame), np.random.default_rng(0)).to_frame()
    seen = []
    for chroms, starts, ends in (frame.to_numpy().T, simulated.to_numpy().T):
        gaps = (starts[1:] - ends[:-1])[chroms[1:] == chroms[:-1]].astype(np.float64)
        logs = np.log(np.maximum(gaps, 1))
        quartiles = np.quantile(logs, [0.25, 0.75])
        neighbours = np.corrcoef(logs[1:], logs[:-1])[0, 1]
        seen.append((np.median((ends - starts).astype(np.float64)), np.exp(quartiles[1] - quartiles[0]), neighbours))
    real, ours = seen
    assert 0.7 < ours[0] / real[0] < 1.4
    assert 0.6 < ours[1] / real[1] < 1.6
    assert abs(ours[2] - real[2]) < 0.15


def test_wandering_noise_has_the_memory_asked_for() -> None:
    noise = wander(100_000, 0.8, np.random.default_rng(0))
    assert abs(noise.std() - 1) < 0.03
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1] - 0.8) < 0.02


def test_tree_has_lineages_of_several_types() -> None:
    tree = Tree.of(45)
    assert len(set(tree.types)) == 45
    assert (tree.lineage[tree.sibling] == tree.lineage).all()
    assert Tree.of(1).sibling.tolist() == [0]
    table = TOY.types.to_pandas()
    assert len(table) == TOY.n_types
    assert (table.groupby("lineage").size() > 1).all()


def test_metadata_has_the_structure_claimed() -> None:
    _, sets, table = joined(MANY)
    frame = table.to_pandas()
    assert set(frame.cell_type) == set(TOY.types.to_pandas().cell_type)
    assert (frame.groupby("donor", observed=True).age.nunique() == 1).all()
    assert (frame.groupby("donor", observed=True).sex.nunique() == 1).all()
    assert frame.sex.nunique() == 2
    assert frame.tissue.nunique() == 4
    assert TOY.held_out_donor in set(frame.donor)
    shares = pd.crosstab(frame.cell_type, frame.tissue, normalize="columns")
    assert (shares.max(axis=1) / shares.min(axis=1)).max() > 2  # tissues differ
    assert shares.min().min() < 0.1  # some types are rare
    logs = np.log(sets.sizes)
    assert 0.3 < logs.std() < 0.8
    assert abs(np.median(sets.sizes) / TOY.tokens_per_cell - 1) < 0.2


def test_types_are_told_apart_on_a_donor_never_seen_but_not_trivially() -> None:
    simulation = replace(TOY, n_cells=2000)
    _, sets, table = joined(simulation)
    frame = table.to_pandas().astype({"cell_type": str, "lineage": str})
    away = (frame.donor == simulation.held_out_donor).to_numpy()
    order = np.concatenate([np.flatnonzero(~away), np.flatnonzero(away)])
    known = int((~away).sum())
    vectors = lsi(sets.take(order), simulation.n_regions, known, 30)
    nearest = np.argpartition(-(vectors[known:] @ vectors[:known].T), 15, axis=1)[:, :15]
    accuracy = {}
    for column in ("cell_type", "lineage"):
        labels, _ = pd.factorize(frame[column].to_numpy()[order])
        votes = np.stack([(labels[nearest] == label).sum(axis=1) for label in range(labels.max() + 1)], axis=1)
        accuracy[column] = float((votes.argmax(axis=1) == labels[known:]).mean())
    assert 0.85 < accuracy["cell_type"] < 0.995
    assert accuracy["lineage"] > 0.97


def test_bed_sets_lie_nearest_to_cells_of_their_lineage() -> None:
    simulation = replace(TOY, n_cells=2000, n_beds=48)
    _, sets, table = joined(simulation)
    beds = simulation.beds()
    n_cells = len(sets)
    vectors = lsi(TokenSets.concat([sets, beds.sets]), simulation.n_regions, n_cells, 30)
    queries = vectors[n_cells:] - vectors[n_cells:].mean(axis=0)
    nearest = np.argsort(-(queries @ vectors[:n_cells].T), axis=1)[:, :20]
    right = {}
    for column in ("cell_type", "lineage"):
        of_cells = table[column].to_pandas().astype(str).to_numpy()
        of_beds = beds.metadata[column].to_pandas().astype(str).to_numpy()
        right[column] = (of_cells[nearest] == of_beds[:, None]).mean()
    assert right["lineage"] > 0.9
    assert right["cell_type"] > 0.7


def test_bed_sets_cover_types_and_assays() -> None:
    beds = replace(TOY, n_beds=60).beds()
    frame = beds.metadata.to_pandas()
    assert len(set(beds.names)) == 60
    assert (frame.groupby(["cell_type", "assay"], observed=True).size() >= 2).all()
    assert (beds.n_source >= beds.n_placed).all()
    assert (beds.n_placed == beds.sets.sizes).all()
    assert (beds.coverage > 0.85).all()
    assert beds.n_fragments is None
    assert len(replace(TOY, n_beds=0).beds()) == 0


def test_rna_belongs_to_the_same_cells() -> None:
    rna = MANY.rna(0, 3000)
    assert rna.shape == (3000, MANY.n_genes)
    assert (MANY.rna(1234, 1300) != rna[1234:1300]).nnz == 0
    _, sets, table = joined(MANY, stop=3000)
    types = table["cell_type"].to_pandas().cat.codes.to_numpy()
    promoters = MANY.universe.tokenize(MANY.genes.tss)[0]
    opened = sets.to_csr(MANY.n_regions)[:, promoters]
    by_type = [
        np.stack([np.asarray(m[types == t].mean(axis=0)).ravel() for t in range(MANY.n_types)]) for m in (rna, opened)
    ]
    logs = [np.log(means + 0.01) - np.log(means + 0.01).mean(axis=0) for means in by_type]
    assert np.corrcoef(logs[0].ravel(), logs[1].ravel())[0, 1] > 0.3


def test_genes_start_in_regions() -> None:
    genes = TOY.genes
    assert len(genes) == TOY.n_genes
    assert TOY.universe.tokenize(genes.tss)[1] == TOY.n_genes
    assert all(symbol.startswith("SIM") for symbol in genes.symbols)


def test_written_files_are_what_the_stream_holds(tmp_path: Path) -> None:
    paths = TOY.write(tmp_path / "sim", rna=True)
    cells, query = anndata.read_h5ad(paths["cells"]), anndata.read_h5ad(paths["query"])
    names, sets, table = joined(TOY)
    frame = table.to_pandas().set_index(pd.Index(names))
    away = frame.donor == TOY.held_out_donor
    assert query.obs_names.tolist() == frame.index[away].tolist()
    assert cells.obs_names.tolist() == frame.index[~away].tolist()
    assert cells.X.dtype == np.uint8
    for data, rows in ((cells, np.flatnonzero(~away)), (query, np.flatnonzero(away))):
        data.X.check_format(full_check=True)
        assert np.array_equal(data.X.indices, sets.take(rows).tokens)
        assert np.array_equal(data.X.indptr, sets.take(rows).offsets)
        assert data.uns["origin"] == ORIGIN
        assert data.uns["assembly"] == "hg38"
        assert data.var_names.tolist() == TOY.universe.regions.names()
        for column in frame:
            assert data.obs[column].astype(str).tolist() == frame[column].iloc[rows].astype(str).tolist()
    rna = anndata.read_h5ad(paths["rna"])
    assert rna.obs_names.tolist() == names
    assert (TOY.rna() != rna.X).nnz == 0


def test_written_beds_are_marked_and_give_their_tokens_back(tmp_path: Path) -> None:
    paths = TOY.write(tmp_path, hold_out_donor=False)
    assert set(paths) == {"universe", "genes", "beds", "manifest", "cells"}
    assert anndata.read_h5ad(paths["cells"]).n_obs == TOY.n_cells
    assert Universe.load(paths["universe"], assembly("hg38")).digest == TOY.universe.digest
    manifest = pd.read_csv(paths["manifest"], sep="\t")
    assert manifest.columns.tolist() == ["file", "cell_type", "lineage", "assay", "tissue", "origin"]
    assert set(manifest.origin) == {ORIGIN}
    beds = TOY.beds()
    for row, file in enumerate(manifest.file):
        with gzip.open(paths["beds"] / file, "rt") as lines:
            assert next(lines).startswith(f"# {ORIGIN}")
        regions = Universe.load(paths["beds"] / file, assembly("hg38")).regions
        assert len(regions) == beds.n_source[row]
        tokens, placed = TOY.universe.tokenize(regions)
        assert np.array_equal(tokens, beds.sets[row])
        assert placed == beds.n_placed[row]


def test_written_genes_are_read_back(tmp_path: Path) -> None:
    genes = type(TOY.genes).load(TOY.write(tmp_path)["genes"], assembly("hg38"))
    assert genes.symbols.tolist() == TOY.genes.symbols.tolist()
    assert genes.regions.names() == TOY.genes.regions.names()


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty") as caught:
        TOY.write(tmp_path)
    assert caught.value.exit_code == 73
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_crowded_universes_get_fewer_strange_peaks() -> None:
    regions = TOY.universe.regions.take(slice(0, 3))
    peaks = peaks_of(np.array([0, 2], np.int32), 50, regions, np.random.default_rng(0))
    assert 2 <= len(peaks) <= 4
    assert (peaks.starts < peaks.ends).all()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n_cells": -1}, "SIMULATE-SIZE"),
        ({"n_types": 0}, "SIMULATE-SIZE"),
        ({"n_donors": 0}, "SIMULATE-SIZE"),
        ({"tokens_per_cell": 0}, "SIMULATE-SIZE"),
        ({"contrast": -1.0}, "SIMULATE-SIZE"),
        ({"contrast": float("nan")}, "SIMULATE-SIZE"),
        ({"n_regions": 300}, "SIMULATE-REGIONS"),
        ({"n_regions": 10**7}, "SIMULATE-REGIONS"),
        ({"n_genes": 3001}, "SIMULATE-REGIONS"),
        ({"assembly": "hg17"}, "ASSEMBLY"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change: dict[str, float], code: str) -> None:
    with pytest.raises(BadArgument) as caught:
        replace(TOY, **change)  # type: ignore[arg-type]
    assert caught.value.code == code


@pytest.mark.parametrize("cut", [{"block_size": 0}, {"start": -1}])
def test_cuts_that_make_no_sense_are_refused(cut: dict[str, int]) -> None:
    with pytest.raises(BadArgument, match="block_size"):
        list(TOY.cells(**cut))


def test_the_smallest_atlas_works(tmp_path: Path) -> None:
    tiny = Simulation(n_cells=1, n_regions=100, n_beds=1, n_types=1, n_donors=1, tokens_per_cell=5, n_genes=1)
    assert sum(len(block) for block in tiny.cells()) == 1
    assert set(tiny.write(tmp_path)) == {"universe", "genes", "beds", "manifest", "cells", "query"}
    assert sum(len(block) for block in replace(tiny, n_cells=0).cells()) == 0

"""Cells as sources: every form gives the same rows, from any start, and every wrong one is named."""

import json
import os
from pathlib import Path

import anndata
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from reading import (
    FRAGMENTS,
    HG19,
    HG38,
    PLAIN,
    REGIONS,
    SHIFT,
    adata,
    bed,
    read,
    same,
    starts_anywhere,
    tokens,
    universe,
    write,
)
from scipy import sparse

from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound
from chromseek.data.regions import Regions
from chromseek.data.simulate import toy
from chromseek.data.sources import Estimate, ReadOptions, bed_sources, cell_sources, first_regions
from chromseek.data.universe import Universe


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return write(tmp_path / "hg19ToHg38.chain", SHIFT)


def test_a_matrix_gives_the_same_from_file_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "blood.v2.h5ad"
    adata(assembly="GRCh38").write_h5ad(path)
    over = universe(texts=[*REGIONS[1:], "chr3:5-9"])
    backed = anndata.read_h5ad(path, backed="r")
    views = [path, str(path), adata(), backed]
    sources = [cell_sources(view, PLAIN, assembly=HG38)[0] for view in views]
    for source in sources:
        block = read(source, over)
        assert tokens(block) == {"c0": [], "c1": [], "c2": [0, 1, 2]}
        assert (block.n_source.tolist(), block.n_placed.tolist()) == ([1, 0, 4], [0, 0, 3])
        assert block.n_fragments is not None
        assert block.n_fragments.tolist() == [2, 0, 4]
        assert block.metadata.column("kind").to_pylist() == ["T", "B", "T"]
        assert (source.kind, source.n_sets) == ("cell", 3)
        starts_anywhere(source, over)
    backed.file.close()
    assert [source.dataset for source in sources] == ["blood.v2", "blood.v2", "cells", "cells"]
    assert [source.label for source in sources] == [str(path), str(path), "AnnData", "AnnData"]


def test_several_things_in_memory_are_told_apart() -> None:
    sources = cell_sources([adata(), [adata()]], PLAIN, assembly=HG38)
    assert [source.dataset for source in sources] == ["cells-1", "cells-2"]


def test_the_identity_of_a_file_is_its_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "x.h5ad"
    adata().write_h5ad(path)
    before = cell_sources(path, PLAIN, assembly=HG38)[0].identity()
    assert json.loads(json.dumps(before)) == before
    assert before["matrix"]["size"] == path.stat().st_size
    assert cell_sources(str(path), PLAIN, assembly=HG38)[0].identity() == before
    assert cell_sources(path, ReadOptions(make_unique=True), assembly=HG38)[0].identity() != before
    os.utime(path, ns=(1, 1))
    assert cell_sources(path, PLAIN, assembly=HG38)[0].identity() != before


def test_the_identity_of_what_lies_in_memory_is_its_content() -> None:
    identities = []
    for change in ("", "value", "name", "obs", "region", "dense", "csc"):
        data = adata()
        if change == "value":
            data.X = data.X * 2
        if change == "name":
            data.obs_names = ["c0", "c1", "other"]
        if change == "obs":
            data.obs["kind"] = ["B", "B", "T"]
        if change == "region":
            data.var_names = [*REGIONS[:3], "chr2:100-201"]
        if change == "dense":
            data.X = data.X.toarray()
        if change == "csc":
            data.X = sparse.csc_matrix(data.X)
        identities.append(json.dumps(cell_sources(data, PLAIN, assembly=HG38)[0].identity()))
    assert json.dumps(cell_sources(adata(), PLAIN, assembly=HG38)[0].identity()) == identities[0] == identities[-1]
    assert len(set(identities)) == 6


def test_uns_decides_where_regions_do_not_tell(tmp_path: Path, chain: Path) -> None:
    small = Universe(Regions.from_text(["chr1:2000-3000", "chr1:6000-7000"], HG38))
    options = ReadOptions(liftover=chain)
    for name, expected in (("hg19", [0, 1]), ("GRCh38", [0])):
        data = adata(["chr1:1000-2000", "chr1:2900-6000", "chr1:5999-6000"], assembly=name)
        data.write_h5ad(tmp_path / f"{name}.h5ad")
        for form in (data, tmp_path / f"{name}.h5ad"):
            (source,) = cell_sources(form, options, assembly=HG38)
            assert tokens(read(source, small))["c2"] == expected
            assert any("lifted" in note for note in source.notes) == (name == "hg19")
    with pytest.raises(BadData, match="cannot tell whether it is hg19 or hg38") as caught:
        cell_sources([adata(), adata()], options, assembly=HG38)
    assert "uns['assembly']" in caught.value.fix
    assert caught.value.code == "SOURCE-ASSEMBLY"


def test_uns_that_contradicts_the_atlas_is_refused() -> None:
    with pytest.raises(BadData, match="the atlas is hg38, but it says that it is hg19") as caught:
        cell_sources(adata(genome="hg19"), PLAIN, assembly=HG38)
    assert caught.value.code == "SOURCE-ASSEMBLY"
    assert "liftover=" in caught.value.fix
    (source,) = cell_sources(adata(assembly="mm10 (peaks not available)"), PLAIN, assembly=HG38)
    assert source.n_sets == 3


def test_regions_that_look_like_another_assembly_are_refused() -> None:
    late = [f"chr1:{start}-{start + 100}" for start in range(248_957_000, 248_960_000, 1000)]
    with pytest.raises(BadData, match="looks like hg19, this is hg38") as caught:
        cell_sources(adata([*REGIONS, *late]), PLAIN, assembly=HG38)
    assert (caught.value.code, caught.value.got) == ("SOURCE-ASSEMBLY", "hg19")
    assert "pass a chain file from hg19 to hg38" in caught.value.fix


def test_the_universe_has_the_last_word_on_the_assembly() -> None:
    (source,) = cell_sources(adata(assembly="hg19"), PLAIN, assembly=None)
    assert tokens(read(source, universe(HG19)))["c2"] == [0, 1, 2, 3]
    with pytest.raises(BadData, match="the atlas is hg38, but it is hg19"):
        next(source.blocks(universe(HG38)))


def test_layers_and_repeated_names_follow_the_options() -> None:
    data = adata()
    data.layers["raw"] = data.X * 0
    (source,) = cell_sources(data, ReadOptions(layer="raw"), assembly=HG38)
    assert read(source, universe()).n_source.tolist() == [0, 0, 0]
    assert source.estimate() == Estimate(3, 5, 0, None)  # stored zeros are entries
    data.obs_names = ["c", "c", "d"]
    with pytest.raises(BadData, match="two cells are named c"):
        cell_sources(data, PLAIN, assembly=HG38)
    (source,) = cell_sources(data, ReadOptions(make_unique=True), assembly=HG38)
    assert read(source, universe()).names == ["c", "c-1", "d"]


def test_fragments_with_and_without_a_list_of_barcodes(tmp_path: Path) -> None:
    path = write(tmp_path / "pbmc.fragments.tsv.gz", FRAGMENTS)
    (source,) = cell_sources(path, PLAIN, assembly=HG38)
    block = read(source, universe())
    assert (source.dataset, source.n_sets, source.schema.names) == ("pbmc", None, [])
    assert tokens(block) == {"A-1": [0, 1, 3], "B-1": [0], "C-1": [2, 3]}
    assert (block.n_source.tolist(), block.n_placed.tolist()) == ([3, 2, 2], [3, 1, 2])
    starts_anywhere(source, universe())
    (few,) = cell_sources(path, ReadOptions(min_fragments=3), assembly=HG38)
    assert read(few, universe()).names == ["A-1"]
    assert few.notes == ("2 barcodes with fewer than 3 fragments left out",)

    write(tmp_path / "obs.csv", "barcode,kind,n\nC-1,T,1\nnone-1,B,2\nA-1,,3\n")
    manifest = write(tmp_path / "samples.tsv", "path\tobs\tsample\tage\npbmc.fragments.tsv.gz\tobs.csv\ts1\t7\n")
    (listed,) = cell_sources(manifest, ReadOptions(min_fragments=3), assembly=HG38)
    block = read(listed, universe())
    assert (listed.dataset, listed.n_sets, listed.label) == ("s1", 3, str(path))
    assert tokens(block) == {"C-1": [2, 3], "none-1": [], "A-1": [0, 1, 3]}
    assert block.metadata.to_pylist()[0] == {"sample": "s1", "age": 7, "kind": "T", "n": 1}
    assert block.metadata.column("kind").to_pylist() == ["T", "B", None]
    starts_anywhere(listed, universe())


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ("barcode,kind\nA-1,T\nA-1,B\n", r"barcode A-1 is listed twice \(rows 1 and 2\)"),
        ("barcode,kind\nA-1,T\n,B\n", "the barcode is missing in row 2"),
        ("barcode,kind\n", "no barcodes"),
        ("barcode,kind,kind\nA-1,T,T\n", "two columns have one name"),
        ("barcode,age\nA-1,T\n", "column age is in the manifest and in the obs table"),
        ("barcode,kind\nA-1,T,x\n", "not a readable table"),
        ("", "the table is empty"),
    ],
)
def test_a_bad_obs_table_is_named_with_its_line_in_the_manifest(tmp_path: Path, obs: str, message: str) -> None:
    write(tmp_path / "f.tsv", FRAGMENTS)
    write(tmp_path / "obs.csv", obs)
    manifest = write(tmp_path / "samples.tsv", "path\tobs\tage\nf.tsv\tobs.csv\t7\n")
    with pytest.raises(BadData, match=message) as caught:
        cell_sources(manifest, PLAIN, assembly=HG38)
    assert caught.value.message.startswith("samples.tsv line 2: ")


def test_barcodes_are_text_and_in_the_first_column_or_the_one_named_so(tmp_path: Path) -> None:
    write(tmp_path / "f.tsv", FRAGMENTS.replace("A-1", "12:00").replace("B-1", "2020-01-01"))
    manifest = write(tmp_path / "samples.csv", "path,obs\nf.tsv,obs.tsv\n")
    for text in ("\tkind\n12:00\tT\n2020-01-01\tB\n", "\tkind\tbarcode\n0\tT\t12:00\n1\tB\t2020-01-01\n"):
        write(tmp_path / "obs.tsv", text)
        (source,) = cell_sources(manifest, PLAIN, assembly=HG38)
        assert tokens(read(source, universe())) == {"12:00": [0, 1, 3], "2020-01-01": [0]}
        assert source.schema.names == ["kind"]
    pq.write_table(pa.table({"index": pa.array(["C-1"]).dictionary_encode(), "kind": ["T"]}), tmp_path / "obs.tsv")
    (source,) = cell_sources(manifest, PLAIN, assembly=HG38)
    assert tokens(read(source, universe())) == {"C-1": [2, 3]}


def test_columns_of_obs_tables_are_numbers_only_where_that_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "f.tsv", FRAGMENTS)
    write(tmp_path / "obs.csv", "barcode,donor,cluster,plate,tsse,n\nA-1,1,01,NA,7.5,NA\nB-1,2,2,1e5,8.0,3\n")
    manifest = write(tmp_path / "samples.csv", "path,obs,sample\nf.tsv,obs.csv,007\n")
    (source,) = cell_sources(manifest, PLAIN, assembly=HG38)
    assert read(source, universe()).metadata.to_pylist() == [
        {"sample": "007", "donor": "1", "cluster": "01", "plate": "NA", "tsse": 7.5, "n": None},
        {"sample": "007", "donor": "2", "cluster": "2", "plate": "1e5", "tsse": 8.0, "n": 3},
    ]


def test_regions_given_as_cells_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c.bed", bed("chr1:5-9"))
    with pytest.raises(BadData, match="column 4 must be a barcode") as caught:
        cell_sources(path, PLAIN, assembly=HG38)
    assert caught.value.line == 1
    with pytest.raises(NotFound, match="this is a folder"):
        cell_sources(tmp_path, PLAIN, assembly=HG38)
    with pytest.raises(NotFound, match="no such file"):
        cell_sources(tmp_path / "x.h5ad", PLAIN, assembly=HG38)
    with pytest.raises(BadData, match="not a readable HDF5 file"):
        cell_sources(write(tmp_path / "x.h5ad", FRAGMENTS), PLAIN, assembly=HG38)


def test_fragments_that_look_like_another_assembly_are_refused(tmp_path: Path) -> None:
    late = "".join(f"chr1\t{start}\t{start + 10}\tA-1\t1\n" for start in range(248_957_000, 248_957_050, 10))
    path = write(tmp_path / "f.tsv", FRAGMENTS + late)
    (source,) = cell_sources(path, PLAIN, assembly=HG38)
    with pytest.raises(BadData, match="looks like hg19, this is hg38") as caught:
        next(source.blocks(universe()))
    assert caught.value.code == "SOURCE-ASSEMBLY"


def test_fragments_are_lifted_when_they_are_of_the_chains_source(tmp_path: Path, chain: Path) -> None:
    path = write(tmp_path / "f.tsv", "chr1\t500\t600\tA-1\t1\nchr1\t5000000\t5000100\tA-1\t1\n")
    options = ReadOptions(liftover=chain)
    with pytest.raises(BadData, match="cannot tell whether"):
        cell_sources([path, path], options, assembly=HG38)
    manifest = write(tmp_path / "s.tsv", "path\tgenome\nf.tsv\thg19\nf.tsv\thg38\n")
    (lone,), (named, other) = (cell_sources(form, options, assembly=None) for form in (path, manifest))
    for source in (lone, named):
        assert tokens(read(source, universe())) == {"A-1": [0]}
        assert source.notes == ("lifted over from hg19: 50.00 % of the regions lost",)
        assert source.estimate(universe()).coverage == 0.5
    assert tokens(read(other, universe())) == {"A-1": []}
    assert other.notes == ()
    far = write(tmp_path / "far.tsv", "chr1\t500\t600\tA-1\t1\nchr1\t249000000\t249000100\tA-1\t1\n")
    (source,) = cell_sources(far, options, assembly=HG38)  # past the end of chr1 in hg38
    assert tokens(read(source, universe())) == {"A-1": [0]}


def test_a_sample_manifest_mixes_kinds_of_files(tmp_path: Path) -> None:
    write(tmp_path / "in" / "f.tsv", FRAGMENTS)
    adata().write_h5ad(tmp_path / "in" / "x.h5ad")
    table = pa.table(
        {"file": ["in/f.tsv", "in/x.h5ad"], "dataset": ["d1", None], "tissue": ["blood", None], "obs": [None, ""]}
    )
    pq.write_table(table, tmp_path / "samples.parquet")
    sources = cell_sources(tmp_path / "samples.parquet", PLAIN, assembly=HG38)
    assert [(source.dataset, source.n_sets) for source in sources] == [("d1", None), ("x", 3)]
    assert [source.schema.names for source in sources] == [["tissue"], ["kind", "tissue"]]
    assert read(sources[0], universe()).metadata.column("tissue").to_pylist() == ["blood"] * 3
    assert read(sources[1], universe()).metadata.column("tissue").to_pylist() == [None] * 3
    assert first_regions(tmp_path / "samples.parquet", PLAIN, HG38).names() == REGIONS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.h5ad\tobs.csv\t", "an obs table is for fragments"),
        ("f.tsv\tgone.csv\t", "no such file"),
        ("f.tsv\t\thg19", "it says that it is hg19"),
        ("f.tsv\t\tmm9", "it says that it is mm9"),
        ("c.bed\t\t", "column 4 must be a barcode"),
    ],
)
def test_a_bad_row_of_a_sample_manifest_is_named(tmp_path: Path, row: str, message: str) -> None:
    adata().write_h5ad(tmp_path / "x.h5ad")
    write(tmp_path / "f.tsv", FRAGMENTS)
    write(tmp_path / "c.bed", bed("chr1:5-9"))
    manifest = write(tmp_path / "m.tsv", f"path\tobs\tgenome\nf.tsv\t\thg38\n{row}\n")
    with pytest.raises(ChromseekError, match=message) as caught:
        cell_sources(manifest, PLAIN, assembly=HG38)
    assert caught.value.message.startswith("m.tsv line 3: ")
    assert caught.value.file is not None
    assert Path(caught.value.file).name in row + "gone.csv"


def test_without_regions_a_universe_is_needed(tmp_path: Path, chain: Path) -> None:
    path = write(tmp_path / "f.tsv", FRAGMENTS)
    with pytest.raises(BadArgument, match="a universe is needed") as caught:
        first_regions(path, PLAIN, HG38)
    assert caught.value.code == "SOURCE-UNIVERSE"
    assert first_regions([path, adata()], PLAIN, HG38).names() == REGIONS
    lifted = first_regions(adata(assembly="hg19"), ReadOptions(liftover=chain), None)
    assert (lifted.assembly, lifted.names()[0], len(lifted)) == (HG38, "chr1:2000-3000", 3)


def test_estimates_come_near_without_reading_all(toy_files: dict[str, Path], tmp_path: Path) -> None:
    over = Universe.load(toy_files["universe"], HG38)
    simulation = toy()
    sources = [
        *cell_sources([toy_files["cells"], simulation], PLAIN, assembly=HG38),
        *bed_sources([toy_files["manifest"], simulation], PLAIN, assembly=HG38),
    ]
    lines = [
        f"{chrom}\t{start}\t{start + 9}\tcell{row % 50}\t1\n"
        for row, (chrom, start) in enumerate(zip(over.regions.chrom_names(), over.regions.starts.tolist(), strict=True))
    ]
    sources += cell_sources(write(tmp_path / "f.tsv.gz", "".join(lines)), PLAIN, assembly=HG38)
    for source in sources:
        block, guess = read(source, over), source.estimate(over)
        assert guess.n_sets in (None, len(block))
        assert guess.n_tokens is not None
        assert 0.5 < guess.n_tokens / len(block.sets.tokens) < 2, source.label
        assert guess.coverage == pytest.approx(block.n_placed.sum() / block.n_source.sum(), abs=0.1)
        assert source.estimate().coverage is None or "simul" in source.label
        assert (guess.n_bytes > 0) == (source.label != "simulation")


def test_the_toys_files_give_the_toys_rows(toy_files: dict[str, Path]) -> None:
    simulation, over = toy(), Universe.load(toy_files["universe"], HG38)
    (source,) = cell_sources(str(toy_files["cells"]), PLAIN, assembly=HG38)
    (drawn,) = simulation.cells(block_size=simulation.n_cells)
    kept = pc.not_equal(drawn.metadata["donor"].cast(pa.string()), simulation.held_out_donor).to_numpy()
    rows = np.flatnonzero(kept)
    block = read(source, over)
    assert block.names == [drawn.names[row] for row in rows]
    assert np.array_equal(block.sets.tokens, drawn.sets.take(rows).tokens)
    (sets,) = bed_sources(str(toy_files["beds"]), PLAIN, assembly=HG38)
    assert (sets.dataset, sets.n_sets) == ("beds", simulation.n_beds)
    assert read(sets, over).names == simulation.beds().names


def test_real_matrices_bed_sets_and_fragments(shared: Path) -> None:
    data = shared / "data"
    over = Universe.load(data / "ref/heme_peaks_universe_hg19.bed.gz", HG19)
    cells = cell_sources(f"{data}/cells/*hg19.h5ad", PLAIN, assembly=HG19)
    fragments = cell_sources(data / "fragments/archr_PBSmall_hg19.fragments.tsv.gz", PLAIN, assembly=HG19)
    for source, n, coverage in zip([*cells, *fragments], (321, 10_335, 600, 150), (0.95, 0.9, 0.98, 0.88), strict=True):
        block = read(source, over)
        assert len(block) == n
        assert block.coverage.mean() > coverage
        assert same(read(source, over, n - 5), block.slice(n - 5, n))
    (sets,) = bed_sources(data / "bed/atac_heme", PLAIN, assembly=HG19)
    assert read(sets, over).coverage.min() > 0.9
    with pytest.raises(BadData, match="24 of mm9, 11 of mm10, 1 of hg38"):
        bed_sources(data / "bed", PLAIN, assembly=HG19)
    with pytest.raises(BadData, match="says that it is hg19"):
        cell_sources(data / "cells/granja2019_bmmc_D6T1_hg19.h5ad", PLAIN, assembly=HG38)


def test_a_real_set_of_hg19_is_lifted_to_hg38(shared: Path) -> None:
    ref = shared / "data/ref"
    options = ReadOptions(liftover=ref / "hg19ToHg38.over.chain.gz")
    over = Universe.load(ref / "pbmc3k_multiome_peaks_universe_hg38.bed.gz", HG38)
    (source,) = bed_sources(shared / "data/bed/atac_heme/Mono.bed.gz", options, assembly=HG38)
    block = read(source, over)
    assert 0.6 < block.coverage[0] < 0.95  # unlifted, it is refused
    assert source.notes[0].startswith("lifted over from hg19: 0.")
    with pytest.raises(BadData, match="looks like hg19, this is hg38"):
        next(bed_sources(shared / "data/bed/atac_heme/Mono.bed.gz", PLAIN, assembly=HG38)[0].blocks(over))

"""BED sets as sources: every form gives the same rows, from any start, and every wrong one is named."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import HG19, HG38, PLAIN, SHIFT, adata, bed, read, starts_anywhere, tokens, universe, write

from chromseek.data.errors import BadArgument, BadData, NotFound
from chromseek.data.sources import Estimate, ReadOptions, bed_sources, cell_sources


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return write(tmp_path / "hg19ToHg38.chain", SHIFT)


@pytest.fixture
def beds(tmp_path: Path) -> Path:
    """A folder of three BED files and two that are none."""
    folder = tmp_path / "peaks"
    write(folder / "b.bed.gz", bed("chr1:1500-1600", "chr1:7000-7100"))
    write(folder / "a.narrowPeak", bed("chr1:5000-5001"))
    write(folder / "c.bed", bed("chr2:150-160", "chr1:9000-9001", "chr1:1000-1001"))
    write(folder / "notes.txt", "nothing")
    write(folder / ".hidden.bed", "nothing")
    return folder


def test_bed_sets_in_every_form(beds: Path) -> None:
    expected = {"a": [1], "b": [0], "c": [0, 2, 3]}
    paths = [beds / "b.bed.gz", beds / "a.narrowPeak", beds / "c.bed"]
    manifest = write(beds.parent / "sets.csv", "path,kind\npeaks/a.narrowPeak,x\npeaks/b.bed.gz,y\npeaks/c.bed,\n")
    forms = {"folder": beds, "glob": f"{beds}/[abc].*", "list": paths, "manifest": manifest}
    for form, given_beds in forms.items():
        (source,) = bed_sources(given_beds, PLAIN, assembly=HG38)
        block = read(source, universe())
        assert tokens(block) == expected
        assert dict(zip(block.names, block.n_source.tolist(), strict=True)) == {"a": 1, "b": 2, "c": 3}
        assert block.n_fragments is None
        assert (source.kind, source.n_sets, source.notes) == ("bed", 3, ())
        assert source.dataset == ("sets" if form == "manifest" else "peaks")
        row = block.names.index("b")
        assert block.metadata["md5"][row].as_py() == hashlib.md5((beds / "b.bed.gz").read_bytes()).hexdigest()
        starts_anywhere(source, universe())
    assert block.metadata.column("kind").to_pylist() == ["x", "y", None]
    (one,) = bed_sources(str(beds / "c.bed"), PLAIN, assembly=HG38)
    assert (one.dataset, tokens(read(one, universe()))) == ("c", {"c": [0, 2, 3]})
    identity = one.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["beds"][0]["path"] == str(beds / "c.bed")


def test_a_folder_with_a_manifest_is_read_by_it(beds: Path) -> None:
    write(beds / "manifest.tsv", "file\tname\tmd5\nc.bed\tfirst\tx\na.narrowPeak\t\ty\n")
    for form in (beds, beds / "manifest.tsv"):
        (source,) = bed_sources(form, PLAIN, assembly=HG38)
        assert source.dataset == "peaks"
        assert tokens(read(source, universe())) == {"first": [0, 2, 3], "a": [1]}
        assert source.schema.names == ["md5"]


def test_frames_and_pyranges_are_bed_sets(chain: Path) -> None:
    pyranges = pytest.importorskip("pyranges")
    frame = pd.DataFrame({"Chromosome": ["chr1", "chr2"], "Start": [1500, 150], "End": [1600, 160]})
    for form in (frame, pyranges.PyRanges(frame)):
        (source,) = bed_sources(form, PLAIN, assembly=HG38)
        assert tokens(read(source, universe())) == {"frame": [0, 3]}
        assert read(source, universe(), 1).names == []
        assert source.estimate(universe()) == Estimate(1, 2, 0, 1.0)
    assert [one.dataset for one in bed_sources([frame, frame], PLAIN, assembly=HG38)] == ["beds-1", "beds-2"]
    other = frame.assign(Start=[1501, 150])
    assert bed_sources(other, PLAIN, assembly=HG38)[0].identity() != source.identity()
    late = pd.DataFrame({"chrom": ["chr1", "chr1"], "start": [1, 249_000_000], "end": [2, 249_000_001]})
    (source,) = bed_sources(late, ReadOptions(liftover=chain), assembly=HG38)
    assert tokens(read(source, universe())) == {"frame": [0]}


def test_names_that_come_twice(beds: Path) -> None:
    write(beds / "more" / "c.bed", bed("chr1:5000-5001"))
    manifest = write(beds / "m.tsv", "file\nc.bed\na.narrowPeak\nmore/c.bed\n")
    with pytest.raises(BadData, match="two BED sets are named c") as caught:
        bed_sources(manifest, PLAIN, assembly=HG38)
    assert "c.bed (m.tsv line 2) and" in caught.value.message
    assert "more/c.bed (m.tsv line 4)" in caught.value.message
    (source,) = bed_sources(manifest, ReadOptions(make_unique=True), assembly=HG38)
    assert tokens(read(source, universe())) == {"c": [0, 2, 3], "a": [1], "c-1": [1]}


def test_a_bad_bed_is_named_with_its_line_in_the_manifest(beds: Path) -> None:
    write(beds / "bad.bed", bed("chr1:1-2", "chr1:9-5"))
    manifest = write(beds / "m.tsv", "file\tx\nc.bed\t1\nbad.bed\t2\n")
    (source,) = bed_sources(manifest, PLAIN, assembly=HG38)
    with pytest.raises(BadData, match=r"m.tsv line 3: start 9 is after end 5") as caught:
        list(source.blocks(universe()))
    assert (caught.value.file, caught.value.line, caught.value.exit_code) == (str(beds / "bad.bed"), 2, 65)
    pq.write_table(pa.table({"path": ["c.bed", "bad.bed"]}), beds / "m.parquet")
    (source,) = bed_sources(beds / "m.parquet", PLAIN, assembly=HG38)
    with pytest.raises(BadData, match=r"m.parquet row 2: start 9"):
        list(source.blocks(universe()))
    (source,) = bed_sources(manifest, ReadOptions(on_bad_line="skip"), assembly=HG38)
    assert tokens(read(source, universe()))["bad"] == []
    assert any(note.startswith("bad: 1 bad line") for note in source.notes)
    (source,) = bed_sources(manifest, ReadOptions(max_regions=1), assembly=HG38)
    with pytest.raises(BadData, match=r"m.tsv line 2: more than 1 regions") as caught:
        next(source.blocks(universe()))
    assert caught.value.status == 413


def test_rows_of_other_assemblies_are_refused_together(beds: Path) -> None:
    text = "file\tgenome\nc.bed\thg38\na.narrowPeak\tmm9\nb.bed.gz\tGRCh37\n"
    manifest = write(beds / "m.tsv", text)
    with pytest.raises(BadData, match=r"1 of mm9, 1 of GRCh37\), first .*a.narrowPeak \(m.tsv line 3\)") as caught:
        bed_sources(manifest, PLAIN, assembly=HG38)
    assert caught.value.code == "SOURCE-ASSEMBLY"
    assert "keep the rows of hg38" in caught.value.fix
    (late,) = bed_sources(write(beds / "n.tsv", text.replace("mm9", "hg38")), PLAIN, assembly=None)
    with pytest.raises(BadData, match=r"n.tsv line 4: the atlas is hg38, but it is hg19"):
        list(late.blocks(universe()))


def test_bed_sets_of_both_assemblies_meet_through_a_chain(beds: Path, chain: Path) -> None:
    write(beds / "old.bed", bed("chr1:500-600", "chr1:4000-4001", "chr1:3000000-3000001"))
    manifest = write(beds / "m.tsv", "file\tgenome\nc.bed\thg38\nold.bed\thg19\n")
    (source,) = bed_sources(manifest, ReadOptions(liftover=chain), assembly=HG38)
    block = read(source, universe())
    assert tokens(block) == {"c": [0, 2, 3], "old": [0, 1]}
    assert (block.n_source.tolist(), block.n_placed.tolist()) == ([3, 3], [3, 2])
    assert source.notes == ("lifted over from hg19: 33.33 % of the regions lost",)
    starts_anywhere(source, universe())
    write(beds / "m.tsv", "file\nc.bed\nold.bed\n")
    (source,) = bed_sources(manifest, ReadOptions(liftover=chain), assembly=HG38)
    with pytest.raises(BadData, match=r"m.tsv line 2: cannot tell whether it is hg19 or hg38") as caught:
        next(source.blocks(universe()))
    assert "column genome in a manifest" in caught.value.fix


def test_a_bed_that_looks_like_another_assembly_is_refused(beds: Path) -> None:
    late = [f"chr1:{start}-{start + 1}" for start in range(248_960_000, 248_960_100)]
    (source,) = bed_sources(write(beds / "z.bed", bed(*late)), PLAIN, assembly=HG38)
    for reading in (lambda: next(source.blocks(universe())), lambda: source.estimate(universe())):
        with pytest.raises(BadData, match="looks like hg19, this is hg38") as caught:
            reading()
        assert (caught.value.code, caught.value.line) == ("SOURCE-ASSEMBLY", 1)


def test_a_chain_to_elsewhere_is_refused(chain: Path) -> None:
    for make in (bed_sources, cell_sources):
        with pytest.raises(BadArgument, match="leads from hg19 to hg38, the atlas is hg19") as caught:
            make([], ReadOptions(liftover=chain), assembly=HG19)
        assert caught.value.code == "SOURCE-CHAIN"


def test_regions_on_the_blacklist_find_no_token(beds: Path, tmp_path: Path) -> None:
    black = write(tmp_path / "black.bed", bed("chr1:1500-1501", "chr1:1000-1001"))
    options = ReadOptions(blacklist=black)
    (source,) = bed_sources(beds, options, assembly=HG38)
    assert tokens(read(source, universe())) == {"a": [1], "b": [], "c": [2, 3]}
    assert source.notes == ("2 regions overlap the blacklist",)
    (cells,) = cell_sources(adata(), options, assembly=HG38)  # the matrix has the very regions of the universe
    assert tokens(read(cells, universe()))["c2"] == [1, 2, 3]
    with pytest.raises(BadArgument, match="the blacklist is hg38, the atlas is hg19"):
        next(bed_sources(beds, options, assembly=HG38)[0].blocks(universe(HG19)))


def test_what_holds_no_bed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no BED files in this folder"):
        bed_sources(tmp_path, PLAIN, assembly=HG38)
    with pytest.raises(NotFound, match="no file matches"):
        bed_sources(str(tmp_path / "*.bed"), PLAIN, assembly=HG38)
    with pytest.raises(NotFound, match="no such file"):
        bed_sources([tmp_path / "x.bed"], PLAIN, assembly=HG38)
    with pytest.raises(NotFound, match="no such file"):
        bed_sources(tmp_path / "x.tsv", PLAIN, assembly=HG38)
    with pytest.raises(BadData, match="no column path or file"):
        bed_sources(write(tmp_path / "m.csv", "bed,x\na.bed,1\n"), PLAIN, assembly=HG38)
    for make in (bed_sources, cell_sources):
        with pytest.raises(BadArgument, match="from a int") as caught:
            make(3, PLAIN, assembly=HG38)
        assert caught.value.code == "SOURCE-KIND"
        assert make(None, PLAIN, assembly=HG38) == make([], PLAIN, assembly=HG38) == []


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.bed")
    for make in (bed_sources, cell_sources):
        with pytest.raises(BadArgument, match="a pipe can be read only once"):
            make(tmp_path / "p.bed", PLAIN, assembly=HG38)


def test_a_brackets_in_a_file_name_is_no_glob(beds: Path) -> None:
    path = write(beds / "x[1].bed", bed("chr1:1000-1001"))
    (source,) = bed_sources(str(path), PLAIN, assembly=HG38)
    assert read(source, universe()).names == ["x[1]"]


def test_blocks_are_cut_by_tokens_too(beds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = bed_sources(beds, PLAIN, assembly=HG38)
    monkeypatch.setattr("chromseek.data.bed_sources.BLOCK_TOKENS", 2)
    assert [block.names for block in source.blocks(universe())] == [["a", "b"], ["c"]]
    monkeypatch.setattr("chromseek.data.bed_sources.BLOCK_ROWS", 1)
    assert [block.names for block in source.blocks(universe(), 1)] == [["b"], ["c"]]

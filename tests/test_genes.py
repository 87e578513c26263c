"""Gene tables in three layouts, their broken lines, and the nearest gene against a brute-force twin."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadData
from chromseek.data.genes import NO_DISTANCE, Genes
from chromseek.data.genome import Assembly, assembly
from chromseek.data.regions import Regions

HG38 = assembly("hg38")
SMALL = Assembly("small", ("chr1", "chr2", "chr3"), (60, 50, 40))

FIVE = "chr1\t100\t300\tAAA\t+\nchr2\t500\t900\tBBB\t-\n"
SIX = "#chr\tstart\tend\tname\tscore\tstrand\tid\nchr1\t100\t300\tAAA\t0\t+\tENSG1\nchr2\t500\t900\tBBB\t0\t-\tENSG2\n"
GTF = """#!genome-build GRCh38
1\thavana\tgene\t101\t300\t.\t+\t.\tgene_id "ENSG1"; gene_name "AAA";
1\thavana\ttranscript\t101\t200\t.\t+\t.\tgene_id "ENSG1"; transcript_id "T1"; gene_name "AAA";
1\thavana\texon\t101\t150\t.\t+\t.\tgene_id "ENSG1"; transcript_id "T1"; gene_name "AAA";
chr2\thavana\tgene\t501\t900\t.\t-\t.\tgene_id "ENSG2"; gene_name "BBB";
"""
TRANSCRIPTS = """chr1\trefGene\ttranscript\t101\t200\t.\t+\t.\tgene_id "AAA"; transcript_id "T1";
chr1\trefGene\ttranscript\t151\t300\t.\t+\t.\tgene_id "AAA"; transcript_id "T2";
chr1\trefGene\texon\t151\t300\t.\t+\t.\tgene_id "AAA"; transcript_id "T2";
chr2\trefGene\ttranscript\t501\t900\t.\t-\t.\tgene_id "BBB"; transcript_id "T3";
"""


def load(folder: Path, text: str, of: Assembly = HG38) -> Genes:
    path = folder / "genes.txt"
    path.write_text(text)
    return Genes.load(path, of)


@pytest.mark.parametrize("text", [FIVE, SIX, GTF, TRANSCRIPTS], ids=["five", "bed6", "gtf", "transcripts"])
def test_all_layouts_give_the_same_genes(tmp_path: Path, text: str) -> None:
    genes = load(tmp_path, text)
    assert genes.symbols.tolist() == ["AAA", "BBB"]
    assert genes.regions.names() == ["chr1:100-300", "chr2:500-900"]
    assert genes.tss.names() == ["chr1:100-101", "chr2:899-900"]
    assert genes.notes == ()


def test_gz_and_header_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "genes.bed.gz"
    with gzip.open(path, "wt") as out:
        out.write("chrom\tstart\tend\tsymbol\tstrand\n" + FIVE)
    assert len(Genes.load(path, HG38)) == 2


def test_contigs_and_a_few_genes_past_the_end_are_left_out(tmp_path: Path) -> None:
    many = "".join(f"chr1\t{100 * k}\t{100 * k + 50}\tG{k}\t+\n" for k in range(1, 1101))
    away = "chrUn_KI270302v1\t5\t9\tX\t+\nchrY\t57227000\t57227500\tY\t+\n"
    genes = load(tmp_path, away + many)
    assert len(genes) == 1100
    assert "line 2" in genes.notes[0]
    assert genes.notes[1] == "1 genes on contigs left out"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("chr1\t100\t300\tAAA", "not a gene"),
        ("chr1\tx\t300\tAAA\t+", "whole number"),
        ("chr1\t-1\t300\tAAA\t+", "whole number"),
        ("chr1\t300\t300\tAAA\t+", "start 300 is not before end 300"),
        ("chrZZ\t100\t300\tAAA\t+", "chrZZ"),
        ("chrY\t100\t999999999\tAAA\t+", "57227415"),
        ('chr1\tx\tgene\t0\t300\t.\t+\t.\tgene_id "A";', "from 1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(BadData, match=words) as caught:
        load(tmp_path, FIVE + line + "\n" + line + "\n")
    assert (caught.value.code, caught.value.line) == ("GENES-LINE", 3)
    assert caught.value.message.startswith("2 bad lines: ")


@pytest.mark.parametrize("text", ["", "# nothing\n", "chrUn_KI270302v1\t5\t9\tX\t+\n"])
def test_a_table_without_genes_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadData) as caught:
        load(tmp_path, text)
    assert caught.value.code == "GENES-EMPTY"


def places(draw: st.DrawFn, most: int) -> list[tuple[int, int, int]]:
    found = []
    for chrom, start, width in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 39), st.integers(1, 15)), max_size=most)
    ):
        found.append((chrom, start, min(start + width, SMALL.lengths[chrom])))
    return found


@st.composite
def genes_and_regions(draw: st.DrawFn) -> tuple[Genes, Regions]:
    bodies, asked = places(draw, 6), places(draw, 6)
    forward = draw(st.lists(st.booleans(), min_size=len(bodies), max_size=len(bodies)))
    symbols = np.array([f"G{k}" for k in range(len(bodies))], dtype=object)
    return Genes(symbols, as_regions(bodies), np.array(forward, dtype=bool)), as_regions(asked)


def as_regions(triples: list[tuple[int, int, int]]) -> Regions:
    columns = np.array(triples, dtype=np.int64).reshape(-1, 3)
    return Regions(
        SMALL, columns[:, 0].astype(np.int16), columns[:, 1].astype(np.int32), columns[:, 2].astype(np.int32)
    )


def nearest_by_hand(genes: Genes, regions: Regions, row: int) -> tuple[str, int]:
    """The rule of `Genes.nearest`, gene by gene."""
    best = ("", NO_DISTANCE)
    ranked = []
    start, end = int(regions.starts[row]), int(regions.ends[row])
    for number, symbol in enumerate(genes.symbols):
        if genes.regions.chroms[number] != regions.chroms[row]:
            continue
        forward = bool(genes.forward[number])
        tss = int(genes.regions.starts[number] if forward else genes.regions.ends[number] - 1)
        gap = start - tss if tss < start else max(tss - (end - 1), 0)
        upstream = (tss > start) == forward
        ranked.append((gap, tss, number, symbol, -gap if upstream else gap))
    if ranked:
        _, _, _, symbol, signed = min(ranked)
        best = (symbol, signed)
    return best


@given(genes_and_regions())
@settings(max_examples=300, deadline=None)
def test_nearest_equals_brute_force(drawn: tuple[Genes, Regions]) -> None:
    genes, regions = drawn
    symbols, distances = genes.nearest(regions)
    expected = [nearest_by_hand(genes, regions, row) for row in range(len(regions))]
    assert list(zip(symbols.tolist(), distances.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("name", "build", "count"),
    [
        ("hg38_genes.simba.bed.gz", "hg38", 35_000),
        ("hg19_genes.simba.bed.gz", "hg19", 23_000),
        ("mm10_genes.simba.bed.gz", "mm10", 34_000),
        ("CollapsedGeneBounds.hg38.intGENCODEv43.bed.gz", "hg38", 20_000),
    ],
)
def test_real_tables(shared: Path, name: str, build: str, count: int) -> None:
    genes = Genes.load(shared / "data/ref" / name, assembly(build))
    assert len(genes) > count
    near = genes.nearest(genes.tss)[1]
    assert not near.any()


def test_real_promoter_is_that_of_its_gene(shared: Path) -> None:
    genes = Genes.load(shared / "data/ref/hg38_genes.simba.bed.gz", HG38)
    at = int(np.flatnonzero(genes.symbols == "CD19")[0])
    tss = int(genes.tss.starts[at])
    around = Regions.from_text([f"chr16:{tss - 300}-{tss + 200}", f"chr16:{tss - 500}-{tss - 300}"], HG38)
    symbols, distances = genes.nearest(around)
    assert symbols.tolist() == ["CD19", "CD19"]
    assert distances.tolist() == [0, -301]

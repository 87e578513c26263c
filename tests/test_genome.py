"""Assemblies: their lengths, the names that others use, and the guess from the names and ends of a file."""

from pathlib import Path

import numpy as np
import pytest

from chromseek.data.errors import BadArgument
from chromseek.data.genome import ASSEMBLIES, MISFIT, AssemblyGuess, assembly, guess_assembly, is_contig, ucsc_name


def guess(*regions: tuple[str, int]) -> AssemblyGuess:
    """The guess for regions given as chromosome and end."""
    chroms = list(dict.fromkeys(chrom for chrom, _ in regions))
    codes = np.array([chroms.index(chrom) for chrom, _ in regions], np.int64)
    return guess_assembly(chroms, codes, np.array([end for _, end in regions], np.int64))


@pytest.mark.parametrize(
    ("name", "n", "first", "last"),
    [("hg19", 25, 249_250_621, 16_571), ("hg38", 25, 248_956_422, 16_569), ("mm10", 22, 195_471_971, 16_299)],
)
def test_chromosomes_and_lengths(name: str, n: int, first: int, last: int) -> None:
    found = assembly(name)
    assert found.name == name
    assert len(found.chroms) == len(found.lengths) == n
    assert found.chroms[0] == "chr1"
    assert found.chroms[-3:] == ("chrX", "chrY", "chrM")
    assert (found.lengths[0], found.lengths[-1]) == (first, last)
    assert found.offsets.tolist() == [sum(found.lengths[:i]) for i in range(n + 1)]
    assert [found.codes[chrom] for chrom in found.chroms] == list(range(n))


def test_lengths_are_those_of_ucsc(shared: Path) -> None:
    for name, found in ASSEMBLIES.items():
        lines = (shared / "data" / "ref" / f"{name}.chrom.sizes").read_text().splitlines()
        sizes = {chrom: int(size) for chrom, size in (line.split()[:2] for line in lines)}
        assert dict(zip(found.chroms, found.lengths, strict=True)) == {chrom: sizes[chrom] for chrom in found.chroms}


def test_unknown_assembly_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadArgument, match=r"unknown assembly hg18\. Fix: one of hg19, hg38, mm10") as caught:
        assembly("hg18")
    assert (caught.value.code, caught.value.exit_code, caught.value.got) == ("ASSEMBLY", 64, "hg18")


def test_nearest_names() -> None:
    assert assembly("hg38").nearest("Chr2")[0] == "chr2"
    assert len(assembly("hg38").nearest("")) == 3


@pytest.mark.parametrize(
    "name",
    [
        "chr1_random",
        "chr1_KI270706v1_random",
        "chr1_KI270762v1_alt",
        "chr4_gl000193_random",
        "chr6_apd_hap1",
        "chr1_KN196472v1_fix",
        "chrUn_KI270302v1",
        "chrUn_gl000220",
        "GL000192.1",
        "KI270711.1",
        "JH584304.1",
        "chrEBV",
        "EBV",
        "NC_007605",
        "hs37d5",
        "chrUn_JTFH01000001v1_decoy",
        "NT_113889.1",
        "NW_003315903.1",
    ],
)
def test_contigs(name: str) -> None:
    assert is_contig(name)
    assert ucsc_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "chr1",
        "chrX",
        "chrM",
        "1",
        "X",
        "MT",
        "chr23",
        "chr2L",
        "NC_000001.11",
        "NC_012920.1",
        "scaffold_1",
        "random",
        "chr1_randomly",
    ],
)
def test_chromosomes_and_strange_names_are_no_contigs(name: str) -> None:
    assert not is_contig(name)


def test_no_chromosome_is_a_contig() -> None:
    for found in ASSEMBLIES.values():
        for chrom in found.chroms:
            assert not is_contig(chrom)
            assert ucsc_name(chrom) == ucsc_name(chrom.removeprefix("chr")) == chrom


@pytest.mark.parametrize(
    ("name", "ucsc"),
    [("MT", "chrM"), ("M", "chrM"), ("22", "chr22"), ("Y", "chrY"), ("123", "123"), ("x", "x"), ("", ""), ("2L", "2L")],
)
def test_ensembl_names(name: str, ucsc: str) -> None:
    assert ucsc_name(name) == ucsc


@pytest.mark.parametrize(
    ("regions", "name"),
    [
        ([("chr1", 249_250_621)], "hg19"),
        ([("chr1", 1_000), ("chrM", 16_571)], "hg19"),
        ([("chr17", 83_257_441), ("chr20", 5)], "hg38"),
        ([("X", 171_031_299), ("1", 5)], "mm10"),
        ([("X", 156_040_895), ("22", 5)], "hg38"),
    ],
)
def test_clear_guesses(regions: list[tuple[str, int]], name: str) -> None:
    found = guess(*regions)
    assert found.name == name
    assert found.evidence[name] == "fits"
    assert set(found.evidence) == set(ASSEMBLIES)
    assert all("lie outside" in text for other, text in found.evidence.items() if other != name)


@pytest.mark.parametrize(
    "regions",
    [[], [("chr1", 1_000)], [("chr22", 1_000)], [("chrUn_KI270302v1", 10**9)], [("NC_007605", 5)]],
    ids=["nothing", "all three fit", "human, either", "a contig", "a virus"],
)
def test_ambiguous_regions_are_not_guessed(regions: list[tuple[str, int]]) -> None:
    found = guess(*regions)
    assert found.name is None
    assert list(found.evidence.values()).count("fits") >= 2


@pytest.mark.parametrize(
    "regions", [[("chr1", 10**9)], [("scaffold_1", 5)], [("NC_000001.11", 5)]], ids=["long", "strange", "refseq"]
)
def test_regions_that_fit_nothing_are_not_guessed_and_the_evidence_says_why(regions: list[tuple[str, int]]) -> None:
    found = guess(*regions)
    assert found.name is None
    chrom, end = regions[0]
    for text in found.evidence.values():
        assert text == f"1 of 1 regions lie outside, such as {chrom} up to {end}"


def test_a_thousandth_outside_is_forgiven_and_no_more() -> None:
    inside = [("chr20", 1_000)]  # human
    outside = [("chr22", 50_818_469)]  # past hg38's end, within hg19's
    clean = guess(*inside * 999, *outside)
    assert clean.name == "hg19"  # both fit; the one without any region outside is chosen
    assert clean.evidence["hg38"] == "1 of 1000 regions lie outside, such as chr22 up to 50818469"
    only = [("chr1", 249_000_000)]  # past hg38's end, so hg19 alone
    assert guess(*only * 999, ("chr1", 249_250_622)).name == "hg19"
    assert guess(*only * 998, ("chr1", 249_250_622), ("chr1", 249_250_622)).name is None
    assert MISFIT == 0.001


def test_two_that_fit_with_strays_stay_ambiguous() -> None:
    assert guess(*[("chr22", 1_000)] * 999, ("chr1", 10**9)).name is None

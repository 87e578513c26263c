"""Fragments: token sets against brute force, spilled or not, and every bad input of the table."""

import gzip
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument, BadData, ChromseekError, StorageError
from chromseek.data.fragments import FragmentFile, FragmentSets, read_fragments
from chromseek.data.genome import Assembly, assembly
from chromseek.data.pairs import PairSorter
from chromseek.data.regions import Regions
from chromseek.data.tokens import SetBlock
from chromseek.data.universe import Universe

HG38 = assembly("hg38")
GOOD = "chr1\t100\t200\tAAA-1\t1\nchr1\t150\t400\tCCC-1\t2\nchr2\t300\t400\tAAA-1\t1\n"
Fragment = tuple[str, int, int, str]


def universe_of(*names: str, of: Assembly = HG38) -> Universe:
    return Universe(Regions.from_text(names, of))


SMALL = universe_of("chr1:150-160", "chr1:390-500", "chr2:0-301", "chr3:5-9")


def write(folder: Path, text: str, name: str = "x.tsv") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def sets_of(blocks: FragmentSets | list[SetBlock]) -> dict[str, list[int]]:
    return {name: block.sets[row].tolist() for block in blocks for row, name in enumerate(block.names)}


def refusal(path: Path, **options: object) -> ChromseekError:
    with pytest.raises(ChromseekError) as caught:
        read_fragments(path, SMALL, **options)
    return caught.value


@pytest.mark.parametrize("name", ["x.tsv", "x.tsv.gz"])
def test_a_small_file(tmp_path: Path, name: str) -> None:
    cells = read_fragments(write(tmp_path, "# header\n#\n" + GOOD, name), SMALL)
    (block,) = cells
    assert block.names == ["AAA-1", "CCC-1"]
    assert sets_of([block]) == {"AAA-1": [0, 2], "CCC-1": [0, 1]}
    assert block.n_source.tolist() == block.n_fragments.tolist() == [2, 1]
    assert block.n_placed.tolist() == [2, 1]
    assert block.coverage.tolist() == [1, 1]
    assert (block.metadata.num_rows, block.metadata.num_columns) == (2, 0)
    assert block.slice(1, 2).metadata.num_rows == 1
    assert cells.notes == ()


def test_four_columns_spaces_and_line_ends(tmp_path: Path) -> None:
    expected = sets_of(read_fragments(write(tmp_path, GOOD), SMALL))
    four = "".join(line.rpartition("\t")[0] + "\n" for line in GOOD.splitlines())
    for text in (four, GOOD.replace("\t", " "), GOOD.replace("\n", "\r\n"), "chrom\tstart\tend\tbarcode\tn\n" + GOOD):
        assert sets_of(read_fragments(write(tmp_path, text), SMALL)) == expected


fragment = st.builds(
    lambda chrom, start, width, barcode: (chrom, start, start + width, barcode),
    st.sampled_from(["chr1", "chr2"]),
    st.integers(0, 120),
    st.integers(1, 30),
    st.sampled_from(["AA-1", "AC-1", "T", "sample1_GATTACAGATTACA-1", "é"]),
)
interval = st.builds(
    lambda chrom, start, width: f"{chrom}:{start}-{start + width}",
    st.sampled_from(["chr1", "chr2"]),
    st.integers(0, 120),
    st.integers(1, 40),
)


def brute(fragments: list[Fragment], universe: Universe) -> dict[str, list[int]]:
    places = [
        (name.partition(":")[0], *map(int, name.partition(":")[2].split("-"))) for name in universe.regions.names()
    ]
    found: dict[str, set[int]] = {}
    for chrom, start, end, barcode in fragments:
        hits = {token for token, (c, s, e) in enumerate(places) if c == chrom and s < end and e > start}
        found.setdefault(barcode, set()).update(hits)
    return {barcode: sorted(tokens) for barcode, tokens in found.items()}


@settings(max_examples=120, deadline=None)
@given(
    fragments=st.lists(fragment, min_size=1, max_size=80),
    names=st.lists(interval, min_size=1, max_size=12, unique=True),
    limit=st.integers(1, 60),
    block_size=st.integers(1, 4),
    wanted=st.none() | st.permutations(["T", "AC-1", "never", "é"]),
)
def test_sets_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    fragments: list[Fragment],
    names: list[str],
    limit: int,
    block_size: int,
    wanted: list[str] | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "brute.tsv"
    path.write_text("".join(f"{c}\t{s}\t{e}\t{b}\t1\n" for c, s, e, b in fragments))
    universe = universe_of(*names)
    expected = brute(fragments, universe)
    if wanted is not None:
        if not set(wanted) & set(expected):
            return
        expected = {barcode: expected.get(barcode, []) for barcode in wanted}
    cells = read_fragments(path, universe, barcodes=wanted, block_size=block_size, max_pairs_in_memory=limit)
    blocks = list(cells)
    assert max(len(block) for block in blocks) <= block_size
    assert list(sets_of(blocks).items()) == list(expected.items())
    counts = Counter(barcode for *_, barcode in fragments)
    assert {n: int(k) for b in blocks for n, k in zip(b.names, b.n_source, strict=True)} == {
        n: counts[n] for n in expected
    }


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=120),
    limit=st.integers(1, 50),
    seed=st.integers(0, 9),
)
def test_pairs_are_sorted_whatever_is_spilled(pairs: list[tuple[int, int]], limit: int, seed: int) -> None:
    sorter = PairSorter(limit)
    for start in range(0, len(pairs), 9):
        part = np.array(pairs[start : start + 9])
        sorter.add(part[:, 0], part[:, 1].astype(np.int32))
    rows = sorted(random.Random(seed).sample(range(25), 9))
    sets = sorter.sets(np.array(rows))
    assert [sets[k].tolist() for k in range(9)] == [sorted({t for r, t in pairs if r == row}) for row in rows]
    assert all(sorter.sizes(np.array(rows)) >= sets.sizes)


def test_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    lines = [f"chr1\t{7 * k}\t{7 * k + 90}\tB{k % 13}\t1\n" for k in range(500)]
    in_order = sets_of(read_fragments(write(tmp_path, "".join(lines)), SMALL))
    random.Random(0).shuffle(lines)
    assert sets_of(read_fragments(write(tmp_path, "".join(lines)), SMALL)) == in_order


def test_contigs_repeats_and_old_indexes_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "chr2\t300\t400\tAAA-1\t1\nKI270728.1\t5\t9\tAAT-1\t1\n", "x.tsv.gz")
    index = tmp_path / "x.tsv.gz.tbi"
    index.write_bytes(b"old")
    os.utime(index, (1, 1))
    cells = read_fragments(path, SMALL)
    assert cells.notes == (
        "1 regions on contigs skipped",
        "1 fragments repeat the one before",
        "x.tsv.gz.tbi is older than the file (it is not used)",
        "1 barcodes without fragments on chromosomes left out",
    )
    assert next(cells).n_source.tolist() == [3, 1]


# ---- bad input


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("chr1\t5\t9\tAAA-1\t0", "FRAG-COUNT", "count 0"),
        ("chr1\t5\t9\tAAA-1\tx", "FRAG-COUNT", "count 'x' is not a whole number"),
        ("chr1\t5\t9\tAAA-1\t-3", "FRAG-COUNT", "count '-3' is not a whole number"),
        ("chr1\t5\t9\tAAA-1", "FRAG-COUNT", "no count in column 5"),
        ("chr1\t5\t9", "FRAG-COLUMNS", "column 4 must be a barcode"),
        ("chr1\t5\t9\t\t1", "FRAG-COLUMNS", "column 4 must be a barcode"),
        ("chr1\t5\t9\t" + "A" * 1000 + "\t1", "FRAG-BARCODE", "1,000 bytes, at most 256"),
        ("chr1\t5\t9\tA\x1b[2J\t1", "FRAG-BARCODE", "A\\x1b[2J has control characters"),
        ("chr1\t5\t9\tA\x7f\t1", "FRAG-BARCODE", "A\\x7f has control characters"),
        ("chr1\t9\t5\tAAA-1\t1", "BED-ORDER", "start 9 is after end 5"),
        ("chr1\t5\t9e1\tAAA-1\t1", "BED-NUMBER", "end 9e1"),
        ("chrZ\t5\t9\tAAA-1\t1", "BED-CHROM", "unknown chromosome chrZ"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, code: str, message: str) -> None:
    path = write(tmp_path, GOOD * 1000 + line + "\n" + GOOD)
    error = refusal(path)
    assert (error.code, error.line, error.exit_code) == (code, 3001, 65)
    assert message in error.message
    cells = read_fragments(path, SMALL, on_bad_line="skip")
    assert "1 bad lines skipped" in cells.notes
    assert next(cells).n_source.tolist() == [2002, 1001]


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(GOOD.encode() * 1000 + b"chr1\t5\t9\tA\xff\t1\n")
    assert refusal(path).code == "FRAG-BARCODE"


def test_harmless_barcodes_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["../../etc", "<b>", "0w#AAAC", "B.3", "A" * 256]
    path = write(tmp_path, "".join(f"chr1\t5\t9\t{name}\t1\n" for name in names))
    assert read_fragments(path, SMALL).names == names


@pytest.mark.parametrize(
    "text",
    [
        "chr1\t5\t9\n",
        "chr1\t5\t9\t7\n",
        "chr1\t5\t9\t0.5\t1\n",
        "chr1\t5\t9\t.\t1\t+\n",
        "chr1 5 9\n",
        "# comment\nchr1\t5\t9\t-1e3\n",
    ],
)
def test_bed_given_for_fragments(tmp_path: Path, text: str) -> None:
    error = refusal(write(tmp_path, text))
    assert error.code == "FRAG-COLUMNS"
    assert error.line == 1 + text.startswith("#")
    assert "column 4 must be a barcode" in error.message


def test_empty_files(tmp_path: Path) -> None:
    for text in ("", "# only\n", "chrUn_x\t1\t2\tA\t1\n"):
        assert refusal(write(tmp_path, text)).code == "BED-EMPTY"


def test_a_list_of_another_sample_is_refused(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, GOOD), barcodes=["AAA-2", "CCC-2", "GGG-2", "TTT-2"])
    assert error.code == "FRAG-BARCODES"
    assert "0 of 4 listed barcodes occur in the file (0.0 %)" in error.message
    assert "listed AAA-2, CCC-2, GGG-2; in the file AAA-1, CCC-1" in error.message


def test_a_long_list_of_which_few_occur_is_accepted(tmp_path: Path) -> None:
    cells = read_fragments(write(tmp_path, GOOD), SMALL, barcodes=[f"N{k}" for k in range(5000)] + ["CCC-1"])
    assert cells.notes == ("5,000 listed barcodes have no fragments", "1 barcodes that are not listed left out")
    assert len(cells) == 5001
    sizes = next(cells).sets.sizes
    assert (sizes[-1], sizes.sum()) == (2, 2)


def test_filter_by_fragments(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    cells = read_fragments(path, SMALL, min_fragments=2)
    assert cells.names == ["AAA-1"]
    assert cells.notes == ("1 barcodes with fewer than 2 fragments left out",)
    error = refusal(path, min_fragments=10)
    assert error.code == "FRAG-CELLS"
    assert "none of 2 barcodes has 10 fragments; the largest has 2" in error.message


def test_wrong_calls(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert isinstance(refusal(path, barcodes=["AAA-1", "AAA-1"]), BadArgument)
    assert isinstance(refusal(path, max_pairs_in_memory=1, folder=tmp_path / "none"), StorageError)


def test_fragments_of_another_assembly(shared: Path) -> None:
    path = shared / "data/fragments/bpcells_pbmc_mini_hg19.fragments.tsv.gz"
    with pytest.raises(BadData, match="looks like hg19, this is hg38"):
        read_fragments(path, SMALL)


# ---- real data


def test_real_cells_match_brute_force(shared: Path) -> None:
    hg19 = assembly("hg19")
    universe = Universe.load(shared / "data/ref/heme_peaks_universe_hg19.bed.gz", hg19)
    path = shared / "data/fragments/archr_PBSmall_hg19.fragments.tsv.gz"
    cells = read_fragments(path, universe, max_pairs_in_memory=3000)
    found = sets_of(cells)
    assert len(found) == 150
    stream = FragmentFile(path, hg19)
    blocks = list(stream.blocks())
    assert sum(len(block.regions) for block in blocks) == 29_399
    for code in (0, 77, 149):
        regions = blocks[0].regions.take(blocks[0].barcodes == code)
        assert found[stream.barcodes[code]] == universe.tokenize(regions)[0].tolist()
    labels = (shared / "data/fragments/archr_PBSmall_hg19.labels.tsv").read_text().splitlines()[1:]
    listed = [label.split("\t")[0] for label in labels]
    assert read_fragments(path, universe, barcodes=listed).names == listed


@pytest.mark.parametrize("of", ["maestro_pbmc_chr22_hg38", "picsnatac_chr1_50k", "muon_pbmc_multiome_regions_hg38"])
def test_real_files_agree_with_a_plain_reader(shared: Path, of: str) -> None:
    path = shared / f"data/fragments/{of}.fragments.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    words = [line.split("\t") for line in lines if not line.startswith("#")]
    stream = FragmentFile(path, HG38)
    at = 0
    for block in stream.blocks():
        expected = words[at : at + len(block.regions)]
        assert [stream.barcodes[code] for code in block.barcodes.tolist()] == [word[3] for word in expected]
        assert block.regions.names() == [f"{word[0]}:{word[1]}-{word[2]}" for word in expected]
        assert block.counts.tolist() == [int(word[4]) for word in expected]
        at += len(block.regions)
    assert at == len(words)

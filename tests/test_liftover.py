"""liftOver against a base-by-base twin, against the real hg19 to hg38 chain, and with broken files."""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.errors import BadArgument, BadData
from chromseek.data.genome import Assembly, assembly
from chromseek.data.liftover import Chain
from chromseek.data.regions import Regions

OLD = Assembly("old", ("chr1", "chr2"), (120, 90))
NEW = Assembly("new", ("chr1", "chr2", "chr3"), (200, 150, 130))

SIMPLE = """chain 100 chr1 120 + 10 40 chr1 200 + 20 52 1
10 5 7
15

chain 50 chr2 90 + 0 30 chr3 130 - 100 130 2
30
"""


def load(text: str, source: Assembly = OLD, target: Assembly = NEW) -> Chain:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.chain")
        path.write_text(text)
        return Chain.load(path, source, target)


def regions(*texts: str, of: Assembly = OLD) -> Regions:
    return Regions.from_text(texts, of)


@pytest.mark.parametrize(
    ("region", "min_match", "image"),
    [
        ("chr1:10-20", 0.95, "chr1:20-30"),
        ("chr1:12-19", 1.0, "chr1:22-29"),
        ("chr1:10-40", 0.8, "chr1:20-52"),  # across the gap: 25 of 30 bases
        ("chr1:10-40", 0.9, None),
        ("chr1:18-26", 0.3, "chr1:28-38"),  # 2 + 1 of 8 bases
        ("chr1:20-25", 0.01, None),  # within the gap
        ("chr1:0-10", 0.01, None),  # before the chain
        ("chr1:5-15", 0.5, "chr1:20-25"),
        ("chr2:0-10", 1.0, "chr3:20-30"),  # backwards: base 0 is at 130 - 1 - 100
        ("chr2:29-30", 1.0, "chr3:0-1"),
    ],
)
def test_lift_by_hand(region: str, min_match: float, image: str | None) -> None:
    lifted, rows = load(SIMPLE).lift(regions(region), min_match)
    assert lifted.names() == ([] if image is None else [image])
    assert rows.tolist() == ([] if image is None else [0])


def test_lift_keeps_the_order_of_the_input() -> None:
    lifted, rows = load(SIMPLE).lift(regions("chr2:0-10", "chr1:20-25", "chr1:10-20", "chr2:0-10"))
    assert lifted.names() == ["chr3:20-30", "chr1:20-30", "chr3:20-30"]
    assert rows.tolist() == [0, 2, 3]


def test_the_best_scoring_chain_wins() -> None:
    low = "chain 5 chr1 120 + 0 20 chr2 150 + 0 20 1\n20\n\n"
    high = "chain 9 chr1 120 + 10 20 chr3 130 + 50 60 2\n10\n"
    chain = load(low + high)
    assert chain.lift(regions("chr1:10-20"))[0].names() == ["chr3:50-60"]
    assert chain.lift(regions("chr1:5-15"))[0].names() == ["chr2:5-15"]  # half of it only in the better chain


@st.composite
def chain_texts(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, dict[int, int]]]]:
    """A chain file, and for each of its chains: score, target chromosome, and the image of each source base."""
    lines, maps = [], []
    for number in range(draw(st.integers(1, 5))):
        source, target = draw(st.integers(0, 1)), draw(st.integers(0, 2))
        size, target_size = OLD.lengths[source], NEW.lengths[target]
        sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
        gaps = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=len(sizes), max_size=len(sizes)))
        gaps[-1] = (0, 0)
        span, target_span = (sum(sizes) + sum(gap[side] for gap in gaps) for side in (0, 1))
        start, at = draw(st.integers(0, size - span)), draw(st.integers(0, target_size - target_span))
        reverse, score = draw(st.booleans()), draw(st.integers(1, 4))
        strand = "-" if reverse else "+"
        lines.append(
            f"chain {score} {OLD.chroms[source]} {size} + {start} {start + span} "
            f"{NEW.chroms[target]} {target_size} {strand} {at} {at + target_span} {number}"
        )
        bases: dict[int, int] = {}
        for block, gap in zip(sizes, gaps, strict=True):
            for _ in range(block):
                bases[OLD.offsets[source] + start] = target_size - 1 - at if reverse else at
                start, at = start + 1, at + 1
            start, at = start + gap[0], at + gap[1]
        lines += [f"{block}\t{gap[0]}\t{gap[1]}" for block, gap in zip(sizes[:-1], gaps, strict=False)]
        lines += [str(sizes[-1]), ""]
        maps.append((score, target, bases))
    return "\n".join(lines), maps


@given(
    chain_texts(),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 89), st.integers(1, 30)), max_size=8),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_lift_equals_base_by_base(
    drawn: tuple[str, list[tuple[int, int, dict[int, int]]]], places: list[tuple[int, int, int]], min_match: float
) -> None:
    text, maps = drawn
    places = [(chrom, start, min(start + width, OLD.lengths[chrom])) for chrom, start, width in places]
    asked = regions(*(f"{OLD.chroms[chrom]}:{start}-{end}" for chrom, start, end in places))
    expected = []
    for row, (chrom, start, end) in enumerate(places):
        for _, target, bases in sorted(maps, key=lambda entry: -entry[0]):
            images = [bases[base] for base in OLD.offsets[chrom] + np.arange(start, end) if base in bases]
            if images and len(images) >= min_match * (end - start):
                expected.append((row, f"{NEW.chroms[target]}:{min(images)}-{max(images) + 1}"))
                break
    lifted, rows = load(text).lift(asked, min_match)
    assert list(zip(rows.tolist(), lifted.names(), strict=True)) == expected


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "CHAIN-EMPTY", None),
        ("# only a comment\n", "CHAIN-EMPTY", None),
        ("chr1\t5\t10\n", "CHAIN-BLOCK", 1),
        (SIMPLE.replace("chain 100", "chain ten"), "CHAIN-HEADER", 1),
        (SIMPLE.replace("10 40", "40 10"), "CHAIN-HEADER", 1),
        (SIMPLE.replace("120 +", "120 -"), "CHAIN-HEADER", 1),
        (SIMPLE.replace("chr1 120", "chr1 121"), "CHAIN-ASSEMBLY", 1),
        (SIMPLE.replace("chr3 130", "chr3 131"), "CHAIN-ASSEMBLY", 5),
        (SIMPLE.replace("chr3", "chrZZ"), "CHAIN-CHROM", 5),
        (SIMPLE.replace("10 5 7", "10 5"), "CHAIN-BLOCK", 2),
        (SIMPLE.replace("10 5 7", "10 5 x"), "CHAIN-BLOCK", 2),
        (SIMPLE.replace("\n15\n", "\n16\n"), "CHAIN-SUM", 3),
        (SIMPLE.replace("\n15\n", "\n14\n"), "CHAIN-SUM", 3),
        (SIMPLE.replace("\n15\n", "\n"), "CHAIN-CUT", 4),
        (SIMPLE.replace("\n30\n", "\n"), "CHAIN-CUT", 5),
    ],
)
def test_bad_chain_files_name_the_line(text: str, code: str, line: int | None) -> None:
    with pytest.raises(BadData) as caught:
        load(text)
    assert (caught.value.code, caught.value.line) == (code, line)


def test_chains_of_contigs_are_left_out() -> None:
    contig = "chain 7 chr1 120 + 0 10 chr1_KI270706v1_random 500 + 0 10 3\n10\n\n"
    chain = load(contig + SIMPLE)
    assert chain.notes == ("1 chains of contigs left out",)
    assert len(chain.lift(regions("chr1:0-8"))[1]) == 0


def test_lift_refuses_other_assemblies_and_shares() -> None:
    chain = load(SIMPLE)
    with pytest.raises(BadArgument, match="new"):
        chain.lift(regions("chr1:0-8", of=NEW))
    with pytest.raises(BadArgument, match="min_match"):
        chain.lift(regions("chr1:0-8"), 0.0)


def test_no_regions_give_none() -> None:
    lifted, rows = load(SIMPLE).lift(regions())
    assert (len(lifted), len(rows)) == (0, 0)


def test_real_chain_moves_genes_to_where_they_are(shared: Path) -> None:
    """Genes that both tables hold: nearly all arrive, and where the hg38 table has them."""
    chain = Chain.load(shared / "data/ref/hg19ToHg38.over.chain.gz", assembly("hg19"), assembly("hg38"))
    tables = []
    for name in ("hg19", "hg38"):
        genes: dict[str, tuple[str, int, int]] = {}
        with gzip.open(shared / f"data/ref/{name}_genes.simba.bed.gz", "rt") as lines:
            for chrom, start, end, symbol, _ in (line.split() for line in lines):
                known = assembly(name)
                if chrom in known.codes and int(end) <= known.lengths[known.codes[chrom]]:
                    genes[symbol] = (chrom, int(start), int(end))
        tables.append(genes)
    both = sorted(tables[0].keys() & tables[1].keys())
    old = regions(*("{}:{}-{}".format(*tables[0][symbol]) for symbol in both), of=assembly("hg19"))
    lifted, rows = chain.lift(old, 0.9)
    assert len(both) > 15_000
    assert len(rows) > 0.97 * len(both)
    new = regions(*("{}:{}-{}".format(*tables[1][both[row]]) for row in rows), of=assembly("hg38"))
    meet = (lifted.chroms == new.chroms) & (lifted.starts < new.ends) & (new.starts < lifted.ends)
    assert meet.mean() > 0.98


def test_real_chain_keeps_its_first_block(shared: Path) -> None:
    chain = Chain.load(shared / "data/ref/hg19ToHg38.over.chain.gz", assembly("hg19"), assembly("hg38"))
    lifted, _ = chain.lift(regions("chr1:10000-177376", "chr1:565000-565100", of=assembly("hg19")))
    assert lifted.names()[0] == "chr1:10000-177376"

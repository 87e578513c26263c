"""BED files: every bad line of the table of bad inputs, what is accepted, and the fast path against the exact one."""

import gzip
import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data.bed import Bed, read_bed, read_bed_manifest
from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, StorageError
from chromseek.data.genome import assembly
from chromseek.data.lines import Block
from chromseek.data.rows import Fault, is_comment, read_line, read_rows
from chromseek.data.tables import numbers

HG38 = assembly("hg38")
GOOD = "chr1\t100\t200\nchr2\t300\t400\n"


def write(folder: Path, text: str, name: str = "x.bed") -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def refusal(source: object, **options: object) -> ChromseekError:
    with pytest.raises(ChromseekError) as caught:
        read_bed(source, **{"assembly": HG38, **options})
    return caught.value


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("chr1\t500\t100", "BED-ORDER", "start 500 is after end 100"),
        ("chr1\t-5\t100", "BED-NEGATIVE", "start -5 is negative"),
        ("chr1\t1.5\t100", "BED-NUMBER", "start 1.5 is not a whole number"),
        ("chr1\t5\t1e3", "BED-NUMBER", "end 1e3 is not a whole number"),
        ("chr1\t5\t0x1F", "BED-NUMBER", "end 0x1F is not a whole number"),
        ("chr1\t+5\t9", "BED-NUMBER", "start +5 is not a whole number"),
        ("chr1\t5\t4294967297", "BED-END", "past the end of any chromosome"),
        ("chr1\t5\t99999999999999999999", "BED-END", "past the end of any chromosome"),
        ("chr1\t248956400\t248999999", "BED-END", "past the end of chr1 (248956422 bases in hg38)"),
        ("chrZZ\t5\t9", "BED-CHROM", "unknown chromosome chrZZ in hg38"),
        ("1\t5\t9", "BED-NAMING", "named like 1, in hg38 like chr1"),
        ("chr1\t\u0661\t100", "BED-NUMBER", "other characters than the digits 0-9"),
        ("chr1\t1_000\t2000", "BED-NUMBER", "other characters than the digits 0-9"),
        ("chr1\t1,000\t2000", "BED-NUMBER", "other characters than the digits 0-9"),
        ("chr1\t100", "BED-COLUMNS", "2 columns"),
        ("chr1\t100\t", "BED-NUMBER", "end  is not a whole number"),
        ('"chr1"\t5\t9', "BED-QUOTES", "quotes"),
        ("\t5\t9", "BED-CHROM", "no chromosome name"),
        ("chr1\x1b[2J\t5\t9", "BED-CHROM", "unknown chromosome chr1\\x1b[2J"),
        ("chrom\tstart\tend", "BED-NUMBER", "start start is not"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, code: str, message: str) -> None:
    good = GOOD * 2000  # few enough bad ones, or they would tell of another assembly
    error = refusal(write(tmp_path, f"{good}{line}\n{good}"))
    assert (error.code, error.line, error.exit_code, error.status) == (code, 4001, 65, 422)
    assert message in error.message
    assert "--on-bad-line skip" in error.fix
    assert str(error).startswith(f"{tmp_path / 'x.bed'}:4001: ")


def test_a_bad_first_line_is_no_header(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, "chr1\t-1\t100\n" + GOOD))
    assert (error.code, error.line) == ("BED-NEGATIVE", 1)


def test_first_twenty_faults_are_listed_in_order_and_all_counted(tmp_path: Path) -> None:
    kinds = ["chr1\t9\t5", "chr1\tx\t5", "chrZ\t1\t5", "chr1\t-1\t5"]
    text = "".join(f"{kinds[k % 4] if k % 3 == 0 else 'chr1	1	5'}\n" for k in range(200))
    error = refusal(write(tmp_path, text))
    assert error.line == 1
    assert "67 bad lines" in error.message
    listed = [int(part.split(":")[0]) for part in error.message.split("line ")[1:]]
    assert listed == [1 + 3 * k for k in range(1, 20)]
    assert "and 47 more" in error.message


def test_zero_length_regions_are_skipped_and_counted(tmp_path: Path) -> None:
    bed = read_bed(write(tmp_path, "chr1\t5\t5\n" + GOOD), assembly=HG38)
    assert (len(bed.regions), bed.n_lines) == (2, 3)
    assert "1 regions of length zero skipped" in bed.notes
    assert refusal(write(tmp_path, "chr1\t5\t5\nchr1\t6\t6\n")).code == "BED-EMPTY"


def test_contigs_are_skipped_and_counted(tmp_path: Path) -> None:
    contigs = "chrUn_KI270302v1\t5\t9\nKI270728.1\t1\t9\nchr1_KI270706v1_random\t1\t9\nchrEBV\t1\t2\n"
    bed = read_bed(write(tmp_path, contigs + GOOD), assembly=HG38)
    assert len(bed.regions) == 2
    assert bed.notes == ("4 regions on contigs skipped",)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\t", " "),
        GOOD.replace("\t", "   "),
        " " + GOOD.replace("\t", " \t"),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD,
        GOOD[:-1],
        "# comment\n\ntrack name=x\nbrowser position chr1:1-2\n" + GOOD + "\n\n",
        "#chr1\t5\t9\n" + GOOD,
        "chrom\tstart\tend\n" + GOOD,
        "# made by x\nChromosome\tStart\tEnd\tName\n" + GOOD,
        "chr1\t100\t200\tname\t5\nchr2\t300\t400\n",
        "chr1\t100\t200\ta name\t0\t+\nchr2\t300\t400\t\x01\t0\t+\n",
        "chr1\t0000000100\t200\nchr2\t300\t000400\n",
    ],
)
def test_what_is_accepted(tmp_path: Path, text: str) -> None:
    for name in ("x.bed", "x.bed.gz"):
        bed = read_bed(write(tmp_path, text, name), assembly=HG38)
        assert bed.regions.names() == ["chr1:100-200", "chr2:300-400"]


def test_notes_tell_of_oddities_once(tmp_path: Path) -> None:
    text = "chrom start end\nchr1 1 5\nchr1 1 5\nchr1\t1\t5\tx\n"
    bed = read_bed(write(tmp_path, text), assembly=HG38)
    assert bed.notes == (
        "header line skipped",
        "lines have different numbers of columns",
        "spaces instead of tabs",
    )


@pytest.mark.parametrize("text", ["", "# only\n\n", "\n"])
def test_no_regions(tmp_path: Path, text: str) -> None:
    error = refusal(write(tmp_path, text))
    assert error.code == "BED-EMPTY"
    assert "no regions in file" in error.message


def test_too_many_regions(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, GOOD * 6), max_regions=10)
    assert (error.code, error.status) == ("BED-SIZE", 413)
    assert "--max-regions" in error.fix


def test_ensembl_names_are_mapped_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path, "1\t100\t200\nX\t5\t9\nMT\t1\t2\nGL000192.1\t1\t2\n")
    assert "--rename-chroms ensembl" in refusal(path).fix
    bed = read_bed(path, assembly=HG38, rename_chroms="ensembl")
    assert bed.regions.names() == ["chr1:100-200", "chrX:5-9", "chrM:1-2"]


def test_another_assembly_is_recognised(tmp_path: Path, shared: Path) -> None:
    hg19, hg38 = (
        gzip.decompress((shared / f"data/ref/{name}-blacklist.v2.bed.gz").read_bytes()).decode()
        for name in ("hg19", "hg38")
    )
    path = write(tmp_path, hg19)
    for choice in ("error", "skip"):
        error = refusal(path, on_bad_line=choice)
        assert error.code == "BED-ASSEMBLY"
        assert "looks like hg19, this is hg38" in error.message
        assert error.line is not None
    assert not Path(f"{path}.rejected.tsv").exists()
    assert refusal(write(tmp_path, hg19 + hg38)).code in ("BED-ASSEMBLY", "BED-END")


def test_assembly_is_guessed_or_the_evidence_told(tmp_path: Path, shared: Path) -> None:
    for name in ("hg19", "hg38", "mm10"):
        bed = read_bed(shared / f"data/ref/{name}-blacklist.v2.bed.gz")
        assert bed.regions.assembly.name == name
    error = refusal(write(tmp_path, GOOD), assembly=None)
    assert error.code == "BED-ASSEMBLY"
    assert "hg19: fits; hg38: fits; mm10: fits" in error.message
    assert "--assembly" in error.fix


def test_bad_lines_can_be_skipped_and_are_kept_aside(tmp_path: Path) -> None:
    path = write(tmp_path, "chr1\t9\tx y\n" + GOOD * 2000 + "chr1\t-1\t5\n")
    bed = read_bed(path, assembly=HG38, on_bad_line="skip")
    assert len(bed.regions) == 4000
    assert bed.notes == ("bad lines are in x.bed.rejected.tsv", "2 bad lines skipped")
    header, *rejected = (tmp_path / "x.bed.rejected.tsv").read_text().splitlines()
    assert header.startswith("# lines that chromseek left out")
    assert rejected == ["1\tend x is not a whole number\tchr1\t9\tx y", "4002\tstart -1 is negative\tchr1\t-1\t5"]
    write(tmp_path, "chr1\t9\t5\n" + GOOD)
    again = read_bed(path, assembly=HG38, on_bad_line="skip")
    assert again.notes[0] == "bad lines are in x.bed.rejected.tsv, in place of an earlier one"
    kept = (tmp_path / "x.bed.rejected.tsv").read_text()
    assert kept.splitlines()[1:] == ["1\tstart 9 is after end 5\tchr1\t9\t5"]
    assert refusal(write(tmp_path, "chr1\t9\t6\n"), on_bad_line="skip").code == "BED-EMPTY"
    assert (tmp_path / "x.bed.rejected.tsv").read_text() == kept  # a run that fails leaves all as it was
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bed", "x.bed.rejected.tsv"]


@pytest.mark.parametrize("content", ["", "my own notes\n", "# lines"])
def test_a_file_in_the_way_of_the_rejected_lines_is_kept(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, "chr1\t9\t5\n" + GOOD)
    own = write(tmp_path, content, "x.bed.rejected.tsv")
    error = refusal(path, on_bad_line="skip")
    assert (error.code, isinstance(error, BadData)) == ("BED-REJECTED", True)
    assert own.read_text() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bed", "x.bed.rejected.tsv"]
    own.unlink()
    os.mkfifo(own)
    assert refusal(path, on_bad_line="skip").code == "BED-REJECTED"


def test_rejected_lines_that_cannot_be_written(tmp_path: Path) -> None:
    path = write(tmp_path, "chr1\t9\t5\n" + GOOD)
    Path(f"{path}.rejected.tsv").mkdir()
    error = refusal(path, on_bad_line="skip")
    assert isinstance(error, StorageError)
    assert error.exit_code == 73


def test_wrong_calls(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    for options in ({"on_bad_line": "ignore"}, {"rename_chroms": "ucsc"}):
        assert isinstance(refusal(path, **options), BadArgument)
    assert isinstance(refusal(7), BadArgument)
    assert isinstance(refusal(tmp_path / "none.bed"), NotFound)
    assert isinstance(refusal(tmp_path / "none.bed", assembly=None), NotFound)


# ---- frames


def test_frames_of_many_shapes() -> None:
    expected = ["chr1:100-200", "chrX:5-9"]
    for frame in (
        pd.DataFrame({"chrom": ["chr1", "chrX"], "start": [100, 5], "end": [200, 9]}),
        pd.DataFrame({"End": [200, 9], "Start": [100, 5], "Chromosome": pd.Categorical(["chr1", "chrX"])}),
        pd.DataFrame([["chr1", "100", "200", "a"], ["chrX", 5.0, "9", "b"]]),
        pd.DataFrame({"chrom": ["chr1", "chrX"], "start": pd.array([100, 5], "Int64"), "end": np.uint32([200, 9])}),
    ):
        assert read_bed(frame, assembly=HG38).regions.names() == expected


def test_bad_rows_of_frames_are_named() -> None:
    frame = pd.DataFrame({"chrom": ["chr1"] * 5, "start": [1, 2.5, None, 9, 1], "end": [5, 5, 5, 5, 5]})
    error = refusal(frame)
    assert (error.code, error.line, error.file) == ("BED-NUMBER", 2, "DataFrame")
    assert "3 bad rows" in error.message
    assert "row 4: start 9 is after end 5" in error.message
    assert 'leave bad rows out (on_bad_line="skip")' in error.fix
    assert len(read_bed(frame, assembly=HG38, on_bad_line="skip").regions) == 2
    assert refusal(frame[["chrom", "end"]]).code == "BED-COLUMNS"


def test_pyranges(shared: Path) -> None:
    pyranges = pytest.importorskip("pyranges")
    path = shared / "data/ref/hg38-blacklist.v2.bed.gz"
    ranges = pyranges.read_bed(str(path))
    from_ranges, from_file = read_bed(ranges).regions, read_bed(path).regions
    assert sorted(from_ranges.names()) == sorted(from_file.names())


# ---- the fast path against the exact one

number = st.one_of(
    st.integers(0, 200).map(str),
    st.integers(0, 248_956_422).map(str),
    st.sampled_from(["", "-1", "1.5", "007", "1234567890", " 5", "5 ", "x", "99999999999999999999", "٣", "0x9", "1e3"]),
)
line = st.one_of(
    st.builds(
        "\t".join,
        st.tuples(
            st.sampled_from(["chr1", "chr22", "chrX", "1", "chrUn_KI270302v1", "", "#chr1", "track", "é", "c" * 70]),
            number,
            number,
        ),
    ),
    st.tuples(st.sampled_from(["chr1\t5\t9", "chr2 5 9", "chr1\t3\t7\ta b\t.\t+"]), st.text("\t a.", max_size=4)).map(
        "".join
    ),
    st.sampled_from(["", "# x", "track x", "chr1\t1", "chr1", " ", "\t\t\t", "chr1\t5\t9\x01", "chr1\x1b\t5\t9"]),
)


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(line, max_size=25))
def test_blocks_are_read_as_lines_are(texts: list[str]) -> None:
    rows = read_rows(Block.of("".join(f"{text}\n" for text in texts).encode()), 3, header=False)
    found = {
        int(place): (rows.names[chrom], int(start), int(end))
        for place, chrom, start, end in zip(rows.places, rows.chroms, rows.starts, rows.ends, strict=True)
    }
    expected, faults = {}, {}
    for place, text in enumerate(texts):
        if is_comment(text):
            continue
        row = read_line(text, 3)
        if isinstance(row, Fault):
            faults[place] = row
        else:
            expected[place] = (row.chrom, row.start, row.end)
    assert found == expected
    assert rows.faults == faults
    assert [rows.line(place) for place in range(len(texts))] == texts


good_line = st.builds(
    lambda chrom, start, width: (chrom, start, start + width),
    st.sampled_from(["chr1", "chr2", "chr11", "chrX", "chrM"]),
    st.integers(0, 16_000),
    st.integers(1, 500),
)


@settings(max_examples=150, deadline=None)
@given(triples=st.lists(good_line, min_size=1, max_size=60), seed=st.integers(0, 99))
def test_files_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, triples: list[tuple[str, int, int]], seed: int
) -> None:
    dice = random.Random(seed)
    separators = [dice.choice(["\t", "\t", " "]) for _ in triples]
    text = "".join(
        f"{chrom}{gap}{start}{gap}{end}{dice.choice(['', gap + 'x'])}\n{dice.choice(['', '', '#' + chr(10)])}"
        for (chrom, start, end), gap in zip(triples, separators, strict=True)
    )
    path = tmp_path_factory.getbasetemp() / "written.bed"
    path.write_text(text)
    bed = read_bed(path, assembly=HG38)
    assert bed.regions.names() == [f"{chrom}:{start}-{end}" for chrom, start, end in triples]
    assert bed.n_lines == len(triples)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200) | st.lists(line, max_size=8).map(lambda found: "\n".join(found).encode()))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bed"
    path.write_bytes(data)
    found: Bed | ChromseekError
    try:
        found = read_bed(path, assembly=HG38)
    except ChromseekError as error:
        found = error
    assert len(found.regions) > 0 if isinstance(found, Bed) else found.exit_code == 65 and found.fix


def test_real_files_agree_with_a_plain_reader(shared: Path) -> None:
    for path in [*sorted((shared / "data/bed/chip").glob("*.bed.gz"))[:5], shared / "data/ref/CpGIsland.hg38.bed.gz"]:
        text = gzip.decompress(path.read_bytes()).decode()
        words = [found.split("\t") for found in text.splitlines()]
        of = assembly("hg38" if "hg38" in path.name else "hg19")
        names = [f"{word[0]}:{word[1]}-{word[2]}" for word in words if word[0] in of.codes]
        assert read_bed(path, assembly=of).regions.names() == names


# ---- manifests


def test_manifests_in_three_formats(tmp_path: Path) -> None:
    inner = tmp_path / "beds"
    inner.mkdir()
    for name in ("a.bed", "b.bed"):
        write(inner, GOOD, name)
    absolute = str(inner / "b.bed")
    table = pa.table({"file": ["beds/a.bed", absolute], "cell type": ["B, naive", None], "n": [1, 2]})
    pa.parquet.write_table(table, tmp_path / "m.parquet")
    write(tmp_path, f"file\tcell type\tn\nbeds/a.bed\tB, naive\t1\n{absolute}\t\t2\n", "m.tsv")
    write(tmp_path, f'file,cell type,n\r\nbeds/a.bed,"B, naive",1\r\n{absolute},,2\r\n', "m.csv")
    for name in ("m.parquet", "m.tsv", "m.csv"):
        paths, metadata = read_bed_manifest(tmp_path / name)
        assert paths == [inner / "a.bed", inner / "b.bed"]
        assert metadata.to_pydict() == {"cell type": ["B, naive", None], "n": [1, 2]}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "TABLE-EMPTY"),
        ("path\tx\n", "MANIFEST-EMPTY"),
        ("path\tx\n\t1\n", "MANIFEST-EMPTY"),
        ("name\tx\na\tb\n", "MANIFEST-COLUMNS"),
        ("path\tx\tx\na\tb\tc\n", "MANIFEST-COLUMNS"),
        ("path\tx\na\n", "TABLE-FORM"),
        ("path\tx\nnone.bed\tb\n", "MANIFEST-MISSING"),
    ],
)
def test_broken_manifests(tmp_path: Path, text: str, code: str) -> None:
    with pytest.raises((BadData, NotFound)) as caught:
        read_bed_manifest(write(tmp_path, text, "m.tsv"))
    assert caught.value.code == code


def test_broken_parquet_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="not a readable table"):
        read_bed_manifest(write(tmp_path, "PAR1 no", "m.parquet"))
    with pytest.raises(NotFound):
        read_bed_manifest(tmp_path / "none.parquet")


def test_names_in_manifests_stay_text(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "1.bed")
    header, row = "age\tpath\tname\tdonor\tsample\tcode\tgene\n", "7\t1.bed\t7\t12\tNA\t01\tNA\n"
    found = {"age": [7], "name": ["7"], "donor": ["12"], "sample": ["NA"], "code": ["01"], "gene": ["NA"]}
    assert read_bed_manifest(write(tmp_path, header + row, "m.tsv"))[1].to_pydict() == found
    assert read_bed_manifest(write(tmp_path, "\n" + header + row, "m.parquet"))[1].to_pydict() == found
    table = pa.table({"path": ["1.bed"], "donor": [12], "age": pa.array([7], pa.int8())})
    pa.parquet.write_table(table, tmp_path / "m.tsv")
    assert read_bed_manifest(tmp_path / "m.tsv")[1].to_pydict() == {"donor": ["12"], "age": [7]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("0 7 -12", [0, 7, -12]),
        ("7 NA  nan", [7, None, None, None]),
        ("NA  7.5", [None, None, 7.5]),
        ("9223372036854775807", [9223372036854775807]),
        ("9223372036854775808", None),
        ("5 5.25 -0.5", [5.0, 5.25, -0.5]),
        ("5.0 5.25", [5.0, 5.25]),
        ("1.10 0.25", [1.1, 0.25]),
        ("0.30000000000000004", [0.30000000000000004]),
        ("0.300000000000000041", None),
        ("12345678901234567 0.5", None),
        ("007 8", None),
        ("01.5", None),
        ("+5 6", None),
        ("1e5", None),
        ("1.10 1.1", None),
        ("5.0 5", None),
        (".5", None),
        ("5.", None),
        ("-0 5", None),
        ("NA NA", None),
        ("NA x", None),
        ("true false", None),
        ("2020-01-01", None),
        ("0x1F", None),
        ("\N{ARABIC-INDIC DIGIT ONE}", None),
    ],
)
def test_text_becomes_numbers_where_that_loses_nothing(words: str, expected: list[object] | None) -> None:
    texts = pa.chunked_array([[word or None for word in words.split(" ")]], pa.string())
    assert numbers(texts).to_pylist() == (texts.to_pylist() if expected is None else expected)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text("0123456789.-+eENA", max_size=6) | st.none(), min_size=1, max_size=6))
def test_no_two_texts_become_one_number(texts: list[str | None]) -> None:
    found = numbers(pa.chunked_array([texts], pa.string()))
    if pa.types.is_int64(found.type) or pa.types.is_float64(found.type):
        pairs = {(text, value) for text, value in zip(texts, found.to_pylist(), strict=True) if value is not None}
        assert len(pairs) == len({text for text, _ in pairs}) == len({value for _, value in pairs})
    else:
        assert found.to_pylist() == texts


def test_the_real_manifest(shared: Path) -> None:
    paths, metadata = read_bed_manifest(shared / "data/bed/manifest.tsv")
    assert len(paths) == metadata.num_rows == 313
    assert "cell_type" in metadata.column_names
    assert "file" not in metadata.column_names

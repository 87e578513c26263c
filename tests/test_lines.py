"""Text files as blocks of lines: what is refused by its bytes, damage, limits, and exact line numbers."""

import gzip
import io
import os
import random
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromseek.data import lines
from chromseek.data.errors import BadData, ChromseekError, NotFound
from chromseek.data.lines import LINE_LIMIT, Block, TextFile

GOOD = b"chr1\t100\t200\nchr2\t300\t400\n"


def write(folder: Path, data: bytes, name: str = "x.bed") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def text_of(path: Path, block_size: int = lines.BLOCK) -> bytes:
    return b"".join(block.lines for block in TextFile(path, block_size).blocks())


def refusal(path: Path) -> ChromseekError:
    with pytest.raises(ChromseekError) as caught:
        for _ in TextFile(path).blocks():
            pass
    return caught.value


def archive(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as packed:
            packed.writestr("../evil.bed", GOOD)
    else:
        with tarfile.open(fileobj=out, mode="w") as packed_tar:
            entry = tarfile.TarInfo("x.bed")
            entry.size = len(GOOD)
            packed_tar.addfile(entry, io.BytesIO(GOOD))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "code", "word", "status"),
    [
        (archive("zip"), "TEXT-KIND", "zip", 415),
        (archive("tar"), "TEXT-KIND", "tar", 415),
        (b"\xfd7zXZ\x00rest", "TEXT-KIND", "xz", 415),
        (b"BZh91AY&SY", "TEXT-KIND", "bzip2", 415),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "TEXT-KIND", "PNG", 415),
        (b"\x89HDF\r\n\x1a\n", "TEXT-KIND", "HDF5", 415),
        (gzip.compress(gzip.compress(GOOD)), "TEXT-KIND", "gz within gz", 415),
        (random.Random(0).randbytes(5000), "TEXT-KIND", "not text", 415),
        (bytes(1000), "TEXT-KIND", "not text", 415),
        (b" <!DOCTYPE html><html>404</html>", "TEXT-HTML", "did a download fail", 415),
        (GOOD.decode().encode("utf-16"), "TEXT-UTF16", "UTF-16", 422),
        (GOOD.decode().encode("utf-16-le"), "TEXT-UTF16", "UTF-16", 422),
        (b"chr1\t1\t2\0\n", "TEXT-NUL", "offset 8", 422),
        (GOOD * 400_000 + b"\0", "TEXT-NUL", f"offset {len(GOOD) * 400_000}", 422),
        (gzip.compress(GOOD * 100)[:-30], "TEXT-ENDS", "ends early after line", 422),
        (gzip.compress(GOOD)[:5], "TEXT-ENDS", "ends early after line 0", 422),
        (gzip.compress(GOOD) + b"junk", "TEXT-AFTER", "follows", 422),
        (gzip.compress(GOOD)[:-8] + bytes(8), "TEXT-DAMAGED", "damaged", 422),
        (b"\x1f\x8b junk junk", "TEXT-DAMAGED", "damaged", 422),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, code: str, word: str, status: int) -> None:
    error = refusal(write(tmp_path, data))
    assert (error.code, error.status, error.exit_code) == (code, status, 65)
    assert word in error.message
    assert error.fix


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.bed", tmp_path):
        error = refusal(path)
        assert isinstance(error, NotFound)
        assert error.exit_code == 66


def test_a_cut_gz_names_the_last_whole_line(tmp_path: Path) -> None:
    shuffled = random.Random(1)
    text = b"".join(b"chr1\t%d\t%d\n" % (n := shuffled.randrange(10**8), n + 5) for _ in range(20_000))
    packed = gzip.compress(text)
    cut = packed[: len(packed) // 2]
    whole = zlib.decompressobj(31).decompress(cut).count(b"\n")
    error = refusal(write(tmp_path, cut))
    assert error.line == whole
    assert 0 < whole < 20_000


def test_long_lines_are_refused_with_their_number(tmp_path: Path) -> None:
    longest = b"a" * LINE_LIMIT
    assert text_of(write(tmp_path, GOOD + longest + b"\n" + GOOD)) == GOOD + longest + b"\n" + GOOD
    for after in (b"\n" + GOOD, b""):
        error = refusal(write(tmp_path, GOOD + longest + b"a" + after))
        assert (error.code, error.line, error.status) == ("TEXT-LINE", 3, 413)


def test_bombs_are_stopped_early(tmp_path: Path) -> None:
    one_line = write(tmp_path, gzip.compress(b"a" * (64 << 20)), "line.bed.gz")
    assert refusal(one_line).code == "TEXT-LINE"
    many_lines = write(tmp_path, gzip.compress(GOOD * (3 << 20)), "lines.bed.gz")
    error = refusal(many_lines)
    assert (error.code, error.status) == ("TEXT-RATIO", 413)
    small = write(tmp_path, gzip.compress(GOOD * 100_000), "small.bed.gz")  # as dense, but harmless
    assert len(text_of(small)) == len(GOOD) * 100_000


def test_members_and_padding_are_read(tmp_path: Path) -> None:
    members = b"".join(gzip.compress(GOOD) for _ in range(300)) + gzip.compress(b"") + bytes(100_000)
    assert text_of(write(tmp_path, members, "x.bed.gz")) == GOOD * 300


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GOOD.replace(b"\n", b"\r\n"), GOOD),
        (GOOD.replace(b"\n", b"\r"), GOOD),
        (b"\xef\xbb\xbf" + GOOD, GOOD),
        (GOOD[:-1], GOOD),
        (b"\xef\xbb\xbf", b""),
        (b"", b""),
    ],
    ids=["crlf", "cr", "bom", "no last newline", "only a bom", "empty"],
)
def test_line_ends_and_marks_are_evened_out(tmp_path: Path, data: bytes, expected: bytes) -> None:
    assert text_of(write(tmp_path, data)) == expected
    assert text_of(write(tmp_path, gzip.compress(data), "x.bed.gz")) == expected


def test_the_bytes_decide_and_a_false_name_is_noted(tmp_path: Path) -> None:
    for data, name in ((GOOD, "x.bed.gz"), (gzip.compress(GOOD), "x.bed")):
        file = TextFile(write(tmp_path, data, name))
        assert b"".join(block.lines for block in file.blocks()) == GOOD
        assert "unlike its name" in file.notes[0]


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, GOOD)
    os.close(write_end)
    try:
        assert text_of(Path(f"/dev/fd/{read_end}")) == GOOD
    finally:
        os.close(read_end)
    assert tmp_path.exists()


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.sampled_from([b"a", b"bc\td", b"\n", b"\r\n", b"\r", b"12345678" * 9]), max_size=60),
    block_size=st.integers(1, 80),
    packed=st.booleans(),
)
def test_blocks_join_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block_size: int, packed: bool
) -> None:
    data = b"".join(parts)
    expected = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if expected and not expected.endswith(b"\n"):
        expected += b"\n"
    path = tmp_path_factory.getbasetemp() / "parts.bed"
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    path.write_bytes(b"".join(gzip.compress(piece) for piece in pieces) if packed else data)
    found, number = b"", 1
    for block in TextFile(path, block_size).blocks():
        assert block.line == number
        assert block.lines.endswith(b"\n")
        assert block.n_lines == block.lines.count(b"\n") > 0
        number += block.n_lines
        found += block.lines
    assert found == expected


def test_a_block_knows_its_lines() -> None:
    block = Block.of(GOOD, b"x\n", line=7)
    assert (block.n_lines, block.line, block.lines) == (3, 7, GOOD + b"x\n")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), packed=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, packed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bed"
    path.write_bytes(gzip.compress(data) if packed else data)
    code = "TEXT-READ"
    try:
        text_of(path)
    except BadData as error:
        code = error.code
    assert code.startswith("TEXT-")

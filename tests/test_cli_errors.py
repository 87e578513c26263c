"""What the command line does with wrong input and bad luck: exit codes, one clear line, nothing half written."""

import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import chromseek
from chromseek.data.errors import BadArgument, NotFound
from chromseek.indexer.lock import writing
from chromseek.indexer.manifest import list_versions
from chromseek.search.atlas import Atlas
from chromseek.service.cli import main

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(chromseek.__file__).parents[1])}
CLI = [sys.executable, "-c", "import sys; from chromseek.service.cli import main; sys.exit(main())"]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command that fails: its exit code and the one line that it wrote."""

    def run(*args: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if not line.startswith(("warning: ", "note: "))]
        assert len(lines) == 1, err
        return code, lines[0]

    return run


Fails = Callable[..., tuple[int, str]]


# F 89a-c: files that are not there, and outputs that are


def test_a_missing_file(fails: Fails, atlas: Atlas, tmp_path: Path) -> None:
    gone = tmp_path / "gone.bed"
    assert fails("search", atlas.path, "cells", gone)[0] == 66
    assert fails("search", atlas.path, "cells", tmp_path / "gone.h5ad")[0] == 66
    code, line = fails("build", tmp_path / "x.atlas", "--beds", gone, "--universe", gone)
    assert (code, line) == (66, f"error[FILE-MISSING] {gone}: no such file. Fix: check the path")
    assert fails("add", atlas.path, "--beds", gone)[0] == 66
    assert fails("annotate", atlas.path, gone, "--label", "cell_type", "-o", tmp_path / "o.h5ad")[0] == 66
    for command in ("info", "verify", "gc", "serve"):
        code, line = fails(command, tmp_path / "no.atlas")
        assert code == 66, command
        assert "no.atlas" in line
    assert not [*tmp_path.iterdir()]


def test_a_folder_for_a_file(fails: Fails, atlas: Atlas, tmp_path: Path) -> None:
    assert fails("search", atlas.path, "cells", tmp_path)[0] == 66
    assert fails("build", tmp_path / "x.atlas", "--cells", tmp_path)[0] == 66
    assert fails("search", atlas.path, "cells", "cells:1", "-o", tmp_path / "x" / "o.tsv")[0] == 73
    (tmp_path / "o.tsv").mkdir()
    assert fails("search", atlas.path, "cells", "cells:1", "-o", tmp_path / "o.tsv", "--overwrite")[0] == 73


@pytest.mark.parametrize(
    "command",
    [
        ("search", "cells", "cells:1"),
        ("annotate", "QUERY", "--label", "cell_type"),
        ("export", "cells"),
    ],
)
def test_an_output_that_exists(
    fails: Fails, atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    out = tmp_path / "o.tsv"
    out.write_text("mine")
    name, *rest = [str(toy_files["query"]) if word == "QUERY" else word for word in command]
    code, line = fails(name, atlas.path, *rest, "-o", out)
    assert code == 73
    assert "--overwrite" in line
    assert out.read_text() == "mine"
    assert main([name, str(atlas.path), *rest, "-o", str(out), "--overwrite"]) == 0
    assert out.read_text() != "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["o.tsv"]


def test_an_atlas_that_exists(fails: Fails, atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for path in (atlas.path, tmp_path, tmp_path / "mine.txt"):
        assert fails("build", path, "--cells", toy_files["cells"])[0] == 73
    assert (tmp_path / "mine.txt").read_text() == "mine"


# F 89d: numbers out of range, and other wrong command lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["search", "A", "cells", "cells:1", "-k", "0"], "from 1 to 10,000"),
        (["search", "A", "cells", "cells:1", "-k", "10001"], "from 1 to 10,000"),
        (["search", "A", "cells", "cells:1", "-k", "ten"], "-k"),
        (["search", "A", "cells", "cells:1", "--max-distance", "3"], "from 0 to 2"),
        (["search", "A", "cells", "cells:1", "--max-distance", "nan"], "nan"),
        (["serve", "A", "--threads", "1000000"], "from 1 to 256"),
        (["serve", "A", "--port", "70000"], "from 0 to 65,535"),
        (["serve", "A", "--host", "0.0.0.0"], "0.0.0.0"),
        (["serve", "A", "--host", "example.org"], "example.org"),
        (["build", "A", "--cells", "x", "--dim", "1"], "from 2 to 4,096"),
        (["build", "A"], "nothing to build from"),
        (["build", "A", "--cells", "x", "--encoder", "nope", "--universe", "x"], "nope"),
        (["gc", "A", "--keep", "0"], "0 is not 1 or more"),
        (["search", "A", "genes", "x"], "genes"),
        (["search", "A", "cells"], "QUERY"),
        (["search", "A", "cells", "x", "--colour"], "--colour"),
        (["search", "A", "cells", "x", "-o", "hits.xlsx"], "hits.xlsx"),
        (["annotate", "A", "x"], "--label"),
        (["annotate", "A", "x", "--label", "y", "-o", "o.bed"], ".h5ad"),
        (["demo", "--size", "huge"], "huge"),
        (["dance"], "dance"),
        (["--dance"], "--dance"),
    ],
)
def test_a_wrong_command_line(
    fails: Fails, args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = fails(*args)
    assert code in ((66,) if "nope" in args else (64,)), line
    assert said in line
    assert line.startswith("error[")
    assert ". Fix: " in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["cells:1", "--where", "nope = 1"], 64, "nope"),
        (["cells:1", "--where", "n_tokens >"], 64, "position"),
        (["cells:1", "--where", "n_tokens = 'many'"], 64, "many"),
        (["cells:1", "--exclude-same", "nope"], 64, "nope"),
        (["cells:99999999"], 66, "99999999"),
        (["genes:1"], 66, "genes:1"),
        (["chr1:20-10"], 64, "start 20 is not before end 10"),
        (["chrZ:1-2"], 64, "chrZ"),
        (["chr1:1-999999999"], 64, "248956422"),
        (["chr1:1-2", "cells:1"], 64, "one kind"),
        (["-", "cells:1"], 64, "give - alone"),
        (["a\x1b[2Jb"], 66, "a\\x1b[2Jb"),
    ],
)
def test_a_wrong_question(fails: Fails, atlas: Atlas, args: list[str], code: int, said: str) -> None:
    got, line = fails("search", atlas.path, "cells", *args)
    assert got == code, line
    assert said in line
    assert "\x1b" not in line


def test_bad_data_names_the_line(capsys: pytest.CaptureFixture[str], atlas: Atlas, tmp_path: Path) -> None:
    bad = tmp_path / "bad.bed"
    bad.write_text("chr1\t5\t9\nchr1\t500\t100\nchr1\t1e3\t2000\n")
    assert main(["search", str(atlas.path), "cells", str(bad)]) == 65
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error[BED-ORDER] {bad}:2: start 500 is after end 100")
    assert "--on-bad-line skip" in lines[-1]
    assert main(["search", str(atlas.path), "cells", str(bad), "--on-bad-line", "skip"]) == 0
    err = capsys.readouterr().err
    assert "note: bad: 2 bad lines skipped" in err
    assert (tmp_path / "bad.bed.rejected.tsv").exists()


def test_a_label_that_is_not_there(fails: Fails, atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path) -> None:
    code, line = fails("annotate", atlas.path, toy_files["query"], "--label", "mood", "-o", tmp_path / "o.tsv")
    assert code == 64
    assert "cell_type" in line
    assert fails("build", tmp_path / "x.atlas", "--cells", toy_files["cells"], "--labels", "mood")[0] == 64
    assert not [*tmp_path.iterdir()]


def test_an_h5ad_that_points_elsewhere(fails: Fails, atlas: Atlas, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "evil.h5ad", "w") as file:
        file["X"] = h5py.ExternalLink("/etc/passwd", "/")
    for command in (["search", atlas.path, "cells"], ["annotate", atlas.path]):
        options = ["--label", "cell_type", "-o", tmp_path / "o.h5ad"] if command[0] == "annotate" else []
        assert fails(*command, tmp_path / "evil.h5ad", *options)[0] == 65


def test_a_failed_build_leaves_nothing_to_open(fails: Fails, toy_files: dict[str, Path], tmp_path: Path) -> None:
    bad, built = tmp_path / "bad.bed", tmp_path / "x.atlas"
    bad.write_text("chr1\t5\t9\nchr1\t9\t5\n")
    assert fails("build", built, "--beds", bad, "--universe", toy_files["universe"])[0] == 65
    assert fails("info", built)[0] == 66
    assert [file.name for file in tmp_path.iterdir()] == ["bad.bed"]


# What the machine does


def test_somebody_else_is_writing(fails: Fails, atlas: Atlas, tmp_path: Path) -> None:
    own = shutil.copytree(atlas.path, tmp_path / "own.atlas")
    with writing(Path(own), "add"):
        code, line = fails("delete", own, "cells", "--ids", "1")
    assert code == 75
    assert f"pid {os.getpid()}" in line


def test_an_atlas_of_a_later_version(fails: Fails, atlas: Atlas, tmp_path: Path) -> None:
    own = Path(shutil.copytree(atlas.path, tmp_path / "own.atlas"))
    (own / "FORMAT.json").write_text('{"major": 9, "minor": 0}\n')
    for command in ("info", "verify", "gc"):
        assert fails(command, own)[0] == 76


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 74, "error[MEMORY]"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 74, "error[DISK-ERROR] /x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 77, "error[DISK-RIGHTS] /x: Permission denied"),
        (KeyError("a\nb"), 70, "KeyError: 'a\\nb'"),
        (OSError("strange"), 70, "OSError: strange"),
    ],
)
def test_what_nobody_expects(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("chromseek.search.atlas.open", fail)
    got, line = fails("info", "x.atlas")
    assert got == code
    assert said in line
    assert ("this is a bug in chromseek" in line) == (code == 70)
    monkeypatch.setenv("CHROMSEEK_DEBUG", "1")
    if code == 70:
        with pytest.raises(AssertionError, match="Traceback"):
            fails("info", "x.atlas")


def test_a_reader_that_leaves(atlas: Atlas, toy_files: dict[str, Path]) -> None:
    search = [*CLI, "search", str(atlas.path), "regions", str(toy_files["query"]), "-k", "500"]
    with subprocess.Popen(search, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"query\trank\t")
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 0
    assert "Traceback" not in err
    assert "Broken" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output(atlas: Atlas) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CLI, "info", str(atlas.path)], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 74
    assert done.stderr.decode().splitlines()[-1].startswith("error[DISK-ERROR]")


def test_a_terminal_gets_a_table_that_fits(atlas: Atlas) -> None:
    main_end, terminal_end = pty.openpty()
    environment = {**ENVIRONMENT, "COLUMNS": "72"}
    command = [*CLI, "search", str(atlas.path), "cells", "beds:1", "-k", "3"]
    done = subprocess.run(command, stdout=terminal_end, stderr=subprocess.PIPE, env=environment, timeout=120)
    os.close(terminal_end)
    lines = os.read(main_end, 1 << 16).decode().splitlines()
    os.close(main_end)
    assert done.returncode == 0
    assert len(lines) == 4
    assert lines[0].split()[:4] == ["rank", "score", "id", "name"]
    assert max(map(len, lines)) <= 72
    assert "not shown: " in done.stderr.decode()


# F 89f: Ctrl-C


def test_ctrl_c_stops_a_build_that_goes_on_later(toy_files: dict[str, Path], tmp_path: Path) -> None:
    built = tmp_path / "x.atlas"
    build = [*CLI, "build", str(built), "--cells", str(toy_files["cells"]), "--labels", "cell_type"]
    with subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        while process.poll() is None and not [*built.glob("tmp/*/journal.json")]:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, err = (text.decode() for text in process.communicate())
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert "yet; the same command goes on where it stopped" in err
    assert ("no atlas is there" in err) == (not list_versions(built))
    assert main(build[len(CLI) :]) == 0
    assert main(["verify", str(built)]) == 0


def test_a_second_ctrl_c_stops_at_once() -> None:
    slow = (
        "import time\nfrom chromseek.service.cli import _interruptible\nwith _interruptible():\n"
        "    print('ready', flush=True)\n    try:\n        time.sleep(60)\n    finally:\n        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", slow], stdout=-1, stderr=-1, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert "Ctrl-C again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT  # which a shell shows as 130


# F 89g-j: Python


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((2, 3), np.float32), "(2, 3)"),
        (np.ones((1, 64), complex), "(1, 64)"),
        (np.full((3, 64), np.nan), "vector 0"),
        (np.vstack([np.ones(64), np.full(64, 1e300)]), "vector 1"),
        (np.vstack([np.ones(64), np.zeros(64)]), "no direction under cosine"),
    ],
)
def test_vectors_that_cannot_be_searched_with(atlas: Atlas, vectors: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match="vector") as caught:
        atlas.cells.search(vectors)
    assert isinstance(caught.value, BadArgument)
    assert said in caught.value.message


def test_an_atlas_that_was_closed(atlas: Atlas) -> None:
    with chromseek.open(atlas.path) as opened:
        pass
    with pytest.raises(BadArgument) as caught:
        opened.cells.search("chr1:1-2000000")
    assert caught.value.code == "ATLAS-CLOSED"
    with pytest.raises(NotFound):
        atlas.collection("genes")


def test_an_atlas_used_after_a_fork(atlas: Atlas) -> None:
    code = (
        "import os, sys, warnings; warnings.simplefilter('ignore'); import chromseek\n"
        "atlas = chromseek.open(sys.argv[1])\n"
        "ask = lambda: atlas.cells.search(list(range(64)), 5, where=\"donor != 'D1'\").ids.tolist()\n"
        "before = ask()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os._exit(0 if ask() == before else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(atlas.path)], env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0

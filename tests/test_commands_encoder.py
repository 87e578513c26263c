"""`chromseek encoder`: pretrain, finetune, evaluate and info, from the files that people have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import ENVIRONMENT, Terminal
from typer.main import get_command

from chromseek.encoder.base import fingerprint, load, save
from chromseek.encoder.corpus import Corpus
from chromseek.encoder.lsi import LSI
from chromseek.search.atlas import Atlas
from chromseek.service.cli import app

SHORT = ("--size", "tiny", "--steps", "3", "--batch-tokens", "4000", "--device", "cpu")


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A command line."""
    return Terminal(capsys)


@pytest.fixture(scope="module")
def trained(toy_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder, trained for three steps on the toy's cells."""
    folder = tmp_path_factory.mktemp("encoders") / "mine"
    command = [sys.executable, "-m", "chromseek.service.cli", "encoder", "pretrain", toy_files["cells"]]
    given = ("--universe", toy_files["universe"], "--output", folder, "--label", "cell_type", *SHORT)
    subprocess.run([*map(str, [*command, *given])], check=True, env=ENVIRONMENT, timeout=300)
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log of a run."""
    return [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]


def test_every_command_helps_with_examples(terminal: Terminal) -> None:
    commands = get_command(app).commands["encoder"].commands  # type: ignore[attr-defined]
    assert list(commands) == ["pretrain", "finetune", "label", "evaluate", "info"]
    for name in commands:
        assert terminal.run("encoder", name, "--help") == 0
        assert f"Usage: chromseek encoder {name}" in terminal.out
        assert f"\n    chromseek encoder {name}" in terminal.out.split("Examples:")[1]
        assert max(map(len, terminal.out.splitlines())) <= 110
        for words in terminal.out.split("Examples:")[1].splitlines():
            known = {option for parameter in commands[name].params for option in parameter.opts}
            own = words.split(f"encoder {name}")[-1]
            assert {word for word in own.split() if word.startswith("--")} <= {*known, "--nproc-per-node"}, words


def test_pretrain_leaves_an_encoder_and_a_log(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "universe.bed.gz", "training/log.jsonl"}
    last = log_of(trained)[-1]
    assert last["step"] == 3
    assert {"held_out_loss", "held_out_auroc", "ari", "knn_accuracy"} <= last.keys()
    assert load(trained).dim == 64


def test_info(terminal: Terminal, trained: Path) -> None:
    assert terminal.run("encoder", "info", trained, "--json") == 0
    told = terminal.json()
    assert (told["name"], told["assembly"], told["regions"], told["dim"]) == ("atacformer", "hg38", 3000, 64)
    assert told["fingerprint"] == fingerprint(load(trained))
    assert told["parameters"] == sum(array.size for array in load(trained).arrays().values())
    assert terminal.run("encoder", "info", trained) == 0
    assert "atacformer" in terminal.out
    assert "num_hidden_layers: 2" in terminal.out


@pytest.mark.parametrize("kind", ["triplet", "contrastive", "batch", "bed"])
def test_finetune(terminal: Terminal, trained: Path, toy_files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    given = toy_files["beds"] if kind == "bed" else toy_files["cells"]
    label = () if kind == "bed" else ("--label", "donor" if kind == "batch" else "cell_type")
    tuned = tmp_path / "tuned"
    assert terminal.run("encoder", "finetune", kind, trained, given, *label, *SHORT[2:], "-o", tuned) == 0, terminal.err
    assert fingerprint(load(tuned)) != fingerprint(load(trained))
    assert load(tuned).universe.digest == load(trained).universe.digest
    assert log_of(tuned)[-1]["step"] == 3


def test_evaluate(terminal: Terminal, trained: Path, toy_files: dict[str, Path]) -> None:
    base = ("encoder", "evaluate", trained, toy_files["cells"], "--label", "cell_type", "--device", "cpu")
    assert terminal.run(*base, "--json") == 0, terminal.err
    scores = terminal.json()
    assert scores["n_labels"] == 8
    assert 1 / 8 < scores["knn_accuracy"] <= 1
    assert terminal.run(*base, "--groups", "donor", "--folds", "3") == 0
    assert "linear macro f1" in terminal.out


def test_other_encoders_are_scored_too(terminal: Terminal, atlas: Atlas, tmp_path: Path) -> None:
    corpus_of_atlas(atlas, tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    lsi = LSI.fit(corpus.sets(np.arange(len(corpus))), corpus.all.slice(0, 0), corpus.universe, dim=16)
    save(lsi, tmp_path / "lsi")
    for given in (tmp_path / "c", atlas.path):
        assert terminal.run("encoder", "evaluate", tmp_path / "lsi", given, "--label", "lineage", "--json") == 0
        assert terminal.json()["knn_accuracy"] > 0.9
    assert terminal.run("encoder", "finetune", "bed", tmp_path / "lsi", tmp_path / "c", "-o", tmp_path / "t") == 64
    assert "ENCODER-KIND" in terminal.err
    assert not (tmp_path / "t").exists()


def corpus_of_atlas(atlas: Atlas, folder: Path) -> None:
    """Write the cells of an atlas as a corpus."""
    from chromseek.data.sources import ReadOptions
    from chromseek.service.training_inputs import read_inputs

    read_inputs([str(atlas.path)], None, folder.parent / "work", ReadOptions())
    (folder.parent / "work" / "corpus").rename(folder)


def test_an_atlas_gives_its_cells(atlas: Atlas, tmp_path: Path) -> None:
    corpus_of_atlas(atlas, tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    assert len(corpus) == len(atlas.cells)
    assert corpus.rows.column("name").to_pylist()[:3] == atlas.cells.get([0, 1, 2])["name"].to_pylist()
    assert corpus.all.sizes.tolist() == atlas.cells.get(range(len(corpus)))["n_tokens"].to_pylist()
    assert "cell_type" in corpus.rows.column_names


def test_every_kind_of_input_gives_the_same_sets(
    terminal: Terminal, atlas: Atlas, toy_files: dict[str, Path], tmp_path: Path
) -> None:
    corpus_of_atlas(atlas, tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    tokens = corpus.all.take(np.arange(len(corpus))).to_arrow()
    pq.write_table(pa.table({"input_ids": tokens}), tmp_path / "cells.parquet")
    found = set()
    for number, given in enumerate((toy_files["cells"], tmp_path / "c", atlas.path, tmp_path / "cells.parquet")):
        output = tmp_path / str(number)
        universe = ("--universe", toy_files["universe"])
        assert terminal.run("encoder", "pretrain", given, *universe, "-o", output, *SHORT) == 0, terminal.err
        found.add(fingerprint(load(output)))
    assert len(found) == 1
    assert (tmp_path / "c" / "corpus.json").exists(), "what was given stays"


def test_a_stopped_run_resumes(terminal: Terminal, trained: Path, toy_files: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chromseek.service.cli", "encoder", "pretrain", toy_files["cells"], "--universe"]
    short = (*SHORT, "--checkpoint-every", "1", "-o", tmp_path / "e")
    words = [str(word) for word in (*command, toy_files["universe"], *short)]
    words[words.index("--steps") + 1] = "3"
    killed = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "e" / "training" / "checkpoint.pt"
    while killed.poll() is None and not checkpoint.exists():
        pass
    killed.kill()
    killed.wait()
    if not (tmp_path / "e" / "config.json").exists():
        assert terminal.run(*words[3:]) == 73
        assert "OUTPUT-EXISTS" in terminal.err
        assert terminal.run(*words[3:], "--seed", "5", "--resume") == 64
        assert terminal.run(*words[3:], "--resume") == 0, terminal.err
    assert fingerprint(load(tmp_path / "e")) == fingerprint(load(trained))


def test_several_processes(toy_files: dict[str, Path], tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [
        *torchrun,
        "-m",
        "chromseek.service.cli",
        "encoder",
        "pretrain",
        toy_files["cells"],
        "-o",
        tmp_path / "e",
    ]
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, [*command, *SHORT])], env=env, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "e").dim == 64
    assert sorted(os.listdir(tmp_path)) == ["e"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("pretrain", "{cells}", "--device", "cuda:99"), 64, "DEVICE"),
        (("pretrain", "{cells}", "--dtype", "int8"), 64, "DTYPE"),
        (("pretrain", "nowhere.h5ad"), 66, "FILE-MISSING"),
        (("pretrain", "{beds}"), 64, "BUILD-UNIVERSE"),
        (("pretrain", "{cells}", "--label", "nothing"), 64, "LABEL-COLUMN"),
        (("pretrain", "{cells}", "--steps", "0"), 64, "USAGE"),
        (("pretrain",), 64, "USAGE"),
        (("finetune", "triplet", "{encoder}", "{cells}"), 64, "LABEL-COLUMN"),
        (("finetune", "triplet", "{encoder}", "{cells}", "--label", "nothing"), 64, "LABEL-COLUMN"),
        (("finetune", "batch", "{encoder}", "{cells}", "--label", "donor", "--unfrozen", "9"), 64, "TRAIN-FROZEN"),
        (("finetune", "other", "{encoder}", "{cells}"), 64, "USAGE"),
        (("finetune", "bed", "nowhere", "{beds}"), 66, "ENCODER"),
        (("finetune", "bed", "{encoder}", "{beds}", "--resume"), 66, "TRAIN-RESUME"),
    ],
)
def test_wrong_commands_leave_nothing(
    terminal: Terminal, trained: Path, toy_files: dict[str, Path], tmp_path: Path, words: tuple[str, ...], code: int,
    said: str,
) -> None:  # fmt: skip
    filled = [word.format(**toy_files, encoder=trained) for word in words]
    assert terminal.run("encoder", *filled, "-o", tmp_path / "e") == code, terminal.err
    assert f"error[{said}" in terminal.err
    assert not (tmp_path / "e").exists()


def test_a_full_folder_is_refused(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert terminal.run("encoder", "pretrain", toy_files["cells"], "-o", tmp_path, *SHORT) == 73
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("kind", ["atacformer", "bag"])
def test_label(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    taught = tmp_path / "taught"
    given = ("encoder", "label", toy_files["cells"], "--label", "cell_type", "--kind", kind, "-o", taught)
    assert terminal.run(*given) == 0, terminal.err
    assert load(taught).name == kind
    assert len(load(taught).classes) > 1  # type: ignore[attr-defined]
    assert terminal.run(*given) == 73  # the folder is taken


def test_label_that_is_not_there(terminal: Terminal, toy_files: dict[str, Path], tmp_path: Path) -> None:
    taught = tmp_path / "taught"
    assert terminal.run("encoder", "label", toy_files["cells"], "--label", "nonsense", "-o", taught) in (64, 65)
    assert "nonsense" in terminal.err
    assert not taught.exists()

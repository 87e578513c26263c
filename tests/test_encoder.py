"""The folder of a saved encoder: whatever was changed in it is noticed before it is used."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from building import SMALL

from chromseek.data.errors import BadArgument, BadData, ChromseekError
from chromseek.data.tokens import TokenSets
from chromseek.encoder.base import fingerprint, load, save
from chromseek.encoder.lsi import LSI


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder in its folder."""
    cells, beds = TokenSets.concat([block.sets for block in SMALL.cells()]), SMALL.beds().sets
    folder = tmp_path_factory.mktemp("encoder") / "saved"
    save(LSI.fit(cells, beds, SMALL.universe, dim=8), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(saved, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_the_fingerprint_is_of_the_content(saved: Path, folder: Path) -> None:
    assert (
        fingerprint(load(folder))
        == fingerprint(load(saved))
        == json.loads((saved / "config.json").read_text())["fingerprint"]
    )
    config = json.loads((folder / "config.json").read_text())
    del config["fingerprint"]  # as in the folder of another tool
    (folder / "config.json").write_text(json.dumps(config))
    assert fingerprint(load(folder)) == fingerprint(load(saved))


@pytest.mark.parametrize(
    "change",
    [
        [],
        ["model_type", "assembly", "universe", "dim"],
        5,
        None,
        {"universe": 5},
        {"universe": {}},
        {"universe": None},
        {"dim": "8"},
        {"dim": 99},
        {"model_type": 5},
        {"assembly": "hg99"},
        {"assembly": ["hg38"]},
        {"factor": "x"},
        {"fingerprint": "0" * 64},
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | change if isinstance(change, dict) else change
    path.write_text(json.dumps(config))
    with pytest.raises(BadData) as caught:
        load(folder)
    assert caught.value.code.startswith("ENCODER")


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"model_type": '])
def test_settings_that_are_no_json_are_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(BadData, match="not JSON"):
        load(folder)


def test_both_dimensions_are_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"dim": 8', '"dim": 128'))
    with pytest.raises(BadData, match="128 dimensions, the weights have 8"):
        load(folder)


def test_an_unknown_kind_of_encoder_is_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"lsi"', '"magic"'))
    with pytest.raises(BadArgument, match="unknown encoder magic"):
        load(folder)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "X7"])
def test_numbers_of_an_unknown_kind_are_refused(folder: Path, dtype: str) -> None:
    header = json.dumps({"idf": {"dtype": dtype, "shape": [400], "data_offsets": [0, 800]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 800)
    with pytest.raises(BadData) as caught:
        load(folder)
    assert caught.value.code == "ENCODER-WEIGHTS"


def test_no_changed_byte_goes_unseen(folder: Path) -> None:
    rng = random.Random(0)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for number in range(60):
        data = bytearray(whole)
        data[rng.randrange(400 if number % 2 else len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: rng.randrange(len(whole))] if number % 10 == 9 else data))
        with pytest.raises(ChromseekError):
            load(folder)
    path.write_bytes(whole)
    load(folder)

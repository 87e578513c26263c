"""Atacformer folders in the published layout: every variant read and written, and whatever is wrong refused by name."""

import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, StorageError
from chromseek.data.genome import assembly
from chromseek.data.regions import Regions
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import Discriminator, Network, Settings
from chromseek.encoder.checkpoint import Published, read_published, write_published
from chromseek.encoder.checkpoint_layout import misfit, whole_shapes

D, INNER, LAYERS, PLACES, BATCHES = 8, 12, 2, 16, 3
LINES = [("chr1", 5000, 5600), ("chr1", 100, 700), ("chrX", 7, 90), ("chr2", 100, 700), ("chrX", 1, 60), ("chrM", 1, 9)]
N = len(LINES)
CONFIG = {  # as the published code writes it
    "architectures": ["AtacformerForReplacedTokenDetection"],
    "bc_unfreeze_last_n_layers": 2,
    "bos_token_id": N + 5,
    "cls_token_id": N + 3,
    "dtype": "bfloat16",
    "embedding_dropout": 0.0,
    "eos_token_id": N + 4,
    "grl_alpha": 1.0,
    "hidden_size": D,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "lambda_adv": 1.0,
    "max_position_embeddings": PLACES,
    "model_type": "atacformer",
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_batches": BATCHES,
    "num_hidden_layers": LAYERS,
    "pad_token_id": N + 1,
    "sep_token_id": N + 6,
    "sparse_prediction": True,
    "transformers_version": "4.57.6",
    "use_pos_embeddings": False,
    "vocab_size": N + 7,
}
SETTINGS = Settings(N + 7, D, INNER, LAYERS, 4, PLACES, False, 1e-5, BATCHES)
CLASSES = {
    "bare": "AtacformerModel",
    "rtd": "AtacformerForReplacedTokenDetection",
    "mlm": "AtacformerForMaskedLM",
    "clustering": "AtacformerForCellClustering",
    "batch": "AtacformerForUnsupervisedBatchCorrection",
}
# As geniml's classes name them, written out here a second time
LAYER = {
    "self_attn.in_proj_weight": (3 * D, D),
    "self_attn.in_proj_bias": (3 * D,),
    "self_attn.out_proj.weight": (D, D),
    "self_attn.out_proj.bias": (D,),
    "linear1.weight": (INNER, D),
    "linear1.bias": (INNER,),
    "linear2.weight": (D, INNER),
    "linear2.bias": (D,),
    "norm1.weight": (D,),
    "norm1.bias": (D,),
    "norm2.weight": (D,),
    "norm2.bias": (D,),
}
BARE = {"embeddings.token_embeddings.weight": (N + 7, D), "embeddings.position_embeddings.weight": (PLACES, D)} | {
    f"encoder.layers.{number}.{name}": shape for number in range(LAYERS) for name, shape in LAYER.items()
}
HEAD = {
    "discriminator.dense.weight": (D, D),
    "discriminator.dense.bias": (D,),
    "discriminator.norm.weight": (D,),
    "discriminator.norm.bias": (D,),
    "discriminator.classifier.weight": (1, D),
    "discriminator.classifier.bias": (1,),
}
BATCH = {"batch_prediction_head.weight": (BATCHES, D), "batch_prediction_head.bias": (BATCHES,)}
WHOLE = {f"atacformer.{key}": shape for key, shape in BARE.items()}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "bare": BARE,
    "rtd": WHOLE | HEAD,
    "mlm": WHOLE | {"lm_head.weight": (N + 7, D)},
    "clustering": WHOLE,
    "batch": WHOLE | HEAD | BATCH,
}
TOKENS = "atacformer.embeddings.token_embeddings.weight"


def weights(variant: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights, the same every time."""
    seeded = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=seeded).to(dtype) for key, shape in SHAPES[variant].items()}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: Any = CONFIG, lines: Any = LINES) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = "".join(f"{chrom}\t{start}\t{end}\n" for chrom, start, end in lines)
    (folder / "universe.bed.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder to spoil: replaced-token detection, in bfloat16."""
    return write(tmp_path / "published", weights("rtd", torch.bfloat16))


def universe(of: str = "hg38") -> Universe:
    return Universe(Regions.from_text([f"{c}:{s}-{e}" for c, s, e in LINES], assembly(of)))


def refused(folder: Path, code: str, message: str, **options: Any) -> BadData:
    with pytest.raises(BadData, match=message) as caught:
        read_published(folder, **options)
    assert caught.value.code == code
    assert caught.value.file is not None
    assert caught.value.fix
    return caught.value


# What is good


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", SHAPES)
def test_every_variant_is_read_in_every_precision(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    stored = weights(variant, dtype)
    found = read_published(write(tmp_path / "x", stored, CONFIG | {"architectures": [CLASSES[variant]]}))
    assert (found.variant, found.settings, found.left_out) == (variant, SETTINGS, 0)
    assert found.universe.regions.names() == [f"{c}:{s}-{e}" for c, s, e in LINES]
    assert found.universe.assembly.name == "hg38"
    prefix = "atacformer." if variant == "bare" else ""
    wanted = {f"{prefix}{key}": tensor for key, tensor in stored.items() if key != "lm_head.weight"}
    assert set(found.arrays) == set(wanted)
    for key, array in found.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted[key].float().numpy())


@pytest.mark.parametrize("variant", SHAPES)
def test_without_a_class_name_the_weights_tell_the_variant(tmp_path: Path, variant: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "architectures"}
    assert read_published(write(tmp_path / "x", weights(variant), config)).variant == variant


def test_a_tied_head_may_be_absent(tmp_path: Path) -> None:
    config = CONFIG | {"architectures": ["AtacformerForMaskedLM"]}
    assert read_published(write(tmp_path / "x", weights("clustering"), config)).variant == "mlm"


def test_settings_that_are_absent_are_the_published_classs(tmp_path: Path) -> None:
    config = {"model_type": "atacformer", "vocab_size": N + 7, "torch_dtype": "float32"}
    asked = Settings(N + 7, 384, 1536, 6, 8, 8192, True, 1e-5, None)
    shapes = whole_shapes(asked, "clustering")
    found = read_published(write(tmp_path / "x", {key: torch.zeros(shape) for key, shape in shapes.items()}, config))
    assert found.settings == asked


def test_an_absent_position_table_is_zeros_where_it_is_not_used(tmp_path: Path) -> None:
    tensors = weights("clustering")
    del tensors["atacformer.embeddings.position_embeddings.weight"]
    config = CONFIG | {"architectures": ["AtacformerForCellClustering"]}
    found = read_published(write(tmp_path / "x", tensors, config))
    places = found.arrays["atacformer.embeddings.position_embeddings.weight"]
    assert places.shape == (PLACES, D)
    assert not places.any()
    write(tmp_path / "x", tensors, config | {"use_pos_embeddings": True})
    refused(tmp_path / "x", "ENCODER-SHAPE", "1 weights are missing, such as atacformer.embeddings.position")


def test_the_weights_are_those_of_the_network(folder: Path) -> None:
    found = read_published(folder)
    keys = {key.removeprefix("atacformer."): array.shape for key, array in found.arrays.items() if key not in HEAD}
    assert keys == {key: tuple(tensor.shape) for key, tensor in Network(SETTINGS).state_dict().items()}
    head = {f"discriminator.{key}": tuple(tensor.shape) for key, tensor in Discriminator(SETTINGS).state_dict().items()}
    assert head == HEAD


def test_regions_on_contigs_are_left_out_with_their_weights(tmp_path: Path, caplog: Any) -> None:
    lines = [("chr1_KI270706v1_random", 5, 9), *LINES[:3], ("chrUn_GL000195v1", 1, 9), *LINES[3:]]
    tensors = weights("clustering")
    tensors[TOKENS] = torch.randn(len(lines) + 7, D)
    ids = {f"{name}_token_id": CONFIG[f"{name}_token_id"] + 2 for name in ("pad", "cls", "eos", "bos", "sep")}
    config = CONFIG | ids | {"vocab_size": len(lines) + 7, "architectures": ["AtacformerForCellClustering"]}
    found = read_published(write(tmp_path / "x", tensors, config, lines))
    assert (found.left_out, found.settings) == (2, SETTINGS)
    assert found.universe.digest == universe().digest
    rows = [1, 2, 3, 5, 6, 7, *range(8, 15)]
    np.testing.assert_array_equal(found.arrays[TOKENS], tensors[TOKENS].numpy()[rows])
    assert "2 of 8 regions" in caplog.text


def test_the_assembly_is_guessed_named_or_given(tmp_path: Path) -> None:
    tensors, config = weights("clustering"), CONFIG | {"architectures": ["AtacformerForCellClustering"]}
    assert read_published(write(tmp_path / "x", tensors, config)).universe.assembly.name == "hg38"  # hg19 fits as well
    assert read_published(tmp_path / "x", assembly("hg19")).universe.assembly.name == "hg19"
    write(tmp_path / "x", tensors, config | {"assembly": "mm10"})
    assert read_published(tmp_path / "x").universe.assembly.name == "mm10"
    lines = [*LINES[:-1], ("chr1", 249_000_000, 249_250_600)]  # past the end of hg38's chr1, not of hg19's
    assert read_published(write(tmp_path / "x", tensors, config, lines)).universe.assembly.name == "hg19"


# Writing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", SHAPES)
def test_what_is_written_is_the_published_form(tmp_path: Path, variant: Any, dtype: Any) -> None:
    arrays = published(tmp_path, variant).arrays
    own = {"chromseek.means": np.zeros((3, D), np.float32)}
    files = write_published(tmp_path / "out", SETTINGS, arrays | own, universe(), variant=variant, dtype=dtype)
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    config = json.loads(files[0].read_text())
    assert set(CONFIG) <= set(config)
    same = set(CONFIG) - {"architectures", "dtype", "transformers_version"}
    assert {key: config[key] for key in same} == {key: CONFIG[key] for key in same}
    assert (config["architectures"], config["dtype"], config["torch_dtype"]) == ([CLASSES[variant]], dtype, dtype)
    with safe_open(files[1], "pt") as file:
        assert file.metadata() == {"format": "pt"}
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        assert {file.get_tensor(key).dtype for key in shapes} == {getattr(torch, dtype)}
    assert shapes == {key: shape for key, shape in SHAPES[variant].items() if key != "lm_head.weight"}
    lines = gzip.decompress(files[2].read_bytes()).decode().splitlines()
    assert [tuple(line.split("\t")) for line in lines] == [(c, str(s), str(e)) for c, s, e in LINES]
    assert files[1].stat().st_mode == files[0].stat().st_mode


@pytest.mark.parametrize("variant", SHAPES)
def test_what_is_written_is_read_again(tmp_path: Path, variant: Any) -> None:
    found = published(tmp_path, variant)
    write_published(tmp_path / "out", found.settings, found.arrays, found.universe, variant=variant)
    again = read_published(tmp_path / "out")
    assert (again.settings, again.variant) == (found.settings, variant)
    assert again.universe.digest == found.universe.digest
    assert set(again.arrays) == set(found.arrays)
    for key, array in again.arrays.items():
        np.testing.assert_array_equal(array, found.arrays[key])


def published(tmp_path: Path, variant: str) -> Published:
    config = CONFIG | {"architectures": [CLASSES[variant]]}
    return read_published(write(tmp_path / "in", weights(variant), config))


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    found = published(tmp_path, "rtd")

    def tried(arrays: Any = found.arrays, variant: Any = "rtd", **options: Any) -> None:
        write_published(tmp_path / "out", SETTINGS, arrays, universe(), variant=variant, **options)

    with pytest.raises(BadArgument, match="unknown variant best"):
        tried(variant="best")
    with pytest.raises(BadArgument, match="unknown dtype int8"):
        tried(dtype="int8")
    with pytest.raises(BadData, match="2 weights are missing, such as batch_prediction_head"):
        tried(variant="batch")
    with pytest.raises(BadData, match="6 weights are not of this network, such as discriminator"):
        tried(variant="clustering")
    with pytest.raises(BadData, match="holds NaN or infinity"):
        tried(arrays=found.arrays | {TOKENS: np.full((N + 7, D), np.nan, np.float32)})
    with pytest.raises(BadData, match=r"must be \(13, 8\), got \(12, 8\)"):
        tried(arrays=found.arrays | {TOKENS: found.arrays[TOKENS][1:]})
    few = universe()
    with pytest.raises(BadData, match="the universe has 5 regions, the weights 6"):
        write_published(tmp_path / "out", SETTINGS, found.arrays, Universe(few.regions.take(slice(5))), variant="rtd")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StorageError, match="not empty") as caught:
        write_published(tmp_path / "in", SETTINGS, found.arrays, few, variant="rtd")
    assert caught.value.exit_code == 73
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        write_published(tmp_path / "file", SETTINGS, found.arrays, few, variant="rtd")


# Settings that are wrong


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"model_type": ', b"9" * 5000])
def test_a_config_that_is_no_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    refused(folder, "ENCODER-CONFIG", "not JSON")


@pytest.mark.parametrize(
    "config", [5, None, [], {}, {"model_type": "bert"}, {"model_type": 5}, {"model_type": "craft"}]
)
def test_another_kind_of_model_is_refused(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "ENCODER-CONFIG", "model_type must be atacformer, got")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": -8}, "hidden_size must be a whole number"),
        ({"hidden_size": 8.0}, "hidden_size must be a whole number"),
        ({"hidden_size": "8"}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"hidden_size": None}, "hidden_size must be a whole number"),
        ({"hidden_size": 10}, "hidden_size 10 cannot be shared out among 4 heads"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"num_attention_heads": 3}, "cannot be shared out among 3 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"intermediate_size": [12]}, "intermediate_size must be"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings must be"),
        ({"vocab_size": 7}, "leaves no region"),
        ({"vocab_size": 10**30}, "vocab_size must be"),
        ({"num_batches": 0}, "num_batches must be"),
        ({"num_batches": {}}, "num_batches must be"),
        ({"norm_eps": 0}, "norm_eps must be a number"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a number"),
        ({"norm_eps": float("nan")}, "norm_eps must be a number"),
        ({"use_pos_embeddings": "no"}, "use_pos_embeddings must be true or false"),
        ({"pad_token_id": 0}, "pad_token_id must be 7 .*, got 0"),
        ({"cls_token_id": N + 5, "bos_token_id": N + 3}, "cls_token_id must be 9 .*, got 11"),
        ({"sep_token_id": "last"}, "sep_token_id must be 12"),
        ({"unk_token_id": N + 1}, "unk_token_id must be 6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    assert refused(folder, "ENCODER-CONFIG", message).file == str(folder / "config.json")


def test_special_tokens_may_be_unsaid(folder: Path) -> None:
    config = {key: None if key.startswith("pad") else value for key, value in CONFIG.items() if key != "cls_token_id"}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_published(folder).settings == SETTINGS


# Files that are absent, or of another kind


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "universe.bed.gz"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFound, match=f"no {name} in") as caught:
        read_published(folder)
    assert caught.value.code == "ENCODER-FILE"


class Trap:
    """What leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "a.pt"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "torch"])
def test_a_pickle_is_refused_and_not_opened(folder: Path, tmp_path: Path, name: str, protocol: Any) -> None:
    (folder / "model.safetensors").unlink()
    trap = Trap(tmp_path / "sprung")
    if protocol == "torch":
        torch.save({"weight": trap}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(trap, protocol))
    assert refused(folder, "ENCODER-PICKLE", "holds a pickle").file == str(folder / name)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    read_published(folder)
    assert not (tmp_path / "sprung").exists()


def test_sharded_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "ENCODER-SHARDS", "in several files")


# Weights that are wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atacformer.encoder.layers.1.linear1.bias": None}, "1 weights are missing, such as .*1.linear1.bias"),
        ({"discriminator.norm.bias": None}, "1 weights are missing, such as discriminator.norm.bias"),
        (dict.fromkeys(HEAD), "6 weights are missing, such as discriminator"),
        ({"atacformer.pooler.weight": (D, D)}, "1 weights are not of this network, such as atacformer.pooler"),
        ({"atacformer.encoder.layers.2.norm1.bias": (D,)}, "not of this network, such as .*layers.2.norm1"),
        ({"batch_prediction_head.weight": (BATCHES, D)}, "not of this network, such as batch_prediction_head"),
        ({TOKENS: (N + 8, D)}, rf"{TOKENS} must be \(13, 8\), got \(14, 8\)"),
        ({"discriminator.classifier.bias": ()}, r"classifier.bias must be \(1,\), got \(\)"),
        ({"atacformer.encoder.layers.0.self_attn.in_proj_weight": (D, 3 * D)}, r"must be \(24, 8\), got \(8, 24\)"),
    ],
)
def test_weights_of_another_network_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    tensors = weights("rtd") | {key: None if shape is None else torch.zeros(shape) for key, shape in change.items()}
    write(folder, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    assert refused(folder, "ENCODER-SHAPE", message).file == str(folder / "model.safetensors")


def test_a_batch_head_needs_its_number_of_batches(tmp_path: Path) -> None:
    config = CONFIG | {"num_batches": None, "architectures": [CLASSES["batch"]]}
    write(tmp_path / "x", weights("batch"), config)
    refused(tmp_path / "x", "ENCODER-SHAPE", r"batch_prediction_head.weight must be \(0, 8\), got \(3, 8\)")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", [TOKENS, "discriminator.classifier.bias"])
def test_weights_that_are_no_numbers_are_refused(folder: Path, key: str, bad: float) -> None:
    tensors = weights("rtd", torch.bfloat16)
    tensors[key].view(-1)[-1] = bad
    write(folder, tensors)
    refused(folder, "ENCODER-NAN", f"{key} holds NaN or infinity")


def test_weights_too_large_for_float32_are_refused(folder: Path) -> None:
    tensors = weights("rtd", torch.float64)
    tensors[TOKENS][0, 0] = 1e300
    write(folder, tensors)
    refused(folder, "ENCODER-NAN", "holds NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number_are_refused(folder: Path, dtype: torch.dtype) -> None:
    tensors = weights("rtd")
    tensors[TOKENS] = torch.zeros((N + 7, D)).to(dtype)
    write(folder, tensors)
    refused(folder, "ENCODER-WEIGHTS", "numbers of the kind")


def emptied(data: bytes) -> bytes:
    return data[:0]


def cut(data: bytes) -> bytes:
    return data[:-100]


def cut_early(data: bytes) -> bytes:
    return data[:20]


def longer(data: bytes) -> bytes:
    return data + b"\0" * 10


def huge_header(data: bytes) -> bytes:
    return (2**62).to_bytes(8, "little") + data[8:]


def html(data: bytes) -> bytes:
    return b"<html>404</html>" + data[:0]


@pytest.mark.parametrize("spoil", [emptied, cut, cut_early, longer, huge_header, html])
def test_damaged_weights_are_refused(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    refused(folder, "ENCODER-WEIGHTS", "not readable as safetensors")


# Universes that are wrong


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES[:-1], "5 regions, but the weights are of 6"),
        ([*LINES, ("chr3", 1, 9)], "7 regions, but the weights are of 6"),
        ([*LINES[:-1], LINES[0]], "1 regions of the universe come twice, such as chr1:5000-5600"),
        ([*LINES[:-1], ("chr1", 9, 300_000_000)], "cannot tell the assembly"),
        ([*LINES[:-1], ("chr99", 1, 9)], "cannot tell the assembly"),
        ([*LINES[:-1], ("chr1", 9, 5)], "start 9 is after end 5"),
        ([*LINES[:-1], ("chr1", "x", 5)], "start x is not a whole number"),
        ([(c[3:], s, e) for c, s, e in LINES], "chromosomes are named like"),
        ([], "no regions"),
    ],
)
def test_a_universe_that_does_not_fit_is_refused(folder: Path, lines: Any, message: str) -> None:
    write(folder, weights("rtd"), CONFIG, lines)
    assert refused(folder, "ENCODER-UNIVERSE", message).file == str(folder / "universe.bed.gz")


def test_a_universe_of_another_assembly_is_refused(folder: Path) -> None:
    lines = [*LINES[:-1], ("chr1", 249_000_000, 249_250_600)]
    write(folder, weights("rtd"), CONFIG, lines)
    refused(folder, "ENCODER-UNIVERSE", "looks like hg19, this is hg38", assembly=assembly("hg38"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot tell the assembly|no regions"),
        (b"\x1f\x8b\x08\x00", "ends early"),
        (b"PK\x03\x04", "a zip archive"),
        (b"<html>", "looks like HTML"),
        (gzip.compress(b"chr1\t1\t9\n", mtime=0)[:-9], "ends early"),
    ],
)
def test_a_universe_that_is_no_bed_is_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / "universe.bed.gz").write_bytes(data)
    refused(folder, "ENCODER-UNIVERSE", message)


def test_no_flipped_bit_ends_in_another_error(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["config.json", "model.safetensors", "universe.bed.gz"]
    for number in range(300):
        shutil.copytree(folder, tmp_path / "spoiled", dirs_exist_ok=True)
        path = tmp_path / "spoiled" / names[number % 3]
        data = bytearray(path.read_bytes())
        place = int(rng.integers(min(len(data), 1200)))
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        try:
            found = read_published(tmp_path / "spoiled")
        except ChromseekError:
            continue
        assert misfit({k: a.shape for k, a in found.arrays.items()}, found.settings, found.variant) is None


def test_every_setting_counts() -> None:
    """A network is that of its config: another width, depth or vocabulary never fits the same weights."""
    shapes = {key: tuple(tensor.shape) for key, tensor in weights("rtd").items()}
    assert misfit(shapes, SETTINGS, "rtd") is None
    for change in ({"hidden_size": 16}, {"intermediate_size": 13}, {"num_hidden_layers": 3}, {"vocab_size": 14}):
        assert misfit(shapes, replace(SETTINGS, **change), "rtd") is not None

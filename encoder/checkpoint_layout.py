"""The published layout of an Atacformer: what its weights are called, their shapes, and the settings in its config.

The names, and what a setting is where a config leaves it out, are those of geniml's transformers classes (LeRoy et al.
2025, Atacformer). Only names and numbers are here; checkpoint.py has the files.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from chromseek.data.errors import BadData, printable
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import N_SPECIALS, Settings
from chromseek.encoder.reference_tokens import special_ids

Variant = Literal["bare", "rtd", "mlm", "clustering", "batch"]
TOKENS = "atacformer.embeddings.token_embeddings.weight"
PLACES = "atacformer.embeddings.position_embeddings.weight"
TIED = "lm_head.weight"  # the token embeddings once more
_CLASSES: dict[Variant, str] = {
    "bare": "AtacformerModel",
    "rtd": "AtacformerForReplacedTokenDetection",
    "mlm": "AtacformerForMaskedLM",
    "clustering": "AtacformerForCellClustering",
    "batch": "AtacformerForUnsupervisedBatchCorrection",
}
_HEADS = ("discriminator.", "batch_prediction_head.", "lm_head.")
_UNSAID = Settings(  # what the published class takes for a setting that a config leaves out: not the published weights'
    vocab_size=890_711,
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=8,
    max_position_embeddings=8192,
    use_pos_embeddings=True,
    norm_eps=1e-5,
    num_batches=None,
)
_MOST = {  # larger numbers are nonsense, and must not cost memory
    "vocab_size": 1 << 31,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 12,
    "max_position_embeddings": 1 << 20,
    "num_batches": 1 << 20,
}
Shapes = Mapping[str, tuple[int, ...]]
AGAIN = "fetch or copy the folder again, whole"


def whole_shapes(settings: Settings, variant: Variant) -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight of a variant, in the order of the network."""
    d, inner = settings.hidden_size, settings.intermediate_size
    layer = {
        "self_attn.in_proj_weight": (3 * d, d),
        "self_attn.in_proj_bias": (3 * d,),
        "self_attn.out_proj.weight": (d, d),
        "self_attn.out_proj.bias": (d,),
        "linear1.weight": (inner, d),
        "linear1.bias": (inner,),
        "linear2.weight": (d, inner),
        **dict.fromkeys(("linear2.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"), (d,)),
    }
    shapes: dict[str, tuple[int, ...]] = {
        TOKENS: (settings.vocab_size, d),
        PLACES: (settings.max_position_embeddings, d),
    }
    for number in range(settings.num_hidden_layers):
        shapes |= {f"atacformer.encoder.layers.{number}.{name}": shape for name, shape in layer.items()}
    if variant in ("rtd", "batch"):
        shapes |= {"discriminator.dense.weight": (d, d), "discriminator.classifier.weight": (1, d)}
        shapes |= dict.fromkeys(("discriminator.dense.bias", "discriminator.norm.weight"), (d,))
        shapes |= {"discriminator.norm.bias": (d,), "discriminator.classifier.bias": (1,)}
    if variant == "batch":
        n_batches = settings.num_batches or 0
        shapes |= {"batch_prediction_head.weight": (n_batches, d), "batch_prediction_head.bias": (n_batches,)}
    if variant == "mlm":
        shapes[TIED] = (settings.vocab_size, d)
    return shapes


def misfit(found: Shapes, settings: Settings, variant: Variant) -> str | None:
    """What is wrong with weights of these names and shapes for a network of these settings; None where they fit."""
    expected = whole_shapes(settings, variant)
    spared = {TIED} if settings.use_pos_embeddings else {TIED, PLACES}
    missing = [key for key in expected if key not in found and key not in spared]
    unknown = [key for key in found if key not in expected]
    for keys, what in ((missing, "missing"), (unknown, "not of this network")):
        if keys:
            return f"{len(keys)} weights are {what}, such as {printable(keys[0])}"
    wrong = next((key for key in expected if key in found and found[key] != expected[key]), None)
    return None if wrong is None else f"{wrong} must be {expected[wrong]}, got {found[wrong]}"


def read_config(path: Path) -> tuple[dict[str, Any], Settings]:
    """The config, and the settings of the network in it. Raises BadData for what makes no network."""
    bad = partial(_bad, path)

    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise bad(f"not JSON ({printable(error)})") from None
    if not isinstance(config, dict) or config.get("model_type") != "atacformer":
        got = printable(config.get("model_type")) if isinstance(config, dict) else "no settings"
        raise bad(f"model_type must be atacformer, got {got}", "give an Atacformer; of CRAFT, its ATAC tower")
    return config, settings_of(config, path)


def settings_of(config: Mapping[str, Any], path: Path | None = None) -> Settings:
    """The settings of the network that a config describes. Raises BadData for what makes no network."""
    bad = partial(_bad, path)
    values = {name: config.get(name, unsaid) for name, unsaid in asdict(_UNSAID).items()}
    for name, most in _MOST.items():
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        if not whole and (name != "num_batches" or value is not None):
            raise bad(f"{name} must be a whole number from 1 to {most:,}, got {printable(value)}")
    eps, width, heads = values["norm_eps"], values["hidden_size"], values["num_attention_heads"]
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise bad(f"norm_eps must be a number between 0 and 1, got {printable(eps)}")
    if not isinstance(values["use_pos_embeddings"], bool):
        raise bad(f"use_pos_embeddings must be true or false, got {printable(values['use_pos_embeddings'])}")
    if width % heads:
        raise bad(f"hidden_size {width} cannot be shared out among {heads} heads (num_attention_heads)")
    if values["vocab_size"] <= N_SPECIALS:
        raise bad(f"vocab_size {values['vocab_size']} leaves no region beside {N_SPECIALS} special tokens")
    for name, number in special_ids(values["vocab_size"] - N_SPECIALS)._asdict().items():
        said = config.get(f"{name}_token_id")
        if said is not None and (said != number or isinstance(said, bool)):
            wanted = f"{name}_token_id must be {number} (the specials follow the regions), got {printable(said)}"
            raise bad(wanted, "give a checkpoint whose special tokens are in the published order")
    return Settings(**values)


def _bad(path: Path | None, what: str, fix: str = AGAIN) -> BadData:
    return BadData(what, code="ENCODER-CONFIG", file=None if path is None else str(path), fix=fix)


def variant_of(config: dict[str, Any], found: Shapes, *, bare: bool) -> Variant:
    """Which of the published classes: that which the config names, where it has weights of its own, else by weights."""
    classes = config.get("architectures")
    said = [v for v, name in _CLASSES.items() if isinstance(classes, list) and name in classes]
    if said and said[0] in ("rtd", "mlm", "batch"):
        return said[0]
    if "batch_prediction_head.weight" in found:
        return "batch"
    if any(key.startswith("discriminator.") for key in found):
        return "rtd"
    if TIED in found:
        return "mlm"
    return said[0] if said else "bare" if bare else "clustering"


def whole_name(key: str, keys: Collection[str]) -> str:
    """The name of a weight in a whole model: among the keys of a bare network it has no prefix."""
    return key if TOKENS in keys or key.startswith(_HEADS) else f"atacformer.{key}"


def published_config(settings: Settings, universe: Universe, variant: Variant, dtype: str) -> dict[str, Any]:
    """All that the published classes write, and the assembly."""
    ids = special_ids(len(universe))._asdict()
    return {
        "architectures": [_CLASSES[variant]],
        "assembly": universe.assembly.name,
        "bc_unfreeze_last_n_layers": 2,
        **{f"{name}_token_id": ids[name] for name in ("pad", "cls", "eos", "bos", "sep")},
        "dtype": dtype,
        "embedding_dropout": 0.0,
        "grl_alpha": 1.0,
        "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02,
        "lambda_adv": 1.0,
        "model_type": "atacformer",
        "sparse_prediction": True,
        "torch_dtype": dtype,  # its name before transformers 4.56
        "transformers_version": "4.52.4",  # whose form this is
        **asdict(settings),
    }

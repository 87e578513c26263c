"""What an encoder is, the registry of encoders, and the folder that one is saved in.

A folder is in Hugging Face style: `config.json` (the name, the assembly, the settings), `model.safetensors`
(the weights) and `universe.bed.gz` (the regions, in token order). It is the whole identity of an encoder:
its fingerprint is the sha256 of that content.
"""

import hashlib
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from chromseek.data.errors import BadArgument, BadData, NotFound, printable
from chromseek.data.genome import ASSEMBLIES, assembly
from chromseek.data.tokens import TokenSets
from chromseek.data.universe import Universe
from chromseek.encoder.hub import FILES, fetched, is_pickle

Kind = Literal["cell", "region", "bed"]
KINDS: tuple[Kind, ...] = ("cell", "region", "bed")
Arrays = dict[str, NDArray[Any]]


class Encoder(Protocol):
    """A universe and weights; token sets become unit vectors."""

    @property
    def name(self) -> str:
        """The name under which this kind of encoder is registered."""

    @property
    def universe(self) -> Universe:
        """The regions whose tokens it reads."""

    @property
    def dim(self) -> int:
        """The width of its vectors."""

    @property
    def context(self) -> int | None:
        """Tokens of the longest set that it reads whole; None where any set is."""

    def encode(self, sets: TokenSets, kind: Kind) -> NDArray[np.float32]:
        """Turn n token sets of one kind into unit vectors, (n, dim); a set it knows nothing of gives a zero row."""

    def config(self) -> dict[str, Any]:
        """The settings that, with the arrays and the universe, make it again."""

    def arrays(self) -> Arrays:
        """The weights."""

    def on(self, device: str, dtype: str) -> "Encoder":
        """Itself, to encode on this device in this precision from now on; raises BadArgument for one not there."""

    def placed(self, cells: TokenSets, beds: TokenSets, *, seed: int = 0) -> "Encoder":
        """The encoder with its kinds placed by a sample of an atlas; itself where they are placed already."""


# name → "module:class"; the class has `fit(cells, beds, universe, *, dim, seed, device)` and
# `from_parts(config, arrays, universe)`.
ENCODERS = {
    "lsi": "chromseek.encoder.lsi:LSI",
    "bag": "chromseek.encoder.bag:Bag",
    "atacformer": "chromseek.encoder.atacformer:Atacformer",
}


def encoder_class(name: str) -> Any:
    """Look an encoder up by name; its module is imported only now."""
    if name not in ENCODERS:
        raise BadArgument(
            f"unknown encoder {printable(name)}",
            code="ENCODER-NAME",
            got=name,
            fix=f"one of {', '.join(ENCODERS)}, or the folder of a saved encoder",
        )
    module, _, attribute = ENCODERS[name].partition(":")
    return getattr(import_module(module), attribute)


def fingerprint(encoder: Encoder) -> str:
    """sha256 of an encoder's name, settings, universe and weights; files and folders do not enter."""
    digest = hashlib.sha256(json.dumps([encoder.name, encoder.config()], sort_keys=True).encode())
    digest.update(encoder.universe.digest.encode())
    for key, array in sorted(encoder.arrays().items()):
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(encoder: Encoder, folder: Path) -> list[Path]:
    """Write an encoder into an empty folder; return the files."""
    from safetensors.numpy import save as serialised

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in FILES]
    universe = encoder.universe
    described = {
        "model_type": encoder.name,
        "assembly": universe.assembly.name,
        "universe": {"regions": len(universe), "digest": universe.digest},
        "dim": encoder.dim,
        "fingerprint": fingerprint(encoder),
        **encoder.config(),
    }
    files[0].write_text(json.dumps(described, indent=2) + "\n")
    weights = {key: np.ascontiguousarray(array) for key, array in encoder.arrays().items()}
    files[1].write_bytes(serialised(weights))  # save_file would make it readable by its owner alone
    universe.save(files[2])
    return files


def load(folder: str | Path, universe: Universe | None = None, *, device: str = "auto", dtype: str = "auto") -> Encoder:
    """Read an encoder from its folder, to run on a device in a precision (devices.py has their names).

    The folder may also be a published Atacformer checkpoint, or the name of one on the Hugging Face hub.
    `universe` spares reading the regions again where the caller has them. Raises NotFound for a missing
    file, BadData for a pickle, a damaged file, or weights that do not fit the universe, and BadArgument for a
    device that is not there.
    """
    folder = fetched(str(folder))
    paths = {name: folder / name for name in FILES}
    for path in paths.values():
        if not path.is_file():
            raise NotFound(
                f"no {path.name} in {printable(folder)}",
                code="ENCODER-FILE",
                file=str(path),
                fix="an encoder folder holds config.json, model.safetensors and universe.bed.gz",
            )
    if _is_published(paths["config.json"]):
        return _load_published(folder).on(device, dtype)
    config = _read_config(paths["config.json"])
    if universe is None or universe.digest != config["universe"]["digest"]:
        universe = Universe.load(paths["universe.bed.gz"], assembly(config["assembly"]))
    if universe.digest != config["universe"]["digest"]:
        raise BadData(
            "the universe is not the one the weights were made for",
            code="ENCODER-UNIVERSE",
            file=str(paths["universe.bed.gz"]),
            got=f"{len(universe)} regions",
            fix="copy the encoder folder again, whole",
        )
    made = encoder_class(config["model_type"])
    encoder: Encoder = made.from_parts(config, _read_arrays(paths["model.safetensors"]), universe)
    if encoder.dim != config["dim"]:
        raise _bad_config(paths["config.json"], f"it says {config['dim']} dimensions, the weights have {encoder.dim}")
    if config.get("fingerprint") not in (None, fingerprint(encoder)):  # folders of other tools have none
        raise BadData(
            "the weights or settings are not those that were saved",
            code="ENCODER-DAMAGED",
            file=str(folder),
            fix="copy the encoder folder again, whole",
        )
    return encoder.on(device, dtype)


def _is_published(path: Path) -> bool:
    """Whether a config.json is that of a published Atacformer, which says nothing of its universe."""
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "atacformer" and "universe" not in config


def _load_published(folder: Path) -> Encoder:
    from chromseek.encoder.checkpoint import read_published

    read = read_published(folder)
    encoder: Encoder = encoder_class("atacformer").from_parts(asdict(read.settings), read.arrays, read.universe)
    return encoder


def _read_config(path: Path) -> dict[str, Any]:
    """Read the settings. Raises BadData when they are no settings."""
    try:
        config = json.loads(path.read_text())
        fits = [isinstance(config["model_type"], str), config["assembly"] in ASSEMBLIES]
        fits += [isinstance(config["universe"]["digest"], str), isinstance(config["dim"], int)]
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad_config(path, f"not JSON with settings ({printable(error)})") from None
    except KeyError as error:
        raise _bad_config(path, f"lacks {error.args[0]}") from None
    if not all(fits):
        raise _bad_config(path, "model_type, assembly, universe or dim is not what it should be")
    return dict(config)


def _bad_config(path: Path, what: str) -> BadData:
    return BadData(what, code="ENCODER-CONFIG", file=str(path), fix="copy the encoder folder again, whole")


def _read_arrays(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with open(path, "rb") as file:
        head = file.read(16)
    if is_pickle(head):  # code could be in it
        raise BadData(
            "holds a pickle, not safetensors; it was not read",
            code="ENCODER-PICKLE",
            file=str(path),
            fix="convert it to safetensors with the tool that made it",
        )
    try:
        arrays: Arrays = load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise BadData(  # TypeError and the like: numbers of a kind that numpy lacks
            f"not readable as safetensors: {printable(error)}",
            code="ENCODER-WEIGHTS",
            file=str(path),
            fix="copy the encoder folder again",
        ) from None
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadData(
                f"{printable(key)} holds NaN or infinity",
                code="ENCODER-NAN",
                file=str(path),
                fix="train or fetch the encoder again",
            )
    return arrays


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; zero rows stay zero, (n, dim) → (n, dim)."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)
    return scaled


def centred(raw: NDArray[np.float32], means: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Move unit vectors to their kind's mean and scale them to length 1 again; zero rows stay zero."""
    known = raw.any(axis=1, keepdims=True)
    return unit(np.where(known, raw - means[KINDS.index(kind)], 0).astype(np.float32, copy=False))


def require(condition: bool, message: str, fix: str, got: object = None) -> None:
    """Refuse weights that do not fit together."""
    if not condition:
        raise BadData(message, code="ENCODER-SHAPE", got=got, fix=fix)

"""Atacformer checkpoints as they are published: a folder of config, weights and universe is read, or written.

A token is a line of the universe; seven specials follow. Weights come back as float32 under the names of a whole model
(`atacformer.…`, `discriminator.…`, `batch_prediction_head.…`). Nothing is unpickled, and no weight is read before
names, shapes and the universe have been found to fit.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chromseek.data.bed import fitting, guess_file, joined
from chromseek.data.checks import Checker
from chromseek.data.errors import BadArgument, BadData, ChromseekError, NotFound, StorageError, printable
from chromseek.data.genome import ASSEMBLIES, Assembly
from chromseek.data.lines import TextFile
from chromseek.data.rows import read_rows
from chromseek.data.universe import Universe
from chromseek.encoder.atacformer import N_SPECIALS, Settings
from chromseek.encoder.base import Arrays
from chromseek.encoder.checkpoint_layout import (
    AGAIN,
    PLACES,
    TIED,
    TOKENS,
    Variant,
    misfit,
    published_config,
    read_config,
    variant_of,
    whole_name,
)
from chromseek.encoder.hub import FILES, is_pickle

_log = logging.getLogger(__name__)

_MAX_REGIONS = 1 << 28
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint that was read."""

    settings: Settings
    arrays: Arrays  # float32, all that the variant has but the tied `lm_head.weight`
    universe: Universe
    variant: Variant
    left_out: int  # regions on contigs, dropped from the universe and from the token embeddings


def read_published(folder: str | Path, assembly: Assembly | None = None) -> Published:
    """Read a folder in the published layout; the assembly is guessed from the regions unless it is given.

    Raises NotFound for a missing file, BadData for a pickle, a damaged file, or settings, weights and universe that do
    not fit one another.
    """
    folder = Path(folder)
    config, settings = read_config(_file(folder, "config.json"))
    assembly = assembly or _named_assembly(config)
    path = _file(folder, "model.safetensors")
    with _opened(path) as file:
        stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        names = {whole_name(key, stored): key for key in stored}
        shapes = {name: tuple(stored[key].get_shape()) for name, key in names.items()}
        _check_dtypes(path, {name: stored[key].get_dtype() for name, key in names.items()})
        variant = variant_of(config, shapes, bare=TOKENS not in stored)
        fault = misfit(shapes, settings, variant)
        if fault:
            raise BadData(fault, code="ENCODER-SHAPE", file=str(path), fix=AGAIN)
        universe, kept, n_lines = _read_universe(_file(folder, "universe.bed.gz"), assembly)
        if n_lines + N_SPECIALS != settings.vocab_size:
            raise BadData(
                f"{n_lines:,} regions, but the weights are of {settings.vocab_size - N_SPECIALS:,}",
                code="ENCODER-UNIVERSE",
                file=str(folder / "universe.bed.gz"),
                got=n_lines,
                fix="put the universe there with which the weights were trained",
            )
        arrays = {name: _array(file, key, path) for name, key in names.items() if name != TIED}
    arrays.setdefault(PLACES, np.zeros((settings.max_position_embeddings, settings.hidden_size), np.float32))
    left_out = n_lines - len(universe)
    if left_out:
        _log.warning("%d of %d regions of %s lie on contigs: left out", left_out, n_lines, printable(folder))
        rows = np.concatenate([kept, n_lines + np.arange(N_SPECIALS)])
        arrays[TOKENS] = arrays[TOKENS][rows]
        settings = replace(settings, vocab_size=len(rows))
    return Published(settings, arrays, universe, variant, left_out)


def write_published(
    folder: str | Path,
    settings: Settings,
    arrays: Arrays,
    universe: Universe,
    *,
    variant: Variant,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> list[Path]:
    """Write a folder that geniml's classes load; return the files. Arrays of ours (`chromseek.…`) are left out.

    Raises BadData for arrays that do not fit, BadArgument for an unknown variant or dtype, StorageError where the
    folder holds a file already, or cannot be written.
    """
    for what, got, known in (("variant", variant, get_args(Variant)), ("dtype", dtype, ("float32", "bfloat16"))):
        if got not in known:
            message = f"unknown {what} {printable(got)}"
            raise BadArgument(message, code="ENCODER-WRITE", got=got, fix=f"one of {', '.join(known)}")
    weights = {key: array for key, array in arrays.items() if not key.startswith("chromseek.") and key != TIED}
    fault = misfit({key: array.shape for key, array in weights.items()}, settings, variant)
    if len(universe) + N_SPECIALS != settings.vocab_size:
        fault = f"the universe has {len(universe):,} regions, the weights {settings.vocab_size - N_SPECIALS:,}"
    if fault:
        raise BadData(fault, code="ENCODER-SHAPE", fix="give the weights, settings and universe of one network")
    tensors = {key: torch.from_numpy(np.require(array, np.float32, ["C", "W"])) for key, array in weights.items()}
    for key, tensor in tensors.items():
        _check_finite(key, tensor, None)
    if variant == "bare":
        tensors = {key.removeprefix("atacformer."): tensor for key, tensor in tensors.items()}
    files = [Path(folder) / name for name in FILES]
    try:
        _make_empty(Path(folder))
        universe.save(files[2])
        save_file({k: t.to(getattr(torch, dtype)) for k, t in tensors.items()}, files[1], metadata={"format": "pt"})
        shutil.copymode(files[2], files[1])  # it was made readable by its owner alone
        described = published_config(settings, universe, variant, dtype)
        files[0].write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")  # last: now the folder is whole
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write the checkpoint: {printable(error)}",
            code="ENCODER-WRITE",
            file=str(folder),
            fix="make room there, or choose another folder",
        ) from error
    return files


def _file(folder: Path, name: str) -> Path:
    """One of the three files. Raises NotFound, or BadData where pickled or sharded weights lie in its place."""
    path = folder / name
    if path.is_file():
        return path
    if name == "model.safetensors":
        others = [*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]
        if others:
            raise _pickle(others[0])
        if (folder / "model.safetensors.index.json").exists():
            message = "the weights are in several files (shards), which are not read"
            fix = "save them in one file: save_pretrained(..., max_shard_size='100GB')"
            raise BadData(message, code="ENCODER-SHARDS", file=str(folder / "model.safetensors.index.json"), fix=fix)
    raise NotFound(
        f"no {name} in {printable(folder)}",
        code="ENCODER-FILE",
        file=str(path),
        fix=f"a published checkpoint holds {', '.join(FILES)}",
    )


def _pickle(path: Path) -> BadData:
    return BadData(
        "holds a pickle, not safetensors; it was not read",
        code="ENCODER-PICKLE",
        file=str(path),
        fix="convert it to model.safetensors with the tool that made it",
    )


def _named_assembly(config: dict[str, Any]) -> Assembly | None:
    """The assembly that the config names, as ours do."""
    name = config.get("assembly")
    return ASSEMBLIES.get(name) if isinstance(name, str) else None


def _opened(path: Path) -> Any:
    """The safetensors file, mapped; only its header is read. Raises BadData for a pickle or a damaged file."""
    with open(path, "rb") as raw:
        if is_pickle(raw.read(16)) or path.stat().st_size == 0:
            raise _pickle(path) if path.stat().st_size else _unreadable(path, "the file is empty")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: object) -> BadData:
    message = f"not readable as safetensors: {printable(error)}"
    return BadData(message, code="ENCODER-WEIGHTS", file=str(path), fix=AGAIN)


def _check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    strange = next((key for key, dtype in dtypes.items() if dtype not in _DTYPES), None)
    if strange is not None:
        message = f"{printable(strange)} holds numbers of the kind {dtypes[strange]}, not one of {', '.join(_DTYPES)}"
        raise BadData(message, code="ENCODER-WEIGHTS", file=str(path), fix="fetch it in float32 or bfloat16")


def _read_universe(path: Path, assembly: Assembly | None) -> tuple[Universe, NDArray[np.int64], int]:
    """The regions on chromosomes in the order of lines, which lines they are (n), and how many lines there are.

    Raises BadData for lines that are no regions of the assembly or come twice, and where the assembly cannot be told.
    """
    parts, kept = [], []
    try:
        assembly = assembly or _guessed(path)
        with Checker(str(path), assembly, rename_chroms=None, on_bad_line="error") as checker:
            for block in TextFile(path).blocks():
                seen = checker.n_lines
                rows = read_rows(block, 3, header=seen == 0)
                regions, good = checker.check(rows)
                parts.append(regions)
                kept.append(seen + np.arange(len(rows.places))[good])
            checker.finish()
        universe = Universe(joined(assembly, parts))
    except ChromseekError as error:
        raise BadData(
            error.message,
            code="ENCODER-UNIVERSE",
            file=str(path),
            line=error.line,
            got=error.got,
            fix="fetch the universe again, or name its assembly",
        ) from error
    return universe, np.concatenate(kept), checker.n_lines


def _guessed(path: Path) -> Assembly:
    """The assembly that fits; hg38, for which weights are published, where it is one of several."""
    guess = guess_file(path, _MAX_REGIONS)
    if guess.name is None and guess.evidence["hg38"] == "fits":
        return ASSEMBLIES["hg38"]
    return fitting(str(path), guess)


def _array(file: Any, key: str, path: Path) -> NDArray[np.float32]:
    """One weight, in memory of its own. Raises BadData when it holds what is no number."""
    try:
        tensor = file.get_tensor(key).to(torch.float32, copy=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    _check_finite(key, tensor, path)
    array: NDArray[np.float32] = tensor.numpy()
    return array


def _check_finite(key: str, tensor: torch.Tensor, path: Path | None) -> None:
    if not torch.stack(torch.aminmax(tensor)).isfinite().all():  # both pass NaN on, and need no memory
        message = f"{printable(key)} holds NaN or infinity"
        file = None if path is None else str(path)
        raise BadData(message, code="ENCODER-NAN", file=file, fix="train or fetch the weights again")


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    there = next(folder.iterdir(), None)
    if there is not None:
        raise StorageError(
            f"the folder is not empty: it holds {printable(there.name)}",
            code="ENCODER-EXISTS",
            file=str(folder),
            fix="choose a new folder",
            exit_code=73,
        )

"""Devices and precisions: where an encoder runs, and the names by which people choose."""

import torch

from chromseek.data.errors import BadArgument, printable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device_named(name: str) -> torch.device:
    """The device of this name; `auto` is a GPU where there is one.

    Raises BadArgument for a GPU that is not there.

    >>> device_named("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not (name.partition(":")[0] == "cuda" and name[5:].isdecimal() | (name == "cuda")):
        raise BadArgument(
            f"unknown device {printable(name)}", code="DEVICE-NAME", got=name, fix="auto, cpu, cuda or cuda:0"
        )
    device = torch.device(name)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise BadArgument(
            f"device {name} was asked for, but torch finds {there or 'no'} GPU{'s' * (there > 1)}",
            code="DEVICE-ABSENT",
            got=name,
            fix="use --device cpu, or install the CUDA build of torch on a machine with a GPU",
        )
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The precision of this name; `auto` is bfloat16 on a GPU and float32 on a CPU.

    >>> dtype_named("auto", torch.device("cpu"))
    torch.float32
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise BadArgument(
            f"unknown precision {printable(name)}", code="DTYPE-NAME", got=name, fix="auto, float32 or bfloat16"
        )
    return DTYPES[name]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine ran out of memory."""
    said = str(error)
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or any(words in said for words in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))

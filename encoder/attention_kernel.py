"""A kernel for attention on CPUs with AVX-512, built on first use into the user's cache.

There PyTorch's own kernel spends half of its time on packing heads that are only 16-32 numbers wide; `attention.cpp`
takes a half (bfloat16) to three quarters (float32) of its time and rounds no worse. Where there is no C++ compiler, or
the processor is another, there is no kernel, and PyTorch's answers.
"""

import ctypes
import hashlib
import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = ("-O3", "-march=x86-64-v4", "-shared", "-fPIC", "-std=c++17")
BUILD_SECONDS = 120
WIDTHS = range(8, 33, 8)  # of a head: what the kernel was measured at
Kernel = Callable[..., None]


def kernel_for(qkv: Tensor) -> Kernel | None:
    """The built kernel for packed (tokens, 3, heads, width), or None where PyTorch's is to be used."""
    plain = qkv.device.type == "cpu" and not (torch.is_grad_enabled() and qkv.requires_grad)
    if not plain or qkv.shape[3] not in WIDTHS or qkv.dtype not in (torch.float32, torch.bfloat16):
        return None
    return _kernel(qkv.shape[3], qkv.dtype == torch.bfloat16)


def run_kernel(kernel: Kernel, qkv: Tensor, sizes: Sequence[int]) -> Tensor:
    """Attention of every set by a built kernel: (tokens, 3, heads, width) → (tokens, heads, width)."""
    qkv = qkv.contiguous()
    heads, width = qkv.shape[2:]
    out = torch.empty_like(qkv[:, 0])
    scale = math.log2(math.e) / math.sqrt(width)
    bounds = np.concatenate([[0], np.cumsum(sizes)])

    def run(job: tuple[int, int, int, int]) -> None:
        first, last, head, stop = job
        part = np.ascontiguousarray(sizes[first:last], dtype=np.int64)
        room = np.empty(2 * width * (int(part.max()) + 8), np.float32)
        start = int(bounds[first])
        at = [tensor.data_ptr() + start * tensor.stride(0) * tensor.element_size() for tensor in (qkv, out)]
        kernel(*at, part.ctypes.data, len(part), heads, head, stop, scale, room.ctypes.data)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, _jobs(sizes, heads, 8 * threads)))
    return out


def _jobs(sizes: Sequence[int], heads: int, parts: int) -> list[tuple[int, int, int, int]]:
    """Cut the work into about `parts` jobs (first set, last, first head, last): long sets by the head."""
    work = np.square(np.asarray(sizes, dtype=np.int64)) + 1
    share = int(work.sum()) // parts + 1
    jobs, first, filled = [], 0, 0
    for row, size in enumerate(work.tolist()):
        if filled and filled + size > share:
            jobs.append((first, row, 0, heads))
            first, filled = row, 0
        if size > share:
            jobs += [(row, row + 1, head, head + 1) for head in range(heads)]
            first = row + 1
        else:
            filled += size
    return jobs + ([(first, len(work), 0, heads)] if first < len(work) else [])


@lru_cache
def _kernel(width: int, half: bool) -> Kernel | None:
    """Build the kernel, or take the one built before."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    able = torch.backends.cpu.get_cpu_capability() == "AVX512" and (not half or _has_bfloat16())
    if not able or compiler is None:
        return None
    flags = [*FLAGS, f"-DWIDTH={width}", "-mavx512bf16" if half else "-DFLOAT32"]
    try:
        attend = ctypes.CDLL(str(_built(compiler, flags))).attend
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: the user has no home
        _log.info("attention goes on without its kernel: %s", error)
        return None
    attend.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4, ctypes.c_float, ctypes.c_void_p]
    attend.restype = None
    return attend


def _built(compiler: str, flags: list[str]) -> Path:
    """The library of these flags in the user's cache, built if it is not there."""
    name = hashlib.sha256(" ".join([compiler, *flags]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = (given if given.is_absolute() else Path.home() / ".cache") / "chromseek"
    library = cache / f"attention-{name}.so"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            built = Path(scratch) / "attention.so"
            command = [compiler, *flags, str(SOURCE), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
            built.replace(library)
    for path in (cache, library):  # code is loaded from here: nobody else may have written it
        if path.stat().st_uid != os.geteuid() or path.stat().st_mode & 0o022:
            raise PermissionError(f"{path} belongs to another user, or others may write it")
    return library


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())

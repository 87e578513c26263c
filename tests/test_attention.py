"""Packed attention against plain softmax, set by set, with the kernel and without."""

import numpy as np
import pytest
import torch

from chromseek.encoder import attention_kernel
from chromseek.encoder.attention import attend, runs
from chromseek.encoder.attention_kernel import kernel_for

SIZES = [7, 1, 0, 130, 64, 65, 600, 601, 2, 8, 9, 0]
WITHIN = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def plain(qkv: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Softmax attention, one set after the other, in float64."""
    parts, start = [], 0
    for size in sizes:
        q, k, v = qkv[start : start + size].double().permute(1, 2, 0, 3)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        parts.append((weights @ v).transpose(0, 1))
        start += size
    return torch.cat(parts)


def drawn(width: int, dtype: torch.dtype, times: float = 1.5) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(sum(SIZES), 3, 4, width) * times).to(dtype)


@pytest.mark.parametrize("width", [8, 16, 24, 32])
@pytest.mark.parametrize("dtype", WITHIN)
def test_kernel_is_softmax_attention(width: int, dtype: torch.dtype) -> None:
    qkv = drawn(width, dtype)
    if kernel_for(qkv) is None:
        pytest.skip("no kernel: no C++ compiler, or no AVX-512")
    assert (attend(qkv, SIZES) - plain(qkv, SIZES)).abs().max() < WITHIN[dtype] * qkv.abs().max()


def test_kernel_stands_large_scores() -> None:
    qkv = drawn(24, torch.float32, times=30.0)
    if kernel_for(qkv) is None:
        pytest.skip("no kernel: no C++ compiler, or no AVX-512")
    found = attend(qkv, SIZES)
    assert torch.isfinite(found).all()
    assert (found - plain(qkv, SIZES)).abs().max() < 1e-3 * qkv.abs().max()


@pytest.mark.parametrize("dtype", WITHIN)
def test_without_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    attention_kernel._kernel.cache_clear()
    qkv = drawn(24, dtype)
    try:
        assert kernel_for(qkv) is None
        assert (attend(qkv, SIZES) - plain(qkv, SIZES)).abs().max() < WITHIN[dtype] * qkv.abs().max()
    finally:
        attention_kernel._kernel.cache_clear()


def test_gradients_never_take_the_kernel() -> None:
    qkv = drawn(24, torch.float32).requires_grad_()
    assert kernel_for(qkv) is None
    attend(qkv, SIZES).square().sum().backward()
    mine = qkv.grad
    other = qkv.detach().double().requires_grad_()
    plain(other, SIZES).square().sum().backward()
    assert mine is not None
    assert other.grad is not None
    assert (mine - other.grad).abs().max() < 1e-4 * other.grad.abs().max()


def test_many_sets_fall_into_jobs_once() -> None:
    sizes = np.random.default_rng(0).integers(0, 400, 300).tolist()
    jobs = attention_kernel._jobs(sizes, 4, 16)
    done = np.zeros((len(sizes), 4), int)
    for first, last, head, stop in jobs:
        done[first:last, head:stop] += 1
    assert (done == 1).all()


def test_runs_leave_nothing_out() -> None:
    assert sum(runs(SIZES), []) == [size for size in SIZES if size]  # noqa: RUF017

"""Attention and means over packed sets: a token looks at those of its own set, and no work is done on padding."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chromseek.encoder.attention_kernel import kernel_for, run_kernel

ALONE = 512  # tokens; longer sets attend one by one, shorter ones of like size are padded together


def attend(qkv: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scaled dot-product attention within sets, one after the other: (T, 3, heads, width) → (T, heads, width)."""
    kernel = kernel_for(qkv)
    if kernel is not None:
        return run_kernel(kernel, qkv, sizes)
    parts, start = [qkv[:0, 0]], 0
    for run in runs(sizes):
        stop = start + sum(run)
        parts.append(_attend(qkv[start:stop], run))
        start = stop
    return torch.cat(parts)


def _attend(qkv: Tensor, sizes: Sequence[int]) -> Tensor:
    """Attention of a run of sets: (t, 3, heads, width) → (t, heads, width)."""
    n, longest = len(sizes), max(sizes)
    if len(set(sizes)) == 1:
        q, k, v = qkv.view(n, longest, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(len(qkv), *qkv.shape[2:])
    there = torch.arange(longest, device=qkv.device) < torch.tensor(sizes, device=qkv.device)[:, None]
    padded = qkv.new_zeros(n, longest, *qkv.shape[1:])
    padded[there] = qkv
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None, :])
    return out.transpose(1, 2)[there]


def runs(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut consecutive sets into runs that attend together: equal sizes, or short ones within 1/8 of the longest.

    >>> [*runs([600, 600, 601, 80, 75, 20, 0])]
    [[600, 600], [601], [80, 75], [20]]
    """
    run: list[int] = []
    for size in filter(None, sizes):
        least, most = min([*run, size]), max([*run, size])
        alike = least == most or (most < ALONE and 8 * least >= 7 * most)
        if run and not alike:
            yield run
            run = []
        run.append(size)
    if run:
        yield run


def pool(hidden: Tensor, sizes: Sequence[int]) -> Tensor:
    """The mean of each set's contextual vectors, in float32: (T, hidden) → (sets, hidden); zeros for an empty set."""
    counts = torch.tensor(sizes, device=hidden.device)
    owners = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
    sums = torch.zeros(len(counts), hidden.shape[1], device=hidden.device).index_add(0, owners, hidden.float())
    return sums / counts.clamp(min=1)[:, None]

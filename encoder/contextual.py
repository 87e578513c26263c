"""Vectors of regions in their context: what a region is like among the regions that are open beside it."""

import numpy as np
import torch
from numpy.typing import NDArray

from chromseek.data.tokens import TokenSets
from chromseek.encoder.atacformer import Atacformer, RegionVectors
from chromseek.encoder.packing import batches, shortened

CELLS = 5_000  # of a sample, at most
BATCH_TOKENS = 32_768
RIDGE = 1e-3  # of the mean square of a dimension


def region_vectors(
    encoder: Atacformer, sets: TokenSets, how: RegionVectors, *, seed: int = 0
) -> NDArray[np.float16] | None:
    """The table of region vectors, (regions, dim); None where each region is to be read as a set of one."""
    if how == "alone":
        return None
    if how == "static":
        static: NDArray[np.float16] = _static(encoder).half().numpy()
        return static
    return contextual_regions(encoder, sets, seed=seed)


def contextual_regions(encoder: Atacformer, cells: TokenSets, *, seed: int = 0) -> NDArray[np.float16]:
    """The mean contextual vector of each region over a sample of the cells that have it open, (regions, dim).

    Regions that none of them has get the linear map of their static vectors that fits the other regions best.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(cells.sizes))[:CELLS]
    sample = shortened(cells.take(np.sort(rows)), encoder.context)
    sums = torch.zeros(len(encoder.universe), encoder.dim)
    for batch in batches(sample.sizes, BATCH_TOKENS):
        sets = sample.take(batch)
        sums.index_add_(0, torch.from_numpy(sets.tokens), encoder.contextual(sets.tokens, sets.sizes.tolist()))
    counts = torch.from_numpy(np.bincount(sample.tokens, minlength=len(sums)))
    means = sums / counts.clamp(min=1)[:, None]
    static = _static(encoder)
    inputs = torch.cat([static, torch.ones(len(static), 1)], dim=1)
    seen = counts > 0
    squares = inputs[seen].T @ inputs[seen]
    squares += RIDGE * squares.diagonal().mean() * torch.eye(len(squares))
    means[~seen] = inputs[~seen] @ torch.linalg.solve(squares, inputs[seen].T @ means[seen])
    found: NDArray[np.float16] = means.half().numpy()
    return found


def _static(encoder: Atacformer) -> torch.Tensor:
    weights = encoder.network.embeddings.token_embeddings.weight.detach()
    return weights[: len(encoder.universe)].cpu().float()

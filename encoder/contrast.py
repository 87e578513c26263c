"""Supervised contrast: sets of a label should be the nearest of each other."""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1


def supervised_contrast(units: Tensor, codes: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The loss of unit vectors (n, dim) with labels (n): the mean over rows that have a like one (Khosla et al. 2020).

    Rows that are alone with their label count only as others.
    """
    itself = torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    scores = (units @ units.T / temperature).masked_fill(itself, -1e9)
    alike = (codes[:, None] == codes) & ~itself
    shares = scores - scores.logsumexp(dim=1, keepdim=True)
    n_alike = alike.sum(dim=1)
    means = torch.where(alike, shares, 0).sum(dim=1) / n_alike.clamp(min=1)
    return -means[n_alike > 0].sum() / (n_alike > 0).sum().clamp(min=1)


def seen_from_mean(vectors: Tensor) -> Tensor:
    """Unit vectors from the mean direction of a batch, as an encoder gives them: (n, dim) → (n, dim)."""
    units = F.normalize(vectors.float(), dim=1)
    return F.normalize(units - units.mean(dim=0), dim=1)

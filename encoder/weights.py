"""Weights: what was read from a file goes into the module that it was written from."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chromseek.data.errors import printable
from chromseek.encoder.base import Arrays, require

AGAIN = "copy the encoder folder again, whole"


def fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module that has no memory yet its weights."""
    expected = module.state_dict()
    require(set(expected) == set(weights), "weights lack or add keys", AGAIN, sorted(set(expected) ^ set(weights))[:5])
    for key, tensor in weights.items():
        require(tensor.shape == expected[key].shape, f"{key} has another shape", AGAIN, tuple(tensor.shape))
    module.load_state_dict(weights, assign=True)


def head_of(config: dict[str, Any], arrays: Arrays, width: int) -> tuple[nn.Linear | None, list[str]]:
    """The head that names labels and what it names; none where no labels were learnt."""
    classes = config.get("classes", [])
    named = isinstance(classes, list) and all(isinstance(one, str) for one in classes)
    require(named, "classes must be a list of names", AGAIN, printable(classes))
    if not classes:
        return None, []
    head = nn.Linear(width, len(classes))
    given = {key: arrays.get(f"chromseek.head.{key}", np.empty(0)) for key in ("weight", "bias")}
    fill(head, {key: torch.from_numpy(array) for key, array in given.items()})
    return head, classes

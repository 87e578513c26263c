"""Weights: what was read from a file goes into the module that it was written from."""

from torch import Tensor, nn

from chromseek.encoder.base import require

AGAIN = "copy the encoder folder again, whole"


def fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module that has no memory yet its weights."""
    expected = module.state_dict()
    require(set(expected) == set(weights), "weights lack or add keys", AGAIN, sorted(set(expected) ^ set(weights))[:5])
    for key, tensor in weights.items():
        require(tensor.shape == expected[key].shape, f"{key} has another shape", AGAIN, tuple(tensor.shape))
    module.load_state_dict(weights, assign=True)

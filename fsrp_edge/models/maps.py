"""What layers read and put out, as maps."""

from typing import Any

from torch import Tensor, nn


def as_maps(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as maps (N, C, H, W).

    A linear layer's features are its last axis, the axes between it and the first are places: (N, F) becomes maps of
    1×1, (N, L, F) of 1×L, (N, H, W, F) of H×W. A 1-D convolution's (N, C, L) becomes maps of 1×L.
    """
    maps = output.movedim(-1, 1) if isinstance(layer, nn.Linear) else output
    while maps.dim() < 4:
        maps = maps.unsqueeze(2)
    return maps


def first_argument(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a module is called with, as a hook is given it: by position, or by name as in `layer(input=maps)`."""
    return next(iter((*arguments, *named.values())))

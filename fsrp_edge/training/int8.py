"""Fine-tuning while weights and activations are rounded as in int8 files (Jacob et al., arXiv 1712.05877).

Nothing of it stays in the network but weights that stand the rounding: files are calibrated and quantized as always.
Batch norm need not be folded first, as exporters fold it: weights are rounded per channel, and what scales a channel
scales its steps alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from fsrp_edge.models.maps import first_argument
from fsrp_edge.targets.profile import WeightBits

TINY = torch.finfo(torch.float32).tiny


class RoundedWeight(nn.Module):
    """Symmetric int8 per output channel; gradients pass as if nothing were rounded.

    Args:
        most: the integer that the largest weight of a channel becomes.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, weight: Tensor) -> Tensor:
        """A weight (outputs, …) rounded to `most` steps a channel on either side of 0."""
        scale = (weight.detach().flatten(1).abs().amax(1) / self.most).clamp(min=TINY)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -self.most, self.most)


def rounded_activation(values: Tensor) -> Tensor:
    """Activations of any shape rounded to 256 steps between the batch's smallest and largest; 0 is one of them."""
    low, high = (extreme.float() for extreme in values.detach().aminmax())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=TINY)
    zero_point = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, 255).to(values.dtype)


@contextmanager
def rounded_to_int8(network: nn.Module, weight_bits: WeightBits = 8) -> Iterator[None]:
    """Round the weights and inputs of all convolutions and linear layers inside the block.

    Layers that compute their weight from other tensors (a parametrization, or the hook of an old weight norm) are left
    as they are. Batch norm keeps its statistics there, also in training mode: files have nothing else.

    Args:
        network: it is changed inside the block only.
        weight_bits: how many of the weights' 8 bits the files use, but for depthwise convolutions.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "weight" in module._parameters
    ]
    hooks = [network.register_forward_pre_hook(lambda module, _: _keep_statistics(module))]
    for layer in layers:
        most = 64 if weight_bits == 7 and not _is_depthwise(layer) else 127
        parametrize.register_parametrization(layer, "weight", RoundedWeight(most))
        hooks.append(layer.register_forward_pre_hook(_round_what_is_read, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _is_depthwise(layer: nn.Conv2d | nn.Linear) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.weight.shape[1] == 1


def _round_what_is_read(
    _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Tensor], dict[str, Any]]:
    return (rounded_activation(first_argument(arguments, named)),), {}


def _keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

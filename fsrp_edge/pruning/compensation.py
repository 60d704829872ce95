"""What removed channels carried, folded into the weights of the layers that read them.

By least squares over images: each removed channel is replaced by the linear mixture of the remaining ones that comes
closest to it, and that mixture goes into the next layer's weights, at no cost when the network runs. In the manner of
channel pruning by reconstruction (He et al., arXiv 1707.06168; ThiNet, arXiv 1707.06342), from the covariance of what
the dense network's layers read, so that one pass over the images serves all layers.
"""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from fsrp_edge.models.channel_graph import Convolution, find_layer
from fsrp_edge.scoring.moments import InputMoments

RIDGE = 1e-3
"""Of the mean square: channels that hardly vary or repeat one another would get huge weights of opposite signs."""


def compensate(
    network: nn.Module, removed: Mapping[str, Collection[int]], moments: Mapping[str, InputMoments]
) -> None:
    """Change the weights of layers in place so that they need the channels that they will lose as little as possible.

    Grouped convolutions, and layers of which nothing is known, stay as they are.

    Args:
        network: not smaller yet.
        removed: input channels that each layer will lose, by its name.
        moments: of the dense network's layers.
    """
    for name, gone in removed.items():
        layer = find_layer(network, name)
        if (
            name in moments
            and getattr(layer, "groups", 1) == 1
            and isinstance(layer, nn.Linear | Convolution)
        ):
            _fold(layer, sorted(gone), moments[name])


def _fold(layer: nn.Linear | Convolution, removed: list[int], moments: InputMoments) -> None:
    device = moments.mean.device
    gone = torch.tensor(removed, device=device)
    lost = set(removed)
    stay = torch.tensor([c for c in range(len(moments.mean)) if c not in lost], device=device)
    known = moments.covariance[stay[:, None], stay]
    squares = known.diagonal() + moments.mean[stay].square()
    ridge = RIDGE * squares.mean().clamp_min(torch.finfo(known.dtype).tiny)
    mixture = torch.linalg.solve(
        known + ridge * torch.eye(len(stay), dtype=known.dtype, device=device),
        moments.covariance[stay[:, None], gone],
    )  # (stay, gone)
    with torch.no_grad():
        weight = layer.weight.double().to(device)
        by_input = weight if getattr(layer, "transposed", False) else weight.transpose(0, 1)
        missing = by_input[gone]
        by_input[stay] += torch.einsum("sg,g...->s...", mixture, missing)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            constant = moments.mean[gone] - moments.mean[stay] @ mixture
            at_every_place = missing.reshape(*missing.shape[:2], -1).sum(dim=2)  # but at a padded border
            layer.bias += (constant @ at_every_place).to(layer.bias)

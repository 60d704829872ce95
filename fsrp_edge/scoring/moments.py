"""Second moments of what layers read: how far some channels can stand in for others, by least squares."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsrp_edge import compute, distributed
from fsrp_edge.models.channel_graph import ChannelGroup
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import as_maps, first_argument
from fsrp_edge.scoring.fourier import extent, low_coefficients

MOST_CHANNELS = 4096
"""That a layer is read with: the matrix of a linear layer behind large maps would take gigabytes."""


@dataclass(frozen=True)
class InputMoments:
    """Of one layer's input channels, over images and places.

    Args:
        covariance: (C, C) float64, a place; of the low frequencies.
        size: (height, width) of the largest maps.
    """

    covariance: Tensor
    size: tuple[int, int]


class _Sums:
    """Of a layer's inputs about their mean in the first batch: about 0 they would drown what hardly varies."""

    def __init__(self, first: Tensor) -> None:
        self.channels, self.places, self.size = first.shape[1], 0, (0, 0)
        self.origin = first.mean(dim=(0, 2, 3), dtype=torch.float64)
        self.total = torch.zeros_like(self.origin)
        self.products = torch.outer(self.total, self.total)

    def add(self, maps: Tensor, radius: float) -> None:
        """Maps (N, C, H, W), of which the low frequencies count, by orthonormal coefficients."""
        maps = maps.float() - self.origin.float()[:, None, None]
        values = low_coefficients(maps, radius).transpose(0, 1).flatten(1)
        self.products += (values @ values.T).double()
        self.total += maps.sum(dim=(0, 2, 3), dtype=torch.float64)
        self.places += maps.numel() // self.channels
        self.size = max(self.size, (maps.shape[2], maps.shape[3]), key=extent)

    def moments(self) -> InputMoments:
        """Those of all processes, each of which has an origin of its own."""
        places = self.total.new_tensor(float(self.places))
        cross = torch.outer(self.origin, self.total)
        products = self.products + cross + cross.T + places * torch.outer(self.origin, self.origin)
        total = self.total + places * self.origin
        for sum_ in (total, products, places):
            distributed.sum_over_processes(sum_)
        mean = total / places
        return InputMoments(products / places - torch.outer(mean, mean), self.size)


def read_input_moments(
    classifier: Classifier, batches: Iterable[Tensor], layers: Collection[str], *, radius: float
) -> dict[str, InputMoments]:
    """Run images through a network and sum up what its layers read.

    What the network runs while a batch is made is read, too: the steps of an attack are more samples of what it sees,
    at no further pass. A layer that is not called as a module, or has more than MOST_CHANNELS input features, is left
    out.

    Args:
        classifier: in evaluation mode, on the device to compute on.
        batches: pixels (N, C, H, W) in [0, 1], on that device.
        layers: names of convolutions and linear layers.
        radius: of the low frequencies that the covariance counts; √2 counts all.
    """
    sums: dict[str, _Sums] = {}

    def read(name: str, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        maps = as_maps(layer, first_argument(arguments, named).detach())
        if maps.shape[1] > MOST_CHANNELS:
            return
        with torch.autocast(maps.device.type, enabled=False):  # products in bfloat16 are no covariance
            if name not in sums:
                sums[name] = _Sums(maps)
            sums[name].add(maps, radius)

    read_by = {name: classifier.network.get_submodule(name) for name in layers}
    hooks = (layer.register_forward_pre_hook(partial(read, name), with_kwargs=True) for name, layer in read_by.items())
    with compute.hooked(hooks):
        for pixels in batches:
            with torch.no_grad():
                classifier(pixels)
    return {name: sums[name].moments() for name in sorted(sums)}


def readers(groups: Iterable[ChannelGroup]) -> list[str]:
    """Names of the layers that take channels of these groups as input."""
    return sorted({part.layer for group in groups for part in group.slices if part.side == "input"})


def by_position(channels: Collection[int], roots: Collection[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs of a layer's channels and the group's channels they go with, once for each time a group's channel occurs.

    A linear layer behind H x W maps reads every channel of the group H W times.
    """
    positions: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    seen: dict[int, int] = defaultdict(int)
    for channel, root in zip(channels, roots, strict=True):
        mine, theirs = positions[seen[root]]
        mine.append(channel)
        theirs.append(root)
        seen[root] += 1
    return list(positions.values())

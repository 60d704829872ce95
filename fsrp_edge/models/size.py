"""How large a network is: channels, parameters, multiply-accumulate operations."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.records import Record


class Size(Record):
    """Totals of one network.

    `channels` are output channels of convolutions; `macs` counts convolutions and matrix products for one image, as
    torch's FlopCounterMode does (half its FLOPs), without batch norm and element-wise work.
    """

    channels: int
    parameters: int
    macs: int


def macs_by_layer(classifier: Classifier) -> dict[str, int]:
    """MACs of one image for every module of the network that has any, by name; the whole network is `""`."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), attackable(classifier), compute.attention_step_by_step(), counter:
        classifier(classifier.example_pixels())
    prefix = f"{type(classifier).__name__}.network"
    # The counter has the last of a module's names where it has several, everything else the first.
    names = {module: name for name, module in classifier.network.named_modules()}
    return {
        names[classifier.network.get_submodule(name.removeprefix(prefix).removeprefix("."))]: sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }


def measure_size(classifier: Classifier) -> Size:
    """Count channels, parameters and MACs."""
    convolutions = (m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    return Size(
        channels=sum(convolution.out_channels for convolution in convolutions),
        parameters=sum(parameter.numel() for parameter in classifier.network.parameters()),
        macs=macs_by_layer(classifier)[""],
    )

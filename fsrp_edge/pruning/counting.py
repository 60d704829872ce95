"""Channels, parameters and MACs of a network as a plan would leave it, counted without pruning it."""

from collections.abc import Mapping, Sequence

from torch import nn

from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, Side, find_layer
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import Size, macs_by_layer, measure_size
from fsrp_edge.pruning.surgery import removed_channels


class SizeCounter:
    """Counts exactly what `models.size.measure_size` would find after the surgery.

    A layer's MACs are its weights times the places where they are used, and places do not change, so MACs fall with
    the weights.

    Args:
        classifier: the dense network; run once.
        groups: its channel groups.
    """

    def __init__(self, classifier: Classifier, groups: Sequence[ChannelGroup]) -> None:
        self.dense = measure_size(classifier)
        self._groups = groups
        self._macs = macs_by_layer(classifier)
        self._network = classifier.network

    def size(self, kept: Mapping[str, Sequence[int]]) -> Size:
        """Totals when the channels `kept` stay, by the group's root; groups that are not named stay whole."""
        lost: dict[str, dict[Side, int]] = {}
        for (name, side), gone in removed_channels(self._groups, kept).items():
            lost.setdefault(name, {})[side] = len(gone)
        channels, parameters, macs = self.dense.channels, self.dense.parameters, self.dense.macs
        for name, sides in lost.items():
            layer = find_layer(self._network, name)
            outputs = sides.get("output", 0) + sides.get("both", 0)
            if layer is None:
                bare = self._network.get_parameter(name)
                parameters -= outputs * bare.numel() // max(bare.shape)
            elif isinstance(layer, Convolution | nn.Linear):
                weights, left = layer.weight.numel(), _weights_left(layer, sides)
                parameters -= weights - left + (outputs if layer.bias is not None else 0)
                before = self._macs.get(name, 0)
                macs -= before - before * left // weights
                channels -= outputs if isinstance(layer, nn.Conv2d) else 0
            else:
                parameters -= outputs * sum(own.numel() > 1 for own in layer.parameters())
        return Size(channels=channels, parameters=parameters, macs=macs)


def _weights_left(layer: nn.Module, lost: Mapping[Side, int]) -> int:
    """Size of the weight once channels are gone."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features - lost.get("output", 0)) * (layer.in_features - lost.get("input", 0))
    assert isinstance(layer, Convolution)
    if "both" in lost:
        return layer.weight.numel() * (layer.out_channels - lost["both"]) // layer.out_channels
    outputs, inputs = layer.out_channels - lost.get("output", 0), layer.in_channels - lost.get("input", 0)
    return layer.weight.numel() * outputs * inputs // (layer.out_channels * layer.in_channels)

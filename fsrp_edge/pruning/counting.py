"""Channels, parameters and MACs of a network as a plan would leave it, counted without pruning it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, Side, find_layer, widths
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import Size, macs_by_layer, measure_size


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
        self.groups = groups
        self.network = classifier.network
        self._macs = macs_by_layer(classifier)
        self._per_channel = _layer_channels(groups)

    def size(self, kept: Mapping[str, Sequence[int]]) -> Size:
        """Totals when the channels `kept` stay, by the group's root; groups that are not named stay whole."""
        removed = [group.channels - len(kept.get(group.root, range(group.channels))) for group in self.groups]
        return Size(**{name: round(float(total[0])) for name, total in self.totals(np.array([removed])).items()})

    def totals(self, removed: np.ndarray) -> dict[str, np.ndarray]:
        """The same for many plans at once.

        Args:
            removed: (plans, groups), how many channels go.

        Returns:
            `channels`, `parameters` and `macs`, each (plans,).
        """
        channels = np.full(len(removed), float(self.dense.channels))
        parameters = np.full(len(removed), float(self.dense.parameters))
        macs = np.full(len(removed), float(self.dense.macs))
        for name, sides in self._per_channel.items():
            layer = find_layer(self.network, name)
            lost = {side: removed @ each for side, each in sides.items()}
            outputs = lost.get("output", 0) + lost.get("both", 0)
            if layer is None:
                bare = self.network.get_parameter(name)
                parameters -= outputs * (bare.numel() // max(bare.shape))
            elif isinstance(layer, Convolution | nn.Linear):
                weights, gone = layer.weight.numel(), 1 - _share_left(layer, lost)
                parameters -= weights * gone + (outputs if layer.bias is not None else 0)
                macs -= self._macs.get(name, 0) * gone
                channels -= outputs if isinstance(layer, nn.Conv2d) else 0
            else:
                parameters -= outputs * sum(own.numel() > 1 for own in layer.parameters())
        return {"channels": channels, "parameters": parameters, "macs": macs}

    def output_shares(self) -> dict[str, np.ndarray]:
        """By layer (groups,): the share of its outputs that goes with one channel of each group."""
        shares = {}
        for name, sides in self._per_channel.items():
            layer = find_layer(self.network, name)
            if isinstance(layer, Convolution | nn.Linear):
                _, outputs = widths(layer)
                own = [each for side, each in sides.items() if side != "input"]
                shares[name] = np.sum(own, axis=0) / outputs if own else np.zeros(len(self.groups))
        return shares


def _layer_channels(groups: Sequence[ChannelGroup]) -> dict[str, dict[Side, np.ndarray]]:
    """By layer and side (groups,): how many of its channels go with one channel of each group."""
    found: dict[str, dict[Side, np.ndarray]] = defaultdict(dict)
    for index, group in enumerate(groups):
        places: dict[tuple[str, Side], set[int]] = defaultdict(set)
        for part in group.slices:
            places[part.layer, part.side].update(part.channels)
        for (name, side), channels in places.items():
            row = found[name].setdefault(side, np.zeros(len(groups)))
            row[index] = len(channels) / group.channels
    return found


def _share_left(layer: nn.Module, lost: Mapping[Side, np.ndarray]) -> np.ndarray:
    """Share of the weight that stays once channels are gone."""
    inputs, outputs = widths(layer)
    if "both" in lost:
        return 1 - lost["both"] / outputs
    left: np.ndarray = (1 - lost.get("output", np.zeros(1)) / outputs) * (1 - lost.get("input", np.zeros(1)) / inputs)
    return left

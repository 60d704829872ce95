"""What of a network can be pruned, group by group, and the least that can be left of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, PruningGraph, find_layer
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import Size, macs_by_layer
from fsrp_edge.pruning.candidates import Candidate, candidates_of
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.records import Record


class GroupSummary(Record):
    """One group of coupled channels."""

    layers: tuple[str, ...]
    """Convolutions and linear layers that make the channels."""
    channels: int
    step: int
    """Channels stay or go this many at a time."""
    macs: int
    """Of these layers, for one image."""
    parameters: int
    """Of these layers and of the norms behind them."""
    reason_to_keep: str | None
    """Why none of the channels can be removed; None where some can."""


@dataclass(frozen=True)
class Overview:
    """All groups of a network.

    Args:
        groups: in the order of the layers; layers that the network does not use stand at the end.
        dense: size of the network as it is.
        minimum: size with one step of channels left in every group that can be pruned.
    """

    groups: tuple[GroupSummary, ...]
    dense: Size
    minimum: Size


def inspect_network(classifier: Classifier, channel_multiple: int) -> Overview:
    """Say what of a network can be pruned.

    Args:
        classifier: it is run, and left as it is.
        channel_multiple: that kept channels are to come in.

    Raises:
        BadInputError: it has no convolutions to prune.
        ToolFailedError: it cannot be followed.
    """
    groups = PruningGraph(classifier).groups()
    counter = SizeCounter(classifier, groups)
    macs = macs_by_layer(classifier)
    candidates = candidates_of(classifier, groups, None, PlanOptions(channel_multiple=channel_multiple))
    summaries = [_summary(classifier.network, each, macs) for each in candidates]
    return Overview(
        groups=(*summaries, *_unused(classifier.network, groups)),
        dense=counter.dense,
        minimum=counter.size({each.group.root: range(each.least) for each in candidates}),
    )


def _summary(network: nn.Module, candidate: Candidate, macs: dict[str, int]) -> GroupSummary:
    group = candidate.group
    layers = tuple(member.layer for member in group.members)
    sized = dict.fromkeys([*layers, *(part.layer for part in group.slices if part.side == "both")])
    return GroupSummary(
        layers=layers,
        channels=group.channels,
        step=candidate.step,
        macs=sum(macs.get(layer, 0) for layer in layers),
        parameters=sum(_parameters(network, name) for name in sized),
        reason_to_keep=candidate.reason,
    )


def _unused(network: nn.Module, groups: Sequence[ChannelGroup]) -> list[GroupSummary]:
    used = {member.layer for group in groups for member in group.members}
    return [
        GroupSummary(
            layers=(name,),
            channels=int(layer.weight.shape[0]),
            step=1,
            macs=0,
            parameters=_parameters(network, name),
            reason_to_keep=(
                "the layer's own forward pass does not run, or lets no gradient through: it is unused, its weight is "
                "used elsewhere, or the network's code says torch.no_grad"
            ),
        )
        for name, layer in network.named_modules()
        if isinstance(layer, Convolution | nn.Linear) and name not in used
    ]


def _parameters(network: nn.Module, name: str) -> int:
    layer = find_layer(network, name)
    if layer is None:
        return network.get_parameter(name).numel()
    return sum(parameter.numel() for parameter in layer.parameters())

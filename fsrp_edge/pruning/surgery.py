"""Physical removal of channels: a plan applied to the network it was made for."""

import copy
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fsrp_edge.attacks import attackable
from fsrp_edge.errors import BadInputError, ToolFailedError, first_line
from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, PruningGraph, Side, find_layer
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.layer_shapes import with_layer_shapes
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.compensation import DenseOutputs
from fsrp_edge.pruning.plan import PruningPlan


def apply_plan(classifier: Classifier, plan: PruningPlan, outputs: DenseOutputs | None = None) -> Classifier:
    """A smaller copy of `classifier` that holds only the channels the plan keeps.

    Args:
        classifier: the network that the plan was made for; it is left as it is.
        plan: channels to keep, group by group.
        outputs: of its layers, to fit what stays to (`pruning.compensation`); None leaves the remaining weights as they
            are.

    Returns:
        The pruned classifier; its `spec.layer_shapes` says how to build it again.

    Raises:
        BadInputError: the plan was made for other weights, or names channels that are not there.
        ToolFailedError: the smaller network does not run or lost classes.
    """
    actual = weights_sha256(classifier.network)
    if plan.model_sha256 != actual:
        raise BadInputError(
            f"the plan was made for weights {plan.model_sha256[:12]}…, this checkpoint has {actual[:12]}…; "
            "make a plan for this checkpoint"
        )
    groups = PruningGraph(classifier).groups()
    _require_fits(plan, groups)
    return smaller(classifier, groups, {group.root: group.kept for group in plan.groups}, outputs)


def smaller(
    classifier: Classifier,
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, Sequence[int]],
    outputs: DenseOutputs | None = None,
) -> Classifier:
    """A copy of `classifier` without the channels of its `groups` that are not `kept`, by the group's root.

    Raises:
        ToolFailedError: the smaller network does not run or lost classes.
    """
    pruned = cut(classifier, groups, kept)
    if outputs is not None:
        outputs.fit(pruned, removed_outputs(groups, kept))
    pruned.spec = with_layer_shapes(pruned.network, pruned.spec)
    return pruned


def cut(classifier: Classifier, groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]) -> Classifier:
    """The same as a trial: what stays is as it was, and the specification is still that of the whole network.

    Raises:
        ToolFailedError: the smaller network does not run or lost classes.
    """
    pruned = copy.deepcopy(classifier)
    remove_channels(pruned.network, groups, kept)
    if failure := _failure(pruned):
        raise ToolFailedError(_blamed(classifier, groups, kept, failure))
    return pruned


def remove_channels(network: nn.Module, groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]) -> None:
    """Resize every layer of `network` in place, each once.

    torch-pruning's own removal goes group by group and moves the numbers of the channels under the next group's feet;
    with indices of the intact network there is nothing to move.

    Args:
        network: as it was when the groups were found.
        groups: of the network.
        kept: channels that stay, by the group's root.
    """
    for (layer, side), removed in removed_channels(groups, kept).items():
        _shrink(network, layer, side, removed)


def removed_channels(
    groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]
) -> dict[tuple[str, Side], set[int]]:
    """Which channels each layer loses, on which side; layers that lose none are left out."""
    removed: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for group in groups:
        gone = set(range(group.channels)) - set(kept.get(group.root, range(group.channels)))
        if not gone:
            continue
        for part in group.slices:
            pairs = zip(part.channels, part.root_channels, strict=True)
            removed[part.layer, part.side].update(channel for channel, root in pairs if root in gone)
    return {place: channels for place, channels in removed.items() if channels}


def removed_outputs(groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Which of its output channels each layer loses."""
    removals = removed_channels(groups, kept)
    return {layer: removed for (layer, side), removed in removals.items() if side != "input"}


def _shrink(network: nn.Module, name: str, side: Side, removed: set[int]) -> None:
    layer = find_layer(network, name)
    if layer is None:
        owner, _, attribute = name.rpartition(".")
        _select_largest_axis(network.get_submodule(owner), attribute, removed)
        return
    if isinstance(layer, nn.Linear):
        if side == "input":
            layer.in_features -= _select(layer, "weight", 1, removed)
        else:
            layer.out_features -= _select(layer, "weight", 0, removed)
            _select(layer, "bias", 0, removed)
    elif isinstance(layer, Convolution):
        _shrink_convolution(layer, side, removed)
    elif isinstance(layer, nn.PReLU):
        if layer.num_parameters > 1:
            layer.num_parameters -= _select(layer, "weight", 0, removed)
    else:
        for attribute in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, attribute, 0, removed)
        if isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = (layer.normalized_shape[0] - len(removed),)
        elif isinstance(layer, nn.GroupNorm):
            layer.num_channels -= len(removed)
        else:
            layer.num_features -= len(removed)


def _shrink_convolution(layer: Convolution, side: Side, removed: set[int]) -> None:
    # One axis of the weight runs over all groups, for channels that are coupled, too. The other is as long as one
    # group, each of which loses the same positions: numbers of other groups' channels find nothing there.
    axis = 0 if side == "both" else int((side == "input") != layer.transposed)
    _select(layer, "weight", axis, removed)
    if side == "both":
        layer.groups -= len(removed) // (layer.out_channels // layer.groups)
    if side != "output":
        layer.in_channels -= len(removed)
    if side != "input":
        _select(layer, "bias", 0, removed)
        layer.out_channels -= len(removed)


def _select_largest_axis(module: nn.Module, name: str, removed: set[int]) -> None:
    shape = getattr(module, name).shape
    _select(module, name, max(range(len(shape)), key=lambda axis: shape[axis]), removed)


def _select(module: nn.Module, name: str, axis: int, removed: set[int]) -> int:
    """Keep the other entries of a tensor's axis, where the module has that tensor; returns how many went."""
    old: Tensor | None = getattr(module, name, None)
    if old is None:
        return 0
    stay = [index for index in range(old.shape[axis]) if index not in removed]
    new = old.detach().index_select(axis, torch.tensor(stay, dtype=torch.long, device=old.device))
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
    return len(removed)


def _require_fits(plan: PruningPlan, groups: Sequence[ChannelGroup]) -> None:
    there = {group.root: group for group in groups}
    for planned in plan.groups:
        group = there.get(planned.root)
        if group is None or group.channels != planned.channels:
            seen = "no such group of" if group is None else group.channels
            raise BadInputError(
                f"the plan's group {planned.root} ({planned.channels} channels) does not fit the network, which has "
                f"{seen} channels there"
            )
        if len(planned.kept) < group.channels and group.locked:
            raise BadInputError(f"the plan removes channels of {planned.root}, but {group.locked}")
        _require_whole_steps(planned.kept, group)
        for each in group.parts:
            if not set(planned.kept) & set(each.root_channels):
                raise BadInputError(
                    f"the plan's group {planned.root} leaves no channel to {each.layer}; keep one of "
                    f"{each.root_channels[0]} to {each.root_channels[-1]}, or remove less"
                )


def _require_whole_steps(kept: Sequence[int], group: ChannelGroup) -> None:
    there = np.isin(np.arange(group.channels), kept).reshape(group.blocks, -1, group.unit)
    if (there != there[:1, :, :1]).any():
        raise BadInputError(
            f"the plan's group {group.root} parts what stays or goes together: units of {group.unit} neighbouring "
            f"channels, at the same positions of its {group.blocks} blocks"
        )


def _failure(classifier: Classifier) -> str | None:
    """Why the network does not run any more, or does not return as many classes; None where all is well."""
    try:
        with torch.no_grad(), attackable(classifier):
            logits = classifier(classifier.example_pixels(2))
    except Exception as error:  # the network's own code raises anything, such as a bare AssertionError
        return first_line(error)
    if logits.shape == (2, classifier.spec.classes):
        return None
    return f"it returns {tuple(logits.shape[1:])} in place of {classifier.spec.classes} classes"


def _blamed(
    classifier: Classifier, groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[int]], failure: str
) -> str:
    """The groups whose removal alone makes a network fail: its own code counts on their channels."""
    to_blame = []
    for group in groups:
        trial = copy.deepcopy(classifier)
        remove_channels(trial.network, [group], kept)
        if _failure(trial):
            to_blame.append(group.root)
    start = f"{classifier.spec.architecture} does not run after channels were removed ({failure})"
    if not to_blame:
        return f"{start}; report the network"
    keep = " ".join(f"--keep {shlex.quote(name)}" for name in to_blame)
    return f"{start}: its own code needs all channels of {', '.join(to_blame)}; keep them with {keep}"

"""Physical removal of channels: a plan applied to the network it was made for."""

import copy

import torch

from fsrp_edge.attacks import attackable
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.layer_shapes import with_layer_shapes
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.graph import PruningGraph
from fsrp_edge.pruning.plan import PruningPlan


def apply_plan(classifier: Classifier, plan: PruningPlan) -> Classifier:
    """A smaller copy of `classifier` that holds only the channels the plan keeps.

    Args:
        classifier: the network that the plan was made for; it is left as it is.
        plan: channels to keep, group by group.

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
    pruned = copy.deepcopy(classifier)
    graph = PruningGraph(pruned)
    channels = {group.root: group.channels for group in graph.groups()}
    for group in plan.groups:
        if channels.get(group.root) != group.channels or not group.kept or group.kept[-1] >= group.channels:
            raise BadInputError(
                f"the plan's group {group.root} ({group.channels} channels) does not fit the network, which has "
                f"{channels.get(group.root, 'no such group of')} channels there"
            )
        removed = sorted(set(range(group.channels)) - set(group.kept))
        if removed:
            graph.remove(group.root, removed)
    _require_runs(pruned)
    return Classifier(pruned.network, with_layer_shapes(pruned.network, pruned.spec))


def _require_runs(classifier: Classifier) -> None:
    spec = classifier.spec
    try:
        with torch.no_grad(), attackable(classifier):
            logits = classifier(classifier.example_pixels(2))
    except RuntimeError as error:
        raise ToolFailedError(
            f"{spec.architecture} does not run after channels were removed: {error}; "
            "lock the layer that is named, and report the network"
        ) from error
    if logits.shape != (2, spec.classes):
        raise ToolFailedError(
            f"{spec.architecture} has outputs of shape {tuple(logits.shape[1:])} after pruning "
            f"instead of {spec.classes} classes; report the network"
        )

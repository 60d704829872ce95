"""What a network's outputs lose with each group alone: so that groups can be weighed against one another.

A criterion ranks the filters of one layer; its scores do not say how much the layer matters. Channels of a residual
stream, which every block reads and writes, can cost a hundred times as much as those inside a block.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.channel_graph import ChannelGroup, PruningGraph
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.progress import log, track
from fsrp_edge.pruning.allocation import Sensitivity
from fsrp_edge.pruning.candidates import choose_channels, granularity, group_scores, reason_to_keep
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import remove_channels
from fsrp_edge.scoring.moments import InputMoments
from fsrp_edge.scoring.scores import FilterScores

PROBES = 4
"""Counts that are tried of each group, evenly spread."""
BATCH = 128


def probe_images(spec: ModelSpec) -> int:
    """How many images are worth their time: each is run once for every probe."""
    return 384 if max(spec.input_shape[1:]) <= 64 else 64


class Gauge:
    """How far a network's outputs move when channels go.

    Batch norm uses each batch's own statistics meanwhile, as it would be recalibrated after pruning.

    Args:
        classifier: the dense network; it is left as it is.
        images: a few hundred; labels are not needed.
        moments: of what layers read, where pruning will compensate: what others can say as well is worth little then.
    """

    def __init__(
        self, classifier: Classifier, images: ImageSet, moments: Mapping[str, InputMoments] | None
    ) -> None:
        self.classifier, self._moments = classifier, moments
        self.groups = PruningGraph(classifier).groups()
        self._batches = [pixels for pixels, _ in images.batches(BATCH) if len(pixels) > 1]
        dense = _outputs(copy.deepcopy(classifier), self._batches)
        self._dense = [F.log_softmax(logits, 1) for logits in dense]

    def divergence(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Kullback and Leibler's, in nats an image, with these channels left of the groups that are named."""
        pruned = copy.deepcopy(self.classifier)
        remove_channels(pruned.network, self.groups, kept, self._moments)
        away = [
            F.kl_div(F.log_softmax(logits, 1), before, log_target=True, reduction="sum")
            for logits, before in zip(_outputs(pruned, self._batches), self._dense, strict=True)
        ]
        return float(sum(away)) / sum(map(len, self._batches))


def measure_sensitivity(gauge: Gauge, scores: FilterScores, multiple: int) -> Sensitivity:
    """Remove some of each group's channels, the lowest scores first and nothing else, and watch the outputs.

    Args:
        gauge: of the dense network.
        scores: of its filters.
        multiple: that kept channels come in.
    """
    curves = {}
    groups = [group for group in gauge.groups if reason_to_keep(group, multiple) is None]
    for group in track(groups, "measuring what each group is worth", len(groups)):
        values = group_scores(group, scores)
        if values is None:
            continue
        points = [(0, 0.0)]
        for count in _counts(group, granularity(group, multiple)):
            away = gauge.divergence({group.root: choose_channels(values, count, group)})
            points.append((group.channels - count, away))
        curves[group.root] = tuple(points)
    return Sensitivity(curves=curves)


def plan_by_worth(
    gauge: Gauge,
    scores: FilterScores,
    options: PlanOptions,
    costing: Costing | None,
    sensitivity: Sensitivity,
) -> PruningPlan:
    """The knapsack's plan, or the one with a common ratio where the outputs move less with that.

    What groups lose alone does not add up when much goes everywhere. A user who asked for the knapsack gets it.

    Args:
        gauge: of the dense network.
        scores: of its filters.
        options: budgets among them.
        costing: what budgets are reckoned with.
        sensitivity: of `measure_sensitivity`.

    Raises:
        BadInputError: as `make_plan`.
    """
    plan = make_plan(gauge.classifier, scores, options, costing, sensitivity)
    if options.allocation is not None:
        return plan
    try:
        uniform = make_plan(
            gauge.classifier, scores, options.model_copy(update={"allocation": "uniform"}), costing
        )
    except BadInputError:  # no common ratio meets the budgets
        return plan
    away = {
        each.allocation: gauge.divergence({group.root: group.kept for group in each.groups})
        for each in (plan, uniform)
    }
    log(
        "plan: outputs move by "
        + " and ".join(f"{nats:.3f} nats ({allocation})" for allocation, nats in away.items())
    )
    return plan if away[plan.allocation] <= away["uniform"] else uniform


def _counts(group: ChannelGroup, step: int) -> list[int]:
    """Channels to keep in each probe, descending."""
    levels = range((group.channels - 1) // step * step, 0, -step)
    places = np.linspace(0, len(levels) - 1, min(PROBES, len(levels)) + 1).round().astype(int)
    return [levels[place] for place in dict.fromkeys(places.tolist())]


def _outputs(classifier: Classifier, batches: list[Tensor]) -> list[Tensor]:
    device = classifier.mean.device
    with torch.no_grad(), attackable(classifier):
        for module in classifier.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.momentum = 0.0
        return [classifier(pixels.to(device)).float() for pixels in batches]

"""What a network's outputs lose with each group alone: so that groups can be weighed against one another.

A criterion ranks the filters of one layer; its scores do not say how much the layer matters. Channels of a residual
stream, which every block reads and writes, can cost a hundred times as much as those inside a block.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.channel_graph import ChannelGroup, PruningGraph
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.progress import track
from fsrp_edge.pruning.allocation import Sensitivity
from fsrp_edge.pruning.candidates import choose_channels, granularity, group_scores, reason_to_keep
from fsrp_edge.pruning.surgery import remove_channels
from fsrp_edge.scoring.moments import InputMoments
from fsrp_edge.scoring.scores import FilterScores

PROBES = 4
"""Counts that are tried of each group, evenly spread."""
BATCH = 128


def probe_images(spec: ModelSpec) -> int:
    """How many images are worth their time: each is run once for every probe."""
    return 384 if max(spec.input_shape[1:]) <= 64 else 64


def measure_sensitivity(
    classifier: Classifier,
    scores: FilterScores,
    images: ImageSet,
    multiple: int,
    moments: Mapping[str, InputMoments] | None = None,
) -> Sensitivity:
    """Remove some of each group's channels, the lowest scores first and nothing else, and watch the outputs.

    Batch norm uses each batch's own statistics meanwhile, as it would be recalibrated after pruning.

    Args:
        classifier: the dense network; it is left as it is.
        scores: of its filters.
        images: a few hundred; labels are not needed.
        multiple: that kept channels come in.
        moments: of what layers read, where pruning will compensate: what others can say as well is worth little then.
    """
    batches = [pixels for pixels, _ in images.batches(BATCH) if len(pixels) > 1]
    dense = [F.log_softmax(logits, 1) for logits in _outputs(copy.deepcopy(classifier), batches)]
    curves = {}
    groups = [group for group in PruningGraph(classifier).groups() if reason_to_keep(group, multiple) is None]
    for group in track(groups, "measuring what each group is worth", len(groups)):
        values = group_scores(group, scores)
        if values is None:
            continue
        points = [(0, 0.0)]
        for count in _counts(group, granularity(group, multiple)):
            pruned = copy.deepcopy(classifier)
            remove_channels(
                pruned.network, [group], {group.root: choose_channels(values, count, group)}, moments
            )
            away = [
                F.kl_div(F.log_softmax(logits, 1), before, log_target=True, reduction="sum")
                for logits, before in zip(_outputs(pruned, batches), dense, strict=True)
            ]
            points.append((group.channels - count, float(sum(away)) / sum(map(len, batches))))
        curves[group.root] = tuple(points)
    return Sensitivity(curves=curves)


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

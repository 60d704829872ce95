"""From scores to a plan: layer by layer, the filters with the lowest scores go first."""

import numpy as np

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.graph import ChannelGroup, PruningGraph
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan
from fsrp_edge.scoring.scores import FilterScores


def kept_count(channels: int, ratio: float, multiple: int, blocks: int = 1) -> int:
    """How many of `channels` stay when the share `ratio` is to go.

    The count is the multiple nearest to the exact number, at least one multiple, and all channels where there are no
    more than that; `blocks` blocks keep equally many.
    """
    step = int(np.lcm(multiple, blocks))
    if channels <= step:
        return channels
    nearest = round(channels * (1 - ratio) / step) * step
    return min(max(nearest, step), channels - channels % blocks)


def reason_to_keep(group: ChannelGroup, multiple: int) -> str | None:
    """Why nothing of a group can be removed; None where something can."""
    if not group.consumers:
        return "these channels are the network's output"
    if group.channels <= int(np.lcm(multiple, group.blocks)):
        return f"{group.channels} channels are no more than one channel multiple ({multiple})"
    return None


def group_scores(group: ChannelGroup, scores: FilterScores) -> np.ndarray | None:
    """Scores (channels,) of a group: the mean over the members that were scored; None where none was.

    Each member's scores are divided by their mean first, so that layers with other scales weigh the same.
    """
    rows = []
    for member in group.members:
        layer = scores.layers.get(member.layer)
        if layer is None:
            continue
        values = np.asarray(layer.scores)[list(member.channels)]
        mean = values.mean()
        row = np.zeros(group.channels)
        np.add.at(row, list(member.root_channels), values / mean if mean > 0 else values)
        rows.append(row)
    return np.mean(rows, axis=0) if rows else None


def _kept(scores: np.ndarray, count: int, blocks: int) -> tuple[int, ...]:
    """The `count` best channels, ascending; equal positions in each block. Ties keep the lower channel."""
    per_block = scores.reshape(blocks, -1)
    best = np.sort(np.argsort(-per_block.mean(axis=0), kind="stable")[: count // blocks])
    return tuple(int(block * per_block.shape[1] + channel) for block in range(blocks) for channel in best)


def _plan_group(group: ChannelGroup, scores: FilterScores, ratio: float, multiple: int) -> GroupPlan:
    everything = tuple(range(group.channels))
    values = group_scores(group, scores)
    count = kept_count(group.channels, ratio, multiple, group.blocks)
    note, kept = reason_to_keep(group, multiple), everything
    if note is None and values is None:
        note = "no member of the group was scored"
    elif note is None and values is not None and count < group.channels:
        kept = _kept(values, count, group.blocks)
    layers = tuple(member.layer for member in group.members)
    return GroupPlan(root=group.root, layers=layers, channels=group.channels, kept=kept, note=note)


def make_plan(
    classifier: Classifier, scores: FilterScores, *, ratio: float, channel_multiple: int = 1
) -> PruningPlan:
    """Plan to remove the share `ratio` of every group's channels, rounded to the target's channel multiple.

    Args:
        classifier: the network that was scored.
        scores: of its filters.
        ratio: share of channels to remove, in (0, 1).
        channel_multiple: kept channels come in multiples of this.

    Raises:
        BadInputError: scores of another network, or nothing would be removed.
    """
    if not 0 < ratio < 1:
        raise BadInputError(f"the ratio of channels to remove must lie between 0 and 1, not {ratio:g}")
    model_sha256 = weights_sha256(classifier.network)
    if scores.model_sha256 != model_sha256:
        raise BadInputError(
            f"the scores were made for other weights ({scores.model_sha256[:12]}…) than these ({model_sha256[:12]}…); "
            "score this checkpoint again"
        )
    groups = tuple(
        _plan_group(group, scores, ratio, channel_multiple) for group in PruningGraph(classifier).groups()
    )
    if all(len(group.kept) == group.channels for group in groups):
        reasons = "; ".join(f"{group.root}: {group.note}" for group in groups[:3])
        raise BadInputError(
            f"nothing can be removed at ratio {ratio:g} with channel multiple {channel_multiple} ({reasons}); "
            "raise --ratio or choose a target with a smaller channel multiple"
        )
    return PruningPlan(
        architecture=classifier.spec.architecture,
        model_sha256=model_sha256,
        criterion=scores.criterion,
        scores_sha256=sha256_json(scores.model_dump(mode="json")),
        ratio=ratio,
        channel_multiple=channel_multiple,
        groups=groups,
    )

"""Groups as planning sees them: what of each may go, and which channels go first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, Member
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pruning.allocation import Levels
from fsrp_edge.pruning.options import PlanOptions, matches, require_known
from fsrp_edge.scoring.scores import FilterScores, LayerScores


def granularity(group: ChannelGroup, multiple: int) -> int:
    """How many channels stay or go at a time."""
    return math.lcm(multiple, group.blocks, group.unit)


def fewest(group: ChannelGroup, step: int) -> int:
    """How many channels stay at least, in whole steps: one for each layer that has but some of the group's channels."""
    parts = len({tuple(_places_of(each, group)) for each in group.parts})
    return max(math.ceil(parts * group.blocks * group.unit / step), 1) * step


def kept_count(channels: int, ratio: float, step: int, least: int) -> int:
    """How many of `channels` stay when the share `ratio` is to go.

    The count is the multiple of `step` nearest to the exact number, at least `least`, and all channels where there are
    no more than that.
    """
    if ratio == 0 or channels <= least:
        return channels
    nearest = round(channels * (1 - ratio) / step) * step
    return min(max(nearest, least), channels // step * step)


def reason_to_keep(group: ChannelGroup, multiple: int) -> str | None:
    """Why nothing of a group can be removed; None where something can."""
    if group.locked:
        return group.locked
    step = granularity(group, multiple)
    least = fewest(group, step)
    if group.channels > least:
        return None
    if least > step:
        return (
            f"{group.channels} channels are no more than the {least} that its layers need, since some have but a part "
            f"of them and keep one each (channel multiple {multiple})"
        )
    if step == multiple:
        return f"{group.channels} channels are no more than one channel multiple ({multiple})"
    return (
        f"{group.channels} channels are no more than one step of {step} (channel multiple {multiple}, "
        f"{group.unit} wide groups of a grouped convolution, {group.blocks} blocks)"
    )


def group_scores(group: ChannelGroup, scores: FilterScores) -> np.ndarray | None:
    """Scores (channels,) of a group: the mean over the members that were scored; None where none was.

    Each member's scores are divided by their mean first, so that layers with other scales weigh the same. Where maps of
    some members have two bands, the others' scores are energies, which say another thing (those of a squeeze-excite
    gate are highest where it is shut): they count for channels alone that no other member makes.
    """
    scored = [(member, scores.layers[member.layer]) for member in group.members if member.layer in scores.layers]
    if not scored:
        return None
    values, known = _mean_of_members(group.channels, [pair for pair in scored if pair[1].has_bands])
    others, _ = _mean_of_members(group.channels, [pair for pair in scored if not pair[1].has_bands])
    found: np.ndarray = np.where(known, values, others)
    return found


def _mean_of_members(channels: int, scored: Sequence[tuple[Member, LayerScores]]) -> tuple[np.ndarray, np.ndarray]:
    """(channels,) mean of the scores, each member's divided by their mean; and which channels some member makes."""
    total, members = np.zeros(channels), np.zeros(channels)
    for member, layer in scored:
        values = np.asarray(layer.scores)[list(member.channels)]
        mean = values.mean()
        np.add.at(total, list(member.root_channels), values / mean if mean > 0 else values)
        np.add.at(members, list(member.root_channels), 1)  # a concatenation's parts make some of the channels
    return total / np.maximum(members, 1), members > 0


def choose_channels(scores: np.ndarray, count: int, group: ChannelGroup) -> tuple[int, ...]:
    """The `count` best channels, ascending; equal positions in each block, whole units. Ties keep the lower channel.

    A layer that has but some of the group's channels, as in a concatenation, keeps its best one.
    """
    places = scores.reshape(group.blocks, -1, group.unit).mean(axis=(0, 2))
    order = np.argsort(-places, kind="stable")
    needed = {int(np.isin(order, _places_of(each, group)).argmax()) for each in group.parts}
    order = np.concatenate([order[sorted(needed)], np.delete(order, list(needed))])
    best = np.sort(order[: count // (group.blocks * group.unit)])
    numbers = np.arange(group.channels).reshape(group.blocks, -1, group.unit)
    return tuple(numbers[:, best, :].reshape(-1).tolist())


def _places_of(slice_: Member, group: ChannelGroup) -> np.ndarray:
    """Where a layer's channels stand within the blocks of its group, in units."""
    return np.unique(np.array(slice_.root_channels) // group.unit % (group.channels // (group.blocks * group.unit)))


@dataclass(frozen=True)
class Candidate:
    """A group with all that decides how much of it stays.

    Args:
        group: its channels.
        step: how many of them stay or go at a time.
        scores: (channels,); None where no member was scored.
        reason: why nothing can be removed; None where something can.
        ratio: of its own; None where the common one counts.
        comparable: scores of all groups that are ranked together, each by its group's root mean square; None for a
            uniform ratio.
    """

    group: ChannelGroup
    step: int
    scores: np.ndarray | None
    reason: str | None
    ratio: float | None
    comparable: np.ndarray | None = None

    def count(self, ratio: float) -> int:
        """How many channels stay at a common ratio."""
        if self.reason is not None:
            return self.group.channels
        wanted = self._share(ratio) if self.ratio is None else self.ratio
        return kept_count(self.group.channels, wanted, self.step, self._fewest)

    def best(self, count: int) -> tuple[int, ...]:
        """So many channels; all of them where none was scored."""
        if count == self.group.channels or self.scores is None:
            return tuple(range(self.group.channels))
        return choose_channels(self.scores, count, self.group)

    @property
    def least(self) -> int:
        """Channels that stay at least."""
        return self.count(1.0)

    def levels(self) -> Levels:
        """What may go, step by step, and what is lost with it as far as scores tell.

        That is minus the logarithm of the share of the scores that stays, once for each layer that makes the channels:
        over a chain of layers these add up to the share that passes through all of them, and no group is emptied for
        being cheap.
        """
        channels = self.group.channels
        if self.reason is not None or self.scores is None or self.ratio is not None:
            return Levels(np.array([channels - self.count(0)]), np.zeros(1))
        counts = np.array([channels, *range((channels - 1) // self.step * self.step, self._fewest - 1, -self.step)])
        scores = np.sort(np.maximum(self.scores, 0) + 1e-12)[::-1]
        share = np.cumsum(scores)[counts - 1] / scores.sum()
        return Levels(channels - counts, -np.log(share) * len(self.group.members))

    @cached_property
    def _fewest(self) -> int:
        return fewest(self.group, self.step)

    def _share(self, ratio: float) -> float:
        """The share of this group that lies in the lowest `ratio` of all."""
        if ratio == 0 or self.comparable is None or self.scores is None:
            return ratio
        threshold = np.quantile(self.comparable, ratio)
        return float((_comparable(self.scores) <= threshold).mean())


def _comparable(scores: np.ndarray) -> np.ndarray:
    """Scores of a group in units of their root mean square, so that groups of other scales can be ranked together.

    After Molchanov et al., arXiv 1611.06440. (In units of the median, half of every group would lie below 1.)
    """
    scale = float(np.sqrt(np.mean(np.square(scores))))
    return scores / scale if scale > 0 else scores


def candidates_of(
    classifier: Classifier, groups: Sequence[ChannelGroup], scores: FilterScores | None, options: PlanOptions
) -> list[Candidate]:
    """Every group with its scores, its locks and its ratio, as `options` ask.

    Raises:
        BadInputError: a pattern that fits no layer.
    """
    layers = [
        name for name, module in classifier.network.named_modules() if isinstance(module, Convolution | nn.Linear)
    ]
    require_known(options.keep, layers, "--keep")
    require_known(options.keep_inputs, layers, "--keep-inputs")
    require_known([pattern for pattern, _ in options.layer_ratios], layers, "--layer-ratio")
    first = next(layer for layer in layers if isinstance(classifier.network.get_submodule(layer), Convolution))
    multiple = options.channel_multiple
    candidates = []
    for group in groups:
        found = None if scores is None else group_scores(group, scores)
        reason = reason_to_keep(group, multiple) or _lock(group, options, first)
        if reason is None and scores is not None and found is None:
            reason = "no member of the group was scored"
        step = granularity(group, multiple)
        candidates.append(Candidate(group, step, found, reason, _own_ratio(group, options)))
    return _ranked_together(candidates) if options.chosen_allocation == "global" else candidates


def _ranked_together(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, those without a ratio of their own ranked against one another."""
    pooled = [
        _comparable(each.scores)
        for each in candidates
        if each.scores is not None and each.reason is None and each.ratio is None
    ]
    comparable = np.concatenate(pooled) if pooled else None
    return [replace(each, comparable=comparable) for each in candidates]


def _lock(group: ChannelGroup, options: PlanOptions, first: str) -> str | None:
    """Why the user wants a group to stay."""
    for member in group.members:
        if options.keep_first and member.layer == first:
            return f"{first} is the first convolution (--keep-first)"
        if pattern := matches(member.layer, options.keep):
            return f"outputs of {member.layer} are kept (--keep {pattern})"
    for part in group.slices:
        if part.side != "output" and (pattern := matches(part.layer, options.keep_inputs)):
            return f"inputs of {part.layer} are kept (--keep-inputs {pattern})"
    return None


def _own_ratio(group: ChannelGroup, options: PlanOptions) -> float | None:
    """The smallest ratio that was asked for any of the group's layers."""
    asked = [
        ratio
        for pattern, ratio in options.layer_ratios
        if any(matches(member.layer, [pattern]) for member in group.members)
    ]
    return min(asked, default=None)

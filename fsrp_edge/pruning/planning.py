"""From scores to a plan: group by group, the filters with the lowest scores go first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_json
from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, PruningGraph
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.models.size import Size
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.pruning.options import PlanOptions, RatioOf, matches, require_known
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan
from fsrp_edge.scoring.scores import FilterScores

_STEPS = 24
"""Bisections of the ratio: 2^-24 is finer than one channel of any layer."""


def granularity(group: ChannelGroup, multiple: int) -> int:
    """How many channels stay or go at a time."""
    return math.lcm(multiple, group.blocks, group.unit)


def kept_count(channels: int, ratio: float, step: int) -> int:
    """How many of `channels` stay when the share `ratio` is to go.

    The count is the multiple of `step` nearest to the exact number, at least one step, and all channels where there
    are no more than that.
    """
    if ratio == 0 or channels <= step:
        return channels
    nearest = round(channels * (1 - ratio) / step) * step
    return min(max(nearest, step), channels // step * step)


def reason_to_keep(group: ChannelGroup, multiple: int) -> str | None:
    """Why nothing of a group can be removed; None where something can."""
    if group.locked:
        return group.locked
    step = granularity(group, multiple)
    if group.channels > step:
        return None
    if step == multiple:
        return f"{group.channels} channels are no more than one channel multiple ({multiple})"
    return (
        f"{group.channels} channels are no more than one step of {step} (channel multiple {multiple}, "
        f"{group.unit} wide groups of a grouped convolution, {group.blocks} blocks)"
    )


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


def choose_channels(scores: np.ndarray, count: int, group: ChannelGroup) -> tuple[int, ...]:
    """The `count` best channels, ascending; equal positions in each block, whole units. Ties keep the lower channel."""
    places = scores.reshape(group.blocks, -1, group.unit).mean(axis=(0, 2))
    best = np.sort(np.argsort(-places, kind="stable")[: count // (group.blocks * group.unit)])
    numbers = np.arange(group.channels).reshape(group.blocks, -1, group.unit)
    return tuple(numbers[:, best, :].reshape(-1).tolist())


@dataclass(frozen=True)
class _Candidate:
    """A group with all that decides how much of it stays."""

    group: ChannelGroup
    scores: np.ndarray | None
    reason: str | None
    ratio: float | None
    """Of its own; None where the common ratio counts."""
    comparable: np.ndarray | None = None
    """Scores of all groups that are ranked together, each by its group's root mean square; None for a uniform ratio."""

    def kept(self, ratio: float, multiple: int) -> tuple[int, ...]:
        everything = tuple(range(self.group.channels))
        if self.reason is not None or self.scores is None:
            return everything
        wanted = self._share(ratio) if self.ratio is None else self.ratio
        count = kept_count(self.group.channels, wanted, granularity(self.group, multiple))
        return everything if count == self.group.channels else choose_channels(self.scores, count, self.group)

    def _share(self, ratio: float) -> float:
        """The share of this group that lies in the lowest `ratio` of all."""
        if self.comparable is None or self.scores is None:
            return ratio
        threshold = np.quantile(self.comparable, ratio)
        return float((_comparable(self.scores) <= threshold).mean())


def _comparable(scores: np.ndarray) -> np.ndarray:
    """Scores of a group in units of their root mean square, so that groups of other scales can be ranked together.

    After Molchanov et al., arXiv 1611.06440. (In units of the median, half of every group would lie below 1.)
    """
    scale = float(np.sqrt(np.mean(np.square(scores))))
    return scores / scale if scale > 0 else scores


def make_plan(classifier: Classifier, scores: FilterScores, options: PlanOptions) -> PruningPlan:
    """Plan which channels stay.

    Args:
        classifier: the network that was scored.
        scores: of its filters.
        options: how much is to go, of what, and what has to stay.

    Raises:
        BadInputError: scores of another network, a pattern that fits no layer, a ratio that cannot be reached (the
            nearest that can is named), or nothing would be removed.
    """
    model_sha256 = weights_sha256(classifier.network)
    if scores.model_sha256 != model_sha256:
        raise BadInputError(
            f"the scores were made for other weights ({scores.model_sha256[:12]}…) than these ({model_sha256[:12]}…); "
            "score this checkpoint again"
        )
    groups = PruningGraph(classifier).groups()
    candidates = _candidates(classifier, groups, scores, options)
    if options.allocation == "global":
        candidates = _ranked_together(candidates)
    multiple, ratio = options.channel_multiple, options.ratio
    if options.ratio_of != "channels":
        ratio = _solve(candidates, SizeCounter(classifier, groups), options)
    plans = tuple(_plan_group(candidate, ratio, multiple) for candidate in candidates)
    if all(len(plan.kept) == plan.channels for plan in plans):
        reasons = "; ".join(f"{plan.root}: {plan.note}" for plan in plans if plan.note)[:400]
        raise BadInputError(
            f"nothing can be removed at ratio {options.ratio:g} with channel multiple {multiple} ({reasons}); "
            "raise --ratio or choose a target with a smaller channel multiple"
        )
    return PruningPlan(
        architecture=classifier.spec.architecture,
        model_sha256=model_sha256,
        criterion=scores.criterion,
        scores_sha256=sha256_json(scores.model_dump(mode="json")),
        ratio=options.ratio,
        ratio_of=options.ratio_of,
        channel_multiple=multiple,
        allocation=options.allocation,
        groups=plans,
    )


def _plan_group(candidate: _Candidate, ratio: float, multiple: int) -> GroupPlan:
    group, kept = candidate.group, candidate.kept(ratio, multiple)
    note = candidate.reason
    if note is None and candidate.scores is None:
        note = "no member of the group was scored"
    elif note is None and len(kept) % multiple:
        note = f"{len(kept)} of {group.channels} channels are nearest to the ratio at steps of " + str(
            granularity(group, multiple)
        )
    layers = tuple(member.layer for member in group.members)
    return GroupPlan(root=group.root, layers=layers, channels=group.channels, kept=kept, note=note)


def _candidates(
    classifier: Classifier, groups: Sequence[ChannelGroup], scores: FilterScores, options: PlanOptions
) -> list[_Candidate]:
    layers = [
        name
        for name, module in classifier.network.named_modules()
        if isinstance(module, Convolution | nn.Linear)
    ]
    require_known(options.keep, layers, "--keep")
    require_known(options.keep_inputs, layers, "--keep-inputs")
    require_known([pattern for pattern, _ in options.layer_ratios], layers, "--layer-ratio")
    first = next(
        layer for layer in layers if isinstance(classifier.network.get_submodule(layer), Convolution)
    )
    return [
        _Candidate(
            group,
            group_scores(group, scores),
            reason_to_keep(group, options.channel_multiple) or _lock(group, options, first),
            _own_ratio(group, options),
        )
        for group in groups
    ]


def _ranked_together(candidates: Sequence[_Candidate]) -> list[_Candidate]:
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


def _solve(candidates: Sequence[_Candidate], counter: SizeCounter, options: PlanOptions) -> float:
    """The smallest ratio of channels, the same for every group, that removes the share that was asked for."""

    def removed(ratio: float) -> float:
        kept = {each.group.root: each.kept(ratio, options.channel_multiple) for each in candidates}
        return 1 - _total(counter.size(kept), options.ratio_of) / _total(counter.dense, options.ratio_of)

    low, high = 0.0, 1.0
    if (reachable := removed(high)) < options.ratio:
        raise BadInputError(
            f"{options.ratio:.1%} of the {options.ratio_of} cannot be removed: with one step of channels left in "
            f"every group that is not locked (channel multiple {options.channel_multiple}), {reachable:.1%} is "
            f"the most; ask for --ratio {math.floor(reachable * 1000) / 1000:g} or less"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if removed(middle) >= options.ratio else (middle, high)
    # Steps of whole channel multiples overshoot; the ratio just below may lie nearer.
    below, above = removed(low), removed(high)
    return low if below > 0 and options.ratio - below < above - options.ratio else high


def _total(size: Size, of: RatioOf) -> int:
    totals: Mapping[str, int] = size.model_dump()
    return totals[of]

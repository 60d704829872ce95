"""From scores to a plan: group by group, the filters with the lowest scores go first."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_json
from fsrp_edge.models.channel_graph import ChannelGroup, Convolution, PruningGraph
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.models.size import Size
from fsrp_edge.pruning.allocation import Levels, Sensitivity, allocate
from fsrp_edge.pruning.budgets import Budgeted, BudgetKind, Limit, show
from fsrp_edge.pruning.costs import Costing, PlanCosts
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.pruning.options import PlanOptions, RatioOf, matches, require_known
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan
from fsrp_edge.pruning.surgery import smaller
from fsrp_edge.scoring.scores import FilterScores

_FINEST = 2**-24
"""Ratios are solved for to this: finer than one channel of any layer."""


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
        if self.reason is not None or self.scores is None:
            return tuple(range(self.group.channels))
        wanted = self._share(ratio) if self.ratio is None else self.ratio
        return self.best(kept_count(self.group.channels, wanted, granularity(self.group, multiple)))

    def best(self, count: int) -> tuple[int, ...]:
        """So many channels."""
        if count == self.group.channels or self.scores is None:
            return tuple(range(self.group.channels))
        return choose_channels(self.scores, count, self.group)

    def levels(self, multiple: int, sensitivity: Sensitivity | None) -> Levels:
        """What may go, step by step, and what is lost with it.

        Where the group's sensitivity was not measured, that is minus the logarithm of the share of the scores that
        stays, once for each layer that makes the channels: over a chain of layers these add up to the share that
        passes through all of them, and no group is emptied for being cheap.
        """
        if self.reason is not None or self.scores is None or self.ratio is not None:
            gone = self.group.channels - len(self.kept(0, multiple))
            return Levels(np.array([gone]), np.zeros(1))
        channels, step = self.group.channels, granularity(self.group, multiple)
        counts = np.array([channels, *range((channels - 1) // step * step, 0, -step)])
        losses = None
        if sensitivity is not None:
            losses = sensitivity.losses(self.group.root, channels, channels - counts)
        if losses is None:
            scores = np.sort(np.maximum(self.scores, 0) + 1e-12)[::-1]
            share = np.cumsum(scores)[counts - 1] / scores.sum()
            losses = -np.log(share) * len(self.group.members)
        return Levels(channels - counts, losses)

    def least(self, multiple: int) -> int:
        """Channels that stay at least."""
        if self.reason is not None:
            return self.group.channels
        wanted = 1.0 if self.ratio is None else self.ratio
        return kept_count(self.group.channels, wanted, granularity(self.group, multiple))

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


def make_plan(
    classifier: Classifier,
    scores: FilterScores,
    options: PlanOptions,
    costing: Costing | None = None,
    sensitivity: Sensitivity | None = None,
) -> PruningPlan:
    """Plan which channels stay.

    Args:
        classifier: the network that was scored.
        scores: of its filters.
        options: how much is to go, of what, and what has to stay.
        costing: what budgets of latency, size and memory are reckoned with.
        sensitivity: what groups are worth, for the knapsack; without it each layer counts the same.

    Raises:
        BadInputError: scores of another network, a pattern that fits no layer, a ratio or a budget that cannot be
            reached (the nearest that can is named), or nothing would be removed.
    """
    model_sha256 = weights_sha256(classifier.network)
    if scores.model_sha256 != model_sha256:
        raise BadInputError(
            f"the scores were made for other weights ({scores.model_sha256[:12]}…) than these ({model_sha256[:12]}…); "
            "score this checkpoint again"
        )
    groups = PruningGraph(classifier).groups()
    candidates = _candidates(classifier, groups, scores, options)
    if options.chosen_allocation == "global":
        candidates = _ranked_together(candidates)
    costs = PlanCosts(classifier, groups, costing)
    multiple, budgets = options.channel_multiple, _budgets(candidates, costs, options)
    kept = _allocated(candidates, costs, options, {each.kind: each.limit for each in budgets}, sensitivity)
    plans = tuple(
        _plan_group(each, channels, multiple) for each, channels in zip(candidates, kept, strict=True)
    )
    if all(len(plan.kept) == plan.channels for plan in plans):
        raise BadInputError(_nothing_to_remove(plans, budgets, options))
    removed = np.array([[plan.channels - len(plan.kept) for plan in plans]])
    figures, totals = costs.figures(removed), costs.counter.totals(removed)
    share = 1 - float(totals["channels"][0]) / costs.counter.dense.channels
    return PruningPlan(
        architecture=classifier.spec.architecture,
        model_sha256=model_sha256,
        criterion=scores.criterion,
        scores_sha256=sha256_json(scores.model_dump(mode="json")),
        ratio=round(share, 4) if options.budgets.asked else options.ratio,
        ratio_of="channels" if options.budgets.asked else options.ratio_of,
        channel_multiple=multiple,
        allocation=options.chosen_allocation,
        budgets=tuple(
            each.model_copy(update={"planned": float(figures[each.kind][0])})
            for each in budgets
            if each.kind in options.budgets.asked
        ),
        groups=plans,
    )


def check_budgets(
    classifier: Classifier, options: PlanOptions, costing: Costing | None
) -> tuple[Budgeted, ...]:
    """Each budget beside the dense network and the least that can be reached; `planned` is the dense figure.

    Raises:
        BadInputError: one cannot be met, or the dense network meets them all.
    """
    groups = PruningGraph(classifier).groups()
    candidates = _candidates(classifier, groups, None, options)
    return _budgets(candidates, PlanCosts(classifier, groups, costing), options)


def least_network(classifier: Classifier, options: PlanOptions) -> Classifier:
    """The network with as little left as a plan may leave; which channels stay is arbitrary."""
    groups = PruningGraph(classifier).groups()
    kept = {
        each.group.root: choose_channels(np.zeros(each.group.channels), count, each.group)
        for each in _candidates(classifier, groups, None, options)
        if (count := each.least(options.channel_multiple)) < each.group.channels
    }
    return smaller(classifier, groups, kept)


def _budgets(
    candidates: Sequence[_Candidate], costs: PlanCosts, options: PlanOptions
) -> tuple[Budgeted, ...]:
    limits = dict(options.budgets.asked)
    if options.chosen_allocation == "knapsack" and not limits:
        if options.ratio_of == "channels":
            raise BadInputError(
                "--allocation knapsack needs something that costs: give --latency, --macs, --parameters, --size or "
                "--memory, or --ratio-of parameters or macs"
            )
        limits = {options.ratio_of: Limit(amount=1 - options.ratio, of_dense=True)}
    if not limits:
        return ()
    least = [each.group.channels - each.least(options.channel_multiple) for each in candidates]
    figures = costs.figures(np.array([np.zeros(len(candidates)), least]))
    missing = ", ".join(f"--{kind}" for kind in limits if kind not in figures)
    if missing:
        raise BadInputError(f"{missing} needs a device to reckon with: give --target")
    found = tuple(
        Budgeted(
            kind=kind, limit=limit.of(float(figures[kind][0])), dense=float(figures[kind][0]),
            least=float(figures[kind][1]), planned=float(figures[kind][0]), basis=costs.basis(kind),
        )
        for kind, limit in limits.items()
    )  # fmt: skip
    unmet = [each for each in found if each.least > each.limit]
    if unmet:
        raise BadInputError("; ".join(
            f"{each.kind} of {show(each.kind, each.limit)} cannot be reached: with one step of channels left in every "
            f"group that is not locked (channel multiple {options.channel_multiple}), {show(each.kind, each.least)} of "
            f"{show(each.kind, each.dense)} is the least ({each.basis})"
            for each in unmet
        ))  # fmt: skip
    if all(each.dense <= each.limit for each in found):
        raise BadInputError(
            "nothing has to be removed, the dense network is within its budgets: "
            + "; ".join(f"{each.kind} {show(each.kind, each.dense)} ({each.basis})" for each in found)
        )
    return found


def _allocated(
    candidates: Sequence[_Candidate],
    costs: PlanCosts,
    options: PlanOptions,
    limits: Mapping[BudgetKind, float],
    sensitivity: Sensitivity | None,
) -> list[tuple[int, ...]]:
    """Channels that stay of each group."""
    multiple = options.channel_multiple
    if options.chosen_allocation == "knapsack":
        removed = allocate([each.levels(multiple, sensitivity) for each in candidates], costs.figures, limits)
        return [
            each.best(int(each.group.channels - gone)) for each, gone in zip(candidates, removed, strict=True)
        ]
    ratio = options.ratio
    if limits:
        ratio = _ratio_within(candidates, costs, limits, multiple)
    elif options.ratio_of != "channels":
        ratio = _solve(candidates, costs.counter, options)
    return [each.kept(ratio, multiple) for each in candidates]


def _ratio_within(
    candidates: Sequence[_Candidate], costs: PlanCosts, limits: Mapping[BudgetKind, float], multiple: int
) -> float:
    """The smallest ratio, the same for every group, at which all limits hold."""

    def within(ratio: float) -> bool:
        removed = [each.group.channels - len(each.kept(ratio, multiple)) for each in candidates]
        figures = costs.figures(np.array([removed]))
        return all(figures[kind][0] <= limit for kind, limit in limits.items())

    if not within(1.0):
        raise BadInputError(
            "no common ratio meets the budgets; leave the allocation to --allocation knapsack"
        )
    return _smallest_ratio(within)


def _smallest_ratio(enough: Callable[[float], bool]) -> float:
    """The smallest ratio at which enough goes; 1 where no smaller one does."""
    return (
        bisect.bisect_left(range(round(1 / _FINEST)), True, key=lambda step: enough(step * _FINEST)) * _FINEST
    )


def _nothing_to_remove(plans: Sequence[GroupPlan], budgets: Sequence[Budgeted], options: PlanOptions) -> str:
    reasons = "; ".join(f"{plan.root}: {plan.note}" for plan in plans if plan.note)[:400]
    asked = "within these budgets" if budgets else f"at ratio {options.ratio:g}"
    return (
        f"nothing can be removed {asked} with channel multiple {options.channel_multiple} ({reasons}); "
        "raise --ratio or choose a target with a smaller channel multiple"
    )


def _plan_group(candidate: _Candidate, kept: tuple[int, ...], multiple: int) -> GroupPlan:
    group = candidate.group
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
    classifier: Classifier, groups: Sequence[ChannelGroup], scores: FilterScores | None, options: PlanOptions
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
            None if scores is None else group_scores(group, scores),
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

    if (reachable := removed(1.0)) < options.ratio:
        raise BadInputError(
            f"{options.ratio:.1%} of the {options.ratio_of} cannot be removed: with one step of channels left in "
            f"every group that is not locked (channel multiple {options.channel_multiple}), {reachable:.1%} is "
            f"the most; ask for --ratio {math.floor(reachable * 1000) / 1000:g} or less"
        )
    high = _smallest_ratio(lambda ratio: removed(ratio) >= options.ratio)
    low = high - _FINEST
    # Steps of whole channel multiples overshoot; the ratio just below may lie nearer.
    below, above = removed(low), removed(high)
    return low if below > 0 and options.ratio - below < above - options.ratio else high


def _total(size: Size, of: RatioOf) -> int:
    totals: Mapping[str, int] = size.model_dump()
    return totals[of]

"""From scores to a plan: group by group, the filters with the lowest scores go first."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from fsrp_edge.errors import BadInputError, WithinBudgetsError
from fsrp_edge.files import sha256_json
from fsrp_edge.models.channel_graph import Convolution, PruningGraph, find_layer, widths
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.allocation import allocate
from fsrp_edge.pruning.budgets import Budgeted, BudgetKind, Limit, show
from fsrp_edge.pruning.candidates import Candidate, candidates_of, choose_channels
from fsrp_edge.pruning.costs import Costing, PlanCosts
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import Allocation, GroupPlan, PruningPlan
from fsrp_edge.pruning.surgery import smaller
from fsrp_edge.scoring.scores import FilterScores

_FINEST = 2**-24
"""Ratios are solved for to this: finer than one channel of any layer."""


@dataclass(frozen=True)
class Planning:
    """What plans of a network are made from, looked up once for all that are tried.

    Args:
        classifier: the network that was scored.
        scores: of its filters; None before they are scored, when all but `plan` can be asked already.
        options: how much is to go, of what, and what has to stay.
        candidates: its groups.
        costs: what plans come to.
        budgets: what was asked for, beside the dense network's figure and the least; one of parameters or MACs where
            the knapsack was asked for a ratio of these.
    """

    classifier: Classifier
    scores: FilterScores | None
    options: PlanOptions
    candidates: Sequence[Candidate]
    costs: PlanCosts
    budgets: tuple[Budgeted, ...]

    @property
    def limits(self) -> dict[BudgetKind, float]:
        """The most that is allowed."""
        return {each.kind: each.limit for each in self.budgets}

    @property
    def channels(self) -> np.ndarray:
        """Of each group, (groups,)."""
        return np.array([each.group.channels for each in self.candidates])

    def kept(self, counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """So many channels of each group, by its root: those with the highest scores."""
        pairs = zip(self.candidates, counts, strict=True)
        return {each.group.root: each.best(count) for each, count in pairs}

    def plan(self, counts: Sequence[int]) -> PruningPlan:
        """The plan that leaves so many channels of each group.

        Raises:
            BadInputError: nothing would be removed.
        """
        assert self.scores is not None, "plans are made once filters are scored"
        self.require_removal(counts)
        options, kept = self.options, self.kept(counts)
        plans = tuple(_plan_group(each, kept[each.group.root], options.channel_multiple) for each in self.candidates)
        removed = (self.channels - counts)[None]
        figures, totals = self.costs.figures(removed), self.costs.counter.totals(removed)
        share = 1 - float(totals["channels"][0]) / self.costs.counter.dense.channels
        return PruningPlan(
            architecture=self.classifier.spec.architecture,
            model_sha256=self.scores.model_sha256,
            criterion=self.scores.criterion,
            scores_sha256=sha256_json(self.scores.model_dump(mode="json")),
            ratio=round(share, 4) if options.budgets.asked else options.ratio,
            ratio_of="channels" if options.budgets.asked else options.ratio_of,
            channel_multiple=options.channel_multiple,
            allocation=options.chosen_allocation,
            budgets=tuple(
                each.model_copy(update={"planned": float(figures[each.kind][0])})
                for each in self.budgets
                if each.kind in options.budgets.asked
            ),
            groups=plans,
        )

    def require_removal(self, counts: Sequence[int]) -> None:
        """Raise BadInputError where nothing would be removed."""
        if (self.channels == counts).all():
            raise BadInputError(self._nothing_to_remove())

    def _nothing_to_remove(self) -> str:
        reasons = "; ".join(f"{each.group.root}: {each.reason}" for each in self.candidates if each.reason)[:400]
        with_multiple = f"with channel multiple {self.options.channel_multiple} ({reasons})"
        smaller_multiple = "choose a target with a smaller channel multiple"
        if all(each.reason is not None for each in self.candidates):
            return f"nothing can be removed {with_multiple}; lift what keeps layers, or {smaller_multiple}"
        asked = "within these budgets" if self.budgets else f"at ratio {self.options.ratio:g}"
        return f"nothing can be removed {asked} {with_multiple}; raise --ratio or {smaller_multiple}"


def planning_of(
    classifier: Classifier, scores: FilterScores | None, options: PlanOptions, costing: Costing | None = None
) -> Planning:
    """Look up what plans of a network are made from; see `Planning`.

    Raises:
        BadInputError: scores of another network or not one a channel, a pattern that fits no layer, or a budget that
            cannot be reached (the nearest that can is named).
    """
    if scores is not None:
        _require_scores_of(classifier, scores)
    groups = PruningGraph(classifier).groups()
    candidates = candidates_of(classifier, groups, scores, options)
    costs = PlanCosts(classifier, groups, costing)
    return Planning(classifier, scores, options, candidates, costs, _budgets(candidates, costs, options))


def _require_scores_of(classifier: Classifier, scores: FilterScores) -> None:
    model_sha256 = weights_sha256(classifier.network)
    if scores.model_sha256 != model_sha256:
        raise BadInputError(
            f"the scores were made for other weights ({scores.model_sha256[:12]}…) than these ({model_sha256[:12]}…); "
            "score this checkpoint again"
        )
    for name, layer in scores.layers.items():
        _require_fit(name, len(layer.scores), find_layer(classifier.network, name))


def _require_fit(name: str, count: int, layer: object) -> None:
    channels = widths(layer)[1] if isinstance(layer, Convolution | nn.Linear) else 0
    if count != channels:
        raise BadInputError(
            f"there are {count} scores of layer {name}, which has {channels or 'no'} channels; "
            "score this checkpoint again"
        )


def make_plan(
    classifier: Classifier, scores: FilterScores, options: PlanOptions, costing: Costing | None = None
) -> PruningPlan:
    """Plan which channels stay, by scores alone; `pruning.refinement` improves on it with images.

    Args:
        classifier: the network that was scored.
        scores: of its filters.
        options: how much is to go, of what, and what has to stay.
        costing: what budgets of latency, size and memory are reckoned with.

    Raises:
        BadInputError: as `planning_of`, a ratio that cannot be reached, or nothing would be removed.
    """
    planning = planning_of(classifier, scores, options, costing)
    return planning.plan(allocated(planning, options.chosen_allocation))


def require_feasible(classifier: Classifier, options: PlanOptions, costing: Costing | None) -> None:
    """Refuse what is asked for where no scores will make it possible.

    Raises:
        BadInputError: as `make_plan`, or the dense network meets all budgets.
    """
    planning = planning_of(classifier, None, options, costing)
    counts = allocated(planning, "uniform")  # what can't be removed at one ratio, can't be at several
    if options.chosen_allocation != "uniform":
        counts = [each.least for each in planning.candidates]
    planning.require_removal(counts)


def least_network(classifier: Classifier, options: PlanOptions) -> Classifier:
    """The network with as little left as a plan may leave; which channels stay is arbitrary."""
    groups = PruningGraph(classifier).groups()
    kept = {
        each.group.root: choose_channels(np.zeros(each.group.channels), each.least, each.group)
        for each in candidates_of(classifier, groups, None, options)
        if each.least < each.group.channels
    }
    return smaller(classifier, groups, kept)


def _budgets(candidates: Sequence[Candidate], costs: PlanCosts, options: PlanOptions) -> tuple[Budgeted, ...]:
    limits = dict(options.budgets.asked)
    if options.chosen_allocation == "knapsack" and not limits:
        if options.ratio_of == "channels":
            raise BadInputError(
                "--allocation knapsack needs something that costs: give --latency, --macs, --params, --size or "
                "--memory, or --ratio-of parameters or macs"
            )
        limits = {options.ratio_of: Limit(amount=1 - options.ratio, of_dense=True)}
    if not limits:
        return ()
    least = [each.group.channels - each.least for each in candidates]
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
        raise WithinBudgetsError(
            "nothing has to be removed, the dense network is within its budgets: "
            + "; ".join(f"{each.kind} {show(each.kind, each.dense)} ({each.basis})" for each in found)
        )
    return found


def allocated(planning: Planning, allocation: Allocation) -> list[int]:
    """Channels that stay of each group, as an allocation has it.

    Raises:
        BadInputError: no common ratio meets the budgets, or removes the share that was asked for.
    """
    candidates, costs, options = planning.candidates, planning.costs, planning.options
    if allocation == "knapsack":
        removed = allocate([each.levels() for each in candidates], costs.figures, planning.limits)
        left: list[int] = (planning.channels - removed).tolist()
        return left
    if planning.limits:
        return tilted(planning, 0.0)
    ratio = options.ratio
    if options.ratio_of != "channels":
        ratio = _ratio_that_removes(candidates, costs, options)
    return [each.count(ratio) for each in candidates]


def tilted(planning: Planning, tilt: float) -> list[int]:
    """Channels that stay within the limits where the ratio changes evenly from the network's first layers to its last.

    Args:
        planning: with limits.
        tilt: -1 to 1; the first layers' ratio is 1 - tilt times that in the middle, the last layers' 1 + tilt times.

    Raises:
        BadInputError: no such ratio meets the limits.
    """
    candidates, costs = planning.candidates, planning.costs
    factors = 1 + tilt * (2 * _depths(planning.classifier, candidates) - 1)

    def within(ratio: float) -> bool:
        figures = costs.figures(_removed(candidates, np.minimum(ratio * factors, 1.0)))
        return all(figures[kind][0] <= limit for kind, limit in planning.limits.items())

    if not within(1.0):
        raise BadInputError("no common ratio meets the budgets; leave the allocation to --allocation knapsack")
    ratios = np.minimum(_smallest_ratio(within) * factors, 1.0)
    return [each.count(float(ratio)) for each, ratio in zip(candidates, ratios, strict=True)]


def _depths(classifier: Classifier, candidates: Sequence[Candidate]) -> np.ndarray:
    """Where each group is in the network, from 0 at the first to 1 at the last; in the middle of its layers."""
    place = {name: number for number, (name, _) in enumerate(classifier.network.named_modules())}
    middles = np.array([np.mean([place[member.layer] for member in each.group.members]) for each in candidates])
    span = max(float(np.ptp(middles)), 1.0)
    depths: np.ndarray = (middles - middles.min()) / span
    return depths


def _removed(candidates: Sequence[Candidate], ratios: np.ndarray) -> np.ndarray:
    """Channels that go at each group's ratio, (1, groups)."""
    return np.array(
        [[each.group.channels - each.count(float(ratio)) for each, ratio in zip(candidates, ratios, strict=True)]]
    )


def _smallest_ratio(enough: Callable[[float], bool]) -> float:
    """The smallest ratio at which enough goes; 1 where no smaller one does."""
    return bisect.bisect_left(range(round(1 / _FINEST)), True, key=lambda step: enough(step * _FINEST)) * _FINEST


def _ratio_that_removes(candidates: Sequence[Candidate], costs: PlanCosts, options: PlanOptions) -> float:
    """The ratio of channels, the same for every group, that comes nearest to the share of what was asked for."""
    dense: int = costs.counter.dense.model_dump()[options.ratio_of]

    def share(ratio: float) -> float:
        ratios = np.full(len(candidates), ratio)
        return 1 - float(costs.counter.totals(_removed(candidates, ratios))[options.ratio_of][0]) / dense

    if (reachable := share(1.0)) < options.ratio:
        raise BadInputError(
            f"{options.ratio:.1%} of the {options.ratio_of} cannot be removed: with one step of channels left in "
            f"every group that is not locked (channel multiple {options.channel_multiple}), {reachable:.1%} is "
            f"the most; ask for --ratio {math.floor(reachable * 1000) / 1000:g} or less"
        )
    high = _smallest_ratio(lambda ratio: share(ratio) >= options.ratio)
    low = max(high - _FINEST, 0.0)
    # Steps of whole channel multiples overshoot; the ratio just below may lie nearer.
    below, above = share(low), share(high)
    return low if below > 0 and options.ratio - below < above - options.ratio else high


def _plan_group(candidate: Candidate, kept: tuple[int, ...], multiple: int) -> GroupPlan:
    group, note = candidate.group, candidate.reason
    if note is None and len(kept) % multiple:
        note = f"{len(kept)} of {group.channels} channels are nearest to the ratio at steps of {candidate.step}"
    layers = tuple(member.layer for member in group.members)
    return GroupPlan(root=group.root, layers=layers, channels=group.channels, kept=kept, note=note)

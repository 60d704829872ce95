"""Strategies that look at the network again while it shrinks: layer by layer, or in rounds.

The number of channels that stay in each group is that of the one-shot plan; which ones they are is decided by scores of
the network as it is when the group's turn comes. The outcome is a plan for the original checkpoint like any other.
"""

from collections.abc import Callable, Mapping, Sequence

from fsrp_edge.models.channel_graph import ChannelGroup, PruningGraph
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track
from fsrp_edge.pruning.candidates import choose_channels, granularity, group_scores
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan, Strategy
from fsrp_edge.pruning.surgery import smaller
from fsrp_edge.scoring.scores import FilterScores

Scorer = Callable[[Classifier], FilterScores]
Tune = Callable[[Classifier, int], Classifier]
Kept = dict[str, tuple[int, ...]]


def plan_by_strategy(classifier: Classifier, plan: PruningPlan, options: PlanOptions, score: Scorer) -> PruningPlan:
    """Choose channels again as `options.strategy` says.

    Args:
        classifier: the dense network.
        plan: a one-shot plan for it; its counts are kept to.
        options: when filters are scored.
        score: scores a network as it was scored for the plan; called by the strategies that score again.
    """
    match options.strategy:
        case "sequential":
            return plan_sequentially(classifier, plan, score)
        case "gradual":
            return prune_gradually(classifier, plan, score, rounds=options.rounds, multiple=options.channel_multiple)[0]
    return plan


def plan_sequentially(classifier: Classifier, plan: PruningPlan, score: Scorer) -> PruningPlan:
    """Choose again, group by group in the order of the layers, on the network that the earlier groups left.

    Args:
        classifier: the dense network.
        plan: a one-shot plan for it; its counts are kept to.
        score: scores a network; called once a group, so adversarial examples are made against the network as it is.
    """
    order = {name: place for place, (name, _) in enumerate(classifier.network.named_modules())}
    shrinking = sorted((group for group in plan.groups if _shrinks(group)), key=lambda group: order[group.root])
    current, chosen = classifier, Kept()
    for group in track(shrinking, "planning layer by layer", len(shrinking)):
        groups = PruningGraph(current).groups()
        kept = _choose(groups, score(current), {group.root: len(group.kept)})
        current = smaller(current, groups, kept)
        chosen |= kept
    return _with(plan, chosen, "sequential")


def prune_gradually(
    classifier: Classifier,
    plan: PruningPlan,
    score: Scorer,
    *,
    rounds: int,
    multiple: int,
    tune: Tune | None = None,
) -> tuple[PruningPlan, Classifier]:
    """Remove channels in rounds of equal shares, scoring the smaller network before each and tuning it after.

    Args:
        classifier: the dense network.
        plan: a one-shot plan for it; its counts are reached in the last round.
        score: scores a network; called once a round.
        rounds: at least 1.
        multiple: channel multiple that intermediate counts keep, where the last ones do.
        tune: recovers the network that a round left, whose number from 1 it is given; not called after the last round,
            which the recovery proper follows.

    Returns:
        The plan for the original network, and the network as the last round left it: where nothing was tuned, that is
        the plan applied.
    """
    current = classifier
    shrinking = [group for group in plan.groups if _shrinks(group)]
    alive: Kept = {group.root: tuple(range(group.channels)) for group in shrinking}
    for number in track(range(1, rounds + 1), "pruning in rounds", rounds):
        groups = PruningGraph(current).groups()
        steps = {group.root: granularity(group, multiple) for group in groups}
        counts = {group.root: _intermediate(group, number / rounds, steps[group.root]) for group in shrinking}
        kept = _choose(groups, score(current), counts)
        current = smaller(current, groups, kept)
        alive = {root: tuple(alive[root][place] for place in places) for root, places in kept.items()}
        if tune is not None and number < rounds:
            current = tune(current, number)
    return _with(plan, alive, "gradual"), current


def _shrinks(group: GroupPlan) -> bool:
    return len(group.kept) < group.channels


def _intermediate(group: GroupPlan, share: float, step: int) -> int:
    """Channels to keep when `share` of the way is gone, in whole steps and never fewer than at the end."""
    exact = group.channels - share * (group.channels - len(group.kept))
    return len(group.kept) if share == 1 else max(len(group.kept), int(exact // step * step))


def _choose(groups: Sequence[ChannelGroup], scores: FilterScores, counts: Mapping[str, int]) -> Kept:
    """The best channels of some groups, so many of each, numbered as in the network of these groups."""
    chosen: Kept = {}
    for group in groups:
        if group.root in counts:
            values = group_scores(group, scores)
            assert values is not None, "the one-shot plan shrinks scored groups only"
            chosen[group.root] = choose_channels(values, counts[group.root], group)
    return chosen


def _with(plan: PruningPlan, chosen: Kept, strategy: Strategy) -> PruningPlan:
    groups = tuple(group.model_copy(update={"kept": chosen.get(group.root, group.kept)}) for group in plan.groups)
    return plan.model_copy(update={"groups": groups, "strategy": strategy})

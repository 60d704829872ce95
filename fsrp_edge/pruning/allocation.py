"""How many channels stay of each group, so that budgets hold and the criterion loses least.

A knapsack over groups at the device's channel steps, in the manner of HALP (Shen et al., arXiv 2110.10811). What a
step saves depends on the groups around it, since a layer's work is the product of its inputs and outputs, so the costs
are those of the network as it stands at each step: the step that loses least for what it saves goes first, and then
steps are given back and exchanged between groups until no single exchange helps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsrp_edge.pruning.budgets import BudgetKind

Figures = Callable[[np.ndarray], Mapping[BudgetKind, np.ndarray]]
"""What plans come to: from channels removed (plans, groups) to (plans,) of each kind of budget."""

MOST_EXCHANGES = 100
_BATCH = 256


@dataclass(frozen=True)
class Levels:
    """What a group may lose, step by step.

    Args:
        removed: (levels,) channels that go, from 0 upwards.
        losses: (levels,) what the criterion loses with them.
    """

    removed: np.ndarray
    losses: np.ndarray


def allocate(levels: Sequence[Levels], figures: Figures, limits: Mapping[BudgetKind, float]) -> np.ndarray:
    """Channels to remove of each group, (groups,).

    Args:
        levels: of each group; one with a single level stays as it is.
        figures: what a plan costs.
        limits: the most that is allowed; taking every group's last level meets them.
    """
    search = Search(levels, figures, limits)
    chosen = search.shrink(np.zeros(len(levels), dtype=int))
    for _ in range(MOST_EXCHANGES):
        better = search.exchange(search.give_back(chosen))
        if better is None:
            break
        chosen = better
    removed: np.ndarray = search.removed(search.give_back(chosen)[None])[0]
    return removed


class Search:
    """Moves between choices of one level a group."""

    def __init__(self, levels: Sequence[Levels], figures: Figures, limits: Mapping[BudgetKind, float]) -> None:
        self.limits = limits
        self._figures = figures
        self._last = np.array([len(each.removed) - 1 for each in levels])
        width = int(self._last.max()) + 1
        self._removed = np.stack([np.pad(each.removed, (0, width - len(each.removed))) for each in levels])
        self._losses = np.stack([np.pad(each.losses, (0, width - len(each.losses))) for each in levels])

    def removed(self, choices: np.ndarray) -> np.ndarray:
        """Channels that go, (choices, groups)."""
        found: np.ndarray = self._removed[np.arange(choices.shape[1]), choices]
        return found

    def nearest(self, chosen: np.ndarray) -> np.ndarray:
        """A choice that meets the limits and leaves no room, reached from another in the cheapest steps."""
        return self.give_back(self.shrink(chosen))

    def shrink(self, chosen: np.ndarray) -> np.ndarray:
        """Take the step that loses least for what it saves, until the limits are met."""
        while True:
            now = self._costs(chosen[None])
            over = {kind: now[kind][0] - limit for kind, limit in self.limits.items() if now[kind][0] > limit}
            groups = np.flatnonzero(chosen < self._last)
            if not over or not len(groups):
                return chosen
            steps = chosen + np.eye(len(chosen), dtype=int)[groups]
            after = self._costs(steps)
            saved = sum(np.minimum((now[kind] - after[kind]) / excess, 1) for kind, excess in over.items())
            lost = self._loss(steps) - self._loss(chosen[None])
            # A step that saves nothing by itself (the overhead of narrow layers grew) comes last.
            chosen = steps[np.argmin(lost / np.maximum(saved, 1e-12))]

    def give_back(self, chosen: np.ndarray) -> np.ndarray:
        """Take back the steps that the limits leave room for, those that lost most first."""
        while True:
            groups = np.flatnonzero(chosen > 0)
            steps = chosen - np.eye(len(chosen), dtype=int)[groups]
            steps = steps[self._fits(steps)] if len(groups) else steps
            if not len(steps):
                return chosen
            chosen = steps[np.argmin(self._loss(steps))]

    def exchange(self, chosen: np.ndarray) -> np.ndarray | None:
        """A step or two back in a group for one or two more in another, where that loses less; None where none does."""
        unit = np.eye(len(chosen), dtype=int)
        steps = np.concatenate(
            [
                (chosen + more * unit[:, None] - back * unit[None]).reshape(-1, len(chosen))
                for more, back in ((1, 1), (2, 1), (1, 2))
            ]
        )
        steps = steps[np.all((steps >= 0) & (steps <= self._last), axis=1)]
        losses = self._loss(steps) if len(steps) else np.zeros(0)
        order = np.argsort(losses, kind="stable")
        order = order[losses[order] < self._loss(chosen[None])[0] - 1e-9]
        for start in range(0, len(order), _BATCH):
            batch = steps[order[start : start + _BATCH]]
            fitting = batch[self._fits(batch)]
            if len(fitting):
                best: np.ndarray = fitting[0]
                return best
        return None

    def _costs(self, choices: np.ndarray) -> Mapping[BudgetKind, np.ndarray]:
        return self._figures(self.removed(choices))

    def _fits(self, choices: np.ndarray) -> np.ndarray:
        costs = self._costs(choices)
        fits: np.ndarray = np.all([costs[kind] <= limit for kind, limit in self.limits.items()], axis=0)
        return fits

    def _loss(self, choices: np.ndarray) -> np.ndarray:
        total: np.ndarray = self._losses[np.arange(choices.shape[1]), choices].sum(1)
        return total

"""Plans weighed as wholes: channels move between groups for as long as the network's outputs move less with it.

First come a common ratio and ratios that rise or fall through the network; the search starts at the best of these. What
a group loses alone says little of what it loses when all others shrink as well, so the worth of a step is measured
around the plan at hand. In each round every group is tried with more and with fewer channels; the knapsack chooses
within that range as if the differences added up; and its plan is taken if the whole network confirms it, else the range
is halved: a trust-region method, in the terms of optimization (Conn, Gould and Toint, *Trust-Region Methods*, 2000).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import read_json, sha256_json, write_json
from fsrp_edge.models.channel_graph import PruningGraph
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.progress import log, track
from fsrp_edge.pruning.allocation import Levels, Search, allocate
from fsrp_edge.pruning.compensation import DenseOutputs
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import Planning, allocated, planning_of, tilted
from fsrp_edge.pruning.surgery import cut, removed_outputs
from fsrp_edge.scoring.scores import FilterScores

TILTS = (0.0, -0.25, -0.5, -0.75, -1.0, 0.25, 0.5, 0.75, 1.0)
"""Of the first plans; see `planning.tilted`."""
ROUNDS, TRIALS = 6, 120
"""At most; trials are forward passes, two for each group in a round."""
FIRST_RANGE = 4
"""The first round tries a quarter of a group's channels more or fewer."""
WORTH_IT = 0.95
"""A plan is taken where outputs move by less than this of what they moved by before: smaller gains are within what a
recovery changes (`benchmarks/budget_allocation.py`)."""
ROWS = 4096
"""Places that a trial is compensated at: with a quarter of them, chance ranked the plans of a ResNet-20."""
FITTED_SHARE = 1 / 2
"""Of the images; the others judge."""
TEMPERATURES = tuple(10 ** (step / 20) for step in range(-10, 31))


def probe_images(spec: ModelSpec) -> int:
    """How many images are worth their time: each is run once for every trial."""
    height, width = spec.input_shape[1:]
    return min(max(2**20 // (height * width), 64), 1024)


def most_trials(groups: int) -> int:
    """Of a plan for so many groups that may lose channels."""
    return len(TILTS) + _rounds(groups) * (2 * groups + 1)


def _rounds(groups: int) -> int:
    return min(ROUNDS, max(1, TRIALS // (2 * groups + 1)))


class Gauge:
    """How far a network's outputs move when channels go.

    Where pruning will compensate, so does each trial, on some of the images, and the others judge. Where it will not,
    batch norm uses the statistics of the images, as it would be recalibrated after pruning.

    Args:
        classifier: the dense network; it is left as it is.
        images: a few hundred; labels are not needed.
        compensated: whether pruning will compensate.
        unfinished: file of what was measured so far, of this network and these images; a search that was interrupted
            goes on from it.
    """

    def __init__(
        self, classifier: Classifier, images: ImageSet, *, compensated: bool, unfinished: Path | None = None
    ) -> None:
        self.classifier, self._compensated = classifier, compensated
        self._unfinished = unfinished
        self._known: dict[str, float] = read_json(unfinished) if unfinished and unfinished.exists() else {}
        self._groups = PruningGraph(classifier).groups()
        fitted = round(FITTED_SHARE * len(images))
        self._dense = DenseOutputs(classifier, images, fitted=fitted, rows=ROWS)
        self._judged = slice(fitted, None) if compensated else slice(None)

    def divergence(self, kept: Mapping[str, Sequence[int]]) -> float:
        """`tempered_divergence` of the outputs with these channels left of the groups that are named.

        Raises:
            ToolFailedError: the smaller network does not run or lost classes.
        """
        key = sha256_json({root: list(channels) for root, channels in kept.items()})
        if key in self._known:
            return self._known[key]
        moved = self._measured(kept)
        if self._unfinished and math.isfinite(moved):  # JSON has no NaN
            self._known[key] = moved
            write_json(self._unfinished, self._known)
        return moved

    def _measured(self, kept: Mapping[str, Sequence[int]]) -> float:
        pruned = cut(self.classifier, self._groups, kept)
        if self._compensated:
            logits = self._dense.fit(pruned, removed_outputs(self._groups, kept))
        else:
            logits = _renormalized(pruned, self._dense.pixels)
        return tempered_divergence(logits[self._judged], self._dense.logits[self._judged])


def tempered_divergence(logits: Tensor, wanted: Tensor) -> float:
    """Kullback and Leibler's divergence, in nats an image, at the temperature that serves the network best.

    One that lost much is too sure of itself, which a recovery mends first, and which says nothing of what the network
    can still tell apart: at temperature 1 it ranked plans of a ResNet-20 against the accuracy that they came to.

    Args:
        logits: (N, classes) of the smaller network.
        wanted: the same of the dense one, whose temperature is 1.

    Returns:
        Infinity where logits are NaN: there is no worse plan.
    """
    before = F.log_softmax(wanted, 1)
    found = (
        float(F.kl_div(F.log_softmax(logits / each, 1), before, log_target=True, reduction="batchmean"))
        for each in TEMPERATURES
    )
    return min((each for each in found if not math.isnan(each)), default=math.inf)


def _renormalized(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Logits with batch norm by the statistics of these images."""
    with torch.no_grad(), attackable(classifier):
        for module in classifier.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
                module.momentum = 0.0
        logits: Tensor = classifier(pixels).float()
    return logits


class Planner:
    """Makes plans within budgets for one network.

    The first plan is refined; those for other budgets are the nearest to it, without further trials.

    Args:
        gauge: of the dense network.
        scores: of its filters.
    """

    def __init__(self, gauge: Gauge, scores: FilterScores) -> None:
        self._gauge, self._scores = gauge, scores
        self._refined: np.ndarray | None = None

    def plan(self, options: PlanOptions, costing: Costing | None) -> PruningPlan:
        """The plan for these budgets.

        Raises:
            BadInputError: as `make_plan`.
            ToolFailedError: as `Gauge.divergence`.
        """
        planning = planning_of(self._gauge.classifier, self._scores, options, costing)
        levels = [each.levels() for each in planning.candidates]
        search = Search(levels, planning.costs.figures, planning.limits)
        if self._refined is None:
            self._refined = search.nearest(_Refinement(planning, self._gauge, levels, search).run())
        removed = search.removed(search.nearest(self._refined)[None])[0]
        return planning.plan((planning.channels - removed).tolist())


class _Refinement:
    """One search, over choices of a level for each group."""

    def __init__(self, planning: Planning, gauge: Gauge, levels: Sequence[Levels], search: Search) -> None:
        self._planning, self._gauge, self._levels, self._search = planning, gauge, levels, search
        self._last = np.array([len(each.removed) - 1 for each in levels])

    def run(self) -> np.ndarray:
        """The best choice that was found."""
        starts = self._starts()
        tried = [self._moved(each) for each in track(starts, "weighing plans", len(starts))]
        chosen, moved = starts[int(np.argmin(tried))], min(tried)
        reach = np.maximum(1, self._last // FIRST_RANGE)
        rounds = _rounds(int((self._last > 0).sum()))
        for _ in track(range(rounds), "exchanging channels", rounds):
            proposed = self._propose(chosen, moved, reach)
            if (after := self._moved(proposed)) < WORTH_IT * moved:
                chosen, moved = proposed, after
            elif reach.max() == 1:
                break
            else:
                reach = np.maximum(1, reach // 2)
        log(f"plan: outputs move by {moved:.3g} nats an image, where the first plan moved them by {tried[0]:.3g}")
        return chosen

    def _starts(self) -> list[np.ndarray]:
        """A common ratio and tilted ones, or what the knapsack makes of the scores where no ratio will do."""
        found = []
        for tilt in TILTS:
            with suppress(BadInputError):
                found.append(tilted(self._planning, tilt))
        choices = [
            self._search.give_back(self._choice(self._planning.channels - counts))
            for counts in found or [allocated(self._planning, "knapsack")]
        ]
        return [np.array(each) for each in dict.fromkeys(tuple(each.tolist()) for each in choices)]

    def _choice(self, removed: np.ndarray) -> np.ndarray:
        """The levels at which so many channels go."""
        pairs = zip(self._levels, removed, strict=True)
        return np.array([list(level.removed).index(gone) for level, gone in pairs])

    def _moved(self, chosen: np.ndarray) -> float:
        removed = self._search.removed(chosen[None])[0]
        return self._gauge.divergence(self._planning.kept((self._planning.channels - removed).tolist()))

    def _propose(self, chosen: np.ndarray, moved: float, reach: np.ndarray) -> np.ndarray:
        """The knapsack's choice within reach, as if what each group changes alone added up."""
        low, high = np.maximum(chosen - reach, 0), np.minimum(chosen + reach, self._last)
        near = []
        for group, level in enumerate(track(self._levels, "trying groups with more and fewer channels")):
            places = [low[group], chosen[group], high[group]]
            losses = [min(self._alone(chosen, moved, group, places[0]), moved), moved]
            losses.append(max(self._alone(chosen, moved, group, places[2]), moved))
            span = np.arange(low[group], high[group] + 1)
            near.append(Levels(level.removed[span], np.interp(span, places, losses)))
        return self._choice(allocate(near, self._planning.costs.figures, self._planning.limits))

    def _alone(self, chosen: np.ndarray, moved: float, group: int, place: int) -> float:
        """How far outputs move with one group at another level."""
        if place == chosen[group]:
            return moved
        changed = chosen.copy()
        changed[group] = place
        return self._moved(changed)

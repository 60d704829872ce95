"""What plans come to, in the units of budgets, without pruning or exporting anything."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fsrp_edge import wording
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.files import sha256_json
from fsrp_edge.models.channel_graph import ChannelGroup
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.pruning.budgets import BudgetKind
from fsrp_edge.pruning.counting import SizeCounter
from fsrp_edge.targets.costs import DeviceCosts
from fsrp_edge.targets.elastic import ElasticGraph
from fsrp_edge.targets.graph_cost import GraphCost
from fsrp_edge.targets.work import BYTES


@dataclass(frozen=True)
class Costing:
    """What budgets on a device are reckoned with; none of it is needed for MACs and parameters.

    Args:
        graph: of the dense network, weights under their names in the network (`layer1.0.conv1`).
        device: what its operators cost.
        precision: of the file that is judged.
        trials: by kind, ascending pairs of what was reckoned and what trials of real files found; what lies between
            them is interpolated.
        basis: by kind, how that was found, where there were trials.
    """

    graph: GraphCost
    device: DeviceCosts
    precision: Precision
    trials: dict[BudgetKind, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    basis: dict[BudgetKind, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what plans depend on, beside the network."""
        return sha256_json(
            {
                "costs": self.device.nanoseconds.tolist(),
                "computed in": self.device.computed_in,
                "precision": self.precision,
                "trials": dict(self.trials),
                "basis": self.device.basis,
            }
        )


class PlanCosts:
    """Counts and estimates for many plans of one network at once.

    Args:
        classifier: the dense network; run once.
        groups: its channel groups.
        costing: for latency, size and memory; None where only MACs and parameters matter.
    """

    def __init__(self, classifier: Classifier, groups: Sequence[ChannelGroup], costing: Costing | None) -> None:
        self.counter = SizeCounter(classifier, groups)
        self._costing = costing
        self._elastic: ElasticGraph | None = None
        if costing is not None:
            self._elastic = ElasticGraph(costing.graph, self.counter.output_shares(), len(groups))

    def figures(self, removed: np.ndarray) -> dict[BudgetKind, np.ndarray]:
        """Milliseconds, MACs, parameters and bytes, each (plans,), of channels removed (plans, groups)."""
        totals = self.counter.totals(removed)
        found: dict[BudgetKind, np.ndarray] = {"macs": totals["macs"], "parameters": totals["parameters"]}
        if self._costing is None or self._elastic is None:
            return found
        work, elements, peak = self._elastic.cost(removed)
        width = BYTES[self._costing.precision]
        found["latency"] = self._costing.device.milliseconds(work).sum(1)
        found["size"] = elements * width
        found["memory"] = (elements + peak) * width
        for kind, trials in self._costing.trials.items():
            reckoned, tried = np.array(trials).T
            found[kind] = np.interp(found[kind], reckoned, np.maximum.accumulate(tried))
        return found

    def basis(self, kind: BudgetKind) -> str:
        """How a figure was found, in a few words."""
        if self._costing is None or kind in ("macs", "parameters"):
            return "counted"
        device, precision = self._costing.device, self._costing.precision
        usual = f"reckoned in {precision}"
        if kind == "latency":
            usual = f"estimated for {device.runtime}, {wording.threads(device.threads)}, {precision}: {device.basis}"
        return self._costing.basis.get(kind, usual)

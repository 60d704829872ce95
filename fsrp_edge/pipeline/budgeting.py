"""Budgets in a run: what they are reckoned with, trials of real files before the long work, the verdict after it."""

import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fsrp_edge import progress
from fsrp_edge.bench.address import Address
from fsrp_edge.bench.agreement import Origin
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import DEFAULT_RUNTIMES, SUFFIXES, Method, Setup
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.exporting.onnx import named_model
from fsrp_edge.exporting.options import DEFAULTS, ExportOptions
from fsrp_edge.exporting.verified import facts_of
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.models.size import measure_size
from fsrp_edge.packages import installed_version
from fsrp_edge.pruning.budgets import Budgeted, BudgetKind, Budgets, Limit, show, show_apart
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import ChannelOptions, PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.refinement import Gauge, Planner, probe_images
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.records import Record
from fsrp_edge.report import schema
from fsrp_edge.report.gates import doubt
from fsrp_edge.report.provenance import this_machine
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.targets.costs import DeviceCosts, device_costs, pool_costs, unit_of
from fsrp_edge.targets.graph_cost import GraphCost, Link, graph_cost
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.profile import Target
from fsrp_edge.targets.this_machine import is_this_machine
from fsrp_edge.targets.work import BYTES, Work

_TIMERS = ("onnxruntime", "ai-edge-litert", "ncnn")
"""Packages of the runtimes that time files on this machine."""
TRIALS = 4
"""Plans that are tried as real files at most."""
CLOSE = 0.92
"""A trial between this share of its limit and the limit is close enough."""
MARGIN = 0.97
"""Share of a measured limit that plans aim at: the measurement at the end has its own scatter. Plans are made with what
trials found over this."""
TRIAL_METHOD = Method(runs=60, seconds=1.5, rounds=3, warmup_seconds=0.3)
TRIED: tuple[BudgetKind, ...] = ("latency", "size")
PROPORTIONS = "proportions of other devices"
"""Basis of costs that tell one network's latency against another's, but no milliseconds."""
_ORDER: tuple[Precision, ...] = ("fp32", "fp16", "int8-dynamic", "int8")


class Trial(Record):
    """What the files of one network came to: the largest file, and the slowest where latency was measured."""

    found: dict[BudgetKind, float]
    reckoned: dict[BudgetKind, float]
    """Before any trial."""


@dataclass(frozen=True)
class Workplace:
    """What budgets of one run are judged by.

    Args:
        target: the device profile.
        requests: files that are made; a budget holds for each of them.
        device: where latency is measured.
        threads: of a measurement.
        images: to calibrate int8 files of trials with; a few suffice, only their size and speed count.
        options: what files of trials are made with.
    """

    target: Target
    requests: Sequence[ArtifactRequest]
    device: Address
    threads: int
    images: ImageSet
    options: ExportOptions = DEFAULTS

    @property
    def on_target(self) -> bool:
        """Whether what files are timed on is the target: a device was named, or the target is this machine."""
        return self.device.kind != "local" or is_this_machine(self.target)

    @property
    def measured(self) -> bool:
        """Whether latency is measured on the target."""
        return self.on_target and bool(self.runtimes)

    @property
    def runtimes(self) -> dict[Format, str]:
        """What times the files of each format; not of every format."""
        return timed_by(self.target, self.requests, on_target=self.on_target)

    @property
    def measured_by(self) -> dict[str, str | None]:
        """What decides a time on this machine, beside the file: its processor and the versions of the runtimes."""
        if self.device.kind != "local":
            return {}
        return {"cpu": this_machine().cpu} | {name: installed_version(name) for name in _TIMERS}

    @property
    def precision(self) -> Precision:
        """That of the largest and slowest file."""
        widest = min((request.precision for request in self.requests), key=_ORDER.index)
        return "int8" if widest == "int8-dynamic" else widest

    def tried(self, budgets: Budgets) -> tuple[BudgetKind, ...]:
        """Budgets that real files are held against before the long work."""
        return tuple(kind for kind in TRIED if kind in budgets.asked and (kind == "size" or self.measured))

    def costing(self, classifier: Classifier, *, absolute: bool) -> Costing:
        """What plans for a network are reckoned with; `absolute` where times are not corrected by trials.

        Raises:
            BadInputError: nothing is known to estimate absolute times with.
        """
        runtimes = timed_by(self.target, self.requests, on_target=True).values()  # wherever files are timed
        graph = named_graph(classifier)
        return costing(graph, self.target, self.precision, list(dict.fromkeys(runtimes)), absolute=absolute)

    def setup(self, spec: ModelSpec, origins: Mapping[str, Origin] | None = None) -> Setup:
        """How files of a network are timed."""
        return Setup(
            preferred=tuple(self.runtimes.values()),
            threads=self.threads,
            input_shape=spec.input_shape,
            origins=origins or {},
        )

    def try_network(self, classifier: Classifier, costs: Costing, kinds: Sequence[BudgetKind]) -> Trial:
        """Hold what is reckoned of a network against its files."""
        graph = named_graph(classifier)
        reckoned: dict[BudgetKind, float] = {
            "latency": estimate_of(graph, costs.device),
            "size": float(graph.parameters * BYTES[costs.precision]),
        }
        return Trial(found=self.try_files(classifier, kinds), reckoned={kind: reckoned[kind] for kind in kinds})

    def try_files(self, classifier: Classifier, kinds: Sequence[BudgetKind]) -> dict[BudgetKind, float]:
        """Export a network and measure what budgets limit."""
        with tempfile.TemporaryDirectory() as folder:
            artifacts = export_artifacts(
                classifier,
                self.requests,
                Path(folder),
                self._export_plan(classifier),
            )
            figures: dict[BudgetKind, float] = {"size": max(artifact.bytes for artifact in artifacts)}
            if "latency" in kinds:
                files = [Path(folder) / each.path for each in artifacts if each.format in self.runtimes]
                setup = self.setup(classifier.spec)
                found = measure_on(self.device, files, setup, method=TRIAL_METHOD)
                figures["latency"] = max(each.latency.p50_ms for each in found)
        return {kind: figures[kind] for kind in kinds}

    def _export_plan(self, classifier: Classifier) -> ExportPlan:
        """Files as they are shipped, with all that these say of themselves: labels can weigh as much as a layer."""
        digest = weights_sha256(classifier)
        facts = facts_of(classifier, digest, self.images, self.target, self.options)
        return ExportPlan(self.target, options=self.options, calibration=self.images, metadata=facts)


def timed_by(target: Target, requests: Sequence[ArtifactRequest], *, on_target: bool) -> dict[Format, str]:
    """Runtimes by format: on the target the first for it that the profile lists, elsewhere the usual ones."""
    own = [each.name for each in target.runtimes] if on_target else []
    return {
        request.format: next((name for name in own if SUFFIXES.get(name) == SUFFIXES[usual]), usual)
        for request in requests
        if (usual := DEFAULT_RUNTIMES.get(request.format))
    }


def named_graph(classifier: Classifier) -> GraphCost:
    """The operators of a network, their weights under the names of its layers."""
    graph, network = graph_cost(named_model(classifier)), classifier.network
    layers = {name for name, _ in (*network.named_modules(), *network.named_parameters())}
    return replace(graph, links=tuple(replace(link, weight=_layer_of(link, layers)) for link in graph.links))


def _layer_of(link: Link, layers: Container[str]) -> str | None:
    """Whose weight it is; none for the matrices that exporters get in place of uneven pooling."""
    if link.weight is None:
        return None
    name = link.weight.removeprefix("network.").removesuffix(".weight")
    return name if name in layers else None


def costing(
    graph: GraphCost,
    target: Target,
    precision: Precision,
    runtimes: Sequence[str],
    *,
    absolute: bool = True,
) -> Costing:
    """Costs of the slowest of the runtimes, or else of the target's default.

    Args:
        graph: of `named_graph`.
        target: the device profile.
        precision: of the file that is judged.
        runtimes: that run the files.
        absolute: False where only proportions matter, so that any device's do.

    Raises:
        BadInputError: nothing is known to estimate with.
    """
    known = [found for name in runtimes if (found := _known(target, precision, name))]
    if known:
        return Costing(graph, max(known, key=lambda each: estimate_of(graph, each)), precision)
    try:
        return Costing(graph, device_costs(target, precision), precision)
    except BadInputError:
        if absolute:
            raise
        runtime = runtimes[0] if runtimes else target.runtimes[0].name
        unit = unit_of(target, runtime)
        costs = pool_costs(runtime, precision, unit)
        device = DeviceCosts(costs, precision, 1.0, False, PROPORTIONS, runtime, target.threads, unit)
        return Costing(graph, device, precision)


def _known(target: Target, precision: Precision, runtime: str) -> DeviceCosts | None:
    """Costs of a runtime; None where the target has no such runtime, or nothing is known of it."""
    try:
        return device_costs(target, precision, runtime=runtime)
    except BadInputError:
        return None


def estimate_of(graph: GraphCost, device: DeviceCosts) -> float:
    """Milliseconds of a graph."""
    return float(device.milliseconds(Work.of(graph.operators)).sum())


def settle(place: Workplace, costs: Costing, dense: Trial, least: Trial, budgets: Budgets) -> tuple[Costing, Budgets]:
    """Costing and budgets once files were tried: shares become amounts.

    Args:
        place: where they were tried.
        costs: of `Workplace.costing`.
        dense: of the dense network.
        least: of the least that a plan may leave.
        budgets: as they were asked for.
    """
    limits = {kind: Limit(amount=budgets.asked[kind].of(figure)) for kind, figure in dense.found.items()}
    costs = _with_trial(place, _with_trial(place, costs, dense), least)
    return costs, Budgets.model_validate(budgets.asked | limits)


def _with_trial(place: Workplace, costs: Costing, trial: Trial) -> Costing:
    """Costing by which the tried files come to what was found."""
    scatter = f"and {1 / MARGIN - 1:.0%} more for scatter"
    words = {"latency": f"from trial files measured on {place.device.name}, {scatter}", "size": "from trial files"}
    trials = dict(costs.trials)
    for kind, reckoned in trial.reckoned.items():
        found = trial.found[kind] / (MARGIN if kind == "latency" else 1.0)
        trials[kind] = tuple(sorted((dict(trials.get(kind, ())) | {reckoned: found}).items()))
    return replace(costs, trials=trials, basis={kind: words[kind] for kind in trials})


def plan_with_trials(
    place: Workplace,
    costs: Costing,
    dense: Classifier,
    wanted: PlanOptions,
    make: Callable[[PlanOptions, Costing], PruningPlan],
) -> Costing:
    """Plan, try the plan's files and learn from them, until a trial is within and close to its limits.

    Args:
        place: what is tried, and where.
        costs: of `settle`.
        dense: the dense network.
        wanted: what the plan is asked for, budgets as `settle` left them.
        make: makes a plan.

    Returns:
        The costing whose plan came closest.
    """
    kinds = place.tried(wanted.budgets)
    best: tuple[tuple[bool, float], Costing] | None = None
    for number in range(TRIALS if kinds else 0):
        plan = make(wanted, costs)
        planned = {each.kind: each for each in plan.budgets}
        trial = place.try_network(apply_plan(dense, plan), costs, kinds)
        used = {kind: figure / planned[kind].limit for kind, figure in trial.found.items()}
        told = ", ".join(
            f"{kind} {' of '.join(show_apart(kind, figure, planned[kind].limit))}"
            for kind, figure in trial.found.items()
        )
        progress.log(f"budgets: trial {number + 1}: {told}")
        most = max(used.values())
        distance = most > 1, abs(1 - most)  # above a limit is worse than any distance below it
        if best is None or distance < best[0]:
            best = distance, costs
        if CLOSE <= most <= 1:
            break
        costs = _with_trial(place, costs, trial)
    return costs if best is None else best[1]


def plan_outside_of_runs(
    dense: Classifier,
    scores: FilterScores,
    wanted: ChannelOptions,
    target: str | None,
    images: ImageSet | None,
    *,
    seed: int,
    compensated: bool,
) -> PruningPlan:
    """The plan of `fsrp-edge prune`: no files are tried, so what can't be counted is estimated.

    Args:
        dense: the network.
        scores: of its filters.
        wanted: how channels are to be chosen.
        target: name or path of a device profile, for its channel multiple and what budgets are reckoned with.
        images: for training, which the knapsack draws from to weigh plans; None where there is no knapsack.
        seed: of the draw.
        compensated: whether pruning will compensate.
    """
    profile = None if target is None else load_target(target)
    multiple = profile.channel_multiple if profile else 1
    costs = None
    if profile is not None and wanted.budgets.asked.keys() - {"macs", "parameters"}:
        # Which files are made is not known here: those of runtimes that were measured, if there are any.
        names, absolute = [each.name for each in profile.runtimes], wanted.budgets.latency is not None
        runtimes = [name for name in names if (found := _known(profile, "fp32", name)) and found.calibrated]
        costs = costing(named_graph(dense), profile, "fp32", runtimes, absolute=absolute)
    asked = PlanOptions(**dict(wanted), channel_multiple=multiple)
    if wanted.chosen_allocation == "knapsack":
        assert images is not None
        gauge = Gauge(dense, images.sample(probe_images(dense.spec), seed), compensated=compensated)
        plan = Planner(gauge, scores).plan(asked, costs)
    else:
        plan = make_plan(dense, scores, asked, costs)
    log_plan(plan)
    return plan


def log_plan(plan: PruningPlan) -> None:
    """Tell what a plan comes to before the long work starts."""
    for each in plan.budgets:
        progress.log(f"plan: {each.told}")


def verdict(
    place: Workplace, network: Classifier, budget: Budgeted, rows: Sequence[schema.LedgerRow]
) -> schema.GateResult:
    """A budget of the plan against what the run ended with: the recovered network and the rows of its files."""
    kind, files = budget.kind, [row for row in rows if row.bytes is not None and not row.is_dense]
    size, row, basis, disturbed, dense = measure_size(network), None, "counted", "", budget.dense
    if kind in ("macs", "parameters"):
        value = float(getattr(size, kind))
    elif kind == "size":
        largest = max(files, key=lambda each: each.bytes or 0)
        value, row, basis = float(largest.bytes or 0), largest.name, f"the largest file, {largest.name}"
    elif kind == "latency" and place.measured:
        slowest = max((each for each in files if each.latency), key=lambda each: each.latency[0].p50_ms)
        value, row = slowest.latency[0].p50_ms, slowest.name
        basis = f"measured p50 of the slowest file, {slowest.name}, on {slowest.latency[0].device}"
        disturbed, dense = "; ".join(slowest.latency[0].invalid_because), budget.dense * MARGIN
    elif kind == "latency":
        costs = place.costing(network, absolute=True)
        value, basis = estimate_of(costs.graph, costs.device), f"estimated, {costs.device.basis}"
    else:
        graph = named_graph(network)
        value = float((graph.parameters + graph.peak_elements) * BYTES[place.precision])
        basis = f"weights and activations, reckoned in {place.precision}"
    passed = value <= budget.limit * (1 + 1e-6)
    shown, limit = show_apart(kind, value, budget.limit)
    return schema.GateResult(
        gate=f"{kind}<={limit}",
        passed=passed,
        row=row,
        value=value,
        judged=value,
        bound=budget.limit,
        message=f"{shown} ({basis}); dense {show(kind, dense)}" + doubt(passed, disturbed),
    )

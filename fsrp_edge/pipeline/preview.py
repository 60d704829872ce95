"""preview(): what `compress` would do, how long it would take and how much room, without doing it."""

import shutil
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fsrp_edge import compute, wording
from fsrp_edge.attacks import attackable, input_gradient
from fsrp_edge.bench.setup import Method
from fsrp_edge.data.images import Dataset
from fsrp_edge.errors import BadInputError, WithinBudgetsError
from fsrp_edge.evaluation.evaluate import pgd_of
from fsrp_edge.evaluation.files import QUERIES
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import PROPORTIONS, TRIAL_METHOD, TRIALS
from fsrp_edge.pipeline.inputs import Inputs, prepare
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pruning.budgets import Budgeted, Budgets, show
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan, require_feasible
from fsrp_edge.pruning.refinement import most_trials, probe_images
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.report.gates import parse_gate
from fsrp_edge.scoring.rivals import LOOKS_AT_IMAGES, Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.work import BYTES

SECONDS_TO_EXPORT = 15.0
"""Of one file with its checks; between 3 and 30 on the machines it was tried on."""
FORWARDS_A_TRIAL = 4
"""What a trial of a plan takes with its compensation: 1 to 2 forward passes of a ResNet-20, 5 of a wide VGG16."""
AUTOATTACK_STEPS = 1500
"""Gradient steps of an image, on average, where about half of the images fall."""


@dataclass(frozen=True)
class Step:
    """One part of the run.

    Args:
        name: what is done.
        detail: how much of it.
        seconds: how long it will take here, extrapolated from a few batches.
    """

    name: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Args:
        directory: where it would leave its results.
        resumes: stages that are there already; each is used again if nothing that it depends on has changed.
        steps: in their order, the resumed ones included.
        parameters: before and after.
        macs: before and after.
        exact: whether the counts after pruning are those the run will reach, or those of another criterion.
        files: (name, bytes) of every file that would be exported.
        disk_bytes: needed in the directory at the worst moment.
        free_bytes: on that disk now.
        gates: (gate, whether it can be met: None where only the run will tell, why).
        budgets: what was asked for, and what the plan comes to; a run tries real files, where it can.
        latency: what can be said of a budget that only trial files turn into milliseconds; "" where there is none.
    """

    directory: Path
    resumes: tuple[str, ...]
    steps: tuple[Step, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    exact: bool
    files: tuple[tuple[str, int], ...]
    disk_bytes: int
    free_bytes: int
    gates: tuple[tuple[str, bool | None, str], ...]
    budgets: tuple[Budgeted, ...]
    latency: str

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)


def preview(options: CompressOptions) -> Preview:
    """Read everything, prune a copy, and time a few batches; takes seconds, writes nothing.

    The copy is pruned by the criterion where that looks at no images, else by weight norms.

    Raises:
        BadInputError: whatever `compress` would refuse before its long work.
    """
    inputs = prepare(options)
    asked, costs = inputs.plan_options(), inputs.costing()
    wanted = _foreseeable(inputs.dense, asked, costs)
    free = isinstance(options.criterion, Rival) and options.criterion.name not in LOOKS_AT_IMAGES
    criterion = options.criterion if free else Rival(name="l1")
    scores = score(inputs.dense, inputs.dataset.train, criterion, seed=options.seed)
    plan = make_plan(inputs.dense, scores, wanted, costs)
    pruned = apply_plan(inputs.dense, plan)
    before, after = measure_size(inputs.dense), measure_size(pruned)
    files = tuple(
        (f"{request.format} {request.precision}", after.parameters * BYTES[request.precision])
        for request in inputs.requests
    )
    references = before.parameters * BYTES["fp32"] * len({request.format for request in inputs.requests})
    # Weights, momentum, best and average in each checkpoint, the last of which is written beside the one before.
    training = 16 * after.parameters * _checkpoints(options)
    directory, allocation, proportional = inputs.out, asked.chosen_allocation, _only_proportions(asked, costs)
    return Preview(
        directory=directory,
        resumes=tuple(sorted(path.stem for path in (directory / "stages").glob("*.json"))),
        steps=tuple(_steps(inputs, plan, pruned)),
        parameters=(before.parameters, after.parameters),
        macs=(before.macs, after.macs),
        exact=not asked.budgets.asked and (allocation == "uniform" or (allocation == "global" and free)),
        files=files,
        disk_bytes=references + sum(size for _, size in files) + 8 * after.parameters + training,
        free_bytes=shutil.disk_usage(_existing(directory)).free,
        gates=tuple(
            _reachable(gate, files, after.macs, after.parameters)
            if wanted == asked
            else (gate, None, "only the run will tell")
            for gate in options.gates
        ),
        budgets=tuple(each for each in plan.budgets if not (proportional and each.kind == "latency")),
        latency=_latency_in_words(asked, wanted, plan.budgets) if proportional else "",
    )


def _checkpoints(options: CompressOptions) -> int:
    """Of recovery, that lie on the disk at the worst moment: each round's stays until the run ends."""
    if options.recovery is None:
        return 0
    rounds = options.rounds - 1 if options.round_epochs else 0
    return 2 + rounds + (options.recovery.int8_epochs > 0)


def _only_proportions(asked: PlanOptions, costs: Costing | None) -> bool:
    """Whether a latency is asked for, and nothing is known that tells milliseconds before files are tried."""
    return asked.budgets.latency is not None and costs is not None and costs.device.basis == PROPORTIONS


def _foreseeable(dense: Classifier, asked: PlanOptions, costs: Costing | None) -> PlanOptions:
    """What can be planned for before files are tried: without a latency that may be reached for all that is known."""
    if not _only_proportions(asked, costs):
        return asked
    latency = asked.budgets.latency
    if latency is not None and latency.of_dense:
        with suppress(BadInputError):  # of this latency, or of another budget, which is told below
            require_feasible(dense, asked, costs)
            return asked
    budgets = asked.budgets.model_copy(update={"latency": None})
    rest = asked.model_copy(update={"budgets": budgets})
    with suppress(WithinBudgetsError):  # the latency may still ask for something to be removed
        if budgets.asked:
            require_feasible(dense, rest, costs)
            return rest
    return asked.model_copy(update={"budgets": Budgets(), "allocation": None})


def _latency_in_words(asked: PlanOptions, wanted: PlanOptions, planned: Sequence[Budgeted]) -> str:
    limit = asked.budgets.latency
    assert limit is not None, "told only where one is asked for"
    for each in planned:
        if each.kind == "latency":
            share, least = (wording.percent(figure / each.dense) for figure in (each.planned, each.least))
            most = wording.percent(limit.amount)
            return f"latency → {share} of the dense network's, at most {most} asked, {least} the least ({PROPORTIONS})"
    most = (
        f"{wording.percent(limit.amount)} of the dense network's" if limit.of_dense else show("latency", limit.amount)
    )
    at = "" if wanted.budgets.asked else f" (at ratio {wanted.ratio:g})"
    return f"latency at most {most} asked: only trial files will tell; all else here is without it{at}"


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _steps(inputs: Inputs, plan: PruningPlan, pruned: Classifier) -> Iterator[Step]:
    options, evaluation = inputs.options, len(inputs.dataset.evaluation)
    scored, attacked = len(inputs.score_images()), len(inputs.attacked_images())
    dense, small = _Speed.of(inputs.dense, inputs.dataset), _Speed.of(pruned, inputs.dataset)
    shrinking = sum(len(group.kept) < group.channels for group in plan.groups)
    again = {"one-shot": 0, "sequential": shrinking, "gradual": options.rounds}[options.strategy]
    passes = 1 if isinstance(options.criterion, Rival) else options.criterion.attack.steps + 1
    yield Step(
        "score",
        f"{1 + again} × {scored} images, criterion {options.criterion.name}",
        # Scored again, the network is on its way from the dense to the pruned one.
        scored * passes * (dense.gradient + again * (dense.gradient + small.gradient) / 2),
    )
    place, wanted = inputs.place, inputs.plan_options()
    if tried := place.tried(wanted.budgets):
        # The dense network, the least that a plan may leave, then plans.
        timed = len(place.runtimes) * _measuring(TRIAL_METHOD) if "latency" in tried else 0
        seconds = (2 + TRIALS) * (len(inputs.requests) * SECONDS_TO_EXPORT + timed)
        yield Step("try files", f"of {2 + TRIALS} networks at most, against budgets of {' and '.join(tried)}", seconds)
    if wanted.chosen_allocation == "knapsack":
        trials, images = most_trials(len(plan.groups)), probe_images(inputs.dense.spec)
        seconds = trials * images * FORWARDS_A_TRIAL * small.forward
        yield Step("weigh plans", f"{trials} trials at most, {images} images", seconds)
    if options.recovery is not None:
        recipe, images = options.recovery, len(inputs.dataset.train)
        steps = recipe.attack_steps
        times = {"natural": 1, "n-fgsm": 2, "pgd": steps + 1, "trades": steps + 2, "rslad": steps + 2}[recipe.method]
        epochs = recipe.epochs + recipe.int8_epochs + options.round_epochs * (options.rounds - 1)
        # A gradient of the weights costs about a third more than one of the pixels alone.
        seconds = epochs * images * (times + 0.5) * small.gradient
        yield Step("recover", f"{recipe.method}, {epochs} × {images} images", seconds)
    steps = sum(map(_attack_steps, options.attacks))
    yield Step(
        "evaluate networks",
        f"dense, pruned and recovered; {evaluation} images, {attacked} of them under attack",
        (dense.forward + 2 * small.forward) * evaluation + steps * attacked * (dense.gradient + 2 * small.gradient),
    )
    formats = len({request.format for request in inputs.requests})
    count = formats + len(inputs.requests)
    yield Step("export and verify", f"{count} files, {formats} of them to compare with", count * SECONDS_TO_EXPORT)
    tested = min(options.file_images, evaluation) if options.eps else 0
    yield Step(
        "evaluate files",
        f"{count} files, {evaluation} images; {len(inputs.requests)} of them on {tested} images under attack",
        evaluation * (formats * dense.forward + len(inputs.requests) * small.forward)
        + tested * QUERIES * len(inputs.requests) * small.forward,
    )
    yield Step("measure latency", f"{count} files on {options.bench_on}", count * _measuring(options.method))


def _measuring(method: Method) -> float:
    """Seconds that measuring a file takes."""
    return method.seconds + method.rounds * (method.warmup_seconds + 2)


def _attack_steps(name: str) -> int:
    if name == "autoattack":
        return AUTOATTACK_STEPS
    attack = pgd_of(name)
    return attack.steps * attack.restarts


@dataclass(frozen=True)
class _Speed:
    """Seconds an image for a forward pass, and for a gradient of the pixels."""

    forward: float
    gradient: float

    @classmethod
    def of(cls, classifier: Classifier, dataset: Dataset) -> "_Speed":
        classifier.to_fast_layout(compute.default_device())
        pixels, labels = next(dataset.evaluation.batches(32))
        device = compute.device_of(classifier)
        pixels, labels = pixels.to(device), labels.to(device)

        def forward() -> None:
            with torch.no_grad():
                classifier(pixels)[0, 0].item()

        def gradient() -> None:
            input_gradient(classifier, pixels, labels)[0][0, 0, 0, 0].item()

        with attackable(classifier):
            return cls(_seconds(forward) / len(pixels), _seconds(gradient) / len(pixels))


def _seconds(work: Callable[[], None]) -> float:
    """Of the quicker of two runs after one to warm up."""
    work()
    return min(timeit.repeat(work, number=1, repeat=2))


def _reachable(
    text: str, files: tuple[tuple[str, int], ...], macs: int, parameters: int
) -> tuple[str, bool | None, str]:
    gate = parse_gate(text)
    known = {"macs": macs, "parameters": parameters}
    if gate.metric == "size":
        # Weights alone: a file is never smaller.
        known["size"] = max((size for name, size in files if gate.row in (None, name)), default=0)
    if gate.metric not in known:
        return text, None, "only the run will tell"
    value = known[gate.metric]
    return text, gate.holds(value), f"{gate.metric} about {value:,}, at most {gate.bound:,.0f} asked"

"""Stages that make networks: dense → scores → plan → pruned → recovered, and what each network is worth."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fsrp_edge import progress
from fsrp_edge.data.check import check_baseline
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import WithinBudgetsError
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.evaluation.paired import since_dense
from fsrp_edge.evaluation.results import Judged
from fsrp_edge.exporting.export import ArtifactRequest, int8_weight_bits, smoke_test
from fsrp_edge.files import sha256_file
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import Trial, log_plan, plan_with_trials, settle
from fsrp_edge.pipeline.inputs import PRUNED, RECOVERED, ROUNDS, on_device
from fsrp_edge.pipeline.run import Run
from fsrp_edge.pruning.budgets import BudgetKind, Budgets
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import least_network, make_plan, require_feasible
from fsrp_edge.pruning.refinement import Gauge, Planner, probe_images
from fsrp_edge.pruning.stepwise import plan_by_strategy, prune_gradually
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.report.schema import LedgerRow, Recovery
from fsrp_edge.scoring.score import score
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.training.loop import TrainingResult
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import fit_recipe, recover

SCORES, PLAN = "scores.json", "plan.json"


def baseline(run: Run) -> Judged:
    """Clean accuracy of the dense network; labels that don't fit it stop the run here."""
    images = run.dataset.evaluation
    judged = run.stage("baseline", Judged, {}, lambda: Judged.of(clean_accuracy(run.dense, images)))
    check_baseline(images, judged.result.correct, run.dense.spec.classes)
    return judged


def score_filters(run: Run) -> FilterScores:
    """scores.json: the criterion for every filter."""

    def work() -> FilterScores:
        scores = _score(run, run.dense)
        scores.save(run.path(SCORES))
        return scores

    inputs = {"criterion": run.options.criterion, "images": run.score_images().digest}
    return run.stage("score", FilterScores, inputs, work, [SCORES])


def _score(run: Run, classifier: Classifier) -> FilterScores:
    """Scores of the dense network, or of a smaller one that a strategy is at."""
    return score(on_device(classifier), run.score_images(), run.options.criterion, seed=run.options.seed)


def settle_budgets(run: Run) -> tuple[PlanOptions, Costing | None]:
    """What the plan is asked for and reckoned with; what cannot be met stops the run here."""
    wanted, costs = run.plan_options(), run.costing()
    if costs is not None and (kinds := run.place.tried(wanted.budgets)):
        _require_the_rest_feasible(run, wanted, costs, kinds)
        anyhow = wanted.model_copy(update={"budgets": Budgets()})
        inputs = {"costing": costs.digest, "tried": _tried(run), "options": anyhow}

        def work(costs: Costing = costs) -> tuple[Trial, ...]:
            ends = run.dense, least_network(run.dense, wanted)
            return tuple(run.place.try_network(each, costs, kinds) for each in ends)

        dense, least = run.stage("budgets", tuple[Trial, ...], inputs, work)
        costs, budgets = settle(run.place, costs, dense, least, wanted.budgets)
        wanted = wanted.model_copy(update={"budgets": budgets})
    require_feasible(run.dense, wanted, costs)
    return wanted, costs


def _require_the_rest_feasible(run: Run, wanted: PlanOptions, costs: Costing, tried: Sequence[BudgetKind]) -> None:
    """Refuse before files are tried what these will not change."""
    rest = Budgets.model_validate({kind: each for kind, each in wanted.budgets.asked.items() if kind not in tried})
    without = {"budgets": rest, "ratio_of": "channels", "allocation": "global"}  # of each group, as much as can be
    with suppress(WithinBudgetsError):  # what is tried may still ask for something to be removed
        require_feasible(run.dense, wanted.model_copy(update=without), costs)


def _tried(run: Run) -> list[str]:
    """What trials of files depend on, beside the network."""
    place = run.place
    files = [f"{request.format} {request.precision}" for request in run.requests]
    made_with = place.options.model_dump_json()
    asked = run.options.budgets.asked
    timers = [f"{name} {which}" for name, which in place.measured_by.items()] if "latency" in asked else []
    return [*files, made_with, place.target.digest, place.device.place, str(place.threads), *asked, *timers]


def _dense_outputs(run: Run) -> DenseOutputs | None:
    """What pruning fits what stays to, where it compensates."""
    if not run.options.compensates:
        return None
    return DenseOutputs(run.dense, _fitting_images(run), trained_after=_learns(run))


def _learns(run: Run) -> bool:
    """Whether the pruned network is trained."""
    return run.options.recovery is not None and run.options.recovery.epochs > 0


def _fitting_images(run: Run) -> ImageSet:
    return run.learnt_images(most_images(run.dense.spec))


def _planner(
    run: Run, scores: FilterScores, wanted: PlanOptions, unfinished: Path
) -> Callable[[PlanOptions, Costing | None], PruningPlan]:
    """Makes one-shot plans; the knapsack weighs them on images."""
    if wanted.chosen_allocation != "knapsack":
        return partial(make_plan, run.dense, scores)
    images = run.learnt_images(probe_images(run.dense.spec))
    gauge = Gauge(run.dense, images, compensated=run.options.compensates, unfinished=unfinished)
    return Planner(gauge, scores).plan


def make_pruning_plan(
    run: Run, scores: FilterScores, wanted: PlanOptions, costs: Costing | None, recipe: Recipe | None
) -> PruningPlan:
    """plan.json: which channels stay; rounds.safetensors, where recovery goes on between the rounds."""
    inputs: dict[str, Any] = {"scores": scores, "options": wanted}
    if wanted.chosen_allocation == "knapsack":
        inputs |= {"compensates": run.options.compensates}
    if costs is not None:
        inputs |= {"costing": costs.digest, "tried": _tried(run)}
    if run.options.round_epochs:
        inputs |= {"recipe": recipe, "round_epochs": run.options.round_epochs}

    def work() -> PruningPlan:
        unfinished = run.unfinished("plan", inputs, ".json")
        make = _planner(run, scores, wanted, unfinished)
        plan = make(wanted, costs and plan_with_trials(run.place, costs, run.dense, wanted, make))
        if run.options.round_epochs and recipe is not None:
            plan = _prune_in_rounds(run, plan, inputs, recipe)
        else:
            plan = plan_by_strategy(run.dense, plan, wanted, partial(_score, run))
        plan.save(run.path(PLAN))
        return plan

    plan = run.stage("plan", PruningPlan, inputs, work, [PLAN, ROUNDS] if run.options.round_epochs else [PLAN])
    log_plan(plan)
    return plan


def _prune_in_rounds(run: Run, plan: PruningPlan, inputs: dict[str, Any], recipe: Recipe) -> PruningPlan:
    """The gradual strategy with recovery between its rounds, each of which is resumed as the last recovery is."""
    between = recipe.model_copy(update={"epochs": run.options.round_epochs, "int8_epochs": 0})

    def tune(classifier: Classifier, number: int) -> Classifier:
        # An interrupted run may plan something else when it goes on: latencies are measured anew.
        network = {"network": weights_sha256(classifier)}
        return _recover(run, classifier, between, run.unfinished(f"round-{number}", inputs | network, ".pt")).classifier

    plan, network = prune_gradually(
        run.dense,
        plan,
        partial(_score, run),
        rounds=run.options.rounds,
        multiple=run.target.channel_multiple,
        tune=tune,
    )
    run.save(network, ROUNDS)
    return plan


def prune(run: Run, plan: PruningPlan) -> Classifier:
    """pruned.safetensors: the smaller network, read back from its file and exported once for trial."""
    inputs: dict[str, Any] = {"plan": plan.digest}
    if run.options.round_epochs:
        inputs |= {"rounds": sha256_file(run.path(ROUNDS))}
    if run.options.compensates:
        inputs |= {"compensated on": _fitting_images(run).digest, "trained after": _learns(run)}

    def cut() -> Classifier:
        if run.options.round_epochs:
            return run.load(ROUNDS)
        return apply_plan(run.dense, plan, _dense_outputs(run))

    def work() -> None:
        run.save(cut(), PRUNED)
        progress.log("trial export of the pruned network")
        half = ArtifactRequest("onnx", "fp16") in run.requests
        smoke_test(
            run.load(PRUNED).cpu(),
            run.target,
            list(dict.fromkeys(request.format for request in run.requests)),
            run.export_options,
            half_range_of=run.dataset.evaluation.first(8) if half else None,
        )

    run.stage("prune", type(None), inputs, work, [PRUNED])
    return run.load(PRUNED)


def choose_recipe(run: Run, dense: Sequence[Judged]) -> Recipe | None:
    """How to recover: on clean images where `natural_if_undefended` says so; None recalibrates batch norm only."""
    recipe, classes = run.options.recovery, run.dense.spec.classes
    if recipe is None:
        return None
    undefended = any(each.result.eps and each.result.accuracy < 1 / classes for each in dense)
    if run.options.natural_if_undefended and undefended:
        recipe = recipe.model_copy(update={"method": "natural"})
    return fit_recipe(recipe, run.dataset, has_teacher=True)


def recover_network(run: Run, pruned: Classifier, recipe: Recipe | None) -> tuple[Classifier, Recovery | None]:
    """recovered.safetensors: the network after fine-tuning, and how that went."""
    inputs: dict[str, Any] = {"weights": weights_sha256(pruned), "recipe": recipe}
    if recipe is not None and recipe.int8_epochs:
        inputs["int8 weight bits"] = int8_weight_bits(run.requests, run.target)

    def work() -> Recovery:
        result = _recover(run, pruned, recipe, run.unfinished("recover", inputs, ".pt"))
        run.save(result.classifier, RECOVERED)
        return Recovery(
            recipe=recipe.model_dump(mode="json") if recipe else {},
            epochs=len(result.history),
            best_epoch=result.best_epoch,
            history=tuple(record.model_dump(mode="json") for record in result.history),
            diverged=result.diverged,
        )

    recovery = run.stage("recover", Recovery, inputs, work, [RECOVERED])
    return run.load(RECOVERED), recovery if recipe else None


def _recover(run: Run, pruned: Classifier, recipe: Recipe | None, checkpoint: Path) -> TrainingResult:
    return recover(
        copy.deepcopy(pruned),
        run.dataset.train,
        recipe,
        seed=run.options.seed,
        teacher=run.dense if recipe is not None and recipe.needs_teacher else None,
        checkpoint=checkpoint,
        int8_weight_bits=int8_weight_bits(run.requests, run.target),
    )


def judge(run: Run, name: str, classifier: Classifier, clean: Judged | None = None) -> tuple[Judged, ...]:
    """Clean accuracy on all evaluation images, and under attack on the first of them."""
    options, attacked, stage = run.options, run.attacked_images(), f"evaluate-{name}"
    inputs = {
        "weights": weights_sha256(classifier),
        "attacks": options.attacks,
        "eps": options.eps,
        "images": len(attacked),
    }

    def work() -> tuple[Judged, ...]:
        progress.log(f"evaluating the {name} network")
        first = clean or Judged.of(clean_accuracy(classifier, run.dataset.evaluation))
        if not options.attacks:
            return (first,)
        plan = EvaluationPlan(attacks=options.attacks, eps=options.eps, seed=options.seed)
        unfinished = run.unfinished(stage, inputs, ".json")
        _, *others = evaluate(classifier, attacked, plan, unfinished=unfinished)
        return first, *map(Judged.of, others)

    return run.stage(stage, tuple[Judged, ...], inputs, work)


def network_row(name: str, classifier: Classifier, judged: Sequence[Judged], dense: Sequence[Judged]) -> LedgerRow:
    """A network in the ledger, beside the dense one; for that itself `dense` is empty."""
    size = measure_size(classifier)
    return LedgerRow(name=name, accuracies=since_dense(dense, judged), macs=size.macs, parameters=size.parameters)

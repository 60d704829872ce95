"""compress(): the stages in order, each kept in the run directory."""

import copy
import datetime
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

import fsrp_edge
from fsrp_edge import compute, progress
from fsrp_edge.attacks import DEFAULT_EPS
from fsrp_edge.bench.describe import require_ready
from fsrp_edge.bench.measure import DEFAULTS, Method, Setup, measure_on, require_agreement
from fsrp_edge.bench.results import BenchResults, Latency
from fsrp_edge.bench.transport import parse_address
from fsrp_edge.budgeting import Trial, Workplace, log_plan, plan_with_trials, settle, verdicts
from fsrp_edge.data.check import check_baseline, pseudo_labelled
from fsrp_edge.data.images import Dataset, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import Predict, clean_accuracy
from fsrp_edge.evaluation.evaluate import AttackName, EvaluationPlan, evaluate
from fsrp_edge.evaluation.files import file_robust_accuracy, transfer_examples
from fsrp_edge.evaluation.results import Accuracy
from fsrp_edge.exporting.artifact import Artifact, Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest, smoke_test
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.verified import Exported, export_verified
from fsrp_edge.files import files_of, sha256_file, sha256_json, write_text
from fsrp_edge.gather import break_down, gather
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.models.saved import save_classifier, weights_sha256
from fsrp_edge.models.size import Size, measure_size
from fsrp_edge.pruning.allocation import Sensitivity
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import LayerRatio, PlanOptions, Ratio, RatioOf
from fsrp_edge.pruning.plan import Allocation, PruningPlan, Strategy
from fsrp_edge.pruning.planning import check_budgets, make_plan
from fsrp_edge.pruning.sensitivity import measure_sensitivity
from fsrp_edge.pruning.stepwise import plan_by_strategy
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.report import schema
from fsrp_edge.report.gates import (
    GateText,
    RegressionText,
    judge,
    judge_regressions,
    require_same_images,
)
from fsrp_edge.report.manifest import WRITTEN, manifest_of_run, results_of_run, write_manifest
from fsrp_edge.report.provenance import provenance
from fsrp_edge.report.store import BENCH_JSON, RENDERED, load_report, write_report
from fsrp_edge.rundir import RunDirectory
from fsrp_edge.runtimes import open_session
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.score import Criterion, score
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.profile import Offer, Target
from fsrp_edge.training.loop import EpochRecord
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import fit_recipe, recover

BY_DEFAULT: tuple[Format, ...] = ("onnx", "tflite")
"""Other formats are made only where they are named."""
LARGE_SIDE = 64
"""Inputs with a longer side are scored and attacked on fewer images, as each costs many times more."""


class CheckpointOptions(BaseModel):
    """Which network, and what its file does not say about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path
    architecture: str | None = None
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_pickle: bool = False
    data: str | None = None
    """A data set's name or path; None uses the set the checkpoint names, else embedded photographs."""


class CompressOptions(CheckpointOptions, ExportOptions):
    """Everything that a run of `compress` depends on."""

    target: str
    """Name of a packaged profile, or path of a YAML file."""
    ratio: Ratio = 0.5
    """Share to remove; this and the next nine are explained in `pruning.options.PlanOptions`."""
    ratio_of: RatioOf = "channels"
    budgets: Budgets = Budgets()
    keep: tuple[str, ...] = ()
    keep_inputs: tuple[str, ...] = ()
    keep_first: bool = False
    allocation: Allocation | None = None
    strategy: Strategy = "one-shot"
    rounds: int = Field(3, ge=1)
    layer_ratios: tuple[tuple[str, LayerRatio], ...] = ()
    criterion: Criterion = FSRP()
    score_images: int | None = Field(None, ge=1)
    """Training images to score on; None: 512, or 128 for inputs with a side above 64 pixels."""
    formats: tuple[Format, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    recovery: Recipe | None = Recipe(epochs=5, learning_rate=0.02, flip=True, crop_padding=4)
    """None recalibrates batch norm only."""
    natural_if_undefended: bool = True
    """Recover on clean images where the dense network withstands an attack less often than guessing would: there is
    no robustness to keep, and adversarial recovery would spend clean accuracy on making some."""
    attacks: tuple[AttackName, ...] = ("pgd-20",)
    eps: float = Field(DEFAULT_EPS, ge=0, le=1)
    robust_images: int | None = Field(None, ge=1)
    """Evaluation images to attack, the first ones; None: 1,000, or 128 for inputs with a side above 64 pixels."""
    file_images: int = Field(32, ge=0)
    """Evaluation images to attack each file on, the first ones; 0: none. Each costs hundreds of inferences."""
    method: Method = Method()
    bench_on: str = "local"
    """Address of the device to measure latency on, such as `ssh://pi@pi4`."""
    gates: tuple[GateText, ...] = ()
    """What the result has to keep, such as `robust_accuracy>=40%`; judged in the report, nothing stops for it."""
    baseline: Path | None = None
    """An earlier run's directory or report.json."""
    max_regression: tuple[RegressionText, ...] = ()
    """By how much figures may be worse than the baseline's, such as `latency_p50=5%`."""
    seed: int = Field(0, ge=0)
    out: Path | None = None


@dataclass(frozen=True)
class CompressResult:
    """What a run leaves.

    Args:
        directory: the run directory.
        report: everything that was measured; also there as report.json and report.md.
        plan: which channels were kept.
        artifacts: paths of the verified files.
        model: path of the recovered network, loadable by `fsrp_edge.load`.
    """

    directory: Path
    report: schema.RunReport
    plan: PruningPlan
    artifacts: tuple[Path, ...]
    model: Path


def load(options: CheckpointOptions) -> Classifier:
    """The classifier of a checkpoint, on the device to compute on."""
    classifier = load_classifier(
        options.checkpoint,
        architecture=options.architecture,
        input_size=options.input_size,
        mean=options.mean,
        std=options.std,
        trust_pickle=options.trust_pickle,
    )
    if classifier.spec.architecture.startswith("pickled:"):
        raise BadInputError(
            f"{options.checkpoint.name} holds a whole module, which could not be built again once it is pruned; "
            "name its factory with --arch package.module:factory or --arch file.py:factory"
        )
    return _on_device(classifier)


def load_data(classifier: Classifier, data: str | None, seed: int) -> Dataset:
    """The data set that was named, or the one the checkpoint names, or photographs with the network's own labels."""
    dataset = open_dataset(data or classifier.spec.data or "photographs", classifier.spec, seed=seed)
    if dataset.train.is_labelled:
        return dataset
    return pseudo_labelled(dataset, classifier)


def compress(options: CompressOptions) -> CompressResult:
    """Score, prune, recover, export, verify, measure and evaluate; resumes what an earlier run left.

    Raises:
        BadInputError: before anything long starts, where an input is wrong.
        GateFailedError: a file does not compute what the network computes; nothing is published then.
        ToolFailedError: a tool or an extra is missing or failed.
    """
    inputs = prepare(options)
    directory = RunDirectory(inputs.out)
    with directory.locked(), progress.log_to(inputs.out / "run.log"):
        return _Run(**vars(inputs), directory=directory).run()


def prepare(options: CompressOptions) -> "Inputs":
    """Read and check everything that a run starts from.

    Raises:
        BadInputError: an input is wrong.
        ToolFailedError: the device to measure on is not ready.
    """
    target = load_target(options.target)
    requests = choose_artifacts(target, options.formats, options.precisions)
    device = parse_address(options.bench_on)
    if device.kind != "local":
        require_ready(device, {DEFAULTS[one.format] for one in requests if one.format in DEFAULTS})
    classifier = load(options)
    dataset = load_data(classifier, options.data, options.seed)
    if options.baseline is not None:
        require_same_images(load_report(options.baseline), dataset.evaluation.digest)
    return Inputs(options, target, requests, classifier, dataset)


def choose_artifacts(
    target: Target, formats: Sequence[Format] | None, precisions: Sequence[Precision] | None
) -> tuple[ArtifactRequest, ...]:
    """The files to make: the profile's defaults, or those of its offers that were asked for.

    Raises:
        BadInputError: the profile offers no file of a format or a precision that was asked for.
    """
    allowed = [offer for offer in target.offers if offer.offered and offer.format in (formats or BY_DEFAULT)]
    with_default = {offer.format for offer in allowed if offer.default}

    def wanted(offer: Offer) -> bool:
        if precisions is not None:
            return offer.precision in precisions
        return offer.default or (offer.format not in with_default and offer.precision == "fp32")

    chosen = [offer for offer in allowed if wanted(offer)]
    missing = {*(formats or ()), *(precisions or ())} - {
        part for offer in chosen for part in (offer.format, offer.precision)
    }
    if missing or not chosen:
        table = "; ".join(
            f"{offer.format} {offer.precision}: {'offered' if offer.offered else 'no, ' + offer.reason}"
            for offer in target.offers
        )
        what = " and ".join(sorted(missing)) or "default"
        raise BadInputError(f"{target.name} offers no {what} file among those asked for ({table})")
    return tuple(ArtifactRequest(format=offer.format, precision=offer.precision) for offer in chosen)


def default_score_images(spec: ModelSpec) -> int:
    """How many training images are scored on where nothing else is asked for."""
    return _by_input_size(spec, 512, 128)


def _by_input_size(spec: ModelSpec, small: int, large: int) -> int:
    return small if max(spec.input_shape[1:]) <= LARGE_SIDE else large


def _on_device(classifier: Classifier) -> Classifier:
    compute.to_fast_layout(classifier, compute.default_device())
    return classifier


class _Recovered(BaseModel):
    """Result of the recovery stage."""

    best_epoch: int
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    options: CompressOptions
    target: Target
    requests: tuple[ArtifactRequest, ...]
    dense: Classifier
    dataset: Dataset

    @property
    def out(self) -> Path:
        """The run directory."""
        return self.options.out or Path(f"{self.options.checkpoint.stem}-{self.target.name}")

    def score_images(self) -> ImageSet:
        """The training images to score on."""
        count = self.options.score_images or default_score_images(self.dense.spec)
        return self.dataset.train.sample(count, self.options.seed)

    def attacked_images(self) -> ImageSet:
        """The evaluation images to attack."""
        count = self.options.robust_images or _by_input_size(self.dense.spec, 1000, 128)
        return self.dataset.evaluation.first(count)

    def plan_options(self) -> PlanOptions:
        """What the plan is asked for, with what the target demands."""
        shared = PlanOptions.model_fields.keys() & CompressOptions.model_fields.keys()
        asked = {name: getattr(self.options, name) for name in shared}
        return PlanOptions(**asked, channel_multiple=self.target.channel_multiple)

    @property
    def place(self) -> Workplace:
        """Where files are measured, and by what budgets are judged."""
        device, threads = parse_address(self.options.bench_on), self.target.threads
        if device.kind == "local":
            threads = min(threads, os.cpu_count() or 1)
        images = self.dataset.train.sample(8, self.options.seed)
        return Workplace(self.target, self.requests, device, threads, images)

    def costing(self) -> Costing | None:
        """What budgets are reckoned with; None where there are none, or of MACs and parameters only."""
        asked = self.options.budgets.asked
        if asked.keys() <= {"macs", "parameters"}:
            return None
        return self.place.costing(self.dense, absolute="latency" in asked and not self.place.measured)


@dataclass(frozen=True)
class _Run(Inputs):
    """One run: what was given, and a method for each stage."""

    directory: RunDirectory

    @functools.cached_property
    def started_at(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    @functools.cached_property
    def identity(self) -> dict[str, JsonValue]:
        """What every stage depends on."""
        return {
            "version": fsrp_edge.__version__,
            "weights": weights_sha256(self.dense.network),
            "spec": self.dense.spec.model_dump(mode="json"),
            "train": self.dataset.train.digest,
            "evaluation": self.dataset.evaluation.digest,
            "seed": self.options.seed,
        }

    def run(self) -> CompressResult:
        """All stages in order."""
        started_at = self.started_at
        wanted, costs = self.budgets()
        dense_row = self.network_row("dense", self.dense, self.baseline())
        recipe = self._recipe(dense_row)
        scores = self.score()
        plan = self.plan(scores, wanted, costs)
        pruned = self.prune(plan)
        recovered, recovery = self.recover(plan, pruned, recipe)
        rows = [
            dense_row,
            self.network_row("pruned", pruned),
            self.network_row("recovered", recovered),
        ]
        dense_files = self.export("dense", self.dense, self._references())
        files = self.export("artifacts", recovered, self.requests)
        latencies = self.bench(dense_files.artifacts, files.artifacts)
        rows += self.file_rows("dense ", self.dense, dense_files, latencies, attack=False)
        rows += self.file_rows("", recovered, files, latencies, attack=True)
        self.evidence(scores, recovered, files.artifacts)
        exports = {"dense": dense_files, "artifacts": files}
        report = self.report(started_at, plan, pruned, recipe, recovery, rows, exports)
        return CompressResult(
            directory=self.directory.path,
            report=report,
            plan=plan,
            artifacts=tuple(self.directory.path / artifact.path for artifact in files.artifacts),
            model=self._path("recovered.safetensors"),
        )

    # -- stages ---------------------------------------------------------------------------------------------------

    def baseline(self) -> Accuracy:
        """Clean accuracy of the dense network; labels that don't fit it stop the run here."""
        images = self.dataset.evaluation
        accuracy: Accuracy = self._stage(
            "baseline", Accuracy, {}, lambda: (clean_accuracy(self.dense, images).result, ())
        )
        check_baseline(images, accuracy.correct, self.dense.spec.classes)
        return accuracy

    def score(self) -> FilterScores:
        """scores.json: the criterion for every filter."""

        def work() -> tuple[FilterScores, list[Path]]:
            scores = self._score(self.dense)
            scores.save(self._path("scores.json"))
            return scores, [self._path("scores.json")]

        inputs = {
            "criterion": self.options.criterion.model_dump(mode="json"),
            "images": self.score_images().digest,
        }
        result: FilterScores = self._stage("score", FilterScores, inputs, work)
        return result

    def budgets(self) -> tuple[PlanOptions, Costing | None]:
        """What the plan is asked for and reckoned with; what cannot be met stops the run here."""
        wanted = self.plan_options()
        if not wanted.budgets.asked:
            return wanted, None
        costs = self.costing()
        if costs is not None and (kinds := self.place.tried(wanted.budgets)):
            inputs = {"tried": self._tried()}
            trial = self._stage(
                "budgets", Trial, inputs, lambda: (self.place.try_files(self.dense, kinds), ())
            )
            costs, budgets = settle(self.place, costs, trial, wanted.budgets)
            wanted = wanted.model_copy(update={"budgets": budgets})
        check_budgets(self.dense, wanted, costs)
        return wanted, costs

    def sensitivity(self, scores: FilterScores) -> Sensitivity:
        """What each group of channels is worth, for the knapsack."""
        multiple = self.target.channel_multiple
        images = self.score_images().first(_by_input_size(self.dense.spec, 384, 64))
        inputs = {"scores": scores.model_dump(mode="json"), "images": images.digest, "multiple": multiple}
        result: Sensitivity = self._stage(
            "sensitivity",
            Sensitivity,
            inputs,
            lambda: (measure_sensitivity(self.dense, scores, images, multiple), ()),
        )
        return result

    def plan(self, scores: FilterScores, wanted: PlanOptions, costs: Costing | None) -> PruningPlan:
        """plan.json: which channels stay."""
        sensitivity = self.sensitivity(scores) if wanted.chosen_allocation == "knapsack" else None

        def make(options: PlanOptions, costing: Costing | None) -> PruningPlan:
            return make_plan(self.dense, scores, options, costing, sensitivity)

        def work() -> tuple[PruningPlan, list[Path]]:
            best = costs and plan_with_trials(self.place, costs, self.dense, wanted, make)
            plan = plan_by_strategy(self.dense, scores, wanted, self._score, best, sensitivity)
            plan.save(self._path("plan.json"))
            return plan, [self._path("plan.json")]

        inputs: dict[str, Any] = {
            "scores": scores.model_dump(mode="json"),
            "options": wanted.model_dump(mode="json"),
        }
        if costs is not None:
            inputs |= {"costing": costs.digest, "tried": self._tried()}
        result: PruningPlan = self._stage("plan", PruningPlan, inputs, work)
        log_plan(result)
        return result

    def prune(self, plan: PruningPlan) -> Classifier:
        """pruned.safetensors: the smaller network, reloaded from its file and exported once for trial."""
        path = self._path("pruned.safetensors")

        def work() -> tuple[None, list[Path]]:
            save_classifier(apply_plan(self.dense, plan), path)
            progress.log("trial export of the pruned network")
            smoke_test(
                self._reload(path),
                list(dict.fromkeys(request.format for request in self.requests)),
                opset=self.target.onnx_opset,
                ir_version=self.target.onnx_ir_version,
            )
            return None, [path]

        self._stage("prune", None, {"plan": plan.digest}, work)
        return _on_device(self._reload(path))

    def recover(
        self, plan: PruningPlan, pruned: Classifier, recipe: Recipe | None
    ) -> tuple[Classifier, _Recovered]:
        """recovered.safetensors: the network after fine-tuning."""
        path = self._path("recovered.safetensors")
        inputs = {"plan": plan.digest, "recipe": recipe and recipe.model_dump(mode="json")}
        # Named after its inputs: after a change of options, what another recovery left unfinished is of no use.
        checkpoint = self._path(f"recovery-{sha256_json(self.identity | inputs)[:12]}.unfinished.pt")

        def work() -> tuple[_Recovered, list[Path]]:
            for other in set(self.directory.path.glob("recovery-*.unfinished.pt")) - {checkpoint}:
                other.unlink()
            result = recover(
                copy.deepcopy(pruned),
                self.dataset.train,
                recipe,
                seed=self.options.seed,
                teacher=self.dense if recipe is not None and recipe.distillation else None,
                checkpoint=checkpoint,
            )
            save_classifier(result.classifier, path)
            checkpoint.unlink(missing_ok=True)
            return _Recovered(best_epoch=result.best_epoch, history=result.history), [path]

        recovery: _Recovered = self._stage("recover", _Recovered, inputs, work)
        return _on_device(self._reload(path)), recovery

    def network_row(
        self, name: str, classifier: Classifier, clean: Accuracy | None = None
    ) -> schema.LedgerRow:
        """Clean accuracy on all evaluation images, and under attack on the first of them."""
        options = self.options
        attacked = self.attacked_images()

        def work() -> tuple[tuple[Accuracy, ...], Sequence[Path]]:
            progress.log(f"evaluating the {name} network")
            first = clean or clean_accuracy(classifier, self.dataset.evaluation).result
            plan = EvaluationPlan(attacks=options.attacks, eps=options.eps, seed=options.seed)
            unfinished = self._path(f"evaluate-{name}-{sha256_json(inputs)[:12]}.unfinished.json")
            others = (
                evaluate(classifier, attacked, plan, unfinished=unfinished)[1:] if options.attacks else ()
            )
            return (first, *(evaluation.result for evaluation in others)), ()

        inputs = {
            "weights": weights_sha256(classifier.network),
            "attacks": options.attacks,
            "eps": options.eps,
            "images": len(attacked),
        }
        accuracies = self._stage(f"evaluate-{name}", tuple[Accuracy, ...], inputs, work)
        size = measure_size(classifier)
        return schema.LedgerRow(name=name, accuracies=accuracies, macs=size.macs, parameters=size.parameters)

    def export(self, folder: str, classifier: Classifier, requests: Sequence[ArtifactRequest]) -> Exported:
        """The files in `folder`, put there only after every one was found to compute what the network computes."""
        calibration = self.dataset.train.sample(self.options.calibration_images, self.options.seed)
        export_options = ExportOptions(**self.options.model_dump(include=set(ExportOptions.model_fields)))

        def work() -> tuple[Exported, list[Path]]:
            exported = export_verified(
                classifier,
                requests,
                self._path(folder),
                target=self.target,
                calibration=calibration,
                images=self.dataset.evaluation,
                options=export_options,
            )
            moved = tuple(
                artifact.model_copy(update={"path": Path(folder) / artifact.path})
                for artifact in exported.artifacts
            )
            left = [*(artifact.path for artifact in moved), *(Path(folder) / s for s in exported.scripts)]
            files = [file for path in left for file in files_of(self.directory.path / path)]
            return exported.model_copy(update={"artifacts": moved}), files

        inputs = {
            "weights": weights_sha256(classifier.network),
            "requests": [f"{request.format} {request.precision}" for request in requests],
            "target": self.target.digest,
            "calibration": calibration.digest,
            "options": export_options.model_dump(mode="json"),
        }
        result: Exported = self._stage(f"export-{folder}", Exported, inputs, work)
        return result

    def bench(self, dense: Sequence[Artifact], files: Sequence[Artifact]) -> dict[Path, Latency]:
        """Latency on this machine or a device by path, dense and pruned files in turns; not of every format."""
        artifacts = [artifact for artifact in (*dense, *files) if artifact.format in DEFAULTS]
        device, threads = self.place.device, self.place.threads

        def work() -> tuple[list[Latency], Sequence[Path]]:
            files = [self.directory.path / artifact.path for artifact in artifacts]
            setup = Setup(threads=threads, input_shape=self.dense.spec.input_shape)
            measured = measure_on(device, files, setup, method=self.options.method)
            require_agreement(measured)
            # With every raw time: for the report's pictures, and for `bench compare`.
            results = BenchResults(fsrp_edge=fsrp_edge.__version__, measurements=tuple(measured))
            write_text(self._path(BENCH_JSON), results.model_dump_json() + "\n")
            return [measurement.latency for measurement in measured], [self._path(BENCH_JSON)]

        inputs = {
            "files": [artifact.sha256 for artifact in artifacts],
            "device": device.name,
            "threads": threads,
            "method": self.options.method.model_dump(mode="json"),
        }
        latencies = self._stage("bench", list[Latency], inputs, work)
        return {artifact.path: latency for artifact, latency in zip(artifacts, latencies, strict=True)}

    def file_rows(
        self,
        prefix: str,
        classifier: Classifier,
        exported: Exported,
        latencies: Mapping[Path, Latency],
        *,
        attack: bool,
    ) -> list[schema.LedgerRow]:
        """Accuracy of each file under its own runtime, with its latency and parity."""
        size = measure_size(classifier)
        options, count = self.options, self.options.file_images
        attacked = self.dataset.evaluation.first(count)
        examples = functools.cache(
            lambda: transfer_examples(classifier, attacked, eps=options.eps, seed=options.seed)
        )

        def robust(predict: Predict) -> Accuracy:
            return file_robust_accuracy(
                predict, attacked, examples(), eps=options.eps, seed=options.seed
            ).result

        def accuracies(artifact: Artifact) -> tuple[Accuracy, ...]:
            clean = self._file_stage(
                artifact, "", {}, lambda predict: clean_accuracy(predict, self.dataset.evaluation).result
            )
            if not attack or not count:
                return (clean,)
            inputs = {"eps": options.eps, "images": count, "network": weights_sha256(classifier.network)}
            return clean, self._file_stage(artifact, "-attacked", inputs, robust)

        return [
            schema.LedgerRow(
                name=prefix + artifact.name,
                accuracies=accuracies(artifact),
                macs=size.macs,
                parameters=size.parameters,
                bytes=artifact.bytes,
                latency=(latencies[artifact.path],) if artifact.path in latencies else (),
                parity=parity,
            )
            for artifact, parity in zip(exported.artifacts, exported.parities, strict=True)
        ]

    def evidence(self, scores: FilterScores, recovered: Classifier, artifacts: Sequence[Artifact]) -> None:
        """evidence.json and evidence.npz: what the report's pictures are drawn from."""
        options = self.options
        images = self.attacked_images().first(_by_input_size(self.dense.spec, 200, 32))
        eps = options.eps if options.attacks else 0.0
        onnx = next((artifact for artifact in artifacts if artifact.format == "onnx"), None)

        def work() -> tuple[None, list[Path]]:
            progress.log("gathering what the report shows")
            pictured = gather(
                self.dense,
                recovered,
                self.dataset.evaluation,
                images,
                scores=scores,
                criterion=options.criterion,
                eps=eps,
                seed=options.seed,
                breakdown=break_down(self.directory.path / onnx.path, self.target) if onnx else None,
            )
            return None, pictured.save(self.directory.path)

        inputs = {
            "recovered": weights_sha256(recovered.network),
            "scores": scores.model_dump(mode="json"),
            "file": onnx and onnx.sha256,
            "target": self.target.digest,
            "images": len(images),
            "eps": eps,
        }
        self._stage("evidence", None, inputs, work)

    def report(
        self,
        started_at: datetime.datetime,
        plan: PruningPlan,
        pruned: Classifier,
        recipe: Recipe | None,
        recovery: _Recovered,
        rows: Sequence[schema.LedgerRow],
        exports: Mapping[str, Exported],
    ) -> schema.RunReport:
        """report.json, report.md and manifest.json."""
        options = self.options
        report = schema.RunReport(
            request=schema.Request(
                # Who logs in where is nobody's business but the user's.
                options=options.model_dump(mode="json") | {"bench_on": parse_address(options.bench_on).name},
                target=schema.TargetReference(name=self.target.name, sha256=self.target.digest),
                seed=options.seed,
            ),
            source=schema.Source(
                checkpoint=options.checkpoint.name,
                sha256=sha256_file(options.checkpoint),
                model=self.dense.spec,
            ),
            data=data_used(self.dataset),
            pruning=schema.Pruning(
                criterion=plan.criterion,
                ratio=plan.ratio,
                ratio_of=plan.ratio_of,
                channel_multiple=plan.channel_multiple,
                allocation=plan.allocation,
                budgets=plan.budgets,
                groups=tuple(
                    schema.GroupChannels(layers=group.layers, before=group.channels, after=len(group.kept))
                    for group in plan.groups
                ),
                before=_totals(measure_size(self.dense)),
                after=_totals(measure_size(pruned)),
                plan_sha256=plan.digest,
            ),
            recovery=None
            if recipe is None
            else schema.Recovery(
                recipe=recipe.model_dump(mode="json"),
                epochs=len(recovery.history),
                best_epoch=recovery.best_epoch,
                history=tuple(record.model_dump(mode="json") for record in recovery.history),
            ),
            ledger=tuple(rows),
            artifacts=exports["artifacts"].artifacts,
            stages=tuple(
                schema.StageTime(name=stage.name, seconds=stage.seconds, resumed=stage.resumed)
                for stage in self.directory.history
            ),
            warnings=self._warnings(plan, recipe),
            provenance=provenance(started_at),
        )
        report = report.model_copy(update={"gates": self._judged(report, plan)})
        write_report(report, self.directory.path)
        manifest = manifest_of_run(report, exports)
        write_manifest(manifest, self.directory.path, [*results_of_run(self.directory.path), *RENDERED])
        return report

    # -- helpers --------------------------------------------------------------------------------------------------

    def _stage(self, name: str, result_type: Any, inputs: dict[str, Any], work: Any) -> Any:
        def anew() -> Any:
            # An earlier run's report would describe files that are about to be replaced.
            for old in (*WRITTEN, *RENDERED):
                self._path(old).unlink(missing_ok=True)
            return work()

        return self.directory.stage(name, result_type, self.identity | inputs, anew)

    def _reload(self, path: Path) -> Classifier:
        # By its full name, as what the user gave may be short for several; code of the user's own has to be named anew.
        return load_classifier(path, architecture=self.dense.spec.architecture)

    def _path(self, name: str) -> Path:
        return self.directory.path / name

    def _tried(self) -> list[str]:
        """What trials of files depend on, beside the network."""
        place = self.place
        files = [f"{request.format} {request.precision}" for request in self.requests]
        return [
            *files,
            place.target.digest,
            place.device.name,
            str(place.threads),
            *self.options.budgets.asked,
        ]

    def _score(self, classifier: Classifier) -> FilterScores:
        """Scores of the dense network, or of a smaller one that a strategy is at."""
        compute.to_fast_layout(classifier, compute.default_device())
        return score(classifier, self.score_images(), self.options.criterion, seed=self.options.seed)

    def _recipe(self, dense: schema.LedgerRow) -> Recipe | None:
        recipe = self.options.recovery
        if recipe is None:
            return None
        if self.options.natural_if_undefended and _is_undefended(dense, self.dense.spec.classes):
            recipe = recipe.model_copy(update={"method": "natural"})
        return fit_recipe(recipe, self.dataset, has_teacher=True)

    def _references(self) -> tuple[ArtifactRequest, ...]:
        """One fp32 file of the dense network a format, to compare latencies with."""
        formats = dict.fromkeys(request.format for request in self.requests)
        return tuple(ArtifactRequest(format=format_, precision="fp32") for format_ in formats)

    def _file_stage(
        self, artifact: Artifact, suffix: str, inputs: dict[str, Any], judge: Callable[[Predict], Accuracy]
    ) -> Accuracy:
        """One accuracy of a file, which is loaded only where it is not on record."""

        def work() -> tuple[Accuracy, Sequence[Path]]:
            session = open_session(self.directory.path / artifact.path, threads=os.cpu_count() or 1)
            return judge(session.predict), ()

        name = f"evaluate-{artifact.path.parent}-{artifact.format}-{artifact.precision}{suffix}"
        accuracy: Accuracy = self._stage(name, Accuracy, {"file": artifact.sha256} | inputs, work)
        return accuracy

    def _judged(self, report: schema.RunReport, plan: PruningPlan) -> tuple[schema.GateResult, ...]:
        gates = judge(report, self.options.gates)
        if plan.budgets:
            recovered = self._reload(self._path("recovered.safetensors"))
            gates = verdicts(self.place, recovered, plan.budgets, report.ledger) + gates
        if self.options.baseline is None:
            return gates
        baseline = load_report(self.options.baseline)
        return gates + judge_regressions(report, baseline, self.options.max_regression)

    def _warnings(self, plan: PruningPlan, recipe: Recipe | None) -> tuple[str, ...]:
        warnings = []
        asked = self.options.recovery
        if recipe is not None and asked is not None and recipe.method != asked.method:
            warnings.append(
                "the dense network was not trained against attacks, so recovery used clean images; "
                f"--recover-method {asked.method} buys robust accuracy with clean accuracy"
            )
        if self.dataset.evaluation.label_kind != "ground truth":
            warnings.append(
                "accuracy was not measured, as there were no labelled images: agreement with the dense network was"
            )
        untouched = [group.root for group in plan.groups if len(group.kept) == group.channels and group.note]
        if len(untouched) > 1:
            warnings.append(
                f"{len(untouched)} of {len(plan.groups)} channel groups were not pruned; plan.json says why"
            )
        return tuple(warnings)


def _is_undefended(row: schema.LedgerRow, classes: int) -> bool:
    """Whether some attack leaves the network right less often than guessing would."""
    return any(accuracy.eps and accuracy.accuracy < 1 / classes for accuracy in row.accuracies)


def data_used(dataset: Dataset) -> schema.DataUsed:
    """What a report and a manifest say of the data."""
    return schema.DataUsed(
        description=dataset.description,
        train=_reference(dataset.train),
        evaluation=_reference(dataset.evaluation),
        label_kind=dataset.evaluation.label_kind,
    )


def _reference(images: ImageSet) -> schema.ImageSetReference:
    return schema.ImageSetReference(name=images.name, images=len(images), sha256=images.digest)


def _totals(size: Size) -> schema.NetworkTotals:
    return schema.NetworkTotals(channels=size.channels, parameters=size.parameters, macs=size.macs)

"""What a run starts from: read and checked before anything long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge import compute
from fsrp_edge.bench import agent
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.describe import require_ready
from fsrp_edge.bench.setup import DEFAULT_RUNTIMES
from fsrp_edge.data.check import pseudo_labelled
from fsrp_edge.data.images import Dataset, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import predictions
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.exporting.export import ArtifactRequest, require_possible
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.models.channel_graph import require_convolutions
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.pipeline.budgeting import Workplace, timed_by
from fsrp_edge.pipeline.options import CheckpointOptions, CompressOptions
from fsrp_edge.progress import log
from fsrp_edge.pruning.costs import Costing
from fsrp_edge.pruning.options import ChannelOptions, PlanOptions
from fsrp_edge.report.gates import BY_ACCURACY, BY_TIME, parse_gate, parse_regression, require_same_images
from fsrp_edge.report.schema import RunReport, Source
from fsrp_edge.report.store import REPORT_JSON, load_report
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.profile import Offer, Target
from fsrp_edge.targets.this_machine import note_on_int8
from fsrp_edge.training.passes import require_trainable
from fsrp_edge.training.recovery import without_held_out

BY_DEFAULT: tuple[Format, ...] = ("onnx", "tflite")
"""Other formats are made only where they are named."""
ROUNDS, PRUNED, RECOVERED = "rounds.safetensors", "pruned.safetensors", "recovered.safetensors"
"""The networks that a run leaves in its directory."""
LARGE_SIDE = 64
"""Inputs with a longer side are scored and attacked on fewer images, as each costs many times more."""


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
    return on_device(classifier)


def on_device(classifier: Classifier) -> Classifier:
    """The same classifier, moved to where it is computed."""
    classifier.to_fast_layout(compute.default_device())
    return classifier


def load_data(classifier: Classifier, data: str | None, seed: int, asked: Sequence[str] = ()) -> Dataset:
    """The data set that was named, or the one the checkpoint names, or photographs with the network's own labels.

    Args:
        classifier: the network that is to take them; its spec learns how they were fed and what they call the classes.
        data: name or path; None for the other two.
        seed: of draws.
        asked: what only true labels can show to be kept.

    Raises:
        BadInputError: there is no such data, it does not fit, or it has no labels and something of `asked` needs them.
    """
    dataset = open_dataset(data or None, classifier.spec, seed=seed)
    if asked and not dataset.evaluation.is_labelled:
        raise BadInputError(
            f"{asked[0]}: accuracy can't be measured on images without true labels; give labelled ones (--data), or "
            "leave this out"
        )
    if dataset.whole:  # what is shipped says how the images were fed that the files were judged on
        classifier.spec = classifier.spec.fed_whole()
    if classifier.spec.class_names is None:  # what is shipped calls the classes as the images do that judged it
        classifier.spec = classifier.spec.model_copy(update={"class_names": dataset.train.class_names})
    if dataset.train.is_labelled:
        return dataset
    return pseudo_labelled(dataset, *(predictions(classifier, each) for each in (dataset.train, dataset.evaluation)))


def prepare(options: CompressOptions) -> "Inputs":
    """Read and check everything that a run starts from.

    Raises:
        BadInputError: an input is wrong.
        ToolFailedError: the device to measure on is not ready.
    """
    target = load_target(options.target)
    _require_apart(options, run_directory(options, target))
    requests = choose_artifacts(target, options.formats, options.precisions)
    require_possible(requests, target, options)
    epochs = 0 if options.recovery is None else options.recovery.int8_epochs
    # Not of a bound on what int8 files lose: a target of several that share a configuration may have none.
    require_int8(requests, {"int8-epochs": epochs > 0})
    _require_figures(options.gates, requests)
    device = parse_address(options.bench_on)
    if device.kind != "local":
        require_ready(device, timed_by(target, requests, on_target=True).values())
    classifier = load(options)
    require_convolutions(classifier)
    if options.recovery is not None:
        require_trainable(classifier)
    dataset = load_data(classifier, options.data, options.seed, _asks_for_labels(options))
    # The baseline and the file's digest now: they may be others when the run ends.
    baseline = None if options.baseline is None else load_report(options.baseline)
    if baseline is not None:
        require_same_images(baseline, dataset.evaluation.digest)
    source = Source.of(options.checkpoint, classifier.spec)
    return Inputs(options, target, requests, classifier, dataset, source, baseline)


def run_directory(options: CompressOptions, target: Target) -> Path:
    """Where a run leaves what it makes."""
    return options.out or Path(f"{options.checkpoint.stem}-{target.name}")


def _require_apart(options: CompressOptions, out: Path) -> None:
    """Refuse what a run would remove or write anew before it has read it for the last time."""
    networks = {(out / name).resolve() for name in (ROUNDS, PRUNED, RECOVERED)}
    if options.checkpoint.resolve() in networks:
        raise BadInputError(
            f"{options.checkpoint} is what an earlier run left in {out}, and this one would replace it; "
            "choose another --out"
        )
    if options.baseline and options.baseline.resolve() in {out.resolve(), (out / REPORT_JSON).resolve()}:
        raise BadInputError(
            f"--baseline {options.baseline} is the report of {out}, which this run would replace; choose another --out"
        )


def _require_figures(gates: Sequence[str], requests: Sequence[ArtifactRequest]) -> None:
    """Refuse gates on rows that will not be, or on a latency that will not be measured."""
    rows = {"recovered": False}  # and whether its latency is measured
    rows |= {f"{one.format} {one.precision}": one.format in DEFAULT_RUNTIMES for one in requests}
    for text in gates:
        gate = parse_gate(text)
        if gate.row not in (None, *rows):
            raise BadInputError(
                f"{text}: there will be no row {gate.row!r}; there will be {', '.join(map(repr, rows))}"
            )
        timed = any(timed for row, timed in rows.items() if gate.row in (None, row))
        if gate.metric.startswith(BY_TIME) and not timed:
            raise BadInputError(f"{text}: no latency is measured there, only of {', '.join(DEFAULT_RUNTIMES)} files")


def _asks_for_labels(options: CompressOptions) -> list[str]:
    """Gates and regressions that only true labels can show to be kept."""
    asked = {text: parse_gate(text).metric for text in options.gates}
    asked |= {text: parse_regression(text)[0] for text in options.max_regression}
    return [text for text, metric in asked.items() if metric.startswith(BY_ACCURACY)]


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
    for offer in target.offers:
        if not offer.offered and offer.format in (formats or ()) and offer.precision in (precisions or ()):
            log(f"{offer.format} {offer.precision} is not made: {offer.reason}")
    if any(offer.precision == "int8" for offer in chosen) and (note := note_on_int8(target)):
        log(note)
    return tuple(ArtifactRequest(format=offer.format, precision=offer.precision) for offer in chosen)


def require_int8(requests: Sequence[ArtifactRequest], asked: Mapping[str, bool]) -> None:
    """Refuse options of int8 files, by whether they are asked for, where no such file is made."""
    for option in (option for option, wanted in asked.items() if wanted):
        if not any(request.precision == "int8" for request in requests):
            files = ", ".join(f"{request.format} {request.precision}" for request in requests)
            raise BadInputError(
                f"{option} is for int8 files, and only {files} will be made; leave it out, or ask for precision int8"
            )


def default_score_images(spec: ModelSpec) -> int:
    """How many training images are scored on where nothing else is asked for."""
    return by_input_size(spec, 512, 128)


def by_input_size(spec: ModelSpec, small: int, large: int) -> int:
    """How many images to take of small inputs, and of large ones."""
    return small if max(spec.input_shape[1:]) <= LARGE_SIDE else large


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    options: CompressOptions
    target: Target
    requests: tuple[ArtifactRequest, ...]
    dense: Classifier
    dataset: Dataset
    source: Source
    baseline: RunReport | None

    @property
    def out(self) -> Path:
        """The run directory."""
        return run_directory(self.options, self.target)

    def score_images(self) -> ImageSet:
        """The training images to score on."""
        count = self.options.score_images or default_score_images(self.dense.spec)
        return self.learnt_images(count)

    def learnt_images(self, count: int) -> ImageSet:
        """Training images, apart from those that judge the recovery."""
        seed = self.options.seed
        return without_held_out(self.dataset.train, seed).sample(count, seed)

    def attacked_images(self) -> ImageSet:
        """The evaluation images to attack."""
        count = self.options.robust_images or by_input_size(self.dense.spec, 1000, 128)
        return self.dataset.evaluation.first(count)

    def plan_options(self) -> PlanOptions:
        """What the plan is asked for, with what the target demands."""
        asked = {name: getattr(self.options, name) for name in ChannelOptions.model_fields}
        return PlanOptions(**asked, channel_multiple=self.target.channel_multiple)

    @property
    def export_options(self) -> ExportOptions:
        """What the shipped files are made with."""
        return ExportOptions(**self.options.model_dump(include=set(ExportOptions.model_fields)))

    @property
    def place(self) -> Workplace:
        """Where files are measured, and by what budgets are judged."""
        device, threads = parse_address(self.options.bench_on), self.target.threads
        if device.kind == "local":
            threads = min(threads, agent.cores())
        images = self.dataset.train.sample(8, self.options.seed)
        # Layers that int8 can't have are found by the accuracy of a trained network, which a trial has not.
        of_trials = {"calibration_images": len(images), "int8_max_drop": None}
        options = self.export_options.model_copy(update=of_trials)
        return Workplace(self.target, self.requests, device, threads, images, options)

    def costing(self) -> Costing | None:
        """What budgets are reckoned with; None where there are none, or of MACs and parameters only."""
        asked = self.options.budgets.asked
        if asked.keys() <= {"macs", "parameters"}:
            return None
        return self.place.costing(self.dense, absolute="latency" in asked and not self.place.measured)

"""Stages that make and judge files: export, latency, accuracy clean and under attack."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fsrp_edge
from fsrp_edge.bench.agreement import Origin, require_agreement
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.results import BenchResults, Latency
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.evaluation.accuracy import Predict, clean_accuracy
from fsrp_edge.evaluation.files import file_robust_accuracy, transfer_examples
from fsrp_edge.evaluation.paired import since_dense
from fsrp_edge.evaluation.results import Judged
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.verified import Exported, export_verified
from fsrp_edge.files import files_of, write_text
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import Workplace, named_graph, timed_by
from fsrp_edge.pipeline.run import Run
from fsrp_edge.report.schema import EstimatedLatency, LedgerRow
from fsrp_edge.report.store import BENCH_JSON
from fsrp_edge.runtimes import all_cores, open_session
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.graph_cost import read_graph


def references(run: Run) -> tuple[ArtifactRequest, ...]:
    """One fp32 file of the dense network a format, to compare latencies with."""
    formats = dict.fromkeys(request.format for request in run.requests)
    return tuple(ArtifactRequest(format=format_, precision="fp32") for format_ in formats)


def export(run: Run, folder: str, classifier: Classifier, requests: Sequence[ArtifactRequest]) -> Exported:
    """The files in `folder`, put there only after every one was found to compute what the network computes."""
    calibration = run.learnt_images(run.options.calibration_images)
    options = run.export_options

    def work() -> Exported:
        exported = export_verified(
            classifier,
            requests,
            run.path(folder),
            target=run.target,
            calibration=calibration,
            images=run.dataset.evaluation,
            options=options,
        )
        moved = [each.model_copy(update={"path": folder / each.path}) for each in exported.artifacts]
        scripts = tuple(folder / script for script in exported.scripts)
        return exported.model_copy(update={"artifacts": tuple(moved), "scripts": scripts})

    def written(exported: Exported) -> list[str]:
        paths = [*(artifact.path for artifact in exported.artifacts), *exported.scripts]
        return [str(file.relative_to(run.path(""))) for path in paths for file in files_of(run.path(path))]

    inputs = {
        "weights": weights_sha256(classifier),
        "requests": [f"{request.format} {request.precision}" for request in requests],
        "target": run.target.digest,
        "calibration": calibration.digest,
        "options": options,
    }
    if classifier.spec.class_names is not None:  # which are written into the files
        inputs["labels"] = classifier.spec.class_names
    return run.stage(f"export-{folder}", Exported, inputs, work, written)


def bench(run: Run, exports: Sequence[Exported]) -> dict[Path, Latency]:
    """Latency on this machine or a device by path, files in turns; not of every format."""
    place = run.place
    runtimes = place.runtimes
    known = {
        artifact: exported.probe
        for exported in exports
        for artifact in exported.artifacts
        if artifact.format in runtimes
    }
    timed = list(known)

    def work() -> list[Latency]:
        origins = {artifact.sha256: Origin(artifact, probe) for artifact, probe in known.items()}
        paths = [run.path(artifact.path) for artifact in timed]
        setup = place.setup(run.dense.spec, origins)
        measured = measure_on(place.device, paths, setup, method=run.options.method)
        # With every raw time: for the report's pictures, and for `bench compare`.
        results = BenchResults(fsrp_edge=fsrp_edge.__version__, measurements=tuple(measured))
        write_text(run.path(BENCH_JSON), results.model_dump_json() + "\n")
        require_agreement(measured)
        return [measurement.latency for measurement in measured]

    inputs = {
        "files": [artifact.sha256 for artifact in timed],
        "device": place.device.place,
        "runtimes": sorted(runtimes.values()),
        "threads": place.threads,
        "method": run.options.method,
    } | place.measured_by
    latencies = run.stage("bench", list[Latency], inputs, work, [BENCH_JSON])
    return {artifact.path: latency for artifact, latency in zip(timed, latencies, strict=True)}


def estimates(
    place: Workplace, classifier: Classifier, artifacts: Sequence[Artifact], folder: Path
) -> dict[Path, EstimatedLatency]:
    """Latency of a network's files in `folder` on the target, where it is measured elsewhere; not of every file.

    Nor of int8 files with layers in float: costs are known of whole networks in one precision.
    """
    if place.on_target:
        return {}
    counted = next((artifact.path for artifact in artifacts if artifact.name == "onnx fp32"), None)
    try:
        graph = named_graph(classifier) if counted is None else read_graph(folder / counted)
    except (BadInputError, ToolFailedError):  # onnx is not installed, or shapes cannot be told
        return {}
    runtimes = timed_by(place.target, place.requests, on_target=True)
    found = {}
    for artifact in artifacts:
        if artifact.kept_in_float:
            continue
        with contextlib.suppress(BadInputError, KeyError):  # nothing is known of a runtime that takes it
            runtime = runtimes[artifact.format]
            estimated = estimate(graph, place.target, precision=artifact.precision, runtime=runtime)
            found[artifact.path] = EstimatedLatency.of(estimated)
    return found


def file_rows(
    run: Run,
    prefix: str,
    classifier: Classifier,
    dense: Sequence[Judged],
    exported: Exported,
    latencies: Mapping[Path, Latency],
    *,
    attack: bool,
) -> list[LedgerRow]:
    """Accuracy of each file under its own runtime beside the dense network's, with its latency and parity."""
    size, judged = measure_size(classifier), _judge(run, classifier, attack=attack)
    estimated = estimates(run.place, classifier, exported.artifacts, run.path(""))
    return [
        LedgerRow(
            name=prefix + artifact.name,
            accuracies=since_dense(dense, judged(artifact)),
            macs=size.macs,
            parameters=size.parameters,
            bytes=artifact.bytes,
            latency=(latencies[artifact.path],) if artifact.path in latencies else (),
            estimate=estimated.get(artifact.path),
            parity=parity,
        )
        for artifact, parity in zip(exported.artifacts, exported.parities, strict=True)
    ]


def _judge(run: Run, classifier: Classifier, *, attack: bool) -> Callable[[Artifact], tuple[Judged, ...]]:
    """What judges a network's files: clean, and under attack where that is asked for."""
    options, evaluation = run.options, run.dataset.evaluation
    attacked, eps, seed = evaluation.first(options.file_images), options.eps, options.seed
    examples = cache(lambda: transfer_examples(classifier, attacked, eps=eps, seed=seed))

    def clean(predict: Predict) -> Judged:
        return Judged.of(clean_accuracy(predict, evaluation))

    def robust(predict: Predict) -> Judged:
        return Judged.of(file_robust_accuracy(predict, attacked, examples(), eps=eps, seed=seed))

    def judged(artifact: Artifact) -> tuple[Judged, ...]:
        unharmed = _file_stage(run, artifact, "", {}, clean)
        if not attack or not len(attacked):
            return (unharmed,)
        inputs = {"eps": eps, "images": len(attacked), "network": weights_sha256(classifier)}
        return unharmed, _file_stage(run, artifact, "-attacked", inputs, robust)

    return judged


def _file_stage(
    run: Run, artifact: Artifact, suffix: str, inputs: dict[str, Any], judge: Callable[[Predict], Judged]
) -> Judged:
    """One evaluation of a file, which is loaded only where it is not on record."""

    def work() -> Judged:
        return judge(open_session(run.path(artifact.path), threads=all_cores()).predict)

    name = f"evaluate-{artifact.path.parent}-{artifact.format}-{artifact.precision}{suffix}"
    return run.stage(name, Judged, {"file": artifact.sha256} | inputs, work)

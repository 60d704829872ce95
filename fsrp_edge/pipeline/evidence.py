"""What the pictures of a report show, taken from the networks and files of a finished run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute, progress
from fsrp_edge.attacks import PGD, attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.files import transfer_examples
from fsrp_edge.evaluation.results import Judged
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.exporting.artifact import Artifact, Precision
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pipeline.budgeting import timed_by
from fsrp_edge.pipeline.inputs import by_input_size
from fsrp_edge.pipeline.run import Run
from fsrp_edge.report.evidence import (
    EVIDENCE_ARRAYS,
    EVIDENCE_JSON,
    Breakdown,
    ClassCounts,
    CurvePoint,
    Evidence,
    Example,
    OperatorShare,
    Pictured,
    Spectra,
)
from fsrp_edge.scoring.explain import FILTERS, mean_spectra
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.targets.profile import Target

CURVE_STEPS = 10
"""PGD steps at each radius; the ledger's own attack is stronger."""
RADII = (0.5, 1.0, 2.0)
"""Of the curve, in units of the run's radius."""
SPECTRA_IMAGES = 64
EXAMPLES, EXAMPLES_SOUGHT = 4, 32
"""Shown, and images they are taken from."""
OPERATORS = 12


def picture(
    run: Run, scores: FilterScores, recovered: Classifier, clean: tuple[Judged, Judged], artifacts: Sequence[Artifact]
) -> None:
    """evidence.json and evidence.npz: what the report's pictures are drawn from; no curve and no examples at eps 0.

    Args:
        run: of the dense network.
        scores: of its filters.
        recovered: the network that is shipped.
        clean: accuracy on all evaluation images of the dense network and of this one.
        artifacts: its files.
    """
    images = run.attacked_images().first(by_input_size(run.dense.spec, 100, 32))
    dense, seed, criterion = run.dense, run.options.seed, run.options.criterion
    eps = run.options.eps if run.options.attacks else 0.0
    # An estimate knows files of one precision.
    onnx = next((each for each in artifacts if each.format == "onnx" and not each.kept_in_float), None)
    runtime = timed_by(run.target, run.requests, on_target=True).get("onnx")
    breakdown = break_down(run.path(onnx.path), run.target, onnx.precision, runtime) if onnx else None

    def work() -> None:
        progress.log("gathering what the report shows")
        arrays: dict[str, np.ndarray] = {}
        spectra: tuple[Spectra, ...] = ()
        if not isinstance(criterion, Rival):
            spectra = tuple(_spectra(dense, images.first(SPECTRA_IMAGES), scores, criterion, seed, arrays))
        evidence = Evidence(
            curve=tuple(_curve({"dense": dense, "recovered": recovered}, images, eps, seed)) if eps else (),
            classes=_classes(run.dataset.evaluation.labels, dense.spec.classes, clean),
            spectra=spectra,
            breakdown=breakdown,
            examples=_examples(recovered, images, eps, seed, arrays) if eps else (),
            example_eps=eps,
        )
        Pictured(evidence, arrays).save(run.directory.path)

    inputs = {
        "recovered": weights_sha256(recovered),
        "scores": scores,
        "breakdown": breakdown,
        "images": len(images),
        "eps": eps,
    }
    run.stage("evidence", type(None), inputs, work, [EVIDENCE_JSON, EVIDENCE_ARRAYS])


def break_down(file: Path, target: Target, precision: Precision, runtime: str | None) -> Breakdown | None:
    """Where an ONNX file's time is estimated to go on a target; None where nothing is known to estimate with."""
    from fsrp_edge.targets.estimate import estimate
    from fsrp_edge.targets.graph_cost import read_graph

    try:
        found = estimate(read_graph(file), target, precision=precision, runtime=runtime)
    except BadInputError:
        return None
    slowest = sorted(found.operators, key=lambda each: -each.milliseconds)[:OPERATORS]
    return Breakdown(
        file=file.name,
        basis=found.basis,
        runtime=found.runtime,
        milliseconds=found.milliseconds,
        operators=tuple(
            OperatorShare(name=each.operator.layer, kind=each.operator.kind, milliseconds=each.milliseconds)
            for each in slowest
        ),
    )


def _curve(networks: dict[str, Classifier], images: ImageSet, eps: float, seed: int) -> Iterator[CurvePoint]:
    for name, network in networks.items():
        yield CurvePoint(network=name, eps=0, accuracy=clean_accuracy(network, images).result)
        for radius in RADII:
            attack = PGD(eps=min(1.0, radius * eps), steps=CURVE_STEPS)
            accuracy = pgd_accuracy(network, images, attack, seed=seed).result
            yield CurvePoint(network=name, eps=attack.eps, accuracy=accuracy)


def _classes(labels: Tensor, count: int, clean: tuple[Judged, Judged]) -> tuple[ClassCounts, ...]:
    totals = torch.bincount(labels, minlength=count)
    right = [torch.bincount(labels[judged.stands], minlength=count) for judged in clean]
    return tuple(
        ClassCounts(label=label, images=int(totals[label]), dense=int(right[0][label]), recovered=int(right[1][label]))
        for label in range(count)
        if totals[label]
    )  # fmt: skip


def _spectra(
    dense: Classifier,
    images: ImageSet,
    scores: FilterScores,
    criterion: FSRP | Reconstruction,
    seed: int,
    arrays: dict[str, np.ndarray],
) -> Iterator[Spectra]:
    """Of the first, the middle and the last layer whose maps have two bands; fills `arrays`."""
    having = [name for name, layer in scores.layers.items() if layer.has_bands and len(layer.scores) >= 2 * FILTERS]
    drawn = [having[place] for place in (0, len(having) // 2, -1)] if having else []
    chosen = {name: scores.layers[name].worst_and_best(FILTERS) for name in drawn}
    reading = criterion
    if isinstance(reading, Reconstruction):
        reading = FSRP(read_at="activation", radius=reading.radius, attack=reading.attack)
    for name, power in mean_spectra(dense, images, reading, chosen, seed=seed).items() if chosen else ():
        arrays[f"spectra/{name}"] = power.astype(np.float32)
        yield Spectra(
            layer=name,
            filters=tuple(chosen[name]),
            scores=tuple(scores.layers[name].scores[filter_] for filter_ in chosen[name]),
            radius=reading.radius,
            region=reading.region,
        )


def _examples(
    network: Classifier, images: ImageSet, eps: float, seed: int, arrays: dict[str, np.ndarray]
) -> tuple[Example, ...]:
    """Images that the attack fools, filled up with others; fills `arrays`."""
    images = images.first(EXAMPLES_SOUGHT)
    adversarial = transfer_examples(network, images, eps=eps, seed=seed)
    pixels, labels = next(images.batches(len(images)))
    device = compute.device_of(network)
    with attackable(network), torch.no_grad():
        before, after = (network(batch.to(device)).argmax(1).cpu() for batch in (pixels, adversarial))
    fooled = (before == labels) & (after != labels)
    order = torch.argsort(~fooled, stable=True)[:EXAMPLES]
    arrays["examples/clean"] = pixels[order].numpy().astype(np.float16)
    arrays["examples/adversarial"] = adversarial[order].numpy().astype(np.float16)
    return tuple(
        Example(label=int(labels[index]), clean=int(before[index]), adversarial=int(after[index])) for index in order
    )

"""Several evaluations of one network on one set of images, and the worst case over them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from fsrp_edge import compute, distributed
from fsrp_edge.attacks import DEFAULT_EPS, PGD, Loss, Norm, check_radius
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import clean_accuracy, default_batch_size, evaluation_of
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.evaluation.corruptions import corruption_accuracies
from fsrp_edge.evaluation.files import evaluate_files
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.evaluation.standing import Verdicts, recorded_identity
from fsrp_edge.evaluation.suspicions import suspicions
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import identity_of
from fsrp_edge.records import Record

_PGD_NAME = re.compile(r"(pgd|cw)-([1-9]\d*)(?:x([1-9]\d*))?")


def _known(name: str) -> str:
    if name not in {"fgsm", "autoattack"} and not _PGD_NAME.fullmatch(name):
        raise ValueError(
            f"unknown attack {name!r}: give fgsm, autoattack, pgd-STEPS, cw-STEPS or either with xRESTARTS, such as "
            "pgd-20 or pgd-100x5"
        )
    return name


AttackName = Annotated[str, AfterValidator(_known)]


def pgd_of(name: str, *, eps: float = DEFAULT_EPS, norm: Norm = "Linf") -> PGD:
    """The attack that `fgsm`, `pgd-20`, `cw-20` or `pgd-100x5` names, in a ball."""
    if name == "fgsm":
        return PGD(eps=eps, norm=norm, steps=1, step_size=eps or None)
    match = _PGD_NAME.fullmatch(name)
    assert match
    loss: Loss = "margin" if match[1] == "cw" else "cross-entropy"
    return PGD(eps=eps, norm=norm, steps=int(match[2]), restarts=int(match[3] or 1), loss=loss)


class EvaluationPlan(Record):
    """What is evaluated. Clean accuracy always is.

    Args:
        attacks: `fgsm`, `pgd-<steps>`, `cw-<steps>` (PGD on the margin), either with `x<restarts>`, `autoattack`, in
            the order they are run.
        eps: radius of all attacks, in units of pixels in [0, 1].
        norm: of their ball.
        seed: of every random draw.
        batch_size: images at once; None chooses by their size, and goes on with that of an interrupted evaluation.
        corruptions: also evaluate under common corruptions of every family, each at severities 1 to 5.
    """

    attacks: tuple[AttackName, ...] = ("pgd-20",)
    eps: float = Field(DEFAULT_EPS, ge=0)
    norm: Norm = "Linf"
    seed: int = Field(0, ge=0)
    batch_size: int | None = Field(None, ge=1)
    corruptions: bool = False

    @model_validator(mode="after")
    def _radius_fits(self) -> Self:
        check_radius(self.norm, self.eps)
        return self


def evaluate(
    classifier: Classifier, images: ImageSet, plan: EvaluationPlan, *, unfinished: Path | None = None
) -> tuple[Evaluation, ...]:
    """Clean accuracy, then that under each attack of the plan, the worst case over several, and corruptions.

    Every attack is run on all images that are right when clean, so that each number means what tables call by
    its name; the worst case joins them. Under `torchrun` the processes share the work, and all return the whole.

    Args:
        classifier: the network, on the device to compute on.
        images: images and labels.
        plan: what to evaluate.
        unfinished: file that holds the verdicts known so far, continued from where it exists; to be removed
            (`standing.discard_verdicts`) once the result is saved.

    Raises:
        BadInputError: there are no images, corruptions of images that are neither grey nor RGB, or `unfinished` belongs
            to another evaluation.
    """
    return evaluate_with_files(classifier, images, plan, (), unfinished=unfinished)[""]


def evaluate_with_files(
    classifier: Classifier,
    images: ImageSet,
    plan: EvaluationPlan,
    files: Sequence[Path],
    *,
    unfinished: Path | None = None,
) -> dict[str, tuple[Evaluation, ...]]:
    """What `evaluate` does, and exported files of the network in their own runtimes.

    Args:
        classifier: the network, on the device to compute on.
        images: images and labels.
        plan: what to evaluate. Files are attacked in L∞ where it names any attack.
        files: ONNX or TFLite, no two of the same name.
        unfinished: file that holds the verdicts known so far, continued from where it exists; to be removed
            (`standing.discard_verdicts`) once the result is saved.

    Returns:
        The evaluations of the network under "" and those of the files under their names.

    Raises:
        BadInputError: as for `evaluate`, a path is no such file, or the plan attacks within L2.
        ToolFailedError: a runtime is not installed or refuses its file.
    """
    if plan.corruptions and (channels := classifier.spec.input_shape[0]) not in (1, 3):
        raise BadInputError(f"common corruptions are made for 1 or 3 channels, this network takes {channels}")
    if files and plan.attacks and plan.norm != "Linf":
        raise BadInputError(f"files are attacked within Linf only, and the norm is {plan.norm}; judge them apart")
    if plan.batch_size is None:
        plan = plan.model_copy(update={"batch_size": _batch_size(classifier, images, unfinished)})
    identity = {
        **identity_of(classifier),
        "images": images.digest,
        "plan": plan.model_dump(mode="json", exclude={"attacks", "corruptions"}),
        "processes": distributed.processes()[1],
    }
    verdicts = Verdicts(unfinished, identity)
    # Files first, as what is no such file is told at once then.
    eps = plan.eps if plan.attacks else 0
    of_files = evaluate_files(files, classifier, images, eps=eps, seed=plan.seed, verdicts=verdicts)
    of_network = _of_network(classifier, images, plan, verdicts)
    return {"": of_network, **of_files}


def _of_network(
    classifier: Classifier, images: ImageSet, plan: EvaluationPlan, verdicts: Verdicts
) -> tuple[Evaluation, ...]:
    # As the attacks lay it out: they are told which images are right, and other layouts round otherwise.
    classifier.to_fast_layout(compute.device_of(classifier))
    clean = clean_accuracy(classifier, images, batch_size=plan.batch_size)
    # Before the attacks: a network without gradients is refused here, and attacks take long.
    found = suspicions(classifier, images, plan.norm, seed=plan.seed) if plan.attacks and plan.eps > 0 else ()
    attacked = [
        _with_warnings(_attacked(classifier, images, name, plan, clean.standing, verdicts), found)
        for name in plan.attacks
    ]
    worst = (_worst_case(clean, attacked, images, plan),) if len(attacked) > 1 else ()
    corrupted = (
        corruption_accuracies(classifier, images, seed=plan.seed, batch_size=plan.batch_size, verdicts=verdicts)
        if plan.corruptions
        else ()
    )
    return (clean, *attacked, *worst, *corrupted)


def _batch_size(classifier: Classifier, images: ImageSet, unfinished: Path | None) -> int:
    """Of all processes alike, as they share batches, whatever memory of their GPUs is free, now or before."""
    match recorded_identity(unfinished):
        case {"plan": {"batch_size": int(size)}}:
            recorded = size
        case _:
            recorded = 0
    # A process that was killed before its first batch has left no file.
    if used := max(distributed.numbers_of_processes(recorded)):
        return used
    return min(distributed.numbers_of_processes(default_batch_size(images, classifier)))


def _worst_case(
    clean: Evaluation, attacked: Sequence[Evaluation], images: ImageSet, plan: EvaluationPlan
) -> Evaluation:
    """Accuracy where an image stands only if it stands in every evaluation.

    Its name says which attacks it joins, as only worst cases over the same ones compare.
    """
    standing = torch.stack([evaluation.standing for evaluation in (clean, *attacked)]).all(dim=0)
    found = dict.fromkeys(warning for evaluation in attacked for warning in evaluation.result.warnings)
    name = f"worst case of {', '.join(sorted({evaluation.result.attack for evaluation in attacked}))}"
    return evaluation_of(standing, images, attack=name, norm=plan.norm, eps=plan.eps, warnings=tuple(found))


def _attacked(
    classifier: Classifier,
    images: ImageSet,
    name: str,
    plan: EvaluationPlan,
    standing: Tensor,
    verdicts: Verdicts,
) -> Evaluation:
    shared: Any = {"batch_size": plan.batch_size, "standing": standing, "verdicts": verdicts}
    if name == "autoattack":
        return autoattack_accuracy(classifier, images, eps=plan.eps, norm=plan.norm, seed=plan.seed, **shared)
    attack = pgd_of(name, eps=plan.eps, norm=plan.norm)
    return pgd_accuracy(classifier, images, attack, seed=None if name == "fgsm" else plan.seed, **shared)


def _with_warnings(evaluation: Evaluation, found: tuple[str, ...]) -> Evaluation:
    result = evaluation.result
    return replace(evaluation, result=result.model_copy(update={"warnings": (*result.warnings, *found)}))

"""Several evaluations of one network on one set of images, and the worst case over them."""

import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fsrp_edge.attacks import DEFAULT_EPS, PGD
from fsrp_edge.data.images import ImageSet
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.evaluation.results import Accuracy, Evaluation
from fsrp_edge.evaluation.robust import fgsm_accuracy, pgd_accuracy
from fsrp_edge.evaluation.statistics import wilson_interval
from fsrp_edge.models.classifier import Classifier

_PGD_NAME = re.compile(r"pgd-([1-9]\d*)(?:x([1-9]\d*))?")


def _known(name: str) -> str:
    if name not in {"fgsm", "autoattack"} and not _PGD_NAME.fullmatch(name):
        raise ValueError(
            f"unknown attack {name!r}: give fgsm, autoattack, pgd-STEPS or pgd-STEPSxRESTARTS, such as "
            "pgd-20 or pgd-100x5"
        )
    return name


AttackName = Annotated[str, AfterValidator(_known)]


class EvaluationPlan(BaseModel):
    """What is evaluated. Clean accuracy always is.

    Args:
        attacks: `fgsm`, `pgd-<steps>`, `pgd-<steps>x<restarts>`, `autoattack`, in the order they are run.
        eps: L∞ radius of all attacks, in units of pixels in [0, 1].
        seed: of every random draw.
        batch_size: images at once; None chooses by their size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attacks: tuple[AttackName, ...] = ("pgd-20",)
    eps: float = Field(DEFAULT_EPS, ge=0, le=1)
    seed: int = Field(0, ge=0)
    batch_size: int | None = Field(None, ge=1)


def evaluate(classifier: Classifier, images: ImageSet, plan: EvaluationPlan) -> tuple[Evaluation, ...]:
    """Clean accuracy, then that under each attack of the plan.

    Every attack is run on all images that are right when clean, so that each number means what tables call by
    its name; `worst_case` joins them.

    Raises:
        BadInputError: there are no images.
    """
    clean = clean_accuracy(classifier, images, batch_size=plan.batch_size)
    return (clean, *(_attacked(classifier, images, name, plan) for name in plan.attacks))


def worst_case(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Accuracy where an image stands only if it stands in every evaluation.

    Args:
        evaluations: at least one; of one network on one set of images, its attacks in one norm with one eps.

    Raises:
        ValueError: they are not comparable.
    """
    results = [evaluation.result for evaluation in evaluations]
    balls = {(result.norm, result.eps) for result in results if result.norm is not None}
    if len({(result.data, result.images) for result in results}) != 1 or len(balls) > 1:
        raise ValueError("a worst case needs evaluations on the same images with the same norm and eps")
    norm, eps = next(iter(balls), (None, None))
    standing = torch.stack([evaluation.standing for evaluation in evaluations]).all(dim=0)
    correct = int(standing.sum())
    result = Accuracy(
        attack="worst case",
        norm=norm,
        eps=eps,
        images=len(standing),
        correct=correct,
        accuracy=correct / len(standing),
        interval=wilson_interval(correct, len(standing)),
        data=results[0].data,
        label_kind=results[0].label_kind,
        warnings=tuple(dict.fromkeys(warning for result in results for warning in result.warnings)),
    )
    return Evaluation(result, standing)


def _attacked(classifier: Classifier, images: ImageSet, name: str, plan: EvaluationPlan) -> Evaluation:
    if name == "fgsm":
        return fgsm_accuracy(classifier, images, eps=plan.eps, batch_size=plan.batch_size)
    if name == "autoattack":
        return autoattack_accuracy(
            classifier, images, eps=plan.eps, seed=plan.seed, batch_size=plan.batch_size
        )
    match = _PGD_NAME.fullmatch(name)
    assert match
    attack = PGD(eps=plan.eps, steps=int(match[1]), restarts=int(match[2] or 1))
    return pgd_accuracy(classifier, images, attack, seed=plan.seed, batch_size=plan.batch_size)

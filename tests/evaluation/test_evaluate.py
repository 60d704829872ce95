import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fsrp_edge.attacks import PGD
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation import accuracy, autoattack, robust
from fsrp_edge.evaluation.accuracy import predictions
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate, pgd_of
from fsrp_edge.evaluation.paired import compare_files
from fsrp_edge.evaluation.results import EvaluationFile
from fsrp_edge.evaluation.robust import pgd_accuracy


def test_clean_comes_first_and_the_worst_case_is_what_stands_everywhere(trained) -> None:
    images = trained.images.first(6)
    plan = EvaluationPlan(attacks=("fgsm", "pgd-5x2", "autoattack"), eps=0.2, seed=1)
    evaluations = evaluate(trained.natural, images, plan)
    assert [evaluation.result.attack for evaluation in evaluations] == [
        "clean",
        "fgsm",
        "pgd-5x2",
        "autoattack",
        "worst case of autoattack, fgsm, pgd-5x2",
    ]
    assert [evaluation.result.eps for evaluation in evaluations] == [None, 0.2, 0.2, 0.2, 0.2]
    worst = evaluations[-1]
    expected = torch.stack([evaluation.standing for evaluation in evaluations[:-1]]).all(0)
    assert torch.equal(worst.standing, expected)
    assert (worst.result.norm, worst.result.eps) == ("Linf", 0.2)
    assert worst.result.correct == int(expected.sum())


def test_worst_cases_over_other_attacks_are_not_compared(trained) -> None:
    images, files = trained.images.first(6), []
    for attacks in (("pgd-2", "fgsm"), ("fgsm", "pgd-2"), ("pgd-2", "fgsm", "cw-2")):
        evaluations = evaluate(trained.natural, images, EvaluationPlan(attacks=attacks, eps=0.2))
        files.append(EvaluationFile.of("net", "a", images.digest, {"": evaluations}))
    in_another_order, more = ([row[1].attack for row in compare_files(files[0], other)] for other in files[1:])
    assert in_another_order == ["clean", "pgd-2", "fgsm", "worst case of fgsm, pgd-2"]
    assert more == ["clean", "pgd-2", "fgsm"]


def test_the_network_predicts_all_images_once_whatever_the_attacks(trained, monkeypatch) -> None:
    images, seen = trained.images.first(6), []
    apart = [
        pgd_accuracy(trained.robust, images, pgd_of("fgsm", eps=0.2), seed=None),
        pgd_accuracy(trained.robust, images, PGD(eps=0.2, steps=3, restarts=2), seed=1),
        autoattack_accuracy(trained.robust, images, eps=0.2, seed=1),
    ]

    def predicting(network, predicted, **options) -> Tensor:
        seen.append(predicted)
        return predictions(network, predicted, **options)

    for module in (accuracy, robust, autoattack):
        monkeypatch.setattr(module, "predictions", predicting)
    plan = EvaluationPlan(attacks=("fgsm", "pgd-3x2", "autoattack"), eps=0.2, seed=1)
    _, *together, _ = evaluate(trained.robust, images, plan)
    assert sum(predicted is images for predicted in seen) == 1
    assert all(torch.equal(one.standing, other.standing) for one, other in zip(together, apart, strict=True))


@pytest.mark.parametrize("name", ["cw", "pgd", "pgd-0", "pgd-20x0", "PGD-20", "pgd-20 "])
def test_unknown_attacks_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValidationError, match="give fgsm, autoattack, pgd-STEPS"):
        EvaluationPlan(attacks=(name,))


def test_no_images(trained) -> None:
    with pytest.raises(BadInputError, match="no images"):
        evaluate(trained.robust, trained.images.first(0), EvaluationPlan())

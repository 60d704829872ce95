import pytest
import torch
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate


def test_clean_comes_first_and_the_worst_case_is_what_stands_everywhere(trained) -> None:
    images = trained.images.first(6)
    plan = EvaluationPlan(attacks=("fgsm", "pgd-5x2", "autoattack"), eps=0.2, seed=1)
    evaluations = evaluate(trained.natural, images, plan)
    assert [evaluation.result.attack for evaluation in evaluations] == [
        "clean",
        "fgsm",
        "pgd-5x2",
        "autoattack",
        "worst case",
    ]
    assert [evaluation.result.eps for evaluation in evaluations] == [None, 0.2, 0.2, 0.2, 0.2]
    worst = evaluations[-1]
    expected = torch.stack([evaluation.standing for evaluation in evaluations[:-1]]).all(0)
    assert torch.equal(worst.standing, expected)
    assert (worst.result.attack, worst.result.norm, worst.result.eps) == ("worst case", "Linf", 0.2)
    assert worst.result.correct == int(expected.sum())


@pytest.mark.parametrize("name", ["cw", "pgd", "pgd-0", "pgd-20x0", "PGD-20", "pgd-20 "])
def test_unknown_attacks_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValidationError, match="give fgsm, autoattack, pgd-STEPS"):
        EvaluationPlan(attacks=(name,))


def test_no_images(trained) -> None:
    with pytest.raises(BadInputError, match="no images"):
        evaluate(trained.robust, trained.images.first(0), EvaluationPlan())

import copy

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from fsrp_edge.attacks import PGD
from fsrp_edge.data.embedded import digits
from fsrp_edge.evaluation.accuracy import clean_accuracy, predictions
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.models.classifier import Classifier, Preprocessing


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.15), ("L2", 1.5)])
def test_the_same_images_fall_as_under_the_librarys_own_driver(restricted, norm: str, eps: float) -> None:
    network, images = restricted(4)
    images = images.first(8)
    pixels, labels = next(images.batches(8))
    theirs = AutoAttack(copy.deepcopy(network), norm=norm, eps=eps, seed=3)
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 3
    theirs.verbose = False
    _, predicted = theirs.run_standard_evaluation(pixels, labels, batch_size=5)
    state = torch.random.get_rng_state()
    ours = autoattack_accuracy(network, images, norm=norm, eps=eps, seed=3, batch_size=5)
    assert ours.standing.tolist() == (predicted == labels).tolist()
    assert 0 < ours.result.correct < 8
    assert (ours.result.attack, ours.result.norm, ours.result.eps) == ("autoattack", norm, eps)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random state was disturbed"
    if norm == "Linf":
        pgd = pgd_accuracy(network, images, PGD(eps=eps, steps=20), seed=0)
        assert ours.result.correct <= pgd.result.correct


def test_eps_zero_is_clean(trained) -> None:
    images = trained.images.first(50)
    clean = clean_accuracy(trained.robust, images)
    assert torch.equal(autoattack_accuracy(trained.robust, images, eps=0, seed=0).standing, clean.standing)


@pytest.mark.parametrize(("classes", "warned"), [(2, "2 classes"), (3, "3 classes")])
def test_with_too_few_classes_for_a_loss_the_rest_still_runs(restricted, classes: int, warned: str) -> None:
    network, images = restricted(classes)
    result = autoattack_accuracy(network, images.first(6), eps=0.5, seed=0).result
    assert result.correct == 0
    assert [warning[:9] for warning in result.warnings] == [warned]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_for_a_loss_in_full(restricted, classes: int) -> None:
    network, images = restricted(classes)
    assert autoattack_accuracy(network, images.first(6), eps=0.05, seed=0).result.correct > 0


@pytest.mark.parametrize(("side", "left_out"), [(13, False), (19, True), (4, True)])
def test_square_is_left_out_where_it_would_break_off(trained, side: int, left_out: bool) -> None:
    update = {"input_shape": (1, side, side), "preprocessing": Preprocessing(resize=side)}
    spec = trained.natural.spec.model_copy(update=update)
    torch.manual_seed(0)
    network = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(side**2, 2)), spec.model_copy(update={"classes": 2})
    ).eval()
    images = digits(spec).evaluation.first(4)
    images = images.relabelled(predictions(network, images), "predictions of the dense network")
    result = autoattack_accuracy(network, images, eps=1e-4, norm="L2", seed=0).result
    assert result.correct == 4
    assert any("Square cannot tile" in warning for warning in result.warnings) == left_out
    linf = autoattack_accuracy(network, images.first(1), eps=1e-4, seed=0).result
    assert not any("Square" in warning for warning in linf.warnings)

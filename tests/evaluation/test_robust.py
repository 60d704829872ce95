from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fsrp_edge import compute
from fsrp_edge.attacks import PGD
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.autoattack import autoattack_accuracy
from fsrp_edge.evaluation.evaluate import pgd_of
from fsrp_edge.evaluation.robust import pgd_accuracy
from fsrp_edge.models.classifier import Classifier
from tests.nets import around


def pgd_result(network, images, eps: float, steps: int = 10, **options) -> float:
    return pgd_accuracy(network, images, PGD(eps=eps, steps=steps), seed=0, **options).result.accuracy


def test_accuracy_falls_with_eps_from_clean_to_nothing(trained) -> None:
    clean = clean_accuracy(trained.natural, trained.images)
    untouched = pgd_accuracy(trained.natural, trained.images, PGD(eps=0), seed=0)
    assert torch.equal(untouched.standing, clean.standing)
    accuracies = [pgd_result(trained.natural, trained.images, eps) for eps in (0, 0.03, 0.1, 0.2, 0.4)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.9
    assert accuracies[-1] <= 0.01


def test_more_steps_do_not_help_the_defender(trained) -> None:
    few, many = (pgd_result(trained.robust, trained.images, 0.1, steps) for steps in (5, 40))
    assert many <= few + 0.01


def test_adversarial_training_pays_under_attack(trained) -> None:
    natural, robust = (pgd_result(net, trained.images, 0.1) for net in (trained.natural, trained.robust))
    assert robust > natural + 0.2


def test_pgd_is_at_least_as_strong_as_fgsm(trained) -> None:
    fgsm = pgd_accuracy(trained.natural, trained.images, pgd_of("fgsm", eps=0.1), seed=None)
    assert pgd_result(trained.natural, trained.images, 0.1, 20) <= fgsm.result.accuracy
    assert fgsm.result.accuracy < clean_accuracy(trained.natural, trained.images).result.accuracy
    assert fgsm.result.seed is None
    zero = pgd_accuracy(trained.natural, trained.images, pgd_of("fgsm", eps=0), seed=None)
    assert torch.equal(zero.standing, clean_accuracy(trained.natural, trained.images).standing)


def test_restarts_fell_no_fewer_and_name_themselves(trained) -> None:
    once = pgd_accuracy(trained.robust, trained.images, PGD(eps=0.15, steps=5), seed=0)
    thrice = pgd_accuracy(trained.robust, trained.images, PGD(eps=0.15, steps=5, restarts=3), seed=0)
    assert (once.result.attack, thrice.result.attack) == ("pgd-5", "pgd-5x3")
    assert not (thrice.standing & ~once.standing).any()
    assert thrice.result.correct <= once.result.correct


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_result_does_not_depend_on_the_batch_size(trained, restarts: int) -> None:
    attack = PGD(eps=0.1, steps=5, restarts=restarts)
    large = pgd_accuracy(trained.robust, trained.images, attack, seed=1, batch_size=200)
    small = pgd_accuracy(trained.robust, trained.images, attack, seed=1, batch_size=33)
    again = pgd_accuracy(trained.robust, trained.images, attack, seed=1, batch_size=33)
    assert torch.equal(small.standing, again.standing)
    # The starts are equal to the bit; the convolutions of other batch sizes may round otherwise.
    assert (large.standing != small.standing).sum() <= 1


class Watched(nn.Module):
    """Passes pixels on and tells `look` of them; its own look cannot be traced, so that it is searched as it is."""

    def __init__(self, inner: nn.Module, look: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.inner, self.look = inner, look

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.isfinite().all()
        self.look(pixels)
        return self.inner(pixels)


def recorded(classifier: Classifier, seen: list[Tensor]) -> Classifier:
    """One that keeps what it is attacked with, not what its layout was tried with."""
    network = around(Watched(classifier, lambda pixels: seen.append(pixels.detach().clone())), classifier)
    network.to_fast_layout(torch.device("cpu"))
    seen.clear()
    return network


class Sharpened(nn.Module):
    """A network whose logits are scaled, which leaves every prediction as it is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        return 1e4 * self.inner(pixels)


@pytest.mark.parametrize("eps", [8 / 255, 0.3])
def test_every_iterate_is_inside_the_ball_and_the_pixel_range(trained, eps: float) -> None:
    seen: list[Tensor] = []
    network, images = recorded(trained.robust, seen), trained.images.first(1)
    pixels, _ = next(images.batches(1))
    pgd_accuracy(network, images, PGD(eps=eps, steps=10, step_size=eps), seed=0)
    assert len(seen) > 2
    for iterate in seen:
        assert (iterate - pixels).abs().max() <= eps + 1e-6
        assert iterate.min() >= 0 and iterate.max() <= 1


def test_folded_batch_norms_find_what_the_network_itself_finds(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained.robust.network.eval()
    assert not any(
        isinstance(layer, nn.BatchNorm2d)
        for layer in compute.folded(network, trained.robust.example_pixels()).modules()
    )
    attack = PGD(eps=0.1, steps=10)
    folded = pgd_accuracy(trained.robust, trained.images, attack, seed=0)
    monkeypatch.setattr(compute, "folded", lambda network, _example: network)
    plain = pgd_accuracy(trained.robust, trained.images, attack, seed=0)
    assert 0 < plain.result.correct < len(trained.images)
    assert (folded.standing != plain.standing).sum() <= 1


def test_images_that_are_wrong_or_fallen_are_not_attacked_further(trained) -> None:
    clean = clean_accuracy(trained.robust, trained.images)
    seen: list[Tensor] = []
    network = recorded(trained.robust, seen)
    pgd_accuracy(network, trained.images, PGD(eps=0.3, steps=10), seed=0, batch_size=200)
    sizes = [len(pixels) for pixels in seen]
    assert sizes[0] == 200
    assert sizes[1] == clean.result.correct
    assert sizes[-1] < clean.result.correct


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_in_l2_too_accuracy_falls_with_eps_inside_the_ball(trained, loss: str) -> None:
    attacks = [PGD(eps=eps, steps=10, norm="L2", loss=loss) for eps in (0, 0.5, 1.5, 6)]
    results = [pgd_accuracy(trained.natural, trained.images, attack, seed=0).result for attack in attacks]
    accuracies = [result.accuracy for result in results]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < 0.02 and accuracies[0] > 0.9
    assert {(result.attack, result.norm) for result in results} == {
        ("pgd-10" if loss == "cross-entropy" else "cw-10", "L2")
    }
    seen: list[Tensor] = []
    network, images = recorded(trained.robust, seen), trained.images.first(1)
    pixels, _ = next(images.batches(1))
    pgd_accuracy(network, images, PGD(eps=0.7, steps=10, norm="L2", loss=loss), seed=0)
    assert max(float((iterate - pixels).norm()) for iterate in seen) == pytest.approx(0.7, abs=1e-4)


def test_the_margin_finds_what_a_sure_network_hides_from_the_cross_entropy(trained) -> None:
    """Scaled logits leave no gradient to the cross-entropy in float32."""
    sure = around(Sharpened(trained.natural), trained.natural)
    attack = PGD(eps=0.1, steps=5)
    masked, margin = (
        pgd_accuracy(sure, trained.images, attack.model_copy(update={"loss": loss}), seed=0)
        for loss in ("cross-entropy", "margin")
    )
    assert margin.result.accuracy < 0.5 * masked.result.accuracy


def test_the_network_is_left_as_it_was(trained) -> None:
    before = {name: value.clone() for name, value in trained.robust.state_dict().items()}
    pgd_result(trained.robust, trained.images, 0.1)
    assert all(torch.equal(before[name], value) for name, value in trained.robust.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trained.robust.parameters())


@pytest.mark.parametrize("suite", ["pgd", "autoattack"])
def test_attacks_search_in_all_of_float32_on_cuda_too(trained, suite: str) -> None:
    rounded: list[bool] = []
    watched = Watched(trained.natural, lambda _: rounded.append(torch.backends.cudnn.allow_tf32))
    network = around(watched, trained.natural)
    network.to_fast_layout(torch.device("cpu"))
    before = torch.backends.cudnn.allow_tf32
    rounded.clear()
    if suite == "pgd":
        pgd_result(network, trained.images.first(2), 0.05, steps=2)
    else:
        autoattack_accuracy(network, trained.images.first(2), eps=0.5, seed=0)
    assert before and rounded and not any(rounded)
    assert torch.backends.cudnn.allow_tf32 is before

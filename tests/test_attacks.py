import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from fsrp_edge.attacks import PGD, attackable, input_gradient, pgd, random_start
from fsrp_edge.compute import generator
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.apgd import apgd, cross_entropy


def linear(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand((count, 3, 2, 2), generator=generator(1)), torch.arange(count) % 3


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0, 1),
    steps=st.integers(1, 4),
    step_size=st.none() | st.floats(0.01, 2),
    seed=st.integers(0, 99),
)
def test_examples_stay_in_the_ball_and_in_the_image(eps: float, steps: int, step_size: float | None, seed: int) -> None:
    pixels, labels = batch()
    model = linear()
    before = pixels.clone()
    with attackable(model):
        found = pgd(model, pixels, labels, PGD(eps=eps, steps=steps, step_size=step_size), generator(seed))
    assert torch.equal(pixels, before)
    assert found.min() >= 0 and found.max() <= 1
    assert (found - pixels).abs().max() <= eps + 1e-6


def test_an_image_that_is_fooled_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    pixels, _ = batch(40)
    with attackable(model):
        labels = model(pixels).argmax(1)
        labels[:8] = (labels[:8] + 1) % 3  # wrong from the start
        attack = PGD(eps=0.2, steps=8, early_stop=True)
        found = pgd(model, pixels, labels, attack, generator(0))
        start = random_start(pixels, 0.2, generator(0))
        wrong_before = model(start).argmax(1) != labels
        to_the_end = pgd(model, pixels, labels, attack.model_copy(update={"early_stop": False}), generator(0))
        fooled, fooled_to_the_end = (model(each).argmax(1) != labels for each in (found, to_the_end))
    assert torch.equal(found[wrong_before], start[wrong_before]) and wrong_before[:8].any()
    assert not torch.equal(found[~wrong_before], start[~wrong_before])
    assert torch.equal(fooled, fooled_to_the_end) and 8 < fooled.sum() < 40


def test_on_a_linear_network_the_best_corner_is_reached() -> None:
    """The loss of two classes grows along one fixed sign pattern, so the strongest example is known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    pixels, labels = 0.4 + 0.2 * batch()[0], torch.zeros(6, dtype=torch.int64)
    with attackable(model):
        found = pgd(model, pixels, labels, PGD(eps=0.1, steps=10), generator(0))
    direction = (model[1].weight[1] - model[1].weight[0]).sign().view(3, 2, 2)
    assert torch.allclose(found, pixels + 0.1 * direction, atol=1e-6)


def test_the_gradient_is_that_of_the_summed_loss() -> None:
    model, (pixels, labels) = linear().eval(), batch()
    gradient, logits = input_gradient(model, pixels, labels)
    one, _ = input_gradient(model, pixels[:1], labels[:1])
    assert torch.allclose(gradient[:1], one, rtol=0.05, atol=1e-3)
    assert logits.shape == (6, 3) and not logits.requires_grad and not pixels.requires_grad


def test_starts_are_drawn_on_the_cpu_and_repeat_with_the_seed() -> None:
    pixels, _ = batch()
    a, b, c = (random_start(pixels, 0.3, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_without_a_radius_the_images_are_left() -> None:
    pixels, labels = batch()
    assert pgd(linear(), pixels, labels, PGD(eps=0), generator(0)) is pixels


def test_a_network_that_answers_nan_leaves_its_images_finite() -> None:
    class Broken(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)[:, :3] * torch.nan

    pixels, labels = batch()
    found = pgd(Broken(), pixels, labels, PGD(eps=0.1), generator(0))
    assert found.isfinite().all()


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_modes_and_gradients_are_as_before_after_the_block(error: type[Exception] | None) -> None:
    model = linear()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    try:
        with attackable(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            if error:
                raise error
    except RuntimeError:
        pass
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]


def test_the_step_reaches_the_border_unless_it_is_given() -> None:
    assert PGD(eps=0.1, steps=5).step == pytest.approx(0.05)
    assert PGD(eps=0.1, steps=5, step_size=0.01).step == 0.01
    for wrong in (
        {"eps": -0.1},
        {"eps": 1.1},
        {"steps": 0},
        {"step_size": 0.0},
        {"restarts": 0},
        {"epsilon": 0.1},
    ):
        with pytest.raises(ValidationError):
            PGD(**wrong)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_network_without_gradients_is_told(context) -> None:
    model, (pixels, labels) = linear(), batch()
    stopped = context()(model.forward)
    with attackable(model), pytest.raises(BadInputError, match="lets no gradient through"):
        input_gradient(stopped, pixels, labels)
    with attackable(model), pytest.raises(BadInputError, match="lets no gradient through"):
        apgd(stopped, stopped, pixels, labels, loss=cross_entropy, targets=labels, norm="Linf", eps=0.1)


def test_in_l2_too_an_attack_climbs_where_the_network_is_sure() -> None:
    """Gradients of 1e-24 are no zeros, but their squares are."""

    class Sure(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            right = 100 * (pixels.mean((1, 2, 3)) - 0.2)
            return torch.stack([right, -right], dim=1)

    pixels, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    adversarial = pgd(Sure(), pixels, labels, PGD(eps=0.8, steps=20, norm="L2"), generator(0))
    assert (Sure()(adversarial).argmax(1) == 1).all()
    assert (adversarial - pixels).flatten(1).norm(dim=1).max() <= 0.8 + 1e-6

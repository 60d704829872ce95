import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from fsrp_edge.attacks import attackable, random_start
from fsrp_edge.compute import generator
from fsrp_edge.errors import BadInputError
from fsrp_edge.training.adversarial import away_from, training_images
from fsrp_edge.training.augmentation import augment
from fsrp_edge.training.batchnorm import recalibrate_batch_norm
from fsrp_edge.training.loop import held_out_merit, train
from fsrp_edge.training.losses import soft_label_loss, training_loss
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover, split_held_out


@settings(max_examples=25, deadline=None)
@given(padding=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 1000))
def test_each_image_is_a_shifted_perhaps_mirrored_copy_of_itself(padding: int, flip: bool, seed: int) -> None:
    pixels = torch.rand((6, 2, 5, 7), generator=generator(seed)) + 0.01
    augmented = augment(pixels, flip=flip, crop_padding=padding, generator=generator(seed))
    assert augmented.shape == pixels.shape
    for image, original in zip(augmented, pixels, strict=True):
        candidates = [original, original.flip(2)] if flip else [original]
        padded = [F.pad(candidate, (padding,) * 4) for candidate in candidates]
        assert any(
            torch.equal(image, whole[:, top : top + 5, left : left + 7])
            for whole in padded
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        )


def test_images_of_a_batch_are_augmented_independently() -> None:
    pixels = torch.rand((1, 1, 8, 8)).expand(512, 1, 8, 8).contiguous()
    augmented = augment(pixels, flip=True, crop_padding=1, generator=generator(0))
    assert len({image.numpy().tobytes() for image in augmented}) == 18  # 2 mirrorings x 3 x 3 shifts


def test_without_flips_a_digit_is_never_mirrored() -> None:
    pixels = torch.rand((64, 1, 8, 8))
    assert augment(pixels, flip=False, crop_padding=0, generator=generator(0)) is pixels


@pytest.mark.parametrize(("method", "reach"), [("natural", 0.0), ("n-fgsm", 3.0), ("pgd", 1.0)])
def test_training_images_hurt_stay_in_reach_and_leave_the_network_alone(
    digit_sets, small_cnn, method: str, reach: float
) -> None:
    learnt, held_out = digit_sets
    network = train(small_cnn(), learnt, held_out, Recipe(method="natural", epochs=2), seed=0).classifier
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels, labels = next(learnt.batches(64))
    images = training_images(network, pixels, labels, Recipe(method=method, eps=0.05), generator(0))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training and network.network[1].training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert images.min() >= 0 and images.max() <= 1
    assert (images - pixels).abs().max() <= reach * 0.05 + 1e-6
    network.eval()
    with torch.no_grad():
        clean, attacked = (F.cross_entropy(network(batch), labels) for batch in (pixels, images))
    assert attacked == clean if method == "natural" else attacked > clean + 0.1


def test_soft_label_loss_is_the_divergence() -> None:
    student, teacher = (
        torch.randn((8, 5), generator=generator(0)),
        torch.randn((8, 5), generator=generator(1)),
    )
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=student)
    ).mean()
    assert soft_label_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-5)
    assert soft_label_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


@given(st.floats(0, 1))
def test_distillation_blends_the_two_losses(weight: float) -> None:
    logits, teacher = torch.randn((8, 5), generator=generator(0)), torch.randn((8, 5), generator=generator(1))
    labels = torch.arange(8) % 5
    loss = training_loss(logits, labels, Recipe(distillation=weight), teacher_logits=teacher)
    hard, soft = F.cross_entropy(logits, labels), soft_label_loss(logits, teacher)
    assert loss.item() == pytest.approx((weight * soft + (1 - weight) * hard).item(), rel=1e-4)
    smoothed = training_loss(logits, labels, Recipe(label_smoothing=0.1))
    assert smoothed.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item())


def test_recalibration_brings_back_a_network_whose_statistics_are_of_another(digit_sets, small_cnn) -> None:
    learnt, held_out = digit_sets
    network = train(small_cnn(), learnt, held_out, Recipe(method="natural", epochs=6, batch_size=64), seed=0).classifier
    pixels, labels = next(held_out.batches(len(held_out)))

    def accuracy() -> float:
        with torch.no_grad():
            return (network(pixels).argmax(1) == labels).float().mean().item()

    trained = accuracy()
    with torch.no_grad():  # batch norm undoes any scale, if it knows of it
        network.network[0].weight.mul_(0.05)
        network.network[3].weight.mul_(0.001)
    broken = accuracy()
    weights = {name: value.clone() for name, value in network.named_parameters()}
    recalibrate_batch_norm(network, learnt)
    assert trained > 0.85 and broken < trained - 0.3
    assert accuracy() > trained - 0.06
    assert all(torch.equal(weights[name], value) for name, value in network.named_parameters())
    assert not network.training and network.network[1].momentum == 0.1


def test_recalibration_averages_the_batches(digit_sets, small_cnn) -> None:
    learnt, _ = digit_sets
    network = small_cnn()
    recalibrate_batch_norm(network, learnt, max_images=300, seed=4)
    seen = [pixels for pixels, _ in learnt.batches(128, shuffle_seed=4)][:2]
    with torch.no_grad():
        maps = [network.network[0]((pixels - network.mean) / network.std) for pixels in seen]
    expected = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in maps]).mean(0)
    assert torch.allclose(network.network[1].running_mean, expected, atol=1e-5)
    with pytest.raises(BadInputError, match="at least 2 images"):
        recalibrate_batch_norm(network, learnt.first(1))


def test_recipes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="use 'natural'"):
        Recipe(method="pgd", eps=0)
    for method, why in (("trades", "own predictions"), ("rslad", "nothing else")):
        with pytest.raises(ValidationError, match=why):
            Recipe(method=method, distillation=0.5)
    with pytest.raises(ValidationError):
        Recipe(learning_rte=0.1)  # a misspelt key


def test_trades_weighs_the_pull_to_the_clean_predictions() -> None:
    logits, clean = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    labels = torch.tensor([0])
    loss = training_loss(logits, labels, Recipe(method="trades", trades_beta=6), clean_logits=clean)
    beside_a_teacher = training_loss(
        logits, labels, Recipe(method="trades", trades_beta=6), clean_logits=clean, teacher_logits=-clean
    )
    assert beside_a_teacher == loss
    pull = (clean.softmax(1) * (clean.log_softmax(1) - logits.log_softmax(1))).sum()
    assert loss.item() == pytest.approx(float(-clean.log_softmax(1)[0, 0] + 6 * pull), rel=1e-5)


def test_rslad_learns_the_teacher_on_both_images_and_no_labels() -> None:
    logits, clean, teacher = (torch.randn((8, 5), generator=generator(seed)) for seed in range(3))
    expected = soft_label_loss(clean, teacher) / 6 + soft_label_loss(logits, teacher) * 5 / 6
    for labels in (torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)):
        loss = training_loss(logits, labels, Recipe(method="rslad"), teacher_logits=teacher, clean_logits=clean)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_trades_examples_change_the_prediction_inside_the_ball(digit_sets, small_cnn) -> None:
    network = small_cnn()
    pixels, _ = next(digit_sets[0].batches(32))
    with attackable(network), torch.no_grad():
        found = away_from(network(pixels), network, pixels, 0.1, 5, generator(0))
        clean, moved, random = (
            network(images).log_softmax(1) for images in (pixels, found, random_start(pixels, 0.1, generator(0)))
        )
    assert (found - pixels).abs().max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1
    assert soft_label_loss(moved, clean) > 3 * soft_label_loss(random, clean)


def test_final_recalibration_stays_only_where_it_is_better(digit_sets, small_cnn) -> None:
    learnt, _ = digit_sets
    recipe = Recipe(method="n-fgsm", eps=0.1, epochs=2, batch_size=64, learning_rate=0.05)
    network = recover(small_cnn(), learnt, recipe, seed=0).classifier
    _, judges = split_held_out(learnt, 0)
    reached = held_out_merit(network, judges, recipe, 0)
    recalibrate_batch_norm(network, split_held_out(learnt, 0)[0], seed=0)
    assert held_out_merit(network, judges, recipe, 0) <= reached


def test_one_answer_to_all_images_is_worth_nothing_under_attack(digit_sets, small_cnn) -> None:
    network = small_cnn()
    (*_, head) = (layer for layer in network.network.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.eye(len(head.bias))[3])
    robust, clean = held_out_merit(network, digit_sets[0], Recipe(method="n-fgsm", eps=0.1), 0)
    assert robust == 0 < clean < 0.2


def test_recalibration_repeats_where_networks_draw_at_random(digit_sets, small_cnn) -> None:
    class Noise(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps + 0.1 * torch.randn_like(maps)

    network = small_cnn()
    network.network.insert(3, Noise())
    twice = [copy.deepcopy(network) for _ in range(2)]
    for before, each in enumerate(twice):
        torch.manual_seed(before)  # whatever ran until then
        recalibrate_batch_norm(each, digit_sets[0], seed=0)
    one, other = (each.state_dict() for each in twice)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_recalibration_sees_what_evaluation_sees(digit_sets, small_cnn) -> None:
    """Neither dropout nor a head for training alone, whose channels may be gone."""

    class Headed(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor) -> Tensor:
            assert not self.training, "this head has lost its channels"
            return self.network(pixels)

    plain = small_cnn()
    headed = copy.deepcopy(plain)
    headed.network.insert(3, nn.Dropout2d(0.5))
    headed.network = Headed(headed.network)
    for each in (plain, headed):
        recalibrate_batch_norm(each, digit_sets[0])
    one, other = (
        {name: value for name, value in each.named_buffers() if "running" in name} for each in (plain, headed)
    )
    assert one and all(torch.equal(*pair) for pair in zip(one.values(), other.values(), strict=True))

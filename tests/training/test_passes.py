import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fsrp_edge import progress
from fsrp_edge.compute import default_device
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.training.passes import WARM_UP, Passes, require_trainable
from fsrp_edge.training.recipe import Recipe
from tests.nets import as_classifier, built
from tests.training.test_loop import Lines

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROBUST = Recipe(method="n-fgsm", flip=True, crop_padding=2)


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.rand((size, 3, 32, 32), generator=draws), torch.arange(size) % 10


def here(classifier: Classifier) -> Classifier:
    classifier.to_fast_layout(default_device())
    return classifier.train()


def gradients(classifier: Classifier) -> Tensor:
    found = [parameter.grad for parameter in classifier.parameters()]
    return torch.cat([gradient.flatten().cpu() for gradient in found if gradient is not None])


class Dropping(nn.Module):
    """With state of its own, and random in training mode, where it may put out more than logits."""

    def __init__(self, *, auxiliary: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10)
        )
        self.auxiliary = auxiliary

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.layers(images)
        return (logits, logits) if self.auxiliary and self.training else logits


def test_a_network_with_more_than_logits_in_training_mode_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"returns tuple in training mode; .* do without recovery"):
        require_trainable(as_classifier(Dropping(auxiliary=True), shape=(3, 8, 8)))


def test_a_network_that_is_frozen_as_a_whole_is_refused() -> None:
    classifier = as_classifier(Dropping(auxiliary=False), shape=(3, 8, 8))
    classifier.network.layers[:4].requires_grad_(False)
    require_trainable(classifier)
    with pytest.raises(BadInputError, match=r"all parameters of .* are frozen"):
        require_trainable(classifier.requires_grad_(False))


def test_looking_whether_a_network_can_be_trained_changes_nothing() -> None:
    classifier = as_classifier(Dropping(auxiliary=False), shape=(3, 8, 8))
    before, draws = copy.deepcopy(classifier.state_dict()), torch.get_rng_state()
    require_trainable(classifier)
    assert not classifier.training
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)


def test_gradients_are_those_of_this_batch_alone():
    classifier = here(built("cifar:resnet20-a"))
    passes = Passes(classifier, Recipe(method="natural"), None)
    passes.loss(*batch(), seed=1)
    first = gradients(classifier).clone()
    passes.loss(*batch(), seed=1)
    torch.testing.assert_close(gradients(classifier), first)


def test_the_seed_decides_every_draw():
    def loss(seed: int) -> float:
        return float(Passes(here(built("cifar:resnet20-a")), ROBUST, None).loss(*batch(), seed=seed))

    assert loss(1) == pytest.approx(loss(1), rel=1e-4)
    assert loss(1) != pytest.approx(loss(2), rel=1e-4)


@pytest.mark.parametrize("method", ["n-fgsm", "rslad"])
def test_a_teacher_pulls(method: Literal["n-fgsm", "rslad"]):
    dense, other = (here(built("cifar:resnet20-a")).eval() for _ in range(2))
    student = here(copy.deepcopy(dense))
    distilled = Recipe(method=method, distillation=0.0 if method == "rslad" else 1.0, attack_steps=2)
    with torch.no_grad():
        other.network.linear.bias[3] += 5  # type: ignore[index, operator, union-attr]
    near, far = (Passes(student, distilled, teacher).loss(*batch(), seed=0) for teacher in (dense, other))
    assert near < far


@on_a_gpu
@pytest.mark.parametrize("recipe", [
    ROBUST, Recipe(method="pgd", attack_steps=2), Recipe(method="trades", attack_steps=2),
    Recipe(method="rslad", attack_steps=2), Recipe(method="natural", cutmix=True),
])  # fmt: skip
def test_a_recorded_step_is_the_step(recipe: Recipe):
    one, other = (here(built("cifar:vgg16_bn-w0.25")) for _ in range(2))
    teacher = here(built("cifar:resnet20-a")).eval() if recipe.needs_teacher else None
    recorded, stepwise = Passes(one, recipe, teacher), Passes(other, recipe, teacher)
    stepwise._before_recording = float("inf")
    for seed in range(WARM_UP + 4):
        losses = [float(passes.loss(*batch(), seed=seed)) for passes in (recorded, stepwise)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        difference = (gradients(one) - gradients(other)).norm() / gradients(other).norm()
        assert difference < 0.2  # a changed sign of one pixel's gradient is a changed image
    assert recorded._recording is not None
    again = float(recorded.loss(*batch(), seed=seed))
    assert again == pytest.approx(losses[0], rel=0.1)  # running statistics, which attacks use, moved on
    assert float(recorded.loss(*batch(), seed=seed + 1)) != again


@on_a_gpu
def test_a_network_that_cannot_be_recorded_is_trained_step_by_step():
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3072, 10)

        def forward(self, pixels: Tensor) -> Tensor:
            made: Tensor = self.layer(pixels.flatten(1))
            return made if made.sum().item() > 0 else 2 * made

    listener = Lines()
    with progress.listen(listener):
        classifier = here(as_classifier(Asks()))
        passes = Passes(classifier, ROBUST, None)
        for seed in range(WARM_UP + 3):
            passes.loss(*batch(), seed=seed)
            assert gradients(classifier).isfinite().all()
        fresh = Passes(here(built("cifar:resnet20-a")), ROBUST, None)
        for seed in range(WARM_UP + 2):
            fresh.loss(*batch(), seed=seed)
    assert len(listener.lines) == 1 and "without CUDA graphs" in listener.lines[0]
    assert fresh._recording is not None


class NamedTwice(nn.Module):
    """As transfer learning registers layers: under the names of the network they are from, and in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.features = nn.Sequential(self.convolution, self.norm, nn.Flatten())
        self.head = nn.Linear(144, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def test_looking_at_layers_with_two_names_changes_nothing_either() -> None:
    classifier = as_classifier(NamedTwice(), shape=(3, 8, 8))
    before = copy.deepcopy(classifier.state_dict())
    require_trainable(classifier)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_a_network_that_is_mostly_frozen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(progress, "log", told.append)
    classifier = as_classifier(NamedTwice(), shape=(3, 8, 8))
    require_trainable(classifier)
    classifier.network.head.requires_grad_(False)
    require_trainable(classifier)
    assert len(told) == 1 and "92% of the parameters of" in told[0]

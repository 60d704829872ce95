import re

import pytest
import torch
from torch import Tensor, nn

from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.evaluation.suspicions import suspicions
from tests.nets import around


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Noisy(Wrapped):
    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.network(pixels)
        return logits + torch.rand_like(logits)


class Probabilities(Wrapped):
    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels).softmax(1)


class Rounding(Wrapped):
    """A defence by obfuscation: no gradient gets through."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels * 8).round() / 8)


class Rooted(Wrapped):
    """The root of 0 has a gradient of infinity, and 0 times that is NaN."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels) + (0 * pixels).sqrt().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_honest_networks_raise_no_suspicion(trained, norm: str) -> None:
    assert suspicions(trained.natural, trained.images, norm, seed=0) == ()
    assert suspicions(trained.robust, trained.images, norm, seed=0) == ()


@pytest.mark.parametrize(
    ("wrapper", "sign"),
    [
        (Noisy, "answers at random"),
        (Probabilities, "returns probabilities"),
        (Rounding, r"zero or NaN on 64 of 64 images"),
        (Rooted, r"zero or NaN on 64 of 64 images"),
        (Rounding, r"stand at eps 0.5.*masked"),
    ],
)
def test_each_sign_is_told(trained, wrapper: type[Wrapped], sign: str) -> None:
    found = suspicions(around(wrapper(trained.natural), trained.natural), trained.images, "Linf", seed=0)
    assert any(re.search(sign, sentence) for sentence in found), found


def test_suspicions_stand_beside_every_attacked_number(trained) -> None:
    network = around(Rounding(trained.natural), trained.natural)
    clean, attacked = evaluate(network, trained.images.first(20), EvaluationPlan(attacks=("pgd-3",)))
    assert clean.result.warnings == ()
    assert any("zero" in warning for warning in attacked.result.warnings)

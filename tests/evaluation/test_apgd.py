import pytest
import torch
from torch import Tensor

from fsrp_edge.attacks import Norm
from fsrp_edge.evaluation.accuracy import predicted_classes
from fsrp_edge.evaluation.apgd import Model, apgd, cross_entropy, dlr


def stands(model: Model, label: int, norm: Norm, eps: float) -> bool:
    """Whether a grey image withstands APGD-CE."""

    def judge(adversarial: Tensor, labels: Tensor) -> Tensor:
        return predicted_classes(model(adversarial)) != labels

    pixels, labels = torch.full((1, 3, 4, 4), 0.5), torch.tensor([label])
    torch.manual_seed(0)
    (stood,) = apgd(model, judge, pixels, labels, loss=cross_entropy, targets=labels, norm=norm, eps=eps)
    return bool(stood)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_image_falls_where_the_network_answers_nan(label: int, norm: Norm) -> None:
    """Of all NaN, torch takes the first for the highest."""

    def model(pixels: Tensor) -> Tensor:
        brighter = (pixels - 0.5).mean((1, 2, 3))[:, None]
        logits = torch.cat([brighter - brighter] * 3, dim=1) + torch.eye(3)[label] * (1 - brighter)
        return torch.where(brighter > 0.05, torch.nan, logits)

    assert not stands(model, label, norm, eps=0.1 if norm == "Linf" else 1.0)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_that_is_nan_makes_no_image_fall(label: int, norm: Norm) -> None:
    def model(pixels: Tensor) -> Tensor:
        nothing = (0 * pixels).sqrt().sum((1, 2, 3))  # its gradient is 0 times infinity
        return nothing[:, None] + torch.eye(3)[label]

    assert stands(model, label, norm, eps=0.1)


@pytest.mark.parametrize("label", [0, 1])
def test_dlr_climbs_from_a_tie_of_the_right_class_with_the_best_wrong_one(label: int) -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([label])
    (gradient,) = torch.autograd.grad(dlr(logits, labels, labels).sum(), logits)
    assert gradient[0, label] < 0 < gradient[0, 1 - label]

import pytest
import torch

from fsrp_edge.evaluation.apgd import dlr


@pytest.mark.parametrize("label", [0, 1])
def test_dlr_climbs_from_a_tie_of_the_right_class_with_the_best_wrong_one(label: int) -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([label])
    (gradient,) = torch.autograd.grad(dlr(logits, labels, labels).sum(), logits)
    assert gradient[0, label] < 0 < gradient[0, 1 - label]

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from pyautoattack.fab_projections import projection_l2, projection_linf

from fsrp_edge.attacks import Norm
from fsrp_edge.evaluation.fab import fab_targeted, shift_to_plane


@pytest.mark.parametrize(("norm", "theirs"), [("Linf", projection_linf), ("L2", projection_l2)])
@given(
    seed=st.integers(0, 2**31),
    pixels=st.integers(1, 200),
    distance=st.floats(-100, 100, allow_subnormal=False),
)
def test_the_shift_is_the_librarys_and_gets_to_the_plane(
    norm: Norm, theirs, seed: int, pixels: int, distance: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, weights = (torch.rand(5, pixels, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = (weights - 0.5) * (torch.rand(5, pixels, generator=generator) > 0.2)  # some weigh nothing
    offset = (weights * points).sum(1) + distance * torch.rand(5, generator=generator, dtype=torch.float64)
    shift = shift_to_plane(points, weights, offset, norm)
    torch.testing.assert_close(
        shift.float(), theirs(points.float(), weights.float(), offset.float()), rtol=1e-3, atol=1e-4
    )
    moved = points + shift
    assert moved.min() >= 0 and moved.max() <= 1
    nearest, furthest = weights.clamp(max=0).sum(1), weights.clamp(min=0).sum(1)
    torch.testing.assert_close((weights * moved).sum(1), offset.clamp(nearest, furthest), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-30, 1e-40])
def test_what_is_no_number_or_next_to_none_comes_to_an_end(norm: Norm, value: float) -> None:
    points, weights = torch.full((2, 3), 0.5), torch.tensor([[1.0, -1.0, 2.0], [value, 0.0, value]])
    shift = shift_to_plane(points, weights, torch.tensor([0.5, 1.0]), norm)
    torch.testing.assert_close((points + shift)[0] @ weights[0], torch.tensor(0.5))
    if value < 1:  # out of reach
        torch.testing.assert_close(shift[1], torch.tensor([0.5, 0.0, 0.5]))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_network_may_end_in_double_precision(norm: Norm) -> None:
    weight = torch.eye(2, 3)

    def model(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.flatten(1) @ weight.T).double()

    def judge(adversarial: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(adversarial).argmax(1) != labels

    pixels, labels = torch.tensor([[[[0.6, 0.4, 0.5]]], [[[0.9, 0.1, 0.5]]]]), torch.zeros(2, dtype=torch.int64)
    stands = fab_targeted(model, judge, pixels, labels, targets=labels + 1, norm=norm, eps=0.2)
    assert stands.tolist() == [False, True]

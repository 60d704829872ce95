import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import LayerShape
from fsrp_edge.models.layer_shapes import apply_layer_shapes, layer_shapes


class Everything(nn.Module):
    """One of each kind of layer whose size is a number of channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.token = nn.Parameter(torch.rand(1, width, 1, 1))
        self.convolution = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.batch = nn.BatchNorm2d(width)
        self.transposed = nn.ConvTranspose2d(width, hidden, 2, 2)
        self.group = nn.GroupNorm(1, hidden)
        self.layer = nn.LayerNorm(hidden)
        self.attention = nn.MultiheadAttention(hidden, 1, batch_first=True)
        self.register_buffer("scale", torch.rand(hidden))
        self.linear = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.depthwise(self.convolution(x) * self.token)).reshape(-1, self.width, 4, 4)
        x = self.layer(self.group(self.transposed(x)).mean((2, 3))[:, None])
        return self.linear(self.attention(x, x, x)[0][:, 0] * self.scale)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 8), hidden=st.integers(1, 8))
def test_shapes_carry_a_network_from_one_size_to_another(width, hidden):
    small, dense = Everything(width, hidden).eval(), Everything(8, 8).eval()
    shapes = layer_shapes(small, dense)
    assert (shapes == {}) == ((width, hidden) == (8, 8))
    saved = {name: LayerShape.model_validate_json(shape.model_dump_json()) for name, shape in shapes.items()}
    apply_layer_shapes(dense, saved)
    dense.load_state_dict(small.state_dict())
    x = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(dense(x), small(x))
    assert str(dense) == str(small)
    assert layer_shapes(dense, small) == {}


def test_only_what_differs_is_named():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    small = copy.deepcopy(dense)
    small[0], small[2] = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)
    assert layer_shapes(small, dense) == {
        "0": LayerShape(attributes={"out_channels": 5}, tensors={"weight": (5, 3, 3, 3), "bias": (5,)}),
        "2": LayerShape(attributes={"in_channels": 5}, tensors={"weight": (4, 5, 1, 1)}),
    }


def test_resizing_keeps_what_is_frozen():
    network = nn.Sequential(nn.Linear(4, 4))
    network[0].weight.requires_grad_(False)
    apply_layer_shapes(network, {"0": LayerShape(tensors={"weight": (2, 4), "bias": (2,)})})
    assert not network[0].weight.requires_grad and network[0].bias.requires_grad


def test_other_modules_are_refused():
    with pytest.raises(BadInputError, match="only one has '1'"):
        layer_shapes(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Sequential(nn.ReLU()))
    with pytest.raises(BadInputError, match="'absent'"):
        apply_layer_shapes(nn.Linear(1, 1), {"absent": LayerShape()})
    with pytest.raises(BadInputError, match="'groups'"):
        apply_layer_shapes(nn.Linear(1, 1), {"": LayerShape(attributes={"groups": 2})})

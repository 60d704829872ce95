from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsrp_edge.models.cifar import factory
from fsrp_edge.scoring.capture import MapReader, ReadAt, scored_layers

PLACES: tuple[ReadAt, ...] = ("convolution", "batch-norm", "activation")


class Net(nn.Module):
    """Layers to be used by whatever forward a test gives it."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 2)
        self.steps = forward
        generator = torch.Generator().manual_seed(0)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        self.norm.running_var.abs_().add_(0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def read(network: nn.Module, read_at: ReadAt, pixels: Tensor | None = None) -> dict[str, list[Tensor]]:
    """Copies of everything that was handed over, by layer, in order."""
    found: dict[str, list[Tensor]] = {}
    pixels = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(1)) if pixels is None else pixels
    with (
        torch.no_grad(),
        MapReader(network, read_at, lambda name, maps: found.setdefault(name, []).append(maps.clone())),
    ):
        network(pixels)
    return found


def same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)


PIXELS = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
CHAINS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "modules": lambda net, x: nn.ReLU()(net.norm(net.stem(x))),
    "in-place modules": lambda net, x: nn.ReLU(inplace=True)(net.norm(net.stem(x))),
    "functional": lambda net, x: F.relu(
        F.batch_norm(net.stem(x), net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias)
    ),
    "torch's functions": lambda net, x: torch.relu(net.norm(F.conv2d(x, net.stem.weight, net.stem.bias, padding=1))),
    "by keyword": lambda net, x: F.relu(
        input=net.norm(F.conv2d(input=x, weight=net.stem.weight, bias=net.stem.bias, padding=1))
    ),
    "methods": lambda net, x: net.norm(net.stem(x)).relu_(),
    "clamp": lambda net, x: net.norm(net.stem(x)).clamp(min=0),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("read_at", PLACES)
def test_a_map_is_read_where_it_was_asked_for_however_the_layers_are_called(chain: str, read_at: ReadAt) -> None:
    network = Net(CHAINS[chain])
    with torch.no_grad():
        convolved = network.stem(PIXELS)
        expected = {"convolution": convolved, "batch-norm": network.norm(convolved)}
        expected["activation"] = F.relu(expected["batch-norm"])
    (found,) = read(network, read_at, PIXELS)["stem"]
    assert same(found, expected[read_at])


@pytest.mark.parametrize("read_at", PLACES)
def test_an_activation_without_a_norm_counts_only_as_an_activation(read_at: ReadAt) -> None:
    network = Net(lambda net, x: F.relu(net.stem(x), inplace=True))
    with torch.no_grad():
        convolved = network.stem(PIXELS)
    (found,) = read(network, read_at, PIXELS)["stem"]
    assert same(found, F.relu(convolved) if read_at == "activation" else convolved)


@pytest.mark.parametrize(
    "add",
    [
        lambda a, b: a + b,
        lambda a, b: a.add_(b),
        lambda a, b: a.__iadd__(b),
        torch.add,
        lambda a, b: torch.cat([a, b]),
    ],
    ids=["new", "in place", "operator in place", "function", "concatenation"],
)
@pytest.mark.parametrize("read_at", PLACES)
def test_a_sum_ends_the_chain_of_both_its_terms(add: Callable[[Tensor, Tensor], Tensor], read_at: ReadAt) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        first = net.stem(x)
        return F.relu_(add(net.norm(first), net.second(first * 2)))

    network = Net(forward)
    with torch.no_grad():
        first = network.stem(PIXELS)
        normalized, second = network.norm(first), network.second(first * 2)
    found = read(network, read_at, PIXELS)
    assert {name: len(maps) for name, maps in found.items()} == {"stem": 1, "second": 1}
    assert same(found["second"][0], second)
    # The stem is used twice; where the norm is not what is asked for first, what counts is the first to consume it.
    assert same(found["stem"][0], first if read_at == "convolution" else normalized)


def test_a_term_that_is_added_to_itself_counts_once() -> None:
    found = read(Net(lambda net, x: (y := net.stem(x)) + y), "activation")
    assert len(found["stem"]) == 1


def test_each_use_of_a_layer_is_handed_over() -> None:
    network = Net(lambda net, x: net.second(F.relu(net.second(net.stem(x)))))
    found = read(network, "activation", PIXELS)["second"]
    with torch.no_grad():
        once = F.relu(network.second(network.stem(PIXELS)))
        twice = network.second(once)
    assert [same(a, b) for a, b in zip(found, (once, twice), strict=True)] == [True, True]


def test_an_activation_layer_that_is_shared_is_seen_at_each_use() -> None:
    relu = nn.ReLU(inplace=True)
    network = Net(lambda net, x: relu(net.second(relu(net.norm(net.stem(x))))))
    found = read(network, "activation", PIXELS)
    with torch.no_grad():
        first = F.relu(network.norm(network.stem(PIXELS)))
        second = F.relu(network.second(first))
    assert same(found["stem"][0], first) and same(found["second"][0], second)


@pytest.mark.parametrize("split", [lambda x: x.chunk(2, 1), lambda x: torch.split(x, 2, 1), lambda x: x.unbind(1)])
def test_views_that_are_changed_in_place_do_not_reach_back_into_a_map(
    split: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        part = split(net.stem(x))[0]
        return part.zero_()

    network = Net(forward)
    with torch.no_grad():
        expected = network.stem(PIXELS)
    assert same(read(network, "activation", PIXELS)["stem"][0], expected)


def test_depthwise_convolutions_and_linear_layers_are_read_too() -> None:
    network = Net(lambda net, x: net.head(F.relu(net.depthwise(net.stem(x))).mean((2, 3))))
    found = read(network, "activation", PIXELS)
    with torch.no_grad():
        filtered = F.relu(network.depthwise(network.stem(PIXELS)))
    assert same(found["depthwise"][0], filtered)
    assert same(found["head"][0], network.head(filtered.mean((2, 3))))


def test_questions_about_a_map_do_not_consume_it() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.stem(x)
        assert y.dim() == 4 and y.shape[0] == y.size(0) and y.is_contiguous() and y.dtype and y.numel()
        return F.relu(net.norm(y))

    network = Net(forward)
    with torch.no_grad():
        expected = F.relu(network.norm(network.stem(PIXELS)))
    assert same(read(network, "activation", PIXELS)["stem"][0], expected)


def test_a_freed_tensor_whose_address_is_used_again_is_not_taken_for_a_map() -> None:
    """Maps wait by the identity of their tensor; while one waits it must be kept alive."""
    junk = []

    def forward(net: Net, x: Tensor) -> Tensor:
        net.stem(x)  # a result that nobody keeps
        for _ in range(200):
            noise = torch.rand_like(x).expand(2, 3, 8, 8)
            junk.append(id(noise))
            F.relu(noise)
        return x

    network = Net(forward)
    with torch.no_grad():
        expected = network.stem(PIXELS)
    found = read(network, "activation", PIXELS)
    assert len(set(junk)) < len(junk)  # addresses were in fact used again
    assert len(found["stem"]) == 1 and same(found["stem"][0], expected)


def test_a_weight_that_is_computed_anew_is_not_mistaken_for_another_layers() -> None:
    network = Net(lambda net, x: F.relu(net.second(net.stem(x))))
    nn.utils.parametrizations.weight_norm(network.second)
    for _ in range(5):
        found = read(network, "convolution", PIXELS)
        assert list(found) == ["stem"]
        with torch.no_grad():
            assert same(found["stem"][0], network.stem(PIXELS))


class Standardized(nn.Conv2d):
    """Weight standardization, behind a blur that is no layer's."""

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(x, torch.full((4, 1, 1, 1), 0.5), groups=4)
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(blurred, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


@pytest.mark.parametrize("read_at", PLACES)
def test_a_layer_that_computes_with_another_weight_than_its_own_is_known_by_running(read_at: ReadAt) -> None:
    network = Net(lambda net, x: F.relu(net.second(net.stem(x))))
    network.second = Standardized(4, 6, 3)
    found = read(network, read_at, PIXELS)
    with torch.no_grad():
        stem = network.stem(PIXELS)
        expected = network.second(stem)
    assert list(found) == ["stem", "second"]
    assert same(found["stem"][0], stem)
    (maps,) = found["second"]
    assert same(maps, F.relu(expected) if read_at == "activation" else expected)


def test_every_layer_of_a_residual_network_is_read_once_but_the_fixed_shortcuts() -> None:
    make = factory("resnet20-a")
    assert make is not None
    network = make(10, 3).eval()
    found = read(network, "activation", torch.rand(2, 3, 32, 32))
    assert found.keys() == scored_layers(network).keys()
    assert not any("shortcut" in name for name in found)
    assert all(len(maps) == 1 for maps in found.values())
    assert all((maps[0] >= 0).all() for name, maps in found.items() if name.endswith("conv1"))
    assert all((maps[0] < 0).any() for name, maps in found.items() if name.endswith("conv2"))  # the add comes first


def test_nothing_is_watched_after_the_block() -> None:
    network = Net(lambda net, x: net.stem(x))
    count = 0

    def receive(name: str, maps: Tensor) -> None:
        nonlocal count
        count += 1

    with torch.no_grad():
        with MapReader(network, "activation", receive):
            network(PIXELS)
        network(PIXELS)
    assert count == 1

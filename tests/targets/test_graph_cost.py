from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.graph_cost import GraphCost, read_graph


class Block(nn.Module):
    """A stem, a depthwise-separable block with squeeze and a residual, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.plain = nn.Conv2d(16, 32, 3, 1, 1)
        self.grouped = nn.Conv2d(32, 32, 3, 1, 1, groups=4)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.pointwise(nn.functional.silu(self.depthwise(x)))
        x = self.grouped(self.plain(x).relu())
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def export(network: nn.Module, path: Path, size: int = 32, batch: int = 1, **options: object) -> GraphCost:
    torch.onnx.export(network.eval(), (torch.rand(batch, 3, size, size),), path, dynamo=False, **options)
    return read_graph(path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> GraphCost:
    return export(Block(), tmp_path_factory.mktemp("graph") / "block.onnx")


def test_every_operator_has_its_class_and_activations_are_fused(graph: GraphCost) -> None:
    kinds = [each.kind for each in graph.operators]
    assert kinds == [
        "convolution", "depthwise", "elementwise", "pointwise", "elementwise", "winograd", "grouped",
        "pooling", "dense",
    ]  # fmt: skip


def test_macs_are_counted_by_hand(graph: GraphCost) -> None:
    macs = {each.kind: each.macs for each in graph.operators}
    assert macs["convolution"] == 16 * 16 * 16 * 27
    assert macs["depthwise"] == 16 * 16 * 16 * 9
    assert macs["pointwise"] == 16 * 16 * 16 * 16
    assert macs["winograd"] == 32 * 16 * 16 * 16 * 9
    assert macs["grouped"] == 32 * 16 * 16 * 8 * 9
    assert macs["dense"] == 320
    counted = sum(value for kind, value in macs.items() if kind not in ("pooling", "elementwise"))
    assert graph.macs == counted


def test_parameters_are_those_of_the_folded_network(graph: GraphCost) -> None:
    folded = sum(parameter.numel() for parameter in Block().parameters()) - 2 * 16 + 16
    assert graph.parameters == folded


@pytest.mark.parametrize("slopes", [1, 16])
def test_the_slopes_of_a_fused_prelu_are_parameters(slopes: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.PReLU(slopes))
    (found,) = (graph := export(network, tmp_path / "prelu.onnx")).operators
    assert graph.parameters == found.weights == 16 * 3 * 9 + 16 + slopes


@pytest.mark.parametrize(
    ("layer", "kind", "channels"),
    [
        (nn.ConvTranspose2d(3, 16, 3, 2), "convolution", (3, 16)),
        (nn.ConvTranspose2d(3, 12, 3, 2, groups=3), "depthwise", (1, 4)),
        (nn.ConvTranspose2d(3, 16, 1), "pointwise", (3, 16)),
    ],
)
def test_each_pixel_that_a_transposed_convolution_reads_writes_a_window(
    layer: nn.ConvTranspose2d, kind: str, channels: tuple[int, int], tmp_path: Path
) -> None:
    (found,) = export(nn.Sequential(layer), tmp_path / "up.onnx", 8).operators
    assert (found.kind, found.channels) == (kind, channels)
    assert found.macs == 8 * 8 * layer.weight.numel()


def test_the_peak_holds_what_a_residual_keeps_alive(graph: GraphCost) -> None:
    map_elements = 16 * 16 * 16
    # While `grouped` runs, its input and its output of 32 channels; the residual's add holds three of 16.
    assert graph.peak_elements == 4 * map_elements


class Split(nn.Module):
    """A map in two halves, of which the second waits for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.stem(x).split(8, 1)
        x = torch.cat([self.branch(first).relu(), second], 1)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_what_a_split_makes_is_in_memory_from_then_on(tmp_path: Path) -> None:
    graph, half = export(Split(), tmp_path / "split.onnx", 8), 8 * 8 * 8
    alive = [each for each in graph.buffers if each.elements == half]
    # The first half until its convolution has run, the second and what that made until they are put together.
    assert sorted((each.first, each.last) for each in alive) == [(1, 2), (1, 3), (2, 3)]
    assert graph.peak_elements == 4 * half


def test_an_open_batch_dimension_counts_as_one(tmp_path: Path, graph: GraphCost) -> None:
    open_batch = export(Block(), tmp_path / "open.onnx", input_names=["pixels"], dynamic_axes={"pixels": {0: "batch"}})
    assert open_batch.macs == graph.macs and open_batch.batch == 1


def test_a_fixed_batch_is_told(tmp_path: Path, graph: GraphCost) -> None:
    four = export(Block(), tmp_path / "four.onnx", batch=4)
    assert four.batch == 4 and four.macs == 4 * graph.macs
    assert [each.kind for each in four.operators] == [each.kind for each in graph.operators]


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BadInputError, match="not a valid ONNX file"):
        read_graph(path)


class NonLocal(nn.Module):
    """Attention between all places of a map, which is flattened by a reshape that costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.stem(x)
        flat = maps.flatten(2)
        return flat.transpose(1, 2) @ (maps + 1).flatten(2)


def test_a_product_of_flattened_maps_has_their_flattened_shape(tmp_path: Path) -> None:
    (product,) = (each for each in export(NonLocal(), tmp_path / "net.onnx", 8).operators if each.kind == "attention")
    assert (product.macs, product.channels) == (64 * 64 * 64, (64, 64))


@pytest.mark.parametrize(("kind", "domain"), [("ConvInteger", ""), ("FusedConv", "com.microsoft"), ("Mine", "own")])
def test_what_is_not_counted_is_refused_not_left_out(tmp_path: Path, kind: str, domain: str) -> None:
    export(Block(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    first = model.graph.node[0]
    first.op_type, first.domain = kind, domain
    model.opset_import.append(onnx.helper.make_opsetid(domain or "own", 1))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(BadInputError, match=f"{kind} is not estimated; export the network with standard operators"):
        read_graph(tmp_path / "other.onnx")

"""Rebuild the networks that published latencies name, and keep their operators in benchmarks/data.

ncnn's own networks are read from its `benchmark/models/*.param` (a checkout of Tencent/ncnn), because they
differ from torchvision's of the same name (Caffe's GoogLeNet and AlexNet, an early MobileNetV3); the others
are torchvision's or timm's (`pip install timm`) or are defined here after their papers. Each is exported to
ONNX and read by `fsrp_edge.targets.graph_cost`, the same way as a user's file.

    python benchmarks/latency_graphs.py --ncnn path/to/ncnn/benchmark/models
"""

import argparse
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsrp_edge import torchvision_compat  # noqa: F401
from fsrp_edge.files import write_text
from fsrp_edge.targets.graph_cost import GraphCost, Operator, graph_cost

TABLE = Path(__file__).parent / "data" / "latency_graphs.json"

NCNN_FILES = {
    "squeezenet1_1@227": "squeezenet",
    "mobilenet_v1_1.0@224/ncnn": "mobilenet",
    "mobilenet_v2_1.0@224/ncnn": "mobilenet_v2",
    "mobilenet_v3_large_1.0@224/ncnn": "mobilenet_v3",
    "proxylessnas@224": "proxylessnasnet",
    "regnety_400m@224": "regnety_400m",
    "googlenet@224": "googlenet",
    "resnet18@224/ncnn": "resnet18",
    "alexnet@227": "alexnet",
}


def load_table(path: Path = TABLE) -> dict[str, GraphCost]:
    """Operators of every network, by `model@resolution`, with `/ncnn` where ncnn's own differs."""
    fields = list(Operator.__dataclass_fields__)
    return {
        name: GraphCost(
            tuple(
                Operator(**dict(zip(fields, [*row[:-1], tuple(row[-1])], strict=True))) for row in entry["operators"]
            ),
            entry["parameters"],
            entry["peak_elements"],
        )
        for name, entry in json.loads(path.read_text()).items()
    }


def save_table(table: dict[str, GraphCost]) -> None:
    lines = []
    for name, graph in sorted(table.items()):
        rows = [list(asdict(operator).values()) for operator in graph.operators]
        entry = {"parameters": graph.parameters, "peak_elements": graph.peak_elements, "operators": rows}
        lines.append(f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}")
    write_text(TABLE, "{\n" + ",\n".join(lines) + "\n}\n")


def cost_of(network: nn.Module, size: int) -> GraphCost:
    import onnx

    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.eval()(torch.zeros(1, 3, size, size))  # outside of tracing, weights made on first use are constants
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, size, size),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
        )
    return graph_cost(onnx.load_from_string(buffer.getvalue()))


class ParamNetwork(nn.Module):
    """A network after ncnn's text format, with random weights: only its shapes matter here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.layers: list[tuple[str, list[str], list[str], dict[int, Any]]] = []
        for line in text.splitlines()[2:]:
            kind, _, inputs, outputs, *rest = line.split()
            tops, bottoms = rest[: int(inputs)], rest[int(inputs) : int(inputs) + int(outputs)]
            pairs = [entry.split("=", 1) for entry in rest[int(inputs) + int(outputs) :]]
            self.layers.append((kind, tops, bottoms, {int(key): value for key, value in pairs}))

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the layers in the order of the file."""
        values: dict[str, Tensor] = {}
        output = pixels
        for kind, tops, bottoms, options in self.layers:
            inputs = [values[name] for name in tops]
            output = pixels if kind == "Input" else _ncnn_layer(kind, inputs, options, bottoms[0])
            for name in bottoms:
                values[name] = output
        return output


@cache
def _random(layer: str, *shape: int) -> Tensor:
    """Weights of one layer; two layers with the same weights would be merged by the exporter."""
    return torch.rand(shape)


def _ncnn_layer(  # noqa: PLR0911
    kind: str, inputs: list[Tensor], options: dict[int, Any], name: str
) -> Tensor:
    def option(key: int, default: int = 0) -> int:
        return int(float(options.get(key, default)))

    x = inputs[0]
    if kind in ("Convolution", "ConvolutionDepthWise"):
        groups = option(7, 1) if kind == "ConvolutionDepthWise" else 1
        kernel = (option(11, option(1)), option(1))
        weight = _random(f"{name}.weight", option(0), int(x.shape[1]) // groups, *kernel)
        pad = option(4)
        y = F.conv2d(x, weight, _random(f"{name}.bias", option(0)), option(3, 1), max(pad, 0), option(2, 1), groups)
        return _ncnn_activation(y, option(9))
    if kind == "InnerProduct":
        x = x.flatten(1)
        y = F.linear(x, _random(f"{name}.weight", option(0), int(x.shape[1])), _random(f"{name}.bias", option(0)))
        return _ncnn_activation(y, option(9))
    if kind == "Pooling":
        if option(4):
            return F.adaptive_avg_pool2d(x, 1)
        pool: Callable[..., Tensor] = F.avg_pool2d if option(0) else F.max_pool2d
        return pool(x, option(1), option(2, 1), option(3), ceil_mode=option(5) == 0)
    if kind in ("BinaryOp", "Eltwise"):
        a, b = (each[..., None, None] if each.dim() == 2 and x.dim() == 4 else each for each in inputs)
        return a * b if option(0) == {"BinaryOp": 2, "Eltwise": 0}[kind] else a + b
    if kind == "Concat":
        return torch.cat(inputs, 1)
    if kind == "LRN":
        return F.local_response_norm(x, option(1, 5))
    simple: dict[str, Callable[[Tensor], Tensor]] = {
        "Split": lambda y: y,
        "Dropout": lambda y: y,
        "ReLU": F.relu,
        "HardSwish": F.hardswish,
        "HardSigmoid": F.hardsigmoid,
        "Sigmoid": torch.sigmoid,
        "Swish": F.silu,
        "Softmax": lambda y: y.flatten(1).softmax(1),
        "Reshape": lambda y: y.flatten(1),
        "Flatten": lambda y: y.flatten(1),
    }
    return simple[kind](x)


def _ncnn_activation(y: Tensor, kind: int) -> Tensor:
    known: dict[int, Callable[[Tensor], Tensor]] = {
        0: lambda z: z, 1: F.relu, 2: F.leaky_relu, 3: F.relu6, 4: torch.sigmoid, 6: F.hardswish,
    }  # fmt: skip
    return known[kind](y)


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups), nn.ReLU6(inplace=True))


def mobilenet_v1(width: float) -> nn.Module:
    """Howard et al., arXiv 1704.04861."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    inside = int(32 * width)
    layers: list[nn.Module] = [_conv(3, inside, 3, 2)]
    for channels, stride in plan:
        outside = int(channels * width)
        layers += [_conv(inside, inside, 3, stride, inside), _conv(inside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 1001))


def mobilenet_v2(width: float) -> nn.Module:
    """Sandler et al., arXiv 1801.04381, with TensorFlow's 1,001 classes."""
    from torchvision import models

    network: nn.Module = models.mobilenet_v2(width_mult=width, num_classes=1001)
    return network


def mobilenet_v3(size: str, width: float = 1.0, minimalistic: bool = False) -> nn.Module:
    from torchvision.models import mobilenetv3 as v3

    settings, last = v3._mobilenet_v3_conf(f"mobilenet_v3_{size}", width_mult=width)
    if minimalistic:  # no squeeze-and-excitation, no 5×5, no hard-swish
        for setting in settings:
            setting.use_se, setting.use_hs, setting.kernel = False, False, 3
    network: nn.Module = v3.MobileNetV3(
        settings, last_channel=max(last, 1024 if size == "small" else 1280), num_classes=1001,
        norm_layer=partial(nn.BatchNorm2d, eps=0.001),
    )  # fmt: skip
    if minimalistic:
        for module in network.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Hardswish):
                    setattr(module, name, nn.ReLU())
    return network


def torchvision_network(name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    if name == "vit_b_32":
        options = {"image_size": 384}
    network: nn.Module = models.get_model(name, weights=None, **options)
    return network


def timm_network(name: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=1001)
    return network


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    """Name, factory and resolution of every network that is not ncnn's own."""
    for width in (0.25, 0.5, 0.75, 1.0):
        for size in (128, 160, 192, 224):
            yield f"mobilenet_v1_{width}@{size}", partial(mobilenet_v1, width), size
    for width in (0.35, 0.5, 0.75, 1.0):
        for size in (96, 128, 160, 192, 224):
            yield f"mobilenet_v2_{width}@{size}", partial(mobilenet_v2, width), size
    for width in (1.3, 1.4):
        yield f"mobilenet_v2_{width}@224", partial(mobilenet_v2, width), 224
    for kind in ("large", "small"):
        for width in (0.75, 1.0):
            yield f"mobilenet_v3_{kind}_{width}@224", partial(mobilenet_v3, kind, width), 224
        yield f"mobilenet_v3_{kind}_minimalistic_1.0@224", partial(mobilenet_v3, kind, minimalistic=True), 224
    yield "vit_b32_384@384", partial(torchvision_network, "vit_b_32"), 384
    plain = [
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext101_32x8d",
        "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg19", "vgg19_bn",
        "densenet121", "densenet161", "densenet169", "densenet201", "alexnet",
    ]  # fmt: skip
    for name in plain:
        yield f"{name}@224", partial(torchvision_network, name), 224
    for name in ("resnet18", "resnet34"):
        yield f"{name}@256", partial(torchvision_network, name), 256
    yield "googlenet_torchvision@224", partial(torchvision_network, "googlenet"), 224
    yield "inception_v3@299", partial(torchvision_network, "inception_v3"), 299
    yield "inception_v3@224", partial(torchvision_network, "inception_v3"), 224
    for name in ("inception_v4", "inception_resnet_v2", "resnetv2_50", "resnetv2_101", "resnetv2_152"):
        yield f"{name}@299", partial(timm_network, name), 299


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--ncnn", type=Path, default=Path("ncnn/benchmark/models"), help="of a checkout of Tencent/ncnn"
    )
    folder = parser.parse_args().ncnn
    torch.backends.mha.set_fastpath_enabled(False)  # its one big operator has no ONNX form
    table = load_table() if TABLE.exists() else {}

    def ncnn_network(file: str) -> nn.Module:
        return ParamNetwork((folder / f"{file}.param").read_text())

    own: list[tuple[str, Callable[[], nn.Module], int]] = [
        (name, partial(ncnn_network, file), int(name.partition("@")[2].partition("/")[0]))
        for name, file in NCNN_FILES.items()
    ]
    for name, build, size in [*own, *networks()]:
        if name not in table:  # remove the file, or an entry, to build it again
            table[name] = cost_of(build(), size)
            save_table(table)
            print(
                f"{name}: {table[name].macs / 1e6:.1f} M MACs, {table[name].parameters:,} parameters",
                flush=True,
            )


if __name__ == "__main__":
    main()

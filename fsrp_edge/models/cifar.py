"""Networks for 32x32 images, with the parameter names of the checkpoints that are in circulation.

`resnet20` to `resnet110` are He et al.'s CIFAR networks as in akamaster's pytorch_resnet_cifar10; `resnet18`
and `mobilenet_v2` are as in kuangliu's pytorch-cifar; `vgg16_bn` has bias-free convolutions and one linear
layer; `wide_resnet28_10` and the like are as in xternalz's WideResNet-pytorch, which TRADES and many networks of
RobustBench took over.
"""

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Conv2d):
    """Option-A shortcut of a CIFAR ResNet: every second pixel, and zero channels on both sides.

    It is written as a 1x1, stride-2, bias-free convolution whose fixed 0/1 weight copies the input's channels
    and leaves the others zero, which is the same mathematics as slicing and padding. As a convolution,
    pruning, ONNX and TFLite handle it natively, and pruned channels need no bookkeeping of their own.

    The weight is never trained. Published checkpoints do not hold it, so that loading one keeps the weight in
    place; files saved by this package do hold it, because pruning changes it.

    Args:
        inputs: channels that come in.
        outputs: channels that go out; (outputs - inputs) / 2 zero channels stand on each side.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=1, stride=2, bias=False)

    def reset_parameters(self) -> None:
        """Put the 0/1 weight in place."""
        before = (self.out_channels - self.in_channels) // 2
        after = self.out_channels - self.in_channels - before
        copying = F.pad(torch.eye(self.in_channels), (0, 0, before, after))
        with torch.no_grad():
            self.weight.copy_(copying[:, :, None, None])

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Freeze every weight this layer gets: torch-pruning assigns a new, trainable one."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        state_dict.setdefault(prefix + "weight", self.weight.detach())
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option-B shortcut: nothing where shapes agree, else a strided 1x1 convolution with batch norm."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _padding(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option-A shortcut: nothing where shapes agree, else a PadShortcut."""
    return nn.Sequential() if stride == 1 and inputs == outputs else PadShortcut(inputs, outputs)


Shortcut = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(out + self.shortcut(x))
        return out  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks of which all but the first halve the size, and a linear layer.

    Args:
        widths: channels of each stage; the stem has those of the first.
        depth: blocks a stage.
        shortcut: what joins the input of a block whose shape changes.
        classes: logits.
        input_channels: channels of an image.
    """

    def __init__(
        self, widths: tuple[int, ...], depth: int, shortcut: Shortcut, classes: int, input_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        inputs = widths[0]
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        for name, width in zip(self.stages, widths, strict=True):
            first = BasicBlock(inputs, width, 1 if name == "layer1" else 2, shortcut)
            rest = [BasicBlock(width, width, 1, shortcut) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            inputs = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class VGG(nn.Module):
    """VGG16 with batch norm: 13 bias-free 3x3 convolutions, five poolings, one linear layer.

    Args:
        width: multiplies the channels of every convolution.
        classes: logits.
        input_channels: channels of an image.
    """

    PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0 is a pooling

    def __init__(self, width: float, classes: int, input_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = input_channels
        for base in self.PLAN:
            if base == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = max(1, round(base * width))
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, C, 32, 32)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by a 3x3 one, project by a 1x1 one."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _projection(inputs, outputs, 1) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 whose stem and second stage keep the size, as 32x32 images need.

    Args:
        classes: logits.
        input_channels: channels of an image.
    """

    # expansion, channels, blocks, stride of the first block
    PLAN = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int, input_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU()
        blocks: list[nn.Module] = []
        inputs = 32
        for expansion, outputs, count, stride in self.PLAN:
            for position in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if position == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, C, H, W)."""
        x = self.layers(self.relu1(self.bn1(self.conv1(x))))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and activation before each, and a shortcut.

    Where channels change, the shortcut takes its input behind the first activation, else in front of it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideResNet(nn.Module):
    """WideResNet: a 3x3 stem, three groups of pre-activation blocks of which all but the first halve the size.

    Args:
        depth: 4 more than six times the blocks a group.
        width: multiplies the channels 16, 32 and 64 of the groups.
        classes: logits.
        input_channels: channels of an image.
    """

    STEM = 16

    def __init__(self, depth: int, width: int, classes: int, input_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, self.STEM, 3, padding=1, bias=False)
        inputs = self.STEM
        for number in (1, 2, 3):
            outputs = self.STEM * width * 2 ** (number - 1)
            first = PreActivationBlock(inputs, outputs, 1 if number == 1 else 2)
            rest = [PreActivationBlock(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
            blocks = nn.Sequential(first, *rest)
            self.add_module(f"block{number}", nn.ModuleDict({"layer": blocks}))
            inputs = outputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, C, H, W)."""
        x = self.conv1(x)
        for number in (1, 2, 3):
            x = self.get_submodule(f"block{number}.layer")(x)
        logits: Tensor = self.fc(self.pool(self.relu(self.bn1(x))).flatten(1))
        return logits


Factory = Callable[[int, int], nn.Module]
"""Takes (classes, input channels)."""

_SMALL = {f"resnet{6 * depth + 2}": depth for depth in (3, 5, 7, 9, 18)}
_OPTIONS: dict[str, Shortcut] = {"a": _padding, "b": _projection}

FACTORIES: dict[str, Factory] = {
    **{
        f"{name}-{option}": partial(ResNet, (16, 32, 64), depth, shortcut)
        for name, depth in _SMALL.items()
        for option, shortcut in _OPTIONS.items()
    },
    "resnet18": partial(ResNet, (64, 128, 256, 512), 2, _projection),
    "vgg16_bn": partial(VGG, 1.0),
    "mobilenet_v2": MobileNetV2,
    **{f"wide_resnet{depth}_10": partial(WideResNet, depth, 10) for depth in (28, 34)},
}


def factory(name: str) -> Factory | None:
    """The factory of `resnet20-a`, `vgg16_bn-w0.25`, `wide_resnet28_10` …; None for a name not carried here."""
    if wide := re.fullmatch(r"wide_resnet(\d{2,3})_(\d{1,2})", name):
        depth, width = map(int, wide.groups())
        return partial(WideResNet, depth, width) if depth % 6 == 4 and depth >= 10 and width >= 1 else None
    base, _, narrowed = name.partition("-w")
    if base == "vgg16_bn" and narrowed:
        try:
            multiplier = float(narrowed)
        except ValueError:
            return None
        return partial(VGG, multiplier) if 0 < multiplier <= 4 else None
    return FACTORIES.get(name)

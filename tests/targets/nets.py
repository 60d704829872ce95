"""Small networks with what couples channels: adds, concatenations, depthwise convolutions, gates, channels last."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A stem and two convolutions around which the stem's maps are added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16))
        self.second = nn.Sequential(nn.Conv2d(16, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool2d((x + self.second(self.first(x))).relu(), 1).flatten(1))


class Concatenation(nn.Module):
    """Two branches of other widths side by side, and a linear layer on a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 20, 1, 2)
        self.join = nn.Conv2d(28, 6, 3, 2, 1)
        self.head = nn.Linear(6 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(torch.cat([self.left(x), self.right(x)], 1).relu()).relu().flatten(1))


class Separable(nn.Module):
    """A depthwise convolution with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.depthwise(self.expand(x)), 2)
        x = x * torch.sigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()))
        return self.head(self.project(x).relu().mean((2, 3)))


class ChannelsLast(nn.Module):
    """Linear layers on maps (N, H, W, C), as in a ConvNeXt, with a residual add around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.norm = nn.LayerNorm(16)
        self.expand, self.project = nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        block = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + self.project(self.expand(block).relu()).permute(0, 3, 1, 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UnevenPooling(nn.Module):
    """Adaptive pooling whose bins are unequal, as in AlexNet on small images: exporters get matrices in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 12, 3, 4), nn.ReLU(), nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d((3, 5))
        self.hidden, self.head = nn.Linear(16 * 3 * 5, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.pool(self.maps(x)).flatten(1)).relu())


NETWORKS: dict[str, type[nn.Module]] = {
    "residual": Residual,
    "concatenation": Concatenation,
    "separable": Separable,
    "channels-last": ChannelsLast,
    "uneven pooling": UnevenPooling,
}

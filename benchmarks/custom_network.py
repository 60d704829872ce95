"""A network with what custom networks have and torchvision's do not, to try pruning on."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """ECA: a 1-D convolution over the channels themselves, which therefore have to stay in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        weights = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return x * torch.sigmoid(weights)[:, :, None, None]


class SpatialAttention(nn.Module):
    """One weight a place, from the mean and the maximum over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        pooled = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class Custom(nn.Module):
    """Frozen stem, a layer used twice, functional calls, bare parameters, slices, grouped layers and a 1-D head.

    Args:
        num_classes: logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.stem.requires_grad_(False)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 32, 1, 1))
        self.wide = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 64)
        self.prelu = nn.PReLU(64)
        self.middle = nn.Conv2d(64, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, padding=1, groups=8)
        self.after_grouped = nn.Conv2d(64, 64, 1)
        self.multiplier = nn.Conv2d(64, 128, 3, stride=2, padding=1, groups=8)
        self.before_spatial = nn.Conv2d(128, 128, 1)
        self.spatial = SpatialAttention()
        self.before_functional = nn.Conv2d(128, 48, 1)
        self.kernel = nn.Parameter(torch.randn(48, 48, 3, 3) * 0.05)
        self.after_functional = nn.Conv2d(48, 64, 1)
        self.halves = nn.Conv2d(32, 64, 1)
        self.eca = ChannelAttention()
        self.before_sequence = nn.Conv2d(64, 40, 1)
        self.sequence = nn.Conv1d(40, 24, 3, padding=1)
        self.hidden = nn.Linear(24 * 16, 64)
        self.head = nn.Linear(64, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):  # torch's own start lets the image fade away
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, 3, 32, 32)."""
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(x)) + x
        x = F.relu(self.twice(x)) * self.scale
        x = self.prelu(self.norm(self.wide(x)))
        x = self.after_grouped(F.relu_(self.grouped(self.middle(x))))
        x = F.silu(self.multiplier(F.leaky_relu(x)))
        x = self.spatial(self.before_spatial(x))
        x = F.relu(F.conv2d(self.before_functional(x), self.kernel, padding=1))
        x = self.after_functional(x)
        first, second = x[:, :32], x[:, 32:]
        x = self.eca(self.halves(first * torch.sigmoid(second)))
        x = F.adaptive_max_pool2d(F.relu(self.before_sequence(x)), 4)
        x = F.relu(self.sequence(x.flatten(2)))
        logits: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return logits


def build(num_classes: int = 10) -> nn.Module:
    """The factory: `--arch benchmarks/custom_network.py:build`."""
    return Custom(num_classes)

"""The copy of a network that exporters work on."""

import copy

import torch
from torch import Tensor, nn

from fsrp_edge.models.classifier import Classifier


def frozen_copy(classifier: Classifier) -> Classifier:
    """An independent copy on the CPU, in evaluation mode: exporters patch what they trace.

    It is laid out contiguously, because litert-torch 0.10 ignores strides: from channels_last weights it
    writes, without a word, a file that computes something else.
    """
    network = copy.deepcopy(classifier).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    frozen: Classifier = network.eval().requires_grad_(False)
    return frozen


def as_exported(classifier: Classifier, *, uint8_input: bool, batch: int = 1) -> tuple[nn.Module, Tensor]:
    """A frozen copy that takes what the file shall take, and an example of that: (batch, C, H, W)."""
    frozen = frozen_copy(classifier)
    pixels = frozen.example_pixels(batch)
    if not uint8_input:
        return frozen, pixels
    return FromBytes(frozen), (255 * pixels).round().byte()


class FromBytes(nn.Module):
    """A classifier that takes images as bytes; their scale goes into the normalization, so no operator is added.

    Args:
        classifier: its normalization is changed.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        classifier.mean.mul_(255)
        classifier.std.mul_(255)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of uint8 images (N, C, H, W)."""
        logits: Tensor = self.classifier(images.float())
        return logits

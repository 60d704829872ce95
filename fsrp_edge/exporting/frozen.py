"""The copy of a network that exporters work on."""

import copy

import torch

from fsrp_edge.models.classifier import Classifier


def frozen_copy(classifier: Classifier) -> Classifier:
    """An independent copy on the CPU, in evaluation mode: exporters patch what they trace.

    It is laid out contiguously, because litert-torch 0.10 ignores strides: from channels_last weights it
    writes, without a word, a file that computes something else.
    """
    network = copy.deepcopy(classifier).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    frozen: Classifier = network.eval().requires_grad_(False)
    return frozen

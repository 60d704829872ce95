"""Batch norms folded into the layers before them: the same function in fewer operations."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.models.classifier import Classifier


class Folded:
    """A copy of a classifier for inference and input gradients, with its batch norms folded; parameters are frozen.

    Args:
        original: in any mode; it stays as it is.
    """

    classifier: Classifier
    """The copy, in evaluation mode; the original itself where it cannot be traced, where there is nothing to fold, or
    where the copy computes something else."""

    def __init__(self, original: Classifier) -> None:
        self._original = self.classifier = original
        self._folds: dict[str, str] = {}
        try:
            with attackable(original):
                network, folds = _fused(original.network)
                copied = Classifier(network, original.spec).to(original.mean.device).eval()
                agrees = _agree(copied, original)
        except Exception:  # a user's own network: tracing runs its code on proxies, which may raise anything
            return
        if folds and agrees:
            self.classifier, self._folds = copied, folds

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the weights and running statistics that the original has now."""
        if not self._folds:
            return
        network = self._original.network
        theirs = _tensors(network)
        for layer, norm in self._folds.items():
            theirs[f"{layer}.weight"], theirs[f"{layer}.bias"] = _fold(
                network.get_submodule(layer), network.get_submodule(norm)
            )
        mine = _tensors(self.classifier.network)
        torch._foreach_copy_(list(mine.values()), [theirs[name] for name in mine])


def _fused(network: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """A copy of a network without those batch norms that can be folded: by the layer, which it was folded into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what the module imports itself
        from torch.fx.experimental.optimization import fuse
    fused = fuse(network)
    left = {node.target for node in fused.graph.nodes}  # type: ignore[union-attr]
    return compute.to_fast_layout(fused, compute.device_of(network)), {
        str(node.args[0].target): str(node.target)
        for node in torch.fx.symbolic_trace(network).graph.nodes
        if node.op == "call_module" and node.target not in left
    }


@torch.no_grad()
def _agree(copied: Classifier, original: Classifier) -> bool:
    pixels = original.example_pixels(2)
    logits = original(pixels)
    return bool((copied(pixels) - logits).abs().max() <= 1e-3 * logits.abs().max())


def _fold(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and bias that do what a layer and the batch norm after it do."""
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    statistics = norm.running_mean, norm.running_var, norm.eps
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_weights(layer.weight, layer.bias, *statistics, norm.weight, norm.bias)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, norm.weight, norm.bias)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}

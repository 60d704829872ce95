"""Which batch norm stands behind which layer: it decides what the layer's outputs count, whatever its weights' size."""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.models.channel_graph import Convolution
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import first_argument

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms_behind(classifier: Classifier) -> dict[str, str]:
    """Names of the batch norms that alone take the outputs of a layer, and nothing else, by the layer's name.

    Those without running statistics are left out: what they do depends on the batch. A layer whose outputs go elsewhere
    too, as to a shortcut, has none.

    Args:
        classifier: it is run once.
    """
    # Layers by the node of autograd's graph: an operation in place keeps the tensor, but not the node.
    made: dict[Any, str] = {}
    pairs: dict[str, tuple[str, Any]] = {}
    calls = Counter[str]()

    def remember(name: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        calls[name] += 1
        made[output.grad_fn] = name

    def look(name: str, norm: BatchNorm, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls[name] += 1
        node = first_argument(arguments, named).grad_fn
        if node is not None and node in made and norm.running_var is not None:
            pairs[made[node]] = (name, node)

    hooks = (
        module.register_forward_pre_hook(partial(look, name), with_kwargs=True)
        if isinstance(module, BatchNorm)
        else module.register_forward_hook(partial(remember, name))
        for name, module in classifier.network.named_modules()
        if isinstance(module, nn.Linear | Convolution | BatchNorm)
    )
    with compute.hooked(hooks), torch.enable_grad(), attackable(classifier):
        logits = classifier(classifier.example_pixels(1).requires_grad_(True))
    readers = _readers(logits)
    return {
        layer: norm for layer, (norm, node) in pairs.items() if calls[layer] == calls[norm] == 1 and readers[node] == 1
    }


def _readers(result: Tensor) -> Counter[Any]:
    """How often the result of each node of autograd's graph is read on the way to `result`."""
    readers = Counter[Any]()
    seen, waiting = {result.grad_fn}, [result.grad_fn]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions if node is not None else ():
            readers[before] += 1
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return readers

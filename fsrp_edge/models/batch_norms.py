"""Which batch norm stands behind which layer: it decides what the layer's outputs count, whatever its weights' size."""

from collections import Counter
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from fsrp_edge.attacks import attackable
from fsrp_edge.models.channel_graph import Convolution
from fsrp_edge.models.classifier import Classifier

BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms_behind(classifier: Classifier) -> dict[str, str]:
    """Names of the batch norms that take nothing but the outputs of one layer, by the layer's name.

    Those without running statistics are left out: what they do depends on the batch.

    Args:
        classifier: it is run once.
    """
    made: dict[int, tuple[str, Tensor]] = {}  # outputs are kept so that no other tensor gets their address
    pairs: dict[str, str] = {}
    calls = Counter[str]()

    def remember(name: str, output: Tensor) -> None:
        calls[name] += 1
        made[id(output)] = (name, output)

    def look(name: str, norm: BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        calls[name] += 1
        if id(inputs[0]) in made and norm.running_var is not None:
            pairs[made[id(inputs[0])][0]] = name

    with ExitStack() as stack:
        for name, module in classifier.network.named_modules():
            if isinstance(module, nn.Linear | Convolution):
                hook = module.register_forward_hook(lambda _, __, output, name=name: remember(name, output))
            elif isinstance(module, BatchNorm):
                hook = module.register_forward_pre_hook(
                    lambda norm, inputs, name=name: look(name, norm, inputs)
                )
            else:
                continue
            stack.callback(hook.remove)
        with torch.no_grad(), attackable(classifier):
            classifier(classifier.example_pixels(1))
    return {layer: norm for layer, norm in pairs.items() if calls[layer] == calls[norm] == 1}

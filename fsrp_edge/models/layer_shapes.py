"""How a pruned network differs from its dense architecture, and how to make it again from that."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.models import registry
from fsrp_edge.models.classifier import LayerShape, ModelSpec

Value = TypeVar("Value")


def layer_shapes(network: nn.Module, dense: nn.Module) -> dict[str, LayerShape]:
    """What has to change in `dense` so that it can hold the weights of `network`.

    Args:
        network: the pruned network.
        dense: what the architecture's factory builds (on the meta device will do).

    Returns:
        Module names to differences; modules without any are left out.

    Raises:
        BadInputError: the two do not consist of the same modules.
    """
    theirs = dict(dense.named_modules())
    ours = dict(network.named_modules())
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        raise BadInputError(f"the network and its architecture do not have the same modules: only one has {name!r}")
    found = {}
    for name, module in ours.items():
        difference = LayerShape(
            attributes=_differing(_integers(module), _integers(theirs[name])),
            tensors=_differing(_tensor_shapes(module), _tensor_shapes(theirs[name])),
        )
        if difference.attributes or difference.tensors:
            found[name] = difference
    return found


def apply_layer_shapes(network: nn.Module, shapes: Mapping[str, LayerShape]) -> None:
    """Resize modules in place; resized tensors hold zeros until weights are loaded.

    Args:
        network: as the architecture's factory builds it.
        shapes: what `layer_shapes` returned.

    Raises:
        BadInputError: `shapes` names something that the network does not have.
    """
    for name, shape in shapes.items():
        try:
            module = network.get_submodule(name)
        except AttributeError:
            raise BadInputError(f"pruned shapes name the layer {name!r}, which the architecture lacks") from None
        unknown = (shape.attributes.keys() - _integers(module)) | (shape.tensors.keys() - _tensor_shapes(module))
        if unknown:
            raise BadInputError(f"pruned shapes name {min(unknown)!r}, which layer {name!r} lacks")
        for attribute, value in shape.attributes.items():
            setattr(module, attribute, value)
        for attribute, size in shape.tensors.items():
            _resize(module, attribute, size)


def with_layer_shapes(network: nn.Module, spec: ModelSpec) -> ModelSpec:
    """`spec` with the layer shapes of `network`, found against the dense architecture that `spec` names."""
    dense = registry.build_without_weights(spec.architecture, spec.classes, spec.input_shape[0])
    return spec.model_copy(update={"layer_shapes": layer_shapes(network, dense)})


def _resize(module: nn.Module, name: str, size: tuple[int, ...]) -> None:
    old: torch.Tensor = getattr(module, name)
    new = old.detach().new_zeros(size)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _integers(module: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """The module's own integers and tuples of integers; booleans are switches, not sizes."""
    return {
        name: value
        for name, value in vars(module).items()
        if _is_integer(value) or (isinstance(value, tuple) and all(map(_is_integer, value)))
    }


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tensor_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(tensor.shape) for name, tensor in own}


def _differing(ours: dict[str, Value], theirs: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in ours.items() if name in theirs and theirs[name] != value}

"""Reading the feature maps of every layer in one forward pass, without storing them.

Maps are found by watching the functions that run (torch's own TorchFunctionMode), so functional calls, modules used
twice and in-place activations are seen like any other. A layer is recognised by its weight tensor.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from fsrp_edge.models.cifar import PadShortcut

ReadAt = Literal["convolution", "batch-norm", "activation"]
"""Where a layer's map is read: its own output, after the batch norm that follows, or after the activation after that.

Where the norm or activation does not follow directly (a residual add comes first, say), the last point before it
counts.
"""

_NORMS = {"batch_norm", "instance_norm", "group_norm"}
_ACTIVATIONS = {
    *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "clamp"),
}  # fmt: skip
_LAYER_CALLS = {torch.conv1d, torch.conv2d, torch.conv3d, F.linear}


class _Pending(NamedTuple):
    layer: str
    maps: Tensor
    normalized: bool


def scored_layers(network: nn.Module) -> dict[str, nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers that learn, by name; fixed shortcuts only copy another layer's map."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and not isinstance(module, PadShortcut)
    }


class MapReader(TorchFunctionMode):
    """Inside the block, hand every layer's map to `receive(layer name, maps)` as soon as it is complete.

    Args:
        network: its layers' weights tell which call belongs to which layer.
        read_at: see ReadAt.
        receive: called once for each use of a layer; the tensor must not be kept or changed.
    """

    def __init__(self, network: nn.Module, read_at: ReadAt, receive: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        # A weight that is computed at each use (a parametrization) has no lasting identity to know its layer by.
        self._layers = {layer: name for name, layer in scored_layers(network).items() if "weight" in layer._parameters}
        self._names = {id(layer.weight): name for layer, name in self._layers.items()}
        self._running: list[Any] = []
        self._hooks: list[RemovableHandle] = []
        self._read_at = read_at
        self._receive = receive
        self._pending: dict[int, _Pending] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and follow the maps it consumes or makes."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        read = {id(tensor) for tensor in _operands(args, kwargs)}
        consumed = [self._pending[key] for key in read & self._pending.keys()]
        next_link = len(consumed) == 1 and self._goes_on(consumed[0], name.rstrip("_"))
        if not next_link and _writes_in_place(name, args, kwargs):
            self._finish(consumed)
            consumed = []
        result = func(*args, **kwargs)
        # What makes no tensor is a mere question, such as the number of dimensions.
        if consumed and any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            if next_link:
                self._follow(consumed[0], name.rstrip("_"), result)
            else:
                self._finish(consumed)
        if func in _LAYER_CALLS:
            self._start(args, kwargs, result)
        return result

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        layer = self._names.get(id(weight)) or self._layer_that_runs(weight)
        if layer is None:
            return
        if self._read_at == "convolution":
            self._receive(layer, result)
        else:
            self._pending[id(result)] = _Pending(layer, result, normalized=False)

    def _layer_that_runs(self, weight: Any) -> str | None:
        """Name of the layer whose own code calls with a weight like its own; other calls in it read no map."""
        layer = self._running[-1] if self._running else None
        return self._layers[layer] if layer is not None and weight.shape == layer.weight.shape else None

    def _enter(self, layer: nn.Module, _: Any) -> None:
        self._running.append(layer)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def _goes_on(self, waiting: _Pending, name: str) -> bool:
        """Whether this call is the next link of convolution → norm → activation."""
        if name in _NORMS:
            return not waiting.normalized
        return name in _ACTIVATIONS and self._read_at == "activation"

    def _follow(self, waiting: _Pending, name: str, result: Tensor) -> None:
        del self._pending[id(waiting.maps)]
        if name in _ACTIVATIONS or self._read_at == "batch-norm":
            self._receive(waiting.layer, result)
        else:
            self._pending[id(result)] = _Pending(waiting.layer, result, normalized=True)

    def _finish(self, consumed: list[_Pending]) -> None:
        """Hand over maps whose chain ends here."""
        for layer, maps, _ in consumed:
            self._pending.pop(id(maps), None)
            self._receive(layer, maps)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._hooks = [layer.register_forward_pre_hook(self._enter) for layer in self._layers]
        self._hooks += [layer.register_forward_hook(self._leave) for layer in self._layers]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: object) -> None:
        """Hand over what nothing consumed, such as the logits."""
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._finish(list(self._pending.values()))


def _operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """What a call may read maps from: its first two arguments, and the tensors of a list, as `cat` takes one."""
    for argument in (*args[:2], kwargs.get("input"), kwargs.get("tensors")):
        yield from argument if isinstance(argument, list | tuple) else (argument,)


def _writes_in_place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call may overwrite its first argument: `add_`, `__iadd__`, or a flag that is set."""
    by_name = (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    return by_name or bool(kwargs.get("inplace")) or any(arg is True for arg in args[1:])

"""Which operations a channel passes through unchanged, and where following it has to stop.

torch-pruning takes every operation that it does not know for one that leaves channels in place. That is wrong for a
channel shuffle (its graph of shufflenet_v2 ends in a division by zero), a split into halves, a functional convolution,
attention. Here the network runs once under watch: at every operation that is not known to keep channels apart and in
order, autograd's record is cut, and the channels on both sides stay as they are, for a reason that names the operation.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fsrp_edge import compute

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, *NORMS, nn.PReLU)
"""Modules that the surgery can resize; inside them nothing is watched."""

_ELEMENTWISE = {
    *("add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "multiply", "div", "truediv", "itruediv"),
    *("rtruediv", "true_divide", "rdiv", "idiv", "reciprocal"),
    *("neg", "pow", "rpow", "sqrt", "rsqrt", "exp", "log", "abs", "maximum", "minimum", "square"),
    *("relu", "relu6", "hardtanh", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "logsigmoid"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "clamp", "clip", "clamp_min", "clamp_max"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "lerp", "addcmul"),
    *("contiguous", "clone", "to", "float", "type", "type_as", "requires_grad"),
}  # fmt: skip
_PER_CHANNEL = {
    *("interpolate", "upsample", "permute", "transpose", "swapaxes", "expand_as"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "lp_pool2d"),
    *("avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d"),
}  # fmt: skip
_RESHAPES = ("view", "reshape", "flatten")
_ALONG_LAST = {"linear", "layer_norm"}
"""What a layer calls that works along the last axis, where the channels that a convolution put out are axis 1 …"""
_ALONG_CHANNELS = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("batch_norm", "instance_norm", "group_norm", "prelu"),
}  # fmt: skip
"""… and along axis 1, where channels may have been moved away from."""


class Cut(NamedTuple):
    """A value at which following its channels ends or begins, and why they have to stay."""

    value: Tensor
    reason: str


class Watch(TorchFunctionMode):
    """Inside the block, cut autograd's record at operations that mix, reorder or pick channels.

    Args:
        network: what will run.

    `ends` are the values that went into such operations, `starts` stand for what came out of them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.ends: list[Cut] = []
        self.starts: list[Cut] = []
        self._names = {module: name for name, module in network.named_modules()}
        self._running: list[nn.Module] = []
        self._made: list[Cut] = []

    def start(self, value: Tensor, reason: str) -> Tensor:
        """`value` without its history, as a new source of channels that have to stay."""
        leaf = nn.Parameter(value.detach())
        self.starts.append(Cut(leaf, reason))
        return leaf * 1  # not the leaf itself, which operations in place would refuse

    @contextmanager
    def follow_modules(self) -> Iterator[None]:
        """Know inside the block which module is running."""

        def leave(module: nn.Module, _: object, output: Any) -> None:
            self._running.pop()
            if isinstance(module, LAYERS) and isinstance(output, Tensor):
                self._made.append(Cut(output, f"nothing reads what {self._names[module]} makes of them"))

        enter = [m.register_forward_pre_hook(lambda m, _: self._running.append(m)) for m in self._names]
        with compute.hooked(enter + [m.register_forward_hook(leave) for m in self._names]):
            yield

    def unread(self) -> list[Cut]:
        """What layers put out last that leads to no end, such as the logits of a head that is there for training."""
        seen, found = set(_history(cut.value for cut in self.ends)), list[Cut]()
        for made in reversed(self._made):
            if made.value.grad_fn is not None and made.value.grad_fn not in seen:
                found.append(made)
                seen.update(_history([made.value]))
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; let it pass or cut around it."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if self._running and isinstance(self._running[-1], LAYERS):
            return self._in_layer(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if name == "setitem" and not _assignment_keeps(*args):
            self.ends += [Cut(leaf, self._reason(name)) for leaf in (args[0], args[2]) if _has_history(leaf)]
        sources = [leaf for leaf in _tensors((args, kwargs)) if leaf.requires_grad]
        if not sources or not any(True for _ in _tensors(result)):
            return result  # a question, such as the shape
        if (name in _ELEMENTWISE or _is_of_two(name, args)) and isinstance(result, Tensor):
            return self._elementwise(func, args, kwargs, result)
        if _keeps_channels(name, args, kwargs, result):
            return _without_places(_source(args, kwargs), result) if name in _RESHAPES else result
        return self._cut(self._reason(name), sources, result)

    def _in_layer(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run what a layer calls, apart from what was before where it does not read channels along its own axis."""
        replaced: dict[int, Tensor] = {}
        if (name in _ALONG_LAST and _is_convolved_maps(_source(args, kwargs))) or (
            name in _ALONG_CHANNELS and _is_displaced(_source(args, kwargs))
        ):
            source = _source(args, kwargs)
            replaced[id(source)] = self._cut(self._reason(name), [source], source)
        layer = self._running[-1]
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            # One value for all channels is no partner of theirs; torch-pruning takes it for one of their sources.
            replaced[id(layer.weight)] = layer.weight.detach()
        args, kwargs = tree_map(lambda leaf: replaced.get(id(leaf), leaf), (args, kwargs))
        return func(*args, **kwargs)

    def _elementwise(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> Tensor:
        reason = None
        if any(isinstance(leaf, nn.Parameter) and not _per_channel(leaf, result) for leaf in _tensors(args)):
            reason = self._reason("broadcasting")
        elif any(_is_constant_per_channel(leaf, result) for leaf in _tensors((args, kwargs))):
            reason = self._reason("arithmetic with a constant of one value a channel")
        if reason:
            cut: Tensor = self._cut(reason, [leaf for leaf in _tensors(args) if leaf.requires_grad], result)
            return cut
        spread = [leaf for leaf in _tensors(args) if leaf.requires_grad and _is_spread(leaf, result)]
        if not spread:
            return result
        # One channel that goes to all: it is nobody's partner, and what it meets may still be pruned.
        self.ends += [Cut(leaf, self._reason("broadcasting")) for leaf in spread]
        apart = {id(leaf): leaf.detach() for leaf in spread}
        if func.__name__.endswith("_") and not func.__name__.startswith("__"):
            return result
        again: Tensor = func(*(apart.get(id(arg), arg) for arg in args), **kwargs)
        return again

    def _cut(self, reason: str, sources: Iterable[Tensor], result: Any) -> Any:
        self.ends += [Cut(source, reason) for source in sources if source.is_floating_point()]

        def parted(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            return self.start(leaf, reason) if leaf.numel() > 1 else leaf.detach()  # one value is nobody's channels

        return tree_map(parted, result)

    def _reason(self, name: str) -> str:
        where = next((self._names[module] for module in reversed(self._running) if module in self._names), "")
        name = {"getitem": "indexing", "setitem": "assignment to an index"}.get(name, name)
        return f"they pass through {name} in {where or 'the network'}, which needs all of them in their order"


def _is_of_two(name: str, args: tuple[Any, ...]) -> bool:
    """Whether `torch.max` or `torch.min` is asked for the larger or smaller of two tensors, place by place."""
    return name in {"max", "min"} and len(args) > 1 and isinstance(args[1], Tensor)


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _keeps_channels(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether every channel (axis 1) of the result comes from that channel of the first argument alone."""
    rule = _RULES.get(name)
    return isinstance(result, Tensor) and (rule(args, kwargs, result) if rule else name in _PER_CHANNEL)


_CONVOLVED = "ConvolutionBackward0"
_MOVED = {"PermuteBackward0", "TransposeBackward0"}
_MADE = {_CONVOLVED, "AddmmBackward0", "MmBackward0"}


def _history(values: Iterable[Tensor], ends: Collection[str] = ()) -> Iterator[Any]:
    """The nodes of autograd's record that values come from, each once, and none behind an operation of `ends`."""
    seen, waiting = set[Any](), [value.grad_fn for value in values]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.name() not in ends:
            waiting += [before for before, _ in node.next_functions]


def _behind(value: Tensor) -> list[Any]:
    """The nodes at which autograd's record of a value ends: what moves axes, else what makes channels."""
    return [node for node in _history([value], _MOVED | _MADE) if node.name() in _MOVED | _MADE]


def _is_convolved_maps(value: Tensor) -> bool:
    return value.dim() > 2 and any(node.name() == _CONVOLVED for node in _behind(value))


def _is_channels_first(value: Tensor) -> bool:
    """Whether flattening the value numbers its places within each channel.

    Not so where axes changed places since channels were made, or where a linear layer made them at each place: it has
    more rows then than there are images, and the channels are the last axis.
    """
    return not any(
        node.name() in _MOVED or (node.name() != _CONVOLVED and node._input_metadata[0].shape[0] != len(value))
        for node in _behind(value)
    )


def _is_displaced(value: Tensor) -> bool:
    """Whether axis 1 is not that of the channels of some convolution behind the value: axes changed places since."""
    seen, waiting = set[Any](), [(value.grad_fn, 1)]
    while waiting:
        node, axis = place = waiting.pop()
        if node is None or place in seen:
            continue
        seen.add(place)
        if node.name() == _CONVOLVED and axis != 1:
            return True
        if node.name() in _MADE:
            continue
        if node.name() in _MOVED:
            order = _order_of_axes(node)
            if axis >= len(order):
                return True
            axis = order[axis]
        waiting += [(before, axis) for before, _ in node.next_functions]
    return False


def _order_of_axes(node: Any) -> list[int]:
    """Which axis of its input each axis of the result was, of a permutation in autograd's record."""
    axes = list(range(len(node._input_metadata[0].shape)))
    if node.name() == "PermuteBackward0":
        return [axes[_signed(axis)] for axis in node._saved_dims]
    first, second = _signed(node._saved_dim0), _signed(node._saved_dim1)
    axes[first], axes[second] = axes[second], axes[first]
    return axes


def _signed(axis: int) -> int:
    """An axis as the user gave it; autograd keeps -1 as an unsigned number."""
    return axis - 2**64 if axis >= 2**63 else axis


def _is_flattened(value: Tensor) -> bool:
    """Whether its channels are those of maps, each as often as a map has places."""
    return any(
        ("View" in node.name() or "Reshape" in node.name()) and len(node._input_metadata[0].shape) == 2
        for node in _history([value], _MADE)
    )


def _without_places(source: Tensor, flat: Tensor) -> Tensor:
    """Maps of one place each that are flattened, by an operation that torch-pruning does not count places for."""
    if flat.shape != source.shape[:2]:
        return flat
    return source.sum(tuple(range(2, source.dim()))) if source.dim() > 2 else source


def _source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a call works on, by place or by name."""
    source: Tensor = args[0] if args else kwargs["input"]
    return source


def _reshape_keeps(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    source = _source(args, kwargs)
    ranks = source.dim(), result.dim()
    if min(ranks) < 2 or max(ranks) > 4 or source.shape[0] != result.shape[0]:
        return False
    if source.shape[1] == result.shape[1]:
        return not _is_displaced(source)
    return result.dim() == 2 and _is_channels_first(source)


def _reduction_keeps(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    given = _axis_given(args, kwargs, None)
    source = _source(args, kwargs)
    rank = source.dim()
    if given is None or rank < 3:
        return False
    axes = {axis % rank for axis in ((given,) if isinstance(given, int) else given)}
    return axes <= {2, 3} and not _is_displaced(source)


def _indexing_keeps(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    everything = slice(None)
    return (
        args[0].dim() in {2, 4}  # the channels of other tensors are another axis to torch-pruning, where that is sliced
        and len(index) > 1
        and all(part is None or isinstance(part, slice) for part in index)
        and index[0] == everything
        and index[1] == everything
    )


def _assignment_keeps(target: Tensor, index: Any, value: Any) -> bool:
    """Whether each channel of the target takes, at most, that of a value with as many."""
    matches = not _has_history(value) or value.shape[:2] == target.shape[:2]
    return matches and _indexing_keeps((target, index), {}, target)


def _has_history(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _concatenation_keeps(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    if _axis_given(args, kwargs, 0) % result.dim() != 1:
        return False
    # torch-pruning takes every channel for as many inputs of the layer behind as another part's has, or never ends.
    return not any(_is_flattened(leaf) for leaf in _tensors((args, kwargs)))


def _padding_keeps(args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> bool:
    widths = kwargs["pad"] if "pad" in kwargs else args[1]
    places = 2 * (result.dim() - 2)  # two widths an axis, the last axis first
    return places > 0 and not any(widths[places:])


def _axis_given(args: tuple[Any, ...], kwargs: dict[str, Any], default: int | None) -> Any:
    return kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else default))


_RULES: dict[str, Callable[[tuple[Any, ...], dict[str, Any], Tensor], bool]] = {
    **dict.fromkeys(_RESHAPES, _reshape_keeps),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction_keeps),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenation_keeps),
    **dict.fromkeys(("squeeze", "unsqueeze"), lambda a, k, made: made.shape[:2] == _source(a, k).shape[:2]),
    "pad": _padding_keeps,
    "getitem": _indexing_keeps,
}


def _per_channel(parameter: nn.Parameter, result: Tensor) -> bool:
    """Whether a bare parameter has one value a channel of the result, or one for all."""
    if parameter.numel() == 1:
        return True
    if result.dim() < 2:
        return False
    axis = 1 - result.dim()
    return parameter.dim() >= -axis and parameter.shape[axis] == parameter.numel() == result.shape[1]


def _is_constant_per_channel(leaf: Tensor, result: Tensor) -> bool:
    """Whether a value has a number of channels of its own, as a buffer has; what was made for these images has not."""
    axis = 1 - result.dim()
    constant = not leaf.requires_grad and leaf.dim() >= -axis and (leaf.dim() < result.dim() or len(leaf) == 1)
    return result.dim() > 1 and constant and leaf.shape[axis] > 1


def _is_spread(source: Tensor, result: Tensor) -> bool:
    """Whether one channel of `source` meets many of the result."""
    if isinstance(source, nn.Parameter) or result.dim() < 2:
        return False
    return source.dim() == result.dim() and source.shape[1] == 1 != result.shape[1]

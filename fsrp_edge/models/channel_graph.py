"""torch-pruning's dependency graph behind the few questions that planning asks.

Channels that depend on one another (a residual add, a depthwise convolution, a concatenation) form a group and are
removed together; the graph knows which channel of which layer belongs to which channel of the group.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from fsrp_edge import compute
from fsrp_edge.errors import BadInputError, ToolFailedError, first_line
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.tracing import LAYERS, NORMS, Cut, Watch

Convolution = nn.modules.conv._ConvNd
Side = Literal["output", "input", "both"]
IS_OUTPUT = "these channels are the network's output"


@dataclass(frozen=True)
class Member:
    """A layer with channels in a group.

    Args:
        layer: name in the network (for a bare parameter, the parameter's name).
        channels: the layer's channels that are in the group …
        root_channels: … and the channel of the group's root that each goes with.
        side: whether these are the layer's outputs, its inputs, or both at once (batch norm, depthwise convolutions).
    """

    layer: str
    channels: tuple[int, ...]
    root_channels: tuple[int, ...]
    side: Side = "output"


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels that can only be removed together.

    Args:
        root: name of the layer whose channels number the group's.
        channels: how many there are.
        members: convolutions and linear layers that make these channels, the root among them.
        slices: everything that is cut when channels go: members, what takes them as input, norms, bare parameters.
        blocks: the channels come in this many blocks (of a group norm, say) that must lose the same positions.
        unit: this many neighbouring channels stay or go together (the width of a grouped convolution's groups).
        locked: why none can be removed; None where some can.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    slices: tuple[Member, ...] = ()
    blocks: int = 1
    unit: int = 1
    locked: str | None = None

    @cached_property
    def parts(self) -> tuple[Member, ...]:
        """Slices that have but some of the group's channels, such as one of the layers before a concatenation."""
        return tuple(each for each in self.slices if len(set(each.root_channels)) < self.channels)


def require_convolutions(classifier: Classifier) -> None:
    """Refuse, before any work, a network that has nothing which this package prunes.

    Raises:
        BadInputError: fewer than two convolutions, as in ViT and Swin, whose only one embeds the patches.
    """
    count = sum(isinstance(module, Convolution) for module in classifier.network.modules())
    if count < 2:
        raise BadInputError(
            f"{classifier.spec.architecture} has {count or 'no'} convolution{'s' * (count != 1)}: "
            "there are no filters to prune; fsrp-edge prunes convolutional networks (ResNet, MobileNet, VGG …)"
        )


class PruningGraph:
    """The channel groups of one network.

    Args:
        classifier: its network is run once; it is left as it is.

    Raises:
        BadInputError: the network has no convolutions to prune.
        ToolFailedError: torch-pruning cannot follow the network.
    """

    def __init__(self, classifier: Classifier) -> None:
        require_convolutions(classifier)
        self._network = classifier.network
        self._names = {module: name for name, module in self._network.named_modules()}
        self._graph = _new_graph()
        self._watch = Watch(self._network)
        self._outputs: list[Tensor] = []
        training = [module for module in self._network.modules() if module.training]
        with warnings.catch_warnings(), compute.all_trainable(self._network), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                self._graph.build_dependency(
                    self._network, classifier.example_pixels(2), forward_fn=self._forward, verbose=False
                )
                with torch.no_grad():  # what hooks and old weight norms keep of their last run has no graph then
                    classifier(classifier.example_pixels(2))
            except Exception as error:  # torch-pruning raises anything from KeyError to ZeroDivisionError
                raise ToolFailedError(
                    f"torch-pruning cannot trace {classifier.spec.architecture}: {type(error).__name__}: {error}"
                ) from error
            finally:
                for module in training:
                    module.training = True
        self._reasons = self._find_reasons()

    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups, in the order of the network's layers."""
        groups = [self._describe(group) for group in self._raw_groups()]
        lost = self._lost_inputs(groups)
        return tuple(
            replace(group, locked=group.locked or next(filter(None, map(lost.get, _read_by(group))), None))
            for group in groups
        )

    def ranked_by(self, importance: Callable[[Any], Tensor | None]) -> dict[str, Tensor]:
        """Scores of every group by one of torch-pruning's importances, under the name of the group's root.

        Groups that the importance has nothing to say of are left out: by batch-norm scale, those without a batch norm;
        by gradients, those with a weight that is computed from other tensors.
        """
        ranked = {}
        for group in self._raw_groups():
            root = self._names[group[0].dep.target.module]
            try:
                ranked[root] = importance(group)
            except (RuntimeError, IndexError) as error:  # where a grouped convolution has more outputs than inputs
                raise ToolFailedError(
                    f"torch-pruning's {type(importance).__name__} can't score {root} ({first_line(error)}); "
                    "choose another criterion, such as --criterion fsrp"
                ) from error
            except AttributeError:  # a computed weight has no gradient; what has one is not to be passed over
                if not any(_computes_its_weight(item.dep.target.module) for item in group if _is_layer(item)):
                    raise
        return {root: scores.detach().double().cpu() for root, scores in ranked.items() if scores is not None}

    def _forward(self, network: nn.Module, pixels: Tensor) -> list[Tensor]:
        """The outputs, and what went into cuts: torch-pruning walks backwards from all of them."""
        watch = self._watch
        with watch.follow_modules():
            source = watch.start(pixels, "they are the network's input")
            with watch:
                outputs = network(source)
        self._graph.unwrapped_parameters.extend((cut.value, min(1, cut.value.dim() - 1)) for cut in watch.starts)
        watch.ends[:0] = [Cut(leaf, IS_OUTPUT) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        watch.ends += watch.unread()
        # Times one, so that each stands for itself and not for the layer or the concatenation it comes from.
        self._outputs = [cut.value * 1 for cut in watch.ends]
        return self._outputs

    def _find_reasons(self) -> dict[Any, str]:
        """Why channels that reach a node of the graph have to stay."""
        by_function = {output.grad_fn: cut.reason for output, cut in zip(self._outputs, self._watch.ends, strict=True)}
        starts = {id(cut.value): cut.reason for cut in self._watch.starts}
        owners = Counter(id(each) for module in self._names for each in module._parameters.values() if each is not None)
        reasons = {}
        for module, node in self._graph.module2node.items():
            if isinstance(module, nn.Parameter):
                reason = starts.get(id(module)) or self._bare_parameter_reason(module, owners[id(module)])
            elif isinstance(module, LAYERS) and _computes_its_weight(module):
                reason = f"{self._names[module]} computes its weight from other tensors (a parametrization)"
            elif isinstance(module, LAYERS) and any(owners[id(each)] > 1 for each in module._parameters.values()):
                reason = f"{self._names[module]} shares its weight with another layer"
            else:
                reason = by_function.get(node.grad_fn) if type(module).__name__ == "_OutputOp" else None
            if type(module).__name__ == "_ConcatOp" and module.offsets is None:
                reason = "they are flattened after a concatenation, which torch-pruning does not follow"
            if reason:
                reasons[node] = reason
        return reasons

    def _bare_parameter_reason(self, parameter: nn.Parameter, owners: int) -> str | None:
        name = self._graph._param_to_name.get(parameter, "?")
        if owners > 1:
            return f"they meet the bare parameter {name}, which has {owners} names in the network"
        if max(parameter.shape, default=1) == parameter.numel():
            return None
        shape = "x".join(map(str, parameter.shape))
        return f"they meet the bare parameter {name} ({shape}), whose channels are not known"

    def _raw_groups(self) -> Iterator[Any]:
        """torch-pruning's groups of all channels, each rooted at its first layer."""
        nodes = self._graph.module2node  # it goes through these in their order
        known = {layer: nodes[layer] for layer in self._names if layer in nodes}
        self._graph.module2node = known | nodes
        groups: Iterator[Any] = self._graph.get_all_groups()
        return groups

    def _describe(self, group: Any) -> ChannelGroup:
        slices = [slice_ for item in group if (slice_ := self._slice(item))]
        reasons = [self._reasons[item.dep.target] for item in group if item.dep.target in self._reasons]
        misfits = [self._misfit(each) for each in slices]
        made = [each for each, misfit in zip(slices, misfits, strict=True) if not misfit and self._makes_channels(each)]
        count = len(group[0].idxs)
        blocks, unit, conflict = self._granularity(slices, count)
        locked = next(iter(reasons), None) or next(filter(None, misfits), None) or conflict or self._tie(group)
        if locked is None and all(each.side != "input" for each in slices):
            locked = IS_OUTPUT
        return ChannelGroup(
            root=self._names[group[0].dep.target.module],
            channels=count,
            members=tuple(made),
            slices=tuple(slices),
            blocks=blocks,
            unit=unit,
            locked=locked,
        )

    def _tie(self, group: Any) -> str | None:
        """Why channels of the root depend on each other: a layer has one channel in the place of two of them.

        torch-pruning writes down but one of the two. Channels that are tied have numbers that differ in some bit: those
        with the bit set, removed alone, take along some without it.
        """
        root, count = group[0].dep, len(group[0].idxs)
        often = (Counter(item.root_idxs) for item in group)
        if all(len(each) == count and len(set(each.values())) == 1 for each in often):
            return None  # nobody lacks any of them; the search below takes long where there are many concatenations
        for bit in range((count - 1).bit_length()):
            half = {channel for channel in range(count) if channel >> bit & 1}
            taken = self._graph.get_pruning_group(root.target.module, root.handler, sorted(half))
            again = (item.idxs for item in taken if (item.dep.target, item.dep.handler) == (root.target, root.handler))
            if any(half != set(channels) for channels in again):
                return "a concatenation ties some of them to others of them"
        return None

    def _lost_inputs(self, groups: Iterable[ChannelGroup]) -> dict[str, str]:
        """Why linear layers cannot lose inputs: torch-pruning knows only some of what was flattened into them."""
        known: dict[str, set[int]] = {}
        for group in groups:
            for part in group.slices:
                if part.side == "input":
                    known.setdefault(part.layer, set()).update(part.channels)
        return {
            name: f"they are flattened into {name}, and torch-pruning does not follow all of them"
            for name, channels in known.items()
            if isinstance(layer := find_layer(self._network, name), nn.Linear) and len(channels) < layer.in_features
        }

    def _slice(self, item: Any) -> Member | None:
        module = item.dep.target.module
        channels, roots = tuple(item.idxs), tuple(item.root_idxs)
        if isinstance(module, nn.Parameter):
            name = self._graph._param_to_name.get(module)
            return None if name is None else Member(name, channels, roots, "both")
        if not _is_layer(item):
            return None
        side: Side = "input"
        if isinstance(module, (*NORMS, nn.PReLU)) or _is_coupled(module):
            side = "both"
        elif self._graph.is_out_channel_pruning_fn(item.dep.handler):
            side = "output"
        return Member(self._names[module], channels, roots, side)

    def _makes_channels(self, part: Member) -> bool:
        return part.side != "input" and isinstance(find_layer(self._network, part.layer), Convolution | nn.Linear)

    def _misfit(self, part: Member) -> str | None:
        """Why a layer cannot lose these channels: they reach it along another axis than its channels."""
        module = find_layer(self._network, part.layer)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return None
        available = self._available(part)
        if max(part.channels) < available:
            return None
        return f"{part.layer} takes them along another axis than its {available} channels"

    def _available(self, part: Member) -> int:
        """How many channels a layer has on that side, along the axis on which it is cut."""
        module = find_layer(self._network, part.layer)
        if module is None:
            return max(self._network.get_parameter(part.layer).shape, default=1)
        if isinstance(module, Convolution | nn.Linear):
            inputs, outputs = widths(module)
            return inputs if part.side == "input" else outputs
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1]) if len(module.normalized_shape) == 1 else 0
        if isinstance(module, nn.PReLU):
            return module.num_parameters
        return int(module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features)

    def _granularity(self, slices: list[Member], count: int) -> tuple[int, int, str | None]:
        """(blocks, unit, why the grouped layers cannot agree on both)."""
        blocks, unit, names = 1, 1, []
        for part in slices:
            module = find_layer(self._network, part.layer)
            divided = getattr(module, "num_groups", getattr(module, "groups", 1))
            if divided == 1:
                continue
            names.append(f"{part.layer} ({divided} groups)")
            if part.side == "output" and divided == count:
                return 1, 1, f"{part.layer} makes one of them in each of its {divided} groups"
            if _is_coupled(module):
                width = module.out_channels // divided
                unit = math.lcm(unit, width)
                fits = all(
                    (mine - root) % width == 0 for mine, root in zip(part.channels, part.root_channels, strict=True)
                )
            else:
                # All of the layer's channels and all of the group's, or their positions are not those in its groups.
                whole = part.channels == part.root_channels == tuple(range(count)) and self._available(part) == count
                fits = whole and max(divided, blocks) % min(divided, blocks) == 0
                blocks = max(blocks, divided)
            if not fits:
                break
        else:
            if count % unit == 0 and count % blocks == 0 and (unit == 1 or blocks == 1):
                return blocks, unit, None
        return 1, 1, f"{' and '.join(names)} divide them differently"


def _read_by(group: ChannelGroup) -> Iterator[str]:
    return (part.layer for part in group.slices if part.side == "input")


def find_layer(network: nn.Module, name: str) -> Any:
    """The layer of that name; None where the name is that of a bare parameter."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def widths(layer: nn.Module) -> tuple[int, int]:
    """(input, output) channels of a convolution or linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, Convolution)
    return layer.in_channels, layer.out_channels


def _is_layer(item: Any) -> bool:
    return isinstance(item.dep.target.module, LAYERS)


def _computes_its_weight(layer: nn.Module) -> bool:
    """Whether its weight is no parameter of its own: a parametrization, or the hook of an old weight norm."""
    without = getattr(layer, "weight", None) is not None and "weight" not in layer._parameters
    return parametrize.is_parametrized(layer) or without


def _is_coupled(layer: nn.Module) -> bool:
    """Whether a grouped convolution loses whole groups, inputs and outputs at once; depthwise ones do."""
    return isinstance(layer, Convolution) and layer.groups > 1 and layer.in_channels == layer.out_channels


def _new_graph() -> Any:
    import torch_pruning

    class Graph(torch_pruning.DependencyGraph):  # type: ignore[misc]
        """Couples the inputs of a grouped convolution with its outputs, as of a depthwise one.

        Removing the same positions from every group, as torch-pruning does, leaves as many groups of an odd width, and
        nothing at all can go where the number of groups is large or prime (regnet_y). It also takes 32 inputs in 8
        groups of one output for depthwise, which has as many outputs.
        """

        def get_pruner_of_module(self, module: Any) -> Any:
            if isinstance(module, Convolution):
                types = torch_pruning.ops.OPTYPE
                return self.REGISTERED_PRUNERS[types.DEPTHWISE_CONV if _is_coupled(module) else types.CONV]
            return super().get_pruner_of_module(module)

    return Graph()

"""torch-pruning's dependency graph behind the few questions that planning asks.

Channels that depend on one another (a residual add, a depthwise convolution, a concatenation) form a group and are
removed together; the graph knows which channel of which layer belongs to which channel of the group.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fsrp_edge import compute
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.models.classifier import Classifier


@dataclass(frozen=True)
class Member:
    """A layer whose output channels belong to a group.

    Args:
        layer: name in the network.
        channels: the layer's channels that are in the group …
        root_channels: … and the channel of the group's root that each goes with.
    """

    layer: str
    channels: tuple[int, ...]
    root_channels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels that can only be removed together.

    Args:
        root: name of the layer whose channels number the group's.
        channels: how many there are.
        members: convolutions and linear layers that make these channels, the root among them.
        consumers: names of the layers that take them as input and shrink too.
        blocks: the channels come in this many blocks (of a grouped convolution) that must lose the same positions.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    consumers: tuple[str, ...]
    blocks: int = 1


class PruningGraph:
    """The channel groups of one network.

    Args:
        classifier: its network is traced now and changed by `remove`.

    Raises:
        ToolFailedError: torch-pruning cannot follow the network.
    """

    def __init__(self, classifier: Classifier) -> None:
        import torch_pruning

        self._network = classifier.network
        self._names = {module: name for name, module in self._network.named_modules()}
        self._graph = torch_pruning.DependencyGraph()
        with warnings.catch_warnings(), compute.all_trainable(self._network), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                self._graph.build_dependency(self._network, classifier.example_pixels(), verbose=False)
            except Exception as error:  # torch-pruning raises anything from KeyError to ZeroDivisionError
                raise ToolFailedError(
                    f"torch-pruning cannot trace {classifier.spec.architecture}: {type(error).__name__}: {error}"
                ) from error

    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups, in the order of the network's layers."""
        return tuple(
            self._describe(group)
            for group in self._graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
        )

    def ranked_by(self, importance: Callable[[Any], torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """Scores of every group by one of torch-pruning's importances, under the name of the group's root.

        Groups that the importance has nothing to say of (batch-norm scale, where there is no batch norm) are left out.
        """
        groups = self._graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
        ranked = {self._names[group[0].dep.target.module]: importance(group) for group in groups}
        return {root: scores.detach().double().cpu() for root, scores in ranked.items() if scores is not None}

    def remove(self, root: str, channels: Sequence[int]) -> None:
        """Remove channels of the group of layer `root` from every layer of the group."""
        layer = self._network.get_submodule(root)
        pruner = self._graph.get_pruner_of_module(layer)
        with compute.all_trainable(self._network):
            group = self._graph.get_pruning_group(layer, pruner.prune_out_channels, sorted(channels))
            group.prune()

    def _describe(self, group: Any) -> ChannelGroup:
        members, consumers, blocks = [], [], 1
        for item in group:
            layer = item.dep.target.module
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1
            if isinstance(layer, nn.Conv2d) and not depthwise:
                blocks = max(blocks, layer.groups)
            if depthwise or self._graph.is_out_channel_pruning_fn(item.dep.handler):
                members.append(Member(self._names[layer], tuple(item.idxs), tuple(item.root_idxs)))
            else:
                consumers.append(self._names[layer])
        root = group[0].dep.target.module
        return ChannelGroup(
            root=self._names[root],
            channels=len(group[0].idxs),
            members=tuple(members),
            consumers=tuple(dict.fromkeys(consumers)),
            blocks=blocks,
        )

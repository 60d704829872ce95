"""A graph whose channels can go without exporting it again: what it would cost with fewer of them."""

from collections.abc import Mapping

import numpy as np

from fsrp_edge.targets.graph_cost import GraphCost, Link
from fsrp_edge.targets.work import Work


class ElasticGraph:
    """The cost of a graph as a function of how many channels go of each group of coupled layers.

    Args:
        graph: of the dense network, with the names of its weights.
        outputs: by the weight's name (groups,): the share of the layer's output channels that goes with one channel
            of each group; layers that are not named keep theirs.
        groups: how many there are.
    """

    def __init__(self, graph: GraphCost, outputs: Mapping[str, np.ndarray], groups: int) -> None:
        self.graph = graph
        place = {buffer.name: index for index, buffer in enumerate(graph.buffers)}
        sizes = np.array([buffer.elements for buffer in graph.buffers], dtype=float)
        shares = np.zeros((len(place), groups))
        for link in graph.links:
            shares[place[link.writes]] = _written(link, outputs, shares, sizes, place)
        self._shares = shares
        self._sizes = sizes
        self._input = np.array([place[link.reads[0]] for link in graph.links])
        self._output = np.array([place[link.writes] for link in graph.links])
        self._reads = np.zeros((len(place), len(graph.links)))
        for index, link in enumerate(graph.links):
            for name in link.reads:
                self._reads[place[name], index] += 1
        steps = np.arange(len(graph.links))
        self._alive = np.array([(b.first <= steps) & (steps <= b.last) for b in graph.buffers], dtype=float)
        self._weighted = np.array([link.weight is not None for link in graph.links])
        self._biases = np.array([link.biases for link in graph.links], dtype=float)
        self._dense = Work.of(graph.operators)
        # Matrices of no layer, as of uneven pooling, stay as they are.
        products = np.isin(self._dense.kinds, ("attention", "dense"))
        self._fixed = products & ~self._weighted
        # Groups of a grouped convolution go as wholes where it has as many inputs as outputs.
        self._coupled = (self._dense.groups > 1) & (self._dense.inside == self._dense.outside)

    def cost(self, removed: np.ndarray) -> tuple[Work, np.ndarray, np.ndarray]:
        """What operators ask for, elements of all weights, and activations alive at the worst moment.

        Args:
            removed: (plans, groups), how many channels go.
        """
        dense = self._dense
        left = 1 - removed @ self._shares.T  # (plans, buffers)
        elements = left * self._sizes
        inputs, outputs = left[:, self._input], left[:, self._output]
        outer = np.where(self._coupled, 1.0, outputs)
        inner = np.where(self._coupled | ~self._weighted, 1.0, inputs)
        read = elements @ self._reads
        kinds = np.array(dense.kinds)
        weights = (dense.weights - self._biases) * inner * outputs + self._biases * outputs
        weights = np.where(self._fixed, dense.weights, weights)
        work = Work(
            kinds=dense.kinds,
            macs=np.where(kinds == "elementwise", read, dense.macs * inner * outputs),
            inside=dense.inside * inner,
            outside=dense.outside * outer,
            kernels=dense.kernels,
            traffic=read + elements[:, self._output],
            weights=weights,
            groups=np.where(self._coupled, dense.groups * outputs, dense.groups),
        )
        parameters = self.graph.parameters + (weights - dense.weights).sum(1)
        return work, parameters, (elements @ self._alive).max(1)


def _written(
    link: Link,
    outputs: Mapping[str, np.ndarray],
    shares: np.ndarray,
    sizes: np.ndarray,
    place: Mapping[str, int],
) -> np.ndarray:
    """What goes of an operator's output: a layer's own channels, each input's of a concatenation, else the input's."""
    if link.weight is not None:
        return outputs.get(link.weight, np.zeros(shares.shape[1]))
    read = [place[name] for name in link.reads]
    if len(read) > 1 and sizes[read].sum() == sizes[place[link.writes]]:
        mean: np.ndarray = np.average(shares[read], axis=0, weights=sizes[read])
        return mean
    largest: np.ndarray = shares[max(read, key=lambda index: sizes[index])]
    return largest

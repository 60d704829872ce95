"""What budgets are reckoned with: the operators of a network, found from its graph."""

from torch import nn

from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import named_graph
from tests.nets import as_classifier, built
from tests.targets.nets import ChannelsLast

NORMALIZATION = 6
"""Means and standard deviations of three colours, which stand in the file beside the network's parameters."""


def test_weights_that_the_graph_transposes_count_and_keep_their_layers_names() -> None:
    network = as_classifier(ChannelsLast())
    graph, size = named_graph(network), measure_size(network)
    assert (graph.parameters, graph.macs) == (size.parameters + NORMALIZATION, size.macs)
    named = {link.weight for link in graph.links if link.weight}
    assert named == {"stem", "depthwise", "expand", "project", "head"}


def test_shapes_that_the_graph_computes_are_told_and_layers_keep_their_names() -> None:
    network = built("torchvision:shufflenet_v2_x0_5", shape=(3, 64, 64))
    graph = named_graph(network)
    assert graph.macs == measure_size(network).macs
    layers = {
        name for name, each in network.network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)
    }
    assert {link.weight for link in graph.links if link.weight} == layers

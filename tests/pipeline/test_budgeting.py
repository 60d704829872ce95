"""What budgets are reckoned with: the operators of a network, found from its graph."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fsrp_edge.bench.address import parse_address
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.options import ExportOptions
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import Workplace, named_graph
from fsrp_edge.targets.load import load_target
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


def test_trial_files_are_as_large_as_those_that_are_shipped(tmp_path: Path) -> None:
    labels = tuple(f"a class with quite a long name, number {number}" for number in range(10))
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    network = as_classifier(body, class_names=labels)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    images = ImageSet.of("noise", ArraySource(pixels), torch.arange(8))
    target, requests = load_target("generic-x86"), (ArtifactRequest("onnx", "fp32"),)
    for options in (ExportOptions(), ExportOptions(uint8_input=True, dynamic_batch=True)):
        shipped = export_verified(
            network, requests, tmp_path, target=target, calibration=images, images=images, options=options
        )
        place = Workplace(target, requests, parse_address("local"), 1, images, options)
        assert place.try_files(network, ("size",)) == {"size": shipped.artifacts[0].bytes}

from dataclasses import replace

import pytest

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.estimate import COSTS, Work, estimate, load_coefficients, quantities
from fsrp_edge.targets.graph_cost import GraphCost, Operator
from fsrp_edge.targets.load import load_target


def graph(width: int = 64) -> GraphCost:
    layers = [
        Operator("stem", "convolution", 27 * width * 112 * 112, 3 * 224 * 224, width * 112 * 112, 27 * width,
                 kernel=9, channels=(3, width)),
        Operator("3x3", "winograd", 9 * width * width * 56 * 56, width * 56 * 56, width * 56 * 56, 9 * width**2,
                 kernel=9, channels=(width, width)),
        Operator("1x1", "pointwise", width * width * 56 * 56, width * 56 * 56, width * 56 * 56, width**2,
                 channels=(width, width)),
        Operator("head", "dense", width * 1000, width, 1000, width * 1000, channels=(width, 1000)),
    ]  # fmt: skip
    return GraphCost(tuple(layers), sum(each.weights for each in layers), 2 * width * 112 * 112)


def test_the_packaged_coefficients_are_valid_and_cover_all_costs() -> None:
    groups = load_coefficients().groups
    assert len(groups) > 100
    assert all(set(group.costs) == set(COSTS) for group in groups)
    assert {group.target for group in groups} >= {"raspberry-pi-4", "raspberry-pi-5", "jetson-nano"}


def test_a_published_group_gives_an_interval_from_its_validation() -> None:
    found = estimate(graph(), load_target("raspberry-pi-4"), runtime="ncnn", threads=4)
    assert found.calibrated
    assert found.interval[0] < found.milliseconds < found.interval[1]
    assert "published" in found.basis
    assert sum(each.share for each in found.operators) == pytest.approx(1)
    assert sum(each.milliseconds for each in found.operators) == pytest.approx(found.milliseconds)


def test_fewer_channels_cost_less() -> None:
    target = load_target("raspberry-pi-4")
    times = [estimate(graph(width), target).milliseconds for width in (16, 32, 64, 128)]
    assert times == sorted(times)


def test_where_nothing_was_published_the_estimate_says_so() -> None:
    found = estimate(graph(), load_target("raspberry-pi-4"), runtime="onnxruntime", threads=3)
    assert not found.calibrated
    assert "UNCALIBRATED" in found.basis
    assert found.interval[1] / found.interval[0] > 4


def test_a_quantized_graph_is_int8() -> None:
    found = estimate(replace(graph(), quantized=True), load_target("raspberry-pi-4"), runtime="ncnn")
    assert found.precision == "int8"
    assert found.weight_bytes == graph().parameters


def test_memory_that_does_not_fit_is_said() -> None:
    huge = replace(graph(), peak_elements=2**33)
    assert estimate(huge, load_target("raspberry-pi-4")).fits is False


def test_a_runtime_the_target_lacks_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"allowed: .*ncnn"):
        estimate(graph(), load_target("raspberry-pi-4"), runtime="tensorrt")


def test_quantities_count_bytes_by_precision() -> None:
    full, small = (quantities(Work.of(graph().operators), precision) for precision in ("fp32", "int8"))
    column = COSTS.index("activations")
    assert (full[:, column] == 4 * small[:, column]).all()


def test_ncnn_computes_fp32_files_in_fp16_where_the_cores_can() -> None:
    found = estimate(graph(), load_target("raspberry-pi-5"), runtime="ncnn", threads=4)
    assert found.calibrated
    assert found.precision == "fp32"
    assert "ncnn computes fp32 files in fp16" in found.basis

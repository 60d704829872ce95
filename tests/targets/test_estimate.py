from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.coefficients import load_coefficients
from fsrp_edge.targets.costs import device_costs, pool_name
from fsrp_edge.targets.estimate import Estimate, estimate
from fsrp_edge.targets.graph_cost import GraphCost, Operator
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.profile import Runtime
from fsrp_edge.targets.work import COSTS, Unit, Work, quantities


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


def test_every_packaged_pool_is_reached_by_some_profile() -> None:
    pools = load_coefficients().pools
    reached = {
        pool_name(pools, runtime, precision, Unit(kind))
        for runtime in get_args(Runtime.model_fields["name"].annotation)
        for kind in get_args(Runtime.model_fields["runs_on"].annotation)
        for precision in ("fp32", "fp16", "int8")
    }
    assert reached == set(pools)


def test_a_published_group_gives_an_interval_from_its_validation() -> None:
    found = estimate(graph(), load_target("raspberry-pi-4"), runtime="ncnn", threads=4)
    assert found.calibrated
    assert found.interval[0] < found.milliseconds < found.interval[1]
    assert "published" in found.basis
    assert sum(each.share for each in found.operators) == pytest.approx(1)
    assert sum(each.milliseconds for each in found.operators) == pytest.approx(found.milliseconds)
    assert all(0 < each.prunable < each.milliseconds for each in found.operators)


def test_fewer_channels_cost_less() -> None:
    target = load_target("raspberry-pi-4")
    times = [estimate(graph(width), target).milliseconds for width in (16, 32, 64, 128)]
    assert times == sorted(times)


def test_where_nothing_was_published_the_estimate_says_so() -> None:
    found = estimate(graph(), load_target("jetson-agx-orin"), runtime="tensorrt")
    assert not found.calibrated
    assert "UNCALIBRATED" in found.basis and "from its peak" in found.basis
    assert found.interval[1] / found.interval[0] > 4


def width(found: Estimate) -> float:
    return found.interval[1] / found.interval[0]


def test_a_power_mode_is_scaled_from_the_clocks_that_were_measured() -> None:
    full, saving = (
        estimate(graph(), load_target(name), precision="fp16") for name in ("jetson-nano", "jetson-nano@5W")
    )
    assert saving.milliseconds == pytest.approx(full.milliseconds * 236 / 164)
    assert full.calibrated and not saving.calibrated
    assert "UNCALIBRATED: from jetson-nano by its speed, 1.44 times the time" in saving.basis
    assert width(saving) > width(full)
    # Its own measurements come before those of the full clock.
    assert estimate(graph(), load_target("raspberry-pi-4@1.5GHz"), runtime="litert").calibrated


@pytest.mark.parametrize(
    ("name", "precision", "basis"),
    [
        (
            "jetson-nano",
            "fp32",
            "UNCALIBRATED: fewer than 3 networks were measured; 2 published measurements (tensorrt",
        ),
        ("jetson-agx-xavier", "int8", "1 published measurement (tensorrt"),
    ],
)
def test_a_fit_of_one_network_or_two_is_not_called_calibrated(name: str, precision: Precision, basis: str) -> None:
    found = estimate(graph(), load_target(name), precision=precision, runtime="tensorrt")
    assert not found.calibrated and basis in found.basis


def test_a_power_mode_of_a_profile_elsewhere_is_not_scaled_from_a_published_device_of_its_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    cpu = "[{name: Cortex-A55, cores: {value: 4, source: s}, clock_ghz: {value: %s, source: s}}]"
    own.write_text(
        "name: radxa-zero-3w\ndescription: mine\nextends: generic-arm64\nsources: {s: sheet}\n"
        f"cpu: {cpu % 1.6}\nvariants: {{slow: {{cpu: {cpu % 0.8}}}}}\n"
    )
    assert estimate(graph(), load_target(str(own)), runtime="ncnn").milliseconds > 0
    with pytest.raises(BadInputError, match="radxa-zero-3w@slow: nothing was published"):
        estimate(graph(), load_target(f"{own}@slow"), runtime="ncnn")


def test_threads_between_those_that_were_measured_lie_between_them() -> None:
    found = [estimate(graph(), load_target("raspberry-pi-4"), runtime="ncnn", threads=n) for n in (1, 2, 3, 4)]
    assert [each.calibrated for each in found] == [True, False, False, True]
    assert [each.milliseconds for each in found] == sorted((each.milliseconds for each in found), reverse=True)
    assert "from 4 threads to 3" in found[2].basis


def test_another_runtime_of_the_device_stands_for_one_that_nobody_measured() -> None:
    found = estimate(graph(), load_target("raspberry-pi-4"), runtime="onnxruntime")
    assert not found.calibrated and "onnxruntime was not measured" in found.basis
    assert width(found) > 4


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-4@1.5GHz", "jetson-agx-xavier"])
def test_the_same_runtime_stands_in_for_another_whatever_the_threads(name: str) -> None:
    target = load_target(name)
    found = [estimate(graph(), target, precision="int8", runtime="onnxruntime", threads=n) for n in (1, 2, 4)]
    assert all("onnxruntime was not measured, litert was" in each.basis for each in found)
    assert [each.milliseconds for each in found] == sorted((each.milliseconds for each in found), reverse=True)


def test_weights_beyond_the_memory_of_an_edge_tpu_are_streamed() -> None:
    coral = load_target("coral-dev-board")
    small, large = (
        replace(graph(), operators=(replace(graph().operators[-1], weights=weights),), quantized=True)
        for weights in (8 << 20, 16 << 20)
    )
    fits, streams = (estimate(each, coral) for each in (small, large))
    assert fits.calibrated and fits.operators[0].mostly != "streamed" == streams.operators[0].mostly
    assert streams.milliseconds - fits.milliseconds > 10  # 8 MiB at less than 0.8 GB/s


def test_element_wise_operators_of_a_gpu_are_passes_of_their_own() -> None:
    passes = Operator("add", "elementwise", 1000, 2000, 1000, 0)
    on_cpu, on_gpu = (quantities(Work.of([passes]), "fp16", Unit(kind))[0] for kind in ("cpu", "gpu"))
    assert on_cpu[COSTS.index("activations")] == on_gpu[COSTS.index("passes")] == 6000


def test_only_cpus_use_winograds_algorithm_within_groups() -> None:
    groups = Operator("3x3", "grouped", 9 * 8 * 32 * 100, 3200, 3200, 9 * 8 * 32, 4, 9, (8, 8))
    for kind, cost in {"cpu": "winograd", "gpu": "convolution", "npu": "convolution"}.items():
        asked = dict(zip(COSTS, quantities(Work.of([groups]), "fp32", Unit(kind), tile=0)[0], strict=True))
        assert asked[cost] == groups.macs and asked["group"] == 4


def test_the_padding_of_small_maps_weighs_on_a_cpus_depthwise_convolutions() -> None:
    small, large = (Operator("3x3", "depthwise", 9 * pixels, pixels, pixels, 9, 1, 9) for pixels in (16, 1600))
    depthwise = COSTS.index("depthwise")
    for kind, more in {"cpu": (6 / 4) ** 2 / (42 / 40) ** 2, "gpu": 1}.items():
        asked = quantities(Work.of([small, large]), "fp32", Unit(kind))[:, depthwise]
        assert asked[0] / asked[1] * 100 == pytest.approx(more)


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


def test_more_threads_than_cores_are_refused() -> None:
    """The scaling by threads knows no end: 64 of them on four cores were a fifth of the time of 4."""
    with pytest.raises(BadInputError, match="saw 5 threads on the 4 cores of raspberry-pi-4; allowed: 1 to 4"):
        estimate(graph(), load_target("raspberry-pi-4"), threads=5)


def test_quantities_count_bytes_by_precision() -> None:
    full, small = (quantities(Work.of(graph().operators), precision) for precision in ("fp32", "int8"))
    column = COSTS.index("activations")
    assert (full[:, column] == 4 * small[:, column]).all()


def test_ncnn_computes_fp32_files_in_fp16_where_the_cores_can() -> None:
    found = estimate(graph(), load_target("raspberry-pi-5"), runtime="ncnn", threads=4)
    assert found.calibrated
    assert found.precision == "fp32"
    assert "ncnn computes fp32 files in fp16" in found.basis


def test_all_cores_tell_nothing_of_threads_on_the_big_ones():
    one, four = (device_costs(load_target("orange-pi-5"), "fp16", runtime="ncnn", threads=n) for n in (1, 4))
    assert (one.nanoseconds > 1.5 * four.nanoseconds).all()


@pytest.mark.parametrize("name", ["raspberry-pi-4", "jetson-xavier-nx"])  # from measurements, and from a peak
def test_int8_dynamic_files_are_estimated_as_int8(name: str) -> None:
    target = load_target(name)
    found, static = (estimate(graph(), target, precision=precision) for precision in ("int8-dynamic", "int8"))
    assert found.milliseconds == static.milliseconds and found.interval == static.interval

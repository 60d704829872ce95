import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnxconverter_common.float16 import convert_float_to_float16
from torch import nn

from fsrp_edge.bench.results import BenchResults, Latency, Measurement
from fsrp_edge.cli.targets import targets
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_file, write_json
from fsrp_edge.targets.costs import pool_costs
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.graph_cost import read_graph
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.own_costs import calibrate
from fsrp_edge.targets.work import Work, quantities

X86 = load_target("generic-x86")
BOARD = """\
name: board
description: a board at two clocks
extends: generic-x86
sources: {sheet: its data sheet}
cpu:
  - {name: Core, cores: {value: 1, source: sheet}, clock_ghz: {value: 2.0, source: sheet}}
variants:
  slow:
    cpu:
      - {name: Core, cores: {value: 1, source: sheet}, clock_ghz: {value: 1.0, source: sheet}}
"""


def network(width: int, depth: int, kernel: int, groups: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, kernel, 1, kernel // 2, groups=groups), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def measurement(path: Path, milliseconds: float, **changed: object) -> Measurement:
    times = dict.fromkeys(("min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), milliseconds)
    latency = Latency.model_validate(
        {
            "model": path.name, "sha256": sha256_file(path), "device": "here", "runtime": "onnxruntime",
            "runtime_version": "1.32.0", "threads": 1, "warmup_runs": 1, "runs": 9, "init_ms": 1.0, "first_ms": 1.0,
            "std_ms": 0.0, "p50_interval_ms": (milliseconds, milliseconds),
        } | times | changed
    )  # fmt: skip
    return Measurement(address="local", latency=latency, rounds=())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several kinds of networks."""
    folder, paths = tmp_path_factory.mktemp("models"), []
    for width in (16, 48, 96):
        for depth, kernel, groups in ((1, 3, 1), (4, 1, 1), (3, 3, width)):
            paths.append(folder / f"net-{width}-{depth}-fp32.onnx")
            net = network(width, depth, kernel, groups).eval()
            torch.onnx.export(net, (torch.rand(1, 3, 64, 64),), paths[-1], dynamo=False)
    return paths


@pytest.fixture(scope="module")
def truth(models: list[Path]) -> dict[Path, float]:
    """Milliseconds on a device a third as fast as ncnn's average, whose depthwise convolutions are slower still."""
    costs = 3 * pool_costs("ncnn", "fp32")
    costs[2] *= 2
    return {
        path: float((quantities(Work.of(read_graph(path).operators), "fp32") @ costs).sum()) * 1e-6 for path in models
    }


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSRP_EDGE_PROFILES", str(tmp_path / "own"))
    return tmp_path / "own"


def write(path: Path, measurements: list[Measurement]) -> Path:
    write_json(path, BenchResults(fsrp_edge="0", measurements=tuple(measurements)).model_dump(mode="json"))
    return path


def test_networks_that_were_not_measured_are_estimated_afterwards(
    models: list[Path], truth: dict[Path, float], tmp_path: Path, own_folder: Path
) -> None:
    with pytest.raises(BadInputError, match="calibrate"):
        estimate(read_graph(models[0]), X86)
    known, unknown = models[::2], models[1::2]
    bench = write(tmp_path / "bench.json", [measurement(path, truth[path]) for path in known])
    arguments = [
        "calibrate",
        "generic-x86",
        "--from",
        str(bench),
        "--models",
        str(models[0].parent),
        "--json",
    ]
    (said,) = json.loads(CliRunner().invoke(targets, arguments, catch_exceptions=False).stdout)
    assert said["before"] is None and said["after"] < 0.03 and said["group"]["networks"] == len(known)
    assert (own_folder / "generic-x86.calibration.json").is_file()
    found = [estimate(read_graph(path), X86) for path in unknown]
    errors = [abs(each.milliseconds / truth[path] - 1) for each, path in zip(found, unknown, strict=True)]
    assert np.mean(errors) < 0.1
    assert all(each.calibrated and "your own measurements" in each.basis for each in found)
    # A second time there is something to compare with, for other threads too.
    with bench.open() as stream:
        assert json.load(stream)
    slower = [measurement(path, 2 * truth[path], threads=2) for path in known]
    again = write(tmp_path / "again.json", [*slower, *(measurement(path, truth[path]) for path in known)])
    arguments[3] = str(again)
    said = json.loads(CliRunner().invoke(targets, arguments, catch_exceptions=False).stdout)
    assert {each["group"]["threads"]: each["before"] < 1 for each in said} == {1: True, 2: True}


def test_disturbed_measurements_are_left_out_and_files_are_known_by_their_digest(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    disturbed = {"valid": False, "invalid_because": ("throttled",)}
    rows = [measurement(path, truth[path] * (9 if path == models[0] else 1), **(disturbed if path == models[0] else {}))
            for path in models]  # fmt: skip
    bench = write(tmp_path / "bench.json", rows)
    (fitted,) = calibrate(X86, [bench], [models[0].parent])
    assert fitted.group.networks == len(models) - 1 and fitted.after < 0.03
    every = write(tmp_path / "all.json", [measurement(path, 1.0, **disturbed) for path in models])
    with pytest.raises(BadInputError, match=rf"{len(models)} disturbed ones left out; --statistic min"):
        calibrate(X86, [every], [models[0].parent])
    with pytest.raises(BadInputError, match=r"net-16-1-fp32.onnx .* --models"):
        calibrate(X86, [write(tmp_path / "b.json", [measurement(models[0], 1.0)])], [])


def test_times_of_tensorflow_lites_own_program_are_those_of_its_runtime(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    rows = [measurement(path, truth[path], runtime="tflite-benchmark") for path in models]
    (fitted,) = calibrate(X86, [write(tmp_path / "bench.json", rows)], [models[0].parent])
    assert fitted.group.runtime == "litert"


def test_too_few_networks_are_refused(models: list[Path], tmp_path: Path) -> None:
    bench = write(tmp_path / "bench.json", [measurement(path, 1.0) for path in models[:2]])
    with pytest.raises(BadInputError, match="nothing was measured on 3 networks or more"):
        calibrate(X86, [bench], [models[0].parent])


@pytest.mark.parametrize("files", [1, 2])
def test_several_devices_are_not_fitted_as_one(
    models: list[Path], truth: dict[Path, float], tmp_path: Path, files: int
) -> None:
    here = [measurement(path, truth[path]) for path in models]
    there = [measurement(path, 10 * truth[path], device="local: a Raspberry Pi, 4 cores") for path in models]
    parts = [here + there] if files == 1 else [here, there]
    written = [write(tmp_path / f"{index}.json", part) for index, part in enumerate(parts)]
    with pytest.raises(BadInputError, match=r"2 devices \(here; local: a Raspberry Pi, 4 cores\); .* file of its own"):
        calibrate(X86, written, [models[0].parent])


def test_several_sets_of_cores_are_not_fitted_as_one(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    sets = [[measurement(path, truth[path], affinity=cores) for path in models] for cores in ("4-7", None)]
    written = [write(tmp_path / f"{index}.json", part) for index, part in enumerate(sets)]
    with pytest.raises(BadInputError, match=r"several sets of cores \(4-7, any\).*--affinity"):
        calibrate(X86, written, [models[0].parent])


def test_what_was_calibrated_under_a_variant_of_a_profile_by_path_is_scaled_for_the_others(
    models: list[Path], truth: dict[Path, float], tmp_path: Path, own_folder: Path
) -> None:
    profile = tmp_path / "anywhere" / "board.yaml"
    profile.parent.mkdir()
    profile.write_text(BOARD, encoding="utf-8")
    bench = write(tmp_path / "bench.json", [measurement(path, truth[path]) for path in models])
    arguments = ["calibrate", f"{profile}@slow", "--from", str(bench), "--models", str(models[0].parent)]
    said = CliRunner().invoke(targets, arguments, catch_exceptions=False).output
    assert "--threads" in said and "budgets are for" not in said
    graph = read_graph(models[0])
    slow, fast = (estimate(graph, load_target(f"{profile}{which}")) for which in ("@slow", ""))
    assert slow.calibrated and not fast.calibrated
    assert fast.milliseconds == pytest.approx(slow.milliseconds / 2) and "0.50 times" in fast.basis


def test_what_a_gpu_was_calibrated_with_holds_for_every_number_of_threads(
    models: list[Path], truth: dict[Path, float], tmp_path: Path, own_folder: Path
) -> None:
    nano = load_target("jetson-nano")  # 4 threads; `bench --runtime tensorrt` records 1
    taken = [measurement(path, truth[path], runtime="tensorrt") for path in models]
    bench = write(tmp_path / "bench.json", taken)
    arguments = ["calibrate", "jetson-nano", "--from", str(bench), "--models", str(models[0].parent)]
    said = CliRunner().invoke(targets, arguments, catch_exceptions=False).output
    assert "--runtime tensorrt\n" in said and "budgets are for" not in said
    found = estimate(read_graph(models[0]), nano, runtime="tensorrt")
    assert found.calibrated and "your own" in found.basis
    assert found.milliseconds == pytest.approx(truth[models[0]], rel=0.25)


def test_a_calibration_with_other_threads_than_the_target_s_says_so(
    models: list[Path], truth: dict[Path, float], tmp_path: Path, own_folder: Path
) -> None:
    bench = write(tmp_path / "bench.json", [measurement(path, truth[path]) for path in models])  # with 1 thread
    arguments = ["calibrate", "raspberry-pi-4", "--from", str(bench), "--models", str(models[0].parent)]
    said = CliRunner().invoke(targets, arguments, catch_exceptions=False).output
    assert "budgets are for 4 threads: measure with --threads 4 for them" in said
    assert "--runtime onnxruntime --threads 1" in said


def test_int8_dynamic_files_are_no_measurements_of_fp32(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    taken = []
    for path in models:
        for precision, faster in (("fp32", 1.0), ("int8-dynamic", 0.3)):
            file = path.with_name(path.name.replace("-fp32.onnx", f"-{precision}.tflite"))
            file.write_bytes(file.name.encode())
            taken.append(measurement(file, faster * truth[path], runtime="litert"))
    (fit,) = calibrate(X86, [write(tmp_path / "bench.json", taken)], [models[0].parent])
    assert (fit.group.precision, fit.group.networks) == ("fp32", len(models))


def test_folders_of_ncnn_are_found(models: list[Path], truth: dict[Path, float], tmp_path: Path) -> None:
    taken = []
    for path in models:
        folder = path.with_suffix(".ncnn")
        folder.mkdir()
        (folder / "model.param").write_text(path.name)
        taken.append(measurement(folder, truth[path], runtime="benchncnn"))
    (fit,) = calibrate(X86, [write(tmp_path / "bench.json", taken)], [models[0].parent])
    assert fit.group.runtime == "ncnn"


def test_a_runtime_that_the_profile_lacks_is_not_fitted(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    bench = write(tmp_path / "bench.json", [measurement(path, truth[path]) for path in models])
    with pytest.raises(BadInputError, match=r"jetson-nano has no runtime onnxruntime; it has tensorrt, litert, ncnn"):
        calibrate(load_target("jetson-nano"), [bench], [models[0].parent])
    both = [measurement(path, truth[path]) for path in models[:3]]
    both += [measurement(path, truth[path], runtime="litert") for path in models]
    fitted = calibrate(load_target("jetson-nano"), [write(tmp_path / "both.json", both)], [models[0].parent])
    assert [each.group.runtime for each in fitted] == ["litert"]


def test_half_precision_is_known_by_the_file_and_not_by_its_name(
    models: list[Path], truth: dict[Path, float], tmp_path: Path
) -> None:
    for path in models:
        half = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        onnx.save(half, tmp_path / path.name.replace("-fp32", "_half"))
    halves = sorted(tmp_path.glob("*_half.onnx"))
    bench = write(tmp_path / "bench.json", [measurement(path, 1.0) for path in halves])
    (fitted,) = calibrate(X86, [bench], [tmp_path])
    assert fitted.group.precision == "fp16"

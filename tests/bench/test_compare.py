import numpy as np
import pytest

from fsrp_edge.bench.compare import added, compare_results, lost
from fsrp_edge.bench.measure import _names
from fsrp_edge.bench.results import BenchResults, Failure, Latency, Measurement, Round, State
from fsrp_edge.bench.statistics import summarize
from fsrp_edge.errors import BadInputError

STATE = State(governor=None, clock_mhz=None, temperatures_c={}, throttled=None, load_1m=None, free_memory_mb=None)


def measurement(median: float, *, seed: int = 0, model: str = "net.onnx", address: str = "local") -> Measurement:
    times = tuple(np.random.default_rng(seed).normal(median, 0.05 * median, 200))
    latency = Latency(
        model=model, sha256="a" * 64, device=address, runtime="onnxruntime", runtime_version="1", threads=1,
        warmup_runs=1, runs=len(times), init_ms=1.0, first_ms=1.0, **summarize(times).model_dump(),
    )  # fmt: skip
    part = Round(
        warmup_ms=(),
        times_ms=times,
        before=STATE,
        during=(),
        after=STATE,
        foreign_cores=None,
        peak_memory_mb=None,
    )
    return Measurement(address=address, latency=latency, rounds=(part,))


def results(*measurements: Measurement) -> BenchResults:
    return BenchResults(fsrp_edge="0", measurements=measurements)


def test_a_slower_file_is_found_and_fails_the_gate():
    (found,) = compare_results(results(measurement(10.0)), results(measurement(12.0, seed=1)))
    assert found.change == pytest.approx(0.2, abs=0.02)
    assert found.interval[0] < found.change < found.interval[1]
    assert found.significant
    assert found.fails(0.05)
    assert not found.fails(0.5)


def test_noise_is_not_a_difference():
    (found,) = compare_results(results(measurement(10.0)), results(measurement(10.0, seed=1)))
    assert not found.significant
    assert not found.fails(0.0)


def test_faster_never_fails():
    (found,) = compare_results(results(measurement(10.0)), results(measurement(5.0, seed=1)))
    assert found.significant
    assert not found.fails(0.0)


def test_interval_covers_the_true_change_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        pair = results(measurement(10.0, seed=2 * trial)), results(measurement(11.0, seed=2 * trial + 1))
        (found,) = compare_results(*pair, seed=trial)
        covered += found.interval[0] <= 0.1 <= found.interval[1]
    assert covered / 200 == pytest.approx(0.95, abs=0.05)


def test_pairs_by_file_and_device():
    before = results(measurement(1.0), measurement(2.0, address="ssh://pi4"), measurement(3.0, model="gone.onnx"))
    after = results(
        measurement(2.1, seed=1, address="ssh://pi4"), measurement(1.1, seed=2), measurement(9, model="new")
    )
    pairs = [(one.before.p50_ms, one.after.device) for one in compare_results(before, after)]
    assert [device for _, device in pairs] == ["local", "ssh://pi4"]
    assert [round(median) for median, _ in pairs] == [1, 2]
    assert lost(before, after) == ["gone.onnx on local (onnxruntime, 1 thread) was measured only before"]
    assert added(before, after) == ["new on local (onnxruntime, 1 thread) was measured only after"]


def test_what_failed_is_not_compared():
    failed = Failure(address="ssh://pi4", message="net.onnx on ssh://pi4: killed")
    before, after = results(measurement(1.0)), BenchResults(fsrp_edge="0", measurements=(), failures=(failed,))
    for pair in ((before, after), (after, before), (after, after)):
        with pytest.raises(BadInputError, match=r"in common: .*a failure \(net\.onnx on ssh://pi4: killed\)"):
            compare_results(*pair)
    assert lost(before, after) == [
        "net.onnx on local (onnxruntime, 1 thread) was measured only before",
        "failed after: net.onnx on ssh://pi4: killed",
    ]
    assert added(before, after) == lost(after, before) == []
    assert added(after, before) == [
        "net.onnx on local (onnxruntime, 1 thread) was measured only after",
        "failed before: net.onnx on ssh://pi4: killed",
    ]


def test_what_was_measured_twice_in_a_run_is_paired_in_order():
    twice = results(measurement(10.0), measurement(20.0, seed=1))
    assert [one.change for one in compare_results(twice, twice)] == [0, 0]
    assert lost(twice, twice) == added(twice, twice) == []
    assert lost(twice, results(measurement(10.0)))[0].endswith("was measured only before")


def test_single_files_are_paired_whatever_their_names():
    (found,) = compare_results(results(measurement(4.0, model="a")), results(measurement(2.0, model="b")))
    assert (found.before.model, found.after.model) == ("a", "b")


def test_nothing_in_common_names_what_was_seen():
    two = results(measurement(1.0, model="a"), measurement(1.0, model="b"))
    with pytest.raises(BadInputError, match=r"a on local \(onnxruntime, 1 thread\), b on local.* and c on"):
        compare_results(two, results(measurement(1.0, model="c")))


def test_results_without_raw_times_are_refused():
    whole = measurement(1.0)
    bare = whole.model_copy(update={"rounds": ()})
    with pytest.raises(BadInputError, match=r"after: no raw times of net\.onnx on local .*; measure again with --out"):
        compare_results(results(whole), results(bare))


def test_a_fleet_with_one_file_each_is_paired_by_device():
    before = results(measurement(4.0, model="a"), measurement(6.0, model="a", address="ssh://pi4"))
    after = results(measurement(3.0, model="b", address="ssh://pi4"), measurement(2.0, model="b"))
    found = compare_results(before, after)
    assert [round(one.change, 1) for one in found] == [-0.5, -0.5]


def test_files_of_two_runs_keep_their_names_apart(tmp_path):
    files = [tmp_path / run / "artifacts" / "model.onnx" for run in ("a", "b")]
    assert _names(files) == ["a/artifacts/model.onnx", "b/artifacts/model.onnx"]
    assert _names([files[0], tmp_path / "a" / "dense" / "model.onnx", tmp_path / "x.onnx"]) == [
        "artifacts/model.onnx", "dense/model.onnx", "x.onnx",
    ]  # fmt: skip
    assert _names([files[0], files[0]]) == ["model.onnx", "model.onnx"]

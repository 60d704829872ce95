import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from fsrp_edge import progress
from fsrp_edge.bench import local
from fsrp_edge.bench.local import DEFAULT, OFFICIAL, QUICK, Method, measure_all, measure_local
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.files import sha256_file

SHORT = Method(warmup_runs=2, warmup_seconds=0, runs=5, seconds=0, rounds=2)


@pytest.fixture
def replace_agent(monkeypatch, tmp_path):
    """Puts another real process in the agent's place."""

    def replace(code: str) -> None:
        path = tmp_path / "agent.py"
        path.write_text(code, encoding="utf-8")
        monkeypatch.setattr(local, "AGENT", path)

    return replace


@pytest.mark.parametrize(
    ("file", "format_", "runtime"),
    [("onnx_file", "onnx", "onnxruntime"), ("tflite_file", "tflite", "litert")],
)
def test_measures_a_real_file(request, file, format_, runtime):
    path = request.getfixturevalue(file)
    latency, times = measure_local(path, format=format_, threads=1, method=SHORT)
    assert (latency.model, latency.sha256, latency.runtime) == (path.name, sha256_file(path), runtime)
    assert latency.runs == len(times) == 6  # 3 in each of 2 rounds
    assert latency.warmup_runs == 4
    assert min(times) == latency.min_ms <= latency.p50_ms <= latency.p99_ms <= max(times)
    assert latency.device.startswith("local: ")
    assert latency.valid == (not latency.invalid_because)


def test_rounds_alternate_between_the_files(onnx_file, tflite_file, monkeypatch):
    order = []
    real = local._measure_round

    def recorded(path, *rest):
        order.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(local, "_measure_round", recorded)
    measured = measure_all([(onnx_file, "onnx"), (tflite_file, "tflite")], threads=1, method=SHORT)
    assert order == ["tiny.onnx", "tiny.tflite"] * 2
    assert [latency.model for latency, _ in measured] == ["tiny.onnx", "tiny.tflite"]


def test_progress_is_told_for_each_round(onnx_file):
    seen = []

    class Listener:
        def track(self, items, description, total):
            for item in items:
                seen.append((description, total))
                yield item

        def log(self, message):
            seen.append(message)

    with progress.listen(Listener()):
        measure_local(onnx_file, format="onnx", threads=1, method=SHORT)
    assert seen == [("measure latency", 2)] * 2


class TestErrors:
    def test_missing_file(self, tmp_path):
        with pytest.raises(BadInputError, match="no such file"):
            measure_local(tmp_path / "none.onnx", format="onnx", threads=1)

    def test_no_threads(self, onnx_file):
        with pytest.raises(BadInputError, match="saw 0 threads"):
            measure_local(onnx_file, format="onnx", threads=0)

    def test_corrupt_model(self, onnx_file, tmp_path):
        path = tmp_path / "corrupt.onnx"
        path.write_bytes(onnx_file.read_bytes()[:100])
        with pytest.raises(ToolFailedError, match=r"corrupt.onnx: InvalidProtobuf: .*failed"):
            measure_local(path, format="onnx", threads=1, method=SHORT)

    def test_killed_agent(self, onnx_file, replace_agent):
        replace_agent(
            "import os, signal, sys\n"
            "print('last words', file=sys.stderr, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        with pytest.raises(ToolFailedError, match=r"tiny.onnx: .* was killed by SIGKILL: last words"):
            measure_local(onnx_file, format="onnx", threads=1, method=SHORT)

    def test_agent_that_fails(self, onnx_file, replace_agent):
        replace_agent("raise RuntimeError('broken')")
        with pytest.raises(ToolFailedError, match="ended with exit code 1: RuntimeError: broken"):
            measure_local(onnx_file, format="onnx", threads=1, method=SHORT)

    def test_agent_that_babbles(self, onnx_file, replace_agent):
        replace_agent("print('no event')")
        with pytest.raises(ToolFailedError, match="said 'no event', which is no event"):
            measure_local(onnx_file, format="onnx", threads=1, method=SHORT)

    def test_silent_agent_is_stopped(self, onnx_file, replace_agent, monkeypatch):
        replace_agent("import time; time.sleep(600)")
        monkeypatch.setattr(local, "SILENCE_SECONDS", 0.3)
        started = time.monotonic()
        with pytest.raises(ToolFailedError, match="no sign of life"):
            measure_local(onnx_file, format="onnx", threads=1, method=SHORT)
        assert time.monotonic() - started < 60

    def test_missing_runtime_names_the_extra(self, onnx_file, monkeypatch, tmp_path):
        (tmp_path / "onnxruntime.py").write_text("raise ImportError('not installed')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(
            ToolFailedError, match=r'not installed; install it with: pip install "fsrp-edge\[onnx\]"'
        ):
            measure_local(onnx_file, format="onnx", threads=1, method=SHORT)


def test_only_the_threads_asked_for_reach_the_child(onnx_file, replace_agent, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setenv("KEPT", "yes")
    environment = local._environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in environment
    assert environment["KEPT"] == "yes"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_interrupt_leaves_no_child_behind(tmp_path):
    model, agent, mark = tmp_path / "tiny.onnx", tmp_path / "agent.py", tmp_path / "pid"
    model.write_bytes(b"")
    agent.write_text(
        f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid()) + ';'); time.sleep(600)"
    )
    code = (
        "import sys; from pathlib import Path; from fsrp_edge.bench import local\n"
        "local.AGENT = Path(sys.argv[2]); local.measure_local(Path(sys.argv[1]), format='onnx', threads=1)"
    )
    command = [sys.executable, "-c", code, str(model), str(agent)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(local.__file__).parents[2])
    try:
        wait_for(lambda: mark.exists() and mark.read_text().endswith(";"))
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=60) != 0
        assert not alive(int(mark.read_text().rstrip(";")))
    finally:
        parent.kill()


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


QUIET = {
    "governor": "performance",
    "clock_mhz": 1500.0,
    "temperature_c": 50.0,
    "load_1m": 0.1,
    "throttled": 0,
}


def round_with(**changes) -> local._Round:
    result = {"before": copy.copy(QUIET), "after": copy.copy(QUIET), "foreign_cores": 0.0}
    for key, value in changes.items():
        if isinstance(value, dict):
            result[key].update(value)
        else:
            result[key] = value
    return local._Round({"cores": 4}, result)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"foreign_cores": 0.2}, None),
        ({"foreign_cores": None}, None),
        ({"foreign_cores": 1.5}, "other processes kept 1.5 of 4 cores busy"),
        ({"after": {"throttled": 0x4}}, "the device was throttled or under-voltage"),
        ({"before": {"throttled": 0x50000}}, None),  # has happened since boot, not now
        ({"after": {"governor": "powersave"}}, "the clock governor changed from performance to powersave"),
    ],
)
def test_disturbances(changes, reason):
    assert list(local._disturbances(round_with(**changes))) == ([reason] if reason else [])


def test_methods_keep_what_the_documentation_promises():
    assert (DEFAULT.warmup_runs, DEFAULT.warmup_seconds, DEFAULT.runs, DEFAULT.seconds) == (10, 0.5, 100, 10)
    assert QUICK.runs >= 50 and QUICK.seconds >= 2 and QUICK.warmup_runs >= 10
    assert OFFICIAL.runs >= 1024 and OFFICIAL.seconds >= 60
    with pytest.raises(ValidationError):
        Method(runs=0)
    with pytest.raises(ValidationError):
        Method(run=10)

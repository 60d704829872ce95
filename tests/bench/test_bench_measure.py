import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from fsrp_edge import progress
from fsrp_edge.bench import agent_process, fleet
from fsrp_edge.bench import measure as measuring
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.fleet import measure_fleet
from fsrp_edge.bench.measure import measure, measure_on, try_on
from fsrp_edge.bench.setup import DEFAULT, OFFICIAL, QUICK, Method, Setup
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.files import sha256_file

REPOSITORY = Path(agent_process.__file__).parents[2]
SHORT = Method(warmup_runs=2, warmup_seconds=0, runs=5, seconds=0, rounds=2)


@pytest.fixture
def replace_agent(monkeypatch, tmp_path):
    """Puts another real process in the agent's place."""

    def replace(code: str) -> None:
        path = tmp_path / "agent.py"
        path.write_text(code, encoding="utf-8")
        monkeypatch.setattr(agent_process, "AGENT", path)

    return replace


@pytest.mark.parametrize(
    ("file", "runtime"),
    [("onnx_file", "onnxruntime"), ("tflite_file", "litert")],
)
def test_measures_a_real_file(request, file, runtime):
    path = request.getfixturevalue(file)
    measurement = measure(path, threads=1, method=SHORT)
    latency, times = measurement.latency, measurement.times_ms
    assert (latency.model, latency.sha256, latency.runtime) == (path.name, sha256_file(path), runtime)
    assert latency.runs == len(times) == 6  # 3 in each of 2 rounds
    assert latency.warmup_runs == 4
    assert min(times) == latency.min_ms <= latency.p50_ms <= latency.p99_ms <= max(times)
    assert latency.device.startswith("local: ")
    assert latency.valid == (not latency.invalid_because)


def test_a_file_whose_name_begins_with_a_hyphen(onnx_file, tmp_path, monkeypatch):
    (tmp_path / "-x.onnx").write_bytes(onnx_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert measure(Path("-x.onnx"), method=SHORT).latency.model == "-x.onnx"


def test_rounds_alternate_between_the_files(onnx_file, tflite_file, monkeypatch):
    order = []
    real = measuring._measure_round

    def recorded(transport, job, *rest):
        order.append(job.path.name)
        return real(transport, job, *rest)

    monkeypatch.setattr(measuring, "_measure_round", recorded)
    measured = measure_on(parse_address("local"), [onnx_file, tflite_file], Setup(), method=SHORT)
    assert order == ["tiny.onnx", "tiny.tflite"] * 2
    assert [one.latency.model for one in measured] == ["tiny.onnx", "tiny.tflite"]


def test_files_of_one_name_are_told_apart_by_their_folders(onnx_file, tmp_path):
    paths = [onnx_file]
    for folder in ("dense", "pruned"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "model.onnx")
        paths[-1].write_bytes(onnx_file.read_bytes())
    method = SHORT.model_copy(update={"rounds": 1})
    measured = measure_on(parse_address("local"), paths, Setup(), method=method)
    assert [one.latency.model for one in measured] == ["tiny.onnx", "dense/model.onnx", "pruned/model.onnx"]


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
        measure(onnx_file, threads=1, method=SHORT)
    assert seen == [("measure latency, local", 2)] * 2


def test_a_device_without_its_interpreter_takes_no_other_along(onnx_file):
    addresses = [parse_address("local"), parse_address("local?python=/no/such")]
    results = measure_fleet(addresses, [onnx_file], Setup(), method=SHORT)
    assert [one.latency.model for one in results.measurements] == ["tiny.onnx"]
    (failure,) = results.failures
    assert failure.message == "cannot run '/no/such': No such file or directory; name another ?python="


GOOD = {"event": "hello", "cpu": "c", "cores": 4, "runtime": "onnxruntime", "runtime_version": "1"}
STATE = {
    "governor": None,
    "clock_mhz": None,
    "temperatures_c": {},
    "throttled": None,
    "load_1m": 0,
    "free_memory_mb": 1,
}
TIMED = {
    **{"event": "result", "warmup_ms": [], "times_ms": [1.0], "before": STATE, "during": [], "after": STATE},
    **{
        "power_w": None,
        "foreign_cores": 0,
        "peak_memory_mb": 1,
        "init_ms": 1,
        "first_ms": 1,
        "outputs": [],
        "classes": None,
    },
}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([{"event": "error"}], "said a 'error' that makes no sense: message: Field required"),
        ([{"event": "hello"}, {"event": "error", "message": "m"}], "said a 'hello' that makes no sense: cpu: Field"),
        ([{"event": "hello"}, {"event": "result"}], "said a 'hello' that makes no sense: cpu: Field required"),
        ([TIMED], "said no 'hello', but result"),
        ([GOOD, {**TIMED, "times_ms": []}], "times_ms: Tuple should have at least 1 item"),
        ([GOOD, {**TIMED, "times_ms": [float("nan")]}], r"times_ms.0: Input should be a finite number .*; saw nan"),
        ([GOOD, {**TIMED, "before": {}}], "before.governor: Field required"),
        ([GOOD, {**TIMED, "outputs": [[1, 2], [1]]}], "outputs: outputs of several lengths"),
        ([GOOD, {**TIMED, "classes": [1]}], "the device told the classes of 1 images, and was sent 0"),
    ],
)
def test_what_makes_no_sense_is_a_failure_of_that_device_alone(onnx_file, tmp_path, said, message):
    odd = tmp_path / "python"
    odd.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(map(json.dumps, said)) + "\nEND\n")
    odd.chmod(0o755)
    addresses = [parse_address("local"), parse_address(f"local?python={odd}")]
    results = measure_fleet(addresses, [onnx_file], Setup(), method=SHORT.model_copy(update={"rounds": 1}))
    assert [one.latency.model for one in results.measurements] == ["tiny.onnx"]
    (failure,) = results.failures
    assert re.match(f"tiny.onnx: .*{message}", failure.message), failure.message


def test_whatever_goes_wrong_with_one_device_the_others_results_are_kept(onnx_file, monkeypatch):
    def tried(address, *given, **named):
        if address.kind == "ssh":
            raise KeyError("model")
        return try_on(address, *given, **named)

    monkeypatch.setattr(fleet, "try_on", tried)
    addresses = [parse_address("ssh://phone"), parse_address("local")]
    results = measure_fleet(addresses, [onnx_file], Setup(), method=SHORT)
    assert [one.latency.model for one in results.measurements] == ["tiny.onnx"]
    assert [one.message for one in results.failures] == ["ssh://phone: unexpected KeyError: 'model'"]


class TestErrors:
    def test_missing_file(self, tmp_path):
        with pytest.raises(BadInputError, match="no such file"):
            measure(tmp_path / "none.onnx", threads=1)

    @pytest.mark.parametrize(
        ("name", "present", "message"),
        [
            ("net.onnx", ["net.onnx"], r"net\.onnx is a folder; only ncnn's are"),
            ("net.ncnn", ["model.param"], r"net\.ncnn lacks model\.bin; an ncnn model is a folder of"),
            ("net.ncnn", None, r"net\.ncnn lacks model\.param and model\.bin; an ncnn model is a folder of"),
        ],
    )
    def test_incomplete_files_are_told_before_a_device_is_asked(self, tmp_path, name, present, message):
        path = tmp_path / name
        if present is None:
            path.write_bytes(b"")
        else:
            path.mkdir()
            for each in present:
                (path / each).write_bytes(b"")
        setup = Setup(input_shape=(3, 16, 16))
        with pytest.raises(BadInputError, match=message):
            measure_on(parse_address("ssh://127.0.0.1:1"), [path], setup, method=SHORT)

    def test_no_threads(self, onnx_file):
        with pytest.raises(BadInputError, match="saw 0 threads"):
            measure(onnx_file, threads=0)

    def test_corrupt_model(self, onnx_file, tmp_path):
        path = tmp_path / "corrupt.onnx"
        path.write_bytes(onnx_file.read_bytes()[:100])
        with pytest.raises(ToolFailedError, match=r"corrupt.onnx: onnxruntime [\d.]+: InvalidProtobuf: .*failed"):
            measure(path, threads=1, method=SHORT)

    def test_killed_agent(self, onnx_file, replace_agent):
        replace_agent(
            "import os, signal, sys\n"
            "print('last words', file=sys.stderr, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        with pytest.raises(ToolFailedError, match=r"tiny.onnx: .* was killed by SIGKILL: last words"):
            measure(onnx_file, threads=1, method=SHORT)

    def test_agent_that_fails(self, onnx_file, replace_agent):
        replace_agent("raise RuntimeError('broken')")
        with pytest.raises(ToolFailedError, match="ended with exit code 1: RuntimeError: broken"):
            measure(onnx_file, threads=1, method=SHORT)

    @pytest.mark.parametrize("said", ["no event", "12", "null", "{}"])
    def test_agent_that_babbles(self, onnx_file, replace_agent, said):
        replace_agent(f"print({said!r})")
        with pytest.raises(ToolFailedError, match=f"said '{said}', which is no event"):
            measure(onnx_file, threads=1, method=SHORT)

    @pytest.mark.parametrize("said", ["Welcome!", "12", "null", '["event"]'])
    def test_what_a_login_script_says_is_no_event(self, onnx_file, replace_agent, said):
        real = agent_process.AGENT.read_text(encoding="utf-8")
        replace_agent(real.replace("\nimport argparse\n", f"\nprint({said!r}, flush=True)\nimport argparse\n"))
        method = SHORT.model_copy(update={"rounds": 1})
        assert measure(onnx_file, threads=1, method=method).latency.runs == 5

    def test_silent_agent_is_stopped(self, onnx_file, replace_agent, monkeypatch):
        replace_agent("import time; time.sleep(600)")
        monkeypatch.setattr(agent_process, "SILENCE_SECONDS", 0.3)
        started = time.monotonic()
        with pytest.raises(ToolFailedError, match="no sign of life"):
            measure(onnx_file, threads=1, method=SHORT)
        assert time.monotonic() - started < 60

    def test_an_agent_that_does_not_end_is_stopped(self, onnx_file, replace_agent, monkeypatch):
        replace_agent("import os, time; os.close(1); time.sleep(600)")
        monkeypatch.setattr(agent_process, "EXIT_SECONDS", 0.3)
        with pytest.raises(ToolFailedError, match="closed its output, but did not end; stopped"):
            measure(onnx_file, threads=1, method=SHORT)

    def test_what_was_said_before_a_runtime_hung_at_its_end_counts(self, onnx_file, replace_agent, monkeypatch):
        hang = "    events.close()\n    time.sleep(600)\n    return 0\n\n\nif __name__"
        replace_agent(agent_process.AGENT.read_text().replace("    return 0\n\n\nif __name__", hang))
        monkeypatch.setattr(agent_process, "EXIT_SECONDS", 0.3)
        assert measure(onnx_file, threads=1, method=SHORT).latency.runs == 6

    def test_waiting_for_an_end_is_stopped(self, onnx_file, replace_agent, tmp_path):
        closed, stop = tmp_path / "closed", threading.Event()
        replace_agent(f"import os, time; os.close(1); open({str(closed)!r}, 'w').close(); time.sleep(600)")
        with ThreadPoolExecutor() as pool:
            future = pool.submit(
                try_on, parse_address("local"), [onnx_file], Setup(), method=SHORT, stop=stop, keep_going=False
            )
            wait_for(closed.exists)
            stop.set()
            with pytest.raises(ToolFailedError, match="stopped"):
                future.result(timeout=20)

    def test_missing_runtime_names_the_extra(self, onnx_file, monkeypatch, tmp_path):
        (tmp_path / "onnxruntime.py").write_text("raise ImportError('not installed')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(
            ToolFailedError, match=r"not installed; install it there with: .* -m pip install onnxruntime"
        ):
            measure(onnx_file, threads=1, method=SHORT)


@pytest.fixture
def interruptible(tmp_path):
    """A process that measures with another agent, whose file `pid` says who it is, and what it says from then on."""
    model, agent, mark = tmp_path / "tiny.onnx", tmp_path / "agent.py", tmp_path / "pid"
    model.write_bytes(b"")
    parents = []

    def start(code: str) -> tuple[subprocess.Popen, Path]:
        agent.write_text(
            f"import os, signal, time\ndef say(text): open({str(mark)!r}, 'a').write(text + ';')\n"
            f"{code}\nsay(str(os.getpid()))\nwhile True: time.sleep(600)"
        )
        measuring_it = (
            "import sys; from pathlib import Path; from fsrp_edge.bench import agent_process, measure\n"
            "agent_process.AGENT = Path(sys.argv[2]); measure.measure(Path(sys.argv[1]))"
        )
        command = [sys.executable, "-c", measuring_it, str(model), str(agent)]
        parents.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=REPOSITORY))
        wait_for(lambda: mark.exists() and mark.read_text().endswith(";"))
        return parents[0], mark

    yield start
    for parent in parents:
        parent.kill()
        if alive(pid := int(mark.read_text().partition(";")[0])):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_interrupt_leaves_no_child_behind(interruptible):
    parent, mark = interruptible("")
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) != 0
    assert not alive(int(mark.read_text().rstrip(";")))


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_interrupt_ends_a_child_that_does_not_listen(interruptible):
    parent, mark = interruptible("signal.signal(signal.SIGTERM, lambda *_: say('asked'))")
    parent.send_signal(signal.SIGINT)
    wait_for(lambda: mark.read_text().endswith("asked;"))
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) != 0
    assert not alive(int(mark.read_text().partition(";")[0]))


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


def test_methods_keep_what_the_documentation_promises():
    assert (DEFAULT.warmup_runs, DEFAULT.warmup_seconds, DEFAULT.runs, DEFAULT.seconds) == (10, 0.5, 100, 10)
    assert QUICK.runs >= 50 and QUICK.seconds >= 2 and QUICK.warmup_runs >= 10
    assert OFFICIAL.runs >= 1024 and OFFICIAL.seconds >= 60
    with pytest.raises(ValidationError):
        Method(runs=0)
    with pytest.raises(ValidationError):
        Method(run=10)

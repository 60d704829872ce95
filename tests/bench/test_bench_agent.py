import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsrp_edge.bench import agent
from fsrp_edge.bench.agent_process import AGENT
from fsrp_edge.bench.results import State
from fsrp_edge.runtimes import open_session
from tests.nets import as_classifier

SHORT = ["--warmup-runs", "2", "--warmup-seconds", "0", "--runs", "5", "--seconds", "0"]


def interpreters() -> list[str]:
    """Pythons of devices, 3.6 and newer, on the path or of pyenv, one of each version."""
    found = {}
    for minor in range(6, 14):
        paths = [shutil.which(f"python3.{minor}")]
        paths += [str(path) for path in Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python")]
        found[minor] = next((path for path in paths if path and answers(path)), None)
    return [path for path in found.values() if path]


def answers(python: str) -> bool:
    """Whether an interpreter starts; pyenv leaves stand-ins on the path that do not."""
    return subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0


def run(*arguments: object, python: str = sys.executable, agent_file: Path = AGENT):
    """The exit code, the events, and what went to the standard error."""
    command = [python, str(agent_file), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def beside_stand_ins(folder: Path) -> Path:
    """A script that runs the agent where modules of `folder` come before the installed ones."""
    script = folder / "start.py"
    script.write_text(
        f"import runpy, sys; sys.argv[0] = {str(AGENT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return script


@pytest.mark.parametrize(("file", "runtime"), [("onnx_file", "onnxruntime"), ("tflite_file", "litert")])
def test_measures_a_real_file(request, file, runtime):
    code, events, _ = run("--model", request.getfixturevalue(file), "--runtime", runtime, *SHORT)
    assert code == 0
    assert events[0]["event"] == "hello"
    assert events[0]["runtime"] == runtime
    assert events[0]["runtime_version"][0].isdigit()
    result = events[-1]
    assert result["event"] == "result"
    assert len(result["warmup_ms"]) == 2
    assert len(result["times_ms"]) == 5
    assert all(time > 0 for time in [result["init_ms"], result["first_ms"], *result["times_ms"]])
    assert State.model_validate(result["before"]).free_memory_mb is None or result["before"]["free_memory_mb"] > 1
    assert 10 < result["peak_memory_mb"] < 200  # an interpreter with numpy and a runtime, not the tests' process


def test_seconds_are_a_minimum_and_progress_is_told(onnx_file):
    _, events, _ = run("--model", onnx_file, "--runtime", "onnxruntime", *SHORT[:6], "--seconds", 1.2)
    assert len(events[-1]["times_ms"]) > 5
    assert [event["phase"] for event in events if event["event"] == "progress"][:1] == ["steady"]


def test_a_long_measurement_is_not_told_as_memory_of_the_model(onnx_file, tmp_path):
    """A million times as a list of floats are 32 MB, and as JSON 20 more."""
    (tmp_path / "onnxruntime.py").write_text(
        "__version__ = '1'\nclass SessionOptions:\n    def add_session_config_entry(self, *a): pass\n"
        "class Input:\n    name, shape, type = 'pixels', [1, 3, 4, 4], 'tensor(float)'\n"
        "class InferenceSession:\n    def __init__(self, *a, **k): pass\n"
        "    def get_inputs(self): return [Input]\n    def run(self, *a): pass\n"
    )
    script, peaks = beside_stand_ins(tmp_path), []
    for runs in (5, 1_000_000):
        given = ("--model", onnx_file, "--runtime", "onnxruntime", *SHORT, "--runs", runs)
        code, events, errors = run(*given, agent_file=script)
        assert (code, len(events[-1]["times_ms"])) == (0, runs), errors
        peaks.append(events[-1]["peak_memory_mb"])
    assert peaks[1] < peaks[0] + 24


def test_runs_alone_in_a_folder(onnx_file, tmp_path):
    copy = shutil.copy(AGENT, tmp_path / "agent.py")
    code, events, _ = run("--model", onnx_file, "--runtime", "onnxruntime", *SHORT, agent_file=copy)
    assert (code, events[-1]["event"]) == (0, "result")


def test_open_batch_is_one_and_other_open_axes_are_refused(write_onnx, tmp_path):
    path = write_onnx(tmp_path / "batch.onnx", ("batch", 3, 16, 16))
    assert run("--model", path, "--runtime", "onnxruntime", *SHORT)[0] == 0
    path = write_onnx(tmp_path / "size.onnx", (1, 3, "height", "width"))
    code, events, _ = run("--model", path, "--runtime", "onnxruntime", *SHORT)
    assert (code, events[-1]["event"]) == (3, "error")
    assert "[1, 3, 'height', 'width']" in events[-1]["message"]


@pytest.mark.parametrize(("kind", "code"), [("UINT8", 0), ("INT8", 0), ("FLOAT16", 0), ("INT64", 3)])
def test_number_types_of_the_input(write_onnx, tmp_path, kind, code):
    import onnx

    path = write_onnx(tmp_path / "typed.onnx", kind=getattr(onnx.TensorProto, kind))
    assert run("--model", path, "--runtime", "onnxruntime", *SHORT)[0] == code


def test_int8_sums_do_not_overflow(tmp_path):
    """As they did by default on x86 without VNNI, where two products of bytes are added in 16 bits."""
    import onnx
    from onnx import helper, numpy_helper

    channels = 64
    constants = {"step": np.float32(1 / 255), "one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0)}
    constants["weight"] = np.full((1, channels, 1, 1), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", "step", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "none"], ["factors"]),
        helper.make_node("Conv", ["values", "factors"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "coarse", "zero"], ["coarsely"]),
        helper.make_node("DequantizeLinear", ["coarsely", "coarse", "zero"], ["logits"]),
    ]
    constants["coarse"] = np.float32(channels * 127 / 200)
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, count, 1, 1])
        for name, count in (("pixels", channels), ("logits", 1))
    ]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "sums", ports[:1], ports[1:], initial)
    path, white = tmp_path / "sums.onnx", np.ones((1, channels, 1, 1), np.float32)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    np.savez(tmp_path / "white.npz", pixels=white)
    _, events, _ = run("--model", path, "--runtime", "onnxruntime", *SHORT, "--outputs", tmp_path / "white.npz")
    assert events[-1]["outputs"] == [[pytest.approx(channels * 127)]]
    assert open_session(path).run(white).ravel() == pytest.approx(channels * 127)


def test_int8_layers_that_share_weights_are_measured(tmp_path):
    """onnxruntime refuses them where its sums shall be exact."""
    import torch

    from fsrp_edge.data.images import ArraySource, ImageSet
    from fsrp_edge.exporting.onnx import Int8Quantizer, export_onnx

    shared = torch.nn.Conv2d(3, 3, 3, padding=1)
    network = torch.nn.Sequential(shared, torch.nn.ReLU(), shared, torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    export_onnx(as_classifier(network, shape=(3, 16, 16)), tmp_path / "fp32.onnx", opset=17, ir_version=8)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), np.uint8)
    images = ImageSet.of("noise", ArraySource(pixels), torch.zeros(4, dtype=torch.int64))
    path = tmp_path / "int8.onnx"
    Int8Quantizer(tmp_path / "fp32.onnx", tmp_path, activation="int8", calibration=images).quantize(path)
    assert run("--model", path, "--runtime", "onnxruntime", *SHORT)[0] == 0


def test_inputs_are_pixels_and_always_the_same():
    specifications = [("a", (1, 3, 8, 8), "float32"), ("b", (1, 8, 8, 3), "uint8"), ("c", (1, 8), "int8")]
    inputs, again = (agent.make_inputs(specifications) for _ in range(2))
    assert all((inputs[name] == again[name]).all() for name in inputs)
    assert 0 <= inputs["a"].min() < inputs["a"].max() <= 1
    assert inputs["b"].max() > 127
    assert inputs["c"].min() < 0


class TestErrors:
    def test_missing_file(self, tmp_path):
        code, events, _ = run("--model", tmp_path / "none.onnx", "--runtime", "onnxruntime")
        assert (code, events[-1]["message"]) == (3, f"no such file: {tmp_path}/none.onnx")

    def test_unknown_runtime(self, onnx_file):
        code, events, _ = run("--model", onnx_file, "--runtime", "onnx")
        assert (code, events[-1]["event"]) == (3, "error")
        assert "unknown runtime 'onnx'; allowed: litert, ncnn, onnxruntime, tensorrt" in events[-1]["message"]

    @pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
    def test_corrupt_model(self, request, tmp_path, runtime):
        # Asked for only because it skips where the runtime is not installed.
        request.getfixturevalue("onnx_file" if runtime == "onnxruntime" else "tflite_file")
        path = tmp_path / "corrupt"
        path.write_bytes(b"not a model" * 100)
        code, events, _ = run("--model", path, "--runtime", runtime)
        assert (code, [event["event"] for event in events]) == (3, ["hello", "error"])

    def test_missing_numpy(self, onnx_file, tmp_path):
        (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
        script = beside_stand_ins(tmp_path)
        code, events, _ = run("--model", onnx_file, "--runtime", "onnxruntime", agent_file=script)
        assert (code, events[-1]["install"]) == (3, "numpy")
        assert "no numpy here" in events[-1]["message"]


def test_what_a_runtime_prints_does_not_mix_with_the_events(onnx_file, tmp_path):
    package = tmp_path / "onnxruntime.py"
    package.write_text("import os\nos.write(1, b'native noise\\n')\nraise ImportError('gone')\n")
    script = beside_stand_ins(tmp_path)
    code, events, errors = run("--model", onnx_file, "--runtime", "onnxruntime", agent_file=script)
    assert (code, [event["event"] for event in events]) == (3, ["error"])
    assert "native noise" in errors


def test_ends_when_nobody_listens_any_more(onnx_file):
    command = [
        sys.executable,
        str(AGENT),
        "--model",
        str(onnx_file),
        "--runtime",
        "onnxruntime",
        "--seconds",
        "600",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(timeout=60) == 3
    finally:
        child.kill()


def test_is_written_for_python_3_6():
    ast.parse(AGENT.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.skipif(not interpreters(), reason="no other Python on this machine")
def test_other_interpreters_run_it(onnx_file):
    """Each describes its machine; those without numpy or the runtime say so, the others measure."""
    for python in interpreters():
        code, events, errors = run("--describe", python=python)
        assert (code, [event["event"] for event in events]) == (0, ["device"]), errors
        code, events, errors = run("--model", onnx_file, "--runtime", "onnxruntime", *SHORT, python=python)
        assert (code, events[-1]["event"]) in {(0, "result"), (3, "error")}, errors
        assert events[-1]["event"] == "result" or events[-1]["install"]


def test_busy_neighbours_are_noticed():
    before = agent.Machine().busy_seconds()
    if before is None:
        pytest.skip("this system has no /proc/stat")
    busy = "sum(range(20_000_000)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
        neighbour.stdout.readline()
        after = agent.Machine().busy_seconds()  # while it lives: once awaited, a child's time is our own
        neighbour.communicate(b"\n")
    assert agent.foreign_cores(before, after, 1.0) > 0.05


def test_foreign_cores_leaves_out_what_the_process_used_itself():
    assert agent.foreign_cores((100.0, 5.0), (104.0, 8.0), 2.0) == 0.5
    assert agent.foreign_cores((100.0, 5.0), (100.0, 5.01), 2.0) == 0.0
    assert agent.foreign_cores(None, None, 2.0) is None

"""Runtimes that come as programs of their own, and ncnn: real where it runs here, else stand-ins that record calls."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fsrp_edge.bench import agent, tools
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.agent_process import AGENT, run_tool
from fsrp_edge.bench.measure import measure, measure_on, try_on
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.bench.transport import open_transport
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.errors import BadInputError, ToolFailedError

SHORT = Method(warmup_runs=2, warmup_seconds=0.25, runs=6, seconds=2, rounds=2)
# https://github.com/tensorflow/tensorflow/issues/73862, and of an Android phone, …/issues/42507
LINUX = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [mobilenet_v1_1.0_224.tflite]
INFO: Signature to run: []
INFO: Loaded model mobilenet_v1_1.0_224.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 12.75ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=37 first=14744 curr=15520 min=13164 max=18295 avg=13764.3 std=967

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=74 first=14850 curr=13315 min=13105 max=15765 avg=13520.2 std=470

INFO: Inference timings in us: Init: 12750, First inference: 14744, Warmup (avg): 13764.3, Inference (avg): 13520.2
"""
ANDROID = """STARTING!
Duplicate flags: num_threads
Num threads: [4]
Graph: [/data/local/tmp/espcn_harmonic_2x_slim_w_cl.tflite]
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory
Peak memory footprint (MB): init=0 overall=12.8672
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program before all others on the path: Python code that finds its arguments in `given`, recorded in a file."""

    def make(name: str, code: str) -> Path:
        folder = tmp_path / "tools"
        folder.mkdir(exist_ok=True)
        log = folder / f"{name}.log"
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport json, sys\ngiven = sys.argv[1:]\n"
            f"open({str(log)!r}, 'a').write(json.dumps(given) + '\\n')\n{code}"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return log

    return make


def calls(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def wait_for(look: Callable[[], int | None]) -> int:
    end = time.monotonic() + 60
    while (found := look()) is None:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class TestTfliteBenchmark:
    def test_reads_recorded_output(self):
        said = tools.parse_benchmark_model(LINUX, "net")
        assert (said["init_ms"], said["first_ms"]) == (12.75, 14.744)
        assert (said["times_ms"], said["averaged"]) == ((13.5202,), 74)
        assert said["peak_memory_mb"] is None
        said = tools.parse_benchmark_model(ANDROID, "net")
        assert (said["times_ms"], said["averaged"], said["peak_memory_mb"]) == ((33.2094,), 50, 12.8672)

    def test_a_number_that_is_none_is_an_error(self):
        with pytest.raises(ToolFailedError, match="told no timings"):
            tools.parse_benchmark_model(LINUX.replace("12750", "1.2.3"), "net")

    def test_other_output_is_an_error_with_its_last_line(self):
        with pytest.raises(ToolFailedError, match=r"net: .*it said: Failed to initialize the interpreter"):
            tools.parse_benchmark_model("STARTING!\nFailed to initialize the interpreter\n", "net")

    def test_over_adb_without_python_on_the_phone(self, stand_in, tflite_file, tmp_path):
        temporary = tmp_path / "data"
        temporary.mkdir()
        phone = tmp_path / "benchmark_model"
        phone.write_text(f"#!/bin/sh\necho \"$0 $*\" >> {tmp_path}/calls\ncat <<'END'\n{ANDROID}END\n")
        phone.chmod(0o755)
        stand_in(
            "adb",
            "import os\nassert given[:4] == ['-s', 'R58', 'shell', '-T'], given\n"
            f"command = given[4].replace('/data/local/tmp', {str(temporary)!r})\n"
            "assert 'python3' not in command\nos.execvp('sh', ['sh', '-c', command])\n",
        )
        address = parse_address(f"adb:R58?tool={phone}")
        setup = Setup("tflite-benchmark", threads=4, affinity="0")
        (measurement,) = measure_on(address, [tflite_file], setup, method=SHORT)
        latency = measurement.latency
        assert (latency.runtime, latency.runs_averaged, latency.p50_ms) == ("tflite-benchmark", 50, 33.2094)
        assert (latency.runs, len(measurement.rounds)) == (500, tools.ROUNDS)
        assert measurement.rounds[0].before.free_memory_mb > 1
        assert measurement.agreement_note == "benchmark_model tells none"
        lines = (tmp_path / "calls").read_text().splitlines()
        assert len(lines) == tools.ROUNDS
        for option in ("--num_threads=4", "--num_runs=1", "--min_secs=0.2", "--warmup_runs=2"):
            assert option in lines[0].split()
        assert list(temporary.iterdir()) == []

    def test_cores_become_a_mask(self, stand_in, tflite_file):
        log = stand_in("taskset", f"print({LINUX!r})")
        setup = Setup("tflite-benchmark", affinity="4-7")
        measure_on(parse_address("local"), [tflite_file], setup, method=SHORT)
        assert calls(log)[0][:2] == ["f0", "benchmark_model"]

    def test_throttling_between_two_looks_is_seen(self, stand_in, tflite_file):
        """On a Raspberry Pi: nothing before, and a bit that stays since then after it."""
        log = stand_in("benchmark_model", f"print({LINUX!r})")
        bits = f"import os\nbits = '0x40000' if os.path.exists({str(log)!r}) else '0x0'\n"
        stand_in("vcgencmd", f"assert given == ['get_throttled']\n{bits}print('throttled=' + bits)")
        measurement = measure(tflite_file, runtime="tflite-benchmark", method=SHORT)
        first = measurement.rounds[0]
        assert (first.before.throttled, first.after.throttled) == (0, 0x40000)
        assert measurement.latency.invalid_because == ("the device was throttled",)

    @pytest.mark.parametrize("said", ["throttled=0x0", "", "error"])
    def test_what_nobody_watched_is_told(self, stand_in, tflite_file, said, capfd):
        stand_in("vcgencmd", f"print({said!r})")
        stand_in("benchmark_model", f"print({LINUX!r})")
        assert run(cli, ["bench", str(tflite_file), "--runtime", "tflite-benchmark", "--quick"]) == 0
        told = " ".join(capfd.readouterr().out.split())
        assert "the device's state was read before and after each, not while it ran" in told
        assert ("whether it was throttled it does not tell" in told) is (said != "throttled=0x0")

    def test_missing_program(self, tflite_file):
        with pytest.raises(ToolFailedError, match=r"/nowhere/b: not found; name its path with \?tool=PATH"):
            measure(tflite_file, device="local?tool=/nowhere/b", runtime="tflite-benchmark", method=SHORT)
        with pytest.raises(ToolFailedError, match=r"no such program: taskset: .* /nowhere/b: No such file"):
            address, setup = parse_address("local?tool=/nowhere/b"), Setup("tflite-benchmark", affinity="0")
            measure_on(address, [tflite_file], setup, method=SHORT)


# What trtexec says and writes: the banner and options as printed by 8.2 to 10.5 (`trtexec --help`), times in the format
# of its exportJSONTrace (NVIDIA/TensorRT, samples/common/sampleReporting.cpp), which once held the warm-up too.
TRTEXEC = """
named = dict(word.lstrip("-").partition("=")[::2] for word in given)
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] # trtexec " + " ".join(given))
if "help" in named:
    print("  --useSpinWait               Actively synchronize on GPU events.")
    print("  --useCudaGraph              Use CUDA graph to capture engine execution")
if "onnx" in named:
    print("[01/02/2026-10:00:00] [I] Input binding for pixels with dimensions 1x3x16x16 is created.")
    open(named["saveEngine"], "w").write("engine")
if "loadEngine" in named:
    assert open(named["loadEngine"]).read() == "engine"
if "exportTimes" in named:
    queries = [
        {"startEnqMs": at, "endEnqMs": at + 0.1, "startH2dMs": at, "endH2dMs": at + 0.25, "startComputeMs": at + 0.25,
         "endComputeMs": at + 1.25, "startD2hMs": at + 1.25, "endD2hMs": at + 1.5, "h2dMs": 0.25, "computeMs": 1.0,
         "d2hMs": 0.25, "latencyMs": 1.5 if at >= 250 else 9.0}
        for at in range(0, 500, 5)
    ]
    json.dump(queries, open(named["exportTimes"], "w"))
if "exportOutput" in named:
    name, path = named["loadInputs"].split(":", 1)
    assert name == "pixels" and len(open(path, "rb").read()) == 3 * 16 * 16 * 4
    json.dump([{"name": "logits", "dimensions": "1x2", "values": [0.5, -1.5]}], open(named["exportOutput"], "w"))
"""


class TestTensorRT:
    def test_builds_then_times_with_every_default_set(self, stand_in, onnx_file):
        log = stand_in("trtexec", TRTEXEC)
        measurement = measure(onnx_file, runtime="tensorrt", method=SHORT)
        latency = measurement.latency
        assert (latency.runtime, latency.runtime_version) == ("tensorrt", "10.5.0")
        assert (latency.p50_ms, latency.first_ms) == (1.5, 9.0)
        assert latency.runs == 2 * 50  # without the queries of the warm-up
        asked, build, timing = calls(log)[:3]
        assert asked == ["--help"]
        assert build[0] == f"--onnx={onnx_file}"
        assert {"--useCudaGraph", "--useSpinWait"} <= {*build} & {*timing}
        assert {"--iterations=3", "--duration=1", "--warmUp=250"} < {*timing}
        assert not {"--fp16", "--int8"} & {*build}
        engine = Path(build[1].removeprefix("--saveEngine="))
        assert f"--loadEngine={engine}" in timing
        assert not engine.parent.exists()

    def test_outputs_for_given_inputs(self, stand_in, onnx_file):
        stand_in("trtexec", TRTEXEC)
        assert outputs_of(onnx_file, "tensorrt") == [[0.5, -1.5]]

    def test_half_precision_is_allowed_where_the_file_uses_it(self, stand_in, onnx_file, tmp_path):
        import onnx
        from onnxconverter_common import float16

        log = stand_in("trtexec", TRTEXEC)
        half = tmp_path / "half.onnx"
        onnx.save(float16.convert_float_to_float16(onnx.load(onnx_file), keep_io_types=True), half)
        measure(half, runtime="tensorrt", method=SHORT)
        assert "--fp16" in calls(log)[1]

    @pytest.mark.parametrize(
        ("banner", "version"),
        [
            ("[TensorRT v8201]", "8.2.1"),
            ("[TensorRT v100300]", "10.3.0"),
            ("[TensorRT v8.6.1]", "8.6.1"),
            ("", "unknown"),
        ],
    )
    def test_version(self, banner, version):
        assert agent.TensorRT.version_in(f"&&&& RUNNING TensorRT.trtexec {banner} # trtexec --help") == version

    def test_what_failed_is_told(self, stand_in, onnx_file):
        stand_in(
            "trtexec",
            'if "--help" not in given:\n    print("[E] [TRT] ModelImporter.cpp: No importer registered for op: Foo")\n'
            '    print("&&&& FAILED TensorRT.trtexec")\n    sys.exit(1)\n',
        )
        with pytest.raises(ToolFailedError, match="No importer registered for op: Foo"):
            measure(onnx_file, runtime="tensorrt", method=SHORT)

    def test_a_damaged_file_is_told(self, stand_in, tmp_path):
        stand_in("trtexec", TRTEXEC)
        path = tmp_path / "damaged.onnx"
        path.write_bytes(b"no network")
        with pytest.raises(ToolFailedError, match=r"reading damaged\.onnx failed: DecodeError"):
            measure(path, runtime="tensorrt", method=SHORT)

    def test_building_an_engine_is_not_silent(self, stand_in, onnx_file):
        """It takes minutes, where whoever listens gives up after five without a word."""
        stand_in("trtexec", f"import time\n{TRTEXEC}\nif 'onnx' in named:\n    time.sleep(1)\n")
        command = [sys.executable, str(AGENT), "--model", str(onnx_file), "--runtime", "tensorrt", "--seconds", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event.get("phase") for event in events[:2]] == [None, "load"]

    @pytest.fixture
    def building(self, stand_in, tmp_path, monkeypatch) -> Callable[[], int | None]:
        """The process that builds an engine for a minute, as soon as there is one; temporary files get a folder."""
        (tmp_path / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        begun = tmp_path / "begun"
        wait = f"    import os, time\n    os.symlink(str(os.getpid()), {str(begun)!r})\n    time.sleep(60)\n"
        stand_in("trtexec", f"{TRTEXEC}\nif 'onnx' in named:\n{wait}")
        return lambda: int(begun.readlink().name) if begun.is_symlink() else None

    def test_a_build_ends_with_the_measurement(self, building, onnx_file, tmp_path):
        stop, setup = threading.Event(), Setup("tensorrt")
        with ThreadPoolExecutor() as pool:
            future = pool.submit(
                try_on, parse_address("local"), [onnx_file], setup, method=SHORT, stop=stop, keep_going=False
            )
            pid = wait_for(building)
            stop.set()
            with pytest.raises(ToolFailedError, match="stopped"):
                future.result(timeout=60)
        assert not Path(f"/proc/{pid}").exists()
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_a_second_signal_does_not_disturb_the_end(self, building, onnx_file, tmp_path):
        """An interrupt at the terminal reaches the agent, and what started it, which then asks for the end too."""
        command = [sys.executable, str(AGENT), "--model", str(onnx_file), "--runtime", "tensorrt"]
        agent_process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        pid = wait_for(building)
        agent_process.send_signal(signal.SIGINT)
        agent_process.send_signal(signal.SIGTERM)
        # Where the test is slow to send the second, Python may be at its end, which no longer catches signals.
        assert agent_process.wait(timeout=60) in (128 + signal.SIGINT, -signal.SIGTERM)
        assert not Path(f"/proc/{pid}").exists()
        assert list((tmp_path / "temporary").iterdir()) == []

    def test_missing(self, onnx_file):
        if agent.shutil.which("trtexec"):
            pytest.skip("this machine has trtexec")
        with pytest.raises(ToolFailedError, match="there is no trtexec; it comes with TensorRT"):
            measure(onnx_file, runtime="tensorrt", method=SHORT)


class TestNcnn:
    @pytest.fixture
    def ncnn_file(self, tmp_path) -> Path:
        """The convolution of the ONNX file, in ncnn's text format, and its weights."""
        pytest.importorskip("ncnn", reason="needs the ncnn extra")
        weight = np.random.default_rng(0).random((8, 3, 3, 3), dtype=np.float32)
        path = tmp_path / "tiny.ncnn"
        path.mkdir()
        (path / "model.param").write_text(
            "7767517\n2 2\nInput in0 0 1 in0\nConvolution conv 1 1 in0 out0 0=8 1=3 5=0 6=216\n"
        )
        (path / "model.bin").write_bytes(bytes(4) + weight.tobytes())
        return path

    def test_measures_and_computes_what_onnxruntime_does(self, ncnn_file, onnx_file):
        setup = Setup(input_shape=(3, 16, 16))
        (measurement,) = measure_on(parse_address("local"), [ncnn_file], setup, method=SHORT)
        assert (measurement.latency.runtime, measurement.latency.runs >= 6) == ("ncnn", True)
        arguments = ["--weights", str(ncnn_file / "model.bin"), "--input-shape", "3,16,16"]
        made = outputs_of(ncnn_file / "model.param", "ncnn", *arguments)
        expected = outputs_of(onnx_file, "onnxruntime")
        np.testing.assert_allclose(made, expected, rtol=2e-2)  # ncnn may compute in bfloat16

    def test_needs_a_shape(self, ncnn_file):
        with pytest.raises(BadInputError, match=r"tiny\.ncnn does not tell its input's shape"):
            measure(ncnn_file)

    def test_images_that_it_cannot_compute(self, ncnn_file):
        (ncnn_file / "model.param").write_text("7767517\n2 2\nInput in 0 1 data\nPixelShuffle up 1 1 data prob 0=5\n")
        setup = Setup(input_shape=(3, 16, 16))
        with pytest.raises(ToolFailedError, match=r"tiny\.ncnn: ncnn .*: ncnn cannot run it on images 3,16,16"):
            measure_on(parse_address("local"), [ncnn_file], setup, method=SHORT)

    def test_damaged_file(self, ncnn_file):
        (ncnn_file / "model.param").write_text("damaged")
        setup = Setup(input_shape=(3, 16, 16))
        with pytest.raises(ToolFailedError, match=r"tiny\.ncnn: .*ncnn cannot read model\.param"):
            measure_on(parse_address("local"), [ncnn_file], setup, method=SHORT)


BENCHNCNN = """loop_count = {0}
num_threads = {1}
powersave = {2}
gpu_device = {3}
cooling_down = {4}
"""
# From ncnn's benchmark/README.md, a Threadripper 3970X: what a build too old for `param=` prints whatever it is asked.
OWN_NETWORKS = """          squeezenet  min =   11.73  max =   11.88  avg =   11.78
           mobilenet  min =   21.63  max =   21.73  avg =   21.68
"""


class TestBenchncnn:
    @pytest.fixture
    def ncnn_file(self, tmp_path) -> Path:
        path = tmp_path / "tiny.ncnn"
        path.mkdir()
        for name in ("model.param", "model.bin"):
            (path / name).write_text("7767517")
        return path

    def test_reads_recorded_output(self):
        assert tools.parse_benchncnn(OWN_NETWORKS.splitlines()[0], "net") == 11.78
        with pytest.raises(ToolFailedError, match="net: benchncnn told no timings of this file; it said: mobilenet"):
            tools.parse_benchncnn(OWN_NETWORKS, "net")

    def test_loops_until_the_time_is_filled(self, stand_in, ncnn_file):
        line = OWN_NETWORKS.splitlines()[0].replace("squeezenet", "model.param")
        code = f"print({BENCHNCNN!r}.format(*given), file=sys.stderr)\nprint({line!r}, file=sys.stderr)\n"
        log = stand_in("benchncnn", code)
        setup = Setup("benchncnn", threads=4, input_shape=(3, 24, 16))
        (measurement,) = measure_on(parse_address("local"), [ncnn_file], setup, method=SHORT)
        latency = measurement.latency
        assert (latency.runtime, latency.p50_ms, latency.init_ms, latency.first_ms) == (
            "benchncnn",
            11.78,
            None,
            None,
        )
        loops = 17  # of 11.78 ms, for a tenth of two seconds
        assert (latency.runs_averaged, latency.runs) == (loops, loops * tools.ROUNDS)
        asked, timed = calls(log)[:2]
        assert asked[:5] == ["2", "4", "0", "-1", "0"]
        assert timed[:5] == [str(loops), *asked[1:5]]
        assert timed[5:] == [f"param={ncnn_file}/model.param", "shape=[16,24,3]"]
        assert measurement.agreement_note == "measured on this machine"

    def test_a_slow_network_is_waited_for(self):
        line, waited = OWN_NETWORKS.splitlines()[0].replace("11.78", "5000.00"), []

        def ask(*_options, seconds=4.0):
            waited.append(seconds)
            return line

        asked = {"--input-shape": "3,8,8", "--threads": 1, "--warmup-runs": 1, "--runs": 100, "--seconds": 2}
        tools._benchncnn(ask, "net", asked, "net")
        assert waited == [4.0, 2 * 5.0 * 108]


def outputs_of(path: Path, runtime: str, *more: str) -> list[list[float]]:
    """What the agent tells for one image of bytes."""
    pixels = path.with_name("pixels.npz")
    np.savez(pixels, pixels=np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16)).astype(np.uint8))
    given = [
        "--model",
        path,
        "--runtime",
        runtime,
        "--outputs",
        pixels,
        "--seconds",
        "0",
        "--runs",
        "1",
        *more,
    ]
    command = [sys.executable, str(AGENT), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])["outputs"]


def test_a_core_that_is_named_twice_counts_once():
    assert agent.core_numbers("0-3,2") == [0, 1, 2, 3]
    for text in ("7-4", "4-"):
        with pytest.raises(ValueError):
            agent.core_numbers(text)


def test_benchncnn_keeps_to_no_cores(tmp_path):
    (tmp_path / "a.ncnn").mkdir()
    with pytest.raises(BadInputError, match="benchncnn spreads over all cores"):
        Setup("benchncnn", affinity="0", input_shape=(3, 8, 8)).runtime_of(tmp_path / "a.ncnn")


def test_bytes_that_are_no_text_do_not_end_what_is_heard(stand_in):
    stand_in("said", "sys.stdout.buffer.write(b'caf\\xe9\\nfine\\n')")
    never = threading.Event()
    with open_transport(parse_address("local"), never) as here:
        said = run_tool(here, ["said"], work="w", stop=never, silence=20)
    assert said.splitlines()[1] == "fine"


class TestState:
    """Of devices without Python, as their shells print it."""

    @pytest.fixture
    def state_of(self, monkeypatch):
        def state(said: str):
            monkeypatch.setattr(tools, "run_tool", lambda *_, **__: said)
            return tools._state(None, "net on phone", None)

        return state

    ARM = "@@ proc/cpuinfo\nprocessor\t: 0\nCPU part\t: 0xd08\n\nprocessor\t: 1\n\n"
    BOARD = "@@ proc/device-tree/model\nRaspberry Pi 4 Model B Rev 1.4\0\n"
    END = "@@ machine\naarch64\n@@ model\n"

    def test_name_and_cores(self, state_of):
        """An Arm processor's file has no `model name`; this machine's must not stand for it."""
        _, device = state_of(self.ARM + self.BOARD + self.END)
        assert device == {"cpu": "Raspberry Pi 4 Model B Rev 1.4", "cores": 2}
        assert state_of(self.ARM + self.END)[1]["cpu"] == "aarch64"
        assert state_of(self.ARM + self.BOARD + self.END + "Pixel 6\n")[1]["cpu"] == "Pixel 6"

    def test_of_this_machine(self):
        never = threading.Event()
        with open_transport(parse_address("local"), never) as here:
            state, device = tools._state(here, "w", never)
        assert state["load_1m"] is not None and state["free_memory_mb"] > 1
        assert (device["cpu"], device["cores"]) == (agent.Machine().cpu_name(), os.cpu_count())

    @pytest.mark.parametrize("name", ["/victim", "../victim", ".", "proc", "proc/cpuinfo/x", "a\0b", "model\0"])
    def test_no_device_names_a_path_here(self, state_of, name, tmp_path):
        name = name.replace("/victim", f"{tmp_path}/victim")
        with pytest.raises(ToolFailedError, match=r"net on phone: .*not asked for"):
            state_of(f"@@ {name}\nbad\n{self.ARM}{self.END}")
        assert not (tmp_path / "victim").exists()

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ("hello\n", "does not tell its state, but 'hello'"),
            ("@@ proc/loadavg\nabc\n" + END, "is no state: could not convert string to float: 'abc'"),
            ("@@ proc/meminfo\nMemAvailable:\n" + END, "is no state: list index out of range"),
        ],
    )
    def test_what_makes_no_sense_is_told(self, state_of, said, message):
        with pytest.raises(ToolFailedError, match=f"net on phone: .*{message}"):
            state_of(said)


def test_a_file_of_several_images_is_not_timed_as_one():
    assert agent.make_inputs([("pixels", ["n", 3, 8, 8], "float32")])["pixels"].shape == (1, 3, 8, 8)
    with pytest.raises(agent.AgentError, match="takes 8 images at a time"):
        agent.make_inputs([("pixels", [8, 3, 8, 8], "float32")])

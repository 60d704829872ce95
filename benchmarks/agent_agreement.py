"""Does the device agent report what the runtimes' own clocks say? `python -m benchmarks.agent_agreement`.

The agent's loop and clock go round the very same inferences that the runtimes' profilers time from inside, in one
process: onnxruntime's `model_run` events, and LiteRT's own profiler, which its compiled-model API has and the
interpreter of its Python package has not. So LiteRT is driven through its C library there, and a third row tells how
far the agent's interpreter is from that in turns; those are different inferences of the same file.
"""

import ctypes
import json
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ai_edge_litert
import numpy as np
import torch

from benchmarks import common
from fsrp_edge.bench import agent
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.exporting.export import ArtifactRequest
from fsrp_edge.exporting.verified import export_verified
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build
from fsrp_edge.targets.load import load_target

RUNS = 40
ROUNDS = 8
SIDES = (64, 192)
"""Of the images: an inference takes about 4 and 40 ms. Between the two clocks lie a call from Python and the profiler's
own bookkeeping, which are as long for a small network as for a large one."""
COMPARED = {
    "onnxruntime": "its profiler's model_run events, the same inferences",
    "litert": "its profiler's events (registration, invocation, synchronization), the same inferences",
    "litert, interpreter": "that profiler, other inferences of the same file in turns",
}
DEFAULT, LITERT = 1, 0
"""Kind and source of those of LiteRT's events that are not operators'."""
FIRST_PART = b"LiteRT::Run[buffer registration]"
"""Of an inference; the next two are `Invoke` and `LiteRT::Run[Buffer sync]`."""


def export(folder: Path, side: int) -> tuple[Path, Path]:
    """A ResNet-20 with random weights as ONNX and TFLite files."""
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture="cifar:resnet20-a",
        input_shape=(3, side, side),
        classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        preprocessing=Preprocessing(resize=side),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, side, side)).astype(np.uint8)
    images = ImageSet.of("noise", ArraySource(pixels), torch.arange(16) % 10)
    exported = export_verified(
        Classifier(build(spec.architecture, classes=spec.classes), spec).eval(),
        [ArtifactRequest("onnx", "fp32"), ArtifactRequest("tflite", "fp32")],
        folder / "files",
        target=load_target("generic-x86"),
        calibration=images,
        images=images,
    )
    onnx, tflite = (folder / "files" / artifact.path for artifact in exported.artifacts)
    return onnx, tflite


def options(path: Path) -> Namespace:
    return Namespace(
        model=str(path),
        threads=1,
        runs=RUNS,
        seconds=0.0,
        warmup_runs=30,
        warmup_seconds=0.5,
        precision="fp32",
    )


def timed_by_the_agent(runtime: agent.Runtime) -> Sequence[float]:
    """The agent's own steps: load, feed, warm up, time."""
    runtime.feed(agent.make_inputs(runtime.load(lambda *_: None)))
    runtime.warm_up(lambda *_: None)
    return runtime.times_ms(lambda *_: None)


def onnxruntime_in_one_round(path: Path, folder: Path) -> tuple[float, float]:
    """Medians in ms of the same inferences, by the agent and by onnxruntime's profiler."""
    runtime = agent.OnnxRuntime(options(path))
    real = runtime.module

    def profiled() -> Any:
        made = real.SessionOptions()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    runtime.module = SimpleNamespace(SessionOptions=profiled, InferenceSession=real.InferenceSession)
    ours = timed_by_the_agent(runtime)
    events = json.loads(Path(runtime.session.end_profiling()).read_text())
    theirs = [event["dur"] / 1e3 for event in events if event["name"] == "model_run"][-RUNS:]
    return statistics.median(ours), statistics.median(theirs)


class Event(ctypes.Structure):
    """LiteRT's ProfiledEventData; three counts of memory lie before and after each event."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("metadata", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    ]


class ProfiledLiteRT(agent.Runtime):
    """A file in LiteRT's compiled-model API with its profiler on, called through its C library."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
        self.environment = self.made("CreateEnvironment", 0, None)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; its status has to be 0."""
        status = self.library[f"LiteRt{name}"](*arguments)
        if status:
            raise RuntimeError(f"LiteRt{name} failed with {status}")

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What a function leaves at the place that its last argument points to."""
        handle = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def load(self, tick: agent.Tick) -> list[agent.Specification]:
        """See Runtime."""
        path = ctypes.c_char_p(self.options.model.encode())
        model = self.made("CreateModelFromFile", self.environment, path)
        options = self.made("CreateOptions")
        self.call("SetOptionsHardwareAccelerators", options, 1)  # the CPU
        self.kept = (ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None), b"enable_profiling = true\n")
        opaque = self.made("CreateOpaqueOptions", b"runtime_options_string", self.kept[1], self.kept[0])
        self.call("AddOpaqueOptions", options, opaque)
        self.model = self.made("CreateCompiledModel", self.environment, model, options)
        self.profiler = self.made("CompiledModelGetProfiler", self.model)
        signature = self.made("GetModelSignature", model, ctypes.c_size_t(0))
        self.buffers = [self.buffer(signature, side) for side in ("Input", "Output")]
        return []

    def buffer(self, signature: ctypes.c_void_p, side: str) -> Any:
        """A buffer for the first tensor of one side."""
        first = ctypes.c_size_t(0)
        kind = ctypes.create_string_buffer(512)
        self.call("GetRankedTensorType", self.made(f"GetSignature{side}TensorByIndex", signature, first), kind)
        needed = self.made(f"GetCompiledModel{side}BufferRequirements", self.model, first, first)
        made = self.made("CreateManagedTensorBufferFromRequirements", self.environment, kind, needed)
        return (ctypes.c_void_p * 1)(made)

    def feed(self, inputs: agent.Arrays) -> None:
        """The buffer stays as it was made: a dense network's time does not depend on its pixels."""

    def run(self) -> None:
        """See Runtime."""
        zero, one = ctypes.c_size_t(0), ctypes.c_size_t(1)
        self.call("RunCompiledModel", self.model, zero, one, self.buffers[0], one, self.buffers[1])

    def times_ms(self, tick: agent.Tick) -> Sequence[float]:
        """See Runtime; only these are profiled."""
        self.call("ResetProfiler", self.profiler)
        self.call("StartProfiler", self.profiler)
        times = super().times_ms(tick)
        self.call("StopProfiler", self.profiler)
        return times

    def own_times_ms(self) -> list[float]:
        """The profiler's time of each inference: its parts at the top level, summed."""
        count = ctypes.c_int()
        self.call("GetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (Event * count.value)()
        self.call("GetProfilerEvents", self.profiler, count, events)
        times: list[float] = []
        for event in sorted(events, key=lambda event: event.start_us):
            if event.kind == DEFAULT and event.source == LITERT:
                if event.tag == FIRST_PART:
                    times.append(0.0)
                times[-1] += event.elapsed_us / 1e3
        return times


def litert_in_one_round(path: Path) -> tuple[float, float, float]:
    """Medians in ms of the same inferences, by the agent and by LiteRT's profiler; then of the agent's interpreter."""
    profiled = ProfiledLiteRT(options(path))
    ours = timed_by_the_agent(profiled)
    own = profiled.own_times_ms()
    interpreter = timed_by_the_agent(agent.LiteRT(options(path)))
    return statistics.median(ours), statistics.median(own), statistics.median(interpreter)


def main() -> None:
    common.parser_of(__doc__).parse_args()
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = {(name, side): [] for name in COMPARED for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {side: export(folder / str(side), side) for side in SIDES}
        for _ in range(ROUNDS):
            for side, (onnx, tflite) in files.items():
                pairs["onnxruntime", side].append(onnxruntime_in_one_round(onnx, folder))
                ours, own, interpreter = litert_in_one_round(tflite)
                pairs["litert", side].append((ours, own))
                pairs["litert, interpreter", side].append((interpreter, own))
    results: list[dict[str, Any]] = [
        {
            "runtime": name,
            "side": side,
            "compared": COMPARED[name],
            "runs": RUNS,
            "rounds": [{"agent_ms": ours, "own_ms": own} for ours, own in found],
            "difference": statistics.median(ours / own - 1 for ours, own in found),
            "difference_ms": statistics.median(ours - own for ours, own in found),
        }
        for (name, side), found in pairs.items()
    ]
    rows = [
        (
            one["runtime"],
            one["compared"],
            *(f"{statistics.median(each[clock] for each in one['rounds']):.3f}" for clock in ("agent_ms", "own_ms")),
            f"{1e3 * one['difference_ms']:+.0f} µs",
            f"{one['difference']:+.2%}",
        )
        for one in results
    ]
    header = ("runtime", "compared with", "agent, ms", "its own, ms", "difference", "share")
    common.save("agent_agreement", results, header, rows)


if __name__ == "__main__":
    main()

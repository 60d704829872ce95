"""Does the device agent report what the runtimes' own clocks say? `python -m benchmarks.agent_agreement`.

The agent's times of the very same inferences are compared with onnxruntime's profiler, which runs inside its process.
LiteRT's Python interpreter has no clock of its own, so its calls are compared with runs of the tool that comes with it
(`litert-benchmark`), in turns, as those are different inferences of the same file.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

RUNS = 50
ROUNDS = 15
SIDE = 64
"""An inference then takes about three milliseconds on an idle core."""


def export(folder: Path) -> tuple[Path, Path]:
    """A ResNet-20 with random weights as ONNX and TFLite files."""
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture="cifar:resnet20-a",
        input_shape=(3, SIDE, SIDE),
        classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        preprocessing=Preprocessing(resize=SIDE),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, SIDE, SIDE)).astype(np.uint8)
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


def timed_by_the_agent(runtime: agent.Runtime) -> list[float]:
    """The agent's own steps: load, feed, warm up, time."""
    runtime.feed(agent.make_inputs(runtime.load(), 0))
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


def litert_in_one_round(path: Path, folder: Path) -> tuple[float, float]:
    """Medians in ms by the agent and by LiteRT's own benchmark."""
    ours = statistics.median(timed_by_the_agent(agent.LiteRT(options(path))))
    out = folder / "result.json"
    tool = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={path}"]
    lengths = [f"--num_runs={RUNS}", "--warmup_runs=30", "--num_threads=1", f"--result_json={out}"]
    subprocess.run([*tool, *lengths], check=True, capture_output=True)
    return ours, json.loads(out.read_text())["latency"]["median_ms"]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx, tflite = export(folder)
        rounds: dict[str, list[tuple[float, float]]] = {"onnxruntime": [], "litert": []}
        for _ in range(ROUNDS):
            rounds["onnxruntime"].append(onnxruntime_in_one_round(onnx, folder))
            rounds["litert"].append(litert_in_one_round(tflite, folder))
    results = {
        runtime: {
            "runs": RUNS,
            "rounds": [{"agent_ms": ours, "own_ms": own} for ours, own in pairs],
            "difference": statistics.median(ours / own - 1 for ours, own in pairs),
        }
        for runtime, pairs in rounds.items()
    }
    rows = [
        (
            runtime,
            "its profiler, the same inferences" if runtime == "onnxruntime" else "litert-benchmark, in turns",
            f"{statistics.median(one['agent_ms'] for one in found['rounds']):.3f}",
            f"{statistics.median(one['own_ms'] for one in found['rounds']):.3f}",
            f"{found['difference']:+.2%}",
        )
        for runtime, found in results.items()
    ]
    header = ("runtime", "compared with", "agent, ms", "its own, ms", "difference")
    common.save("agent_agreement", results, header, rows)


if __name__ == "__main__":
    main()

"""Which numbers of channels are fast here? Latency of a chain of equal 3×3 convolutions, by their channels.

Runtimes compute channels in blocks: up to the next whole block, more channels take no more time, and a channel that is
removed short of one saves none. That is what the channel multiple of a device profile is for. Weights are random.

python -m benchmarks.channel_blocks
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.artifact_latency import FILES, noise
from benchmarks.common import parser_of, provenance_now, save
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.cli.console import show_progress
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.targets.load import load_target

CHANNELS = (8, 16, 24, 32, 40, 48, 56, 64)
LAYERS, SIDE = 8, 16
BRIEF = Method(warmup_runs=3, warmup_seconds=0.1, runs=24, seconds=0.3, rounds=6)


def chain(channels: int) -> Classifier:
    """Convolutions of as many channels in as out, on maps of 16 × 16."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(LAYERS):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    spec = ModelSpec(
        architecture="benchmarks.channel_blocks:chain",
        input_shape=(3, SIDE, SIDE),
        classes=10,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        preprocessing=Preprocessing(resize=SIDE),
    )
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, spec.classes))
    return Classifier(nn.Sequential(*layers, *head), spec).eval()


def measure(scratch: Path) -> dict[str, Any]:
    """Milliseconds by file and number of channels; the files of one kind are measured in turns."""
    target = load_target("generic-x86")
    requests = [ArtifactRequest(format_, precision) for format_, precision in FILES]
    for channels in CHANNELS:
        network = chain(channels)
        export_artifacts(network, requests, scratch / str(channels), ExportPlan(target, calibration=noise(network)))
    found: dict[str, Any] = {"provenance": provenance_now(), "threads": 1, "ms": {}, "invalid": {}}
    for request in requests:
        paths = [scratch / str(channels) / request.file for channels in CHANNELS]
        latencies = [each.latency for each in measure_on(parse_address("local"), paths, Setup(threads=1), method=BRIEF)]
        kind = f"{request.format} {request.precision}"
        found["ms"][kind] = {str(c): latency.p50_ms for c, latency in zip(CHANNELS, latencies, strict=True)}
        found["invalid"][kind] = {
            str(c): latency.invalid_because for c, latency in zip(CHANNELS, latencies, strict=True) if not latency.valid
        }
    return found


def _rows(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    for channels in map(str, CHANNELS):
        yield (
            channels,
            *(
                f"{times[channels]:.3f}{' (disturbed)' if channels in found['invalid'][kind] else ''}"
                for kind, times in found["ms"].items()
            ),
        )


def main() -> None:
    parser_of(__doc__).parse_args()
    with show_progress(), tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch))
    save("channel_blocks", found, ("channels", *(f"{kind}, ms" for kind in found["ms"])), list(_rows(found)))


if __name__ == "__main__":
    main()

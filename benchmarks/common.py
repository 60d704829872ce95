"""What benchmarks do alike: arguments, networks, repeating in turns, JSON with a Markdown table beside it."""

import argparse
import datetime
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsrp_edge import compute
from fsrp_edge.data.images import Dataset
from fsrp_edge.data.open import open_dataset
from fsrp_edge.evaluation.paired import paired_difference
from fsrp_edge.files import write_json, write_text
from fsrp_edge.models import registry
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.report.provenance import provenance, this_machine

RESULTS = Path(__file__).parent / "results"


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def checkpoint_parser(description: str | None) -> argparse.ArgumentParser:
    """The same for benchmarks of a trained network: with `--checkpoint` and `--data`."""
    parser = parser_of(description)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    return parser


def load_both(arguments: argparse.Namespace) -> tuple[Classifier, Dataset]:
    """The network and the images that `checkpoint_parser` was given."""
    classifier = load_classifier(arguments.checkpoint)
    classifier.to_fast_layout(torch.device("cpu"))
    return classifier, open_dataset(arguments.data, classifier.spec, seed=0)


def random_network(architecture: str) -> Classifier:
    """A network with random weights, of 10 classes or ImageNet's: its cost is that of a trained one."""
    torch.manual_seed(0)
    shape, mean, std, preprocessing = registry.published_input(architecture)
    classes = 10 if architecture.startswith("cifar:") else 1000
    spec = ModelSpec(
        architecture=architecture,
        input_shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
    )
    return Classifier(registry.build(architecture, classes=classes), spec).eval()


def alternate(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round; they take turns, so that a drifting machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for name in work:
        work[name]()
    for _ in range(rounds):
        for name, function in work.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return times


def median_ratio(times: dict[str, list[float]], name: str, against: str) -> float:
    """Median over rounds of the ratio of two pieces of work that ran in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[against], strict=True))


def bits(judged: torch.Tensor) -> str:
    """A 1 for each image that is right or stands, a 0 for each other."""
    return "".join("01"[each] for each in judged.tolist())


def lead(ours: str, theirs: str) -> str:
    """Percentage points by which one row of `bits` is ahead of another, paired by image, with the 95 % interval."""
    first, second = (torch.tensor([each == "1" for each in row]) for row in (theirs, ours))
    paired = paired_difference(first, second)
    low, high = (f"{100 * end:+.1f}" for end in paired.interval)
    return f"{100 * paired.difference:+.1f} ({low} to {high})"


def mean_lead(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The same of several runs that were judged on the same images, a row each: the mean over runs, then over images.

    The interval tells what other images would change, not what other runs would.
    """
    first, second = (np.array([[each == "1" for each in row] for row in rows], float) for rows in (theirs, ours))
    by_image = 100 * (second - first).mean(0)
    half = 1.96 * by_image.std(ddof=1) / math.sqrt(len(by_image))
    mean = by_image.mean()
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def percent(row: str) -> str:
    """The share of a row of `bits` that is right or stands."""
    return f"{100 * (row.count('1') / len(row)):.1f}"


def provenance_now() -> dict[str, Any]:
    """Versions and machine, for a result that is made now."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return provenance(now).model_dump(mode="json")


def machine_here() -> str:
    """Name of the folder of what was timed on this machine; on another one the same is measured anew."""
    machine = this_machine()
    return re.sub(r"\W+", "-", f"{machine.cpu} {machine.cores}")


def name_here(name: str) -> str:
    """The name of results that a GPU must not write over those of a CPU."""
    return f"{name}_gpu" if compute.default_device().type == "cuda" else name


def save(name: str, results: Any, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write results/NAME.json (with versions and machine) and results/NAME.md, and print the table."""
    content = {"provenance": provenance_now(), "results": results}
    write_json(RESULTS / f"{name}.json", content)
    lines = markdown_table(header, rows)
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Its lines."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]

"""What benchmarks do alike: describe the machine, repeat in turns, write JSON with a Markdown table beside it."""

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsrp_edge.files import write_json, write_text
from fsrp_edge.report.provenance import provenance

RESULTS = Path(__file__).parent / "results"


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


def save(name: str, results: Any, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write results/NAME.json (with versions and machine) and results/NAME.md, and print the table."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    content = {"provenance": provenance(now).model_dump(mode="json"), "results": results}
    write_json(RESULTS / f"{name}.json", content)
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))

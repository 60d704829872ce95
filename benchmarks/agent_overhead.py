"""What the device agent's clock and loop add to an inference: `python -m benchmarks.agent_overhead`.

Two things are told apart: what a reported time holds beyond the call itself (measured on a call that does nothing), and
what the loop costs between two calls, sampling of clocks and temperatures included (it delays the next inference, and
no reported time holds it).
"""

import statistics
import time

from benchmarks import common
from fsrp_edge.bench import agent

RUNS = 200_000
INFERENCE_MS = 5.0
"""The length of an inference that the overhead is compared with."""


def measure() -> dict[str, float]:
    machine = agent.Machine()
    ticks: list[dict[str, object]] = []

    def tick(_phase: str, _runs: int, seconds: float) -> None:
        ticks.append(machine.sample(seconds))

    start = time.perf_counter()
    times_ms = agent.repeat(lambda: None, RUNS, 0.0, "steady", tick)
    total_ms = (time.perf_counter() - start) * 1e3
    start = time.perf_counter()
    for _ in range(100):
        machine.sample(0.0)
    sample_ms = (time.perf_counter() - start) * 10
    inside = statistics.median(times_ms)
    between = total_ms / RUNS - statistics.fmean(times_ms)
    # A sample is taken twice a second, so 5 ms inferences share it.
    between += sample_ms * INFERENCE_MS / (agent.PROGRESS_SECONDS * 1e3)
    return {
        "runs": RUNS,
        "reported_ms_of_an_empty_call": inside,
        "milliseconds_between_calls": between,
        "milliseconds_of_a_sample": sample_ms,
        "share_of_a_5_ms_inference_reported": inside / INFERENCE_MS,
        "share_of_a_5_ms_inference_between": between / INFERENCE_MS,
    }


def main() -> None:
    common.parser_of(__doc__).parse_args()
    results = measure()
    rows = [
        ("in the reported time", "reported_ms_of_an_empty_call", "share_of_a_5_ms_inference_reported"),
        ("between two inferences", "milliseconds_between_calls", "share_of_a_5_ms_inference_between"),
    ]
    common.save(
        "agent_overhead",
        results,
        ("overhead", "µs an inference", "of a 5 ms inference"),
        [(name, f"{1e3 * results[cost]:.2f}", f"{results[share]:.4%}") for name, cost, share in rows],
    )


if __name__ == "__main__":
    main()

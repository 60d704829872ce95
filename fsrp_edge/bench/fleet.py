"""Devices side by side, each in a thread of its own."""

import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import fsrp_edge
from fsrp_edge.bench.address import Address
from fsrp_edge.bench.measure import measure_on
from fsrp_edge.bench.results import BenchResults, Failure, Measurement
from fsrp_edge.bench.setup import DEFAULT, Method, Setup
from fsrp_edge.errors import ToolFailedError


def measure_fleet(
    addresses: Sequence[Address], files: Sequence[Path], setup: Setup, *, method: Method = DEFAULT
) -> BenchResults:
    """Measure files on several devices at the same time; a device that fails does not take the others along.

    Arguments and BadInputError as for `measure_on`; a ToolFailedError becomes one of the result's failures.
    """
    for path in files:
        setup.runtime_of(path)
    stop = threading.Event()

    def work(address: Address) -> list[Measurement]:
        return measure_on(address, files, setup, method=method, stop=stop)

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        futures = [pool.submit(contextvars.copy_context().run, work, address) for address in addresses]
        try:
            _wait(futures)
        finally:
            stop.set()  # after an interrupt, the threads give up and clean up before the pool is left
    measurements: list[Measurement] = []
    failures = []
    for address, future in zip(addresses, futures, strict=True):
        try:
            measurements += future.result()
        except ToolFailedError as error:
            failures.append(Failure(address=address.name, message=str(error)))
    return BenchResults(
        fsrp_edge=fsrp_edge.__version__, measurements=tuple(measurements), failures=tuple(failures)
    )


def _wait(futures: Sequence[Future[list[Measurement]]]) -> None:
    """Until all are done; an error that is not one device's own ends the others too."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, ToolFailedError):
                return

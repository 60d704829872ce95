"""Devices side by side, each in a thread of its own."""

import contextvars
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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

    def work(address: Address) -> list[Measurement] | Failure:
        try:
            return measure_on(address, files, setup, method=method, stop=stop)
        except ToolFailedError as error:
            return Failure(address=address.name, message=str(error))

    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        futures = [pool.submit(contextvars.copy_context().run, work, address) for address in addresses]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # after an interrupt or an error, the threads give up and clean up before the pool is left
    found = [future.result() for future in futures]
    return BenchResults(
        fsrp_edge=fsrp_edge.__version__,
        measurements=tuple(one for each in found if not isinstance(each, Failure) for one in each),
        failures=tuple(each for each in found if isinstance(each, Failure)),
    )

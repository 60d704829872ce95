"""Devices side by side, each in a thread of its own."""

import contextvars
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import fsrp_edge
from fsrp_edge.bench.address import Address
from fsrp_edge.bench.measure import try_on
from fsrp_edge.bench.recognition import require_taken
from fsrp_edge.bench.results import BenchResults, Failure, Measurement
from fsrp_edge.bench.setup import DEFAULT, Method, Setup
from fsrp_edge.errors import FsrpEdgeError, Terminated, ToolFailedError, first_line

_logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """An interrupt in the middle of `measure_fleet`, with what was finished by then.

    Args:
        results: of the devices that were done.
        why: Ctrl-C, SIGTERM or SIGHUP.
    """

    def __init__(self, results: BenchResults, why: BaseException) -> None:
        super().__init__()
        self.results, self.why = results, why


def measure_fleet(
    addresses: Sequence[Address], files: Sequence[Path], setup: Setup, *, method: Method = DEFAULT
) -> BenchResults:
    """Measure files on several devices at the same time; a device or a file that fails does not take the others along.

    Arguments as for `measure_on`. What goes wrong with a device becomes one of the result's failures.

    Raises:
        BadInputError: no such file, images that a file does not take, or a setting that makes no sense.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP.
    """
    for path in files:
        setup.runtime_of(path)
    require_taken(files, setup)
    stop = threading.Event()

    def work(address: Address) -> list[Measurement | Failure]:
        try:
            found = try_on(address, files, setup, method=method, stop=stop)
        except FsrpEdgeError as error:
            return [Failure(address=address.name, message=str(error))]
        except Exception as error:  # whatever is wrong with one device, what the others measured is kept
            _logger.debug("%s", address.name, exc_info=True)
            message = f"{address.name}: unexpected {type(error).__name__}: {first_line(error)}"
            return [Failure(address=address.name, message=message)]
        return [
            Failure(address=address.name, message=str(one)) if isinstance(one, ToolFailedError) else one
            for one in found
        ]

    futures: list[Future[list[Measurement | Failure]]] = []
    try:
        with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
            try:
                futures += [pool.submit(contextvars.copy_context().run, work, address) for address in addresses]
                wait(futures)
            finally:
                stop.set()  # after an interrupt, the threads give up and clean up before the pool is left
    except (KeyboardInterrupt, Terminated) as why:
        raise Interrupted(_results(futures), why) from None
    return _results(futures)


def _results(futures: Sequence[Future[list[Measurement | Failure]]]) -> BenchResults:
    """Of the devices that are done: a second interrupt does not wait for the others."""
    found = [one for future in futures if future.done() for one in future.result()]
    return BenchResults(
        fsrp_edge=fsrp_edge.__version__,
        measurements=tuple(one for one in found if isinstance(one, Measurement)),
        failures=tuple(one for one in found if isinstance(one, Failure)),
    )

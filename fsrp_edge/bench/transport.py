"""Ways to a device: what every one can do, and the one to this machine."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from fsrp_edge.bench.address import Address
from fsrp_edge.bench.remote_shell import RemoteShell, connect
from fsrp_edge.errors import BadInputError


class LocalTransport:
    """This machine, as `RemoteShell` does for others."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def put(self, path: Path) -> str:
        """See RemoteShell."""
        return str(path)

    def start(self, command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]) -> subprocess.Popen[str]:
        """See RemoteShell."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(_THREAD_VARIABLES)}
        try:
            return subprocess.Popen(
                command,
                env=ours | dict(environment),
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise BadInputError(f"cannot run {command[0]!r}: {error.strerror}; name another ?python=") from error

    def end(self, mark: str) -> None:
        """See RemoteShell; here the child that was ended is the command itself."""

    def died(self, returncode: int) -> str:
        """See RemoteShell."""
        if returncode < 0:
            return f"was killed by {signal.Signals(-returncode).name}"
        return f"ended with exit code {returncode}"


Transport = LocalTransport | RemoteShell
"""An open way to a device. Whatever it put there is gone when it is closed."""
_THREAD_VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TF_NUM_")


def open_transport(address: Address, stop: threading.Event) -> AbstractContextManager[Transport]:
    """A way to a device for the length of a `with` block.

    Args:
        address: of the device.
        stop: set by another thread to give up; what is being copied then ends with a ToolFailedError.

    Raises:
        ToolFailedError: on entering, where the device can't be reached.
    """
    if address.kind == "local":
        return nullcontext(LocalTransport(address))
    return connect(address, stop)

"""Devices behind a shell: files go in by `cat`, commands run as quoted strings, over one connection.

One command holds the connection open and owns the scratch folder: a small script on the device that ends what still
runs and removes the folder when its input ends. Its input ends when this side closes it, dies, or loses the
connection, so both go in every case. Whatever else is said to the device travels beside it.
"""

import math
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fsrp_edge.bench.address import Address
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.files import sha256_file

CONNECT_SECONDS = 60.0
"""For the client to reach the device, agree on keys and start a shell there."""
CLOSE_SECONDS = 10.0
SHELL_SECONDS = 300.0
"""For a command that copies nothing from here: a large file may be read, or moved to another disk, at a slow card's
pace."""
STOP_POLL_SECONDS = 1.0
"""Between two looks at whether another thread asks to give up."""
CLIENT_FAILED = 255
"""Exit code of ssh itself, as against those of the command it ran."""
NOT_FOUND = 127

_MARK = "fsrp-edge-scratch:"
_HOLD = f"""parent=${{1:-${{TMPDIR:-/tmp}}}}
mkdir -p "$parent" && parent=$(cd "$parent" && pwd) || exit 1
umask 077
folder=$(mktemp -d "$parent/fsrp-edge.XXXXXXXX") || exit 1
trap '
kill -9 $(grep -ls "TMPDIR=$folder" /proc/[0-9]*/environ | cut -d/ -f3) 2>/dev/null
rm -rf "$folder"
' EXIT
trap 'exit 1' HUP INT TERM PIPE
echo "{_MARK}$folder"
cat >/dev/null"""
"""What still runs is found by the folder that it was given for temporary files: a benchmark program that says nothing
until its end does not notice that nobody listens any more. Without -F, with which grep of older Androids stops at
the first NUL. In the cache folder, where one is named: the folder for temporary files may be small."""
_END = "kill -9 $(grep -ls {mark} /proc/[0-9]*/environ | cut -d/ -f3) 2>/dev/null; true"
_SSH_OPTIONS = (
    "BatchMode=yes",  # nobody is there to answer a question
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    # What a user's configuration may ask of a login does not concern ours. Host keys are checked as it says.
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ForwardAgent=no",
    "ForwardX11=no",
)
_SINCE_8_7 = ("StdinNull=no", "ForkAfterAuthentication=no", "SessionType=default")
"""Likewise. An older ssh takes them for errors, and an IgnoreUnknown of ours would undo the user's own."""
_SOCKET_FOLDER = re.compile(r"[\w./-]{1,64}", re.ASCII)
"""What ssh takes as it is, and with the names that it and we add is no longer than a socket's path may be."""


@dataclass(frozen=True)
class Client:
    """The user's own program that reaches a device.

    Args:
        first: its arguments for the command that holds the connection.
        further: for every other one; the command follows as a single string.
        scratch: folder on the device below which the scratch folder is made; empty: where temporary files go there.
        by_hand: what a user can type to try the connection.
    """

    first: tuple[str, ...]
    further: tuple[str, ...]
    scratch: str
    by_hand: str


class RemoteShell:
    """A device behind a POSIX shell. Made by `connect`."""

    def __init__(
        self,
        address: Address,
        client: Client,
        holder: subprocess.Popen[bytes],
        scratch: str,
        stop: threading.Event,
    ) -> None:
        self.address = address
        self.scratch = scratch
        self._client = client
        self._holder = holder
        self._stop = stop
        self._sound: set[str] = set()  # paths whose bytes were checked over this connection
        self._left: list[str] = []  # marks of what may still run there

    def put(self, path: Path) -> str:
        """Bring a file there unless the same bytes are there already; its path there.

        Files lie under their digest, in the cache folder if the address names one.
        """
        digest = sha256_file(path)
        folder = self.address.cache or self.scratch
        there = f"{folder}/{digest}{path.suffix}"
        if there in self._sound:
            return there
        look = f"test ! -f {_quote(there)} || sha256sum < {_quote(there)}"
        if digest not in self._shell(look, "looking for files", SHELL_SECONDS):  # a login script may talk before
            self._copy(path, digest, there)
        self._sound.add(there)
        return there

    def _copy(self, path: Path, digest: str, there: str) -> None:
        part = f"{self.scratch}/part"
        with path.open("rb") as stream:
            write = f"cat > {_quote(part)} && sha256sum < {_quote(part)}"
            # How long that takes tells nothing.
            arrived = self._shell(write, f"copying {path.name}", math.inf, stream)
        if digest not in arrived:
            raise ToolFailedError(f"{self.address.name}: {path.name} arrived damaged; is its disk sound?")
        self._shell(f"mv -f {_quote(part)} {_quote(there)}", f"copying {path.name}", SHELL_SECONDS)

    def start(self, command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]) -> subprocess.Popen[str]:
        """Start a command there; its output is the child's, `errors` takes what it says beside that."""
        self._end_left()
        if self._holder.poll() is not None:  # the client would log in anew, and nobody there would end what it starts
            raise ToolFailedError(f"{self.address.name}: the connection was lost")
        return subprocess.Popen(
            self._command(command, environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def end(self, mark: str) -> None:
        """End what was started there with `mark` in its environment: no further measurement runs beside it."""
        if self._holder.poll() is None:  # else it ended with the connection
            self._left.append(mark)
            with suppress(ToolFailedError):  # the next start tries again, and says so
                self._end_left()

    def _end_left(self) -> None:
        while self._left:
            self._shell(_END.format(mark=_quote(self._left[-1])), "ending what hangs there", CLOSE_SECONDS)
            self._left.pop()

    def _command(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        # What runtimes leave in temporary folders goes with the scratch folder, however they end.
        settings = [f"{name}={value}" for name, value in {**environment, "TMPDIR": self.scratch}.items()]
        return [*self._client.further, shlex.join(["env", *settings, *command])]

    def died(self, returncode: int) -> str:
        """How a command ended that did not end well, as the end of a sentence."""
        if returncode == CLIENT_FAILED and self._lost():
            return "was lost with the connection"
        if returncode in (CLIENT_FAILED, 137):
            return "was killed on the device (out of memory?)"
        if returncode == NOT_FOUND:
            python = f"{self.address.python!r} is not there; name the interpreter with ?python=PATH"
            return f"did not start: {python}"
        return f"ended with exit code {returncode}"

    def _lost(self) -> bool:
        try:
            self._holder.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _shell(self, command: str, work: str, limit: float, stdin: IO[bytes] | None = None) -> str:
        with subprocess.Popen(
            self._command(["sh", "-c", command], {}),
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            try:
                said, errors = self._ended(child, work, limit)
            finally:
                child.kill()
        if child.returncode:
            # Without the connection the client may have reached the device by another one.
            lost = self._holder.poll() is not None
            why = "the connection was lost" if lost else _last_line(errors)
            raise ToolFailedError(f"{self.address.name}: {work} failed: {why}")
        return said.decode(errors="replace")

    def _ended(self, child: subprocess.Popen[bytes], work: str, limit: float) -> tuple[bytes, bytes]:
        """What a child said, once it ended."""
        until = time.monotonic() + limit
        while True:
            try:
                return child.communicate(timeout=STOP_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self._stop.is_set():
                    raise ToolFailedError(f"{self.address.name}: {work}: stopped") from None
                if time.monotonic() > until:
                    message = f"{self.address.name}: {work} did not end within {limit:.0f} s; stopped"
                    raise ToolFailedError(message) from None


@contextmanager
def connect(address: Address, stop: threading.Event) -> Iterator[RemoteShell]:
    """The one connection to a device; closing ends what still runs and removes the scratch folder there.

    Args:
        address: of the device.
        stop: set by another thread to give up what is being said to it.

    Raises:
        ToolFailedError: on entering: the client is missing, or the device refused or did not answer.
    """
    if shutil.which(address.kind) is None:
        raise ToolFailedError(f"{address.name}: there is no {address.kind!r} on this machine; install it")
    folder = tempfile.gettempdir()
    sockets = folder if _SOCKET_FOLDER.fullmatch(folder) else "/tmp"
    with tempfile.TemporaryDirectory(prefix="fsrp-edge-", dir=sockets) as private, tempfile.TemporaryFile() as errors:
        client = _ssh(address, f"{private}/c") if address.kind == "ssh" else _adb(address)
        # A session of its own, so that an interrupt at the terminal reaches us first and we can clean up.
        holder = subprocess.Popen(
            [*client.first, shlex.join(["sh", "-c", _HOLD, "sh", client.scratch])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield RemoteShell(address, client, holder, _scratch(address, client, holder, errors, stop), stop)
        finally:
            _close(holder)


def _scratch(
    address: Address,
    client: Client,
    holder: subprocess.Popen[bytes],
    errors: IO[bytes],
    stop: threading.Event,
) -> str:
    """The scratch folder, as the holding script tells it once it runs."""
    assert holder.stdout is not None
    answered = threading.Event()

    def give_up() -> None:
        until = time.monotonic() + CONNECT_SECONDS
        while time.monotonic() < until and not stop.is_set():
            if answered.wait(STOP_POLL_SECONDS):
                return
        holder.kill()

    threading.Thread(target=give_up, daemon=True).start()
    try:
        for line in holder.stdout:  # a login script may talk before, in the same line if it ends none
            _, told, scratch = line.decode(errors="replace").strip().partition(_MARK)
            if told:
                return scratch
    finally:
        answered.set()
    holder.wait()
    if stop.is_set():
        raise ToolFailedError(f"{address.name}: connecting: stopped")
    errors.seek(0)
    raise ToolFailedError(
        f"cannot use {address.name}: {_last_line(errors.read())}\n"
        f"this must work by hand, without a question: {client.by_hand}"
    )


def _close(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    try:
        holder.stdin.close()
        holder.wait(timeout=CLOSE_SECONDS)
    except (subprocess.TimeoutExpired, OSError):
        pass
    finally:
        holder.kill()
        holder.wait()


def _ssh(address: Address, control: str) -> Client:
    where = ["-l", address.user] if address.user else []
    where += ["-p", str(address.port)] if address.port else []
    where += ["--", address.host]
    newer = _SINCE_8_7 if _ssh_knows(_SINCE_8_7) else ()
    options = [part for option in (*_SSH_OPTIONS, *newer) for part in ("-o", option)]
    shared = ["-T", *options, "-o", "ControlPersist=no", "-o", f"ControlPath={control}"]
    return Client(
        first=("ssh", *shared, "-o", "ControlMaster=yes", *where),
        further=("ssh", *shared, "-o", "ControlMaster=no", *where),
        scratch=address.cache or "",
        by_hand=shlex.join(["ssh", *where, "true"]),
    )


def _ssh_knows(options: Sequence[str]) -> bool:
    """Whether the client here has these options; without anyone's configuration, it says what it would do."""
    given = [part for option in options for part in ("-o", option)]
    asked = subprocess.run(["ssh", "-F", "none", "-G", *given, "localhost"], capture_output=True, check=False)
    return asked.returncode == 0


def _adb(address: Address) -> Client:
    serial = ("-s", address.host) if address.host else ()
    shell = ("adb", *serial, "shell", "-T")
    return Client(shell, shell, scratch=address.cache or "/data/local/tmp", by_hand=shlex.join([*shell, "true"]))


_quote = shlex.quote


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"no answer within {CONNECT_SECONDS:.0f} s"

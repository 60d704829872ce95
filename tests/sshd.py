"""A real sshd on the loopback address, with keys and configuration of its own; a plugin of the root conftest."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
ARM = Path(__file__).parents[1] / ".arm"
"""An Arm machine of files, where `make test-arm` made one (see arm_root.py)."""
SEPARATION_FOLDER = Path("/run/sshd")
"""sshd run by root wants this empty folder; the service that starts it at boot would make it."""


def why_not() -> str | None:
    """What a real server lacks here."""
    if SSHD is None or shutil.which("ssh") is None:
        return "needs sshd and ssh (Debian: apt-get install openssh-server openssh-client)"
    if not Path("/proc/self/task").is_dir():
        return "needs /proc to see what the server runs"
    return None


@dataclass(frozen=True)
class Server:
    """A running sshd.

    Args:
        process: its listener.
        port: on 127.0.0.1.
        folder: keys and configurations.
        arm_port: likewise, for logins that land on the Arm machine.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    arm_port: int

    def scratch_folders(self) -> set[Path]:
        """What is left where sessions keep temporary files; a folder of its own, as others may test here too."""
        return set((self.folder / "temporary").iterdir())

    def arm_address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.arm_port}"

    def address(self, *, user: str | None = None, python: str = sys.executable, **settings: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in {"python": python, **settings}.items())
        return f"ssh://{user or getpass.getuser()}@127.0.0.1:{self.port}?{query}"

    def sessions(self) -> list[int]:
        """Processes of the server that serve a connection."""
        return descendants(self.process.pid)

    def cut(self) -> None:
        """Kill every process that serves a connection, as a network that goes away would."""
        for pid in self.sessions():
            with suppress(OSError):  # it went with its parent
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)

    def wait_idle(self) -> None:
        """Until nobody is connected any more."""
        self.wait_for(lambda: not self.sessions())

    @staticmethod
    def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    def agents(self) -> list[int]:
        """Interpreters that the server's sessions run."""
        return [pid for pid in self.sessions() if b"--model" in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
    return line if Path(os.fsdecode(line.split(b"\0")[0])).name.startswith("python") else b""


def descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@pytest.fixture
def server(sshd, monkeypatch) -> Iterator[Server]:
    """The server, with a client before the user's own that knows its keys; afterwards nothing may be left on it."""
    monkeypatch.setenv("PATH", f"{sshd.folder / 'bin'}:{os.environ['PATH']}")
    yield sshd
    sshd.wait_idle()
    assert sshd.scratch_folders() == set()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory) -> Iterator[Server]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    if os.getuid() == 0:
        SEPARATION_FOLDER.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "temporary").mkdir()
    port, arm_port = free_ports(2)
    host_key = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "user_key"))
    (folder / "known_hosts").write_text("".join(f"[127.0.0.1]:{one} {host_key}" for one in (port, arm_port)))
    (folder / "sshd_config").write_text(
        f'ListenAddress 127.0.0.1\nPort {port}\nPort {arm_port}\nHostKey "{folder}/host_key"\nPidFile none\nUsePAM no\n'
        f'AuthorizedKeysFile "{folder}/authorized_keys"\nStrictModes no\nPasswordAuthentication no\n'
        f'PermitRootLogin yes\nKbdInteractiveAuthentication no\nSetEnv "TMPDIR={folder}/temporary"\n'
        f"Match LocalPort {arm_port}\nForceCommand {ARM}/shell\n"
    )
    (folder / "ssh_config").write_text(
        f'IdentityFile "{folder}/user_key"\nIdentitiesOnly yes\nUserKnownHostsFile "{folder}/known_hosts"\n'
        "GlobalKnownHostsFile none\n"
    )
    client = folder / "bin" / "ssh"  # the client reads ~/.ssh/config of the password file, whatever HOME says
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{folder}/ssh_config" "$@"\n')
    client.chmod(0o755)
    assert SSHD is not None
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=(folder / "log").open("wb")
    )
    try:
        Server.wait_for(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield Server(process, port, folder, arm_port)
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

"""Addresses of devices: `local`, `ssh://pi@pi4:22`, `adb:serial`."""

import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from fsrp_edge.errors import BadInputError

FORMS = (
    "local, ssh://[user@]host[:port] or adb:[serial], each with ?python=PATH, ?cache=FOLDER and ?tool=PATH where needed"
)

# No name may begin with a hyphen, which a client would read as an option.
_SSH = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.@+-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\])(?::(?P<port>\d{1,5}))?/?",
    re.ASCII,
)
_SETTINGS = ("python", "cache", "tool")
_ADB = re.compile(r"adb:(?P<serial>(?:[A-Za-z0-9][\w.:-]*)?)", re.ASCII)


@dataclass(frozen=True)
class Address:
    """A device, as the user names it.

    Args:
        kind: how it is reached.
        host: host name, alias of the user's ssh configuration, or adb's serial number.
        user: name on the device; None leaves it to the ssh configuration.
        port: likewise.
        python: interpreter on the device; a relative path starts at the home folder.
        cache: folder on the device that keeps files between runs; None keeps nothing there.
        tool: path of `benchmark_model` on the device; None takes the usual place.
    """

    kind: Literal["local", "ssh", "adb"]
    host: str = ""
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    cache: str | None = None
    tool: str | None = None

    @property
    def name(self) -> str:
        """Short name for tables and reports, without the user's name."""
        if self.kind == "ssh":
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"ssh://{host}" + (f":{self.port}" if self.port else "")
        return f"adb:{self.host}" if self.kind == "adb" else "local"

    @property
    def place(self) -> str:
        """What a measurement depends on: the name, and the interpreter where another one than the usual was named."""
        usual = sys.executable if self.kind == "local" else "python3"
        return self.name if self.python == usual else f"{self.name}?python={self.python}"

    def install(self, packages: Iterable[str]) -> str:
        """The command that installs Python packages, to paste on the device."""
        return shlex.join([self.python, "-m", "pip", "install", *packages])


def parse_address(text: str) -> Address:
    """Read a device's address.

    Args:
        text: `local`, `ssh://pi@pi4:22`, `adb:emulator-5554`; settings follow as in a web address:
            `ssh://pi4?python=venv/bin/python&cache=.cache/fsrp-edge`.

    Raises:
        BadInputError: any other form.
    """
    where, _, query = text.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    settings = {name: unquote(value) for name, _, value in pairs}  # a + is a +, as in a path; only forms mean a space
    unknown = settings.keys() - set(_SETTINGS)
    if unknown or len(settings) != len(pairs):
        raise BadInputError(
            f"device {text!r}: unknown setting {', '.join(sorted(unknown)) or query!r}; allowed: {FORMS}"
        )
    path_of = _near_path if where == "local" else _far_path
    python, cache, tool = (path_of(text, name, settings.get(name)) for name in _SETTINGS)
    if where == "local" and cache is None:
        return Address("local", python=python or sys.executable, tool=tool)
    if found := _SSH.fullmatch(where):
        port = int(found["port"]) if found["port"] else None
        if port is None or 0 < port < 1 << 16:
            host = found["host"].strip("[]")
            return Address("ssh", host, found["user"], port, python or "python3", cache, tool)
    if found := _ADB.fullmatch(where):
        return Address("adb", found["serial"], python=python or "python3", cache=cache, tool=tool)
    raise BadInputError(f"device {text!r} is not an address; allowed: {FORMS}")


def _near_path(address: str, name: str, value: str | None) -> str | None:
    path = _far_path(address, name, value)
    return str(Path.home() / path) if path and value and value.startswith("~/") else path


def _far_path(address: str, name: str, value: str | None) -> str | None:
    if value is None:
        return None
    path = value.removeprefix("~/")  # every command there starts in the home folder
    if path and path != value and "/" not in path:
        path = f"./{path}"  # a bare name would be looked for among the programs of the system
    if not path or path.startswith(("-", "~")) or not path.isprintable():
        raise BadInputError(f"device {address!r}: {name} {value!r} is not a path on the device")
    return path

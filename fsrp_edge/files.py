"""Files that are either whole or absent, and digests of them."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fsrp_edge.errors import BadInputError

MARK = ".mode"
"""File that tells our temporary folders from others."""
LOCK = ".lock"
"""File by which a process keeps a folder to itself."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds, else remove it.

    It may become a file or a folder. The temporary name keeps the suffix, because exporters look at it.

    Raises:
        BadInputError: nothing may be written there; or a folder was written and a file has its name, or the other way
            round.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise BadInputError(f"{path} can't be written: {error.strerror}; name another place, as with --out") from None
    with beside as folder:
        temporary = Path(folder) / path.name
        usual = Path(folder) / MARK
        usual.touch()
        yield temporary
        if path.exists() and path.is_dir() != temporary.is_dir():
            there, wanted = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
            raise BadInputError(
                f"{path} is {there}, and {wanted} is to be written there; remove it or name another path"
            )
        if temporary.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:  # as the user's umask has it: some writers make files that only their owner can read
            allow(temporary, usual.stat().st_mode)
        temporary.replace(path)


def allow(path: Path, mode: int) -> None:
    """Set a file's mode where it has another: on many network shares nobody may, and all files have one mode."""
    if path.stat().st_mode != mode:
        with suppress(PermissionError):
            path.chmod(mode)


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_path` could not, at any depth of a folder, because its process was killed.

    Folders with a lock of their own are left: another process may be at work there.
    """
    for name, within, files in os.walk(folder):
        path = Path(name)
        if path != folder and LOCK in files:
            within.clear()
        elif path != folder and path.name.startswith(".") and MARK in files:
            shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text by rename."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON by rename; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BadInputError: the file is missing or is not JSON.
    """

    def refuse(constant: str) -> None:
        raise BadInputError(f"{path} is not valid JSON: it has no {constant}")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        raise BadInputError(f"no such file: {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} is not valid JSON: {error}") from None


def files_of(path: Path) -> list[Path]:
    """A file, or all files below a folder, in the order of their names."""
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def bytes_of(path: Path) -> int:
    """Size of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; of a folder, that of its files' names and digests."""
    if path.is_dir():
        return sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files_of(path)})
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def without_folders(value: Any) -> Any:
    """`value` with every absolute path, at any depth, cut down to its last name.

    A report is made to be shared, and an absolute path tells a user's name and how their machine is laid out.
    """
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and re.match(r"[A-Za-z]:[\\/]", value):
        return PureWindowsPath(value).name
    if isinstance(value, str) and re.match(r"[/~]", value):
        return PurePosixPath(value).name
    return value

"""Make an Arm machine of files in a folder: `python tests/bench/arm_root.py .arm`.

It holds Debian's arm64 user-space with Python, aarch64 wheels of both runtimes, and an emulator (QEMU's user mode).
This machine's own apt and pip download and verify them from where they always do; nothing of the machine is changed.
FOLDER/shell is the login shell there: it and everything it starts is aarch64 code.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "bookworm"
PYTHON = "3.11"  # of that suite
PACKAGES = ("python3", "dash", "coreutils", "libstdc++6", "libgomp1")
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
RUN = """#!/bin/sh
exec {folder}/qemu/usr/bin/qemu-aarch64 -cpu cortex-a72 -L {folder}/root {folder}/root/usr/bin/"${{0##*/}}" "$@"
"""
SHELL = """#!/bin/sh
export PATH={folder}/bin
exec {folder}/bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


class CannotBeMadeError(Exception):
    """What this machine lacks."""


def make(folder: Path) -> None:
    """Make `folder`; it appears once it is whole."""
    if sys.platform != "linux" or not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise CannotBeMadeError("needs Debian's apt-get and dpkg-deb")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    unpack(part, "root", "arm64", SUITE, PACKAGES)
    for name in ("bin", "lib"):  # as Debian's installer does, since some packages still say /bin for /usr/bin
        whole = shutil.copytree(part / "root" / name, part / "root/usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(part / "root" / name)
        (part / "root" / name).symlink_to(whole.relative_to(part / "root"))
    # Bookworm's own QEMU, 7.2, crashes on both runtimes.
    unpack(part, "qemu", "amd64", f"{SUITE}-backports", ("qemu-user",))
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)] + ["manylinux2014_aarch64"]
    call(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
        f"--python-version={PYTHON}", *(f"--platform={name}" for name in platforms), f"--constraint={CONSTRAINTS}",
        f"--target={part}/root/usr/local/lib/python{PYTHON}/dist-packages", *WHEELS,
    )  # fmt: skip
    (part / "bin").mkdir()
    for name, text in (("run", RUN), ("shell", SHELL)):
        (part / name).write_text(text.format(folder=folder))
        (part / name).chmod(0o755)
    for program in (part / "root/usr/bin").iterdir():
        (part / "bin" / program.name).symlink_to("../run")
    part.rename(folder)


def unpack(part: Path, name: str, architecture: str, suite: str, packages: tuple[str, ...]) -> None:
    """Unpack Debian packages and what they depend on into part/name; no script of theirs is run."""
    apt = part / f"apt-{architecture}"
    for directory in ("lists/partial", "archives/partial"):
        (apt / directory).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources").write_text(
        "".join(f"deb [signed-by={KEYRING}] {mirror()} {one} main\n" for one in {SUITE, suite})
    )
    get = [
        "apt-get", "-qq", "-y", "-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}",
        "-o", f"Dir::State={apt}", "-o", f"Dir::State::status={apt}/status", "-o", f"Dir::Cache={apt}",
        "-o", f"Dir::Etc::sourcelist={apt}/sources", "-o", "Dir::Etc::sourceparts=-", "-o", "Debug::NoLocking=1",
        "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::parts=-", "-o", "APT::Install-Recommends=false",
    ]  # fmt: skip
    call(*get, "update")
    call(*get, "install", "--download-only", "-t", suite, *packages)
    for package in sorted((apt / "archives").glob("*.deb")):
        call("dpkg-deb", "-x", str(package), str(part / name))
    shutil.rmtree(apt)


def mirror() -> str:
    """Where this machine's own apt downloads from."""
    form = ("--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", f"Codename: {SUITE}")
    known = call("apt-get", "indextargets", *form).split()
    if not known:
        raise CannotBeMadeError(f"this machine's apt does not know Debian {SUITE}")
    return known[0]


def call(*command: str) -> str:
    """Run a command; what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1]
        raise CannotBeMadeError(f"{command[0]} failed: {last}")
    return done.stdout


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    try:
        if not where.exists():
            make(where)
    except CannotBeMadeError as error:
        print(f"no Arm machine can be made here: {error}; its tests will be skipped")

import os
import pty
import select
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture
def on_a_terminal() -> Callable[..., str]:
    """Run a command with a terminal of 80 columns as its stdin, stdout and stderr; returns what it wrote."""
    return _on_a_terminal


def _on_a_terminal(command: list[str], **variables: str) -> str:
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    parent, child = pty.openpty()
    with subprocess.Popen(command, stdout=child, stderr=child, stdin=child, env=environment | variables):
        os.close(child)
        parts = []
        while select.select([parent], [], [], 60)[0]:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux's way of saying that the other side is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(parent)
    return b"".join(parts).decode()

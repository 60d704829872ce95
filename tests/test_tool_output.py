import logging
import os
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import fsrp_edge
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.tool_output import captured_output


def noise() -> None:
    print("from python")
    subprocess.run([sys.executable, "-c", "import os; os.write(2, b'from a process\\n')"], check=True)
    logging.warning("from logging")
    warnings.warn("from a warning", DeprecationWarning, stacklevel=1)


def test_noise_goes_to_the_log_only(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    handlers = list(logging.getLogger().handlers)
    with caplog.at_level(logging.DEBUG, logger="fsrp_edge.tool_output"), captured_output("working"):
        noise()
    assert capfd.readouterr() == ("", "")
    assert "from python" in caplog.text
    assert "from a process" in caplog.text
    assert "from a warning" in caplog.text
    assert logging.getLogger().handlers == handlers
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_failure_shows_what_the_tool_said_last(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToolFailedError) as caught, captured_output("exporting net to onnx"):
        for number in range(20):
            print(f"step {number}")
        raise ValueError("no such operator\n and a stack")
    assert capfd.readouterr() == ("", "")
    lines = str(caught.value).splitlines()
    assert lines[0] == "exporting net to onnx failed: ValueError: no such operator"
    assert lines[-1] == "step 19"
    assert "step 11" not in lines


def test_own_errors_pass_unchanged() -> None:
    with pytest.raises(BadInputError, match=r"^no images$"), captured_output("working"):
        print("noise")
        raise BadInputError("no images")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_hindrance(closed: str, tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from fsrp_edge.tool_output import captured_output\n"
        "for _ in range(2):\n"
        "    with captured_output('working'): os.write(1, b'noise'); os.write(2, b'noise')\n"
        "path = pathlib.Path('written')\n"
        "with path.open('w') as file:\n"
        "    os.write(1, b'said'); os.write(2, b'said')\n"
        "assert path.read_text() == ''\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    package = str(Path(fsrp_edge.__file__).parents[1])
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": package}, check=True)
    assert (tmp_path / "written").exists()


def test_threads_take_turns_and_the_console_is_back_afterwards() -> None:
    """As devices that are measured at the same time do, each of which loads the file here."""
    before = [os.fstat(number).st_ino for number in (1, 2)]
    first_inside, second_inside = threading.Event(), threading.Event()

    def second() -> None:
        first_inside.wait()
        with captured_output("loading"):
            second_inside.set()
            first.join()

    def work() -> None:
        with captured_output("loading"):
            first_inside.set()
            second_inside.wait(timeout=0.2)

    first, other = threading.Thread(target=work), threading.Thread(target=second)
    for thread in (first, other):
        thread.start()
    other.join(timeout=60)
    assert [os.fstat(number).st_ino for number in (1, 2)] == before

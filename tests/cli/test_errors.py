import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, pathlib, sys, tempfile, time
import click
from fsrp_edge import errors
from fsrp_edge.cli.errors import resumable, run, traceback_option, unwind_when_terminated

@click.group()
@traceback_option
def cli(): pass

@cli.command()
@click.argument("kind")
@click.option("--count", type=int)
def go(kind, count):
    if kind == "gate": raise errors.GateFailedError("latency 21 ms, allowed 20 ms")
    if kind == "input": raise errors.BadInputError("no such file: \\x1b[2Jx.pt")
    if kind == "tool": raise errors.ToolFailedError("exporting failed\\nlast lines:\\nsegmentation fault")
    if kind == "bug": raise RuntimeError("odd")
    if kind == "full": pathlib.Path("/dev/full").write_text("x")
    if kind == "empty": raise KeyError()
    if kind == "exit": click.get_current_context().exit(5)
    if kind == "flood":
        for _ in range(100_000): print("x" * 100)
    if kind == "little": print("x")
    if kind == "echo": click.echo("x")
    if kind == "remark": click.echo("x", err=True)
    if kind in ("table", "bars"):
        from rich.text import Text
        from fsrp_edge.cli.console import Screen, print_rows
        if kind == "table": print_rows(("name",), [("x",)] * 2000)
        else: Screen(file=sys.stderr).print(Text("x"))
    if kind == "progress":
        from fsrp_edge import progress
        from fsrp_edge.cli.console import show_progress
        with show_progress(): progress.log("x")
    if kind == "unicode": print("✓")
    if kind == "resumable": resumable()
    if kind in ("sleep", "resumable"):
        with tempfile.TemporaryDirectory():
            print("ready", flush=True)
            time.sleep(60)
    if kind == "deaf":
        class Deaf:
            def __del__(self):
                print("ready", flush=True)
                time.sleep(60)
        Deaf()
        print("went on", flush=True)
        time.sleep(60)
    if kind == "child":
        reading, writing = os.pipe()
        if not (child := os.fork()):
            os.write(writing, b"ready")
            time.sleep(60)
        os.read(reading, 5)
        os.kill(child, 15)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if kind == "modules": print(*sorted({name.partition(".")[0] for name in sys.modules}))

unwind_when_terminated()
sys.exit(run(cli))
"""


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "code", "stderr"),
    [
        ("gate", 1, "error: latency 21 ms, allowed 20 ms\n"),
        ("input", 2, "error: no such file:  [2Jx.pt\n"),
        ("tool", 3, "error: exporting failed\n  last lines:\n  segmentation fault\n"),
        (
            "bug",
            3,
            "error: unexpected RuntimeError: odd\nTo see where, set FSRP_EDGE_TRACEBACK=1 or give --traceback.\n",
        ),
        ("full", 3, "error: the disk is full; free some space and run the same command again\n"),
        ("exit", 5, ""),
        ("fine", 0, ""),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(kind: str, code: int, stderr: str) -> None:
    done = program("go", kind)
    assert (done.returncode, done.stderr, done.stdout) == (code, stderr, "")


def test_an_error_without_text_is_named() -> None:
    assert program("go", "empty").stderr.startswith("error: unexpected KeyError: no message\n")


@pytest.mark.parametrize("arguments", [("go",), ("nope",), ("go", "fine", "--count", "x"), ("--nope",)])
def test_wrong_use_is_2_and_says_how_to_get_help(arguments: tuple[str, ...]) -> None:
    done = program(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


def test_help_is_0() -> None:
    done = program("--help")
    assert done.returncode == 0 and "--traceback" in done.stdout


def test_a_traceback_comes_when_asked_for() -> None:
    for done in (program("--traceback", "go", "bug"), program("go", "bug", FSRP_EDGE_TRACEBACK="1")):
        assert done.returncode == 3
        assert "Traceback (most recent call last)" in done.stderr
        assert "RuntimeError: odd\nerror: unexpected RuntimeError: odd\n" in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGHUP, 129, "terminated"), (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize(("kind", "how"), [("resumable", "; run the same command again to resume"), ("sleep", "")])
def test_signals_clean_up_and_say_how_to_go_on_where_that_is_possible(
    kind: str, how: str, number: int, code: int, word: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "go", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        if word == "terminated":
            process.send_signal(number)  # as `timeout` does
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr == f"\n{word}{how}\n"
    assert not list(tmp_path.iterdir())


def test_a_sigterm_that_python_swallowed_is_not_the_last_one_heard() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "go", "deaf"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in ("ready\n", "went on\n"):
            assert process.stdout.readline() == line
            process.terminate()
            time.sleep(1.1)  # two within a second are taken for one
        try:
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 143 and stderr.endswith("\nterminated\n")


def test_under_nohup_a_terminal_may_go_away() -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", PROGRAM, "go", "sleep"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143


def test_a_child_process_ends_by_sigterm_as_ever() -> None:
    done = program("go", "child")
    assert (done.stdout, done.stderr) == (f"-{signal.SIGTERM:d}\n", "")


def test_processes_of_torchrun_do_not_wait_for_one_another_before_they_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "go", "sleep"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("kind", ["flood", "little", "echo", "table"])
def test_a_reader_that_leaves_is_no_error(kind: str, left: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "go", kind],
        stdout=left,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("kind", "code"), [("remark", 141), ("bars", 141), ("progress", 141), ("gate", 1), ("bug", 3)])
def test_so_is_one_of_stderr_and_what_was_found_is_told_by_the_exit_code(kind: str, code: int, left: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, "go", kind], stderr=left, check=False)
    assert done.returncode == code


@pytest.mark.parametrize(
    ("arguments", "code"), [(("go", "gate"), 1), (("nope",), 2), (("--traceback", "go", "bug"), 3)]
)
def test_a_full_disk_below_stderr_leaves_the_exit_code(arguments: tuple[str, ...], code: int) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], stderr=full, check=False)
    assert done.returncode == code


@pytest.fixture
def left() -> Iterator[int]:
    """The writing end of a pipe whose reader has left."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_terminal_without_unicode_gets_a_substitute() -> None:
    done = program("go", "unicode", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "?\n")


def test_nothing_heavy_is_imported() -> None:
    loaded = set(program("go", "modules").stdout.split())
    assert "click" in loaded
    assert not loaded & {"rich", "pydantic", "torch", "numpy", "jinja2"}


def test_completion_is_answered() -> None:
    done = program(_FSRP_EDGE_COMPLETE="bash_complete", COMP_WORDS="fsrp-edge g", COMP_CWORD="1")
    assert "plain,go" in done.stdout

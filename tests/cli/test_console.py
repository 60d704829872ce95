import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from fsrp_edge import progress
from fsrp_edge.cli.console import LineListener, print_rows

WORK = """
import os, subprocess, time
from pathlib import Path

import click
from fsrp_edge import progress
from fsrp_edge.cli import options
from fsrp_edge.cli.console import show_progress, show_result

@click.command()
@options.output_options
def work():
    with show_progress():
        for epoch in progress.track(range(2), "[bold]epochs"):
            for batch in progress.track(iter(range(3)), "batches", total=3):
                time.sleep(0.3 if epoch == batch == 1 else 0)
            progress.log(f"epoch {epoch} [done]")
        print("noise from Python")
        os.write(1, b"noise from C\\n")
        subprocess.run(["echo", "noise from a child"])
        for item in progress.track(iter(()), "nothing"):
            pass
    show_result({"answer": 42, "loss": float("nan"), "path": Path("a/b")}, ("answer",), [(42,)])

work()
"""


def test_stdout_carries_the_result_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WORK, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {"answer": 42, "loss": None, "path": "a/b"}
    assert "  epoch 0 [done]" in done.stderr.splitlines()
    assert all(f"noise from {source}" in done.stderr for source in ("Python", "C", "a child"))
    assert "\x1b" not in done.stderr and "batches" not in done.stderr  # too short for a line


def test_of_the_processes_of_torchrun_the_first_one_speaks() -> None:
    for given in ([], ["--verbose"]):
        command = [sys.executable, "-c", WORK, *given]
        done = subprocess.run(command, env=os.environ | {"RANK": "1"}, capture_output=True, text=True, check=True)
        assert "epoch" not in done.stderr


def test_titles_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("run\x1b[2J\nof two lines",), [(1,)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "of two lines" in shown.splitlines()[2]


def test_quiet_says_nothing_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", WORK, "--json", "--quiet"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["answer"] == 42
    assert "epoch" not in done.stderr


def test_a_terminal_gets_nested_bars_with_the_time_left(on_a_terminal: Callable[..., str]) -> None:
    text = on_a_terminal([sys.executable, "-c", WORK])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"\[bold\]epochs [━╸╺]+ +1/2", plain)
    assert re.search(r"batches +[━╸╺]+ +\d/3 +(-:--:--|\d:\d\d:\d\d)", plain)
    assert "epoch 1 [done]" in plain


LONG_CAPTURED_WORK = """
import time
from fsrp_edge import progress
from fsrp_edge.cli.console import show_progress
from fsrp_edge.tool_output import captured_output

with show_progress():
    with captured_output("exporting"):
        print("chatter of the exporter")
        for item in progress.track(range(3), "export"):
            time.sleep(0.3)
        progress.log("half way")
"""


def test_bars_stay_alive_while_a_tools_output_is_captured(on_a_terminal: Callable[..., str]) -> None:
    text = on_a_terminal([sys.executable, "-c", LONG_CAPTURED_WORK])
    assert "export" in text and "half way" in text and "chatter" not in text


def test_long_work_writes_a_line_at_once_and_at_its_end() -> None:
    stream = StringIO()
    with progress.listen(LineListener(stream, short_seconds=0, pause_seconds=3600)):
        for _ in progress.track(range(2), "outer"):
            for _ in progress.track((n for n in range(5)), "inner"):
                pass
        progress.log("a\x1bb")
    lines = [re.sub(r"in .*", "in T", line) for line in stream.getvalue().splitlines()]
    inner = ["    inner: 1", "  inner: done in T"]
    assert lines == [*inner, "  outer: 1 of 2", *inner, "outer: done in T", "a b"]


def test_an_interrupted_track_does_not_claim_to_be_done() -> None:
    stream = StringIO()
    with progress.listen(LineListener(stream, short_seconds=0)), pytest.raises(ZeroDivisionError):
        for _ in progress.track(range(2), "work"):
            raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_short_work_writes_nothing() -> None:
    stream = StringIO()
    with progress.listen(LineListener(stream, short_seconds=3600)):
        assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_rows_show_every_cell_and_the_footer_stays_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = "Next: fsrp-edge prune " + "x" * 100
    print_rows(
        ("layer", "filters"),
        [("layer1.0.[bold]conv1", 16), ("\x1b[2J" + "q" * 90, 1234)],
        footer=f"a\n{command}",
    )
    out = capsys.readouterr().out
    assert re.search(r"layer1\.0\.\[bold\]conv1 +16", out) and "1234" in out
    assert sum(line.count("q") for line in out.splitlines()) == 90
    assert out.endswith(f"\na\n{command}\n") and "\x1b" not in out


def test_words_stand_to_the_left_and_figures_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("layer", "ms", "prunable"), [("a", "12.5 ms", "yes"), ("b", "–", "these are the outputs")])
    _, header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.index("12.5 ms") + len("12.5 ms") == second.index("–") + 1 == header.index("ms") + 2
    assert first.index("yes") == second.index("these") == header.index("prunable")


def test_names_stay_in_one_piece(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "artifacts/model-for-a-board-fp32.onnx"
    print_rows(("file", "check", "found"), [(name, "parity in onnxruntime", "a long story " * 9)])
    out = capsys.readouterr().out
    assert name in out and max(map(len, out.splitlines())) <= 80


def test_columns_move_together_before_a_word_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = [letter * 11 for letter in "abcdef"]  # 80 columns with their rules and edges, 92 as wide as usual
    print_rows(("name", *"bcdef"), [words])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "aaa" in line)
    assert row.split() == words


def test_progress_does_not_wait_for_torch() -> None:
    code = "import sys, fsrp_edge.cli.console; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


VERBOSE = """
from pathlib import Path

import click
from fsrp_edge import progress
from fsrp_edge.cli import options
from fsrp_edge.cli.console import show_progress
from fsrp_edge.tool_output import captured_output

@click.command()
@options.output_options
def work():
    with progress.log_to(Path("run.log")), show_progress():
        for _ in progress.track(range(2), "a quick step"):
            with captured_output("exporting"):
                print("chatter")

work()
"""


def test_verbose_tells_every_step_and_what_tools_say(tmp_path: Path) -> None:
    def run(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", VERBOSE.replace("run.log", str(tmp_path / "run.log")), *given]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    verbose = run("-v").stderr
    assert "a quick step: done in" in verbose and verbose.count("exporting: chatter") == 2
    assert run().stderr == ""
    assert (tmp_path / "run.log").read_text().count("exporting: chatter") == 4  # kept in any case
    both = run("--quiet", "--verbose")
    assert both.returncode == 2 and "exclude each other" in both.stderr


def test_commands_that_compute_tell_when_there_are_more_threads_than_cores() -> None:
    threads = 10 * (os.cpu_count() or 1)
    work = (
        "import sys, torch; from fsrp_edge import progress; from fsrp_edge.cli.console import show_computing\n"
        f"torch.set_num_threads({threads})\n"
        "with show_computing():\n"
        "    for _ in sys.argv[1:]: list(progress.track([1], 'work'))"
    )

    def run(*given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", work, *given], capture_output=True, text=True, check=True)

    done = run("some", "more")
    assert done.stderr.count(f"{threads} threads") == done.stderr.count("OMP_NUM_THREADS=") == 1 and done.stdout == ""
    assert run().stderr == "", "nothing was computed"

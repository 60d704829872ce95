"""The commands on this machine; devices behind ssh are in test_remote_shell.py."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fsrp_edge.bench.results import BenchResults
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.files import write_json


@pytest.fixture(scope="module")
def measured(onnx_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "before.json"
    assert run(cli, ["bench", "--sustained", "0.2s", str(onnx_file), "--out", str(out), "--quiet"]) == 0
    return out


def slower(path, factor: float, *, reason: str | None = None):
    """The same results, every time multiplied."""
    content = json.loads(path.read_text())
    (measurement,) = content["measurements"]
    for part in measurement["rounds"]:
        part["times_ms"] = [time * factor for time in part["times_ms"]]
    latency = measurement["latency"]
    latency["p50_ms"] *= factor
    latency["valid"], latency["invalid_because"] = reason is None, [reason] if reason else []
    other = path.with_name(f"after-{factor}-{reason}.json")
    write_json(other, content)
    return str(other)


def test_bench_is_short_for_bench_measure(measured, onnx_file, tmp_path):
    out = tmp_path / "again.json"
    assert run(cli, ["bench", "measure", str(onnx_file), "--quick", "--out", str(out)]) == 0
    first, second = BenchResults.load(measured), BenchResults.load(out)
    assert first.measurements[0].latency.sha256 == second.measurements[0].latency.sha256
    assert second.measurements[0].agreement_note == "measured on this machine"


def test_what_was_measured_is_shown_where_it_cannot_be_written(onnx_file, tmp_path):
    bench = [sys.executable, "-m", "fsrp_edge", "bench", "--sustained", "0.2s", str(onnx_file), "--out", "full.json"]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))
    done = subprocess.run(bench, cwd=tmp_path, preexec_fn=full, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "File too large" in done.stderr
    assert "tiny.onnx" in done.stdout and not list(tmp_path.iterdir())


def test_what_was_measured_is_written_where_nobody_reads_the_table(onnx_file, tmp_path):
    bench = [sys.executable, "-m", "fsrp_edge", "bench", "--sustained", "0.2s", str(onnx_file)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*bench, "--out", "out.json", "--csv", "out.csv"],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert done.returncode, done.stderr
    assert [one.latency.model for one in BenchResults.load(tmp_path / "out.json").measurements] == ["tiny.onnx"]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGHUP, 129, "terminated"), (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_keep_what_was_finished(onnx_file, tmp_path, number, code, word):
    """A device with both files, and the first file of one that hangs with the second."""
    hanging, begun = tmp_path / "python", tmp_path / "begun"
    hanging.write_text(
        f'#!/bin/sh\ncase "$*" in *slow.onnx*) touch {begun}; exec sleep 600;; esac\nexec {sys.executable} "$@"\n'
    )
    hanging.chmod(0o755)
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(onnx_file.read_bytes())
    bench = [sys.executable, "-m", "fsrp_edge", "bench", str(onnx_file), str(slow), "--sustained", "0.2s", "--verbose"]
    bench += ["--device", "local", "--device", f"local?python={hanging}", "--out", str(tmp_path / "out.json")]
    with subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any("done in" in line for line in process.stderr)
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        shown, said = process.communicate(timeout=60)
    assert process.returncode == code and said.endswith(f"{word}\n"), said
    assert "slow.onnx" in shown
    results = BenchResults.load(tmp_path / "out.json")
    assert [one.latency.model for one in results.measurements] == ["tiny.onnx", "slow.onnx", "tiny.onnx"]
    assert [one.message for one in results.failures] == ["slow.onnx: stopped"]


def test_compare_is_a_gate(measured, capfd):
    compare = ["bench", "compare", str(measured)]
    assert run(cli, [*compare, slower(measured, 2.0), "--fail-slower", "5%"]) == 1
    assert "error: tiny.onnx is 100.0% slower, allowed: 5.0%" in capfd.readouterr().err
    assert run(cli, [*compare, slower(measured, 2.0), "--fail-slower", "150%"]) == 0
    assert run(cli, [*compare, slower(measured, 0.5), "--fail-slower", "5%"]) == 0
    capfd.readouterr()
    assert run(cli, [*compare, slower(measured, 2.0), "--json"]) == 0
    (record,) = json.loads(capfd.readouterr().out)
    assert (record["change"], record["significant"]) == (pytest.approx(1.0), True)
    other = Path(slower(measured, 2.0))
    here = BenchResults.load(other).measurements[0].latency.device
    other.write_text(other.read_text().replace(json.dumps(here), '"local: another CPU, 4 cores"'))
    assert run(cli, [*compare, str(other), "--fail-slower", "5%"]) == 1
    shown = capfd.readouterr()
    assert "→" in shown.out and "allowed: 5.0%" in shown.err and "became local: another CPU, 4 cores" in shown.err


def test_what_was_lost_fails_the_gate_and_what_was_added_does_not(measured, capfd):
    content = json.loads(measured.read_text())
    (measurement,) = content["measurements"]
    gone = {**measurement, "latency": {**measurement["latency"], "model": "gone.onnx"}}
    two, failed = measured.with_name("two.json"), measured.with_name("failed.json")
    write_json(two, content | {"measurements": [measurement, gone]})
    write_json(failed, content | {"failures": [{"address": "local", "message": "gone.onnx: killed"}]})
    compare = ["bench", "compare", str(two), str(failed)]
    assert run(cli, compare) == 0
    assert "not compared: failed after: gone.onnx: killed" in capfd.readouterr().out
    assert run(cli, [*compare, "--fail-slower", "5%"]) == 1
    said = capfd.readouterr().err
    assert "gone.onnx on local (onnxruntime, 1 thread) was measured only before" in said
    assert "failed after: gone.onnx: killed" in said
    assert run(cli, ["bench", "compare", str(failed), str(two), "--fail-slower", "5%"]) == 0
    told = capfd.readouterr().out
    assert "not compared: gone.onnx on local (onnxruntime, 1 thread) was measured only after" in told
    assert "not compared: failed before: gone.onnx: killed" in told


def test_a_comparison_tells_that_a_measurement_is_not_valid(measured, capfd):
    quiet, throttled = slower(measured, 1.0), slower(measured, 2.0, reason="the device was throttled")
    assert run(cli, ["bench", "compare", quiet, throttled, "--fail-slower", "5%"]) == 1
    found = capfd.readouterr()
    told = " ".join(found.out.split())
    assert "not valid: tiny.onnx on " in told and "after: the device was throttled" in told
    assert "allowed: 5.0%; not valid: after: the device was throttled" in " ".join(found.err.split())


def test_require_valid_is_a_gate(measured, capfd):
    throttled = slower(measured, 1.0, reason="the device was throttled")
    assert run(cli, ["bench", "compare", throttled, throttled]) == 0
    assert run(cli, ["bench", "compare", throttled, throttled, "--require-valid"]) == 1
    assert "not valid: the device was throttled" in capfd.readouterr().err


def test_sustained_shows_latency_over_time(onnx_file, capfd, tmp_path):
    picture = tmp_path / "time.png"
    assert run(cli, ["bench", str(onnx_file), "--sustained", "1s", "--picture", str(picture)]) == 0
    assert "tiny.onnx" in capfd.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sustained_refuses_programs_that_tell_means(tflite_file, capfd):
    assert run(cli, ["bench", str(tflite_file), "--sustained", "1s", "--runtime", "tflite-benchmark"]) == 2
    assert "--sustained shows latency over time, of which benchmark_model tells nothing" in capfd.readouterr().err


def test_devices_check_tells_what_every_format_needs_in_words_to_paste(onnx_file, tflite_file, tmp_path, capfd):
    python = tmp_path / "my venv" / "python"
    python.parent.mkdir()
    (tmp_path / "ncnn.py").write_text("raise ImportError('not installed')")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    address = f"local?python={python}"
    assert run(cli, ["devices", "check", address]) == 0
    install, ready = capfd.readouterr().out.splitlines()[-2:]
    assert install == f"To measure every format there: '{python}' -m pip install ncnn"
    assert ready == f"Ready: fsrp-edge bench MODEL --device '{address}'"


def test_picture_holds_medians_and_heat():
    from fsrp_edge import plots

    times = [10.0] * 500 + [20.0] * 500
    figure = plots.over_time({"net on pi": (times, [(0.5, 50.0), (14.5, 80.0)])}, parts=10)
    place, beside = figure.axes
    (line,), (heat,) = place.lines, beside.lines
    assert line.get_ydata().tolist() == [10.0] * 5 + [20.0] * 5
    assert line.get_xdata().tolist() == pytest.approx([1, 2, 3, 4, 5, 7, 9, 11, 13, 15])
    assert list(heat.get_ydata()) == [50.0, 80.0]
    plots.pyplot().close(figure)


@pytest.mark.parametrize(
    "options",
    [
        ["--quick", "--official"],
        ["--sustained", "30"],
        ["--sustained", "0m"],
        ["--device", "pi4"],
        ["--runtime", "litert"],
        ["--threads", "0"],
    ],
)
def test_wrong_use(onnx_file, options):
    assert run(cli, ["bench", str(onnx_file), *options]) == 2


def test_compare_refuses_other_files(measured, onnx_file):
    assert run(cli, ["bench", "compare", str(measured), str(onnx_file)]) == 2
    assert run(cli, ["bench", "compare", str(measured), str(measured), "--fail-slower", "5"]) == 2

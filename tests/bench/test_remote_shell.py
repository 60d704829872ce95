"""Devices behind a real sshd on the loopback address; the `server` fixture checks that nothing stays there."""

import dataclasses
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from fsrp_edge.bench import agent_process, remote_shell
from fsrp_edge.bench.address import parse_address
from fsrp_edge.bench.describe import describe, require_ready
from fsrp_edge.bench.measure import measure, measure_on, try_on
from fsrp_edge.bench.remote_shell import connect
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.bench.setup import Method, Setup
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.files import sha256_file
from fsrp_edge.pipeline.compress import compress
from fsrp_edge.pipeline.options import CompressOptions
from tests.sshd import Server

SHORT = Method(warmup_runs=2, warmup_seconds=0, runs=6, seconds=0, rounds=2)
LONG = Method(warmup_runs=1, warmup_seconds=0, runs=1, seconds=40, rounds=1)
NEVER = threading.Event()
"""Nobody asks to give up."""
REPOSITORY = Path(agent_process.__file__).parents[2]


@pytest.fixture
def interpreter(tmp_path):
    """A device's own Python: a script that puts modules of a folder before the installed ones."""

    def make(code: str = "", *options: str) -> str:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "onnxruntime.py").write_text(code)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/modules exec {sys.executable} {" ".join(options)} "$@"\n')
        script.chmod(0o755)
        return str(script)

    return make


@pytest.mark.parametrize(("file", "runtime"), [("onnx_file", "onnxruntime"), ("tflite_file", "litert")])
def test_measures_and_compares_outputs(request, server, file, runtime):
    path = request.getfixturevalue(file)
    measurement = measure(path, device=server.address(), method=SHORT)
    latency = measurement.latency
    assert (latency.model, latency.sha256, latency.runtime) == (path.name, sha256_file(path), runtime)
    assert latency.device.startswith(f"ssh://127.0.0.1:{server.port}: ")
    assert latency.runs == len(measurement.times_ms) == 6
    assert measurement.agreement is not None
    assert (measurement.agreement.inputs, measurement.agreement.passed) == (3, True)
    assert measurement.agreement.relative_error <= 1e-6


def test_one_connection_serves_everything_and_files_take_turns(server, onnx_file, tflite_file, monkeypatch):
    order = []
    real = agent_process.run_agent

    def recorded(*arguments, work, **rest):
        order.append(work.split()[0])
        return real(*arguments, work=work, **rest)

    monkeypatch.setattr("fsrp_edge.bench.measure.run_agent", recorded)
    before = logins(server)
    measure_on(parse_address(server.address()), [onnx_file, tflite_file], Setup(), method=SHORT)
    assert order == ["tiny.onnx", "tiny.tflite"] * 2
    assert logins(server) == before + 1


def test_an_onnx_file_that_keeps_its_weights_in_another_one(server, onnx_file, tmp_path):
    """As torch's own exporter writes it."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(onnx_file), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert "weights" in {file.name for file in tmp_path.iterdir()}
    measurement = measure(path, device=server.address(), method=SHORT)
    assert measurement.latency.model == "apart.onnx" and measurement.agreement.passed
    (tmp_path / "weights").unlink()
    with pytest.raises(ToolFailedError, match=r"apart\.onnx on .*External data .*weights"):
        measure(path, device=server.address(), method=SHORT)


def logins(server) -> int:
    return (server.folder / "log").read_text().count("Accepted publickey")


def test_a_file_goes_only_where_its_bytes_are_not(server, tmp_path):
    path, cache = tmp_path / "net;touch x.onnx", tmp_path / "cache of $HOME"
    path.write_bytes(b"one")
    address = parse_address(server.address(cache=str(cache)))
    with connect(address, NEVER) as device:
        assert Path(device.scratch).parent == cache  # the usual place may be too small for what the cache is to hold
        there = Path(device.put(path))
        assert (there.parent, there.read_bytes()) == (cache, b"one")
        first = there.stat()
    with connect(address, NEVER) as device:
        assert device.put(path) == str(there)
        assert there.stat().st_mtime_ns == first.st_mtime_ns
        assert there.stat().st_ino == first.st_ino
    there.write_bytes(b"damaged")
    with connect(address, NEVER) as device:
        assert Path(device.put(path)).read_bytes() == b"one"
        path.write_bytes(b"two")
        other = Path(device.put(path))
    assert other != there
    assert sorted(item.read_bytes() for item in cache.iterdir()) == [b"one", b"two"]


def test_scratch_holds_the_files_without_a_cache_and_is_private(server, onnx_file):
    with connect(parse_address(server.address()), NEVER) as device:
        there = Path(device.put(onnx_file))
        assert there.parent.stat().st_mode & 0o077 == 0
        assert there.is_file()
    assert not there.parent.exists()


def test_nothing_is_left_on_a_device_after_the_connection_was_lost(server, onnx_file, tflite_file):
    with connect(parse_address(server.address()), NEVER) as device:
        device.put(onnx_file)
        server.cut()
        server.wait_for(lambda: not server.scratch_folders())
        with pytest.raises(ToolFailedError, match=r"copying tiny\.tflite failed: the connection was lost"):
            device.put(tflite_file)  # over a new connection, which the client makes by itself
        with pytest.raises(ToolFailedError, match="the connection was lost"), tempfile.TemporaryFile() as errors:
            device.start(["true"], {}, errors)
    assert server.scratch_folders() == set()


def test_events_arrive_while_the_agent_runs(server, onnx_file):
    with connect(parse_address(server.address()), NEVER) as device, tempfile.TemporaryFile() as errors:
        command = [sys.executable, device.put(agent_process.AGENT), "--model", device.put(onnx_file)]
        child = device.start([*command, "--runtime", "onnxruntime", "--seconds", "600"], {"A": "b c"}, errors)
        try:
            assert json.loads(child.stdout.readline())["event"] == "hello"
            assert json.loads(child.stdout.readline())["event"] == "progress"
            assert child.poll() is None
        finally:
            child.kill()
            child.wait()


@pytest.mark.parametrize("name", ["a b", "100%d", "${HOME}", 'a"b', "x" * 75])
def test_any_folder_for_temporary_files(server, onnx_file, tmp_path, monkeypatch, name):
    """The socket of the connection lies there, in a path that ssh reads in its own way, or finds too long."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    before = logins(server)
    with connect(parse_address(server.address()), NEVER) as device:
        assert device.put(onnx_file)
    assert logins(server) == before + 1


@pytest.mark.parametrize("setting", ["StdinNull yes", "ForkAfterAuthentication yes", "SessionType none"])
def test_a_configuration_for_other_uses_of_ssh(server, onnx_file, setting):
    if not remote_shell._ssh_knows(remote_shell._SINCE_8_7):
        pytest.skip("this ssh is older than these settings")
    configuration = server.folder / "ssh_config"
    before = configuration.read_text()
    configuration.write_text(f"{before}{setting}\n")
    try:
        with connect(parse_address(server.address()), NEVER) as device:
            assert device.put(onnx_file)
    finally:
        configuration.write_text(before)


def test_an_older_ssh_is_not_given_what_it_does_not_know(server, tmp_path, monkeypatch):
    older = tmp_path / "ssh"
    older.write_text(
        '#!/bin/sh\ncase "$*" in *SessionType*) echo "Bad configuration option: sessiontype" >&2; exit 255;; esac\n'
        f'exec {server.folder}/bin/ssh "$@"\n'
    )
    older.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with connect(parse_address(server.address()), NEVER) as device:
        assert device.scratch


class TestRefusals:
    """Each is one clear error with exit code 3."""

    @pytest.mark.parametrize("known", ["another key", "no key"])
    def test_host_key(self, server, onnx_file, known, capfd):
        path = server.folder / "known_hosts"
        good = path.read_text()
        user_key = (server.folder / "user_key.pub").read_text()
        path.write_text(f"[127.0.0.1]:{server.port} {user_key}" if known == "another key" else "")
        try:
            assert run(cli, ["bench", str(onnx_file), "--device", server.address(), "--quiet"]) == 3
        finally:
            path.write_text(good)
        said = capfd.readouterr().err
        assert f"cannot use ssh://127.0.0.1:{server.port}: Host key verification failed." in said
        assert "this must work by hand, without a question: ssh -l" in said

    def test_user(self, server, onnx_file):
        with pytest.raises(ToolFailedError, match=r"no-such-user.*Permission denied"):
            measure(onnx_file, device=server.address(user="no-such-user"), method=SHORT)

    def test_nobody_listens(self, server, onnx_file):
        with pytest.raises(ToolFailedError, match=r"cannot use ssh://127.0.0.1:1: .*Connection refused"):
            measure(onnx_file, device="ssh://127.0.0.1:1", method=SHORT)

    def test_no_client(self, server, onnx_file, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ToolFailedError, match="there is no 'ssh' on this machine"):
            measure(onnx_file, device=server.address(), method=SHORT)

    def test_no_python(self, server, onnx_file):
        with pytest.raises(ToolFailedError, match=r"'python9 -x' is not there; name .* with \?python=PATH"):
            measure(onnx_file, device=server.address(python="python9 -x"), method=SHORT)

    def test_no_runtime(self, server, onnx_file, interpreter):
        python = interpreter("raise ImportError('no wheel for this board')")
        with pytest.raises(ToolFailedError, match=r"no wheel for this board; install it there with: .*onnxruntime"):
            measure(onnx_file, device=server.address(python=python), method=SHORT)

    def test_no_numpy(self, server, onnx_file, interpreter):
        python = interpreter("", "-S")
        with pytest.raises(ToolFailedError, match=r"cannot import numpy: .*python -m pip install numpy"):
            measure(onnx_file, device=server.address(python=python), method=SHORT)

    def test_old_runtime_is_named_with_its_version(self, server, onnx_file, interpreter):
        python = interpreter(
            "__version__ = '1.4.0'\nclass SessionOptions:\n    def add_session_config_entry(self, *a): pass\n"
            "def InferenceSession(*a, **k):\n"
            "    raise RuntimeError('Unsupported model IR version: 8, max supported IR version: 7')"
        )
        with pytest.raises(ToolFailedError, match=r"on ssh://.*: onnxruntime 1\.4\.0: RuntimeError: Unsupported"):
            measure(onnx_file, device=server.address(python=python), method=SHORT)

    def test_full_disk(self, server, onnx_file):
        with connect(parse_address(server.address()), NEVER) as device:
            (Path(device.scratch) / "part").symlink_to("/dev/full")
            with pytest.raises(ToolFailedError, match=r"copying tiny\.onnx failed: .*No space left on device"):
                device.put(onnx_file)

    def test_full_disk_of_a_fleet(self, server, onnx_file, tmp_path, monkeypatch, capfd):
        """A far side without room for a file: local results are kept, and nothing stays there."""
        full = tmp_path / "full"
        full.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(full)], check=False).returncode:
            pytest.skip("needs to be allowed to mount a small disk")
        try:
            real = remote_shell._ssh
            monkeypatch.setattr(
                remote_shell, "_ssh", lambda *given: dataclasses.replace(real(*given), scratch=str(full))
            )
            out = tmp_path / "results.json"
            devices = ["--device", "local", "--device", server.address()]
            assert run(cli, ["bench", str(onnx_file), *devices, "--sustained", "0.2s", "--out", str(out)]) == 3
            assert "No space left on device" in capfd.readouterr().err
            assert [one.address for one in BenchResults.load(out).measurements] == ["local"]
            server.wait_idle()
            assert list(full.iterdir()) == []
        finally:
            subprocess.run(["umount", str(full)], check=True)


class TestInTheMiddle:
    def measuring(self, server, onnx_file, pool):
        future = pool.submit(measure, onnx_file, device=server.address(), method=LONG)
        end = time.monotonic() + 60
        while not server.agents():
            assert time.monotonic() < end and not future.done(), future
            time.sleep(0.05)
        return future

    def test_connection_cut(self, server, onnx_file):
        with ThreadPoolExecutor() as pool:
            future = self.measuring(server, onnx_file, pool)
            agents = server.agents()
            server.cut()
            with pytest.raises(ToolFailedError, match=r"tiny\.onnx on ssh://.* was lost with the connection"):
                future.result(timeout=60)
        server.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in agents))

    def test_agent_killed(self, server, onnx_file):
        with ThreadPoolExecutor() as pool:
            future = self.measuring(server, onnx_file, pool)
            for pid in server.agents():
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(ToolFailedError, match=r"tiny\.onnx on ssh://.* was killed on the device"):
                future.result(timeout=60)

    @pytest.mark.parametrize("how", ["stopped", "cut"])
    def test_a_benchmark_program_ends_with_the_measurement(self, server, tflite_file, tmp_path, how):
        """It says nothing until its end, so that it does not notice by itself."""
        begun, stop = tmp_path / "begun", threading.Event()
        program = tmp_path / "benchmark_model"
        program.write_text(f"#!/bin/sh\nln -s $$ {begun}\nexec sleep 600\n")
        program.chmod(0o755)
        address = parse_address(server.address(tool=str(program)))
        with ThreadPoolExecutor() as pool:
            setup = Setup("tflite-benchmark")
            future = pool.submit(try_on, address, [tflite_file], setup, method=SHORT, stop=stop, keep_going=False)
            server.wait_for(begun.is_symlink)
            if how == "cut":
                server.cut()
            else:
                stop.set()
            with pytest.raises(ToolFailedError):
                future.result(timeout=60)
        server.wait_for(lambda: not Path(f"/proc/{begun.readlink()}").exists(), seconds=10)

    def test_what_hangs_ends_before_the_next_file_is_measured(self, server, onnx_file, tmp_path, monkeypatch):
        monkeypatch.setattr(agent_process, "SILENCE_SECONDS", 1.0)
        begun, beside, python = tmp_path / "begun", tmp_path / "beside", tmp_path / "python"
        python.write_text(
            f"#!/bin/sh\nif [ -e {begun} ]; then\n  grep -q sleep /proc/$(cat {begun})/cmdline && touch {beside}\n"
            '  echo \'{"event": "error", "message": "the next"}\'\n  exit 3\nfi\n'
            f"echo $$ > {begun}\nexec sleep 600\n"
        )
        python.chmod(0o755)
        address = parse_address(server.address(python=str(python)))
        hung, other = try_on(address, [onnx_file, onnx_file], Setup(), method=SHORT, stop=NEVER)
        assert "no sign of life" in str(hung) and "the next" in str(other)
        assert not beside.exists()

    def test_a_device_that_cannot_be_rid_of_what_hangs_is_told(self, server, monkeypatch):
        with connect(parse_address(server.address()), NEVER) as device, tempfile.TemporaryFile() as errors:
            monkeypatch.setattr(remote_shell, "_END", "exit 1")
            device.end("mark")
            with pytest.raises(ToolFailedError, match="ending what hangs there failed"):
                device.start(["true"], {}, errors)

    def test_a_command_that_hangs(self, server, onnx_file, monkeypatch):
        """A disk that does not answer, as far as a shell sees it; the fixture waits until nothing of it is left."""
        monkeypatch.setattr(remote_shell, "SHELL_SECONDS", 0.5)
        monkeypatch.setattr(remote_shell, "_quote", lambda _: "$(sleep 600)")
        did_not_end = pytest.raises(ToolFailedError, match=r"looking for files did not end within \d s; stopped")
        with connect(parse_address(server.address()), NEVER) as device, did_not_end:
            device.put(onnx_file)

    @pytest.mark.parametrize(
        ("sent", "code"),
        [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
    )
    def test_interrupted(self, server, onnx_file, sent, code):
        """Even killed outright, this side leaves nothing on the device: the far end notices."""
        command = [
            sys.executable,
            "-m",
            "fsrp_edge.cli",
            "bench",
            str(onnx_file),
            "--device",
            server.address(),
        ]
        command[1:3] = ["-c", "from fsrp_edge.cli import main; main()"]
        child = subprocess.Popen(
            [*command, "--sustained", "40s"],
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            server.wait_for(server.agents)
            child.send_signal(sent)
            assert child.wait(timeout=60) == code
        finally:
            child.kill()


class TestDescription:
    def test_of_a_device(self, server):
        device = describe(parse_address(server.address()))
        assert (device.python, device.cores) == (platform.python_version(), len(os.sched_getaffinity(0)))
        assert device.free_disk_mb > 0
        assert device.packages["numpy"].version == numpy.__version__
        assert device.missing(["numpy"]) == []

    def test_what_is_missing_is_named_before_the_long_work(self, server, interpreter):
        python = interpreter("", "-S")
        address = parse_address(server.address(python=python))
        with pytest.raises(ToolFailedError, match=r"lacks numpy, .*; install there with: .* pip install numpy"):
            require_ready(address, ["litert"])
        assert describe(address).python == platform.python_version()

    def test_compress_asks_the_device_first(self, server, tmp_path):
        """The checkpoint is no network: that is not even looked at while the device cannot be used."""
        checkpoint = tmp_path / "net.pt"
        checkpoint.write_bytes(b"")
        options = CompressOptions(
            checkpoint=checkpoint, target="raspberry-pi-4", bench_on=server.address(python="python9")
        )
        with pytest.raises(ToolFailedError, match="'python9' is not there"):
            compress(options)
        jetson = options.model_copy(update={"target": "jetson-nano", "bench_on": server.address()})
        with pytest.raises(ToolFailedError, match="lacks trtexec, which runs TensorRT"):
            compress(jetson)


class TestCommand:
    def test_devices_check(self, server, interpreter, capfd):
        assert run(cli, ["devices", "check", server.address()]) == 0
        assert "Ready: fsrp-edge bench MODEL" in capfd.readouterr().out
        assert run(cli, ["devices", "check", server.address(python=interpreter("", "-S")), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["packages"]["numpy"]["install"] == "numpy"
        assert run(cli, ["devices", "check", server.address(user="no-such-user")]) == 3
        assert run(cli, ["devices", "check", "pi4"]) == 2

    def test_a_fleet_keeps_what_was_measured(self, server, onnx_file, tmp_path, capfd, monkeypatch):
        monkeypatch.setenv("COLUMNS", "160")
        out, table = tmp_path / "results.json", tmp_path / "results.csv"
        bad = server.address(python="python9")
        devices = ["--device", "local", "--device", server.address(), "--device", bad]
        code = run(
            cli,
            [
                "bench",
                str(onnx_file),
                *devices,
                "--sustained",
                "0.2s",
                "--out",
                str(out),
                "--csv",
                str(table),
            ],
        )
        said = capfd.readouterr()
        assert code == 3
        assert "error: tiny.onnx on ssh://" in said.err
        assert "'python9' is not there" in said.err
        results = BenchResults.load(out)
        address = f"ssh://127.0.0.1:{server.port}"
        assert [measurement.address for measurement in results.measurements] == ["local", address]
        assert [failure.address for failure in results.failures] == [address]
        assert len(table.read_text().splitlines()) == 3

    def test_a_file_that_cannot_be_run_takes_no_other_along(self, server, onnx_file, write_onnx, tmp_path, capfd):
        """Its height and width are open, so neither side knows what to feed it."""
        size, out = write_onnx(tmp_path / "size.onnx", (1, 3, "height", "width")), tmp_path / "results.json"
        command = ["bench", str(size), str(onnx_file), "--sustained", "0.2s", "--out", str(out)]
        assert run(cli, [*command, "--device", server.address()]) == 3
        said = capfd.readouterr().err
        assert "has the open shape [1, 3, 'height', 'width']; fix it at export" in said and "unexpected" not in said
        results = BenchResults.load(out)
        assert [one.latency.model for one in results.measurements] == ["tiny.onnx"]
        assert len(results.failures) == 1

    def test_other_outputs_fail(self, server, onnx_file, interpreter, capfd):
        """A runtime whose results are wrong, made of the real one."""
        python = interpreter(
            "import sys\nhere = sys.path.pop(0)\ndel sys.modules['onnxruntime']\nimport onnxruntime\n"
            "real = onnxruntime.InferenceSession\n"
            "class Wrong(real):\n"
            "    def run(self, *given):\n        return [value + 1 for value in super().run(*given)]\n"
            "onnxruntime.InferenceSession = Wrong\n"
        )
        device = server.address(python=python)
        assert run(cli, ["bench", str(onnx_file), "--sustained", "0.2s", "--device", device]) == 1
        assert "tiny.onnx computes something else on ssh://" in capfd.readouterr().err


@pytest.fixture
def phone(tmp_path, monkeypatch) -> Path:
    """No phone here: a stand-in records the command lines in `log` and runs what `adb shell` would run, in `data`."""
    log, temporary, programs = tmp_path / "log", tmp_path / "data", tmp_path / "bin"
    temporary.mkdir()
    programs.mkdir()
    adb = programs / "adb"
    adb.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(log)!r}, 'a').write(repr(sys.argv[1:]) + '\\n')\n"
        "assert sys.argv[1:5] == ['-s', 'emulator-5554', 'shell', '-T'], sys.argv\n"
        f"command = sys.argv[5].replace('/data/local/tmp', {str(temporary)!r})\n"
        "os.execvp('sh', ['sh', '-c', command])\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def test_adb_commands(onnx_file, phone):
    measurement = measure(onnx_file, device=f"adb:emulator-5554?python={sys.executable}", method=SHORT)
    assert measurement.address == "adb:emulator-5554"
    assert measurement.agreement.passed
    assert list((phone / "data").iterdir()) == []
    lines = [line for line in (phone / "log").read_text().splitlines() if "--model" in line]
    assert len(lines) == SHORT.rounds
    assert "env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 FSRP_EDGE_MARK=" in lines[0]
    assert f" TMPDIR={phone / 'data'}/fsrp-edge." in lines[0]


def test_a_command_that_is_terminated_leaves_nothing_here_and_on_the_device(onnx_file, phone, monkeypatch):
    log = phone / "log"
    log.touch()
    command = [sys.executable, "-c", "from fsrp_edge.cli import main; main()", "bench", str(onnx_file)]
    device = f"adb:emulator-5554?python={sys.executable}"
    with tempfile.TemporaryDirectory() as folder:  # short enough for a socket
        monkeypatch.setenv("TMPDIR", folder)
        with subprocess.Popen(
            [*command, "--device", device, "--sustained", "40s"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        ) as child:
            Server.wait_for(lambda: "--model" in log.read_text())
            assert list(Path(folder).glob("fsrp-edge-*"))
            child.terminate()
            _, said = child.communicate(timeout=60)
        assert (child.returncode, said) == (143, "\nterminated\n")
        left = [*Path(folder).iterdir(), *(phone / "data").iterdir()]
        assert {path.name for path in left} <= {".ses"}  # onnxruntime's own, whatever ends it


def test_a_login_script_that_ends_no_line(onnx_file, tmp_path, monkeypatch):
    adb, temporary = tmp_path / "adb", tmp_path / "data"
    temporary.mkdir()
    adb.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint('Welcome! $ ', end='', flush=True)\n"
        f"os.execvp('sh', ['sh', '-c', 'exec ' + sys.argv[-1].replace('/data/local/tmp', {str(temporary)!r})])\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(remote_shell, "CONNECT_SECONDS", 5)
    assert measure(onnx_file, device=f"adb:?python={sys.executable}", method=SHORT).agreement.passed
    assert list(temporary.iterdir()) == []


def test_connecting_ends_when_it_is_told_to_stop(onnx_file):
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:
        address = parse_address(f"ssh://127.0.0.1:{silent.getsockname()[1]}")
        future = pool.submit(try_on, address, [onnx_file], Setup(), method=SHORT, stop=stop)
        connection, _ = silent.accept()  # kept, or it would be reset
        stop.set()
        with connection, pytest.raises(ToolFailedError, match="connecting: stopped"):
            future.result(timeout=10)


def test_a_copy_that_hangs_ends_when_it_is_told_to_stop(onnx_file, tmp_path, monkeypatch):
    copying, stop = tmp_path / "copying", threading.Event()
    adb = tmp_path / "adb"
    adb.write_text(
        f"#!{sys.executable}\nimport os, pathlib, sys, time\n"
        "if 'sha256sum' in sys.argv[-1] and 'cat > ' in sys.argv[-1]:\n"
        f"    pathlib.Path({str(copying)!r}).touch()\n    time.sleep(60)\n"
        f"os.execvp('sh', ['sh', '-c', sys.argv[-1].replace('/data/local/tmp', {str(tmp_path)!r})])\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(
            try_on, parse_address("adb:"), [onnx_file], Setup(), method=SHORT, stop=stop, keep_going=False
        )
        while not copying.exists():
            assert not future.done(), future
            time.sleep(0.05)
        stop.set()
        with pytest.raises(ToolFailedError, match=r"adb:: copying .*: stopped"):
            future.result(timeout=30)
    assert not list(tmp_path.glob("fsrp-edge.*"))


@pytest.mark.slow
def test_compress_measures_on_the_device(server, trained_checkpoint, digits_npz, tmp_path, capfd):
    pytest.importorskip("onnx", reason="needs the onnx extra")
    out = tmp_path / "run"
    command = ["compress", str(trained_checkpoint), "--data", str(digits_npz), "--target", "raspberry-pi-4"]
    command += ["--format", "onnx", "--precision", "fp32", "--recover-epochs", "0", "--attack", "fgsm"]
    command += ["--score-images", "64", "--score-steps", "1", "--robust-images", "64", "--quick-bench"]
    command += ["--bench-on", server.address(), "--out", str(out), "--quiet"]
    assert run(cli, command) == 0
    where = f"ssh://127.0.0.1:{server.port}"
    report = json.loads((out / "report.json").read_text())
    measured = [latency["device"] for row in report["ledger"] for latency in row["latency"]]
    assert len(measured) == 2
    assert all(device.startswith(f"{where}: ") for device in measured)
    assert report["request"]["options"]["bench_on"] == where
    assert where in (out / "report.md").read_text()
    before = logins(server)
    assert run(cli, command) == 0  # everything is kept, so only the device's readiness is looked at
    assert logins(server) == before + 1

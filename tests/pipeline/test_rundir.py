import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import atomic_path
from fsrp_edge.pipeline import rundir
from fsrp_edge.pipeline.rundir import RunDirectory


class Answer(BaseModel):
    value: int


class Stage:
    """Work that counts how often it is done, and writes a file."""

    def __init__(self, directory: Path) -> None:
        self.run = RunDirectory(directory)
        self.done = 0

    def __call__(self, value: int, *, file: str = "answer.txt") -> Answer:
        def work() -> Answer:
            self.done += 1
            (self.run.path / file).write_text(str(value))
            return Answer(value=value)

        return self.run.stage("answer", Answer, {"value": value}, work, [file])


def test_a_finished_stage_is_found_by_a_later_run(tmp_path: Path) -> None:
    first, second = Stage(tmp_path / "run"), Stage(tmp_path / "run")
    assert first(42) == second(42) == Answer(value=42)
    assert (first.done, second.done) == (1, 0)
    (made,), (found,) = first.run.history, second.run.history
    assert (made.resumed, found.resumed) == (False, True) and made.seconds == found.seconds


def test_other_inputs_are_other_work_and_the_old_file_goes(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage(1, file="one.txt")
    assert stage(2, file="two.txt").value == 2
    assert stage.done == 2
    assert not (tmp_path / "one.txt").exists() and (tmp_path / "two.txt").read_text() == "2"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_file_that_is_not_what_was_written_is_made_anew(damage: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage(7)
    (tmp_path / "answer.txt").unlink()
    if damage == "changed":
        (tmp_path / "answer.txt").write_text("8")
    assert stage(7).value == 7 and stage.done == 2
    assert (tmp_path / "answer.txt").read_text() == "7"


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "null", "{}", '{"key": 3}', "\x00", "absent"],
)
def test_a_damaged_record_is_no_record(record: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage(7)
    path = tmp_path / "stages" / "answer.json"
    path.unlink() if record == "absent" else path.write_text(record)
    assert stage(7).value == 7 and stage.done == 2
    assert stage(7).value == 7 and stage.done == 2


def test_a_result_that_cannot_be_read_back_is_made_anew(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage(7)
    path = tmp_path / "stages" / "answer.json"
    content = json.loads(path.read_text())
    content["result"] = {"value": "seven"}
    path.write_text(json.dumps(content))
    assert stage(7).value == 7 and stage.done == 2


def test_work_that_fails_leaves_no_record(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def fail() -> Answer:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run.stage("answer", Answer, {}, fail)
    assert not (tmp_path / "stages").exists() and run.history == []


def test_a_record_from_elsewhere_cannot_have_files_outside_removed(tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("x")
    stage = Stage(tmp_path / "run")
    stage(1)
    path = stage.run.path / "stages" / "answer.json"
    content = json.loads(path.read_text())
    content["files"] = {"../precious.txt": "0" * 64, str(outside): "0" * 64}
    path.write_text(json.dumps(content))
    stage(2)
    assert outside.read_text() == "x"


def test_only_one_process_works_in_a_folder_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fsrp_edge.pipeline.rundir import RunDirectory\n"
        "from fsrp_edge.files import atomic_path\n"
        "folder = Path(sys.argv[1])\n"
        "with RunDirectory(folder).locked(), atomic_path(folder / 'stages' / 'big.bin') as half:\n"
        "    half.write_bytes(b'...'); print('locked', flush=True); sys.stdin.read()"
    )
    run = RunDirectory(tmp_path)
    (tmp_path / ".mine").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(BadInputError, match=r"another run is working in .*; wait for it"), run.locked():
            pass
        other.kill()
        other.wait()
    assert len(list((tmp_path / "stages").iterdir())) == 1, "the killed process's temporary folder"
    with run.locked():
        assert {path.name for path in tmp_path.rglob("*")} == {".lock", ".mine", "stages"}


def test_what_a_run_further_down_is_writing_stays(tmp_path: Path) -> None:
    inner = RunDirectory(tmp_path / "inner")
    with inner.locked(), atomic_path(inner.path / "stages" / "big.bin") as half:
        half.touch()
        with RunDirectory(tmp_path).locked():
            assert half.exists()


def test_a_stage_is_taken_over_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(tmp_path / "other")(7)
    stage = Stage(tmp_path / "run")

    def disk_full(_: Path, copy: Path) -> None:
        copy.touch()
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(shutil, "copyfile", disk_full)
        stage.run.adopt(tmp_path / "other", ["answer"])
    assert {path.name for path in stage.run.path.rglob("*")} == {".lock"}
    stage.run.adopt(tmp_path / "other", ["answer"])
    assert stage(7).value == 7 and stage.done == 0


def test_a_stage_with_other_inputs_is_taken_over_in_place_of_an_old_one(tmp_path: Path) -> None:
    Stage(tmp_path / "other")(7)
    stage = Stage(tmp_path / "run")
    stage(6, file="six.txt")
    stage.run.adopt(tmp_path / "other", ["answer"])
    assert stage(7).value == 7 and stage.done == 1 and not (tmp_path / "run" / "six.txt").exists()


def test_folders_of_files_that_are_made_no_more_go_with_them(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "run")
    (tmp_path / "run" / "artifacts" / "net.ncnn").mkdir(parents=True)
    (tmp_path / "run" / "artifacts" / "other.txt").touch()
    stage(1, file="artifacts/net.ncnn/weights")
    stage(2)
    assert [path.name for path in (tmp_path / "run" / "artifacts").iterdir()] == ["other.txt"]


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    told: list[str] = []
    monkeypatch.setattr(rundir.fcntl, "flock", unknown)
    monkeypatch.setattr(rundir, "log", told.append)
    with RunDirectory(tmp_path).locked():
        assert len(told) == 1 and "cannot be locked (Function not implemented)" in told[0]


def test_the_lock_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path).locked():
        raise KeyboardInterrupt
    with RunDirectory(tmp_path).locked():
        pass


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="file is a file; give --out a folder"):
        RunDirectory(tmp_path / "file")
    with pytest.raises(BadInputError, match=r"cannot write into .*Not a directory; choose another --out"):
        RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(BadInputError, match="File name too long"):
        RunDirectory(tmp_path / ("x" * 300))

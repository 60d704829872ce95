"""The run directory: results of finished stages, kept so that a killed run goes on where it stopped."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import LOCK, atomic_path, remove_leftovers, sha256_file, sha256_json
from fsrp_edge.progress import log
from fsrp_edge.records import Document
from fsrp_edge.report.schema import StageTime

Result = TypeVar("Result")

STAGES = "stages"


class StageRecord(Document):
    """What a finished stage leaves in `stages/NAME.json`."""

    called = "a record of a stage"

    key: str
    """Digest of everything that the stage's result depends on."""
    seconds: float
    files: dict[str, str]
    """SHA-256 of each file it wrote, by path relative to the run directory."""
    result: JsonValue


class RunDirectory:
    """A folder that holds the results of one run.

    Args:
        path: of the folder; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[StageTime] = []
        self.files: list[str] = []
        """What the stages in `history` left, by relative paths."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / LOCK).touch()
        except FileExistsError:
            raise BadInputError(f"{path} is a file; give --out a folder") from None
        except OSError as error:
            raise BadInputError(f"cannot write into {path}: {error.strerror}; choose another --out") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run out of the folder, and remove what a killed one left half-written.

        The lock goes with the process, however it ends.
        """
        with (self.path / LOCK).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInputError(
                    f"another run is working in {self.path}; wait for it or choose another --out"
                ) from None
            except OSError as error:  # some file systems have no locks; nothing is removed there
                log(f"{self.path} cannot be locked ({error.strerror}): see to it that no second run works in it")
            else:
                remove_leftovers(self.path)
            yield

    def stage(
        self,
        name: str,
        result_type: type[Result],
        inputs: dict[str, Any],
        work: Callable[[], Result],
        files: Sequence[str] | Callable[[Result], Sequence[str]] = (),
    ) -> Result:
        """The result of a stage: as it was left by an earlier run with the same inputs, or made now.

        Before it is made again, the files that its last run left are removed: they belong to other inputs.

        Args:
            name: of the stage.
            result_type: type of the result, one that pydantic can write as JSON and read back.
            inputs: all that the result depends on, as JSON values or models.
            work: makes the result.
            files: what it writes inside the run directory, by relative paths; or what tells that from the result.
        """
        key = sha256_json(to_jsonable_python(inputs))
        adapter: TypeAdapter[Result] = TypeAdapter(result_type)
        found = self._found(name, key, adapter)
        if found is not None:
            record, result = found
            log(f"{name}: already done")
            return self._noted(name, record, result, resumed=True)
        self._discard(name)
        started = time.perf_counter()
        result = work()
        written = files(result) if callable(files) else files
        record = StageRecord(
            key=key,
            seconds=time.perf_counter() - started,
            files={file: sha256_file(self.path / file) for file in written},
            result=adapter.dump_python(result, mode="json"),
        )
        record.save(self._record_path(name))
        return self._noted(name, record, result, resumed=False)

    def _noted(self, name: str, record: StageRecord, result: Result, *, resumed: bool) -> Result:
        self.history.append(StageTime(name=name, seconds=record.seconds, resumed=resumed))
        self.files += record.files
        return result

    def adopt(self, other: Path, names: Sequence[str]) -> None:
        """Take over finished stages of another run of the same network in place of what this one has from other inputs.

        What the other has from other inputs does no harm: `stage` recognizes it and makes it anew.

        Args:
            other: the other run's directory.
            names: of stages; `*` as in file names.
        """
        for name in names:
            for path in sorted((other / STAGES).glob(f"{name}.json")):
                record = StageRecord.load(path)
                if self._key(path.stem) == record.key or not all((other / file).is_file() for file in record.files):
                    continue
                self._discard(path.stem)
                for file in record.files:
                    with atomic_path(self.path / file) as temporary:
                        shutil.copyfile(other / file, temporary)
                record.save(self._record_path(path.stem))

    def has(self, name: str) -> bool:
        """Whether there is a record of a stage, from whatever inputs."""
        return self._key(name) is not None

    def _key(self, name: str) -> str | None:
        try:
            return StageRecord.load(self._record_path(name)).key
        except BadInputError:
            return None

    def _discard(self, name: str) -> None:
        try:
            record = StageRecord.load(self._record_path(name))
        except BadInputError:
            return
        for file in record.files:
            if (self.path / file).resolve().is_relative_to(self.path.resolve()):
                (self.path / file).unlink(missing_ok=True)
                with suppress(OSError):  # the first that holds something else
                    for folder in (self.path / file).parents:
                        folder.rmdir()
        self._record_path(name).unlink()

    def _record_path(self, name: str) -> Path:
        return self.path / STAGES / f"{name}.json"

    def _found(self, name: str, key: str, adapter: TypeAdapter[Result]) -> tuple[StageRecord, Result] | None:
        """A record that is whole, has the same key, and whose files are as they were written."""
        try:
            record = StageRecord.load(self._record_path(name))
            result = adapter.validate_python(record.result, strict=False)
        except (BadInputError, ValidationError):
            return None
        intact = all(
            (self.path / file).is_file() and sha256_file(self.path / file) == digest
            for file, digest in record.files.items()
        )
        return (record, result) if record.key == key and intact else None

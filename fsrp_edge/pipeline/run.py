"""A run: what it starts from, and the directory where its stages leave what they made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue
from pydantic_core import to_jsonable_python

import fsrp_edge
from fsrp_edge.files import sha256_json
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import identity_of, save_classifier
from fsrp_edge.pipeline.inputs import Inputs, on_device
from fsrp_edge.pipeline.rundir import RunDirectory
from fsrp_edge.report.shipped import WRITTEN
from fsrp_edge.report.store import RENDERED

Result = TypeVar("Result")

UNFINISHED = f"-{'?' * 12}.unfinished*"
"""How names of files end that `Run.unfinished` gave, behind the stage's."""


@dataclass(frozen=True)
class Run(Inputs):
    """What a run starts from, with the directory of its results."""

    directory: RunDirectory

    @cached_property
    def identity(self) -> dict[str, JsonValue]:
        """What every stage depends on."""
        return {
            "version": fsrp_edge.__version__,
            **identity_of(self.dense),
            "train": self.dataset.train.digest,
            "evaluation": self.dataset.evaluation.digest,
            "seed": self.options.seed,
        }

    def stage(
        self,
        name: str,
        result_type: type[Result],
        inputs: dict[str, Any],
        work: Callable[[], Result],
        files: Sequence[str] | Callable[[Result], Sequence[str]] = (),
    ) -> Result:
        """`RunDirectory.stage` with what every stage depends on; a report of other files is removed first."""

        def anew() -> Result:
            for old in (*WRITTEN, *RENDERED):
                self.path(old).unlink(missing_ok=True)
            return work()

        return self.directory.stage(name, result_type, self.identity | inputs, anew, files)

    def path(self, name: str | Path) -> Path:
        """Of a file of the run."""
        return self.directory.path / name

    def unfinished(self, stage: str, inputs: dict[str, Any], suffix: str) -> Path:
        """A file for what a stage has so far; what the stage left with other inputs, now of no use, is removed."""
        key = sha256_json(to_jsonable_python(self.identity | inputs))
        name = f"{stage}-{key[:12]}.unfinished"
        for other in self.directory.path.glob(stage + UNFINISHED):
            if not other.name.startswith(name):
                other.unlink()
        return self.path(name + suffix)

    def remove_unfinished(self) -> None:
        """Remove what stages had before they were finished, now that every one is on record."""
        for path in self.directory.path.glob("*" + UNFINISHED):
            path.unlink()

    def save(self, classifier: Classifier, name: str) -> None:
        """Write a network of the run."""
        save_classifier(classifier, self.path(name))

    def load(self, name: str) -> Classifier:
        """Read a network of the run, onto the device to compute on."""
        # By its full name, as what the user gave may be short for several; code of the user's own has to be named anew.
        return on_device(load_classifier(self.path(name), architecture=self.dense.spec.architecture))

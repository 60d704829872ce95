"""What the pictures of a report are drawn from: gathered during the run, small, kept in the run directory."""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError, first_line
from fsrp_edge.evaluation.results import Accuracy
from fsrp_edge.files import atomic_path, read_json, write_json
from fsrp_edge.records import Record

EVIDENCE_JSON, EVIDENCE_ARRAYS = "evidence.json", "evidence.npz"


class CurvePoint(Record):
    """Accuracy of one network at one radius, all points on the same images."""

    network: str
    eps: float
    """0 without an attack."""
    accuracy: Accuracy


class ClassCounts(Record):
    """How many images of a class the dense and the recovered network get right when clean."""

    label: int
    images: int
    dense: int
    recovered: int


class Spectra(Record):
    """Filters of one layer whose mean power spectra (filters, H, W) are in the arrays, under `spectra/LAYER`."""

    layer: str
    filters: tuple[int, ...]
    """The worst ones, then the best ones."""
    scores: tuple[float, ...]
    radius: float
    """Of the low-frequency region, as a fraction of the band."""
    region: str


class OperatorShare(Record):
    """Estimated time of one operator."""

    name: str
    kind: str
    milliseconds: float


class Breakdown(Record):
    """Where a file's time is estimated to go on the target; nothing of it is measured."""

    file: str
    basis: str
    runtime: str
    milliseconds: float
    operators: tuple[OperatorShare, ...]
    """The slowest ones."""


class Example(Record):
    """One evaluation image with what the recovered network says of it as it is and under attack."""

    label: int
    clean: int
    adversarial: int


class Evidence(Record):
    """Everything of it but the arrays.

    The arrays are `spectra/LAYER`, and for the examples `examples/clean` and `examples/adversarial`, float16
    (images, C, H, W) in [0, 1].
    """

    curve: tuple[CurvePoint, ...] = ()
    classes: tuple[ClassCounts, ...] = ()
    spectra: tuple[Spectra, ...] = ()
    breakdown: Breakdown | None = None
    examples: tuple[Example, ...] = ()
    example_eps: float = 0.0


@dataclass(frozen=True)
class Pictured:
    """Evidence with its arrays."""

    evidence: Evidence
    arrays: dict[str, np.ndarray]

    def save(self, directory: Path) -> None:
        """Write both files into `directory`, each by rename."""
        write_json(directory / EVIDENCE_JSON, self.evidence.model_dump(mode="json"))
        with atomic_path(directory / EVIDENCE_ARRAYS) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **self.arrays)

    @classmethod
    def load(cls, directory: Path) -> "Pictured":
        """What `save` left in `directory`; empty where there is nothing.

        Raises:
            BadInputError: the files are not what `save` writes.
        """
        if not (directory / EVIDENCE_JSON).is_file():
            return cls(Evidence(), {})
        try:
            evidence = Evidence.model_validate(read_json(directory / EVIDENCE_JSON))
            with np.load(directory / EVIDENCE_ARRAYS, allow_pickle=False) as arrays:
                return cls(evidence, dict(arrays))
        except (ValidationError, OSError, ValueError, EOFError, BadZipFile) as error:
            first = first_line(error)
            raise BadInputError(
                f"{directory / EVIDENCE_JSON} and {EVIDENCE_ARRAYS} are not a run's evidence: {first}"
            ) from None

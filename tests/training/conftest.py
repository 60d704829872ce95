"""A small network and a few hundred real digits."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.classifier import Classifier

RUN = runpy.run_path(str(Path(__file__).with_name("digits_run.py")))


@pytest.fixture(scope="session")
def digit_sets() -> tuple[ImageSet, ImageSet]:
    """(train, held out)."""
    return RUN["digit_sets"]()


@pytest.fixture
def small_cnn() -> Callable[[], Classifier]:
    """Makes the same untrained network at each call."""
    return RUN["small_cnn"]


@pytest.fixture
def interruptible_run() -> Callable[[Path | None], Any]:
    """What `digits_run.py` does when it is started as a process."""
    return RUN["run"]

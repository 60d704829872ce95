"""The state of an unfinished training run on disk."""

import reprlib
from pathlib import Path
from typing import Any

import torch

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import atomic_path
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import identity_of
from fsrp_edge.training.recipe import Recipe

FORMAT = 3
"""Of the state and the identity; another version's is not continued."""


def run_identity(
    classifier: Classifier,
    train: ImageSet,
    held_out: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    teacher: Classifier | None,
    origin: str | None,
) -> dict[str, Any]:
    """All that decides the outcome of a run; a checkpoint continues only the run it was written by.

    `origin` stands for the network's weights where they were computed: another number of threads, or another
    processor, would give other last bits, and the run could not go on there.
    """
    return {
        "format": FORMAT,
        **{f"recipe.{name}": value for name, value in recipe.model_dump(mode="json").items()},
        "seed": seed,
        "training images": train.digest,
        "held-out images": held_out.digest,
        **_parts("network", identity_of(classifier, origin)),
        **({} if teacher is None else _parts("teacher", identity_of(teacher))),
    }


def _parts(name: str, identity: dict[str, Any]) -> dict[str, Any]:
    """A network's, the spec's fields one by one: what differs is named."""
    return {f"{name}.{key}": value for key, value in {**identity, **identity["spec"]}.items() if key != "spec"}


def save(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write by rename, so that a killed run leaves either the old epoch's file or the new one's."""
    # Through a stream of Python's: torch's own writer does not say that the disk is full.
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        torch.save({"identity": identity, "state": state}, stream)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The saved state, on the CPU; None where there is no file.

    Raises:
        BadInputError: the file is not such a checkpoint, or belongs to a run with other inputs.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, state = content["identity"], content["state"]
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError on foreign files
        raise BadInputError(
            f"{path} is not a training checkpoint ({type(error).__name__}); delete it to start over"
        ) from None
    differing = [
        # Cut short: the layer shapes of a pruned network fill pages.
        f"{name} (there {reprlib.repr(saved.get(name))}, now {reprlib.repr(identity.get(name))})"
        for name in sorted({*saved, *identity})
        if saved.get(name) != identity.get(name)
    ]
    if differing:
        raise BadInputError(f"{path} belongs to another run: {'; '.join(differing)}; delete it to start over")
    assert isinstance(state, dict)
    return state

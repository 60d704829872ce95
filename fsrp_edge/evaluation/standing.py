"""The one loop of all attacks: batches of standing images, shared by processes, with every verdict kept on disk."""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsrp_edge import distributed
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import read_json, write_json
from fsrp_edge.progress import track

Withstands = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes pixels (N, C, H, W), labels (N,) and the images' positions in the set (N,), all on the CPU; returns bool (N,),
True where the prediction stays right."""

UNKNOWN = "?"


class Verdicts:
    """Which image withstood which attack, as far as is known: an evaluation on disk while it runs.

    Args:
        path: file to keep them in, rewritten after each batch; None keeps nothing. Under `torchrun` every process has
            a file of its own beside it.
        identity: what the verdicts depend on, JSON values.

    Raises:
        BadInputError: the file belongs to another evaluation, or is no such file.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path and _of_this_process(path), identity
        self._known: dict[str, str] = {}
        if self.path is None or not self.path.exists():
            return
        found = read_json(self.path)
        if not isinstance(found, dict) or found.get("identity") != identity or "verdicts" not in found:
            raise BadInputError(f"{self.path} was left by another evaluation; delete it to start over")
        self._known = found["verdicts"]

    def of(self, attack: str, positions: Tensor) -> Tensor | None:
        """Bool verdicts on these images, None where one is missing."""
        marks = self._known.get(attack)
        found = [marks[place] for place in positions.tolist()] if marks else [UNKNOWN]
        return None if UNKNOWN in found else torch.tensor([mark == "1" for mark in found])

    def add(self, attack: str, positions: Tensor, stands: Tensor, images: int) -> None:
        """Keep the verdicts on a batch."""
        if self.path is None:
            return
        marks = list(self._known.get(attack, UNKNOWN * images))
        for place, stood in zip(positions.tolist(), stands.tolist(), strict=True):
            marks[place] = "1" if stood else "0"
        self._known[attack] = "".join(marks)
        write_json(self.path, {"identity": self.identity, "verdicts": self._known})


def discard_verdicts(path: Path | None) -> None:
    """Remove what an evaluation left in a file, which is of no use once its result is saved.

    What interrupted ones of other numbers of processes left is of no use either.

    Args:
        path: as `Verdicts` takes it.
    """
    if path is not None:
        of_processes = path.parent.glob(f"{glob.escape(path.stem)}.[0-9]*of[0-9]*{path.suffix}")
        for left in (path, *of_processes):
            left.unlink(missing_ok=True)


def recorded_identity(path: Path | None) -> Any:
    """What the verdicts depend on that an interrupted evaluation left in a file; None where there are none.

    Args:
        path: as `Verdicts` takes it.

    Raises:
        BadInputError: the file is not JSON.
    """
    if path is None or not (own := _of_this_process(path)).exists():
        return None
    found = read_json(own)
    return found.get("identity") if isinstance(found, dict) else None


def _of_this_process(path: Path) -> Path:
    rank, size = distributed.processes()
    return path if size == 1 else path.with_suffix(f".{rank + 1}of{size}{path.suffix}")


def attack_standing(
    images: ImageSet,
    standing: Tensor,
    withstands: Withstands,
    *,
    name: str,
    batch_size: int,
    verdicts: Verdicts | None = None,
) -> Tensor:
    """Attack the images that stand, batch by batch.

    Batches are formed before they are shared among the processes of `torchrun`, and before those that are known from an
    interrupted run are left out: what is drawn at random for a batch does not depend on either.

    Args:
        images: the set.
        standing: bool (images,), which of them to attack.
        withstands: judges a batch.
        name: of the attack, for progress and for the verdicts.
        batch_size: images a batch.
        verdicts: of an interrupted run, and to be kept in case this one is.

    Returns:
        Bool (images,): `standing` without the images that fell. The same in every process.
    """
    kept = verdicts or Verdicts(None, {})
    batches = [part for part in torch.split(standing.nonzero().squeeze(1), batch_size) if len(part)]
    mine = [batches[place] for place in distributed.my_part(len(batches))]
    fallen = torch.zeros(len(images), dtype=torch.int32)
    todo = []
    for positions in mine:
        known = kept.of(name, positions)
        if known is None:
            todo.append(positions)
        else:
            fallen[positions[~known]] = 1
    if todo:
        # All of them are full but the very last, so the loader cuts them as they were cut here.
        stream = images.subset(torch.cat(todo).numpy()).batches(batch_size)
        described = f"{name}, {int(standing.sum())} of {len(images)} standing"
        for positions, (pixels, labels) in zip(track(todo, described), stream, strict=True):
            stands = withstands(pixels, labels, positions).cpu()
            fallen[positions[~stands]] = 1
            kept.add(name, positions, stands, len(images))
    return standing & (distributed.sum_over_processes(fallen) == 0)

"""open_dataset: from what a user names to images and labels that fit the network."""

from pathlib import Path

from fsrp_edge.data import embedded
from fsrp_edge.data.arrays import open_npz
from fsrp_edge.data.check import check_dataset
from fsrp_edge.data.cifar import LAYOUTS, find_cifar, open_cifar
from fsrp_edge.data.folder import open_folder
from fsrp_edge.data.images import Dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import ModelSpec

EMBEDDED = ("digits", "photographs")

_ALLOWED = (
    f"allowed: {' or '.join(EMBEDDED)}; a folder with train/ and val/, or with one folder a class; "
    f"{', '.join(layout.folder for layout in LAYOUTS)} or the folder around one; an .npz file"
)


def open_dataset(source: str | Path | None, spec: ModelSpec, *, seed: int) -> Dataset:
    """Open a data set for a network, with labels as the network numbers its classes.

    Args:
        source: None for what the checkpoint names, else photographs; or one of
            - `digits` or `photographs`, which come with a dependency (`./digits` is a folder);
            - a folder with `train/` and `val/` (or `valid/`, `validation/`, `test/`), each of class folders,
              or one folder of class folders, of which 20 % of each class are held out for evaluation;
            - CIFAR-10 or CIFAR-100 as published (`cifar-10-batches-bin`, `cifar-10-batches-py`,
              `cifar-100-binary`, `cifar-100-python`), or the folder that holds such a folder;
            - an `.npz` file with `x` and `y`, `images` and `labels`, `arr_0` and `arr_1`, `x_train`,
              `y_train`, `x_test` and `y_test`, or MedMNIST's keys; images uint8 or float in [0, 1], (N, C, H,
              W), (N, H, W, C) or (N, H, W); labels integers from 0.
        spec: the network the data is for: input shape, preprocessing, classes.
        seed: of the crops of `photographs`. What is held out for evaluation is the same with every seed, so that no
            network is judged on images that it was trained on with another.

    Returns:
        Training and evaluation images; labels of `photographs` are UNLABELLED. Evaluation images of folders, and of
        arrays stored class by class, are ordered by `ImageSet.taking_turns`, so that the first n speak of the whole
        set; others keep the order they are stored in.

    Raises:
        BadInputError: the source is none of these, is damaged or empty, or does not fit the network.
        ToolFailedError: an embedded set's package is missing.
    """
    if source is None:
        source = spec.data or "photographs"
    if not str(source):
        raise BadInputError(f"no data was named; {_ALLOWED}")
    if str(source) == "digits":
        dataset = embedded.digits(spec)
    elif str(source) == "photographs":
        dataset = embedded.photographs(spec, seed=seed)
    else:
        dataset = _open_path(Path(source), spec)
    check_dataset(dataset, spec.classes)
    return dataset


def _open_path(path: Path, spec: ModelSpec) -> Dataset:
    try:
        path = path.expanduser()
        if path.is_dir():
            # By its real name: `.` would have none.
            return _open_directory(path.resolve(), spec)
        if path.is_file() and path.suffix.lower() == ".npz":
            return open_npz(path, spec)
    except (OSError, RuntimeError) as error:  # the latter: ~ of a user that does not exist
        raise BadInputError(f"{path} cannot be read: {error}") from None
    seen = "is a file, but not .npz" if path.exists() else "does not exist"
    raise _unknown(path, seen)


def _open_directory(path: Path, spec: ModelSpec) -> Dataset:
    cifar = find_cifar(path, spec.classes)
    if cifar is not None:
        return open_cifar(*cifar, spec)
    dataset = open_folder(path, spec)
    if dataset is not None:
        return dataset
    contents = sorted(entry.name for entry in path.iterdir())
    listed = ", ".join(contents[:5]) + (", …" if len(contents) > 5 else "")
    raise _unknown(path, f"is a folder without class folders ({listed})" if contents else "is an empty folder")


def _unknown(path: Path, seen: str) -> BadInputError:
    return BadInputError(f"data {path} {seen}; {_ALLOWED}")

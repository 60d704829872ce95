import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNT = 4
FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def batch(number: int, classes: int = 10):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (COUNT, 3072), dtype=np.uint8), random.integers(0, classes, COUNT)


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes as Python 2 did, as the published files hold them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_python2_str(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_python2_str


def dump_python2(value, path):
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(value)


def dump_python3(value, path):
    path.write_bytes(pickle.dumps(value, protocol=4))


def write_binary(folder):
    folder.mkdir()
    for number, name in enumerate(FILES):
        pixels, labels = batch(number)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")


def write_python(folder, dump, order="C"):
    folder.mkdir()
    for number, name in enumerate(FILES):
        pixels, labels = batch(number)
        data = np.asarray(pixels, order=order)
        dump({"data": data, "labels": labels.tolist(), "filenames": ["a.png"] * COUNT}, folder / name)
    dump({"label_names": NAMES, "num_vis": 3072}, folder / "batches.meta")


def assert_is_what_was_written(data):
    for images, numbers in ((data.train, range(5)), (data.evaluation, [5])):
        expected = [batch(number) for number in numbers]
        pixels = torch.cat([pixels for pixels, _ in images.batches(3)])
        stored = np.concatenate([pixels for pixels, _ in expected]).reshape(-1, 3, 32, 32)
        assert torch.equal(pixels, torch.from_numpy(stored).float() / 255)
        assert images.labels.tolist() == [label for _, labels in expected for label in labels]
        assert images.class_names == tuple(NAMES)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-bin"])
def test_binary_layout_and_the_folder_around_it(tmp_path, spec, place):
    write_binary(tmp_path / "cifar-10-batches-bin")
    root = tmp_path / "cifar-10-batches-bin" if place == "." else tmp_path
    data = open_dataset(root, spec(), seed=0)
    assert_is_what_was_written(data)
    assert (data.train.name, data.evaluation.name) == ("cifar10/train", "cifar10/test")


@pytest.mark.parametrize("dump", [dump_python2, dump_python3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_python_layout(tmp_path, spec, dump, order):
    write_python(tmp_path / "cifar-10-batches-py", dump, order)
    assert_is_what_was_written(open_dataset(tmp_path, spec(), seed=0))


def test_the_python_files_here_are_what_torchvision_reads(tmp_path):
    """The test's own writer is checked against the reader that everybody uses."""
    write_python(tmp_path / "cifar-10-batches-py", dump_python2)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_1").open("rb") as file:
        entries = pickle.load(file, encoding="latin1")
    assert np.array_equal(entries["data"], batch(0)[0])


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_cifar_100_takes_fine_labels(tmp_path, spec, layout):
    folder = tmp_path / f"cifar-100-{layout}"
    folder.mkdir()
    for number, name in enumerate(("train", "test")):
        pixels, fine = batch(number, 100)
        coarse = fine // 5
        if layout == "binary":
            columns = [coarse[:, None].astype(np.uint8), fine[:, None].astype(np.uint8), pixels]
            (folder / f"{name}.bin").write_bytes(np.concatenate(columns, axis=1).tobytes())
        else:
            entries = {"data": pixels, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            dump_python2(entries, folder / name)
    names = [f"thing{index}" for index in range(100)]
    if layout == "python":
        dump_python2({"fine_label_names": names, "coarse_label_names": names[:20]}, folder / "meta")
    data = open_dataset(tmp_path, spec(classes=100), seed=0)
    assert data.train.labels.tolist() == batch(0, 100)[1].tolist()
    assert data.evaluation.name == "cifar100/test"
    assert data.train.class_names[7] == ("thing7" if layout == "python" else "class 7")


def test_the_set_that_fits_the_network_is_chosen(tmp_path, spec):
    write_binary(tmp_path / "cifar-10-batches-bin")
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(bytes(3074))
    assert open_dataset(tmp_path, spec(classes=100), seed=0).train.name == "cifar100/train"
    assert open_dataset(tmp_path, spec(classes=10), seed=0).train.name == "cifar10/train"
    with pytest.raises(BadInputError, match=r"10 classes .*the network has 7"):
        open_dataset(tmp_path, spec(classes=7), seed=0)


def test_labels_follow_the_network_s_names(tmp_path, spec):
    write_binary(tmp_path / "c")
    data = open_dataset(tmp_path / "c", spec(class_names=tuple(reversed(NAMES))), seed=0)
    assert data.evaluation.labels.tolist() == (9 - batch(5)[1]).tolist()


def test_missing_and_damaged_binaries_are_refused(tmp_path, spec):
    write_binary(tmp_path / "c")
    whole = (tmp_path / "c/data_batch_3.bin").read_bytes()
    (tmp_path / "c/data_batch_3.bin").write_bytes(whole[:-1])
    with pytest.raises(BadInputError, match=r"data_batch_3\.bin has 12291 bytes"):
        open_dataset(tmp_path / "c", spec(), seed=0)
    (tmp_path / "c/data_batch_3.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(BadInputError, match=r"range from . to 10"):
        open_dataset(tmp_path / "c", spec(), seed=0)
    (tmp_path / "c/data_batch_3.bin").unlink()
    with pytest.raises(BadInputError, match=r"lacks data_batch_3\.bin"):
        open_dataset(tmp_path / "c", spec(), seed=0)


class Call:
    """A pickle of it calls `function(*arguments)` when it is read carelessly."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("file", ["data_batch_2", "batches.meta"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_pickles_do_not_run(tmp_path, spec, file, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, dump_python2)
    fired = tmp_path / "fired"
    command = [sys.executable, "-c", f"open({str(fired)!r}, 'w')"]
    hostile = pickle.dumps({"data": Call(subprocess.call, command)}, protocol=protocol)
    (folder / file).write_bytes(hostile)
    with pytest.raises(BadInputError, match=r"\.call, which no CIFAR file needs"):
        open_dataset(folder, spec(), seed=0)
    assert not fired.exists()
    pickle.loads(hostile)  # what a careless reader would have done
    assert fired.exists()


@pytest.mark.parametrize(
    "entries",
    [
        [1, 2],
        {"labels": [0]},
        {"data": "text", "labels": [0]},
        {"data": np.zeros((1, 3072), np.float32), "labels": [0]},
        {"data": np.zeros((1, 100), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": [10**30]},
        {"data": np.array([None], dtype=object), "labels": [0]},
    ],
)
def test_pickles_that_are_no_batches_are_refused(tmp_path, spec, entries):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, dump_python2)
    dump_python3(entries, folder / "data_batch_1")
    with pytest.raises(BadInputError, match="data_batch_1"):
        open_dataset(folder, spec(), seed=0)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04", b"\x80\x02]q\x00."])
def test_damaged_pickles_are_refused(tmp_path, spec, content):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, dump_python2)
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(BadInputError, match="test_batch"):
        open_dataset(folder, spec(), seed=0)


def test_the_real_cifar_10(tmp_path, spec, shared_data):
    """The shared copy unpacked into the official layout: the known first labels, balanced classes."""
    script = shared_data / "unpack_cifar10.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    data = open_dataset(tmp_path, spec(), seed=0)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.evaluation.labels.bincount().tolist() == [1000] * 10
    assert data.evaluation.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert data.train.class_names == tuple(NAMES)

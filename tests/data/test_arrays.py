import numpy as np
import pytest
import torch
from PIL import Image

from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
NHWC = IMAGES.transpose(0, 2, 3, 1).copy()
OTHERS = 255 - IMAGES
LABELS = np.arange(20) % 2


def all_pixels(images):
    return torch.cat([pixels for pixels, _ in images.batches(7)])


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("arr_0", "arr_1"), ("X", "Y")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_set_is_split(tmp_path, spec, keys, channels_last):
    stored = IMAGES.transpose(0, 2, 3, 1) if channels_last else IMAGES
    np.savez(tmp_path / "d.npz", **{keys[0]: stored, keys[1]: LABELS})
    data = open_dataset(tmp_path / "d.npz", spec((3, 8, 8), classes=2), seed=3)
    assert (len(data.train), len(data.evaluation)) == (16, 4)
    assert data.evaluation.labels.bincount().tolist() == [2, 2]
    expected = torch.from_numpy(IMAGES[data.train.indices]).float() / 255
    assert torch.equal(all_pixels(data.train), expected)
    assert torch.equal(data.train.labels, torch.from_numpy(LABELS[data.train.indices]))
    other = open_dataset(tmp_path / "d.npz", spec((3, 8, 8), classes=2), seed=0)
    assert np.array_equal(other.evaluation.indices, data.evaluation.indices), "the same with every seed"


def test_split_keys_and_medmnist(tmp_path, spec):
    gray = IMAGES[:, 0]
    np.savez(
        tmp_path / "med.npz",
        train_images=gray,
        train_labels=LABELS[:, None].astype(np.uint8),
        val_images=255 - gray[:2],
        val_labels=LABELS[:2, None],
        test_images=255 - gray[:6],
        test_labels=LABELS[:6, None],
    )
    data = open_dataset(tmp_path / "med.npz", spec((3, 8, 8), classes=2), seed=0)
    assert (len(data.train), data.evaluation.name, len(data.evaluation)) == (20, "med/test", 6)
    pixels = all_pixels(data.train)
    assert torch.equal(pixels[:, 0], torch.from_numpy(gray).float() / 255)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert "gray repeated in 3 channels" in data.description


@pytest.mark.parametrize("side", [8, 12])
def test_training_images_are_not_judged_by(tmp_path, spec, side):
    repeated = np.concatenate([IMAGES[:3], 255 - IMAGES[3:10]])
    np.savez(tmp_path / "some.npz", x_train=IMAGES, y_train=LABELS, x_test=repeated, y_test=LABELS[:10])
    data = open_dataset(tmp_path / "some.npz", spec((3, side, side), classes=2), seed=0)
    assert data.evaluation.indices.tolist() == list(range(3, 10))
    assert data.evaluation.labels.tolist() == LABELS[3:10].tolist()
    assert "3 evaluation images left out because they are also training images" in data.description
    np.savez(tmp_path / "all.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[::-1], y_test=LABELS)
    with pytest.raises(BadInputError, match=r"all 20 evaluation images of all/test are also training images"):
        open_dataset(tmp_path / "all.npz", spec((3, side, side), classes=2), seed=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 16])
def test_other_sizes_are_resized_as_torchvision_does(tmp_path, spec, size, interpolation):
    from fsrp_edge import torchvision_compat  # noqa: F401

    v2 = pytest.importorskip("torchvision.transforms.v2")
    np.savez(tmp_path / "d.npz", x_train=OTHERS, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    data = open_dataset(tmp_path / "d.npz", spec((3, size, size), 2, interpolation=interpolation), seed=0)
    resize = v2.Resize((size, size), interpolation=v2.InterpolationMode(interpolation), antialias=True)
    expected = resize(torch.from_numpy(IMAGES)).float() / 255
    # torchvision may take another memory layout and so another rounding of the last bit
    assert (all_pixels(data.evaluation) - expected).abs().max() <= 1.01 / 255
    assert f"resized from 8x8 to {size}x{size} ({interpolation}" in data.description
    resample = Image.Resampling[interpolation.upper()]
    pillow = [np.asarray(Image.fromarray(image).resize((size, size), resample)) for image in NHWC]
    by_pillow = torch.from_numpy(np.stack(pillow)).permute(0, 3, 1, 2).float() / 255
    assert (all_pixels(data.evaluation) - by_pillow).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("beyond", [0, 1e-6])
def test_floats_in_the_unit_interval_are_rounded_to_8_bits(tmp_path, spec, beyond):
    images = IMAGES.astype(np.float64) / 255
    np.savez(tmp_path / "d.npz", x=images + 2 * beyond * (images - 0.5), y=LABELS)
    data = open_dataset(tmp_path / "d.npz", spec((3, 8, 8), classes=2), seed=0)
    expected = torch.from_numpy(IMAGES[data.train.indices]).float() / 255
    assert torch.equal(all_pixels(data.train), expected)
    assert "rounded to 8 bits" in data.description


def test_an_ambiguous_shape_is_taken_as_the_network_does(tmp_path, spec):
    np.savez(tmp_path / "d.npz", x=IMAGES[:, :, :8, :3], y=LABELS)
    with pytest.raises(BadInputError, match=r"shape \(20, 3, 8, 3\)"):
        open_dataset(tmp_path / "d.npz", spec((3, 8, 8), classes=2), seed=0)
    data = open_dataset(tmp_path / "d.npz", spec((3, 8, 3), classes=2), seed=0)
    assert all_pixels(data.train).shape == (16, 3, 8, 3)


def with_nan():
    images = IMAGES.astype(np.float32) / 255
    images[3, 1, 2, 2] = np.nan
    return images


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": IMAGES, "y": LABELS + 1}, "range from 1 to 2; the network has 2 classes, so 0 to 1"),
        ({"x": IMAGES, "y": np.where(LABELS == 0, -1, 1)}, "range from -1 to 1"),
        ({"x": IMAGES, "y": LABELS[:-1]}, "19 labels for 20 images"),
        ({"x": IMAGES, "y": np.eye(2)[LABELS]}, "one-hot"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, "float64"),
        ({"x": with_nan(), "y": LABELS}, "range from nan to nan"),
        ({"x": IMAGES.astype(np.float32), "y": LABELS}, "range from 0 to 255"),
        ({"x": IMAGES.astype(np.float32) / 128 - 1, "y": LABELS}, "undo the normalization"),
        ({"x": IMAGES.astype(np.uint16), "y": LABELS}, "uint16"),
        ({"x": IMAGES.reshape(20, -1), "y": LABELS}, r"shape \(20, 192\)"),
        ({"x": IMAGES.repeat(2, 1), "y": LABELS}, r"shape \(20, 6, 8, 8\)"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "is empty"),
        ({"pictures": IMAGES, "y": LABELS}, "holds the arrays pictures, y; allowed are x, y; images, labels"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, spec, arrays, told):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadInputError, match=told):
        open_dataset(tmp_path / "d.npz", spec((3, 8, 8), classes=2), seed=0)


def test_colour_for_a_gray_network_is_refused(tmp_path, spec):
    np.savez(tmp_path / "d.npz", x=IMAGES, y=LABELS)
    with pytest.raises(BadInputError, match="3 channels, the network takes 1"):
        open_dataset(tmp_path / "d.npz", spec((1, 8, 8), classes=2), seed=0)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_objects_in_an_npz_do_not_run(tmp_path, spec):
    fired = tmp_path / "fired"
    np.savez(tmp_path / "d.npz", x=np.array([Bomb(fired)], dtype=object), y=LABELS)
    with pytest.raises(BadInputError, match="Object arrays cannot be loaded"):
        open_dataset(tmp_path / "d.npz", spec(), seed=0)
    assert not fired.exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_files_are_refused(tmp_path, spec, damage):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=IMAGES, y=LABELS)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a zip file at all",
            "cut": whole[:middle],
            "flipped": whole[:middle] + bytes(64) + whole[middle + 64 :],
        }[damage]
    )
    with pytest.raises(BadInputError, match=r"d\.npz"):
        open_dataset(path, spec((3, 8, 8), classes=2), seed=0)


def test_arrays_sorted_by_class_are_taken_in_turn(tmp_path, spec):
    order = np.argsort(LABELS, kind="stable")
    np.savez(tmp_path / "sorted.npz", x_train=OTHERS, y_train=LABELS, x_test=IMAGES[order], y_test=LABELS[order])
    data = open_dataset(tmp_path / "sorted.npz", spec((3, 8, 8), classes=2), seed=0)
    assert data.evaluation.labels[:4].tolist() == [0, 1, 0, 1]
    taken = torch.from_numpy(IMAGES[order])[data.evaluation.indices].float() / 255
    assert torch.equal(all_pixels(data.evaluation), taken)
    assert sorted(data.evaluation.indices.tolist()) == list(range(20))


@pytest.mark.parametrize("split", [True, False])
def test_the_first_images_of_sorted_arrays_are_not_of_the_first_classes(tmp_path, spec, split):
    images = np.random.default_rng(0).integers(0, 256, (600, 1, 8, 8), dtype=np.uint8)
    whole = {"x": images, "y": np.repeat(np.arange(60), 10)}
    halves = {
        f"{name}_{half}": each[at::2] for at, half in enumerate(("train", "test")) for name, each in whole.items()
    }
    np.savez(tmp_path / "sorted.npz", **(halves if split else whole))
    data = open_dataset(tmp_path / "sorted.npz", spec((1, 8, 8), classes=60), seed=0)
    assert data.evaluation.first(60).labels.unique().tolist() == list(range(60))
    assert data.evaluation.first(20).labels.max() >= 40
    assert data.train.first(60).labels.tolist() != data.evaluation.first(60).labels.tolist()


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_arrays_stored_class_by_class_in_any_order_are_taken_in_turn(tmp_path, spec, order):
    labels = np.repeat(order, 40)
    images = RANDOM.integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=255 - images, y_train=labels, x_test=images, y_test=labels)
    data = open_dataset(tmp_path / "d.npz", spec((1, 8, 8), classes=3), seed=0)
    assert torch.bincount(data.evaluation.first(30).labels).tolist() == [10, 10, 10]


def test_arrays_in_any_other_order_keep_it(tmp_path, spec):
    labels = RANDOM.permutation(np.repeat(np.arange(60), 2))
    images = RANDOM.integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=255 - images, y_train=labels, x_test=images, y_test=labels)
    data = open_dataset(tmp_path / "d.npz", spec((1, 8, 8), classes=60), seed=0)
    assert np.array_equal(data.evaluation.indices, np.arange(120))


def test_images_without_pixels_are_refused(tmp_path, spec):
    np.savez(tmp_path / "none.npz", x=np.zeros((4, 0, 0, 3), np.uint8), y=np.zeros(4, int))
    with pytest.raises(BadInputError, match="no pixels"):
        open_dataset(tmp_path / "none.npz", spec((3, 8, 8), classes=2), seed=0)

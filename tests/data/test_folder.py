import os
import shutil
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fsrp_edge import progress
from fsrp_edge.data import folder as folder_module
from fsrp_edge.data.folder import FolderSource, decode_image
from fsrp_edge.data.images import ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError


@contextmanager
def tracks():
    """What is told inside the block: (description, total) of each track."""
    told = []

    def track(items, description, total):
        told.append((description, len(items) if total is None else total))
        return iter(items)

    with progress.listen(SimpleNamespace(track=track)):
        yield told


def noise(seed, size=(40, 30)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write_images(folder, count, seed=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(noise(1000 * seed + number)).save(folder / f"{number}{suffix}")


def files_of(images):
    return [images.source.files[index].relative_to(images.source._root).as_posix() for index in images.indices]


def torchvision_pixels(path, spec, mode="RGB"):
    from fsrp_edge import torchvision_compat  # noqa: F401

    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform = v2.Compose(
        [
            v2.Resize(spec.preprocessing.resize, v2.InterpolationMode(spec.preprocessing.interpolation)),
            v2.CenterCrop(spec.input_shape[1:]),
            v2.PILToTensor(),
        ]
    )
    with Image.open(path) as image:
        return transform(image.convert(mode))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 30), (30, 41), (33, 33), (500, 375), (61, 24), (24, 24)])
@pytest.mark.parametrize("network_input", [((3, 24, 24), 24), ((3, 21, 24), 27), ((1, 24, 20), 33)])
def test_agrees_with_torchvision_pixel_for_pixel(tmp_path, spec, interpolation, size, network_input):
    shape, resize = network_input
    Image.fromarray(noise(1, size)).save(tmp_path / "i.png")
    network = spec(shape, resize=resize, interpolation=interpolation)
    expected = torchvision_pixels(tmp_path / "i.png", network, "RGB" if shape[0] == 3 else "L")
    assert np.array_equal(decode_image(tmp_path / "i.png", network), expected.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_agrees_with_torchvision_on_photographs(spec, shared_data, interpolation):
    network = spec((3, 224, 224), classes=1000, resize=256, interpolation=interpolation)
    for path in sorted(shared_data.glob("imagenet-val-500/*/*"))[::25]:
        assert np.array_equal(decode_image(path, network), torchvision_pixels(path, network).numpy()), path


def test_imagenet_folder_maps_ids_to_imagenet_s_indices(spec, shared_data):
    data = open_dataset(shared_data / "imagenet-val-500", spec((3, 64, 64), 1000, resize=72), seed=0)
    assert (len(data.train), len(data.evaluation)) == (400, 100)
    expected = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert data.evaluation.labels.unique().tolist() == expected
    pixels, labels = next(data.evaluation.batches(100))
    assert pixels.shape == (100, 3, 64, 64)
    assert labels.bincount()[expected].tolist() == [10] * 10


def test_train_and_val_folders(tmp_path, spec):
    for split, count in (("train", 5), ("val", 3)):
        for position, name in enumerate(("ant", "bee")):
            write_images(tmp_path / split / name, count, seed=10 * position + count)
    data = open_dataset(tmp_path, spec(classes=2), seed=0)
    assert files_of(data.evaluation) == [
        "ant/0.png",
        "bee/0.png",
        "ant/1.png",
        "bee/1.png",
        "ant/2.png",
        "bee/2.png",
    ]
    assert data.evaluation.labels.tolist() == [0, 1] * 3
    assert len(data.train) == 10
    assert data.evaluation.name == f"{tmp_path.name}/val" and data.evaluation.class_names == ("ant", "bee")


def test_the_first_evaluation_images_are_not_of_the_first_classes(tmp_path, spec):
    for split, name in ((split, f"c{number:02}") for split in ("train", "val") for number in range(40)):
        write_images(tmp_path / split / name, 1, seed=len(split) * 100 + int(name[1:]))
    data = open_dataset(tmp_path, spec(classes=40), seed=0)
    assert sorted(data.evaluation.labels.tolist()) == data.train.labels.tolist() == list(range(40))
    assert data.evaluation.first(10).labels.max() >= 20


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Test"])
def test_other_names_of_the_evaluation_folder(tmp_path, spec, name):
    write_images(tmp_path / "train/a", 2, seed=1)
    write_images(tmp_path / "train/b", 2, seed=2)
    write_images(tmp_path / name / "b", 1, seed=3)
    data = open_dataset(tmp_path, spec(classes=2), seed=0)
    assert data.evaluation.labels.tolist() == [1]


def test_one_folder_is_split_alike_by_every_seed_and_keeps_rare_classes_on_both_sides(tmp_path, spec):
    write_images(tmp_path / "common", 30, seed=1)
    write_images(tmp_path / "rare", 3, seed=2)
    splits = [open_dataset(tmp_path, spec(classes=2), seed=seed) for seed in (0, 1)]
    for data in splits:
        assert data.evaluation.labels.bincount().tolist() == [6, 1]
        assert not set(files_of(data.train)) & set(files_of(data.evaluation))
    first, other = (files_of(data.evaluation) for data in splits)
    assert first == other
    assert "20% of each class held out for evaluation" in splits[0].description


def test_the_first_images_have_the_classes_shares_and_single_images_are_trained_on(tmp_path, spec):
    for name, count in (("common", 30), ("rare", 10), ("single", 1)):
        write_images(tmp_path / name, count, seed=count)
    data = open_dataset(tmp_path, spec(classes=3), seed=0)
    assert data.train.labels.bincount().tolist() == [24, 8, 1]
    assert data.train.first(16).labels.bincount().tolist() == [12, 4]
    assert data.evaluation.first(4).labels.bincount().tolist() == [3, 1]
    assert "20% of each class (but of 1 with a single image, which are only trained on) held out" in data.description


def test_a_class_may_be_called_train(tmp_path, spec):
    write_images(tmp_path / "train", 5, seed=1)
    write_images(tmp_path / "bus", 5, seed=2)
    assert open_dataset(tmp_path, spec(classes=2), seed=0).train.class_names == ("bus", "train")


def test_loose_images_of_a_test_folder_do_not_matter_beside_validation_images(tmp_path, spec):
    for index, name in enumerate(("train/a", "train/b", "val/a", "val/b", "test")):
        write_images(tmp_path / name, 2, seed=index)
    assert len(open_dataset(tmp_path, spec(classes=2), seed=0).evaluation) == 4


def test_flat_evaluation_folder_is_refused(tmp_path, spec):
    write_images(tmp_path / "train/a", 2)
    write_images(tmp_path / "val", 2)
    with pytest.raises(BadInputError, match=r"val has no class folders"):
        open_dataset(tmp_path, spec(classes=2), seed=0)


def test_folders_of_which_nobody_knows_which_is_meant_are_refused(tmp_path, spec):
    for index, name in enumerate(("train/a", "train/b", "Train/a", "Train/b", "val/a", "val/b")):
        write_images(tmp_path / name, 2, seed=index)
    with pytest.raises(BadInputError, match="has both Train and train; keep the one that is meant"):
        open_dataset(tmp_path, spec(classes=2), seed=0)


def test_evaluation_images_that_were_trained_on_are_left_out(tmp_path, spec):
    write_images(tmp_path / "train/a", 4, seed=1)
    write_images(tmp_path / "train/b", 4, seed=2)
    write_images(tmp_path / "val/a", 2, seed=3)
    write_images(tmp_path / "val/b", 2, seed=4)
    shutil.copy(tmp_path / "train/b/3.png", tmp_path / "val/a/0.png")
    data = open_dataset(tmp_path, spec(classes=2), seed=0)
    assert files_of(data.evaluation) == ["b/0.png", "a/1.png", "b/1.png"]
    assert "1 evaluation images left out" in data.description
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    with pytest.raises(BadInputError, match=r"all 8 evaluation images .* are also training images"):
        open_dataset(tmp_path, spec(classes=2), seed=0)


def test_images_that_only_differ_outside_their_middle_are_told_apart(tmp_path, spec):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
    pixels = noise(1)
    for place in ("train/a/0.bmp", "train/b/0.bmp", "val/a/0.bmp", "val/b/0.bmp"):
        Image.fromarray(pixels).save(tmp_path / place)
        if place != "train/b/0.bmp":
            pixels = pixels.copy()
            pixels[0, 0] += 1
    data = open_dataset(tmp_path, spec(classes=2), seed=0)
    assert files_of(data.evaluation) == ["b/0.bmp"]
    assert "1 evaluation images left out" in data.description


MODES = {
    "gray.png": (Image.fromarray(noise(1)[..., 0]), noise(1)[..., :1].repeat(3, 2)),
    "gray16.png": (
        Image.fromarray(noise(2)[..., 0].astype(np.uint16) * 256 + 77),
        noise(2)[..., :1].repeat(3, 2),
    ),
    "alpha.png": (Image.fromarray(np.dstack([noise(3), noise(4)[..., 0]])), noise(3)),
    "gray_alpha.png": (Image.fromarray(noise(5)[..., :2].copy(), "LA"), noise(5)[..., :1].repeat(3, 2)),
    "bitmap.png": (
        Image.fromarray(noise(6)[..., 0] > 127),
        ((noise(6)[..., :1] > 127) * np.uint8(255)).repeat(3, 2),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MODES)
def test_other_modes_become_colour(tmp_path, spec, name):
    image, expected = MODES[name]
    image.save(tmp_path / name)
    pixels = decode_image(tmp_path / name, spec((3, 30, 40), resize=40))
    wanted = Image.fromarray(expected).resize((int(40 * 40 / 30), 40), Image.Resampling.BILINEAR)
    left = round((wanted.width - 40) / 2)
    assert np.array_equal(pixels, np.asarray(wanted)[5:35, left : left + 40].transpose(2, 0, 1))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_no_known_range_are_refused_before_any_work(tmp_path, spec, kind):
    """Of 32-bit integers only the upper bits of 16 were read: those of an 8-bit image were all black."""
    for place in ("train/a/0.tif", "train/b/0.tif", "val/a/0.tif", "val/b/0.tif"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1)[..., 0].astype(kind)).save(tmp_path / place)
    with pytest.raises(BadInputError, match=r"0\.tif is not .*no known range: save it with 8 or 16 bits"):
        open_dataset(tmp_path, spec(classes=2), seed=0)
    with pytest.raises(BadInputError, match=r"cannot decode .*no known range"):
        decode_image(tmp_path / "train/a/0.tif", spec((1, 30, 30), resize=30))


def test_sixteen_bits_of_other_formats_are_read(tmp_path, spec):
    gray = noise(1)[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    height, width = gray.shape
    (tmp_path / "deep.pgm").write_bytes(b"P5 %d %d 65535\n" % (width, height) + (gray.astype(">u2") * 257).tobytes())
    network = spec((1, 30, 30), resize=30)
    for name in ("deep.tif", "deep.pgm"):
        assert np.array_equal(decode_image(tmp_path / name, network), decode_image(tmp_path / "gray.png", network))


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_and_cmyk(tmp_path, spec):
    original = Image.fromarray(noise(1))
    palette = original.quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    original.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    network = spec((3, 30, 30), resize=30)
    plain = palette.convert("RGB")
    plain.save(tmp_path / "plain.png")
    assert np.array_equal(decode_image(tmp_path / "p.png", network), decode_image(tmp_path / "plain.png", network))
    original.save(tmp_path / "o.png")
    difference = decode_image(tmp_path / "c.jpg", network).astype(int) - decode_image(tmp_path / "o.png", network)
    assert abs(difference).mean() < 30  # JPEG's own loss on noise, not inverted colours


def test_orientation_in_exif_is_applied(tmp_path, spec):
    upright = Image.fromarray(noise(1))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    network = spec((3, 30, 30), resize=30)
    turned, expected = (decode_image(tmp_path / f"{name}.png", network) for name in ("turned", "upright"))
    assert np.array_equal(turned, expected)


@pytest.fixture
def two_classes(tmp_path):
    write_images(tmp_path / "a", 5, seed=1)
    write_images(tmp_path / "b", 5, seed=2)
    return tmp_path


@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff\xd8\xff\xe0" + bytes(20)])
def test_files_that_are_no_images_are_found_at_once(two_classes, spec, content):
    (two_classes / "b/broken.jpg").write_bytes(content)
    with pytest.raises(BadInputError, match=r"b/broken\.jpg is not an image that can be read"):
        open_dataset(two_classes, spec(classes=2), seed=0)


def test_truncated_files_are_named_when_they_are_read(two_classes, spec):
    path = two_classes / "a/0.png"
    path.write_bytes(path.read_bytes()[:1500])
    data = open_dataset(two_classes, spec(classes=2), seed=0)
    with pytest.raises(BadInputError, match=r"cannot decode the image .*a/0\.png \(.*\); repair or remove it"):
        for images in (data.train, data.evaluation):
            list(images.batches(4))


def test_a_decompression_bomb_is_refused(two_classes, spec, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadInputError, match="exceeds limit"):
        open_dataset(two_classes, spec(classes=2), seed=0)


def test_links_in_circles_and_dead_links(two_classes, spec):
    (two_classes / "a/again").symlink_to(two_classes)
    assert len(open_dataset(two_classes, spec(classes=2), seed=0).train) == 8
    (two_classes / "a/self.png").symlink_to(two_classes / "a/self.png")
    with pytest.raises(BadInputError, match=r"a/self\.png is not an image"):
        open_dataset(two_classes, spec(classes=2), seed=0)


def test_names_that_are_not_utf_8(two_classes, spec):
    strange = os.fsencode(two_classes / "a") + b"/\xff\xfe.png"
    try:
        shutil.copy(two_classes / "a/0.png", strange)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    data = open_dataset(two_classes, spec(classes=2), seed=0)
    assert len(data.train.digest) == 64
    Path(os.fsdecode(strange)).write_bytes(b"broken")
    with pytest.raises(BadInputError, match=r"\\xff\\xfe\.png") as refused:
        open_dataset(two_classes, spec(classes=2), seed=0)
    str(refused.value).encode("utf-8")  # can be printed


def test_other_files_are_ignored(two_classes, spec):
    (two_classes / "a/Thumbs.db").write_bytes(b"x")
    (two_classes / "a/._0.png").write_bytes(b"x")
    (two_classes / "readme.txt").write_text("x")
    (two_classes / ".cache").mkdir()
    data = open_dataset(two_classes, spec(classes=2), seed=0)
    assert len(data.train) + len(data.evaluation) == 10


def test_empty_class_folders_are_named(two_classes, spec):
    (two_classes / "c").mkdir()
    with pytest.raises(BadInputError, match=r"1 of the 3 class folders .* hold no images: c\."):
        open_dataset(two_classes, spec(classes=3), seed=0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"classes": 3}, "2 classes .*the network has 3"),
        ({"shape": (4, 32, 32), "classes": 2}, "1 or 3 channels, this one takes 4"),
        ({"shape": (3, 32, 64), "classes": 2, "resize": 48}, "resized to 48, too small .* 32x64"),
    ],
)
def test_networks_that_do_not_fit_are_refused(two_classes, spec, arguments, told):
    with pytest.raises(BadInputError, match=told):
        open_dataset(two_classes, spec(**arguments), seed=0)


def test_every_image_is_decoded_once_where_all_fit_in_memory(two_classes, spec, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        folder_module, "decode_image", lambda path, spec: (decoded.append(path), decode_image(path, spec))[1]
    )
    data = open_dataset(two_classes, spec(classes=2), seed=0)
    first, second = ([pixels for pixels, _ in data.train.batches(3)] for _ in range(2))
    assert len(decoded) == len(data.train) == 8
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    monkeypatch.setattr(folder_module, "CACHE_BYTES", 0)
    uncached = FolderSource(data.train.source.files, two_classes, spec(classes=2))
    everything = np.arange(10)
    assert torch.equal(uncached.load(everything), data.train.source.load(everything))
    assert len(uncached.load(everything[:0])) == 0


def test_digest_follows_content_and_preprocessing_but_not_the_place(two_classes, spec, tmp_path_factory):
    def digest(folder, **how):
        source = open_dataset(folder, spec(classes=2, **how), seed=0).train.source
        return source.digest_of(np.arange(len(source)))

    before = digest(two_classes)
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.copytree(two_classes, moved)
    assert digest(moved) == before
    assert digest(moved, resize=40) != before
    Image.fromarray(noise(77)).save(moved / "a/0.png")
    assert digest(moved) != before


def test_the_digest_of_some_images_reads_no_others_and_none_twice(two_classes, spec, monkeypatch):
    read = []
    digest_of_file = folder_module.sha256_file
    monkeypatch.setattr(folder_module, "sha256_file", lambda path: (read.append(path), digest_of_file(path))[1])
    source = FolderSource(sorted(two_classes.glob("*/*")), two_classes, spec(classes=2))
    images = ImageSet.of("all", source, torch.tensor([0] * 5 + [1] * 5))
    some, others = images.subset(np.array([7, 2])), images.subset(np.array([2, 7]))
    assert some.digest != others.digest and sorted(read) == [source.files[2], source.files[7]]
    assert len(images.digest) == 64 and sorted(read) == list(source.files)
    Image.fromarray(noise(77)).save(source.files[0])
    changed = FolderSource(source.files, two_classes, spec(classes=2))
    assert ImageSet("some", changed, some.labels, some.indices).digest == some.digest
    assert ImageSet("all", changed, images.labels, images.indices).digest != images.digest


def test_reading_every_image_for_a_digest_is_told(two_classes, spec):
    source = FolderSource(sorted(two_classes.glob("*/*")), two_classes, spec(classes=2))
    with tracks() as told:
        source.digest_of(np.arange(10))
    assert told == [(f"digesting the images of {two_classes.name}", 10)]


def test_every_pass_over_the_files_is_told(tmp_path, spec):
    """Each takes minutes where there are a million on a share."""
    for seed, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        write_images(tmp_path / place, 2, seed)
    with tracks() as told:
        open_dataset(tmp_path, spec(classes=2), seed=0)
    assert told[:4] == [
        ("listing the images of train", 2),
        ("listing the images of val", 2),
        ("checking the images of train", 4),
        ("checking the images of val", 4),
    ]
    assert told[4] == ("looking for evaluation images among those for training", 8)


def test_many_files_take_little_memory_and_stay_in_order():
    """A future for each would be 1.6 kB a file, gigabytes for ImageNet."""
    files = list(range(20_000))
    tracemalloc.start()
    try:
        found = folder_module._in_threads(lambda file: file + 1, files)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == list(range(1, 20_001)) and most < 400 * len(files)


def test_a_picture_that_resizing_would_blow_up_is_refused(tmp_path, spec):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "long.png")
    with pytest.raises(BadInputError, match="before the crop"):
        decode_image(tmp_path / "long.png", spec((3, 224, 224)))


def test_postscript_that_is_called_a_picture_is_not_run(tmp_path, spec):
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / name, 2, seed)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat/run.jpg", format="EPS")
    with pytest.raises(BadInputError, match=r"run\.jpg is not an image that can be read"):
        open_dataset(tmp_path, spec((3, 8, 8), classes=2), seed=0)
    with pytest.raises(BadInputError, match="cannot identify image"):
        decode_image(tmp_path / "cat/run.jpg", spec((3, 8, 8)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "MPO"])
def test_pictures_of_another_kind_than_they_are_called_are_read(tmp_path, spec, kind):
    Image.fromarray(noise(1)).save(tmp_path / "a.jpg", format=kind)
    assert decode_image(tmp_path / "a.jpg", spec((3, 8, 8))).shape == (3, 8, 8)


def test_hidden_folders_inside_a_class_are_left_out(tmp_path, spec):
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / name, 5, seed)
    shutil.copytree(tmp_path / "cat", tmp_path / "cat" / ".ipynb_checkpoints")
    data = open_dataset(tmp_path, spec((3, 8, 8), classes=2), seed=0)
    assert len(data.train) + len(data.evaluation) == 10

import sys
from importlib import resources

import numpy as np
import pytest
import torch

from fsrp_edge.data.embedded import PHOTOGRAPHS
from fsrp_edge.data.images import UNLABELLED
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError, ToolFailedError


def test_digits_are_split_evenly(spec):
    pytest.importorskip("sklearn")
    data = open_dataset("digits", spec(), seed=0)
    assert (len(data.train), len(data.evaluation)) == (1397, 400)
    share = data.train.labels.bincount() * (400 / 1397)
    assert (data.evaluation.labels.bincount() - share).abs().max() <= 1
    assert not set(data.train.indices) & set(data.evaluation.indices)
    pixels, _labels = next(data.evaluation.batches(400))
    assert pixels.shape == (400, 3, 32, 32) and pixels.min() >= 0 and pixels.max() <= 1
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    again = open_dataset("digits", spec(), seed=1)
    assert again.evaluation.digest == data.evaluation.digest, "no seed trains on what another evaluates on"


def test_digits_are_the_digits(spec):
    """The images behind the labels: a nearest-mean classifier tells them apart."""
    pytest.importorskip("sklearn")
    data = open_dataset("digits", spec((1, 8, 8)), seed=0)
    (train, train_labels), (test, labels) = (next(images.batches(2000)) for images in (data.train, data.evaluation))
    means = torch.stack([train[train_labels == digit].flatten(1).mean(0) for digit in range(10)])
    predictions = torch.cdist(test.flatten(1), means).argmin(1)
    assert (predictions == labels).float().mean() > 0.85


def test_digits_need_ten_classes(spec):
    with pytest.raises(BadInputError, match=r"10 classes .*the network has 7"):
        open_dataset("digits", spec(classes=7), seed=0)


def test_photographs_are_unlabelled_crops_of_different_pictures(spec):
    pytest.importorskip("skimage")
    data = open_dataset("photographs", spec((3, 48, 64), classes=1000), seed=0)
    assert (len(data.train), len(data.evaluation)) == (512, 256)
    assert set(data.train.labels.tolist()) == {UNLABELLED} and not data.evaluation.is_labelled
    pixels, _ = next(data.train.batches(512))
    assert pixels.shape == (512, 3, 48, 64)
    assert len(torch.unique(pixels.flatten(1), dim=0)) == 512
    assert pixels.std() > 0.1
    again = open_dataset("photographs", spec((3, 48, 64), classes=1000), seed=0)
    assert again.train.digest == data.train.digest
    other = open_dataset("photographs", spec((3, 48, 64), classes=1000), seed=1)
    assert other.train.digest != data.train.digest
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["evaluation"])
    for photograph in (*PHOTOGRAPHS["train"], *PHOTOGRAPHS["evaluation"]):
        assert f"{photograph.file} by {photograph.author}, {photograph.licence}" in data.description


def test_a_gray_network_gets_gray_photographs(spec):
    pytest.importorskip("skimage")
    pixels, _ = next(open_dataset("photographs", spec((1, 16, 16)), seed=0).evaluation.batches(256))
    assert pixels.shape == (256, 1, 16, 16)


def test_the_packages_still_state_these_licences():
    pytest.importorskip("skimage")
    source = (resources.files("skimage.data") / "_fetchers.py").read_text(encoding="utf-8")
    for function, statement in {
        "astronaut": "released into the public domain",
        "coffee": "CC0 by the photographer (Rachel Michetti)",
        "hubble_deep_field": "may be freely used in the public domain",
        "retina": "Creative Commons CC0 1.0 Universal",
        "chelsea": "CC0 by the photographer (Stefan van der Walt)",
        "rocket": "released in the public domain",
    }.items():
        docstring = source.split(f"def {function}(")[1].split("\ndef ")[0]
        assert statement in " ".join(docstring.split()), function
    readme = (resources.files("sklearn.datasets.images") / "README.txt").read_text(encoding="utf-8")
    assert readme.count("https://creativecommons.org/licenses/by/2.0/") == 2


@pytest.mark.parametrize(
    ("name", "modules"),
    [("digits", ["sklearn", "sklearn.datasets"]), ("photographs", ["skimage", "skimage.data"])],
)
def test_a_missing_package_is_named_with_its_extra(spec, monkeypatch, name, modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ToolFailedError, match=r'pip install "fsrp-edge\[samples\]"'):
        open_dataset(name, spec(), seed=0)


def test_a_network_of_other_channels_is_refused(spec):
    with pytest.raises(BadInputError, match="takes 4"):
        open_dataset("photographs", spec((4, 16, 16)), seed=0)


def test_crops_are_not_stretched_beyond_four_to_three(spec):
    """A circle in the photograph stays round within the stated aspect."""
    from PIL import Image

    from fsrp_edge.data.embedded import _random_crop

    ramps = np.zeros((300, 300, 3), np.uint8)
    ramps[..., 0] = np.linspace(0, 255, 300)[None, :]
    ramps[..., 1] = np.linspace(0, 255, 300)[:, None]
    image, random = Image.fromarray(ramps), np.random.default_rng(0)
    for _ in range(50):
        crop = _random_crop(image, spec((3, 32, 32)), random).astype(float)
        width, height = abs(crop[0, 0, -1] - crop[0, 0, 0]), abs(crop[1, -1, 0] - crop[1, 0, 0])
        assert 0.7 < width / height < 1.43
        assert width * height / 255**2 > 0.08

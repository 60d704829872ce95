"""Files are attacked through a real runtime."""

import pytest
import torch

from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.files import file_robust_accuracy, transfer_examples
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.runtimes import open_session

EPS = 0.1


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The robust and the natural network as files, with what runs them."""
    folder, predicts = tmp_path_factory.mktemp("files"), {}
    for name in ("robust", "natural"):
        export_onnx(getattr(trained, name), folder / f"{name}.onnx", opset=17, ir_version=8)
        predicts[name] = open_session(folder / f"{name}.onnx").predict
    return predicts


def robust(predict, images, examples, **options):
    return file_robust_accuracy(predict, images, examples, eps=EPS, seed=0, **options)


def test_examples_are_in_the_ball_and_fool_the_network_they_were_made_of(trained) -> None:
    images = trained.images.first(50)
    examples = transfer_examples(trained.natural, images, eps=EPS, seed=0)
    pixels, labels = next(images.batches(50))
    assert (examples - pixels).abs().max() <= EPS + 1e-6
    assert examples.min() >= 0 and examples.max() <= 1
    right = trained.natural(examples).argmax(1) == labels
    assert right.float().mean() < 0.5


def test_an_image_stands_only_under_both_attacks(trained, exported) -> None:
    images = trained.images.first(40)
    _, labels = next(images.batches(40))
    examples = transfer_examples(trained.robust, images, eps=EPS, seed=0)
    both = robust(exported["robust"], images, examples, queries=100)
    clean = clean_accuracy(exported["robust"], images)
    transfer_only = exported["robust"](examples).argmax(1) == labels
    assert both.result.attack == "transfer+square-100"
    assert (both.result.norm, both.result.eps, both.result.images) == ("Linf", EPS, 40)
    assert not (both.standing & ~(clean.standing & transfer_only)).any()
    assert both.result.correct < clean.result.correct


def test_square_alone_finds_what_has_no_gradients(trained, exported) -> None:
    images = trained.images.first(40)
    pixels, _ = next(images.batches(40))  # in place of examples: nothing is transferred
    few, many = (robust(exported["natural"], images, pixels, queries=n).result.accuracy for n in (10, 300))
    assert clean_accuracy(exported["natural"], images).result.accuracy > 0.9
    assert many <= few and many < 0.6


def test_the_same_seed_gives_the_same_images_and_leaves_torch_s_generator(trained, exported) -> None:
    images = trained.images.first(20)
    examples = transfer_examples(trained.robust, images, eps=EPS, seed=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = [robust(exported["robust"], images, examples, queries=50).standing for _ in range(2)]
    assert torch.equal(*runs) and torch.equal(before, torch.get_rng_state())
    assert torch.equal(transfer_examples(trained.robust, images, eps=EPS, seed=1), examples)


def test_no_radius_is_clean(trained, exported) -> None:
    images = trained.images.first(20)
    pixels, _ = next(images.batches(20))
    unharmed = file_robust_accuracy(exported["robust"], images, pixels, eps=0, seed=0)
    assert torch.equal(unharmed.standing, clean_accuracy(exported["robust"], images).standing)

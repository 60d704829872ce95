"""Files are attacked through a real runtime."""

import shutil

import pytest
import torch

from fsrp_edge import distributed
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation import files
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate_with_files
from fsrp_edge.evaluation.files import file_robust_accuracy, transfer_examples
from fsrp_edge.evaluation.standing import Verdicts
from fsrp_edge.exporting.onnx import export_onnx
from fsrp_edge.runtimes import open_session

EPS = 0.1


@pytest.fixture(scope="module")
def paths(trained, tmp_path_factory):
    """The robust and the natural network as files."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.onnx" for name in ("robust", "natural")}
    for name, path in paths.items():
        export_onnx(getattr(trained, name), path, opset=17, ir_version=8)
    return paths


@pytest.fixture(scope="module")
def exported(paths):
    """What runs them."""
    return {name: open_session(path).predict for name, path in paths.items()}


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


def test_a_tie_is_what_the_file_makes_of_it(trained, exported) -> None:
    """Coarse logits, as of int8 files, often tie, and Square takes a tie for a success."""
    images = trained.images.first(60)
    pixels, _ = next(images.batches(60))  # in place of examples: nothing is transferred

    def coarse(pixels):
        return (exported["natural"](pixels) / 3).round() * 3

    def decided(pixels):
        return coarse(pixels).double() - 1e-6 * torch.arange(10)

    tied, told = (robust(predict, images, pixels, queries=100).standing for predict in (coarse, decided))
    assert torch.equal(tied, told)


def test_logits_that_are_no_numbers_are_never_right(trained, exported) -> None:
    images = trained.images.first(20)

    def overflowing(pixels):
        return exported["natural"](pixels) * torch.nan

    assert clean_accuracy(overflowing, images).result.correct == 0
    assert robust(overflowing, images, next(images.batches(20))[0], queries=10).result.correct == 0


def test_files_are_not_attacked_within_l2(trained, paths) -> None:
    plan = EvaluationPlan(attacks=("pgd-2",), norm="L2", eps=0.5)
    with pytest.raises(BadInputError, match="within Linf only, and the norm is L2"):
        evaluate_with_files(trained.robust, trained.images.first(8), plan, files=[paths["robust"]])


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


class KilledError(Exception):
    pass


@pytest.fixture
def judged(monkeypatch):
    """The labels of every portion that Square was given; it asks little here."""
    portions, square = [], files._square

    def counted(predict, eps, seed, _queries):
        attack = square(predict, eps, seed, 20)
        perturb = attack.perturb
        attack.perturb = lambda pixels, labels: (portions.append(labels.tolist()), perturb(pixels, labels))[1]
        return attack

    monkeypatch.setattr(files, "_square", counted)
    return portions


def test_interrupted_files_go_on_where_they_stopped(trained, paths, tmp_path, monkeypatch, judged) -> None:
    images, plan = trained.images.first(20), EvaluationPlan(attacks=("pgd-2",), eps=EPS)
    folder, unfinished = tmp_path / "files", tmp_path / "unfinished.json"
    shutil.copytree(paths["robust"].parent, folder)
    both, add, made = [folder / path.name for path in paths.values()], Verdicts.add, []
    whole = evaluate_with_files(trained.robust, images, plan, both)
    assert list(whole) == ["", "robust.onnx", "natural.onnx"]
    assert [one.result.attack for one in whole["natural.onnx"]] == ["clean", "transfer+square-500"]
    portions, judged[:] = judged[:], []

    def killed(self, name: str, *given) -> None:
        if name == "pgd-2" and self.path:
            raise KilledError
        add(self, name, *given)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Verdicts, "add", killed)
        evaluate_with_files(trained.robust, images, plan, both, unfinished=unfinished)
    assert judged == portions, "all files were judged"
    monkeypatch.setattr(
        files,
        "transfer_examples",
        lambda *given, **named: made.append(1) or transfer_examples(*given, **named),
    )
    both[1].write_bytes(both[0].read_bytes())  # exported again in the meantime
    resumed = evaluate_with_files(trained.robust, images, plan, both, unfinished=unfinished)
    assert judged == portions + portions[:2], "only what was exported again was judged again"
    assert len(made) == 1
    for name in ("", "robust.onnx"):
        assert [one.result for one in resumed[name]] == [one.result for one in whole[name]]
    assert torch.equal(resumed["natural.onnx"][1].standing, whole["robust.onnx"][1].standing)


def test_processes_share_a_file_s_images(trained, exported, monkeypatch, judged) -> None:
    images = trained.images.first(40)
    pixels, _ = next(images.batches(40))
    alone, portions = robust(exported["robust"], images, pixels, queries=20).standing, judged[:]
    monkeypatch.setattr(distributed, "sum_over_processes", lambda tensor: tensor)
    parts = []
    for rank in range(2):
        judged.clear()
        monkeypatch.setattr(distributed, "processes", lambda rank=rank: (rank, 2))
        parts.append(robust(exported["robust"], images, pixels, queries=20).standing)
        assert judged == (portions[:1], portions[1:])[rank]
    assert torch.equal(parts[0] & parts[1], alone)

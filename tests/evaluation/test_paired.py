import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.accuracy import evaluation_of
from fsrp_edge.evaluation.paired import compare_files, paired_difference, since_dense
from fsrp_edge.evaluation.results import Accuracy, Evaluation, EvaluationFile, Judged, ReportedAccuracy


def standing(*counts: tuple[int, bool]) -> torch.Tensor:
    return torch.cat([torch.full((count,), stands) for count, stands in counts])


def test_a_worked_example() -> None:
    """Agresti, Categorical Data Analysis, table 10.1 with 150 and 86 discordant of 1,600: difference -0.04."""
    first = standing((794, True), (150, True), (86, False), (570, False))
    second = standing((794, True), (150, False), (86, True), (570, False))
    paired = paired_difference(first, second)
    assert (paired.only_first, paired.only_second, paired.images) == (150, 86, 1600)
    assert paired.difference == -0.04
    assert paired.interval == pytest.approx((-0.059, -0.021), abs=1e-3)
    assert paired.p_value == pytest.approx(3.7e-5, rel=0.05)


def test_few_discordant_images_prove_nothing() -> None:
    first, second = standing((10, True)), standing((1, False), (9, True))
    paired = paired_difference(first, second)
    assert paired.p_value == 1
    assert paired.interval[0] < 0 < paired.interval[1]
    same = paired_difference(first, first)
    assert (same.difference, same.p_value) == (0, 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_swapping_the_networks_swaps_the_sign(pairs) -> None:
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.difference == -other.difference
    assert -1 <= one.interval[0] <= one.interval[1] <= 1
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.p_value == other.p_value and 0 <= one.p_value <= 1


def test_files_are_compared_on_what_both_hold(trained, tmp_path) -> None:
    images = trained.images.first(8)
    clean = evaluation_of(standing((8, True)), images, attack="clean")
    weak = evaluation_of(standing((4, True), (4, False)), images, attack="pgd-5", norm="Linf", eps=0.1)
    strong = evaluation_of(standing((8, False)), images, attack="pgd-5", norm="Linf", eps=0.2)
    one = EvaluationFile.of("one", "a", images.digest, {"": [clean, weak]})
    one.save(tmp_path / "one.json")
    assert EvaluationFile.load(tmp_path / "one.json") == one
    other = EvaluationFile.of("other", "b", images.digest, {"": [clean, strong]})
    assert [result.attack for _, result, _ in compare_files(one, other)] == ["clean"]
    elsewhere = EvaluationFile.of("other", "b", trained.images.digest, {"": [clean]})
    with pytest.raises(BadInputError, match="different images"):
        compare_files(one, elsewhere)
    with pytest.raises(BadInputError, match="in common"):
        compare_files(EvaluationFile.of("x", "c", images.digest, {"": [weak]}), other)


def test_only_the_same_attack_on_the_same_images_is_compared_with_the_dense_network(trained) -> None:
    images, attack = trained.images.first(8), {"attack": "pgd-5", "norm": "Linf"}
    dense = [
        evaluation_of(standing((6, True), (2, False)), images, attack="clean"),
        evaluation_of(standing((4, True)), images.first(4), **attack, eps=0.1),
    ]
    judged = [
        evaluation_of(standing((2, False), (6, True)), images, attack="clean"),
        evaluation_of(standing((8, True)), images, **attack, eps=0.1),
        evaluation_of(standing((4, False)), images.first(4), **attack, eps=0.2),
    ]
    before, after = ([Judged.of(each) for each in side] for side in (dense, judged))
    clean, more, farther = since_dense(before, after)
    assert clean.since_dense == paired_difference(dense[0].standing, judged[0].standing)
    assert (clean.since_dense.only_first, clean.since_dense.only_second) == (2, 2)
    assert more.since_dense is None and farther.since_dense is None
    assert not any(each.since_dense for each in since_dense((), after))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_report_keeps_the_verdict_on_every_image(marks) -> None:
    accuracy = Accuracy(
        attack="clean", images=len(marks), correct=sum(marks), accuracy=sum(marks) / len(marks), interval=(0, 1),
        data="digits", label_kind="ground truth",
    )  # fmt: skip
    kept = Judged.of(Evaluation(accuracy, torch.tensor(marks))).kept_with(None)
    assert ReportedAccuracy.model_validate_json(kept.model_dump_json()).stands.tolist() == marks
    with pytest.raises(ValidationError, match="a bit for each of"):
        ReportedAccuracy.model_validate(kept.model_dump() | {"images": len(marks) + 8})


def test_an_accuracy_changed_by_hand_is_told_by_its_interval() -> None:
    """Pictures draw the distances to both ends."""
    fields = {"attack": "clean", "images": 10, "correct": 9, "data": "digits", "label_kind": "ground truth"}
    with pytest.raises(ValidationError, match=r"accuracy 0\.9 is outside of its interval, 0\.2 to 0\.8"):
        Accuracy.model_validate({**fields, "accuracy": 0.9, "interval": (0.2, 0.8)})


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(BadInputError, match="not a result of `fsrp-edge evaluate --out`"):
        EvaluationFile.load(tmp_path / "report.json")


def test_mcnemar_is_that_of_the_binomial_on_few_images_and_on_many() -> None:
    for one, other in ((0, 0), (0, 5), (3, 9), (40, 31)):
        first, second = (
            standing((one, True), (other, False), (1, True)),
            standing((one, False), (other, True), (1, True)),
        )
        paired = paired_difference(first, second)
        tail = sum(math.comb(one + other, count) for count in range(min(one, other) + 1))
        assert paired.p_value == pytest.approx(min(1, 2 * tail / 2 ** (one + other)))
    many = paired_difference(standing((24_800, True), (25_200, False)), standing((24_800, False), (25_200, True)))
    assert many.p_value == pytest.approx(math.erfc(399 / 50_000**0.5 / 2**0.5), rel=1e-2)

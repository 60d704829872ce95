import pytest

from fsrp_edge import wording
from fsrp_edge.evaluation.results import Accuracy


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_600, "1.00 M"),
        (11_689_512, "11.7 M"),
        (4_120_000_000, "4.12 G"),
    ],
)
def test_counts(value: int, text: str) -> None:
    assert wording.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (98_304, "98.3 kB"), (44_700_000, "44.7 MB"), (None, "–")])
def test_sizes(value: int | None, text: str) -> None:
    assert wording.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4119, "0.412"),
        (0.9996, "1.00"),
        (5.934, "5.93"),
        (9.996, "10.0"),
        (22.44, "22.4"),
        (99.96, "100"),
        (1234.5, "1234"),
    ],
)
def test_three_digits_without_exponent(value: float, text: str) -> None:
    assert wording.digits(value) == text


@pytest.mark.parametrize(("value", "text"), [(8.24, "8.2 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_seconds(value: float, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("attack", "norm", "eps", "text"),
    [
        ("clean", None, None, "clean"),
        ("pgd-20", "Linf", 8 / 255, "PGD-20 L∞ 8/255"),
        ("autoattack", "Linf", 0.01, "autoattack L∞ 0.01"),
        ("autoattack", "L2", 0.5, "autoattack L2 0.5"),
        ("autoattack", "L2", 1.0, "autoattack L2 1"),
        ("worst case of autoattack, pgd-9x2", "Linf", 0.5, "worst case of autoattack, PGD-9x2 L∞ 0.5"),
    ],
)
def test_an_attack_is_named_with_its_norm_and_radius(
    attack: str, norm: str | None, eps: float | None, text: str
) -> None:
    fields = {"images": 10, "correct": 5, "accuracy": 0.5, "interval": (0.2, 0.8), "data": "x"}
    accuracy = Accuracy.model_validate(
        {**fields, "attack": attack, "norm": norm, "eps": eps, "label_kind": "ground truth"}
    )
    assert wording.attack(accuracy) == text

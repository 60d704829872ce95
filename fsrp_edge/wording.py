"""How figures and names are put in words, the same in every table, message and report."""

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # progress lines are worded here too, and must not wait for torch
    from fsrp_edge.evaluation.results import Accuracy, PairedDifference

NONE = "–"


def printable(text: str) -> str:
    """`text` on one line, without control characters that could steer a terminal or a reader's eye."""
    return "".join(character if character.isprintable() else " " for character in text)


def nearest(seen: str, allowed: Iterable[str]) -> str:
    """What may have been meant by a word, and all the words that are allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(seen, allowed, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def attack(accuracy: "Accuracy") -> str:
    """`clean`, or the attack with its norm and radius, such as `PGD-20 L∞ 8/255`."""
    if accuracy.eps is None:
        return accuracy.attack
    name = accuracy.attack.replace("pgd", "PGD").replace("fgsm", "FGSM")
    norm = {"Linf": "L∞", "L2": "L2", None: ""}[accuracy.norm]
    size = f"{accuracy.eps:.4g}" if accuracy.norm == "L2" else radius(accuracy.eps)
    return " ".join(filter(None, (name, norm, size)))


def radius(eps: float) -> str:
    """Of L∞: `8/255`."""
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{eps:.4g}"


def measure(accuracy: "Accuracy") -> str:
    """What the number is: accuracy only where the labels are true."""
    return "accuracy" if accuracy.label_kind == "ground truth" else "agreement with the dense network"


def percent(share: float | None, more: int = 0) -> str:
    """`62.5 %`; with `more` digits, `62.50 %`."""
    return NONE if share is None else f"{100 * share:.{1 + more}f} %"


def interval(accuracy: "Accuracy") -> str:
    """95 % interval in percent: `59.5–65.4`."""
    low, high = accuracy.interval
    return f"{100 * low:.1f}–{100 * high:.1f}"


def share_with_interval(accuracy: "Accuracy") -> str:
    """`62.5 % (59.5–65.4), n=1000`."""
    return f"{percent(accuracy.accuracy)} ({interval(accuracy)}), n={accuracy.images}"


def change(paired: "PairedDifference") -> str:
    """Points with their 95 % interval: `−1.3 points (−2.0 to −0.5)`."""
    value, low, high = (f"{100 * share:+.1f}".replace("-", "−") for share in (paired.difference, *paired.interval))
    return f"{value} points ({low} to {high})"


def count(value: float | None, more: int = 0) -> str:
    """A large number in three digits and `more`: `11.7 M`."""
    return NONE if value is None else _scaled(value, ("", " k", " M", " G", " T"), more)


def size(value: float | None, more: int = 0) -> str:
    """Bytes in decimal units, in three digits and `more`: `44.7 MB`."""
    return NONE if value is None else _scaled(value, (" B", " kB", " MB", " GB", " TB"), more)


def _scaled(value: float, units: tuple[str, ...], more: int) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return (f"{value:.0f}" if power == 0 else digits(value, more)) + units[power]


def threads(number: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} thread{'' if number == 1 else 's'}"


def digits(value: float | None, more: int = 0) -> str:
    """Three significant digits and `more`, without an exponent: `0.412`, `5.93`, `22.4`, `123`."""
    if value is None:
        return NONE
    decimals = next((count for count, least in enumerate((99.95, 9.995, 0.9995)) if value >= least), 3)
    return f"{value:.{decimals + more}f}"


def marked(figure: str, *, valid: bool) -> str:
    """`0.412 ✗` where something disturbed the measurement that a figure comes from."""
    return figure if valid else f"{figure} ✗"


def ratio(value: float | None, more: int = 0) -> str:
    """`3.80×`; with `more` digits, `3.800×`."""
    return NONE if value is None else f"{digits(value, more)}×"


def more_digits(show: Callable[[float, int], str], first: float, second: float) -> int:
    """How many more digits tell two figures apart: `40.04 kB` and `40.00 kB`; 0 where none do."""
    return next((more for more in range(6) if show(first, more) != show(second, more)), 0)


def fewer(before: int, after: int) -> str:
    """`−74.9 %, 3.98× fewer`."""
    if before == 0 or after == 0:
        return NONE
    return f"−{percent(1 - after / before)}, {ratio(before / after)} fewer"


def seconds(value: float) -> str:
    """`8.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

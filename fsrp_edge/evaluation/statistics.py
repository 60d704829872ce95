"""Confidence of an accuracy."""

from statistics import NormalDist


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson 95 % score interval of a proportion: honest near 0 and 1 and for few images, where ±1.96 · se is not.

    Args:
        correct: successes, 0 to total.
        total: trials, at least 1.

    Returns:
        (low, high), both in [0, 1].
    """
    z = NormalDist().inv_cdf(0.975)
    share = correct / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    # At the ends centre and half are equal but for rounding.
    return (0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half)

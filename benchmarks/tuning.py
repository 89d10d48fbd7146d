"""How a baseline gets its weight and its iterations: on validation scans, by the score they give."""

from collections.abc import Callable

PLATEAU_DB, FLAT_DB = 0.1, 0.01


def climb(score: Callable[[float], float], weight: float, factor: float) -> float:
    """Return the weight, on the grid ``weight * factor**k``, from which no step gains more than 0.01 dB."""
    for step in (factor, 1 / factor):
        while score(weight * step) > score(weight) + FLAT_DB:
            weight *= step
    return weight


def tune(
    score: Callable[[float, int], float], weight: float, n_iterations: int, n_most: int
) -> tuple[float, int, bool]:
    """Return the best weight, the iterations it needs, and whether they reached the plateau.

    The weight is climbed to by factors of 2. While twice the iterations gain 0.1 dB or more, they are taken, and the
    weight is climbed to anew, since more iterations want another weight; at ``n_most`` this stops without a plateau.
    """
    while True:
        weight = climb(lambda other, n=n_iterations: score(other, n), weight, 2)
        if 2 * n_iterations > n_most:
            return weight, n_iterations, False
        if score(weight, 2 * n_iterations) - score(weight, n_iterations) < PLATEAU_DB:
            return weight, n_iterations, True
        n_iterations *= 2

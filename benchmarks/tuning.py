"""How a baseline gets its weight and its iterations: on validation scans, by the score they give."""

import functools
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

    While twice the iterations gain 0.1 dB or more, they are taken; then the weight is climbed to by factors of 2, and
    if it moved, both are done anew, since another weight wants other iterations. Twice ``n_most`` is never tried.
    """
    while True:
        while 2 * n_iterations <= n_most and gain_of_twice(score, weight, n_iterations) >= PLATEAU_DB:
            n_iterations *= 2
        better = climb(functools.partial(_at, score, n_iterations), weight, 2)
        if better == weight:
            return weight, n_iterations, 2 * n_iterations <= n_most
        weight = better


def gain_of_twice(score: Callable[[float, int], float], weight: float, n_iterations: int) -> float:
    """Return what twice the iterations gain, in dB."""
    return score(weight, 2 * n_iterations) - score(weight, n_iterations)


def _at(score: Callable[[float, int], float], n_iterations: int, weight: float) -> float:
    return score(weight, n_iterations)

"""Differences between runs of the same seeds, and how sure they are."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The mean of ``n`` paired differences and its 95 % interval, which takes two of them."""

    n: int
    mean: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{:+z.2f}, {:+z.2f}]".format(*self.interval)
        return f"{self.mean:+z.2f}{ends}"


def paired_difference(differences: list[float]) -> Difference:
    """Student's t interval of the mean of at least one difference."""
    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Difference(n, mean)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(n, mean, (mean - half, mean + half))


def t_quantile(degrees: int, coverage: float = 0.95) -> float:
    """The ``t`` with ``coverage`` of Student's distribution between ``-t`` and ``t``.

    That probability is a finite sum for whole degrees of freedom, with ``theta = atan(t /
    sqrt(degrees))`` (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4);
    it is inverted by bisection.
    """

    def probability(theta: float) -> float:
        odd = degrees % 2
        term, total = math.cos(theta) ** odd, 0.0
        for power in range(odd, degrees - 1, 2):
            total += term
            term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
        total *= math.sin(theta)
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings: to the last bit of a float
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < coverage else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)

"""Differences between runs of the same seeds, and how certain they are.

Runs of one seed share initial weights and data order: they are compared in pairs. The test flips
the sign of each difference in every possible way. If neither side is better, and differences as
large to one side are as likely as to the other, all of these are equally likely.
"""

import functools
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
"""The chance of a false verdict, over all claims of a page together."""

POWER = 0.8
"""The chance of a verdict that the number of seeds is chosen for."""

FEWEST = 6
"""Paired seeds that a verdict takes: of five, the smallest p is 2 / 2**5 = 0.0625."""

EXACT = 14
"""Differences up to which every flip of signs is counted; beyond, 99,999 are drawn."""

MOST = 1000
"""Seeds beyond which nobody would run them."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, their 95 % interval, and the p of the sign-flip test.

    Fewer than `FEWEST` differences have neither interval nor p.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        ends = "" if self.interval is None else " [{:+z.2f}, {:+z.2f}]".format(*self.interval)
        return f"{self.mean:+z.2f}{ends}"


def paired_difference(differences: Sequence[float]) -> Difference:
    """The statistics of one or more paired differences.

    Raises:
        ValueError: there is none, or one is no finite number.
    """
    values = tuple(round(float(value), 9) for value in differences)  # equal ones stay equal
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"differences must be finite numbers, at least one: {list(values)}")
    mean = statistics.fmean(values)
    if len(values) < FEWEST:
        return Difference(values, mean)
    return Difference(values, mean, bca_interval(values), sign_flip_p(values))


@functools.lru_cache(maxsize=4096)
def bca_interval(values: tuple[float, ...], coverage: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean, bias-corrected and accelerated (Efron 1987)."""
    if max(values) == min(values):  # resampling gives nothing else
        return values[0], values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.asarray(values),), np.mean, confidence_level=coverage, method="BCa",
            n_resamples=9999, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    if math.isfinite(found.low) and math.isfinite(found.high):
        return float(found.low), float(found.high)
    return min(values), max(values)


@functools.lru_cache(maxsize=4096)
def sign_flip_p(values: tuple[float, ...]) -> float:
    """Two-sided p of the sign-flip permutation test of a mean of zero."""
    data = np.asarray(values)
    if len(values) <= EXACT:
        every = stats.permutation_test(
            (data,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        return float(every.pvalue)
    rng = np.random.default_rng(0)
    drawn = stats.monte_carlo_test(  # permutation_test takes ten times as long for the same draws
        data, lambda size: rng.choice([-1.0, 1.0], size) * data, np.mean, vectorized=True,
        n_resamples=99_999,
    )  # fmt: skip
    return float(drawn.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def fewest_seeds(level: float) -> int:
    """Seeds of which the smallest p, ``2 / 2**n``, reaches a level; at least `FEWEST`."""
    return max(FEWEST, math.ceil(1 - math.log2(level)))


def seeds_needed(mean: float, deviation: float, level: float) -> int | None:
    """Seeds at which a difference is found with a chance of `POWER`; None beyond `MOST`.

    That is the power of a two-sided paired t test at ``level``, from the noncentral t distribution,
    with the mean and the standard deviation seen; and no fewer than the sign-flip test needs.
    """
    least = fewest_seeds(level)
    if deviation == 0:
        return least if mean else None
    n = np.arange(least, MOST + 1)
    critical = stats.t.ppf(1 - level / 2, n - 1)
    power = stats.nct.sf(critical, n - 1, abs(mean) / deviation * np.sqrt(n))
    enough = np.flatnonzero(power >= POWER)
    return int(n[enough[0]]) if len(enough) else None

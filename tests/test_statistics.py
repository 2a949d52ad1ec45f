"""Paired differences: intervals, tests, corrections and power against independent witnesses."""

import itertools
import math
import statistics

import numpy as np
import pytest

from tasks.evidence.statistics import (
    bca_interval,
    fewest_seeds,
    holm,
    paired_difference,
    seeds_needed,
    sign_flip_p,
)

SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
"""Student 1908: hours of sleep that ten patients gained with one drug more than with the other."""

DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
"""Darwin 1876: cross-fertilized minus self-fertilized plants, in eighths of an inch."""


def enumerated(values):
    """Share of all flips of signs whose sum is at least as far from zero."""
    flips = list(itertools.product((-1, 1), repeat=len(values)))
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in flips]
    return sum(total >= abs(sum(values)) - 1e-9 for total in sums) / len(flips)


@pytest.mark.parametrize("n", [2, 3, 6, 7, 10])
def test_sign_flip_p_is_that_of_all_flips(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    values = tuple(values.tolist())
    assert sign_flip_p(values) == pytest.approx(enumerated(values), abs=1e-12)


def test_sign_flip_p_of_published_data():
    # Fisher 1935, The Design of Experiments, section 21: of 2**15 sums, 1,726 are as far out.
    assert sign_flip_p(DARWIN) == pytest.approx(1726 / 2**15, abs=0.003)  # drawn, not counted
    assert sign_flip_p(SLEEP) == enumerated(SLEEP) == 2 / 2**9  # a zero flips to itself


@pytest.mark.parametrize(("n", "p"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (7, 0.015625)])
def test_the_smallest_p_is_two_flips_of_all(n, p):
    assert sign_flip_p((1.0,) * n) == p == sign_flip_p(tuple(range(1, n + 1)))


def test_differences_of_zero_say_nothing():
    assert sign_flip_p((0.0,) * 6) == 1.0
    found = paired_difference([0.0] * 6)
    assert (found.mean, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def bca_by_hand(values, draws=40_000):
    """Efron's interval written out: bias from the draws, acceleration from the jackknife."""
    rng, normal, n = np.random.default_rng(1), statistics.NormalDist(), len(values)
    means = np.sort(rng.choice(values, (draws, n)).mean(axis=1))
    below = ((means < np.mean(values)).mean() + (means <= np.mean(values)).mean()) / 2
    bias = normal.inv_cdf(below)
    left_out = [(sum(values) - value) / (n - 1) for value in values]
    away = [statistics.fmean(left_out) - value for value in left_out]
    acceleration = sum(a**3 for a in away) / (6 * sum(a**2 for a in away) ** 1.5)
    ends = []
    for quantile in (0.025, 0.975):
        z = bias + normal.inv_cdf(quantile)
        ends.append(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))
    return ends


@pytest.mark.parametrize("values", [SLEEP, DARWIN, (0.1, 0.4, 0.2, 0.9, 3.5, 0.3)], ids=len)
def test_bca_interval_is_that_of_an_implementation_of_its_own(values):
    tolerance = 0.04 * statistics.stdev(values)  # both draw at random
    assert bca_interval(values) == pytest.approx(bca_by_hand(values), abs=tolerance)


def test_identical_differences_have_an_interval_of_one_point():
    found = paired_difference([1.25] * 6)
    assert (found.n, found.mean, found.interval, found.p) == (6, 1.25, (1.25, 1.25), 0.03125)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_than_six_seeds_have_neither_interval_nor_p(n):
    found = paired_difference([1.0 + i for i in range(n)])
    assert (found.n, found.interval, found.p) == (n, None, None)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf, 2.0]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="finite numbers"):
        paired_difference(values)


def test_holm_s_correction_worked_by_hand():
    # 0.005 * 4, 0.01 * 3, 0.03 * 2; 0.04 * 1 would be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert (holm([0.03]), holm([])) == ([0.03], [])


def test_the_fewest_seeds_are_those_whose_smallest_p_reaches_the_level():
    assert [fewest_seeds(0.05 / claims) for claims in (1, 2, 3, 4, 12)] == [6, 7, 7, 8, 9]


@pytest.mark.parametrize(
    ("effect", "n"),  # two-sided paired t test, 5 %, power 80 %: Cohen 1988, G*Power
    [(0.5, 34), (0.8, 15), (1.0, 10)],
)
def test_seeds_needed_are_those_of_the_textbooks(effect, n):
    assert seeds_needed(effect * 2, 2.0, 0.05) == seeds_needed(-effect, 1.0, 0.05) == n


def test_seeds_needed_find_the_difference_as_often_as_promised():
    n = seeds_needed(1.0, 1.2, 0.05)
    drawn = np.random.default_rng(0).normal(1.0, 1.2, (400, n))
    signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    sums = np.abs(drawn @ signs.T)  # of every flip; that of all pluses is the last
    p = (sums >= sums[:, -1:] - 1e-9).mean(axis=1)
    assert (p <= 0.05).mean() == pytest.approx(0.8, abs=0.06)


def test_seeds_needed_without_a_spread_or_a_difference():
    assert seeds_needed(1.0, 0.0, 0.05) == 6
    assert seeds_needed(0.0, 0.0, 0.05) is None
    assert seeds_needed(0.001, 5.0, 0.05) is None

"""The claims of the paper, and whether runs bear them out."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.evidence.gather import Evidence
from tasks.evidence.rows import SCALES, Row, published_rows
from tasks.evidence.statistics import Difference, paired_difference

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell"


def contrast(
    evidence: Evidence, scale: str, first: Iterable[Row], second: Iterable[Row], metric: str
) -> Difference | None:
    """Mean of the first rows minus mean of the second, paired by seed; None without a common seed.

    In units of the metric: of an error, a negative difference is in favour of the first.
    """
    sides = [[evidence.scores(scale, row, metric) for row in rows] for rows in (first, second)]
    seeds = set.intersection(*(set(scores) for side in sides for scores in side))
    if not seeds:
        return None
    means = [
        {seed: statistics.fmean(scores[seed] for scores in side) for seed in seeds}
        for side in sides
    ]
    return paired_difference([means[0][seed] - means[1][seed] for seed in sorted(seeds)])


@dataclass(frozen=True)
class Claim:
    """What the paper says of the primary metric of some rows, as contrasts between experiments.

    Without a margin: in each contrast the mean of the first is better than that of the second. With
    one: it lies within plus or minus the margin, in percentage points.
    """

    table: int
    text: str
    contrasts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    margin: float | None = None


def _each(first: str, *others: str) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    return tuple(((first,), (other,)) for other in others)


LARGE_WINDOWS = ("table4_w383", "table4_w511", "table4_all")

CLAIMS = (
    Claim(1, "LCN over GN, HRNetV2-W48", _each("table1_w48_lcn", "table1_w48_gn")),
    Claim(1, "LCN over BN, HRNetV2-W48", _each("table1_w48_lcn", "table1_w48_bn")),
    Claim(1, "LCN over GN, HRNetV2-W18", _each("table1_w18_lcn", "table1_w18_gn")),
    Claim(1, "LCN over BN, HRNetV2-W18", _each("table1_w18_lcn", "table1_w18_bn")),
    Claim(
        1,
        "LCN over IN and LN, HRNetV2-W18",
        _each("table1_w18_lcn", "table1_w18_in", "table1_w18_ln"),
    ),
    Claim(
        2,
        "GN is best with 16 groups",
        _each("table2_g16", "table2_g1", "table2_g2", "table2_g4", "table2_g8", "table2_gC"),
    ),
    Claim(
        3,
        "LCN is fairly flat over channels per group",
        _each("table3_c2", "table3_c4", "table3_c8", "table3_c16")
        + _each("table3_c4", "table3_c8", "table3_c16")
        + _each("table3_c8", "table3_c16"),
        margin=2.0,  # the published rows, "fairly stable", are within 1.66
    ),
    Claim(
        3,
        "LCN is best with 2 channels per group",
        _each("table3_c2", "table3_c4", "table3_c8", "table3_c16"),
    ),
    Claim(
        4,
        "LCN falls with large windows: 199, 227, 255 over 383, 511, all",
        ((("table4_w199", "table4_w227", "table4_w255"), LARGE_WINDOWS),),
    ),
    Claim(
        4,
        "LCN with a large window is close to GN",
        tuple(((window,), ("table1_w18_gn",)) for window in LARGE_WINDOWS),
        margin=0.5,  # the published rows are within 0.28
    ),
    Claim(5, "LCN over GN, COCO", _each("table5_lcn", "table5_gn")),
    Claim(5, "LCN over BN, COCO", _each("table5_lcn", "table5_bn")),
    Claim(
        6,
        "LCN is about equal to GN, ImageNet",
        _each("table6_lcn", "table6_gn"),
        margin=0.5,  # the published rows are within 0.01
    ),
    Claim(7, "LCN over GN, INRIA overall", _each("table7_lcn", "table7_gn")),
    Claim(7, "LCN over BN, INRIA overall", _each("table7_lcn", "table7_bn")),
    Claim(8, "LCN over GN, Chesapeake", _each("table8_lcn", "table8_gn")),
    Claim(8, "BN slightly over LCN, Chesapeake", _each("table8_bn", "table8_lcn")),
)


@dataclass(frozen=True)
class Finding:
    """A contrast of a claim; its difference is None if its rows have no seed in common."""

    what: str
    difference: Difference | None
    published: float
    outcome: str

    def __str__(self) -> str:
        found = (
            "not run with a common seed"
            if self.difference is None
            else f"{self.difference}, n {self.difference.n}"
        )
        return f"{self.what}: {found}"


def judge(claim: Claim, evidence: Evidence, scale: str) -> tuple[str, list[Finding]]:
    """Whether a claim holds: ``holds``, ``does not`` or ``cannot tell``, and what says so.

    It holds if all of its contrasts do and does not if one of them does not: each contrast is
    decided by its own 95 % interval, without a correction for their number.
    """
    findings = [_examine(claim, pair, evidence, scale) for pair in claim.contrasts]
    outcomes = {finding.outcome for finding in findings}
    if DOES_NOT in outcomes:
        return DOES_NOT, findings
    return (HOLDS if outcomes == {HOLDS} else CANNOT_TELL), findings


def _examine(
    claim: Claim, pair: tuple[tuple[str, ...], ...], evidence: Evidence, scale: str
) -> Finding:
    first, second = ([published_rows()[name] for name in names] for names in pair)
    metric = first[0].primary
    difference = contrast(evidence, scale, first, second, metric)
    published = [
        statistics.fmean(row.published[metric] for row in rows) for rows in (first, second)
    ]
    what = " - ".join(_mean_of([row.label for row in rows]) for rows in (first, second))
    less_is_better = metric.endswith("_err")
    outcome = _outcome(difference, claim.margin, less_is_better)
    return Finding(what, difference, published[0] - published[1], outcome)


def _mean_of(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"mean({', '.join(labels)})"


def _outcome(difference: Difference | None, margin: float | None, less_is_better: bool) -> str:
    if difference is None or difference.interval is None:
        return CANNOT_TELL
    low, high = difference.interval
    if margin is not None:
        if -margin <= low and high <= margin:
            return HOLDS
        return DOES_NOT if low > margin or high < -margin else CANNOT_TELL
    if less_is_better:
        low, high = -high, -low
    return HOLDS if low > 0 else DOES_NOT if high < 0 else CANNOT_TELL


def claims_text(evidence: Evidence) -> str:
    """What holds, for the console: a paragraph per scale that has runs, a line per claim."""
    lines = []
    for scale, title in SCALES.items():
        if not evidence.runs[scale]:
            continue
        count = len(evidence.distinct(scale))
        lines.append(f"\n{title}, {count} {'run' if count == 1 else 'runs'}")
        for claim in CLAIMS:
            outcome, findings = judge(claim, evidence, scale)
            lines.append(f"  {outcome:12} Table {claim.table}: {claim.text}")
            lines += [f"  {'':12}   {finding}" for finding in findings if finding.difference]
    return "\n".join(lines) + "\n"

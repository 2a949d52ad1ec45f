"""Whether runs support the paper's claims, how certain that is, and which runs are missing.

The rule stands at the head of ``results/claims.yaml``.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tasks.evidence.claims import EQUAL, MORE, ORDER, Claim, Side, claims
from tasks.evidence.gather import STEPS_TO_90, Evidence
from tasks.evidence.rows import Row, baseline, page_title, row_named
from tasks.evidence.statistics import (
    LEVEL,
    Difference,
    fewest_seeds,
    holm,
    paired_difference,
    seeds_needed,
)

OUTCOMES = HOLDS, DOES_NOT, CANNOT_TELL, NOT_RUN = (
    "holds", "does not hold", "cannot tell", "not run",
)  # fmt: skip

TILE_MISMATCH = "tile_mismatch"
"""What ``scripts/consistency.py`` adds to a run's result: percent of pixels that change class."""


def less_is_better(metric: str) -> bool:
    return metric.endswith("_err") or metric in (STEPS_TO_90, TILE_MISMATCH)


def contrast(
    evidence: Evidence, page: str, first: Iterable[Row], second: Iterable[Row], *metrics: str
) -> Difference | None:
    """Mean of the first rows minus mean of the second, paired by seed; None without a common seed.

    Several metrics are averaged. In their units: of an error, a negative difference is in favour
    of the first.
    """
    sides = [
        [evidence.scores(page, row, metric) for row in rows for metric in metrics]
        for rows in (first, second)
    ]
    seeds = set.intersection(*(set(scores) for side in sides for scores in side))
    if not seeds:
        return None
    means = [
        {seed: statistics.fmean(scores[seed] for scores in side) for seed in seeds}
        for side in sides
    ]
    return paired_difference([means[0][seed] - means[1][seed] for seed in sorted(seeds)])


def gain_over_gain(
    evidence: Evidence, page: str, first: Sequence[Row], second: Sequence[Row], *metrics: str
) -> Difference | None:
    """The difference of two differences, each of a pair of rows: how much more the first gains.

    Paired by seed, as `contrast`.
    """
    (a, b), (c, d) = first, second
    half = contrast(evidence, page, (a, d), (b, c), *metrics)  # means, so half of a - b - (c - d)
    return None if half is None else paired_difference([2 * value for value in half.values])


def difference_to_gn(evidence: Evidence, page: str, row: Row) -> Difference | None:
    """Of the primary metric, to GN of the same seeds; None for GN itself, or without any."""
    gn = baseline(row)
    return None if gn is None else contrast(evidence, page, [row], [gn], row.primary)


def published_difference(row: Row) -> float | None:
    """The paper's difference to GN; None for GN itself."""
    gn = baseline(row)
    return None if gn is None else row.published[row.primary] - gn.published[row.primary]


@dataclass(frozen=True)
class Finding:
    """A contrast of a claim.

    Attributes:
        what: the two sides.
        difference: of the metric; None if the rows have no seed in common.
        parts: differences that the claim says are above zero: the one in favour of the first side,
            or, of an equality, the two distances to the margin.
        published: the paper's difference; None if it has none.
    """

    what: str
    difference: Difference | None
    parts: tuple[Difference, ...]
    published: float | None

    @property
    def is_as_claimed(self) -> bool:
        return bool(self.parts) and all(part.mean > 0 for part in self.parts)

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.what}: not run with a common seed"
        p = "" if self.difference.p is None else f", p {shown_p(self.difference.p)}"
        return f"{self.what}: {self.difference}{p}, n {self.difference.n}"


@dataclass(frozen=True)
class Verdict:
    """What the runs of a page say about a claim.

    Attributes:
        claim: the claim.
        findings: a contrast each.
        outcome: one of `OUTCOMES`.
        p: of the claim, before Holm's correction; None with fewer seeds than a verdict takes.
        corrected: p after it.
        seeds: that a verdict would take at the spread seen, in all; None if more than anybody runs.
        is_known: whether ``seeds`` follows from a spread, and not from the level alone.
    """

    claim: Claim
    findings: tuple[Finding, ...]
    outcome: str
    p: float | None = None
    corrected: float | None = None
    seeds: int | None = None
    is_known: bool = False

    @property
    def n(self) -> int:
        """Seeds that all of its contrasts have."""
        return min(f.difference.n if f.difference else 0 for f in self.findings)

    @property
    def needs(self) -> str:
        """How many more seeds a verdict would take, in words; empty if there is one."""
        if self.outcome in (HOLDS, DOES_NOT):
            return ""
        if self.seeds is None:
            return "more than 1,000"
        more = max(1, self.seeds - self.n)
        return f"{more}" if self.is_known else f"at least {more}"


def shown_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def judge(evidence: Evidence, page: str) -> list[Verdict]:
    """Verdicts on the claims of a page, in the order of the file."""
    return judged([claim for claim in claims() if claim.is_of(page)], evidence, page)


def judged(known: Sequence[Claim], evidence: Evidence, page: str) -> list[Verdict]:
    """Verdicts on some claims, corrected for as many as have a p."""
    found = [_examined(claim, evidence, page) for claim in known]
    tested = [verdict.p for verdict in found if verdict.p is not None]
    corrected = iter(holm(tested))
    found = [v if v.p is None else replace(v, corrected=next(corrected)) for v in found]
    count = max(1, sum(v.outcome != NOT_RUN for v in found))
    return [_decided(verdict, LEVEL / count) for verdict in found]


def _examined(claim: Claim, evidence: Evidence, page: str) -> Verdict:
    findings = tuple(_finding(claim, pair, evidence, page) for pair in claim.contrasts)
    if not any(finding.difference for finding in findings):
        return Verdict(claim, findings, NOT_RUN)
    if all(finding.is_as_claimed for finding in findings):
        p_values = [part.p for finding in findings for part in finding.parts]
        p = None if None in p_values else max(p for p in p_values if p is not None)
    else:
        against = [part.p for part in _against(findings) if part.p is not None]
        p = min(1.0, len(findings) * min(against)) if against else None
    return Verdict(claim, findings, CANNOT_TELL, p)


def _against(findings: Iterable[Finding]) -> list[Difference]:
    """The differences that are not as claimed."""
    return [part for finding in findings for part in finding.parts if part.mean <= 0]


def _decided(verdict: Verdict, level: float) -> Verdict:
    if verdict.outcome == NOT_RUN:
        return replace(verdict, seeds=fewest_seeds(level))
    findings = verdict.findings
    is_sure = verdict.corrected is not None and verdict.corrected <= LEVEL
    if all(finding.is_as_claimed for finding in findings):
        parts = [part for finding in findings for part in finding.parts]
        if is_sure and all(part.interval and part.interval[0] > 0 for part in parts):
            return replace(verdict, outcome=HOLDS)
        needed = [_seeds(part, level) for part in parts]
    else:
        parts = _against(findings)
        if is_sure and any(part.interval and part.interval[1] < 0 for part in parts):
            return replace(verdict, outcome=DOES_NOT)
        needed = [_seeds(part, level / len(findings)) for part in parts]
    known = [part for part in parts if part.n > 1]
    if len(known) < len(parts) or not parts or any(f.difference is None for f in findings):
        return replace(verdict, seeds=fewest_seeds(level))
    least = max if all(finding.is_as_claimed for finding in findings) else min
    seeds = least((math.inf if count is None else count) for count in needed)
    return replace(verdict, seeds=None if math.isinf(seeds) else int(seeds), is_known=True)


def _seeds(part: Difference, level: float) -> int | None:
    return None if part.n < 2 else seeds_needed(part.mean, statistics.stdev(part.values), level)


def _finding(claim: Claim, pair: tuple[Side, Side], evidence: Evidence, page: str) -> Finding:
    first, second = ([row_named(name) for name in names] for names in pair)
    metrics = claim.metric or (first[0].primary,)
    labels = [[row.label for row in rows] for rows in (first, second)]
    if claim.kind == MORE:
        difference = gain_over_gain(evidence, page, first, second, *metrics)
        what, published = " - ".join(f"({a} - {b})" for a, b in labels), None
    else:
        difference = contrast(evidence, page, first, second, *metrics)
        what = " - ".join(map(_mean_of, labels))
        published = _published(first, second, metrics)
    return Finding(what, difference, _parts(claim, difference, metrics[0]), published)


def _parts(claim: Claim, difference: Difference | None, metric: str) -> tuple[Difference, ...]:
    if difference is None:
        return ()
    values = difference.values
    if claim.kind in (ORDER, MORE):
        sign = -1.0 if less_is_better(metric) else 1.0
        return (paired_difference([sign * value for value in values]),)
    assert claim.kind == EQUAL
    assert claim.margin is not None
    above = paired_difference([claim.margin + value for value in values])
    below = paired_difference([claim.margin - value for value in values])
    return above, below


def _published(first: Sequence[Row], second: Sequence[Row], metrics: Sequence[str]) -> float | None:
    rows = (*first, *second)
    if any(not isinstance(row.published.get(m), float) for row in rows for m in metrics):
        return None
    means = [
        statistics.fmean(row.published[metric] for row in side for metric in metrics)
        for side in (first, second)
    ]
    return means[0] - means[1]


def _mean_of(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"mean({', '.join(labels)})"


def claims_text(evidence: Evidence) -> str:
    """What holds, for the console: a paragraph per page that has runs, a line per claim."""
    lines = []
    for page in evidence.pages:
        count = len(evidence.distinct(page))
        lines.append(f"\n{page_title(page)}, {count} {'run' if count == 1 else 'runs'}")
        for verdict in judge(evidence, page):
            more = f" ({verdict.needs} more seeds)" if verdict.outcome == CANNOT_TELL else ""
            lines.append(f"  {verdict.outcome:14} {verdict.claim.text}{more}")
            lines += [f"  {'':14}   {f}" for f in verdict.findings if f.difference]
    return "\n".join(lines) + "\n"


def other_claims() -> list[Claim]:
    """The claims for which no runs are compared: computed, or not tested."""
    return [claim for claim in claims() if claim.kind not in (ORDER, MORE, EQUAL)]

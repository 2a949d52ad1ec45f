"""The tables of the report: ours beside the paper's, claims, audits, cost, other runs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.evidence.charts import Series
from tasks.evidence.checks import read_checks
from tasks.evidence.gather import Evidence, all_rows
from tasks.evidence.missing import commands_of
from tasks.evidence.rows import SCALES, TITLES, Row, baseline, own_rows_of
from tasks.evidence.sections import Section, digest
from tasks.evidence.statistics import Difference
from tasks.evidence.verdicts import (
    CANNOT_TELL,
    DOES_NOT,
    HOLDS,
    NOT_RUN,
    Verdict,
    difference_to_gn,
    judge,
    other_claims,
    published_difference,
    shown_p,
)
from tasks.evidence.windows import windows_of
from tasks.protocol import metric_title
from tasks.runs.record import FinishedRun

METRICS_ABREAST = 4  # that a table shows beside each other, so that it fits on paper


@dataclass(frozen=True)
class Column:
    title: str
    is_number: bool = True
    group: str = ""  # a title above several columns


@dataclass
class Table:
    caption: str
    columns: list[Column]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Titles of neighbouring columns and how many they span; empty if there are none."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans if any(title for title, _ in spans) else []


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+z.2f}".replace("-", "\N{MINUS SIGN}")


def interval(found: Difference | None) -> str:
    if found is None or found.interval is None:
        return ""
    low, high = found.interval
    return f"[{signed(low)}, {signed(high)}]"


def distinct(values: Iterable[str | None]) -> str:
    """The values that there are, each once."""
    return ", ".join(sorted({value or "unknown" for value in values}))


def short_commit(commit: str | None) -> str | None:
    if commit is None:
        return None
    digits, dash, dirty = commit.partition("-")
    return digits[:12] + dash + dirty


def score_tables(evidence: Evidence, scale: str, table: int) -> list[Table]:
    """A table of the paper, ours beside it, in parts that fit on paper; the primary one first."""
    rows = evidence.rows_of_table(scale, table)
    metrics, primary = rows[0].metrics, rows[0].primary
    parts = -(-len(metrics) // METRICS_ABREAST)
    size = -(-len(metrics) // parts)
    abreast = [metrics[start : start + size] for start in range(0, len(metrics), size)]
    abreast.sort(key=lambda part: primary not in part)
    tables = [_score_table(evidence, scale, rows, part) for part in abreast]
    constant = [key for key in rows[0].keys if key not in _varied_keys(rows)]
    same = ", ".join(_key(key, rows[0].published[key]) for key in constant)
    caption = f"Table {table}: {TITLES[table]}" + (f" ({same})" if same else "")
    for place, part in enumerate(tables):
        part.caption = caption + (f", part {place + 1} of {len(tables)}" if parts > 1 else "")
    return tables


def _varied_keys(rows: Sequence[Row]) -> list[str]:
    return [key for key in rows[0].keys if len({row.published[key] for row in rows}) > 1]


def _key(name: str, value: str) -> str:
    return value if name in ("model", "norm") else f"{name} {value}"


def _score_table(evidence: Evidence, scale: str, rows: list[Row], metrics: list[str]) -> Table:
    primary, keys = rows[0].primary, _varied_keys(rows)
    counts = {row.experiment: len(evidence.scores(scale, row, primary)) for row in rows}
    several = max(counts.values()) > 1
    ours = ["ours", *(["± sd"] if several else []), "paper"]
    columns = [Column(key, is_number=rows[0].published[key].isdigit()) for key in keys]
    told = any(row.variant for row in rows)
    columns += [Column("variant", is_number=False)] * told
    columns += [Column(part, group=metric_title(name)) for name in metrics for part in ours]
    columns.append(Column("n"))
    if primary in metrics:
        group = f"{metric_title(primary)}, difference to GN"
        parts = ["ours", *(["95 % interval"] if several else []), "paper"]
        columns += [Column(part, group=group) for part in parts]
    lines = []
    for row in rows:
        line = [*(row.published[key] for key in keys), *([row.variant] * told)]
        for metric in metrics:
            mean, deviation = _mean_and_deviation(evidence.scores(scale, row, metric))
            line += [mean, *([deviation] if several else []), number(row.published[metric])]
        line.append(str(counts[row.experiment]))
        if primary in metrics:
            line += _difference_cells(evidence, scale, row, several)
        lines.append(line)
    return Table("", columns, lines)


def _mean_and_deviation(scores: dict[int, float]) -> list[str]:
    values = list(scores.values())
    mean = number(statistics.fmean(values)) if values else NOT_RUN
    return [mean, f"± {statistics.stdev(values):.2f}" if len(values) > 1 else ""]


def _difference_cells(evidence: Evidence, scale: str, row: Row, several: bool) -> list[str]:
    published = published_difference(row)
    if published is None:
        return [""] * (3 if several else 2)
    found = difference_to_gn(evidence, scale, row)
    ours = signed(None if found is None else found.mean)
    return [ours, *([interval(found)] if several else []), signed(published)]


def own_rows_table(evidence: Evidence, page: str, task: str) -> Table | None:
    """The rows of our own of a task: scores, and differences to GN; None if none was run.

    Of a task of the paper, on whose page its tables are, only what was run.
    """
    run = evidence.runs.get(page, {})
    claimed = [row for row in all_rows().values() if not row.published and " " in row.experiment]
    rows = own_rows_of(task) + [row for row in claimed if row.task == task]
    if page in SCALES:
        rows = [row for row in rows if row.experiment in run]
    if not any(row.experiment in run for row in rows):
        return None
    primary, metrics = rows[0].primary, rows[0].metrics
    models = list(dict.fromkeys(row.model for row in rows))
    titles = ["model", "norm"] if len(models) > 1 else ["norm"]
    columns = [Column(title, is_number=False) for title in titles]
    columns += [Column(part, group=metric_title(name)) for name in metrics for part in OWN_SCORES]
    columns += [Column("seeds")]
    group = f"{metric_title(primary)}, difference to GN"
    columns += [Column(part, group=group) for part in ("mean", "95 % interval", "p", "n")]
    lines = []
    for row in rows:
        line = [row.model, row.label][-len(titles) :]
        for metric in metrics:
            line += _mean_and_deviation(evidence.scores(page, row, metric))
        line.append(str(len(run.get(row.experiment, {}))))
        lines.append(line + _own_difference(evidence, page, row))
    same = f" ({models[0]})" if len(models) == 1 else ""
    return Table(f"Rows of our own, by norm{same}", columns, lines)


OWN_SCORES = ("mean", "± sd")


def _own_difference(evidence: Evidence, page: str, row: Row) -> list[str]:
    if baseline(row) is None:
        return [""] * 4
    found = difference_to_gn(evidence, page, row)
    if found is None:
        return ["", "", "", "0"]
    p = "" if found.p is None else shown_p(found.p)
    return [signed(found.mean), interval(found), p, str(found.n)]


def seeds_table(evidence: Evidence, page: str, task: str) -> Table | None:
    """Each paired difference to GN, a line per seed; None without a pair."""
    rows = [row for row in own_rows_of(task) if row.experiment in evidence.runs.get(page, {})]
    found = {}
    for row in rows:
        if (gn := baseline(row)) is not None:
            theirs = evidence.scores(page, gn, row.primary)
            ours = evidence.scores(page, row, row.primary)
            found[row.label] = {s: ours[s] - theirs[s] for s in ours.keys() & theirs.keys()}
    found = {label: pairs for label, pairs in found.items() if pairs}
    if not found:
        return None
    seeds = sorted({seed for pairs in found.values() for seed in pairs})
    title = f"{metric_title(rows[0].primary)}, difference to GN of the same seed"
    columns = [Column("norm", is_number=False)]
    columns += [Column(f"seed {seed}", group=title) for seed in seeds]
    lines = [[label, *(signed(pairs.get(s)) for s in seeds)] for label, pairs in found.items()]
    return Table("Paired differences", columns, lines)


def audit_table(section: Section) -> Table | None:
    """How many of all norm layers are windowed, separately for every table of the paper."""
    has_tables = any(section.series_by_table)
    columns = [*([Column("table")] if has_tables else []), *_names(section)]
    columns += [Column("window used")]
    phases = ("training", "evaluation")
    columns += [Column(phase, group="windowed layers") for phase in phases]
    columns += [Column(phase, group="by the released rule") for phase in phases]
    lines = []
    for table, series in section.series_by_table.items():
        for s in series:
            run = s.runs[-1]
            if not {*phases} <= run.windowed.keys():
                continue
            counts = [run.windowed[phase] for phase in phases]
            released = [str(run.windowed_released.get(phase, "")) for phase in phases]
            window = run.result["norm"].get("window_used")
            shown = " x ".join(map(str, window)) if isinstance(window, list) else window or ""
            cells = [f"{windowed} of {all_layers}" for windowed, all_layers in counts]
            where = [f"{table or ''}"] if has_tables else []
            lines.append([*where, *_name(section, s), str(shown), *cells, *released])
    return Table("Windowed norm layers", columns, lines) if lines else None


def _names(section: Section) -> list[Column]:
    titles = ["model", "norm"] if section.has_models else ["norm"]
    return [Column(title, is_number=False) for title in titles]


def _name(section: Section, series: Series) -> list[str]:
    return [series.model, series.label] if section.has_models else [series.label]


def cost_table(section: Section) -> Table:
    """Throughput, memory and time per norm and device, medians over seeds."""
    columns = [*_names(section), Column("device", is_number=False), Column("runs")]
    columns += [Column("samples per second"), Column("times GN"), Column("memory, MiB")]
    columns.append(Column("minutes"))
    of_gn: dict[tuple[str, str], float | None] = {}
    for s in section.series:
        for device, runs in _by_device(s).items():
            if s.norm == "gn":
                of_gn.setdefault((s.model, device), _median(runs, "samples_per_second"))
    lines = []
    for s in section.series:
        for device, runs in _by_device(s).items():
            speed, gn = _median(runs, "samples_per_second"), of_gn.get((s.model, device))
            seconds = _median(runs, "wall_seconds")
            ratio = speed / gn if speed and gn else None
            minutes = None if seconds is None else seconds / 60
            memory = _median(runs, "memory_mib")
            cells = [number(speed, 1), number(ratio), number(memory, 0), number(minutes, 1)]
            lines.append([*_name(section, s), device, str(len(runs)), *cells])
    return Table("Throughput and memory while training", columns, lines)


def _by_device(series: Series) -> dict[str, list[FinishedRun]]:
    found: dict[str, list[FinishedRun]] = {}
    for run in series.runs:
        count = run.result.get("world_size", 1)
        device = run.result["device"] if count == 1 else f"{count} x {run.result['device']}"
        found.setdefault(device, []).append(run)
    return found


def _median(runs: Iterable[FinishedRun], key: str) -> float | None:
    """The median over the runs that have the key: older versions did not write all of them."""
    values = [run.result[key] for run in runs if run.result.get(key) is not None]
    return statistics.median(values) if values else None


def other_table(section: Section) -> Table:
    """Runs that belong to no row, a line each."""
    names = list(dict.fromkeys(name for run in section.runs for name in run.scores))
    columns = [Column("model", is_number=False), Column("norm", is_number=False)]
    columns += [Column("seed"), Column("epochs"), *(Column(metric_title(name)) for name in names)]
    columns += [Column("run", is_number=False), Column("why it is no row", is_number=False)]
    lines = [
        [run.model, run.label, str(run.seed), str(run.result["epochs"]),
         *(number(run.scores.get(name)) for name in names),
         digest(run), section.reasons[run.directory]]
        for run in section.runs
    ]  # fmt: skip
    return Table("Other runs", columns, lines)


MARKS = {
    HOLDS: "\N{CHECK MARK}", DOES_NOT: "\N{BALLOT X}", CANNOT_TELL: "?", NOT_RUN: "\N{EN DASH}",
}  # fmt: skip


@dataclass(frozen=True)
class ShownClaim:
    """A claim of the paper as it is shown, with a symbol beside the outcome.

    Attributes:
        lines: per contrast what; ours, its interval, p and n; the paper's.
        p: corrected.
        needs: more seeds that a verdict would take.
        windows: the numbers of windowed layers, a line per LCN row.
        commands: that test it.
    """

    says: str
    quote: str
    section: str
    outcome: str
    lines: list[list[str]]
    p: str = ""
    needs: str = ""
    windows: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        return MARKS[self.outcome]


def shown_claims(evidence: Evidence, page: str) -> list[ShownClaim]:
    return [_shown(verdict, evidence, page) for verdict in judge(evidence, page)]


def _shown(verdict: Verdict, evidence: Evidence, page: str) -> ShownClaim:
    claim = verdict.claim
    lines = [
        [finding.what, NOT_RUN if found is None else signed(found.mean), interval(found),
         "" if found is None or found.p is None else shown_p(found.p),
         str(0 if found is None else found.n), signed(finding.published)]
        for finding in verdict.findings
        for found in [finding.difference]
    ]  # fmt: skip
    if verdict.outcome == NOT_RUN:
        lines = [["", NOT_RUN, "", "", "0", lines[0][-1] if len(lines) == 1 else ""]]
    return ShownClaim(
        claim.text, claim.quote, _place(claim.section, claim.table), verdict.outcome, lines,
        "" if verdict.corrected is None else shown_p(verdict.corrected), verdict.needs,
        tuple(windows_of(claim, evidence, page)), tuple(commands_of(claim, page)),
    )  # fmt: skip


def _place(section: str, table: int) -> str:
    where = f"section {section}" if section[0].isdigit() else section
    return f"{where}, Table {table}" if table else where


def shown_checks(folder: Path) -> list[ShownClaim]:
    """The claims tested without comparing runs, with what ``scripts/claims.py`` last found."""
    recorded = read_checks(folder)
    shown = []
    for claim in other_claims():
        found = recorded.get(claim.check, {})
        outcome = {True: HOLDS, False: DOES_NOT, None: NOT_RUN}[found.get("holds")]
        when = f" ({found['date']})" if found.get("date") else ""
        what = f"{found['found']}{when}" if found else claim.why
        command = (f"python scripts/claims.py {claim.check}",) if claim.check else ()
        place = _place(claim.section, claim.table)
        lines = [[what, "", "", "", "", ""]]
        shown.append(ShownClaim(claim.text, claim.quote, place, outcome, lines, commands=command))
    return shown

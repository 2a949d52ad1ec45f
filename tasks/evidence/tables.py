"""From finished runs to evidence: ours beside the published rows, and which claims hold.

A run belongs to a row if it has the row's task, model and norm and was trained with the settings of
the row's own command, whatever command it was started with. The miniature, full scale and tasks of
our own are kept apart throughout.
"""

import csv
import io
import statistics
from collections.abc import Iterable
from pathlib import Path

from tasks.errors import write_atomically
from tasks.evidence.claims import CLAIMS_FILE
from tasks.evidence.gather import Evidence
from tasks.evidence.page_tables import (
    ShownClaim,
    Table,
    distinct,
    own_rows_table,
    seeds_table,
    short_commit,
    shown_checks,
    shown_claims,
)
from tasks.evidence.rows import (
    SCALES,
    TITLES,
    Row,
    own_rows_of,
    own_tasks,
    page_of,
    page_title,
    rows_of_table,
)
from tasks.evidence.statistics import Difference
from tasks.evidence.verdicts import (
    CANNOT_TELL,
    DOES_NOT,
    HOLDS,
    OUTCOMES,
    difference_to_gn,
    judge,
    published_difference,
)
from tasks.runs.record import FinishedRun

METRICS_ABREAST = 6  # the most that a Markdown table shows side by side


def write_tables(evidence: Evidence, folder: Path) -> list[Path]:
    """Writes ``<page>/table<N>.csv``, ``<page>/rows.csv`` and ``README.md``; returns what it wrote.

    A page without runs has no tables, unless an earlier call left some that would now be wrong.
    """
    texts = {
        folder / scale / f"table{table}.csv": csv_text(evidence, scale, table)
        for scale in SCALES
        if evidence.runs[scale] or (folder / scale).is_dir()
        for table in TITLES
    }
    for task in own_tasks():
        for page in (page_of(task, data) for data in SCALES):
            if evidence.runs.get(page) or (folder / page).is_dir():
                texts[folder / page / "rows.csv"] = own_csv_text(evidence, page, task)
    texts[folder / "README.md"] = readme_text(evidence)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    return list(texts)


def csv_text(evidence: Evidence, scale: str, table: int) -> str:
    """A table as CSV, a line per row; metrics in percent, empty where there is none.

    A published row is followed by those of its variants that were run. Columns: the paper's keys;
    variant; status; per metric the mean over seeds, ``_sd`` (standard deviation
    of the sample) and ``_paper``; n; seeds; and of the primary metric ``_minus_gn``, its 95 %
    interval ``_low`` to ``_high``, its number of paired seeds ``_n``, and the published difference.
    """
    rows = evidence.rows_of_table(scale, table)
    keys, metrics, gn = rows[0].keys, rows[0].metrics, f"{rows[0].primary}_minus_gn"
    columns = [*keys, "variant", "status"]
    columns += [f"{metric}{part}" for metric in metrics for part in ("", "_sd", "_paper")]
    columns += ["n", "seeds", *(f"{gn}{part}" for part in ("", "_low", "_high", "_n", "_paper"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [*(row.published[key] for key in keys), row.variant]
        seeds = list(evidence.scores(scale, row, row.primary))
        cells.append("run" if seeds else "not run")
        for metric in metrics:
            cells += _mean_and_sd(evidence.scores(scale, row, metric))
            cells.append(f"{row.published[metric]:.2f}")
        cells += [len(seeds), " ".join(map(str, seeds)), *_difference_cells(evidence, scale, row)]
        writer.writerow(cells)
    return text.getvalue()


def own_csv_text(evidence: Evidence, page: str, task: str) -> str:
    """The rows of a task of our own as CSV, as `csv_text`, with the p of the sign-flip test."""
    rows = own_rows_of(task)
    metrics, gn = rows[0].metrics, f"{rows[0].primary}_minus_gn"
    columns = ["experiment", "model", "norm", "status"]
    columns += [f"{metric}{part}" for metric in metrics for part in ("", "_sd")]
    columns += ["n", "seeds", *(f"{gn}{part}" for part in ("", "_low", "_high", "_p", "_n"))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        seeds = list(evidence.scores(page, row, row.primary))
        cells = [row.experiment, row.model, row.label, "run" if seeds else "not run"]
        for metric in metrics:
            cells += _mean_and_sd(evidence.scores(page, row, metric))
        found = difference_to_gn(evidence, page, row)
        bounds = _bounds(found) + ([found.p] if found else [None])
        numbers = ["" if x is None else f"{x:.4f}" for x in bounds]
        writer.writerow(
            [*cells, len(seeds), " ".join(map(str, seeds)), *numbers, found.n if found else ""]
        )
    return text.getvalue()


def _mean_and_sd(scores: dict[int, float]) -> list[str]:
    values = list(scores.values())
    mean = f"{statistics.fmean(values):.4f}" if values else ""
    return [mean, f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""]


def _bounds(found: Difference | None) -> list[float | None]:
    """The mean and the ends of the interval."""
    return [None] * 3 if found is None else [found.mean, *(found.interval or (None, None))]


def _difference_cells(evidence: Evidence, scale: str, row: Row) -> list[object]:
    published = published_difference(row)
    if published is None:
        return [""] * 5
    found = difference_to_gn(evidence, scale, row)
    numbers = ["" if x is None else f"{x:.4f}" for x in _bounds(found)]
    return [*numbers, found.n if found else 0, f"{published:.2f}"]


def readme_text(evidence: Evidence) -> str:
    """``results/README.md``: what the results show, how claims are judged, and the tables."""
    checks = shown_checks(CLAIMS_FILE.parent)
    parts = [
        "# Results",
        "## What the results show",
        "\n".join(f"- {line}" for line in summary(evidence, checks)),
        "## How claims are judged",
        "This file and the tables beside it are generated by `python scripts/tables.py`; do not "
        "edit them by hand. The runs are those in `runs`, and those in `results/runs`, where "
        "`python scripts/runs.py keep` copies finished runs without their weights. All numbers "
        "are in percent, differences in percentage points. Ours is the mean ± the standard "
        "deviation over n seeds. For metrics that end in `_err` less is better.",
        "Runs of the same seed share initial weights and data order, so they are compared in "
        "pairs. With at least six pairs a mean difference has a 95 % interval (BCa bootstrap) and "
        "a p-value (exact two-sided sign-flip permutation test). Fewer pairs cannot reach 0.05 in "
        "that test, so they give no verdict. A claim holds, or does not, if p is at most 0.05 "
        "after Holm's correction over the claims of its page and the intervals agree; otherwise "
        "one cannot tell. A claim of equality is tested on both distances to its margin. "
        "[claims.yaml](claims.yaml) has the full rule, and every claim in the paper's words.",
        "The number of seeds still needed is that of a two-sided paired t test with 80 % power "
        "(noncentral t), with the mean and spread seen so far, at 0.05 divided by the number of "
        "claims on the page; and never fewer than the sign-flip test needs at that level. `python "
        "scripts/tables.py --missing` prints the commands of the missing runs.",
        "The miniatures are generated stand-ins for the datasets at a fraction of their size, "
        "with trainings of minutes. The long miniature is the same files, trained for longer. They "
        "cannot show how large a difference is on the real datasets, nor whether there is one. "
        "Compare our norms with each other, never our numbers with the paper's. Intervals are over "
        "seeds, not over datasets. In Tables 2 to 4 the difference to GN is that to the GN row of "
        "Table 1, with 16 groups.",
        "## The layer itself",
        _checks_table(checks),
    ]
    for page in dict.fromkeys((*evidence.pages, *SCALES)):
        parts.append(f"## {page_title(page)}")
        if not evidence.runs.get(page):
            parts.append("No finished run of a published row.")
            continue
        parts += [_origin(evidence.distinct(page)), "### What holds here"]
        parts.append(_claims_table(shown_claims(evidence, page)))
        if page in SCALES:
            parts += _published_tables(evidence, page)
        for task in dict.fromkeys(run.task for run in evidence.distinct(page)):
            for make in (own_rows_table, seeds_table):
                table = make(evidence, page, task)
                if table is not None:
                    parts += [f"### {table.caption}", _plain(table)]
    return "\n\n".join(parts) + "\n"


def summary(evidence: Evidence, checks: list[ShownClaim]) -> list[str]:
    """What the results show, in about ten lines."""
    lines = []
    for page in evidence.pages:
        verdicts = judge(evidence, page)
        count = len(evidence.distinct(page))
        outcomes = [verdict.outcome for verdict in verdicts]
        counts = ", ".join(f"{name} {outcomes.count(name)}" for name in OUTCOMES)
        runs = f"{count} {'run' if count == 1 else 'runs'}"
        lines.append(f"**{page_title(page)}** ({runs}): of {len(verdicts)} claims {counts}.")
        told = [verdict for verdict in verdicts if verdict.outcome in (HOLDS, DOES_NOT)]
        lines += [
            f"{verdict.outcome}: {verdict.claim.text} ({verdict.findings[0].difference})."
            for verdict in told[:MOST_TOLD]
        ]
        if len(told) > MOST_TOLD:
            lines.append(f"... and {len(told) - MOST_TOLD} more, in the tables below.")
        unsure = [v for v in verdicts if v.outcome == CANNOT_TELL and v.seeds]
        if unsure:
            nearest = min(unsure, key=lambda v: (not v.is_known, (v.seeds or 0) - v.n))
            lines.append(
                f"Nearest to a verdict: {nearest.claim.text}, with {nearest.needs} more seeds."
            )
    not_run = [page_title(page) for page in SCALES if not evidence.runs[page]]
    lines += [f"**{title}**: not run." for title in not_run]
    for outcome in OUTCOMES:
        says = [check.says for check in checks if check.outcome == outcome]
        if says:
            lines.append(f"Claims tested without runs, {outcome}: {'; '.join(says)}.")
    return lines


MOST_TOLD = 3
"""Claims of a page that the first lines name."""


def _published_tables(evidence: Evidence, scale: str) -> list[str]:
    parts = []
    tasks = {run.task for run in evidence.distinct(scale)}
    for table, subject in TITLES.items():
        parts.append(f"### Table {table}: {subject}")
        rows = rows_of_table(table)
        if rows[0].task not in tasks:
            parts.append("Not run.")
            continue
        for start in range(0, len(rows[0].metrics), METRICS_ABREAST):
            abreast = rows[0].metrics[start : start + METRICS_ABREAST]
            parts.append(_scores_table(evidence, scale, table, abreast))
    return parts


def _origin(runs: list[FinishedRun]) -> str:
    commits = distinct(short_commit(run.result.get("git_commit")) for run in runs)
    torch = distinct(run.result["versions"].get("torch") for run in runs)
    devices = distinct(run.result["device"] for run in runs)
    return f"Runs: {len(runs)}. Commits: {commits}. PyTorch: {torch}. Devices: {devices}."


def _claims_table(claims: list[ShownClaim]) -> str:
    lines = []
    for claim in claims:
        more = f"<br>{claim.needs} more seeds" if claim.needs else ""
        numbers = "<br>".join(_finding(line) for line in claim.lines)
        published = "<br>".join(line[-1] for line in claim.lines)
        windows = "<br>".join(claim.windows)
        lines.append([_said(claim), f"{claim.outcome}{more}", claim.p, numbers, published, windows])
    header = ["claim", "here", "p, corrected", "difference, 95 % interval, p, seeds", "paper"]
    header.append("windowed layers")
    return _markdown(header, lines, left=("claim", "here", header[3], header[5]))


def _said(claim: ShownClaim) -> str:
    return f'{claim.says}<br>*"{claim.quote}", {claim.section}*'


def _finding(line: list[str]) -> str:
    what, mean, interval, p, n, _ = line
    parts = [f"{what}: {mean}" if what else mean, interval, f"p {p}" if p else "", f"n {n}"]
    return ", ".join(part for part in parts if part)


def _checks_table(checks: list[ShownClaim]) -> str:
    lines = [
        [_said(check), check.outcome, check.lines[0][0],
         ", ".join(f"`{command}`" for command in check.commands)]
        for check in checks
    ]  # fmt: skip
    header = ["claim", "here", "found", "command"]
    return _markdown(header, lines, left=header)


def _plain(table: Table) -> str:
    """A table of the report as Markdown, the titles above columns before theirs."""
    header = [f"{c.group}: {c.title}" if c.group else c.title for c in table.columns]
    return _markdown(header, table.rows, left=[c.title for c in table.columns if not c.is_number])


def _scores_table(evidence: Evidence, scale: str, table: int, metrics: list[str]) -> str:
    rows = evidence.rows_of_table(scale, table)
    keys, primary = rows[0].keys, rows[0].primary
    told = [*keys, "variant"] if any(row.variant for row in rows) else keys
    header = [*told, *(f"{metric}{part}" for metric in metrics for part in ("", ", paper")), "n"]
    if primary in metrics:
        header += [f"{primary} - GN", "paper - GN"]
    lines = []
    for row in rows:
        line = [*(row.published[key] for key in keys), row.variant][: len(told)]
        for metric in metrics:
            scores = list(evidence.scores(scale, row, metric).values())
            line += [_mean_and_deviation(scores), f"{row.published[metric]:.2f}"]
        line.append(str(len(scores)))
        if primary in metrics:
            line += _difference_to_gn(evidence, scale, row)
        lines.append(line)
    return _markdown(header, lines, left=told)


def _mean_and_deviation(scores: list[float]) -> str:
    if not scores:
        return "not run"
    deviation = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.2f}{deviation}"


def _difference_to_gn(evidence: Evidence, scale: str, row: Row) -> list[str]:
    published = published_difference(row)
    if published is None:
        return ["", ""]
    found = difference_to_gn(evidence, scale, row)
    return ["" if found is None else str(found), f"{published:+z.2f}"]


def _markdown(header: list[str], lines: list[list[str]], left: Iterable[str]) -> str:
    rule = [":--" if column in left else "--:" for column in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))

"""The charts of the report: which are drawn, from which runs, and the notes beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from tasks.evidence.charts import (
    MOST_CLASSES,
    Point,
    bars_chart,
    curves_chart,
    sensitivity_chart,
    windows_chart,
)
from tasks.evidence.gather import Evidence
from tasks.evidence.rows import Row, own_rows_of, published_rows, reference, rows_of_table
from tasks.evidence.sections import Section
from tasks.evidence.verdicts import contrast
from tasks.protocol import metric_title
from tasks.runs.record import FinishedRun

if TYPE_CHECKING:
    import plotly.graph_objects as go

VARIED = {2: "groups", 3: "c_group", 4: "window"}
"""The setting that a table varies, of the tables that vary one setting of one norm."""
XAXES = {
    "groups": "groups of GN (C: one per channel)",
    "c_group": "channels per group of LCN",
    "window": "window of LCN (cells of the map)",
}
BASES = {3: "table3_c2", 4: "table4_w227"}
"""The row that differences are taken to where GN was not run."""


@dataclass(frozen=True)
class Chart:
    """A chart that the page's script draws: ``specification`` is plotly's JSON."""

    title: str
    specification: Markup
    height: int
    note: str = ""


def _chart(title: str, figure: "go.Figure", note: str = "") -> Chart:
    # Inside <script>, only "<" could end the element or begin a comment.
    text = figure.to_json().replace("<", "\\u003c")
    return Chart(title, Markup(text), figure.layout.height, note)


def curve_charts(section: Section) -> list[Chart]:
    """Learning curves, for each of the paper's tables and each network apart.

    A table all of whose runs are also in an earlier one has no charts of its own.
    """
    charts: list[Chart] = []
    shown: set[tuple[FinishedRun, ...]] = set()
    for table, series in section.series_by_table.items():
        if all(s.runs in shown for s in series):
            continue
        shown |= {s.runs for s in series}
        where = f"Learning curves, Table {table}" if table else "Learning curves"
        models = list(dict.fromkeys(s.model for s in series))
        for model in models:
            of_model = [s for s in series if s.model == model]
            if not any(run.metrics.get("epoch") for s in of_model for run in s.runs):
                continue
            title = f"{where}, {model}" if len(models) > 1 else where
            band = any(len(s.runs) > 1 for s in of_model)
            note = "Lines are means over seeds, bands reach from least to most." if band else ""
            charts.append(_chart(title, curves_chart(of_model, section.runs[0].primary), note))
    return charts


def window_charts(section: Section) -> list[Chart]:
    """What runs of norm=lcn_learned have learned, for each network and setting apart."""
    charts, shown = [], set()
    for series in (s for of_table in section.series_by_table.values() for s in of_table):
        if series.runs in shown or not any(run.windows for run in series.runs):
            continue
        shown.add(series.runs)
        note = "A line per layer; darker lines lie deeper in the network."
        if len(series.runs) > 1:
            note += f" Means over {len(series.runs)} seeds."
        title = f"Learned windows, {series.model}, {series.label}"
        charts.append(_chart(title, windows_chart(series.runs), note))
    return charts


def sensitivity_charts(section: Section, evidence: Evidence) -> list[Chart | str]:
    """The setting that a table varies, ours and the paper's; a line where it cannot be drawn."""
    charts: list[Chart | str] = []
    for table, key in VARIED.items():
        rows = rows_of_table(table)
        if not any((section.rows or {}).get(row.experiment) for row in rows):
            continue
        base = next(
            (
                row
                for row in (reference(rows[0]), published_rows()[BASES.get(table, "table2_g16")])
                if row is not None and evidence.scores(section.page, row, row.primary)
            ),
            None,
        )
        title = f"Table {table}: sensitivity to {key.replace('c_group', 'channels per group')}"
        if base is None:
            charts.append(
                f"{title}: not drawn, neither GN nor the paper's own setting has been run."
            )
            continue
        points = [_point(evidence, section.page, row, base, key) for row in rows]
        yaxis = metric_title(base.primary)
        figure = sensitivity_chart(points, rows[0].published["norm"], XAXES[key], yaxis, base.label)
        note = (
            "Both as the difference to the same row: ours to ours, the paper's to the paper's. The "
            "datasets differ, so the shapes may be compared, not the heights."
        )
        charts.append(_chart(title, figure, note))
    return charts + own_window_charts(section, evidence)


def own_window_charts(section: Section, evidence: Evidence) -> list[Chart | str]:
    """The first metric over the window of LCN, of rows of our own that differ in it alone."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in own_rows_of(section.task):
        if row.norm["name"] == "lcn" and row.norm.get("window") and " " not in row.experiment:
            rest = str({key: value for key, value in row.norm.items() if key != "window"})
            alike.setdefault((row.model, rest), []).append(row)
    charts: list[Chart | str] = []
    for rows in alike.values():
        was_run = [row for row in rows if evidence.scores(section.page, row, row.primary)]
        if len(rows) < 2 or not was_run:
            continue
        title = "Sensitivity to the window of LCN"
        base = reference(rows[0])
        if base is None or not evidence.scores(section.page, base, base.primary):
            charts.append(f"{title}: not drawn, GN has not been run.")
            continue
        points = []
        for row in rows:
            found = contrast(evidence, section.page, [row], [base], row.primary)
            place = " x ".join(map(str, row.norm["window"]))
            if found is None:
                points.append(Point(place, None, None, 0, None))
            else:
                points.append(Point(place, found.mean, found.interval, found.n, None))
        xaxis, yaxis = (
            "window of LCN (cells of the map, rows x columns)",
            metric_title(base.primary),
        )
        figure = sensitivity_chart(points, "lcn", xaxis, yaxis, base.label)
        note = f"The difference to GN of the same seed. {len(was_run)} of {len(rows)} windows run."
        charts.append(_chart(title, figure, note))
    return charts


def _point(evidence: Evidence, scale: str, row: Row, base: Row, key: str) -> Point:
    found = contrast(evidence, scale, [row], [base], row.primary)
    published = row.published[row.primary] - base.published[row.primary]
    if found is None:
        return Point(row.published[key], None, None, 0, published)
    # The base itself differs by nothing, whatever the seeds.
    interval = found.interval if row.norm != base.norm else None
    return Point(row.published[key], found.mean, interval, found.n, published)


def bar_charts(section: Section) -> list[Chart]:
    """Scores by class and by city, norms beside each other, for each network apart."""
    by_table = section.series_by_table
    main = [s for table, series in by_table.items() if table not in VARIED for s in series]
    charts = []
    for model in dict.fromkeys(s.model for s in main):
        series = [s for s in main if s.model == model]
        for title, values in _breakdowns(series[0].runs[0]):
            count = max(len(values(run)) for s in series for run in s.runs)
            note = [] if all(len(s.runs) == 1 for s in series) else [WHISKERS]
            if count > MOST_CLASSES:
                note.insert(0, f"The {MOST_CLASSES} of {count} in which the norms differ most.")
            figure = bars_chart(series, values, f"{title.partition(' by')[0]} (%)")
            shown = f"{title}, {model}" if section.has_models else title
            charts.append(_chart(shown, figure, " ".join(note)))
    return charts


Values = Callable[[FinishedRun], dict[str, float | None]]
"""Scores of a run by class or by city."""

WHISKERS = "Bars are means over seeds, whiskers reach from least to most."


def _breakdowns(run: FinishedRun) -> list[tuple[str, Values]]:
    """What the scores of a run are divided by: a title, and the values by class or city."""

    def by_city(run: FinishedRun) -> dict[str, float | None]:
        return {
            metric_title(name.removesuffix("_iou")): value
            for name, value in run.scores.items()
            if name.endswith("_iou")
        }

    found = [
        (
            f"{metric_title(key.removeprefix('class_'))} by class",
            lambda r, k=key: r.result.get(k, {}),
        )
        for key, values in run.result.items()
        if key.startswith("class_") and isinstance(values, dict) and values
    ]
    return found + ([("IoU by city", by_city)] if len(by_city(run)) > 1 else [])

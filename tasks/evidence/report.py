"""The report: finished runs beside the paper's tables as one HTML file that needs no network.

What is compared are sections: the runs of one task at one scale that belong to published rows, and,
apart from them, runs of other settings or other data, a section per dataset.
"""

import base64
import datetime
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from tasks.data.plots import colorize
from tasks.errors import InputError
from tasks.evidence.charts import (
    MOST_CLASSES,
    Point,
    Series,
    bars_chart,
    curves_chart,
    sensitivity_chart,
)
from tasks.evidence.claims import CANNOT_TELL, CLAIMS, DOES_NOT, HOLDS, contrast, judge
from tasks.evidence.gather import Evidence
from tasks.evidence.pictures import Comparison, compare
from tasks.evidence.rows import SCALES, TITLES, Row, published_rows, reference, rows_of_table
from tasks.evidence.statistics import Difference
from tasks.identity import run_identity
from tasks.protocol import metric_title, task_facts
from tasks.runs.directory import write_atomically
from tasks.runs.record import FinishedRun

TASKS = {
    "cityscapes": "Cityscapes",
    "coco": "COCO",
    "imagenet": "ImageNet",
    "inria": "INRIA Aerial",
    "chesapeake": "Chesapeake land cover",
}
VARIED = {2: "groups", 3: "c_group", 4: "window"}
"""The setting that a table varies, of the tables that vary one setting of one norm."""
XAXES = {
    "groups": "groups of GN (C: one per channel)",
    "c_group": "channels per group of LCN",
    "window": "window of LCN (cells of the map)",
}
BASES = {3: "table3_c2", 4: "table4_w227"}
"""The row that differences are taken to where GN was not run."""
PAGE = Path(__file__).with_name("page")
METRICS_ABREAST = 4  # that a table shows beside each other, so that it fits on paper


# Sections


@dataclass
class Section:
    """Runs that may be compared with each other.

    ``rows`` holds the runs of each published row by seed, of the task's tables; it is None outside
    them, and ``reasons`` then says of each run's directory why it is no published row.
    """

    slug: str
    title: str
    task: str
    data: str
    runs: list[FinishedRun]
    rows: dict[str, list[FinishedRun]] | None = None
    reasons: dict[Path, str] = field(default_factory=dict)

    @cached_property
    def series(self) -> list[Series]:
        """Each run once, with those that differ from it in nothing but the seed."""
        if self.rows is None:
            return _series_of_others(self.runs)
        found = {}
        for experiment, runs in self.rows.items():
            if runs:
                found.setdefault(tuple(run.directory for run in runs), (experiment, runs))
        return [
            Series(published_rows()[experiment].label, tuple(runs))
            for experiment, runs in found.values()
        ]

    @property
    def has_models(self) -> bool:
        """Whether there are runs of several networks."""
        return len({s.model for s in self.series}) > 1

    @cached_property
    def pair(self) -> tuple[FinishedRun, FinishedRun] | None:
        """The runs of GN and LCN whose predictions are shown, of one network and seed if can be."""
        if self.rows is None:
            candidates = [(self.runs, self.runs)]
        else:
            rows = [r for r in published_rows().values() if r.experiment in self.rows]
            candidates = [
                (self.rows[reference(row).experiment], self.rows[row.experiment])
                for row in rows
                if row.norm["name"] == "lcn"
            ]
        pairs = [
            (gn, lcn)
            for left, right in candidates
            for lcn in reversed(right)
            for gn in reversed(left)
            if gn.cfg.norm.name == "gn" and lcn.cfg.norm.name == "lcn"
            if gn.result["model"] == lcn.result["model"]
        ]
        of_one_seed = [p for p in pairs if p[0].result["seed"] == p[1].result["seed"]]
        return next(iter(of_one_seed or pairs), None)

    @cached_property
    def comparisons(self) -> list[Comparison] | str:
        """Predictions of the pair, or, in a line, why there are none."""
        if self.pair is None:
            return "a run of GN and one of LCN are needed."
        for run in self.pair:
            if not (run.directory / "last.ckpt").exists():
                return f"the checkpoint of {run.label} is not on this machine."
            root = run.cfg.data.get("root")
            if root is None or not Path(root).expanduser().is_dir():
                return "the data is not on this machine."
        try:
            return compare(*self.pair)
        except InputError:
            return "the data or a checkpoint cannot be read here, or its labels are not public."
        except Exception as error:  # a picture is an extra: whatever an older version has left
            return f"the runs are of another version of this code ({type(error).__name__})."


def _series_of_others(runs: list[FinishedRun]) -> list[Series]:
    alike: dict[str, list[FinishedRun]] = {}
    for run in runs:
        alike.setdefault(_settings(run), []).append(run)
    found = [Series(group[0].label, tuple(group)) for group in alike.values()]
    names = [(s.model, s.label) for s in found]
    return [
        Series(f"{s.label} ({_digest(s.runs[0])})", s.runs)
        if names.count((s.model, s.label)) > 1
        else s
        for s in found
    ]


def _settings(run: FinishedRun) -> str:
    """The same for runs that differ in nothing but the seed."""
    try:
        identity = run_identity(run.cfg, run.result.get("dataset", ""), run.result["total_batch"])
    except (OmegaConfBaseException, LookupError, TypeError, AttributeError):
        return str(run.directory)  # of another version of this code
    del identity["seed"]
    return json.dumps(identity, sort_keys=True, default=str)


def _digest(run: FinishedRun) -> str:
    """What tells run directories of one norm and seed apart."""
    return run.directory.name.rpartition("-")[2]


def make_sections(runs: list[FinishedRun], evidence: Evidence) -> list[Section]:
    """The sections of a report: those of the published rows first, in the paper's order."""
    by_result = {json.dumps(run.result, sort_keys=True): run for run in runs}
    sections, counted = [], set()
    for scale in SCALES:
        for task in dict.fromkeys(row.task for row in published_rows().values()):
            rows = {
                row.experiment: [
                    by_result[json.dumps(of_row[seed], sort_keys=True)] for seed in sorted(of_row)
                ]
                for row in published_rows().values()
                if row.task == task
                for of_row in [evidence.runs[scale].get(row.experiment, {})]
            }
            of_task = [run for run in runs if any(run in found for found in rows.values())]
            if of_task:
                counted.update(run.directory for run in of_task)
                title = TASKS.get(task, task)
                sections.append(Section(f"{scale}-{task}", title, task, scale, of_task, rows))
    return sections + _other_sections([r for r in runs if r.directory not in counted], evidence)


def _other_sections(runs: list[FinishedRun], evidence: Evidence) -> list[Section]:
    groups: dict[tuple, list[FinishedRun]] = {}
    for run in runs:
        key = (run.task, run.result["data"], run.result.get("dataset"))
        groups.setdefault(key, []).append(run)
    sections = []
    for number, ((task, data, _), group) in enumerate(sorted(groups.items(), key=str), start=1):
        same = [key for key in groups if key[:2] == (task, data)]
        which = f", dataset {sorted(same, key=str).index((task, data, _)) + 1}"
        scale = {"mini": "miniature", "full": "own data or settings"}.get(data, data)
        title = f"{TASKS.get(task, task)}, {scale}{which if len(same) > 1 else ''}"
        reasons = {run.directory: _reason(run, evidence.left_out) for run in group}
        sections.append(
            Section(f"other-{number}-{task}", title, task, data, group, reasons=reasons)
        )
    return sections


def _reason(run: FinishedRun, left_out: list[str]) -> str:
    """Why a run is no published row, without the folders of this machine."""
    start = f"{run.directory}: "
    reason = next((line.removeprefix(start) for line in left_out if line.startswith(start)), "")
    return re.sub(r"\S*/", "", reason)


# Tables


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
        spans: list[list] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1][1] += 1
            else:
                spans.append([column.group, 1])
        return [(title, span) for title, span in spans] if any(s[0] for s in spans) else []


NOT_RUN = "not run"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+z.2f}".replace("-", "\N{MINUS SIGN}")


def interval(found: Difference | None) -> str:
    if found is None or found.low is None:
        return ""
    return f"[{signed(found.low)}, {signed(found.high)}]"


def score_tables(evidence: Evidence, scale: str, table: int) -> list[Table]:
    """A table of the paper, ours beside it, in parts that fit on paper; the primary one first."""
    rows = rows_of_table(table)
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
    columns += [Column(part, group=metric_title(name)) for name in metrics for part in ours]
    columns.append(Column("n"))
    if primary in metrics:
        group = f"{metric_title(primary)}, difference to GN"
        parts = ["ours", *(["95 % interval"] if several else []), "paper"]
        columns += [Column(part, group=group) for part in parts]
    lines = []
    for row in rows:
        line = [row.published[key] for key in keys]
        for metric in metrics:
            scores = list(evidence.scores(scale, row, metric).values())
            line.append(number(statistics.fmean(scores)) if scores else NOT_RUN)
            if several:
                line.append(f"± {statistics.stdev(scores):.2f}" if len(scores) > 1 else "")
            line.append(number(row.published[metric]))
        line.append(str(counts[row.experiment]))
        if primary in metrics:
            line += _difference_cells(evidence, scale, row, several)
        lines.append(line)
    return Table("", columns, lines)


def _difference_cells(evidence: Evidence, scale: str, row: Row, several: bool) -> list[str]:
    gn = reference(row)
    if gn.norm == row.norm:
        return [""] * (3 if several else 2)
    found = contrast(evidence, scale, [row], [gn], row.primary)
    published = signed(row.published[row.primary] - gn.published[row.primary])
    ours = signed(None if found is None else found.mean)
    return [ours, *([interval(found)] if several else []), published]


def audit_table(section: Section) -> Table | None:
    """How many norm layers see a window, of all; for every table of the paper apart."""
    columns = [*([Column("table")] if section.rows is not None else []), *_names(section)]
    columns += [Column("window used")]
    columns += [Column(phase, group="windowed layers") for phase in ("training", "evaluation")]
    lines = []
    for table, series in _series_by_table(section).items():
        for s in series:
            counts = _windowed(s.runs[-1])
            if counts is None:
                continue
            window = s.runs[-1].result["norm"].get("window_used")
            shown = " x ".join(map(str, window)) if isinstance(window, list) else window or ""
            cells = [f"{windowed} of {all_layers}" for windowed, all_layers in counts]
            where = [] if section.rows is None else [f"{table}"]
            lines.append([*where, *_name(section, s), str(shown), *cells])
    return Table("Norm layers that see a window", columns, lines) if lines else None


def _names(section: Section) -> list[Column]:
    titles = ["model", "norm"] if section.has_models else ["norm"]
    return [Column(title, is_number=False) for title in titles]


def _name(section: Section, series: Series) -> list[str]:
    return [series.model, series.label] if section.has_models else [series.label]


def _series_by_table(section: Section) -> dict[int, list[Series]]:
    """The series of each of the paper's tables that has any, in its order; of others all, as 0."""
    if section.rows is None:
        return {0: section.series}
    known = {s.runs: s for s in section.series}
    found: dict[int, list[Series]] = {}
    for experiment, runs in section.rows.items():
        if runs:
            found.setdefault(published_rows()[experiment].table, []).append(known[tuple(runs)])
    return dict(sorted(found.items()))


def _windowed(run: FinishedRun) -> list[tuple[int, int]] | None:
    """Windowed and all norm layers in training and in evaluation; None without an audit."""
    lines = run.lines("audit.csv")
    phases = [
        [line.get("windowed") for line in lines if line.get("phase") == phase]
        for phase in ("training", "evaluation")
    ]
    return [(phase.count("True"), len(phase)) for phase in phases] if all(phases) else None


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
    """Runs that belong to no published row, a line each."""
    names = list(dict.fromkeys(name for run in section.runs for name in run.result["metrics"]))
    columns = [Column("model", is_number=False), Column("norm", is_number=False)]
    columns += [Column("seed"), Column("epochs"), *(Column(metric_title(name)) for name in names)]
    columns += [Column("run", is_number=False), Column("why no published row", is_number=False)]
    lines = [
        [run.result["model"], run.label, str(run.result["seed"]), str(run.result["epochs"]),
         *(number(run.result["metrics"].get(name)) for name in names),
         _digest(run), section.reasons[run.directory]]
        for run in section.runs
    ]  # fmt: skip
    return Table("Other runs", columns, lines)


@dataclass(frozen=True)
class JudgedClaim:
    """A claim of the paper as it is shown: a symbol beside the word, and its differences."""

    table: int
    text: str
    outcome: str
    lines: list[list[str]]  # what; ours, its interval, n; the paper's

    @property
    def mark(self) -> str:
        return {HOLDS: "\N{CHECK MARK}", DOES_NOT: "\N{BALLOT X}", CANNOT_TELL: "?"}[self.outcome]


def judged_claims(evidence: Evidence, scale: str) -> list[JudgedClaim]:
    claims = []
    for claim in CLAIMS:
        outcome, findings = judge(claim, evidence, scale)
        margin = "" if claim.margin is None else f" (within ±{claim.margin:g})"
        lines = [
            [finding.what, NOT_RUN if found is None else signed(found.mean), interval(found),
             str(0 if found is None else found.n), signed(finding.published)]
            for finding in findings
            for found in [finding.difference]
        ]  # fmt: skip
        if not any(finding.difference for finding in findings):
            lines = [["", NOT_RUN, "", "0", lines[0][-1] if len(lines) == 1 else ""]]
        claims.append(JudgedClaim(claim.table, claim.text + margin, outcome, lines))
    return claims


# Charts


@dataclass(frozen=True)
class Chart:
    """A chart that the page's script draws: ``specification`` is plotly's JSON."""

    title: str
    specification: Markup
    height: int
    note: str = ""


def _chart(title: str, figure: object, note: str = "") -> Chart:
    # Inside <script>, only "<" could end the element or begin a comment.
    text = figure.to_json().replace("<", "\\u003c")
    return Chart(title, Markup(text), figure.layout.height, note)


def curve_charts(section: Section) -> list[Chart]:
    """Learning curves, for each of the paper's tables and each network apart.

    A table all of whose runs are also in an earlier one has no charts of its own.
    """
    charts: list[Chart] = []
    shown: set[tuple[FinishedRun, ...]] = set()
    for table, series in _series_by_table(section).items():
        if all(s.runs in shown for s in series):
            continue
        shown |= {s.runs for s in series}
        where = f"Learning curves, Table {table}" if table else "Learning curves"
        models = list(dict.fromkeys(s.model for s in series))
        for model in models:
            of_model = [s for s in series if s.model == model]
            if not any(run.lines("metrics.csv") for s in of_model for run in s.runs):
                continue
            title = f"{where}, {model}" if len(models) > 1 else where
            band = any(len(s.runs) > 1 for s in of_model)
            note = "Lines are means over seeds, bands reach from least to most." if band else ""
            charts.append(_chart(title, curves_chart(of_model, section.runs[0].primary), note))
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
                if evidence.scores(section.data, row, row.primary)
            ),
            None,
        )
        title = f"Table {table}: sensitivity to {key.replace('c_group', 'channels per group')}"
        if base is None:
            charts.append(
                f"{title}: not drawn, neither GN nor the paper's own setting has been run."
            )
            continue
        points = [_point(evidence, section.data, row, base, key) for row in rows]
        yaxis = metric_title(base.primary)
        figure = sensitivity_chart(points, rows[0].published["norm"], XAXES[key], yaxis, base.label)
        note = (
            "Both as the difference to the same row: ours to ours, the paper's to the paper's. The "
            "datasets differ, so the shapes may be compared, not the heights."
        )
        charts.append(_chart(title, figure, note))
    return charts


def _point(evidence: Evidence, scale: str, row: Row, base: Row, key: str) -> Point:
    found = contrast(evidence, scale, [row], [base], row.primary)
    published = row.published[row.primary] - base.published[row.primary]
    if found is None:
        return Point(row.published[key], None, None, 0, published)
    # The base itself differs by nothing, whatever the seeds.
    has_interval = found.low is not None and row.norm != base.norm
    ends = (found.low, found.high) if has_interval else None
    return Point(row.published[key], found.mean, ends, found.n, published)


def bar_charts(section: Section) -> list[Chart]:
    """Scores by class and by city, norms beside each other, for each network apart."""
    by_table = _series_by_table(section)
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


WHISKERS = "Bars are means over seeds, whiskers reach from least to most."


def _breakdowns(run: FinishedRun) -> list[tuple[str, Callable[[FinishedRun], dict]]]:
    """What the scores of a run are divided by: a title, and the values by class or city."""

    def by_city(run: FinishedRun) -> dict[str, float]:
        return {
            metric_title(name.removesuffix("_iou")): value
            for name, value in run.result["metrics"].items()
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


# Predictions


@dataclass(frozen=True)
class Shot:
    """One picture of Figure 2 and its detail, as data URLs; the frame in percent of its sides."""

    title: str
    alt: str
    whole: str
    detail: str
    frame: tuple[float, float, float, float]  # top, left, height, width


WIDEST = 1024  # pixels of an embedded picture


def shots(comparison: Comparison, where: str) -> list[Shot]:
    found = []
    rows, columns = next(iter(comparison.pictures.values())).shape[:2]
    top, left, height, width = comparison.detail
    frame = tuple(
        100 * length / side
        for length, side in zip(
            (top, left, height, width), (rows, columns, rows, columns), strict=True
        )
    )
    for title, detail in comparison.details().items():
        kind = title if title in ("input", "ground truth") else f"prediction with {title}"
        is_photo = title == "input"
        found.append(
            Shot(title, f"{kind}, {where}", data_url(comparison.pictures[title], is_photo),
                 data_url(detail, is_photo), frame)
        )  # fmt: skip
    return found


def data_url(picture: np.ndarray, is_photo: bool) -> str:
    """A picture [H, W, 3] of uint8 as text: JPEG of a large photograph, else PNG."""
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    if image.width > WIDEST:
        resample = Image.Resampling.LANCZOS if is_photo else Image.Resampling.NEAREST
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), resample)
    kind = "JPEG" if is_photo and image.width > WIDEST // 2 else "PNG"
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {"optimize": True}))
    text = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"


def class_colors(run: FinishedRun) -> list[tuple[str, str]]:
    """The classes of a segmentation and their colours in its pictures."""
    names = list(run.cfg.task.class_names)
    colors = colorize(np.arange(len(names), dtype=np.uint8)[None], task_facts(run.task))[0]
    return [
        (name, "#" + "".join(f"{channel:02x}" for channel in color))
        for name, color in zip(names, colors.tolist(), strict=True)
    ]


# The page


def write_report(sections: list[Section], evidence: Evidence, path: Path) -> None:
    """Writes the report: everything in it is inside the one file."""
    from plotly.offline import get_plotlyjs

    path.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("template.html")
    text = page.render(
        facts=facts([run for section in sections for run in section.runs], sections),
        has_miniature=any(section.data == "mini" for section in sections),
        scales=[
            scale_view(scale, [s for s in sections if s.rows is not None and s.data == scale],
                       evidence)
            for scale in SCALES
            if evidence.runs[scale]
        ],
        others=[other_view(section) for section in sections if section.rows is None],
        style=Markup((PAGE / "style.css").read_text()),
        script=Markup((PAGE / "script.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )  # fmt: skip
    write_atomically(path, text.lstrip())


def facts(runs: list[FinishedRun], sections: list[Section]) -> list[tuple[str, str]]:
    """What the report is of: how many runs, when, of which code, on what."""
    counted = sum(len(section.runs) for section in sections if section.rows is not None)
    dates = sorted(
        datetime.date.fromtimestamp((run.directory / "result.json").stat().st_mtime) for run in runs
    )
    span = str(dates[0]) if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    packages = list(dict.fromkeys(name for run in runs for name in run.result["versions"]))
    versions = [
        f"{name} {_distinct(run.result['versions'].get(name) for run in runs)}" for name in packages
    ]
    hours = sum(run.result.get("wall_seconds", 0) for run in runs) / 3600
    return [
        ("runs", f"{len(runs)}: {counted} of published rows, {len(runs) - counted} others"),
        ("finished", span),
        ("training time", f"{hours:,.1f} hours in all"),
        ("devices", _distinct(run.result["device"] for run in runs)),
        ("commits", _distinct(_short(run.result.get("git_commit")) for run in runs)),
        ("versions", "; ".join(versions)),
    ]


def _distinct(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({value or "unknown" for value in values}))


def _short(commit: str | None) -> str | None:
    if commit is None:
        return None
    digits, dash, dirty = commit.partition("-")
    return digits[:12] + dash + dirty


def scale_view(scale: str, sections: list[Section], evidence: Evidence) -> dict:
    claims = judged_claims(evidence, scale)
    outcomes = [claim.outcome for claim in claims]
    tasks = [section.task for section in sections]
    return {
        "slug": scale,
        "title": SCALES[scale],
        "claims": claims,
        "counts": {name: outcomes.count(name) for name in (HOLDS, DOES_NOT, CANNOT_TELL)},
        "sections": [published_view(section, evidence) for section in sections],
        "not_run": [
            table
            for number in TITLES
            if rows_of_table(number)[0].task not in tasks
            for table in score_tables(evidence, scale, number)
        ],
    }


def published_view(section: Section, evidence: Evidence) -> dict:
    tables = dict.fromkeys(published_rows()[name].table for name in section.rows)
    return _view(section) | {
        "tables": [t for n in sorted(tables) for t in score_tables(evidence, section.data, n)],
        "sensitivity": sensitivity_charts(section, evidence),
    }


def other_view(section: Section) -> dict:
    return _view(section) | {"tables": [other_table(section)], "sensitivity": []}


def _view(section: Section) -> dict:
    view = {
        "slug": section.slug,
        "title": section.title,
        "curves": curve_charts(section),
        "bars": bar_charts(section),
        "audit": audit_table(section),
        "cost": cost_table(section),
        "pictures": None,
        "no_pictures": "",
        "classes": [],
    }
    if section.runs[0].kind != "segmentation":
        return view
    found = section.comparisons
    if isinstance(found, str):
        return view | {"no_pictures": found}
    pictures = [
        shots(comparison, f"image {place} of {len(found)}")
        for place, comparison in enumerate(found, start=1)
    ]
    return view | {"pictures": pictures, "classes": class_colors(section.pair[0])}

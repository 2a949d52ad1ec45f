"""The report: finished runs beside the paper's tables as one HTML file that needs no network."""

import base64
import datetime
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from tasks.data.plots import colorize
from tasks.errors import write_atomically
from tasks.evidence.claims import CLAIMS_FILE
from tasks.evidence.gather import Evidence, all_rows
from tasks.evidence.page_charts import bar_charts, curve_charts, sensitivity_charts, window_charts
from tasks.evidence.page_tables import (
    audit_table,
    cost_table,
    distinct,
    other_table,
    own_rows_table,
    score_tables,
    seeds_table,
    short_commit,
    shown_checks,
    shown_claims,
)
from tasks.evidence.pictures import Comparison
from tasks.evidence.rows import SCALES, TITLES, page_title, rows_of_table
from tasks.evidence.sections import Section
from tasks.evidence.verdicts import OUTCOMES
from tasks.protocol import task_facts
from tasks.runs.record import FinishedRun

PAGE = Path(__file__).with_name("page")


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
    """Writes the report as one file that contains everything it needs."""
    from plotly.offline import get_plotlyjs

    path.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("template.html")
    text = page.render(
        facts=facts([run for section in sections for run in section.runs], sections),
        has_miniature=any(section.runs[0].stand_in for section in sections),
        pages=[
            page_view(name, [s for s in sections if s.rows is not None and s.page == name],
                      evidence)
            for name in evidence.pages
        ],
        checks=shown_checks(CLAIMS_FILE.parent),
        others=[other_view(section) for section in sections if section.rows is None],
        style=Markup((PAGE / "style.css").read_text(encoding="utf-8")),
        script=Markup((PAGE / "script.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )  # fmt: skip
    write_atomically(path, text.lstrip())


def facts(runs: list[FinishedRun], sections: list[Section]) -> list[tuple[str, str]]:
    """The head of the report: how many runs, when, with which code, on which devices."""
    counted = sum(len(section.runs) for section in sections if section.rows is not None)
    dates = sorted(datetime.date.fromtimestamp(run.finished_at / 1e9) for run in runs)
    span = str(dates[0]) if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    packages = list(dict.fromkeys(name for run in runs for name in run.result["versions"]))
    versions = [
        f"{name} {distinct(run.result['versions'].get(name) for run in runs)}" for name in packages
    ]
    hours = sum(run.result.get("wall_seconds") or 0 for run in runs) / 3600
    return [
        ("runs", f"{len(runs)}: {counted} of rows, {len(runs) - counted} others"),
        ("finished", span),
        ("training time", f"{hours:,.1f} hours in all"),
        ("devices", distinct(run.result["device"] for run in runs)),
        ("commits", distinct(short_commit(run.result.get("git_commit")) for run in runs)),
        ("versions", "; ".join(versions)),
    ]


def page_view(page: str, sections: list[Section], evidence: Evidence) -> dict[str, Any]:
    claims = shown_claims(evidence, page)
    outcomes = [claim.outcome for claim in claims]
    tasks = [section.task for section in sections]
    return {
        "slug": page,
        "title": page_title(page),
        "claims": claims,
        "counts": {name: outcomes.count(name) for name in OUTCOMES},
        "sections": [row_view(section, evidence) for section in sections],
        "not_run": [
            table
            for number in (TITLES if page in SCALES else ())
            if rows_of_table(number)[0].task not in tasks
            for table in score_tables(evidence, page, number)
        ],
    }


def row_view(section: Section, evidence: Evidence) -> dict[str, Any]:
    numbers = {all_rows()[name].table for name in section.rows or {}} - {0}
    tables = [t for n in sorted(numbers) for t in score_tables(evidence, section.page, n)]
    own = (own_rows_table, seeds_table)
    tables += [t for make in own if (t := make(evidence, section.page, section.task)) is not None]
    return _view(section) | {
        "tables": tables,
        "sensitivity": sensitivity_charts(section, evidence),
    }


def other_view(section: Section) -> dict[str, Any]:
    return _view(section) | {"tables": [other_table(section)], "sensitivity": []}


def _view(section: Section) -> dict[str, Any]:
    view = {
        "slug": section.slug,
        "title": section.title,
        "curves": curve_charts(section) + window_charts(section),
        "bars": bar_charts(section),
        "audit": audit_table(section),
        "cost": cost_table(section),
        "pictures": None,
        "no_pictures": "",
        "classes": [],
    }
    if section.runs[0].kind != "segmentation":
        return view
    found, pair = section.comparisons, section.pair
    if isinstance(found, str) or pair is None:
        return view | {"no_pictures": found}
    pictures = [
        shots(comparison, f"image {place} of {len(found)}")
        for place, comparison in enumerate(found, start=1)
    ]
    return view | {"pictures": pictures, "classes": class_colors(pair[0])}

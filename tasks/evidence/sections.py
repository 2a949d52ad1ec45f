"""The sections of a report: each compares runs of one task at one scale.

First those of rows, published ones and our own, then, apart from them, runs of other settings or
other data: a section per dataset.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tasks.errors import InputError
from tasks.evidence.charts import Series
from tasks.evidence.gather import Evidence, all_rows, settings_of_run
from tasks.evidence.pictures import Comparison
from tasks.evidence.rows import SCALES, page_of, page_title, reference
from tasks.protocol import task_facts
from tasks.runs.record import FinishedRun


@dataclass
class Section:
    """Runs that may be compared with each other.

    ``rows`` holds the runs of each row by seed, of the task's tables; it is None outside them, and
    ``reasons`` then says of each run's directory why it is of no row.
    """

    slug: str
    title: str
    task: str
    data: str
    runs: list[FinishedRun]
    rows: dict[str, list[FinishedRun]] | None = None
    reasons: dict[Path, str] = field(default_factory=dict)

    @property
    def page(self) -> str:
        return page_of(self.task, self.data)

    @cached_property
    def series(self) -> list[Series]:
        """Each run once, with those that differ from it in nothing but the seed."""
        if self.rows is None:
            return _series_of_others(self.runs)
        found: dict[tuple[Path, ...], tuple[str, list[FinishedRun]]] = {}
        for experiment, runs in self.rows.items():
            if runs:
                found.setdefault(tuple(run.directory for run in runs), (experiment, runs))
        return [
            Series(all_rows()[experiment].label, tuple(runs)) for experiment, runs in found.values()
        ]

    @cached_property
    def series_by_table(self) -> dict[int, list[Series]]:
        """The series of each of the paper's tables that has any; what is in none is table 0."""
        if self.rows is None:
            return {0: self.series}
        known = {s.runs: s for s in self.series}
        found: dict[int, list[Series]] = {}
        for experiment, runs in self.rows.items():
            if runs:
                found.setdefault(all_rows()[experiment].table, []).append(known[tuple(runs)])
        return dict(sorted(found.items()))

    @cached_property
    def has_models(self) -> bool:
        """Whether there are runs of several networks."""
        return len({s.model for s in self.series}) > 1

    @cached_property
    def pair(self) -> tuple[FinishedRun, FinishedRun] | None:
        """A GN and an LCN run of one network, if possible of one seed, to show predictions."""
        if self.rows is None:
            candidates = [(self.runs, self.runs)]
        else:
            rows = [r for r in all_rows().values() if r.experiment in self.rows]
            candidates = [
                (self.rows.get(gn.experiment, []), self.rows[row.experiment])
                for row in rows
                if row.norm["name"] == "lcn" and (gn := reference(row)) is not None
            ]
        pairs = [
            (gn, lcn)
            for left, right in candidates
            for lcn in reversed([run for run in right if run.norm == "lcn"])
            for gn in reversed([run for run in left if run.norm == "gn"])
            if gn.model == lcn.model
        ]
        of_one_seed = [(gn, lcn) for gn, lcn in pairs if gn.seed == lcn.seed]
        return next(iter(of_one_seed or pairs), None)

    @cached_property
    def comparisons(self) -> list[Comparison] | str:
        """Predictions of the pair, or, in a line, why there are none."""
        if self.pair is None:
            return "a run of GN and one of LCN are needed."
        for run in self.pair:
            if not (run.directory / "last.ckpt").exists():
                return f"the checkpoint of {run.label} is not on this machine."
            root = run.config["data"].get("root")
            if not isinstance(root, str) or not Path(root).expanduser().is_dir():
                return "the data is not on this machine."
        from tasks.evidence.predictions import compare  # torch, which little else here needs

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
    names = Counter((s.model, s.label) for s in found)
    return [
        Series(f"{s.label} ({digest(s.runs[0])})", s.runs) if names[s.model, s.label] > 1 else s
        for s in found
    ]


def _settings(run: FinishedRun) -> str:
    """A text that is the same for runs that differ in nothing but the seed."""
    settings = settings_of_run(run)
    if settings is None:
        return str(run.directory)
    said = {name: value for name, value in settings.items() if value is not None}  # younger keys
    return json.dumps(said, sort_keys=True, default=str)


def digest(run: FinishedRun) -> str:
    """What tells run directories of one norm and seed apart."""
    return run.directory.name.rpartition("-")[2]


def make_sections(runs: list[FinishedRun], evidence: Evidence) -> list[Section]:
    """The sections of a report: those of rows first, in the order of the pages and of the paper."""
    sections: list[Section] = []
    counted: set[FinishedRun] = set()
    for page in evidence.pages:
        for task in dict.fromkeys(row.task for row in all_rows().values()):
            rows = {
                row.experiment: [of_row[seed] for seed in sorted(of_row)]
                for row in all_rows().values()
                if row.task == task
                for of_row in [evidence.runs[page].get(row.experiment, {})]
            }
            found = {run for of_row in rows.values() for run in of_row}
            if found:
                counted |= found
                of_task = [run for run in runs if run in found]
                title = task_facts(task).title if page in SCALES else page_title(page)
                slug = f"{page}-{task}" if page in SCALES else f"rows-{page}"
                data = of_task[0].data
                sections.append(Section(slug, title, task, data, of_task, rows))
    return sections + _other_sections([r for r in runs if r not in counted], evidence)


def _other_sections(runs: list[FinishedRun], evidence: Evidence) -> list[Section]:
    groups: dict[tuple[str, str, str | None], list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault((run.task, run.data, run.result.get("dataset")), []).append(run)
    sections = []
    keys = sorted(groups, key=str)
    for number, key in enumerate(keys, start=1):
        task, data, _ = key
        group = groups[key]
        same = [other for other in keys if other[:2] == (task, data)]
        which = f", dataset {same.index(key) + 1}"
        scale = {"full": "own data or settings"}.get(data, group[0].stand_in or data)
        title = f"{task_facts(task).title}, {scale}{which if len(same) > 1 else ''}"
        reasons = {run.directory: _without_folders(evidence, run) for run in group}
        sections.append(
            Section(f"other-{number}-{task}", title, task, data, group, reasons=reasons)
        )
    return sections


def _without_folders(evidence: Evidence, run: FinishedRun) -> str:
    """Why a run belongs to no row, without naming folders of this machine."""
    return re.sub(r"\S*/", "", evidence.left_out.get(run.directory, ""))

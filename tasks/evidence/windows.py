"""Which norm layers are windowed, in the rows that a claim is about.

A layer whose window covers its map is GN. At the published sizes that is known without a run:
``python scripts/claims.py`` writes it to ``results/audit.csv``.
"""

import csv
import functools
import io
from pathlib import Path
from typing import NamedTuple

from tasks.config import ROOT, compose
from tasks.errors import write_atomically
from tasks.evidence.claims import Claim
from tasks.evidence.gather import Evidence
from tasks.evidence.rows import Row, own_rows, published_rows, row_named
from tasks.protocol import norm_label, task_facts
from tasks.runs.record import FinishedRun, sees_window

AUDIT_FILE = ROOT / "results" / "audit.csv"

PHASES = ("training", "evaluation")

COLUMNS = ("experiment", "phase", "height", "width", "windowed", "windowed_released", "layers")


class Seen(NamedTuple):
    """Windowed layers by our rule, by the released layer's rule, and all layers."""

    windowed: int
    released: int | None
    layers: int

    def __str__(self) -> str:
        released = "" if self.released is None else f" (released rule {self.released})"
        return f"{self.windowed}{released} of {self.layers}"


@functools.cache
def at_full_scale() -> dict[str, dict[str, Seen]]:
    """The counts by experiment and phase, at the sizes of the protocol; empty without the file."""
    if not AUDIT_FILE.exists():
        return {}
    found: dict[str, dict[str, Seen]] = {}
    with AUDIT_FILE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            counts = (int(line[name]) for name in COLUMNS[4:])
            found.setdefault(line["experiment"], {})[line["phase"]] = Seen(*counts)
    return found


def of_run(run: FinishedRun) -> dict[str, Seen]:
    """The counts by phase, as the run recorded them."""
    return {
        phase: Seen(windowed, run.windowed_released.get(phase), layers)
        for phase, (windowed, layers) in run.windowed.items()
    }


def windows_of(claim: Claim, evidence: Evidence, page: str) -> list[str]:
    """A line for each LCN row of a claim; of runs, or, without any, at the published sizes."""
    lines: list[str] = []
    for name in claim.rows:
        row = row_named(name)
        label = norm_label(row.norm)
        if not row.norm["name"].startswith("lcn"):
            continue
        runs = evidence.runs.get(page, {}).get(name, {})
        experiment = name.partition(" ")[0]
        as_published = at_full_scale().get(experiment, {}) if page != "full" or not runs else {}
        if runs:
            line = f"{label}: {_counts(of_run(next(iter(runs.values()))))}"
            others = [x for x in lines if x.startswith(f"{label}: ") and x != line]
            lines.append(line.replace(label, row.label, 1) if others else line)
        if row.published and as_published and (by_construction := _gn(as_published)):
            lines.append(f"{label} as published: {by_construction}")
        elif not runs and as_published and not any(x.startswith(f"{label}:") for x in lines):
            lines.append(f"{label}, at full size: {_counts(as_published)}")
    return list(dict.fromkeys(lines))


def _counts(seen: dict[str, Seen]) -> str:
    """The counts of the phases, and what they mean if no layer is windowed."""
    counts = ", ".join(f"{phase} {seen[phase]}" for phase in PHASES if phase in seen)
    note = _gn(seen)
    return f"{counts}: {note}" if note else counts


def _gn(seen: dict[str, Seen]) -> str:
    """Where a row is GN because no layer is windowed; empty if some are, under both rules."""
    said = []
    for rule, place in (("under either rule", 0), ("under the released rule", 1)):
        phases = [phase for phase, counts in seen.items() if counts[place] == 0]
        if phases and len(phases) == len(seen):
            said.append(f"GN by construction {rule}, no layer windowed")
        elif phases:
            said.append(f"GN by construction {rule} in {' and '.join(phases)}")
        if said:
            break
    return "; ".join(said)


def write_audit(path: Path = AUDIT_FILE) -> list[str]:
    """Writes `AUDIT_FILE` for every LCN row; returns the experiments."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    rows = [r for r in (published_rows() | own_rows()).values() if r.norm["name"] == "lcn"]
    for row in rows:
        for phase, (height, width), seen in _audited(row):
            lines.writerow((row.experiment, phase, height, width, *seen))
    write_atomically(path, text.getvalue())
    at_full_scale.cache_clear()
    return [row.experiment for row in rows]


def _audited(row: Row) -> list[tuple[str, tuple[int, int], Seen]]:
    """The counts of a row at the protocol's sizes: of crops, and of what is evaluated at once."""
    import torch

    from lcn import audit
    from tasks.data.tiles import window_size
    from tasks.models import build_model, one_image, training_size

    cfg = compose(row.settings)
    if cfg.task.num_classes is None:
        cfg.task.num_classes = cfg.task.outputs = 2  # no norm layer depends on it
    sizes = {"training": training_size(cfg)}
    image = cfg.task.resize or task_facts(row.task).image_size
    if cfg.task.kind != "segmentation":
        sizes["evaluation"] = sizes["training"]
    elif "eval_halo" in cfg.task:  # tiles, in windows
        sizes["evaluation"] = window_size(cfg)
    elif image is not None:
        sizes["evaluation"] = tuple(image)
    with torch.device("cpu" if cfg.task.kind == "detection" else "meta"):  # which draws a seed
        model = build_model(cfg)
    found = []
    for phase, size in sizes.items():
        shape, forward = one_image(cfg, size)
        report = audit(model, shape, forward=forward)
        released = sum(sees_window(str(r.window), str(r.height), str(r.width)) for r in report)
        *_, height, width = shape
        found.append((phase, (height, width), Seen(report.windowed_count, released, len(report))))
    return found

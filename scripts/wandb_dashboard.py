"""Builds a wandb workspace per task and one report, which compare norms over the runs of a project.

python scripts/wandb_dashboard.py --project lcn --data mini --task cityscapes chesapeake
"""

import argparse
import json
import os
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb.sdk.lib import wbauth
from wandb_workspaces import expr

from tasks.config import compose, options
from tasks.errors import InputError, command
from tasks.protocol import stand_ins, task_facts

DATA = {"full": "full datasets"} | {name: f"{what}s" for name, what in stand_ins().items()}
NORM = "JobType"
"""What train.py calls a wandb run's norm, such as lcn_c2_w227."""

COLUMNS, ROWS = 8, 7  # of a report's grid, of 24 columns, that a panel takes


@command
def main() -> None:
    arguments = parse_arguments()
    try:
        if arguments.dry_run:
            entity = arguments.entity or "ENTITY"
            print(json.dumps(specifications(*build(arguments, entity)), indent=2))
            return
        require_key()
        entity = arguments.entity or str(wandb.Api().default_entity)
        workspaces, report = build(arguments, entity)
        views: list[Any] = [*workspaces, report]
        for view in views:
            view.save()
            print(view.url)
    except wandb.errors.Error as error:
        raise InputError(str(error).splitlines()[0]) from None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = options("task")
    parser.add_argument("--task", nargs="+", choices=tasks, default=tasks, help="default: all")
    parser.add_argument("--data", choices=list(DATA), default="full", help="default: full")
    parser.add_argument("--project", default="lcn", help="default: lcn")
    parser.add_argument("--entity", help="user or team (default: your wandb account's)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, as JSON; needs no key"
    )
    return parser.parse_args()


def require_key() -> None:
    """Raises InputError unless wandb has a key."""
    key = wbauth.authenticate_session(
        host=wandb.setup().settings.base_url,
        source="wandb_dashboard.py",
        prompt=False,
        update_session=False,
    )
    if key is None:
        raise InputError("wandb has no key; log in first: wandb login (or see --dry-run)")


def build(arguments: argparse.Namespace, entity: str) -> tuple[list[ws.Workspace], wr.Report]:
    """The workspaces and the report, not yet saved."""
    workspaces = [
        workspace(entity, arguments.project, task, arguments.data) for task in arguments.task
    ]
    return workspaces, report(entity, arguments.project, arguments.task, arguments.data)


def specifications(workspaces: list[ws.Workspace], report: wr.Report) -> dict:
    """What saving would send, as wandb's own JSON."""
    models = {
        "workspaces": [workspace._to_model() for workspace in workspaces],
        "report": report._to_model(),
    }
    dump = {"by_alias": True, "exclude_none": True, "mode": "json"}
    return {
        "workspaces": [model.model_dump(**dump) for model in models["workspaces"]],
        "report": models["report"].model_dump(**dump),
    }


def runs_of(task: str, data: str) -> list[expr.FilterExpr]:
    """The filter for the runs of a task; the miniature and full scale are never mixed."""
    return [expr.Tags().isin([tag]) for tag in (task, data)]


def workspace(entity: str, project: str, task: str, data: str) -> ws.Workspace:
    """Every run of a task, grouped by norm, seeds averaged."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Norms on {task} ({data})",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in sections(task).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=30),
        runset_settings=ws.RunsetSettings(filters=runs_of(task, data), groupby=[expr.Metric(NORM)]),
    )


def report(entity: str, project: str, tasks: list[str], data: str) -> wr.Report:
    """A chapter per task: the panels by norm, then the runs one by one."""
    blocks: list = [
        wr.TableOfContents(),
        wr.P("Lines and bars are means over the runs of a norm; bands are standard deviations."),
    ]
    for task in tasks:
        panels = [panel for group in sections(task).values() for panel in group]
        for place, panel in enumerate(panels):
            panel.layout = wr.Layout(
                x=COLUMNS * (place % 3), y=ROWS * (place // 3), w=COLUMNS, h=ROWS
            )
        by_norm = wr.Runset(name="by norm", filters=runs_of(task, data), groupby=[NORM])
        single = wr.Runset(name="runs", filters=runs_of(task, data))
        comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=14))
        blocks += [
            wr.H2(task),
            wr.PanelGrid(runsets=[by_norm], panels=panels),
            wr.PanelGrid(runsets=[single], panels=[comparer]),
        ]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Normalization layers on {DATA[data]}",
        description="Local Context Normalization beside its siblings, on the tasks of the paper.",
        blocks=blocks,
        width="fluid",
    )


def sections(task: str) -> dict[str, list]:
    """The panels of a task by section."""
    task_config = compose([f"task={task}"]).task
    facts = task_facts(task)
    primary = facts.primary
    others = [name for name in facts.metrics if name != primary]
    found: dict[str, list[Any]] = {
        "Scores": [
            wr.BarPlot(title=f"{primary} by norm", metrics=[primary], **by_norm()),
            *[line(name) for name in (primary, *others)],
        ],
        "Training": [line("loss_epoch"), line("val_loss"), line("lr")],
        "Cost": [
            wr.BarPlot(title=f"{name} by norm", metrics=[name], **by_norm())
            for name in ("samples_per_second", "memory_mib")
        ]
        + [scatter("samples_per_second", primary), scatter("windowed_layers_training", primary)],
    }
    if task_config.kind == "detection":  # which has no loss in evaluation
        found["Training"].pop(1)
    if task_config.kind == "segmentation" and task_config.outputs > 1:
        classes: list[Any] = [f"class_iou/{name}" for name in task_config.class_names]
        found["Classes"] = [wr.BarPlot(title="IoU by class", metrics=classes, **by_norm())]
    if task_config.kind != "classification":
        keys = [f"validation/{number}" for number in range(1, 4)]
        found["Pictures"] = [wr.MediaBrowser(title=key, media_keys=[key]) for key in keys]
    found["Audit"] = [wr.WeavePanelSummaryTable(table_name="audit")]
    return found


def by_norm() -> dict[str, Any]:
    """Seeds averaged, with their standard deviation."""
    return {"groupby": NORM, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def line(metric: str) -> wr.LinePlot:
    return wr.LinePlot(title=metric, x="Step", y=[metric], **by_norm())


def scatter(x: str, y: str) -> wr.ScatterPlot:
    return wr.ScatterPlot(title=f"{y} over {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))


if __name__ == "__main__":
    main()

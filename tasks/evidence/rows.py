"""The rows that are compared: those that the paper published, their variants, and our own."""

import csv
import dataclasses
import functools
from dataclasses import dataclass

from tasks.config import CONFIGS, ROOT, options
from tasks.protocol import norm_label, published_row, read_experiment, stand_ins, task_facts

SCALES = {name: f"On the {what}" for name, what in stand_ins().items()} | {"full": "At full scale"}
"""The pages of the published rows, by ``data``; never mixed. Other tasks have their own."""

TITLES = {
    1: "Cityscapes, validation",
    2: "Cityscapes, groups of GN",
    3: "Cityscapes, channels per group of LCN",
    4: "Cityscapes, window of LCN",
    5: "COCO, detection and instance segmentation",
    6: "ImageNet, classification error",
    7: "INRIA, buildings in unseen cities",
    8: "Chesapeake, land cover",
}


@dataclass(frozen=True)
class Row:
    """A row: its experiment, what identifies its runs, its line of the paper's table.

    A row of our own has no line. Its name may have settings behind that of the experiment.
    """

    experiment: str
    task: str
    model: str
    norm: dict  # as tasks.protocol.canonical_norm spells it
    published: dict  # key columns as text, metrics in percent
    variant: str = ""  # what differs from the row's own command: released, duke, large, pretrained

    @property
    def table(self) -> int:
        """The number of the paper's table; 0 for a row of our own."""
        return self.published.get("table", 0)

    @property
    def keys(self) -> list[str]:
        """The columns that say which row it is."""
        return [name for name, value in self.published.items() if isinstance(value, str)]

    @property
    def metrics(self) -> list[str]:
        published = [name for name, value in self.published.items() if isinstance(value, float)]
        return published or task_facts(self.task).metrics

    @property
    def primary(self) -> str:
        return task_facts(self.task).primary

    @property
    def settings(self) -> list[str]:
        """The command line without data and seed."""
        experiment, *overrides = self.experiment.split()
        return [f"experiment={experiment}", *overrides]

    @property
    def label(self) -> str:
        """The norm; the settings behind the experiment's name, without their groups; and the
        variant where these do not tell it from the published row."""
        settings = [
            f"{key.rpartition('.')[2]}={value}"
            for key, _, value in (part.partition("=") for part in self.experiment.split()[1:])
        ]
        label = " ".join([norm_label(self.norm), *settings])
        alike = self.variant and any(
            row.identity == self.identity for row in published_rows().values()
        )
        return f"{label} ({self.variant})" if alike else label

    @property
    def identity(self) -> tuple[str, str, dict]:
        """What a run must share to belong to this row: task, model and norm."""
        return self.task, self.model, self.norm


@functools.cache
def published_rows() -> dict[str, Row]:
    """Every published row by the name of its experiment, in the paper's order."""
    experiments = {tuple(row.published.items()): row for row in _rows() if not row.variant}
    rows = {}
    for table in TITLES:
        path = ROOT / "results" / "paper" / f"table{table}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                row = experiments[tuple(published_row(table, line).items())]
                rows[row.experiment] = row
    return rows


@functools.cache
def variant_rows() -> dict[str, Row]:
    """Every variant of a published row by the name of its experiment, in the paper's order."""
    place = {tuple(row.published.items()): i for i, row in enumerate(published_rows().values())}
    variants = [row for row in _rows() if row.variant]
    variants.sort(key=lambda row: place[tuple(row.published.items())])
    return {row.experiment: row for row in variants}


@functools.cache
def own_rows() -> dict[str, Row]:
    """Every row of our own by the name of its experiment."""
    return {row.experiment: row for row in _rows() if not row.published}


@functools.cache
def _rows() -> list[Row]:
    rows = []
    for name in options("experiment"):
        experiment = read_experiment(CONFIGS / "experiment" / f"{name}.yaml")
        paper = experiment["paper"]
        published = {} if paper is None else published_row(**paper)
        task, model, norm = experiment["identity"]
        rows.append(Row(name, task, model, norm, published, experiment["variant"]))
    return rows


@functools.cache
def own_tasks() -> list[str]:
    """The tasks with rows that the paper does not have."""
    published = {row.task for row in published_rows().values()}
    return sorted({row.task for row in own_rows().values()} - published)


def row_named(name: str) -> Row:
    """The row of an experiment, or of one with settings behind it, such as ``table8_gn seed=1``.

    Raises:
        LookupError: there is no such experiment.
    """
    experiment, *settings = name.split()
    row = (published_rows() | variant_rows() | own_rows())[experiment]
    return dataclasses.replace(row, experiment=name, published={}) if settings else row


def page_of(task: str, data: str) -> str:
    """The page that a run belongs to: ``mini`` or ``full``, or one of a task of our own."""
    if task not in own_tasks():
        return data
    return task if data == "full" else f"{task}-{data}"


def page_title(page: str) -> str:
    if page in SCALES:
        return SCALES[page]
    task, _, data = page.partition("-")
    return f"On {task_facts(task).title}" + (f", {data}" if data else "")


def page_data(page: str) -> str:
    """The value of ``data`` in the commands of a page."""
    return page if page in SCALES else page.partition("-")[2] or "full"


def reference(row: Row) -> Row | None:
    """The GN row of the same task and model: Table 1's (16 groups) for Tables 2 to 4.

    That of the same variant, if it has one: the released layer has none of its own. None if there
    is none; every published row has one.
    """
    of_variant = [other for other in variant_rows().values() if other.variant == row.variant]
    return next(
        (
            other
            for other in (*of_variant, *published_rows().values(), *own_rows().values())
            if (other.task, other.model) == (row.task, row.model)
            and "gn" == other.norm["name"] == other.published.get("norm", "gn")
        ),
        None,
    )


def baseline(row: Row) -> Row | None:
    """The `reference` that a row is compared with; None for GN itself, or if there is none."""
    gn = reference(row)
    return None if gn is None or gn.norm == row.norm else gn


def own_rows_of(task: str) -> list[Row]:
    """The rows of our own of a task: smaller windows before larger ones."""
    rows = [row for row in own_rows().values() if row.task == task]
    return sorted(rows, key=lambda row: (row.model, row.norm["name"], _area(row), row.experiment))


def _area(row: Row) -> int:
    window = row.norm.get("window")
    return window[0] * window[1] if isinstance(window, list) else 0


def rows_of_table(table: int) -> list[Row]:
    return [row for row in published_rows().values() if row.table == table]

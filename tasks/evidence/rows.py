"""The rows that the paper published, and the variants of them that can be run."""

import csv
import functools
from dataclasses import dataclass

from tasks.config import CONFIGS, ROOT, options
from tasks.protocol import norm_label, published_row, read_experiment, task_facts

SCALES = {"mini": "On the miniature", "full": "At full scale"}

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
    """A published row: its experiment, what identifies its runs, its line of the paper's table."""

    experiment: str
    task: str
    model: str
    norm: dict  # as tasks.protocol.canonical_norm spells it
    published: dict  # key columns as text, metrics in percent
    variant: str = ""  # what differs from the row's own command: released, duke, large, pretrained

    @property
    def table(self) -> int:
        return self.published["table"]

    @property
    def keys(self) -> list[str]:
        """The columns that say which row it is."""
        return [name for name, value in self.published.items() if isinstance(value, str)]

    @property
    def metrics(self) -> list[str]:
        return [name for name, value in self.published.items() if isinstance(value, float)]

    @property
    def primary(self) -> str:
        return task_facts(self.task).primary

    @property
    def label(self) -> str:
        """The norm's name, with the variant where that alone does not tell it from the row."""
        label = norm_label(self.norm)
        alike = self.variant and any(
            row.identity == self.identity for row in published_rows().values()
        )
        return f"{label} ({self.variant})" if alike else label

    @property
    def identity(self) -> tuple[str, str, dict]:
        """What makes a run one of this row: task, model and norm."""
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
def all_rows() -> dict[str, Row]:
    """The published rows and, after them, their variants."""
    return published_rows() | variant_rows()


def _rows() -> list[Row]:
    rows = []
    for name in options("experiment"):
        experiment = read_experiment(CONFIGS / "experiment" / f"{name}.yaml")
        if experiment["paper"] is not None:
            published = published_row(**experiment["paper"])
            task, model, norm = experiment["identity"]
            rows.append(Row(name, task, model, norm, published, experiment["variant"]))
    return rows


def reference(row: Row) -> Row:
    """The GN row that a row is compared with: Table 1's (16 groups) for Tables 2 to 4.

    That of the same variant, if it has one: the released layer has none of its own.
    """
    of_variant = [other for other in variant_rows().values() if other.variant == row.variant]
    return next(
        other
        for other in (*of_variant, *published_rows().values())
        if other.published.get("norm") == "gn" == other.norm["name"]
        and (other.task, other.model) == (row.task, row.model)
    )


def rows_of_table(table: int) -> list[Row]:
    return [row for row in published_rows().values() if row.table == table]

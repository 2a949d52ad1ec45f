"""Pictures of finished runs, drawn by matplotlib: learning curves, predictions (Figure 2)."""

from collections import Counter
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tasks.evidence.charts import norm_color
from tasks.protocol import metric_title
from tasks.runs.record import FinishedRun

matplotlib.use("Agg")


def learning_curves(runs: list[FinishedRun]) -> Figure:
    """Training loss and the primary metric over epochs, a line per run of one task."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    primary = runs[0].primary
    titles = (("loss", "training loss"), (primary, f"validation {metric_title(primary)} (%)"))
    alike = Counter(run.label for run in runs)
    for ax, (column, title) in zip(panels, titles, strict=True):
        named: set[str] = set()  # one entry per norm: the colour says the rest
        for run in runs:
            label = run.label if alike[run.label] > 1 else f"{run.label}, seed {run.seed}"
            entry = {} if run.label in named else {"label": label}
            named.add(run.label)
            ax.plot(*run.curve(column), color=norm_color(run.norm), marker=".", **entry)
        ax.set(xlabel="epoch", title=title)
        ax.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small" if len(alike) > 8 else None)
    return figure


@dataclass(frozen=True)
class Comparison:
    """An image, its ground truth and two runs' predictions, by title: arrays [H, W, 3] of uint8.

    ``detail`` is the window (top, left, height, width), a quarter of the image's height and width,
    where the two predictions differ most on labelled pixels.
    """

    pictures: dict[str, np.ndarray]
    detail: tuple[int, int, int, int]

    def details(self) -> dict[str, np.ndarray]:
        top, left, height, width = self.detail
        cut = slice(top, top + height), slice(left, left + width)
        return {title: picture[cut] for title, picture in self.pictures.items()}


def side_by_side(comparisons: list[Comparison]) -> Figure:
    """Input, ground truth and two runs' predictions, each with an enlarged detail (Figure 2)."""
    count = len(comparisons)
    figure = Figure(figsize=(13, 3.5 * count), layout="constrained")
    axes = figure.subplots(2 * count, 4, squeeze=False)
    for row, comparison in enumerate(comparisons):
        top, left_edge, height, width = comparison.detail
        details = comparison.details()
        for column, (title, picture) in enumerate(comparison.pictures.items()):
            whole, detail = axes[2 * row, column], axes[2 * row + 1, column]
            whole.imshow(picture, interpolation="nearest")
            corner = (left_edge - 0.5, top - 0.5)
            frame = Rectangle(corner, width, height, fill=False, edgecolor="orange", linewidth=2)
            whole.add_patch(frame)
            detail.imshow(details[title], interpolation="nearest")
            if row == 0:
                whole.set_title(title)
            for ax, color in ((whole, "none"), (detail, "orange")):
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set(color=color, linewidth=2)
    return figure


def densest_window(mask: np.ndarray, fraction: int = 4) -> tuple[int, int, int, int]:
    """Top, left, height and width of the window of 1/fraction the size with most true pixels."""
    height, width = mask.shape[0] // fraction, mask.shape[1] // fraction
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = (
        sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]
        + sums[:-height, :-width]
    )  # fmt: skip
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return int(top), int(left), height, width

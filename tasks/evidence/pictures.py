"""Pictures of finished runs: learning curves, predictions side by side (Figure 2), charts.

Pictures for files are matplotlib's, charts to be looked at in a browser plotly's.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from tasks.data import Dataset, open_datasets
from tasks.data.loading import Augmented
from tasks.data.plots import colorize
from tasks.data.transforms import IGNORED, make_transform
from tasks.errors import InputError
from tasks.evidence.charts import NORM_COLORS
from tasks.models import build_model, scaled_norm
from tasks.models.checkpoint import load_weights
from tasks.modules.segmentation import Segmentation
from tasks.protocol import metric_title, task_facts
from tasks.runs.record import FinishedRun

if TYPE_CHECKING:
    pass

matplotlib.use("Agg")


def learning_curves(runs: list[FinishedRun]) -> Figure:
    """Training loss and the primary metric over epochs, a line per run of one task."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    primary = runs[0].primary
    titles = (("loss", "training loss"), (primary, f"validation {metric_title(primary)} (%)"))
    for ax, (column, title) in zip(panels, titles, strict=True):
        for number, run in enumerate(runs):
            alike = [other.label == run.label for other in runs]
            one_entry = alike.index(True) == number  # per norm: the colour says the rest
            label = run.label if sum(alike) > 1 else f"{run.label}, seed {run.cfg.seed}"
            entry = {"label": label} if one_entry else {}
            ax.plot(*run.curve(column), color=NORM_COLORS[run.cfg.norm.name], marker=".", **entry)
        ax.set(xlabel="epoch", title=title)
        ax.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small" if len({run.label for run in runs}) > 8 else None)
    return figure


def trained_network(run: FinishedRun) -> Segmentation:
    """The network of a run in evaluation mode, on the CPU; images to logits at their size."""
    model, norm = build_model(run.cfg), scaled_norm(run.cfg)
    load_weights(model, str(run.directory / "last.ckpt"), norm)
    return Segmentation(model, run.cfg, norm).eval()


def predict(network: Segmentation, cfg: DictConfig, dataset: Dataset, index: int) -> np.ndarray:
    """The predicted train ids [H, W] of one whole image."""
    sample = Augmented(dataset, make_transform(cfg, training=False), cfg.seed)[0, index]
    with torch.inference_mode():
        logits = network(sample["image"][None])
        return network.decide(logits)[0].byte().numpy()


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


@functools.cache
def compare(left: FinishedRun, right: FinishedRun, count: int = 2) -> list[Comparison]:
    """Two runs on images that are spread evenly over the evaluation split (Figure 2).

    Raises:
        InputError: the data is not there, or its labels are not public.
    """
    dataset = open_datasets(left.cfg).eval
    if not dataset.labelled:
        raise InputError("the labels of the evaluation split are not public")
    facts = task_facts(left.task)
    networks = {run.label: (run, trained_network(run)) for run in (left, right)}
    comparisons = []
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        sample = dataset[index]
        found = {n: predict(net, run.cfg, dataset, index) for n, (run, net) in networks.items()}
        differ = (found[left.label] != found[right.label]) & (sample["label"] != IGNORED)
        labels = {"ground truth": sample["label"], **found}
        pictures = {"input": sample["image"][..., :3]}
        pictures |= {title: colorize(label, facts) for title, label in labels.items()}
        comparisons.append(Comparison(pictures, densest_window(differ)))
    return comparisons


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
            frame = {"fill": False, "edgecolor": "orange", "linewidth": 2}
            corner = (left_edge - 0.5, top - 0.5)
            whole.add_patch(matplotlib.patches.Rectangle(corner, width, height, **frame))
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


# Charts

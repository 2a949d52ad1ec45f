"""Pictures of finished runs: learning curves, and predictions side by side (Figure 2)."""

import csv
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from tasks.data import Dataset, dataset_module, open_datasets
from tasks.data.loading import Augmented
from tasks.data.transforms import IGNORED, make_transform
from tasks.errors import InputError
from tasks.models import build_model, load_weights, scaled_norm
from tasks.paper import PRIMARY
from tasks.run import norm_label
from tasks.segmentation import Segmentation

matplotlib.use("Agg")

# Okabe and Ito's colours, which colour-blind readers can tell apart.
NORM_COLORS = {
    "bn": "#0072B2", "sync_bn": "#56B4E9", "gn": "#E69F00", "in": "#CC79A7", "ln": "#F0E442",
    "lcn": "#009E73", "lcn_released": "#D55E00", "lcn_tiled": "#000000",
}  # fmt: skip


class FinishedRun:
    """A run directory with its result, configuration, metrics per epoch and network."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.result = json.loads((directory / "result.json").read_text())
        self.cfg: DictConfig = OmegaConf.load(directory / "config.yaml")
        self.label = norm_label(self.cfg.norm)
        self.color = NORM_COLORS[self.cfg.norm.name]

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a column of ``metrics.csv``, where it has a value."""
        with (self.directory / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(column)]
        return [float(row["epoch"]) for row in rows], [float(row[column]) for row in rows]

    def network(self) -> Segmentation:
        """The trained network in evaluation mode, on the CPU; images to logits at their size."""
        model = build_model(self.cfg)
        norm = scaled_norm(self.cfg)
        load_weights(model, str(self.directory / "last.ckpt"), norm)
        return Segmentation(model, self.cfg, norm).eval()


def finished_runs(places: list[Path]) -> list[FinishedRun]:
    """The finished runs in and below the folders, newest last.

    Raises:
        InputError: there is none.
    """
    files = {file for place in places for file in place.rglob("result.json")}
    if not files:
        raise InputError(f"no finished run (result.json) below {', '.join(map(str, places))}")
    return [FinishedRun(file.parent) for file in sorted(files, key=lambda f: f.stat().st_mtime)]


def learning_curves(runs: list[FinishedRun]) -> Figure:
    """Training loss and the primary metric over epochs, a line per run of one task."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    primary = PRIMARY[runs[0].cfg.task.name]
    label = "mIoU" if primary == "miou" else primary.replace("_", " ")
    titles = (("loss", "training loss"), (primary, f"validation {label} (%)"))
    for ax, (column, title) in zip(panels, titles, strict=True):
        for run in runs:
            label = f"{run.label}, seed {run.cfg.seed}"
            ax.plot(*run.curve(column), color=run.color, marker=".", label=label)
        ax.set(xlabel="epoch", title=title)
        ax.grid(alpha=0.3)
    panels[1].legend()
    return figure


def predict(network: Segmentation, cfg: DictConfig, dataset: Dataset, index: int) -> np.ndarray:
    """The predicted train ids [H, W] of one whole image."""
    sample = Augmented(dataset, make_transform(cfg, training=False), cfg.seed)[0, index]
    with torch.inference_mode():
        logits = network(sample["image"][None])
        return network.decide(logits)[0].byte().numpy()


def side_by_side(left: FinishedRun, right: FinishedRun, count: int = 2) -> Figure:
    """Input, ground truth and two runs' predictions, each with an enlarged detail (Figure 2).

    The images are spread evenly over the evaluation split; the detail, a quarter of the image's
    height and width, is where the two predictions differ most on labelled pixels.
    """
    dataset = open_datasets(left.cfg).eval
    colorize = dataset_module(left.cfg).colorize
    networks = [(run, run.network()) for run in (left, right)]
    figure = Figure(figsize=(13, 3.5 * count), layout="constrained")
    axes = figure.subplots(2 * count, 4, squeeze=False)
    for row, index in enumerate(np.linspace(0, len(dataset) - 1, count).astype(int)):
        sample = dataset[int(index)]
        predictions = [predict(net, run.cfg, dataset, int(index)) for run, net in networks]
        differ = (predictions[0] != predictions[1]) & (sample["label"] != IGNORED)
        top, left_edge, height, width = densest_window(differ)
        pictures = [sample["image"][..., :3], *map(colorize, (sample["label"], *predictions))]
        titles = ["input", "ground truth", left.label, right.label]
        for column, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
            whole, detail = axes[2 * row, column], axes[2 * row + 1, column]
            whole.imshow(picture, interpolation="nearest")
            frame = {"fill": False, "edgecolor": "orange", "linewidth": 2}
            corner = (left_edge - 0.5, top - 0.5)
            whole.add_patch(matplotlib.patches.Rectangle(corner, width, height, **frame))
            cut = picture[top : top + height, left_edge : left_edge + width]
            detail.imshow(cut, interpolation="nearest")
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

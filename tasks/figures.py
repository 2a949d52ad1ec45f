"""Pictures of finished runs: learning curves, predictions side by side (Figure 2), charts.

Pictures for files are matplotlib's, charts to be looked at in a browser plotly's.
"""

import csv
import functools
import html
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.data import Dataset, dataset_module, is_labelled, open_datasets
from tasks.data.loading import Augmented
from tasks.data.transforms import IGNORED, make_transform
from tasks.errors import InputError
from tasks.models import build_model, load_weights, scaled_norm
from tasks.paper import PRIMARY
from tasks.run import norm_label
from tasks.segmentation import Segmentation

if TYPE_CHECKING:
    import plotly.graph_objects as go

matplotlib.use("Agg")

# Okabe and Ito's colours, which colour-blind readers can tell apart. Yellow, which is faint on
# white, is of the norm that is in no published table.
NORM_COLORS = {
    "bn": "#0072B2", "sync_bn": "#56B4E9", "gn": "#E69F00", "in": "#CC79A7", "ln": "#000000",
    "lcn": "#009E73", "lcn_released": "#D55E00", "lcn_tiled": "#F0E442",
}  # fmt: skip


class FinishedRun:
    """A run directory with its result, configuration, metrics per epoch and network."""

    def __init__(self, directory: Path):
        self.directory = directory
        try:
            self.result = json.loads((directory / "result.json").read_text())
            self.cfg: DictConfig = OmegaConf.load(directory / "config.yaml")
            self.label = norm_label(self.cfg.norm)
            self.color = NORM_COLORS[self.cfg.norm.name]
            self.task, self.kind = self.cfg.task.name, self.cfg.task.kind
        except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError,
                OmegaConfBaseException) as error:  # fmt: skip
            what = f"{directory} is damaged ({type(error).__name__})"
            raise InputError(f"{what}: remove it and give the run's command again") from None

    @property
    def primary(self) -> str:
        """The metric that is compared first."""
        return PRIMARY[self.task]

    def lines(self, name: str) -> list[dict[str, str]]:
        """The lines of a CSV file of the run; none if it has no such file."""
        path = self.directory / name
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a column of ``metrics.csv``, where it has a value."""
        rows = [row for row in self.lines("metrics.csv") if row.get(column)]
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
    files = {file.resolve(): file for place in places for file in place.rglob("result.json")}
    if not files:
        raise InputError(f"no finished run (result.json) below {', '.join(map(str, places))}")
    oldest_first = sorted(files.values(), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return [FinishedRun(file.parent) for file in oldest_first]


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
            ax.plot(*run.curve(column), color=run.color, marker=".", **entry)
        ax.set(xlabel="epoch", title=title)
        ax.grid(alpha=0.3)
    panels[1].legend(fontsize="x-small" if len({run.label for run in runs}) > 8 else None)
    return figure


def metric_title(name: str) -> str:
    """A metric as people write it: ``miou`` is mIoU, ``san_francisco_iou`` San Francisco IoU."""
    words = {
        "miou": "mIoU", "iou": "IoU", "acc": "accuracy", "err": "error", "ap": "AP",
        "ap50": "AP50", "ap75": "AP75", "bbox": "box", "top1": "top-1", "top5": "top-5",
        "pixel": "pixel", "mean": "mean", "mask": "mask", "overall": "overall",
    }  # fmt: skip
    return " ".join(words.get(word, word.capitalize()) for word in name.split("_"))


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
    if not is_labelled(dataset):
        raise InputError("the labels of the evaluation split are not public")
    colorize = dataset_module(left.cfg).colorize
    networks = {run.label: (run, run.network()) for run in (left, right)}
    comparisons = []
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        sample = dataset[index]
        found = {n: predict(net, run.cfg, dataset, index) for n, (run, net) in networks.items()}
        differ = (found[left.label] != found[right.label]) & (sample["label"] != IGNORED)
        labels = {"ground truth": sample["label"], **found}
        pictures = {"input": sample["image"][..., :3]}
        pictures |= {title: colorize(label) for title, label in labels.items()}
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


@dataclass(frozen=True)
class Series:
    """Runs that differ in nothing but their seed: one line, or one colour of bars, of a chart."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def norm(self) -> str:
        return self.runs[0].cfg.norm.name

    @property
    def model(self) -> str:
        return self.runs[0].result["model"]


@dataclass(frozen=True)
class Style:
    color: str
    dash: str
    symbol: str


DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
PAPER = Style("#6b7280", "dash", "circle-open")
TEXT, GRID = "#1f2937", "#e5e7eb"
LEGEND_DISTANCE = 60  # pixels from a plot down to its legend: what the axis' title needs
MOST_MARKERS = 60  # points of a line beyond which markers would hide it
MOST_CLASSES = 20  # that a chart of bars shows


def styles(series: Sequence[Series]) -> dict[str, Style]:
    """By label: a norm's colour; its variants differ in shade, dash and marker."""
    found = {}
    for norm, color in NORM_COLORS.items():
        variants = [s.label for s in series if s.norm == norm]
        shades = np.linspace(-0.5, 0.5, len(variants)) if len(variants) > 1 else [0.0]
        for number, label in enumerate(variants):
            dash = DASHES[number % len(DASHES)]
            symbol = SYMBOLS[number % len(SYMBOLS)]
            found[label] = Style(shaded(color, shades[number]), dash, symbol)
    return found


def shaded(color: str, amount: float) -> str:
    """``#rrggbb`` mixed with white (amount from -1 to 0) or with black (0 to 1)."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    other = 255 if amount < 0 else 0
    mixed = [round(c + (other - c) * abs(amount)) for c in channels]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def over_seeds(curves: Sequence[tuple[list[float], list[float]]]) -> list[tuple[float, ...]]:
    """(epoch, mean, least, most) of several curves, at the epochs of any of them."""
    at: dict[float, list[float]] = {}
    for epochs, values in curves:
        for epoch, value in zip(epochs, values, strict=True):
            at.setdefault(epoch, []).append(value)
    return [(e, statistics.fmean(at[e]), min(at[e]), max(at[e])) for e in sorted(at)]


def curves_chart(series: Sequence[Series], primary: str) -> "go.Figure":
    """Training loss and the primary metric over epochs: a line per series, a band over its seeds.

    The legend toggles a series in both panels.
    """
    from plotly.subplots import make_subplots

    panels = {"loss": "training loss", primary: f"validation {metric_title(primary)} (%)"}
    figure = make_subplots(
        2, 1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=list(panels.values())
    )
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    for s in series:
        style = styles(series)[s.label]
        for row, (column, digits) in enumerate(zip(panels, (4, 2), strict=True), start=1):
            points = over_seeds([run.curve(column) for run in s.runs])
            if not points:
                continue
            epochs, mean, least, most = (list(values) for values in zip(*points, strict=True))
            group = {"legendgroup": s.label, "name": html.escape(s.label)}
            place = {"row": row, "col": 1}
            if len(s.runs) > 1:
                figure.add_scatter(
                    x=epochs + epochs[::-1], y=most + least[::-1], fill="toself", mode="none",
                    fillcolor=style.color, opacity=0.15, hoverinfo="skip", showlegend=False,
                    **group, **place,
                )  # fmt: skip
            figure.add_scatter(
                x=epochs, y=mean, line={"color": style.color, "dash": style.dash, "width": 2},
                mode="lines+markers" if len(epochs) <= MOST_MARKERS else "lines",
                marker={"symbol": style.symbol, "size": 7}, showlegend=row == 1,
                customdata=list(zip(least, most, strict=True)),
                hovertemplate=f"%{{y:.{digits}f}}" + (
                    f" (%{{customdata[0]:.{digits}f}} to %{{customdata[1]:.{digits}f}})"
                    if len(s.runs) > 1 else ""
                ),
                **group, **place,
            )  # fmt: skip
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(hovermode="x unified")
    return _dressed(figure, 580)


def bars_chart(
    series: Sequence[Series],
    values: Callable[[FinishedRun], dict[str, float | None]],
    title: str,
) -> "go.Figure":
    """Grouped bars: a value per class or city for each series, mean over seeds, least to most.

    Of more than `MOST_CLASSES`, those where the series differ most.
    """
    import plotly.graph_objects as go

    table = {s.label: [values(run) for run in s.runs] for s in series}
    names = list(dict.fromkeys(name for runs in table.values() for run in runs for name in run))
    means, ranges = {}, {}
    for label, runs in table.items():
        for name in names:
            found = [run[name] for run in runs if run.get(name) is not None]
            means[label, name] = statistics.fmean(found) if found else None
            ranges[label, name] = (min(found), max(found)) if found else None

    def spread(name: str) -> float:
        found = [means[label, name] for label in table if means[label, name] is not None]
        return max(found) - min(found) if found else 0.0

    shown = names
    if len(names) > MOST_CLASSES:
        shown = sorted(names, key=spread, reverse=True)[:MOST_CLASSES]
    figure = go.Figure()
    for s in series:
        style = styles(series)[s.label]
        x = [means[s.label, name] for name in shown]
        ends = [ranges[s.label, name] for name in shown]
        error = None
        if len(s.runs) > 1:
            error = {
                "array": [e and e[1] - m for m, e in zip(x, ends, strict=True)],
                "arrayminus": [e and m - e[0] for m, e in zip(x, ends, strict=True)],
                "symmetric": False, "thickness": 1, "width": 2, "color": TEXT,
            }  # fmt: skip
        figure.add_bar(
            x=x, y=[html.escape(name) for name in shown], orientation="h", error_x=error,
            name=html.escape(s.label), marker={"color": style.color},
            hovertemplate="%{y}: %{x:.2f}",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(title_text=title, rangemode="tozero")
    figure.update_layout(barmode="group", bargap=0.25)
    height = min(940, 150 + len(shown) * (10 + 9 * len(series)))
    return _dressed(figure, height)


@dataclass(frozen=True)
class Point:
    """A row of a sensitivity table: where it lies, ours and the paper's difference, in points."""

    x: str
    ours: float | None
    interval: tuple[float, float] | None
    n: int
    paper: float


def sensitivity_chart(
    points: Sequence[Point], norm: str, xaxis: str, yaxis: str, base: str
) -> "go.Figure":
    """Ours and the paper's differences to one base, over the setting that a table varies.

    Whiskers are 95 % intervals over paired seeds.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    place = [point.x for point in points]
    figure.add_scatter(
        x=place, y=[point.paper for point in points], name="paper", mode="lines+markers",
        line={"color": PAPER.color, "dash": PAPER.dash},
        marker={"symbol": PAPER.symbol, "size": 9}, hovertemplate="paper: %{y:+.2f}<extra></extra>",
    )  # fmt: skip
    reach = [(p.interval[1] - p.interval[0]) / 2 if p.interval else None for p in points]
    texts = [
        f"ours: {p.ours or 0:+.2f}, n {p.n}"
        + (f", 95 % interval {p.interval[0]:+.2f} to {p.interval[1]:+.2f}" if p.interval else "")
        for p in points
    ]
    figure.add_scatter(
        x=place, y=[point.ours for point in points], name="ours", mode="lines+markers",
        line={"color": NORM_COLORS[norm], "width": 2}, marker={"size": 9},
        error_y={"array": reach, "thickness": 1.5, "width": 5}, text=texts,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(0, line={"color": TEXT, "width": 1})
    figure.update_xaxes(
        title_text=xaxis, type="category", categoryorder="array", categoryarray=place
    )
    figure.update_yaxes(title_text=f"{yaxis} minus that of {base}")
    return _dressed(figure, 400)


def _dressed(figure: "go.Figure", height: int) -> "go.Figure":
    """Text, grid, legend and margins that every chart has."""
    below = -LEGEND_DISTANCE / (height - 120)  # in heights of the plot, of which this is about one
    fonts = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
    figure.update_layout(
        template="none", height=height, autosize=True, dragmode=False,
        font={"family": fonts, "size": 13, "color": TEXT},
        margin={"l": 56, "r": 16, "t": 34, "b": 48}, showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": below, "yanchor": "top"},
        hoverlabel={"namelength": -1},
    )  # fmt: skip
    figure.update_xaxes(
        gridcolor=GRID, zeroline=False, linecolor=TEXT, ticks="outside", title_standoff=4
    )
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure

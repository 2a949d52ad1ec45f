"""Charts for a browser, drawn by plotly."""

import html
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.protocol import metric_title
from tasks.runs.record import FinishedRun

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, which colour-blind readers can tell apart, for the norms of the published
# tables; yellow, which is faint on white, and Tol's muted ones for the others.
NORM_COLORS = {
    "bn": "#0072B2", "sync_bn": "#56B4E9", "gn": "#E69F00", "in": "#CC79A7", "ln": "#000000",
    "lcn": "#009E73", "lcn_released": "#D55E00", "lcn_tiled": "#F0E442",
    "lcn_learned": "#44AA99",
    "brn": "#332288", "pn": "#882255", "lrn": "#999933", "contrast": "#AA4499",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Runs that differ in nothing but their seed: one line, or one colour of bars, of a chart."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def norm(self) -> str:
        return self.runs[0].norm

    @property
    def model(self) -> str:
        return self.runs[0].model


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


def norm_color(norm: str) -> str:
    """A norm's colour; grey for a norm without one."""
    return NORM_COLORS.get(norm, "#6b7280")


def styles(series: Sequence[Series]) -> dict[str, Style]:
    """By label: a norm's colour; its variants differ in shade, dash and marker."""
    found = {}
    for norm in dict.fromkeys([*NORM_COLORS, *(s.norm for s in series)]):
        color, variants = norm_color(norm), [s.label for s in series if s.norm == norm]
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
    found = styles(series)
    for s in series:
        style = found[s.label]
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
    found = {
        (label, name): [value for run in runs if (value := run.get(name)) is not None]
        for label, runs in table.items()
        for name in names
    }
    means = {place: statistics.fmean(values) for place, values in found.items() if values}

    def spread(name: str) -> float:
        scores = [means[label, name] for label in table if (label, name) in means]
        return max(scores) - min(scores) if scores else 0.0

    shown = names
    if len(names) > MOST_CLASSES:
        shown = sorted(names, key=spread, reverse=True)[:MOST_CLASSES]
    figure = go.Figure()
    dressed = styles(series)
    for s in series:
        style = dressed[s.label]
        places = [(s.label, name) for name in shown]
        error = None
        if len(s.runs) > 1:
            error = {
                "array": [max(found[p]) - means[p] if p in means else None for p in places],
                "arrayminus": [means[p] - min(found[p]) if p in means else None for p in places],
                "symmetric": False, "thickness": 1, "width": 2, "color": TEXT,
            }  # fmt: skip
        figure.add_bar(
            x=[means.get(place) for place in places], y=[html.escape(name) for name in shown],
            orientation="h", error_x=error, name=html.escape(s.label),
            marker={"color": style.color}, hovertemplate="%{y}: %{x:.2f}",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(title_text=title, rangemode="tozero")
    figure.update_layout(barmode="group", bargap=0.25)
    height = min(940, 150 + len(shown) * (10 + 9 * len(series)))
    return _dressed(figure, height)


def windows_chart(runs: Sequence[FinishedRun]) -> "go.Figure":
    """Learned windows over epochs: a line per layer, rows above and columns below, log scale.

    Of several runs the mean over those that have the epoch.
    """
    from plotly.subplots import make_subplots

    titles = ("rows p (cells)", "columns q (cells)")
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=titles)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    layers = list(dict.fromkeys(layer for run in runs for layer in run.windows))
    for number, layer in enumerate(layers):
        color = shaded("#44AA99", number / max(len(layers) - 1, 1) - 0.5)  # light: the first layers
        for side in (1, 2):
            curves = [
                (
                    [line[0] for line in run.windows[layer]],
                    [line[side] for line in run.windows[layer]],
                )
                for run in runs
                if layer in run.windows
            ]
            epochs, mean, *_ = zip(*over_seeds(curves), strict=True)
            figure.add_scatter(
                x=epochs, y=mean, mode="lines", line={"color": color, "width": 1.5},
                name=html.escape(layer), showlegend=False, row=side, col=1,
                hovertemplate="%{y:.1f}",
            )  # fmt: skip
    figure.update_yaxes(type="log")
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    return _dressed(figure, 580)


@dataclass(frozen=True)
class Point:
    """A row of a sensitivity table: where it lies, ours and the paper's difference, in points."""

    x: str
    ours: float | None
    interval: tuple[float, float] | None
    n: int
    paper: float | None


def sensitivity_chart(
    points: Sequence[Point], norm: str, xaxis: str, yaxis: str, base: str
) -> "go.Figure":
    """Ours and the paper's differences to one base, over the setting that a table varies.

    Whiskers are 95 % intervals over paired seeds.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    place = [point.x for point in points]
    if any(point.paper is not None for point in points):
        figure.add_scatter(
            x=place, y=[point.paper for point in points], name="paper", mode="lines+markers",
            line={"color": PAPER.color, "dash": PAPER.dash},
            marker={"symbol": PAPER.symbol, "size": 9},
            hovertemplate="paper: %{y:+.2f}<extra></extra>",
        )  # fmt: skip
    reach = [p.interval[1] - (p.ours or 0) if p.interval else None for p in points]
    below = [(p.ours or 0) - p.interval[0] if p.interval else None for p in points]
    texts = [
        f"ours: {p.ours or 0:+.2f}, n {p.n}"
        + (f", 95 % interval {p.interval[0]:+.2f} to {p.interval[1]:+.2f}" if p.interval else "")
        for p in points
    ]
    figure.add_scatter(
        x=place, y=[point.ours for point in points], name="ours", mode="lines+markers",
        line={"color": norm_color(norm), "width": 2}, marker={"size": 9},
        error_y={"array": reach, "arrayminus": below, "symmetric": False, "thickness": 1.5,
                 "width": 5}, text=texts,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(0, line={"color": TEXT, "width": 1})
    figure.update_xaxes(
        title_text=xaxis, type="category", categoryorder="array", categoryarray=place
    )
    figure.update_yaxes(title_text=f"{yaxis} minus that of {base}")
    return _dressed(figure, 400)


def _dressed(figure: "go.Figure", height: int) -> "go.Figure":
    """The chart with the text, grid, legend and margins that all charts share."""
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

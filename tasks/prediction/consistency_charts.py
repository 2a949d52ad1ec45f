"""Tile mismatch as charts: over the halo, and on the maps themselves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tasks.data.plots import colorize
from tasks.prediction.consistency import ComparedMap, Line

CHANGED, SAME = np.array([[200, 0, 60], [235, 235, 235]], dtype=np.uint8)
"""Colours of pixels, RGB."""


def draw_lines(lines: Sequence[Line], path: Path) -> None:
    """A chart of the tile mismatch over the halo: a panel per shift, a line per network."""
    shifts = list(dict.fromkeys(line.shift for line in lines))
    figure = Figure(figsize=(5 * len(shifts), 4), layout="constrained")
    panels = figure.subplots(1, len(shifts), sharey=True, squeeze=False)[0]
    networks = list(dict.fromkeys((line.run, line.norm) for line in lines))
    for panel, shift in zip(panels, shifts, strict=True):
        for run, norm in networks:
            own = [x for x in lines if (x.run, x.norm, x.shift) == (run, norm, shift)]
            values = [line.mismatch.classes for line in own]
            label = f"{norm}, {run}" if len({n for _, n in networks}) < len(networks) else norm
            panel.plot([line.halo for line in own], values, marker="o", label=label)
        panel.set(title=f"shift {shift[0]} x {shift[1]}", xlabel="halo (pixels)")
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # of all panels, once each has its lines
    panels[0].set_ylabel("tile mismatch (% of pixels)")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def draw_maps(maps: Sequence[ComparedMap], path: Path) -> None:
    """A row per network: the image, its map, and the pixels that change when tiles are shifted."""
    height, width = maps[0].classes.shape
    figure = Figure(figsize=(9, (3 * height / width + 0.35) * len(maps)), layout="constrained")
    for row, each in zip(figure.subplots(len(maps), 3, squeeze=False), maps, strict=True):
        share = 100 * each.changes.mean()
        panels = {
            "image": each.image[..., :3] if each.image.shape[2] >= 3 else each.image[..., 0],
            each.norm: colorize(each.classes, each.facts),
            f"changed by other tiles: {share:.2g} %": np.where(
                each.changes[..., None], CHANGED, SAME
            ),
        }
        for ax, (title, picture) in zip(row, panels.items(), strict=True):
            ax.imshow(picture, interpolation="nearest", cmap="gray")
            ax.set_title(title, fontsize="medium")
            ax.set_axis_off()
    figure.savefig(path, dpi=120)

"""Draws the pictures of docs/windows.md.

python scripts/window_pictures.py --out docs/images
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from lcn.functional import local_context_norm
from tasks.config import path_of
from tasks.errors import command, told_of

matplotlib.use("Agg")
from matplotlib import pyplot

SIDE, WINDOW = 160, 31


def texture(side: int) -> Tensor:
    """Smooth noise with values around 0, ``[side, side]``."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, side + 4, side + 4, generator=generator)
    return 3 * torch.nn.functional.avg_pool2d(noise, 5, stride=1)[0, 0]


def normalized(image: Tensor, window: object) -> Tensor:
    return local_context_norm(image[None], channels_per_group=1, window=window, eps=1e-3)[0]


def draw(path: Path, panels: dict[str, Tensor]) -> None:
    figure, axes = pyplot.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.9))
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        is_size = title.startswith("window")
        limits = {} if is_size else {"vmin": -3, "vmax": 3}
        picture = axis.imshow(values, cmap="viridis" if is_size else "gray", **limits)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
        if is_size:
            figure.colorbar(picture, ax=axis, fraction=0.046)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def up_to_border() -> Tensor:
    """``[SIDE]``: the largest window around each cell of an axis that need not move inside."""
    cell = torch.arange(SIDE)
    return (2 * torch.minimum(cell, SIDE - 1 - cell) + 1).clamp(max=WINDOW)


def border(out: Path) -> None:
    """Brightness rises from left to right; at a border one window for all is no longer centred."""
    image = texture(SIDE) + torch.linspace(-40, 40, SIDE)
    side = up_to_border().clamp(min=5)
    p, q = side[:, None].expand(SIDE, SIDE), side.expand(SIDE, SIDE)
    panels = {"map": image / 14, "one window, 31 x 31": normalized(image, WINDOW)}
    panels |= {"window: columns q": q, "a window per point": normalized(image, (p, q))}
    draw(out / "windows_border.png", panels)


def mask(out: Path) -> None:
    """A part without data is flat; windows are as large as they can be without touching it."""
    empty = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    empty |= (rows - 60) ** 2 + (columns - 90) ** 2 < 35**2
    image = torch.where(empty, -12.0, texture(SIDE))
    side = torch.ones(SIDE, SIDE, dtype=torch.int64)
    for radius in range(1, WINDOW // 2 + 1):  # as long as no cell without data is inside
        hit = torch.nn.functional.max_pool2d(
            empty[None].float(), 2 * radius + 1, stride=1, padding=radius
        )[0]
        side[hit == 0] = 2 * radius + 1
    p, q = side.minimum(up_to_border()[:, None]), side.minimum(up_to_border())
    panels = {"map": image / 1.5, "one window, 31 x 31": normalized(image, WINDOW)}
    panels |= {"window: rows p": p, "a window per point": normalized(image, (p, q))}
    panels["a window per point"] = torch.where(empty, 0.0, panels["a window per point"])
    draw(out / "windows_mask.png", panels)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=path_of, default=Path("docs/images"), help="folder to write")
    out = parser.parse_args().out
    with told_of(out):
        out.mkdir(parents=True, exist_ok=True)
        border(out)
        mask(out)


if __name__ == "__main__":
    main()

"""Pictures of samples: class colours, label maps, objects, contact sheets of whole datasets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks.data import IGNORED, Dataset, Sample
from tasks.errors import InputError
from tasks.protocol import TaskFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHEET_WIDTH = 1600  # pixels


def colorize(label: np.ndarray, facts: TaskFacts) -> np.ndarray:
    """Class ids [H, W] as the task's colours, uint8 [H, W, 3]."""
    table = np.empty((256, 3), dtype=np.uint8)
    table[:] = facts.ignored_color or 0
    colors = np.array(list((facts.classes or {}).values()), dtype=np.uint8)
    table[: len(colors)] = colors
    return table[label]


def label_figure(sample: Sample, prediction: np.ndarray | None, facts: TaskFacts) -> "Figure":
    """A matplotlib figure: image, ground truth if there is any and, if given, prediction [H, W].

    An image of four bands is shown in natural colour and in false colour, near infrared as red.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    image = sample["image"]
    panels = {"input": image}
    if image.shape[2] == 4:
        panels = {
            "natural colour": image[..., :3],
            "false colour (NIR, R, G)": image[..., [3, 0, 1]],
        }
    if (sample["label"] != IGNORED).any():
        panels["ground truth"] = colorize(sample["label"], facts)
    if prediction is not None:
        panels["prediction"] = colorize(prediction, facts)
    height, width = image.shape[:2]
    side = 3.5 * max(1.0, width / height)  # inches
    figure = Figure(figsize=(side * len(panels), side * height / width + 1.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, picture) in zip(axes, panels.items(), strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
    figure.suptitle(sample["name"])
    colors = (facts.classes or {}) | {"ignored": facts.ignored_color or [0, 0, 0]}
    legend = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), edgecolor="grey", label=name)
        for name, color in colors.items()
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3 * len(panels), fontsize=8)
    return figure


def draw_objects(
    ax: "Axes", image: np.ndarray, objects: Sample, class_names: Sequence[str]
) -> None:
    """Draws an image with boxes, masks and classes of objects, and scores if they have them.

    Args:
        ax: where to.
        image: uint8 [H, W, 3].
        objects: ``boxes``, ``labels``, ``masks`` as a detection's samples have them, ``scores``.
        class_names: of labels 1, 2, ...
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    picture = image / 255
    colors = colormaps["hsv"](np.linspace(0, 0.85, max(1, len(objects["labels"]))))[:, :3]
    for color, mask in zip(colors, objects["masks"], strict=False):
        picture[mask > 0] = 0.5 * picture[mask > 0] + 0.5 * color
    ax.imshow(picture)
    for index, (x1, y1, x2, y2) in enumerate(objects["boxes"]):
        edge = colors[index]
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge))
        text = class_names[int(objects["labels"][index]) - 1]
        if "scores" in objects:
            text += f" {objects['scores'][index]:.2f}"
        label = {"facecolor": edge, "edgecolor": "none", "pad": 1}
        ax.text(x1, y1, text, color="white", bbox=label, fontsize=7, clip_on=True)


def contact_sheet(splits: dict[str, Dataset], count: int = 4) -> Image.Image:
    """Samples spread evenly over each split, as its dataset plots them, a block per split.

    Args:
        splits: datasets by the name of their split.
        count: most samples of a split. One that cannot be read is left out.
    """
    from matplotlib.figure import Figure

    blocks = []
    for name, dataset in splits.items():
        blocks.append(drawn(_title(Figure(figsize=(8, 0.5)), name, len(dataset))))
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
        pictures = []
        for index in chosen.tolist():
            try:
                pictures.append(drawn(dataset.plot(dataset[index])))
            except InputError:
                continue
        blocks += _rows(pictures)
    sheet = Image.new("RGB", (SHEET_WIDTH, sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _title(figure: "Figure", name: str, count: int) -> "Figure":
    figure.text(0.01, 0.5, f"{name}, {count:,} samples", va="center", fontsize=16)
    return figure


def drawn(figure: "Figure") -> Image.Image:
    """A figure's pixels, at 100 a matplotlib inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _rows(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures side by side, two or four of them as wide as the sheet."""
    abreast = 2 if any(picture.width > 1.5 * picture.height for picture in pictures) else 4
    width = SHEET_WIDTH // abreast
    shrunk = [
        picture.resize((width, round(picture.height * width / picture.width)))
        for picture in pictures
    ]
    rows = []
    for start in range(0, len(shrunk), abreast):
        of_row = shrunk[start : start + abreast]
        row = Image.new("RGB", (SHEET_WIDTH, max(picture.height for picture in of_row)), "white")
        for place, picture in enumerate(of_row):
            row.paste(picture, (place * width, 0))
        rows.append(row)
    return rows

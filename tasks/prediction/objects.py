"""Objects that a detector finds in pictures: as arrays, as COCO's JSON, and drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tasks.data.files import read_rgb
from tasks.data.plots import draw_objects, drawn
from tasks.errors import InputError, replacing, say_left_out, told_of, write_atomically
from tasks.modules.detection import MASK_THRESHOLD, coco_results
from tasks.prediction.network import Network, require_finite

FILE = "predictions.json"
SHOWN = 0.5
"""Score from which an object is drawn; the JSON has all."""

# COCO's categories are numbered from 1 to 90; these numbers are of none.
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO = [number for number in range(1, 91) if number not in _UNUSED]
_OF_MINIATURE = {"person": 1, "car": 3, "bottle": 44, "chair": 62, "clock": 85}


def detect(network: Network, image: np.ndarray, scale: float | None = None) -> dict[str, Any]:
    """The objects that a detector finds in an image [H, W, 3], by falling score.

    Args:
        network: a detector.
        image: uint8, uint16 or float, see `Network.prepare`.
        scale: the value that becomes 1.

    Returns:
        ``boxes`` float32 [K, 4], x1, y1, x2, y2 in pixels; ``labels`` int64 [K], from 1, of
        ``network.class_names``; ``scores`` float32 [K]; ``masks`` bool [K, H, W].

    Raises:
        InputError: the network is no detector, or the image does not fit it.
    """
    found = _found(network, image, scale)
    found["masks"] = found["masks"][:, 0] >= MASK_THRESHOLD
    return {name: value.cpu().numpy() for name, value in found.items()}


def _found(network: Network, image: np.ndarray, scale: float | None) -> dict[str, torch.Tensor]:
    if network.kind != "detection":
        raise InputError(f"this is a network of {network.kind}: it finds no objects")
    with torch.inference_mode():
        return dict(network.model([require_finite(network.prepare(image, scale))])[0])


def category_ids(class_names: list[str]) -> list[int]:
    """COCO's numbers of the classes where they are COCO's or the miniature's, else 1, 2, ..."""
    if len(class_names) == len(_COCO) and class_names[-1] == "toothbrush":
        return _COCO
    if set(class_names) <= _OF_MINIATURE.keys():
        return [_OF_MINIATURE[name] for name in class_names]
    return list(range(1, len(class_names) + 1))


def predict_objects(
    network: Network, paths: list[Path], out: Path, scale: float | None, overwrite: bool
) -> tuple[list[Path], int]:
    """Writes what is found in pictures: ``predictions.json`` and ``NAME_objects.png``.

    The JSON has COCO's form: images, categories, and annotations with a score each, which are also
    what COCO's evaluators take as results. An image whose name is a number has it as its id, as in
    COCO, if all have.

    Returns:
        The files, and how many pictures could not be read.

    Raises:
        InputError: a file exists.
    """
    pictures = {path: out / f"{path.stem}_objects.png" for path in paths}
    for target in (out / FILE, *pictures.values()):
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists; write it anew with --overwrite")
        if target in paths:
            raise InputError(f"{target} is an input too: give another --out")
    numbers = category_ids(network.class_names)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    written, failed = [], 0
    numbered = list(zip(paths, _image_ids(paths), strict=True))
    for path, image_id in tqdm(numbered, unit="image", disable=None):
        try:
            image = read_rgb(path, ["PNG", "JPEG", "TIFF"], "get the file again")
            found = _found(network, image, scale)
        except InputError as error:
            failed += 1
            say_left_out(path, error)
            continue
        height, width = image.shape[:2]
        images.append({"id": image_id, "file_name": path.name, "height": height, "width": width})
        for result in coco_results(found, image_id, numbers):
            annotations.append(_annotation(result, len(annotations) + 1))
        with told_of(out):
            out.mkdir(parents=True, exist_ok=True)
        with replacing(pictures[path]) as temporary:
            draw(image, found, network.class_names).save(temporary, format="PNG")
        written.append(pictures[path])
    if images:
        pairs = zip(numbers, network.class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in pairs]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_atomically(out / FILE, json.dumps(content) + "\n")
        written.append(out / FILE)
    return written, failed


def _image_ids(paths: list[Path]) -> list[int]:
    if all(path.stem.isascii() and path.stem.isdigit() for path in paths):
        numbers = [int(path.stem) for path in paths]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(paths) + 1))


def _annotation(result: dict[str, Any], number: int) -> dict[str, Any]:
    """A result of COCO's as an annotation; the area is that of the mask."""
    from pycocotools import mask as mask_utils

    encoded = result["segmentation"]
    return {
        "id": number, **result, "iscrowd": 0, "area": float(mask_utils.area(encoded)),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
    }  # fmt: skip


def draw(image: np.ndarray, found: dict[str, torch.Tensor], class_names: list[str]) -> Image.Image:
    """The image in its own size with the objects of at least the score `SHOWN`.

    Args:
        image: uint8 [H, W, 3].
        found: as `tasks.modules.detection.coco_results` takes it.
        class_names: of labels 1, 2, ...
    """
    from matplotlib.figure import Figure

    shown = found["scores"] >= SHOWN
    objects = {name: value[shown].cpu().numpy() for name, value in found.items()}
    objects["masks"] = objects["masks"][:, 0] >= MASK_THRESHOLD
    height, width = image.shape[:2]
    # The tenth of a pixel: 115 / 100 * 100 is less than 115 in floating point.
    figure = Figure(figsize=((width + 0.1) / 100, (height + 0.1) / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    draw_objects(ax, image, objects, class_names)
    ax.set_aspect("auto")
    ax.set_axis_off()
    return drawn(figure)

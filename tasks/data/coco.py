"""COCO, object instances: files, classes, boxes, masks.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tasks.data import DetectionDataset, Sample
from tasks.data.coco_json import AGAIN, check_files, read_annotations
from tasks.data.files import local_name, read_rgb
from tasks.data.plots import draw_objects
from tasks.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def open_splits(cfg: DictConfig, splits: Sequence[str], root: Path, release: str) -> list["Coco"]:
    """The splits of the dataset in a folder.

    ``train`` in the first place is for training: without images that have nothing to train on.
    Anywhere else, and ``val`` everywhere, is for evaluation: all images.

    Raises:
        InputError: there is no such dataset, it is not as it should be, or the splits have
            different categories.
    """
    needed = [part for s in splits for part in (f"{s}2017", f"annotations/{_json_name(s)}")]
    missing = [part for part in dict.fromkeys(needed) if not (root / part).exists()]
    if missing:
        raise InputError(
            f"COCO not found: no {' and no '.join(missing)} in {root}\n"
            "  Unpack train2017.zip, val2017.zip and annotations_trainval2017.zip from\n"
            f"  https://cocodataset.org/#download into {root},\n"
            "  or say where they are with data.root=/path/to/coco,\n"
            "  or train on the generated miniature: python train.py task=coco data=mini"
        )
    opened = [
        Coco(root, split, training=split == "train" and place == 0, release=release)
        for place, split in enumerate(splits)
    ]
    first = opened[0]
    for other in opened[1:]:
        if (other.category_ids, other.class_names) != (first.category_ids, first.class_names):
            raise InputError(
                f"{other.json_path} and {first.json_path} have different categories; unpack both "
                "from the same annotations_trainval2017.zip"
            )
    return opened


class Coco(DetectionDataset):
    """Photographs of everyday scenes with boxes and masks of the objects of 80 categories.

    Splits: train2017 (118,287 images, 117,266 of them with an object to train on) and val2017
    (5,000).
    Format: ``{train,val}2017/<id as 12 digits>.jpg``, RGB or greyscale, 8 bit, up to 640 pixels;
    ``annotations/instances_{train,val}2017.json`` with images, categories and annotations: box
    [x, y, width, height] in pixels, mask as polygons or run lengths, ``iscrowd`` for a region of
    many objects. Categories are numbered from 1 to 90 with gaps; labels here are 1 to 80 in the
    order of those numbers, 0 being the background.
    Licence: annotations CC BY 4.0; the images under the terms of Flickr.
    Citation: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014.

    Args:
        root: the folder with ``train2017``, ``val2017`` and ``annotations``.
        split: ``train`` or ``val``.
        training: leave out, as Detectron does, images without an object to train on: one that is
            no crowd and has a mask and, inside the image, a box of positive width and height.
        release: what tells data apart whose files have the same content.

    Attributes:
        ground_truth: the json in pycocotools' form, all its images and annotations.
        class_names: of labels 1, 2, ...
        category_ids: of labels 1, 2, ..., ascending.
        labels: of category ids.

    Raises:
        InputError: the json cannot be read, contradicts itself, or lists an image that is not
            there.
    """

    def __init__(self, root: Path | str, split: str, training: bool = False, release: str = "coco"):
        self.root, self.split = Path(root), split
        self.json_path = self.root / "annotations" / _json_name(split)
        self.image_dir = self.root / f"{split}2017"
        content, digest = read_annotations(self.json_path)
        check_files(content["images"], self.image_dir, self.json_path)
        self.identity = f"{release}/{split}/{digest}"

        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.category_ids = [category["id"] for category in categories]
        self.class_names = [category["name"] for category in categories]
        self.labels = {number: label for label, number in enumerate(self.category_ids, start=1)}
        self.ground_truth = COCO()
        self.ground_truth.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            self.ground_truth.createIndex()
        self._images = sorted(content["images"], key=lambda image: image["id"])
        if training:
            self._images = [image for image in self._images if self._objects(image)]
        if not self._images:
            raise InputError(
                f"{self.json_path} has no image{' with an object to train on' if training else ''};"
                f" {AGAIN}"
            )

    def _objects(self, image: dict) -> list[dict]:
        """The image's annotations to train on."""
        return [
            annotation
            for annotation in self.ground_truth.imgToAnns.get(image["id"], [])
            if not annotation["iscrowd"]
            and annotation["area"] > 0
            and _has_extent(_clipped(annotation["bbox"], image))
        ]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """One image and its K objects, crowds and boxes without extent left out.

        Returns:
            ``image`` uint8 [H, W, 3]; ``boxes`` float32 [K, 4], x1, y1, x2, y2 in pixels, inside
            the image; ``labels`` int64 [K], from 1; ``masks`` uint8 [K, H, W], 0 or 1;
            ``image_id``; ``name``, the file's without its ending.

        Raises:
            InputError: the file cannot be read or is not of the size in the json.
        """
        image = self._images[index]
        path = self.image_dir / local_name(image["file_name"])
        pixels = read_rgb(path, ["JPEG", "PNG"], f"unpack {self.image_dir.name}.zip again")
        height, width = pixels.shape[:2]
        if (height, width) != (image["height"], image["width"]):
            raise InputError(
                f"{path} is {height} x {width} but {self.json_path} says {image['height']} x "
                f"{image['width']} (height x width) for image id {image['id']}; unpack images and "
                "annotations of the same release again"
            )
        objects = self._objects(image)
        boxes = [_clipped(annotation["bbox"], image) for annotation in objects]
        labels = [self.labels[annotation["category_id"]] for annotation in objects]
        runs = [self._runs(annotation) for annotation in objects]
        columns = mask_utils.decode(runs).T if runs else np.empty((0, width, height), np.uint8)
        return {
            "image": pixels,
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(labels, np.int64),
            "masks": columns.transpose(0, 2, 1),
            "image_id": image["id"],
            "name": path.stem,
        }

    def _runs(self, annotation: dict) -> dict:
        """The run lengths of an annotation's mask."""
        try:
            return self.ground_truth.annToRLE(annotation)
        except Exception as error:  # pycocotools raises whatever its C code stumbles over
            raise InputError(
                f"{self.json_path}: the segmentation of annotation id {annotation['id']} cannot be "
                f"decoded ({error}); {AGAIN}"
            ) from None

    def plot(self, sample: Sample, prediction: Sample | None = None) -> "Figure":
        """A matplotlib figure: the objects of a sample and, if given, those predicted.

        Args:
            prediction: ``boxes``, ``labels`` and ``masks`` as in a sample, and ``scores`` [K].
        """
        from matplotlib.figure import Figure

        panels = {"ground truth": sample}
        if prediction is not None:
            panels["prediction"] = prediction
        height, width = sample["image"].shape[:2]
        figure = Figure(figsize=(5 * len(panels), 5 * height / width + 0.3), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, objects) in zip(axes, panels.items(), strict=True):
            draw_objects(ax, sample["image"], objects, self.class_names)
            ax.set_title(title)
            ax.set_axis_off()
        return figure


def _json_name(split: str) -> str:
    return f"instances_{split}2017.json"


def _clipped(box: Sequence[float], image: dict) -> tuple[float, float, float, float]:
    """[x, y, width, height] as x1, y1, x2, y2 inside the image."""
    x, y, width, height = box
    right, bottom = image["width"], image["height"]
    return (
        min(max(x, 0), right),
        min(max(y, 0), bottom),
        min(max(x + width, 0), right),
        min(max(y + height, 0), bottom),
    )


def _has_extent(box: tuple[float, float, float, float]) -> bool:
    x1, y1, x2, y2 = box
    return x2 > x1 and y2 > y1

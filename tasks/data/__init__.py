"""From a configuration to the datasets of a task, and what every dataset must be able to do.

No torch here: what is wrong with the data is said at once.
"""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from omegaconf import DictConfig

from tasks import miniatures
from tasks.errors import InputError
from tasks.protocol import stand_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pycocotools.coco import COCO

IGNORED = 255
"""Label of a pixel that takes no part in loss and scores."""

Sample = dict[str, Any]
"""One sample as numpy arrays. What it holds follows from the task's kind:

    every kind      image uint8 [H, W, bands]; name, a str that tells a person which sample it is
    segmentation    label uint8 [H, W] of class ids from 0 and `IGNORED`; group, an int, the place
                    in the dataset's `groups` (left out where there is one group); index, an int,
                    where windows of tiles are predicted
    classification  label, an int, the class id from 0
    detection       boxes float32 [K, 4] as x1, y1, x2, y2 in pixels; labels int64 [K], the class id
                    plus 1; masks uint8 [K, H, W], 0 or 1; image_id, an int
"""


class Dataset(Protocol):
    """What a task is trained and evaluated on; a reader inherits what it does not say itself."""

    identity: str  #: the same for the same data wherever it lies, different for different data
    class_names: Sequence[str]  #: in the order of the class ids
    groups: Sequence[str] = ("all",)  #: names of the groups (cities) that are scored apart
    labelled: bool = True  #: whether there is anything to score against: some labels are not public

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample of that index, always the same one.

        Raises:
            InputError: a file cannot be read or is not as it should be.
        """
        ...

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """What a network is shown for an index: another sample every time where patches are drawn.

        Args:
            index: of the sample.
            rng: everything random follows from it.
        """
        return self[index]

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Height and width of a sample, if they differ and are known before it is read."""
        return None

    def parts(self) -> list[list[int]]:
        """Indices that one process predicts one after the other: the windows of a tile."""
        return [[index] for index in range(len(self))]

    def plot(self, sample: Sample, prediction: Any = None) -> "Figure":
        """A matplotlib figure of a sample, its ground truth and, if given, a prediction.

        Args:
            sample: of this dataset.
            prediction: class ids [H, W]; a class id; or objects like a sample's, with ``scores``.
        """
        ...


@runtime_checkable
class TiledDataset(Dataset, Protocol):
    """A dataset whose samples are parts of large files, the tiles."""

    tile_sizes: Sequence[tuple[int, int]]  #: height and width of every tile in pixels

    def crs(self) -> list[str]:
        """Names of the tiles' coordinate reference systems, such as EPSG:26914, sorted."""
        ...

    def covered(self, size: tuple[int, int]) -> Dataset:
        """The same tiles as windows of at most that height and width; every pixel counts once."""
        ...


@runtime_checkable
class DetectionDataset(Dataset, Protocol):
    """A dataset of the kind ``detection``, which COCO's own code evaluates."""

    ground_truth: "COCO"  #: all images and annotations in pycocotools' form
    category_ids: Sequence[int]  #: its category ids, in the order of the class ids


class Datasets(NamedTuple):
    """The datasets of a run."""

    train: Dataset
    eval: Dataset  #: evaluated while training
    test: Dataset | None  #: evaluated once, after training; its scores are then the result

    @property
    def identity(self) -> str:
        return " ".join(dataset.identity for dataset in self if dataset is not None)


def dataset_module(cfg: DictConfig) -> ModuleType:
    """The module of the task's dataset."""
    return importlib.import_module(f"tasks.data.{cfg.task.name}")


def open_splits(cfg: DictConfig, splits: Sequence[str]) -> list[Dataset]:
    """Splits of the task's dataset, or of its miniature, which is generated if need be.

    Raises:
        InputError: the dataset is not there or not as it should be.
    """
    root, release = Path(cfg.data.root).expanduser(), cfg.task.name
    if stand_in(cfg.data):
        root = miniatures.ensure_for_task(cfg.task.name, root)
        release = root.name
    return dataset_module(cfg).open_splits(cfg, splits, root, release)


def open_datasets(cfg: DictConfig) -> Datasets:
    """The datasets to train on and to evaluate on; with ``mode=test`` only what is evaluated.

    Raises:
        InputError: the dataset is not there or not as it should be.
    """
    if cfg.mode == "test" and cfg.data.eval_split != "train":
        (evaluation,) = open_splits(cfg, [cfg.data.eval_split])
        return _usable(cfg, Datasets(evaluation, evaluation, None))
    splits = ["train", cfg.data.eval_split]
    if cfg.task.test_split is not None and cfg.mode == "train":
        splits.append(cfg.task.test_split)
    train, evaluation, *test = open_splits(cfg, splits)
    return _usable(cfg, Datasets(train, evaluation, test[0] if test else None))


def _usable(cfg: DictConfig, datasets: Datasets) -> Datasets:
    """The datasets, if something comes of evaluating them: scores, or masks to submit."""
    if datasets.test is not None and not datasets.test.labelled:
        raise InputError(
            f"task.test_split={cfg.task.test_split} has no labels to be scored against; set "
            "task.test_split=null"
        )
    if not datasets.eval.labelled and not isinstance(datasets.eval, TiledDataset):
        raise InputError(
            f"data.eval_split={cfg.data.eval_split} of {cfg.task.name} has no labels to be scored "
            "against; choose another split"
        )
    return datasets


def with_classes(cfg: DictConfig, class_names: Sequence[str]) -> DictConfig:
    """The configuration with the dataset's classes where the task leaves them to it.

    Such a task has ``num_classes: null``; ``cfg`` itself stays as it is.
    """
    if cfg.task.num_classes is not None:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.task.class_names = list(class_names)
    cfg.task.num_classes = cfg.task.outputs = len(cfg.task.class_names)
    return cfg

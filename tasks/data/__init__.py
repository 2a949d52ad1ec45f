"""From a configuration to the datasets of a task.

No torch here: what is wrong with the data is said at once.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
from omegaconf import DictConfig

from tasks import miniatures


class Dataset(Protocol):
    """What a task trains on: indexable, and able to say what it is.

    A dataset without fixed samples has ``draw(rng: numpy.random.Generator)``, which gives another
    sample at every call; ``len`` is then the number of draws in an epoch.
    """

    identity: str  #: the same for the same data wherever it lies, different for different data

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str | int]: ...


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
    if cfg.data.name == "mini":
        root = miniatures.ensure_for_task(cfg.task.name, root)
        release = root.name
    return dataset_module(cfg).open_splits(cfg, splits, root, release)


def open_datasets(cfg: DictConfig) -> Datasets:
    """The datasets to train on and to evaluate on.

    Where the task leaves its classes to the dataset (``num_classes: null``), they are filled in.

    Raises:
        InputError: the dataset is not there or not as it should be.
    """
    splits = ["train", cfg.data.eval_split]
    if cfg.task.test_split is not None and cfg.mode == "train":
        splits.append(cfg.task.test_split)
    opened = open_splits(cfg, splits)
    if cfg.task.num_classes is None:
        cfg.task.class_names = list(opened[0].class_names)
        cfg.task.num_classes = cfg.task.outputs = len(cfg.task.class_names)
    return Datasets(*opened, *[None] * (3 - len(opened)))


def is_labelled(dataset: Dataset) -> bool:
    """Whether there is anything to score against; the labels of some test splits are not public."""
    return getattr(dataset, "labelled", True)

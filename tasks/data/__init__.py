"""From a configuration to the datasets of a task.

No torch here: what is wrong with the data is said at once.
"""

import importlib
from typing import Protocol

import numpy as np
from omegaconf import DictConfig


class Dataset(Protocol):
    """What a task trains on: indexable, and able to say what it is."""

    identity: str  #: the same for the same data wherever it lies, different for different data

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]: ...


def open_datasets(cfg: DictConfig) -> tuple[Dataset, Dataset]:
    """The datasets to train on and to evaluate on.

    Raises:
        InputError: the dataset is not there or not as it should be.
    """
    module = importlib.import_module(f"tasks.data.{cfg.task.name}")
    train_set, eval_set = module.open_splits(
        cfg.data.name, cfg.data.root, ["train", cfg.data.eval_split]
    )
    return train_set, eval_set

"""Datasets to batches: augmentation, order and the Lightning datamodule, for every task.

Order and augmentation follow from the seed, the epoch and the sample alone, not from the process or
worker that loads it: a continued run, or one on more devices with the same total batch, sees the
same images.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from tasks.data import Dataset, Datasets, Sample
from tasks.data.transforms import Transform, make_transform
from tasks.errors import InputError
from tasks.identity import stable_seed


class Augmented(TorchDataset):
    """A dataset after its transform, indexed by (epoch, index): its random draws follow from it."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """A sample as a network is given it: tensors, ``image`` float32 [bands, H, W]."""
        (sample,) = self.each(self.__getitems__([key]))
        if isinstance(sample.get("label"), np.ndarray):
            sample["label"] = torch.from_numpy(sample["label"].astype(np.int64))
        return sample

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        """What a loader makes a batch of, by `stack` or `each`.

        All are read before the first is augmented: the code that reads and the code that augments
        drive one another out of the processor's caches.
        """
        seeds = [stable_seed(self.seed, *key) for key in keys]
        samples = [
            self.dataset.draw(index, np.random.default_rng(seed))
            for (_, index), seed in zip(keys, seeds, strict=True)
        ]
        return [
            self.transform.augment(sample, torch.Generator().manual_seed(seed))
            for sample, seed in zip(samples, seeds, strict=True)
        ]

    def each(self, samples: list[Sample]) -> list[Sample]:
        """The samples with their images normalized."""
        return [{**sample, "image": self.transform.finish(sample["image"])} for sample in samples]

    def stack(self, samples: list[Sample]) -> Sample:
        """A batch of samples of one size; labels of pixels are int64 [N, H, W].

        Raises:
            InputError: their sizes differ.
        """
        images = [sample["image"] for sample in samples]
        sizes = {image.shape[:2] for image in images}
        if len(sizes) > 1:
            (height, width), (other_height, other_width), *_ = sorted(sizes)
            raise InputError(
                f"the images of a batch differ in size ({height} x {width}, {other_height} x "
                f"{other_width}, first {samples[0]['name']}): set data.eval_batch_size=1"
            )
        height, width, bands = images[0].shape
        batch = {"image": empty(len(images), bands, height, width)}
        for image, out in zip(images, batch["image"], strict=True):
            self.transform.normalize(image, out)
        rest = [{k: v for k, v in sample.items() if k != "image"} for sample in samples]
        if isinstance(rest[0].get("label"), np.ndarray):
            batch["label"] = empty(len(images), height, width, dtype=torch.int64)
            for sample, label in zip(rest, batch["label"].numpy(), strict=True):
                label[...] = sample.pop("label")
        return batch | default_collate(rest)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without values; of a loading process, in memory that it shares with the training."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


class TrainBatches:
    """Batches of (epoch, index) for one process: the epoch's permutation, cut into total batches.

    Each process takes its own part of every total batch, in as many batches as are accumulated; the
    rest of an epoch that does not fill a total batch is left out, as in the cited code.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulated: int = 1,
    ):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.accumulated = rank, world_size, accumulated
        self.epoch = 0
        self._continued = (0, 0)

    def continue_at(self, epoch: int, batch: int) -> None:
        """Begins with a batch of an epoch; the epochs after it are whole."""
        self.epoch, self._continued = epoch, (epoch, batch)

    @property
    def sampler(self) -> "TrainBatches":
        return self  # where Lightning looks for something to tell the epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.total * self.accumulated

    @property
    def total(self) -> int:
        """Samples of a total batch."""
        return self.batch_size * self.world_size * self.accumulated

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        epoch, first = self._continued
        for batch in range(first if epoch == self.epoch else 0, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class EvalBatches:
    """Batches for one process; over all processes every sample occurs once, without padding.

    Args:
        parts: indices that stay together, such as the windows of a tile; processes take parts in
            turn.
        batch_size: samples per batch, at most: a batch holds neighbours of one size.
        rank, world_size: of this process.
        size_of: an index's size, see `tasks.data.Dataset.size_of`.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        size_of: Callable[[int], tuple[int, int] | None] = lambda index: None,
    ):
        indices = [index for part in parts[rank::world_size] for index in part]
        self.batches: list[list[int]] = []
        for _, group in itertools.groupby(indices, size_of):
            alike = list(group)
            starts = range(0, len(alike), batch_size)
            self.batches += [alike[start : start + batch_size] for start in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]


def loading_processes(cfg: DictConfig) -> int:
    """How many processes read ahead for a device; with 0 the training waits for each batch."""
    return min(cfg.data.workers, (os.cpu_count() or 1) - 1)


class DataModule(pl.LightningDataModule):
    """Loads the splits of a task.

    Args:
        cfg: the configuration; ``cfg.data`` gives batch sizes and loading processes.
        datasets: the splits.
    """

    def __init__(self, cfg: DictConfig, datasets: Datasets):
        super().__init__()
        self.cfg, self.datasets = cfg, datasets

    def _loader(
        self, dataset: Dataset, batches: TrainBatches | EvalBatches, training: bool
    ) -> DataLoader:
        workers = loading_processes(self.cfg)
        data = Augmented(dataset, make_transform(self.cfg, training), self.cfg.seed)
        return DataLoader(
            data,
            batch_sampler=batches,
            num_workers=workers,
            # Images of a detector differ in size: it takes a list of samples.
            collate_fn=data.each if self.cfg.task.kind == "detection" else data.stack,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_batches(self) -> TrainBatches:
        """The training batches of this process.

        Raises:
            InputError: there are fewer samples than in one batch.
        """
        size = len(self.datasets.train)
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        batches = TrainBatches(
            size,
            self.cfg.data.batch_size,
            self.cfg.seed,
            **self._ranks(),
            accumulated=accumulated,
        )
        if len(batches) == 0:
            raise InputError(
                f"the training split has {size} samples, less than a total batch of "
                f"{batches.total}: lower data.batch_size"
            )
        return batches

    def train_dataloader(self) -> DataLoader:
        batches = self.train_batches()
        if self.trainer is not None:
            # Said here, since a loading process reads ahead before Lightning tells the epoch.
            loop = cast(Any, self.trainer.fit_loop)  # whose counters are more than typed
            done = loop.epoch_loop.batch_progress.current.processed
            batches.continue_at(loop.epoch_progress.current.processed, done % len(batches))
        return self._loader(self.datasets.train, batches, training=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.datasets.eval)

    def test_dataloader(self) -> DataLoader:
        assert self.datasets.test is not None
        return self._eval_loader(self.datasets.test)

    def predict_dataloader(self) -> DataLoader:
        """The evaluation split, part by part: tile by tile where there are tiles."""
        return self._eval_loader(self.datasets.eval, self.datasets.eval.parts())

    def _eval_loader(
        self, dataset: Dataset, parts: Sequence[Sequence[int]] | None = None
    ) -> DataLoader:
        parts = parts or [[index] for index in range(len(dataset))]
        size = self.cfg.data.eval_batch_size
        batches = EvalBatches(parts, size, **self._ranks(), size_of=dataset.size_of)
        return self._loader(dataset, batches, training=False)

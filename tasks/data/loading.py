"""Datasets to batches: augmentation, order and the Lightning datamodule, for every task.

Order and augmentation follow from the seed, the epoch and the sample alone, not from the process or
worker that loads it: a continued run, or one on more devices with the same total batch, sees the
same images.
"""

import hashlib
import os
from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.data import Dataset
from tasks.errors import InputError

IGNORED = 255
Sample = dict[str, torch.Tensor | str]


class RandomScaleCrop(v2.Transform):
    """Scales by a random factor, pads at the right and bottom to the crop, then crops at random.

    As the cited HRNet code does: bilinear without antialiasing for the image, nearest for the
    label, padding with 0 before normalisation for the image and with 255 for the label. The factor
    is uniform (there: steps of 0.1).

    Args:
        crop: height and width in pixels.
        scale_range: smallest and largest factor, relative to the sample's own size.
    """

    def __init__(self, crop: tuple[int, int], scale_range: tuple[float, float]):
        super().__init__()
        self.crop, self.scale_range = tuple(crop), tuple(scale_range)

    def make_params(self, flat_inputs: list) -> dict:
        height, width = v2.functional.get_size(flat_inputs[0])
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        padding = [max(0, need - have) for need, have in zip(self.crop, size, strict=True)]
        room = [have + pad - need for need, have, pad in zip(self.crop, size, padding, strict=True)]
        top, left = (int(torch.randint(free + 1, ())) for free in room)
        return {"size": size, "padding": padding, "top": top, "left": left}

    def transform(self, inpt, params: dict):
        is_label = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST if is_label else v2.InterpolationMode.BILINEAR
        inpt = F.resize(inpt, params["size"], interpolation=mode, antialias=False)
        bottom, right = params["padding"]
        inpt = F.pad(inpt, [0, 0, right, bottom], fill=IGNORED if is_label else 0)
        return F.crop(inpt, params["top"], params["left"], *self.crop)


def segmentation_transform(cfg: DictConfig, training: bool) -> v2.Transform:
    """uint8 image and label to a normalised float32 image and an int64 label."""
    augment = [
        RandomScaleCrop(cfg.data.crop, cfg.task.scale_range),
        v2.RandomHorizontalFlip(cfg.task.flip),
    ]
    normalise = [
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
        v2.Normalize(list(cfg.task.mean), list(cfg.task.std)),
    ]
    return v2.Compose([*(augment if training else []), *normalise])


class Augmented:
    """A dataset after its transform, indexed by (epoch, index): its random draws follow from it."""

    def __init__(self, dataset: Dataset, transform: Callable, seed: int):
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        sample = self.dataset[index]
        image = tv_tensors.Image(torch.from_numpy(sample["image"].copy()).permute(2, 0, 1))
        label = tv_tensors.Mask(torch.from_numpy(sample["label"].copy()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, epoch, index))
            image, label = self.transform(image, label)
        return {
            "image": image.as_subclass(torch.Tensor),
            "label": label.as_subclass(torch.Tensor),
            "name": sample["name"],
        }


def stable_seed(*parts: int | str) -> int:
    """63 bits that follow from the parts, the same in every process and on every platform."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class TrainBatches:
    """Batches of (epoch, index) for one process: the epoch's permutation, cut into total batches.

    Each process takes its own part of every total batch; the rest of an epoch that does not fill a
    total batch is left out, as in the cited code.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    @property
    def sampler(self) -> "TrainBatches":
        return self  # where Lightning looks for something to tell the epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(stable_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        for batch in range(len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class EvalBatches:
    """Batches for one process; over all processes every sample occurs once, without padding."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, size, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


class DataModule(pl.LightningDataModule):
    """Loads the training and the evaluation split of a task.

    Args:
        cfg: the configuration; ``cfg.data`` gives batch sizes and loading processes.
        train_set, eval_set: the datasets.
        transform: makes a sample's transform from ``cfg`` and whether it is for training.
    """

    def __init__(
        self,
        cfg: DictConfig,
        train_set: Dataset,
        eval_set: Dataset,
        transform: Callable[[DictConfig, bool], Callable] = segmentation_transform,
    ):
        super().__init__()
        self.cfg = cfg
        self.train_set = Augmented(train_set, transform(cfg, True), cfg.seed)
        self.eval_set = Augmented(eval_set, transform(cfg, False), cfg.seed)

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _loader(self, dataset: Augmented, batches: TrainBatches | EvalBatches) -> DataLoader:
        workers = min(self.cfg.data.workers, (os.cpu_count() or 1) - 1)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        batches = TrainBatches(
            len(self.train_set), self.cfg.data.batch_size, self.cfg.seed, **self._ranks()
        )
        if len(batches) == 0:
            raise InputError(
                f"the training split has {len(self.train_set)} images, less than a total batch of "
                f"{batches.batch_size * batches.world_size}: lower data.batch_size"
            )
        return self._loader(self.train_set, batches)

    def val_dataloader(self) -> DataLoader:
        batches = EvalBatches(len(self.eval_set), self.cfg.data.eval_batch_size, **self._ranks())
        return self._loader(self.eval_set, batches)

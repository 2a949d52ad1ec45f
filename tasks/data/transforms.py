"""Augmentation and normalization of each kind of task.

The random draws and the results are those of torchvision's v2 transforms of the same names.
Only the pixels that are used are worked on, and they stay bytes as long as the augmentation allows.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tasks.data import IGNORED, Sample, pixels


def make_transform(cfg: DictConfig, training: bool) -> "Transform":
    """What is done to a sample: augmentation if it is for training, then normalization."""
    kinds: dict[str, type[Transform]] = {
        "segmentation": SegmentationTransform,
        "classification": ClassificationTransform,
        "detection": DetectionTransform,
    }
    return kinds[cfg.task.kind](cfg, training)


class Transform(ABC):
    """From a dataset's sample to what a network is given.

    Args:
        cfg: the configuration.
        training: whether the sample is augmented.
    """

    def __init__(self, cfg: DictConfig, training: bool):
        self.training, self.flip = training, cfg.task.flip if training else 0.0
        bands = len(cfg.task.bands)
        self.unit = (torch.arange(256).float() * (1.0 / 255)).expand(bands, 256).numpy()
        self.table, self.mean, self.std = self.unit, None, None
        if cfg.task.mean is not None:
            self.mean, self.std = (
                np.array(list(values), np.float32) for values in (cfg.task.mean, cfg.task.std)
            )
            self.table = (self.unit - self.mean[:, None]) / self.std[:, None]
        self.table, self.unit = map(np.ascontiguousarray, (self.table, self.unit))

    @abstractmethod
    def augment(self, sample: Sample, generator: Generator) -> Sample:
        """A sample whose ``image`` is still to be normalized, [H, W, bands]: uint8, or float32.

        Args:
            sample: of a dataset; nothing in it is changed.
            generator: everything random follows from it.
        """

    def normalize(self, image: np.ndarray, out: Tensor) -> None:
        """Writes an augmented image to ``out``, float32 [bands, H, W]."""
        target = out.numpy()
        if image.dtype == np.uint8:
            pixels.look_up(image, self.table, target)
            return
        planes = image.transpose(2, 0, 1)
        if self.mean is None:
            target[...] = planes
        else:
            bands = len(planes)
            pixels.normalize(
                planes.reshape(bands, -1), self.mean, self.std, target.reshape(bands, -1)
            )

    def finish(self, image: np.ndarray) -> Tensor:
        """An augmented image, normalized: float32 [bands, H, W]."""
        height, width, bands = image.shape
        out = torch.empty(bands, height, width)
        self.normalize(image, out)
        return out

    def flips(self, generator: Generator) -> bool:
        """Whether this sample is to be flipped."""
        return bool(self.flip) and torch.rand(1, generator=generator).item() < self.flip


class SegmentationTransform(Transform):
    """Random scaling, cropping and flipping of an image and its ``label``."""

    def __init__(self, cfg: DictConfig, training: bool):
        super().__init__(cfg, training)
        self.scale_crop = None
        if training and cfg.task.scale_range is not None:
            self.scale_crop = RandomScaleCrop(cfg.data.crop, cfg.task.scale_range)

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        image, label = sample["image"], sample["label"]
        if self.scale_crop:
            image, label = self.scale_crop(image, label, generator)
        if self.flips(generator):
            image, label = image[:, ::-1], label[:, ::-1]
        return {**sample, "image": image, "label": label}


class RandomScaleCrop:
    """Scales by a random factor, pads at the right and bottom to the crop, then crops at random.

    As the cited HRNet code does: bilinear without antialiasing for the image, nearest for the
    label, padding with 0 before normalization for the image and with 255 for the label. The factor
    is uniform (there: steps of 0.1).

    Args:
        crop: height and width in pixels.
        scale_range: smallest and largest factor, relative to the sample's own size.
    """

    def __init__(self, crop: tuple[int, int], scale_range: tuple[float, float]):
        self.crop, self.scale_range = tuple(crop), tuple(scale_range)

    def choose(
        self, height: int, width: int, generator: Generator
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the scaled image, top and left of the crop in it."""
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand((), generator=generator).item()
        size = max(1, round(height * scale)), max(1, round(width * scale))
        room = [max(0, have - need) for have, need in zip(size, self.crop, strict=True)]
        top, left = (int(torch.randint(free + 1, (), generator=generator)) for free in room)
        return size, (top, left)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, generator: Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, bands] and label uint8 [H, W] at the crop's size."""
        height, width, bands = image.shape
        size, (top, left) = self.choose(height, width, generator)
        rows, columns = (min(*sides) for sides in zip(size, self.crop, strict=True))
        padded = (rows, columns) != self.crop
        image_crop = (np.zeros if padded else np.empty)((*self.crop, bands), np.uint8)
        if size == (height, width):
            image_crop[:rows, :columns] = image[top : top + rows, left : left + columns]
        else:
            pixels.scale_bytes(np.ascontiguousarray(image), size, top, left, image_crop)
        label_crop = np.full(self.crop, IGNORED, np.uint8)
        down = nearest(height, size[0], top, rows)
        across = nearest(width, size[1], left, columns)
        np.take(label[down], across, axis=1, out=label_crop[:rows, :columns], mode="clip")
        return image_crop, label_crop


def nearest(size: int, new_size: int, first: int, count: int) -> np.ndarray:
    """The cells of an axis that cells of the axis scaled to another size lie in."""
    places = np.arange(first, first + count, dtype=np.float32) * np.float32(size / new_size)
    return np.minimum(places.astype(np.int64), size - 1)


class ClassificationTransform(Transform):
    """A random part of an image, scaled to one size, flipped and with other colours."""

    def __init__(self, cfg: DictConfig, training: bool):
        super().__init__(cfg, training)
        self.crop, self.resize = list(cfg.data.crop), cfg.data.resize
        self.mode = InterpolationMode(cfg.task.get("interpolation", "bilinear"))
        if training:
            self.area_range = (cfg.task.area_range[0], cfg.task.area_range[1])
            self.log_ratio = torch.log(torch.tensor(tuple(cfg.task.ratio_range)))
            self.ratio_range = tuple(cfg.task.ratio_range)
            self.jitter = cfg.task.get("color_jitter", 0.0)
            self.lighting = cfg.task.get("lighting", 0.0)

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        image = sample["image"]
        if not self.training:
            resized = F.resize_image(channels_first(image), [self.resize], self.mode)
            cropped = F.center_crop_image(resized, self.crop)
            return {**sample, "image": cropped.permute(1, 2, 0).numpy()}
        top, left, height, width = self.choose(image.shape[0], image.shape[1], generator)
        region = channels_first(image[top : top + height, left : left + width])
        part = F.resize_image(region, self.crop, self.mode).permute(1, 2, 0).numpy()
        if self.flips(generator):
            part = part[:, ::-1]
        if self.jitter or self.lighting:
            part = self.recolor(part, generator)
        return {**sample, "image": part}

    def choose(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random part (torchvision's RandomResizedCrop)."""
        for _ in range(10):
            area = height * width * uniform(self.area_range, generator)
            logarithm = torch.empty(1).uniform_(*self.log_ratio, generator=generator)
            ratio = torch.exp(logarithm).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
                left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
                return int(top), int(left), h, w
        low, high = self.ratio_range  # of an image far from it: the largest part in the middle
        h, w = height, width
        if width / height < low:
            h = round(width / low)
        elif width / height > high:
            w = round(height * high)
        return (height - h) // 2, (width - w) // 2, h, w

    def recolor(self, image: np.ndarray, generator: Generator) -> np.ndarray:
        """Jitters colours (torchvision's ColorJitter) and lights them: float32, in 0..1 but for
        the lighting, which is not clipped."""
        height, width, bands = image.shape
        colored = np.empty((bands, height, width), np.float32)
        pixels.look_up(image, self.unit, colored)
        flat = colored.reshape(bands, -1)
        if self.jitter:
            jitter(flat, self.jitter, generator)
        if self.lighting:
            flat += lighting(self.lighting, generator).numpy()[:, None]
        return colored.transpose(1, 2, 0)


def jitter(image: np.ndarray, strength: float, generator: Generator) -> None:
    """Brightness, contrast and saturation times 1 - strength to 1 + strength, in random order.

    Args:
        image: float32 [3, pixels], R, G, B in 0..1, changed in place.
        strength: from 0 to 1.
        generator: the order and the factors follow from it.
    """
    order = torch.randperm(4, generator=generator).tolist()  # 3 is the hue, which stays
    factors = [uniform((1 - strength, 1 + strength), generator) for _ in range(3)]
    brightness = np.empty(image.shape[1], np.float32)
    for kind in order:
        if kind == 3:
            continue
        factor, share = np.float32(factors[kind]), np.float32(1.0 - factors[kind])
        if kind == 0:
            pixels.brighten(image, factor)
            continue
        pixels.grey(image, brightness)
        if kind == 1:
            brightness.fill(torch.from_numpy(brightness).mean().item())
        pixels.blend(image, factor, brightness, share)


EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (  # R, G, B; a column for each eigenvalue
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
_COMPONENTS = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)


def lighting(deviation: float, generator: Generator) -> Tensor:
    """A shift of R, G, B along the principal components of ImageNet's colours.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS
    2012, with the components of fb.resnet.torch, for R, G, B in 0..1. The result is not clipped, as
    there.

    Args:
        deviation: standard deviation of the three normal draws, in multiples of an eigenvalue.
        generator: the draws follow from it.
    """
    return _COMPONENTS @ (deviation * torch.randn(3, generator=generator))


def uniform(between: tuple[float, float], generator: Generator) -> float:
    return torch.empty(1).uniform_(*between, generator=generator).item()


class DetectionTransform(Transform):
    """Random flipping of an image and its objects."""

    def augment(self, sample: Sample, generator: Generator) -> Sample:
        image, boxes, masks = sample["image"], sample["boxes"].copy(), sample["masks"]
        if self.flips(generator):
            boxes[:, [0, 2]] = -(boxes[:, [2, 0]] - np.float32(image.shape[1]))
            image, masks = image[:, ::-1], masks[..., ::-1]
        tensors = {
            "boxes": torch.from_numpy(boxes),
            "masks": torch.from_numpy(np.ascontiguousarray(masks)),
            "labels": torch.from_numpy(sample["labels"]),
        }
        return {**sample, **tensors, "image": image}


def channels_first(image: np.ndarray) -> Tensor:
    """A copy of [H, W, bands] as [bands, H, W], lying in memory as before."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)

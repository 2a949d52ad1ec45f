"""Augmentation and normalization of each kind of task, as torchvision v2 transforms of samples."""

import torch
from omegaconf import DictConfig
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.data import IGNORED


def make_transform(cfg: DictConfig, training: bool) -> v2.Transform:
    """What is done to a sample: augmentation if it is for training, then normalization.

    In: a dict whose ``image`` is a uint8 `tv_tensors.Image` and whose other tensors are of
    `tv_tensors` where they move with the image. Out: the image is float32, a label map int64.
    """
    steps = {
        "segmentation": _segmentation,
        "classification": _classification,
        "detection": _detection,
    }[cfg.task.kind](cfg, training)
    label = torch.int64 if cfg.task.kind == "segmentation" else None
    types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: label, "others": None}
    colors = _colors(cfg) if training else []
    return v2.Compose([*steps, v2.ToDtype(types, scale=True), *colors, *_normalization(cfg)])


def _colors(cfg: DictConfig) -> list[v2.Transform]:
    """What is done to colours in 0..1, of tasks that have such keys."""
    steps: list[v2.Transform] = []
    if strength := cfg.task.get("color_jitter", 0.0):
        steps.append(v2.ColorJitter(strength, strength, strength))
    if deviation := cfg.task.get("lighting", 0.0):
        steps.append(Lighting(deviation))
    return steps


def _normalization(cfg: DictConfig) -> list[v2.Transform]:
    if cfg.task.mean is None:
        return []
    return [v2.Normalize(list(cfg.task.mean), list(cfg.task.std))]


def _segmentation(cfg: DictConfig, training: bool) -> list[v2.Transform]:
    if not training:
        return []
    if cfg.task.scale_range is None:
        return _flip(cfg)
    return [RandomScaleCrop(cfg.data.crop, cfg.task.scale_range), *_flip(cfg)]


def _classification(cfg: DictConfig, training: bool) -> list[v2.Transform]:
    mode = v2.InterpolationMode(cfg.task.get("interpolation", "bilinear"))
    if not training:
        return [v2.Resize(cfg.data.resize, mode), v2.CenterCrop(list(cfg.data.crop))]
    crop = v2.RandomResizedCrop(
        list(cfg.data.crop), tuple(cfg.task.area_range), tuple(cfg.task.ratio_range), mode
    )
    return [crop, *_flip(cfg)]


def _detection(cfg: DictConfig, training: bool) -> list[v2.Transform]:
    return _flip(cfg) if training else []


def _flip(cfg: DictConfig) -> list[v2.Transform]:
    return [v2.RandomHorizontalFlip(cfg.task.flip)] if cfg.task.flip else []


class Lighting(v2.Transform):
    """Shifts all pixels of an image along the principal components of ImageNet's colours.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS
    2012, with the components of fb.resnet.torch, for R, G, B in 0..1. The result is not clipped, as
    there.

    Args:
        deviation: standard deviation of the three normal draws, in multiples of an eigenvalue.
    """

    VALUES = (0.2175, 0.0188, 0.0045)
    VECTORS = (  # R, G, B; a column for each eigenvalue
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation
        self._scaled = torch.tensor(self.VECTORS) * torch.tensor(self.VALUES)

    def make_params(self, flat_inputs: list) -> dict:
        return {"shift": self._scaled @ (self.deviation * torch.randn(3))}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(inpt + params["shift"][:, None, None], like=inpt)


class RandomScaleCrop(v2.Transform):
    """Scales by a random factor, pads at the right and bottom to the crop, then crops at random.

    As the cited HRNet code does: bilinear without antialiasing for the image, nearest for the
    label, padding with 0 before normalization for the image and with 255 for the label. The factor
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

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        is_label = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST if is_label else v2.InterpolationMode.BILINEAR
        inpt = F.resize(inpt, params["size"], interpolation=mode, antialias=False)
        bottom, right = params["padding"]
        inpt = F.pad(inpt, [0, 0, right, bottom], fill=IGNORED if is_label else 0)
        return F.crop(inpt, params["top"], params["left"], *self.crop)

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
    return v2.Compose([*steps, v2.ToDtype(types, scale=True), *_normalization(cfg)])


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
    if not training:
        return [v2.Resize(cfg.data.resize), v2.CenterCrop(list(cfg.data.crop))]
    crop = v2.RandomResizedCrop(
        list(cfg.data.crop), tuple(cfg.task.area_range), tuple(cfg.task.ratio_range)
    )
    return [crop, *_flip(cfg)]


def _detection(cfg: DictConfig, training: bool) -> list[v2.Transform]:
    return _flip(cfg) if training else []


def _flip(cfg: DictConfig) -> list[v2.Transform]:
    return [v2.RandomHorizontalFlip(cfg.task.flip)] if cfg.task.flip else []


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

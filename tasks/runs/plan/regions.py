"""Mask R-CNN's training step at stated numbers of regions, for tensors that have no values.

How many regions a step works on follows from what the network finds in an image. Here the numbers
are given; layers, pooling and losses are the network's own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNN
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou, roi_align


def positive_regions(model: MaskRCNN) -> int:
    """The most regions of an image that the mask head sees: a quarter of those sampled."""
    sampler = model.roi_heads.fg_bg_sampler
    return int(sampler.batch_size_per_image * sampler.positive_fraction)


def training_loss(model: MaskRCNN, images: Tensor, masks: Tensor, positives: int) -> Tensor:
    """The sum of the five losses.

    Args:
        model: the detector.
        images: [N, 3, H, W], resized and padded to whole cells.
        masks: uint8 [N, K, H, W], of K objects in each image.
        positives: regions of an image that are taken for objects.
    """
    features = model.backbone(images)
    return _proposal_loss(model, features, masks) + _region_loss(model, features, masks, positives)


def _proposal_loss(model: MaskRCNN, features: dict[str, Tensor], masks: Tensor) -> Tensor:
    """Objectness and boxes of the sampled anchors; all anchors are compared with all objects."""
    rpn = model.rpn
    objectness, deltas = rpn.head(list(features.values()))
    count = sum(scores[0].numel() for scores in objectness)
    objectness, deltas = concat_box_prediction_layers(objectness, deltas)
    n, k = masks.shape[:2]
    anchors = [objectness.new_empty(count, 4) for _ in range(n)]
    rpn.box_coder.decode(deltas.detach(), anchors)
    objects = [box_iou(anchors[0].new_empty(k, 4), boxes).argmax(0) for boxes in anchors]
    sampler = rpn.fg_bg_sampler
    sampled = min(sampler.batch_size_per_image, count) * n
    chosen = objects[0].new_empty(sampled)
    inside = objects[0].new_empty(int(sampled * sampler.positive_fraction))
    targets = rpn.box_coder.encode([boxes.new_empty(count, 4) for boxes in anchors], anchors)
    boxes = F.smooth_l1_loss(
        deltas[inside], torch.cat(targets)[inside], beta=1 / 9, reduction="sum"
    )
    scores = objectness.flatten()[chosen]
    return boxes + F.binary_cross_entropy_with_logits(scores, torch.empty_like(scores))


def _region_loss(
    model: MaskRCNN, features: dict[str, Tensor], masks: Tensor, positives: int
) -> Tensor:
    """Class, box and mask of the sampled regions."""
    heads, n = model.roi_heads, len(masks)
    count = heads.fg_bg_sampler.batch_size_per_image * n
    pooled = _pooled(heads.box_roi_pool, features, count)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    labels = torch.empty(count, dtype=torch.int64, device=logits.device)
    inside = labels.new_empty(positives * n)
    found = deltas.reshape(count, -1, 4)[inside, labels[inside]]
    boxes = F.smooth_l1_loss(found, torch.empty_like(found), beta=1 / 9, reduction="sum") / count
    del pooled
    shown = _pooled(heads.mask_roi_pool, features, positives * n)
    maps = heads.mask_predictor(heads.mask_head(shown))
    regions = maps.new_empty(positives, 5)
    size = maps.shape[-1]
    targets = [
        roi_align(objects[:, None].to(regions), regions, (size, size), 1.0)[:, 0]
        for objects in masks
    ]
    chosen = maps[torch.arange(len(maps), device=maps.device), labels[inside]]
    outlines = F.binary_cross_entropy_with_logits(chosen, torch.cat(targets))
    return F.cross_entropy(logits, labels) + boxes + outlines


def _pooled(pool: Any, features: dict[str, Tensor], count: int) -> Tensor:
    """Regions cut from the pyramid as ``pool`` does, as many from each level.

    Args:
        pool: torchvision's `MultiScaleRoIAlign`.
        features: maps of the pyramid by name.
        count: regions of all images.

    Returns:
        [count, C, h, w].
    """
    maps = [features[name] for name in pool.featmap_names]
    height, width = pool.output_size
    result = maps[0].new_zeros(count, maps[0].shape[1], height, width)
    shares = [count * (level + 1) // len(maps) - count * level // len(maps)
              for level in range(len(maps))]  # fmt: skip
    for level, (values, share) in enumerate(zip(maps, shares, strict=True)):
        regions = values.new_empty(share, 5)
        scale = 1 / 2 ** (level + 2)
        cut = roi_align(values, regions, (height, width), scale, pool.sampling_ratio)
        index = torch.empty(share, dtype=torch.int64, device=values.device)
        result[index] = cut.to(result.dtype)
    return result

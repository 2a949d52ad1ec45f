"""Mask R-CNN with a ResNet-50-FPN backbone (paper section 4.2) and the norm layers asked for.

The network is torchvision's. What it leaves open follows the Detectron baselines that the paper
fine-tunes, ``e2e_mask_rcnn_R-50-FPN`` and its GN form (``04_2018_gn_baselines``,
https://github.com/facebookresearch/Detectron): which layers have a norm, the box head, the initial
weights, what is frozen. Proposals (2000 per level and image before and after suppression in
training, 1000 at test), sampled regions (512, a quarter of them positive), thresholds and anchors
are the same in both, so torchvision's defaults stand.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d

from lcn import convert_norm

NAME = "mask_rcnn_r50_fpn"
RESIZE = (800, 1333)  # pixels: the short side of an image, and the most of its long side
CELLS = 32  # pixels that the sides of an image are padded to a multiple of
ANCHOR_SIZES = (32, 64, 128, 256, 512)  # pixels, one for each of the five pyramid levels
PYRAMID_CHANNELS, BOX_FEATURES = 256, 1024


NormLayer = Callable[[int], nn.Module]


def mask_rcnn(
    name: str,
    num_classes: int,
    norm: Mapping[str, Any],
    *,
    pretrained: bool,
    resize: tuple[int, int] = RESIZE,
    width: float = 1.0,
    sampling: Mapping[str, int] | None = None,
    box_loss_beta: float = 1.0,
) -> MaskRCNN:
    """Build a Mask R-CNN with fresh weights.

    ``bn``: batch norm in the backbone alone, two fully connected layers as box head. Any other
    norm: in backbone, feature pyramid, box head (four convolutions, one fully connected layer) and
    mask head; convolutions before a norm have no bias. The region proposal head never has one.

    The same seed gives layers of the same name and shape the same weights, whatever the norm. The
    last norm of each residual block starts at zero.

    Args:
        name: ``"mask_rcnn_r50_fpn"``.
        num_classes: object classes, without the background.
        norm: as for `lcn.convert_norm`. With windows in input pixels the heads, whose regions are
            resampled to 7 x 7 and 14 x 14 cells from any size, take whole regions.
        pretrained: the backbone will get weights (`load_backbone`, or a checkpoint of this
            network). Then stem and first stage are not trained (Detectron's ``FREEZE_AT: 2``) and
            batch norms are frozen; otherwise there is nothing to freeze to, and all is trained.
        resize: pixels that an image's short side is resized to, and the most of its long side;
            anchors are of the same size relative to the first.
        width: multiplies the channels of pyramid and heads (256, and 1024 box features).
        sampling: keyword arguments of `torchvision.models.detection.MaskRCNN` that count proposals,
            sampled regions or detections.
        box_loss_beta: of the box head's smooth L1 loss (Detectron: 1; torchvision: 1/9).

    Returns:
        Training: images (list of float [3, H, W] in 0..1) and targets to a dict of five losses;
        evaluation: images to detections in their own pixels.

    Raises:
        ValueError: an unknown name, or a norm that some layer's channels cannot be divided into.
    """
    if name != NAME:
        raise ValueError(f"unknown detector {name!r}; known is {NAME}")
    seed = int(torch.randint(2**62, (), device="cpu"))
    only_backbone = norm["name"] == "bn"
    placeholder = None if only_backbone else nn.BatchNorm2d
    channels, features = round(PYRAMID_CHANNELS * width), round(BOX_FEATURES * width)
    anchor_scale = resize[0] / RESIZE[0]
    with torch.random.fork_rng(devices=[]):  # how much is drawn below depends on the norm
        model = MaskRCNN(
            _backbone(channels, placeholder, pretrained),
            box_head=_box_head(channels, features, placeholder),
            box_predictor=FastRCNNPredictor(features, num_classes + 1),
            mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, placeholder),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
            min_size=resize[0],
            max_size=resize[1],
            rpn_anchor_generator=AnchorGenerator(
                sizes=tuple((size * anchor_scale,) for size in ANCHOR_SIZES),
                aspect_ratios=((0.5, 1.0, 2.0),) * len(ANCHOR_SIZES),
            ),
            **(sampling or {}),
        )
    model.roi_heads = _RoIHeads(model.roi_heads, box_loss_beta)
    _draw_weights(model, seed)
    if not only_backbone:
        _place_norms(model, norm)
    return model


class _RoIHeads(RoIHeads):
    """torchvision's heads with another ``beta`` in the smooth L1 loss of the boxes.

    torchvision writes 1/9 into `fastrcnn_loss`. What that function is given is noted here on its
    way, and the loss taken again from it.
    """

    def __init__(self, heads: RoIHeads, box_loss_beta: float):
        super().__init__(
            heads.box_roi_pool, heads.box_head, heads.box_predictor,
            heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold,
            heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh, heads.nms_thresh, heads.detections_per_img,
            heads.mask_roi_pool, heads.mask_head, heads.mask_predictor,
        )  # fmt: skip
        self.box_loss_beta = box_loss_beta
        self._labels: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def select_training_samples(self, proposals: list, targets: list | None) -> tuple:
        samples = super().select_training_samples(proposals, targets)
        _, _, self._labels, self._targets = samples
        return samples

    def forward(self, features: dict, proposals: list, image_shapes: list, targets: Any = None):  # type: ignore[no-untyped-def]
        predicted: list[torch.Tensor] = []
        hook = self.box_predictor.register_forward_hook(lambda *call: predicted.append(call[2][1]))
        try:
            result, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        if self.training:
            losses["loss_box_reg"] = box_loss(
                predicted[0], torch.cat(self._labels), torch.cat(self._targets), self.box_loss_beta
            )
            self._labels, self._targets = [], []
        return result, losses


def box_loss(
    predicted: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, beta: float
) -> torch.Tensor:
    """Smooth L1 of the objects' boxes, summed and divided by the number of all regions.

    Args:
        predicted: [R, 4 * classes], offsets for every class, the background included.
        labels: int64 [R], 0 for background.
        targets: [R, 4].
        beta: where squares turn into absolute values.
    """
    objects = torch.nonzero(labels > 0)[:, 0]
    of_class = predicted.reshape(len(labels), -1, 4)[objects, labels[objects]]
    total = F.smooth_l1_loss(of_class, targets[objects], beta=beta, reduction="sum")
    return total / labels.numel()


def _backbone(channels: int, norm_layer: NormLayer | None, frozen: bool) -> BackboneWithFPN:
    """ResNet-50 and feature pyramid; without a norm in the pyramid, the backbone has batch norm."""
    freeze_norms = frozen and norm_layer is None
    body = resnet50(
        norm_layer=FrozenBatchNorm2d if freeze_norms else nn.BatchNorm2d,
        zero_init_residual=True,  # as in the ImageNet task (section 4.3)
    )
    if frozen:
        for part in (body.conv1, body.bn1, body.layer1):
            part.requires_grad_(False)
    stages = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
    return BackboneWithFPN(body, stages, [256, 512, 1024, 2048], channels, norm_layer=norm_layer)


def _box_head(channels: int, features: int, norm_layer: NormLayer | None) -> nn.Module:
    cells = 7
    if norm_layer is None:
        return TwoMLPHead(channels * cells**2, features)
    return FastRCNNConvFCHead((channels, cells, cells), [channels] * 4, [features], norm_layer)


def _draw_weights(model: nn.Module, seed: int) -> None:
    """Detectron's initial weights: those of a layer follow from the seed and its name alone."""
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        if name.startswith("rpn.head") or name.endswith("cls_score"):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
        elif name.endswith("bbox_pred"):
            nn.init.normal_(layer.weight, std=0.001, generator=generator)
        elif name.startswith("backbone.fpn") or isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1, generator=generator)  # Caffe2's Xavier
        else:
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _place_norms(model: MaskRCNN, norm: Mapping[str, Any]) -> None:
    """Replaces the batch norms everywhere by the layers that ``norm`` describes."""
    if norm.get("window_unit") != "input":
        convert_norm(model, norm)
        return
    size = (model.transform.min_size[-1], model.transform.max_size)
    convert_norm(model.backbone, norm, input_shape=(1, 3, *size))
    convert_norm(model.roi_heads, {**norm, "window": "all", "window_unit": "feature"})


def reach_norms(model: MaskRCNN, images: torch.Tensor) -> None:
    """Runs every norm layer without choosing boxes, for ``lcn.audit(..., forward=reach_norms)``.

    Args:
        images: [N, 3, H, W] as the backbone gets them: resized and padded to whole `CELLS`.
    """
    features = model.backbone(images)["0"]
    for head, pool in (("box_head", "box_roi_pool"), ("mask_head", "mask_roi_pool")):
        cells = getattr(model.roi_heads, pool).output_size
        getattr(model.roi_heads, head)(features.new_zeros(1, features.shape[1], *cells))

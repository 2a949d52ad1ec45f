"""From a configuration to a network whose norm layers are the ones asked for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import nn

from lcn import convert_norm
from tasks.config import plain
from tasks.errors import InputError
from tasks.models.checkpoint import load_backbone, load_pretrained
from tasks.models.hrnet import hrnetv2
from tasks.models.mask_rcnn import CELLS, mask_rcnn, reach_norms
from tasks.models.unet import UNet
from tasks.protocol import given_norm


def build_model(cfg: DictConfig, read_weights: bool = True) -> nn.Module:
    """The network of ``cfg.task`` with every norm layer replaced by ``cfg.norm``.

    The same seed gives the same convolution weights whatever the norm.

    Args:
        cfg: the configuration.
        read_weights: whether files of initial weights that it names are read; not where all
            weights are replaced afterwards. The layers are the same.

    Raises:
        InputError: an unknown network, a file of weights of another network, or a norm that some
            layer's channels cannot be divided into.
    """
    name, norm = cfg.task.model.name, scaled_norm(cfg)
    try:
        if name == "mask_rcnn_r50_fpn":  # which puts its norms where they belong by itself
            return _mask_rcnn(cfg, norm, read_weights)
        if name not in NETWORKS:
            raise ValueError(f"task.model.name={name}: no such network")
        model = NETWORKS[name](cfg)
        notes = _pretrained(cfg, model) if read_weights else []
        input_shape = (1, len(cfg.task.bands), *cfg.data.crop)
        model = convert_norm(model, norm, input_shape=input_shape)
        model.notes = notes  # type: ignore[assignment]  # a list is no module
        return model
    except ValueError as error:
        raise InputError(str(error)) from None


def _hrnet(cfg: DictConfig) -> nn.Module:
    return hrnetv2(cfg.task.model.name, cfg.task.outputs, len(cfg.task.bands))


def _resnet50(cfg: DictConfig) -> nn.Module:
    import timm

    return timm.create_model("resnet50", num_classes=cfg.task.outputs)


def _unet(cfg: DictConfig) -> nn.Module:
    options = cfg.task.model
    widths = [max(1, int(width * cfg.data.width)) for width in options.widths]
    margin = options.get("margin", 0)
    model = UNet(
        len(cfg.task.bands),
        cfg.task.outputs,
        widths,
        options.convolutions,
        options.transposed,
        padded=margin == 0,
    )
    if model.margin != margin:
        raise InputError(
            f"task.model.margin={margin}: {len(widths)} levels of {options.convolutions} "
            f"convolutions without padding have {model.margin}"
        )
    return model


def _smp(cfg: DictConfig) -> nn.Module:
    from tasks.models.smp import smp_model

    options = cfg.task.model
    return smp_model(options.arch, options.encoder, len(cfg.task.bands), cfg.task.outputs)


NETWORKS: dict[str, Callable[[DictConfig], nn.Module]] = {
    "hrnetv2_w18_small_v1": _hrnet,
    "hrnetv2_w48": _hrnet,
    "resnet50": _resnet50,
    "unet": _unet,
    "unet_duke": _unet,
    "unet_large": _unet,
    "unet_slim": _unet,
    "smp": _smp,
}
"""What makes each network, by ``task.model.name``, with norm layers that are then replaced."""


class Start(NamedTuple):
    """What ``task.model.pretrained`` is for a network.

    Attributes:
        head: beginnings of the keys of the last layers, which are never taken.
        takes: what can be given, in words.
    """

    head: tuple[str, ...]
    takes: str


OWN = "a checkpoint of a run with this task/model"
HRNET = Start(
    ("last_layer.",),
    f"{OWN}, HRNet's own file, or one of timm (timm:hrnet_w18_small.ms_in1k)",
)
UNET = Start(("head.",), f"{OWN}: no public weights of this network are known")
STARTS = {
    "hrnetv2_w18_small_v1": HRNET,
    "hrnetv2_w48": HRNET._replace(takes=HRNET.takes.replace("w18_small", "w48")),
    "resnet50": Start(
        ("fc.",),
        f"{OWN}, or a file of timm (timm:resnet50_gn.a1h_in1k), torchvision or Detectron",
    ),
    "unet": UNET,
    "unet_duke": UNET,
    "unet_large": UNET,
    "unet_slim": UNET,
    "smp": Start(
        ("segmentation_head.",),
        f"{OWN}, arch and encoder, or weights of the encoder alone, for images of three bands: a "
        "file of torchvision or timm, or timm:NAME",
    ),
    "mask_rcnn_r50_fpn": Start(
        ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."),
        f"{OWN}, or with norm=bn torchvision's file; a ResNet-50 is task.backbone_checkpoint",
    ),
}
"""By ``task.model.name``."""


def _pretrained(cfg: DictConfig, model: nn.Module) -> list[str]:
    """Loads ``task.model.pretrained``, if it is given; what to say of it."""
    name, source = cfg.task.model.name, cfg.task.model.get("pretrained")
    return [] if source is None else [load_pretrained(model, source, name, *STARTS[name])]


def _mask_rcnn(cfg: DictConfig, norm: dict[str, Any], read_weights: bool) -> nn.Module:
    path, whole = cfg.task.backbone_checkpoint, cfg.task.model.get("pretrained")
    model = mask_rcnn(
        cfg.task.model.name,
        cfg.task.num_classes,
        norm,
        pretrained=path is not None or whole is not None,
        resize=tuple(cfg.data.resize),
        width=cfg.data.width,
        sampling=plain(cfg.data.sampling) if cfg.data.sampling else None,
        box_loss_beta=cfg.task.box_loss_beta,
    )
    if not read_weights:
        return model
    if path is not None:
        model.notes = [load_backbone(model, path, norm)]
    else:
        scratch = "backbone from scratch (no task.backbone_checkpoint)"
        model.notes = _pretrained(cfg, model) or [scratch]
    return model


def check_network(cfg: DictConfig) -> None:
    """Builds the network without values, for what follows from the configuration alone.

    Files of initial weights are read, and compared with it.

    Raises:
        InputError: see `build_model` and `check_training_size`.
    """
    cfg = copy.deepcopy(cfg)
    if cfg.task.num_classes is None:  # left to the dataset; any number does
        cfg.task.num_classes = cfg.task.outputs = 2
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # no values are copied
        model = build_model(cfg)
    check_training_size(model, cfg)


def check_training_size(model: nn.Module, cfg: DictConfig) -> None:
    """Runs the network on the shapes of a training batch, without computing anything.

    Raises:
        InputError: images of this size leave some layer nothing to work on.
    """
    if cfg.task.kind == "detection":  # resizes its images itself
        return
    shape = (cfg.data.batch_size, len(cfg.task.bands), *cfg.data.crop)
    shapes_only = copy.deepcopy(model).to("meta").train()
    try:
        shapes_only(torch.empty(shape, device="meta"))
    except (RuntimeError, ValueError) as error:
        height, width = cfg.data.crop
        reason = str(error).splitlines()[0]
        raise InputError(
            f"data.crop=[{height},{width}] with data.batch_size={shape[0]} is too small for "
            f"{cfg.task.model.name} with {cfg.norm.name}: {reason}"
        ) from None


def training_size(cfg: DictConfig) -> tuple[int, int]:
    """Height and width of what the network is trained on: crops, or whole images resized."""
    height, width = cfg.data.crop or cfg.data.resize
    return height, width


def one_image(
    cfg: DictConfig, size: tuple[int, int]
) -> tuple[tuple[int, ...], Callable[[Any, torch.Tensor], None] | None]:
    """How `lcn.audit` shows the network an image of a size: its shape, and the call.

    A detector's image is padded to whole cells, and its norm layers are called by themselves: its
    own forward pass needs targets. None stands for the network's own call.
    """
    if cfg.task.kind != "detection":
        return (1, len(cfg.task.bands), *size), None
    return (1, len(cfg.task.bands), *(-(-side // CELLS) * CELLS for side in size)), reach_norms


def scaled_norm(cfg: DictConfig) -> dict[str, Any]:
    """``cfg.norm`` with its window times ``data.scale``, rounded down and at least 1.

    Rounding down keeps every layer windowed or global as at full size: p < H if and only if
    floor(p / 8) < H / 8 for every H that 8 divides.
    """
    norm = given_norm(plain(cfg.norm))
    window = norm.get("window", "all")
    if window != "all":
        sides = window if isinstance(window, list) else [window, window]
        norm["window"] = [max(1, int(side * cfg.data.scale)) for side in sides]
    return norm

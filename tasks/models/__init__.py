"""From a configuration to a network whose norm layers are the ones asked for."""

import copy

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lcn import convert_norm
from tasks.errors import InputError
from tasks.models.checkpoint import load_imagenet_weights
from tasks.models.hrnet import hrnetv2
from tasks.models.unet import UNet
from tasks.protocol import given_norm


def build_model(cfg: DictConfig) -> nn.Module:
    """The network of ``cfg.task`` with every norm layer replaced by ``cfg.norm``.

    The same seed gives the same convolution weights whatever the norm.

    Raises:
        InputError: an unknown network, a file of weights of another network, or a norm that some
            layer's channels cannot be divided into.
    """
    try:
        return _build(cfg, len(cfg.task.bands))
    except ValueError as error:
        raise InputError(str(error)) from None


def _build(cfg: DictConfig, in_channels: int) -> nn.Module:
    options, norm = cfg.task.model, scaled_norm(cfg)
    if options.name == "mask_rcnn_r50_fpn":
        return _detector(cfg, norm)
    if options.name.startswith("hrnet"):
        model = hrnetv2(options.name, cfg.task.outputs)
        if options.pretrained is not None:
            load_imagenet_weights(model, options.pretrained)
    elif options.name == "resnet50":
        import timm

        model = timm.create_model("resnet50", num_classes=cfg.task.outputs)
    elif options.name in ("unet", "unet_slim"):
        widths = [max(1, int(width * cfg.data.width)) for width in options.widths]
        model = UNet(
            in_channels, cfg.task.outputs, widths, options.convolutions, options.transposed
        )
    elif options.name == "smp":
        from tasks.models.smp import smp_model

        model = smp_model(options.arch, options.encoder, in_channels, cfg.task.outputs)
    else:
        raise ValueError(f"task.model.name={options.name}: no such network")
    return convert_norm(model, norm, input_shape=(1, in_channels, *cfg.data.crop))


def _detector(cfg: DictConfig, norm: dict) -> nn.Module:
    from tasks.models.checkpoint import load_backbone
    from tasks.models.mask_rcnn import mask_rcnn

    path = cfg.task.backbone_checkpoint
    model = mask_rcnn(
        cfg.task.model.name,
        cfg.task.num_classes,
        norm,
        pretrained=path is not None,
        resize=tuple(cfg.data.resize),
        width=cfg.data.width,
        sampling=OmegaConf.to_container(cfg.data.sampling) if cfg.data.sampling else None,
    )
    model.notes = [
        "backbone from scratch (no task.backbone_checkpoint)"
        if path is None
        else load_backbone(model, path, norm)
    ]
    return model


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


def scaled_norm(cfg: DictConfig) -> dict:
    """``cfg.norm`` with its window times ``data.scale``, rounded down and at least 1.

    Rounding down keeps every layer windowed or global as at full size: p < H if and only if
    floor(p / 8) < H / 8 for every H that 8 divides.
    """
    norm = given_norm(OmegaConf.to_container(cfg.norm))
    window = norm.get("window", "all")
    if window != "all":
        sides = window if isinstance(window, list) else [window, window]
        norm["window"] = [max(1, int(side * cfg.data.scale)) for side in sides]
    return norm

"""From a configuration to a network whose norm layers are the ones asked for."""

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lcn import convert_norm
from tasks.errors import InputError
from tasks.models.hrnet import hrnetv2, load_imagenet_weights
from tasks.models.unet import UNet


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
    from tasks.models.mask_rcnn import load_backbone, mask_rcnn

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


def scaled_norm(cfg: DictConfig) -> dict:
    """``cfg.norm`` with its window times ``data.scale``, rounded down and at least 1.

    Rounding down keeps every layer windowed or global as at full size: p < H if and only if
    floor(p / 8) < H / 8 for every H that 8 divides.
    """
    norm = OmegaConf.to_container(cfg.norm)
    window = norm.get("window", "all")
    if window != "all":
        sides = window if isinstance(window, list) else [window, window]
        norm["window"] = [max(1, int(side * cfg.data.scale)) for side in sides]
    return norm


def load_weights(model: nn.Module, path: str, norm: dict | None = None) -> dict:
    """Loads the network's weights out of a run's checkpoint and returns the whole checkpoint.

    Args:
        model: where the weights go.
        path: a ``last.ckpt``.
        norm: what `scaled_norm` gives for ``model``, if the weights must have been trained with the
            same norm; GN, LN, IN and LCN have weights of the same shapes.

    Raises:
        InputError: no such file, not a checkpoint, or the checkpoint of another network or norm.
    """
    checkpoint = read_checkpoint(path)
    if norm is not None and checkpoint.get("norm") != norm:
        raise InputError(
            f"{path} is the checkpoint of another model: its norm is {checkpoint.get('norm')}, not "
            f"{norm}; use the norm it was trained with (config.yaml beside it)"
        )
    weights = {
        key.removeprefix("model."): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith("model.")
    }
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    wrong += [k for k in weights if k not in own]
    if wrong:
        raise InputError(
            f"{path} is the checkpoint of another model: {len(wrong)} of {len(own)} weights are "
            f"missing, unknown or of another shape, first {wrong[0]}; use the task, task/model and "
            "norm it was trained with (config.yaml beside it)"
        )
    model.load_state_dict(weights)
    return checkpoint


def read_checkpoint(path: str) -> dict:
    """A checkpoint file's content, on the CPU, without running any code from it.

    Raises:
        InputError: no such file, or not a checkpoint of a run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist") from None
    except Exception as error:  # torch.load's own message advises to run the file's code
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or no "
            "checkpoint; give another one, or delete it to start its run anew"
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is not a checkpoint of a run (it has no state_dict)")
    return checkpoint

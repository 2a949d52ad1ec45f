"""Reads files of weights and loads them into networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from tasks.errors import InputError
from tasks.models.weights import norm_in, read_weights, unwrapped, verify_archive


def load_weights(
    model: nn.Module,
    path: str,
    norm: dict | None = None,
    category_ids: Sequence[int] | None = None,
    convert: bool = False,
) -> dict:
    """Loads the network's weights out of a run's checkpoint and returns the whole checkpoint.

    A file with another ending than ``.ckpt`` is one that others made, such as an official
    checkpoint of the same network: it has weights alone, and nothing is returned.

    Args:
        model: where the weights go.
        path: a ``last.ckpt``, or what `tasks.models.weights.read_weights` reads.
        category_ids: of COCO, for a detector whose file has an output for each of them, unused ones
            included, as torchvision's have.
        norm: what `scaled_norm` gives for ``model``, if the weights must have been trained with the
            same norm; GN, LN, IN and LCN have weights of the same shapes.
        convert: the norm may be another one that `check_same_norm` allows.

    Raises:
        InputError: no such file, not a checkpoint, or the checkpoint of another network or norm.
    """
    if Path(path).suffix != ".ckpt":
        _load_others(model, path, category_ids)
        return {}
    checkpoint = read_checkpoint(path)
    if norm is not None:
        check_same_norm(path, checkpoint.get("norm"), norm, "convert=true" if convert else None)
    weights, own = _of_network(checkpoint), model.state_dict()
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


CONVERTIBLE = ("gn", "ln", "in", "lcn", "lcn_released", "lcn_tiled")
"""Norms that learn a scale and a shift per channel, and keep no statistics of the training."""


def check_same_norm(
    path: str, trained: Mapping[str, Any] | None, used: Mapping[str, Any], convert: str | None
) -> None:
    """That weights are used with the norm they were trained with, or may be used with another.

    Args:
        path: of the weights.
        trained: what `scaled_norm` gave in training; None if that is not known.
        used: what it gives for the network that the weights go into.
        convert: how the user asked for another norm; None: did not.

    Raises:
        InputError: the norms differ, and that was not asked for or is not possible.
    """
    if trained == used:
        return
    names = (trained or {}).get("name"), used["name"]
    possible = all(name in CONVERTIBLE for name in names)
    if convert is None:
        also = ", or convert its norm: convert=true (scripts: --convert)" if possible else ""
        raise InputError(
            f"{path} is the checkpoint of another model: its norm is {trained}, not {used}; use "
            f"the norm it was trained with (config.yaml beside it){also}"
        )
    if not possible:
        raise InputError(
            f"{path}: {convert} cannot turn {names[0]} into {names[1]}, whose weights mean "
            f"something else; only {', '.join(CONVERTIBLE)} turn into each other"
        )


def _load_others(model: nn.Module, path: str, category_ids: Sequence[int] | None) -> None:
    """Every weight of a model out of a file that others made.

    Raises:
        InputError: it lacks one, has one more, or has one of another shape.
    """
    weights, own = read_weights(path), unwrapped(model.state_dict())  # both without prefixes
    if category_ids is not None:
        weights = of_categories(weights, category_ids)
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # old files have none
    wrong = [k for k in own.keys() - counters if k not in weights]
    wrong += [k for k in own.keys() & weights.keys() if weights[k].shape != own[k].shape]
    wrong += [k for k in weights if k not in own and not k.endswith("num_batches_tracked")]
    if wrong:
        raise InputError(
            f"{path} is not of this network: {len(wrong)} of {len(own)} weights differ, first "
            f"{_difference(min(wrong), weights, own)}; official files have BN: norm=bn"
        )
    for key in own.keys() & weights.keys():
        own[key].copy_(weights[key])


def of_categories(weights: dict[str, Tensor], category_ids: Sequence[int]) -> dict[str, Tensor]:
    """A detector's weights with outputs for the background and these categories, in their order.

    torchvision's have an output for each number up to the highest category's, of COCO 91.
    """
    known = max(category_ids) + 1
    chosen, weights = torch.tensor([0, *category_ids]), dict(weights)
    for key, value in weights.items():
        is_output = "box_predictor" in key or "mask_fcn_logits" in key
        if is_output and len(value) % known == 0:  # four offsets of a box for each category
            weights[key] = value.unflatten(0, (known, -1))[chosen].flatten(0, 1)
    return weights


def read_checkpoint(path: str) -> dict:
    """A run's checkpoint, on the CPU, verified, without running any code from it.

    Raises:
        InputError: no such file, a damaged one, or not a checkpoint of a run.
    """
    checkpoint = _read_verified(Path(path).expanduser())
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(f"{path} is not a checkpoint of a run (it has no state_dict)")
    return checkpoint


def _of_network(checkpoint: dict) -> dict[str, Tensor]:
    """A run's weights by their names in the network."""
    weights = checkpoint["state_dict"].items()
    return {k.removeprefix("model."): v for k, v in weights if k.startswith("model.")}


TO_CONTINUE = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch", "global_step")
"""What a checkpoint needs besides weights for its run to be continued."""


def check_complete(checkpoint: dict, path: Path) -> None:
    """Raises InputError if a run cannot be continued from a checkpoint to the same result."""
    missing = [key for key in TO_CONTINUE if checkpoint.get(key) in (None, [], {})]
    if missing:
        raise InputError(
            f"{path} cannot be continued: it has no {', '.join(missing)}; delete it to start the "
            "run anew, or start another run from its weights with checkpoint="
        )


def _read_verified(path: Path) -> Any:
    """What `torch.save` wrote, after every byte was compared with the archive's checksums.

    Raises:
        InputError: no such file, not such an archive, or a damaged one.
    """
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist")
    remedy = "give another one, or delete it to start its run anew"
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file: {remedy}")
    try:
        verify_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load's own message advises to run the file's code
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or no "
            f"checkpoint; {remedy}"
        ) from None


def load_pretrained(
    model: nn.Module, source: str, name: str, head: tuple[str, ...], takes: str
) -> str:
    """Copies everything but the last layers out of weights of the same network, in place.

    The classes may be others. A network with an ``encoder`` also takes the encoder's weights alone.
    Running statistics may be missing, as in files of networks with GN.

    Args:
        model: before or after its norm layers were replaced.
        source: what `tasks.models.weights.read_weights` reads.
        name: of the network.
        head: beginnings of the keys of its last layers.
        takes: what can be given, for the message.

    Returns:
        A sentence that says how many weights were used.

    Raises:
        InputError: there is no such file, or it holds no weights, or those of another network: it
            lacks one, has one in another shape, or has more convolutions. The model is left as it
            was.
    """
    given, own = read_weights(source), unwrapped(model.state_dict())  # both without prefixes
    count = len(own)
    encoder = {k.removeprefix(ENCODER): v for k, v in own.items() if k.startswith(ENCODER)}
    if encoder and not any(key.startswith(ENCODER) for key in given):
        own, name = unwrapped(encoder), f"the encoder of {name}"
    wanted = {key: value for key, value in own.items() if not key.startswith(head)}
    optional: tuple[str, ...] = ("num_batches_tracked",)
    if not any(key.endswith("running_var") for key in given):
        optional += ("running_mean", "running_var")
    fits = [k for k, v in wanted.items() if k in given and given[k].shape == v.shape]
    wrong = [key for key in wanted.keys() - fits if key in given or not key.endswith(optional)]
    parts = {key.partition(".")[0] for key in wanted}
    wrong += [
        key
        for key in given.keys() - own.keys()
        if key.partition(".")[0] in parts and not key.startswith(head) and given[key].ndim == 4
    ]
    if wrong:
        raise InputError(
            f"task.model.pretrained={source} is not of {name}: {len(fits)} of its {len(wanted)} "
            f"weights match, first of the others {_difference(min(wrong), given, own)}; "
            f"give {takes}"
        )
    for key in fits:
        own[key].copy_(given[key])
    return f"from {source}: {len(fits)} of {count} weights, all others drawn"


ENCODER = "encoder."


def _difference(key: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    there, here = (
        str(list(part[key].shape)) if key in part else "not there" for part in (given, own)
    )
    return f"{key}: {there} in the file, {here} here"


# A checkpoint's norm: others that its weights can be fine-tuned in.
FINE_TUNED_AS = {
    "gn": ("lcn", "lcn_released", "lcn_tiled"),
    "bn": ("sync_bn",),
    "sync_bn": ("bn",),
}


def load_backbone(model: MaskRCNN, path: str, norm: Mapping[str, Any]) -> str:
    """Copies a ResNet-50 that was trained on ImageNet into the backbone.

    Args:
        model: made with ``pretrained=True``.
        path: a run's ``last.ckpt``, or what `tasks.models.weights.read_weights` reads: a file of
            timm's, torchvision's or Detectron's, or ``timm:NAME``.
        norm: of ``model``. The checkpoint's must be of the same name, or GN for an LCN, whose
            weights mean the same; batch norms also go into synchronized ones.

    Returns:
        A sentence that says which weights were used, which were not, and which norm went into
        which.

    Raises:
        InputError: no such checkpoint, one of another network, or of a norm that does not fit.
    """
    if path.endswith(".ckpt"):
        checkpoint = read_checkpoint(path)
        before = checkpoint.get("norm") or {}
        given = _of_network(checkpoint)
    else:
        given = read_weights(path)
        before = norm_in(given)
    if norm["name"] not in (before.get("name"), *FINE_TUNED_AS.get(str(before.get("name")), ())):
        raise InputError(
            f"task.backbone_checkpoint={path} was trained with norm {_described(before)}, which "
            f"cannot be fine-tuned as {_described(norm)}: GN goes into GN or LCN, any other norm "
            "into itself; choose another norm or checkpoint"
        )
    body = model.backbone.body
    own = body.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")} - given.keys()
    own = {key: value for key, value in own.items() if key not in counters}  # old files have none
    wrong = [k for k, v in own.items() if k not in given or given[k].shape != v.shape]
    if wrong:
        raise InputError(
            f"task.backbone_checkpoint={path} is not of a ResNet-50: {len(own) - len(wrong)} of "
            f"its {len(own)} weights match, first of the others "
            f"{_difference(wrong[0], given, own)}; give a checkpoint of task=imagenet, or a file "
            "of timm, torchvision or Detectron"
        )
    body.load_state_dict({key: given[key] for key in own}, strict=not counters)
    unused = sorted(
        key for key in given.keys() - own.keys() if not key.endswith(".num_batches_tracked")
    )
    return (
        f"backbone from {path}: {len(own)} of its {len(given)} weights used, "
        f"not used: {', '.join(unused) or 'none'}; "
        f"norm {_described(before)} into {_described(norm)}"
    )


def _described(norm: Mapping[str, Any]) -> str:
    settings = (f"{key} {value}" for key, value in norm.items() if key not in ("name", "eps"))
    return f"{norm.get('name', 'unknown')} ({', '.join(settings)})".replace(" ()", "")

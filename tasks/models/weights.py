"""Reads files of weights that others made: PyTorch's, safetensors, timm's, Detectron's."""

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from tasks.errors import InputError

PREFIXES = ("module.", "model.")
"""What `nn.DataParallel` and wrappers of a network and its loss put before its keys."""

TIMM = "timm:"
READ_AT_ONCE = 2**24  # bytes
LARGEST_PICKLE = 2**32  # bytes; Detectron's largest ResNet has 0.4 billion


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict in a file, or of a network of timm's, without running any code from it.

    Taken off: a dict around it (``state_dict``, ``model``), and prefixes of its keys (`PREFIXES`);
    what does not have the prefix, such as a loss, is left out. Numbers beside the weights may be
    NumPy's. Names that torchvision's detectors had before version 0.13 are today's.

    Args:
        source: a local file, or ``timm:NAME``, such as ``timm:resnet50_gn.a1h_in1k``, which is
            downloaded where it is not there yet.

    Raises:
        InputError: no such file or network, no connection, a damaged file, or one without weights.
    """
    with torch.device("cpu"):  # also where a network is built without values
        weights = _read(source)
    return {_todays_name(key): value for key, value in weights.items()}


def _read(source: str) -> dict[str, Tensor]:
    if source.startswith(TIMM):
        return _of_timm(source.removeprefix(TIMM))
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return unwrapped(safetensors.torch.load_file(path))
        if path.suffix == ".pkl":
            return detectron_resnet(_read_pickle(path))
        if zipfile.is_zipfile(path):  # older files, such as the official ones, have no checksums
            verify_archive(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load's own message advises to run the file's code
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or holds "
            "more than tensors and numbers; get the file again"
        ) from None
    weights = unwrapped(content)
    if not weights:
        raise InputError(f"{path} has no weights; give a file that torch.save made of a state dict")
    return weights


def unwrapped(content: Any) -> dict[str, Tensor]:
    """The tensors in what `torch.load` gave, by their keys in the network; there may be none."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return {}
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    while True:
        for prefix in PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            if 2 * len(inner) > len(weights):
                weights = inner
                break
        else:
            return weights


def _todays_name(key: str) -> str:
    """The key of a weight of torchvision's detectors, whose published files are older."""
    key = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(\w+)$", r"\1.0.\2", key)
    key = re.sub(r"^rpn\.head\.conv\.(\w+)$", r"rpn.head.conv.0.0.\1", key)
    match = re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", key)
    return key if match is None else f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"


def verify_archive(path: Path) -> None:
    """Compares every record with its checksum, which `torch.load` does not.

    Raises:
        zipfile.BadZipFile: one differs, or this is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:  # a bomb, for all that is known
                raise zipfile.BadZipFile(f"{record.filename} is compressed")
            with archive.open(record) as file:
                while file.read(READ_AT_ONCE):
                    pass


def _numpy_scalars() -> list[Any]:
    """What unpickling a NumPy number calls, under its names of today and of before NumPy 2."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "bool")]
    old = (scalar, "numpy.core.multiarray.scalar")
    return [scalar, old, np.dtype, *kinds, (_encode, "_codecs.encode")]


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 of pickle writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _of_timm(name: str) -> dict[str, Tensor]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"{name.partition('_')[0]}*")[:5])
        raise InputError(f"timm:{name}: timm has no such network; it has {near or 'others'}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the hub, the connection, or timm
        raise InputError(
            f"timm:{name} cannot be had here ({type(error).__name__}): without a connection, "
            "download its model.safetensors elsewhere and give that file"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, numbers and NumPy's arrays, and refuses to look anything else up."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "_reconstruct": np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            "scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.split(".")[0] == "numpy" and name in known:
            return known[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    if path.stat().st_size > LARGEST_PICKLE:
        raise ValueError
    content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    if not isinstance(blobs, dict):
        raise InputError(f"{path} is no file of Detectron's: it has no blobs")
    return {str(k): v for k, v in blobs.items() if isinstance(v, np.ndarray)}


RGB_STD = (0.229, 0.224, 0.225)  # that images in 0..1 are divided by here
_CONVOLUTION = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}


def detectron_resnet(blobs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """A ResNet of Detectron's (``R-50.pkl``, ``R-50-GN.pkl``) in torchvision's keys.

    Its batch norms are a scale and a shift alone; they become norms of mean 0 and variance 1. Its
    first convolution expects B, G, R in 0..255, less a mean, and is turned to R, G, B in 0..1, less
    a mean, by the standard deviation. The means differ by less than one grey level of 255.

    Raises:
        InputError: it is no ResNet of Detectron's.
    """
    found: dict[str, Tensor] = {}
    for name, blob in blobs.items():
        key = _torchvision_key(name)
        if key is not None:
            found[key] = torch.from_numpy(np.array(blob, dtype=np.float32))
    if "conv1.weight" not in found or found["conv1.weight"].shape[1:] != (3, 7, 7):
        raise InputError("this is no ResNet of Detectron's: it has no conv1_w [64, 3, 7, 7]")
    scale = 255 * torch.tensor(RGB_STD)[:, None, None]
    found["conv1.weight"] = found["conv1.weight"].flip(1) * scale
    if any("_bn_" in name for name in blobs):
        for key in [k for k in found if re.search(r"(bn\d|downsample\.1)\.weight$", k)]:
            norm = key.removesuffix("weight")
            found[f"{norm}running_mean"] = torch.zeros_like(found[key])
            found[f"{norm}running_var"] = torch.ones_like(found[key])
    return found


def _torchvision_key(name: str) -> str | None:
    """``layer2.0.bn1.weight`` for ``res3_0_branch2a_gn_s``; None for what a backbone lacks."""
    part = {"w": "weight", "s": "weight", "b": "bias"}.get(name.rpartition("_")[2])
    if name == "conv1_w":
        return "conv1.weight"
    if re.fullmatch(r"(res_conv1_bn|conv1_gn)_[sb]", name):
        return f"bn1.{part}"
    match = re.fullmatch(r"res([2-5])_(\d+)_(branch1|branch2[abc])(_bn|_gn)?_[wsb]", name)
    if match is None or (match[4] is None) != name.endswith("_w"):
        return None
    block = f"layer{int(match[1]) - 1}.{match[2]}"
    if match[3] == "branch1":
        return f"{block}.downsample.{1 if match[4] else 0}.{part}"
    layer = _CONVOLUTION[match[3]]
    return f"{block}.{layer.replace('conv', 'bn') if match[4] else layer}.{part}"


def norm_in(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The norm that a ResNet's weights were trained with: BN where there are running statistics."""
    if "bn1.running_mean" in weights:
        return {"name": "bn"}
    return {"name": "gn", "groups": 32}  # timm's, Detectron's and the GN paper's

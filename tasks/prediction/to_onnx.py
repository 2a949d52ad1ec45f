"""A network as an ONNX file of any height and width, compared with PyTorch before it is kept."""

import math
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tasks.data.tiles import round_up
from tasks.errors import InputError
from tasks.prediction.network import Network
from tasks.prediction.tiling import Pair

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit."""


class _OfImages(nn.Module):
    """An image in 0..1, [1, bands, H, W], to logits; mean and standard deviation are inside."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        mean, std = cast(Tensor, self.network.mean), cast(Tensor, self.network.std)
        return self.network((image - mean) / std)


def write_onnx(network: Network, path: Path) -> str:
    """Writes the file; returns a sentence on what was compared.

    Raises:
        InputError: a package is missing, the network cannot be expressed in ONNX, or the file does
            not compute what PyTorch computes.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise InputError(
            f"--onnx needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    module, sizes = _OfImages(network).eval(), _sizes(network)
    content = _exported(module, (1, len(network.bands), *sizes[0])).model_proto
    _forget_sources(content)
    onnx.save(content, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = max(_difference(session, module, (1, len(network.bands), *size)) for size in sizes)
    if not worst <= TOLERANCE:
        raise InputError(
            f"ONNX Runtime gives other logits than PyTorch (they differ by {worst:.1e} of the "
            "largest): export without --onnx"
        )
    told = " and ".join(f"{height} x {width}" for height, width in sizes)
    return (
        f"`model.onnx`: float32 [1, {len(network.bands)}, height, width] in 0..1 to logits, any "
        f"height and width that are multiples of {network.stride[0]} and {network.stride[1]}. "
        f"Compared with PyTorch by ONNX Runtime at {told}: the largest difference is "
        f"{worst:.1e} of the largest logit."
    )


def _sizes(network: Network) -> tuple[Pair, Pair]:
    """Two image sizes of different shape, the second about that of the training crop."""
    (rows, columns), crop = network.stride, network.cfg.data.crop
    first = round_up(64, rows), round_up(64, columns) + columns
    return first, (round_up(crop[0], rows) + rows, round_up(crop[1], columns))


def _exported(module: nn.Module, shape: tuple[int, ...]) -> Any:
    free = torch.export.Dim.DYNAMIC
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                module, (torch.rand(shape),), dynamo=True, verbose=False,
                input_names=["image"], output_names=["logits"],
                dynamic_shapes=({2: free, 3: free},),
            )  # fmt: skip
    except Exception as error:  # whatever the exporter stumbles over
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"this network cannot be written as ONNX ({reason[:200]}): export without --onnx"
        ) from None


def _forget_sources(message: Any) -> None:
    """Removes the exporter's notes, which name files of this machine, from every part."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None and field.message_type.name != "TensorProto":
            for part in value if field.is_repeated else [value]:
                _forget_sources(part)


def _difference(session: Any, module: nn.Module, shape: tuple[int, ...]) -> float:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(image)
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())

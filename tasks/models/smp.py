"""Networks of segmentation_models_pytorch, beyond the paper's own."""

import difflib

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from tasks.errors import InputError


def smp_model(arch: str, encoder: str, in_channels: int, outputs: int) -> nn.Module:
    """An architecture with an encoder, from scratch, for images of any size.

    Raises:
        InputError: there is no such architecture or encoder, or they do not go together.
    """
    archs = {name.lower(): name for name in smp.MODEL_ARCHITECTURES_MAPPING}
    if arch.lower() not in archs:
        raise InputError(f"task.model.arch={arch}: choose one of {', '.join(sorted(archs))}")
    encoders = smp.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        near = difflib.get_close_matches(encoder, encoders, n=3) or encoders[:8]
        raise InputError(f"task.model.encoder={encoder}: no such encoder; try {', '.join(near)}")
    try:
        model = smp.create_model(
            arch, encoder, encoder_weights=None, in_channels=in_channels, classes=outputs
        )
    except Exception as error:  # each architecture refuses in its own way
        raise InputError(f"task.model: {arch} with {encoder} cannot be built ({error})") from None
    return PaddedInput(model, multiple=32)


class PaddedInput(nn.Module):
    """Repeats the image's last row and column up to a multiple, and cuts the result back."""

    def __init__(self, model: nn.Module, multiple: int):
        super().__init__()
        self.model, self.multiple = model, multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return self.model(padded)[..., :height, :width]

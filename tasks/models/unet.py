"""U-Nets: the original one (section 4.4), and those of the code that sections 4.4 and 4.5 lead to.

Both are built with `nn.BatchNorm2d`, which `lcn.convert_norm` replaces.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class UNet(nn.Module):
    """Ronneberger et al., "U-Net", MICCAI 2015, with a norm after every 3 x 3 convolution.

    Each level has ``convolutions`` times (3 x 3 convolution, norm, ReLU), then 2 x 2 max pooling;
    on the way up the map is doubled, concatenated with the same level's on the way down, and goes
    through as many convolutions again. The convolutions pad with zeros and keep the size; where a
    side was odd, the doubled map's last row or column is repeated.

    With ``padded=False`` they do not pad, as in the original: what comes from the way down is cut
    to its centre, and in training the result lacks ``margin`` pixels on each side. In evaluation
    the image is mirrored at its border by so much, so that the result is of its size.

    Args:
        in_channels: bands of the image.
        outputs: channels of the result.
        widths: channels of the levels, the finest first.
        convolutions: 3 x 3 convolutions per level.
        transposed: double the map by a 2 x 2 transposed convolution (the original); False: by
            repeating cells, followed by a 2 x 2 convolution and ReLU (the network that section 4.5
            cites); None: by repeating cells alone (Duke's).
        padded: whether the convolutions keep the size.

    Attributes:
        margin: pixels that a result lacks in training on each side; 0 if padded.

    Shape: [N, in_channels, H, W] to [N, outputs, H, W], sides of at least ``2 ** (levels - 1)``. In
    training without padding, to [N, outputs, H - 2 * margin, W - 2 * margin].

    Raises:
        ValueError: in training without padding, a side that does not halve evenly on every level,
            or leaves nothing.
    """

    margin: int

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        convolutions: int = 2,
        transposed: bool | None = True,
        padded: bool = True,
    ):
        super().__init__()
        self.padded, self.convolutions, self.step = padded, convolutions, 2 ** (len(widths) - 1)
        # A level of 2 ** l pixels a cell loses 2 * convolutions cells down and as many up; the
        # coarsest goes one way.
        self.margin = 0 if padded else (3 * self.step - 2) * convolutions
        ins = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            _level(i, o, convolutions, padded) for i, o in zip(ins, widths, strict=True)
        )
        self.upsampling = nn.ModuleList()
        self.up = nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.upsampling.append(_upsampling(below, width, transposed))
            doubled = below if transposed is None else width
            self.up.append(_level(doubled + width, width, convolutions, padded))
        self.head = nn.Conv2d(widths[0], outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.padded:
            return self._forward(x)
        if self.training:
            for side in x.shape[-2:]:
                self._check_side(side)
            return self._forward(x)
        height, width = x.shape[-2:]
        # Whole steps before the image: it is then pooled in the squares that it is in training.
        before = -(-self.margin // self.step) * self.step
        bottom, right = (
            self.margin - (side + before + self.margin + 2 * self.convolutions) % -self.step
            for side in (height, width)
        )
        # Where the image is too small to be mirrored, its border is repeated.
        mode = "reflect" if min(height, width) > max(before, bottom, right) else "replicate"
        result = self._forward(F.pad(x, (before, right, before, bottom), mode=mode))
        first = before - self.margin
        return result[..., first : first + height, first : first + width]

    def _check_side(self, side: int) -> None:
        if side <= 2 * self.margin or (side + 2 * self.convolutions) % self.step:
            least = 2 * self.margin + (2 * self.convolutions % self.step or self.step)
            raise ValueError(
                f"a side of {side} does not go through convolutions without padding: it must be "
                f"{least} pixels, or more by a multiple of {self.step}"
            )

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for upsample, level, skip in zip(self.upsampling, self.up, skips[-2::-1], strict=True):
            x = upsample(x)
            missing = [skip.shape[3] - x.shape[3], skip.shape[2] - x.shape[2]]
            if not self.padded:
                left, top = missing[0] // 2, missing[1] // 2
                skip = skip[..., top : top + x.shape[2], left : left + x.shape[3]]
            elif any(missing):
                x = extended(x, missing[0], missing[1])
            x = level(torch.cat([skip, x], dim=1))
        return self.head(x)


def extended(x: torch.Tensor, right: int, bottom: int) -> torch.Tensor:
    """A map whose last column and row are repeated as often."""
    if not torch.compiler.is_compiling():
        return F.pad(x, (0, right, 0, bottom), mode="replicate")
    # The same numbers. In channels-last, the gradient of the padding lies in memory in another way
    # than PyTorch tells its compiler, and the compiled code stops there.
    x = torch.cat([x, x[..., -1:].expand(-1, -1, -1, right)], dim=3)
    return torch.cat([x, x[..., -1:, :].expand(-1, -1, bottom, -1)], dim=2)


def _level(in_channels: int, width: int, convolutions: int, padded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        source = in_channels if index == 0 else width
        convolution = nn.Conv2d(source, width, 3, padding=1 if padded else 0)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _upsampling(in_channels: int, width: int, transposed: bool | None) -> nn.Module:
    if transposed is None:
        return nn.Upsample(scale_factor=2)
    if transposed:
        return nn.ConvTranspose2d(in_channels, width, 2, stride=2)
    keep_size = nn.ZeroPad2d((0, 1, 0, 1))
    convolution = nn.Conv2d(in_channels, width, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2), keep_size, convolution, nn.ReLU(inplace=True))

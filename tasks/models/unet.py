"""The U-Nets of the paper: the original one (section 4.4) and a slim one (section 4.5).

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
    through as many convolutions again. The convolutions pad with zeros and keep the size (our
    choice: the original ones do not pad and its output is smaller than its input); where a side was
    odd, the doubled map's last row or column is repeated.

    Args:
        in_channels: bands of the image.
        outputs: channels of the result.
        widths: channels of the levels, the finest first.
        convolutions: 3 x 3 convolutions per level.
        transposed: double the map by a 2 x 2 transposed convolution (the original); otherwise by
            repeating cells, followed by a 2 x 2 convolution and ReLU (the network that section 4.5
            cites).

    Shape: [N, in_channels, H, W] to [N, outputs, H, W], sides of at least ``2 ** (levels - 1)``.
    """

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        convolutions: int = 2,
        transposed: bool = True,
    ):
        super().__init__()
        ins = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            _level(i, o, convolutions) for i, o in zip(ins, widths, strict=True)
        )
        self.upsampling = nn.ModuleList()
        self.up = nn.ModuleList()
        for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.upsampling.append(_upsampling(below, width, transposed))
            self.up.append(_level(2 * width, width, convolutions))
        self.head = nn.Conv2d(widths[0], outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for upsample, level, skip in zip(self.upsampling, self.up, skips[-2::-1], strict=True):
            x = upsample(x)
            missing = [skip.shape[3] - x.shape[3], skip.shape[2] - x.shape[2]]
            if any(missing):
                x = F.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
            x = level(torch.cat([skip, x], dim=1))
        return self.head(x)


def _level(in_channels: int, width: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        source = in_channels if index == 0 else width
        convolution = nn.Conv2d(source, width, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _upsampling(in_channels: int, width: int, transposed: bool) -> nn.Module:
    if transposed:
        return nn.ConvTranspose2d(in_channels, width, 2, stride=2)
    keep_size = nn.ZeroPad2d((0, 1, 0, 1))
    convolution = nn.Conv2d(in_channels, width, 2)
    return nn.Sequential(nn.Upsample(scale_factor=2), keep_size, convolution, nn.ReLU(inplace=True))

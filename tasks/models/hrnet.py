"""HRNetV2 for semantic segmentation (Sun et al., 2019, https://arxiv.org/abs/1904.04514).

The network and its parameter names are those of the 2019 code that the paper trained with,
https://github.com/HRNet/HRNet-Semantic-Segmentation (``lib/models/seg_hrnet.py``), so that its
checkpoints load without renaming.

The residual blocks are timm's. The wiring around them is our own: timm's ``HighResolutionNet`` is
the ImageNet classifier, whose modules upsample by a fixed factor and by nearest neighbour, and
overriding that, the forward pass, the initialization and the head leaves little to inherit.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

BatchNorm: Any = partial(nn.BatchNorm2d, momentum=0.01)  # timm's hints know classes alone


class Architecture(NamedTuple):
    """Size of an HRNet, from the cited code's ``experiments/cityscapes/*.yaml``.

    Branch ``b`` (0 to 3) works at stride ``4 * 2**b`` with ``width * 2**b`` channels.
    """

    bottlenecks: int  # blocks of stage 1
    bottleneck_width: int  # inner channels of a block of stage 1, which puts out four times as many
    modules: tuple[int, int, int]  # multi-resolution modules of stages 2, 3 and 4
    blocks: int  # basic blocks per branch of a module
    width: int  # channels of branch 0


ARCHITECTURES = {
    # Its narrowest branch has 16 channels, not 18.
    "hrnetv2_w18_small_v1": Architecture(1, 32, (1, 1, 1), 2, 16),
    "hrnetv2_w48": Architecture(4, 64, (1, 4, 3), 4, 48),
}


def hrnetv2(name: str, num_classes: int, in_channels: int = 3) -> "HRNetV2":
    """Build an HRNetV2 by name, with batch normalization and fresh weights.

    Args:
        name: ``"hrnetv2_w18_small_v1"`` (1,540,819 parameters with 19 classes, 72 norm layers) or
            ``"hrnetv2_w48"`` (65,859,379 and 306).
        num_classes: channels of the logits.
        in_channels: channels of the images.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown HRNet {name!r}; known are {', '.join(ARCHITECTURES)}")
    return HRNetV2(ARCHITECTURES[name], num_classes, in_channels)


class HRNetV2(nn.Module):
    """Four branches at strides 4, 8, 16 and 32, joined at stride 4 and classified per pixel.

    Upsampling is bilinear with ``align_corners=False``, the default the cited code relied on; its
    later branches, with OCR, train with ``True``.

    Initialized as in the cited code: convolution weights are normal with standard deviation 0.001,
    norm layers start at weight 1 and bias 0, and the biases of the head's two convolutions (no
    other has one) keep PyTorch's default, uniform within ``1 / sqrt(fan_in)``.

    Args:
        architecture: depths and widths.
        num_classes: channels of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, architecture: Architecture, num_classes: int, in_channels: int = 3):
        super().__init__()
        stage1_width = Bottleneck.expansion * architecture.bottleneck_width
        widths = [architecture.width * 2**branch for branch in range(4)]
        head_width = sum(widths)

        self.conv1 = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm(64)
        self.conv2 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = BatchNorm(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _bottlenecks(architecture)

        self.transition1 = _transition([stage1_width], widths[:2])
        self.stage2 = _stage(architecture, widths[:2])
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(architecture, widths[:3])
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = _stage(architecture, widths)

        self.last_layer = nn.Sequential(
            nn.Conv2d(head_width, head_width, 1),
            BatchNorm(head_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(head_width, num_classes, 1),
        )

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of float images ``[N, in_channels, H, W]``, any ``H`` and ``W``.

        Returns:
            ``[N, num_classes, ceil(H / 4), ceil(W / 4)]``, not upsampled to the image.
        """
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # The new branch starts from the coarsest one there is.
            inputs = [*maps, maps[-1]]
            maps = stage([layer(x) for layer, x in zip(transition, inputs, strict=True)])
        size = maps[0].shape[-2:]
        return self.last_layer(torch.cat([_resize(x, size) for x in maps], dim=1))


class MultiResolutionModule(nn.Module):
    """Basic blocks on every branch, then every branch becomes the sum over all branches.

    For the sum, a finer branch is brought down by 3 x 3 convolutions of stride 2, a coarser one by
    a 1 x 1 convolution and bilinear upsampling to the very size of the branch it is added to.

    Args:
        widths: channels of the branches, finest first.
        num_blocks: basic blocks per branch.
    """

    def __init__(self, widths: list[int], num_blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(BasicBlock(width, width, norm_layer=BatchNorm) for _ in range(num_blocks))
            )
            for width in widths
        )
        # fuse_layers[target][source]
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Feature maps ``[N, widths[b], h_b, w_b]`` to as many of the same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        sums = []
        for target, layers in enumerate(self.fuse_layers):
            first, *others = cast(nn.ModuleList, layers)
            total = first(maps[0])
            for source, layer in enumerate(others, start=1):
                x = layer(maps[source])
                total = total + (_resize(x, maps[target].shape[-2:]) if source > target else x)
            sums.append(F.relu(total))
        return sums


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _conv3x3(in_width: int, out_width: int, stride: int, relu: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False),
        BatchNorm(out_width),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def _bottlenecks(architecture: Architecture) -> nn.Sequential:
    """Stage 1: 64 channels to four times the bottleneck's."""
    inner = architecture.bottleneck_width
    outer = Bottleneck.expansion * inner
    shortcut = nn.Sequential(nn.Conv2d(64, outer, 1, bias=False), BatchNorm(outer))
    blocks = [Bottleneck(64, inner, downsample=shortcut, norm_layer=BatchNorm)]
    for _ in range(1, architecture.bottlenecks):
        blocks.append(Bottleneck(outer, inner, norm_layer=BatchNorm))
    return nn.Sequential(*blocks)


def _transition(old_widths: list[int], new_widths: list[int]) -> nn.ModuleList:
    """One layer per new branch: to another width where that changes, and down for the last."""
    layers = [
        nn.Identity() if old == new else _conv3x3(old, new, stride=1)
        for old, new in zip(old_widths, new_widths, strict=False)
    ]
    coarsest = nn.Sequential(_conv3x3(old_widths[-1], new_widths[-1], stride=2))
    return nn.ModuleList([*layers, coarsest])


def _stage(architecture: Architecture, widths: list[int]) -> nn.Sequential:
    """A stage is identified by its number of branches: stage 2 has two."""
    num_modules = architecture.modules[len(widths) - 2]
    return nn.Sequential(
        *(MultiResolutionModule(widths, architecture.blocks) for _ in range(num_modules))
    )


def _fuse_layer(widths: list[int], source: int, target: int) -> nn.Module:
    """What brings branch ``source`` to the width of ``target`` and, if finer, to its size."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(widths[source], widths[target], 1, bias=False), BatchNorm(widths[target])
        )
    steps = target - source
    # Width changes, and the ReLU is left out, at the last step.
    down = [_conv3x3(widths[source], widths[source], stride=2) for _ in range(steps - 1)]
    return nn.Sequential(*down, _conv3x3(widths[source], widths[target], stride=2, relu=False))

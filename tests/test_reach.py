"""Reach and total stride of layers by audit(), against layers in which one pixel is changed."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lcn import (
    LearnedContextNorm,
    LocalContextNorm,
    ReleasedLocalContextNorm,
    TiledLocalContextNorm,
    audit,
)
from lcn.batch_renorm import BatchRenorm2d
from lcn.fake_run import FakeModel
from lcn.functional import local_context_norm
from lcn.reach import follow
from lcn.siblings import LocalContrastNorm, LocalResponseNorm, PositionalNorm

CHANNELS = 4


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def resized(**how):
    return Function(lambda x: F.interpolate(x, **how))


def conv(kernel, **how):
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, **how)


def deconv(kernel, **how):
    return nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, **how)


def up_and_down(x):
    """Two scales joined, as in a U-Net, at sizes that do not fit."""
    low = F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:], mode="bilinear")
    return torch.cat([x, low], dim=1) * torch.ones_like(x[:, :1])


def attention_in_windows(x):
    """Each cell looks at all cells of its 3 x 3 window; sides are multiples of 3."""
    n, c, h, w = x.shape
    cells = x.view(n, c, h // 3, 3, w // 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, c)
    mixed = (cells @ cells.transpose(1, 2)).softmax(-1) @ cells
    return mixed.view(n, h // 3, w // 3, 3, 3, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def channels_last_block(x):
    y = F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,))
    return x + F.gelu(F.linear(y, torch.ones(CHANNELS, CHANNELS).double())).permute(0, 3, 1, 2)


def learned_by_group():
    """Windows that have changed since their start; the second group's is larger."""
    norm = LearnedContextNorm(CHANNELS, 2, 3, window_per_group=True)
    norm.log_growth.data[0] = -0.4
    norm.log_growth.data[1] = 0.6
    return norm


def in_windows_of_the_map(x):
    window = tuple(torch.full(x.shape[2:], side) for side in x.shape[2:])
    return local_context_norm(x, channels_per_group=2, window=window)


LAYERS = {
    "conv": lambda: conv(3, padding=1),
    "conv stride": lambda: conv(5, stride=2, padding=2),
    "conv dilated": lambda: conv(3, dilation=2, padding=1),
    "conv unpadded, even": lambda: conv((4, 2)),
    "conv 1 x 1 stride": lambda: conv(1, stride=2),
    "conv by axis": lambda: conv((3, 5), stride=(2, 1), padding=(0, 2)),
    "conv grouped, string padding": lambda: conv(4, padding="same", groups=2),
    "transposed": lambda: deconv(2, stride=2),
    "transposed with overlap": lambda: deconv(3, stride=2, padding=1, output_padding=1),
    "transposed dilated": lambda: deconv((3, 2), stride=3, dilation=2),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool ceil": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d(4),
    "pool to one cell": lambda: nn.AdaptiveAvgPool2d(1),
    "nearest": lambda: resized(scale_factor=2),
    "nearest to a size": lambda: resized(size=(20, 7)),
    "nearest exact": lambda: resized(size=(20, 7), mode="nearest-exact"),
    "bilinear": lambda: resized(scale_factor=2, mode="bilinear"),
    "bilinear by 1.5": lambda: resized(scale_factor=1.5, mode="bilinear"),
    "bilinear by 1": lambda: resized(size=(12, 9), mode="bilinear"),
    "bilinear to a size": lambda: resized(size=(17, 5), mode="bilinear"),
    "bilinear, corners": lambda: resized(size=(23, 17), mode="bilinear", align_corners=True),
    "bicubic": lambda: resized(scale_factor=2, mode="bicubic"),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "pixel unshuffle": lambda: nn.PixelUnshuffle(3),
    "zero pad": lambda: nn.ZeroPad2d((1, 2, 3, -1)),
    "replication pad": lambda: nn.ReplicationPad2d((1, 2, 3, 0)),
    "reflection pad": lambda: nn.ReflectionPad2d((1, 2, 3, 0)),
    "crop": lambda: Function(lambda x: x[:, :, 2:-1, 1::2]),
    "flip": lambda: Function(lambda x: x.flip(2) + x),
    "rows mixed": lambda: Function(lambda x: x * x.mean(3, keepdim=True)),
    "split, stack, sum": lambda: Function(lambda x: torch.stack(x.split(2, dim=1)).sum(0)),
    "gate": lambda: Function(lambda x: F.glu(x, dim=1)),
    "gate along rows": lambda: Function(lambda x: F.glu(x, dim=2)),
    "two scales": lambda: Function(up_and_down),
    "windows of attention": lambda: Function(attention_in_windows),
    "channels last": lambda: Function(channels_last_block),
    "in place": lambda: Function(lambda x: x.clone().mul_(2).relu_().add_(x)),
    "lcn": lambda: LocalContextNorm(CHANNELS, 2, 3),
    "lcn even": lambda: LocalContextNorm(CHANNELS, 2, (4, 5)),
    "lcn covers one axis": lambda: LocalContextNorm(CHANNELS, 2, (20, 5)),
    "lcn all": lambda: LocalContextNorm(CHANNELS, 2, "all"),
    "lcn released": lambda: ReleasedLocalContextNorm(CHANNELS, 2, (4, 5)),
    "lcn released covers one axis": lambda: ReleasedLocalContextNorm(CHANNELS, 2, (12, 5)),
    "lcn tiled": lambda: TiledLocalContextNorm(CHANNELS, 2, (5, 4)),
    "lcn learned": lambda: LearnedContextNorm(CHANNELS, 2, (3.3, 4.0)),
    "lcn learned covers one axis": lambda: LearnedContextNorm(CHANNELS, 2, (2.7, 9.5)),
    "lcn learned by group": lambda: learned_by_group(),
    "lcn window per point": lambda: Function(in_windows_of_the_map),
    "gn": lambda: nn.GroupNorm(2, CHANNELS),
    "bn": lambda: nn.BatchNorm2d(CHANNELS),
    "bn of the batch": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "in": lambda: nn.InstanceNorm2d(CHANNELS),
    "pn": lambda: PositionalNorm(CHANNELS),
    "lrn": lambda: LocalResponseNorm(CHANNELS),
    "contrast": lambda: LocalContrastNorm(CHANNELS, 5),
    "brn": lambda: BatchRenorm2d(CHANNELS),
}


def changed_by(model, shape, axis):
    """Whether result cell i changes when pixel j of an axis does: bool [cells, pixels]."""
    x = torch.randn(shape, dtype=torch.float64)
    before = model(x)
    columns = []
    for pixel in range(shape[axis + 2]):
        moved = x.clone()
        moved.select(axis + 2, pixel).add_(3 + torch.rand(shape[1], 1).double())
        other = [d for d in range(before.dim()) if d != axis + 2]
        # Sums that slide along a map leave rounding errors behind them.
        columns.append(((model(moved) - before).abs() > 1e-9).any(dim=other[0]))
        for d in sorted(other[1:], reverse=True):
            columns[-1] = columns[-1].any(dim=d - 1)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_every_cell_depends_on_the_pixels_that_change_it(name, axis):
    torch.manual_seed(0)
    model = LAYERS[name]().double().eval()
    shape = (1, CHANNELS, 12, 9)
    with torch.no_grad():
        changes = changed_by(model, shape, axis)
    [output] = follow(FakeModel(model), shape, axis)
    assert not output.unknown
    others = tuple(d + 1 for d in range(len(output.shape)) if d != axis + 2)
    bounds = output.bounds.min(axis=others)
    for cell, pixels in enumerate(changes):
        first, last = bounds[:, cell if bounds.shape[1] > 1 else 0] * [1, -1]
        found = pixels.nonzero().flatten().tolist()
        if found:
            assert (first, last) == (found[0], found[-1]), cell
        else:
            assert first > last, cell


def test_layers_that_see_the_whole_map_are_named():
    model = nn.Sequential(
        conv(3, padding=1),
        nn.GroupNorm(2, CHANNELS),
        LocalContextNorm(CHANNELS, 2, 5),
        nn.Sequential(LocalContextNorm(CHANNELS, 2, (40, 5)), nn.BatchNorm2d(CHANNELS)),
        torchvision.ops.SqueezeExcitation(CHANNELS, 2),
    )
    found = audit(model, (CHANNELS, 32, 32))
    assert found.network.unlimited_by == ("1", "3.0", "4.avgpool")
    assert found.reach == (math.inf, math.inf)
    assert "unlimited by: 1, 3.0, 4.avgpool" in str(found)
    assert audit(model[3], (CHANNELS, 32, 32)).reach == (math.inf, 4)
    assert audit(model[3], (CHANNELS, 48, 48)).reach == (39, 4)


def test_a_learned_window_reaches_as_far_as_it_has_grown():
    model = nn.Sequential(LearnedContextNorm(CHANNELS, 2, 5), conv(3, padding=1))
    assert audit(model, (CHANNELS, 32, 32)).reach == (4, 4)
    model[0].log_growth.data[0] = torch.tensor([7.5 / 5, 29.5 / 5]).log()
    assert audit(model, (CHANNELS, 32, 64)).reach == (7, 29)
    covered = audit(model, (CHANNELS, 32, 29))
    assert covered.reach == (7, math.inf)
    assert covered.network.unlimited_by == ("0",)


def test_total_stride():
    by_axis = nn.Sequential(conv(3, stride=(2, 3)), nn.Upsample(scale_factor=2), conv(5, stride=3))
    assert audit(by_axis, (CHANNELS, 60, 60)).total_stride == (6, 9)
    tiled = nn.Sequential(conv(3, stride=2, padding=1), TiledLocalContextNorm(CHANNELS, 2, (5, 3)))
    assert audit(tiled, (CHANNELS, 60, 60)).total_stride == (10, 6)
    windows = audit(Function(attention_in_windows), (CHANNELS, 60, 60))
    assert (windows.total_stride, windows.reach) == ((3, 3), (2, 2))


def test_a_result_of_unpadded_convolutions_lies_in_the_middle_of_the_input():
    model = nn.Sequential(conv(5), conv(5), conv(3))
    assert audit(model, (CHANNELS, 40, 40)).reach == (5, 5)


def grid(x):
    places = F.affine_grid(torch.eye(2, 3)[None].to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, places, align_corners=False)


def written_into_a_part(x):
    canvas = torch.zeros_like(x)
    canvas[:, :, 1:] = x[:, :, :-1]
    return canvas


def changed_behind_a_view(x):
    x = x * 2
    part = x[:, :, 3:]
    x += F.avg_pool2d(x, 5, 1, 2)
    return part


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (grid, "grid_sampler_2d"),
        (written_into_a_part, "changed through a view"),
        (changed_behind_a_view, "changed through a view"),
        (lambda x: torch.roll(x, 1, 2), "roll"),
        (lambda x: torch.fft.fft2(x).real, "fft"),
        (lambda x: x[:, :, torch.arange(x.shape[2] - 1)], "index"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1], "max_pool2d"),
        (lambda x: x.shape[2], "returns nothing"),
        (lambda x: x if x.shape[2] < 100 else x * 2, "another path"),
        (lambda x: x.view(1, CHANNELS, 32, 32), "stopped at"),
    ],
)
def test_what_is_not_known_is_said_and_never_taken_for_pointwise(function, named):
    found = audit(Function(function), (CHANNELS, 32, 32))
    assert found.reach is None
    assert any(named in reason for reason in found.network.unknown), found.network.unknown
    assert "reach in pixels: unknown" in str(found)


def test_a_forward_that_stops_leaves_the_reach_unknown():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = LocalContextNorm(2, 2, 3)

        def forward(self, x):
            return self.norm(x) if x.sum() > 0 else x

    with pytest.warns(UserWarning, match="norm layers not reached"):
        found = audit(nn.Sequential(LocalContextNorm(2, 2, 3), Chooses()), (2, 8, 8))
    assert found.reach is None
    assert "stopped" in found.network.unknown[0]

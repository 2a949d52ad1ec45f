"""Tiles of large images: the arithmetic, and that tiles give what the whole image gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model
from tasks.prediction.network import Network, predict
from tasks.prediction.tiling import Tiling, choose_tiling, cut_axis


def test_cores_partition_any_axis_and_tiles_begin_at_multiples_of_the_stride():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        stride = int(rng.integers(1, 40))
        length, core = (int(n) for n in rng.integers(1, 400, 2))
        halo, shift = (int(n) for n in rng.integers(0, 200, 2))
        tiles = cut_axis(length, core, halo, stride, shift)
        covered = [cell for _, _, start, stop in tiles for cell in range(start, stop)]
        assert covered == list(range(length))
        for start, end, core_start, core_end in tiles:
            assert start % stride == core_start % stride == end % stride == 0
            assert core_start - start >= min(halo, core_start)
            assert end >= min(core_end + halo, length)
            assert end < length + stride


def test_the_tiles_of_an_image_are_the_product_of_its_axes():
    tiling = Tiling((70, 45), (16, 32), (8, 0), (8, 16))
    seen = np.zeros((70, 45), dtype=int)
    for tile in tiling:
        core = tile.core
        seen[core.top : core.top + core.height, core.left : core.left + core.width] += 1
    assert (seen == 1).all()
    assert len(tiling) == 10
    assert [tile.index for tile in tiling] == list(range(10))
    assert tiling.padded == (72, 48)


def network(*overrides: str) -> Network:
    """Small, untrained, with statistics, weights and biases that are not those of the start."""
    cfg = compose([*overrides, "trainer=cpu"])
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):  # HRNet's own are so small that results hardly differ
            nn.init.kaiming_normal_(module.weight)
    return Network(model, cfg).double()  # so that rounding is far below a real difference


UNET = ("task=inria", "task.model.widths=[4,4,6,6,8]")
SMP = ("task=inria", "task/model=smp", "task.model.encoder=resnet18")
HRNET = ("task=cityscapes", "data.width=0.25")
NETWORKS = {
    "unet bn": ((*UNET, "norm=bn"), (51, 417), 64),
    "unet lcn": ((*UNET, "norm=lcn", "norm.window=3"), (590, 43), 64),
    "hrnet bn": ((*HRNET, "norm=bn"), (37, 1037), 256),
    "hrnet lcn": ((*HRNET, "norm=lcn", "norm.window=2"), (37, 1701), 256),
    "smp bn": ((*SMP, "norm=bn"), (35, 1503), 256),
}
SLOW = [
    pytest.param(name, marks=pytest.mark.slow if name == "hrnet lcn" else ()) for name in NETWORKS
]


@pytest.mark.parametrize("name", SLOW)
def test_tiles_with_a_halo_of_the_reach_give_what_the_whole_image_gives(name):
    overrides, size, core = NETWORKS[name]
    net = network(*overrides)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    whole = predict(net, image, probabilities=True)
    assert choose_tiling(net, size).tiling.core is None  # this was one tile
    choice = choose_tiling(net, size, core=core, shift=(48, 48))
    assert choice.exact, choice.message
    assert len(choice.tiling) > 1
    assert np.prod(choice.tiling.largest) < np.prod(choice.tiling.padded)
    tiled = predict(net, image, core=core, shift=(48, 48), probabilities=True)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)
    short = predict(net, image, core=core, halo=0, probabilities=True)
    assert np.abs(short - whole).max() > 1e-3  # the test would notice


def test_group_norm_is_never_exact_and_says_which_layers_see_the_whole_map():
    net = network(*UNET, "norm=gn", "norm.groups=2")
    choice = choose_tiling(net, (3000, 3000), memory=200e6)
    assert not choice.exact
    assert "no halo is enough" in choice.message
    assert "model.down.0.1" in choice.message
    assert "tile mismatch of" not in choice.message
    net.tile_mismatch = 2.1088
    assert "tile mismatch of 2.1 %" in choose_tiling(net, (3000, 3000), memory=200e6).message
    assert np.prod(choice.tiling.largest) * net.bytes_per_pixel() <= 200e6
    with pytest.raises(InputError, match="lower --tile"):
        choose_tiling(net, (3000, 3000), memory=50e6)


def test_tiles_that_see_the_whole_image_are_exact_where_the_reach_is_not_known():
    net = network(*UNET, "norm=bn")
    net.audit = lambda size: SimpleNamespace(reach=None)
    assert not choose_tiling(net, (96, 96), halo=16, core=32).exact
    choice = choose_tiling(net, (96, 96), halo=96, core=32)
    assert choice.exact
    assert "sees the whole image" in choice.message


def test_blended_tiles_count_one_together_and_nothing_at_their_ends():
    for halo, core in ((16, 64), (48, 32), (96, 32)):  # the last two overlap more than neighbours
        tiling = Tiling((203, 300), (core, core), (halo, halo), (16, 16), blend=True)
        for axis, length in enumerate(tiling.size):
            total = np.zeros(length)
            axes = [t.whole(tiling.size).core for t in tiling.bands[0]]
            starts = [place.left for place in axes]
            if axis == 0:
                starts = [band[0].whole(tiling.size).core.top for band in tiling.bands]
            weights = tiling.weights(axis)
            for start, weight in zip(starts, weights, strict=True):
                total[start : start + len(weight)] += weight
                if start > 0:
                    assert weight[0] < 0.01
            np.testing.assert_allclose(total, 1)
            assert weights[0][0] > 0.5
    first, second = Tiling((64, 64), (32, 32), (16, 16), (16, 16), blend=True).weights(0)
    np.testing.assert_allclose(first[16:48], (1 + np.cos(np.pi * (np.arange(32) + 0.5) / 32)) / 2)
    np.testing.assert_allclose(second[:32], 1 - first[16:48])


def test_blending_is_the_weighted_mean_over_all_tiles_and_left_out_where_tiles_are_exact():
    net = network("task=inria", "task.model.widths=[4,4]", "norm=gn", "norm.groups=2")
    image = np.random.default_rng(1).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    blended = predict(net, image, core=16, halo=8, blend=True, probabilities=True)
    np.testing.assert_allclose(blended.sum(0), 1, atol=1e-5)
    tiling = choose_tiling(net, (37, 51), 8, 16, blend=True).tiling
    want = np.zeros((2, 37, 51))
    padded = np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge")
    for tile in tiling:
        window, place = tile.window, tile.whole((37, 51)).core
        rows, columns = divmod(tile.index, 4)
        part = padded[window.top :, window.left :][: window.height, : window.width]
        with torch.inference_mode():
            found = net.probabilities(net(net.prepare(part)[None]))[0].numpy()
        weight = tiling.weights(0)[rows][:, None] * tiling.weights(1)[columns]
        inside = np.s_[:, place.top : place.top + place.height, place.left :][:2]
        target = want[inside][..., place.left : place.left + place.width]
        target += found[:, : place.height, : place.width] * weight
    np.testing.assert_allclose(blended, want, atol=1e-5)
    exact = network("task=inria", "task.model.widths=[4,4]", "norm=bn")
    assert not choose_tiling(exact, (37, 51), 16, 16, blend=True).tiling.blend
    with pytest.raises(InputError, match="needs a halo"):
        choose_tiling(net, (37, 51), 0, 16, blend=True)

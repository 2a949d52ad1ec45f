"""Tiles of large images: the arithmetic, and that tiles give what the whole image gives."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model
from tasks.prediction.network import Network, choose_tiling, predict
from tasks.prediction.tiling import Tiling, cut_axis


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
NETWORKS = {
    "unet bn": ((*UNET, "norm=bn"), (301, 417), 64),
    "unet lcn": ((*UNET, "norm=lcn", "norm.window=3"), (590, 230), 64),
    "hrnet bn": (("task=cityscapes", "norm=bn"), (37, 1037), 256),
    "hrnet lcn": (("task=cityscapes", "norm=lcn", "norm.window=2"), (37, 1701), 256),
    "smp bn": (("task=inria", "task/model=smp", "norm=bn"), (35, 1503), 256),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_with_a_halo_of_the_reach_give_what_the_whole_image_gives(name):
    overrides, size, core = NETWORKS[name]
    net = network(*overrides)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    whole = predict(net, image, probabilities=True)
    assert choose_tiling(net, size).tiling.core is None  # this was one tile
    for shift in (0, 32, 48):
        choice = choose_tiling(net, size, core=core, shift=(shift, shift))
        assert choice.exact, choice.message
        assert len(choice.tiling) > 1
        assert np.prod(choice.tiling.largest) < np.prod(choice.tiling.padded)
        tiled = predict(net, image, core=core, shift=(shift, shift), probabilities=True)
        np.testing.assert_allclose(tiled, whole, atol=1e-6)
    short = predict(net, image, core=core, halo=0, probabilities=True)
    assert np.abs(short - whole).max() > 1e-3  # the test would notice


def test_group_norm_is_never_exact_and_says_which_layers_see_the_whole_map():
    net = network(*UNET, "norm=gn", "norm.groups=2")
    choice = choose_tiling(net, (3000, 3000), memory=200e6)
    assert not choice.exact
    assert "no halo is enough" in choice.message
    assert "model.down.0.1" in choice.message
    assert np.prod(choice.tiling.largest) * net.bytes_per_pixel <= 200e6
    with pytest.raises(InputError, match="lower --tile"):
        choose_tiling(net, (3000, 3000), memory=50e6)

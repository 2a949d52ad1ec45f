"""Reach and total stride of networks by audit(), against networks in which one pixel is changed."""

import math

import pytest
import torch
import torchvision
from torch import nn

from lcn import LocalContextNorm, audit, convert_norm


def linear(model):
    """A stand-in that only adds up what a network reads, so that no change is lost.

    Convolutions take the mean of what they read; batch norms change nothing; LCN layers are
    replaced by the mean over their window, row by row from its definition.
    """
    for name, module in list(model.named_modules()):
        replacement = None
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            replacement = ConvolutionMean(module)
        elif type(module) is nn.BatchNorm2d:
            replacement = nn.Identity()
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # many networks begin with zeros
        elif isinstance(module, LocalContextNorm):
            replacement = WindowMean(module.window)
        if replacement is not None:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], replacement)
    return model.double().eval()


class ConvolutionMean(nn.Module):
    """A convolution of the same geometry, all of whose weights are the same."""

    def __init__(self, layer):
        super().__init__()
        self.channels = layer.out_channels
        how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        if isinstance(layer, nn.ConvTranspose2d):
            how["output_padding"] = layer.output_padding
        self.one = type(layer)(1, 1, layer.kernel_size, bias=False, **how)
        nn.init.constant_(self.one.weight, 1 / self.one.weight.numel())

    def forward(self, x):
        y = self.one(x.mean(1, keepdim=True))
        return y.expand(-1, self.channels, -1, -1).clone()


class WindowMean(nn.Module):
    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, x):
        for dim, p in zip((2, 3), self.window, strict=True):
            size = x.shape[dim]
            width = min(p, size)
            starts = [max(0, min(i - width // 2, size - width)) for i in range(size)]
            x = torch.stack([x.narrow(dim, s, width).mean(dim) for s in starts], dim=dim)
        return x.mean(1, keepdim=True).expand_as(x).clone()


def measured_reach(model, length, width, pixels):
    """Largest distance between a changed pixel and a changed result, over rows."""
    farthest = 0
    x = torch.ones(1, 3, length, width, dtype=torch.float64)
    for start in range(0, len(pixels), 8):
        some = pixels[start : start + 8]
        moved = x.repeat(len(some), 1, 1, 1)
        for sample, pixel in enumerate(some):
            moved[sample, :, pixel] = 1e200
        with torch.no_grad():
            results, befores = model(moved), model(x)
        if isinstance(results, torch.Tensor):
            results, befores = [results], [befores]
        for result, before in zip(results, befores, strict=True):
            stride = length / result.shape[2]
            for pixel, changed in zip(some, (result != before).amax((1, 3)), strict=True):
                for cell in changed.nonzero().flatten().tolist():
                    first, last = math.floor(cell * stride), math.ceil((cell + 1) * stride) - 1
                    farthest = max(farthest, first - pixel, pixel - last)
    return farthest


def unet(norm=None, widths=(2, 2, 2, 2, 2), **how):
    model = pytest.importorskip("tasks.models.unet").UNet(3, 2, widths=widths, **how)
    return model if norm is None else convert_norm(model, norm)


def hrnet(norm=None, architecture=(1, 2, (1, 1, 1), 2, 2)):
    """HRNetV2-W18-Small-v1, but for its widths."""
    module = pytest.importorskip("tasks.models.hrnet")
    model = module.HRNetV2(module.Architecture(*architecture), num_classes=2)
    return model if norm is None else convert_norm(model, norm)


def features(name):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, features_only=True)


def smp_unet(encoder="resnet18"):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet(encoder, encoder_weights=None, decoder_channels=(16, 8, 8, 4, 4))


def fcn():
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)


class Listed(nn.Module):
    """A model's results as a list, be they in a list or a dict."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        results = self.body(x)
        return list(results.values() if isinstance(results, dict) else results)


def pyramid():
    """The backbone of Mask R-CNN."""
    return torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )


LCN = {"name": "lcn", "c_group": 1, "window": [3, 4]}


def assert_reach_is_that_of_pixels(model, length, width=32, shape=(3, 64, 64), every=False):
    """One period of pixels in the middle is changed, and those that the borders may just see."""
    found = audit(model, shape)
    reach, stride = int(found.reach[0]), found.total_stride[0]
    assert length > 2 * reach + 2 * stride
    middle = range(length // 2, length // 2 + stride)
    near = range(reach - stride, reach + stride)
    pixels = [*middle, *near, *(length - 1 - pixel for pixel in near)]
    pixels = [*range(length)] if every else pixels
    assert measured_reach(linear(model), length, width, pixels) == reach


def test_the_unet_reaches_as_far_as_a_changed_pixel():
    assert_reach_is_that_of_pixels(unet(), 512)
    assert_reach_is_that_of_pixels(unet(transposed=False, convolutions=3), 768)


def test_the_reach_of_windows_includes_what_they_see_at_the_borders():
    window = {"name": "lcn", "c_group": 1, "window": [6, 4]}
    assert_reach_is_that_of_pixels(unet(window, widths=(1, 1, 1)), 240, width=12, every=True)
    assert audit(convert_norm(nn.BatchNorm2d(1), window), (1, 9, 9)).reach == (5, 3)


def test_hrnet_reaches_as_far_as_a_changed_pixel():
    assert_reach_is_that_of_pixels(hrnet(), 1024)


@pytest.mark.slow
def test_hrnet_with_lcn_and_w48_reach_as_far_as_a_changed_pixel():
    assert_reach_is_that_of_pixels(hrnet(LCN), 2560, shape=(3, 256, 256))
    w48 = hrnet(architecture=(4, 2, (1, 4, 3), 4, 2))
    assert audit(w48, (3, 64, 64)).reach == (1443, 1443)
    assert_reach_is_that_of_pixels(w48, 3200)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet50", "res2net50_26w_4s", "dla34", "mobilenetv4_conv_small"]
)
def test_networks_of_timm_reach_as_far_as_a_changed_pixel(name):
    assert_reach_is_that_of_pixels(Listed(features(name)), 1536)


@pytest.mark.slow
@pytest.mark.parametrize("build", [lambda: Listed(pyramid()), lambda: Listed(fcn()), smp_unet])
def test_networks_of_torchvision_and_smp_reach_as_far_as_a_changed_pixel(build):
    assert_reach_is_that_of_pixels(build(), 1280)


def largest_difference(model, image, core, halo, stride, cores=None):
    """Between the prediction of tiles, whose cores are kept, and that of the whole image."""
    with torch.no_grad():
        whole = model(image)
        assert whole.isfinite().all()
        height = image.shape[2]
        pixels = round(height / whole.shape[2])
        halo = -(-halo // stride) * stride
        worst = 0.0
        for top in cores or range(0, height, core):
            start, end = max(0, top - halo), min(height, top + core + halo)
            part = model(image[:, :, start:end])
            kept = slice((top - start) // pixels, (min(top + core, height) - start) // pixels)
            same = whole[:, :, top // pixels :][:, :, : kept.stop - kept.start]
            worst = max(worst, float((part[:, :, kept] - same).abs().max()))
    return worst


def randomized(model):
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
    return model.double().eval()


@pytest.mark.parametrize("norm", [None, LCN, {**LCN, "name": "lcn_released"}])
@pytest.mark.parametrize("transposed", [True, False])
def test_tiles_of_a_unet_give_what_the_whole_image_gives(norm, transposed):
    model = randomized(unet(norm, widths=(4, 4, 4), transposed=transposed))
    image = torch.randn(1, 3, 203, 37, dtype=torch.float64)
    found = audit(model, tuple(image.shape))
    reach, stride = int(found.reach[0]), found.total_stride[0]
    assert not found.network.sized_by
    # Cores of one stride: those at the border too see nothing beyond the halo.
    assert largest_difference(model, image, stride, reach, stride) < 1e-9
    assert largest_difference(model, image, stride, reach // 2, stride) > 1e-6


@pytest.mark.parametrize("norm", [None, {**LCN, "window": 3}])
def test_tiles_of_hrnet_give_what_the_whole_image_gives_at_multiples_of_its_stride(norm):
    model = randomized(hrnet(norm))
    found = audit(model, (1, 3, 2048, 32))
    reach, stride = int(found.reach[0]), found.total_stride[0]
    assert stride == 32
    halo = -(-reach // stride) * stride
    image = torch.randn(1, 3, 2 * halo + 96, 32, dtype=torch.float64)
    assert not audit(model, tuple(image.shape)).network.sized_by
    cores = [0, halo + 32, 2 * halo + 64]
    assert largest_difference(model, image, 32, reach, stride, cores) < 1e-9
    # At other sizes its branches are resized by other factors.
    image = image[:, :, :-13]
    assert audit(model, tuple(image.shape)).network.sized_by
    assert largest_difference(model, image, 32, reach, stride, [0]) > 1e-9


def test_tiles_of_a_padded_smp_network_give_what_the_whole_image_gives():
    smp = pytest.importorskip("segmentation_models_pytorch")
    padded = pytest.importorskip("tasks.models.smp").PaddedInput
    for norm in (None, LCN):
        body = smp.Unet("resnet18", 3, None, decoder_channels=(8, 4, 4))
        model = padded(body if norm is None else convert_norm(body, norm), multiple=8)
        model = randomized(model)
        image = torch.randn(1, 3, 651, 24, dtype=torch.float64)
        found = audit(model, tuple(image.shape))
        reach, stride = int(found.reach[0]), found.total_stride[0]
        assert stride == 8
        cores = [0, 8, 320, 640, 648]
        assert largest_difference(model, image, 8, reach, stride, cores) < 1e-9


def test_a_window_that_covers_the_map_at_this_size_is_unlimited_and_finite_at_a_larger_one():
    model = unet({**LCN, "window": 33})
    assert audit(model, (3, 512, 512)).reach == (math.inf, math.inf)
    assert math.isfinite(audit(model, (3, 544, 544)).reach[0])


def test_total_stride_of_networks():
    assert audit(unet(), (3, 64, 96)).total_stride == (16, 16)
    assert audit(hrnet(), (3, 64, 96)).total_stride == (32, 32)
    assert audit(pyramid(), (3, 64, 96)).total_stride == (64, 64)

"""The paper's two U-Nets, and the networks of segmentation_models_pytorch."""

import pytest
import torch
from torch import nn

from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model, check_training_size
from tasks.models.unet import UNet
from tasks.modules.segmentation import Segmentation


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_cited_land_cover_network_has_its_known_size():
    model = UNet(4, 5, (64, 32, 32, 32, 32), convolutions=3, transposed=False)
    assert parameters(model) == 478_021
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == 27


def test_the_original_network_has_its_known_size():
    # 31,037,633 is that of a widely used copy with 3 inputs and 1 output, which drops the biases of
    # the 18 convolutions before a norm.
    model = UNet(3, 1)
    biases = 4 * (64 + 128 + 256 + 512) + 2 * 1024
    assert parameters(model) == 31_037_633 + biases
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == 18


@pytest.mark.parametrize("size", [(16, 16), (143, 143), (35, 50), (572 // 8, 97)])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_result_has_the_image_s_size(size, transposed):
    model = UNet(3, 2, (4, 4, 8, 8, 8), 2, transposed).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 2, *size)


def test_the_larger_land_cover_network_has_its_known_size():
    model = build_model(compose(["experiment=large_table8_bn"]))
    assert parameters(model) == 5_991_749


class Shapes:
    """Duke's ``UnetModel_Origin`` as its source describes it: channels and sides, nothing else."""

    def __init__(self, side, first=32):
        self.parameters, self.side, self.channels = 0, side, 3
        skips = []
        for level in range(5):
            self.two_convolutions(first * 2**level)
            skips.append((self.side, self.channels))
            if level < 4:
                assert self.side % 2 == 0
                self.side //= 2
        for level, cut in zip(range(3, -1, -1), (8, 32, 80, 176), strict=True):
            side, channels = skips[level]
            self.side *= 2
            assert self.side == side - cut  # what crop_upsample_concat cuts off
            self.channels += channels
            self.two_convolutions(first * 2**level)
        self.parameters += self.channels + 1

    def two_convolutions(self, width):
        for _ in range(2):  # 3 x 3 with a bias, then scale and shift of the norm
            self.parameters += 9 * self.channels * width + width + 2 * width
            self.channels, self.side = width, self.side - 2


def test_duke_s_network_has_the_size_and_the_result_of_its_source():
    known = Shapes(572)
    assert known.side == 388
    with torch.device("meta"):
        model = UNet(3, 1, (32, 64, 128, 256, 512), 2, transposed=None, padded=False)
        assert parameters(model) == known.parameters == 7_852_545
        assert model.margin == (572 - 388) // 2
        assert model.train()(torch.empty(1, 3, 572, 572)).shape == (1, 1, 388, 388)
        assert model.train()(torch.empty(1, 3, 188, 204)).shape == (1, 1, 4, 20)
        assert model.eval()(torch.empty(1, 3, 572, 101)).shape == (1, 1, 572, 101)


def test_sides_that_do_not_go_through_unpadded_convolutions_are_refused():
    model = UNet(3, 1, (2, 2, 2, 2, 2), padded=False).train()
    for side in (143, 172, 570, 571, 573):
        with pytest.raises(ValueError, match=f"a side of {side} .* must be 188 pixels, or more"):
            model(torch.randn(1, 3, 572, side))
    cfg = compose(["experiment=duke_table7_gn", "data.crop=[570,570]"])
    with pytest.raises(InputError, match="a side of 570"):
        check_training_size(build_model(cfg), cfg)


def test_an_unpadded_network_sees_no_padding_within_its_margin():
    """In evaluation an image's middle is what the convolutions without padding give of it."""
    torch.manual_seed(0)
    model = UNet(3, 2, (2, 2, 3, 3, 4), 2, transposed=None, padded=False).double().eval()
    image = torch.randn(1, 3, 236, 268, dtype=torch.float64)
    with torch.no_grad():
        whole, alone = model(image), model._forward(image)  # the latter as in training
    assert (whole.shape[-2:], alone.shape[-2:]) == ((236, 268), (52, 84))
    torch.testing.assert_close(whole[..., 92:-92, 92:-92], alone, rtol=0, atol=1e-12)


def test_the_loss_is_on_the_part_that_an_unpadded_network_gives():
    cfg = compose(["experiment=duke_table7_gn", "data=mini"])
    module = Segmentation(build_model(cfg), cfg, {}).train()
    module.log = lambda *_, **__: None
    assert list(cfg.data.crop) == [284, 284]
    image, label = torch.randn(1, 3, 284, 284), torch.randint(2, (1, 284, 284))
    outside = label.clone()
    outside[:, :92] = outside[:, -92:] = 1
    outside[..., :92] = outside[..., -92:] = 1
    losses = [module.training_step({"image": image, "label": x}, 0) for x in (label, outside)]
    expected = nn.functional.binary_cross_entropy_with_logits(
        module.model(image)[:, 0], label[:, 92:192, 92:192].float()
    )
    assert losses[0].item() == losses[1].item() == pytest.approx(expected.item())


def test_a_margin_that_is_not_the_network_s_is_named():
    cfg = compose(["experiment=duke_table7_gn", "task.model.margin=90"])
    with pytest.raises(InputError, match=r"task.model.margin=90: 5 levels of 2 .* have 92"):
        build_model(cfg)


@pytest.mark.parametrize("experiment", ["table7", "table8"])
@pytest.mark.parametrize("norm", ["bn", "gn", "lcn"])
def test_rows_of_tables_7_and_8_build_with_their_norm(experiment, norm):
    model = build_model(compose([f"experiment={experiment}_{norm}"]))
    count = {"table7": 18, "table8": 27}[experiment]
    known = {"bn": "BatchNorm2d", "gn": "GroupNorm", "lcn": "LocalContextNorm"}
    assert sum(type(layer).__name__ == known[norm] for layer in model.modules()) == count


@pytest.mark.parametrize("task", ["inria", "chesapeake"])
def test_smp_networks_have_their_norms_converted_and_take_any_size(task):
    cfg = compose([
        f"task={task}", "task/model=smp", "task.model.arch=Unet",
        "task.model.encoder=resnet18", "norm=lcn", "norm.c_group=4", "norm.window=31",
    ])  # fmt: skip
    model = build_model(cfg).eval()
    names = [type(layer).__name__ for layer in model.modules()]
    assert "BatchNorm2d" not in names
    assert names.count("LocalContextNorm") == 20 + 10  # encoder and decoder
    bands = len(cfg.task.bands)
    with torch.no_grad():
        assert model(torch.randn(1, bands, 50, 71)).shape == (1, cfg.task.outputs, 50, 71)


def test_unknown_smp_names_are_explained():
    for override, message in (
        ("task.model.arch=Unext", "task.model.arch=Unext: choose one of"),
        ("task.model.encoder=resnet33", "task.model.encoder=resnet33: no such encoder; try resnet"),
    ):
        with pytest.raises(InputError, match=message):
            build_model(compose(["task=inria", "task/model=smp", override]))

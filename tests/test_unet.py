"""The paper's two U-Nets, and the networks of segmentation_models_pytorch."""

import pytest
import torch
from torch import nn

from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model
from tasks.models.unet import UNet


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

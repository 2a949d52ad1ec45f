"""build_norm() and convert_norm(): configs, and other people's models."""

import copy

import pytest
import timm
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn

from lcn import (
    LocalContextNorm,
    ReleasedLocalContextNorm,
    TiledLocalContextNorm,
    audit,
    build_norm,
    convert_norm,
)
from lcn.sync_batch_norm import SyncBatchNorm

LCN = {"name": "lcn", "c_group": 2, "window": 5}


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ({"name": "bn", "momentum": 0.3}, nn.BatchNorm2d(8, momentum=0.3)),
        ({"name": "sync_bn", "eps": 1e-3}, SyncBatchNorm(8, eps=1e-3)),
        ({"name": "gn", "groups": 4}, nn.GroupNorm(4, 8)),
        ({"name": "gn", "groups": "C"}, nn.GroupNorm(8, 8)),
        ({"name": "in"}, nn.GroupNorm(8, 8)),
        ({"name": "ln", "eps": 1e-6}, nn.GroupNorm(1, 8, eps=1e-6)),
        (LCN, LocalContextNorm(8, 2, 5)),
        ({"name": "lcn", "c_group": "C", "window": [3, 7]}, LocalContextNorm(8, 8, (3, 7))),
        ({"name": "lcn", "groups": 2, "window": 3}, LocalContextNorm(8, num_groups=2, window=3)),
        ({"name": "lcn_tiled", "groups": "C", "c_group": None}, TiledLocalContextNorm(8, 1)),
        ({"name": "lcn_released", "window": "all"}, ReleasedLocalContextNorm(8, 2, "all")),
        ({"name": "lcn_tiled", "window": None}, TiledLocalContextNorm(8, 2, 227)),
    ],
)
def test_a_config_makes_the_layer_it_describes(norm, expected):
    for config in (norm, OmegaConf.create(norm)):
        layer = build_norm(config)(8)
        assert type(layer) is type(expected)
        assert repr(layer) == repr(expected)


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ({"name": "lcm"}, "norm.name must be one of bn, .*got 'lcm'; did you mean 'lcn'"),
        ({"window": 3}, "norm.name must be one of"),
        ({"name": "lcn", "cgroup": 2}, "got 'cgroup'; did you mean 'c_group'"),
        ({"name": "gn", "window": 3}, "'window' does nothing for 'gn'; it takes groups, eps"),
        ({"name": "gn", "groups": 0}, "norm.groups must be a positive int, 'C' or 'keep', got 0"),
        ({"name": "gn", "groups": True}, "norm.groups must be a positive int"),
        ({"name": "lcn", "window": [0, 3]}, "window must be"),
        ({"name": "lcn", "eps": -1}, "norm.eps must be a number of at least 0, got -1"),
        ({"name": "lcn", "window_unit": "pixels"}, "window_unit must be one of feature, input"),
        ({"name": "lcn", "window_unit": "input"}, "use lcn.convert_norm"),
        ({"name": "lcn", "groups": "keep"}, "use lcn.convert_norm"),
        ({"name": "lcn", "c_group": 2, "groups": 4}, "norm.groups or norm.c_group, not both"),
        ({"name": "lcn", "c_group": "keep"}, "norm.c_group must be a positive int, 'C', got"),
        ("lcn", "norm must be a mapping"),
    ],
)
def test_a_wrong_config_is_named_with_the_nearest_valid_one(norm, message):
    with pytest.raises(ValueError, match=message):
        build_norm(norm)


def test_a_count_that_does_not_divide_is_named_with_what_would():
    with pytest.raises(ValueError, match=r"groups must divide the 6 channels, got 4.*1, 2, 3, 6"):
        build_norm({"name": "gn", "groups": 4})(6)
    with pytest.raises(ValueError, match="c_group must divide the 6 channels, got 4"):
        build_norm({"name": "lcn", "c_group": 4})(6)


MODELS = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(),
    "torchvision convnext (LayerNorm2d)": lambda: torchvision.models.convnext_tiny(),
    "timm hrnet": lambda: timm.create_model("hrnet_w18_small"),
    "timm densenet (fused)": lambda: timm.create_model("densenet121"),
    "timm resnetv2 (fused GroupNorm)": lambda: timm.create_model("resnetv2_50x1_bit"),
    "timm efficientnet (fused)": lambda: timm.create_model("efficientnet_b0"),
}
LEFT = (nn.BatchNorm2d, nn.GroupNorm)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:convert_norm left in place")
def test_every_norm_layer_of_a_model_is_replaced_and_it_still_trains(name):
    model = MODELS[name]()
    before = len(audit(model, (3, 64, 64)))
    assert before >= 5
    model = convert_norm(model, {**LCN, "c_group": 1})
    assert not any(isinstance(module, LEFT) for module in model.modules())
    rows = audit(model, (3, 64, 64))
    assert len(rows) == before
    assert {row.kind for row in rows} == {"lcn"}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_detection_and_segmentation_models():
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None
    )
    convert_norm(detector, {"name": "gn", "groups": 1})
    assert not any("BatchNorm" in type(module).__name__ for module in detector.modules())
    detector.train()
    targets = [{"boxes": torch.tensor([[2.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([1])}]
    losses = detector([torch.rand(3, 64, 64)], targets)
    sum(losses.values()).backward()

    smp = pytest.importorskip("segmentation_models_pytorch")
    unet = convert_norm(smp.Unet("resnet18", encoder_weights=None), LCN)
    assert audit(unet, (3, 64, 64)).windowed_count > 0
    assert unet(torch.randn(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_weight_and_bias_are_carried_over_only_when_asked():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(1, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model[1].weight.requires_grad_(False)
    kept = convert_norm(copy.deepcopy(model), LCN)
    fresh = convert_norm(copy.deepcopy(model), LCN, keep_affine=False)
    for old, new, reset in zip(model, kept, fresh, strict=True):
        assert torch.equal(old.weight, new.weight)
        assert torch.equal(old.bias, new.bias)
        assert torch.equal(reset.weight, torch.ones(4))
    assert not kept[1].weight.requires_grad
    assert kept[1].bias.requires_grad


def test_frozen_batch_norm_becomes_a_trainable_layer_with_its_weights():
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    frozen.weight.normal_()
    layer = convert_norm(nn.Sequential(frozen), LCN)[0]
    assert torch.equal(layer.weight, frozen.weight)
    assert layer.weight.requires_grad


def test_a_fused_layer_keeps_its_activation():
    fused = timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU).eval()
    nn.init.normal_(fused.weight)
    layer = convert_norm(nn.Sequential(fused), LCN)[0]
    x = torch.randn(2, 4, 9, 9)
    plain = LocalContextNorm(4, 2, 5)
    plain.weight.data.copy_(fused.weight.data)
    assert torch.equal(layer(x), nn.functional.silu(plain(x)))


def test_device_dtype_mode_hooks_and_sharing_are_kept():
    shared = nn.BatchNorm2d(4).eval()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.BatchNorm2d(4))}).double()
    calls = []
    handle = shared.register_forward_hook(lambda module, inputs, output: calls.append(module))
    convert_norm(model, LCN)
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], LocalContextNorm)
    assert model["a"].weight.dtype == torch.float64
    assert not model["a"].training
    assert model["b"][1].training
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    model["a"](x)
    assert calls == [model["a"]]
    handle.remove()
    model["a"](x)
    assert len(calls) == 1
    on_meta = convert_norm(nn.Sequential(nn.BatchNorm2d(4, device="meta")), LCN)
    assert on_meta[0].weight.is_meta


def test_what_cannot_be_replaced_stays_and_is_named():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match=r"left in place: 1 \(LayerNorm\), 2 \(BatchNorm1d\)"):
        convert_norm(model, LCN)
    assert isinstance(model[1], nn.LayerNorm)


def test_a_group_size_that_does_not_divide_changes_nothing_and_says_what_would():
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.Sequential(nn.GroupNorm(1, 10), nn.BatchNorm2d(6))
    )
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="changed nothing") as caught:
        convert_norm(model, {"name": "lcn", "c_group": 4})
    assert str(caught.value).splitlines()[1:] == [
        "  1, 2.1: c_group must divide the 6 channels, got 4; possible: 1, 2, 3, 6",
        "  2.0: c_group must divide the 10 channels, got 4; possible: 1, 2, 5, 10",
        "  possible for every layer: 1, 2",
    ]
    assert [type(module) for module in model.modules()] == before
    with pytest.raises(ValueError, match="changed nothing"):
        convert_norm(model, lambda channels: nn.GroupNorm(4, channels))


def test_what_does_not_divide_fits_ten_lines():
    layers = [nn.BatchNorm2d(7 * k + 1) for k in range(1, 60)]
    with pytest.raises(ValueError, match="changed nothing") as caught:
        convert_norm(nn.Sequential(*layers), {"name": "lcn", "c_group": 7})
    assert len(str(caught.value).splitlines()) == 10
    assert "and 52 reasons more" in str(caught.value)


def test_each_layer_keeps_its_own_groups():
    model = nn.Sequential(
        nn.GroupNorm(4, 8),
        nn.GroupNorm(3, 12),
        nn.InstanceNorm2d(6, affine=True),
        LocalContextNorm(8, 4, 3),
        timm.layers.GroupNormAct(8, 2),
    )
    x, image = torch.randn(2, 8, 9, 9), model[4](torch.randn(2, 8, 9, 9))
    expected = model[0](x)
    converted = convert_norm(model, {"name": "lcn", "groups": "keep", "window": 227})
    layers = [*converted[:4], converted[4].norm]
    assert [layer.num_groups for layer in layers] == [4, 3, 6, 2, 2]
    assert all(type(layer) is LocalContextNorm for layer in layers)
    torch.testing.assert_close(converted[0](x), expected)  # the window covers the map
    assert image.min() >= 0


def test_a_network_trained_with_group_norm_computes_the_same_where_windows_cover_the_maps():
    model, image = timm.create_model("resnet50_gn").eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image)
        convert_norm(model, {"name": "lcn", "groups": "keep", "window": 227})
        torch.testing.assert_close(model(image), expected)
    layers = [module for module in model.modules() if isinstance(module, LocalContextNorm)]
    assert len(layers) == 53
    assert {layer.num_groups for layer in layers} == {32}


def test_layers_without_groups_to_keep_are_named():
    model = nn.Sequential(nn.GroupNorm(4, 8), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match=r"1: BatchNorm2d has no groups to keep; give norm.groups"):
        convert_norm(model, {"name": "lcn", "groups": "keep"})
    assert isinstance(model[0], nn.GroupNorm)


class BNReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    """Adds nothing."""


class LayerNorm2d(nn.LayerNorm):
    """As many repositories have it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_layer_with_a_forward_of_its_own_keeps_what_it_adds():
    patched = nn.BatchNorm2d(4)
    patched.forward = lambda x: x
    parametrized = nn.utils.parametrize.register_parametrization(
        nn.BatchNorm2d(4), "weight", nn.Softplus()
    )
    model = nn.Sequential(BNReLU(4), Renamed(4), patched, parametrized, LayerNorm2d(4))
    with pytest.warns(UserWarning, match="left in place") as caught:
        convert_norm(model, LCN)
    assert str(caught[0].message) == (
        "convert_norm left in place: 0 (BNReLU: has a forward of its own), "
        "2 (BatchNorm2d: has a forward of its own), "
        "3 (ParametrizedBatchNorm2d: has a parametrization)"
    )
    kept = [isinstance(layer, nn.BatchNorm2d) for layer in model]
    assert kept == [True, False, True, True, False]


class KeepsNormsInLists(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.norms = [self.norm, (nn.GroupNorm(2, 4),)]
        self.by_name = {"last": nn.Conv2d(4, 4, 1)}


def test_a_norm_in_a_plain_list_is_named():
    model = nn.Sequential(KeepsNormsInLists())
    with pytest.warns(UserWarning, match="left in place") as caught:
        convert_norm(model, LCN)
    assert str(caught[0].message) == (
        "convert_norm left in place: 0.norms[0] (BatchNorm2d: kept outside the module's children), "
        "0.norms[1][0] (GroupNorm: kept outside the module's children)"
    )
    assert isinstance(model[0].norm, LocalContextNorm)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_norm_that_torch_jit_compiled_is_named():
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(4)))
    with pytest.warns(UserWarning, match=r"0\.0 \(BatchNorm2d: compiled by torch.jit\)"):
        convert_norm(nn.Sequential(scripted), LCN)


def test_a_wrapped_model_is_refused(tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.BatchNorm2d(4)))
        with pytest.raises(ValueError, match=r"the model is a DistributedDataParallel.*convert"):
            convert_norm(wrapped, LCN)
        convert_norm(wrapped.module, {"name": "bn"})
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(wrapped.module[0], nn.BatchNorm2d)


@pytest.mark.filterwarnings("error")
def test_a_parametrization_of_a_weight_is_no_norm_layer():
    convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    convert_norm(nn.Sequential(convolution, nn.BatchNorm2d(4)), LCN)


def test_a_factory_may_be_given_and_a_lone_layer_is_returned_replaced():
    layer = convert_norm(nn.BatchNorm2d(6), lambda channels: nn.GroupNorm(3, channels))
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == 3


def test_bn_leaves_batch_norm_alone_and_sync_bn_keeps_its_statistics():
    model = nn.Sequential(nn.BatchNorm2d(4, momentum=0.37, eps=1e-3), nn.GroupNorm(2, 4))
    model(torch.randn(3, 4, 5, 5))
    batch_norm = model[0]
    assert convert_norm(model, {"name": "bn"})[0] is batch_norm
    assert isinstance(model[1], nn.BatchNorm2d)
    sync = convert_norm(model, {"name": "sync_bn"})[0]
    assert isinstance(sync, SyncBatchNorm)
    assert (sync.momentum, sync.eps) == (0.37, 1e-3)
    assert torch.equal(sync.running_mean, batch_norm.running_mean)
    assert sync.num_batches_tracked == 1
    back = convert_norm(model, {"name": "bn"})[0]
    assert isinstance(back, nn.BatchNorm2d)
    assert torch.equal(back.running_var, batch_norm.running_var)


def unpadded(depth):
    """A valid convolution at every level, as in U-Net: maps are a little less than input / 2^k."""
    layers = []
    for level in range(depth):
        layers += [nn.Conv2d(3 if level == 0 else 4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def test_windows_in_input_pixels_are_divided_by_each_layers_stride():
    model = convert_norm(
        unpadded(4),
        {"name": "lcn", "window": [64, 33], "window_unit": "input"},
        input_shape=(3, 190, 222),
    )
    assert [row.window for row in audit(model, (3, 190, 222))] == [
        (64, 33),
        (32, 16),
        (16, 8),
        (8, 4),
    ]
    whole = {"name": "lcn", "window": "all", "window_unit": "input"}
    assert audit(convert_norm(unpadded(2), whole, input_shape=(3, 64, 64)), (3, 64, 64))[
        0
    ].window == ("all")
    with pytest.raises(ValueError, match="input_shape"):
        convert_norm(unpadded(2), {"name": "lcn", "window_unit": "input"})


def test_windows_by_name_pattern_first_match_wins():
    windows = {"1": 7, "[14]": 9, "10": "all"}
    model = convert_norm(unpadded(4), {"name": "lcn", "window": 5, "windows": windows})
    assert [row.window for row in audit(model, (3, 190, 190))] == [(7, 7), (9, 9), (5, 5), "all"]
    with pytest.raises(ValueError, match="matches 'stem"):
        convert_norm(unpadded(2), {"name": "lcn", "windows": {"stem*": 3}})

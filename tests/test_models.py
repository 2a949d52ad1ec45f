"""The network of a configuration has the norm that was asked for, everywhere."""

import pytest
import torch
from torch import nn

from lcn import LocalContextNorm
from tasks.config import compose
from tasks.errors import InputError
from tasks.models import build_model, check_training_size
from tasks.models.checkpoint import load_weights

NORMS = (nn.BatchNorm2d, nn.GroupNorm, LocalContextNorm)


def norm_layers(model):
    return [m for m in model.modules() if isinstance(m, NORMS)]


@pytest.mark.parametrize("norm", ["gn", "in", "ln", "lcn", "lcn_released", "sync_bn"])
def test_every_norm_layer_is_replaced_the_head_s_too(norm):
    model = build_model(compose([f"norm={norm}"]))
    assert not [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    kind = type(model.bn1)
    assert type(model.last_layer[1]) is kind
    assert sum(type(m) is kind for m in model.modules()) == 72


def test_group_norm_layers_have_the_groups_asked_for():
    model = build_model(compose(["norm=gn", "norm.groups=8"]))
    assert {layer.num_groups for layer in norm_layers(model)} == {8}
    for layer in norm_layers(build_model(compose(["norm=in"]))):
        assert layer.num_groups == layer.num_channels
    assert {m.num_groups for m in norm_layers(build_model(compose(["norm=ln"])))} == {1}


def test_lcn_layers_have_the_groups_asked_for_in_place_of_the_default():
    model = build_model(compose(["norm=lcn", "norm.groups=8"]))
    assert {layer.num_groups for layer in norm_layers(model)} == {8}


def test_same_seed_gives_the_same_convolutions_for_every_norm():
    weights = []
    for norm in ("bn", "gn", "lcn"):
        torch.manual_seed(0)
        model = build_model(compose([f"norm={norm}"]))
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Conv2d)])
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))


@pytest.mark.parametrize("norm", [["norm=gn", "norm.groups=32"], ["norm=lcn", "norm.c_group=32"]])
def test_channels_that_cannot_be_divided_are_named_by_layer(norm):
    with pytest.raises(InputError, match=r"transition1\.0\.1"):
        build_model(compose(norm))


def test_batch_norm_keeps_the_momentum_of_the_cited_code():
    assert {m.momentum for m in norm_layers(build_model(compose(["norm=bn"])))} == {0.01}


def save_weights(model, path):
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights}, path)


def test_weights_come_back_from_a_checkpoint(tmp_path):
    first, second = (build_model(compose(["norm=gn"])) for _ in range(2))
    save_weights(first, tmp_path / "last.ckpt")
    load_weights(second, str(tmp_path / "last.ckpt"))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    path = str(tmp_path / "last.ckpt")
    save_weights(build_model(compose(["norm=bn"])), path)
    with pytest.raises(InputError, match=r"last\.ckpt is the checkpoint of another model"):
        load_weights(build_model(compose(["norm=gn"])), path)
    with pytest.raises(InputError, match="of another model"):
        load_weights(nn.Linear(2, 2), path)


def test_checkpoint_of_another_norm_is_refused_where_the_norm_must_be_the_same(tmp_path):
    model = build_model(compose(["norm=gn"]))
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    path = str(tmp_path / "last.ckpt")
    torch.save({"state_dict": weights, "norm": {"name": "gn", "groups": 16}}, path)
    lcn = build_model(compose(["norm=lcn"]))
    load_weights(lcn, path)  # to start from
    with pytest.raises(InputError, match="another model: its norm is"):
        load_weights(lcn, path, {"name": "lcn"})


def test_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(InputError, match=r"last\.ckpt does not exist"):
        load_weights(nn.Linear(2, 2), str(path))
    path.write_bytes(b"half a checkpoint")
    with pytest.raises(InputError, match=r"last\.ckpt cannot be read"):
        load_weights(nn.Linear(2, 2), str(path))
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="not a checkpoint of a run"):
        load_weights(nn.Linear(2, 2), str(path))


@pytest.mark.parametrize(
    ("overrides", "too_small"),
    [
        (["task=inria", "norm=lcn"], 15),  # four times halved
        (["task=inria", "norm=bn", "data.batch_size=1"], 16),  # one value has no variance
        (["task=cityscapes", "norm=bn", "data.batch_size=1"], 32),
    ],
)
def test_a_crop_that_leaves_a_layer_nothing_is_named(overrides, too_small):
    small = compose([*overrides, f"data.crop=[{too_small},{too_small}]", "data.width=0.125"])
    with pytest.raises(InputError, match=rf"data.crop=\[{too_small},{too_small}\] .*too small"):
        check_training_size(build_model(small), small)
    enough = compose([*overrides, "data.crop=[64,64]", "data.width=0.125"])
    check_training_size(build_model(enough), enough)

"""audit(): which norm layers are windowed."""

import pytest
import timm
import torch
from torch import nn

from lcn import LocalContextNorm, ReleasedLocalContextNorm, audit, convert_norm


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        LocalContextNorm(4, 2, (8, 5)),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Sequential(LocalContextNorm(4, 2, (8, 5)), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)),
    )


def test_one_row_per_norm_layer_with_map_and_window():
    rows = list(audit(small_model(), (1, 3, 24, 20)))
    assert [(row.name, row.kind, row.channels) for row in rows] == [
        ("1", "lcn", 4),
        ("3.0", "lcn", 4),
        ("3.1", "bn", 4),
        ("3.2", "gn", 4),
    ]
    assert [(row.height, row.width) for row in rows] == [(12, 10), (6, 5), (6, 5), (6, 5)]
    assert [row.window for row in rows] == [(8, 5), (8, 5), None, None]
    assert [row.windowed for row in rows] == [True, False, False, False]


def test_windowed_while_one_axis_is_not_covered_but_released_only_while_neither_is():
    for layer, expected in ((LocalContextNorm, True), (ReleasedLocalContextNorm, False)):
        model = nn.Sequential(layer(2, 2, (8, 4)))
        assert audit(model, (2, 8, 9))[0].windowed is expected
        assert audit(model, (2, 9, 9))[0].windowed
        assert not audit(model, (2, 8, 4))[0].windowed


def test_the_released_layer_has_the_counts_of_the_design_page():
    with torch.device("meta"):
        resnet = timm.create_model("resnet50")
    convert_norm(resnet, {"name": "lcn_released", "c_group": 32, "window": 127})
    table = audit(resnet, (1, 3, 224, 224))
    assert (table.windowed_count, len(table)) == (0, 53)


@pytest.mark.parametrize(
    ("window", "training", "evaluation"),
    [(199, 1, 20), (227, 1, 20), (255, 1, 20), (383, 0, 1), (511, 0, 1)],
)
def test_the_released_layer_in_hrnet_has_the_counts_of_the_design_page(
    window, training, evaluation
):
    hrnet = pytest.importorskip("tasks.models.hrnet")
    with torch.device("meta"):
        model = hrnet.hrnetv2("hrnetv2_w18_small_v1", num_classes=19)
    convert_norm(model, {"name": "lcn_released", "c_group": 2, "window": window})
    tables = [audit(model, (1, 3, h, 2 * h)) for h in (512, 1024)]
    assert [len(table) for table in tables] == [72, 72]
    assert [table.windowed_count for table in tables] == [training, evaluation]


def test_the_model_stays_untouched():
    model = small_model()
    model[3][1].momentum = 0.5
    model[0].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ids = {name: id(value) for name, value in model.named_parameters()}
    random_state = torch.get_rng_state()
    audit(model, (3, 4096, 8192))
    assert [module.training for module in model] == [False, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.named_parameters()} == ids
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_table_is_readable_as_text_and_in_a_notebook():
    table = audit(small_model(), (3, 24, 20))
    lines = str(table).splitlines()
    assert lines[0].split() == ["name", "kind", "channels", "feature", "map", "window", "windowed"]
    assert lines[1].split() == ["1", "lcn", "4", "12", "x", "10", "8", "x", "5", "yes"]
    assert lines[-3] == "windowed: 1 of 4 norm layers"
    assert lines[-2] == "reach in pixels: unlimited; total stride: 4"
    assert lines[-1] == "unlimited by: 3.0, 3.2"
    assert table._repr_html_().count("<tr>") == 5
    summary = table.summary().splitlines()
    assert [line.split() for line in summary[1:3]] == [
        ["12", "x", "10", "1", "1"],
        ["6", "x", "5", "3", "0"],
    ]
    assert summary[-3] == "windowed: 1 of 4 norm layers"


def test_a_window_of_the_whole_map_is_shown_as_all():
    table = audit(nn.Sequential(LocalContextNorm(2, 2, "all")), (2, 4, 4))
    assert table[0].window == "all"
    assert not table[0].windowed


def test_a_layer_that_is_not_reached_is_listed_as_such():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = LocalContextNorm(2, 2, 3), LocalContextNorm(2, 2, 3)

        def forward(self, x):
            return self.used(x)

    table = audit(Half(), (2, 8, 8))
    assert [row.height for row in table] == [8, None]
    assert "not reached" in str(table)


def test_a_model_that_needs_values_is_described_as_far_as_it_gets():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = LocalContextNorm(2, 2, 3), LocalContextNorm(2, 2, 3)

        def forward(self, x):
            x = self.first(x)
            return self.second(x) if x.sum() > 0 else x

    with pytest.warns(UserWarning, match="norm layers not reached: second"):
        table = audit(Chooses(), (2, 8, 8))
    assert [row.height for row in table] == [8, None]


def test_a_layer_used_several_times_is_described_at_its_largest_map():
    shared = LocalContextNorm(2, 2, 5)
    table = audit(nn.Sequential(shared, nn.MaxPool2d(2), shared), (2, 8, 8))
    assert [(row.height, row.windowed) for row in table] == [(8, True)]


def test_half_precision_and_meta_models():
    assert audit(small_model().half(), (3, 64, 64)).windowed_count == 2
    assert audit(small_model().to("meta"), (3, 64, 64)).windowed_count == 2


@pytest.mark.parametrize("shape", [(3, 8), (0, 8, 8), (3, 8.0, 8)])
def test_a_wrong_input_shape_is_refused(shape):
    with pytest.raises(ValueError, match="input_shape must be"):
        audit(small_model(), shape)


def test_a_shape_the_model_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"does not run on an input of shape \(1, 5, 8, 8\)"):
        audit(small_model(), (5, 8, 8))

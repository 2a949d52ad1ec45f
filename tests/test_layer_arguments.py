"""What the layer takes, and what it says of what it does not."""

import pytest
import torch
from torch import nn

from lcn import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm
from lcn.functional import local_context_norm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(5, 5)}, r"x must be \[N, C, H, W\] or \[C, H, W\].*\(5, 5\)"),
        ({"x": torch.ones(1, 4, 5, 5, dtype=torch.int64)}, r"x must be float64.*int64"),
        ({"x": torch.randn(1, 4, 0, 5)}, r"at least 1, got shape \(1, 4, 0, 5\)"),
        ({"channels_per_group": 3}, "channels_per_group must be a positive divisor of the 4.*3"),
        ({"channels_per_group": 0}, "channels_per_group must be a positive divisor.*got 0"),
        ({"channels_per_group": 2.0}, "channels_per_group must be a positive int, got 2.0"),
        ({"window": 0}, "window must be a positive int.*got 0"),
        ({"window": (3, -1)}, r"window must be.*got \(3, -1\)"),
        ({"window": "whole"}, "window must be.*'all', got 'whole'"),
        ({"window": (3, 3, 3)}, "window must be"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"weight": torch.ones(3)}, r"weight must have shape \(4,\).*\(3,\)"),
        ({"rule": "center"}, "rule must be one of.*got 'center'"),
        ({"backend": "cuda"}, "backend must be one of.*got 'cuda'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_what_is_allowed(changes, message):
    arguments = {"x": torch.randn(1, 4, 5, 5), "channels_per_group": 2, "window": 3, **changes}
    with pytest.raises(ValueError, match=message):
        local_context_norm(**arguments)


def test_a_number_of_groups_instead_of_channels_per_group():
    for layer in (LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm):
        assert layer(12, num_groups=3).channels_per_group == 4
        assert layer(12).channels_per_group == 2
        assert layer(12).num_groups == 6
    x = torch.randn(2, 12, 5, 5)
    ours = LocalContextNorm(12, num_groups=3, window="all")
    torch.testing.assert_close(ours(x), nn.GroupNorm(3, 12)(x))
    with pytest.raises(ValueError, match="channels_per_group or num_groups, not both; got 2 and 6"):
        LocalContextNorm(12, 2, num_groups=6)
    with pytest.raises(ValueError, match="num_groups must divide num_channels = 12, got 5"):
        LocalContextNorm(12, num_groups=5)
    with pytest.raises(ValueError, match="num_groups must be a positive int, got 0"):
        LocalContextNorm(12, num_groups=0)


def test_layer_arguments_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match="channels_per_group must divide num_channels = 18, got 4"):
        LocalContextNorm(18, 4)
    with pytest.raises(ValueError, match="num_channels must be a positive int, got 0"):
        LocalContextNorm(0)
    with pytest.raises(ValueError, match="window must be"):
        LocalContextNorm(4, 2, 0)
    with pytest.raises(ValueError, match="4 channels, as this layer, got 6"):
        LocalContextNorm(4)(torch.randn(1, 6, 3, 3))
    with pytest.raises(ValueError, match="4 channels, as this layer, got 6"):
        LocalContextNorm(4, affine=False)(torch.randn(6, 3, 3))

"""The layers: Local Context Normalization and the two other things that go by its name."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .functional import local_context_norm
from .window import WHOLE_MAP, window_pair


class LocalContextNorm(nn.Module):
    """Local Context Normalization (paper, section 3).

    Every cell of ``[N, C, H, W]`` is normalized with the mean and the biased variance of its group
    of ``channels_per_group`` consecutive channels inside the window around it.  At a border the
    window moves inside instead of shrinking.  Where the window covers the whole map this is
    ``nn.GroupNorm`` with ``C // channels_per_group`` groups, so layer norm at
    ``channels_per_group = C`` and instance norm at 1.

    Args:
        num_channels: ``C``.
        channels_per_group: ``c_group`` of the paper; must divide ``num_channels``.
        window: ``p x q`` in cells of the map the layer is given: an int, a pair, or ``"all"``.
        eps: added to the variance.
        affine: whether there are ``weight`` and ``bias`` ``[C]``, named as in ``nn.GroupNorm``.

    Raises:
        ValueError: for a wrong argument; the forward also for an input that is not
            ``[N, num_channels, H, W]`` of a floating dtype.
    """

    rule: ClassVar[str] = "centered"

    def __init__(
        self,
        num_channels: int,
        channels_per_group: int = 2,
        window: Any = 227,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_channels(num_channels, channels_per_group)
        self.num_channels = num_channels
        self.channels_per_group = channels_per_group
        self.window = window_pair(window)
        self.eps = eps
        self.affine = affine
        if affine:
            self.weight = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(num_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[1] != self.num_channels:
            raise ValueError(
                f"x must have {self.num_channels} channels, as this layer, got {x.shape[1]}"
            )
        return local_context_norm(
            x,
            self.weight,
            self.bias,
            channels_per_group=self.channels_per_group,
            window=self.window,
            eps=self.eps,
            rule=self.rule,
        )

    def extra_repr(self) -> str:
        window = "all" if self.window == (WHOLE_MAP, WHOLE_MAP) else self.window
        return (
            f"{self.num_channels}, channels_per_group={self.channels_per_group}, "
            f"window={window!r}, eps={self.eps}, affine={self.affine}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The authors' released layer keeps weight and bias as [1, C, 1, 1].
        for name in ("weight", "bias"):
            value = state_dict.get(prefix + name)
            if value is not None and tuple(value.shape) == (1, self.num_channels, 1, 1):
                state_dict[prefix + name] = value.reshape(self.num_channels)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ReleasedLocalContextNorm(LocalContextNorm):
    """The layer the authors published in PyTorch, which differs from the paper in four ways.

    Its window lies one cell further down and right; it normalizes over the whole map as soon as
    the window reaches the map's size on either axis; in that case it uses the unbiased variance;
    otherwise no gradient flows through mean and variance.  Arithmetic is ours (the published code
    loses all digits on inputs with an offset); the unbiased variance of a single value is 0 here.
    """

    rule = "released"


class TiledLocalContextNorm(LocalContextNorm):
    """Equation 9 read literally: fixed ``p x q`` tiles that do not overlap.

    Tiles start at the upper left corner; the last tile of a row or column is what is left of it.
    """

    rule = "tiled"


def _check_channels(num_channels: Any, channels_per_group: Any) -> None:
    for name, value in (
        ("num_channels", num_channels),
        ("channels_per_group", channels_per_group),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    if num_channels % channels_per_group:
        raise ValueError(
            f"channels_per_group must divide num_channels = {num_channels}, "
            f"got {channels_per_group}"
        )

"""The layers: Local Context Normalization and the two other layers of that name."""

from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from .arguments import channels_of_group
from .functional import local_context_norm
from .window import WHOLE_MAP, window_pair


@torch.fx.wrap  # a trace of the layer alone keeps the choice
def _chosen(window: Any, own: Any) -> Any:
    return own if window is None else window


class LocalContextNorm(nn.Module):
    """Local Context Normalization (paper, section 3).

    Every cell is normalized with the mean and the biased variance of its group of
    ``channels_per_group`` consecutive channels inside the window around it. At a border the window
    moves inside instead of shrinking. Where the window covers the whole map this is
    ``nn.GroupNorm`` with ``C // channels_per_group`` groups, so layer norm at
    ``channels_per_group = C`` and instance norm at 1.

    Args:
        num_channels: ``C``.
        channels_per_group: ``c_group`` of the paper; must divide ``num_channels``. 2, unless
            ``num_groups`` is given.
        window: ``p x q`` in cells of the map the layer is given: an int, a pair, or ``"all"``.
        eps: added to the variance; at least 0.
        affine: whether there are ``weight`` and ``bias`` ``[C]``, named as in ``nn.GroupNorm``.
        device, dtype: of weight and bias.
        num_groups: the number of groups, as ``nn.GroupNorm`` counts, instead of
            ``channels_per_group``; must divide ``num_channels``.

    Shape:
        ``[N, C, H, W]`` or, without a batch, ``[C, H, W]``; the result has the same.

    Dtypes:
        float64, float32, bfloat16 and float16, with weight and bias in any of them. The result has
        the dtype of the input. Under autocast it is as with ``nn.GroupNorm``: float32 on a GPU; on
        a CPU, where autocast leaves both layers alone, still the dtype of the input.

    Raises:
        ValueError: for a wrong argument; the forward also for an input that is not of these shapes
            and dtypes.
    """

    rule: ClassVar[str] = "centered"

    def __init__(
        self,
        num_channels: int,
        channels_per_group: int | None = None,
        window: Any = 227,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        num_groups: int | None = None,
    ) -> None:
        super().__init__()
        self.channels_per_group = channels_of_group(num_channels, channels_per_group, num_groups)
        self.num_channels = num_channels
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

    @property
    def num_groups(self) -> int:
        """As ``nn.GroupNorm`` counts: ``num_channels // channels_per_group``."""
        return self.num_channels // self.channels_per_group

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, window: Any = None) -> Tensor:
        """Normalize ``x`` ``[N, C, H, W]`` or ``[C, H, W]``.

        Args:
            window: for this call in place of the layer's own; also a window per point, a pair of
                integer tensors ``[H, W]`` or ``[N, H, W]``.
        """
        # What records operators would take the answer for a constant.
        if isinstance(x, Tensor) and not torch.jit.is_tracing():
            self._check_channels(x)
        return local_context_norm(
            x,
            self.weight,
            self.bias,
            channels_per_group=self.channels_per_group,
            window=_chosen(window, self.window),
            eps=self.eps,
            rule=self.rule,
        )

    def _check_channels(self, x: Tensor) -> None:
        if x.dim() in (3, 4) and x.shape[-3] != self.num_channels:
            raise ValueError(
                f"x must have {self.num_channels} channels, as this layer, got {x.shape[-3]}"
            )

    def __prepare_scriptable__(self) -> Any:
        """Called first by ``torch.jit.script``: raises, because the layer cannot be scripted."""
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, whose kernel is no "
            "TorchScript; use torch.export, torch.compile or torch.jit.trace"
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
    otherwise no gradient flows through mean and variance. Arithmetic is ours (the published code
    loses all digits on inputs with an offset); the unbiased variance of a single value is 0 here.
    """

    rule = "released"


class TiledLocalContextNorm(LocalContextNorm):
    """Equation 9 read literally: fixed ``p x q`` tiles that do not overlap.

    Tiles start at the upper left corner; the last tile of a row or column is what is left of it.
    """

    rule = "tiled"

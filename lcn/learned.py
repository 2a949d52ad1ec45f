"""Local Context Normalization whose window is learned with the network."""

from typing import Any

import torch
from torch import Tensor, nn

from .functional import local_context_norm
from .layers import LocalContextNorm
from .window import real_pair


class LearnedContextNorm(LocalContextNorm):
    """As :class:`~lcn.layers.LocalContextNorm`, with a real window ``p x q`` that is learned.

    A real window is the interval of length ``p`` around a cell's middle, moved inside at a border;
    each cell counts with the share of it that lies inside. At odd whole sizes it is the window of
    ``LocalContextNorm``. What is learned is the logarithm of the window over its start,
    ``log_growth``, so that a step changes large and small windows alike. In each call the window is
    bounded by 1 and the map. There, and beyond, a gradient counts only if it leads back inside.

    Give ``log_growth`` a parameter group of its own, without weight decay, which would draw windows
    back to their start. Its gradients are small: a learning rate some ten times that of the weights
    is a place to begin.

    Args:
        window: the start, real numbers of at least 1: one number or a pair ``(p, q)``.
        window_per_group: whether each group of channels has a window of its own.
        Others: as in ``LocalContextNorm``.

    Raises:
        ValueError: for a wrong argument.
    """

    start: Tensor

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
        window_per_group: bool = False,
    ) -> None:
        p, q = real_pair(window)
        super().__init__(
            num_channels, channels_per_group, 1, eps, affine, device, dtype, num_groups=num_groups
        )
        del self.window  # a number of the moment here: see current_window
        self.window_per_group = window_per_group
        count = self.num_groups if window_per_group else 1
        start = torch.tensor([[p, q]] * count, device=device, dtype=dtype)
        self.register_buffer("start", start)
        self.log_growth = nn.Parameter(torch.zeros_like(start))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the window at its start."""
        super().reset_parameters()
        if hasattr(self, "log_growth"):
            nn.init.zeros_(self.log_growth)

    def real_windows(self) -> Tensor:
        """``[1 or groups, 2]`` in float64 (float32 on MPS): p and q, before the map bounds them."""
        dtype = torch.float32 if self.start.device.type == "mps" else torch.float64
        return self.start.to(dtype) * self.log_growth.to(dtype).exp()

    def current_window(self) -> tuple[float, float]:
        """The current p and q, at least 1; the geometric mean over groups if each has its own."""
        p, q = self.real_windows().detach().clamp(min=1.0).log().mean(dim=0).exp().tolist()
        return p, q

    def forward(self, x: Tensor, window: Any = None) -> Tensor:
        """Normalize ``x`` ``[N, C, H, W]`` or ``[C, H, W]``; ``window`` as in the base class."""
        if isinstance(x, Tensor) and not torch.jit.is_tracing():
            self._check_channels(x)
        own = self.real_windows()
        return local_context_norm(
            x,
            self.weight,
            self.bias,
            channels_per_group=self.channels_per_group,
            window=_chosen(window, own if self.window_per_group else own[0]),
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        p, q = self.start[0].tolist()
        return (
            f"{self.num_channels}, channels_per_group={self.channels_per_group}, "
            f"window=({p:g}, {q:g}), eps={self.eps}, affine={self.affine}, "
            f"window_per_group={self.window_per_group}"
        )


@torch.fx.wrap  # a trace of the layer alone keeps the choice
def _chosen(window: Any, own: Tensor) -> Any:
    return own if window is None else window

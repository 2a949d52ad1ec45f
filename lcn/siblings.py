"""Other norm layers to compare with, which PyTorch does not have in this form."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import memory_format_of


class PositionalNorm(nn.Module):
    """Positional Normalization (Li et al., NeurIPS 2019, https://arxiv.org/abs/1907.04312).

    Every place of ``[N, C, H, W]`` or ``[C, H, W]`` is normalized with the mean and the biased
    variance of its ``C`` channels (their section 3). Their moment shortcut, which carries mean and
    variance to a later layer, is not part of it.

    Args:
        num_channels: ``C``.
        eps: added to the variance.
        affine: whether there are ``weight`` and ``bias`` ``[C]``.
    """

    window = (1, 1)

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_channels, self.eps, self.affine = num_channels, eps, affine
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
        _check(x, self.num_channels)
        last = x.movedim(-3, -1)
        y = F.layer_norm(last, (self.num_channels,), self.weight, self.bias, self.eps)
        return _like(y.movedim(-1, -3), x)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, eps={self.eps}, affine={self.affine}"


class LocalResponseNorm(nn.Module):
    """Local response normalization (Krizhevsky et al., NeurIPS 2012, section 3.3).

    ``y = x / (k + alpha / size * s) ** beta`` with ``s`` the sum of the squares of ``size``
    channels around, at the same place; beyond the first and last channel there are zeros. This is
    ``torch.nn.LocalResponseNorm``. The source has ``alpha * s``; its ``alpha = 1e-4`` is the
    ``5e-4`` here. Its sums are float32 at least, since squares leave the range of float16.

    Args:
        num_channels: ``C`` of ``[N, C, H, W]``. The layer has no parameters.
    """

    window = (1, 1)

    def __init__(
        self,
        num_channels: int,
        size: int = 5,
        alpha: float = 5e-4,
        beta: float = 0.75,
        k: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_channels, self.size, self.alpha, self.beta, self.k = (
            num_channels,
            size,
            alpha,
            beta,
            k,
        )

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.num_channels, dims=(4,))
        wide = _wide(x)
        before = self.size // 2
        squares = F.pad(wide.square(), (0, 0, 0, 0, before, self.size - 1 - before))
        parts = [squares.narrow(-3, i, self.num_channels) for i in range(self.size)]
        scale = self.k + self.alpha / self.size * sum(parts[1:], parts[0])
        # Faster on a CPU than F.local_response_norm, whose sums are a pooling.
        y = wide * torch.exp(-self.beta * torch.log(scale))
        return _like(y.to(x.dtype), x)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, {self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class LocalContrastNorm(nn.Module):
    """Local contrast normalization: Equation 1 of the LCN paper, after Jarrett et al. (ICCV 2009).

    ``v`` is ``x`` minus its mean under a Gaussian window, each channel by itself. ``sigma`` is the
    root of the mean of ``v ** 2`` over all channels, under the same window. The result is
    ``v / max(c, sigma)``, where ``c`` is the mean of ``sigma`` over the sample's map.

    Where the sources are silent: the Gaussian's standard deviation is a quarter of ``size``; at a
    border the weights that lie inside the map are scaled to sum 1; ``eps`` is added to the square
    of ``sigma``, so that a constant map gives zeros. Arithmetic is in float32 at least.

    Args:
        num_channels: ``C`` of ``[N, C, H, W]``. The layer has no parameters.
        size: side of the window in cells, odd; the paper's is 9.
        sigma: standard deviation of the Gaussian in cells; None is a quarter of ``size``.
    """

    def __init__(
        self, num_channels: int, size: int = 9, sigma: float | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be a positive odd int, got {size!r}")
        self.num_channels, self.size, self.eps = num_channels, size, eps
        self.sigma = size / 4 if sigma is None else sigma
        self.window = (size, size)

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.num_channels, dims=(4,))
        values = _wide(x)
        distance = torch.arange(self.size, device=x.device, dtype=values.dtype) - self.size // 2
        weights = torch.exp(-0.5 * (distance / self.sigma) ** 2)
        inside = _blur(torch.ones_like(values[:1, :1]), weights)
        centred = values - _blur(values, weights) / inside
        variance = _blur(centred.square().mean(1, keepdim=True), weights) / inside
        sigma = torch.sqrt(variance + self.eps)
        c = sigma.mean((2, 3), keepdim=True)
        return _like((centred / torch.maximum(sigma, c)).to(x.dtype), x)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, {self.size}, sigma={self.sigma}, eps={self.eps}"


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums over rows and then columns around each cell, with zeros outside the map."""
    channels, size = x.shape[1], len(weights)
    for shape in ((size, 1), (1, size)):
        kernel = weights.reshape(1, 1, *shape).expand(channels, 1, *shape)
        padding = (shape[0] // 2, shape[1] // 2)
        x = F.conv2d(x, kernel, padding=padding, groups=channels)
    return x


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.contiguous(memory_format=memory_format_of(x)) if x.dim() == 4 else y.contiguous()


def _check(x: Tensor, num_channels: int, dims: tuple[int, ...] = (3, 4)) -> None:
    if x.dim() not in dims or x.shape[-3] != num_channels:
        shapes = " or ".join("[N, C, H, W]" if d == 4 else "[C, H, W]" for d in reversed(dims))
        raise ValueError(f"x must be {shapes} with C = {num_channels}, got {tuple(x.shape)}")

"""Batch Renormalization."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchRenorm2d(nn.BatchNorm2d):
    """Batch Renormalization (Ioffe, NeurIPS 2017, https://arxiv.org/abs/1702.03275, Algorithm 1).

    In training ``y = ((x - mean_B) / std_B * r + d) * weight + bias``, where ``r`` is the batch's
    standard deviation over the running one, within ``[1 / r_max, r_max]``, and ``d`` the distance
    of their means over the running standard deviation, within ``[-d_max, d_max]``. No gradient
    flows through ``r`` and ``d``. In evaluation this is batch normalization with the running
    statistics, which are Algorithm 1's: moving averages of mean and standard deviation, kept as
    ``running_mean`` and ``running_var``.

    The bounds follow the source's section 4, in steps, which ``num_batches_tracked`` counts: for
    ``warmup_steps`` they are 1 and 0 (plain batch normalization), then they grow in proportion, to
    ``r_max`` at ``r_steps`` and to ``d_max`` at ``d_steps``. The source gives no rule for other
    lengths of training. Its statistics are those of each process, as with ``nn.BatchNorm2d``.

    Args:
        num_features: ``C`` of ``[N, C, H, W]``.
        momentum: share of the batch in a running statistic.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.01,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 5000,
        r_steps: int = 40000,
        d_steps: int = 25000,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max must be at least 1 and d_max 0, got {r_max} and {d_max}")
        if not 0 <= warmup_steps <= min(r_steps, d_steps):
            raise ValueError(
                f"warmup_steps must be at most r_steps and d_steps, got {warmup_steps}, "
                f"{r_steps} and {d_steps}"
            )
        self.r_max, self.d_max = r_max, d_max
        self.warmup_steps, self.r_steps, self.d_steps = warmup_steps, r_steps, d_steps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.no_grad():
            r, d = self._correction(x)
        # (x_hat * r + d) * weight + bias is a batch normalization with another weight and bias.
        dtype = self.weight.dtype
        weight, bias = self.weight * r.to(dtype), self.weight * d.to(dtype) + self.bias
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)

    def _correction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``r`` and ``d`` ``[C]`` of the batch; also updates the running statistics with it."""
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        std = torch.sqrt(variance + self.eps)
        running_mean = self.running_mean.to(mean.dtype)
        running_std = torch.sqrt(self.running_var.to(mean.dtype) + self.eps)
        step = self.num_batches_tracked.to(mean.dtype)
        r_max = 1 + (self.r_max - 1) * self._share(step, self.r_steps)
        d_max = self.d_max * self._share(step, self.d_steps)
        r = torch.minimum(torch.maximum(std / running_std, 1 / r_max), r_max)
        d = torch.minimum(torch.maximum((mean - running_mean) / running_std, -d_max), d_max)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        new_variance = torch.lerp(running_std, std, self.momentum).square() - self.eps
        self.running_var.copy_(new_variance.clamp(min=0))
        self.num_batches_tracked.add_(1)
        return r, d

    def _share(self, step: Tensor, end: int) -> Tensor:
        """How far the schedule is between ``warmup_steps`` and ``end``, in 0..1."""
        length = max(end - self.warmup_steps, 1)
        return ((step - self.warmup_steps) / length).clamp(0, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, r_max={self.r_max}, "
            f"d_max={self.d_max}, warmup_steps={self.warmup_steps}, r_steps={self.r_steps}, "
            f"d_steps={self.d_steps}"
        )

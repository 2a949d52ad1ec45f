"""Synchronized batch normalization that also runs on the CPU, where PyTorch's stops."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import nn


class SyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm` for feature maps, which trains over gloo on CPUs too.

    On any other device, on one process and in evaluation PyTorch's own layers do the work. No
    subclass of PyTorch's, because `DistributedDataParallel` accepts those on GPUs alone. On the CPU
    a process may not be without samples, and the backward pass cannot be differentiated.
    """

    process_group = None  # all processes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` on each process; the statistics are over all of them."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.training and several):
            return super().forward(x)
        if x.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]  # same attributes
        self._check_input_dim(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = values.new_tensor([values.numel() // values.size(1)])
        dist.all_reduce(count)
        mean = differentiable.all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        var = differentiable.all_reduce(centred.square().sum((0, 2, 3))) / count
        self._update_statistics(mean.detach(), var.detach() * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps)[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    def _update_statistics(self, mean: torch.Tensor, unbiased_var: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the plain mean of all batches
            momentum = 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var), momentum)

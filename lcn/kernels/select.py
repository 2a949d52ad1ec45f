"""Which kernel runs a call on real tensors; kernels are imported when they are first needed."""

import functools
import warnings
from types import ModuleType

import torch

from ..window import WHOLE_MAP
from . import reference_kernel


def select_kernel(device: torch.device, backend: str) -> ModuleType:
    """The module whose ``forward`` and ``backward`` to call.

    ``"auto"`` is the CPU kernel for CPU tensors, and for CUDA tensors the GPU kernel, provided that
    it agrees with the reference on this device.
    """
    if backend == "gpu" or (backend == "auto" and device.type == "cuda"):
        if device.type == "cuda" and not _gpu_kernel_is_right(device):
            return reference_kernel
        from . import gpu

        return gpu
    if device.type != "cpu":
        raise ValueError(f"backend must be 'auto', 'reference' or 'gpu' on {device}, got 'cpu'")
    from . import cpu

    return cpu


@functools.cache
def _gpu_kernel_is_right(device: torch.device) -> bool:
    """Compares the GPU kernel with the reference once per device, on a small tensor."""
    try:
        from . import gpu

        generator = torch.Generator().manual_seed(0)
        x, grad = torch.randn(2, 1, 4, 9, 37, generator=generator).to(device)
        weight = torch.tensor([1.0, 2.0, -1.0, 0.5], device=device)
        bias = torch.tensor([0.0, 1.0, 2.0, 3.0], device=device)
        for window in ((3, 5), (12, 8), (WHOLE_MAP, WHOLE_MAP)):
            arguments = (2, window, 1e-5, "centered")
            got = (
                gpu.forward(x, weight, bias, *arguments),
                *gpu.backward(grad, x, weight, *arguments),
            )
            expected = (
                reference_kernel.forward(x, weight, bias, *arguments),
                *reference_kernel.backward(grad, x, weight, *arguments),
            )
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-3, rtol=1e-3)
    except Exception as error:  # whatever goes wrong here, the layer must go on working
        first_line = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"local_context_norm: the Triton kernel is not used on {device} "
            f"({type(error).__name__}: {first_line}); plain PyTorch runs instead, which is slow",
            stacklevel=2,
        )
        return False
    return True

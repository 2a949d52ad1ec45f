"""A window per point on a CPU: describes the job, hands it to the compiled loops.

Half precision is converted to float32 and back. Planes that the loops give up on, because digits
would be lost (see :mod:`lcn.kernels.table_loops`), are done by the reference.
"""

import functools
import struct
from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import huge_pages, per_point_reference, table_loops, threads
from .table_loops import JOB_FIELDS

# The whole sum of squares over that of a window, beyond which rounding would show.
LIMITS = {torch.float32: 3e10, torch.float64: 1e8}
ELEMENTS: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def _corners_body() -> Any:
    return table_loops.compile_corners()


@functools.cache
def _forward_body(dtype: torch.dtype) -> Any:
    return table_loops.compile_forward(ELEMENTS[dtype])


@functools.cache
def _backward_body(dtype: torch.dtype) -> Any:
    return table_loops.compile_backward(ELEMENTS[dtype])


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def vector(given: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A weight or bias ``[C]`` in the working precision."""
    if given is None:
        return torch.full((x.shape[1],), default, dtype=working_dtype(x))
    return given.detach().to(working_dtype(x)).contiguous()


def _corners(p: Tensor, q: Tensor) -> Tensor:
    """``[1 or N, H, W, 3]`` in uint32 (as int32): upper left corner in the table, p, q."""
    h, w = p.shape[-2:]
    samples = max(p.numel(), q.numel()) // (h * w)
    p, q = (side.to(torch.int64).expand(samples, h, w).contiguous() for side in (p, q))
    corners = torch.empty(samples, h, w, 3, dtype=torch.int32)
    fields = {"x_ptr": p.data_ptr(), "grad_ptr": q.data_ptr(), "windows_ptr": corners.data_ptr()}
    fields |= {"samples": samples, "height": h, "width": w}
    job = array("q", [fields.get(name, 0) for name in JOB_FIELDS])
    threads.run(_corners_body(), job.buffer_info()[0], samples)
    return corners


def run(
    body: Any, x: Tensor, windows: Tensor, channels_per_group: int, eps: float, **given: Tensor
) -> Tensor:
    """Runs loops on a job (`JOB_FIELDS`); returns which of the planes ``[N * G]`` they gave up on.

    Args:
        windows: as the job has them; more than one if its first dimension is not 1.
        given: tensors by the name of their field, without ``_ptr``.
    """
    n, c, h, w = x.shape
    tasks = n * (c // channels_per_group)
    flags = torch.zeros(tasks, dtype=torch.uint8)
    given |= {"x": x, "windows": windows, "flags": flags}
    fields = {f"{name}_ptr": tensor.data_ptr() for name, tensor in given.items()}
    fields |= {"samples": n, "channels": c, "height": h, "width": w}
    fields |= {"per_group": channels_per_group, "own_windows": int(windows.shape[0] > 1)}
    job = array("q", [fields.get(name, 0) for name in JOB_FIELDS])
    for name, value in (("eps", eps), ("limit", LIMITS[x.dtype])):
        struct.pack_into("d", job, 8 * JOB_FIELDS.index(name), value)
    threads.run(body, job.buffer_info()[0], tasks)
    return flags.nonzero()[:, 0]


def planes_of(x: Tensor, channels_per_group: int) -> Tensor:
    return x.reshape(-1, channels_per_group, *x.shape[2:])


def _of_planes(windows: Tensor, given_up: Tensor, groups: int) -> Tensor:
    return windows if windows.dim() == 2 else windows[given_up // groups]


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
) -> Tensor:
    """See :func:`lcn.functional.local_context_norm`."""
    values = x.to(working_dtype(x)).contiguous()
    weight, bias = vector(weight, x, 1.0), vector(bias, x, 0.0)
    out = huge_pages.empty_like(values, torch.contiguous_format)
    if not x.numel():
        return out.to(x.dtype)
    corners = _corners(p, q)
    given_up = run(
        _forward_body(values.dtype), values, corners, channels_per_group, eps,
        weight=weight, bias=bias, out=out,
    )  # fmt: skip
    if len(given_up):
        groups = x.shape[1] // channels_per_group
        normed = _normalized(values, p, q, channels_per_group, eps, given_up)
        scale, offset = (v.reshape(groups, -1, 1, 1)[given_up % groups] for v in (weight, bias))
        planes_of(out, channels_per_group)[given_up] = normed * scale + offset
    return out.to(x.dtype)


def _normalized(
    x: Tensor, p: Tensor, q: Tensor, channels_per_group: int, eps: float, which: Tensor
) -> Tensor:
    groups = x.shape[1] // channels_per_group
    return per_point_reference.local_context_norm(
        planes_of(x, channels_per_group)[which], None, None,
        _of_planes(p, which, groups), _of_planes(q, which, groups), channels_per_group, eps,
    )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias (these two float64 ``[C]``)."""
    dtype = working_dtype(x)
    values, grad = x.to(dtype).contiguous(), grad.to(dtype).contiguous()
    weight = vector(weight, x, 1.0)
    n, c = x.shape[:2]
    out = huge_pages.empty_like(values, torch.contiguous_format)
    partial = torch.zeros(n, 2, c, dtype=torch.float64)
    if not x.numel():
        return out.to(x.dtype), partial.sum(dim=0)[0], partial.sum(dim=0)[1]
    corners = _corners(p, q)
    given_up = run(
        _backward_body(dtype), values, corners, channels_per_group, eps,
        weight=weight, grad=grad, out=out, partial=partial,
    )  # fmt: skip
    if len(given_up):
        groups = c // channels_per_group
        scale = weight.reshape(groups, -1, 1, 1)[given_up % groups].double()
        of_planes = planes_of(grad, channels_per_group)[given_up].double()

        def normalize(planes: Tensor) -> Tensor:
            return per_point_reference.local_context_norm(
                planes, None, None, _of_planes(p, given_up, groups),
                _of_planes(q, given_up, groups), channels_per_group, eps,
            )  # fmt: skip

        planes = planes_of(values, channels_per_group)[given_up].double()
        normed, vjp = torch.func.vjp(normalize, planes)[:2]
        planes_of(out, channels_per_group)[given_up] = vjp(of_planes * scale)[0].to(dtype)
        sums = torch.stack(((of_planes * normed).sum((2, 3)), of_planes.sum((2, 3))), dim=1)
        by_plane = partial.reshape(n, 2, groups, -1)
        by_plane[given_up // groups, :, given_up % groups] = sums
    total = partial.sum(dim=0)
    return out.to(x.dtype), total[0], total[1]

"""A window per point on a CPU: describes the job, hands it to the compiled loops.

Planes that the loops give up on, because digits would be lost (see
:mod:`lcn.kernels.table_loops`), are done by the reference.
"""

import functools
import struct
from array import array
from typing import Any

import torch
from torch import Tensor

from . import cpu, huge_pages, memory_format_of, per_point_reference, table_loops, threads
from .cpu import _ELEMENTS as ELEMENTS  # as stored for Numba, and the precision to work in
from .table_loops import BLOCK, JOB_FIELDS, PLANES

# The whole sum of squares over that of a window, beyond which rounding would show.
LIMITS = {torch.float32: 3e10, torch.float64: 1e8}


@functools.cache
def _windows_body() -> Any:
    return table_loops.compile_windows()


@functools.cache
def _forward_body(dtype: torch.dtype) -> Any:
    return table_loops.compile_forward(*ELEMENTS[dtype][:2])


@functools.cache
def _backward_body(dtype: torch.dtype) -> Any:
    return table_loops.compile_backward(*ELEMENTS[dtype][:2])


def working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def vector(given: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A weight or bias ``[C]`` in the working precision."""
    if given is None:
        return torch.full((x.shape[1],), default, dtype=working_dtype(x))
    return given.detach().to(working_dtype(x)).contiguous()


def contiguous(x: Tensor) -> Tensor:
    """``x`` in NCHW."""
    return x if x.is_contiguous() else cpu._rows_contiguous(x).contiguous()


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """A contiguous ``y`` in the memory format of ``x``."""
    return cpu._in_memory_format(y, memory_format_of(x))


def job_of(fields: tuple[str, ...], **given: Any) -> "array[int]":
    """A job from its fields: tensors by their name without ``_ptr``, and numbers."""
    job = array("q", bytes(8 * len(fields)))
    for name, value in given.items():
        if isinstance(value, Tensor):
            job[fields.index(f"{name}_ptr")] = value.data_ptr()
        elif isinstance(value, float):
            struct.pack_into("d", job, 8 * fields.index(name), value)
        else:
            job[fields.index(name)] = value
    return job


def _windows(p: Tensor, q: Tensor, channels_per_group: int) -> dict[str, Any]:
    """The windows as the job has them."""
    h, w = p.shape[-2:]
    n = max(p.numel(), q.numel()) // (h * w)
    p, q = (side.to(torch.int64).expand(n, h, w).contiguous() for side in (p, q))
    corners = torch.empty(3, n, h, -(-w // BLOCK) * BLOCK, dtype=torch.int32)
    found: dict[str, Any] = dict(zip(("tops", "bottoms", "rights"), corners, strict=True))
    found["shares"] = torch.empty(corners.shape[1:], dtype=torch.float64)
    found["largest"] = torch.empty(n, h, dtype=torch.float64)
    found["lines"] = torch.empty(n, 2 * h + 1, dtype=torch.int64)
    sizes = {"samples": n, "height": h, "width": w, "per_group": channels_per_group}
    job = job_of(JOB_FIELDS, x=p, grad=q, **found, **sizes)
    threads.run(_windows_body(), job.buffer_info()[0], n)
    return found


def run_loops(
    body: Any,
    fields: tuple[str, ...],
    x: Tensor,
    channels_per_group: int,
    eps: float,
    **given: Any,
) -> Tensor:
    """Runs loops on a job; returns which of the planes ``[N * G]`` they gave up on.

    Args:
        fields: of the job.
        given: what it holds beside the map, as in :func:`job_of`.
    """
    n, c, h, w = x.shape
    planes = n * (c // channels_per_group)
    flags = torch.zeros(planes, dtype=torch.uint8)
    job = job_of(
        fields, x=x, flags=flags, samples=n, channels=c, height=h, width=w,
        per_group=channels_per_group, eps=eps, limit=LIMITS[working_dtype(x)], **given,
    )  # fmt: skip
    threads.run(body, job.buffer_info()[0], planes)
    return flags.nonzero()[:, 0]


def _run(
    body: Any, x: Tensor, p: Tensor, q: Tensor, channels_per_group: int, eps: float, **given: Tensor
) -> Tensor:
    windows = _windows(p, q, channels_per_group)
    planes = x.shape[0] * (x.shape[1] // channels_per_group)
    return run_loops(
        body, JOB_FIELDS, x, channels_per_group, eps, **windows, **given,
        own_windows=int(windows["shares"].shape[0] > 1),
        planes=min(PLANES, max(planes // torch.get_num_threads(), 1)),
    )  # fmt: skip


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
    values = contiguous(x)
    weight, bias = vector(weight, x, 1.0), vector(bias, x, 0.0)
    out = huge_pages.empty_like(values, torch.contiguous_format)
    if not x.numel():
        return in_format_of(x, out)
    given_up = _run(
        _forward_body(x.dtype), values, p, q, channels_per_group, eps,
        weight=weight, bias=bias, out=out,
    )  # fmt: skip
    if len(given_up):
        groups = x.shape[1] // channels_per_group
        normed = per_point_reference.local_context_norm(
            planes_of(values, channels_per_group)[given_up].to(weight.dtype), None, None,
            _of_planes(p, given_up, groups), _of_planes(q, given_up, groups), channels_per_group,
            eps,
        )  # fmt: skip
        scale, offset = (v.reshape(groups, -1, 1, 1)[given_up % groups] for v in (weight, bias))
        planes_of(out, channels_per_group)[given_up] = (normed * scale + offset).to(x.dtype)
    return in_format_of(x, out)


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
    values, grad = contiguous(x), contiguous(grad.to(x.dtype))
    weight = vector(weight, x, 1.0)
    n, c = x.shape[:2]
    out = huge_pages.empty_like(values, torch.contiguous_format)
    partial = torch.zeros(n, 2, c, dtype=torch.float64)
    if not x.numel():
        return in_format_of(x, out), partial.sum(dim=0)[0], partial.sum(dim=0)[1]
    given_up = _run(
        _backward_body(x.dtype), values, p, q, channels_per_group, eps,
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
        planes_of(out, channels_per_group)[given_up] = vjp(of_planes * scale)[0].to(x.dtype)
        sums = torch.stack(((of_planes * normed).sum((2, 3)), of_planes.sum((2, 3))), dim=1)
        by_plane = partial.reshape(n, 2, groups, -1)
        by_plane[given_up // groups, :, given_up % groups] = sums
    total = partial.sum(dim=0)
    return in_format_of(x, out), total[0], total[1]

"""The CPU kernel on tensors: describes the job, hands it to the compiled loops.

Differs from the reference in nothing but rounding. Statistics are float64; the rest is float32
(float64 for float64 inputs). Nothing is kept for the backward but the input: statistics are
computed again.
"""

import functools
import struct
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..window import WHOLE_MAP, covers_map
from . import (
    channels_last_loops,
    cpu_loops,
    huge_pages,
    memory_format_of,
    reference_kernel,
    threads,
)
from .cpu_loops import DETACHED, FINISH, FOLD, JOB_FIELDS, LANES, ROOM, WHOLE

# As stored for Numba, and the precision to work in.
_ELEMENTS: dict[torch.dtype, tuple[Any, Any, torch.dtype]] = {
    torch.float64: (np.float64, np.float64, torch.float64),
    torch.float32: (np.float32, np.float32, torch.float32),
    torch.float16: (np.uint16, np.float32, torch.float32),
    torch.bfloat16: (np.int16, np.float32, torch.float32),
}
# Fewer elements than this per thread are not worth waking a thread for.
_GRAIN = 8192
_NEXT_TASK, _STAGE = map(JOB_FIELDS.index, ("next_task", "stage"))
_X, _GRAD, _OUT, _WEIGHT, _BIAS, _PARTIAL, _PLANES = (
    JOB_FIELDS.index(f"{name}_ptr")
    for name in ("x", "grad", "out", "weight", "bias", "partial", "planes")
)


@functools.cache
def _forward_body(dtype: torch.dtype, planes: int = 0) -> Any:
    """Compiled for NCHW, or for groups that are so many planes of a channels-last map."""
    if planes:
        return channels_last_loops.compile_forward(*_ELEMENTS[dtype][:2], planes)
    return cpu_loops.compile_forward(*_ELEMENTS[dtype][:2])


@functools.cache
def _backward_body(dtype: torch.dtype, planes: int = 0) -> Any:
    if planes:
        return channels_last_loops.compile_backward(*_ELEMENTS[dtype][:2], planes)
    return cpu_loops.compile_backward(*_ELEMENTS[dtype][:2])


@functools.cache
def _transpose_body(dtype: torch.dtype) -> Any:
    return cpu_loops.compile_transpose(_ELEMENTS[dtype][0])


@dataclass(frozen=True)
class _Axis:
    """The windows along one axis; see :mod:`lcn.kernels.cpu_loops`."""

    count: int
    size: int
    step: int
    offset: int


def _axis(length: int, window: int, rule: str) -> _Axis:
    size = min(window, length)
    if rule == "tiled":
        return _Axis(-(-length // size), size, size, 0)
    offset = int(rule == "released")
    return _Axis(length - size + 1 - offset, size, 1, offset)


@dataclass(frozen=True)
class _Plan:
    """What a call is, apart from its values and where these lie; the same for calls alike."""

    view: tuple[int, int, int, int] | None  # the shape to work on, if not that of the tensors
    job: "array[int]"  # in the order of JOB_FIELDS; addresses are 0
    groups: int
    bands: int
    slots: int
    threads: int

    def run(self, body: Any, job: "array[int]", stage: int) -> None:
        job[_NEXT_TASK], job[_STAGE] = 0, stage
        threads.run(body, job.buffer_info()[0], self.threads)


@functools.lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, int, int, int],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
    most_threads: int,
    grain: int,
    lanes: int = 1,
) -> _Plan:
    """For tensors of one shape: x with the first strides, the gradient with the second. A task
    has ``lanes`` groups."""
    view = _as_rows(shape, strides, window, rule)
    if view is not None:
        shape, window = view, (WHOLE_MAP, WHOLE_MAP)
        strides = (_contiguous_strides(shape),) * 2
    n, c, h, w = shape
    workers = min(most_threads, max(n * c * h * w // grain, 1))
    groups = n * -(-c // (per_group * lanes))
    bands = 1 if groups >= workers else min(-(-workers // max(groups, 1)), h)
    rows, columns = _axis(h, window[0], rule), _axis(w, window[1], rule)
    slots = rows.count - 1 + bands
    if bands == 1:
        slots = 1 if rule == "tiled" else min(rows.size + 1, rows.count)
    fields = (
        *(0, 0, 0, 0, 0, 0, 0, 0),
        *(n, c, h, w, *strides[0][:3], *strides[1][:3]),
        *(0, per_group, bands, slots, rule == "tiled"),
        *(rows.count, rows.size, rows.step, columns.count, columns.size, rows.offset, 0),
    )
    job = array("q", fields)
    struct.pack_into("d", job, 8 * (len(job) - 1), eps)  # eps is the last field
    return _Plan(view, job, groups, bands, slots, min(workers, groups * bands))


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> Tensor:
    """See :func:`lcn.functional.local_context_norm`."""
    if _has_no_loops(x, window, rule):
        return reference_kernel.forward(x, weight, bias, channels_per_group, window, eps, rule)
    memory_format, planes = memory_format_of(x), _planes(x, channels_per_group, rule)
    x = x.contiguous(memory_format=memory_format) if planes else _rows_contiguous(x)
    out = huge_pages.empty_like(x, memory_format if planes else torch.contiguous_format)
    if not x.numel():
        return out
    strides, workers = x.stride(), torch.get_num_threads()
    plan = _plan(
        x.shape, (strides, strides), channels_per_group, window, eps, rule, workers, _GRAIN,
        LANES if planes else 1,
    )  # fmt: skip
    weight, bias = _vector(weight, x, 1.0), _vector(bias, x, 0.0)
    job = plan.job[:]
    job[_X], job[_OUT] = x.data_ptr(), out.data_ptr()
    job[_WEIGHT], job[_BIAS] = weight.data_ptr(), bias.data_ptr()
    plan.run(_forward_body(x.dtype, planes), job, WHOLE)
    return out if planes else _in_memory_format(out, memory_format)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias (these two float64 ``[C]``)."""
    if _has_no_loops(x, window, rule):
        return reference_kernel.backward(grad, x, weight, channels_per_group, window, eps, rule)
    memory_format, planes = memory_format_of(x), _planes(x, channels_per_group, rule)
    if planes:
        x, grad = (tensor.contiguous(memory_format=memory_format) for tensor in (x, grad))
    else:
        x, grad = _rows_contiguous(x), _rows_contiguous(grad)
    out = huge_pages.empty_like(x, memory_format if planes else torch.contiguous_format)
    n, c = x.shape[:2]
    if not x.numel():
        zeros = torch.zeros(2, c, dtype=torch.float64)
        return out, zeros[0], zeros[1]
    strides, workers = (x.stride(), grad.stride()), torch.get_num_threads()
    plan = _plan(
        x.shape, strides, channels_per_group, window, eps, rule, workers, _GRAIN,
        LANES if planes else 1,
    )  # fmt: skip
    partial = torch.empty(plan.bands, n, 2, c, dtype=torch.float64)
    weight = _vector(weight, x, 1.0)
    job = plan.job[:]
    job[_X], job[_GRAD], job[_OUT] = x.data_ptr(), grad.data_ptr(), out.data_ptr()
    job[_WEIGHT], job[_PARTIAL] = weight.data_ptr(), partial.data_ptr()
    body = _backward_body(x.dtype, planes)
    if rule == "released":
        plan.run(body, job, DETACHED)
    elif plan.bands == 1:
        plan.run(body, job, WHOLE)
    else:
        width = x.shape[3] if plan.view is None else plan.view[3]
        line = width * LANES if planes else width + ROOM
        terms = torch.empty(plan.groups, plan.slots, 3, line, dtype=weight.dtype)
        job[_PLANES] = terms.data_ptr()
        plan.run(body, job, FOLD)
        plan.run(body, job, FINISH)
    sums = partial[0, 0] if plan.bands * n == 1 else partial.sum(dim=(0, 1))
    return out if planes else _in_memory_format(out, memory_format), sums[0], sums[1]


def _planes(x: Tensor, channels_per_group: int, rule: str) -> int:
    """As how many planes the loops for channels-last maps take the groups; 0: those for NCHW run,
    on a copy if need be."""
    if rule != "centered" or memory_format_of(x) != torch.channels_last:
        return 0
    if x.shape[1] < LANES * channels_per_group:
        return 0
    if channels_per_group in (1, 2, 4):
        return channels_per_group
    return 0 if channels_per_group % LANES else LANES


def _has_no_loops(x: Tensor, window: tuple[int, int], rule: str) -> bool:
    """The released layer's whole-map case, where gradients go through the statistics."""
    return rule == "released" and covers_map(rule, window, *x.shape[2:])


def _as_rows(
    shape: tuple[int, int, int, int],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    window: tuple[int, int],
    rule: str,
) -> tuple[int, int, int, int] | None:
    """Where the window covers the map, it does not matter where a cell is: then the shape with the
    cells as rows of a length that the loops are made for, if their number divides so."""
    n, c, h, w = shape
    if not covers_map(rule, window, h, w) or strides != (_contiguous_strides(shape),) * 2:
        return None
    length = _row_length(h * w)
    return None if length < 64 else (n, c, h * w // length, length)


def _contiguous_strides(shape: tuple[int, int, int, int]) -> tuple[int, ...]:
    _, c, h, w = shape
    return c * h * w, h * w, w, 1


def _row_length(cells: int) -> int:
    """The largest divisor of a number of cells up to 512."""
    return max(length for length in range(1, min(cells, 512) + 1) if cells % length == 0)


def _rows_contiguous(x: Tensor) -> Tensor:
    if x.stride(3) == 1 or x.shape[3] == 1:
        return x
    _, c, h, w = x.shape
    if memory_format_of(x) != torch.channels_last:
        return x.contiguous()
    out = huge_pages.empty_like(x, torch.contiguous_format)
    _transpose(x, out, h * w, c)
    return out


def _in_memory_format(y: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A contiguous ``y`` in the memory format of its input."""
    if memory_format == torch.contiguous_format:
        return y
    if not y.numel():
        return y.contiguous(memory_format=memory_format)
    out = huge_pages.empty_like(y, memory_format)
    _transpose(y, out, y.shape[1], y.shape[2] * y.shape[3])
    return out


def _transpose(x: Tensor, out: Tensor, rows: int, columns: int) -> None:
    """The matrices ``[rows, columns]`` of each sample; several times faster than PyTorch's copy."""
    fields = {"x_ptr": x.data_ptr(), "out_ptr": out.data_ptr()}
    fields |= {"samples": x.shape[0], "height": rows, "width": columns}
    job = array("q", [fields.get(name, 0) for name in JOB_FIELDS])
    workers = min(torch.get_num_threads(), max(x.numel() // _GRAIN, 1))
    threads.run(_transpose_body(x.dtype), job.buffer_info()[0], workers)


def _vector(vector: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A weight or bias ``[C]`` in the working precision."""
    dtype = _ELEMENTS[x.dtype][2]
    if vector is None:
        return _constant_vector(x.shape[1], default, dtype)
    if vector.dtype == dtype and vector.stride(0) == 1:
        return vector
    return vector.detach().to(dtype).contiguous()


@functools.lru_cache(maxsize=256)
def _constant_vector(length: int, value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((length,), value, dtype=dtype)

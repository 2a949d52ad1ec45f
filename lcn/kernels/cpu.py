"""The CPU kernel on tensors: describes the job, hands it to the compiled loops.

Differs from the reference in nothing but rounding.  Statistics are float64; the rest is float32
(float64 for float64 inputs).  Nothing is kept for the backward but the input: statistics are
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
from . import cpu_loops, huge_pages, memory_format_of, reference_kernel, threads
from .cpu_loops import DETACHED, FINISH, FOLD, JOB_FIELDS, ROOM, WHOLE

# As stored for Numba, and the precision to work in.
_ELEMENTS: dict[torch.dtype, tuple[Any, Any, torch.dtype]] = {
    torch.float64: (np.float64, np.float64, torch.float64),
    torch.float32: (np.float32, np.float32, torch.float32),
    torch.float16: (np.uint16, np.float32, torch.float32),
    torch.bfloat16: (np.int16, np.float32, torch.float32),
}
# Fewer elements than this per thread are not worth waking a thread for.
_GRAIN = 8192
_NEXT_TASK, _STAGE, _PLANES = map(JOB_FIELDS.index, ("next_task", "stage", "planes_ptr"))


@functools.cache
def _forward_body(dtype: torch.dtype) -> Any:
    return cpu_loops.compile_forward(*_ELEMENTS[dtype][:2])


@functools.cache
def _backward_body(dtype: torch.dtype) -> Any:
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


@dataclass
class _Geometry:
    """Everything about a call that does not depend on the values."""

    shape: tuple[int, int, int, int]
    per_group: int
    window: tuple[int, int]
    eps: float
    rule: str
    threads: int
    bands: int

    @classmethod
    def of(
        cls, x: Tensor, per_group: int, window: tuple[int, int], eps: float, rule: str
    ) -> "_Geometry":
        n, c, h, w = x.shape
        workers = min(torch.get_num_threads(), max(x.numel() // _GRAIN, 1))
        groups = n * (c // per_group)
        bands = 1 if groups >= workers else min(-(-workers // max(groups, 1)), h)
        return cls((n, c, h, w), per_group, window, eps, rule, workers, bands)

    @property
    def groups(self) -> int:
        return self.shape[0] * (self.shape[1] // self.per_group)

    def job(
        self, *inputs: Tensor, out: int, weight: int, bias: int = 0, partial: int = 0
    ) -> "array[int]":
        """A job as the loops read it, for ``inputs`` ``x`` and, in the backward, ``grad``; the
        rest are addresses."""
        n, c, h, w = self.shape
        rows = _axis(h, self.window[0], self.rule)
        columns = _axis(w, self.window[1], self.rule)
        slots = rows.count - 1 + self.bands
        if self.bands == 1:
            slots = 1 if self.rule == "tiled" else min(rows.size + 1, rows.count)
        x, grad = inputs[0], inputs[-1]
        fields = (
            *(0, x.data_ptr(), grad.data_ptr(), out, weight, bias, partial, 0),
            *(n, c, h, w, *x.stride()[:3], *grad.stride()[:3]),
            *(0, self.per_group, self.bands, slots, self.rule == "tiled"),
            *(rows.count, rows.size, rows.step, columns.count, columns.size, rows.offset, 0),
        )
        job = array("q", fields)  # in the order of JOB_FIELDS
        struct.pack_into("d", job, 8 * (len(job) - 1), self.eps)  # eps is the last field
        return job

    def run(self, body: Any, job: "array[int]", stage: int) -> None:
        job[_NEXT_TASK], job[_STAGE] = 0, stage
        address, _ = job.buffer_info()
        threads.run(body.address, address, min(self.threads, self.groups * self.bands))


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
    memory_format = memory_format_of(x)
    x = _rows_contiguous(x)
    out = huge_pages.empty_like(x, torch.contiguous_format)
    if not x.numel():
        return out
    (x,), window = _as_rows((x,), window, rule)
    geometry = _Geometry.of(x, channels_per_group, window, eps, rule)
    weight, bias = _vector(weight, x, 1.0), _vector(bias, x, 0.0)
    job = geometry.job(x, out=out.data_ptr(), weight=weight.data_ptr(), bias=bias.data_ptr())
    geometry.run(_forward_body(x.dtype), job, WHOLE)
    return _in_memory_format(out, memory_format)


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
    memory_format = memory_format_of(x)
    x, grad = _rows_contiguous(x), _rows_contiguous(grad)
    out = huge_pages.empty_like(x, torch.contiguous_format)
    (x, grad), window = _as_rows((x, grad), window, rule)
    geometry = _Geometry.of(x, channels_per_group, window, eps, rule)
    n, c = x.shape[:2]
    partial = torch.zeros(geometry.bands, n, 2, c, dtype=torch.float64)
    if x.numel():
        _run_backward(geometry, x, grad, out, _vector(weight, x, 1.0), partial)
    weight_grad, bias_grad = partial.sum(dim=(0, 1))
    return _in_memory_format(out, memory_format), weight_grad, bias_grad


def _run_backward(
    geometry: _Geometry, x: Tensor, grad: Tensor, out: Tensor, weight: Tensor, partial: Tensor
) -> None:
    addresses = {"out": out.data_ptr(), "weight": weight.data_ptr(), "partial": partial.data_ptr()}
    job = geometry.job(x, grad, **addresses)
    body = _backward_body(x.dtype)
    if geometry.rule == "released":
        geometry.run(body, job, DETACHED)
    elif geometry.bands == 1:
        geometry.run(body, job, WHOLE)
    else:
        slots = job[JOB_FIELDS.index("slots")]
        planes = torch.empty(geometry.groups, slots, 3, x.shape[3] + ROOM, dtype=weight.dtype)
        job[_PLANES] = planes.data_ptr()
        geometry.run(body, job, FOLD)
        geometry.run(body, job, FINISH)


def _has_no_loops(x: Tensor, window: tuple[int, int], rule: str) -> bool:
    """The released layer's whole-map case, where gradients go through the statistics."""
    return rule == "released" and covers_map(rule, window, *x.shape[2:])


def _as_rows(
    maps: tuple[Tensor, ...], window: tuple[int, int], rule: str
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Where the window covers the map, and so does not ask where a cell is: the cells of the maps
    as rows of a length that the loops are made for, if they divide so."""
    n, c, h, w = maps[0].shape
    if not covers_map(rule, window, h, w) or not all(x.is_contiguous() for x in maps):
        return maps, window
    length = _row_length(h * w)
    if length < 64:
        return maps, window
    return tuple(x.view(n, c, h * w // length, length) for x in maps), (WHOLE_MAP, WHOLE_MAP)


@functools.cache
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
    if memory_format == torch.contiguous_format or not y.numel():
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
    threads.run(_transpose_body(x.dtype).address, job.buffer_info()[0], workers)


def _vector(vector: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A weight or bias ``[C]`` in the working precision."""
    dtype = _ELEMENTS[x.dtype][2]
    if vector is None:
        return torch.full((x.shape[1],), default, dtype=dtype)
    if vector.dtype == dtype and vector.stride(0) == 1:
        return vector
    return vector.detach().to(dtype).contiguous()

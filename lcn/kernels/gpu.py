"""The GPU kernel on tensors: launches the Triton kernels.

Where the window covers the map the layer is Group Normalization, and PyTorch's own kernels run it.
The tiled rule, the released layer's whole-map case and windows of more than some thousand columns
have no kernel here and run in plain PyTorch.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..window import covers_map
from . import gpu_loops, reference_kernel

# Cells (of all groups) of a tile.
_CELLS = 2048
_MOST_LANES = 4096
_MOST_ROWS = 4
# Windows higher than this are put together from sums over blocks of rows, made by another kernel.
_DIRECT_ROWS = 31
_BLOCK_ROWS = 16


def _power_of_two(number: int) -> int:
    """The smallest that is not below."""
    return 1 << max(number - 1, 0).bit_length()


class _Plan:
    """Shapes, window and tiles of one call, for the kernels."""

    def __init__(
        self, x: Tensor, channels_per_group: int, window: tuple[int, int], eps: float, rule: str
    ) -> None:
        self.samples, channels, self.height, self.width = x.shape
        self.per_group = channels_per_group
        self.groups = channels // channels_per_group
        self.offset = int(rule == "released")
        self.row_size, self.col_size = min(window[0], self.height), min(window[1], self.width)
        self.row_count = self.height - self.row_size + 1 - self.offset
        self.col_count = self.width - self.col_size + 1 - self.offset
        self.eps = eps
        self.acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.blocks = _BLOCK_ROWS if self.row_size > _DIRECT_ROWS else 0
        self.rows = self.lanes = 0
        for together in (*self._channels_of_tile(x), (1, 1)):
            self.side_by_side, self.channels_at_once = together
            if self._choose_tile():
                break
        self._derive()

    def _channels_of_tile(self, x: Tensor) -> list[tuple[int, int]]:
        """Groups and channels that lie side by side: a sector of 32 bytes where they do."""
        if x.stride(1) != 1 or x.stride(3) == 1:
            return []
        sector = 32 // x.element_size()
        at_once = min(_power_of_two(self.per_group), 8)
        return [(min(max(sector // at_once, 1), _power_of_two(self.groups)), at_once), (1, at_once)]

    def _choose_tile(self) -> bool:
        """Rows and lanes with the fewest lanes of halo and rows read per row, if there are any."""
        values = self.side_by_side * max(self.channels_at_once // 2, 1)
        best = float("inf")
        lanes = 16
        while lanes <= min(_power_of_two(max(self.width, 16)), _MOST_LANES // values):
            windows = self._windows(lanes)
            rows = min(_MOST_ROWS, max(_CELLS // (lanes * values), 1))
            while rows > self.row_size:
                rows //= 2
            if windows > 0:
                middle = min(self.row_size, 2 * _BLOCK_ROWS + self.row_size // 10)
                cost = 60 + 4 * self.per_group * (middle + 2 * rows) / rows
                cost *= lanes * -(-self.col_count // windows)
                if cost < best:
                    best, self.rows, self.lanes = cost, rows, lanes
            lanes *= 2
        return best < float("inf")

    def _derive(self) -> None:
        """What follows from the tile."""
        self.planes = self.samples * -(-self.groups // self.side_by_side)
        self.windows = self._windows(self.lanes)  # a multiple of 16, or more than there are
        self.halo = 0 if self.windows >= self.col_count else self.lanes - self.windows
        self.tiles = -(-self.height // self.rows)
        self.columns = -(-self.col_count // self.windows)
        # So many values a thread that they fit its registers; addresses that are no vectors' take
        # registers too, and so does a second channel.
        is_light = self.width % 4 == 0 and self.channels_at_once == 1
        of_thread = 16 if is_light and self.acc == torch.float32 else 8
        values = self.lanes * self.side_by_side * self.rows * max(self.channels_at_once // 2, 1)
        self.warps = min(max(values // (32 * of_thread), 2), 8)
        # Neighbouring lanes that one thread has, of each row.
        self.sub = max(1, self.lanes * self.side_by_side // (32 * self.warps))

    def _windows(self, lanes: int) -> int:
        """How many windows begin in a tile of ``lanes``."""
        if lanes >= self.width:
            return lanes
        return (lanes - self.col_size + 1 - self.offset) // 16 * 16  # aligned

    def constants(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "ROWS": self.rows,
            "LANES": self.lanes,
            "WINDOWS": self.windows,
            "GROUPS": self.side_by_side,
            "CHANNELS": self.channels_at_once,
            "SEGMENT": min(1 << (self.col_size.bit_length() - 1), self.lanes),
            "SUB": self.sub,
            "BLOCK_ROWS": self.blocks,
            "ACC": tl.float64 if self.acc == torch.float64 else tl.float32,
            "num_warps": self.warps,
        }

    def planes_at_once(self, x: Tensor, tensors: int, between: int) -> int:
        """So many planes that two chunks of ``tensors`` like ``x``, and what the passes hand on in
        ``RING`` chunks (``between``, bytes a cell), fit the level-2 cache."""
        of_cell = 2 * tensors * self.per_group * x.element_size() + gpu_loops.RING.value * between
        plane = self.side_by_side * self.height * self.width * of_cell
        return max(1, min(self.planes, _level_2_cache(x.device) // plane))

    def shape_arguments(self) -> tuple[int, ...]:
        return self.groups, self.per_group, self.height, self.width

    def window_arguments(self) -> tuple[int | float, ...]:
        sizes = (self.row_count, self.row_size, self.col_count, self.col_size)
        return (*sizes, self.offset, self.eps)

    def term_shapes(self, slots: int) -> tuple[tuple[int, ...], ...]:
        """Of what the gradient of the input is put together from."""
        row = self.col_count, self.side_by_side
        return (
            (slots, 2, self.height, *row),
            (slots, self.tiles, 3, 2, *row),
            (slots, self.tiles, *row),
            (slots, self.height, self.width, self.side_by_side),
        )

    def block_shape(self, slots: int) -> tuple[int, ...]:
        bands = self.height // self.blocks if self.blocks else 0
        return slots, bands, 3, self.width, self.side_by_side


def has_kernel(x: Tensor, window: tuple[int, int], rule: str) -> bool:
    """Whether there is a Triton kernel for this call."""
    covered = covers_map(rule, window, x.shape[2], x.shape[3])
    extent = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    if covered or rule == "tiled" or x.numel() == 0 or extent >= 2**31:
        return False
    return x.shape[3] <= _MOST_LANES or window[1] <= _MOST_LANES - 32


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> Tensor:
    """See :func:`lcn.functional.local_context_norm`; the result has the memory format of ``x``."""
    if not has_kernel(x, window, rule):
        if _is_group_norm(x, weight, window, rule):
            n, c, h, w = x.shape
            groups = c // channels_per_group
            return torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)[0]
        return reference_kernel.forward(x, weight, bias, channels_per_group, window, eps, rule)
    plan = _Plan(x, channels_per_group, window, eps, rule)
    y = torch.empty_like(x)
    weight, bias = _vector(weight, x, 1.0), _vector(bias, x, 0.0)
    at_once, chunks = plan.planes, 1
    programs = plan.planes * plan.tiles * plan.columns
    turns = blocks = weight  # not read
    if plan.blocks:
        at_once = plan.planes_at_once(x, 2, 1)
        chunks = -(-plan.planes // at_once)
        of_blocks = plan.height // plan.blocks * -(-plan.width // plan.lanes)
        programs = (chunks + 1) * at_once * (of_blocks + plan.tiles * plan.columns)
        slots = at_once * min(chunks, gpu_loops.RING.value)
        blocks = x.new_empty(plan.block_shape(slots), dtype=plan.acc)
        turns = torch.zeros(1 + 2 * chunks, dtype=torch.int32, device=x.device)
    gpu_loops.forward[(programs,)](
        x, y, weight, bias, blocks, turns, plan.planes, at_once, *plan.shape_arguments(),
        *x.stride(), *y.stride(), *plan.window_arguments(), **plan.constants(),
    )  # fmt: skip
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias."""
    if not has_kernel(x, window, rule):
        if _is_group_norm(x, weight, window, rule):
            return _group_norm_backward(grad, x, weight, channels_per_group, eps)
        return reference_kernel.backward(grad, x, weight, channels_per_group, window, eps, rule)
    plan = _Plan(x, channels_per_group, window, eps, rule)
    detached = rule == "released"
    out = torch.empty_like(x)
    partial = x.new_empty(plan.samples, x.shape[1], plan.tiles * plan.columns, 2, dtype=plan.acc)
    # P, Q, rstd, and sums of P and Q over tiles
    between = 0 if detached else 5 * plan.acc.itemsize
    at_once = plan.planes_at_once(x, 3, between)
    chunks = -(-plan.planes // at_once)
    slots = at_once * min(chunks, gpu_loops.RING.value)
    shapes = plan.term_shapes(0 if detached else slots)
    planes = [x.new_empty(shape, dtype=plan.acc) for shape in (plan.block_shape(slots), *shapes)]
    turns = torch.zeros(1 + 3 * chunks, dtype=torch.int32, device=x.device)
    passes = [plan.tiles * plan.columns]
    if plan.blocks:
        passes.append(plan.height // plan.blocks * -(-plan.width // plan.lanes))
    if not detached:
        passes.append(plan.tiles * -(-plan.width // (plan.lanes - plan.halo)))
    gpu_loops.backward[((chunks + len(passes) - 1) * at_once * sum(passes),)](
        x, grad, out, _vector(weight, x, 1.0), *planes, partial, turns, plan.planes, at_once,
        *plan.shape_arguments(), *x.stride(), *grad.stride(), *out.stride(),
        *plan.window_arguments(), DETACHED=detached, HALO=plan.halo, **plan.constants(),
    )  # fmt: skip
    weight_grad, bias_grad = partial.sum(dim=(0, 2), dtype=torch.float64).unbind(dim=1)
    return out, weight_grad, bias_grad


def _level_2_cache(device: torch.device) -> int:
    """In bytes; without a GPU, where the kernels are interpreted, that of a small one."""
    if device.type != "cuda":
        return 1 << 22
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def _is_group_norm(x: Tensor, weight: Tensor | None, window: tuple[int, int], rule: str) -> bool:
    same_dtype = weight is None or weight.dtype == x.dtype
    covered = covers_map(rule, window, x.shape[2], x.shape[3])
    return rule != "released" and covered and same_dtype and x.numel() > 0


def _group_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, channels_per_group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    sizes = (n, c, h * w, c // channels_per_group)
    if weight is None:
        weight = torch.ones(c, dtype=x.dtype, device=x.device)
    _, mean, rstd = torch.native_group_norm(x, weight, None, *sizes, eps)
    gradients: Any = torch.ops.aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, *sizes, [True, True, True]
    )
    return gradients


def _vector(vector: Tensor | None, x: Tensor, default: float) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if vector is None:
        return torch.full((x.shape[1],), default, dtype=dtype, device=x.device)
    return vector.detach().to(dtype).contiguous()

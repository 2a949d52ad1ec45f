"""Which norm layers of a model are windowed, and how far from a pixel its results depend.

A window that covers the whole feature map makes Local Context Normalization a Group
Normalization; deep in a network, and at training crops, that is the common case.
"""

import contextlib
import html
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .dependence import Watch
from .dependence_rules import RULES
from .fake_run import FakeModel, Forward, first_line
from .layers import LocalContextNorm
from .learned import LearnedContextNorm
from .norm_layers import named_norm_layers, norm_kind, num_channels
from .reach import Reach, measure_reach, unknown_reach
from .siblings import LocalContrastNorm, LocalResponseNorm, PositionalNorm
from .window import WHOLE_MAP, covers_map


@dataclass(frozen=True)
class AuditRow:
    """One norm layer. ``height`` and ``width`` are None if the forward never reached it.

    ``window`` is ``(p, q)`` (real numbers where it is learned), ``"all"``, or None for a layer
    without one. A layer that is called several times is described at the largest map it was given.
    """

    name: str
    kind: str
    channels: int
    height: int | None
    width: int | None
    window: tuple[float, float] | str | None
    windowed: bool


class Audit(Sequence[AuditRow]):
    """The rows of :func:`audit`; printing it gives the whole table.

    ``network`` says how far from a pixel of the input a result can depend; ``reach`` and
    ``total_stride`` are taken from it, see :class:`lcn.reach.Reach`.
    """

    def __init__(
        self, rows: Sequence[AuditRow], input_shape: tuple[int, ...], network: Reach
    ) -> None:
        self.rows = tuple(rows)
        self.input_shape = input_shape
        self.network = network

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[AuditRow]:
        return iter(self.rows)

    @property
    def reach(self) -> tuple[float, float] | None:
        """Rows and columns of the input that a result can depend on, in pixels from its own."""
        return self.network.reach

    @property
    def total_stride(self) -> tuple[int, int] | None:
        """Rows and columns of the input after which the grids of all feature maps repeat."""
        return self.network.total_stride

    @property
    def windowed_count(self) -> int:
        """How many norm layers normalize over less than their whole feature map."""
        return sum(row.windowed for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([_text_table(_HEADER, map(_cells, self.rows)), self._last_lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in _HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.rows
        )
        last = html.escape(self._last_lines()).replace("\n", "<br>")
        return f"<table><tr>{head}</tr>{body}</table><p>{last}</p>"

    def summary(self) -> str:
        """A line per size of feature map: how many norm layers it has, how many are windowed."""
        sizes: dict[tuple[int | None, int | None], list[AuditRow]] = {}
        for row in self.rows:
            sizes.setdefault((row.height, row.width), []).append(row)
        # Largest map first; layers that were not reached come last.
        ordered = sorted(sizes.items(), key=lambda item: -(item[0][0] or 0) * (item[0][1] or 0))
        lines = (
            [_size(*size), str(len(rows)), str(sum(row.windowed for row in rows))]
            for size, rows in ordered
        )
        return "\n".join(
            [_text_table(("feature map", "norm layers", "windowed"), lines), self._last_lines()]
        )

    def _last_lines(self) -> str:
        return f"windowed: {self.windowed_count} of {len(self)} norm layers\n{self.network}"


def audit(model: nn.Module, input_shape: Sequence[int], *, forward: Forward | None = None) -> Audit:
    """One row per norm layer: its feature map, its window, and whether the window is smaller.

    Also the network's ``reach`` and ``total_stride``. Tiles that begin at multiples of the stride
    give what the whole image gives wherever their border is at least ``reach`` pixels away, or is
    the image's own. Where a network resizes to a given size, such as HRNet, image and tiles have to
    end at such multiples too; if ``input_shape`` does not, ``network.sized_by`` names the layers.
    The reach is that of evaluation, and what a network adds by absolute position is not followed.

    The model runs in eval mode on fake tensors, once at the given size and then on longer inputs.
    Nothing is computed, so any input size will do, and parameters, buffers and training mode stay
    as they are.

    Args:
        model: any module; on any device, the meta device included.
        input_shape: ``(N, C, H, W)`` or ``(C, H, W)``.
        forward: how to call the model on the fake input, if not as ``model(x)``.

    Raises:
        ValueError: if ``input_shape`` is not such a shape, or the model fails before its first
            norm layer. If it fails later (detection models choose boxes by their values, which
            fake tensors do not have), the layers not reached are listed in a warning.
    """
    shape = _checked_shape(input_shape)
    fake, watch = FakeModel(model, forward), Watch(model, RULES)
    sizes, stopped = _measure(fake, shape, watch)
    network = unknown_reach(stopped) if stopped else measure_reach(fake, shape, watch)
    rows = [_row(name, layer, sizes) for name, layer in named_norm_layers(model)]
    return Audit(rows, shape, network)


def measure_feature_maps(
    model: nn.Module, input_shape: Sequence[int], forward: Forward | None = None
) -> dict[str, tuple[int, int]]:
    """Height and width of the largest map each norm layer is given, by layer name."""
    return _measure(FakeModel(model, forward), _checked_shape(input_shape))[0]


def _measure(
    model: FakeModel, shape: tuple[int, ...], watch: Watch | None = None
) -> tuple[dict[str, tuple[int, int]], str | None]:
    """The sizes of the maps, and why the forward stopped if it did."""
    sizes: dict[str, tuple[int, int]] = {}
    layers = dict(named_norm_layers(model.model))

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and args[0].dim() == 4:
                size = (int(args[0].shape[2]), int(args[0].shape[3]))
                sizes[name] = max(size, sizes.get(name, size), key=lambda s: s[0] * s[1])

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(record(name)).remove)
        try:
            model(shape, watch, watch.set_input if watch else lambda x: None)
        except Exception as error:  # what a model's forward may raise is not ours to know
            if layers and not sizes:
                raise ValueError(
                    f"the model does not run on an input of shape {shape}: {error}"
                ) from error
            missing = ", ".join(name for name in layers if name not in sizes)
            stopped = f"the forward on fake tensors stopped ({first_line(error)})"
            warnings.warn(f"{stopped}; norm layers not reached: {missing or 'none'}", stacklevel=4)
            return sizes, stopped
    return sizes, None


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(input_shape)
    if len(shape) not in (3, 4) or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ValueError(f"input_shape must be (N, C, H, W) or (C, H, W), got {input_shape!r}")
    return shape if len(shape) == 4 else (1, *shape)


def _row(name: str, layer: nn.Module, sizes: dict[str, tuple[int, int]]) -> AuditRow:
    height, width = sizes.get(name, (None, None))
    window: tuple[float, float] | str | None = None
    windowed = False
    fixed = (LocalContextNorm, PositionalNorm, LocalResponseNorm, LocalContrastNorm)
    if isinstance(layer, LearnedContextNorm):
        if layer.start.is_meta:  # which has no values
            return AuditRow(name, "lcn_learned", layer.num_channels, height, width, None, False)
        p, q = layer.current_window()
        window = (round(p, 2), round(q, 2))
        if height is not None and width is not None:
            most = layer.real_windows().detach()
            windowed = bool(((most[:, 0] < height) | (most[:, 1] < width)).any())
    elif isinstance(layer, fixed):
        whole = layer.window == (WHOLE_MAP, WHOLE_MAP)
        window = "all" if whole else layer.window
        if height is not None and width is not None:
            rule = getattr(layer, "rule", "centered")
            windowed = not covers_map(rule, layer.window, height, width)
    return AuditRow(
        name, norm_kind(layer) or "", num_channels(layer) or 0, height, width, window, windowed
    )


_HEADER = ("name", "kind", "channels", "feature map", "window", "windowed")


def _cells(row: AuditRow) -> tuple[str, ...]:
    window = row.window if isinstance(row.window, str) else _size(*(row.window or (None, None)))
    size = _size(row.height, row.width, absent="not reached")
    return row.name, row.kind, str(row.channels), size, window, "yes" if row.windowed else "no"


def _size(height: float | None, width: float | None, absent: str = "-") -> str:
    return absent if height is None else f"{height} x {width}"


def _text_table(header: Sequence[str], rows: Any) -> str:
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

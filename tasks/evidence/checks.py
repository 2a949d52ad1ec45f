"""Claims about the layer itself, checked by computing: ``python scripts/claims.py``.

torch is imported inside of functions: whoever shows results does without it.
"""

import datetime
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import write_atomically
from tasks.identity import running_code, versions
from tasks.runs.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

CHECKS_FILE = "checks.json"


class Result(NamedTuple):
    """What a check found, in words, and whether the claim holds; None if it could not be run."""

    found: str
    holds: bool | None


def window_limit() -> Result:
    """Windows of the map's size and larger against GroupNorm, LayerNorm and InstanceNorm."""
    import torch
    from torch.nn import functional as F

    from lcn.functional import local_context_norm

    x = torch.randn(2, 8, 19, 23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worst = 0.0
    for dtype, unit in ((torch.float64, 2.0**-52), (torch.float32, 2.0**-23)):
        y = x.to(dtype)
        wanted = {
            2: F.group_norm(y, 4), 8: F.layer_norm(y, y.shape[1:]), 1: F.instance_norm(y),
        }  # fmt: skip
        for window in ((19, 23), (64, 99), "all"):
            for channels, other in wanted.items():
                ours = local_context_norm(y, channels_per_group=channels, window=window)
                worst = max(worst, (ours - other).abs().max().item() / unit)
    found = f"largest difference to PyTorch's own layers: {worst:.0f} units of rounding at 1"
    return Result(found, worst <= 64)


def windows_approach_gn() -> Result:
    """Mean difference to GroupNorm over growing windows, on maps whose brightness varies."""
    import torch
    from torch.nn import functional as F

    from lcn.functional import local_context_norm

    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 16, 4, 4, generator=random)
    x = F.interpolate(coarse, size=(64, 64), mode="bicubic") * 2
    x = x + torch.randn(4, 16, 64, 64, generator=random)
    gn = F.group_norm(x, 8)
    away = [
        (local_context_norm(x, channels_per_group=2, window=window) - gn).abs().mean().item()
        for window in (7, 15, 31, 47, 63, 64)
    ]
    found = "mean difference at windows 7, 15, 31, 47, 63, 64 of a map of 64: "
    found += ", ".join(f"{value:.3f}" for value in away)
    falls = all(a > b for a, b in itertools.pairwise(away))
    return Result(found, falls and away[-1] < 1e-5)


SLOWEST = 1.25
"""Time of the slowest window over that of the fastest up to which we call the cost constant."""


def cost_over_window() -> Result:
    """Whether windows smaller than the map take the same time."""
    least = _times((5, 15, 31, 63, 91, 127, 181))
    ratio = max(least.values()) / min(least.values())
    found = f"{_milliseconds(least)}; slowest over fastest {ratio:.2f}, called constant up to"
    return Result(f"{found} {SLOWEST:g}", ratio <= SLOWEST)


def cost_of_large_windows() -> Result:
    """Whether the largest window takes longer than the smallest."""
    least = _times((5, 181))
    ratio = least[181] / least[5]
    return Result(f"{_milliseconds(least)}; largest over smallest {ratio:.2f}", ratio <= 1.0)


def _times(windows: tuple[int, ...], rounds: int = 25) -> dict[int, float]:
    """Least seconds of forward and backward over the rounds, taken in turns, on 192 x 192 maps."""
    import torch

    from lcn.functional import local_context_norm

    x = torch.randn(2, 32, 192, 192, requires_grad=True)
    gradient = torch.ones(2, 32, 192, 192)
    least = dict.fromkeys(windows, float("inf"))
    for number in range(rounds + 1):  # the first compiles
        for window in windows:
            start = time.perf_counter()
            local_context_norm(x, channels_per_group=2, window=window).backward(gradient)
            if number:
                least[window] = min(least[window], time.perf_counter() - start)
    return least


def _milliseconds(least: dict[int, float]) -> str:
    times = ", ".join(f"{window}: {1000 * seconds:.1f}" for window, seconds in least.items())
    return f"ms by window on a map of 192 x 192: {times}"


def window_per_point() -> Result:
    """Random windows for every cell, compared with statistics written out in float64."""
    import torch

    from lcn.functional import local_context_norm

    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 12, 15, generator=random, dtype=torch.float64)
    p, q = (torch.randint(1, 18, (12, 15), generator=random) for _ in range(2))
    try:
        ours = local_context_norm(x, channels_per_group=2, window=(p, q))
    except (TypeError, ValueError) as error:
        return Result(f"this version has none ({type(error).__name__})", None)
    away = (ours - _by_cell(x, p, q, 2)).abs().max().item()
    return Result(f"largest difference to the definition in float64: {away:.1e}", away < 1e-9)


def _by_cell(x: "Tensor", p: "Tensor", q: "Tensor", channels: int) -> "Tensor":
    y, (height, width) = x.clone(), x.shape[2:]
    for i in range(height):
        for j in range(width):
            rows, columns = min(int(p[i, j]), height), min(int(q[i, j]), width)
            top = min(max(i - int(p[i, j]) // 2, 0), height - rows)
            left = min(max(j - int(q[i, j]) // 2, 0), width - columns)
            for c in range(0, x.shape[1], channels):
                cells = x[0, c : c + channels, top : top + rows, left : left + columns]
                scale = (cells.var(correction=0) + 1e-5).sqrt()
                y[0, c : c + channels, i, j] = (x[0, c : c + channels, i, j] - cells.mean()) / scale
    return y


CHECKS: dict[str, Callable[[], Result]] = {
    "window-limit": window_limit,
    "windows-approach-gn": windows_approach_gn,
    "cost-over-window": cost_over_window,
    "cost-of-large-windows": cost_of_large_windows,
    "window-per-point": window_per_point,
}


def run_checks(names: list[str], folder: Path) -> dict[str, Result]:
    """Runs some checks and writes what they found, beside what was there, into ``checks.json``."""
    done = {name: CHECKS[name]() for name in names}
    commit, torch = running_code().commit, versions().get("torch")
    today = datetime.date.today().isoformat()
    recorded = read_checks(folder) | {
        name: {"found": result.found, "holds": result.holds, "date": today,
               "git_commit": commit, "torch": torch}
        for name, result in done.items()
    }  # fmt: skip
    text = json.dumps({name: recorded[name] for name in CHECKS if name in recorded}, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CHECKS_FILE, text + "\n")
    return done


def read_checks(folder: Path) -> dict[str, dict[str, Any]]:
    """What was found when the checks were last run; empty if they were not.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / CHECKS_FILE
    return read_json(path) if path.exists() else {}

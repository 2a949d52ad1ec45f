"""Time and memory of Local Context Normalization beside GroupNorm and the paper's Algorithm 1.

    python scripts/benchmark.py                          everything below, twenty minutes and more
    python scripts/benchmark.py --only windowed          windows smaller than the map
    python scripts/benchmark.py --only input             reading of training samples
    python scripts/benchmark.py --against old/benchmark.csv

The two times of a ratio are measured in turns, on the same tensor and threads. Each is the
smallest of the repetitions, the one that other programs disturbed least. New memory pages can
cost several times the layer. Freed memory of up to 32 MB therefore stays with the process, so
that neither layer pays for new pages. Larger tensors always pay; both layers get huge pages for
them where Linux has any (--small-pages: GroupNorm gets PyTorch's default pages).
Writes benchmark.csv and benchmark.png (cost over window size) to --output.
"""

import argparse
import contextlib
import copy
import ctypes
import functools
import math
import multiprocessing
import operator
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# PyTorch asks for huge pages if this is set before it is imported.
if "--small-pages" not in sys.argv:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import benchmark_input
import benchmark_training
import gpu_static
import torch
from benchmark_table import Table, huge_pages, processor
from torch import Tensor, nn
from torch.nn import functional as F

from lcn import convert_norm
from lcn.functional import local_context_norm
from tasks.config import amount, path_of, positive
from tasks.errors import command

# The feature maps a norm layer sees, with the paper's c_group, window and batch size per process:
# (what, batch, channels, height, width, c_group, window)
SHAPES = [
    ("HRNet-W18-small 512x1024, stem", 4, 64, 256, 512, 2, 227),
    ("HRNet-W18-small 512x1024, stage 1", 4, 64, 128, 256, 2, 227),
    ("HRNet-W18-small 512x1024, branch 1", 4, 16, 128, 256, 2, 227),
    ("HRNet-W18-small 512x1024, branch 2", 4, 32, 64, 128, 2, 227),
    ("HRNet-W18-small 512x1024, branch 3", 4, 64, 32, 64, 2, 227),
    ("HRNet-W18-small 512x1024, branch 4", 4, 128, 16, 32, 2, 227),
    ("U-Net 572, level 1", 12, 64, 570, 570, 4, 91),
    ("U-Net 572, level 2", 12, 128, 282, 282, 4, 91),
    ("U-Net 572, level 3", 12, 256, 138, 138, 4, 91),
    ("U-Net 572, level 4", 12, 512, 66, 66, 4, 91),
    ("U-Net 572, level 5", 12, 1024, 30, 30, 4, 91),
    ("U-Net 256, level 1", 96, 64, 256, 256, 4, 31),
    ("U-Net 256, level 2", 96, 128, 128, 128, 4, 31),
    ("U-Net 256, level 3", 96, 256, 64, 64, 4, 31),
    ("U-Net 256, level 4", 96, 512, 32, 32, 4, 31),
    ("U-Net 256, level 5", 96, 1024, 16, 16, 4, 31),
    ("ResNet-50 224, stem", 32, 64, 112, 112, 32, 127),
    ("ResNet-50 224, stage 1", 32, 256, 56, 56, 32, 127),
    ("ResNet-50 224, stage 2", 32, 512, 28, 28, 32, 127),
    ("ResNet-50 224, stage 3", 32, 1024, 14, 14, 32, 127),
    ("ResNet-50 224, stage 4", 32, 2048, 7, 7, 32, 127),
]
# Where windows are windows: maps of networks at inference (batch 1) and at batch 2.
# (what, channels, height, width, c_group, windows)
WINDOWED = [
    ("HRNet-W18-small 512x1024, branch 4", 128, 16, 32, 2, (7, 15)),
    ("HRNet-W18-small 512x1024, branch 3", 64, 32, 64, 2, (7, 15, 31)),
    ("HRNet-W18-small 512x1024, branch 2", 32, 64, 128, 2, (7, 15, 31, 63)),
    ("HRNet-W18-small 512x1024, branch 1", 16, 128, 256, 2, (7, 15, 31, 63, 127)),
    ("HRNet-W18-small 1024x2048, stem", 64, 512, 1024, 2, (31, 127)),
    ("U-Net 256, level 5", 1024, 16, 16, 4, (7, 15)),
    ("U-Net 256, level 3", 256, 64, 64, 4, (7, 31)),
    ("U-Net 256, level 1", 64, 256, 256, 4, (15, 63, 127)),
    ("ResNet-50 224, stage 1", 256, 56, 56, 32, (7, 31)),
    ("ResNet-50 224, stem", 64, 112, 112, 32, (15, 63)),
    ("Mask R-CNN 800x1216, stage 3", 256, 50, 76, 8, (15, 31)),
    ("Mask R-CNN 800x1216, stage 2", 256, 100, 152, 8, (31, 63)),
]
WINDOWS = (3, 7, 15, 31, 63, 127, 255, "all")
WITHOUT_A_GPU = "gpu-static"  # only if asked for

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def clock() -> float:
    """Seconds; with --cpu-time those in which this process ran, on all of its threads."""
    return time.process_time() if "--cpu-time" in sys.argv else time.perf_counter()


def algorithm1(
    x: Tensor, weight: Tensor, bias: Tensor, c_group: int, window: int, eps: float = 1e-5
) -> Tensor:
    """Algorithm 1 of the paper as it is written: two integral images, dilated convolutions.

    For comparison only; float32 integral images lose all digits on inputs with an offset.
    """
    c, h, w = x.shape[1:]
    p, q = min(window, h), min(window, w)
    corners = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=x.dtype).reshape(1, 1, 1, 2, 2)
    corners = corners.expand(1, 1, c_group, 2, 2)
    above, left = (h - (h - p + 1)) // 2, (w - (w - q + 1)) // 2

    def window_sums(values: Tensor) -> Tensor:
        integral = F.pad(values.cumsum(2).cumsum(3), (1, 0, 1, 0)).unsqueeze(1)
        sums = F.conv3d(integral, corners, stride=(c_group, 1, 1), dilation=(1, p, q)).squeeze(1)
        margins = (left, w - sums.shape[3] - left, above, h - sums.shape[2] - above)
        return F.pad(sums, margins, mode="replicate").repeat_interleave(c_group, dim=1)

    count = c_group * p * q
    sums, squares = window_sums(x), window_sums(x * x)
    mean = sums / count
    variance = (squares - sums * mean) / count
    normed = (x - mean) / torch.sqrt(variance + eps)
    return normed * weight.reshape(1, c, 1, 1) + bias.reshape(1, c, 1, 1)


def layers(c_group: int, window: int | str | Tensor | tuple[Tensor, ...]) -> dict[str, Function]:
    return {
        "gn": lambda x, weight, bias: F.group_norm(x, x.shape[1] // c_group, weight, bias),
        "lcn": lambda x, weight, bias: local_context_norm(
            x, weight, bias, channels_per_group=c_group, window=window
        ),
    }


def best_times(
    functions: dict[str, Function],
    shape: tuple[int, ...],
    backward: bool,
    seconds: float,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, float]:
    """The smallest time of each function in seconds, taken in turns; 4 to 1,000 rounds."""
    x, grad = (prepare(torch.randn(shape)) for _ in range(2))
    weight, bias = torch.ones(shape[1]), torch.zeros(shape[1])
    for tensor in (x, weight, bias):
        tensor.requires_grad_(backward)

    def once(function: Function) -> float:
        start = clock()
        with torch.set_grad_enabled(backward):
            y = function(x, weight, bias)
            if backward:
                torch.autograd.grad(y, (x, weight, bias), grad)
        return clock() - start

    for function in functions.values():
        once(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while len(times["gn"]) < 4 or (time.perf_counter() < end and len(times["gn"]) < 1000):
        for name, function in functions.items():
            times[name].append(once(function))
    return {name: min(values) for name, values in times.items()}


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def measure_windowed(
    options: argparse.Namespace,
    table: Table,
    part: str = "windowed",
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Cases in which every window is smaller than its map."""
    ratios: dict[str, list[float]] = {"forward": [], "forward+backward": []}
    for what, c, h, w, c_group, windows in WINDOWED:
        for batch in (options.batch,) if options.batch else (1, 2):
            for window in windows:
                for mode, found in ratios.items():
                    shape = (batch, c, h, w)
                    seconds = options.seconds / 2
                    times = best_times(
                        layers(c_group, window), shape, mode != "forward", seconds, prepare
                    )
                    found.append(times["lcn"] / times["gn"])
                    table.add(part, what, mode, shape, c_group, window, times)
    for mode, found in ratios.items():
        table.say_mean(f"{part}, {mode}", found)


def measure_channels_last(options: argparse.Namespace, table: Table) -> None:
    """The same cases with both layers in channels-last."""
    measure_windowed(options, table, "channels-last", channels_last)


def measure_fixed(options: argparse.Namespace, table: Table) -> None:
    """What a call costs before and after the work on cells, of which this map has 64 a channel."""
    shape = (1, 4, 8, 8)
    for mode in ("forward", "forward+backward"):
        times = best_times(layers(2, 3), shape, mode != "forward", options.seconds)
        table.add("fixed", "next to no cells", mode, shape, 2, 3, times)
        more = 1e6 * (times["lcn"] - times["gn"])
        table.say(f"fixed part, {mode}: {more:.0f} microseconds more than GroupNorm's")


def measure_shapes(options: argparse.Namespace, table: Table) -> None:
    kinds: dict[tuple[str, bool], list[float]] = {}
    for what, batch, c, h, w, c_group, window in SHAPES:
        shape = (options.batch or batch, c, h, w)
        for mode in ("forward", "forward+backward"):
            times = best_times(layers(c_group, window), shape, mode != "forward", options.seconds)
            table.add("shapes", what, mode, shape, c_group, window, times)
            kinds.setdefault((mode, window >= max(h, w)), []).append(times["lcn"] / times["gn"])
    for (mode, whole_map), found in kinds.items():
        kind = "window covers the map" if whole_map else "window smaller than the map"
        table.say_mean(f"shapes, {mode}, {kind}", found)


def measure_windows(options: argparse.Namespace, table: Table) -> None:
    """One shape, all windows in one round, so that all ratios are of one run."""
    shape = (options.batch or 4, 64, 256, 512)
    functions = {"gn": layers(2, "all")["gn"]}
    functions.update({f"{window}": layers(2, window)["lcn"] for window in WINDOWS})
    for mode in ("forward", "forward+backward"):
        times = best_times(functions, shape, mode != "forward", 4 * options.seconds)
        for window in WINDOWS:
            row = {"gn": times["gn"], "lcn": times[str(window)]}
            table.add("windows", f"window {window}", mode, shape, 2, window, row)
        ours = [times[str(window)] for window in WINDOWS if window != "all"]
        table.say(f"windows 3 to 255, {mode}: slowest over fastest {max(ours) / min(ours):.2f}")


def measure_per_point(options: argparse.Namespace, table: Table) -> None:
    """A window per point beside one window for all: smaller towards the border, and at random."""
    ratios: dict[str, list[float]] = {}
    for what, c, h, w, c_group, windows in WINDOWED:
        for window in (windows[0], windows[-1]):
            rows, columns = torch.arange(h)[:, None], torch.arange(w)
            to_border = torch.minimum(
                torch.minimum(rows, h - 1 - rows), torch.minimum(columns, w - 1 - columns)
            )
            side = (2 * to_border + 1).clamp(max=window)
            chosen = {
                "border": (side, side),
                "random": tuple(torch.randint(1, 2 * window, (h, w)) for _ in range(2)),
            }
            functions = layers(c_group, window)
            functions |= {name: layers(c_group, pair)["lcn"] for name, pair in chosen.items()}
            shape = (options.batch or 1, c, h, w)
            for mode in ("forward", "forward+backward"):
                times = best_times(functions, shape, mode != "forward", options.seconds / 2)
                table.add("per-point", what, mode, shape, c_group, window, times)
                for name in chosen:
                    ratio = times[name] / times["lcn"]
                    ratios.setdefault(f"{name}, {mode}", []).append(ratio)
                    print(f"{'':36} {name}: {ratio:.2f} of one window for all", flush=True)
    for name, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        table.say(
            f"a window per point, {name}: geometric mean {mean:.2f}, worst {max(found):.2f} of "
            "the time of one window for all"
        )
    measure_half_precision(options, table)


def measure_half_precision(options: argparse.Namespace, table: Table) -> None:
    """Windows per point and real windows beside one window for all, on one map of each dtype."""
    shape, window = (1, 32, 64, 128), 31
    functions = layers(2, window)
    per_point = tuple(torch.randint(1, 2 * window, shape[2:]) for _ in range(2))
    functions["per point"] = layers(2, per_point)["lcn"]
    functions["real"] = layers(2, torch.tensor([window - 0.5] * 2))["lcn"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for backward in (False, True):
            to_dtype = operator.methodcaller("to", dtype)
            times = best_times(functions, shape, backward, options.seconds, to_dtype)
            table.say(
                f"{dtype}, {'forward+backward' if backward else 'forward'}, of one window for all: "
                f"per point {times['per point'] / times['lcn']:.2f}, "
                f"real {times['real'] / times['lcn']:.2f}"
            )


def measure_algorithm1(options: argparse.Namespace, table: Table) -> None:
    ratios = []
    for window in (31, 127, 255):
        shape = (1, 64, 256, 512)
        functions = {**layers(2, window)}
        functions["algorithm1"] = functools.partial(algorithm1, c_group=2, window=window)
        times = best_times(functions, shape, True, options.seconds)
        ratios.append(times["algorithm1"] / times["lcn"])
        table.add("algorithm1", f"window {window}", "forward+backward", shape, 2, window, times)
    table.say(f"algorithm 1 over lcn: {min(ratios):.0f} to {max(ratios):.0f} times")


def measure_layouts(options: argparse.Namespace, table: Table) -> None:
    def cropped(x: Tensor) -> Tensor:
        return F.pad(x, (2, 2, 2, 2))[:, :, 2:-2, 2:-2]

    layouts = {
        "bfloat16": lambda x: x.bfloat16(),
        "float16": lambda x: x.half(),
        "channels-last": channels_last,
        "cropped (strided)": cropped,
    }
    for what, prepare in layouts.items():
        for window in (227, "all"):
            shape = (2, 64, 128, 256)
            for mode in ("forward", "forward+backward"):
                times = best_times(
                    layers(2, window), shape, mode != "forward", options.seconds, prepare
                )
                table.add("layouts", what, mode, shape, 2, window, times)


def _peak_of(name: str, shape: tuple[int, ...], result: "multiprocessing.Queue[int]") -> None:
    """By how many bytes one forward and backward, and its tensors, enlarge a process at most."""
    functions = {
        **layers(2, 227),
        "algorithm1": lambda x, weight, bias: algorithm1(x, weight, bias, 2, 227),
    }
    small = torch.randn(1, 4, 8, 300, requires_grad=True)  # compile and load first
    functions[name](small, torch.ones(4), torch.zeros(4)).sum().backward()
    before = _status_kib("VmRSS")
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weight = torch.ones(shape[1], requires_grad=True)
    bias = torch.zeros(shape[1], requires_grad=True)
    y = functions[name](x, weight, bias)
    y.backward(grad)
    result.put(1024 * (_status_kib("VmHWM") - before))


def _status_kib(field: str) -> int:
    """Memory of this process in KiB; unlike ``getrusage`` it knows nothing of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure_memory(options: argparse.Namespace, table: Table) -> None:
    spawn = multiprocessing.get_context("spawn")
    for shape in ((4, 64, 256, 512), (1, 16, 512, 1024)):
        peaks = {}
        for name in ("gn", "lcn", "algorithm1"):
            queue = spawn.Queue()
            process = spawn.Process(target=_peak_of, args=(name, shape, queue))
            process.start()
            peaks[name] = queue.get() / 1e9
            process.join()
        tensor = 4 * math.prod(shape) / 1e9
        table.say(
            f"memory, {shape} ({tensor:.3f} GB a tensor), peak of forward and backward with input: "
            + ", ".join(f"{name} {peak:.2f} GB" for name, peak in peaks.items())
            + f"; lcn over gn {peaks['lcn'] / peaks['gn']:.2f}"
        )


def measure_step(options: argparse.Namespace, table: Table) -> None:
    """Forward, loss and backward of HRNetV2-W18-Small-v1 at 512 x 1024, window 227."""
    from tasks.models.hrnet import hrnetv2

    models = {}
    for name, norm in (
        ("bn", {"name": "bn"}),
        ("gn", {"name": "gn", "groups": 8}),
        ("lcn", {"name": "lcn", "c_group": 2, "window": 227}),
        ("learned", {"name": "lcn_learned", "c_group": 2, "window": 226.5}),
    ):
        torch.manual_seed(0)
        model = convert_norm(hrnetv2("hrnetv2_w18_small_v1", num_classes=19), norm)
        if name == "gn":  # the same groups as lcn, so that only the window differs
            model = convert_norm(model, lambda channels: nn.GroupNorm(channels // 2, channels))
        models[name] = model.train()
        nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
        models[f"{name} in channels-last"] = nhwc
    images = torch.randn(options.batch or 1, 3, 512, 1024)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(6):
        for name, model in models.items():
            start = clock()
            model(images).float().square().mean().backward()
            model.zero_grad()
            times[name].append(clock() - start)
    best = {name: min(values[1:]) for name, values in times.items()}
    table.add("step", "HRNetV2-W18-Small-v1", "training", tuple(images.shape), 2, 227, best)
    for layout in ("", " in channels-last"):
        lcn, learned = best[f"lcn{layout}"], best[f"learned{layout}"]
        table.say(f"training step{layout}: lcn over gn {lcn / best[f'gn{layout}']:.2f}")
        table.say(f"training step{layout}: learned windows over lcn {learned / lcn:.2f}")
    for name in ("bn", "gn", "lcn"):
        ratio = best[f"{name} in channels-last"] / best[name]
        table.say(f"training step, {name}: channels-last over NCHW {ratio:.2f}")


START = """
import time
a = time.perf_counter(); import torch; b = time.perf_counter(); import lcn; c = time.perf_counter()
x = torch.randn(2, 4, 40, 40, requires_grad=True)
y = lcn.LocalContextNorm(4, 2, 7)(x); d = time.perf_counter()
y.sum().backward(); e = time.perf_counter()
print(b - a, c - b, d - c, e - d)
"""


def measure_start(options: argparse.Namespace, table: Table) -> None:
    runs = []
    for _ in range(4):
        result = subprocess.run(
            [sys.executable, "-c", START], capture_output=True, encoding="utf-8"
        )
        runs.append([float(number) for number in result.stdout.split()])
    torch_s, lcn_s, forward_s, backward_s = (min(column) for column in zip(*runs, strict=True))
    table.say(
        f"fresh process: import torch {torch_s:.2f} s, then lcn {lcn_s:.2f} s; "
        f"first forward {forward_s:.2f} s, first backward {backward_s:.2f} s"
    )


def keep_freed_memory() -> None:
    """Where the C library is GNU's: tensors of up to 32 MB reuse memory, larger ones get fresh."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(mmap_threshold, 32 << 20)
        c_library.mallopt(trim_threshold, 2**31 - 1)


PARTS: dict[str, Callable[[argparse.Namespace, Table], None]] = {
    "windowed": measure_windowed,
    "channels-last": measure_channels_last,
    "fixed": measure_fixed,
    "shapes": measure_shapes,
    "windows": measure_windows,
    "per-point": measure_per_point,
    "algorithm1": measure_algorithm1,
    "layouts": measure_layouts,
    "memory": measure_memory,
    "step": measure_step,
    "start": measure_start,
    "input": benchmark_input.measure,
    "training": functools.partial(benchmark_training.measure, clock=clock),
}


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=(*PARTS, WITHOUT_A_GPU), default=list(PARTS),
                        help="parts to run")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=positive, help="batch size of all cases")
    parser.add_argument(
        "--threads", type=positive, help="number of threads (default: PyTorch's choice)"
    )
    parser.add_argument(
        "--seconds", type=amount, default=2.0, help="seconds per measurement (default: 2)"
    )
    parser.add_argument(
        "--against", type=path_of, metavar="FILE", help="an earlier benchmark.csv to compare with"
    )
    parser.add_argument("--small-pages", action="store_true", help="no huge pages for GroupNorm")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure processor time; with --threads 1, on a machine that runs other programs",
    )
    parser.add_argument(
        "--data-root", type=path_of, metavar="DIR",
        help="for input: real samples, in a folder per task (cityscapes, coco, ...)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=benchmark_training.TASKS,
        default=benchmark_training.TASKS,
        help="for input and training",
    )
    parser.add_argument(
        "--compile", action="store_true", help="for training: trainer.compile=true too, for minutes"
    )
    parser.add_argument("--output", type=path_of, default=Path("benchmark"), help="folder to write")
    options = parser.parse_args()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    table = Table()
    if options.against and not options.against.is_file():
        parser.error(f"--against: there is no file {options.against}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here")
    table.say(processor())
    table.say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {huge_pages()}")
    if options.device == "cuda":
        gpu_static.measure_cuda(options, table, SHAPES, WINDOWS, layers)
    elif WITHOUT_A_GPU in options.only:
        gpu_static.print_static(SHAPES, table.say)
    on_cpu = options.only if options.device == "cpu" else ()
    for part in (part for part in on_cpu if part != WITHOUT_A_GPU):
        PARTS[part](options, table)
    if options.against:
        table.compare(options.against)
    table.write(options.output)
    print("\n".join(["", *table.lines]))


if __name__ == "__main__":
    main()

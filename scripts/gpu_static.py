"""The GPU kernels: figures that need no GPU, and timings on a GPU.

Used by ``scripts/benchmark.py``: ``--only gpu-static`` compiles every kernel that a call would
launch, for GPUs that need not be there, counts the instructions of the machine code and the bytes
the kernels move, and predicts times from data sheets; ``--device cuda`` measures.
"""

import argparse
import collections
import contextlib
import math
import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcn.kernels import gpu
from lcn.window import covers_map

CAPABILITIES = (80, 89, 90)
_DTYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
}


@dataclass(frozen=True)
class Card:
    """Figures of the maker's data sheet: bytes a second, multiprocessors, float32 lanes of each,
    boost clock in Hz, level-2 cache in bytes."""

    name: str
    bandwidth: float
    multiprocessors: int
    lanes: int
    clock: float
    cache: int


CARDS = (
    Card("T4", 320e9, 40, 64, 1.59e9, 4 << 20),
    Card("RTX 3090", 936e9, 82, 128, 1.70e9, 6 << 20),
    Card("RTX 4090", 1008e9, 128, 128, 2.52e9, 72 << 20),
    Card("A100 40 GB", 1555e9, 108, 64, 1.41e9, 40 << 20),
    Card("H100 SXM", 3350e9, 132, 128, 1.98e9, 50 << 20),
)


@dataclass
class Launch:
    """A kernel as :mod:`lcn.kernels.gpu` would launch it."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.launches.append(Launch(self.kernel, math.prod(grid), arguments, constants))

        return launch


@contextlib.contextmanager
def _recording(cache: int) -> Iterator[list[Launch]]:
    launches: list[Launch] = []
    kernels = {name: getattr(gpu.gpu_loops, name) for name in ("forward", "backward")}
    level_2_cache = gpu._level_2_cache
    try:
        gpu._level_2_cache = lambda device: cache
        for name, kernel in kernels.items():
            setattr(gpu.gpu_loops, name, _Recorder(kernel, launches))
        yield launches
    finally:
        gpu._level_2_cache = level_2_cache
        for name, kernel in kernels.items():
            setattr(gpu.gpu_loops, name, kernel)


def launches_of(
    shape: tuple[int, int, int, int],
    channels_per_group: int,
    window: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    rule: str = "centered",
    cache: int = 50 << 20,
) -> list[Launch]:
    """Launches of forward and backward, for a level-2 cache of this size; nothing is computed."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    vector = torch.empty(shape[1], device="meta")
    arguments = channels_per_group, window, 1e-5, rule
    with _recording(cache) as launches:
        gpu.forward(x, vector, vector, *arguments)
        gpu.backward(torch.empty_like(x), x, vector, *arguments)
    return launches


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compiles by Triton, specialized as its launcher does: on ones and on multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = dict(launch.constants)
    options = {"num_warps": constants.pop("num_warps")}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | constants
    signature, fixed, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], fixed[(index,)] = "constexpr", value
            continue
        is_tensor = isinstance(value, Tensor)
        signature[parameter.name] = f"*{_DTYPES[value.dtype]}" if is_tensor else "i32"
        if is_tensor or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=fixed, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass
class MachineCode:
    """Registers of a thread, and instructions in the code by class, each counted once."""

    registers: int
    stack: int
    classes: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.classes.values())


def machine_code(compiled: Any) -> MachineCode:
    """The machine code, read with the disassembler that Triton contains."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code = _output(tools / "nvdisasm", "-c", file.name)
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    classes: collections.Counter[str] = collections.Counter()
    for line in code.splitlines():
        found = re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", line)
        if found:
            classes[_class_of(found[1])] += 1
    return MachineCode(int(registers), int(stack), dict(classes))


def _output(*command: Any) -> str:
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def _class_of(instruction: str) -> str:
    name = instruction.split(".")[0]
    if name in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX") or ".F64" in instruction:
        return "float64"
    if instruction.startswith("MUFU") and instruction.endswith("64H"):
        return "float64"
    if name in ("F2F", "F2FP", "I2F", "F2I", "I2FP", "HADD2"):
        return "conversions"
    if name in ("FADD", "FMUL", "FFMA", "FSEL", "FSETP", "FMNMX", "MUFU"):
        return "float32"
    groups = {"SHFL": "shuffles", "LDG": "loads", "STG": "stores", "LDL": "spills", "STL": "spills"}
    shared = dict.fromkeys(("LDS", "STS", "LDSM", "STSM"), "shared memory")
    return (groups | shared).get(name, "other")


def values_of_thread(launch: Launch) -> int:
    """Cells (of all groups) of a tile, for each thread."""
    c = launch.constants
    return int(c["ROWS"] * c["LANES"] * c["GROUPS"]) // (32 * int(c["num_warps"])) or 1


@dataclass
class Traffic:
    """Bytes an element of the input, asked of the level-2 cache and of memory; values an element
    that are read in loops over rows."""

    cache: float
    memory: float
    looped: float


def traffic(launch: Launch, cache: int) -> Traffic:
    """The traffic of a launch, counted from the kernel; see docs/gpu.md."""
    a = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    size, c, rows = a["x"].element_size(), a["per_group"], a["ROWS"]
    acc = 8 if a["x"].dtype == torch.float64 else 4
    wide = math.ceil(a["col_count"] / a["WINDOWS"]) * a["LANES"] / a["width"]
    middle, blocks = a["row_size"] - rows + 1, 0.0
    if a["BLOCK_ROWS"]:
        blocks = max(middle - a["BLOCK_ROWS"] + 1, 0) / a["BLOCK_ROWS"]
        middle = middle - blocks * a["BLOCK_ROWS"]
    window_rows = (middle + 2 * (rows - 1)) / rows
    read = size * window_rows * wide + 3 * acc * blocks / rows / c * wide
    of_blocks = size + 3 * acc / c / a["BLOCK_ROWS"] if a["BLOCK_ROWS"] else 0.0
    looped = middle / rows * wide + 3 * blocks / rows / c * wide + (of_blocks > 0)
    plane = a["height"] * a["width"] * a["GROUPS"] * c
    if launch.kernel.__name__ == "forward":
        fits = 4 * a["at_once"] * plane * size <= cache or not a["BLOCK_ROWS"]
        again = 0.0 if fits else of_blocks
        return Traffic(of_blocks + read + 2 * size, 2 * size + again, looped)
    if a["DETACHED"]:
        fits = 2 * a["at_once"] * plane * size * 3 <= cache or not a["BLOCK_ROWS"]
        again = 0.0 if fits else of_blocks
        return Traffic(of_blocks + read + 3 * size, 3 * size + again, looped)
    share = a["col_count"] / a["width"]
    stored = (2 * acc * share * (1 + 1 / rows) + acc * share / rows + acc) / c
    halo = a["LANES"] / (a["LANES"] - a["HALO"])
    span = min(a["row_size"], a["row_count"])
    middle, summed = max(span - rows + 1, 0), 0.0
    summed = max(middle - rows + 1, 0) / rows
    middle -= summed * rows
    terms = 2 * acc * (middle + summed + 2 * (rows - 1)) / rows / c * share * halo
    all_cache = of_blocks + read + 2 * size + stored + terms + acc / c + 3 * size
    live = a["at_once"] * (2 * plane * 3 * size + 4 * plane * (stored + acc / c))
    # If it does not fit: x and grad twice, and what the passes hand on written and read.
    spilled = 2 * size + of_blocks + 2 * stored
    looped += 2 * (middle + summed) / rows / c * share * halo
    return Traffic(all_cache, 3 * size + (0.0 if live <= cache else spilled), looped)


def instructions_per_element(launch: Launch, code: MachineCode) -> float:
    """Executed for each element of the input: the code once a tile, and five for each value that is
    read in a loop over rows, halo included."""
    a = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    lanes = math.ceil(a["col_count"] / a["WINDOWS"]) * a["LANES"] / a["width"]
    return (
        code.total / values_of_thread(launch) / a["per_group"] * lanes
        + 5 * traffic(launch, 1 << 40).looped
    )


def predicted_seconds(card: Card, elements: int, launch: Launch, instructions: float) -> float:
    """The longest of memory (at 0.85 of the data sheet) and instructions (at 0.6 of one a cycle and
    scheduler), and 5 microseconds for each launch."""
    memory = elements * traffic(launch, card.cache).memory / (0.85 * card.bandwidth)
    rate = card.multiprocessors * 128 * card.clock * 0.6
    # The zeros of the turns; for the gradients of weight and bias a sum.
    launches = 1 if launch.kernel.__name__ == "forward" and launch.arguments[5].dim() == 0 else 2
    launches += launch.kernel.__name__ == "backward"
    return max(memory, elements * instructions / rate) + 5e-6 * launches


def group_norm_seconds(card: Card, elements: int, backward: bool) -> float:
    """Of PyTorch's, in three launches forward (x twice, y) and five backward (x and dy twice, dx);
    what fits the cache is read once."""
    size = 4
    again = 0.0 if 3 * elements * size <= card.cache else 1.0
    words = (3 + 2 * again) if backward else (2 + again)
    seconds = elements * size * words / (0.85 * card.bandwidth)
    return seconds + 5e-6 * (5 if backward else 3)


def print_static(shapes: list[tuple[Any, ...]], say: Callable[[str], None]) -> None:
    """The tables of docs/gpu.md; ``shapes`` as in benchmark.py."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("float32, window 31", {"window": (31, 31)}),
        ("float32, window 227", {"window": (227, 227)}),
        ("bfloat16, window 31", {"window": (31, 31), "dtype": torch.bfloat16}),
        ("float16, window 31", {"window": (31, 31), "dtype": torch.float16}),
        ("float32, channels-last, window 31", {"window": (31, 31), "channels_last": True}),
        ("float32, released, window 31", {"window": (31, 31), "rule": "released"}),
    ]
    kinds = "float32 float64 conversions shuffles shared memory loads stores spills other"
    kinds = kinds.replace("shared memory", "shared-memory")
    for what, options in cases:
        for capability in CAPABILITIES:
            for launch in launches_of((4, 64, 256, 512), 2, **options):
                code = machine_code(compile_launch(launch, capability))
                of_element = 2 * values_of_thread(launch)
                counts = ", ".join(
                    f"{kind} {code.classes.get(kind.replace('-', ' '), 0) / of_element:.1f}"
                    for kind in kinds.split()
                )
                say(
                    f"{what}, {launch.kernel.__name__}, target {capability}: "
                    f"{code.registers} registers, instructions per element: {counts}"
                )
    for window in (7, 15, 31, 63, 127, 227):
        for launch in launches_of((4, 64, 256, 512), 2, (window, window)):
            counted = traffic(launch, 50 << 20)
            say(
                f"traffic, window {window}, {launch.kernel.__name__}: memory {counted.memory:.1f} "
                f"bytes an element, level-2 cache {counted.cache:.1f}"
            )
    print_predicted(shapes, say)


def print_predicted(shapes: list[tuple[Any, ...]], say: Callable[[str], None]) -> None:
    ratios: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for what, *shape, c_group, window in shapes:
        if covers_map("centered", (window, window), *shape[2:]):
            continue  # PyTorch's GroupNorm runs
        elements = math.prod(shape)
        line = []
        for card in CARDS:
            launches = launches_of(tuple(shape), c_group, (window, window), cache=card.cache)
            target = 90 if "H100" in card.name else 80
            times = [
                predicted_seconds(
                    card,
                    elements,
                    launch,
                    instructions_per_element(launch, _code(launch, target)),
                )
                for launch in launches
            ]
            gn = [group_norm_seconds(card, elements, backward) for backward in (False, True)]
            pair = times[0] / gn[0], sum(times) / sum(gn)
            line.append(f"{card.name} {pair[0]:.2f} and {pair[1]:.2f}")
            for mode, ratio in zip(("forward", "forward+backward"), pair, strict=True):
                ratios[card.name, mode].append(ratio)
        say(f"predicted time over GroupNorm's, {what}, window {window}: " + ", ".join(line))
    for (name, mode), found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        say(f"predicted, {name}, {mode}: geometric mean {mean:.2f}, worst {max(found):.2f}")


_CODES: dict[str, MachineCode] = {}


def _code(launch: Launch, capability: int) -> MachineCode:
    constants = sorted((key, str(value)) for key, value in launch.constants.items())
    width = launch.arguments[launch.kernel.arg_names.index("width")]
    key = f"{launch.kernel.__name__} {capability} {constants} {width % 16 == 0}"
    if key not in _CODES:
        _CODES[key] = machine_code(compile_launch(launch, capability))
    return _CODES[key]


def cuda_times(
    functions: dict[str, Callable[..., Tensor]],
    shape: tuple[int, ...],
    backward: bool,
    seconds: float,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, float]:
    """Median time of each function in seconds, by CUDA events, taken in turns after a warm-up."""
    x, grad = (prepare(torch.randn(shape, device="cuda")) for _ in range(2))
    weight = torch.ones(shape[1], device="cuda", dtype=x.dtype)
    bias = torch.zeros_like(weight)
    for tensor in (x, weight, bias):
        tensor.requires_grad_(backward)

    def once(function: Callable[..., Tensor]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.set_grad_enabled(backward):
            start.record()
            y = function(x, weight, bias)
            if backward:
                torch.autograd.grad(y, (x, weight, bias), grad)
            stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    first = 0.0
    for _ in range(3):  # compiles, then fills caches and lets the clock rise
        first = sum(once(function) for function in functions.values())
    rounds = min(max(int(seconds / max(first, 1e-5)), 10), 1000)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(once(function))
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth(shape: tuple[int, ...]) -> float:
    """Bytes a second, read and written, of a copy of a float32 tensor of this shape."""
    times = cuda_times({"copy": lambda x, *_: x.clone()}, shape, False, 0.5)
    return 8 * math.prod(shape) / times["copy"]


def device_line() -> str:
    """Which GPU, and its clocks as they are now."""
    properties = torch.cuda.get_device_properties(0)
    query = (
        "nvidia-smi",
        "--query-gpu=clocks.sm,clocks.mem,driver_version",
        "--format=csv,noheader",
    )
    clocks = "clocks unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        clocks = "SM and memory clock, driver: " + _output(*query).strip()
    cache = properties.L2_cache_size >> 20
    return f"{properties.name}, {cache} MB level-2 cache, torch {torch.__version__}, {clocks}"


def measure_cuda(
    options: argparse.Namespace,
    table: Any,
    shapes: list[tuple[Any, ...]],
    windows: tuple[int | str, ...],
    layers: Callable[[int, int | str], dict[str, Callable[..., Tensor]]],
) -> None:
    """The tables of shapes, windows and layouts, on a GPU; ``table`` and ``layers`` as in
    benchmark.py."""
    table.say(device_line())
    ratios: dict[str, list[float]] = {"forward": [], "forward+backward": []}
    for what, batch, c, h, w, c_group, window in shapes:
        shape = (options.batch or batch, c, h, w)
        for mode, found in ratios.items():
            times = cuda_times(layers(c_group, window), shape, mode != "forward", options.seconds)
            found.append(times["lcn"] / times["gn"])
            table.add("shapes", what, mode, shape, c_group, window, times)
    for mode, found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        table.say(f"shapes, {mode}: geometric mean {mean:.2f}, worst {max(found):.2f} of GroupNorm")
    shape = (options.batch or 4, 64, 256, 512)
    copy = copy_bandwidth(shape)
    table.say(f"copy of {shape}: {copy / 1e9:.0f} GB/s read and written")
    functions = {"gn": layers(2, "all")["gn"]}
    functions |= {str(window): layers(2, window)["lcn"] for window in windows}
    for mode, ideal in (("forward", 8), ("forward+backward", 20)):
        times = cuda_times(functions, shape, mode != "forward", 4 * options.seconds)
        for window in windows:
            row = {"gn": times["gn"], "lcn": times[str(window)]}
            table.add("windows", f"window {window}", mode, shape, 2, window, row)
            share = ideal * math.prod(shape) / times[str(window)] / copy
            table.say(
                f"window {window}, {mode}: {ideal} bytes an element at least, "
                f"{share:.2f} of the bandwidth of the copy"
            )
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "bfloat16": lambda x: x.bfloat16(),
        "float16": lambda x: x.half(),
        "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    }
    for what, prepare in layouts.items():
        for window in (31, 227, "all"):
            for mode in ratios:
                times = cuda_times(
                    layers(2, window), shape, mode != "forward", options.seconds, prepare
                )
                table.add("layouts", what, mode, shape, 2, window, times)

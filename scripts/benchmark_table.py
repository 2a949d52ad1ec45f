"""What ``scripts/benchmark.py`` prints and writes: times, ratios, and the machine they are of."""

import contextlib
import csv
import math
import os
import platform
import statistics
from pathlib import Path

import torch


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return (
                    f"{line.partition(':')[2].strip()}, {torch.backends.cpu.get_cpu_capability()}"
                )
    return f"{platform.processor() or platform.machine()}"


def huge_pages() -> str:
    with contextlib.suppress(OSError):
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
        mode = modes[modes.index("[") + 1 : modes.index("]")]
        asks = os.environ.get("THP_MEM_ALLOC_ENABLE", "0")
        return f"transparent huge pages: {mode}, THP_MEM_ALLOC_ENABLE={asks}"
    return "no transparent huge pages"


RATIOS = ("lcn_over_gn", "load_over_decode", "over_plain")


class Table:
    """Prints each result as it comes, and keeps all of them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.lines: list[str] = []

    def add(
        self,
        part: str,
        what: str,
        mode: str,
        shape: tuple[int, ...],
        c_group: int,
        window: int | str,
        times: dict[str, float],
    ) -> None:
        ratio = times["lcn"] / times["gn"]
        row: dict[str, object] = {"part": part, "what": what, "mode": mode}
        row |= {"shape": "x".join(map(str, shape)), "c_group": c_group, "window": window}
        row.update({f"{name}_ms": f"{1e3 * value:.3f}" for name, value in times.items()})
        self.rows.append({**row, "lcn_over_gn": f"{ratio:.3f}"})
        slow = times.get("algorithm1")
        note = f"  algorithm 1 {1e3 * slow:9.2f} ms" if slow else ""
        print(
            f"{what:36} {mode:17} {row['shape']:>16} c_group {c_group:>2} window {window!s:>4}"
            f"  gn {1e3 * times['gn']:8.2f} ms  lcn {1e3 * times['lcn']:8.2f} ms"
            f"  ratio {ratio:.2f}{note}",
            flush=True,
        )

    def add_input(self, what: str, shape: tuple[int, ...], times: dict[str, float]) -> None:
        """Seconds of a training sample: ``decode``, ``read`` and ``load``."""
        ratio = times["load"] / times["decode"]
        row: dict[str, object] = {"part": "input", "what": what, "mode": "training sample"}
        row |= {"shape": "x".join(map(str, shape)), "c_group": "", "window": ""}
        row.update({f"{name}_ms": f"{1e3 * value:.3f}" for name, value in times.items()})
        self.rows.append({**row, "load_over_decode": f"{ratio:.3f}"})
        print(
            f"{what:36} {row['shape']:>12}  "
            + "  ".join(f"{name} {1e3 * value:6.2f} ms" for name, value in times.items())
            + f"  ratio {ratio:.2f}",
            flush=True,
        )

    def add_step(
        self, task: str, way: tuple[bool, str, bool], seconds: float, plain: float
    ) -> None:
        """Seconds of a training step, and of one in NCHW, float32, not compiled."""
        layout, precision = "channels-last" if way[0] else "NCHW", way[1].split("-")[0]
        mode = f"{layout}, {precision}{', compiled' if way[2] else ''}"
        row: dict[str, object] = {"part": "training", "what": task, "mode": mode}
        row |= {"shape": "", "c_group": "", "window": "", "step_ms": f"{1e3 * seconds:.1f}"}
        self.rows.append({**row, "over_plain": f"{seconds / plain:.3f}"})
        print(
            f"{task:12} {mode:32} {1e3 * seconds:9.1f} ms  {1 / seconds:6.2f} steps/s"
            f"  of NCHW, 32: {seconds / plain:.2f}",
            flush=True,
        )

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(f"=> {line}", flush=True)

    def say_mean(self, what: str, ratios: list[float]) -> None:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        self.say(f"{what}: geometric mean {mean:.2f}, worst {max(ratios):.2f} of GroupNorm")

    def compare(self, path: Path) -> None:
        """Ratios of this run over those of an earlier one, of the cases that both have."""
        case = ("part", "what", "mode", "shape", "c_group", "window")
        with path.open(newline="", encoding="utf-8") as file:
            earlier = {tuple(row[key] for key in case): row for row in csv.DictReader(file)}
        changes: dict[tuple[str, str, str], list[float]] = {}
        for row in self.rows:
            old = earlier.get(tuple(str(row[key]) for key in case))
            if old is not None:
                name = next(key for key in RATIOS if key in row)
                change = float(str(row[name])) / float(old[name])
                kind = (str(row["part"]), str(row["mode"]), name.replace("_", " "))
                changes.setdefault(kind, []).append(change)
        for (part, mode, name), found in changes.items():
            mean = math.exp(statistics.fmean(map(math.log, found)))
            self.say(
                f"{part}, {mode}: {name} is {mean:.2f} of that in {path} "
                f"({min(found):.2f} to {max(found):.2f}, {len(found)} cases)"
            )
        if not changes:
            self.say(f"{path} has none of these cases")

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with (folder / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self._plot(folder / "benchmark.png")

    def _plot(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4))
        for mode in ("forward", "forward+backward"):
            rows = [r for r in self.rows if r["part"] == "windows" and r["mode"] == mode]
            if rows:
                ticks = [str(row["window"]) for row in rows]
                for name in ("gn", "lcn"):
                    times = [float(str(row[f"{name}_ms"])) for row in rows]
                    axes.plot(ticks, times, marker="o", label=f"{name}, {mode}")
        rows = [row for row in self.rows if row["part"] == "algorithm1"]
        if rows:
            # Measured at another batch size; its time is proportional to that.
            scale = [4.0 for _ in rows]
            times = [float(str(r["algorithm1_ms"])) * s for r, s in zip(rows, scale, strict=True)]
            ticks = [str(row["window"]) for row in rows]
            axes.plot(ticks, times, marker="s", label="Algorithm 1, forward+backward (x 4)")
        axes.set(xlabel="window", ylabel="ms", yscale="log", title="Cost over window size, CPU")
        if axes.lines:
            axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, dpi=120)

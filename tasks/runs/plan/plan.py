"""What is known of a training before it begins, as text and as a row of a table.

Nothing here imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.runs.plan.cards import GIB, RESERVED, USABLE

SIZES = (16, 24, 40, 80)
"""GB of the cards whose largest batch the plan gives."""


@dataclass
class Check:
    """One line of a checklist: what, whether it is as the run needs it, and why or why not."""

    what: str
    ok: bool
    note: str


@dataclass
class Plan:
    """What a training needs.

    Attributes:
        name: of the experiment, or task, network and norm.
        network, norm, precision, data: as people write them.
        parameters: of the network.
        size: height and width of what it is trained on, pixels.
        regions: what a detector's regions were taken to be; None for other networks.
        batch_size: samples of a device.
        devices: how many.
        accumulate: batches of each device whose gradients are added before a step.
        devices_note: where that number is from.
        samples: of an epoch; None if it is not known without the data.
        epochs, steps: of the training.
        step_flops: floating-point operations of one device's step.
        total_flops: of the whole training on all devices, its evaluations included.
        evaluation: how evaluations were counted.
        memory: bytes of one device at their peak.
        largest: the largest batch of a device by GB of its memory; 0 if none fits.
        checkpoint: bytes of one.
        download_gb: of the dataset's archives, 1e9 bytes; None if not known.
        where: name of the device that is planned for.
        on_gpu: whether that is one.
        room: bytes that tensors may take there.
        has_precision: whether it has fast units for `precision`.
        step_seconds: of a step; None if neither computed nor measured.
        timing: where `step_seconds` is from.
        hours: of the whole training, its evaluations included.
        checks: what still stands between the user and the run.
    """

    name: str
    network: str
    norm: str
    precision: str
    data: str
    parameters: int
    size: tuple[int, int]
    regions: str | None
    batch_size: int
    devices: int
    accumulate: int
    devices_note: str
    samples: int | None
    epochs: int
    steps: int | None
    step_flops: int
    total_flops: float | None
    evaluation: str
    memory: int
    largest: dict[int, int]
    checkpoint: int
    download_gb: float | None
    where: str
    on_gpu: bool
    room: float
    has_precision: bool
    step_seconds: float | None
    timing: str
    hours: float | None
    checks: list[Check] = field(default_factory=list)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Plan":
        """From what a JSON file has of ``dataclasses.asdict``: keys of `largest` are text there."""
        largest = {int(size): count for size, count in fields["largest"].items()}
        checks = [Check(**check) for check in fields["checks"]]
        return cls(**{**fields, "largest": largest, "checks": checks})

    @property
    def total_batch(self) -> int:
        return self.batch_size * self.devices * self.accumulate

    @property
    def made_of(self) -> str:
        """What the total batch is the product of, but for its samples of a device."""
        accumulated = f" x {self.accumulate}" if self.accumulate > 1 else ""
        return f"{self.devices}{accumulated}"

    @property
    def is_ready(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def device_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.devices


def plan_text(plan: Plan) -> str:
    """The whole plan, a line or two for each thing."""
    height, width = plan.size
    accumulated = f"{plan.accumulate} accumulated x " if plan.accumulate > 1 else ""
    step = f"{number(plan.step_flops)} a step and device"
    if plan.total_flops is not None:
        step += f", {number(plan.total_flops)} in all"
    fits = ", ".join(f"{plan.largest[size]} in {size} GB" for size in SIZES)
    lines = [
        ("plan", f"{plan.name}: {plan.data}, {plan.network}, {plan.norm}, {plan.precision}"),
        ("model", f"{plan.parameters:,} parameters"),
        ("batch", f"{plan.total_batch} in all: {_count(plan.devices, 'device')} x {accumulated}"
                  f"{plan.batch_size}, {height} x {width} pixels ({plan.devices_note})"),
        ("steps", _steps(plan)),
        ("FLOPs", step),
        ("", "convolutions and matrix products, 2 for a multiply-add; norms are not counted"),
        ("", plan.evaluation),
        ("memory", f"{plan.memory / GIB:.2f} GiB a device at the peak"),
        ("", f"largest batch of a device: {fits}"),
        ("", f"({RESERVED:g} GiB for CUDA and {1 - USABLE:.0%} for fragments left free, assumed)"),
        ("disk", _disk(plan)),
        ("time", _time(plan)),
        ("", plan.timing),
    ]  # fmt: skip
    if plan.regions is not None:
        lines.insert(3, ("", plan.regions))
    return "\n".join(f"{title:8}{text}" for title, text in lines) + "\n\n" + checklist(plan.checks)


def checklist(checks: Sequence[Check]) -> str:
    """A line for each thing that a run needs."""
    width = max(len(check.what) for check in checks)
    lines = [f"{'ok' if c.ok else 'NO':4}{c.what:{width}}  {c.note}" for c in checks]
    missing = sum(not check.ok for check in checks)
    end = "ready to train" if not missing else f"not ready: {missing} of {len(checks)} missing"
    return "\n".join(["checklist", *lines, end])


def table(plans: Sequence[Plan]) -> str:
    """A row for each plan, then a line for each thing that a plan lacks."""
    header = (
        "run", "params", "batch", "steps", "FLOPs/step", "FLOPs", "GiB",
        *(f"in {size} GB" for size in SIZES), "step", "hours", "device-hours", "missing",
    )  # fmt: skip
    rows = [header, *map(_row, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    last = len(header) - 1
    lines = [
        "  ".join(
            cell.ljust(widths[k]) if k in (0, last) else cell.rjust(widths[k])
            for k, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
    known = [plan.device_hours for plan in plans if plan.device_hours is not None]
    total = f"{len(plans)} rows, {sum(known):,.0f} device-hours in all"
    if len(known) < len(plans):
        total += f" without {len(plans) - len(known)} rows whose time is not known"
    notes = [
        total,
        "batch: devices x samples of each; GiB: peak of a device; in 16 GB: its largest batch",
        *dict.fromkeys(f"time: {plan.timing}" for plan in plans),
        *dict.fromkeys(
            f"NO  {check.what}: {check.note}" for p in plans for check in p.checks if not check.ok
        ),
    ]
    return "\n".join([*lines, "", *notes])


def _row(plan: Plan) -> tuple[str, ...]:
    missing = ", ".join(check.what for check in plan.checks if not check.ok)
    return (
        plan.name,
        number(plan.parameters),
        f"{plan.made_of} x {plan.batch_size}",
        _or_unknown(plan.steps, lambda value: f"{value:,}"),
        number(plan.step_flops),
        _or_unknown(plan.total_flops, number),
        f"{plan.memory / GIB:.2f}",
        *(str(plan.largest[size]) for size in SIZES),
        _or_unknown(plan.step_seconds, duration),
        _or_unknown(plan.hours, lambda value: f"{value:,.1f}"),
        _or_unknown(plan.device_hours, lambda value: f"{value:,.0f}"),
        missing or "-",
    )


def _steps(plan: Plan) -> str:
    if plan.steps is None or plan.samples is None:
        return f"not known without the data ({plan.epochs} epochs)"
    seen = plan.steps * plan.total_batch
    return (
        f"{plan.steps:,} of {plan.epochs} epochs of {plan.samples:,} samples; {seen:,} samples seen"
    )


def _disk(plan: Plan) -> str:
    dataset = "size of the dataset not known"
    if plan.download_gb is not None:
        dataset = f"dataset {plan.download_gb:g} GB as archives, unpacked at least as much again"
    return f"checkpoint {plan.checkpoint / 1e9:.2f} GB, two while one replaces the other; {dataset}"


def _time(plan: Plan) -> str:
    if plan.step_seconds is None:
        return f"not known on {plan.where}"
    if plan.hours is None or plan.device_hours is None:
        return f"{duration(plan.step_seconds)} a step on {plan.where}; steps not known"
    kind = "GPU-hours" if plan.on_gpu else "hours"
    spent = f"{plan.device_hours:,.1f} {kind}"
    if plan.devices > 1:
        spent += f", {plan.hours:,.1f} hours on {plan.devices} devices"
    return f"{spent}; {duration(plan.step_seconds)} a step on {plan.where}"


def number(value: float) -> str:
    """Three digits and a prefix: 2.24 T."""
    for scale, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}" if value < 999.5 * scale else f"{value:.2e}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _or_unknown(value: Any, words: Callable[[Any], str]) -> str:
    return "?" if value is None else words(value)


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"

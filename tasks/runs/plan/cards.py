"""Data sheets of some GPUs. Nothing here imports torch."""

from dataclasses import dataclass

GIB = 2**30
RESERVED, USABLE = 1.0, 0.95
"""GiB of a card for the CUDA context and the workspaces of cuDNN, and the share of the rest that
fragmentation leaves (both assumed)."""

SHORTEST_KERNEL = 5e-6
"""Seconds that any kernel takes, its launch included (assumed)."""


@dataclass(frozen=True)
class Card:
    """A GPU as its maker's data sheet or architecture paper describes it.

    Attributes:
        title: its name.
        memory: GB as it is sold, which are GiB.
        bandwidth: of its memory, 1e9 bytes a second.
        teraflops: dense, by precision. ``32-true`` is TF32 where there is one, which cuDNN uses for
            convolutions by PyTorch's default. A precision that the card has no fast units for is
            left out.
    """

    title: str
    memory: int
    bandwidth: float
    teraflops: dict[str, float]


CARDS = {
    "t4": Card("T4", 16, 320, {"32-true": 8.1, "16-mixed": 65}),
    "v100": Card("V100 SXM2", 16, 900, {"32-true": 15.7, "64-true": 7.8, "16-mixed": 125}),
    "rtx3090": Card("RTX 3090", 24, 936, {"32-true": 35.6, "16-mixed": 71, "bf16-mixed": 71}),
    "rtx4090": Card(
        "RTX 4090", 24, 1008, {"32-true": 82.6, "16-mixed": 165.2, "bf16-mixed": 165.2}
    ),
    "a100": Card(
        "A100 40 GB", 40, 1555,
        {"32-true": 156, "64-true": 9.7, "16-mixed": 312, "bf16-mixed": 312},
    ),
    "a100_80gb": Card(
        "A100 SXM 80 GB", 80, 2039,
        {"32-true": 156, "64-true": 9.7, "16-mixed": 312, "bf16-mixed": 312},
    ),
    "h100": Card(
        "H100 SXM", 80, 3350,
        {"32-true": 494.7, "64-true": 33.5, "16-mixed": 989.4, "bf16-mixed": 989.4},
    ),
}  # fmt: skip
"""docs/plan.md says where each figure is from."""


def usable_bytes(gigabytes: float) -> float:
    """Bytes for tensors on a card that is sold with so many GB."""
    return (gigabytes - RESERVED) * USABLE * GIB


def seconds(costs: dict[tuple[int, int], int], card: Card, precision: str) -> float:
    """The least time that a card needs, operator by operator.

    The longest of: arithmetic at its peak, bytes at its bandwidth, and `SHORTEST_KERNEL`.

    Args:
        costs: how many operators have so many floating-point operations and move so many bytes.
        card: the card.
        precision: as ``trainer.precision``, one that the card has.
    """
    rate, bandwidth = card.teraflops[precision] * 1e12, card.bandwidth * 1e9
    return sum(
        count * max(flops / rate, moved / bandwidth, SHORTEST_KERNEL)
        for (flops, moved), count in costs.items()
    )

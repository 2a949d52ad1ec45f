"""Counts what a step does and holds, operator by operator, on real or fake tensors."""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """A context that counts operations, bytes moved and bytes of live storages.

    Operations are those of PyTorch's own FLOP counter: convolutions and matrix products, two for a
    multiply-add. Storages are counted while something holds them, what autograd saved included.

    Attributes:
        flops: floating-point operations.
        costs: how many operators have so many operations and move so many bytes; views are none.
        live, peak: bytes of the storages that exist, and the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.costs: Counter[tuple[int, int]] = Counter()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts the storages of tensors that were made outside."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, key)
        self.peak = max(self.peak, self.live)

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.bincount.default:  # whose length follows from values
            out: Any = args[0].new_empty(kwargs.get("minlength") or args[2])
        else:
            out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.hold(results)
        if results and not func.is_view:
            self._count(func, args, kwargs, out, results)
        return out

    def _count(
        self, func: Any, args: tuple[Any, ...], kwargs: dict, out: Any, results: list[Tensor]
    ) -> None:
        formula = flop_registry.get(func.overloadpacket)
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=out)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.numel() * tensor.itemsize for tensor in (*inputs, *results))
        self.flops += flops
        self.costs[flops, moved] += 1

"""Large results on huge pages.

The memory of a large result is fresh in every call. The system hands it out page by page as it is
first written, which at 4 KB a page takes longer than the layer itself. Linux can hand out 2 MB at a
time. In its mode ``always`` every program gets such pages, in the mode ``madvise`` those programs
that ask, in the mode ``never`` none. PyTorch asks for all of its tensors if
``THP_MEM_ALLOC_ENABLE=1`` is in the environment.
"""

import ctypes
import functools
import mmap
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
# The C library may reuse memory up to this size (the largest M_MMAP_THRESHOLD of GNU's); only the
# pages of larger tensors are certain to be new.
_FRESH_BYTES = 32 << 20


@functools.cache
def _page_bytes() -> int:
    """Bytes of a huge page; 0 where there are none to ask for, or where PyTorch asks by itself."""
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        return 0
    try:
        if "[madvise]" not in (_SYSTEM / "enabled").read_text(encoding="utf-8"):
            return 0
        return int((_SYSTEM / "hpage_pmd_size").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def would_help(x: Tensor) -> bool:
    """Whether a result of the size of ``x`` is much faster to write on huge pages."""
    return x.device.type == "cpu" and x.numel() * x.itemsize > _FRESH_BYTES and _page_bytes() > 0


def empty_like(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """As ``torch.empty_like``, but asks for huge pages wherever a whole one fits."""
    out = torch.empty_like(x, memory_format=memory_format)
    page = _page_bytes()
    if page:
        start = -(-out.data_ptr() // page) * page
        stop = (out.data_ptr() + out.numel() * out.itemsize) // page * page
        if start < stop:  # only advice: it does not matter if the system refuses
            _madvise()(start, stop - start, mmap.MADV_HUGEPAGE)
    return out

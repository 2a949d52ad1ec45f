"""Runs a compiled loop on as many threads as PyTorch uses, without a thread pool of its own.

Every thread calls the same C function ``void body(void *job)``, which takes task after task from a
counter in ``job`` until none is left. So the result never depends on how many threads came.

Where PyTorch runs on an OpenMP library, the threads are that library's: the same ones that just
ran the convolution before this layer. A second pool would have to compete with them, since they
keep spinning for a while after their work. Elsewhere plain Python threads call the function, which
ctypes does without holding the interpreter lock.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

# OpenMP's threads do not survive a fork, and it does not notice.
_forked = False


def _after_fork() -> None:
    global _forked, _pool
    _forked, _pool = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _openmp_parallel() -> Any:
    """GOMP_parallel(body, job, threads, flags): GNU's entry point, which LLVM's and Intel's
    libraries also have; None if PyTorch brought none of them."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


_openmp = _openmp_parallel()
_pool: ThreadPoolExecutor | None = None


def run(body: Any, job: int, tasks: int) -> None:
    """Call the C function ``body`` (of Numba) with the address ``job`` on up to ``tasks`` threads.

    Returns when every call has returned.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        body.ctypes(job)
    elif _openmp is not None and not _forked:
        _openmp(body.address, job, threads, 0)
    else:
        _run_on_python_threads(body.ctypes, job, threads)


def _run_on_python_threads(function: Any, job: int, threads: int) -> None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="lcn")
    others = [_pool.submit(function, job) for _ in range(threads - 1)]
    function(job)
    for other in others:
        other.result()

"""Where the system gives huge pages: the same results, on such pages."""

from pathlib import Path

import pytest
import torch
from test_layer import outputs, tensors
from torch import nn

from lcn.functional import local_context_norm
from lcn.kernels import huge_pages


@pytest.mark.parametrize("shape", [(2, 6, 30, 30), (1, 6, 7, 7), (2, 6, 523, 2), (1, 6, 20, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_group_norm_in_the_global_case_of_large_tensors(dtype, shape, monkeypatch):
    """Where huge pages are to be had the CPU kernel runs, on rows of another length."""
    x, weight, bias, grad = (t.to(dtype) for t in tensors(*shape, offset=3.0))
    monkeypatch.setattr(huge_pages, "would_help", lambda x: True)
    ours = outputs(
        lambda x, *a: local_context_norm(x, *a, channels_per_group=2, window=600),
        *(x, weight, bias, grad),
    )
    exact = [t.double() for t in (x, weight, bias, grad)]
    theirs = outputs(lambda x, *a: nn.functional.group_norm(x, 3, *a), *exact)
    assert ours[0].shape == shape
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        step = max(8 * torch.finfo(dtype).eps, 1e-12)  # the witness itself is float64
        assert (one.double() - other).abs().max() <= step * other.abs().max()


@pytest.mark.parametrize("window", [3, "all"])
@pytest.mark.parametrize("large", [False, True])
def test_the_result_is_no_view(window, large, monkeypatch):
    """An in-place activation after the layer, as most networks have, would copy a view."""
    monkeypatch.setattr(huge_pages, "would_help", lambda x: large)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    y = local_context_norm(x, channels_per_group=2, window=window)
    assert not y._is_view()


def is_asked_for(tensor):
    """By the system's own account: whether the mapping that holds the middle of a tensor is to lie
    on huge pages. Whether it does depends on how much memory is free in one piece just now."""
    middle = tensor.data_ptr() + tensor.numel() * tensor.itemsize // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, stop = (int(address, 16) for address in first.split("-"))
            inside = start <= middle < stop
        elif inside and first == "VmFlags:":
            return "hg" in rest.split()
    return False


@pytest.mark.parametrize("window", [63, "all"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_huge_pages_are_asked_for_for_a_large_result(window, channels_last):
    x = torch.randn(1, 16, 512, 1100)  # 36 MB
    if not huge_pages.would_help(x):
        pytest.skip("this system gives no huge pages to programs that ask for them")
    if channels_last:
        if window == "all":
            pytest.skip("left to PyTorch's Group Normalization")
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = local_context_norm(x, channels_per_group=2, window=window)
    (dx,) = torch.autograd.grad(y.sum(), x)
    for result in (y, dx):
        assert is_asked_for(result)
    assert not is_asked_for(torch.empty_like(x))


@pytest.mark.parametrize(
    ("mode", "pytorch_asks"),
    [
        ("[always] madvise never", "0"),
        ("always madvise [never]", "0"),
        (None, "0"),
        ("always [madvise] never", "1"),
    ],
)
def test_results_where_there_are_no_huge_pages_to_ask_for(
    mode, pytorch_asks, tmp_path, monkeypatch
):
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", pytorch_asks)
    if mode:
        (tmp_path / "enabled").write_text(mode)
        (tmp_path / "hpage_pmd_size").write_text("2097152")
    huge_pages._page_bytes.cache_clear()
    try:
        large = torch.empty(1, 1, 3000, 3000)
        assert not huge_pages.would_help(large)
        assert huge_pages.empty_like(large, torch.contiguous_format).shape == large.shape
    finally:
        huge_pages._page_bytes.cache_clear()

"""The layer inside PyTorch: compile, export, ONNX, autocast, checkpointing, DDP, and so on."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import run_two_processes
from torch import nn

from lcn import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm
from lcn.functional import local_context_norm

ROOT = Path(__file__).resolve().parent.parent


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), LocalContextNorm(4, 2, 5), nn.ReLU(), LocalContextNorm(4, 2, "all")
    )


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rule", ["centered", "released", "tiled"])
def test_the_operator_is_registered_as_pytorch_wants_it(rule, memory_format):
    x = torch.randn(2, 4, 6, 7).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias = (torch.randn(4, requires_grad=True) for _ in range(2))
    for affine in ((weight, bias), (None, None)):
        arguments = (x, *affine, 2, 3, 4, 1e-5, rule, "auto")
        torch.library.opcheck(torch.ops.lcn.local_context_norm.default, arguments)


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    model = small_model()
    x = torch.randn(2, 3, 12, 12)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for ours, theirs in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, atol=1e-4, rtol=1e-4)


def test_export_with_a_dynamic_image_size():
    model = small_model().eval()
    side = torch.export.Dim("side", min=8, max=64)
    program = torch.export.export(
        model, (torch.randn(1, 3, 20, 20),), dynamic_shapes=({2: side, 3: side},)
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert "lcn.local_context_norm.default" in targets
    x = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(program.module()(x), model(x))


class EveryRule(nn.Module):
    """Layers of each rule and several windows, side by side."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                LocalContextNorm(4, 2, 31),
                LocalContextNorm(4, 4, (7, 90), affine=False),
                ReleasedLocalContextNorm(4, 2, 31),
                ReleasedLocalContextNorm(4, 2, (7, 90)),
                TiledLocalContextNorm(4, 1, (31, 90)),
            ]
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return torch.stack([layer(x) for layer in self.layers])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_onnx_is_right_at_sizes_below_at_and_above_the_window(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, file = EveryRule().eval(), tmp_path / "model.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    dynamic = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    sizes = {"dynamic_shapes": (dynamic,)} if dynamo else {"dynamic_axes": {"x": axes}}
    example = torch.randn(2, 4, 20, 20)
    torch.onnx.export(
        model, (example,), file, dynamo=dynamo, input_names=["x"], verbose=False, **sizes
    )
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(file)
    for shape in ((2, 20, 20), (1, 31, 31), (1, 64, 64), (3, 32, 95), (1, 50, 30), (1, 1, 7)):
        x = torch.randn(shape[0], 4, *shape[1:]) + 3
        (result,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), model(x), atol=2e-5, rtol=2e-5)


def test_a_form_without_branches_has_the_gradients_of_the_layer():
    """It is what is traced where there is no kernel, such as with backend="reference"."""
    from lcn.kernels import reference, size_free

    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    for rule in ("centered", "released", "tiled"):
        for window in ((3, 4), (9, 3), (20, 20)):
            arguments = (torch.randn(4), torch.randn(4), 2, window, 1e-2, rule)
            ours, theirs = (
                module.local_context_norm(x, *arguments) for module in (size_free, reference)
            )
            torch.testing.assert_close(ours, theirs)
            gradients = (torch.autograd.grad(y.pow(3).sum(), x) for y in (ours, theirs))
            torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input_and_float32_weights(dtype):
    model = small_model()
    x = torch.randn(1, 3, 12, 12)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(y.float(), model(x), atol=0.1, rtol=0.1)


def test_activation_checkpointing():
    model = small_model()
    x = torch.randn(1, 3, 12, 12, requires_grad=True)
    (plain,) = torch.autograd.grad(model(x).square().sum(), x)
    checkpointed = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    (again,) = torch.autograd.grad(checkpointed.square().sum(), x)
    assert torch.equal(plain, again)


def test_only_the_input_is_kept_for_the_backward():
    kept = []
    x = torch.randn(2, 4, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        LocalContextNorm(4, 2, 9)(x)
    assert [tuple(t.shape) for t in kept] == [(2, 4, 64, 64), (4,)]
    assert kept[0].data_ptr() == x.data_ptr()


def test_frozen_weights_and_an_input_without_gradient():
    layer = LocalContextNorm(4, 2, 3).requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    layer(x).square().sum().backward()
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    layer(x.detach()).square().sum().backward()
    assert layer.weight.grad is not None
    without = LocalContextNorm(4, 2, 3, affine=False)
    without(x).square().sum().backward()
    assert not list(without.parameters())


@pytest.mark.parametrize(
    "layer", [LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm]
)
def test_deepcopy_and_pickle(layer):
    original = layer(4, 2, (3, 7), eps=1e-3)
    nn.init.normal_(original.weight)
    x = torch.randn(1, 4, 8, 8)
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert repr(copied) == repr(original)
        assert torch.equal(copied(x), original(x))


def test_state_dict_is_interchangeable():
    ours, group_norm, batch_norm = LocalContextNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)
    for parameter in (*group_norm.parameters(), *batch_norm.parameters()):
        nn.init.normal_(parameter)
    ours.load_state_dict(group_norm.state_dict())
    assert torch.equal(ours.weight, group_norm.weight)
    group_norm.load_state_dict(ours.state_dict())
    affine = {k: v for k, v in batch_norm.state_dict().items() if k in ("weight", "bias")}
    ours.load_state_dict(affine)
    assert torch.equal(ours.bias, batch_norm.bias)
    result = batch_norm.load_state_dict(ours.state_dict(), strict=False)
    assert not result.unexpected_keys


def test_weights_of_the_authors_layer_are_accepted_in_their_shape():
    state = {"0.weight": torch.randn(1, 4, 1, 1), "0.bias": torch.randn(1, 4, 1, 1)}
    model = nn.Sequential(ReleasedLocalContextNorm(4))
    model.load_state_dict(state)
    assert torch.equal(model[0].weight, state["0.weight"].flatten())


def test_repr_shows_every_argument():
    assert repr(LocalContextNorm(8, 4, (3, 5), affine=False)) == (
        "LocalContextNorm(8, channels_per_group=4, window=(3, 5), eps=1e-05, affine=False)"
    )
    assert "window='all'" in repr(LocalContextNorm(8, window="all"))


def test_meta_and_fake_tensors_keep_shape_and_memory_format():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = LocalContextNorm(4, 2, 5, device="meta", dtype=torch.bfloat16)
    assert layer(torch.empty(2, 4, 8, 9, device="meta", dtype=torch.bfloat16)).is_meta
    with FakeTensorMode():
        x = torch.empty(2, 4, 8, 9).contiguous(memory_format=torch.channels_last)
        assert LocalContextNorm(4, 2, 5)(x).stride() == x.stride()
    real = torch.randn(2, 4, 8, 9).contiguous(memory_format=torch.channels_last)
    assert LocalContextNorm(4, 2, 5)(real).stride() == real.stride()


DDP = """
    import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from torch import nn
    from lcn import LocalContextNorm
    from lcn.sync_batch_norm import SyncBatchNorm

    def train(norm, data, parallel):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
        model = nn.parallel.DistributedDataParallel(model) if parallel else model
        (model(data) * torch.linspace(-1, 1, 38)).square().mean().backward()
        return [p.grad for p in model.parameters()], [b for b in model.buffers() if b.ndim]

    def work(rank, port):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.set_num_threads(2)
        data = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(1))
        data[2:] += 1
        part = data[2 * rank : 2 * rank + 2]
        close = lambda ours, whole: all(
            torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(ours, whole, strict=True)
        )
        lcn = [train(LocalContextNorm(4, 2, 5), *how) for how in ((part, True), (data, False))]
        assert close(lcn[0][0], lcn[1][0]), "LCN depends on the split"
        whole = train(nn.BatchNorm2d(4), data, False)
        gradients, buffers = train(SyncBatchNorm(4), part, True)
        assert close(gradients, whole[0]) and close(buffers, whole[1]), "statistics not of all"
        gradients, buffers = train(nn.BatchNorm2d(4), part, True)
        assert not close(gradients, whole[0]) and not close(buffers, whole[1]), "BN is split"
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.start_processes(work, args=(sys.argv[1],), nprocs=2, start_method=sys.argv[2])
        print("same gradients")
"""


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_two_ddp_processes_get_the_gradients_of_one_but_with_bn(tmp_path, start_method):
    assert run_two_processes(tmp_path, DDP, start_method) == "same gradients"


class Normalized(torch.utils.data.Dataset):
    """Runs the layer in the worker, with more threads than a worker would use by itself.

    Small enough that only the layer, and no operator of PyTorch, divides the work: after a fork
    PyTorch's own threads hang.
    """

    def __len__(self):
        return 6

    def __getitem__(self, index):
        torch.set_num_threads(2)
        x = torch.full((1, 4, 64, 64), float(index)) + torch.arange(64.0)
        return local_context_norm(x, channels_per_group=2, window=9)[0]


def test_inside_data_loader_workers_after_the_parent_used_its_threads():
    data = Normalized()
    parent = torch.stack([data[index] for index in range(len(data))])
    loader = torch.utils.data.DataLoader(data, num_workers=2, batch_size=None)
    torch.testing.assert_close(torch.stack(list(loader)), parent)


def test_from_several_python_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    inputs = [torch.randn(2, 8, 64, 64) for _ in range(24)]
    expected = [local_context_norm(x, channels_per_group=2, window=7) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda x: local_context_norm(x, channels_per_group=2, window=7), inputs)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_the_result_does_not_depend_on_the_number_of_threads():
    x, weight = torch.randn(3, 8, 128, 96), torch.randn(8)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        y = local_context_norm(x, weight, channels_per_group=2, window=(200, 9))
        results.append(y)
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_python_threads_serve_where_there_is_no_openmp(monkeypatch):
    from lcn.kernels import threads

    x = torch.randn(2, 8, 96, 96)
    expected = local_context_norm(x, channels_per_group=2, window=7)
    monkeypatch.setattr(threads, "_openmp", None)
    assert torch.equal(local_context_norm(x, channels_per_group=2, window=7), expected)


def test_importing_the_package_imports_no_compiler():
    result = run_python(
        "import sys, lcn; print([m for m in ('numba', 'triton', 'timm') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


FIRST_CALL = """
    import time, torch
    from lcn import LocalContextNorm
    x = torch.randn(2, 4, 40, 40, requires_grad=True)
    start = time.perf_counter()
    LocalContextNorm(4, 2, 7)(x).sum().backward()
    print(time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("home_is_writable", [True, False])
def test_the_layer_works_where_the_package_cannot_be_written(tmp_path, home_is_writable):
    """A compiled kernel is then kept in the user's cache directory, or else not at all."""
    package = tmp_path / "site" / "lcn"
    shutil.copytree(ROOT / "lcn", package, ignore=shutil.ignore_patterns("__pycache__"))
    # Even a user who may write anywhere cannot make a directory where a file is.
    (package / "kernels" / "__pycache__").write_text("")
    home = tmp_path / "home"
    home.mkdir() if home_is_writable else home.write_text("")
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HOME": str(home)}
    environment.pop("XDG_CACHE_HOME", None)
    seconds = []
    for _ in range(2 if home_is_writable else 1):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(FIRST_CALL)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        seconds.append(float(result.stdout))
    if home_is_writable:
        assert list(home.rglob("*.nbc"))
        assert seconds[1] < seconds[0] / 2


FOUND = """
    from lcn.kernels import cpu
    print(cpu._forward_body(x.dtype).cache_hits, cpu._backward_body(x.dtype).cache_hits)
"""


def test_a_second_process_finds_the_compiled_kernel():
    run_python(FIRST_CALL)
    assert run_python(FIRST_CALL + FOUND).stdout.split()[1:] == ["1", "1"]

"""One table for ``nn.GroupNorm`` and for this layer: what PyTorch can do with either.

Each case is carried out with the layer and, as a witness, with the definition written down in plain
PyTorch: a window is a row of a matrix of zeros and ones.
"""

import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torchvision.models.feature_extraction import create_feature_extractor

from lcn import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm, convert_norm
from lcn.functional import local_context_norm
from lcn.kernels import cpu, huge_pages

EPS = 0.1
LAYERS = {
    "GroupNorm": lambda: nn.GroupNorm(2, 4, EPS),
    "global": lambda: LocalContextNorm(4, 2, "all", EPS),
    "windowed": lambda: LocalContextNorm(4, 2, (3, 2), EPS),
    "windowed, one axis": lambda: LocalContextNorm(4, 2, (9, 2), EPS),
    "released, global": lambda: ReleasedLocalContextNorm(4, 2, "all", EPS),
    "released, windowed": lambda: ReleasedLocalContextNorm(4, 2, (3, 2), EPS),
    "tiled": lambda: TiledLocalContextNorm(4, 2, (3, 2), EPS),
}


def membership(layer, window, size):
    """``[size, size]``: which cells of an axis lie in the window of each."""

    def bounds(cell):
        length = min(window, size)
        if isinstance(layer, TiledLocalContextNorm):
            return cell // window * window, cell // window * window + window
        first = min(max(cell - length // 2, 0), size - length)
        if isinstance(layer, ReleasedLocalContextNorm):
            first = min(max(cell - window // 2, 0), size - window - 1) + 1
        return first, first + length

    rows = [[bounds(i)[0] <= j < bounds(i)[1] for j in range(size)] for i in range(size)]
    return torch.tensor(rows, dtype=torch.float64)


def witness(layer):
    """The definition of a layer as a function of ``x``, ``weight`` and ``bias``."""

    def function(x, weight, bias):
        if x.dim() == 3:
            return function(x[None], weight, bias)[0]
        height, width = x.shape[-2:]
        p, q = getattr(layer, "window", (height, width))
        released = isinstance(layer, ReleasedLocalContextNorm)
        covered = [p >= height, q >= width]
        is_global = any(covered) if released else all(covered)
        if is_global:
            rows, columns = (torch.ones(s, s, dtype=torch.float64) for s in (height, width))
        else:
            rows, columns = membership(layer, p, height), membership(layer, q, width)
        grouped = x.double().unflatten(1, (2, 2))
        source = grouped.detach() if released and not is_global else grouped
        count = 2 * rows.sum(1)[:, None] * columns.sum(1)
        total = rows @ source.sum(2, keepdim=True) @ columns.T
        mean = total / count
        squares = rows @ source.square().sum(2, keepdim=True) @ columns.T - count * mean.square()
        variance = squares / (count - int(released and is_global))
        y = ((grouped - mean) / (variance + EPS).sqrt()).flatten(1, 2)
        return (y * weight[:, None, None] + bias[:, None, None]).to(x.dtype)

    return function


def as_function(layer):
    """A layer as a function of ``x``, ``weight`` and ``bias``."""
    return lambda x, weight, bias: functional_call(layer, {"weight": weight, "bias": bias}, (x,))


def loss(function):
    return lambda *tensors: function(*tensors).pow(3).sum()


class Inputs:
    """Of one kind each, for all cases."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        shapes = {"x": (2, 4, 5, 4), "t": (2, 4, 5, 4), "w": (4,), "b": (4,)}
        for name, shape in shapes.items():
            setattr(self, name, torch.randn(shape, generator=generator, dtype=torch.float64))
        self.batch = torch.stack([self.x, self.t, self.x * 2])
        self.weights = torch.stack([self.w, self.b, self.w + 1])

    @property
    def tensors(self):
        return self.x, self.w, self.b


def leaves(given):
    return [tensor.clone().requires_grad_() for tensor in given.tensors]


def nth_derivative(function, given, order):
    """By autograd: of all inputs, of the sum of squares of the derivative before."""
    inputs = leaves(given)
    value = loss(function)(*inputs)
    for _ in range(order - 1):
        parts = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
        value = sum(part.square().sum() for part in parts if part is not None)
    return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)


def forward_mode(function, given):
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(v, v.cos()) for v in given.tensors)
        return tuple(forward_ad.unpack_dual(function(*duals)))


def forward_over_reverse(function, given):
    inputs = leaves(given)
    with forward_ad.dual_level():
        value = loss(function)(forward_ad.make_dual(inputs[0], given.t), *inputs[1:])
        return [forward_ad.unpack_dual(part).tangent for part in torch.autograd.grad(value, inputs)]


def forward_over_an_earlier_graph(function, given):
    """The graph is recorded before there is a tangent."""
    inputs = leaves(given)
    y = function(*inputs)
    with forward_ad.dual_level():
        parts = torch.autograd.grad(y, inputs, forward_ad.make_dual(given.t, given.x))
        return [forward_ad.unpack_dual(part).tangent for part in parts]


def per_sample(function):
    return lambda w, b, x: loss(function)(x[None], w, b)


EVERY = (0, 1, 2)
DERIVATIVES = {
    "backward": lambda f, g: nth_derivative(f, g, 1),
    "double backward": lambda f, g: nth_derivative(f, g, 2),
    "triple backward": lambda f, g: nth_derivative(f, g, 3),
    "forward mode": forward_mode,
    "forward over reverse": forward_over_reverse,
    "forward over an earlier graph": forward_over_an_earlier_graph,
    "grad": lambda f, g: grad(loss(f), EVERY)(*g.tensors),
    "vjp": lambda f, g: vjp(f, *g.tensors)[1](g.t),
    "jvp": lambda f, g: jvp(f, g.tensors, (g.t, g.b, g.w)),
    "jacrev": lambda f, g: jacrev(f, EVERY)(*g.tensors),
    "jacfwd": lambda f, g: jacfwd(f, EVERY)(*g.tensors),
    "hessian": lambda f, g: hessian(loss(f), EVERY)(*g.tensors),
    "jacrev of jacrev": lambda f, g: jacrev(jacrev(loss(f)))(*g.tensors),
    "jacrev of jacfwd": lambda f, g: jacrev(jacfwd(loss(f)))(*g.tensors),
    "grad of grad of grad": lambda f, g: grad(
        lambda w: grad(lambda w: grad(loss(f))(g.x, w, g.b).pow(2).sum())(w).pow(2).sum()
    )(g.w),
    "hessian times vector": lambda f, g: jvp(lambda x: grad(loss(f))(x, g.w, g.b), (g.x,), (g.t,)),
    "linearize": lambda f, g: linearize(lambda x: f(x, g.w, g.b), g.x)[1](g.t),
    "vmap over batches": lambda f, g: vmap(f, (0, None, None))(g.batch, g.w, g.b),
    "vmap over another axis": lambda f, g: vmap(f, (2, None, None), 3)(
        g.batch.movedim(0, 2), g.w, g.b
    ),
    "vmap over weights": lambda f, g: vmap(f, (None, 0, 0))(g.x, g.weights, g.weights),
    "vmap over batches and weights": lambda f, g: vmap(f, (1, 1, None))(
        g.batch.movedim(0, 1), g.weights.T, g.b
    ),
    "vmap of vmap": lambda f, g: vmap(vmap(f, (0, None, None)), (None, 0, 0))(
        g.batch, g.weights, g.weights
    ),
    "grad of vmap": lambda f, g: grad(
        lambda w: vmap(f, (0, None, None))(g.batch, w, g.b).pow(3).sum()
    )(g.w),
    "per-sample gradients": lambda f, g: vmap(grad(per_sample(f), EVERY), (None, None, 0))(
        g.w, g.b, g.x
    ),
    "per-sample Hessians": lambda f, g: vmap(hessian(per_sample(f)), (None, None, 0))(
        g.w, g.b, g.x
    ),
}
# PyTorch's Group Normalization, which runs a global layer, has no forward mode for its backward.
CANNOT = {
    ("forward over reverse", "GroupNorm"): NotImplementedError,
    ("forward over an earlier graph", "GroupNorm"): NotImplementedError,
    ("forward over an earlier graph", "global"): NotImplementedError,
    ("forward over an earlier graph", "released, global"): NotImplementedError,
}


def table(cases):
    return [pytest.param(case, layer, id=f"{case}: {layer}") for case in cases for layer in LAYERS]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("case", "name"), table(DERIVATIVES))
def test_derivatives_and_transforms(case, name):
    layer, given = LAYERS[name]().double(), Inputs()
    if (case, name) in CANNOT:  # the day PyTorch can, this fails and the entry goes
        with pytest.raises(CANNOT[case, name]):
            DERIVATIVES[case](as_function(layer), given)
        return
    result = DERIVATIVES[case](as_function(layer), given)
    expected = DERIVATIVES[case](witness(layer), given)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-8)


def with_weights(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def symbolic_trace(layer):
    return torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), layer))


def jit_trace(layer):
    return torch.jit.trace(layer, torch.randn(1, 4, 2, 2))


def compiled(layer):
    torch.compiler.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)


def exported(layer):
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = torch.randn(2, 4, 3, 5)
    return torch.export.export(layer, (example,), dynamic_shapes=(sizes,)).module()


def saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def ensemble(layer):
    parameters, buffers = stack_module_state([layer, layer])
    member = vmap(lambda p, b, x: functional_call(layer, (p, b), (x,)), (0, 0, None))
    return lambda x: member(parameters, buffers, x)[1]


CAPTURED = {
    "fx.symbolic_trace": symbolic_trace,
    "jit.trace": jit_trace,
    "compile": compiled,
    "export": exported,
    "deepcopy": copy.deepcopy,
    "save and load": saved_and_loaded,
    "ensemble of models": ensemble,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("case", "name"), table(CAPTURED))
def test_what_records_or_copies_the_layer_is_right_at_every_size(case, name):
    layer = with_weights(LAYERS[name]())
    captured = CAPTURED[case](layer)
    for size in ((1, 4, 2, 2), (2, 4, 3, 4), (3, 4, 9, 12), (1, 4, 12, 3)):
        x = torch.randn(size)
        expected = witness(layer)(x, layer.weight.double(), layer.bias.double())
        torch.testing.assert_close(captured(x), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [3, "all"])
def test_transforms_inside_compile(window):
    torch.compiler.reset()
    layer = with_weights(LocalContextNorm(4, 2, window))
    x = torch.randn(3, 4, 6, 6)

    def several(x):
        value = lambda x: layer(x).pow(3).sum()  # noqa: E731
        return vmap(grad(value))(x), grad(value)(x), jvp(value, (x,), (x.cos(),))

    result = torch.compile(several, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(result, several(x), atol=1e-4, rtol=1e-4)


@pytest.fixture
def calls(monkeypatch):
    """The shapes that the CPU kernel is called with, forward and backward."""
    shapes = {"forward": [], "backward": []}

    def counted(name, kernel):
        def call(*arguments):
            shapes[name].append(tuple(arguments[0].shape))
            return kernel(*arguments)

        return call

    for name in shapes:
        monkeypatch.setattr(cpu, name, counted(name, getattr(cpu, name)))
    return shapes


def test_a_batch_of_vmap_is_one_call_of_the_kernel(calls):
    layer = as_function(LocalContextNorm(4, 2, 3))
    x, weights, bias = torch.randn(5, 2, 4, 6, 6), torch.randn(5, 4), torch.randn(4)
    vmap(layer, (0, None, None))(x, weights[0], bias)
    assert calls["forward"] == [(10, 4, 6, 6)]
    vmap(layer, (None, 0, None))(x[0], weights, bias)
    assert calls["forward"][1:] == [(2, 20, 6, 6)]
    vmap(grad(per_sample(layer), EVERY), (None, None, 0))(weights[0], bias, x[:, 0])
    assert calls["forward"][2:] == [(5, 4, 6, 6)]
    assert calls["backward"] == [(1, 20, 6, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [3, "all"])
def test_vmap_changes_no_bit_of_any_dtype(window, dtype):
    layer = as_function(LocalContextNorm(4, 2, window))
    x = torch.randn(3, 2, 4, 6, 6).to(dtype).transpose(3, 4)
    weights, bias = torch.randn(3, 4), torch.randn(4)
    over_all = vmap(layer, (0, 0, None))(x, weights, bias)
    one_by_one = [vmap(layer, (0, None, None))(x[i : i + 1], weights[i], bias) for i in range(3)]
    assert over_all.dtype == dtype
    assert torch.equal(over_all, torch.cat(one_by_one))


def test_second_derivatives_of_a_whole_map_on_huge_pages(monkeypatch):
    monkeypatch.setattr(huge_pages, "would_help", lambda x: True)
    given = Inputs()
    ours = nth_derivative(as_function(LAYERS["global"]().double()), given, 3)
    theirs = nth_derivative(as_function(LAYERS["GroupNorm"]().double()), given, 3)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


def test_features_of_a_converted_network_and_of_one_with_group_norm():
    x = torch.randn(2, 3, 64, 48)
    for norm in ({"name": "gn", "groups": 2}, {"name": "lcn", "window": 5}):
        model = convert_norm(torchvision.models.resnet18(), norm).eval()
        wanted = ["bn1", "layer1.0.bn2", "layer4"]
        features = create_feature_extractor(model, wanted)(x)
        assert list(features) == wanted
        expected = model.bn1(model.conv1(x)).relu()  # which comes after it, in place
        torch.testing.assert_close(features["bn1"], expected)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), model(x))
        traced.graph.lint()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_jit_script_is_refused_in_one_sentence():
    with pytest.raises(
        RuntimeError, match=r"jit.script cannot compile LocalContextNorm.*use torch"
    ):
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), LocalContextNorm(4)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trace_given_wrong_channels_says_so():
    traced = torch.jit.trace(LocalContextNorm(4, 2, 3), torch.randn(1, 4, 6, 6))
    with pytest.raises(RuntimeError, match=r"weight must have shape \(6,\)"):
        traced(torch.randn(1, 6, 6, 6))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "GroupNorm"])
def test_a_map_without_a_batch(name):
    layer = with_weights(LAYERS[name]())
    x = torch.randn(4, 7, 6, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer(x[None])[0])
    assert torch.equal(*(torch.autograd.grad(out.sum(), x)[0] for out in (y, layer(x[None]))))
    torch.testing.assert_close(vmap(layer)(x[None])[0], y)
    assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).shape == x.shape


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_every_backend_has_second_derivatives(backend):
    function = lambda *tensors: local_context_norm(  # noqa: E731
        *tensors, channels_per_group=2, window=(3, 2), eps=EPS, backend=backend
    )
    ours = nth_derivative(function, Inputs(), 2)
    theirs = nth_derivative(witness(LAYERS["windowed"]()), Inputs(), 2)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


LOW = (torch.bfloat16, torch.float16)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("given", [torch.float32, *LOW])
@pytest.mark.parametrize("cast", LOW)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_under_autocast_the_dtype_is_that_of_group_norm(device, cast, given):
    """On CUDA with tensors that have no values: nothing but the dtype can be seen."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.autocast(device, dtype=cast):
        torch.set_autocast_enabled(device, True)  # which autocast refuses where there is no GPU
        x = torch.empty(2, 4, 5, 4, dtype=given, device=device, requires_grad=True)
        for name, make in LAYERS.items():
            with torch.device(device):
                layer = make()
            assert layer(x).dtype == (torch.float32 if device == "cuda" else given), name

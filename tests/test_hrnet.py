"""HRNetV2 against a functional witness written in the state-dict names of the cited code."""

import copy
import math

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.hrnet import HighResolutionNet, cfg_cls
from torch import nn

from tasks.errors import InputError
from tasks.models import STARTS, hrnet
from tasks.models.checkpoint import load_pretrained
from tasks.models.hrnet import ARCHITECTURES, hrnetv2

SMALL = "hrnetv2_w18_small_v1"
TIMM_NAMES = {SMALL: "hrnet_w18_small", "hrnetv2_w48": "hrnet_w48"}

# Of experiments/cityscapes/*.yaml of the cited code:
# blocks of stage 1, modules of stages 2 to 4, blocks per branch.
DEPTHS = {SMALL: (1, (1, 1, 1), 2), "hrnetv2_w48": (4, (1, 4, 3), 4)}


class Witness:
    """The cited forward pass from a state dict alone, without any module.

    Layers are found by name and their widths follow from the weights; `read` remembers what the
    pass made use of.
    """

    def __init__(self, name, weights, training):
        self.depths = DEPTHS[name]
        self.weights = weights
        self.training = training
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return self.weights[key]

    def conv(self, x, name, stride=1, bias=False):
        weight = self[f"{name}.weight"]
        bias = self[f"{name}.bias"] if bias else None
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x, name):
        mean, var = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        if self.training:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        mean, var, weight, bias = (v[:, None, None] for v in (mean, var, weight, bias))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def block(self, x, name, num_convs):
        y = x
        for i in range(1, num_convs + 1):
            y = self.norm(self.conv(y, f"{name}.conv{i}"), f"{name}.bn{i}")
            if i < num_convs:
                y = F.relu(y)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.norm(self.conv(x, f"{name}.downsample.0"), f"{name}.downsample.1")
        return F.relu(x + y)

    def module(self, maps, name, num_blocks):
        branches = []
        for b, x in enumerate(maps):
            for i in range(num_blocks):
                x = self.block(x, f"{name}.branches.{b}.{i}", num_convs=2)
            branches.append(x)
        fused = []
        for i, target in enumerate(branches):
            terms = []
            for j, x in enumerate(branches):
                fuse = f"{name}.fuse_layers.{i}.{j}"
                if j > i:
                    x = self.norm(self.conv(x, f"{fuse}.0"), f"{fuse}.1")
                    x = bilinear(x, target.shape[-2:])
                for k in range(i - j):
                    x = self.norm(self.conv(x, f"{fuse}.{k}.0", stride=2), f"{fuse}.{k}.1")
                    if k < i - j - 1:
                        x = F.relu(x)
                terms.append(x)
            fused.append(F.relu(torch.stack(terms).sum(0)))
        return fused

    def __call__(self, x):
        stage1_blocks, num_modules, num_blocks = self.depths
        for i in (1, 2):
            x = F.relu(self.norm(self.conv(x, f"conv{i}", stride=2), f"bn{i}"))
        for i in range(stage1_blocks):
            x = self.block(x, f"layer1.{i}", num_convs=3)

        # Stage 1 changes width, later stages pass their branches on unchanged.
        first = F.relu(self.norm(self.conv(x, "transition1.0.0"), "transition1.0.1"))
        maps, coarsest = [first], x
        for stage in (2, 3, 4):
            new = f"transition{stage - 1}.{stage - 1}.0"
            new_map = self.norm(self.conv(coarsest, f"{new}.0", stride=2), f"{new}.1")
            maps = [*maps, F.relu(new_map)]
            for i in range(num_modules[stage - 2]):
                maps = self.module(maps, f"stage{stage}.{i}", num_blocks)
            coarsest = maps[-1]

        x = torch.cat([maps[0], *(bilinear(m, maps[0].shape[-2:]) for m in maps[1:])], dim=1)
        x = F.relu(self.norm(self.conv(x, "last_layer.0", bias=True), "last_layer.1"))
        return self.conv(x, "last_layer.3", bias=True)


def bilinear(x, size):
    """Bilinear with half-pixel centres and clamped borders (``align_corners=False``)."""
    for dim, n in ((-2, size[0]), (-1, size[1])):
        old = x.shape[dim]
        position = ((torch.arange(n, dtype=x.dtype) + 0.5) * (old / n) - 0.5).clamp(min=0)
        low = position.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        weight = (position - low).reshape(-1, *[1] * (-1 - dim))
        x = x.index_select(dim, low) * (1 - weight) + x.index_select(dim, high) * weight
    return x


@torch.no_grad()
def randomize(model):
    """Random weights, and as running statistics those of a random image.

    Statistics drawn at random would let the activations of the deep model grow a thousandfold.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 1
    model.train()(image(64, 64, seed=2))
    for norm in norms:
        norm.momentum = momentum
    return model


def image(height, width, batch=2, channels=3, seed=1):
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def models():
    return {name: randomize(hrnetv2(name, 19)) for name in ARCHITECTURES}


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_norms"),
    [(SMALL, 1_540_819, 72), ("hrnetv2_w48", 65_859_379, 306)],
)
def test_parameters_and_norm_layers_are_as_many_as_in_the_cited_code(
    name, num_parameters, num_norms
):
    with torch.device("meta"):
        model = hrnetv2(name, 19)
        assert model(torch.empty(1, 3, 512, 1024)).shape == (1, 19, 128, 256)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == num_norms
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-5)}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "size"),
    [
        (SMALL, (64, 128)),
        (SMALL, (90, 120)),
        (SMALL, (97, 131)),
        (SMALL, (33, 250)),
        ("hrnetv2_w48", (64, 128)),
        ("hrnetv2_w48", (90, 120)),
    ],
)
@torch.no_grad()
def test_logits_agree_with_the_witness(models, name, size, training):
    model = copy.deepcopy(models[name]).train(training)
    weights = copy.deepcopy(model.state_dict())
    x = image(*size)
    witness = Witness(name, weights, training)
    expected = witness(x)
    logits = model(x)
    assert logits.shape == (2, 19, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert 0.1 < expected.std() < 10  # neither all equal nor so large that 1e-4 is rounding
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert witness.read == {key for key in weights if not key.endswith("num_batches_tracked")}


@torch.no_grad()
def test_backbone_agrees_with_timm_once_it_upsamples_as_timm_does(models, monkeypatch):
    model = copy.deepcopy(models[SMALL]).eval()
    classifier = HighResolutionNet(cfg_cls["hrnet_w18_small"], num_classes=0, head="").eval()
    backbone = {k: v for k, v in model.state_dict().items() if not k.startswith("last_layer")}
    classifier.load_state_dict(backbone)
    joined = []
    model.last_layer.register_forward_pre_hook(lambda _, args: joined.append(args[0]))
    monkeypatch.setattr(hrnet, "_resize", lambda x, size: F.interpolate(x, size, mode="nearest"))
    x = image(64, 128)
    model(x)
    maps = classifier.forward_features(x)
    expected = torch.cat([F.interpolate(m, (16, 32), mode="nearest") for m in maps], dim=1)
    torch.testing.assert_close(joined[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(360, 480), (1, 1), (37, 61)])
@torch.no_grad()
def test_any_input_size_works(models, size):
    logits = models[SMALL].eval()(image(*size, batch=1))
    assert logits.shape == (1, 19, math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert logits.isfinite().all()


def test_other_channels_and_classes():
    assert hrnetv2(SMALL, 5, in_channels=4)(image(32, 32, channels=4)).shape == (2, 5, 8, 8)


def test_unknown_name_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"'hrnet_w99'.*hrnetv2_w18_small_v1, hrnetv2_w48"):
        hrnetv2("hrnet_w99", 19)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_reach_every_parameter(models, name):
    model = copy.deepcopy(models[name]).train()
    logits = model(image(64, 64))
    F.cross_entropy(logits, torch.randint(19, (2, 16, 16))).backward()
    without = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A norm layer takes out what the bias before it adds: its gradient is rounding error.
    assert [k for k in without if k != "last_layer.0.bias"] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_initialization_is_the_cited_one():
    torch.manual_seed(0)
    model = hrnetv2(SMALL, 19)
    for key, p in model.named_parameters():
        if p.ndim == 4:
            n = p.numel()
            assert abs(p.std() / 0.001 - 1) < 4 / math.sqrt(2 * n), key
            assert abs(p.mean() / 0.001) < 4 / math.sqrt(n), key
        elif key in ("last_layer.0.bias", "last_layer.3.bias"):
            bound = 240**-0.5
            assert p.abs().max() <= bound, key
            assert p.abs().max() > 0.7 * bound, key
        else:
            assert torch.all(p == (1 if key.endswith("weight") else 0)), key


def replace_norms(model):
    """Put a GroupNorm in the place of every batch norm; returns their names."""
    names = [k for k, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in names:
        parent, _, attribute = name.rpartition(".")
        norm = nn.GroupNorm(2, model.get_submodule(name).num_features)
        setattr(model.get_submodule(parent), attribute, norm)
    return names


def test_every_norm_layer_can_be_replaced():
    model = hrnetv2(SMALL, 19)
    replaced = replace_norms(model)
    assert len(replaced) == 72
    assert "last_layer.1" in replaced
    called = []
    for name in replaced:
        model.get_submodule(name).register_forward_hook(lambda *_, n=name: called.append(n))
    # Batch norm would refuse to train on one image of which one cell is left.
    model.train()(image(16, 16, batch=1)).sum().backward()
    assert sorted(called) == sorted(replaced)


def test_state_dict_round_trip_is_strict(models):
    source = models[SMALL].eval()
    target = hrnetv2(SMALL, 19).eval()
    target.load_state_dict(source.state_dict(), strict=True)
    x = image(32, 48)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_backbone_is_named_as_in_timm(name):
    with torch.device("meta"):
        ours = hrnetv2(name, 19).state_dict()
        theirs = timm.create_model(TIMM_NAMES[name]).state_dict()
    head = ("incre_modules", "downsamp_modules", "final_layer", "classifier")
    assert {k: v.shape for k, v in ours.items() if not k.startswith("last_layer")} == {
        k: v.shape for k, v in theirs.items() if not k.startswith(head)
    }


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}], ids=["plain", "nested"])
@pytest.mark.parametrize("norms", ["batch", "group"])
def test_imagenet_weights_are_loaded(tmp_path, wrap, norms):
    classifier = randomize(timm.create_model("hrnet_w18_small")).state_dict()
    path = tmp_path / "hrnet.pth"
    torch.save(wrap(classifier), path)
    model = hrnetv2(SMALL, 19)
    if norms == "group":
        replace_norms(model)
    before = copy.deepcopy(model.state_dict())
    note = load_pretrained(model, str(path), SMALL, *STARTS[SMALL])
    after = model.state_dict()
    head = {k for k in after if k.startswith("last_layer.")}
    assert f"{len(after) - len(head)} of {len(after)} weights" in note
    assert all(torch.equal(after[k], classifier[k]) for k in after.keys() - head)
    assert all(torch.equal(after[k], before[k]) for k in head)


def test_imagenet_weights_of_before_batch_counters_are_loaded(tmp_path):
    """PyTorch up to 0.4.0 saved no ``num_batches_tracked``, and nothing in a zip file."""
    classifier = timm.create_model("hrnet_w18_small").state_dict()
    old = {k: v for k, v in classifier.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "hrnet.pth"
    torch.save(old, path, _use_new_zipfile_serialization=False)
    model = hrnetv2(SMALL, 19)
    note = load_pretrained(model, str(path), SMALL, *STARTS[SMALL])
    assert f": {426 - 71} of {len(model.state_dict())} weights" in note  # one norm is the head's
    key = "stage4.0.fuse_layers.0.3.0.weight"
    assert torch.equal(model.state_dict()[key], old[key])


def test_imagenet_weights_in_safetensors_are_loaded(tmp_path):
    classifier = timm.create_model("hrnet_w18_small").state_dict()
    path = tmp_path / "hrnet.safetensors"
    safetensors.torch.save_file(classifier, path)
    model = hrnetv2(SMALL, 19)
    load_pretrained(model, str(path), SMALL, *STARTS[SMALL])
    assert torch.equal(model.conv1.weight, classifier["conv1.weight"])


def truncated_w48():
    """W48's names and the small model's depth: a subset of the file fits by name."""
    with torch.device("meta"):
        state = timm.create_model("hrnet_w48").state_dict()
    return {k: torch.zeros(v.shape) for k, v in state.items() if v.numel() < 40_000}


def deeper():
    state = timm.create_model("hrnet_w18_small").state_dict()
    return state | {"stage3.1.branches.0.0.conv1.weight": torch.zeros(16, 16, 3, 3)}


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (lambda: timm.create_model("resnet18").state_dict(), r"\d of its 426 weights match"),
        (lambda: timm.create_model("hrnet_w18_small_v2").state_dict(), " of its 426 weights match"),
        (truncated_w48, " of its 426 weights match, first"),
        (
            deeper,
            r" 426 of its 426 .* stage3\.1\.branches\.0\.0\.conv1\.weight: .*, not there here",
        ),
        (dict, "has no weights"),
        (lambda: [1, 2], "has no weights"),
    ],
    ids=["resnet18", "w18_small_v2", "w48", "deeper", "empty", "list"],
)
def test_the_weights_of_another_model_are_refused(tmp_path, state, complaint):
    path = tmp_path / "other.pth"
    torch.save(state(), path)
    model = hrnetv2(SMALL, 19)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=complaint) as error:
        load_pretrained(model, str(path), SMALL, *STARTS[SMALL])
    assert "other.pth" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pth"):
        load_pretrained(hrnetv2(SMALL, 19), str(tmp_path / "nowhere.pth"), SMALL, *STARTS[SMALL])

"""Weights that others made: files written here with official keys, shapes and wrappers."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import resnet18, resnet34, resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn

from tasks.config import compose, options
from tasks.errors import InputError
from tasks.models import STARTS, build_model, check_network
from tasks.models.checkpoint import load_backbone, load_pretrained, load_weights
from tasks.models.hrnet import hrnetv2
from tasks.models.mask_rcnn import mask_rcnn
from tasks.models.weights import read_weights, unwrapped
from tasks.runs.training import warn_of_scratch
from tasks.schema import check_config

SMALL = "hrnetv2_w18_small_v1"
GN, BN = {"name": "gn", "groups": 32}, {"name": "bn"}
SIZES = {"width": 0.125, "resize": (64, 96)}


def prefixed(prefix, weights, **beside):
    return {f"{prefix}{key}": value for key, value in weights.items()} | beside


@pytest.fixture(scope="module")
def official():
    """An HRNet for Cityscapes with 19 classes, as the cited code saves it."""
    torch.manual_seed(1)
    return hrnetv2(SMALL, 19).state_dict()


WRAPPERS = {
    "plain": lambda w: w,
    # FullModel of the cited code: network and loss, which has class weights
    "with its loss": lambda w: prefixed("model.", w, **{"loss.criterion.weight": torch.ones(19)}),
    "parallel": lambda w: prefixed("module.", w),
    "both": lambda w: {"state_dict": prefixed("module.model.", w), "epoch": 484},
    "with NumPy's numbers": lambda w: {
        "state_dict": w, "best_mIoU": np.float64(0.703), "epoch": np.int64(484),
    },
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_an_official_segmentation_checkpoint_is_loaded_whole(tmp_path, official, wrap, zipped):
    path = tmp_path / "hrnet_w18_small_model_v1_cityscapes.pth"
    torch.save(WRAPPERS[wrap](official), path, _use_new_zipfile_serialization=zipped)
    model = hrnetv2(SMALL, 19)
    load_weights(model, str(path), BN)
    for key, value in model.state_dict().items():
        assert torch.equal(value, official[key]), key


def test_mode_test_evaluates_an_official_checkpoint(tmp_path, official, tiny_cityscapes, train):
    torch.save(WRAPPERS["with its loss"](official), tmp_path / "official.pth")
    done = train(
        f"data.root={tiny_cityscapes}", "norm=bn", "mode=test", "trainer=cpu", "data.workers=0",
        f"checkpoint={tmp_path / 'official.pth'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^miou +\d+\.\d\d$", done.stdout, re.MULTILINE)
    assert not (tmp_path / "runs").exists()
    wrong = train(
        f"data.root={tiny_cityscapes}", "norm=gn", "mode=test", "trainer=cpu",
        f"checkpoint={tmp_path / 'official.pth'}",
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "official files have BN: norm=bn" in wrong.stderr


def test_old_files_lack_the_norms_counters(tmp_path, official):
    old = {k: v for k, v in official.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    load_weights(hrnetv2(SMALL, 19), str(tmp_path / "old.pth"), BN)


def test_a_file_of_another_network_is_refused_with_its_first_difference(tmp_path, official):
    torch.save(official, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"last_layer.3.bias: \[19\] in the file, \[11\] here"):
        load_weights(hrnetv2(SMALL, 11), str(tmp_path / "w.pth"))
    torch.save({k: v for k, v in official.items() if "stage4" not in k}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"stage4\S+: not there in the file"):
        load_weights(hrnetv2(SMALL, 19), str(tmp_path / "w.pth"))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_every_backbone_key_of_official_imagenet_files_is_used(tmp_path, prefix):
    classifier = timm.create_model("hrnet_w18_small").state_dict()
    content = {"state_dict": prefixed(prefix, classifier), "best": np.float32(1)}
    torch.save(content, tmp_path / "c.pth")
    note = load_pretrained(hrnetv2(SMALL, 19), str(tmp_path / "c.pth"), SMALL, *STARTS[SMALL])
    assert ": 426 of 435 weights" in note  # 426: counted in the official file for W18-Small-v1


class Malicious:
    def __reduce__(self):
        return print, ("run",)


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    for name, write in (
        ("a.pth", lambda path: torch.save({"state_dict": Malicious()}, path)),
        ("b.pkl", lambda path: path.write_bytes(pickle.dumps({"blobs": Malicious()}, 2))),
    ):
        write(tmp_path / name)
        with pytest.raises(InputError, match="it is damaged, or holds more than tensors"):
            read_weights(str(tmp_path / name))
    assert "run" not in capsys.readouterr().out


def test_files_without_weights_and_names_that_timm_lacks_are_explained(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    with pytest.raises(InputError, match="has no weights"):
        read_weights(str(tmp_path / "e.pth"))
    with pytest.raises(InputError, match="no file of weights"):
        read_weights(str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="timm has no such network; it has resnet"):
        read_weights("timm:resnet_none")
    assert unwrapped([1, 2]) == {}


def test_a_network_of_timm_is_had_by_name_or_a_message_says_why_not(monkeypatch):
    asked = []

    def create(name, pretrained):
        asked.append((name, pretrained))
        if len(asked) > 1:
            raise OSError("no route to host")
        return nn.Linear(2, 1)

    monkeypatch.setattr(timm, "create_model", create)
    assert read_weights("timm:resnet50_gn.a1h_in1k").keys() == {"weight", "bias"}
    assert asked == [("resnet50_gn.a1h_in1k", True)]
    with pytest.raises(InputError, match=r"cannot be had here \(OSError\): without a connection"):
        read_weights("timm:resnet50_gn.a1h_in1k")


def detectron(norm):
    """Blobs as ``R-50.pkl`` and ``R-50-GN.pkl`` name and shape them, from a ResNet's weights."""
    torch.manual_seed(2)
    source = resnet50().state_dict()
    blobs = {}
    for key, value in source.items():
        if "running" in key or "batches" in key or key.startswith("fc"):
            continue
        layer = re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)\.(weight|bias)", key)
        if layer is None:
            name = {"conv1.weight": "conv1_w"}.get(key)
            if name is None:
                stem = "res_conv1_bn" if norm == "bn" else "conv1_gn"
                name = f"{stem}_{'s' if key.endswith('weight') else 'b'}"
        else:
            stage, block, kind, number, part = layer.groups()
            if kind == "downsample.":
                branch, is_norm = "branch1", number == "1"
            else:
                branch, is_norm = f"branch2{'abc'[int(number) - 1]}", kind == "bn"
            end = f"{norm}_{'s' if part == 'weight' else 'b'}" if is_norm else "w"
            name = f"res{int(stage) + 1}_{block}_{branch}_{end}"
        blobs[name] = torch.randn(value.shape).numpy()
    blobs["pred_w" if norm == "gn" else "fc1000_w"] = np.zeros((1000, 2048), np.float32)
    return blobs


@pytest.mark.parametrize(("norm", "here"), [("bn", BN), ("gn", GN)])
def test_detectron_s_backbone_fills_ours_and_sees_the_same_image(tmp_path, norm, here):
    blobs = detectron(norm)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, 2))  # Python 2's protocol
    model = mask_rcnn("mask_rcnn_r50_fpn", 3, here, pretrained=True, **SIZES)
    note = load_backbone(model, str(path), here)
    assert "not used: none" in note
    body = model.backbone.body.state_dict()
    assert torch.equal(body["layer3.5.conv2.weight"], torch.from_numpy(blobs["res4_5_branch2b_w"]))
    shift = blobs[f"res2_0_branch1_{norm}_b"]
    assert torch.equal(body["layer1.0.downsample.1.bias"], torch.from_numpy(shift))
    # 53 convolutions and as many norms, of two tensors each; the classifier is left out
    assert len(blobs) - 1 == 53 + 2 * 53
    # The same picture through both first convolutions: B, G, R less Detectron's mean, and ours.
    rgb = torch.rand(1, 3, 32, 32)
    means = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    theirs = ((rgb - means) * 255).flip(1)
    ours = (rgb - means) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = nn.functional.conv2d(theirs, torch.from_numpy(blobs["conv1_w"]), stride=2)
    found = nn.functional.conv2d(ours, body["conv1.weight"], stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    if norm == "bn":
        assert body["bn1.running_mean"].abs().max() == 0
        assert torch.equal(body["bn1.running_var"], torch.ones(64))


@pytest.mark.parametrize("maker", [resnet50, lambda: timm.create_model("resnet50")])
def test_a_backbone_of_torchvision_or_timm_is_taken(tmp_path, maker):
    weights = maker().state_dict()
    torch.save(weights, tmp_path / "resnet50.pth")
    model = mask_rcnn("mask_rcnn_r50_fpn", 3, BN, pretrained=True, **SIZES)
    assert "bn into bn" in load_backbone(model, str(tmp_path / "resnet50.pth"), BN)
    body = model.backbone.body.state_dict()
    assert torch.equal(body["layer4.2.conv3.weight"], weights["layer4.2.conv3.weight"])
    with pytest.raises(InputError, match="cannot be fine-tuned as gn"):
        load_backbone(model, str(tmp_path / "resnet50.pth"), GN)


@pytest.mark.parametrize("norm", [GN, {"name": "lcn", "c_group": 8, "window": 227}])
def test_a_backbone_of_timm_in_gn_is_taken_for_gn_and_lcn(tmp_path, norm):
    weights = timm.create_model("resnet50_gn").state_dict()
    torch.save(weights, tmp_path / "w.pth")
    model = mask_rcnn("mask_rcnn_r50_fpn", 3, norm, pretrained=True, **SIZES)
    note = load_backbone(model, str(tmp_path / "w.pth"), norm)
    assert f"gn (groups 32) into {norm['name']} (" in note
    body = model.backbone.body.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in body.items())


def test_a_row_of_table_5_without_a_backbone_is_warned_of(caplog):
    for settings, warned in (
        (["experiment=table5_gn"], True),
        (["experiment=table5_gn", "task.backbone_checkpoint=w.pth"], False),
        (["experiment=table5_gn", "data=mini"], False),
        (["experiment=table6_gn"], False),
    ):
        caplog.clear()
        warn_of_scratch(compose(settings))
        assert ("give task.backbone_checkpoint" in caplog.text) == warned


def of_torchvision_0_3(weights):
    """With the keys of the published file, which torchvision itself still renames on loading."""
    new = [f"backbone.fpn.{kind}_blocks.{i}" for kind in ("inner", "layer") for i in range(4)]
    old_names = {f"{name}.0": name for name in new} | {"rpn.head.conv.0.0": "rpn.head.conv"}
    old_names |= {f"roi_heads.mask_head.{i}.0": f"roi_heads.mask_head.mask_fcn{i + 1}"
                  for i in range(4)}  # fmt: skip
    named = {}
    for key, value in weights.items():
        layer, _, part = key.rpartition(".")
        named[f"{old_names.get(layer, layer)}.{part}"] = value
    assert len(weights.keys() - named.keys()) == 2 * len(old_names)
    return named


def test_torchvision_s_mask_r_cnn_gives_the_outputs_of_the_categories_that_are_used(tmp_path):
    """It has 91 outputs, one for each number up to the highest category's; COCO uses 80."""
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    assert len(ids) == 80
    torch.manual_seed(3)
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    torch.save(of_torchvision_0_3(theirs.state_dict()), tmp_path / "maskrcnn.pth")
    ours = mask_rcnn("mask_rcnn_r50_fpn", 80, BN, pretrained=False).eval()
    load_weights(ours, str(tmp_path / "maskrcnn.pth"), BN, ids)
    features = torch.randn(2, 1024)
    with torch.no_grad():
        scores, offsets = ours.roi_heads.box_predictor(features)
        their_scores, their_offsets = theirs.roi_heads.box_predictor(features)
    for label, category in ((0, 0), (12, 13), (80, 90)):
        torch.testing.assert_close(scores[:, label], their_scores[:, category])
        torch.testing.assert_close(
            offsets.reshape(2, 81, 4)[:, label], their_offsets.reshape(2, 91, 4)[:, category]
        )
    assert torch.equal(
        ours.roi_heads.mask_predictor.mask_fcn_logits.weight[80],
        theirs.roi_heads.mask_predictor.mask_fcn_logits.weight[90],
    )


def small(model: str, *overrides: str):
    """The configuration of a small network of each file in configs/task/model."""
    task = {
        "unet_slim": "chesapeake",
        "unet_large": "chesapeake",
        "resnet50": "imagenet",
        "mask_rcnn_r50_fpn": "coco",
    }.get(model, "cityscapes" if "hrnet" in model else "inria")
    sizes = ["data.resize=[64,96]"] if task == "coco" else ["data.crop=[64,64]"]
    classes = ["task.num_classes=3", "task.outputs=3"] if task in ("coco", "imagenet") else []
    if model == "unet_duke":
        sizes = ["data.crop=[204,204]"]
    if model == "smp":
        classes += ["task.model.encoder=resnet18"]
    return compose([f"task={task}", f"task/model={model}", "norm=bn", "data.width=0.125",
                    "data.batch_size=2", *sizes, *classes, *overrides])  # fmt: skip


def test_every_network_has_the_key():
    assert STARTS.keys() == set(options("task/model"))
    for model in STARTS:
        assert small(model).task.model.pretrained is None


@pytest.mark.parametrize("model", [name for name in STARTS if name != "hrnetv2_w48"])
def test_every_network_starts_from_an_own_checkpoint_all_but_its_last_layers(tmp_path, model):
    path = tmp_path / "last.ckpt"
    torch.manual_seed(1)
    before = build_model(small(model)).state_dict()
    torch.save({"state_dict": prefixed("model.", before), "norm": BN, "epoch": 1}, path)
    torch.manual_seed(2)
    started = build_model(small(model, f"task.model.pretrained={path}"))
    differs = {key for key, value in started.state_dict().items()
               if not torch.equal(value, before[key]) and key.endswith("weight")}  # fmt: skip
    assert differs
    heads = (*STARTS[model].head, *(f"model.{head}" for head in STARTS[model].head))
    assert all(key.startswith(heads) for key in differs)
    assert f"of {len(started.state_dict())} weights" in started.notes[0]


@pytest.mark.parametrize(("model", "message"), [
    ("hrnetv2_w18_small_v1", "HRNet's own file, or one of timm"),
    ("resnet50", r"a file of timm \(timm:resnet50_gn.a1h_in1k\), torchvision or Detectron"),
    ("unet", "no public weights of this network are known"),
    ("smp", "or weights of the encoder alone"),
    ("mask_rcnn_r50_fpn", "with norm=bn torchvision's file; a ResNet-50 is task.backbone"),
])  # fmt: skip
def test_a_wrong_file_is_refused_before_data_with_what_matched_and_what_can_be_given(
    tmp_path, model, message
):
    torch.save({"conv1.weight": torch.zeros(64, 4, 7, 7)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf": 0 of its \d+ weights match, first .*{message}"):
        check_network(small(model, f"task.model.pretrained={tmp_path / 'w.pth'}"))


def test_a_wrong_file_generates_no_miniature(tmp_path, train):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pth")
    done = train("task=coco", "norm=gn", "data=mini", f"data.root={tmp_path / 'm'}",
                 f"task.backbone_checkpoint={tmp_path / 'w.pth'}")  # fmt: skip
    assert done.returncode == 2
    assert re.search(r"w.pth is not of a ResNet-50: 0 of its \d+ weights match", done.stderr)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("norm", "write"), [
    ("bn", lambda path: torch.save(resnet50().state_dict(), path)),
    ("gn", lambda path: path.write_bytes(pickle.dumps({"blobs": detectron("gn")}, 2))),
    ("lcn", lambda path: torch.save(timm.create_model("resnet50_gn").state_dict(), path)),
])  # fmt: skip
def test_a_classifier_starts_from_files_of_torchvision_timm_and_detectron(tmp_path, norm, write):
    path = tmp_path / ("w.pkl" if norm == "gn" else "w.pth")
    write(path)
    model = build_model(small("resnet50", f"norm={norm}", f"task.model.pretrained={path}"))
    given = read_weights(str(path))
    assert torch.equal(model.layer3[5].conv2.weight, given["layer3.5.conv2.weight"])
    assert torch.equal(model.layer4[0].downsample[1].bias, given["layer4.0.downsample.1.bias"])
    assert model.fc.out_features == 3


def test_an_encoder_starts_from_torchvision_s_classifier_and_only_from_its_own(tmp_path):
    given = resnet18().state_dict()
    torch.save(given, tmp_path / "w.pth")
    source = f"task.model.pretrained={tmp_path / 'w.pth'}"
    network = build_model(small("smp", source))
    encoder = network.model.encoder.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in encoder.items())
    with pytest.raises(InputError, match=r"is not of the encoder of smp.*layer1\S+"):
        build_model(small("smp", source, "task.model.encoder=resnet34"))
    torch.save(resnet34().state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r": 120 of its 120 weights match.*not there here"):
        build_model(small("smp", source))
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    network = build_model(small("smp", source, "task.model.encoder=tu-resnet18"))
    assert f"of {len(network.state_dict())} weights" in network.notes[0]


def test_a_detector_starts_from_torchvision_s_and_is_frozen_as_from_a_backbone(tmp_path):
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save(of_torchvision_0_3(theirs), tmp_path / "w.pth")
    source = f"task.model.pretrained={tmp_path / 'w.pth'}"
    model = build_model(small("mask_rcnn_r50_fpn", source, "data.width=1.0"))
    ours = model.state_dict()
    for key in ("backbone.fpn.layer_blocks.3.0.weight", "rpn.head.conv.0.0.bias",
                "roi_heads.mask_head.2.0.weight", "roi_heads.box_head.fc7.weight"):  # fmt: skip
        assert torch.equal(ours[key], theirs[key])
    assert not model.backbone.body.layer1[0].conv1.weight.requires_grad
    with pytest.raises(InputError, match="give one of the two"):
        check_config(
            compose(["task=coco", source, f"task.backbone_checkpoint={tmp_path / 'w.pth'}"])
        )

"""Mask R-CNN: where its norm layers are, what is frozen, what a backbone checkpoint gives it."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import (
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    roi_heads,
)
from torchvision.ops import FrozenBatchNorm2d

from lcn import LocalContextNorm, audit, convert_norm
from tasks.errors import InputError
from tasks.models.checkpoint import load_backbone
from tasks.models.mask_rcnn import box_loss, mask_rcnn, reach_norms

GN = {"name": "gn", "groups": 32}
LCN = {"name": "lcn", "c_group": 8, "window": [227, 227]}
BN = {"name": "bn"}
SMALL = {
    "resize": (64, 96),
    "width": 0.125,
    "sampling": {
        "rpn_post_nms_top_n_train": 40,
        "rpn_post_nms_top_n_test": 20,
        "box_batch_size_per_image": 16,
        "box_detections_per_img": 5,
        "box_score_thresh": 0.0,
    },
}


def build(norm, seed=0, pretrained=False, num_classes=3, **options):
    torch.manual_seed(seed)
    return mask_rcnn(
        "mask_rcnn_r50_fpn", num_classes, norm, pretrained=pretrained, **{**SMALL, **options}
    )


def full_size(norm):
    return build(norm, num_classes=90, resize=(800, 1333), width=1.0)


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


def targets(*counts):
    box, mask = torch.tensor([8.0, 8, 40, 48]), torch.zeros(64, 80, dtype=torch.uint8)
    mask[8:48, 8:40] = 1
    return [
        {
            "boxes": box.repeat(count, 1),
            "labels": torch.full((count,), 2),
            "masks": mask.repeat(count, 1, 1),
        }
        for count in counts
    ]


def save(tmp_path, network, norm):
    """A checkpoint as a run of the ImageNet task leaves it."""
    path = tmp_path / "last.ckpt"
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "norm": norm, "epoch": 99}, path)
    return str(path)


def trained_resnet50(norm, **options):
    """A ResNet-50 of the ImageNet task whose weights, norms included, are all its own."""
    network = convert_norm(timm.create_model("resnet50", num_classes=10, **options), norm)
    generator = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    return network


def test_bn_is_detectron_s_baseline_as_torchvision_has_it():
    """Without a checkpoint ordinary batch norm, with one frozen; nothing outside the backbone."""
    official = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert shapes(full_size(BN)) == shapes(official)
    model = build(BN, pretrained=True)
    norms = [m for m in model.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))]
    assert len(norms) == 53
    assert all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
    assert [m for m in build(BN).modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("norm", [GN, LCN], ids=["gn", "lcn"])
def test_other_norms_are_in_backbone_pyramid_box_head_and_mask_head(norm):
    """The same layers as torchvision's second version, but for its second convolution in the RPN
    and a batch norm's statistics."""
    official = shapes(maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None))
    official = {
        name: shape
        for name, shape in official.items()
        if "running_" not in name
        and "num_batches" not in name
        and not name.startswith("rpn.head.conv.1")
    }
    assert shapes(full_size(norm)) == official


@pytest.mark.parametrize(
    "norm",
    [
        {"name": "ln"},
        {"name": "in"},
        {"name": "sync_bn"},
        {"name": "lcn_released", "c_group": 8, "window": 57},
        {"name": "lcn_tiled", "c_group": 8, "window": 57},
    ],
    ids=lambda norm: norm["name"],
)
def test_every_norm_goes_into_all_69_places(norm):
    report = audit(build(norm), (1, 3, 64, 96), forward=reach_norms)
    kinds = {"ln": "gn", "in": "gn"}  # which are group norms of one and of as many groups
    assert [row.kind for row in report] == [kinds.get(norm["name"], norm["name"])] * 69


def test_layers_of_the_same_name_start_with_the_same_weights_whatever_the_norm():
    first, second, other = build(GN), build(BN), build(LCN)
    for one, two in ((first, second), (first, other)):
        ours = dict(one.named_modules())
        compared = 0
        for name, layer in two.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and name in ours:
                assert torch.equal(layer.weight, ours[name].weight), name
                compared += 1
        assert compared >= 53 + 8 + 3 + 2 + 2
    weights, of_another_seed = first.state_dict(), build(GN, seed=1).state_dict()
    weight = "roi_heads.mask_head.2.0.weight"
    assert not torch.equal(weights[weight], of_another_seed[weight])
    assert not torch.equal(weights[weight], weights["roi_heads.mask_head.3.0.weight"])


def test_what_is_drawn_after_building_does_not_depend_on_the_norm():
    build(GN)
    after_gn = torch.rand(4)
    build(BN)
    assert torch.equal(torch.rand(4), after_gn)


def test_initial_weights_have_detectron_s_spread():
    weights = full_size(GN).state_dict()
    assert weights["rpn.head.conv.0.0.weight"].std() == pytest.approx(0.01, rel=0.02)
    assert weights["roi_heads.box_predictor.bbox_pred.weight"].std() == pytest.approx(
        0.001, rel=0.02
    )
    assert weights["backbone.fpn.layer_blocks.0.0.weight"].std() == pytest.approx(
        (1 / (256 * 9)) ** 0.5, rel=0.02
    )
    assert weights["roi_heads.mask_head.0.0.weight"].std() == pytest.approx(
        (2 / (256 * 9)) ** 0.5, rel=0.02
    )
    biases = [v for name, v in weights.items() if name.endswith(".bias") and "predictor" in name]
    assert all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize("norm", [LCN, BN], ids=["lcn", "bn"])
def test_residual_blocks_start_as_identities(norm):
    weights = build(norm).backbone.body.state_dict()
    last = [value for name, value in weights.items() if name.endswith("bn3.weight")]
    assert len(last) == 16
    assert all((value == 0).all() for value in last)
    assert (weights["layer1.0.bn2.weight"] == 1).all()


@pytest.mark.parametrize("norm", [GN, BN], ids=["gn", "bn"])
def test_stem_and_first_stage_are_frozen_only_with_a_pretrained_backbone(norm):
    fixed = {n for n, p in build(norm, pretrained=True).named_parameters() if not p.requires_grad}
    assert fixed
    assert {name.split(".")[2] for name in fixed} == (
        {"conv1", "bn1", "layer1"} if norm is GN else {"conv1", "layer1"}
    )
    assert all(parameter.requires_grad for parameter in build(norm).parameters())


@pytest.mark.parametrize("norm", [GN, LCN, BN], ids=["gn", "lcn", "bn"])
def test_losses_are_finite_and_reach_every_weight_with_and_without_objects(norm):
    """Also without an object: a process whose images are empty must not leave others waiting."""
    model = build(norm)
    for counts in ((2, 1), (2, 0), (0, 0)):
        model.zero_grad()
        losses = model([torch.rand(3, 64, 80), torch.rand(3, 64, 80)], targets(*counts))
        total = sum(losses.values())
        total.backward()
        assert len(losses) == 5
        assert torch.isfinite(total)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (counts, name)
            assert torch.isfinite(parameter.grad).all(), (counts, name)


def test_the_box_loss_is_detectron_s(monkeypatch):
    """Smooth L1 with beta 1: of each object its own class's four offsets, over all regions."""
    seen = {}
    original = roi_heads.fastrcnn_loss

    def noted(logits, offsets, labels, targets):
        seen.update(offsets=offsets, labels=torch.cat(labels), targets=torch.cat(targets))
        return original(logits, offsets, labels, targets)

    monkeypatch.setattr(roi_heads, "fastrcnn_loss", noted)
    torch.manual_seed(0)
    losses = build(GN)([torch.rand(3, 64, 80), torch.rand(3, 64, 80)], targets(2, 1))
    total = 0.0
    for row, label, target in zip(
        seen["offsets"].tolist(), seen["labels"].tolist(), seen["targets"].tolist(), strict=True
    ):
        if label:
            for got, want in zip(row[4 * label : 4 * label + 4], target, strict=True):
                off = abs(got - want)
                total += off * off / 2 if off < 1 else off - 0.5
    assert (seen["labels"] > 0).sum() > 0
    assert losses["loss_box_reg"].item() == pytest.approx(total / len(seen["labels"]), rel=1e-5)


def test_with_torchvision_s_beta_the_box_loss_is_torchvision_s():
    torch.manual_seed(0)
    offsets, labels = torch.randn(9, 12), torch.randint(3, (9,))
    targets_ = torch.randn(9, 4)
    _, expected = roi_heads.fastrcnn_loss(torch.randn(9, 3), offsets, [labels], [targets_])
    assert torch.equal(box_loss(offsets, labels, targets_, 1 / 9), expected)


def test_detections_are_in_the_pixels_of_the_images_given():
    model = build(GN).eval()
    with torch.no_grad():
        detected = model([torch.rand(3, 30, 50), torch.rand(3, 90, 40)])
    for found, (height, width) in zip(detected, ((30, 50), (90, 40)), strict=True):
        assert 0 < len(found["boxes"]) <= 5
        assert found["masks"].shape[1:] == (1, height, width)
        assert (found["boxes"][:, 2] <= width).all()
        assert (found["boxes"][:, 3] <= height).all()
        assert set(found["labels"].tolist()) <= {1, 2, 3}


def test_resizing_and_anchors_shrink_together():
    for resize, scale in (((800, 1333), 1), ((200, 333), 0.25)):
        model = build(GN, resize=resize)
        assert model.transform.min_size == (resize[0],)
        assert model.transform.max_size == resize[1]
        sizes = [size for level in model.rpn.anchor_generator.sizes for size in level]
        assert sizes == [scale * size for size in (32, 64, 128, 256, 512)]


def test_audit_reaches_every_norm_layer_and_shows_where_a_window_is_smaller_than_the_map():
    report = audit(full_size(LCN), (1, 3, 800, 1344), forward=reach_norms)
    assert len(report) == 53 + 8 + 4 + 4
    assert all(row.height is not None for row in report)
    windowed = [row.name for row in report if row.windowed]
    # 400 x 672 and 200 x 336 cells; stride 8 has 100 x 168.
    assert {name.rsplit(".", 1)[0] for name in windowed if "fpn" in name} == {
        "backbone.fpn.inner_blocks.0",
        "backbone.fpn.layer_blocks.0",
    }
    body = [name for name in windowed if "body" in name]
    assert "backbone.body.bn1" in body
    assert all(".bn1" in name or "layer1" in name or "layer2.0.bn1" in name for name in body)
    assert {(r.height, r.width) for r in report if "roi_heads" in r.name} == {(7, 7), (14, 14)}


def test_windows_in_input_pixels_follow_the_stride_and_heads_take_whole_regions():
    model = build({**LCN, "window_unit": "input"}, resize=(256, 256))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LocalContextNorm)}
    assert layers["backbone.body.bn1"].window == (114, 114)
    assert layers["backbone.body.layer2.1.bn1"].window == (28, 28)
    report = audit(model, (1, 3, 256, 256), forward=reach_norms)
    assert {row.window for row in report if "roi_heads" in row.name} == {"all"}


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r"backbone\.body\.bn1"):
        build({"name": "lcn", "c_group": 48, "window": 9})
    with pytest.raises(ValueError, match="unknown detector"):
        mask_rcnn("mask_rcnn_r18", 3, GN, pretrained=False)


@pytest.mark.parametrize("norm", [GN, LCN], ids=["gn", "lcn"])
def test_a_gn_checkpoint_of_imagenet_fills_the_backbone(tmp_path, norm):
    network = trained_resnet50(GN)
    path = save(tmp_path, network, GN)
    model = build(norm, pretrained=True)
    said = load_backbone(model, path, norm)
    body = model.backbone.body.state_dict()
    theirs = network.state_dict()
    assert body.keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, theirs[name]) for name, value in body.items())
    assert f"{len(body)} of its {len(theirs)} weights used" in said
    assert "not used: fc.bias, fc.weight" in said
    assert f"norm gn (groups 32) into {norm['name']} (" in said
    image = torch.rand(1, 3, 64, 64)
    network.eval()
    with torch.no_grad():  # at a size where every window is the whole map, both compute the same
        expected = network.forward_intermediates(image, intermediates_only=True)[-1]
        got = model.backbone.body(image)["3"]
    if norm is GN:
        torch.testing.assert_close(got, expected)


def test_a_bn_checkpoint_fills_frozen_batch_norms(tmp_path):
    network = trained_resnet50(BN).eval()
    model = build(BN, pretrained=True)
    said = load_backbone(model, save(tmp_path, network, BN), BN)
    assert "not used: fc.bias, fc.weight;" in said
    assert "norm bn into bn" in said
    image = torch.rand(2, 3, 64, 64)
    model.train()
    with torch.no_grad():
        expected = network.forward_intermediates(image, intermediates_only=True)[-1]
        torch.testing.assert_close(model.backbone.body(image)["3"], expected)


@pytest.mark.parametrize(
    ("before", "after"), [(BN, GN), (GN, BN), (BN, LCN), (LCN, GN), ({"name": "in"}, GN)]
)
def test_a_checkpoint_of_a_norm_that_does_not_fit_is_refused(tmp_path, before, after):
    path = save(tmp_path, nn.Linear(2, 2), before)
    with pytest.raises(InputError, match=f"trained with norm {before['name']}.*{after['name']}"):
        load_backbone(build(after, pretrained=True), path, after)


def test_checkpoints_of_other_networks_are_refused_with_the_first_weight_that_differs(tmp_path):
    model = build(GN, pretrained=True)
    wide = nn.Module()
    wide.conv1 = nn.Conv2d(3, 96, 7, bias=False)
    for network, message in (
        (
            nn.Linear(2, 2),
            r" 0 of its 159 .*conv1\.weight: not there in the file, \[64, 3, 7, 7\] here",
        ),
        (wide, r"conv1\.weight: \[96, 3, 7, 7\] in the file, \[64, 3, 7, 7\] here"),
    ):
        with pytest.raises(InputError, match=message):
            load_backbone(model, save(tmp_path, network, GN), GN)
    with pytest.raises(InputError, match="does not exist"):
        load_backbone(model, str(tmp_path / "none.ckpt"), GN)

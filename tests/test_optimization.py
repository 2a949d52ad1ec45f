"""Learning rates of each protocol at the iterations where the paper and its sources change them."""

import pytest
import torch
from torch import nn

from tasks.config import compose
from tasks.errors import InputError
from tasks.modules.optimization import make_optimizer
from tasks.protocol import learning_rate


def rates(cfg, total_batch, steps, at):
    layer = nn.Linear(1, 1)
    made = make_optimizer(layer, cfg, total_batch, steps)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = {}
    for step in range(max(at) + 1):
        found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    return [found[step] for step in at]


def test_imagenet_drops_tenfold_at_epochs_30_60_and_90():
    cfg = compose(["experiment=table6_gn"])
    at = [0, 299, 300, 599, 600, 899, 900, 999]  # ten steps an epoch
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    assert rates(cfg, 256, 1000, at) == pytest.approx(expected)


@pytest.mark.parametrize("experiment", ["table7_bn", "table8_bn"])
def test_aerial_tasks_drop_tenfold_at_epoch_60(experiment):
    cfg = compose([f"experiment={experiment}"])
    assert cfg.task.optimizer.name == "adam"
    assert rates(cfg, 7, 500, [0, 299, 300, 499]) == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_coco_has_the_1x_schedule_rescaled_to_four_images():
    cfg = compose(["experiment=table5_gn"])
    assert (cfg.trainer.max_steps, cfg.data.total_batch) == (90_000 * 16 // 4, 4)
    # a hundredth of the iterations: warmup over 20, drops at 2,400 and 3,200 of 3,600
    at = [0, 10, 20, 2399, 2400, 3199, 3200]
    low, high = 0.005 / 3, 0.005
    expected = [low, (low + high) / 2, high, high, high / 10, high / 10, high / 100]
    assert rates(cfg, 4, 3600, at) == pytest.approx(expected)


def test_cityscapes_falls_polynomially():
    cfg = compose(["experiment=table1_w18_bn"])
    expected = [0.01 * (1 - step / 100) ** 0.9 for step in (0, 50, 99)]
    assert rates(cfg, 16, 100, [0, 50, 99]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("experiment", "total_batch", "rate"),
    [
        ("table6_bn", 256, 0.1), ("table6_bn", 64, 0.025), ("table6_bn", 1024, 0.4),
        ("table5_bn", 16, 0.02), ("table1_w18_bn", 8, 0.01), ("table8_bn", 8, 0.001),
    ],
)  # fmt: skip
def test_rate_is_in_proportion_to_the_total_batch_where_the_protocol_says_so(
    experiment, total_batch, rate
):
    cfg = compose([f"experiment={experiment}"])
    assert learning_rate(cfg, total_batch) == pytest.approx(rate)


def test_frozen_weights_are_not_optimized():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    made = make_optimizer(layer, compose([]), 16, 10)
    assert [p.shape for p in made["optimizer"].param_groups[0]["params"]] == [torch.Size([2, 2])]


def test_coco_s_biases_are_faster_and_decay_spares_biases_and_norms():
    """Detectron's ``optimizer.py``: biases at twice the rate; no decay of biases and norms."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 4, 1, bias=False),
        nn.Linear(5, 6),
    )  # fmt: skip
    made = make_optimizer(model, compose(["experiment=table5_gn"]), 4, 3600)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(3000):
        optimizer.step()
        scheduler.step()
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == len(list(model.parameters()))
    weight, bias, norm = (5e-4, 1e-4), (1e-3, 0.0), (5e-4, 0.0)  # after the drop at 2,400
    wanted = {
        "0.weight": weight, "0.bias": bias, "1.weight": norm, "1.bias": norm, "2.weight": weight,
        "3.weight": weight, "3.bias": bias,
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == pytest.approx(wanted[name]), name


@pytest.mark.parametrize("experiment", ["table1_w18_gn", "table6_gn", "table7_gn"])
def test_other_tasks_decay_all_parameters_alike(experiment):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    made = make_optimizer(model, compose([f"experiment={experiment}"]), 16, 10)
    (group,) = made["optimizer"].param_groups
    assert len(group["params"]) == 4
    assert group.get("nesterov", False) == (experiment == "table6_gn")


def test_unknown_names_are_explained():
    for override, message in (
        ("task.optimizer.name=adamm", "task.optimizer.name=adamm: choose one of sgd, adam"),
        ("task.schedule.name=cosine", "task.schedule.name=cosine: choose one of poly, step"),
    ):
        cfg = compose([override])
        with pytest.raises(InputError, match=message):
            make_optimizer(nn.Linear(1, 1), cfg, 16, 10)

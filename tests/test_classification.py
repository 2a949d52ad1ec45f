"""Top-1 and top-5 errors against torchmetrics, and the network of Table 6."""

import pytest
import torch
import torchvision
from torchmetrics.functional.classification import multiclass_accuracy

from tasks.config import compose
from tasks.models import build_model
from tasks.modules.classification import missed_classes


def test_errors_agree_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 40, generator=generator)
    labels = torch.randint(0, 40, (200,), generator=generator)
    logits[torch.arange(200), labels] += 1.5
    missed = missed_classes(logits, labels)
    for name, k in (("top1_err", 1), ("top5_err", 5)):
        accuracy = multiclass_accuracy(logits, labels, 40, average="micro", top_k=k)
        assert missed[name].double().mean().item() == pytest.approx(1 - accuracy.item(), abs=1e-6)


def test_fewer_than_five_classes_are_never_missed_by_top_5():
    missed = missed_classes(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 1]))
    assert missed["top1_err"].tolist() == [True, False]
    assert missed["top5_err"].tolist() == [False, False]


@pytest.mark.parametrize("norm", ["bn", "gn", "lcn"])
def test_resnet_50_is_the_known_one_and_its_blocks_start_as_identities(norm):
    cfg = compose([f"experiment=table6_{norm}"])
    cfg.task.num_classes = 1000
    model = build_model(cfg)
    known = torchvision.models.resnet50().state_dict()
    own = model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    if norm == "bn":
        assert own.keys() == known.keys()
    assert all(own[key].shape == known[key].shape for key in own)
    last_norms = [key for key in own if key.endswith("bn3.weight")]
    assert len(last_norms) == 16
    assert all((own[key] == 0).all() for key in last_norms)
    assert (own["bn1.weight"] == 1).all()
    fan_out = 64 * 49
    assert own["conv1.weight"].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)

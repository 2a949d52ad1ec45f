"""Loss and upsampling against PyTorch's own functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.config import compose
from tasks.modules.segmentation import Segmentation


@pytest.fixture(scope="module")
def module():
    network = nn.Conv2d(3, 19, 3, stride=4, padding=1)
    return Segmentation(network, compose(["task=cityscapes"]), {"name": "bn"})


def random_batch(ignored_share):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 19, 12, 20, generator=generator)
    labels = torch.randint(0, 19, (2, 12, 20), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored_share] = 255
    return logits, labels


@pytest.mark.parametrize("ignored_share", [0.0, 0.4, 0.99])
def test_loss_is_the_weighted_cross_entropy_of_labelled_pixels(module, ignored_share):
    logits, labels = random_batch(ignored_share)
    weights = torch.tensor(
        [
            0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
            0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
        ]
    )  # fmt: skip
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255)
    torch.testing.assert_close(module.loss(logits, labels), expected)


def test_batch_without_a_labelled_pixel_has_no_loss_and_no_gradient(module):
    logits, labels = random_batch(1.1)
    logits.requires_grad_()
    loss = module.loss(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("size", [(64, 128), (90, 121)])
def test_logits_come_at_the_size_of_the_images(module, size):
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = F.interpolate(module.model(images), size, mode="bilinear", align_corners=False)
        assert torch.equal(module(images), expected)

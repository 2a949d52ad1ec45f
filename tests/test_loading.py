"""Order and augmentation follow from seed, epoch and sample, on any number of processes."""

import itertools

import numpy as np
import pytest
import torch
from test_tiles import make_tile, tile_set
from torchvision import tv_tensors
from torchvision.transforms import v2

from tasks.config import compose
from tasks.data.cityscapes import Cityscapes
from tasks.data.loading import Augmented, EvalBatches, TrainBatches, stack
from tasks.data.tiles import TileWindows
from tasks.data.transforms import Lighting, RandomScaleCrop, make_transform
from tasks.errors import InputError


def settings(*overrides):
    return compose(["data.crop=[32,48]", *overrides])


def batches(rank, world_size, epoch, size=26, total=8):
    part = TrainBatches(size, total // world_size, 0, rank, world_size)
    part.set_epoch(epoch)
    return list(part)


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_processes_together_see_the_batches_of_one_process():
    one = batches(0, 1, epoch=3)
    two = [batches(rank, 2, epoch=3) for rank in range(2)]
    four = [batches(rank, 4, epoch=3) for rank in range(4)]
    assert len(one) == 3  # 26 images, total batch 8, the rest is left out
    for split in (two, four):
        assert [flat(parts) for parts in zip(*split, strict=True)] == one


def test_order_changes_with_the_epoch_and_covers_the_data():
    first, second = (flat(batches(0, 1, epoch, size=24)) for epoch in (0, 1))
    assert {i for _, i in first} == {i for _, i in second} == set(range(24))
    assert [i for _, i in first] != [i for _, i in second]
    assert first == flat(batches(0, 1, 0, size=24))


@pytest.mark.parametrize(("size", "world_size"), [(7, 1), (7, 2), (7, 4), (2, 4), (8, 4)])
def test_every_evaluated_sample_occurs_once_over_all_processes(size, world_size):
    seen = [
        index
        for rank in range(world_size)
        for batch in EvalBatches([[i] for i in range(size)], 2, rank, world_size)
        for _, index in batch
    ]
    assert sorted(seen) == list(range(size))


def test_augmentation_follows_from_seed_epoch_and_sample_alone(tiny_cityscapes):
    cfg = settings()
    data = Augmented(Cityscapes(tiny_cityscapes, "train"), make_transform(cfg, True), 0)
    first = data[0, 3]
    torch.manual_seed(99)
    data[0, 5], data[1, 3]
    again = data[0, 3]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["image"], data[1, 3]["image"])
    other_seed = Augmented(data.dataset, data.transform, 1)
    assert not torch.equal(first["image"], other_seed[0, 3]["image"])


def test_loading_a_sample_leaves_the_global_random_state_alone(tiny_cityscapes):
    data = Augmented(Cityscapes(tiny_cityscapes, "train"), make_transform(settings(), True), 0)
    before = torch.get_rng_state()
    data[0, 0]
    assert torch.equal(before, torch.get_rng_state())


def checkerboard(height, width):
    """An image that says the label plus one, so that both can be compared after augmentation."""
    label = torch.arange(height * width).reshape(height, width).remainder(19).to(torch.uint8)
    return tv_tensors.Image(label.expand(3, -1, -1) + 1), tv_tensors.Mask(label)


def test_padding_is_zero_in_the_image_and_255_in_the_label_at_right_and_bottom():
    image, label = checkerboard(32, 48)
    image, label = RandomScaleCrop((64, 80), (1.0, 1.0))(image, label)
    assert image.shape == (3, 64, 80)
    assert (label[32:] == 255).all()
    assert (label[:, 48:] == 255).all()
    assert (image[:, 32:] == 0).all()
    assert torch.equal(image[0, :32, :48], label[:32, :48] + 1)


def test_image_and_label_are_cut_at_the_same_place():
    torch.manual_seed(0)
    offsets = set()
    for _ in range(20):
        image, label = RandomScaleCrop((16, 24), (1.0, 1.0))(*checkerboard(32, 49))
        assert torch.equal(image[0], label + 1)
        offsets.add(int(label[0, 0]))
    assert len(offsets) > 5


def test_scale_covers_its_range_evenly():
    torch.manual_seed(0)
    transform = RandomScaleCrop((16, 16), (0.5, 2.0))
    image, _ = checkerboard(100, 100)
    scales = np.array([transform.make_params([image])["size"][0] / 100 for _ in range(2000)])
    assert scales.min() >= 0.5
    assert scales.max() <= 2.0
    counts, _ = np.histogram(scales, bins=5, range=(0.5, 2.0))
    assert (np.abs(counts - 400) < 80).all()


def test_evaluation_keeps_the_whole_image_and_normalizes_it(tiny_cityscapes):
    cfg = settings()
    dataset = Cityscapes(tiny_cityscapes, "val")
    sample = Augmented(dataset, make_transform(cfg, False), 0)[0, 1]
    raw = dataset[1]
    mean, std = np.array(cfg.task.mean), np.array(cfg.task.std)
    expected = ((raw["image"] / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(sample["image"], expected, atol=1e-5)
    np.testing.assert_array_equal(sample["label"], raw["label"])
    assert sample["label"].dtype == torch.int64


def test_lighting_shifts_all_pixels_along_the_components_of_imagenet_s_colours():
    image = tv_tensors.Image(torch.full((3, 4, 5), 0.5))
    torch.manual_seed(3)
    draws = 0.1 * torch.randn(3)
    torch.manual_seed(3)
    shifted = Lighting(0.1)({"image": image, "label": 7})
    assert shifted["label"] == 7
    values, vectors = [0.2175, 0.0188, 0.0045], [
        [-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203],
    ]  # fmt: skip
    for channel in range(3):
        shift = sum(vectors[channel][k] * draws[k].item() * values[k] for k in range(3))
        found = shifted["image"][channel]
        assert torch.allclose(found, torch.full((4, 5), 0.5 + shift)), channel
    matrix = torch.tensor(vectors)  # rotations of the axes: what they do is no stretching
    assert torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-3)


def test_imagenet_s_colours_are_jittered_and_lit_in_training_alone():
    cfg = compose(["experiment=table6_gn"])
    image = torch.randint(256, (3, 300, 400), dtype=torch.uint8)
    for training, extra in ((True, ["ColorJitter", "Lighting"]), (False, [])):
        transform = make_transform(cfg, training)
        names = [type(step).__name__ for step in transform.transforms]
        assert names[names.index("ToDtype") + 1 : -1] == extra
        resized = transform.transforms[0]
        assert resized.interpolation == v2.InterpolationMode.BICUBIC
        result = transform({"image": tv_tensors.Image(image), "label": 1})["image"]
        assert result.shape == (3, 224, 224)
        assert result.isfinite().all()
    jitter = make_transform(cfg, True).transforms[3]
    assert [jitter.brightness, jitter.contrast, jitter.saturation] == [(0.6, 1.4)] * 3
    assert jitter.hue is None
    plain = make_transform(compose(["task=cityscapes"]), True)
    assert not any(isinstance(step, Lighting | v2.ColorJitter) for step in plain.transforms)


def test_batches_hold_samples_of_one_size(tmp_path):
    tiles = [make_tile(tmp_path, f"a{n}", size) for n, size in enumerate([(20, 25), (40, 64)])]
    windows = TileWindows(tile_set(tiles), (32, 32), 4)
    batches = list(EvalBatches(windows.parts(), 3, size_of=windows.size_of))
    assert [index for batch in batches for _, index in batch] == list(range(len(windows)))
    for batch in batches:
        assert len({windows[index]["image"].shape for _, index in batch}) == 1
    assert len(batches) == 1 + -(-(len(windows) - 1) // 3)


def test_images_of_unequal_size_in_a_batch_are_named():
    samples = [{"image": torch.zeros(3, n, 8), "name": f"x{n}"} for n in (4, 5)]
    with pytest.raises(InputError, match=r"4 x 8, 5 x 8, first x4\): set data.eval_batch_size=1"):
        stack(samples)

"""Order and augmentation follow from seed, epoch and sample, on any number of processes."""

import itertools

import numpy as np
import pytest
import torch
from test_tiles import make_tile, tile_set
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tasks.config import compose
from tasks.data import IGNORED
from tasks.data.cityscapes import Cityscapes
from tasks.data.loading import Augmented, EvalBatches, TrainBatches
from tasks.data.pixels import scale_bytes
from tasks.data.tiles import TileWindows
from tasks.data.transforms import (
    EIGENVALUES,
    EIGENVECTORS,
    RandomScaleCrop,
    lighting,
    make_transform,
    nearest,
)
from tasks.errors import InputError
from tasks.identity import stable_seed


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
    label = np.arange(height * width).reshape(height, width) % 19
    return np.repeat(label[..., None] + 1, 3, axis=2).astype(np.uint8), label.astype(np.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_padding_is_zero_in_the_image_and_255_in_the_label_at_right_and_bottom():
    image, label = checkerboard(32, 48)
    image, label = RandomScaleCrop((64, 80), (1.0, 1.0))(image, label, generator())
    assert image.shape == (64, 80, 3)
    assert (label[32:] == 255).all()
    assert (label[:, 48:] == 255).all()
    assert (image[32:] == 0).all()
    assert (image[:, 48:] == 0).all()
    assert np.array_equal(image[:32, :48, 0], label[:32, :48] + 1)


def test_image_and_label_are_cut_at_the_same_place():
    drawn, offsets = generator(), set()
    for _ in range(20):
        image, label = RandomScaleCrop((16, 24), (1.0, 1.0))(*checkerboard(32, 49), drawn)
        assert np.array_equal(image[..., 0], label + 1)
        offsets.add(int(label[0, 0]))
    assert len(offsets) > 5


def test_scale_covers_its_range_evenly():
    drawn, transform = generator(), RandomScaleCrop((16, 16), (0.5, 2.0))
    scales = np.array([transform.choose(100, 100, drawn)[0][0] / 100 for _ in range(2000)])
    assert scales.min() >= 0.5
    assert scales.max() <= 2.0
    counts, _ = np.histogram(scales, bins=5, range=(0.5, 2.0))
    assert (np.abs(counts - 400) < 80).all()


class ScaleCrop(v2.Transform):
    """`RandomScaleCrop`, as torchvision would have it: all of the image is scaled and padded."""

    def __init__(self, crop, scale_range):
        super().__init__()
        self.crop, self.scale_range = crop, scale_range

    def make_params(self, flat_inputs):
        height, width = flat_inputs[0].shape[-2:]
        low, high = self.scale_range
        scale = low + (high - low) * torch.rand(()).item()
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        padding = [max(0, need - have) for need, have in zip(self.crop, size, strict=True)]
        sides = zip(self.crop, size, padding, strict=True)
        top, left = (int(torch.randint(have + pad - need + 1, ())) for need, have, pad in sides)
        return {"size": size, "padding": padding, "top": top, "left": left}

    def transform(self, inpt, params):
        is_label = isinstance(inpt, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST if is_label else v2.InterpolationMode.BILINEAR
        inpt = F.resize(inpt, params["size"], interpolation=mode, antialias=False)
        bottom, right = params["padding"]
        inpt = F.pad(inpt, [0, 0, right, bottom], fill=IGNORED if is_label else 0)
        return F.crop(inpt, params["top"], params["left"], *self.crop)


class Light(v2.Transform):
    """`lighting`, added to an image."""

    def __init__(self, deviation):
        super().__init__()
        self.deviation = deviation

    def make_params(self, flat_inputs):
        scaled = torch.tensor(EIGENVECTORS) * torch.tensor(EIGENVALUES)
        return {"shift": scaled @ (self.deviation * torch.randn(3))}

    def transform(self, inpt, params):
        return inpt + params["shift"][:, None, None] if isinstance(inpt, tv_tensors.Image) else inpt


def of_torchvision(cfg, training, sample, seed):
    """What torchvision's own transforms make of a sample."""
    task, steps = cfg.task, []
    crop = list(cfg.data.crop) if cfg.data.crop is not None else None
    if task.kind == "classification":
        mode = v2.InterpolationMode(task.interpolation)
        if training:
            ranges = tuple(task.area_range), tuple(task.ratio_range)
            steps.append(v2.RandomResizedCrop(crop, *ranges, mode))
        else:
            steps += [v2.Resize(cfg.data.resize, mode), v2.CenterCrop(crop)]
    elif training and task.get("scale_range"):
        steps.append(ScaleCrop(crop, task.scale_range))
    if training and task.flip:
        steps.append(v2.RandomHorizontalFlip(task.flip))
    label = torch.int64 if task.kind == "segmentation" else None
    types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: label, "others": None}
    steps.append(v2.ToDtype(types, scale=True))
    if training and task.kind == "classification":
        steps += [v2.ColorJitter(*[task.color_jitter] * 3), Light(task.lighting)]
    if task.mean is not None:
        steps.append(v2.Normalize(list(task.mean), list(task.std)))
    image = torch.from_numpy(sample["image"].copy()).permute(2, 0, 1)
    sample = {**sample, "image": tv_tensors.Image(image)}
    for name in {"label", "masks"} & sample.keys():
        if isinstance(sample[name], np.ndarray):
            sample[name] = tv_tensors.Mask(torch.from_numpy(sample[name].copy()))
    if "boxes" in sample:
        boxes, size = torch.from_numpy(sample["boxes"].copy()), image.shape[-2:]
        sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        sample["labels"] = torch.from_numpy(sample["labels"])
    torch.manual_seed(seed)
    return v2.Compose(steps)(sample)


def made_up(kind, bands, size, seed):
    """A sample of noise."""
    rng = np.random.default_rng(seed)
    sample = {"image": rng.integers(0, 256, (*size, bands), dtype=np.uint8), "name": "noise"}
    if kind == "segmentation":
        return sample | {"label": rng.integers(0, 5, size, dtype=np.uint8)}
    if kind == "classification":
        return sample | {"label": 3}
    boxes = np.sort(rng.uniform(0, min(size), (2, 2, 2)), axis=1).reshape(2, 4)
    masks = rng.integers(0, 2, (2, *size), dtype=np.uint8)
    labels = np.array([1, 2])
    return sample | {"boxes": boxes.astype(np.float32), "labels": labels, "masks": masks}


# Of other processors PyTorch scales and adds in another way, by a grey level at most.
IS_EXACT = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def assert_same_pixels(found, expected, grey_level, of=None):
    if IS_EXACT:
        assert torch.equal(found, expected), of
    else:
        torch.testing.assert_close(found, expected, atol=grey_level, rtol=0)


class One:
    """A dataset of one sample."""

    def __init__(self, sample):
        self.sample = sample

    def draw(self, index, rng):
        return self.sample


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("task", "crop"),
    [
        ("cityscapes", [32, 48]),
        ("cityscapes", [80, 61]),
        ("imagenet", [32, 24]),
        ("coco", None),
        ("inria", [572, 572]),
        ("chesapeake", [256, 256]),
    ],
)
def test_every_bit_is_that_of_torchvision_s_transforms(task, crop, training):
    overrides = [f"data.crop={crop}"] if crop else []
    cfg = compose([f"task={task}", *overrides, *(["data.resize=40"] if task == "imagenet" else [])])
    transform = make_transform(cfg, training)
    for seed in range(12):
        size = (37 + 11 * seed % 40, 53 + 17 * seed % 30)
        sample = made_up(cfg.task.kind, len(cfg.task.bands), size, seed)
        data = Augmented(One(sample), transform, seed)
        result = data[1, 0]
        expected = of_torchvision(cfg, training, sample, stable_seed(seed, 1, 0))
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert result[name].dtype == value.dtype
                value, level = value.as_subclass(torch.Tensor), 0
                if name == "image":
                    level = 1.01 / 255 / min(cfg.task.std or [1])
                assert_same_pixels(result[name], value, level, (name, seed))
            else:
                assert result[name] == value
        if cfg.task.kind != "detection":
            batch = data.stack(data.__getitems__([(1, 0), (1, 0)]))
            assert torch.equal(batch["image"], torch.stack([result["image"]] * 2))
            assert batch["image"].is_contiguous()
            assert torch.equal(batch["label"], torch.stack([torch.as_tensor(result["label"])] * 2))


def test_scaling_any_part_gives_what_scaling_all_of_an_image_gives():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, new_height, new_width = (int(side) for side in rng.integers(1, 70, 4))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        new = [new_height, new_width]
        whole = F.resize_image(torch.from_numpy(image).permute(2, 0, 1), new, antialias=False)
        top, left = (int(rng.integers(side)) for side in new)
        part = np.zeros((new_height - top, new_width - left, 3), np.uint8)
        scale_bytes(image, (new_height, new_width), top, left, part)
        expected = whole.permute(1, 2, 0)[top:, left:]
        assert_same_pixels(torch.from_numpy(part), expected, 1)
        label = image[..., 0]
        rows = nearest(height, new_height, 0, new_height)
        columns = nearest(width, new_width, 0, new_width)
        nearby = F.resize_mask(torch.from_numpy(label)[None], new)[0]
        assert np.array_equal(label[rows][:, columns], nearby.numpy())


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_processes_give_the_same_batches(tiny_cityscapes, workers):
    cfg = settings(f"data.workers={workers}", "data.batch_size=4")
    dataset = Cityscapes(tiny_cityscapes, "train")
    data = Augmented(dataset, make_transform(cfg, True), cfg.seed)
    keys = next(iter(TrainBatches(len(dataset), 4, cfg.seed)))
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=[keys], num_workers=workers, collate_fn=data.stack
    )
    (batch,) = loader
    assert torch.equal(batch["image"], torch.stack([data[key]["image"] for key in keys]))
    assert torch.equal(batch["label"], torch.stack([data[key]["label"] for key in keys]))


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
    draws = 0.1 * torch.randn(3, generator=generator(3))
    values, vectors = [0.2175, 0.0188, 0.0045], [
        [-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203],
    ]  # fmt: skip
    shift = lighting(0.1, generator(3))
    for channel in range(3):
        expected = sum(vectors[channel][k] * draws[k].item() * values[k] for k in range(3))
        assert abs(shift[channel].item() - expected) < 1e-7, channel
    matrix = torch.tensor(vectors)  # rotations of the axes: what they do is no stretching
    assert torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-3)


def test_imagenet_s_colours_are_jittered_by_0_4_and_lit_by_0_1_and_no_other_task_s():
    task = compose(["experiment=table6_gn"]).task
    assert (task.color_jitter, task.lighting, task.interpolation) == (0.4, 0.1, "bicubic")
    other = compose(["task=cityscapes"]).task
    assert not {"color_jitter", "lighting"} & set(other)


def test_batches_hold_samples_of_one_size(tmp_path):
    tiles = [make_tile(tmp_path, f"a{n}", size) for n, size in enumerate([(20, 25), (40, 64)])]
    windows = TileWindows(tile_set(tiles), (32, 32), 4)
    batches = list(EvalBatches(windows.parts(), 3, size_of=windows.size_of))
    assert [index for batch in batches for _, index in batch] == list(range(len(windows)))
    for batch in batches:
        assert len({windows[index]["image"].shape for _, index in batch}) == 1
    assert len(batches) == 1 + -(-(len(windows) - 1) // 3)


def test_images_of_unequal_size_in_a_batch_are_named():
    samples = [{"image": np.zeros((n, 8, 3), np.uint8), "name": f"x{n}"} for n in (4, 5)]
    data = Augmented([], make_transform(settings(), False), 0)
    with pytest.raises(InputError, match=r"4 x 8, 5 x 8, first x4\): set data.eval_batch_size=1"):
        data.stack(samples)

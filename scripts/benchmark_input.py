"""Training samples: decoding their files alone, beside all that a training step waits for.

Used by ``scripts/benchmark.py --only input``. Decoding is the bare library's work, from the file
to an array: Pillow, pycocotools for COCO's masks, zlib for Chesapeake's channels up to the last
that is used, rasterio for a window of a tile. Loading is what the training does with the same
files: the dataset's checks, augmentation, normalization, and the batch. Times are processor times.
"""

import argparse
import itertools
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from benchmark_table import Table
from PIL import Image
from rasterio.windows import Window

from tasks.config import compose
from tasks.data import Datasets, open_splits
from tasks.data.coco import Coco
from tasks.data.loading import DataModule
from tasks.errors import InputError
from tasks.identity import stable_seed

SAMPLES = 24  # of each case, at least, in whole batches; fewer where a split has fewer

Key = tuple[int, int]  # epoch, index


def measure(options: argparse.Namespace, table: Table) -> None:
    """Samples of the miniatures and, with ``--data-root``, real ones at full size."""
    root = options.data_root
    if root and not any((root / task).is_dir() for task in options.tasks):
        raise InputError(f"--data-root {root} has none of the folders {', '.join(options.tasks)}")
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            if task != "camvid":  # which has no miniature
                measure_task(task, ["data=mini"], options.seconds, table)
            if root and (real := root / task).is_dir():
                full = ENLARGED[task](real, Path(folder)) if task in ENLARGED else real
                measure_task(task, [f"data.root={full}"], options.seconds, table)
    ratios = [float(str(row["load_over_decode"])) for row in table.rows if row["part"] == "input"]
    table.say(f"loading over decoding: {min(ratios):.2f} to {max(ratios):.2f}")


def measure_task(task: str, overrides: list[str], seconds: float, table: Table) -> None:
    """Each batch in turns: decoded, read, loaded; the smallest times, as means over the samples."""
    cfg = compose([f"task={task}", "data.workers=0", *overrides])
    (dataset,) = open_splits(cfg, ["train"])
    if len(dataset) < cfg.data.batch_size:
        cfg.data.batch_size = len(dataset)
    loader = DataModule(cfg, Datasets(dataset, dataset, None)).train_dataloader()
    augmented: Any = loader.dataset
    sampler: Iterable[list[Key]] = loader.batch_sampler  # type: ignore[assignment]
    wanted = -(-SAMPLES // cfg.data.batch_size)
    batches = list(itertools.islice(sampler, wanted))

    def generator(key: Key) -> np.random.Generator:
        return np.random.default_rng(stable_seed(cfg.seed, *key))

    ways: dict[str, Callable[[list[Key]], Any]] = {
        "decode": lambda keys: [DECODE[task](dataset, key[1], generator(key)) for key in keys],
        "read": lambda keys: [dataset.draw(key[1], generator(key)) for key in keys],
        "load": lambda keys: loader.collate_fn(augmented.__getitems__(keys)),
    }
    best = {name: [float("inf")] * len(batches) for name in ways}
    end = time.perf_counter() + 4 * seconds
    for turn in itertools.count():
        if turn >= 3 and time.perf_counter() > end:
            break
        for number, keys in enumerate(batches):
            for name, way in ways.items():
                start = time.process_time()
                way(keys)
                best[name][number] = min(best[name][number], time.process_time() - start)
    count = sum(map(len, batches))
    shape = augmented[batches[0][0]]["image"].shape
    times = {name: sum(values) / count for name, values in best.items()}
    table.add_input(f"{task}, {cfg.data.name}", tuple(shape), times)


# ------------------------------------------------------------- decoding alone, of the same files


def decoded(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def decode_coco(dataset: Coco, index: int) -> list[np.ndarray]:
    image = dataset._images[index]
    masks = [dataset.ground_truth.annToMask(entry) for entry in dataset._objects(image)]
    return [decoded(dataset.image_dir / image["file_name"]), *masks]


def decode_patch(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, _ = np.lib.format.read_array_header_1_0(member)
        height, width = shape[2:]
        values = member.read(4 * 9 * height * width)
        return np.frombuffer(values, np.float32).reshape(9, height, width)


def decode_tile(dataset: Any, generator: np.random.Generator) -> list[np.ndarray]:
    tile, place = dataset.choose(generator)
    arrays = []
    for path in (tile.image, tile.label):
        with rasterio.open(path, driver="GTiff") as raster:
            window = Window(place.left, place.top, place.width, place.height)
            arrays.append(raster.read(window=window))
    return arrays


DECODE: dict[str, Callable[[Any, int, np.random.Generator], Any]] = {
    "cityscapes": lambda data, index, _: [decoded(path) for path in data._samples[index]],
    "camvid": lambda data, index, _: [
        decoded(folder / data._names[index]) for folder in (data.images, data.labels)
    ],
    "coco": lambda data, index, _: decode_coco(data, index),
    "imagenet": lambda data, index, _: decoded(data.root / data.name(index)),
    "chesapeake": lambda data, index, _: decode_patch(data.root / data._names[index]),
    "inria": lambda data, _, generator: decode_tile(data, generator),
}


# ------------------------------------------------------------- real samples, as large as real files


def mosaic(pictures: Iterable[np.ndarray], rows: int, columns: int) -> np.ndarray:
    """The pictures side by side, again from the first where there are too few."""
    endless = itertools.cycle(pictures)
    return np.vstack([np.hstack([next(endless) for _ in range(columns)]) for _ in range(rows)])


def street_scenes(real: Path, folder: Path) -> Path:
    """Cityscapes of 1024 x 2048: six photographs each, enlarged to 512 x 683, and their labels."""
    names = sorted(real.glob("leftImg8bit/train/*/*_leftImg8bit.png"))
    for part, ending, way in (
        ("leftImg8bit", "_leftImg8bit.png", Image.Resampling.BICUBIC),
        ("gtFine", "_gtFine_labelIds.png", Image.Resampling.NEAREST),
    ):
        to = folder / "cityscapes" / part / "train" / "town"
        to.mkdir(parents=True)
        for number in range(4):
            files = [
                real / part / "train" / name.parent.name
                / name.name.replace("_leftImg8bit.png", ending)
                for name in names[6 * number : 6 * number + 6]
            ]  # fmt: skip
            pictures = [np.asarray(Image.open(file).resize((683, 512), way)) for file in files]
            picture = np.ascontiguousarray(mosaic(pictures, 2, 3)[:, :2048])
            Image.fromarray(picture).save(to / f"town_{number:06d}_000000{ending}")
    return folder / "cityscapes"


def aerial_tiles(real: Path, folder: Path) -> Path:
    """Two tiles of 5000 x 5000 without compression, of the real tiles side by side."""
    for part in ("images", "gt"):
        to = folder / "inria" / "AerialImageDataset" / "train" / part
        to.mkdir(parents=True)
        tiles = []
        for path in sorted(real.glob(f"AerialImageDataset/train/{part}/*.tif")):
            with rasterio.open(path) as raster:
                tiles.append(np.moveaxis(raster.read(), 0, -1))
        sides = -(-5000 // min(min(tile.shape[:2]) for tile in tiles))
        whole = np.moveaxis(mosaic(tiles, sides, sides)[:5000, :5000], -1, 0)
        profile = {"driver": "GTiff", "dtype": "uint8", "height": 5000, "width": 5000}
        profile |= {"count": len(whole), "interleave": "pixel", "crs": "EPSG:26914"}
        for number in (1, 2):
            place = rasterio.Affine(0.3, 0, 600000, 0, -0.3, 3348000)
            with rasterio.open(to / f"town{number}.tif", "w", transform=place, **profile) as raster:
                raster.write(whole)
    return folder / "inria"


ENLARGED = {"cityscapes": street_scenes, "inria": aerial_tiles}

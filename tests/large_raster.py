"""Predicts a raster that is larger than the memory; prints time and peak memory, and checks it.

    python tests/large_raster.py --size 100000           sparse: noise in 64 blocks, else nothing
    python tests/large_raster.py --size 20000 --full     noise everywhere

The network is one convolution, so that what is measured is reading, cutting and writing. The map
is compared with the same convolution in float64, at the blocks with noise (with --full at 64
random places). Fails if it differs, or if the process needed more than 2 GB.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from tasks.config import compose
from tasks.prediction.maps import Options, predict_map
from tasks.prediction.network import Network

BLOCK = 512
LIMIT = 2e9  # bytes


def write(path: Path, size: int, full: bool, random: np.random.Generator) -> list[Window]:
    """Writes the raster; returns the places to look at."""
    blocks = -(-size // BLOCK)
    chosen = random.choice(blocks**2, min(64, blocks**2), replace=False)
    places = [divmod(int(number), blocks) for number in chosen]
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, sparse_ok=True, bigtiff="YES",
    ) as raster:  # fmt: skip
        written = [divmod(n, blocks) for n in range(blocks**2)] if full else places
        for row, column in written:
            window = _window(row, column, size)
            shape = (3, window.height, window.width)
            raster.write(random.integers(0, 256, shape, dtype=np.uint8), window=window)
    return [_window(row, column, size, around=64) for row, column in places]


def _window(row: int, column: int, size: int, around: int = 0) -> Window:
    """A block and the pixels around it, as far as there are any."""
    y, x = (max(0, number * BLOCK - around) for number in (row, column))
    height, width = (
        min((number + 1) * BLOCK + around, size) - start
        for number, start in ((row, y), (column, x))
    )
    return Window(x, y, width, height)


def wrong_pixels(network: Network, raster: Path, result: Path, places: list[Window]) -> int:
    """Pixels of the places whose class is not that of the convolution in float64."""
    mean, std = network.mean.double(), network.std.double()
    weight, bias = network.model.weight.double(), network.model.bias.double()
    wrong = 0
    with rasterio.open(raster) as image, rasterio.open(result) as classes:
        for place in places:
            pixels = (torch.from_numpy(image.read(window=place)).double() / 255 - mean) / std
            logits = F.conv2d(pixels[None], weight, bias)[0, 0].numpy()
            found = classes.read(1, window=place)[1:-1, 1:-1]
            wrong += int(((logits > 0) != found)[np.abs(logits) > 1e-5].sum())
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=20000, help="height and width in pixels")
    parser.add_argument("--full", action="store_true", help="noise everywhere")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    network = Network(nn.Conv2d(3, 1, 3, padding=1), compose(["task=inria"]))
    network.to(memory_format=torch.channels_last)  # as `load_network` gives it
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "large.tif"), Path(folder, "maps")
        random = np.random.default_rng(arguments.seed)
        places = write(path, arguments.size, arguments.full, random)
        begun = time.monotonic()
        with tqdm(unit="tile", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            predict_map(network, path, out, Options(), print, progress)
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wrong = wrong_pixels(network, path, out / "large_classes.tif", places)
    print(
        f"{arguments.size} x {arguments.size} pixels: {seconds:.0f} s, peak memory "
        f"{peak / 1e9:.2f} GB, {wrong} wrong pixels at {len(places)} places"
    )
    return int(wrong > 0 or peak > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""Predictions over whole tiles, written window by window as a benchmark wants them submitted."""

import shutil
import zipfile
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import rasterio
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from rasterio.windows import Window

from tasks.data.loading import DataModule
from tasks.data.tiles import TileWindows, core_of, open_raster
from tasks.errors import replacing, told_of
from tasks.modules.module import TaskModule

ARCHIVE, CONVERTED = "submission.zip", "submission_converted.zip"


def write_submission(
    module: TaskModule, trainer: pl.Trainer, data: DataModule, folder: Path, name: str = ARCHIVE
) -> str:
    """Predicts every tile of the evaluation split and packs the masks into one archive.

    One-band uint8 GeoTIFFs, 0 and 255, under the tiles' own names, with their georeferencing: what
    the INRIA benchmark takes. Memory is that of one window, whatever a tile's size; processes
    divide the tiles. The archive appears whole or not at all.

    Args:
        module: a segmentation with classes 0 and 1.
        trainer: predicts; its devices, precision and processes are used.
        data: its evaluation split is a `TileWindows`.
        folder: where the archive is written.
        name: of the archive.

    Returns:
        The archive's name.
    """
    windows = data.datasets.eval
    if not isinstance(windows, TileWindows):
        raise TypeError("only predictions of whole tiles are submitted")
    masks = folder / (name + ".tmp.d")
    try:
        with told_of(folder / name):
            _predict(module, trainer, data, windows, masks)
            if trainer.is_global_zero:
                _pack(masks, folder / name)
    finally:
        if trainer.is_global_zero:
            shutil.rmtree(masks, ignore_errors=True)
    return name


def _predict(
    module: TaskModule, trainer: pl.Trainer, data: DataModule, windows: TileWindows, masks: Path
) -> None:
    """Writes the masks of all tiles; returns in every process when all are written."""
    if trainer.is_global_zero:
        shutil.rmtree(masks, ignore_errors=True)  # left by an interrupted prediction
        masks.mkdir(parents=True)
    trainer.strategy.barrier()
    writer = MaskWriter(windows, masks)
    callbacks: list[pl.Callback] = cast(Any, trainer).callbacks
    callbacks.append(writer)
    try:
        trainer.predict(module, data, return_predictions=False)
    finally:
        callbacks.remove(writer)
        writer.close()
    trainer.strategy.barrier()


def _pack(masks: Path, path: Path) -> None:
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for mask in sorted(masks.glob("*.tif")):
            archive.write(mask, mask.name)


class MaskWriter(BasePredictionWriter):
    """Writes the core of each predicted window into its tile's mask; windows come tile by tile."""

    def __init__(self, dataset: TileWindows, folder: Path):
        super().__init__(write_interval="batch")
        self.dataset, self.folder = dataset, folder
        self._number: int | None = None
        self._mask: rasterio.io.DatasetWriter | None = None

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        prediction: torch.Tensor,
        batch_indices: object,
        batch: dict,
        batch_index: int,
        dataloader_index: int,
    ) -> None:
        for index, classes in zip(batch["index"].tolist(), prediction, strict=True):
            number, window, core = self.dataset.windows[index]
            if number != self._number or self._mask is None:
                self._mask = self._open(number)
            mask = (255 * classes[core_of(window, core)]).to(torch.uint8).cpu().numpy()
            place = Window(core.left, core.top, core.width, core.height)
            self._mask.write(mask, 1, window=place)

    def _open(self, number: int) -> rasterio.io.DatasetWriter:
        self.close()
        tile = self.dataset.tiles[number]
        with open_raster(tile.image) as image:
            profile = {
                "driver": "GTiff",
                "dtype": "uint8",
                "count": 1,
                "height": image.height,
                "width": image.width,
                "crs": image.crs,
                "transform": image.transform,
                "compress": "deflate",
            }
        self._number = number
        return rasterio.open(self.folder / tile.image.name, "w", **profile)

    def close(self) -> None:
        if self._mask is not None:
            self._mask.close()
        self._number = self._mask = None

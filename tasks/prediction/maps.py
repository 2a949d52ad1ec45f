"""Maps of images and rasters of any size: read and written by windows, stopped and continued.

A row of tiles is the unit of work. A process claims it by a lock and writes it as a file in
``.NAME.parts``, which takes its name when it is whole. Once all rows are there one process puts
them together and renames the result: a map with its final name is finished.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from filelock import FileLock, Timeout
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from tasks.data.files import read_rgb, reading, require_file
from tasks.data.plots import colorize
from tasks.data.tiles import Place
from tasks.errors import InputError
from tasks.prediction.network import DEFAULT_MEMORY, Network, choose_tiling, predict_tile
from tasks.prediction.tiling import Tile
from tasks.runs.directory import write_atomically

NODATA = 255
_AGAIN = "get the file again"
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
RASTERS = {".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT"}
_BLOCK = {"tiled": True, "blockxsize": 512, "blockysize": 512}
_WRITTEN: dict[str, Any] = {
    "driver": "GTiff", "compress": "deflate", "bigtiff": "IF_SAFER", "num_threads": 1, **_BLOCK,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What `scripts/predict.py` is told; see there."""

    halo: int | None = None
    core: int | None = None
    memory: float = DEFAULT_MEMORY
    bands: tuple[int, ...] | None = None
    scale: float | None = None
    probabilities: bool = False
    cog: bool = False
    overwrite: bool = False


class Source:
    """An image to be predicted, read by windows.

    Attributes:
        size: height and width.
        place: CRS and transform, as keywords of `rasterio.open`; none of a picture.
        picture: whether it is a PNG or JPEG, whose maps are PNGs.
    """

    def __init__(self, path: Path, bands: tuple[int, ...] | None, count: int):
        require_file(path, _AGAIN)
        self.path, self.picture = path, path.suffix.lower() in PICTURES
        self.place: dict[str, Any] = {}
        self._image: np.ndarray | None = None
        self._has_alpha = False
        self._raster: rasterio.DatasetReader | None = None
        if self.picture:
            image = read_rgb(path, ["PNG", "JPEG"], _AGAIN)
            self.size, there = image.shape[:2], 3
            self._image = image
        else:
            driver = RASTERS[path.suffix.lower()]
            with reading(path, _AGAIN), warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                raster = self._raster = rasterio.open(path, driver=driver)
            self.size, there = (raster.height, raster.width), raster.count
            if raster.crs is not None:
                self.place = {"crs": raster.crs, "transform": raster.transform}
            self._has_alpha = ColorInterp.alpha in raster.colorinterp and there != count
            there -= self._has_alpha  # GDAL calls any fourth band alpha: not if it is an input
        self.bands = bands or tuple(range(1, there + 1))
        if len(self.bands) != count or max(self.bands) > there or min(self.bands) < 1:
            chosen = f", of which --bands takes {','.join(map(str, bands))}" if bands else ""
            raise InputError(
                f"{path} has {there} bands{chosen}; this network takes {count}: choose as many "
                "of them with --bands"
            )

    def read(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """What there is of a rectangle, [h, w, bands], and which pixels have data, bool [h, w].

        Raises:
            InputError: it cannot be read.
        """
        if self._image is not None:
            rows = slice(place.top, place.top + place.height)
            part = self._image[rows, place.left : place.left + place.width]
            return part[..., [band - 1 for band in self.bands]], np.ones(part.shape[:2], bool)
        assert self._raster is not None
        height = min(place.height, self.size[0] - place.top)
        width = min(place.width, self.size[1] - place.left)
        window = Window(place.left, place.top, width, height)
        with reading(self.path, _AGAIN):
            image = np.moveaxis(self._raster.read(list(self.bands), window=window), 0, -1)
            return image, self._valid(image, window)

    def _valid(self, image: np.ndarray, window: Window) -> np.ndarray:
        """A pixel without data has the nodata value in all bands, or is outside of the mask."""
        assert self._raster is not None
        valid = np.zeros(image.shape[:2], dtype=bool)
        for index, band in enumerate(self.bands):
            nodata, values = self._raster.nodatavals[band - 1], image[..., index]
            if nodata is None:
                valid[:] = True
            else:
                valid |= ~np.isnan(values) if np.isnan(nodata) else values != nodata
        flags = self._raster.mask_flag_enums[0]
        if MaskFlags.per_dataset in flags and (MaskFlags.alpha not in flags or self._has_alpha):
            valid &= self._raster.read_masks(self.bands[0], window=window) > 0
        return valid

    def close(self) -> None:
        if self._raster is not None:
            self._raster.close()


def predict_map(
    network: Network,
    path: Path,
    out: Path,
    options: Options,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Writes the maps of an image or raster; returns what was written.

    Args:
        network: a segmentation.
        path: of the image.
        out: folder to write into.
        options: how.
        say: is told how the image is cut.
        progress: is told the tiles that are done, and all.

    Raises:
        InputError: the image cannot be read or does not fit, or a map exists.
    """
    source = Source(path, options.bands, len(network.bands))
    with contextlib.closing(source):
        name = path.stem
        ending = ".png" if source.picture else ".tif"
        final = {"classes": out / f"{name}_classes{ending}"}
        if options.probabilities:
            final["probabilities"] = out / f"{name}_probabilities.tif"
        for target in final.values():
            if target.exists() and not options.overwrite:
                raise InputError(f"{target} exists; write it anew with --overwrite")
        first, _ = source.read(Place(0, 0, 1, 1))
        network.prepare(first, options.scale)  # its bands and dtype fit
        choice = choose_tiling(network, source.size, options.halo, options.core, options.memory)
        say(f"{path}: {choice.message}")
        parts = out / f".{name}.parts"
        _enter(parts, network, source, options, choice.tiling)
        with rasterio.Env(GDAL_CACHEMAX=256, GDAL_TIFF_INTERNAL_MASK=True):
            bands = choice.tiling.bands
            done = 0
            for wait in (False, True):
                for row, band in enumerate(bands):
                    computed = _do_band(network, source, options, parts, row, band, wait, progress,
                                        (done, len(choice.tiling)))  # fmt: skip
                    if not wait:
                        done += len(band) if computed else 0
            with FileLock(parts.with_suffix(".lock")):
                if parts.exists():  # no other process was first
                    written = _assemble(network, source, options, parts, bands, final)
                    shutil.rmtree(parts)
                    return written
    return list(final.values())


def _enter(parts: Path, network: Network, source: Source, options: Options, tiling: Any) -> None:
    """Makes the folder of parts; what another setting left there is only removed if told."""
    status = source.path.stat()
    weights = hashlib.sha256()
    for value in network.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    plan = json.dumps(
        {
            "file": [str(source.path.resolve()), status.st_size, status.st_mtime_ns],
            "weights": weights.hexdigest(), "norm": repr(network.norm), "bands": source.bands,
            "scale": options.scale, "tiling": repr(tiling), "probabilities": options.probabilities,
        }
    )  # fmt: skip
    parts.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parts.with_suffix(".lock")):
        if (parts / "plan.json").exists() and (parts / "plan.json").read_text() != plan:
            if not options.overwrite:
                raise InputError(
                    f"{parts} has a part of another prediction of {source.path.name}: continue it "
                    "with its own options, or begin anew with --overwrite"
                )
            shutil.rmtree(parts)
        parts.mkdir(exist_ok=True)
        write_atomically(parts / "plan.json", plan)


def _do_band(
    network: Network,
    source: Source,
    options: Options,
    parts: Path,
    row: int,
    band: list[Tile],
    wait: bool,
    progress: Callable[[int, int], None],
    done: tuple[int, int],
) -> bool:
    """Predicts a row of tiles unless it is done; False if another process is at it."""
    target = parts / f"{row:06d}.tif"
    try:
        with FileLock(parts / f"{row:06d}.lock", timeout=-1 if wait else 0):
            if parts.exists() and not target.exists():
                _write_band(network, source, options, target, band, progress, done)
    except Timeout:
        return False
    except FileNotFoundError:  # another process has put the parts together
        return True
    if not wait:
        progress(done[0] + len(band), done[1])
    return True


def _write_band(
    network: Network,
    source: Source,
    options: Options,
    target: Path,
    band: list[Tile],
    progress: Callable[[int, int], None],
    done: tuple[int, int],
) -> None:
    top, height = band[0].core.top, band[0].core.height
    classes = network.cfg.task.num_classes
    profile = {"height": height, "width": source.size[1], **_WRITTEN, "count": 1, "dtype": "uint8"}
    if options.probabilities:
        profile |= {"count": classes, "dtype": "float32"}
    temporary = target.with_suffix(".tmp")
    with _writing(temporary, **profile) as file:
        for number, tile in enumerate(band):
            found = _predict_part(network, source, options, tile)
            core = tile.core
            window = Window(core.left, core.top - top, core.width, core.height)
            file.write(found if found.ndim == 3 else found[None], window=window)
            progress(done[0] + number + 1, done[1])
    os.replace(temporary, target)


def _predict_part(network: Network, source: Source, options: Options, tile: Tile) -> np.ndarray:
    """Classes or probabilities of a tile's core; without data `NODATA`, or NaN."""
    core = tile.core
    image, valid = source.read(tile.window)
    top, left = core.top - tile.window.top, core.left - tile.window.left
    inside = valid[top : top + core.height, left : left + core.width]
    if not inside.any():
        shape: tuple[int, ...] = inside.shape
        if options.probabilities:
            return np.full((network.cfg.task.num_classes, *shape), np.nan, np.float32)
        return np.full(shape, NODATA, np.uint8)
    mask = None if valid.all() else valid
    found = predict_tile(network, image, tile, options.probabilities, options.scale, mask)
    found[..., ~inside] = np.nan if options.probabilities else NODATA
    return found


@contextlib.contextmanager
def _writing(path: Path, **profile: Any) -> Iterator[rasterio.io.DatasetWriter]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path, "w", **profile) as file:
                yield file
        except (OSError, rasterio.errors.RasterioError) as error:
            raise InputError(f"{path} cannot be written ({error}); is the disk full?") from None


def _assemble(
    network: Network,
    source: Source,
    options: Options,
    parts: Path,
    bands: list[list[Tile]],
    final: dict[str, Path],
) -> list[Path]:
    """Puts the rows of tiles together, under a temporary name until all is written."""
    made = {what: parts / f"{what}.tif" for what in final}
    common = {"height": source.size[0], "width": source.size[1], **_WRITTEN, **source.place}
    with contextlib.ExitStack() as stack:
        classes = stack.enter_context(
            _writing(made["classes"], **common, count=1, dtype="uint8", nodata=NODATA)
        )
        classes.write_colormap(1, _colors(network))
        shares = None
        if options.probabilities:
            count = network.cfg.task.num_classes
            profile = common | {"count": count, "dtype": "float32", "nodata": np.nan}
            shares = stack.enter_context(_writing(made["probabilities"], **profile))
            for index, name in enumerate(network.class_names, start=1):
                shares.set_band_description(index, name)
        for row, band in enumerate(bands):
            _copy_band(parts / f"{row:06d}.tif", band, classes, shares)
    written = []
    for what, target in final.items():
        ready = made[what]
        if source.picture and what == "classes":
            written += _as_pictures(network, ready, target)
            continue
        if options.cog:
            cog = ready.with_suffix(".cog.tif")
            rasterio.shutil.copy(
                ready, cog, driver="COG", compress="deflate", bigtiff="IF_SAFER",
                overview_resampling="nearest" if what == "classes" else "average",
            )  # fmt: skip
            ready = cog
        os.replace(ready, target)
        written.append(target)
    return written


def _copy_band(path: Path, band: list[Tile], classes: Any, shares: Any) -> None:
    with reading(path, "begin anew with --overwrite"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as part:
            for tile in band:
                core = tile.core
                window = Window(core.left, 0, core.width, core.height)
                found = part.read(window=window)
                place = Window(core.left, core.top, core.width, core.height)
                if shares is not None:
                    shares.write(found, window=place)
                    missing = np.isnan(found[0])
                    found = found.argmax(0).astype(np.uint8)[None]
                    found[:, missing] = NODATA
                classes.write(found, window=place)


def _colors(network: Network) -> dict[int, tuple[int, ...]]:
    colors = (network.facts.classes or {}).values()
    table: dict[int, tuple[int, ...]] = {i: (*color, 255) for i, color in enumerate(colors)}
    return table | {NODATA: (0, 0, 0, 0)}


def _as_pictures(network: Network, ready: Path, target: Path) -> list[Path]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(ready) as file:
            classes = file.read(1)
    color = target.with_name(target.name.replace("_classes", "_color"))
    pictures = {target: classes, color: colorize(classes, network.facts)}
    for path, values in pictures.items():
        temporary = ready.with_name(path.name)
        Image.fromarray(values).save(temporary)
        os.replace(temporary, path)
    return list(pictures)

"""Maps of images and rasters of any size: read and written by windows, stopped and continued.

A row of tiles is the unit of work. A process claims it by a lock and writes it as a file in
``.NAME.parts``, which takes its name when it is whole. Once all rows are there one process puts
them together and renames the results. ``NAME_classes`` comes last: once it is there, all is
finished. Every result keeps a digest of all it follows from, so that the same command knows it.
"""

import contextlib
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from tasks.data.files import reading, reason_of
from tasks.data.plots import colorize
from tasks.data.tiles import Place
from tasks.errors import InputError, told_of
from tasks.prediction.network import Network, predict_tile
from tasks.prediction.parts import Parts, entered
from tasks.prediction.source import Source
from tasks.prediction.tiling import DEFAULT_MEMORY, Tile, Tiling, choose_tiling

NODATA = 255
MARK = "prediction"  # name of a result's digest in its file
_BLOCK = {"tiled": True, "blockxsize": 512, "blockysize": 512}
_WRITTEN: dict[str, Any] = {
    "driver": "GTiff", "compress": "deflate", "bigtiff": "IF_SAFER", "num_threads": 1, **_BLOCK,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The options of `scripts/predict.py`; see there."""

    halo: int | None = None
    core: int | None = None
    memory: float = DEFAULT_MEMORY
    bands: tuple[int, ...] | None = None
    scale: float | None = None
    probabilities: bool = False
    cog: bool = False
    overwrite: bool = False
    blend: bool = False


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
        say: is called with a sentence on how the image is cut.
        progress: is called with the number of tiles done, and of all tiles.

    Raises:
        InputError: the image cannot be read or does not fit, or a map exists.
    """
    if any("\udc80" <= sign <= "\udcff" for sign in f"{path}{out}"):  # bytes that are no text
        raise InputError(f"{path}: GDAL takes UTF-8 names alone; rename it, or set a UTF-8 locale")
    source = Source(path, options.bands, len(network.bands))
    with contextlib.closing(source):
        first, _ = source.read(Place(0, 0, 1, 1))
        network.prepare(first, options.scale)  # its bands and dtype fit
        choice = choose_tiling(
            network, source.size, options.halo, options.core, options.memory,
            blend=options.blend, masked=source.may_lack_data,
        )  # fmt: skip
        options = replace(options, blend=choice.tiling.blend)  # not where it is exact without
        crs = source.place.get("crs")
        if crs is not None and network.crs and crs.to_string() not in network.crs:
            say(
                f"warning: {path} is in {crs.to_string()}, and the training tiles were in "
                f"{', '.join(network.crs)}: pixels may have another size or direction"
            )
        plan = _plan(network, source, options, choice.tiling)
        mark = hashlib.sha256(plan.encode()).hexdigest()
        final = _targets(source, out, options)
        stale = _stale(path.stem, out, final)
        for target in (*final.values(), *stale):
            known = _mark_of(target) if target.exists() else mark
            if known != mark and not options.overwrite:
                raise InputError(f"{target} exists; write it anew with --overwrite")
            if known is None:
                raise InputError(
                    f"{target} is no map of a prediction: move it, or give another --out"
                )
        with (
            entered(out / f".{path.stem}.parts", plan, options.overwrite) as parts,
            rasterio.Env(GDAL_CACHEMAX=256, GDAL_TIFF_INTERNAL_MASK=True),
        ):
            made = not options.overwrite and all(_mark_of(p) == mark for p in final.values())
            say(f"{path}: {'there already, by the same command' if made else choice.message}")
            if not made:
                soft = replace(options, probabilities=options.probabilities or options.blend)
                _predict_parts(network, source, soft, parts, choice.tiling, progress)
            with parts.finishing() as first_here:
                if first_here:
                    if not made:
                        _assemble(
                            network, source, options, parts, choice.tiling, final, stale, mark
                        )
                    parts.remove()
    return list(final.values())


def _targets(source: Source, out: Path, options: Options) -> dict[str, Path]:
    """The files to write, in the order in which they are listed."""
    name, ending = source.path.stem, ".png" if source.picture else ".tif"
    final = {"classes": out / f"{name}_classes{ending}"}
    if source.picture:
        final["color"] = out / f"{name}_color.png"
    if options.probabilities:
        final["probabilities"] = out / f"{name}_probabilities.tif"
    return final


def _stale(name: str, out: Path, final: dict[str, Path]) -> list[Path]:
    """Probabilities of an earlier prediction, which do not belong to the new classes."""
    path = out / f"{name}_probabilities.tif"
    return [path] if "probabilities" not in final and _mark_of(path) is not None else []


def _plan(network: Network, source: Source, options: Options, tiling: Tiling) -> str:
    """Everything that decides the results."""
    status = source.path.stat()
    weights = hashlib.sha256()
    for value in network.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    return json.dumps(
        {
            "file": [str(source.path.resolve()), status.st_size, status.st_mtime_ns],
            "weights": weights.hexdigest(), "norm": repr(network.norm), "bands": source.bands,
            "scale": options.scale, "tiling": repr(tiling), "probabilities": options.probabilities,
            "cog": options.cog,
        }
    )  # fmt: skip


def _mark_of(path: Path) -> str | None:
    """The digest kept in a result; None if the file is no result or does not exist."""
    from PIL import Image

    with contextlib.suppress(Exception), warnings.catch_warnings():  # decoders raise anything
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if path.suffix == ".png":
            with Image.open(path) as picture:
                return picture.info.get(MARK)
        with rasterio.open(path) as file:
            return file.tags().get(MARK)
    return None


def _predict_parts(
    network: Network,
    source: Source,
    options: Options,
    parts: Parts,
    tiling: Tiling,
    progress: Callable[[int, int], None],
) -> None:
    """Predicts all rows of tiles; waits for those that other processes have begun."""
    done, bands = 0, list(enumerate(_deciding(tiling)))
    across = tiling.weights(1) if tiling.blend else None
    for wait in (False, True):
        left = []
        for row, band in bands:
            with parts.claimed(row, wait) as mine:
                if mine:

                    def count(more: int, before: int = done) -> None:
                        progress(before + more, len(tiling))

                    _write_band(network, source, options, parts.path(row), band, across, count)
            if mine is None:
                left.append((row, band))
            else:
                done += len(band)
                progress(done, len(tiling))
        bands = left


def _deciding(tiling: Tiling) -> list[list[Tile]]:
    """Rows of tiles, each tile with its predicted part: its core, or for blending all of it."""
    if not tiling.blend:
        return tiling.bands
    return [[tile.whole(tiling.size) for tile in band] for band in tiling.bands]


def _write_band(
    network: Network,
    source: Source,
    options: Options,
    target: Path,
    band: list[Tile],
    across: list[np.ndarray] | None,
    count: Callable[[int], None],
) -> None:
    height = band[0].core.height
    classes = network.cfg.task.num_classes
    profile = {"height": height, "width": source.size[1], **_WRITTEN, "count": 1, "dtype": "uint8"}
    if options.probabilities:
        profile |= {"count": classes, "dtype": "float32"}
    temporary = target.with_suffix(".tmp")
    held, left = np.zeros((profile["count"], height, 0), profile["dtype"]), 0
    with _writing(temporary, **profile) as file:
        for number, tile in enumerate(band):
            found = _predict_part(network, source, options, tile)
            if found.ndim == 2:
                found = found[None]
            if across is not None:
                found = found * across[number].astype(np.float32)
            core = tile.core
            missing = core.left + core.width - left - held.shape[2]
            held = np.pad(held, ((0, 0), (0, 0), (0, max(0, missing))))
            held[..., core.left - left : core.left - left + core.width] += found
            # Columns before the next tile are done.
            stop = band[number + 1].core.left if number + 1 < len(band) else source.size[1]
            if stop > left:
                window = Window(left, 0, stop - left, height)
                file.write(held[..., : stop - left], window=window)
                held, left = held[..., stop - left :], stop
            count(number + 1)
    os.replace(temporary, target)


def _predict_part(network: Network, source: Source, options: Options, tile: Tile) -> np.ndarray:
    """Classes or probabilities of a tile's core; `NODATA`, or NaN, where there is no data."""
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


class _Raster:
    """A raster that is written by windows, and knows what was written."""

    def __init__(self, path: Path, file: rasterio.io.DatasetWriter):
        self.path, self.file = path, file
        self._sums: list[tuple[Window, int]] = []

    def write(self, values: np.ndarray, window: Window) -> None:
        with _gdal_writes(self.path):
            self.file.write(values, window=window)
        self._sums.append((window, zlib.crc32(np.ascontiguousarray(values).data)))

    def require_in(self, path: Path) -> None:
        """Raises OSError unless a file has all of it."""
        with rasterio.open(path) as file:
            for window, total in self._sums:
                if zlib.crc32(file.read(window=window).data) != total:
                    raise OSError("a part of it is missing")


@contextlib.contextmanager
def _writing(path: Path, **profile: Any) -> Iterator[_Raster]:
    """A raster to write. It is read again at the end: on a full disk GDAL may close a file that
    lacks a part, without an error.

    Raises:
        InputError: it could not be written.
    """
    try:
        with _gdal_writes(path):
            with rasterio.open(path, "w", **profile) as file:
                yield (raster := _Raster(path, file))
            raster.require_in(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _gdal_writes(path: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            yield
        except (OSError, rasterio.errors.RasterioError, CPLE_BaseError) as error:
            reason = reason_of(error)
            raise InputError(f"{path} cannot be written ({reason}); is the disk full?") from None


def _assemble(
    network: Network,
    source: Source,
    options: Options,
    parts: Parts,
    tiling: Tiling,
    final: dict[str, Path],
    stale: list[Path],
    mark: str,
) -> None:
    """Puts the rows of tiles together, under temporary names until all is written."""
    made = {what: parts.folder / target.name for what, target in final.items()}
    if source.picture:
        made["classes"] = parts.folder / "classes.tif"
    common = {"height": source.size[0], "width": source.size[1], **_WRITTEN, **source.place}
    with contextlib.ExitStack() as stack:
        classes = stack.enter_context(
            _writing(made["classes"], **common, count=1, dtype="uint8", nodata=NODATA)
        )
        classes.file.update_tags(**{MARK: mark})
        classes.file.write_colormap(1, _colors(network))
        shares = None
        if options.probabilities:
            count = network.cfg.task.num_classes
            profile = common | {"count": count, "dtype": "float32", "nodata": np.nan}
            shares = stack.enter_context(_writing(made["probabilities"], **profile))
            shares.file.update_tags(**{MARK: mark})
            for index, name in enumerate(network.class_names, start=1):
                shares.file.set_band_description(index, name)
        bands = _deciding(tiling)
        down = tiling.weights(0) if tiling.blend else [None] * len(bands)
        rows = [
            (parts.path(row), band[0].core.top, band[0].core.height, down[row])
            for row, band in enumerate(bands)
        ]
        for band in tiling.bands:
            core = band[0].core
            holding = [
                row
                for row in rows
                if row[1] < core.top + core.height and core.top < row[1] + row[2]
            ]
            _copy_band(holding, band, classes, shares)
    if source.picture:
        made |= _as_pictures(network, made["classes"], mark)
    if options.cog:
        if not source.picture:
            made["classes"] = _as_cog(classes, "nearest")
        if shares is not None:
            made["probabilities"] = _as_cog(shares, "average")
    with told_of(final["classes"].parent):
        if len(final) > 1 or stale:
            final["classes"].unlink(missing_ok=True)  # a former map does not stand beside new ones
        for path in stale:
            path.unlink()
        for what in reversed(final):
            os.replace(made[what], final[what])


def _as_cog(raster: _Raster, resampling: str) -> Path:
    cog = raster.path.with_suffix(".cog.tif")
    with _gdal_writes(cog):
        rasterio.shutil.copy(
            raster.path, cog, driver="COG", compress="deflate", bigtiff="IF_SAFER",
            overview_resampling=resampling,
        )  # fmt: skip
        raster.require_in(cog)
    return cog


def _copy_band(
    rows: list[tuple[Path, int, int, np.ndarray | None]],
    band: list[Tile],
    classes: Any,
    shares: Any,
) -> None:
    """Copies the cores of a row of tiles out of the parts that hold them.

    Args:
        rows: of each part its file, first row, number of rows, and weights of these if it blends.
        band: the tiles.
        classes: map of classes to write to.
        shares: map of probabilities to write to, or None.
    """
    with (
        reading(rows[0][0], "begin anew with --overwrite"),
        warnings.catch_warnings(),
        contextlib.ExitStack() as stack,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        files = [stack.enter_context(rasterio.open(path)) for path, *_ in rows]
        for tile in band:
            core = tile.core
            found = np.zeros((files[0].count, core.height, core.width), files[0].dtypes[0])
            for file, (_, top, height, weights) in zip(files, rows, strict=True):
                first, last = max(top, core.top), min(top + height, core.top + core.height)
                part = file.read(window=Window(core.left, first - top, core.width, last - first))
                if weights is not None:
                    part = part * weights[first - top : last - top, None].astype(np.float32)
                found[:, first - core.top : last - core.top] += part
            place = Window(core.left, core.top, core.width, core.height)
            if shares is not None:
                shares.write(found, window=place)
            if len(found) > 1:
                missing = np.isnan(found[0])
                found = found.argmax(0).astype(np.uint8)[None]
                found[:, missing] = NODATA
            classes.write(found, window=place)


def _colors(network: Network) -> dict[int, tuple[int, ...]]:
    colors = (network.facts.classes or {}).values()
    table: dict[int, tuple[int, ...]] = {i: (*color, 255) for i, color in enumerate(colors)}
    return table | {NODATA: (0, 0, 0, 0)}


def _as_pictures(network: Network, ready: Path, mark: str) -> dict[str, Path]:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(ready) as file:
            classes = file.read(1)
    information = PngInfo()
    information.add_text(MARK, mark)
    pictures = {}
    for what, values in {"classes": classes, "color": colorize(classes, network.facts)}.items():
        pictures[what] = ready.with_name(f"{what}.png")
        with told_of(pictures[what]):
            Image.fromarray(values).save(pictures[what], pnginfo=information)
    return pictures

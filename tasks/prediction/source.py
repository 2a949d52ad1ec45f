"""Images and rasters to be predicted: which there are, and what they hold, read by windows."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from tasks.data.files import is_leftover, read_rgb, reading, require_file
from tasks.data.tiles import Place
from tasks.errors import InputError

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
RASTERS = {".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT"}
_AGAIN = "get the file again"


def find_images(inputs: list[Path], out: Path | None = None) -> list[Path]:
    """The files among the inputs, and the images in the folders among them.

    Args:
        inputs: files and folders.
        out: where maps will be written: not into one of the folders, whose images they would be.

    Raises:
        InputError: an input does not exist or is of no format that can be read, or two of them
            would have outputs of the same name.
    """
    known = PICTURES | RASTERS
    found: list[Path] = []
    for place in dict.fromkeys(inputs):
        if place.is_dir():
            if out is not None and os.path.realpath(place) == os.path.realpath(out):
                raise InputError(f"--out {out} is a folder of images too: give another one")
            below = sorted(p for p in place.iterdir() if p.suffix.lower() in known)
            found += [p for p in below if not is_leftover(p.name) and p.suffix.lower() != ".vrt"]
        elif not place.exists():
            raise InputError(f"{place} does not exist")
        elif place.suffix.lower() not in known:
            raise InputError(f"{place} is of no format that can be read: {', '.join(known)}")
        else:
            found.append(place)
    once = {os.path.realpath(path): path for path in reversed(found)}
    found = list(once.values())[::-1]
    if not found:
        raise InputError(f"no image in {', '.join(map(str, inputs))}")
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise InputError(
                f"{stems[path.stem]} and {path} would write the same files: predict them into "
                "different folders"
            )
        stems[path.stem] = path
    return found


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
            if raster.crs is not None or not raster.transform.is_identity:
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
        """A rectangle as far as the image has it, [h, w, bands]; where it has data, bool [h, w].

        Raises:
            InputError: it cannot be read.
        """
        if self._image is not None:
            part = self._image[place.slices]
            return part[..., [band - 1 for band in self.bands]], np.ones(part.shape[:2], bool)
        assert self._raster is not None
        there = place.inside(self.size)
        window = Window(there.left, there.top, there.width, there.height)
        with reading(self.path, _AGAIN):
            image = np.moveaxis(self._raster.read(list(self.bands), window=window), 0, -1)
            return image, self._valid(image, window)

    @property
    def may_lack_data(self) -> bool:
        """Whether some pixels may have no data."""
        raster = self._raster
        return raster is not None and (
            any(raster.nodatavals[band - 1] is not None for band in self.bands)
            or self._has_mask
            or any(np.issubdtype(raster.dtypes[band - 1], np.floating) for band in self.bands)
        )

    @property
    def _has_mask(self) -> bool:
        assert self._raster is not None
        flags = self._raster.mask_flag_enums[0]
        return MaskFlags.per_dataset in flags and (MaskFlags.alpha not in flags or self._has_alpha)

    def _valid(self, image: np.ndarray, window: Window) -> np.ndarray:
        """A pixel without data has the nodata value in all bands, is outside of the mask, or has a
        value that is not finite."""
        assert self._raster is not None
        valid = np.zeros(image.shape[:2], dtype=bool)
        for index, band in enumerate(self.bands):
            nodata, values = self._raster.nodatavals[band - 1], image[..., index]
            if nodata is None:
                valid[:] = True
            else:
                valid |= ~np.isnan(values) if np.isnan(nodata) else values != nodata
        if self._has_mask:
            valid &= self._raster.read_masks(self.bands[0], window=window) > 0
        if np.issubdtype(image.dtype, np.floating):
            with np.errstate(over="ignore"):
                valid &= np.isfinite(image.astype(np.float32)).all(-1)
        return valid

    def close(self) -> None:
        if self._raster is not None:
            self._raster.close()

"""Chesapeake land cover, Maryland 2013: files, bands, classes, labels.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import csv
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from tasks.data import Dataset, Sample
from tasks.data.plots import label_figure
from tasks.data.tiles import UNKNOWN, Tile, TileSet, TileWindows, class_table
from tasks.errors import InputError
from tasks.protocol import task_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = 4  # red, green, blue, near-infrared
RELEASE = "md_1m_2013_extended"
TRAIN_IDS = class_table({1: 0, 2: 1, 3: 2, 4: 3, 5: 3, 6: 3}, ignored=(0, 15))
"""Land-cover code to class id: barren, other impervious and roads are one class."""

_CHANNELS, _LABEL_CHANNEL = 29, 8


def open_splits(
    cfg: DictConfig, splits: Sequence[str], root: Path, release: str
) -> list["Chesapeake | TileWindows"]:
    """Patches (``train``, ``val``) and whole tiles (``test``) of the dataset in a folder.

    Tiles come as overlapping windows of ``data.crop`` pixels; a network sees
    ``task.eval_halo * data.scale`` pixels around what it is scored on.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    crop = (int(cfg.data.crop[0]), int(cfg.data.crop[1]))
    halo = round(cfg.task.eval_halo * cfg.data.scale)
    return [
        _open_tiles(root, crop, halo, release)
        if split == "test"
        else Chesapeake(root, split, crop, release)
        for split in splits
    ]


class Chesapeake(Dataset):
    """Aerial images of Maryland, one metre a pixel, with land cover in four classes, as patches.

    Splits: train (50,000 patches of 100 tiles), val (patches of 5 other tiles), test (20 further
    tiles of about 900 million pixels in all, read whole: see `open_splits`).
    Bands: red, green, blue, near-infrared of the National Agriculture Imagery Program (NAIP) in
    0..255. Near-infrared tells plants (bright) from water and sealed ground (dark).
    Classes: water (code 1), forest or tree canopy (2), field or low vegetation (3), impervious
    (barren 4, other 5, road 6); no data (0, 15) is ignored.
    Format: ``md_1m_2013_extended-<split>_patches.csv``, whose column patch_fn lists ``.npz`` files
    with ``arr_0``, float32 [1, 29, 256, 256]: NAIP in the channels 0-3, land cover in 8 (others:
    older NAIP, NLCD, Landsat 8, buildings, not used here). Tiles:
    ``md_1m_2013_extended-test_tiles.csv``, whose columns naip-new_fn and lc_fn list GeoTIFFs of 4
    bands and of 1 band, uint8. Paths in a csv are relative to its folder.
    Licence: Community Data License Agreement, Permissive, version 1.0; see the dataset's site.
    Citation: Robinson et al., "Large Scale High-Resolution Land Cover Mapping with
    Multi-Resolution Data", CVPR 2019.

    Args:
        root: the folder with the csv files.
        split: ``train`` or ``val``.
        size: height and width of every patch in pixels. The protocol trains on whole patches.
        release: what tells data apart whose files have the same names.

    Raises:
        InputError: the csv is missing or malformed, or lists files that are not there, or the
            first patch is not as it should be.
    """

    def __init__(
        self, root: Path | str, split: str, size: tuple[int, int], release: str = "chesapeake"
    ):
        self.root, self.split, self.size = Path(root), split, tuple(size)
        self.class_names = task_facts("chesapeake").class_names
        rows = _read_csv(self.root / f"{RELEASE}-{split}_patches.csv", ["patch_fn"])
        self._names = [name for (name,) in rows]
        self.identity = _identity(release, split, self._names)
        self[0]  # a wrong kind of data is said before a model is built

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """One patch: ``image`` uint8 [H, W, 4], ``label`` uint8 [H, W] of class ids, ``name``.

        NAIP is 8-bit imagery that the files hold as float32 only because all channels of an array
        share one type: uint8 loses nothing and is a quarter of the size.

        Raises:
            InputError: the file cannot be read, has another shape or size, or holds values that are
                no bytes or no land-cover codes.
        """
        path = self.root / self._names[index]
        channels = _read_channels(path, _LABEL_CHANNEL + 1)
        if channels.shape[1:] != self.size:
            raise InputError(
                f"{path} is {channels.shape[1]} x {channels.shape[2]} pixels but data.crop is "
                f"{self.size[0]} x {self.size[1]}: whole patches are trained on, so set "
                f"data.crop=[{channels.shape[1]},{channels.shape[2]}]"
            )
        codes = _as_bytes(path, channels[_LABEL_CHANNEL], "land cover, channel 8")
        label = TRAIN_IDS[codes]
        if (label == UNKNOWN).any():
            raise InputError(
                f"{path} has the land-cover code {codes[label == UNKNOWN][0]} in channel 8; "
                "expected 0 to 6 or 15"
            )
        image = _as_bytes(path, np.moveaxis(channels[:BANDS], 0, -1), "NAIP, channels 0 to 3")
        return {"image": np.ascontiguousarray(image), "label": label, "name": path.stem}

    def plot(self, sample: Sample, prediction: np.ndarray | None = None) -> "Figure":
        return label_figure(sample, prediction, task_facts("chesapeake"))


def _open_tiles(root: Path, size: tuple[int, int], halo: int, release: str) -> TileWindows:
    rows = _read_csv(root / f"{RELEASE}-test_tiles.csv", ["naip-new_fn", "lc_fn"])
    tiles = [
        Tile(Path(image).stem.removesuffix("_naip-new"), root / image, root / label)
        for image, label in rows
    ]
    identity = _identity(release, "test", [image for image, _ in rows])
    tile_set = TileSet(tiles, BANDS, TRAIN_IDS, identity, task_facts("chesapeake"))
    return TileWindows(tile_set, size, halo)


def _identity(release: str, split: str, names: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    return f"{release}/{split}/{digest[:12]}"


def _read_csv(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The named columns of a csv, file names that are all there.

    Raises:
        InputError: it is not there, cannot be read, lacks a column, is empty or points nowhere.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in columns:
                if column not in (reader.fieldnames or ()):
                    raise InputError(
                        f"{path} has no column {column} in its first line; unpack md_1m_2013.zip "
                        "again"
                    )
            lines = [(reader.line_num, [row[c] or "" for c in columns]) for row in reader]
    except FileNotFoundError:
        raise InputError(
            f"Chesapeake land cover not found: no {path.name} in {path.parent}\n"
            "  Unpack the patches and test tiles of Maryland 2013 (md_1m_2013.zip) from\n"
            f"  https://lila.science/datasets/chesapeakelandcover into {path.parent},\n"
            "  or say where the csv files are with data.root=/path/to/chesapeake,\n"
            "  or train on the generated miniature: python train.py task=chesapeake data=mini"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack md_1m_2013.zip again") from None
    if not lines:
        raise InputError(f"{path} lists no files; unpack md_1m_2013.zip again")
    _check_files(path, lines)
    return [names for _, names in lines]


def _check_files(path: Path, lines: Sequence[tuple[int, list[str]]]) -> None:
    """Raise InputError if a file that a csv lists is not there; one look at each folder."""
    root = os.path.abspath(path.parent)
    listed = [
        (line, name and os.path.normpath(os.path.join(root, name)))
        for line, names in lines
        for name in names
    ]
    folders = {os.path.dirname(file) for _, file in listed if file}
    present = {entry.path for f in folders if os.path.isdir(f) for entry in os.scandir(f)}
    absent = [(line, file) for line, file in listed if file not in present]
    if absent:
        line, file = absent[0]
        what = f"lists {file}, which is not there" if file else "lacks a file name"
        raise InputError(
            f"{path}, line {line}, {what} ({len(absent)} of {len(listed)} files are missing); "
            "unpack md_1m_2013.zip again, beside the csv"
        )


def _read_channels(path: Path, count: int) -> np.ndarray:
    """The first channels of a patch, float32 [count, H, W].

    The member is decompressed only as far as they reach: 9 of 29 channels in a third of the time
    of `numpy.load`.

    Raises:
        InputError: the file cannot be read, has no ``arr_0``, or it is not float32 [1, 29, H, W].
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            np.lib.format.read_magic(member)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(member)
            if len(shape) != 4 or shape[:2] != (1, _CHANNELS) or dtype != np.float32 or by_column:
                raise InputError(
                    f"{path} holds {dtype} {list(shape)} as arr_0; expected float32 "
                    f"[1, {_CHANNELS}, height, width] in C order"
                )
            values = member.read(4 * count * shape[2] * shape[3])
            return np.frombuffer(values, np.float32).reshape(count, *shape[2:])
    except KeyError:
        raise InputError(f"{path} has no array arr_0; it is no patch of this dataset") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); unpack md_1m_2013.zip again") from None


def _as_bytes(path: Path, values: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN and what does not fit: found below
        converted = values.astype(np.uint8)
    if (converted != values).any():
        wrong = values[converted != values][0]
        raise InputError(
            f"{path} has the value {wrong:g} ({what}); expected whole numbers 0 to 255"
        )
    return converted

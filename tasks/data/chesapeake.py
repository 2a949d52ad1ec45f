"""Chesapeake land cover, Maryland 2013: files, bands, classes, labels.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import csv
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from tasks.data import Dataset, Sample
from tasks.data.files import (
    local_name,
    names_digest,
    open_file,
    read_text,
    reading,
    require_file,
    translated,
)
from tasks.data.plots import label_figure
from tasks.data.tiles import UNKNOWN, Tile, TileSet, TileWindows, class_table, scored_windows
from tasks.errors import InputError
from tasks.protocol import task_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = 4  # red, green, blue, near-infrared
RELEASE = "md_1m_2013_extended"
TRAIN_IDS = class_table({1: 0, 2: 1, 3: 2, 4: 3, 5: 3, 6: 3}, ignored=(0, 15))
"""Land-cover code to class id: barren, other impervious and roads are one class."""

_CHANNELS, _LABEL_CHANNEL = 29, 8
_AGAIN = "unpack md_1m_2013.zip again"
_CHUNK = 2**20


def open_splits(
    cfg: DictConfig, splits: Sequence[str], root: Path, release: str
) -> list["Chesapeake | TileWindows"]:
    """Patches (``train``, ``val``) and whole tiles (``test``) of the dataset in a folder.

    Tiles come as overlapping windows, see `scored_windows`.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    crop = (int(cfg.data.crop[0]), int(cfg.data.crop[1]))
    return [
        _open_tiles(cfg, root, release)
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
        self.root, self.split, self.size = Path(root), split, (size[0], size[1])
        self.class_names = task_facts("chesapeake").class_names
        rows = _read_csv(self.root / f"{RELEASE}-{split}_patches.csv", ["patch_fn"])
        self._names = [name for (name,) in rows]
        self._verified: dict[int, tuple[int, int]] = {}  # time and size of the file then
        self.identity = _identity(release, split, self._names)
        self[0]  # a wrong kind of data is said before a model is built

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """One patch: ``image`` uint8 [H, W, 4], ``label`` uint8 [H, W] of class ids, ``name``.

        NAIP is 8-bit imagery that the files hold as float32 only because all channels of an array
        share one type: uint8 loses nothing and is a quarter of the size.

        A process reads a file whole the first time, so that its checksum is compared, and after
        that only as far as the channels that are used, as long as the file stays the same.

        Raises:
            InputError: the file cannot be read, has another shape or size, or holds values that are
                no bytes or no land-cover codes.
        """
        path = self.root / self._names[index]
        status = require_file(path, _AGAIN)
        version = (status.st_mtime_ns, status.st_size)
        whole = self._verified.get(index) != version
        channels = _read_channels(path, _LABEL_CHANNEL + 1, self.size, whole)
        self._verified[index] = version
        codes = _as_bytes(path, channels[_LABEL_CHANNEL], "land cover, channel 8")
        label = translated(codes, TRAIN_IDS)
        if (label == UNKNOWN).any():
            raise InputError(
                f"{path} has the land-cover code {codes[label == UNKNOWN][0]} in channel 8; "
                "expected 0 to 6 or 15"
            )
        image = _as_bytes(path, np.moveaxis(channels[:BANDS], 0, -1), "NAIP, channels 0 to 3")
        return {"image": np.ascontiguousarray(image), "label": label, "name": path.stem}

    def plot(self, sample: Sample, prediction: np.ndarray | None = None) -> "Figure":
        return label_figure(sample, prediction, task_facts("chesapeake"))


def _open_tiles(cfg: DictConfig, root: Path, release: str) -> TileWindows:
    rows = _read_csv(root / f"{RELEASE}-test_tiles.csv", ["naip-new_fn", "lc_fn"])
    tiles = [
        Tile(Path(image).stem.removesuffix("_naip-new"), root / image, root / label)
        for image, label in rows
    ]
    identity = _identity(release, "test", [image for image, _ in rows])
    tile_set = TileSet(tiles, BANDS, TRAIN_IDS, identity, task_facts("chesapeake"))
    return scored_windows(cfg, tile_set)


def _identity(release: str, split: str, names: Sequence[str]) -> str:
    return f"{release}/{split}/{names_digest(sorted(names))}"


def _read_csv(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The named columns of a csv, file names that are all there.

    Raises:
        InputError: it is not there, cannot be read, lacks a column, is empty or points nowhere.
    """
    if not os.path.lexists(path):
        raise InputError(
            f"Chesapeake land cover not found: no {path.name} in {path.parent}\n"
            "  Unpack the patches and test tiles of Maryland 2013 (md_1m_2013.zip) from\n"
            f"  https://lila.science/datasets/chesapeakelandcover into {path.parent},\n"
            "  or say where the csv files are with data.root=/path/to/chesapeake,\n"
            "  or train on the generated miniature: python train.py task=chesapeake data=mini"
        )
    reader = csv.DictReader(read_text(path, _AGAIN))
    with reading(path, _AGAIN):
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise InputError(f"{path} has no column {column} in its first line; {_AGAIN}")
        lines = [(reader.line_num, [local_name(row[c] or "") for c in columns]) for row in reader]
    if not lines:
        raise InputError(f"{path} lists no files; {_AGAIN}")
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
    with reading(path.parent, _AGAIN):
        present = {entry.path for f in folders if os.path.isdir(f) for entry in os.scandir(f)}
    absent = [(line, file) for line, file in listed if file not in present]
    if absent:
        line, file = absent[0]
        what = f"lists {file}, which is not there" if file else "lacks a file name"
        raise InputError(
            f"{path}, line {line}, {what} ({len(absent)} of {len(listed)} files are missing); "
            "unpack md_1m_2013.zip again, beside the csv"
        )


def _read_channels(path: Path, count: int, size: tuple[int, int], whole: bool) -> np.ndarray:
    """The first channels of a patch, float32 [count, H, W].

    Without ``whole`` the member is decompressed only as far as they reach, 9 of 29 channels. Its
    checksum then stays unseen: it belongs to all of it.

    Raises:
        InputError: the file cannot be read, has no ``arr_0``, it is not float32 [1, 29, H, W] of
            the size, or, if ``whole``, the checksum does not fit.
    """
    with open_file(path, _AGAIN) as file, reading(path, _AGAIN), zipfile.ZipFile(file) as archive:
        if "arr_0.npy" not in archive.namelist():
            raise InputError(f"{path} has no array arr_0; it is no patch of this dataset")
        info = archive.getinfo("arr_0.npy")
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise ValueError("it is encrypted or compressed in another way than numpy's")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version != (1, 0):
                raise ValueError(f"arr_0 is of version {version} of numpy's format, not (1, 0)")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(member)
            if len(shape) != 4 or shape[:2] != (1, _CHANNELS) or dtype != np.float32 or by_column:
                raise InputError(
                    f"{path} holds {dtype} {list(shape)} as arr_0; expected float32 "
                    f"[1, {_CHANNELS}, height, width] in C order"
                )
            if shape[2:] != size:  # before anything is decompressed
                raise InputError(
                    f"{path} is {shape[2]} x {shape[3]} pixels but data.crop is {size[0]} x "
                    f"{size[1]}: whole patches are trained on, so set "
                    f"data.crop=[{shape[2]},{shape[3]}]"
                )
            plane = 4 * size[0] * size[1]
            if info.file_size != member.tell() + _CHANNELS * plane:
                raise ValueError(f"arr_0 has {info.file_size:,} bytes, not those of its shape")
            values = member.read(count * plane)
            while whole and member.read(_CHUNK):
                pass  # the checksum is compared at the end
            return np.frombuffer(values, np.float32).reshape(count, *size)


def _as_bytes(path: Path, values: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN and what does not fit: found below
        converted = values.astype(np.uint8)
    if (converted != values).any():
        wrong = values[converted != values][0]
        raise InputError(
            f"{path} has the value {wrong:g} ({what}); expected whole numbers 0 to 255"
        )
    return converted

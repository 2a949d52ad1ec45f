"""INRIA Aerial Image Labeling: files, cities, splits.

No torch here: a dataset gives numpy arrays, and `tasks.data.loading` makes batches of them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from tasks.data.files import list_folder, names_digest
from tasks.data.tiles import RandomPatches, Tile, TileSet, TileWindows, class_table, scored_windows
from tasks.errors import InputError
from tasks.protocol import task_facts

ARCHIVE = "AerialImageDataset"
BANDS = 3
NOT_BUILDING, BUILDING = 0, 1
TRAIN_IDS = class_table({0: NOT_BUILDING, 255: BUILDING})
HELD_OUT = 5
"""Tiles 1 to this of each training city are the validation split, as in the dataset's paper."""

_CITY_NAMES = {"sfo": "san_francisco", "tyrol-e": "east_tyrol", "tyrol-w": "west_tyrol"}


def open_splits(
    cfg: DictConfig, splits: Sequence[str], root: Path, release: str
) -> list[RandomPatches | TileWindows]:
    """The splits of the dataset in a folder, or in its sub-folder ``AerialImageDataset``.

    ``train`` is a random patch of ``cfg.data.crop`` at every draw, ``val`` and ``test`` are windows
    that cover all tiles, see `scored_windows`. Only the files' headers are read here.

    Raises:
        InputError: there is no such dataset, or it is not as it should be.
    """
    folder = root / ARCHIVE if (root / ARCHIVE).is_dir() else root
    _require_folders(root, folder, splits)
    size = (int(cfg.data.crop[0]), int(cfg.data.crop[1]))
    opened: list[RandomPatches | TileWindows] = []
    for split in splits:
        tile_set = inria_tiles(folder, split, cfg.data.holdout, release)
        if split == "train":
            opened.append(RandomPatches(tile_set, size, cfg.data.patches_per_epoch))
        else:
            opened.append(scored_windows(cfg, tile_set))
    return opened


def _require_folders(root: Path, folder: Path, splits: Iterable[str]) -> None:
    needed = {"train": ["train/images", "train/gt"], "test": ["test/images"]}
    needed["val"] = needed["train"]
    parts = list(dict.fromkeys(part for split in splits for part in needed[split]))
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        missing = [f"{ARCHIVE}/{part}" for part in missing]
        raise InputError(
            f"INRIA Aerial Image Labeling not found: no folder {' and no folder '.join(missing)} "
            f"in {root}\n"
            "  Get aerialimagelabeling.7z.001 to .005 from\n"
            "  https://project.inria.fr/aerialimagelabeling/ (free), unpack .001 with 7-Zip (it\n"
            f"  reads the others), and the zip file that comes out of it into {root},\n"
            f"  or say where {ARCHIVE} is with data.root=/path/to/inria,\n"
            "  or train on the generated miniature: python train.py task=inria data=mini"
        )


def inria_tiles(
    folder: Path | str, split: str, holdout: bool = False, release: str = "inria"
) -> TileSet:
    """The tiles of one split: aerial images of ten cities with the outlines of buildings.

    Splits: train (5 cities of 36 tiles: austin, chicago, kitsap, tyrol-w, vienna) and test (5 other
    cities of 36 tiles: bellingham, bloomington, innsbruck, sfo, tyrol-e; masks not public). With
    ``holdout``, tiles 1 to 5 of each training city leave train and are val (25 tiles; 155 remain).
    Bands: red, green, blue; 8 bit; 0.3 m a pixel, orthorectified.
    Classes: 0 not building, 1 building.
    Format: ``train/images/<city><n>.tif``, a GeoTIFF of 5000 x 5000 pixels; ``train/gt`` has a mask
    of the same name, size and place for each: one band of 0 and 255 (building); ``test/images`` has
    the images of the test cities. ``test/gt`` is read too where it exists, as in the miniature.
    Licence: none is named; imagery and outlines come from public services of the regions. See
    https://project.inria.fr/aerialimagelabeling/, which asks to be cited.
    Citation: Maggiori, Tarabalka, Charpiat and Alliez, "Can Semantic Labeling Methods Generalize to
    Any City? The Inria Aerial Image Labeling Benchmark", IGARSS 2017.

    Args:
        folder: ``AerialImageDataset``.
        split: ``train``, ``val`` or ``test``.
        holdout: whether tiles 1 to 5 of each training city are kept for val.
        release: what tells data apart whose files have the same names.

    Returns:
        The tiles sorted by city and number; its groups are the split's cities, named as in the
        paper's Table 7.

    Raises:
        InputError: the split is empty, a tile has no mask, a mask no tile, or a name no number.
    """
    if split == "val" and not holdout:
        raise InputError(
            "INRIA has no validation split of its own; data.holdout=true keeps tiles 1 to "
            f"{HELD_OUT} of each training city for it"
        )
    folder = Path(folder) / ("test" if split == "test" else "train")
    images, masks = _tiles_in(folder / "images"), _tiles_in(folder / "gt")
    if split != "test" or (folder / "gt").is_dir():
        _check_pairs(images, masks)
    keys = sorted(images)
    if split != "test" and holdout:
        keys = [key for key in keys if (key[1] <= HELD_OUT) == (split == "val")]
    if not keys:
        wanted = f"no tile <city><n>.tif for {split} in {folder / 'images'}"
        if holdout and images:
            wanted += f" with n {'up to' if split == 'val' else 'above'} {HELD_OUT}"
        raise InputError(f"{wanted}; is the archive unpacked completely?")
    cities = sorted({city for city, _ in keys})
    tiles = [
        Tile(images[key].stem, images[key], masks.get(key), cities.index(key[0])) for key in keys
    ]
    identity = f"{release}/{split}/{names_digest(tile.name for tile in tiles)}"
    groups = [_CITY_NAMES.get(city, city) for city in cities]
    return TileSet(tiles, BANDS, TRAIN_IDS, identity, task_facts("inria"), groups)


def _tiles_in(folder: Path) -> dict[tuple[str, int], Path]:
    """The tiles of a folder by city and number; none if there is no such folder."""
    tiles: dict[tuple[str, int], Path] = {}
    if not folder.is_dir():
        return tiles
    for entry in list_folder(folder, "unpack the archive again"):
        path = Path(entry.path)
        if path.suffix != ".tif":
            continue
        name = re.fullmatch(r"(.*\D)(\d+)", path.stem)
        if name is None:
            raise InputError(
                f"{path} is no tile: expected a city and a number, such as austin1.tif; "
                "move it elsewhere"
            )
        tiles[name[1], int(name[2])] = path
    return tiles


def _check_pairs(images: dict[tuple[str, int], Path], masks: dict[tuple[str, int], Path]) -> None:
    for found, other, what, where in (
        (images, masks, "mask", "gt"),
        (masks, images, "image", "images"),
    ):
        for key in sorted(found.keys() - other.keys()):
            path = found[key]
            raise InputError(
                f"{path} has no {what}: expected {path.parents[1] / where / path.name}; unpack the "
                "archive again"
            )

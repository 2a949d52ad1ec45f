"""The annotations of COCO's format: read once and checked as a whole, before anything uses them.

pycocotools believes what it is given: run lengths that do not fill the mask give whatever the
memory held, and a polygon of four numbers is taken for a box.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from tasks.data.files import list_folder, local_name, read_bytes, reading
from tasks.errors import InputError

AGAIN = "unpack annotations_trainval2017.zip again"
_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}
_LARGEST_ID = 2**53  # pycocotools keeps ids as float64
_NUMBERS = {int, float}


def read_annotations(path: Path) -> tuple[dict, str]:
    """The content of an ``instances_*.json``, checked, and a digest of its bytes.

    Raises:
        InputError: it cannot be read, or an entry is not as COCO's format demands.
    """
    raw = read_bytes(path, AGAIN)
    with reading(path, AGAIN):
        try:
            content = json.loads(raw, parse_constant=_refuse, object_pairs_hook=_unique)
        except RecursionError:
            raise ValueError("its brackets are nested too deep") from None
    for section in _ONE:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise InputError(
                f"{path} has no list of {section!r}: is it an instances_*2017.json of "
                "annotations_trainval2017.zip?"
            )
    try:
        _check(content)
    except _Problem as problem:
        raise InputError(f"{path}: {problem}; mend the file, or unpack it again") from None
    return content, hashlib.sha256(raw).hexdigest()[:12]


def check_files(images: list[dict], folder: Path, json_path: Path) -> None:
    """Compares the listed file names with the folder's; one look at each sub-folder.

    Raises:
        InputError: an image is missing.
    """
    remedy = f"unpack {folder.name}.zip completely"
    names = {local_name(image["file_name"]): image for image in images}
    present: set[str] = set()
    for parent in {os.path.dirname(name) for name in names}:
        if (folder / parent).is_dir() or not parent:
            found = list_folder(folder / parent, remedy)
            present.update(os.path.join(parent, entry.name) for entry in found)
    missing = [image for name, image in names.items() if name not in present]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(images)} images of {json_path} are missing, first "
            f"{folder / missing[0]['file_name']} (image id {missing[0]['id']}); {remedy}"
        )


class _Problem(Exception):
    pass


def _refuse(constant: str) -> None:
    raise ValueError(f"it has the number {constant}, which JSON does not know")


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in entry if keys.count(key) > 1)
        raise ValueError(f"an entry has {double!r} twice")
    return entry


def _check(content: dict) -> None:
    images = _entries(content, "images", _image_problem)
    categories = _entries(content, "categories", _category_problem)

    def annotation_problem(annotation: dict) -> str | None:
        image = images.get(_hashable(annotation["image_id"]))
        if image is None:
            return f"has image_id {annotation['image_id']}, which 'images' does not list"
        if _hashable(annotation["category_id"]) not in categories:
            return f"has category_id {annotation['category_id']}, which 'categories' does not list"
        return _object_problem(annotation, image)

    if 0 in _entries(content, "annotations", annotation_problem):
        raise _Problem("annotation id 0: pycocotools takes id 0 for no match; number from 1")


_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd"),
    "categories": ("id", "name"),
}


def _entries(content: dict, section: str, problem_of: Callable[[dict], str | None]) -> dict:
    """The entries of a section by id."""
    known: dict[int, dict] = {}
    keys = _KEYS[section]
    for entry in content[section]:
        if type(entry) is not dict:
            raise _Problem(f"{section!r} has an entry that is no object: {_short(entry)}")
        number = entry.get("id")
        for key in keys:
            if key not in entry:
                raise _Problem(f"id {_short(number)} of {section!r} has no {key!r}")
        if type(number) is not int or not 0 <= number < _LARGEST_ID:
            raise _Problem(f"{section!r} has the id {_short(number)}; expected a whole number")
        if number in known:
            raise _Problem(f"id {number} occurs twice in {section!r}")
        known[number] = entry
        if problem := problem_of(entry):
            raise _Problem(f"{_ONE[section]} id {number} {problem}")
    return known


def _image_problem(image: dict) -> str | None:
    height, width, name = image["height"], image["width"], image["file_name"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        return f"has the size {_short(height)} x {_short(width)}; expected whole numbers from 1"
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if height * width > limit:
        return f"has the size {_short(height)} x {_short(width)}, more than {limit:,} pixels"
    if type(name) is not str or not name or "\0" in name or not _is_utf8(name):
        return f"has the file_name {_short(name)}; expected a file name"
    if name != os.path.normpath(name) or PurePath(name).is_absolute() or name.startswith(".."):
        return f"has the file_name {_short(name)}, which is not below the image folder"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _category_problem(category: dict) -> str | None:
    name = category["name"]
    if type(name) is not str or not name.strip() or not name.isprintable():
        return f"has the name {_short(name)}; expected a text"
    return None


def _object_problem(annotation: dict, image: dict) -> str | None:
    """What is wrong with a box, an area, a crowd flag or a mask."""
    reach = max(image["height"], image["width"])
    box, area, crowd = annotation["bbox"], annotation["area"], annotation["iscrowd"]
    if type(box) is not list or len(box) != 4 or not _within(box, reach) or min(box[2:]) < 0:
        return (
            f"has the bbox {_short(box)}; expected [x, y, width, height] in pixels, not further "
            "outside the image than it is large"
        )
    if type(area) not in _NUMBERS or not 0 <= area <= 9 * reach * reach:
        return f"has the area {_short(area)}; expected a number of pixels"
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        return f"has iscrowd {_short(crowd)}; expected 0 or 1"
    return _mask_problem(annotation["segmentation"], image, reach)


def _within(numbers: list, reach: int) -> bool:
    """Whether all are numbers no further outside an image than it is large; not NaN either."""
    return (
        set(map(type, numbers)) <= _NUMBERS and -reach <= min(numbers) and max(numbers) <= 2 * reach
    )


def _mask_problem(segmentation: Any, image: dict, reach: int) -> str | None:
    if type(segmentation) is list:
        for polygon in segmentation:
            if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
                return (
                    f"has the polygon {_short(polygon)}; expected x, y, x, y, ... of at least "
                    "three points"
                )
            if not _within(polygon, reach):
                return (
                    "has a polygon with something that is no number, or further outside the "
                    "image than it is large"
                )
        return None if segmentation else "has an empty segmentation"
    size = [image["height"], image["width"]]
    if type(segmentation) is not dict or segmentation.get("size") != size:
        return f"has a segmentation that is neither polygons nor run lengths of size {size}"
    if set(map(type, segmentation["size"])) != {int}:
        return f"has run lengths of the size {_short(segmentation['size'])}"
    counts = segmentation.get("counts")
    runs = _decoded_runs(counts) if type(counts) is str else counts
    if type(runs) is not list or not set(map(type, runs)) <= {int} or min(runs, default=0) < 0:
        return "has run lengths that are no list of whole numbers, and no text of COCO's"
    if sum(runs) != size[0] * size[1]:
        return f"has run lengths of {_short(sum(runs))} pixels; its image has {size[0] * size[1]}"
    return None


_RUNS = re.compile(r"(?:[P-o]{0,6}[0-O])*")


def _decoded_runs(text: str) -> list[int] | None:
    """The run lengths of COCO's compressed form, or None where it is none.

    Each is a whole number in characters of 5 bits, the lowest first, from "0" on; bit 5 says that
    more follow, the highest bit is the sign. From the fourth on, it is the difference to the one
    two places before.
    """
    if not _RUNS.fullmatch(text):
        return None
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if code < 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


def _hashable(value: Any) -> int | None:
    return value if type(value) is int else None


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."

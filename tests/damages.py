"""Damages to files, drawn at random: `tests/fuzz.py` asks what the readers make of them."""

import csv
import io
import json
import math
import os
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from rasterio.io import MemoryFile
from test_damaged_data import be_fifo, be_folder, encoded, link_to, marked, npy, png, zipped
from test_records import BOMB, huge

from tasks.schema import RULES


class Damage(NamedTuple):
    """What is done to a file: its kind, and the new bytes or what is put in the file's place."""

    kind: str
    content: bytes | None
    place: Callable[[Path], object] | None = None

    def apply(self, path: Path) -> None:
        if self.place is not None:
            self.place(path)
        else:
            path.write_bytes(self.content or b"")


# ------------------------------------------------------------------------ of any kind of file


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 10])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def block(rng: random.Random, content: bytes) -> bytes:
    """A stretch of zeros, lost, written twice, or followed by something else."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 4, 16, 512]))
    middle = rng.choice([bytes(end - start), b"", content[start:end] * 2, rng.randbytes(8)])
    return content[:start] + middle + content[end:]


def appended(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice([b"\0", b"\n", b"x", b"\xff" * 100, content])


def _fill(path: Path) -> None:
    path.unlink()
    huge(path)


def _loop_of_two(path: Path) -> None:
    other = path.with_name(f"{path.name}.loop")
    path.unlink()
    path.symlink_to(other)
    other.symlink_to(path)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": be_folder, "a FIFO": be_fifo, "a link to a device": link_to("/dev/zero"),
    "a dangling link": link_to("nowhere"), "a link to a folder": link_to("."),
    "a loop of two links": _loop_of_two, "a file of a tebibyte": _fill,
    "nothing": lambda path: path.unlink(), "an empty file": lambda path: path.write_bytes(b""),
}  # fmt: skip
if os.geteuid() != 0:  # root may read everything
    PLACES["a file without permission"] = lambda path: path.chmod(0)

FOREIGN = {
    "a PNG": png(), "a GIF": encoded(Image.new("P", (4, 4)), "GIF"), "a zip": zipped(npy()),
    "a gzip": b"\x1f\x8b\x08" + bytes(40), "text": b"hello\n", "a list": b"[]", "null": b"null\n",
    "brackets": b"[" * 100_000, "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "UTF-16": "epoch,x\n1,2\n".encode("utf-16"), "zeros": bytes(2000), "a pickle": b"\x80\x04N.",
}  # fmt: skip

# ------------------------------------------------------------------------------ of one format

VALUES = [
    None, "", "x", [], {}, True, 1e308, -1, 10**30, [[]], {"a": 1}, [1, "x"], math.nan, -math.inf,
    "\ud800", "a\0b", 0.5,
]  # fmt: skip


def _nodes(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in children:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _nodes(value, (*path, key))


def changed_tree(rng: random.Random, tree: Any) -> Any:
    """With a value of another type somewhere, without an entry, or nested deep."""
    *way, last = rng.choice(list(_nodes(tree)))
    node = tree
    for key in way:
        node = node[key]
    deed = rng.random()
    if deed < 0.15:
        del node[last]
    elif deed < 0.2:
        for _ in range(rng.choice([20, 60, 500])):
            node[last] = [node[last]]
    else:
        node[last] = rng.choice(VALUES)
    return tree


def of_json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(changed_tree(rng, json.loads(content))).encode()


def of_yaml(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.1:
        return rng.choice([BOMB, "a: &a [*a]\n", "a: " + "[" * 50_000, "a: {<<: [1]}\n"]).encode()
    tree = changed_tree(rng, yaml.safe_load(content))
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
    except RecursionError:  # PyYAML cannot write what is nested 500 levels deep
        return b"a: " + b"[" * 500 + b"]" * 500


def of_csv(rng: random.Random, content: bytes) -> bytes:
    lines = [line.split(",") for line in content.decode().splitlines()]
    number = rng.randrange(len(lines))
    line = lines[number]
    place = rng.randrange(len(line))
    deed = rng.randrange(5)
    if deed == 0:
        lines.insert(number, line)
    elif deed == 1:
        line.insert(place, rng.choice(["", "x", "1"]))
    elif deed == 2:
        del line[place]
    else:
        line[place] = rng.choice(["", "x", "nan", "1e999", "-1", '"', '"a\nb"', "\0", "ü", "1.5"])
    return "".join(",".join(cells) + "\n" for cells in lines).encode(
        rng.choice(["utf-8", "latin-1"])
    )


def of_picture(rng: random.Random, content: bytes) -> bytes:
    """The same pixels in another mode, depth or format; or a picture that declares another size."""
    image = Image.open(io.BytesIO(content))
    width, height = image.size
    sides = [0, 1, width, height + 1, 10_000, 60_000, 2**31 - 1]
    size = (rng.choice(sides), rng.choice(sides))
    deed = rng.randrange(4)
    if deed == 0:
        colour = rng.choice([0, 2, 3, 4, 6])
        return png(rng.choice([1, 2, 4, 8, 16]), colour, size, rows=b"\0" * rng.choice([1, 5000]))
    if deed == 1:
        values = np.asarray(image.convert("L" if image.mode in "LP" else "RGB")).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values * 257)
        return png(16, 0 if values.ndim == 2 else 2, image.size, rows)
    if deed == 2:
        start = content.find(b"\xff\xc0") + 5 if image.format == "JPEG" else 16
        code = ">HH" if image.format == "JPEG" else ">II"
        declared = struct.pack(code, *(min(side, 65_535) for side in size))
        return content[:start] + declared + content[start + len(declared) :]
    mode = rng.choice(["1", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
    made = image.convert("RGBA" if mode == "RGBA" else image.mode)
    if mode not in ("RGBA",):
        made = Image.new(mode, image.size)
    kinds = ["TIFF", "GIF", "BMP", "WEBP", "PPM", "ICO"] if mode == "RGBA" else ["TIFF"]
    kind = "PNG" if mode == "RGBA" and rng.random() < 0.4 else rng.choice(kinds)
    try:
        return encoded(made, kind)
    except (OSError, ValueError, KeyError):  # which the format does not have
        return encoded(image.convert("RGB"), "GIF")


def of_tiff(rng: random.Random, content: bytes) -> bytes:
    """Other values in its directory, or the same pixels of another type, count or layout."""
    if rng.random() < 0.5:
        damaged = bytearray(content)
        (start,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, start)
        entry = start + 2 + 12 * rng.randrange(count)
        value = rng.choice([0, 1, 2, 3, 9, 65_535, 2**31 - 1, 2**32 - 1])
        struct.pack_into("<I", damaged, entry + rng.choice([4, 8]), value)
        return bytes(damaged)
    with MemoryFile(content) as file, file.open() as raster:
        profile, pixels = raster.profile, raster.read()
    change: dict[str, Any] = rng.choice([
        {"dtype": "uint16"}, {"dtype": "float32"}, {"dtype": "int8"}, {"dtype": "complex64"},
        {"count": 1}, {"count": profile["count"] + 1}, {"width": 20_000, "height": 20_000},
        {"width": 4}, {"height": 4}, {"driver": "PNG"},
    ])  # fmt: skip
    profile |= change
    if profile["driver"] == "PNG":
        return encoded(Image.new("RGB", (profile["width"], profile["height"])), "PNG")
    if profile["width"] == 20_000:  # sparse: a few bytes
        profile |= {"tiled": True, "blockxsize": 20_000, "blockysize": 20_000, "sparse_ok": True}
    with MemoryFile() as file:
        with file.open(**profile) as raster:
            if profile["width"] < 20_000:
                whole = np.resize(pixels, (profile["count"], *pixels.shape[1:]))
                part = whole[:, : profile["height"], : profile["width"]]
                raster.write(part.astype(profile["dtype"]))
        return bytes(file.getbuffer())


def of_patch(rng: random.Random, content: bytes) -> bytes:
    """The same patch as NumPy does not write it, or declared as another one."""
    array = zipfile.ZipFile(io.BytesIO(content)).read("arr_0.npy")
    deed = rng.randrange(4)
    if deed == 0:
        method = rng.choice([zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
        return zipped(array, method)
    if deed == 1:  # flags, method, time, checksum, sizes, lengths of name and comment
        return marked(zipped(array), rng.randrange(4, 30, 2), rng.choice([0, 1, 9, 99, 65_535]))
    if deed == 2:
        shape = tuple(rng.choice([0, 1, 16, 29, 29, 10_000, 2**40, -1]) for _ in range(4))
        descr = rng.choice(["'<f4'", "'<f8'", "'>f4'", "'|O'", "'|V4'", "[('a', '<f4')]", "()"])
        return zipped(npy(str(shape), descr, rng.choice(["True", "False", "3"])))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in rng.choice([["arr_1.npy"], ["../arr_0.npy"], ["arr_0.npy"] * 2, []]):
            archive.writestr(name, array)
    return file.getvalue()


def of_checkpoint(rng: random.Random, content: bytes) -> bytes:
    """A checkpoint that lacks something or holds another thing, or its archive written anew."""
    deed, file = rng.randrange(3), io.BytesIO()
    if deed == 0:
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as archive:
            for record in old.infolist():
                if rng.random() < 0.9:
                    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
                    archive.writestr(record.filename, old.read(record), method)
        return file.getvalue()
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    if deed == 1:
        torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
        return file.getvalue()
    weights = checkpoint["state_dict"]
    key, value = rng.choice(list(weights.items()))
    others = [value[..., None], value.to_sparse(), value.to(torch.complex64), None, 3, "x", [value]]
    weights[key] = rng.choice([*others, value[:0], value.to("meta"), value.bool()])
    wrong = rng.choice([checkpoint, weights, {"state_dict": None}, [], None, {"state_dict": {}}])
    torch.save(wrong, file)
    return file.getvalue()


BY_FORMAT: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "json": of_json, "yaml": of_yaml, "csv": of_csv, "png": of_picture, "jpeg": of_picture,
    "tiff": of_tiff, "npz": of_patch, "ckpt": of_checkpoint,
}  # fmt: skip


def draw(rng: random.Random, format: str, content: bytes) -> Damage:
    """A damage of any kind to a file of a format with this content."""
    kind = rng.choice(
        ["cut", "flip", "flip", "block", "append", "place", "foreign", "form", "form"]
    )
    if kind == "form" and format not in BY_FORMAT:
        kind = "flip"
    if kind == "place":
        name = rng.choice(list(PLACES))
        return Damage(f"place: {name}", None, PLACES[name])
    if kind == "foreign":
        name = rng.choice(list(FOREIGN))
        return Damage(f"foreign: {name}", FOREIGN[name])
    bytes_of = {"cut": cut, "flip": flip, "block": block, "append": appended}
    return Damage(kind, {**bytes_of, "form": BY_FORMAT.get(format, flip)}[kind](rng, content))


# ------------------------------------------------------------- what no reader of a format can tell

WITHOUT_CHECKSUM = {"jpeg", "tiff", "safetensors", "pickle"}
BYTEWISE = ("flip", "block", "append")


def undetectable(format: str, damage: Damage, before: bytes) -> bool:
    """Whether the damaged file is one that could have been written so, for all that it tells.

    Decided without the readers: by what the format has, or by comparing the two documents.
    """
    after = damage.content
    if after is None:  # a run that has not finished has no result, an older one no audit.csv
        return damage.kind == "place: nothing" and format in ("json", "csv")
    if format in WITHOUT_CHECKSUM:
        still_jpeg = format == "jpeg" and after.startswith(b"\xff\xd8")  # of another size
        return damage.kind in BYTEWISE or (
            damage.kind == "form" and (format == "tiff" or still_jpeg)
        )
    try:
        if format == "json":
            return _plausible(json.loads(before), json.loads(after), "")
        if format == "yaml":
            return _plausible(yaml.safe_load(before), yaml.safe_load(after), "config")
    except (ValueError, yaml.YAMLError, RecursionError):
        return False
    if format == "csv":
        return _plausible_table(before, after)
    return False


NULL_OR_NOT = {"paper", "experiment", "git_commit", "dataset", "world_size", "wall_seconds"}
"""Of ``result.json``."""


def _plausible(old: Any, new: Any, key: str) -> bool:
    """Whether values are of the same types; entries may be missing, or have another name."""
    if key.startswith("config.task.facts."):  # which are read from the task's own file
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_plausible(old[k], new[k], f"{key}.{k}") for k in old.keys() & new.keys())
    if key.startswith("config.") and not isinstance(new, dict):
        name = key.removeprefix("config.")
        rule = RULES.get(name) or RULES.get(f"{name.rpartition('.')[0]}.*")
        return rule is None or rule.allows(new)
    if isinstance(old, list) and isinstance(new, list):
        longer = [old[0]] * len(new) if old else new
        return all(_plausible(a, b, key) for a, b in zip(longer, new, strict=False))
    if new is None:
        first = f"{key}.".split(".")[1]
        return old is None or first in NULL_OR_NOT or first.startswith("class_")
    if isinstance(new, bool) or isinstance(old, bool):
        return isinstance(new, bool) and (isinstance(old, bool) or key.endswith("iscrowd"))
    if isinstance(old, int | float) and isinstance(new, int | float):
        return abs(new) < 1e300 and not (isinstance(old, int) and isinstance(new, float))
    return old is None or (isinstance(old, str) and isinstance(new, str))


def _plausible_table(before: bytes, after: bytes) -> bool:
    """Whether lines are as long as before, and numbers still numbers."""
    try:
        text = after.decode()
        (columns, *old), (names, *new) = (
            list(csv.reader(io.StringIO(t, newline=""))) for t in (before.decode(), text)
        )
    except (UnicodeDecodeError, ValueError, csv.Error):
        return False
    if len(set(map(tuple, new))) < len(new) and len(set(map(tuple, old))) == len(old):
        return "patch_fn" in columns  # a patch may be listed twice, an epoch may not
    kinds = {name: _kind_of(cells) for name, *cells in zip(columns, *old, strict=True)}
    return all(
        len(row) == len(names)
        and all(not cell or kinds.get(name, "text") in ("text", _kind_of([cell]))
                for name, cell in zip(names, row, strict=True))
        for row in new
    )  # fmt: skip


def _kind_of(cells: list[str]) -> str:
    numbers = all(re.fullmatch(r"[-+]?[\d._]*(e[-+]?\d+)?|nan|inf", cell.strip()) for cell in cells)
    return "number" if numbers else "text"

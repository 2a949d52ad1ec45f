"""Files of datasets: opened only where they are files, decoded only where they are as they should.

Whatever is wrong with a file is an `InputError` that names it; nothing here waits, fills the memory
or gives other values than the file holds. No torch here.
"""

import contextlib
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from tasks.errors import InputError

_LARGEST = 2**32  # bytes; COCO's annotations, the largest, have half a billion
_LEFTOVERS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"}


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or left by macOS, Windows or a NAS; it is no data."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def local_name(name: str) -> str:
    """A file name from a text file, as this system spells it: data sets write UTF-8.

    With an ASCII locale Python has another spelling for the letters beyond it.
    """
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def names_digest(names: Iterable[str]) -> str:
    """Twelve characters that tell lists of file names apart, whatever bytes the names hold."""
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:12]


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Around code that reads a file: whatever it raises becomes one line that names the file.

    Decoders raise anything on damaged data (SyntaxError, IndexError, struct.error, MemoryError...),
    so nothing but reading belongs in such a block.

    Args:
        path: of the file.
        remedy: what a person can do, such as "unpack the archive again".

    Raises:
        InputError: something went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); {remedy}") from None


def reason_of(error: BaseException) -> str:
    """What an error says, on one line and without the path."""
    while error.__cause__ is not None and "See previous exception" in str(error):  # rasterio
        error = error.__cause__
    strerror = error.strerror if isinstance(error, OSError) else None  # str() repeats the path
    text = " ".join(str(strerror or error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def require_file(path: Path, remedy: str) -> os.stat_result:
    """What the system knows of a regular file; nothing is opened.

    Opening a FIFO waits for ever, and a device such as /dev/zero never ends.

    Raises:
        InputError: there is none, or it is a folder, a FIFO or a device.
    """
    with reading(path, remedy):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, a socket or a device"
            raise InputError(f"{path} cannot be read (it is {kind}, not a file); {remedy}")
        return status


def open_file(path: Path, remedy: str) -> BinaryIO:
    """A regular file, opened for reading bytes.

    Raises:
        InputError: see `require_file`, or it may not be opened.
    """
    require_file(path, remedy)
    with reading(path, remedy):
        return open(path, "rb")


def read_bytes(path: Path, remedy: str) -> bytes:
    """A whole file.

    Raises:
        InputError: see `open_file`, or it is too large for what is read whole.
    """
    with open_file(path, remedy) as file, reading(path, remedy):
        if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
            raise ValueError(f"it has {size:,} bytes, more than {_LARGEST:,}")
        return file.read()


def read_text(path: Path, remedy: str) -> io.StringIO:
    """A text file in UTF-8, whatever the locale; line ends as they are.

    Raises:
        InputError: see `open_file`, or it is no UTF-8 or has NUL bytes.
    """
    content = read_bytes(path, remedy)
    with reading(path, remedy):
        if b"\0" in content:
            raise ValueError("it has NUL bytes")
        return io.StringIO(content.decode("utf-8-sig"), newline="")


def list_folder(folder: Path, remedy: str) -> list[os.DirEntry]:
    """What lies directly in a folder, without leftovers, sorted by name.

    Raises:
        InputError: it cannot be listed, or is no folder.
    """
    with reading(folder, remedy), os.scandir(folder) as entries:
        return sorted((e for e in entries if not is_leftover(e.name)), key=lambda e: e.name)


# ---------------------------------------------------------------------------------- pictures


def read_rgb(path: Path, formats: list[str], remedy: str) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; transparency is dropped, an EXIF orientation not applied.

    Args:
        path: of the file, whatever its ending.
        formats: of Pillow that the dataset has: ``PNG``, ``JPEG``.
        remedy: what a person can do about a file that cannot be read.

    Raises:
        InputError: it cannot be read, is of another format, has more than 8 bits a channel, or more
            pixels than Pillow's limit of 89 million.
    """
    with _picture(path, formats, remedy) as (picture, _):
        if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
            raise ValueError(f"mode {picture.mode}; expected grey, RGB or a palette of 8 bits")
        # Through RGBA, since Pillow warns of a palette's transparency that is dropped.
        opaque = picture.convert("RGBA") if "transparency" in picture.info else picture
        return np.asarray(opaque if opaque.mode == "RGB" else opaque.convert("RGB"))


def read_labels(path: Path, remedy: str) -> np.ndarray:
    """The bytes of a PNG of one byte a pixel, or the indices of its palette: uint8 [H, W].

    Raises:
        InputError: see `read_rgb`, or it is of another mode.
    """
    with _picture(path, ["PNG"], remedy) as (picture, stored):
        if stored != "L" and picture.mode != "P":
            raise InputError(
                f"{path} is a picture of mode {stored}; a label file holds one byte a pixel; "
                f"{remedy}"
            )
        return np.asarray(picture)


def translated(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[values]`` of bytes; NumPy takes longer, it checks every index.

    Args:
        values: uint8, of any shape.
        table: uint8 [256].
    """
    content = bytearray(values).translate(table.tobytes())
    return np.frombuffer(content, np.uint8).reshape(values.shape)


@contextlib.contextmanager
def _picture(path: Path, formats: list[str], remedy: str) -> Iterator[tuple[Image.Image, str]]:
    """A picture of at most 8 bits a channel, decoded, and its mode in the file; see `read_rgb`."""
    with open_file(path, remedy) as file, reading(path, remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF and animations, which are not used here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = _open_picture(file, formats)
        stored = _stored_mode(picture)
        if "16" in stored or picture.mode[0] in "IF":
            raise ValueError(f"mode {stored}: more than 8 bits a channel")
        if picture.format == "PNG":
            picture.verify()  # decoding alone skips the checksums
            file.seek(0)
            picture = _open_picture(file, formats)
        picture.load()
        yield picture, stored


def _open_picture(file: BinaryIO, formats: list[str]) -> Image.Image:
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"it is no {' or '.join(formats)}, or a damaged one") from None


def _stored_mode(picture: Image.Image) -> str:
    """The mode in the file: Pillow opens ``RGB;16B`` as RGB, and drops half of its bits."""
    assert isinstance(picture, ImageFile.ImageFile)
    arguments = picture.tile[0].args
    return arguments if isinstance(arguments, str) else str((arguments or [picture.mode])[0])

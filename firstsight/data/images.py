"""Images of a row: files, or bytes inside the row. They are shown as an image viewer shows them, or refused by name."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as _TIFF  # EXIF's tags are TIFF's

from firstsight.data.source import DataSource
from firstsight.data.strict import clean_text
from firstsight.errors import DataError

MAX_IMAGE_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few KB of PNG can hold gigabytes of pixels."""

# our own cap is lower; set for the whole process, because warning filters of a block are not safe with threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_HELD_BYTES = 2**25

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by EXIF's orientation; from 5 on, width and height change places."""

SHOWN = {
    **dict.fromkeys(("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"), "opaque"),
    **dict.fromkeys(("LA", "PA", "RGBA", "RGBa", "La"), "transparent"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "sixteen bits"),
    "I": "32 bits",
}
"""How each of Pillow's modes is shown: `opaque` as it is; `transparent` on white; `sixteen bits` from black = 0 to white = 65,535, in a
TIFF as its tags say, if the format defines black and white; `32 bits` the same if the file's own values have 16 (PGM, PNG). Other
modes cannot be shown in one clear way and are refused."""
_GREYS = {"sixteen bits": ("PNG", "TIFF", "PPM", "JPEG2000"), "32 bits": ("PNG", "PPM")}
_DRAWN_ELSEWHERE = ("EPS", "WMF", "EMF", "IPTC")
"""Formats that Pillow hands to a program such as Ghostscript, or that hold a file of any other format."""


@dataclass(frozen=True)
class InlineImage:
    """An image whose file is inside the data; equal to another one with the same bytes."""

    name: str = field(compare=False)
    data: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """sha256 of the bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FetchedImage:
    """An image from the web, in the file that keeps it."""

    name: str = field(compare=False)
    """Its address."""
    path: Path

    def __str__(self) -> str:
        return self.name


ImageSource = Path | InlineImage | FetchedImage
_SHOWN_PATH = 255
"""Characters of a path that are shown; file systems take no longer name."""
_LONGEST_PATH = 4095
"""Nor a longer path."""


def _not_found(place: object, image: object) -> DataError:
    return DataError(
        f"{place}: image {image} not found; check data.image_root (without a recipe: --root) and the row's path"
    )


def image_digest(image: ImageSource) -> str:
    """sha256 of an image's file, 64 hex digits: the same whether it is in a directory or inside the data."""
    if isinstance(image, InlineImage):
        return image.digest
    return file_digest(image.path if isinstance(image, FetchedImage) else image)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits; remembered while size and modification time stay the same."""
    name = os.fspath(path)
    status = os.stat(name)
    return _file_digest(name, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16_384)
def _file_digest(name: str, _size: int, _mtime_ns: int) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held(image: ImageSource, place: str) -> ImageSource:
    """An image with the bytes of its file, so that they are read once for digest and pixels; a large file is not read."""
    if isinstance(image, InlineImage):
        return image
    name = os.fspath(image.path if isinstance(image, FetchedImage) else image)
    try:
        with open(name, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > _HELD_BYTES:
                return image
            return InlineImage(str(image), file.read())
    except OSError as error:
        raise DataError(f"{place}: image {image} cannot be decoded ({error}); replace the file") from None


def image_name(image: ImageSource, root: Path) -> str:
    """What records call an image: its path below `root`, its name inside the data, or its address."""
    if not isinstance(image, Path):
        return image.name
    if not image.is_relative_to(root):  # a row has an absolute path, and a link leads to one of the two
        image, root = image.resolve(), root.resolve()
    return image.relative_to(root).as_posix()


def image_path(file: Any, root: Path, place: str) -> Path:
    """A row's image under `root`. DataError: it was not found, or is outside `root`."""
    if not isinstance(file, str):
        raise DataError(f"{place}: an image must be a path relative to data.root, got {type(file).__name__}")
    if "\0" in file or any("\ud800" <= character <= "\udfff" for character in file):
        raise DataError(f"{place}: image {file!r:.{_SHOWN_PATH}} is not a path; correct the row")
    name = os.path.join(root, file)
    folder, _, last = name.rpartition(os.sep)
    try:
        mode = os.lstat(name).st_mode
    except OSError:
        mode = 0
    # a plain file is where its directory is; otherwise every part of the path is checked
    real = (
        os.path.join(_real(folder or os.sep), last)
        if stat.S_ISREG(mode) and last not in ("", ".", "..")
        else os.path.realpath(name)
    )
    if not real.startswith(_real(str(root)).rstrip(os.sep) + os.sep):
        raise DataError(
            f"{place}: image {file!r:.{_SHOWN_PATH}} is outside data.root ({root}); move it under data.root"
        )
    path = root / file
    if not stat.S_ISREG(mode) and not os.path.isfile(path):  # unlike Path's, it takes names of any length
        if len(file) > _LONGEST_PATH or max(map(len, file.split("/"))) > _SHOWN_PATH:
            raise DataError(
                f"{place}: image {file[:40]!r}... has {len(file):,} characters, which is not a path; write base64 as a URL: "
                "data:image/png;base64,..."
            )
        shown = path if file.isprintable() else repr(str(path))  # in one line
        raise _not_found(place, shown)
    if not os.access(path, os.R_OK):
        raise DataError(f"{place}: image {path} cannot be read by this user; change its permissions")
    return path


@lru_cache(maxsize=4096)
def _real(directory: str) -> str:
    return os.path.realpath(directory)


def image_source(value: Any, source: DataSource, place: str, number: int) -> ImageSource:
    """An image as rows give it.

    Args:
        value: a path, a `data:` URL, a file's bytes, an address on the web, or a mapping of `bytes` and `path` as `datasets` writes it.
        source: where paths are, and whether addresses are fetched.
        place: of the row.
        number: of the image in the row, from 1.

    Raises:
        DataError: none of these, a file that was not found, or an address that is not allowed.
    """
    if isinstance(value, dict):
        if unknown := set(value) - {"bytes", "path"}:
            raise DataError(f"{place}: an image has the unknown key {min(unknown)!r}; expected 'bytes' and 'path'")
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return InlineImage(f"{place}, image {number}", value)
    if not isinstance(value, str) or ":" not in value:
        return image_path(value, source.root, place)
    scheme = value.partition(":")[0].lower()
    if scheme == "data":
        head, comma, text = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise DataError(
                f"{place}: image {number} is a data: URL that is not base64; expected data:image/...;base64,..."
            )
        return InlineImage(f"{place}, image {number}", from_base64(text, place, number))
    if "://" in value:
        if scheme == "file":
            return image_path(value.partition("://")[2], source.root, place)
        if scheme not in ("http", "https"):
            raise DataError(
                f"{place}: image {value[:200]!r} is an address of a kind that is not supported; give a path under data.root"
            )
        if not source.allow_urls:
            raise DataError(
                f"{place}: image {value[:200]!r} is an address; set data.allow_urls: true to fetch it, or "
                "download it and give its path under data.root"
            )
        from firstsight.data.fetch import fetched

        return FetchedImage(value, fetched(clean_text(value, place, "the address of an image"), place))
    return image_path(value, source.root, place)


def from_base64(text: str, place: str, number: int) -> bytes:
    """The bytes of an image in base64; DataError."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{place}: image {number} is not base64 ({error}); correct the row") from None


@contextmanager
def opened(image: ImageSource, place: str) -> Iterator[Image.Image]:
    """An image whose pixels are not decoded yet.

    Raises:
        DataError: here or while it is used: not found, not an image, damaged in whatever way, of a format or mode that cannot be
            shown, or larger than `MAX_IMAGE_PIXELS`.
    """
    try:
        with Image.open(_file_of(image)) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise DataError(
                    f"{place}: image {image} has {picture.width:,} x {picture.height:,} pixels, more than "
                    f"{MAX_IMAGE_PIXELS:,}; scale it down"
                )
            if reason := _not_shown(picture):
                raise DataError(f"{place}: image {image} {reason}")
            yield picture
    except FileNotFoundError:
        raise _not_found(place, image) from None
    except UnidentifiedImageError:  # whose text has an address in memory
        raise DataError(
            f"{place}: image {image} cannot be decoded (not an image, or none of a kind that Pillow reads); replace the file"
        ) from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 Pillow's plugins raise anything for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{place}: image {image} cannot be decoded ({reason}); replace the file") from None


def _file_of(image: ImageSource) -> Path | io.BytesIO:
    if isinstance(image, InlineImage):
        return io.BytesIO(image.data)
    return image.path if isinstance(image, FetchedImage) else image


def as_shown(picture: Image.Image) -> Image.Image:
    """The image in RGB, upright, as an image viewer shows it; the first frame of an animation."""
    picture.load()  # which turns a TIFF upright
    way = SHOWN[picture.mode]
    if way in _GREYS:
        shown = _deep_grey(picture)
    elif way == "transparent" or picture.has_transparency_data:
        clear = picture.convert("RGBA") if picture.mode != "La" else picture.convert("LA").convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    else:
        shown = picture.convert("RGB")
    turn = _TURNS.get(_orientation(picture))
    return shown if turn is None else shown.transpose(turn)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of the image as shown, from its header."""
    tags = _tiff_tags(picture)
    # of some TIFFs, Pillow tells the upright size already
    turned = _orientation(picture) >= 5 and (
        not tags or picture.size == (tags[_TIFF.ImageWidth], tags[_TIFF.ImageLength])
    )
    return (picture.height, picture.width) if turned else picture.size


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none that is valid."""
    value = picture.getexif().get(_TIFF.Orientation)
    return value if isinstance(value, int) and value in _TURNS else 1


def _tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF, by number; none of other formats."""
    return getattr(picture, "tag_v2", {})


def _not_shown(picture: Image.Image) -> str | None:
    """Why an image is not shown, and what to do; None: it is."""
    if picture.format in _DRAWN_ELSEWHERE:
        return f"has the format {picture.format}, which another program would have to draw; save it as PNG"
    way = SHOWN.get(picture.mode)
    if way is None or picture.format not in _GREYS.get(way, (picture.format,)):
        return f"has the mode {picture.mode} ({picture.format}), which cannot be shown in one clear way; save it as 8-bit RGB"
    kinds = _tiff_tags(picture).get(_TIFF.SampleFormat, 1)
    if set(kinds if isinstance(kinds, tuple) else (kinds,)) != {1}:
        return "has signed values (TIFF's SampleFormat), which cannot be shown in one clear way; save it as 8-bit RGB"
    return None


def _deep_grey(picture: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits, by the white that its format defines; a transparent value is white."""
    import numpy as np

    tags = _tiff_tags(picture)
    bits = tags.get(_TIFF.BitsPerSample, 16)
    white = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    values = np.asarray(picture).astype(np.int64)
    shown = (values.clip(0, white) * 255 + white // 2) // white
    if tags.get(_TIFF.PhotometricInterpretation) == 0:  # white is zero
        shown = 255 - shown
    shown[values == picture.info.get("transparency", -1)] = 255
    return Image.fromarray(shown.astype(np.uint8)).convert("RGB")

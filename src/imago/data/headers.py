"""What the header of an image file says."""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from imago.data.colour import profile_use
from imago.data.decode import BadImageError, exif_orientation, naming_errors, open_image, open_regular_file, read_image
from imago.data.formats import BITS, PNG, PNG_COLOURS, TILE_LENGTH, TILE_WIDTH, check_kind, first_page, tags

END = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""The last bytes of a whole file."""


def header_error(path: Path) -> BadImageError | None:
    """Return the error of an image file, as far as its header and its end show it. Pixels are decoded only if the end
    is missing, as in a file that was copied in part."""
    try:
        with naming_errors(path, str(path)), open_regular_file(path) as file, open_image(file) as image:
            check_kind(image)
            is_whole = _has_end(file, END.get(str(image.format), b""))
        if not is_whole:
            read_image(path)
    except BadImageError as error:
        return without_frames(error)
    return None


def _has_end(file: BinaryIO, end: bytes) -> bool:
    """Whether `end` is at the end of the file, or behind its header: what a camera appends may follow it."""
    after_header = file.tell()
    file.seek(-len(end), os.SEEK_END)
    if file.read() == end:
        return True
    file.seek(after_header)
    return end in file.read()


def profile_of(source: Path | BinaryIO, name: str | None = None) -> str | None:
    """Return `profile_use` of an image file; None if its header cannot be read."""
    with (
        suppress(BadImageError),
        naming_errors(source, name or str(source)),
        open_regular_file(source) as file,
        open_image(file) as image,
    ):
        return profile_use(image)
    return None


def shape_of(source: Path | BinaryIO, name: str | None = None) -> tuple[int, int] | None:
    """Return height and width of the upright image in a file, in pixels; None if its header cannot be read."""
    try:
        with naming_errors(source, name or str(source)), open_regular_file(source) as file, open_image(file) as image:
            first_page(image)
            (width, height), turned = image.size, exif_orientation(image) >= 5
    except BadImageError:
        return None
    return (width, height) if turned else (height, width)


def tile_of(source: Path | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Return height and width of the tiles of a TIFF, which are decoded whole and may be larger than the image; (0, 0)
    without any, and if its header cannot be read."""
    with (
        suppress(BadImageError),
        naming_errors(source, name or str(source)),
        open_regular_file(source) as file,
        open_image(file) as image,
    ):
        first_page(image)
        return int(tags(image).get(TILE_LENGTH, 0)), int(tags(image).get(TILE_WIDTH, 0))
    return 0, 0


def largest_value(path: Path) -> tuple[int, bool]:
    """Return the largest value of a 16-bit image whose file does not state its range (0 for others), and whether it has
    colours, of which 8 bits are kept.

    Raises:
        BadImageError: As `read_image`.
    """
    with naming_errors(path, str(path)), open_regular_file(path) as file, open_image(file) as image:
        if image.mode.startswith("I"):
            return int(np.asarray(image).max()), False
        if _colour_bits(file, image) < 16:
            return 0, True
        return 257 * int(np.asarray(image.convert("RGB")).max()), True


def _colour_bits(file: BinaryIO, image: Image.Image) -> int:
    """Return the bits per channel of a colour image file, of which Pillow keeps 8."""
    if image.format == "TIFF":
        return max(tags(image).get(BITS, (8,)))
    file.seek(0)
    head = file.read(26)
    file.seek(0)
    return head[24] if head.startswith(PNG) and head[25] in PNG_COLOURS else 8


def without_frames(error: BadImageError) -> BadImageError:
    """Strip an error of its cause and traceback, which hold the half-decoded image."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)

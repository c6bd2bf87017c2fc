"""Decoding of image files to pixels."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image
from torch import Tensor

from imago.data.colour import PLAIN, Decoding, in_srgb, to_rgb
from imago.data.crops import CropBox, CropPolicy, PaddedCropBox, Size, crop, pair
from imago.data.formats import FORMATS, check_kind, first_page, is_lossless_jpeg, not_decoded, pixel_chunks
from imago.errors import UserError

IS_CUT = re.compile(r"truncated|broken data stream|unexpected end|could not create decoder", re.IGNORECASE)
"""Words of Pillow's decoders for a file that ends too early, or whose content is damaged."""
TRUNCATED = "the file is truncated or damaged"
NO_FILE = "a device or a pipe, not a file"
HEAD = 256  # bytes by which the kind of a file is recognised
MARGIN = 1.5
"""How many times the requested size the decoded pixels of a JPEG must have, because those of its blocks are coarse. On
nine photographs at 32 to 112 pixels the mean difference from exact decoding is 0.8 grey levels at most, and 1.9 for the
worst one; without the margin it is 1.6 and 3.8."""
TURNS: dict[int, list[int]] = {1: [], 2: [2], 3: [1, 2], 4: [1], 5: [], 6: [2], 7: [1, 2], 8: [1]}
"""EXIF orientation -> axes to flip, after rows and columns were exchanged for 5 to 8."""
_damaged: dict[str, str] = {}


class BadImageError(UserError):
    """A file cannot be used as an image; the message names it and says why."""

    lasting = True
    """Whether the content is at fault, rather than a permission, the disk or a lack of memory."""
    advice = (
        "Repair or remove it, or type data.on_bad_image=skip to skip it (ml-doctor finds all, and lists them for "
        "data.exclude=)"
    )
    """Next step, said where a run ends because of the image."""


class NotDecodedError(UserError):
    """No decoder of `FORMATS` knows the file; the message says what it is."""


def read_image(
    source: str | Path | BinaryIO,
    name: str | None = None,
    decoding: Decoding = PLAIN,
    damage: dict[str, str] = _damaged,
) -> Tensor:
    """Read an image file as uint8 (3, height, width) in sRGB, upright by its EXIF orientation.

    Grey, palette and CMYK images are converted, 16-bit ones scaled to 8 bits, transparent ones laid on white, and
    colours converted by the file's colour profile.

    `name` is the name of the image in messages. If a JPEG is damaged inside, `damage` gets its name -> what is wrong;
    by default, `damaged_files` will return that.

    Raises:
        BadImageError: The file is empty, truncated, too large, no image, or has pixels that decoders read wrongly.
    """
    name = name or str(source)
    with naming_errors(source, name, damage), open_regular_file(source) as file, open_image(file) as image:
        pixels = _jpeg(file, image, name, decoding, damage=damage)
        return pixels if pixels is not None else _pixels(file, image, decoding)


def read_box(
    source: Path | BinaryIO, box: CropPolicy, size: Size, decoding: Decoding = PLAIN, name: str | None = None
) -> Tensor:
    """Read the crop `box(height, width)` of an image file as uint8 (3, height, width), to be resized to `size`.

    A JPEG is decoded at a half, a quarter or an eighth of its size if the box then still has 1.5 times the pixels of
    `size`, and is resized here. Its pixels differ from exact decoding by about a grey level in the mean.

    Raises:
        BadImageError: As `read_image`.
    """
    name = name or str(source)
    with naming_errors(source, name), open_regular_file(source) as file, open_image(file) as image:
        if _is_usual_jpeg(image):
            (width, height), turn = image.size, exif_orientation(image)
            if turn >= 5:
                width, height = height, width
            chosen, (rows, columns) = box(height, width), pair(size)
            least = min(chosen.height / rows, chosen.width / columns) / MARGIN
            part = next((part for part in (8, 4, 2) if least >= part), 1)
            pixels = _jpeg(file, image, name, decoding, 1 if isinstance(chosen, PaddedCropBox) else part)
            if pixels is not None and pixels.shape[1:] != (height, width):
                return _resized(pixels, chosen, (height, width), part, turn, (rows, columns), decoding.interpolation)
            if pixels is not None:
                return crop(pixels, chosen)
            box = _always(chosen)  # a random box is drawn only once
        pixels = _pixels(file, image, decoding)
    return crop(pixels, box(pixels.shape[1], pixels.shape[2]))


def _always(box: CropBox) -> CropPolicy:
    return lambda height, width: box


def _resized(
    pixels: Tensor,
    box: CropBox,
    whole: tuple[int, int],
    part: int,
    orientation: int,
    size: tuple[int, int],
    interpolation: str,
) -> Tensor:
    """Resize the box of an image of which `pixels` has every `part`-th row and column. The last block may reach beyond
    the file's right and lower edges, which are different edges once the image is upright."""
    height, width = pixels.shape[1:]
    above = height * part - whole[0] if 1 in TURNS[orientation] else 0
    before = width * part - whole[1] if 2 in TURNS[orientation] else 0
    region = (
        (box.left + before) / part,
        (box.top + above) / part,
        min((box.left + box.width + before) / part, width),
        min((box.top + box.height + above) / part, height),
    )
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    return _tensor(image.resize(size[::-1], Image.Resampling[interpolation.upper()], box=region))


def _is_usual_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _jpeg(
    file: BinaryIO,
    image: Image.Image,
    name: str,
    decoding: Decoding,
    part: int = 1,
    damage: dict[str, str] = _damaged,
) -> Tensor | None:
    """Decode a JPEG whose header Pillow accepts: bit-identical to Pillow, in less time; with `part` 2, 4 or 8, to one
    of every `part` x `part` pixels.

    None for other files and unusual JPEGs: Pillow decides on these.
    """
    if not _is_usual_jpeg(image):
        return None
    file.seek(0)
    content = file.read()
    part = 1 if is_lossless_jpeg(content) else part
    least = [-(-side // part) for side in image.size]
    sizes = {"min_width": least[0], "min_height": least[1], "min_factor": part}
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", **sizes)
    except ValueError as error:
        if _is_damaged_inside(content):
            damage[name] = str(error)
        return None
    if "icc_profile" in image.info and decoding.icc:
        grey = image.mode == "L"
        plain = Image.fromarray(pixels[..., 0] if grey else pixels)
        plain.info["icc_profile"] = image.info["icc_profile"]
        return _turned(_tensor(in_srgb(plain, decoding)), exif_orientation(image))
    return _turned(torch.from_numpy(pixels).permute(2, 0, 1), exif_orientation(image))


def _is_damaged_inside(content: bytes) -> bool:
    """Whether a JPEG that strict decoding refuses can be decoded otherwise: it is damaged, not of an unusual kind."""
    try:
        simplejpeg.decode_jpeg(content, "RGB", strict=False)
    except ValueError:
        return False
    return True


def damage(content: bytes) -> str:
    """Return libjpeg's message on a JPEG that is damaged inside; empty for good ones, and for other files."""
    if not content.startswith(b"\xff\xd8"):
        return ""
    try:
        simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        return str(error) if _is_damaged_inside(content) else ""
    return ""


def note_damage(found: dict[str, str]) -> None:
    """Add to the files that `damaged_files` will return."""
    _damaged.update(found)


def damaged_files() -> dict[str, str]:
    """Return the damaged JPEGs that this process has decoded since the last call: path -> what is wrong inside."""
    damaged = dict(_damaged)
    _damaged.clear()
    return damaged


def _pixels(file: BinaryIO, image: Image.Image, decoding: Decoding) -> Tensor:
    check_kind(image)
    first_page(image)
    try:
        return upright_rgb(image, decoding)
    except ValueError:
        file.seek(0)
        if (plain := pixel_chunks(file.read())) is None:
            raise
        with Image.open(plain, formats=("PNG",)) as again:
            return upright_rgb(again, decoding)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8."""
    with suppress(Exception):  # damaged EXIF data do not affect the pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if isinstance(orientation, int) and orientation in TURNS else 1
    return 1


def _turned(pixels: Tensor, orientation: int) -> Tensor:
    """Turn pixels (channels, height, width) upright, as `ImageOps.exif_transpose` does."""
    if orientation >= 5:  # the first row of the file is a side of the picture
        pixels = pixels.transpose(1, 2)
    return pixels.flip(TURNS[orientation]) if TURNS[orientation] else pixels


@contextmanager
def open_regular_file(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a file for reading; ValueError for a device or a pipe, which may never end."""
    if not isinstance(source, str | Path):
        yield source
        return
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise UserError(NO_FILE)
    with open(source, "rb") as file:
        yield file


def open_image(file: BinaryIO) -> Image.Image:
    """Read the header of an image with one of the decoders of `FORMATS`.

    Raises:
        NotDecodedError: None of them knows the file.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except (ValueError, SyntaxError, Image.UnidentifiedImageError):
        file.seek(0)
        content = file.read()
        with suppress(Exception):
            if (plain := pixel_chunks(content)) is not None:
                return Image.open(plain, formats=("PNG",))
        raise NotDecodedError(not_decoded(content[:HEAD]) if content else "the file is empty") from None


@contextmanager
def naming_errors(source: str | Path | BinaryIO, name: str, damage: dict[str, str] = _damaged) -> Iterator[None]:
    """Turn every error inside the context into a BadImageError that names `name`; `source` is the file.

    What was noted of the file in `damage` is removed: the error says enough.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise _bad(name, "no such file") from error
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        damage.pop(name, None)
        passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        passing &= not _leads_nowhere(source)
        reason = TRUNCATED if not passing and IS_CUT.search(str(error)) else str(error) or type(error).__name__
        raise _bad(name, reason, lasting=not passing) from error


def _leads_nowhere(source: str | Path | BinaryIO) -> bool:
    """Whether `source` is a link that cannot be followed, such as one to itself."""
    if not isinstance(source, str | Path) or not os.path.islink(source):
        return False
    try:
        os.stat(source)
    except OSError:
        return True
    return False


def _bad(name: str, reason: str, lasting: bool = True) -> BadImageError:
    error = BadImageError(f"{name}: {reason}")
    error.lasting = lasting
    return error


def pil_pixels(image: Image.Image, name: str, decoding: Decoding = PLAIN) -> Tensor:
    """Convert a PIL image of any mode to upright RGB, uint8 (3, height, width). It is loaded, and not changed.

    Raises:
        BadImageError: Its pixels cannot be read, or have no fixed range. `name` is its name in the message.
    """
    with naming_errors(name, name):
        if 0 in image.size:
            raise UserError("it has no pixels")
        check_kind(image)
        return upright_rgb(image, decoding)


def upright_rgb(image: Image.Image, decoding: Decoding = PLAIN) -> Tensor:
    """Convert an opened image to upright RGB, uint8 (3, height, width); ValueError if its pixels cannot be shown."""
    return _tensor(to_rgb(image, decoding))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

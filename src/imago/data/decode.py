"""From an image file to pixels."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # importing plugins makes them known
from torch import Tensor

from imago.data.stages import Box, BoxOf, Size, cut, pair

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
NO_FILE = "a device or a pipe, not a file"
FLOAT = "float pixels have no fixed range: save it with 8 or 16 bits"


class BadImageError(ValueError):
    """A file that cannot be used as an image; the message names it and says why."""

    lasting = True
    """Whether its content is at fault, and not a permission, a disk or too little memory."""


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> Tensor:
    """The image in a file as uint8 (3, height, width) in RGB, upright as its EXIF orientation says.

    Grey, palette and CMYK images are converted, 16-bit ones scaled to 8 bits, transparent ones laid on white.

    `name` stands for it in messages.

    Raises:
        BadImageError: The file is empty, truncated, too large, of float pixels, or no image.
    """
    with _naming(source, name or str(source)), _opened(source) as file, open_image(file) as image:
        pixels = _jpeg(file, image)
        if pixels is not None:
            return pixels
        image.load()
        return upright_rgb(image)


def read_box(source: Path, box: BoxOf, size: Size) -> Tensor:
    """What `box(height, width)` cuts out of the image in a file, to be resized to `size`; uint8 (3, height, width).

    A JPEG is decoded at a half, a quarter or an eighth of its size where the box is still `size` pixels then. Its
    pixels are those of the exact way within about two grey levels in the mean.

    Raises:
        BadImageError: As `read_image`.
    """
    with _naming(source, str(source)), _opened(source) as file, open_image(file) as image:
        width, height = image.size
        if _is_usual_jpeg(image):
            if _orientation(image) >= 5:
                width, height = height, width
            chosen = box(height, width)
            rows, columns = pair(size)
            part = next((p for p in (8, 4, 2) if chosen.height >= p * rows and chosen.width >= p * columns), 1)
            pixels = _jpeg(file, image, part)
            if pixels is not None:
                return cut(pixels, chosen.shrunk(part))
            box = _always(chosen)  # a random one is drawn once
        image.load()
        pixels = upright_rgb(image)
    return cut(pixels, box(pixels.shape[1], pixels.shape[2]))


def _always(box: Box) -> BoxOf:
    return lambda height, width: box


def _is_usual_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _jpeg(file: BinaryIO, image: Image.Image, part: int = 1) -> Tensor | None:
    """The pixels of a JPEG whose header Pillow has found good, to the bit as Pillow decodes them, in less time; or of
    every `part` x `part` pixels (2, 4 or 8) one.

    None for what is no usual JPEG, or not quite whole: Pillow has the last word on it.
    """
    if not _is_usual_jpeg(image):
        return None
    file.seek(0)
    least = [-(-side // part) for side in image.size]
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), "RGB", min_width=least[0], min_height=least[1], min_factor=part)
    except ValueError:
        return None
    return _turned(torch.from_numpy(pixels).permute(2, 0, 1), _orientation(image))


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF has it."""
    with suppress(Exception):  # damaged EXIF data do not make the pixels worse
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _turned(pixels: Tensor, orientation: int) -> Tensor:
    """Upright, as `ImageOps.exif_transpose` does it."""
    if orientation >= 5:  # the first row of the file is a side of the picture
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def header_fault(path: Path) -> BadImageError | None:
    """What is wrong with a file, as far as its first bytes tell: it is not decoded."""
    try:
        with _naming(path, str(path)), _opened(path) as file, open_image(file) as image:
            if image.mode == "F":
                raise ValueError(FLOAT)
    except BadImageError as error:
        return without_frames(error)
    return None


def without_frames(error: BadImageError) -> BadImageError:
    """The same without what it was raised from, which holds the half-decoded image."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@contextmanager
def _opened(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """The file to read from; ValueError for a device or a pipe, which may never end."""
    if not isinstance(source, str | Path):
        yield source
        return
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError(NO_FILE)
    with open(source, "rb") as file:
        yield file


def open_image(file: BinaryIO) -> Image.Image:
    """Reads the header with one of the decoders of `FORMATS`; others are seldom used, or start programs."""
    return Image.open(file, formats=FORMATS)


@contextmanager
def _naming(source: str | Path | BinaryIO, name: str) -> Iterator[None]:
    """Inside, whatever goes wrong with `source` becomes a BadImageError that says it of `name`."""
    try:
        yield
    except FileNotFoundError as error:
        raise _bad(name, "the file is gone") from error
    except Image.UnidentifiedImageError as error:
        empty = isinstance(source, str | Path) and Path(source).stat().st_size == 0
        raise _bad(name, "the file is empty" if empty else "not an image") from error
    except Exception as error:  # Pillow's decoders raise whatever the damage leads them into
        passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        raise _bad(name, str(error) or type(error).__name__, lasting=not passing) from error


def _bad(name: str, reason: str, lasting: bool = True) -> BadImageError:
    error = BadImageError(f"{name}: {reason}")
    error.lasting = lasting
    return error


def upright_rgb(image: Image.Image) -> Tensor:
    """The pixels of an opened image: uint8 (3, height, width); ValueError where it has none that can be shown."""
    return _pixels(shown(image))


def shown(image: Image.Image) -> Image.Image:
    """The same before it becomes a tensor."""
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data do not make the pixels worse
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # "I;16", or "I" where 16-bit pixels were read into 32
        return _eight_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError(FLOAT)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels outside 16 bits: save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

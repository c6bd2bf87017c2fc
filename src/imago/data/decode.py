"""From an image file to pixels."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # importing plugins makes them known
from torch import Tensor

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
    with _naming(source, name or str(source)), open_image(source) as image:
        image.load()
        return upright_rgb(image)


def header_fault(path: Path) -> BadImageError | None:
    """What is wrong with a file, as far as its first bytes tell: it is not decoded."""
    try:
        with _naming(path, str(path)), open_image(path) as image:
            if image.mode == "F":
                raise ValueError(FLOAT)
    except BadImageError as error:
        return error
    return None


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Reads the header with one of the decoders of `FORMATS`: those of others may start programs, or are seldom used.

    Raises:
        ValueError: It is a device or a pipe, which may never end.
    """
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError(NO_FILE)
    return Image.open(source, formats=FORMATS)


@contextmanager
def _naming(source: str | Path | BinaryIO, name: str) -> Iterator[None]:
    """Inside, whatever goes wrong with `source` becomes a BadImageError that says it of `name`."""
    try:
        yield
    except FileNotFoundError as error:
        raise _bad(name, "the file is gone", lasting=False) from error
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

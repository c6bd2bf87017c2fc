"""Images as a program has them (paths, bytes, open files, PIL images, arrays), read as training reads files."""

import inspect
import io
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imago.data.colour import Decoding
from imago.data.decode import BadImageError, naming_errors, pil_pixels, read_image

log = logging.getLogger(__name__)

FileLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image
ImageLike = FileLike | NDArray[Any] | Tensor
TAKEN = (
    "Give a path, the bytes of an image file, an open binary file, a PIL image, a uint8 array (height, width, 3) or a "
    "uint8 tensor (3, height, width), or a list or generator of these."
)
SHAPES = {
    "array": "(height, width), (height, width, 1), (height, width, 3) for RGB or (height, width, 4) for RGBA",
    "tensor": "(height, width), (1, height, width), (3, height, width) for RGB or (4, height, width) for RGBA",
}
TO_BYTES = {"array": "image.tobytes()", "tensor": "image.numpy().tobytes()"}
CHANNELS = (1, 3, 4)
DAMAGED = "damaged inside, and read with wrong pixels: %s"
"""The warning on a JPEG whose data are damaged, but can be decoded, with the decoder's message."""
LONGEST = 80  # characters of a path that a message shows
URL = re.compile(r"[A-Za-z][\w+.-]*://")


def is_several(images: Any) -> bool:
    """Whether `images` holds several images: a list, a generator, an array (n, height, width, channels), …"""
    if isinstance(images, np.ndarray | Tensor):
        names = isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OUS"
        return images.ndim == 4 or names
    if getattr(images, "ndim", 1) != 1:  # an array of another library, a table
        return False
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping, set, frozenset)
    return isinstance(images, Iterable) and not isinstance(images, one) and not hasattr(images, "read")


def read_pixels(image: Any, channels: int, decoding: Decoding, damage: dict[str, str] | None = None) -> Tensor:
    """Read an image from anything in `ImageLike`: uint8 (channels, height, width), sRGB or grey.

    Args:
        image: The image. An open file is read from its start, and stays open. A PIL image is loaded, and stays as it
            is.
        channels: 3, or 1 for grey.
        decoding: Decoding settings that files do not contain; also the white value of 16-bit arrays.
        damage: Gets name -> what is wrong, if the image is a JPEG that is damaged inside.

    Raises:
        BadImageError: It cannot be used as an image. The message says what was given, and what is taken.
    """
    if isinstance(image, np.ndarray | Tensor):
        pixels = _of_array(image, decoding)
    elif isinstance(image, Image.Image):
        pixels = pil_pixels(image, getattr(image, "filename", "") or f"a PIL image of mode {image.mode}", decoding)
    else:
        source, name = _file(image)
        damage = {} if damage is None else damage
        pixels = read_image(source, name, decoding, damage)
        for what in damage.values():
            log.warning(f"%s is {DAMAGED}", name, what)
    return with_channels(pixels, channels)


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Convert RGB or grey pixels, uint8 (1 or 3, height, width), to 3 channels, or to 1 for grey."""
    pixels = pixels.expand(3, -1, -1)
    return F.rgb_to_grayscale(pixels) if channels == 1 else pixels


def _file(image: Any) -> tuple[Path | BinaryIO, str]:
    """Return the file to decode, and its name in messages."""
    if isinstance(image, str | os.PathLike):
        path = _path(os.fsdecode(image))
        return path, str(path)
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
        return io.BytesIO(content), _content_name(content)
    if callable(getattr(image, "read", None)) and not isinstance(image, type):
        name = getattr(image, "name", None)
        name = name if isinstance(name, str) and name else f"an open file ({type(image).__name__})"
        return io.BytesIO(_content(image, name)), name
    what = f"{image!r} ({type(image).__name__})" if isinstance(image, int | float | None) else type(image).__name__
    foreign = hasattr(image, "__array__") and getattr(image, "ndim", 0) in (2, 3) and not hasattr(image, "columns")
    raise BadImageError(f"{what} is not an image. {'Give numpy.asarray(image).' if foreign else TAKEN}")


def _content_name(content: bytes) -> str:
    """Name the content of a file in messages: by its size or, if it is a short text such as a path, by itself."""
    if 0 < len(content) <= LONGEST and content.isascii() and content.decode().isprintable():
        return f"{content!r}, taken as the content of an image file"
    return f"an image of {len(content)} bytes"


def _path(text: str) -> Path:
    """Return the path of a file that exists.

    Raises:
        BadImageError: It is a URL or a folder, or does not exist.
    """
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    shown = shown if shown.isprintable() and text else repr(shown)
    if URL.match(text):
        raise BadImageError(f"{shown} is a URL: download it first, and give the file or its bytes.")
    if text.startswith("data:"):
        raise BadImageError(f'{shown} is a data URL: give base64.b64decode(url.partition(",")[2]).')
    try:
        path = Path(text).expanduser()
        if text and path.is_dir():
            raise BadImageError(
                f"{shown} is a folder: give its files, or type ml-inference ckpt_path=RUN source={shown}"
            )
        if text and os.path.lexists(path):
            return path
    except BadImageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, an unknown ~user, a null character
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise BadImageError(f"{shown}: {reason.rstrip('.')}. Is it a path?") from error
    if "*" in text:
        raise BadImageError(
            f"{shown} is a pattern, not a file: give sorted(glob.glob({shown!r})), or type ml-inference ckpt_path=RUN "
            f"source='{shown}'"
        )
    raise BadImageError(f"{shown}: no such file")


def _content(file: Any, name: str) -> bytes:
    """Return all bytes of an open file, from its start if it can be rewound."""
    as_text = f'{name} is open as text: open it in binary mode, open(path, "rb").'
    if isinstance(file, io.TextIOBase):
        raise BadImageError(as_text)
    with naming_errors(file, name):
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)
        content = file.read()
    if inspect.iscoroutine(content):
        content.close()
        raise BadImageError(
            f"{name} is read asynchronously: give its bytes, await file.read(), or its attribute .file."
        )
    if not isinstance(content, bytes | bytearray | memoryview):
        raise BadImageError(as_text if isinstance(content, str) else f"{name} has no bytes. {TAKEN}")
    return bytes(content)


def _of_array(image: NDArray[Any] | Tensor, decoding: Decoding) -> Tensor:
    """Convert an array or a tensor to uint8 (1 or 3, height, width)."""
    kind = "tensor" if isinstance(image, Tensor) else "array"
    shape, dtype = tuple(image.shape), str(image.dtype).removeprefix("torch.")
    if isinstance(image, np.ndarray):
        dtype = image.dtype.name
    what = f"{'An' if kind == 'array' else 'A'} {kind} of shape {shape} and type {dtype}"
    first, last = (shape[0], shape[-1]) if len(shape) == 3 else (1, 1)
    channels, other = (last, first) if kind == "array" else (first, last)
    if len(shape) == 1 and dtype == "uint8":
        raise BadImageError(f"{what} is not an image. If it holds the bytes of a file, give {TO_BYTES[kind]}.")
    if len(shape) not in (2, 3) or (channels not in CHANNELS and other not in CHANNELS) or 0 in shape:
        raise BadImageError(f"{what} is not an image: its shape must be {SHAPES[kind]}.")
    if channels not in CHANNELS:
        turned = {
            "array": "has its channels first: give image.transpose(1, 2, 0).",
            "tensor": "has its channels last: give image.permute(2, 0, 1).",
        }
        raise BadImageError(f"{what} {turned[kind]}")
    if dtype not in ("uint8", "uint16"):
        raise BadImageError(f"{what}: {_advice(dtype, kind)}")
    if isinstance(image, Tensor):
        try:
            image = (image if image.ndim == 2 else image.permute(1, 2, 0)).detach().cpu().numpy()
        except (RuntimeError, TypeError) as error:  # a sparse one, one without data
            raise BadImageError(f"{what} has no pixels that can be read: {error}") from error
    values = np.array(image, dtype=dtype, order="C")  # a copy: writable, and without negative strides
    if dtype == "uint16" and channels != 1:  # decoders of files also keep the upper eight bits of colours
        values = (values >> 8).astype(np.uint8)
    if values.dtype == np.uint16 or channels == 4:  # as in a file
        grey = values if channels == 4 else values.reshape(values.shape[:2])
        return pil_pixels(Image.fromarray(grey), what, decoding)
    return torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1)


def _advice(dtype: str, kind: str) -> str:
    """Say how pixels of another type become uint8."""
    cast = "astype(numpy.uint8)" if kind == "array" else "to(torch.uint8)"
    advice = "pixels must be uint8, 0 to 255, or uint16, 0 to 65535."
    if dtype.startswith(("float", "bfloat")):
        return f"{advice} If these are from 0 to 1, give (image * 255).round().{cast}."
    if dtype == "bool":
        return f"{advice} Give image.{cast} * 255."
    return f"{advice} If these are from 0 to 255, give image.{cast}." if dtype.startswith(("int", "uint")) else advice

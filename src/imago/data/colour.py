"""From a decoded image of whatever mode to 8-bit RGB."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from imago.data.formats import BITS, EXTRA_SAMPLES, PHOTOMETRIC, WHITE_IS_ZERO, scale_key, tags
from imago.errors import UserError

WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
CUBE = 6  # shades of each colour that tell whether a profile is that of sRGB
RANGES = (1023, 4095, 16383, 65535)  # of 10, 12, 14 and 16 bits


@dataclass(frozen=True)
class Decoding:
    """What image files do not say themselves.

    Args:
        greatest: The value that is white in images of 16 bits.
        icc: Convert colours to sRGB by the profile in the file.
    """

    greatest: int = 65535
    icc: bool = True

    def __post_init__(self) -> None:
        if type(self.greatest) is not int or not 255 < self.greatest <= 65535:
            raise UserError(f"data.range={self.greatest}: give auto, or the value that is white, 256 to 65535.")


PLAIN = Decoding()


def to_rgb(image: Image.Image, decoding: Decoding = PLAIN) -> Image.Image:
    """The image upright, as 8-bit RGB, laid on white where it is transparent.

    Raises:
        ValueError: Its pixels have no range.
    """
    first, is_stray = _first_frame_extent(image), False
    scale_key(image)
    image.load()
    if image.mode == "RGBA":
        is_stray = _has_stray_band(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image, decoding)
    image = _upright(image)
    if first is not None:
        whole = Image.new("RGB", image.size, "white")
        whole.paste(image.convert("RGB").crop(first), first)
        return whole
    image = _on_white(image, is_stray)
    return in_srgb(image, decoding) if "icc_profile" in image.info else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data do not make the pixels worse
        return image


def _first_frame_extent(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF's screen that its first frame covers, where that is not all of it."""
    tiles: Any = getattr(image, "tile", None)
    if image.format != "GIF" or "transparency" in image.info or not tiles:
        return None
    extent = tiles[0].extents
    return extent if extent is not None and tuple(extent) != (0, 0, image.width, image.height) else None


def _on_white(image: Image.Image, is_stray: bool) -> Image.Image:
    """The image without transparency: grey, RGB or CMYK, with the colour profile that it had; with `is_stray` its
    fourth band says something else."""
    key = image.info.get("transparency")
    if image.mode not in WITH_ALPHA and key is None:
        return image if image.mode in ("L", "RGB", "CMYK") or image.mode == "I;16" else image.convert("RGB")
    profile, grey = image.info.get("icc_profile"), image.mode in ("L", "LA", "La")
    if is_stray:
        image = image.convert("RGB")
    else:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L" if grey else "RGB")
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def _has_stray_band(image: Image.Image) -> bool:
    """Whether the fourth band is no transparency: a TIFF that does not say so, or a bitmap in which it is 0."""
    if image.format == "TIFF":
        return EXTRA_SAMPLES not in tags(image)
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _eight_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """A grey image of 16 bits (or of 12, in a TIFF) in 8; what is above the range is white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError("pixels outside 16 bits: save it with 8 or 16 bits")
    greatest = decoding.greatest
    if image.format == "TIFF":
        bits = tags(image).get(BITS, (16,))[0]
        greatest = 2**bits - 1 if bits < 16 else greatest
        if tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
            values = greatest - np.minimum(values, greatest)
    grey = scaled(values, greatest)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    made = Image.fromarray(grey)
    made.info |= {name: image.info[name] for name in ("icc_profile", "exif") if name in image.info}
    return made


def scaled(values: NDArray[np.int64], greatest: int) -> NDArray[np.uint8]:
    """Values from 0 to `greatest` as 0 to 255, rounded."""
    return ((np.minimum(values, greatest) * 255 + greatest // 2) // greatest).astype(np.uint8)


def in_srgb(image: Image.Image, decoding: Decoding = PLAIN) -> Image.Image:
    """Grey, RGB or CMYK in sRGB: by its colour profile, where it has one that can be used."""
    profile = image.info.get("icc_profile")
    convert = _conversion(profile, image.mode) if decoding.icc and isinstance(profile, bytes) else None
    if convert is None:
        return image.convert("RGB")
    return convert(image)


@lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """How images with that profile become sRGB; None where they are, or it cannot be used."""
    with suppress(OSError, ImageCms.PyCMSError, TypeError, ValueError):
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        shades = _shades(mode)
        changed = np.asarray(ImageCms.applyTransform(shades, transform)).astype(int)
        if mode != "CMYK" and np.abs(changed - np.asarray(shades.convert("RGB"))).max() <= 1:
            return None

        def convert(image: Image.Image) -> Image.Image:
            return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]

        return convert
    return None


def profile_use(image: Image.Image) -> str | None:
    """`converted` or `ignored`: what becomes of an image's colour profile; None where it has none, or sRGB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return None
    mode = image.mode if image.mode in ("RGB", "CMYK") else "L" if image.mode in ("L", "LA", "I;16") else "RGB"
    if _conversion(profile, mode) is not None:
        return "converted"
    with suppress(OSError, ImageCms.PyCMSError, TypeError, ValueError):
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None
    return "ignored"


def _shades(mode: str) -> Image.Image:
    levels = np.linspace(0, 255, CUBE).astype(np.uint8)
    bands = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), axis=-1).reshape(1, -1, bands)
    return Image.fromarray(grid[..., 0] if bands == 1 else grid, mode)


def range_of(largest: int) -> int:
    """The least range of 10, 12, 14 or 16 bits that holds the `largest` value."""
    return next(greatest for greatest in RANGES if largest <= greatest)

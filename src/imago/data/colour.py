"""Conversion of decoded images of any mode to 8-bit RGB."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from imago.data.formats import BITS, EXTRA_SAMPLES, PHOTOMETRIC, WHITE_IS_ZERO, scaled_key, tags
from imago.errors import UserError

WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
CUBE = 6  # shades per channel by which a profile is recognised as sRGB
RANGES = (1023, 4095, 16383, 65535)  # largest values of 10, 12, 14 and 16 bits


@dataclass(frozen=True)
class Decoding:
    """Decoding settings that image files do not contain.

    Args:
        greatest: Value that is white in 16-bit images.
        icc: Convert colours to sRGB by the profile in the file.
        interpolation: How `decode=fast` resizes a JPEG that it has decoded at a part of its size.
    """

    greatest: int = 65535
    icc: bool = True
    interpolation: str = field(default="bilinear", repr=False)  # whole images do not depend on it

    def __post_init__(self) -> None:
        if type(self.greatest) is not int or not 255 < self.greatest <= 65535:
            raise UserError(f"data.range must be auto, or the value of white, from 256 to 65535; got {self.greatest}.")


PLAIN = Decoding()


def to_rgb(image: Image.Image, decoding: Decoding = PLAIN) -> Image.Image:
    """Convert an image to upright 8-bit RGB, on white where it is transparent. The image is loaded, and not changed.

    Raises:
        ValueError: The pixel values do not fit into 16 bits.
    """
    first, key, is_stray = _first_frame_extent(image), scaled_key(image), False
    image.load()
    if image.mode == "RGBA":
        is_stray = _has_stray_band(image)
    if image.mode.startswith("I"):
        image = _eight_bits(image, decoding)
    image = _upright(image)
    if key is not None:
        image.info["transparency"] = key
    if first is not None:
        whole = Image.new("RGB", image.size, "white")
        whole.paste(image.convert("RGB").crop(first), first)
        return whole
    image = _on_white(image, is_stray)
    return in_srgb(image, decoding) if "icc_profile" in image.info else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return an upright copy."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data do not affect the pixels
        return image.copy()


def _first_frame_extent(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Box of a GIF's first frame (left, top, right, bottom); None where it covers the whole screen."""
    tiles: Any = getattr(image, "tile", None)
    if image.format != "GIF" or "transparency" in image.info or not tiles:
        return None
    extent = tiles[0].extents
    return extent if extent is not None and tuple(extent) != (0, 0, image.width, image.height) else None


def _on_white(image: Image.Image, is_stray: bool) -> Image.Image:
    """Remove transparency: grey or RGB on white, or CMYK, with the colour profile kept; with `is_stray`, the fourth
    band is no transparency and is dropped."""
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
    """Whether the fourth band is no transparency: a TIFF that does not declare it, or a bitmap where it is all 0."""
    if image.format == "TIFF":
        return EXTRA_SAMPLES not in tags(image)
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _eight_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Scale a 16-bit grey image (or a 12-bit TIFF) to 8 bits; values above the range become white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError("pixels outside the range of 16 bits. Save it with 8 or 16 bits")
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
    """Scale int64 values of any shape from 0 … `greatest` to uint8 0 … 255, rounded; larger ones become 255."""
    return ((np.minimum(values, greatest) * 255 + greatest // 2) // greatest).astype(np.uint8)


def in_srgb(image: Image.Image, decoding: Decoding = PLAIN) -> Image.Image:
    """Convert a grey, RGB or CMYK image to sRGB, by its colour profile if that is usable."""
    profile = image.info.get("icc_profile")
    convert = _conversion(profile, image.mode) if decoding.icc and isinstance(profile, bytes) else None
    if convert is None:
        return image.convert("RGB")
    return convert(image)


@lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Conversion from a profile to sRGB; None where it is sRGB, or cannot be used."""
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
    """Use of an image's colour profile, `converted` or `ignored`; None without a profile, and for sRGB."""
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
    """Return the smallest range of 10, 12, 14 or 16 bits that holds the value `largest`."""
    return next(greatest for greatest in RANGES if largest <= greatest)

"""Images of unusual sizes and kinds, drawn here, on which every export is compared with its checkpoint."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

PICTURES = (  # width and height
    *((1, 1), (1, 7), (7, 1), (2, 3), (17, 16), (224, 224), (223, 225), (333, 499), (640, 480), (1600, 1200)),
    *((3000, 100), (100, 3000), (8000, 300), (300, 8000)),
)
MODES = ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16")
ORIENTATIONS = (2, 3, 5, 6, 8)


def odd_images() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each image file."""
    for width, height in PICTURES:
        yield f"{width} x {height}", _png(_drawn(width, height))
    for mode in MODES:
        picture = _drawn(150, 100)
        if mode == "I;16":
            values = np.asarray(picture.convert("L")).astype(np.uint16) * 257
            picture = Image.fromarray(values)
        else:
            picture = picture.convert(mode)
        if mode in ("LA", "RGBA"):
            picture.putalpha(_drawn(150, 100).convert("L"))
        yield f"mode {mode}", _png(picture) if mode != "CMYK" else _jpeg(picture)
    for orientation in ORIENTATIONS:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        yield f"EXIF orientation {orientation}", _jpeg(_drawn(160, 90), exif=exif)
    yield "coarse JPEG", _jpeg(_drawn(500, 375), quality=5)
    for name, value in (("black", 0), ("white", 255)):
        yield name, _png(Image.new("RGB", (64, 48), (value,) * 3))
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    yield "noise", _png(Image.fromarray(noise))


def _drawn(width: int, height: int) -> Image.Image:
    """Something smooth with edges: unlike noise, it survives resizing."""
    coarse = np.random.default_rng(width * 10_007 + height).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _jpeg(image: Image.Image, quality: int = 90, exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, exif=exif or Image.Exif())
    return file.getvalue()

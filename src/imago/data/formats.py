"""Kinds of image files: recognition by their first bytes, and kinds that decoders read wrongly."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image, features

from imago.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", *(("AVIF",) if features.check("avif") else ()))
"""Formats that are decoded; Pillow's others are seldom used, or start programs."""
PNG = b"\x89PNG\r\n\x1a\n"
OF_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"acTL", b"fcTL")
PNG_GREY, PNG_COLOURS = 0, (2, 4, 6)  # colour types
LARGEST_PROFILE = 2**20
STARTS = (
    (b"\xff\xd8\xff", "a JPEG"),
    (PNG, "a PNG"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "a Photoshop file (PSD)"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"DDS ", "a DDS texture"),
    (b"P7\n", "a PAM file"),
    (b"PF\n", "a PFM file"),
    (b"v/1\x01", "OpenEXR"),
    (b"SIMPLE  =", "a FITS file"),
    (b"icns", "an icon (ICNS)"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a Git LFS pointer (type git lfs pull)"),
)
BRANDS = {  # in the ISO box `ftyp` at the start of a file
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"jxl ",), "JPEG XL"),
}
TEXTS = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"{", "JSON"),
)
UNSIGNED, SIGNED = 1, 2  # SampleFormat of a TIFF
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, PALETTE = 258, 259, 262, 284, 320
TILE_WIDTH, TILE_LENGTH = 322, 323
EXTRA_SAMPLES, SAMPLE_FORMAT, REFERENCE_BLACK_WHITE, SUBFILE = 338, 339, 532, 254
WHITE_IS_ZERO, YCBCR = 0, 6


def what_it_is(head: bytes) -> str:
    """Name the kind of a file by its first bytes; empty if unknown."""
    if head[4:8] == b"ftyp":
        return BRANDS.get(head[8:12], "a video")
    if head[128:132] == b"DICM":
        return "DICOM"
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    known = next((name for start, name in STARTS if head.startswith(start)), None)
    known = known or next((name for start, name in TEXTS if text.startswith(start)), "")
    return known or ("nothing but zeros" if head and not any(head) else "")


def not_decoded(head: bytes) -> str:
    """Explain why no decoder of `FORMATS` takes a file for an image."""
    kind = what_it_is(head)
    if kind in ("a JPEG", "a PNG", "a TIFF", "AVIF"):
        return f"{kind} of an unsupported kind (or damaged at its start). Convert it to an 8-bit PNG or JPEG"
    return f"not a supported image: it is {kind}. Convert it to JPEG or PNG" if kind else "not an image"


def is_lossless_jpeg(content: bytes) -> bool:
    """Whether a JPEG is lossless: libjpeg cannot decode these at a fraction of their size."""
    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker in (0xC3, 0xC7, 0xCB, 0xCF)
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False


def pixel_chunks(content: bytes) -> BytesIO | None:
    """Strip a PNG of its text chunks, which Pillow may refuse to unpack; None if `content` is no complete PNG."""
    if not content.startswith(PNG):
        return None
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        kind, chunk = content[at + 4 : at + 8], content[at : at + 12 + length]
        if len(chunk) != 12 + length:
            return None
        if kind in OF_PIXELS and not (kind == b"iCCP" and _is_large(chunk)):
            kept.append(chunk)
        at += len(chunk)
    return BytesIO(b"".join(kept))


def _is_large(profile: bytes) -> bool:
    packed = profile[8:-4].partition(b"\0")[2][1:]
    try:
        return len(zlib.decompressobj().decompress(packed, LARGEST_PROFILE + 1)) > LARGEST_PROFILE
    except zlib.error:
        return True


def check_kind(image: Image.Image) -> None:
    """Raise ValueError for an opened image whose pixels Pillow would read wrongly, with advice on how to save it."""
    if wrong := next(_wrong(image), None):
        raise UserError(f"{wrong}. Save it with 8 bits, or 16 unsigned bits")


def _wrong(image: Image.Image) -> Iterator[str]:
    if image.mode == "F":
        yield "float pixels have no fixed range"
    if image.format == "PNG" and "transparency" in image.info and _png_header(image) == (16, 2):
        yield "a PNG of 16 bits with a transparent colour"
    if image.format != "TIFF":
        return
    bits = tags(image).get(BITS, (1,))
    if SIGNED in tags(image).get(SAMPLE_FORMAT, (UNSIGNED,)):
        yield "a TIFF with signed pixels"
    if tags(image).get(PLANAR) == 2 and max(bits) > 8 and tags(image).get(COMPRESSION) == 1:
        yield f"a TIFF of {max(bits)} bits with separate colour planes"
    if image.mode in ("P", "PA") and max(tags(image).get(PALETTE, (256,))) < 256:
        yield "a TIFF with a palette of 8 bits instead of 16"
    reference = [float(value) for value in tags(image).get(REFERENCE_BLACK_WHITE, ())]
    if tags(image).get(PHOTOMETRIC) == YCBCR and reference not in ([], [0.0, 255.0, 128.0, 255.0, 128.0, 255.0]):
        yield "a TIFF in YCbCr whose black and white are not 0 and 255"
    if image.mode == "I":
        yield "a TIFF of 32 bits"


def _png_header(image: Image.Image) -> tuple[int, int]:
    """Return bit depth and colour type; (8, 0) of an image that is loaded, whose file is closed."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return 8, 0
    before = file.tell()
    file.seek(0)
    head = file.read(26)
    file.seek(before)
    return head[24], head[25]


def scaled_key(image: Image.Image) -> int | None:
    """Return the transparent value of a grey PNG of 2 or 4 bits for its pixels, which Pillow scales to 8 bits; None for
    others. Call it before the image is loaded."""
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and _png_header(image)[0] in (2, 4):
        return key * 255 // (2 ** _png_header(image)[0] - 1)
    return None


def tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF by number; empty for other formats."""
    return getattr(image, "tag_v2", {})


def first_page(image: Image.Image) -> None:
    """Seek the first page of a TIFF that is no thumbnail of another page."""
    if image.format != "TIFF" or not tags(image).get(SUBFILE, 0) & 1:
        return
    for page in range(1, getattr(image, "n_frames", 1)):
        image.seek(page)
        if not tags(image).get(SUBFILE, 0) & 1:
            return
    image.seek(0)

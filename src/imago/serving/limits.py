"""Limits of a request, and the answer to one that is beyond them."""

import io
from dataclasses import dataclass

from imago.data.decode import BadImageError
from imago.data.headers import shape_of, tile_of

TIFF = (b"II", b"MM")
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"
USUAL_SCANS = 16
"""Scans of a JPEG that cost no more than its pixels. Encoders write ten for a progressive one."""


@dataclass(frozen=True)
class Limits:
    """Limits of the server. The memory that requests can take is about `max_in_flight` times `max_body`.

    Args:
        max_body: Bytes of a request.
        max_images: Images of a request.
        max_pixels: Pixels of an image.
        max_in_flight: Requests that are read or predicted at a time.
        timeout_s: Seconds for a request, from its first byte to its answer.
    """

    max_body: int = 16 * 2**20
    max_images: int = 32
    max_pixels: int = 50_000_000
    max_in_flight: int = 32
    timeout_s: float = 30.0


class RefusedError(Exception):
    """A request is not answered with predictions; `sentence` says why, and what would be."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def check_pixels(content: bytes, name: str, most: int) -> None:
    """Raise BadImageError for an image whose pixels are too many to be decoded, by what its header says.

    Each scan of a progressive JPEG passes over all pixels, and a few kilobytes hold a thousand scans.
    """
    shape = shape_of(io.BytesIO(content), name)
    if shape is None:  # decoding says why
        return
    pixels = shape[0] * shape[1]
    if pixels > most:
        raise BadImageError(f"{name}: {shape[1]} x {shape[0]} pixels are more than {most:,} (max_pixels)")
    tile = tile_of(io.BytesIO(content), name) if content[:2] in TIFF else (0, 0)
    if tile[0] * tile[1] > most:
        raise BadImageError(f"{name}: tiles of {tile[1]} x {tile[0]} pixels are more than {most:,} (max_pixels)")
    scans = content.count(SCAN) if content.startswith(JPEG) else 1
    if pixels * max(1, scans - USUAL_SCANS) > most:
        raise BadImageError(f"{name}: {scans} scans of {pixels:,} pixels would take too long. Save it as a usual JPEG")

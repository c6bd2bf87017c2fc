"""Digests of image files, by which a checkpoint recognises the images that it was trained on."""

import hashlib
import os
import zlib
from pathlib import Path
from typing import BinaryIO

BLOCKS, BLOCK = 8, 4096  # number and bytes of the blocks by which a large file is recognised
PART = 2**20  # bytes that are read at a time


def digest_of(file: BinaryIO, size: int) -> int:
    """Compute the `digest` of a file of `size` bytes."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    if size <= BLOCKS * BLOCK:
        digest.update(file.read())
    else:
        for block in range(BLOCKS):
            file.seek(block * (size - BLOCK) // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return int.from_bytes(digest.digest(), "big", signed=True)


def crc_of(file: BinaryIO) -> int:
    """Compute the CRC-32 of the rest of a file."""
    crc = 0
    while part := file.read(PART):
        crc = zlib.crc32(part, crc)
    return crc


def file_digest(path: Path) -> int | None:
    """Compute the `digest` of an image file; None if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would never end
            return None
        with path.open("rb") as file:
            return digest_of(file, os.fstat(file.fileno()).st_size)
    except OSError:
        return None

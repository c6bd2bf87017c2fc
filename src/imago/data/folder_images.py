"""Image files in a folder as the images of a split."""

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from imago.data.columns import StringArray
from imago.data.crops import CropPolicy, Size
from imago.data.decode import BadImageError, read_box, read_image
from imago.data.digests import file_digest
from imago.data.headers import header_error, largest_value, profile_of, shape_of
from imago.data.images import Images
from imago.data.tree import stat_fingerprint

SIXTEEN_BITS = (".png", ".tif", ".tiff", ".pgm")


class FolderImages(Images):
    """Image files below `root`."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.paths = StringArray(paths)
        self.labels = array("i", labels)

    def read(self, index: int) -> Tensor:
        return read_image(self.root / self.paths[index], decoding=self.decoding)

    def read_box(self, index: int, box: CropPolicy, size: Size) -> Tensor:
        if self.decode == "exact":
            return super().read_box(index, box, size)
        return read_box(self.root / self.paths[index], box, size, self.decoding)

    def fault(self, index: int) -> BadImageError | None:
        return header_error(self.root / self.paths[index])

    def digest(self, index: int) -> int | None:
        return file_digest(self.root / self.paths[index])

    def largest_value(self, index: int) -> tuple[int, bool]:
        path = self.root / self.paths[index]
        return largest_value(path) if path.suffix.lower() in SIXTEEN_BITS else (0, False)

    def profile(self, index: int) -> str | None:
        return profile_of(self.root / self.paths[index])

    def shape(self, index: int) -> tuple[int, int] | None:
        return shape_of(self.root / self.paths[index])

    def select(self, indices: Sequence[int]) -> "FolderImages":
        chosen = FolderImages(self.root, [self.paths[i] for i in indices], [self.labels[i] for i in indices])
        chosen.decode, chosen.decoding = self.decode, self.decoding
        return chosen

    def joined(self, further: Images) -> Images:
        if not isinstance(further, FolderImages) or further.root != self.root:
            return super().joined(further)
        chosen = FolderImages(self.root, [*self.paths, *further.paths], [*self.labels, *further.labels])
        chosen.decode, chosen.decoding = self.decode, self.decoding
        return chosen

    def stamp(self, times: bool = False) -> str:
        digest = hashlib.sha256(super().stamp().encode())
        root = str(self.root)
        for path in self.paths:
            digest.update(f"{stat_fingerprint(os.path.join(root, path))[: 1 + times]}\n".encode())
        return digest.hexdigest()

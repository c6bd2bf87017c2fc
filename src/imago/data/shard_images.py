"""Images in shards as the images of a split."""

import hashlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

from imago.data.columns import PackedLabels, PackedNames
from imago.data.crops import CropPolicy, Size
from imago.data.decode import read_box, read_image
from imago.data.headers import profile_of, shape_of
from imago.data.images import Images
from imago.data.shard_files import ShardReader
from imago.data.shard_index import SplitIndex, map_arrays


class ShardImages(Images):
    """Images in the shards of a split; `rows` are their places in the index, None for all.

    Args:
        index: Columns of the split.
        reader: Reads the bytes.
        content: Hash of the content of all images, from the index.
        window: Number of shards among whose images the order of an epoch mixes; None mixes all.
        is_near: Whether reading a few images anywhere costs little; False for shards that are downloaded whole.
    """

    def __init__(
        self,
        index: SplitIndex,
        reader: ShardReader,
        content: str,
        window: int | None,
        is_near: bool = True,
        rows: np.ndarray | None = None,
    ) -> None:
        self.index = index
        self.reader = reader
        self.content = content
        self.window = window
        self.is_near = is_near
        self.rows = rows
        self.paths = PackedNames(index, rows)
        self.labels: Sequence[int] = PackedLabels(index, rows)

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])

    def file(self, index: int) -> tuple[BytesIO, str]:
        """Return the file of an image, and its name in messages: the path, and the shard."""
        row = self._row(index)
        shard = self.index.shard_name(int(self.index.shard[row]))
        return BytesIO(self.reader.read(self.index, row)), f"{self.paths[index]} ({shard})"

    def read(self, index: int) -> Tensor:
        return read_image(*self.file(index), self.decoding)

    def read_box(self, index: int, box: CropPolicy, size: Size) -> Tensor:
        if self.decode == "exact":
            return super().read_box(index, box, size)
        file, name = self.file(index)
        return read_box(file, box, size, self.decoding, name)

    def digest(self, index: int) -> int | None:
        return int(map_arrays(self.reader.place.digests())[self.index.split][self._row(index)])

    def digests(self) -> list[int | None]:
        digests = map_arrays(self.reader.place.digests())[self.index.split]
        return (digests if self.rows is None else digests[self.rows]).tolist()

    def shape(self, index: int) -> tuple[int, int] | None:
        return shape_of(*self.file(index)) if self.is_near else None

    def profile(self, index: int) -> str | None:
        return profile_of(*self.file(index)) if self.is_near else None

    def select(self, indices: Sequence[int]) -> "ShardImages":
        chosen = np.asarray(indices, dtype=np.uint32)
        rows = chosen if self.rows is None else self.rows[chosen]
        images = ShardImages(self.index, self.reader, self.content, self.window, self.is_near, rows)
        if not isinstance(self.labels, PackedLabels):  # corrected
            images.labels = [self.labels[index] for index in indices]
        images.decode, images.decoding = self.decode, self.decoding
        return images

    def order(self, permutation: Tensor, generator: torch.Generator) -> Tensor:
        """Sort a random `permutation` by windows of `window` shards, whose order is random: what is read together lies
        together. With no more shards than a window has, it stays as it is."""
        count = len(self.index.shard_size)
        if self.window is None or count <= self.window:
            return permutation
        place = torch.empty(count, dtype=torch.int64)
        place[torch.randperm(count, generator=generator)] = torch.arange(count)
        window_of = (place // self.window).numpy().astype(np.min_scalar_type(count // self.window))
        indices = permutation.numpy()
        shard = self.index.shard[indices if self.rows is None else self.rows[indices]]
        return torch.from_numpy(indices[np.argsort(window_of[shard], kind="stable")])

    def stamp(self, times: bool = False) -> str:
        del times  # the checksums of the index are those of the content
        digest = hashlib.sha256(f"{self.content} {self.index.split}".encode())
        if self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows).data)
        if not isinstance(self.labels, PackedLabels):
            digest.update(np.asarray(self.labels, dtype=np.int64).data)
        return digest.hexdigest()

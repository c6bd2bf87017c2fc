"""Images in shards as the images of a split."""

import hashlib
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imago.data.columns import PackedLabels, PackedNames
from imago.data.crops import CropPolicy, Size
from imago.data.decode import read_box, read_image
from imago.data.headers import profile_of, shape_of
from imago.data.images import Images
from imago.data.shard_ahead import Ahead
from imago.data.shard_cache import RemotePlace
from imago.data.shard_files import ShardReader
from imago.data.shard_index import DAMAGE, SplitIndex, map_arrays
from imago.errors import UserError

DIVISION = "the division into shards"


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
        self._window_of: np.ndarray | None = None  # number of each shard's window in the epoch, 0 for the first
        self._window = -1
        self._ahead: Ahead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None, "_window_of": None}

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
        return int(self._digests()[self._row(index)])

    def _digests(self) -> np.ndarray:
        file = self.reader.place.digests()
        try:
            digests = map_arrays(file)[self.index.split]
            if digests.shape != self.index.label.shape or digests.dtype != np.int64:
                raise ValueError("not those of the index")
        except DAMAGE as error:
            raise UserError(f"{file} is damaged ({error}). {self.reader.place.repair}.") from error
        return digests

    def digests(self) -> tuple[np.ndarray, np.ndarray]:
        digests = self._digests()
        return digests if self.rows is None else digests[self.rows], np.ones(len(self), np.bool_)

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

    def remove(self, indices: Sequence[int]) -> "ShardImages":
        return self.select(np.delete(np.arange(len(self), dtype=np.uint32), indices))  # type: ignore[arg-type]

    def order(self, permutation: Tensor, generator: torch.Generator) -> Tensor:
        """Sort a random `permutation` by windows of `window` shards, whose order is random: what is read together lies
        together. With no more shards than a window has, it stays as it is."""
        count = len(self.index.shard_size)
        if not self._has_windows:
            return permutation
        assert self.window is not None
        place = torch.empty(count, dtype=torch.int64)
        place[torch.randperm(count, generator=generator)] = torch.arange(count)
        window_of = (place // self.window).numpy().astype(np.min_scalar_type(count // self.window))
        self._window_of, self._window = window_of, -1
        indices = permutation.numpy()
        shard = self.index.shard[indices if self.rows is None else self.rows[indices]]
        return torch.from_numpy(indices[np.argsort(window_of[shard], kind="stable")])

    @property
    def _has_windows(self) -> bool:
        return self.window is not None and len(self.index.shard_size) > self.window

    def announce(self, order: Tensor, position: int) -> None:
        """Download the shards of the next window in a thread, if they are far."""
        place = self.reader.place
        if self._window_of is None or not isinstance(place, RemotePlace):
            return
        if self._ahead is None:
            self._ahead = Ahead(place, self.index)
        window = int(self._window_of[self.index.shard[self._row(int(order[position]))]])
        if window != self._window:
            self._window = window
            present, coming = (np.flatnonzero(self._window_of == number).tolist() for number in (window, window + 1))
            place.keep(self.index, [*coming, *present])
            self._ahead.want(coming)
        self._ahead.proceed()

    def release(self) -> None:
        self.reader.close()

    def order_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "data.window": "null" if self.window is None or not self._has_windows else self.window
        }
        if self._has_windows:
            settings[DIVISION] = zlib.crc32(self.index.shard_crc.tobytes())
        return settings

    def stamp(self, times: bool = False) -> str:
        del times  # the checksums of the index are those of the content
        digest = hashlib.sha256(f"{self.content} {self.index.split}".encode())
        if self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows).data)
        if not isinstance(self.labels, PackedLabels):
            digest.update(np.asarray(self.labels, dtype=np.int64).data)
        return digest.hexdigest()

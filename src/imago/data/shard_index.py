"""The index of shards: where each image is in which tar, in at most 16 bytes an image beside its name."""

import hashlib
import json
import mmap
import struct
import tokenize
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.columns import STEP, pack_names
from imago.definitions import SPLITS
from imago.errors import UserError
from imago.files import atomic_write, write_json

INDEX, DIGESTS, MANIFEST = "index.npz", "digests.npz", "index.json"
FORMAT, WITH_GROUPS = 1, 2  # an Imago that does not know groups refuses an index that has them
BLOCK = 512  # bytes by which parts of a tar are aligned
COLUMNS = ("label", "shard", "block", "size", "crc", "names", "name_starts", "shard_size", "shard_crc")
PER_IMAGE = COLUMNS[:5]
GROUP = "group"
WHITES = range(2**8, 2**16)
DAMAGE = (
    *(ValueError, KeyError, TypeError, IndexError, EOFError, OSError, NotImplementedError, RecursionError),
    *(struct.error, zipfile.BadZipFile, tokenize.TokenError),
)
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip: signature, lengths of its name and extra field


@dataclass(frozen=True)
class SplitRows:
    """Images of a split before they are packed: one entry per image, in the order of the paths.

    Args:
        paths: Names, as predictions show them.
        label: Positions of the classes.
        shard: Numbers of the shards.
        offset: Positions of the content in its shard, in bytes.
        size: Bytes of the content.
        crc: CRC-32 of the content.
        digest: `Images.digest` of the content.
        shard_size: Bytes of each shard.
        shard_crc: CRC-32 of each shard.
        group: Numbers of the groups of a split file, in all splits, 0 for an image without one; None without groups.
    """

    paths: Sequence[str]
    label: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    digest: np.ndarray
    shard_size: np.ndarray
    shard_crc: np.ndarray
    group: np.ndarray | None = None

    def packed(self) -> dict[str, np.ndarray]:
        """Return the columns of the index."""
        names, starts = pack_names(self.paths)
        block = (self.offset // BLOCK).astype(np.uint32)
        return {
            "label": _small(self.label),
            "shard": _small(self.shard),
            "block": block,
            "size": self.size.astype(np.uint32),
            "crc": self.crc.astype(np.uint32),
            "names": names,
            "name_starts": starts,
            "shard_size": self.shard_size.astype(np.uint64),
            "shard_crc": self.shard_crc.astype(np.uint32),
            **({} if self.group is None else {GROUP: _small(self.group)}),
        }


class SplitIndex:
    """Columns of a split, mapped from the file: processes share its pages. A copy for another process maps it again.

    `label`, `shard`, `block`, `size`, `crc` and, where there are groups, `group` have an entry per image; `names` and
    `name_starts` are those of `pack_names`; `shard_size` and `shard_crc` have an entry per shard.
    """

    label: np.ndarray
    shard: np.ndarray
    block: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    names: np.ndarray
    name_starts: np.ndarray
    shard_size: np.ndarray
    shard_crc: np.ndarray
    group: np.ndarray | None = None

    def __init__(self, file: Path, split: str, columns: Mapping[str, np.ndarray]) -> None:
        self.file = file
        self.split = split
        self.__dict__.update(columns)

    def __len__(self) -> int:
        return len(self.label)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.file, self.split)

    def shard_name(self, number: int) -> str:
        """Return the file name of a shard."""
        return shard_name(self.split, number)


@dataclass(frozen=True)
class ShardIndex:
    """Content of an index: class names, columns of each split, digest of the content, and what is white in 16 bits (a
    text says why that is not known)."""

    class_names: list[str]
    splits: dict[str, SplitIndex]
    digest: str
    white: int | str


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{split}-{number:06d}.tar"


def write_index(folder: Path, class_names: Sequence[str], splits: Mapping[str, SplitRows], white: int | str) -> None:
    """Write the index and the digests of shards into their folder, and a manifest by which copies are checked."""
    packed = {split: rows.packed() for split, rows in splits.items()}
    has_groups = any(rows.group is not None for rows in splits.values())
    form = WITH_GROUPS if has_groups else FORMAT
    meta = {"format": form, "class_names": list(class_names), "digest": _digest(class_names, packed), "white": white}
    columns = {f"{split}.{name}": column for split, part in packed.items() for name, column in part.items()}
    write_arrays(folder / DIGESTS, {split: rows.digest.astype(np.int64) for split, rows in splits.items()})
    write_arrays(folder / INDEX, {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)} | columns)
    write_json(folder / MANIFEST, {name: _listed(folder / name) for name in (INDEX, DIGESTS)})


def _listed(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return {"sha256": hashlib.file_digest(content, "sha256").hexdigest(), "size": file.stat().st_size}


def read_index(file: Path) -> ShardIndex:
    """Map an index into memory.

    Raises:
        UserError: It is damaged, or not one that ml-shard wrote.
    """
    try:
        arrays = map_arrays(file)
        meta = json.loads(arrays["meta"].tobytes())
        if meta["format"] not in (FORMAT, WITH_GROUPS):
            raise UserError(
                f"{file} has the format {meta['format']}, and this Imago reads {FORMAT} and {WITH_GROUPS}. Type "
                "ml-shard again."
            )
        class_names, white = meta["class_names"], meta["white"]
        splits = {split: _columns_of(file, split, arrays) for split in SPLITS if f"{split}.label" in arrays}
        if any(_is_odd(index, len(class_names)) for index in splits.values()) or "train" not in splits:
            raise ValueError("its columns do not fit each other")
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise ValueError("its class names are no texts")
        if not isinstance(white, str) and white not in WHITES:
            raise ValueError(f"its white is {white}")
        return ShardIndex(class_names, splits, str(meta["digest"]), white)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(
            f"{file} is damaged, or no index of shards ({error}). Copy it again, or write it with "
            "ml-shard FOLDER --output DIR"
        ) from error


def map_arrays(file: Path) -> dict[str, np.ndarray]:
    """Map the arrays of an uncompressed .npz into memory.

    Raises:
        ValueError, zipfile.BadZipFile: The file is damaged, compressed, or has arrays of objects.
    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
        whole = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        for member in archive.infolist():
            raw.seek(member.header_offset)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
            if signature != b"PK\3\4" or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed or damaged")
            raw.seek(name_length + extra_length, 1)
            if np.lib.format.read_magic(raw) != (1, 0):
                raise ValueError(f"{member.filename} has an unknown version")
            shape, _, kind = np.lib.format.read_array_header_1_0(raw)
            if kind.hasobject or len(shape) != 1:
                raise ValueError(f"{member.filename} is no plain column")
            column = np.frombuffer(whole, kind, shape[0], raw.tell()) if shape[0] else np.empty(0, kind)
            arrays[member.filename.removesuffix(".npy")] = column
    return arrays


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed .npz atomically."""
    with atomic_write(file) as temporary, temporary.open("wb") as raw:
        np.savez(raw, **arrays)  # type: ignore[arg-type]


def _reopened(file: Path, split: str) -> SplitIndex:
    return _columns_of(file, split, map_arrays(file))


def _columns_of(file: Path, split: str, arrays: Mapping[str, np.ndarray]) -> SplitIndex:
    names = [*COLUMNS, *[GROUP] * (f"{split}.{GROUP}" in arrays)]
    return SplitIndex(file, split, {name: arrays[f"{split}.{name}"] for name in names})


def _is_odd(index: SplitIndex, classes: int) -> bool:
    """Whether the columns of a split do not fit each other, or point outside. Positions are compared with the size of
    the shard when they are read."""
    if any(getattr(index, name).dtype.kind != "u" for name in COLUMNS):
        return True
    lengths = {len(getattr(index, name)) for name in PER_IMAGE}
    if index.group is not None:
        lengths |= {len(index.group)} if index.group.dtype.kind == "u" else {-1}
    blocks = -(-len(index) // STEP)
    if lengths != {len(index)} or not len(index) or len(index.name_starts) != blocks + 1:
        return True
    starts = index.name_starts
    is_outside = (
        index.label.max() >= classes or index.shard.max() >= len(index.shard_size) or starts[-1] > len(index.names)
    )
    return bool(is_outside or len(index.shard_crc) != len(index.shard_size) or (starts[1:] < starts[:-1]).any())


def _digest(class_names: Sequence[str], packed: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Compute a hash of the images, labels and names, however they are divided into shards."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for split, columns in packed.items():
        digest.update(split.encode())
        for name in ("label", "size", "crc", "names"):
            digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def _small(column: np.ndarray) -> np.ndarray:
    """Convert to the smallest unsigned type that holds all values."""
    return column.astype(np.min_scalar_type(int(column.max()) if len(column) else 0))

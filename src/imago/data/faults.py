"""Everything that can be wrong with a folder of images; nothing in it is changed."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imago.data.decode import FLOAT
from imago.data.folders import class_folders, is_image, split_folders

ERROR, WARNING, NOTE = "error", "warning", "note"
KINDS: dict[str, tuple[str, str]] = {  # level, and what it means
    "unreadable": (ERROR, "files that may not be read, or links that lead nowhere"),
    "empty file": (ERROR, "files of zero bytes"),
    "not an image": (ERROR, "files that no decoder knows"),
    "decompression bomb": (ERROR, "more pixels than are safe to decode, by the header"),
    "damaged": (ERROR, "files that cannot be decoded to their end"),
    "float pixels": (ERROR, FLOAT),
    "empty class": (ERROR, "class folders without images"),
    "unknown class": (ERROR, "classes that train lacks"),
    "leak": (ERROR, "the same file in two splits: scores are too good"),
    "two labels": (ERROR, "the same file under two classes"),
    "dot-underscore file": (WARNING, "what a Mac leaves beside a file; not taken"),
    "ignored file": (WARNING, "files without an image suffix; not taken"),
    "wrong suffix": (WARNING, "files of another format than their name says; they are read all the same"),
    "link loop": (WARNING, "links that lead back into the folder; not followed"),
    "missing class": (WARNING, "classes of train that another split lacks"),
    "tiny class": (WARNING, "classes of train with few images"),
    "imbalance": (WARNING, "the largest class of train against the smallest"),
    "duplicate": (WARNING, "the same file twice in a split"),
    "near-duplicate": (WARNING, "images that look the same"),
    "near-leak": (WARNING, "images that look the same in two splits"),
    "near-duplicate, two labels": (WARNING, "images that look the same under two classes"),
    "16 bits": (NOTE, "scaled to 8 bits when they are read"),
    "turned by EXIF": (NOTE, "turned upright when they are read"),
    "transparent": (NOTE, "laid on white when they are read"),
    "several frames": (NOTE, "the first one is taken"),
}
UNUSABLE = ("unreadable", "empty file", "not an image", "decompression bomb", "damaged", "float pixels")
TINY, IMBALANCED = 10, 10.0
MOST_BITS, MOST_LEVELS = 3, 6.0  # by which near-duplicates may differ: of 64 bits, and in mean grey levels
BANDS = 4  # of 16 bits: two hashes that differ in 3 bits or fewer agree in one of them
MOST_IN_A_BAND = 200  # images that share a band; more than that are all alike in what it sees
FLAT = 2.0  # standard deviation of grey levels below which there is nothing to compare


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; `path` is relative to the folder, `other` is the file it is compared with."""

    kind: str
    path: str
    detail: str = ""
    other: str = ""

    @property
    def level(self) -> str:
        """`error`, `warning` or `note`."""
        return KINDS[self.kind][0]


@dataclass
class Findings:
    """What was found in `root`: the faults, how many images were looked at, and which files had better be left out."""

    root: Path
    images: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    faults: list[Fault] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """2 with errors, 1 with warnings, else 0."""
        levels = {fault.level for fault in self.faults}
        return 2 if ERROR in levels else 1 if WARNING in levels else 0

    def of_kind(self) -> dict[str, list[Fault]]:
        """In the order of `KINDS`."""
        found = {kind: [fault for fault in self.faults if fault.kind == kind] for kind in KINDS}
        return {kind: faults for kind, faults in found.items() if faults}

    def to_exclude(self) -> dict[str, str]:
        """Path -> why: what cannot be used, all but one of equal files, train's copies of other splits' images, and all
        files that have two labels."""
        excluded = {fault.path: fault.kind for fault in self.faults if fault.kind in (*UNUSABLE, "duplicate")}
        for fault in self.faults:
            if fault.kind == "leak":
                excluded[fault.path] = f"leak: {fault.other}"
            elif fault.kind == "two labels":
                excluded |= {fault.path: f"two labels: {fault.other}", fault.other: f"two labels: {fault.path}"}
        return dict(sorted(excluded.items()))


@dataclass(frozen=True)
class _Seen:
    """A file that was looked at."""

    path: str
    split: str
    label: str
    faults: tuple[Fault, ...]
    digest: bytes = b""
    hash: int | None = None
    small: Any = None  # uint8 (8, 8, 3)


def find_faults(root: Path, workers: int) -> Findings:
    """Looks at every file below `root`, a folder as `data.data_dir` takes it.

    Raises:
        FileNotFoundError, ValueError: It is no such folder.
    """
    found = Findings(root)
    files: list[tuple[str, str, Path]] = []
    folders = split_folders(root)
    names = {split: sorted(class_folders(folder)) for split, folder in folders.items()}
    for split, folder in folders.items():
        for name in names[split]:
            images = list(_files(root, folder / name, found))
            files += [(split, name, file) for file in images]
            found.counts.setdefault(split, {})[name] = len(images)
            if not images:
                found.faults.append(Fault("empty class", _below(root, folder / name)))
    found.faults += _class_faults(found.counts, names)
    with ThreadPoolExecutor(workers) as pool:  # decoders and hashes let go of the interpreter
        seen = list(pool.map(lambda entry: _look(root, *entry), files))
    found.images = len(seen)
    found.faults += [fault for each in seen for fault in each.faults]
    found.faults += _same_files(seen)
    found.faults += _alike(seen)
    return found


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _files(root: Path, folder: Path, found: Findings) -> Iterator[Path]:
    """Those that are taken for images; the others become faults."""
    walked: set[str] = set()

    def refused(error: OSError) -> None:
        found.faults.append(Fault("unreadable", _below(root, Path(error.filename)), str(error.strerror)))

    for directory, names, files in os.walk(folder, followlinks=True, onerror=refused):
        real = os.path.realpath(directory)
        if real in walked:
            found.faults.append(Fault("link loop", _below(root, Path(directory)), f"leads to {real}"))
            names.clear()
            continue
        walked.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(directory, name)
            if is_image(name):
                yield path
            elif name.startswith("._"):
                found.faults.append(Fault("dot-underscore file", _below(root, path)))
            else:
                found.faults.append(Fault("ignored file", _below(root, path)))


def _class_faults(counts: Mapping[str, Mapping[str, int]], names: Mapping[str, list[str]]) -> Iterator[Fault]:
    train = counts.get("train", {})
    for split in names:
        if split != "train":
            yield from (Fault("unknown class", f"{split}/{name}") for name in names[split] if name not in train)
            yield from (Fault("missing class", f"{split}/{name}") for name in train if name not in names[split])
    filled = {name: count for name, count in train.items() if count}
    for name, count in filled.items():
        if count < TINY:
            yield Fault("tiny class", f"train/{name}", f"{count} images")
    if filled and max(filled.values()) / min(filled.values()) > IMBALANCED:
        most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        ratio = filled[most] / filled[least]
        detail = f"{filled[most]} against {filled[least]} of {least}: {ratio:.0f} times"
        yield Fault("imbalance", f"train/{most}", detail)


def _look(root: Path, split: str, label: str, file: Path) -> _Seen:
    path = _below(root, file)

    def seen(*faults: tuple[str, str], **more: Any) -> _Seen:
        return _Seen(path, split, label, tuple(Fault(kind, path, detail) for kind, detail in faults), **more)

    try:
        content = file.read_bytes()
    except OSError as error:
        return seen(("unreadable", str(error.strerror or error)))
    if not content:
        return seen(("empty file", ""))
    digest = hashlib.sha256(content).digest()
    try:
        image = Image.open(BytesIO(content))
    except Image.DecompressionBombError as error:
        return seen(("decompression bomb", str(error)), digest=digest)
    except Exception as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        return seen(("not an image" if unknown else "damaged", "" if unknown else str(error)), digest=digest)
    with image:
        faults = list(_header_faults(file, image))
        if any(kind in UNUSABLE for kind, _ in faults):
            return seen(*faults, digest=digest)
        try:
            image.load()
            small = np.asarray(image.convert("RGB").resize((72, 72), Image.Resampling.BOX, reducing_gap=2.0))
        except Exception as error:  # Pillow's decoders raise whatever the damage leads them into
            return seen(*faults, ("damaged", str(error)), digest=digest)
    return seen(*faults, digest=digest, hash=_difference_hash(small), small=_mean_blocks(small, 8, 8).astype(np.uint8))


def _header_faults(file: Path, image: Image.Image) -> Iterator[tuple[str, str]]:
    expected = Image.registered_extensions().get(file.suffix.lower())
    if expected is not None and image.format not in (expected, "MPO"):
        yield "wrong suffix", f"it is {image.format}"
    if image.mode == "F":
        yield "float pixels", ""
    if image.mode.startswith("I"):
        yield "16 bits", ""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        yield "transparent", ""
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        yield "several frames", f"{image.n_frames}"  # type: ignore[attr-defined]
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data do not make the pixels worse
        orientation = 1
    if orientation not in (0, 1):
        yield "turned by EXIF", f"orientation {orientation}"


def _mean_blocks(pixels: Any, rows: int, columns: int) -> Any:
    """Means of (72, 72, 3) over a grid; 72 is a multiple of 8 and of 9."""
    return pixels.reshape(rows, 72 // rows, columns, 72 // columns, 3).mean(axis=(1, 3))


def _difference_hash(pixels: Any) -> int | None:
    """64 bits: whether each of 8x9 grey fields is lighter than its right neighbour; None of an even surface."""
    grey = _mean_blocks(pixels, 8, 9).mean(axis=2)
    if grey.std() < FLAT:
        return None
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def _same_files(seen: Iterable[_Seen]) -> Iterator[Fault]:
    by_digest: dict[bytes, list[_Seen]] = defaultdict(list)
    for each in seen:
        if each.digest:
            by_digest[each.digest].append(each)
    for group in by_digest.values():
        first = group[0]
        for other in group[1:]:
            if other.label != first.label:
                yield Fault("two labels", other.path, other=first.path)
            elif other.split != first.split:
                inside, outside = (first, other) if first.split == "train" else (other, first)
                yield Fault("leak", inside.path, other=outside.path)
            else:
                yield Fault("duplicate", other.path, other=first.path)


def _alike(seen: Iterable[_Seen]) -> Iterator[Fault]:
    """Pairs whose hashes differ in few bits, and whose 8x8 colours hardly differ; not those that are the same file."""
    bands: dict[tuple[int, int], list[_Seen]] = defaultdict(list)
    for each in seen:
        if each.hash is not None:
            for band in range(BANDS):
                bands[band, each.hash >> (16 * band) & 0xFFFF].append(each)
    compared: set[tuple[str, str]] = set()
    for group in bands.values():
        if not 1 < len(group) <= MOST_IN_A_BAND:
            continue
        for one, other in combinations(group, 2):
            pair = one.path, other.path
            if pair not in compared and _is_alike(one, other):
                compared.add(pair)
                kind = "near-duplicate" if one.split == other.split else "near-leak"
                kind = "near-duplicate, two labels" if one.label != other.label else kind
                yield Fault(kind, one.path, other=other.path)


def _is_alike(one: _Seen, other: _Seen) -> bool:
    assert one.hash is not None
    assert other.hash is not None
    if one.digest == other.digest or (one.hash ^ other.hash).bit_count() > MOST_BITS:
        return False
    return float(np.abs(one.small.astype(float) - other.small.astype(float)).mean()) <= MOST_LEVELS

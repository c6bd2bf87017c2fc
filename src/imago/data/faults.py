"""Everything that can be wrong with a folder of images; nothing in it is changed."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from imago.data.colour import profile_use, range_of, to_rgb
from imago.data.decode import NO_FILE, NotDecodedError, damage, open_image, shape_of
from imago.data.folders import SUFFIXES, class_folders, is_hidden, is_image, labelled_splits, read_tree, walk
from imago.data.formats import check_kind, first_page
from imago.data.stages import SEEN, BoxOf, seen_fraction

ERROR, WARNING, NOTE = "error", "warning", "note"
KINDS: dict[str, tuple[str, str]] = {  # level, and what it means
    "unreadable": (ERROR, "files that may not be read, or links that lead nowhere"),
    "empty file": (ERROR, "files of zero bytes"),
    "not an image": (ERROR, "files that no decoder knows"),
    "decompression bomb": (ERROR, "more pixels than are safe to decode, by the header"),
    "damaged": (ERROR, "files that cannot be decoded to their end"),
    "unsupported pixels": (ERROR, "files whose pixels decoders would read wrongly, such as floats"),
    "empty class": (ERROR, "class folders without an image that can be used"),
    "unknown class": (ERROR, "classes that train lacks"),
    "same folder": (ERROR, "classes that are one folder under two names, through a link"),
    "refused": (ERROR, "the folder cannot be trained on as it is"),
    "leak": (ERROR, "the same file in two splits: scores are too good"),
    "two labels": (ERROR, "the same file under two classes"),
    "dot-underscore file": (WARNING, "what a Mac leaves beside a file; not taken"),
    "ignored file": (
        WARNING,
        f"files in no class folder, or without one of {' '.join(SUFFIXES)}; not taken",
    ),
    "unused folder": (WARNING, "folders beside the splits"),
    "damaged inside": (WARNING, "JPEGs that are read to their end, with wrong pixels from some place on"),
    "cut off": (WARNING, "little of a picture is seen; data.fit=pad or data.fit=squash shows all of it"),
    "wrong suffix": (WARNING, "files of another format than their name says; they are read all the same"),
    "link loop": (WARNING, "links that lead back into the folder; not followed"),
    "missing class": (WARNING, "classes of train that another split lacks"),
    "tiny class": (WARNING, "classes of train with few images"),
    "imbalance": (WARNING, "the largest class of train against the smallest"),
    "duplicate": (WARNING, "the same file twice in a split; a leak if val is drawn from it"),
    "near-duplicate": (WARNING, "images that look the same"),
    "near-leak": (WARNING, "images that look the same in two splits"),
    "near-duplicate, two labels": (WARNING, "images that look the same under two classes"),
    "16 bits": (NOTE, "scaled to 8 bits when they are read"),
    "part of the range": (NOTE, "16-bit images of a camera with fewer bits; data.range=auto takes its white for white"),
    "colour profile": (NOTE, "converted to sRGB when they are read (data.icc=true)"),
    "unusable colour profile": (NOTE, "left as they are: their profile does not fit them"),
    "unlabelled": (NOTE, "a test folder without class folders; not used"),
    "part of the picture": (NOTE, "the ends of pictures are not seen; data.fit=pad or data.fit=squash shows all of it"),
    "turned by EXIF": (NOTE, "turned upright when they are read"),
    "transparent": (NOTE, "laid on white when they are read"),
    "several frames": (NOTE, "the first one is taken"),
}
UNUSABLE = ("unreadable", "empty file", "not an image", "decompression bomb", "damaged", "unsupported pixels")
ORDER = ("train", "val", "test")
NEAR = ("near-duplicate, two labels", "near-leak", "near-duplicate")
TINY, IMBALANCED = 10, 10.0
MOST_CUT, MUCH_CUT = SEEN, SEEN / 2  # of a picture that is seen
MOST_BITS, MOST_LEVELS = 3, 6.0  # by which near-duplicates may differ: of 64 bits, and in mean grey levels
BANDS = 4  # of 16 bits: two hashes that differ in 3 bits or fewer agree in one of them
WINDOW = 200  # images that share a band and are compared with each other: in the order of their hashes, where more do
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
        """Path -> why: images that cannot be used, all but one of equal files (that of test stays, or else of val), and
        all files that have two labels."""
        excluded: dict[str, str] = {}
        for fault in self.faults:
            is_bad = fault.kind in UNUSABLE and is_image(Path(fault.path).name)
            if is_bad or fault.kind in ("duplicate", "leak"):
                excluded.setdefault(fault.path, fault.kind + (f": {fault.other}" if fault.other else ""))
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
    largest: int = 0  # value of an image of 16 bits
    fraction: float | None = None  # of the picture that is seen

    @property
    def is_usable(self) -> bool:
        return not any(fault.kind in UNUSABLE for fault in self.faults)


def find_faults(root: Path, workers: int, excluded: Container[str] = (), box: BoxOf | None = None) -> Findings:
    """Looks at every file below `root`, a folder as `data.data_dir` takes it, but the images that are `excluded`.

    `box` is what is seen of an image that is scored.

    Raises:
        FileNotFoundError, ValueError: It is no such folder.
    """
    found = Findings(root)
    files: list[tuple[str, str, Path]] = []
    folders, unlabelled = labelled_splits(root)
    found.faults += [Fault("unlabelled", _below(root, folder)) for folder in unlabelled]
    found.faults += [fault for fault in _outside_classes(root, folders) if root / fault.path not in unlabelled]
    names: dict[str, list[str]] = {}
    aliases: dict[str, list[str]] = {}
    for split, folder in folders.items():
        try:
            found_names = sorted(class_folders(folder))
        except PermissionError as error:
            found.faults.append(Fault("unreadable", _below(root, folder), str(error.strerror)))
            continue
        first_name: dict[str, str] = {}  # real path -> class
        for name in found_names:
            same = first_name.setdefault(os.path.realpath(folder / name), name)
            if same != name:
                found.faults.append(Fault("same folder", _below(root, folder / name), f"it is {same}"))
                aliases.setdefault(split, []).append(name)
                continue
            names.setdefault(split, []).append(name)
            images = _files(root, folder / name, found)
            files += [(split, name, file) for file in images if _below(root, file) not in excluded]
    with ThreadPoolExecutor(workers) as pool:  # decoders and hashes let go of the interpreter
        seen = list(pool.map(lambda entry: _look(root, box, *entry), files))
    found.images = len(seen)
    found.counts = {split: dict.fromkeys(names[split], 0) for split in names}
    for each in seen:
        found.counts[each.split][each.label] += each.is_usable
    found.faults += _class_faults(root, folders, found.counts, aliases)
    found.faults += [fault for each in seen for fault in each.faults]
    found.faults += _of_the_set(seen)
    found.faults += _same_files(seen)
    found.faults += _alike(seen)
    try:
        read_tree(root, 0.1, 0)
    except (OSError, ValueError) as error:
        found.faults.append(Fault("refused", ".", str(error)))
    return found


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _outside_classes(root: Path, folders: Mapping[str, Path]) -> Iterator[Fault]:
    """Files in no class folder, and folders in no split."""
    has_splits = root not in folders.values()
    for folder in dict.fromkeys([root, *folders.values()]):
        with suppress(PermissionError):  # told elsewhere
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    yield _ignored(root, path)
                elif has_splits and folder == root and _is_unused(path, folders):
                    yield Fault("unused folder", _below(root, path))


def _is_unused(path: Path, folders: Mapping[str, Path]) -> bool:
    return path.is_dir() and not is_hidden(path.name) and path not in folders.values()


def _ignored(root: Path, path: Path) -> Fault:
    return Fault("dot-underscore file" if path.name.startswith("._") else "ignored file", _below(root, path))


def _files(root: Path, folder: Path, found: Findings) -> Iterator[Path]:
    """Those that are taken for images; the others become faults."""

    def loop(path: Path) -> None:
        found.faults.append(Fault("link loop", _below(root, path), f"leads to {os.path.realpath(path)}"))

    def unreadable(error: OSError) -> None:
        found.faults.append(Fault("unreadable", _below(root, Path(error.filename)), str(error.strerror)))

    for path in walk(folder, loop, unreadable):
        if is_image(path.name):
            yield path
        else:
            found.faults.append(_ignored(root, path))


def _class_faults(
    root: Path, folders: Mapping[str, Path], counts: Mapping[str, Mapping[str, int]], aliases: Mapping[str, list[str]]
) -> Iterator[Fault]:
    for split, classes in counts.items():
        yield from (Fault("empty class", _below(root, folders[split] / name)) for name, n in classes.items() if not n)
    train = counts.get("train", {})
    filled = {name: count for name, count in train.items() if count}
    known = {split: {*classes, *aliases.get(split, [])} for split, classes in counts.items()}
    for split in counts.keys() - {"train"}:
        unknown = sorted(known[split] - known.get("train", set()))
        yield from (Fault("unknown class", f"{split}/{name}") for name in unknown)
        yield from (Fault("missing class", f"{split}/{name}") for name in filled if name not in known[split])
    for name, count in filled.items():
        if count < TINY:
            yield Fault("tiny class", f"train/{name}", f"{count} images")
    if filled and max(filled.values()) / min(filled.values()) > IMBALANCED:
        most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        ratio = filled[most] / filled[least]
        detail = f"{filled[most]} against {filled[least]} of {least}: {ratio:.0f} times"
        yield Fault("imbalance", f"train/{most}", detail)


def _of_the_set(seen: Sequence[_Seen]) -> Iterator[Fault]:
    """What many images have in common."""
    train = [each for each in seen if each.split == "train"]
    largest = max((each.largest for each in train), default=0)
    if largest and range_of(largest) < 65535:
        detail = f"their largest value is {largest}, of 65535: data.range={range_of(largest)}, or auto"
        yield Fault("part of the range", next(each.path for each in train if each.largest == largest), detail)
    fractions = sorted(each.fraction for each in train if each.fraction is not None)
    if fractions and (median := fractions[len(fractions) // 2]) < MOST_CUT:
        kind = "cut off" if median < MUCH_CUT else "part of the picture"
        yield Fault(kind, "train", f"the network sees {median:.0%} of a picture (median)")


def _look(root: Path, box: BoxOf | None, split: str, label: str, file: Path) -> _Seen:
    path = _below(root, file)

    def seen(*faults: tuple[str, str], **more: Any) -> _Seen:
        return _Seen(path, split, label, tuple(Fault(kind, path, detail) for kind, detail in faults), **more)

    try:
        if file.exists() and not file.is_file():
            return seen(("unreadable", NO_FILE))
        content = file.read_bytes()
    except OSError as error:
        return seen(("unreadable", str(error.strerror or error)))
    if not content:
        return seen(("empty file", ""))
    digest = hashlib.sha256(content).digest()
    try:
        with open_image(BytesIO(content)) as image:
            try:
                check_kind(image)
            except ValueError as error:
                return seen(("unsupported pixels", str(error)), digest=digest)
            first_page(image)
            image.load()  # before its EXIF data, which would load a PNG and take its damage for theirs
            largest = int(np.asarray(image).max()) if image.mode.startswith("I") else 0
            small = np.asarray(to_rgb(image).resize((72, 72), Image.Resampling.BOX, reducing_gap=2.0))
            faults = list(_oddities(file, image))  # last: it may leave a damaged later frame behind
    except Image.DecompressionBombError as error:
        return seen(("decompression bomb", str(error)), digest=digest)
    except NotDecodedError as error:
        return seen(("not an image", str(error)), digest=digest)
    except Exception as error:  # Pillow's decoders raise whatever the damage leads them into
        return seen(("damaged", str(error) or type(error).__name__), digest=digest)
    if inside := damage(content):
        faults.append(("damaged inside", inside))
    shape = shape_of(file) if box is not None else None
    return seen(
        *faults,
        digest=digest,
        hash=_difference_hash(small),
        small=_mean_blocks(small, 8, 8).astype(np.uint8),
        largest=largest,
        fraction=seen_fraction(box, *shape) if box is not None and shape is not None else None,
    )


def _oddities(file: Path, image: Image.Image) -> Iterator[tuple[str, str]]:
    """What is not plain about an image that can be read."""
    expected = Image.registered_extensions().get(file.suffix.lower())
    if expected is not None and image.format not in (expected, "MPO" if expected == "JPEG" else expected):
        yield "wrong suffix", f"it is {image.format}"
    if image.mode.startswith("I"):
        yield "16 bits", ""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        yield "transparent", ""
    with suppress(Exception):  # a later frame may be damaged; the first one is taken
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            yield "several frames", f"{image.n_frames}"  # type: ignore[attr-defined]
    orientation = 1
    with suppress(Exception):  # damaged EXIF data do not make the pixels worse
        orientation = image.getexif().get(0x0112, 1)
    if use := profile_use(image):
        yield "colour profile" if use == "converted" else "unusable colour profile", ""
    if orientation in range(2, 9):
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
        kept = max(group, key=lambda each: ORDER.index(each.split))  # the first one of them
        for each in group:
            other = next((one for one in group if one.label != each.label), None)
            if other is not None and each is not group[0]:
                yield Fault("two labels", each.path, other=other.path)
            if each.split != kept.split:
                yield Fault("leak", each.path, other=kept.path)
            elif each is not kept and other is None:
                yield Fault("duplicate", each.path, other=kept.path)


def _alike(seen: Iterable[_Seen]) -> Iterator[Fault]:
    """Images whose hashes differ in few bits, and whose 8x8 colours hardly differ: each once, with one that it is like.

    Of files that are the same, the first one stands for all.
    """
    bands: dict[tuple[int, int], list[_Seen]] = defaultdict(list)
    for each in {each.digest: each for each in reversed(list(seen)) if each.hash is not None}.values():
        for band in range(BANDS):
            assert each.hash is not None
            bands[band, each.hash >> (16 * band) & 0xFFFF].append(each)
    found: list[Fault] = []
    for group in bands.values():
        group.sort(key=lambda each: (each.hash, each.path))
        for first in range(0, max(1, len(group) - WINDOW // 2), WINDOW // 2):
            found += _alike_pairs(group[first : first + WINDOW])
    yield from _joined(found)


def _alike_pairs(group: Sequence[_Seen]) -> list[Fault]:
    """As many pairs as hold together what is alike, the worst kinds first: thousands of pictures may be."""
    if len(group) < 2:
        return []
    hashes = np.array([each.hash for each in group], dtype=np.uint64)
    differing = (hashes[:, None] ^ hashes[None, :]).view(np.uint8).reshape(len(group), len(group), 8)
    bits = np.unpackbits(differing, axis=2).sum(axis=2)
    ones, others = np.nonzero(np.triu(bits <= MOST_BITS, k=1))
    small = np.stack([each.small for each in group]).astype(np.int16)
    close = np.abs(small[ones] - small[others]).mean(axis=(1, 2, 3)) <= MOST_LEVELS
    ones, others = ones[close], others[close]
    splits, labels = (np.array([getattr(each, name) for each in group]) for name in ("split", "label"))
    rank = np.where(labels[ones] != labels[others], 1, np.where(splits[ones] != splits[others], 2, 3))  # as in NEAR
    tree = minimum_spanning_tree(coo_array((rank, (ones, others)), shape=bits.shape)).tocoo()
    return [_near(group[one], group[other]) for one, other in zip(tree.row, tree.col, strict=True)]


def _near(one: _Seen, other: _Seen) -> Fault:
    kind = "near-duplicate" if one.split == other.split else "near-leak"
    kind = "near-duplicate, two labels" if one.label != other.label else kind
    first, second = sorted((one, other), key=lambda each: (ORDER.index(each.split), each.path))
    return Fault(kind, first.path, other=second.path)


def _joined(pairs: Iterable[Fault]) -> list[Fault]:
    """The same for pairs of several windows."""
    group_of: dict[str, str] = {}

    def group(path: str) -> str:
        while (up := group_of.get(path, path)) != path:
            group_of[path] = path = group_of.get(up, up)
        return path

    kept = []
    for fault in sorted(pairs, key=lambda fault: (NEAR.index(fault.kind), fault.path, fault.other)):
        one, other = group(fault.path), group(fault.other)
        if one != other:
            group_of[one] = other
            kept.append(fault)
    return kept

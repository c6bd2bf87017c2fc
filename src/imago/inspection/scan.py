"""Scan of a folder of images for everything that can be wrong; nothing in it is changed."""

import hashlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from imago.data.colour import profile_use, range_of, to_rgb
from imago.data.crops import SEEN, CropPolicy, seen_fraction
from imago.data.decode import NO_FILE, NotDecodedError, damage, open_image
from imago.data.folders import class_folders, labelled_splits, read_tree
from imago.data.formats import check_kind, first_page
from imago.data.headers import shape_of
from imago.data.tree import is_hidden, is_image, is_photo_not_read, walk
from imago.inspection.duplicates import difference_hash, exact_duplicates, mean_blocks, near_duplicates
from imago.inspection.issues import Findings, ImageFacts, Issue
from imago.terminal import counted

TINY, IMBALANCED = 10, 10.0
MOST_CUT, MUCH_CUT = SEEN, SEEN / 2  # fractions of a picture that is seen


def find_issues(root: Path, workers: int, excluded: Container[str] = (), box: CropPolicy | None = None) -> Findings:
    """Check every file below `root`, a folder as `data.data_dir` takes it, except the images that are `excluded`.

    `box` is the crop of an image that is scored.

    Raises:
        FileNotFoundError, ValueError: `root` is no such folder.
    """
    findings = Findings(root)
    files: list[tuple[str, str, Path]] = []
    folders, unlabelled = labelled_splits(root)
    findings.faults += [Issue("unlabelled", _below(root, folder)) for folder in unlabelled]
    findings.faults += [fault for fault in _outside_classes(root, folders) if root / fault.path not in unlabelled]
    names: dict[str, list[str]] = {}
    aliases: dict[str, list[str]] = {}
    for split, folder in folders.items():
        try:
            class_names = sorted(class_folders(folder))
        except PermissionError as error:
            findings.faults.append(Issue("unreadable", _below(root, folder), str(error.strerror)))
            continue
        first_name: dict[str, str] = {}  # real path -> class
        for name in class_names:
            same = first_name.setdefault(os.path.realpath(folder / name), name)
            if same != name:
                findings.faults.append(Issue("same folder", _below(root, folder / name), f"it is {same}"))
                aliases.setdefault(split, []).append(name)
                continue
            names.setdefault(split, []).append(name)
            images = _files(root, folder / name, findings)
            files += [(split, name, file) for file in images if _below(root, file) not in excluded]
    with ThreadPoolExecutor(workers) as pool:  # decoders and hashes release the GIL
        seen = list(pool.map(lambda entry: _look(root, box, *entry), files))
    conclude(findings, seen, folders, names, aliases)
    try:
        read_tree(root, 0.1, 0)
    except (OSError, ValueError) as error:
        findings.faults.append(Issue("refused", ".", str(error)))
    return findings


def conclude(
    findings: Findings,
    seen: Sequence[ImageFacts],
    folders: Mapping[str, Path],
    names: Mapping[str, Sequence[str]],
    aliases: Mapping[str, list[str]],
) -> None:
    """Add counts and faults of all images that were looked at; `names` are the classes of each split, `aliases` those
    that are the same folder as another one."""
    findings.images = len(seen)
    findings.counts = {split: dict.fromkeys(names[split], 0) for split in names}
    for image in seen:
        findings.counts[image.split][image.label] += image.is_usable
    findings.faults += _class_faults(findings.root, folders, findings.counts, aliases)
    findings.faults += [fault for image in seen for fault in image.faults]
    findings.faults += _of_the_set(seen)
    findings.faults += exact_duplicates(seen)
    findings.faults += near_duplicates(seen)


def duplicate_pairs(root: Path, paths: Sequence[str], labels: Sequence[str], workers: int) -> list[tuple[str, str]]:
    """Pairs of images that are the same file or look alike; chains of pairs connect all that do. All are decoded."""
    with ThreadPoolExecutor(workers) as pool:
        seen = list(pool.map(lambda path, label: _look(root, None, "train", label, root / path), paths, labels))
    pairs = chain(exact_duplicates(seen), near_duplicates(seen))
    return [(fault.path, fault.other) for fault in pairs if fault.other]


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _outside_classes(root: Path, folders: Mapping[str, Path]) -> Iterator[Issue]:
    """Yield issues for files in no class folder, and folders in no split."""
    has_splits = root not in folders.values()
    for folder in dict.fromkeys([root, *folders.values()]):
        with suppress(PermissionError):  # reported elsewhere
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    yield _ignored(root, path)
                elif has_splits and folder == root and _is_unused(path, folders):
                    yield Issue("unused folder", _below(root, path))


def _is_unused(path: Path, folders: Mapping[str, Path]) -> bool:
    return path.is_dir() and not is_hidden(path.name) and path not in folders.values()


def _ignored(root: Path, path: Path) -> Issue:
    if is_photo_not_read(path.name):
        return Issue("format not read", _below(root, path))
    return Issue("dot-underscore file" if path.name.startswith("._") else "ignored file", _below(root, path))


def _files(root: Path, folder: Path, findings: Findings) -> Iterator[Path]:
    """Yield the files that are taken for images; the rest become faults."""

    def loop(path: Path) -> None:
        findings.faults.append(Issue("link loop", _below(root, path), f"leads to {os.path.realpath(path)}"))

    def unreadable(error: OSError) -> None:
        findings.faults.append(Issue("unreadable", _below(root, Path(error.filename)), str(error.strerror)))

    for path in walk(folder, loop, unreadable):
        if is_image(path.name):
            yield path
        else:
            findings.faults.append(_ignored(root, path))


def _class_faults(
    root: Path, folders: Mapping[str, Path], counts: Mapping[str, Mapping[str, int]], aliases: Mapping[str, list[str]]
) -> Iterator[Issue]:
    for split, classes in counts.items():
        yield from (Issue("empty class", _below(root, folders[split] / name)) for name, n in classes.items() if not n)
    train = counts.get("train", {})
    filled = {name: count for name, count in train.items() if count}
    known = {split: {*classes, *aliases.get(split, [])} for split, classes in counts.items()}
    for split in counts.keys() - {"train"}:
        unknown = sorted(known[split] - known.get("train", set()))
        yield from (Issue("unknown class", f"{split}/{name}") for name in unknown)
        yield from (Issue("missing class", f"{split}/{name}") for name in filled if name not in known[split])
    for name, count in filled.items():
        if count < TINY:
            yield Issue("tiny class", f"train/{name}", counted(count, "image"))
    if filled and max(filled.values()) / min(filled.values()) > IMBALANCED:
        most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
        ratio = filled[most] / filled[least]
        detail = f"{counted(filled[most], 'image')}, {ratio:.0f} times the {filled[least]} of {least}"
        yield Issue("imbalance", f"train/{most}", detail)


def _of_the_set(seen: Sequence[ImageFacts]) -> Iterator[Issue]:
    """Yield issues that many images have in common."""
    train = [image for image in seen if image.split == "train"]
    largest = max((image.largest for image in train), default=0)
    if largest and range_of(largest) < 65535:
        detail = f"the largest value is {largest} of 65535: type data.range={range_of(largest)}, or auto"
        yield Issue("part of the range", next(image.path for image in train if image.largest == largest), detail)
    fractions = sorted(image.fraction for image in train if image.fraction is not None)
    if fractions and (median := fractions[len(fractions) // 2]) < MOST_CUT:
        kind = "cut off" if median < MUCH_CUT else "part of the picture"
        yield Issue(kind, "train", f"the network sees {median:.0%} of an image (median)")


def _look(root: Path, box: CropPolicy | None, split: str, label: str, file: Path) -> ImageFacts:
    return look(file, box, split, label, _below(root, file))


def look(file: Path, box: CropPolicy | None, split: str, label: str, path: str) -> ImageFacts:
    """Look at an image file, which messages call `path`."""

    def unreadable(why: str) -> ImageFacts:
        return ImageFacts(path, split, label, (Issue("unreadable", path, why),))

    try:
        if file.exists() and not file.is_file():
            return unreadable(NO_FILE)
        content = file.read_bytes()
    except OSError as error:
        return unreadable(str(error.strerror or error))
    return look_at(content, box, split, label, path)


def look_at(content: bytes, box: CropPolicy | None, split: str, label: str, path: str) -> ImageFacts:
    """Look at the content of an image file."""

    def seen(*faults: tuple[str, str], **facts: Any) -> ImageFacts:
        return ImageFacts(path, split, label, tuple(Issue(kind, path, detail) for kind, detail in faults), **facts)

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
            image.load()  # before the EXIF data, which would load a PNG and mistake its damage for theirs
            largest = int(np.asarray(image).max()) if image.mode.startswith("I") else 0
            small = np.asarray(to_rgb(image).resize((72, 72), Image.Resampling.BOX, reducing_gap=2.0))
            faults = list(_oddities(path, image))  # last: it may leave a damaged later frame behind
    except Image.DecompressionBombError as error:
        return seen(("decompression bomb", str(error)), digest=digest)
    except NotDecodedError as error:
        return seen(("not an image", str(error)), digest=digest)
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged files
        return seen(("damaged", str(error) or type(error).__name__), digest=digest)
    if inside := damage(content):
        faults.append(("damaged inside", inside))
    shape = shape_of(BytesIO(content)) if box is not None else None
    return seen(
        *faults,
        digest=digest,
        hash=difference_hash(small),
        small=mean_blocks(small, 8, 8).astype(np.uint8),
        largest=largest,
        fraction=seen_fraction(box, *shape) if box is not None and shape is not None else None,
    )


def _oddities(path: str, image: Image.Image) -> Iterator[tuple[str, str]]:
    """Yield what is unusual about a readable image."""
    expected = Image.registered_extensions().get(PurePosixPath(path).suffix.lower())
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
    with suppress(Exception):  # damaged EXIF data do not affect the pixels
        orientation = image.getexif().get(0x0112, 1)
    if use := profile_use(image):
        yield "colour profile" if use == "converted" else "unusable colour profile", ""
    if orientation in range(2, 9):
        yield "turned by EXIF", f"orientation {orientation}"

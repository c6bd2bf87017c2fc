"""Files below a folder: images, hidden folders, and the class that a path means."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from imago.data.formats import FORMATS
from imago.definitions import SPLIT_NAMES

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"),
    *((".avif",) if "AVIF" in FORMATS else ()),
)
NOT_READ = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Photographs as telephones and cameras may save them, which no decoder here reads."""
PLACEHOLDERS = ("imagenotfound.gif", "image_not_found.gif", "photo_unavailable.gif")
"""Files that some web sites send instead of a missing picture."""
HIDDEN = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "__macosx"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
"""Hidden folders of network drives, archives and file systems, besides those that begin with a dot."""


def class_name(text: str) -> str:
    """Normalise a folder's name, or a label in a list, to a class name: Macs and archives write accents in two ways
    (NFC and NFD) that look alike."""
    return unicodedata.normalize("NFC", text)


def label_of(folders: Sequence[str], class_names: Sequence[str]) -> int | None:
    """Return the label of an image in `folders` (outermost first): the first that is a class, as in training."""
    labels = {name: label for label, name in enumerate(class_names)}
    return next((labels[class_name(folder)] for folder in folders if class_name(folder) in labels), None)


def folders_of_class(root: Path, file: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the folders from `root` to a file, outermost first, without that of its split: a folder named like a split
    is one if a class folder follows."""
    folders = file.relative_to(root).parts[:-1]
    is_split = len(folders) > 1 and folders[0].lower() in {name for names in SPLIT_NAMES.values() for name in names}
    return folders[1:] if is_split and class_name(folders[1]) in class_names else folders


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def is_hidden(name: str) -> bool:
    """Whether a folder belongs to a system or program rather than the user."""
    return name.startswith(".") or name.casefold() in HIDDEN


def files_below(folder: Path) -> list[Path]:
    """Return all files below `folder`, sorted, without hidden folders and links that lead back into the walk.

    Raises:
        OSError: A folder in it cannot be listed.
    """
    return sorted(walk(folder, loop=lambda path: None, unreadable=refuse_unreadable))


def refuse_unreadable(error: OSError) -> NoReturn:
    """Raise the error of a folder that cannot be listed, in `walk`."""
    raise error


def walk(folder: Path, loop: Callable[[Path], object], unreadable: Callable[[OSError], object]) -> Iterator[Path]:
    """Yield the files below `folder`, except in hidden folders. Links to folders are followed, but not to folders that
    were visited or that contain `folder`: `loop` is called with those."""
    seen = {os.path.realpath(parent) for parent in Path(os.path.abspath(folder)).parents}
    for directory, names, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(directory)
        if real in seen:
            loop(Path(directory))
            names.clear()
            continue
        seen.add(real)
        visible = [name for name in names if not is_hidden(name)]
        names[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(directory, name)), name))
        yield from (Path(directory, name) for name in sorted(files))


def is_image(name: str) -> bool:
    """Whether a file name is that of an image: by its suffix, and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and name.lower() not in PLACEHOLDERS


def divide_skipped(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the paths of skipped files into those of photographs in a format that is not read, and the others."""
    photos = [path for path in paths if is_photo_not_read(path)]
    return photos, [path for path in paths if not is_photo_not_read(path)]


def is_photo_not_read(path: str) -> bool:
    """Whether a path is that of a photograph in a format that is not read."""
    name = os.path.basename(path).lower()
    return name.endswith(NOT_READ) and not name.endswith(SUFFIXES) and not name.startswith(".")


def stat_fingerprint(path: Path | str) -> tuple[int, ...]:
    """Return size in bytes and modification time in ns; empty if there is no file."""
    try:
        stat = os.stat(path)
    except OSError:  # a link that leads nowhere
        return ()
    return stat.st_size, stat.st_mtime_ns

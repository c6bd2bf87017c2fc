"""Files below a folder: which are images, which are hidden, and what a list of paths says."""

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
PLACEHOLDERS = ("imagenotfound.gif", "image_not_found.gif", "photo_unavailable.gif")
"""What some web sites give for a picture that is gone."""
HIDDEN = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "__macosx"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
"""Folders of network drives, archives and file systems, besides those that begin with a dot."""


def class_name(text: str) -> str:
    """A folder's name, or a label in a list, as the name of a class: Macs and archives write accents in two ways (NFC
    and NFD), which look alike."""
    return unicodedata.normalize("NFC", text)


def label_of(folders: Sequence[str], class_names: Sequence[str]) -> int | None:
    """The class of an image in `folders` (outermost first): the first of them that is one, as in training."""
    labels = {name: label for label, name in enumerate(class_names)}
    return next((labels[class_name(folder)] for folder in folders if class_name(folder) in labels), None)


def folders_of_class(root: Path, file: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """The folders below `root` in which a file stands, outermost first, without that of its split: a folder named like
    a split is one where a class stands in it."""
    folders = file.relative_to(root).parts[:-1]
    is_split = len(folders) > 1 and folders[0].lower() in {name for names in SPLIT_NAMES.values() for name in names}
    return folders[1:] if is_split and class_name(folders[1]) in class_names else folders


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def is_hidden(name: str) -> bool:
    """Whether a folder is none of the user's."""
    return name.startswith(".") or name.casefold() in HIDDEN


def files_below(folder: Path) -> list[Path]:
    """All files below `folder`, sorted; hidden folders are left out, and links that lead back into the walk.

    Raises:
        OSError: A folder in it cannot be listed.
    """
    return sorted(walk(folder, loop=lambda path: None, unreadable=_refuse))


def _refuse(error: OSError) -> NoReturn:
    raise error


def walk(folder: Path, loop: Callable[[Path], object], unreadable: Callable[[OSError], object]) -> Iterator[Path]:
    """The files below `folder`, hidden folders left out. Links to folders are followed, but not to where the walk has
    been, and not to what `folder` is in: `loop` is told of those."""
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
    """Whether a file of that name is taken for an image: by its suffix, and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and name.lower() not in PLACEHOLDERS


def stat_fingerprint(path: Path) -> tuple[int, ...]:
    """Size in bytes and time of the last change in ns; empty where there is no file."""
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere
        return ()
    return stat.st_size, stat.st_mtime_ns

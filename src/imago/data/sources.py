"""Images to predict from a file, a folder, a glob or a list, labelled or not."""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imago.data.decode import read_image
from imago.data.digests import file_digest
from imago.data.images import Images
from imago.data.source_paths import LISTS, check_source, rows_of_list
from imago.data.tree import divide_skipped, files_below, folders_of_class, is_image, label_of
from imago.terminal import counted, shortened

log = logging.getLogger(__name__)

UNKNOWN = -1
MOST_NAMED = 5


class SourceImages(Images):
    """Image files; `known` holds their labels, `UNKNOWN` if there is none; `labels` has 0 instead."""

    def __init__(self, files: Sequence[Path], paths: Sequence[str], known: Sequence[int], channels: int = 3) -> None:
        self.files = files
        self.paths = paths
        self.known = known
        self.labels = [max(label, 0) for label in known]  # losses are computed, and left out
        self.channels = channels

    def read(self, index: int) -> Tensor:
        image = read_image(self.files[index], decoding=self.decoding)
        return F.rgb_to_grayscale(image) if self.channels == 1 else image

    def digest(self, index: int) -> int | None:
        return file_digest(self.files[index])

    def select(self, indices: Sequence[int]) -> "SourceImages":
        files, paths, known = ([column[i] for i in indices] for column in (self.files, self.paths, self.known))
        chosen = SourceImages(files, paths, known, self.channels)  # type: ignore[arg-type]
        chosen.decoding = self.decoding
        return chosen


def read_source(source: str | Sequence[str], class_names: Sequence[str], channels: int = 3) -> SourceImages:
    """Read the images that `source` names; files that it names directly may have any suffix.

    Below a folder, the label of an image is the first folder on its path that is a class, as in training; in a CSV, it
    is the column `label`. Files that are not used, and labels that are no class, are logged.

    Raises:
        FileNotFoundError, ValueError: As `check_source`.
    """
    check_source(source)
    if not isinstance(source, str):
        parts = [read_source(item, class_names, channels) for item in source]
        files, known = ([entry for part in parts for entry in getattr(part, name)] for name in ("files", "known"))
        return SourceImages(files, [file.as_posix() for file in files], known, channels)  # two may have one name
    path = Path(source).expanduser()
    if path.is_dir():
        there = files_below(path)
        files = [file for file in there if is_image(file.name)]
        _say_others(source, [file.relative_to(path).as_posix() for file in there if not is_image(file.name)])
        known = [_label(folders_of_class(path, file, class_names), class_names) for file in files]
        return SourceImages(files, [file.relative_to(path).as_posix() for file in files], known, channels)
    if path.is_file():
        if path.suffix.lower() in LISTS:
            return _list(path, class_names, channels)
        return SourceImages([path], [path.name], [UNKNOWN], channels)
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in matches if file.is_file() and is_image(file.name)]
    _say_others(source, [str(file) for file in matches if file.is_file() and not is_image(file.name)])
    return SourceImages(files, [file.as_posix() for file in files], [UNKNOWN] * len(files), channels)


def _label(folders: Sequence[str], class_names: Sequence[str]) -> int:
    label = label_of(folders, class_names)
    return UNKNOWN if label is None else label


def _say_others(source: str, paths: Sequence[str]) -> None:
    photos, others = divide_skipped(paths)
    for skipped, why in (
        (photos, "a format that is not read: convert to JPEG or PNG"),
        (others, "not an image, or hidden"),
    ):
        if skipped:
            files = counted(len(skipped), "file")
            log.warning("source=%s: skipped %s (%s): %s", source, files, why, shortened(skipped, MOST_NAMED))


def _list(file: Path, class_names: Sequence[str], channels: int) -> SourceImages:
    """Read a path per line, or a CSV with a column `path` and optionally `label`; paths are relative to the list."""
    rows = rows_of_list(file)
    known = [_label([label], class_names) for _, label in rows]
    if strange := sorted({label for (_, label), n in zip(rows, known, strict=True) if label and n == UNKNOWN}):
        log.warning(
            "source=%s: %s: not a class of the checkpoint, whose classes are %s",
            file,
            shortened(map(repr, strange), MOST_NAMED),
            shortened(class_names),
        )
    return SourceImages([file.parent / path for path, _ in rows], [path for path, _ in rows], known, channels)

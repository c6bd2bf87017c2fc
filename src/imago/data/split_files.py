"""Files that say which image is in which split, or is left out."""

import csv
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from imago.data.folder_images import FolderImages
from imago.data.images import ImageSets
from imago.data.source_paths import with_commas
from imago.data.tree import class_name
from imago.definitions import SPLIT_NAMES, SPLITS
from imago.errors import MissingFileError, UserError
from imago.files import quoted_path, write_text

SPLIT_FILE_HEADER = "# imago split: "


def read_split_file(
    file: Path,
    data_dir: Path | None,
    val_ratio: float,
    seed: int,
    test_ratio: float | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> ImageSets:
    """Read a file of `ml-split` as `read_rows` does, and draw the splits that it lacks."""
    sets = read_rows(file, data_dir)
    sets.draw_splits(val_ratio, seed, test_ratio, recorded)
    return sets


def read_rows(file: Path, data_dir: Path | None) -> ImageSets:
    """Read a file of `ml-split`, a header with the class names and the folder, then a row per image; or a CSV with the
    columns `path`, `label` and optionally `split`, whose paths are relative to `data_dir`, or else to the CSV.

    Raises:
        FileNotFoundError, ValueError: There is no such file, it is no such table, or an image is gone.
    """
    if not file.is_file():
        raise MissingFileError(f"data.split_file={file} does not exist. Make it with: ml-split PATH --output {file}")
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            first = lines.readline()
            header = json.loads(first.removeprefix(SPLIT_FILE_HEADER)) if first.startswith(SPLIT_FILE_HEADER) else {}
            table = csv.DictReader(lines if header else chain([first], lines), skipinitialspace=True)
            if missing := {"path", "label"} - set(table.fieldnames or ()):
                raise UserError(f"it lacks {' and '.join(sorted(missing))}.{with_commas(table.fieldnames or ())}")
            rows = [(row.get("split") or "train", row["path"], class_name(row["label"].strip())) for row in table]
        class_names = list(header.get("class_names") or sorted({name for _, _, name in rows}))
        root = data_dir or Path(header.get("data_dir") or file.parent)
        label_of = {name: label for label, name in enumerate(class_names)}
        split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
        entries = [(split_of[split.strip().lower()], path, label_of[name]) for split, path, name in rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise UserError(
            f"data.split_file={file} is none that ml-split wrote, and no CSV with the columns path, label and perhaps "
            f"split (train, val, test): {error}"
        ) from error
    if len(class_names) < 2:
        raise UserError(f"data.split_file={file} has one class only: a classifier needs two classes or more.")
    sets = ImageSets(str(root), class_names, {}, notes=[f"the splits are those of {file}"])
    for split in [name for name in SPLITS if any(name == row[0] for row in entries)]:
        images = [(path, label) for name, path, label in entries if name == split]
        sets.splits[split] = FolderImages(root, [path for path, _ in images], [label for _, label in images])
    gone = next((path for _, path, _ in entries if not (root / path).is_file()), None)
    if gone is not None:
        raise MissingFileError(
            f"{root / gone} of data.split_file={file} is gone. Type data.data_dir= if the folder moved."
        )
    if "train" not in sets.splits:
        raise UserError(f"data.split_file={file} has no images of train.")
    return sets


def listed_paths(file: Path) -> set[str]:
    """Read a file of paths as `write_paths` writes it: one per line, `#` begins a comment.

    Raises:
        FileNotFoundError, ValueError: The file does not exist, or a line in it cannot be read.
    """
    if not file.is_file():
        raise MissingFileError(f"data.exclude={file} does not exist. ml-doctor data.data_dir=PATH writes one.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")]
    try:
        return {json.loads(line) if line[0] == '"' else line for line in lines if line and line[0] != "#"}
    except ValueError as error:
        raise UserError(f"data.exclude={file}: a line that begins with a quote is no JSON string: {error}") from None


def write_paths(file: Path, paths: Mapping[str, str]) -> None:
    """Write paths, each after a comment with its reason; paths that would be misread become JSON strings."""
    write_text(file, "".join(f"# {quoted_path(why)}\n{quoted_path(path)}\n" for path, why in paths.items()))

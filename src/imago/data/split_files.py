"""Files that say which image is in which split, or is left out."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from imago.data.folder_images import FolderImages
from imago.data.images import ImageSets
from imago.data.source_paths import with_commas
from imago.data.tree import class_name
from imago.definitions import CALIBRATION, SPLIT_NAMES, SPLITS
from imago.errors import MissingFileError, UserError
from imago.files import MISFIT, atomic_write, fitting, quoted_path, write_text
from imago.terminal import shortened

SPLIT_FILE_HEADER = "# imago split: "
WITHOUT_FOLDS = (CALIBRATION, "test")


class SplitRow(NamedTuple):
    """Row of a split file; `fold` is None for images of test, `label` the name of the class, `weight` that of
    `data.sampler=weights`."""

    split: str
    path: str
    label: str
    fold: int | None = None
    group: str = ""
    weight: float | None = None


def read_rows(file: Path, data_dir: Path | None) -> ImageSets:
    """Read a file of `ml-split`, a header with the class names and the folder, then a row per image; or a CSV with the
    columns `path`, `label` and optionally `split`, `fold` and `weight`, with paths relative to `data_dir`, or else to
    the CSV.

    Raises:
        FileNotFoundError, ValueError: There is no such file, it is no such table, or an image is gone.
    """
    header, rows = read_table(file)
    class_names = list(header.get("class_names") or sorted({row.label for row in rows}))
    root = root_of(file, header, data_dir)
    label_of = {name: label for label, name in enumerate(class_names)}
    if unknown := next((row.label for row in rows if row.label not in label_of), None):
        raise _no_split_file(file, f"{unknown!r} is not in its list of classes")
    if len(class_names) < 2:
        raise UserError(f"data.split_file={file} has one class only: a classifier needs two classes or more.")
    sets = ImageSets(str(root), class_names, {}, notes=[f"the splits are those of {file}"])
    for split in [name for name in SPLITS if any(name == row.split for row in rows)]:
        images = [(row.path, label_of[row.label]) for row in rows if row.split == split]
        sets.splits[split] = FolderImages(root, [path for path, _ in images], [label for _, label in images])
    gone = next((row.path for row in rows if not (root / row.path).is_file()), None)
    if gone is not None:
        raise MissingFileError(
            f"{root / gone} of data.split_file={file} is gone. Type data.data_dir= if the folder moved."
        )
    if "train" not in sets.splits:
        raise UserError(f"data.split_file={file} has no images of train.")
    sets.folds = _folds_of(file, rows)
    sets.groups = {row.path: row.group for row in rows} if any(row.group for row in rows) else {}
    if any(row.weight is not None for row in rows):
        sets.weights = {row.path: 1.0 if row.weight is None else row.weight for row in rows}
    return sets


def root_of(file: Path, header: Mapping[str, Any], data_dir: Path | None = None) -> Path:
    """Folder below which the images of a split file are."""
    return data_dir or Path(header.get("data_dir") or file.parent)


def _folds_of(file: Path, rows: Sequence[SplitRow]) -> dict[str, int]:
    """Map paths to folds; empty if the file has none."""
    folds = {row.path: row.fold for row in rows if row.fold is not None}
    if not folds:
        return {}
    if without := [row.path for row in rows if row.split not in WITHOUT_FOLDS and row.fold is None]:
        raise UserError(f"data.split_file={file}: {shortened(without)} of train and val have no fold.")
    if there := [row.path for row in rows if row.split in WITHOUT_FOLDS and row.fold is not None]:
        listed = " and ".join(WITHOUT_FOLDS)
        raise UserError(f"data.split_file={file}: {shortened(there)} of {listed} have a fold. Leave it empty there.")
    if len(known := sorted({*folds.values()})) < 2 or known != list(range(len(known))):
        raise UserError(
            f"data.split_file={file}: its folds are {', '.join(map(str, known))}. Folds are 0, 1, … without gaps, two "
            "or more."
        )
    return folds


def read_table(file: Path) -> tuple[dict[str, Any], list[SplitRow]]:
    """Read the header, empty for a CSV of one's own, and the rows of a split file; no image is looked for.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or it is no such table.
    """
    if not file.is_file():
        raise MissingFileError(f"data.split_file={file} does not exist. Make it with: ml-split PATH --output {file}")
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            first = lines.readline()
            header = json.loads(first.removeprefix(SPLIT_FILE_HEADER)) if first.startswith(SPLIT_FILE_HEADER) else {}
            header = fitting(header, {"class_names": [str], "data_dir": str, "*": object})
            if header is MISFIT:
                raise UserError("its first line is damaged.")
            table = csv.DictReader(lines if header else chain([first], lines), skipinitialspace=True)
            if missing := {"path", "label"} - set(table.fieldnames or ()):
                raise UserError(f"it lacks {' and '.join(sorted(missing))}.{with_commas(table.fieldnames or ())}")
            rows = [_row(row, split_of) for row in table]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise _no_split_file(file, str(error)) from error
    paths = [row.path for row in rows]
    if len({*paths}) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise _no_split_file(
            file, f"{twice} is listed {paths.count(twice)} times. An image is drawn more often by a column weight."
        )
    return header, rows


def _row(row: Mapping[str, str], split_of: Mapping[str, str]) -> SplitRow:
    path, split = row["path"], (row.get("split") or "train").strip().lower()
    fold, weight = (row.get("fold") or "").strip(), (row.get("weight") or "").strip()
    if re.match(r"\w+://", path):
        raise UserError(f"{path} is a URL. Download the images first.")
    if not path or not row["label"].strip():
        raise UserError(f"an image has no {'label: ' + path if path else 'path'}.")
    if split not in split_of:
        raise UserError(f"{path} is in {split!r}, which is no split.")
    if weight and not 0 <= float(weight) < math.inf:
        raise UserError(f"the weight of {path} is {weight}. It must be 0 or more.")
    return SplitRow(
        split_of[split],
        path,
        class_name(row["label"].strip()),
        int(fold) if fold else None,
        row.get("group") or "",
        float(weight) if weight else None,
    )


def _no_split_file(file: Path, why: str) -> UserError:
    return UserError(
        f"data.split_file={file} is none that ml-split wrote, and no CSV with the columns path, label and perhaps "
        f"split ({', '.join(SPLITS)}), fold (0, 1, …) and weight (0 or more): {why}"
    )


def write_table(file: Path, header: Mapping[str, Any], rows: Sequence[SplitRow]) -> None:
    """Write a split file; columns that no row uses are left out."""
    columns = ["split", "path", "label"]
    columns += ["fold"] if any(row.fold is not None for row in rows) else []
    columns += ["group"] if any(row.group for row in rows) else []
    columns += ["weight"] if any(row.weight is not None for row in rows) else []
    with (
        atomic_write(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines,
    ):
        lines.write(SPLIT_FILE_HEADER + json.dumps(header, ensure_ascii=False) + "\n")
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)


def listed_paths(file: Path, setting: str = "data.exclude=") -> set[str]:
    """Read a file of paths as `write_paths` writes it: one per line, `#` begins a comment. `setting` is what messages
    name it by.

    Raises:
        FileNotFoundError, ValueError: The file does not exist, or a line in it cannot be read.
    """
    if not file.is_file():
        raise MissingFileError(f"{setting}{file} does not exist. ml-doctor data.data_dir=PATH writes one.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")]
    try:
        return {json.loads(line) if line[0] == '"' else line for line in lines if line and line[0] != "#"}
    except ValueError as error:
        raise UserError(f"{setting}{file}: a line that begins with a quote is no JSON string: {error}") from None


def write_paths(file: Path, paths: Mapping[str, str]) -> None:
    """Write paths, each after a comment with its reason; paths that would be misread become JSON strings."""
    write_text(file, "".join(f"# {quoted_path(why)}\n{quoted_path(path)}\n" for path, why in paths.items()))

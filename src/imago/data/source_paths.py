"""Check the images to predict before torch is imported: that a file, a folder, a glob or a list names some."""

import csv
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from imago.data.tree import SUFFIXES, is_image, refuse_unreadable, walk
from imago.errors import MissingFileError, UserError

LISTS = (".txt", ".csv")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
COLUMNS_OF_OTHERS = ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "paths")
"""Names that others give to the column `path`, in lower case."""


def check_source(source: str | Sequence[str]) -> None:
    """Raise an error unless `source` names an image.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It has no images, or is a URL or a pipe.
    """
    if not isinstance(source, str):
        if not source:
            raise UserError("source=[] has no images.")
        for item in source:
            check_source(item)
        return
    path = Path(source).expanduser()
    if re.match(r"\w+://", source):
        raise UserError(f"source={source} is a URL. Download the file first, and type its path.")
    if path.is_dir():
        if not any(is_image(file.name) for file in walk(path, loop=lambda _: None, unreadable=refuse_unreadable)):
            raise UserError(f"source={source} has no images ({', '.join(SUFFIXES)}).")
    elif path.is_file():
        if path.suffix.lower() in LISTS:
            rows_of_list(path)
    elif source == "-" or path.exists():
        raise UserError(
            f"source={source} is a device or a pipe, from which nothing is read. Write the paths to a file, one per "
            "line: source=list.txt"
        )
    elif not glob.has_magic(source):
        raise MissingFileError(
            f"source={source} does not exist. Type an image, a folder, a glob, or a .txt or .csv list."
        )
    elif not any(is_image(name) and Path(name).is_file() for name in glob.iglob(str(path), recursive=True)):
        raise UserError(f"source={source} matches no images ({', '.join(SUFFIXES)}).")


def rows_of_list(file: Path) -> list[tuple[str, str]]:
    """Return path and label of every row of a .txt or .csv file; a missing label is empty.

    Raises:
        ValueError: It is not a list, has no column `path`, or a row does not name an image.
    """
    try:
        rows = _rows(file)
    except csv.Error as error:
        raise UserError(f"source={file} is not a list: {error}") from error
    if "" in [path for path, _ in rows]:
        raise UserError(f"source={file}: row {[path for path, _ in rows].index('') + 1} does not name an image.")
    if not rows:
        raise UserError(f"source={file} does not name any images.")
    return rows


def with_commas(columns: Sequence[str]) -> str:
    """Advice for a table whose only column seems to be several with another separator; empty for others."""
    separator = next((mark for mark in SEPARATORS if len(columns) == 1 and mark in columns[0]), None)
    return f" It is separated by {SEPARATORS[separator]}: save it with commas." if separator is not None else ""


def _rows(file: Path) -> list[tuple[str, str]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        if file.suffix.lower() == ".txt":
            return [(line.strip(), "") for line in lines if line.strip()]
        table = csv.DictReader(lines)
        names = list(table.fieldnames or [])
        if "path" not in names:
            close = next((name for name in names if name.strip().lower() in ("path", *COLUMNS_OF_OTHERS)), None)
            hint = f" Rename the column {close} to path." if close is not None else with_commas(names)
            raise UserError(f"source={file} has no column path; it has {', '.join(names or ['none'])}.{hint}")
        return [(row["path"] or "", (row.get("label") or "").strip()) for row in table]

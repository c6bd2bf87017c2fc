"""Groups of images that belong together, such as those of a patient: by a pattern in the path, or by a table."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from imago.data.source_paths import with_commas
from imago.errors import MissingFileError, UserError
from imago.terminal import counted, shortened


def groups_by_pattern(paths: Sequence[str], pattern: str) -> list[str]:
    """Name the group of each path by a regular expression that is searched in it: what its brackets match, or else the
    whole match.

    Raises:
        ValueError: It is no regular expression, or a path does not match.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"--group-regex {pattern}: it is no regular expression: {error}.") from error
    matches = [search(path) for path in paths]
    if unmatched := [path for path, match in zip(paths, matches, strict=True) if match is None]:
        raise UserError(
            f"--group-regex {pattern} matches {len(paths) - len(unmatched)} of {counted(len(paths), 'image')}, and not "
            f"{shortened(unmatched)}. Each image needs a group: to let the rest be groups of one image, type "
            f"--group-regex '{pattern}|(.+)'"
        )
    groups = [next((part for part in match.groups() if part is not None), match[0]) for match in matches if match]
    if empty := [path for path, group in zip(paths, groups, strict=True) if not group]:
        raise UserError(
            f"--group-regex {pattern} matches no character of {shortened(empty)}: all of these would be one group. "
            "Type an expression that needs one character or more, such as 'patient\\d+'"
        )
    return groups


def groups_of_units(paths: Sequence[str], groups: Sequence[str], units: Sequence[int]) -> list[str]:
    """Name the group of each image by its unit: images that look alike are one group, and so are the `groups` that they
    connect. Empty for an image that stands alone."""
    names: dict[int, str] = {}
    for index, unit in enumerate(units):
        names.setdefault(unit, groups[index] if groups else paths[index])
    sizes = Counter(units)
    return [names[unit] if groups or sizes[unit] > 1 else "" for unit in units]


def groups_by_table(paths: Sequence[str], file: Path, column: str) -> list[str]:
    """Read the group of each path from a column of a CSV, whose column `path` has the paths.

    Raises:
        ValueError: It is no such CSV, or a path is not in it.
    """
    if not file.is_file():
        raise MissingFileError(f"--group-file {file} does not exist. It is a CSV with the columns path and {column}.")
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        table = csv.DictReader(lines, skipinitialspace=True)
        columns = list(table.fieldnames or ())
        if missing := [name for name in ("path", column) if name not in columns]:
            raise UserError(
                f"--group-file {file} has no column {' and no column '.join(missing)}; it has {', '.join(columns)}."
                f"{with_commas(columns)} Type the name of the column of groups: --group-column NAME"
            )
        group_of = {row["path"].removeprefix("./"): (row[column] or "").strip() for row in table if row["path"]}
    if without := [path for path in paths if not group_of.get(path)]:
        raise UserError(
            f"--group-file {file} has no {column} of {counted(len(without), 'image')}: {shortened(without)}. Paths are "
            "those below the folder of the images, such as CLASS/001.png."
        )
    return [group_of[path] for path in paths]

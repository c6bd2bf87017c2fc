"""Divide a folder of class folders into train, val and test, or into folds: as a file for `data.split_file=`, or as
copies.

ml-split PATH --output splits.csv
ml-split PATH --folds 5 --group-regex 'patient\\d+' --output splits.csv
ml-split PATH --val 0.1 --test 0.2 --copy-to DIR --dry-run
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.cli.dashes import DashParser, as_options, check_words
from imago.config.invocation import typed_path
from imago.config.launcher import launch_of
from imago.errors import UserError
from imago.files import atomic_folder
from imago.terminal import closed_pipe_allowed, console, counted, shortened

if TYPE_CHECKING:
    from imago.data.folder_images import FolderImages
    from imago.data.split_files import SplitRow
    from imago.data.split_plan import SplitPlan

OPTIONS = {
    **dict.fromkeys(("val", "val_ratio", "valid", "validation", "validation_split"), "--val"),
    **dict.fromkeys(("test", "test_ratio", "test_split", "test_size"), "--test"),
    **dict.fromkeys(("calibration", "calibration_ratio"), "--calibration"),
    **dict.fromkeys(("folds", "n_folds", "n_splits", "k", "k_folds", "cv"), "--folds"),
    **dict.fromkeys(("output", "out", "split_file"), "--output"),
    **dict.fromkeys(("folder", "data_dir", "data", "path", "source", "input"), ""),
    **{name: f"--{name.replace('_', '-')}" for name in ("group_regex", "group_file", "group_column", "copy_to")},
    **{name: f"--{name}" for name in ("seed", "exclude", "duplicates")},
}
"""Name that somebody may type, without dashes and `data.` -> the option; empty for the folder, which has none."""
FRACTIONS = ("--val", "--calibration", "--test")
VAL = 0.15
OF_GROUPS = ("group_regex", "group_file", "group_column")
SETTINGS = ("data_dir", "seed", "val", "calibration", "test", "folds", *OF_GROUPS, "duplicates")
"""Entries of the header of a split file that a second call must not change."""
EXAMPLES = """examples:
  ml-split photos --dry-run                              counts of each class and split
  ml-split photos --output splits.csv                    then: ml-train data.split_file=splits.csv
  ml-split photos --folds 5 --output splits.csv          then: ml-cv data.split_file=splits.csv
  ml-split photos --group-regex 'patient\\d+' --output splits.csv
                                                         all images of a patient in one split
  ml-split photos --val 0.1 --test 0.2 --seed 7 --copy-to photos_split
                                                         then: ml-train data.data_dir=photos_split
"""


def main() -> None:
    """Command line of `ml-split`."""
    try:
        launch_of("ml-split", one_process=True)
        with closed_pipe_allowed():
            split(_arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")


def split(options: argparse.Namespace) -> None:
    """Draw the splits, show their sizes, and write them unless `options.dry_run`. Images that `options.output` has
    already keep their places.

    Raises:
        ValueError: The settings contradict each other or the data, or the folder is already split.
        FileExistsError: A target exists, and is no split file with these settings.
    """
    _check(options)
    from imago.data.folders import class_tree
    from imago.data.split_plan import SplitPlan
    from imago.report.split_table import split_table

    class_names, images = class_tree(options.folder)
    images, excluded = _without_excluded(options, images)
    header = _header(options, class_names)
    before = _existing(options, header)
    plan = SplitPlan(options.val, options.test, options.seed, options.folds, options.calibration or 0.0)
    rows, notes = _drawn(options, class_names, images, plan, before)
    console().print(split_table(_titled(plan, rows), class_names))
    for note in [*excluded, *notes]:
        _say(note)
    if options.dry_run:
        return
    if options.output is not None:
        _write(options, plan, header, rows, before)
    if options.copy_to is not None:
        _copy(options, rows)
        _next("ml-train", "data_dir", options.copy_to)


def _check(options: argparse.Namespace) -> None:
    if not options.folder.is_dir():
        raise UserError(
            f"{options.folder} is not a folder. Type the folder that has one folder of images per class: "
            "ml-split PHOTOS --dry-run"
        )
    if options.folds is not None and (options.val, options.calibration) != (None, None):
        other = "--val" if options.val is not None else "--calibration"
        raise UserError(f"--folds and {other} contradict each other: each fold is val once. Remove {other}.")
    if options.folds is not None and (options.folds < 2 or options.copy_to is not None):
        what = "two or more" if options.folds < 2 else "for --output alone: folds are no folders. Remove --copy-to"
        raise UserError(f"--folds {options.folds}: folds are {what}.")
    options.val = VAL if options.val is None and options.folds is None else options.val or 0.0
    fractions = [options.val, options.test, *[options.calibration] * (options.calibration is not None)]
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise UserError(
            f"Parts must be fractions with a sum below 1, got {' and '.join(map(str, fractions))}; the rest is train. "
            "For example: --val 0.1 --test 0.2"
        )
    if options.group_regex is not None and options.group_file is not None:
        raise UserError("--group-regex and --group-file contradict each other. Remove one of them.")
    if options.output is None and options.copy_to is None and not options.dry_run:
        raise UserError("Choose an output: --output FILE, --copy-to DIR, or --dry-run to show the counts only.")
    chart = options.output.with_suffix(".png") if options.output is not None else None
    if chart is not None and chart == options.output:
        raise UserError(
            f"--output {options.output}: the split file is a CSV. Type --output {chart.with_suffix('.csv')}"
        )
    taken = [options.copy_to] if chart is None or options.output.exists() else [options.copy_to, chart]
    for target in taken:
        if target is not None and target.exists():
            raise FileExistsError(f"{target} already exists, and nothing is overwritten. Type another name.")


def _header(options: argparse.Namespace, class_names: list[str]) -> dict[str, Any]:
    settings = {name: getattr(options, name, None) for name in SETTINGS}
    settings |= {"data_dir": str(options.folder.resolve()), "val": None if options.folds else options.val}
    settings["group_file"] = str(options.group_file.resolve()) if options.group_file is not None else None
    settings["group_column"] = options.group_column if options.group_file is not None else None
    return {"class_names": class_names} | {name: value for name, value in settings.items() if value is not None}


def _existing(options: argparse.Namespace, header: Mapping[str, Any]) -> "list[SplitRow]":
    """Read the rows of a split file that exists already; none if there is no such file."""
    from imago.data.split_files import read_table

    file = options.output
    if file is None or not file.exists():
        return []
    try:
        there, rows = read_table(file)
    except UserError:
        there, rows = {}, []
    if not there:
        raise FileExistsError(
            f"{file} already exists, and is no file of ml-split: nothing is overwritten. Type another name."
        )
    there.setdefault("duplicates", header["duplicates"])
    if changed := [name for name in SETTINGS if there.get(name) != header.get(name)]:
        had = ", ".join(f"{name} {there.get(name)} (now {header.get(name)})" for name in changed)
        raise UserError(
            f"{file} already exists, with other settings: {had}. What is in the file stays: type its settings to add "
            "new images, or another --output."
        )
    return rows


def _without_excluded(options: argparse.Namespace, images: "FolderImages") -> "tuple[FolderImages, list[str]]":
    if options.exclude is None:
        return images, []
    from imago.data.split_files import listed_paths

    listed = listed_paths(options.exclude, "--exclude ")
    kept = [index for index, path in enumerate(images.paths) if path not in listed]
    left_out = len(images) - len(kept)
    gone = f", {len(listed) - left_out} more are not in the folder" if len(listed) > left_out else ""
    return images.select(kept), [f"{counted(left_out, 'image')} left out (--exclude {options.exclude}){gone}"]


def _groups(options: argparse.Namespace, paths: list[str]) -> list[str]:
    """Group of each image; empty without groups."""
    from imago.data.grouping import groups_by_pattern, groups_by_table

    if options.group_regex is not None:
        return groups_by_pattern(paths, options.group_regex)
    return groups_by_table(paths, options.group_file, options.group_column) if options.group_file is not None else []


def _links(options: argparse.Namespace, images: "FolderImages", groups: list[str]) -> tuple[list[list[int]], list[str]]:
    """Positions of the images that belong together, and notes on them."""
    from imago.data.allocation import linked

    notes = [f"{counted(len({*groups}), 'group')}, each in one part"] if groups else []
    equal = []
    if options.duplicates == "exact":
        values, known = images.digests()
        equal = linked(
            value if is_known else None for value, is_known in zip(values.tolist(), known.tolist(), strict=True)
        )
    elif options.duplicates == "near":
        from imago.inspection.scan import duplicate_pairs
        from imago.resources import workers

        index = {path: number for number, path in enumerate(images.paths)}
        pairs = duplicate_pairs(images.root, images.paths, list(map(str, images.labels)), workers(None, 1))
        equal = [[index[one], index[two]] for one, two in pairs]
    if equal:
        alike = {number for group in equal for number in group}
        what = "are equal or look alike" if options.duplicates == "near" else "are the same file as another one"
        notes.append(f"{len(alike)} images {what}: they stay together (--duplicates {options.duplicates})")
    return [*linked(groups), *equal], notes


def _drawn(
    options: argparse.Namespace,
    class_names: list[str],
    images: "FolderImages",
    plan: "SplitPlan",
    before: "Sequence[SplitRow]",
) -> "tuple[list[SplitRow], list[str]]":
    """Give each image its part. Returns a row for each, and notes."""
    groups = _groups(options, list(images.paths))
    links, notes = _links(options, images, groups)
    parts, torn = plan.parts(images, links, {row.path: plan.part_of(row) for row in before}, groups)
    rows = plan.rows(images, class_names, parts, groups, links if options.duplicates == "near" else ())
    if torn:
        names = shortened(images.paths[index] for index in torn)
        notes.append(
            f"Warning: {len(torn)} images that belong together are in several parts: what was there stays: {names}"
        )
    if before:
        there, now = {row.path for row in before}, {row.path for row in rows}
        gone = f", {len(there - now)} are gone or left out" if there - now else ""
        notes.append(
            f"{options.output}: {len(there & now)} images stay where they are, {len(now - there)} are new{gone}"
        )
    return rows, notes


def _write(
    options: argparse.Namespace,
    plan: "SplitPlan",
    header: Mapping[str, Any],
    rows: "Sequence[SplitRow]",
    before: "Sequence[SplitRow]",
) -> None:
    """Write the split file and its chart, unless nothing has changed."""
    from imago.data.split_files import write_table
    from imago.report.split_chart import split_chart

    is_new, chart = list(rows) != list(before), options.output.with_suffix(".png")
    if is_new:
        write_table(options.output, header, rows)
        _say(f"Written: {options.output}")
    else:
        _say(f"{options.output} is unchanged")
    if is_new or not chart.exists():
        split_chart(_titled(plan, rows), header["class_names"], chart)
        _say(f"Written: {chart}, a chart of its classes")
    _next("ml-train" if plan.folds is None else "ml-cv", "split_file", options.output)


def _next(command: str, option: str, path: Path) -> None:
    _say(f"Next: {command} {typed_path(f'data.{option}', path)}")


def _say(text: str) -> None:
    console().print(text, soft_wrap=True, highlight=False, markup=False)


def _titled(plan: "SplitPlan", rows: "Sequence[SplitRow]") -> "dict[str, Counter[str]]":
    """Name of a part -> class -> number of images."""
    counts: dict[str, Counter[str]] = {plan.title_of(part): Counter() for part in plan.fractions}
    for row in rows:
        counts[plan.title_of(plan.part_of(row))][row.label] += 1
    return counts


def _copy(options: argparse.Namespace, rows: "Sequence[SplitRow]") -> None:
    """Copy all images, or none."""
    with atomic_folder(options.copy_to) as temporary:
        for row in rows:
            target = temporary / row.split / row.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(options.folder / row.path, target)


def _arguments() -> argparse.Namespace:
    words = sys.argv[1:]
    corrected = as_options(words, OPTIONS, FRACTIONS)
    check_words("ml-split", words, corrected, "the folder, options with dashes, and fractions")
    parser = DashParser(
        prog="ml-split",
        description="Divide a folder of class folders into stratified train, val and test splits, or into folds. A "
        "second call on the same file adds new images, and moves none.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.example = "ml-split PHOTOS --val 0.1 --test 0.2 --dry-run"
    add = parser.add_argument
    add("folder", type=Path, help="the data: a folder with one folder of images per class")
    add("--val", type=float, help=f"fraction of the images for val (default {VAL})")
    add("--calibration", type=float, help="fraction of the images for calibration, which chooses no checkpoint")
    add("--test", type=float, default=0.15, help="fraction of the images for test (default 0.15)")
    add("--folds", type=int, metavar="K", help="divide the rest into K folds for ml-cv, instead of train and val")
    add("--group-regex", metavar="REGEX", help="group of an image, searched in its path: a group is never divided")
    add("--group-file", type=Path, metavar="CSV", help="table of groups, with the columns path and group")
    add("--group-column", metavar="NAME", default="group", help="column of groups in --group-file (default group)")
    add(
        "--duplicates",
        choices=("exact", "near", "none"),
        default="exact",
        help="which images stay together: the same files (default), or also those that look alike (decodes all images)",
    )
    add("--exclude", type=Path, metavar="FILE", help="file of ml-doctor: images to leave out")
    add("--seed", type=int, default=42, help="seed of the draw (default 42)")
    add("--output", type=Path, metavar="FILE", help="write a CSV for data.split_file=; images are not copied")
    add("--copy-to", type=Path, metavar="DIR", help="copy the images to train/, val/ and test/ in a new folder")
    add("--dry-run", action="store_true", help="show the counts without writing anything")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()

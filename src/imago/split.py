"""Divide a folder of class folders into train, val and test: as a file for `data.split_file=`, or as copies.

ml-split PATH --output splits.csv
ml-split PATH --val 0.1 --test 0.2 --copy-to DIR --dry-run
"""

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from imago.cli.dashes import DashParser, as_options, check_words
from imago.config.invocation import typed_path
from imago.config.launcher import launch_of
from imago.errors import UserError
from imago.files import atomic_folder, atomic_write
from imago.terminal import closed_pipe_allowed, console

if TYPE_CHECKING:
    from imago.data.folder_images import FolderImages

OPTIONS = {
    **dict.fromkeys(("val", "val_ratio", "valid", "validation", "validation_split"), "--val"),
    **dict.fromkeys(("test", "test_ratio", "test_split", "test_size"), "--test"),
    **dict.fromkeys(("output", "out", "split_file"), "--output"),
    **dict.fromkeys(("folder", "data_dir", "data", "path", "source", "input"), ""),
    "seed": "--seed",
    "copy_to": "--copy-to",
}
"""Name that somebody may type, without dashes and `data.` -> the option; empty for the folder, which has none."""
FRACTIONS = ("--val", "--test")
EXAMPLES = """examples:
  ml-split photos --dry-run                              counts of each class and split
  ml-split photos --output splits.csv                    then: ml-train data.split_file=splits.csv
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
    """Draw the splits, show their sizes, and write them unless `options.dry_run`.

    Raises:
        ValueError: The fractions leave nothing to train on, or the folder is already split.
        FileExistsError: A target exists.
    """
    if not options.folder.is_dir():
        raise UserError(
            f"{options.folder} is not a folder. Type the folder that has one folder of images per class: "
            "ml-split PHOTOS --dry-run"
        )
    if min(options.val, options.test) < 0 or options.val + options.test >= 1:
        raise UserError(
            f"--val and --test must be fractions with a sum below 1, got {options.val} and {options.test}. "
            "The rest is train. For example: --val 0.1 --test 0.2"
        )
    if options.output is None and options.copy_to is None and not options.dry_run:
        raise UserError("Choose an output: --output FILE, --copy-to DIR, or --dry-run to show the counts only.")
    for target in (options.output, options.copy_to):
        if target is not None and target.exists():
            raise FileExistsError(f"{target} already exists, and nothing is overwritten. Type another name.")
    from imago.data.folders import class_tree

    class_names, images = class_tree(options.folder)
    splits = draw(images, options.val, options.test, options.seed)
    console().print(_table(splits, class_names))
    if options.dry_run:
        return
    if options.output is not None:
        _write_file(options, class_names, splits)
        _next("split_file", options.output)
    if options.copy_to is not None:
        _copy(options, splits)
        _next("data_dir", options.copy_to)


def _next(option: str, path: Path) -> None:
    console().print(
        f"Next: ml-train {typed_path(f'data.{option}', path)}", soft_wrap=True, highlight=False, markup=False
    )


def draw(images: "FolderImages", val: float, test: float, seed: int) -> dict[str, "FolderImages"]:
    """Draw stratified splits, as `data.val_ratio` and `data.test_ratio` do; `val` and `test` are fractions of all
    images. A split without images is left out."""
    from imago.data.drawn_splits import draw_split

    paths, labels = images.paths, images.labels
    in_test = draw_split(paths, labels, test, seed, from_end=True).indices if test else []
    in_val = draw_split(paths, labels, val, seed, taken=set(in_test)).indices if val else []
    chosen = {*in_test, *in_val}
    in_train = [index for index in range(len(images)) if index not in chosen]
    splits = {"train": in_train, "val": in_val, "test": in_test}
    return {name: images.select(indices) for name, indices in splits.items() if indices}


def _arguments() -> argparse.Namespace:
    words = sys.argv[1:]
    corrected = as_options(words, OPTIONS, FRACTIONS)
    check_words("ml-split", words, corrected, "the folder, options with dashes, and fractions")
    parser = DashParser(
        prog="ml-split",
        description="Divide a folder of class folders into stratified train, val and test splits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.example = "ml-split PHOTOS --val 0.1 --test 0.2 --dry-run"
    parser.add_argument("folder", type=Path, help="the data: a folder with one folder of images per class")
    parser.add_argument("--val", type=float, default=0.15, help="fraction of the images for val (default 0.15)")
    parser.add_argument("--test", type=float, default=0.15, help="fraction of the images for test (default 0.15)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw (default 42)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write a CSV for data.split_file=; images are not copied"
    )
    parser.add_argument(
        "--copy-to", type=Path, metavar="DIR", help="copy the images to train/, val/ and test/ in a new folder"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the counts without writing anything")
    return parser.parse_args(words)


def _table(splits: dict[str, "FolderImages"], class_names: list[str]) -> Table:
    from imago.data.images import class_counts

    table = Table(title="Images per split")
    for column in ("class", *splits, "all"):
        table.add_column(column, justify="left" if column == "class" else "right")
    counts = {name: class_counts(images, class_names) for name, images in splits.items()}
    for class_name in class_names:
        numbers = [counts[split][class_name] for split in splits]
        table.add_row(class_name, *map(str, numbers), str(sum(numbers)))
    table.add_section()
    sizes = [len(images) for images in splits.values()]
    table.add_row("all", *map(str, sizes), str(sum(sizes)))
    table.add_row("fraction", *(f"{size / sum(sizes):.1%}" for size in sizes), "")
    return table


def _write_file(options: argparse.Namespace, class_names: list[str], splits: dict[str, "FolderImages"]) -> None:
    from imago.data.split_files import SPLIT_FILE_HEADER

    header = {"class_names": class_names, "data_dir": str(options.folder.resolve()), "seed": options.seed}
    header |= {"val": options.val, "test": options.test}
    with (
        atomic_write(options.output) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        file.write(SPLIT_FILE_HEADER + json.dumps(header, ensure_ascii=False) + "\n")
        writer = csv.writer(file)
        writer.writerow(["split", "path", "label"])
        for name, images in splits.items():
            writer.writerows(
                (name, path, class_names[label]) for path, label in zip(images.paths, images.labels, strict=True)
            )


def _copy(options: argparse.Namespace, splits: dict[str, "FolderImages"]) -> None:
    """Copy all images, or none."""
    with atomic_folder(options.copy_to) as temporary:
        for name, images in splits.items():
            for path in images.paths:
                target = temporary / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(options.folder / path, target)


if __name__ == "__main__":
    main()

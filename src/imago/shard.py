"""Write a folder of images into tars of about 256 MB with an index, for `data=shards`.

ml-shard PATH --output DIR
ml-shard splits.csv --output DIR --shard-mb 500
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from imago.cli.dashes import DashParser, as_options, check_words
from imago.config.invocation import typed_path
from imago.errors import DiskError, MissingFileError, UserError
from imago.files import read_json, write_json
from imago.terminal import closed_pipe_allowed, console, counted

if TYPE_CHECKING:
    from imago.data.folder_images import FolderImages
    from imago.data.images import ImageSets
    from imago.data.shard_writer import Plan, ShardFolder

OPTIONS = {
    **dict.fromkeys(("output", "out", "shards", "output_dir"), "--output"),
    **dict.fromkeys(("shard_mb", "mb", "size"), "--shard-mb"),
    **dict.fromkeys(("folder", "data_dir", "data", "path", "source", "input", "split_file"), ""),
    "exclude": "--exclude",
}
EXAMPLES = """examples:
  ml-shard photos --output photos_shards                 then: ml-train data=shards data.shards=photos_shards
  ml-shard splits.csv --output photos_shards             with the splits of ml-split
  ml-shard photos --output photos_shards --exclude RUN/exclude.txt
"""
PLAN = "plan.json"


def main() -> None:
    """Command line of `ml-shard`."""
    try:
        with closed_pipe_allowed():
            shard(_arguments())
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. Type the same words again, and it continues with the next shard.")


def shard(options: argparse.Namespace) -> None:
    """Write the shards that are not there yet, and then the index.

    Raises:
        ValueError: The folder cannot be trained on, or `options.output` holds something else.
        DiskError: The disk is full; a second start continues.
    """
    if not 0 < options.shard_mb <= 100_000:
        raise UserError(f"--shard-mb must be above 0 and at most 100000, got {options.shard_mb:g}.")
    sets = _sets(options)
    with _claimed(options) as folder:
        from imago.data.shard_index import write_index
        from imago.data.shard_writer import numbered_groups, plan, rows_of

        white = _checked(sets, folder.work)
        plans = [plan(split, images, options.shard_mb) for split, images in _files(sets).items()]
        folder.remove_others(plans)
        rows, groups = {}, numbered_groups(sets.groups)
        for part in plans:
            numbers = _shown(range(len(part.shards)), f"Shards of {part.split}")
            rows[part.split] = rows_of(part, [folder.write(part, number) for number in numbers], groups)
        write_index(options.output, sets.class_names, rows, white)
    _report(options, plans, folder, sets)


def _files(sets: "ImageSets") -> dict[str, "FolderImages"]:
    return cast("dict[str, FolderImages]", sets.splits)


def _sets(options: argparse.Namespace) -> "ImageSets":
    from imago.data.folders import read_undrawn
    from imago.data.image_folder import leave_out
    from imago.data.split_files import read_rows

    if not options.folder.exists():
        raise MissingFileError(
            f"{options.folder} does not exist. Type a folder of images, or a file of ml-split: "
            "ml-shard PHOTOS --output DIR"
        )
    sets = read_undrawn(options.folder) if options.folder.is_dir() else read_rows(options.folder, None)
    if options.exclude is not None:
        leave_out(sets, options.exclude)
    return sets


@contextmanager
def _claimed(options: argparse.Namespace) -> Iterator["ShardFolder"]:
    """Open the folder of the shards for this command alone.

    Raises:
        UserError: It holds other shards or something else, or another command writes there.
    """
    from filelock import FileLock, Timeout

    from imago.data.shard_writer import ShardFolder

    folder = ShardFolder(options.output)
    source = str(options.folder.resolve())
    plan = {"source": source, "shard_mb": float(options.shard_mb)}
    if options.output.exists() and (not options.output.is_dir() or not folder.is_ours):
        raise UserError(f"{options.output} already exists, and is not a folder of ml-shard. Type another --output.")
    if options.folder.is_dir() and options.output.resolve().is_relative_to(options.folder.resolve()):
        raise UserError(
            f"{options.output} lies in {options.folder}, where it would be taken for a class. Type an --output beside "
            "it."
        )
    try:
        folder.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{options.output} cannot be made: {error}. Type another --output.") from error
    try:
        with FileLock(folder.work / "lock", timeout=0):
            if (folder.work / PLAN).is_file():
                before = read_json(folder.work / PLAN, {"source!": str, "shard_mb!": float})
                if before != plan:
                    raise UserError(
                        f"{options.output} has the shards of {before['source']} with --shard-mb "
                        f"{before['shard_mb']:g}. Type another --output, or remove it."
                    )
            write_json(folder.work / PLAN, plan)
            yield folder
    except Timeout as error:
        raise UserError(
            f"Another ml-shard writes to {options.output}. Wait for it, or type another --output."
        ) from error
    except DiskError as error:
        raise DiskError(f"{error}. Free some space, and type the same words again: it continues") from error


def _checked(sets: "ImageSets", cache: Path) -> int | str:
    """Return the value that is white in 16-bit images, or why it is not known; raise BadImageError for files that are
    no images."""
    from imago.data.survey import check_headers, chosen_range

    advice = "Repair or remove them, or leave them out: ml-doctor data.data_dir={} writes a list for --exclude"
    check_headers(sets, cache, advice.format(sets.root))
    try:
        return chosen_range(sets, cache)
    except UserError as error:
        return str(error)


def _shown(numbers: Sequence[int], what: str) -> Iterator[int]:
    from rich.progress import track

    yield from track(numbers, what, console=console(), disable=not sys.stdout.isatty(), transient=True)


def _report(options: argparse.Namespace, plans: Sequence["Plan"], folder: "ShardFolder", sets: "ImageSets") -> None:
    sizes = ", ".join(f"{part.split} {len(part.images)} in {len(part.shards)}" for part in plans)
    total = sum(int(part.sizes.sum()) for part in plans) / 1e6
    kept = f", {folder.kept} of which were there already and are whole" if folder.kept else ""
    count = counted(folder.written + folder.kept, "shard")
    lines = ["The folds of the file are not kept: fold 0 is val."] if sets.folds else []
    lines += [f"{options.output}: {count}{kept} ({sizes}), {total:,.1f} MB of images, and the index"]
    if set(sets.splits) == {"train"} and options.folder.is_dir():
        lines.append(
            "There is no val split: data.val_ratio draws one from train in each run. To fix it, and to read it in one "
            f"piece, write the splits first: ml-split {options.folder} --output splits.csv"
        )
    lines.append(f"Next: ml-train data=shards {typed_path('data.shards', options.output)}")
    for line in lines:
        console().print(line, soft_wrap=True, highlight=False, markup=False)


def _arguments() -> argparse.Namespace:
    words = sys.argv[1:]
    check_words("ml-shard", words, as_options(words, OPTIONS), "the folder, and options with dashes")
    parser = DashParser(
        prog="ml-shard",
        description="Write images into tars of about 256 MB, with an index for data=shards. A second start continues.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.example = "ml-shard PHOTOS --output DIR"
    parser.add_argument("folder", type=Path, help="a folder as data.data_dir= takes it, or a file of ml-split")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="folder of the tars and the index")
    parser.add_argument("--shard-mb", type=float, default=256, metavar="MB", help="size of a tar (default 256)")
    parser.add_argument("--exclude", type=Path, metavar="FILE", help="file of ml-doctor: images to leave out")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()

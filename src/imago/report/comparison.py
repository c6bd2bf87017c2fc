"""Pages of `ml-compare`: a table of runs with their curves, and trainings against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.files import write_text
from imago.report.page import page_frame, templates

MOST_CURVES = 12
"""Runs whose curves are drawn over each other: six colours, each solid and dashed."""
CURVES = ("val/acc", "val/loss", "train/acc", "train/loss")
MOST_PICTURES = 48
"""Pictures of either kind of images on which two runs differ."""


def write_runs_page(
    path: Path,
    title: str,
    lines: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    trained: int,
) -> None:
    """Write the table of runs, with the curves of `histories`, the first of the `trained` rows, over each other.

    A column has `title` and `is_number`, a row `name` and `cells`, each with `text` and the `key` that it is sorted by,
    None for its text. `histories` maps the names of rows to their epochs.
    """
    from imago.report.curves import overlaid

    chosen = {name: history for name, history in histories.items() if history}
    numbers = {name: number for number, name in enumerate(chosen)}
    more = f"The first {len(chosen)} of {trained} rows that have epochs." if trained > len(chosen) else ""
    facts = {
        "title": title,
        "lines": lines,
        "columns": columns,
        "rows": [row | {"number": numbers.get(row["name"])} for row in map(dict, rows)],
        "curves": overlaid(chosen, CURVES),
        "curves_of": f"{more} A row of several runs has their mean, as far as all of them have come.".strip(),
    }
    write_text(path, templates("runs.html").get_template("runs.html.j2").render(page_frame() | facts))


def write_comparison_page(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the comparison of two or more trainings: `sentence`, `names`, `sides`, `split`, `tables`, `notes`, `flips`
    and `no_pictures`, as the template has them."""
    page = templates("comparison.html").get_template("comparison.html.j2").render({**page_frame(), **facts})
    write_text(path, page)


def with_pictures(
    entries: Sequence[Mapping[str, Any]], folders: Sequence[Path], split: str, root: str | None
) -> list[Any]:
    """Add to entries with a `path` their thumbnail `image`: that of a run's report, otherwise of the file below `root`;
    empty if there is neither."""
    from imago.report.content import read_images

    known = {
        picture["path"]: picture["image"]
        for folder in folders
        for kind in (read_images(folder, split) or {}).values()
        for picture in kind
    }
    shown = [dict(entry) for entry in entries[:MOST_PICTURES]]
    for entry in shown:
        file = Path(root or "", entry["path"])
        is_below = root is not None and ".." not in file.parts and not Path(entry["path"]).is_absolute()
        entry["image"] = known.get(entry["path"]) or (_thumbnail(file) if is_below and file.is_file() else "")
        entry["whole"] = str(file) if root is not None else entry["path"]
    return shown


def are_there(root: str, paths: Sequence[str], labels: Sequence[int], stamp: str | None) -> bool:
    """Whether the images below `root` have the fingerprint `stamp`, which depends on their sizes. A run of a stranger
    may name any folder of this machine: the pictures of others are put into no page."""
    from imago.data.folder_images import FolderImages

    if stamp is None or any(Path(path).is_absolute() or ".." in Path(path).parts for path in paths):
        return False
    try:
        return FolderImages(Path(root), list(paths), list(labels)).stamp()[: len(stamp)] == stamp
    except (OSError, ValueError):
        return False


def _thumbnail(file: Path) -> str:
    from imago.data.folder_images import FolderImages
    from imago.report.thumbnails import data_uri, thumbnail

    return data_uri(thumbnail(FolderImages(file.parent, [file.name], [0]), 0))

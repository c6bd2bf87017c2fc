"""The HTML page of trainings against each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imago.cli.versus import Versus
from imago.cli.versus_notes import notes_of
from imago.cli.versus_tables import sides_of, tables
from imago.run.overview import Overview
from imago.terminal import counted


def _folder_of_images(versus: Versus, runs: Sequence[Overview]) -> str | None:
    """Folder of the images, if all runs name it, and it has those that they were scored on."""
    from imago.report.comparison import are_there

    root, names = runs[0].data.get("folder"), runs[0].data.get("class_names", [])
    answers = versus.answers(runs[0])
    if root is None or any(run.data.get("folder") != root for run in runs) or not {*answers.labels} <= {*names}:
        return None
    numbers = [names.index(label) for label in answers.labels]
    return root if are_there(root, answers.paths, numbers, answers.stamp) else None


def write_page(file: Path, versus: Versus) -> None:
    """Write the HTML page, with pictures of the images on which two runs differ."""
    from imago.report.comparison import write_comparison_page

    write_comparison_page(file, _facts(versus))


def _facts(versus: Versus) -> Mapping[str, Any]:
    from imago.report.comparison import with_pictures

    flips, no_pictures = [], ""
    if versus.has_flips:
        a, b = versus.sides
        runs = versus.first_runs
        may_show = all((run.folder / "reports" / f"images_{versus.asked}.json").is_file() for run in runs)
        root = _folder_of_images(versus, runs)
        for right, wrong in ((b, a), (a, b)):
            entries = versus.flips(right, wrong)
            title = f"{counted(len(entries), 'image')} of {versus.scored} that only {right.name} has right"
            shown = with_pictures(entries, [run.folder for run in runs], versus.asked, root) if may_show else entries
            if not may_show:
                shown = [{**entry, "image": "", "whole": entry["path"]} for entry in entries]
            flips.append({"title": title, "by": wrong.name, "n": len(entries), "entries": shown})
        if not may_show:
            no_pictures = (
                "Pictures are left out, because the report of one of the runs has none (report.pictures=false)."
            )
        elif root is None:
            no_pictures = "Pictures are those of the reports alone: the scored images are not where both runs had them."
    names = [side.name for side in versus.sides]
    content = {"sentence": versus.sentence(), "names": names, "split": versus.scored, "sides": sides_of(versus)}
    return {**content, "tables": tables(versus), "notes": notes_of(versus), "flips": flips, "no_pictures": no_pictures}

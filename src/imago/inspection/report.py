"""What the doctor found, for people and for programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from imago.data.folder_images import FolderImages
from imago.data.split_files import write_paths
from imago.data.tree import is_image
from imago.files import write_json, write_text
from imago.inspection.issues import KINDS, UNUSABLE, Findings, Issue
from imago.report.thumbnails import data_uri, thumbnail
from imago.terminal import console, counted

PICTURES = 12  # of each kind
NAMED = 3  # files of each kind in the table
STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


def show(findings: Findings, folder: Path) -> None:
    """Print the table of faults, and where the full report is."""
    sizes = ", ".join(f"{split} {sum(classes.values())}" for split, classes in findings.counts.items())
    classes = len(findings.counts.get("train", {}))
    title = f"{findings.title}: {counted(findings.images, 'image')} ({sizes}), {counted(classes, 'class', 'classes')}"
    by_kind = findings.of_kind()
    if not by_kind:
        console().print(f"{title}: no problems found.", soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(title=Text(title))
    for column in ("problem", "files", "examples"):
        table.add_column(column, justify="right" if column == "files" else "left", overflow="fold")
    for kind, faults in by_kind.items():
        level, meaning = KINDS[kind]
        named = "\n".join(f"  {_in_a_line(fault)}" for fault in faults[:NAMED])
        table.add_row(Text(kind, style=STYLES[level]), str(len(faults)), Text(f"{meaning}\n{named}"))
    console().print(table)
    lines = [f"Full report with images: {folder / 'doctor.html'} (.md, .json)"]
    if excluded := findings.to_exclude():
        lines.append(f"Recommended: exclude {len(excluded)} of these files with data.exclude={folder / 'exclude.txt'}")
        if any(fault.kind in UNUSABLE for fault in findings.faults):
            lines.append("To leave out unreadable images alone, without a list: data.on_bad_image=skip")
    for line in lines:
        console().print(line, soft_wrap=True, highlight=False, markup=False)


def write(findings: Findings, folder: Path) -> None:
    """Write `doctor.json`, `doctor.md`, `doctor.html` and `exclude.txt` to `folder`."""
    by_kind = findings.of_kind()
    excluded = findings.to_exclude()
    write_json(
        folder / "doctor.json",
        {
            "root": findings.title,
            "images": findings.images,
            "counts": findings.counts,
            "exit_status": findings.exit_status,
            "faults": [{"level": fault.level} | asdict(fault) for fault in findings.faults],
            "exclude": excluded,
        },
    )
    lines = [f"# {findings.title}", "", f"{counted(findings.images, 'image')}.", ""]
    for kind, faults in by_kind.items():
        lines += [f"## {kind}: {len(faults)} ({KINDS[kind][0]})", "", f"{KINDS[kind][1]}.", ""]
        lines += [*(f"- `{_in_a_line(fault).replace('<', '&lt;')}`" for fault in faults), ""]
    write_text(folder / "doctor.md", "\n".join(lines if by_kind else [*lines, "No problems found.", ""]))
    write_paths(folder / "exclude.txt", excluded)
    page = Environment(loader=PackageLoader("imago", "inspection"), autoescape=True, undefined=StrictUndefined)
    kinds = []
    for kind, faults in by_kind.items():
        level, meaning = KINDS[kind]
        rows = _rows(findings.root, faults)
        kinds.append({"kind": kind, "level": level, "meaning": meaning, "count": len(faults), "faults": rows})
    context: dict[str, Any] = {"excluded": len(excluded), "exclude_file": folder / "exclude.txt"}
    context["class_names"] = sorted({name for classes in findings.counts.values() for name in classes})
    html = page.get_template("doctor.html.j2").render(findings=findings, kinds=kinds, **context)
    write_text(folder / "doctor.html", html)


def _in_a_line(fault: Issue) -> str:
    counterpart = f" = {fault.other}" if fault.other else ""
    line = f"{fault.path}{counterpart}{f': {fault.detail}' if fault.detail else ''}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def _rows(root: Path, faults: list[Issue]) -> list[dict[str, object]]:
    return [
        {"line": _in_a_line(fault), "pictures": [_picture(root, path) for path in _images_of(root, fault)]}
        for fault in faults[:PICTURES]
    ]


def _images_of(root: Path, fault: Issue) -> list[str]:
    """Return the paths of images that can be shown; a stranger's index of shards could lead anywhere."""
    paths = [fault.path, fault.other] if fault.kind not in UNUSABLE else []
    paths = [path for path in paths if ".." not in Path(path).parts and not Path(path).is_absolute()]
    return [path for path in paths if path and is_image(Path(path).name) and (root / path).is_file()]


def _picture(root: Path, path: str) -> str:
    return data_uri(thumbnail(FolderImages(root, [path], [0]), 0))

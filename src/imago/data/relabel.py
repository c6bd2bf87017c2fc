"""Corrected labels from a CSV: the images, and the splits that they are in, stay as they are."""

import copy
import csv
import difflib
import hashlib
import io
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from imago.data.images import ImageSets, class_counts
from imago.data.tree import class_name
from imago.errors import MissingFileError, UserError
from imago.terminal import by_split, counted, shortened

MOST_LISTED = 20  # classes in a message
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # spreadsheets call it "Unicode text"
SAVE = "Save it as CSV in UTF-8, with commas and the first line path,label."


@dataclass(frozen=True)
class CorrectedLabel:
    """The label that a line of the file gives an image."""

    label: int
    line: int


def relabel(sets: ImageSets, file: Path) -> None:
    """Replace the labels of the images that the CSV `file` lists, and record it in `sets.relabelled`.

    The columns are `path`, as in reports/predictions_<split>.csv, and `label`, a class name; other columns are not
    read. Labels are replaced after the splits are drawn, so no image changes its split.

    Raises:
        FileNotFoundError: `file` does not exist.
        ValueError: It is not such a CSV, names an unknown image or class, lists an image twice, or leaves a class of
            train without images; or the images have no paths.
    """
    if not all(images.are_named for images in sets.splits.values()):
        raise UserError(
            f"data.relabel={file}: the images of {sets.root} have row numbers instead of paths. Correct the labels "
            "where the data set is made, or export it as an image folder."
        )
    corrected = read_labels(file, sets.class_names)
    excluded = corrected.keys() & set(sets.excluded)
    unknown = corrected.keys() - excluded
    changed: dict[str, int] = {}
    for name, images in list(sets.splits.items()):
        labels = array("i", images.labels)
        for index, path in enumerate(images.paths):
            if path in corrected:
                unknown.discard(path)
                changed[name] = changed.get(name, 0) + (labels[index] != corrected[path].label)
                labels[index] = corrected[path].label
        sets.splits[name] = copy.copy(images)  # whoever made these images may use them elsewhere
        sets.splits[name].labels = labels
    if unknown:
        first = min(unknown, key=lambda path: corrected[path].line)
        raise UserError(_unknown_path(sets, file, corrected[first].line, first, len(unknown)))
    _check_train(sets, file)
    total = sum(len(images) for images in sets.splits.values())
    count = sum(changed.values())
    same = len(corrected) - count - len(excluded)
    others = f"; {same} have that label already" if same else ""
    others += f"; {len(excluded)} are left out by data.exclude" if excluded else ""
    sets.changed["data.relabel"] = {name: number for name, number in changed.items() if number}
    where = f": {by_split(sets.changed['data.relabel'])}" if count else ""
    sets.notes.append(f"relabelled {count} of {total} images{where} ({file}){others}")
    lines = sorted(f"{path}\0{sets.class_names[entry.label]}" for path, entry in corrected.items())
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    sets.corrections = {path: sets.class_names[entry.label] for path, entry in corrected.items()}
    sets.relabelled = {"file": str(file.absolute()), "images": count, "digest": digest}


def is_of_run(file: str, trained: Mapping[str, Any]) -> bool:
    """Whether the run of a checkpoint, whose entry `imago` is `trained`, was relabelled with `file`."""
    return _recorded(trained).get("file") == str(Path(file).expanduser().absolute())


def changed_labels(sets: ImageSets, trained: Mapping[str, Any]) -> str | None:
    """Say that the data of a checkpoint had other corrected labels than `sets`; None if these are the same, or if the
    data are others."""
    recorded, now = _recorded(trained), sets.relabelled or {}
    if recorded.get("digest") == now.get("digest") or sets.as_read != trained["data"].get("as_read", ""):
        return None
    before, after = (
        f"data.relabel={entry.get('file')} (changed labels: {entry.get('images')})" if entry else "no data.relabel"
        for entry in (recorded, now)
    )
    return f"labels differ from those of the checkpoint's run: it had {before}, these data have {after}"


def _recorded(trained: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint, perhaps a stranger's, records of its relabelling."""
    recorded = trained["data"].get("relabel")
    return recorded if isinstance(recorded, dict) else {}


def read_labels(file: Path, class_names: Sequence[str]) -> dict[str, CorrectedLabel]:
    """Read a CSV of corrected labels: path -> label.

    Raises:
        FileNotFoundError, ValueError: As `relabel`, as far as it shows without the images.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    corrected: dict[str, CorrectedLabel] = {}
    for line, path, name in _lines(file):
        if name not in labels:
            close = difflib.get_close_matches(name, class_names, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            known = shortened(class_names, MOST_LISTED)
            raise UserError(
                f"data.relabel={file}, line {line}: {name!r} is not a class.{meant} The classes are {known}."
                f"{_hint(name)}"
            )
        if path in corrected:
            first = corrected[path]
            raise UserError(
                f"data.relabel={file}, line {line}: {path} is listed twice, as {class_names[first.label]!r} in line "
                f"{first.line} and as {name!r} here. Keep one of the two lines."
            )
        corrected[path] = CorrectedLabel(labels[name], line)
    if not corrected:
        raise UserError(
            f"data.relabel={file} lists no images. Add lines such as PATH,{class_names[0]}, or leave it out."
        )
    return corrected


def _lines(file: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, path and class name of each row."""
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingFileError(
            f"data.relabel={file} {what}. Give a CSV with the columns path and label, or type data.relabel=null for "
            "the labels of the data."
        )
    content = file.read_bytes()
    if content.startswith(UTF_16) or b"\0" in content:
        raise UserError(f"data.relabel={file}, line 1: the file is not UTF-8. {SAVE}")
    # file names may be bytes that are no text, as in the predictions of a run
    text = io.StringIO(content.decode("utf-8-sig", errors="surrogateescape"), newline="")
    table = csv.DictReader(text, skipinitialspace=True, strict=True)
    try:
        columns = table.fieldnames or []
        if missing := [name for name in ("path", "label") if name not in columns]:
            raise UserError(
                f"data.relabel={file}, line 1: there is no column {' and no column '.join(missing)}; the first line is "
                f"{','.join(columns)!r}. {SAVE}"
            )
        for row in table:
            path, name = row["path"] or "", class_name((row["label"] or "").strip())
            if not path or not name or None in row:
                what = "more fields than the first line" if None in row else "no path" if not path else "no label"
                raise UserError(f"data.relabel={file}, line {table.line_num} has {what}. Each line is path,label.")
            yield table.line_num, path, name
    except csv.Error as error:
        raise UserError(f"data.relabel={file}, line {table.line_num} is not CSV: {error}. {SAVE}") from error


def _unknown_path(sets: ImageSets, file: Path, line: int, path: str, count: int) -> str:
    """Message for a path that is not among the images."""
    asked = "/" + path.replace("\\", "/").removeprefix("./").lstrip("/")
    known = [other for images in sets.splits.values() for other in images.paths]
    by_path = [other for other in known if f"/{other}".endswith(asked) or asked.endswith(f"/{other}")]
    alike = by_path or [other for other in known if PurePosixPath(other).name == PurePosixPath(asked).name]
    meant = f" Did you mean {alike[0]}?" if len(alike) == 1 else ""
    more = f" ({counted(count - 1, 'more such line')})" if count > 1 else ""
    return (
        f"data.relabel={file}, line {line}: {path} is not an image of {sets.root}{more}.{meant} Give paths as in "
        f"reports/predictions_train.csv of a run.{_hint(path)}"
    )


def _hint(text: str) -> str:
    """Advice for a text that is not UTF-8; empty for others."""
    return f" The line is not UTF-8. {SAVE}" if any("\udc80" <= letter <= "\udcff" for letter in text) else ""


def _check_train(sets: ImageSets, file: Path) -> None:
    if "train" not in sets.splits:
        return
    counts = class_counts(sets.splits["train"], sets.class_names)
    if empty := [name for name, count in counts.items() if not count]:
        raise UserError(f"data.relabel={file} leaves no image of {shortened(empty)} in train. Correct the file.")

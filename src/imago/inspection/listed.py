"""Scan of the images that a split file lists."""

from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imago.data.crops import CropPolicy
from imago.data.split_files import read_rows, read_table, root_of
from imago.definitions import SPLITS
from imago.inspection.issues import Findings, Issue
from imago.inspection.scan import conclude, look


def find_listed_issues(
    file: Path,
    data_dir: Path | None,
    workers: int,
    excluded: Container[str] = (),
    box: CropPolicy | None = None,
) -> Findings:
    """Check every image that `file` lists, as `data.split_file` takes it, except those that are `excluded`. Paths are
    relative to `data_dir`, or else to the file. `box` is the crop of an image that is scored.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or it is no such table.
    """
    header, rows = read_table(file)
    root = root_of(file, header, data_dir)
    rows = [row for row in rows if row.path not in excluded]
    names = {split: sorted({row.label for row in rows if row.split == split}) for split in SPLITS}
    names = {split: classes for split, classes in names.items() if classes}
    findings = Findings(root, name=str(file))
    with ThreadPoolExecutor(workers) as pool:  # decoders and hashes release the GIL
        seen = list(pool.map(lambda row: look(root / row.path, box, row.split, row.label, row.path), rows))
    conclude(findings, seen, {split: root / split for split in names}, names, {})
    try:
        read_rows(file, data_dir)
    except (OSError, ValueError) as error:
        findings.faults.append(Issue("refused", ".", str(error)))
    return findings

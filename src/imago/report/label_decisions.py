"""Decisions about labels that may be wrong, kept as files that the settings data.exclude and data.relabel read."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imago.config.invocation import typed_path
from imago.errors import UserError
from imago.files import atomic_write, quoted_path

FOLDER, DECISIONS, EXCLUDE, RELABEL = "labels", "decisions.csv", "exclude.txt", "relabel.csv"
KEEP, CORRECT, LEAVE_OUT = "keep", "relabel", "exclude"
KINDS = (KEEP, CORRECT, LEAVE_OUT)
COLUMNS = ("path", "decision", "label")


@dataclass(frozen=True)
class Decision:
    """Decision about an image: `keep`, `relabel` or `exclude`, and the label that it then has."""

    kind: str
    label: str


class Decisions:
    """The decisions about the images of a run, in `labels/` of its folder. Each one is on the disk when the call
    returns: `decisions.csv`, and `exclude.txt` and `relabel.csv`, which begin with what the run had already. Each call
    reads them again, so that two pages of one run lose none.

    Args:
        run: The run folder.
        class_names: Valid labels.
        excluded: Paths that the run left out.
        corrections: Labels that the run corrected, path -> class name.

    Raises:
        UserError: `decisions.csv` is not what this class writes, or `labels/` is a link, as a stranger's run may have.
    """

    def __init__(
        self, run: Path, class_names: Sequence[str], excluded: Collection[str] = (), corrections: Mapping[str, str] = {}
    ) -> None:
        self.folder = run / FOLDER
        self.class_names = list(class_names)
        self.excluded, self.corrections = list(excluded), dict(corrections)
        self.history = self._read()
        """Paths and decisions, in the order in which they were made. The last one of a path counts."""
        if self.history:
            self._write_lists(self.made)  # of a process that was killed between two files

    @property
    def made(self) -> dict[str, Decision]:
        """Path -> decision, in the order in which they were made."""
        made: dict[str, Decision] = {}
        for path, decision in self.history:
            made.pop(path, None)
            made[path] = decision
        return made

    def refresh(self) -> None:
        """Read what another page may have decided."""
        self.history = self._read()

    def decide(self, path: str, kind: str, label: str) -> None:
        """Make or replace the decision about an image.

        Raises:
            UserError: The kind or the label is unknown.
            DiskError: The disk refuses it; the decision is not made.
        """
        if kind not in KINDS:
            raise UserError(f"decision must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind!r}.")
        if label not in self.class_names:
            raise UserError(f"{label!r} is not a class of this run.")
        self._write([*self._read(), (path, Decision(kind, label))])

    def undo(self) -> str | None:
        """Take the last decision back; an earlier one about the same image counts again. Returns its path; None if
        there is none."""
        history = self._read()
        if not history:
            return None
        *before, (path, _) = history
        self._write(before)
        return path

    def settings(self) -> str:
        """Settings with which the next training uses the decisions, as they are typed; empty if they change nothing."""
        lists = {"data.exclude": self.folder / EXCLUDE, "data.relabel": self.folder / RELABEL}
        return " ".join(typed_path(setting, file) for setting, file in lists.items() if file.is_file())

    def _write(self, history: list[tuple[str, Decision]]) -> None:
        before, self.history = self.history, history
        try:
            self._write_lists(self.made)
            rows = [(path, decision.kind, decision.label) for path, decision in history]
            _write_csv(self.folder / DECISIONS, [COLUMNS, *rows])
        except BaseException:
            self.history = before
            raise

    def _write_lists(self, made: dict[str, Decision]) -> None:
        gone = [*self.excluded, *(path for path, decision in made.items() if decision.kind == LEAVE_OUT)]
        _write_lines(self.folder / EXCLUDE, [quoted_path(path) for path in dict.fromkeys(gone)])
        new = {path: decision.label for path, decision in made.items() if decision.kind == CORRECT}
        labels = [*(self.corrections | new).items()]
        _write_csv(self.folder / RELABEL, [("path", "label"), *labels] if labels else [])

    def _read(self) -> list[tuple[str, Decision]]:
        file = self.folder / DECISIONS
        if self.folder.is_symlink():
            raise UserError(f"{self.folder} is a link, and files elsewhere could be replaced. Remove it.")
        if not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            try:
                first, *rows = [tuple(row) for row in csv.reader(table)] or [()]
            except csv.Error:
                first, rows = (), []
        if first != COLUMNS or any(len(row) != 3 or row[1] not in KINDS for row in rows):
            raise UserError(f"{file} is not a list of decisions ({','.join(COLUMNS)}). Move it away to begin again.")
        if strange := next((label for _, _, label in rows if label not in self.class_names), None):
            raise UserError(f"{file}: {strange!r} is not a class of this run. Correct the line, or remove it.")
        return [(path, Decision(kind, label)) for path, kind, label in rows]


def _write_csv(file: Path, rows: Sequence[Sequence[str]]) -> None:
    with (
        atomic_write(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
    ):
        csv.writer(table, quoting=csv.QUOTE_ALL).writerows(rows)  # which keeps spaces at the beginning of a path
    if not rows:
        file.unlink()


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    if not lines:
        file.unlink()

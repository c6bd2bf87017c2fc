"""Cross-validation: the scores of the folds, and their pooled predictions for the images that each left out."""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imago.errors import UserError
from imago.files import NUMBER, UnreadableError, atomic_write, read_json
from imago.report.plots import confusion_matrix_figure, save
from imago.report.split import wilson
from imago.run.overview import LARGEST, SCORE, Overview, first_line
from imago.terminal import shortened

PREDICTIONS, BEST = "reports/predictions_val.csv", "checkpoints/best.ckpt"
METRICS = ("acc", "f1", "cross_entropy")
FILES = ("predictions_oof.csv", "confusion_matrix_oof.csv", "confusion_matrix_oof.png")
DATA = {"class_names!": [str], "counts!": {"*": {"*": int}}, "labels": str}


@dataclass(frozen=True)
class FoldRun:
    """The run of a fold, in `folder`, whether or not it has begun."""

    fold: int
    folder: Path

    @cached_property
    def overview(self) -> Overview:
        """State of the run."""
        return Overview.read(self.folder)

    @property
    def state(self) -> str:
        """State as `ml-status` shows it; `missing` before the run has begun."""
        return self.overview.state if (self.folder / "status.json").is_file() else "missing"

    @property
    def is_finished(self) -> bool:
        """Whether the run has trained, and scored the images that it left out."""
        return self.state == "completed" and (self.folder / PREDICTIONS).is_file()

    @property
    def error(self) -> str:
        """First line of what ended the run; empty if nothing did."""
        return first_line(self.overview.status.get("error"))

    @cached_property
    def scores(self) -> dict[str, dict[str, Any]]:
        """`val`, and `test` if there is a test split -> `n`, `acc`, `f1`, `loss` and `cross_entropy`."""
        scores = {}
        for split in ("val", "test") if self.is_finished else ():
            file = self.folder / "reports" / f"metrics_{split}.json"
            score = read_json(file, SCORE | {"cross_entropy": NUMBER}, LARGEST) if file.is_file() else {}
            if score.get("split") == split:
                scores[split] = score
        return scores

    @cached_property
    def data(self) -> dict[str, Any]:
        """`class_names`, the `counts` of each split and class, and `labels`, the digest of those of train and val."""
        return read_json(self.folder / "reports" / "data.json", DATA, LARGEST)

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the predictions for the images that the run left out."""
        with (self.folder / PREDICTIONS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield from csv.DictReader(file)


@dataclass(frozen=True)
class Pool:
    """Predictions of all folds, a row per image in the order of the paths, with the column `fold`."""

    class_names: list[str]
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: Sequence[FoldRun]) -> "Pool":
        """Pool the predictions of finished runs.

        Raises:
            UserError: An image is in no fold, or in several, or labels differ, because the data have changed from fold
                to fold.
        """
        rows = [
            {"index": 0, "fold": run.fold} | {k: v for k, v in row.items() if k != "index"}
            for run in runs
            for row in run.rows()
        ]
        rows.sort(key=lambda row: row["path"])
        for index, row in enumerate(rows):
            row["index"] = index
        if twice := [a["path"] for a, b in pairwise(rows) if a["path"] == b["path"]]:
            raise UserError(f"{shortened(twice)}: in several folds. {_CHANGED}")
        for run in runs:
            counts = run.data["counts"]
            images = sum(sum(counts.get(split, {}).values()) for split in ("train", "val"))
            if images != len(rows):
                raise UserError(
                    f"fold {run.fold} has {images} images of train and val, and the folds predict {len(rows)}. "
                    f"{_CHANGED}"
                )
        if any(run.data["class_names"] != runs[0].data["class_names"] for run in runs):
            raise UserError(f"The folds have different classes. {_CHANGED}")
        if len({run.data.get("labels") for run in runs} - {None}) > 1:  # an earlier Imago recorded none
            raise UserError(f"The folds have different labels of the same images. {_CHANGED}")
        return cls(runs[0].data["class_names"], rows)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix, int64 (classes, classes): true classes in rows, predicted classes in columns."""
        from sklearn.metrics import confusion_matrix

        labels, predictions = ([row[column] for row in self.rows] for column in ("label", "prediction"))
        return confusion_matrix(labels, predictions, labels=self.class_names)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`n`, `acc` with its 95% `interval`, macro `f1`, and the mean cross-entropy."""
        from sklearn.metrics import f1_score

        labels, predictions = ([row[column] for row in self.rows] for column in ("label", "prediction"))
        accuracy = sum(a == b for a, b in zip(labels, predictions, strict=True)) / len(labels)
        return {
            "n": len(labels),
            "acc": accuracy,
            "interval": list(wilson(accuracy, len(labels))),
            "f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
            "cross_entropy": statistics.fmean(float(row["loss"] or "nan") for row in self.rows),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write `predictions_oof.csv` and the confusion matrix, as a table and as a figure. Returns the paths."""
        files = [folder / name for name in FILES]
        confusion = self.confusion
        matrix: list[list[Any]] = [
            ["label", *self.class_names],
            *([name, *row] for name, row in zip(self.class_names, confusion.tolist(), strict=True)),
        ]
        _write_csv(files[0], [[*self.rows[0]], *([*row.values()] for row in self.rows)])
        _write_csv(files[1], matrix)
        figure = confusion_matrix_figure(confusion, self.class_names, f"Out of fold: {len(self.rows)} images")
        return [*files[:2], *save(figure, files[2])]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)


_CHANGED = (
    "The data have changed between the folds: type another hydra.sweep.dir= to train all folds on one state of them."
)


def spread(runs: Sequence[FoldRun]) -> dict[str, dict[str, dict[str, float]]]:
    """Split -> metric -> `mean` and sample standard deviation `sd` over the runs that have it; of two runs or more."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for split in ("val", "test"):
        for name in METRICS:
            values = [run.scores[split][name] for run in runs if name in run.scores.get(split, {})]
            if len(values) > 1:
                own = {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
                summary.setdefault(split, {})[name] = own
    return summary


def as_json(runs: Sequence[FoldRun], pool: Pool | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `cv.json`: `facts`, a row per fold, mean and deviation, and the pooled metrics."""
    folds = [
        {"fold": run.fold, "folder": run.folder.name, "state": run.state, "error": run.error or None}
        | {"checkpoint": f"{run.folder.name}/{BEST}" if (run.folder / BEST).is_file() else None}
        | {"best_value": run.overview.best, "best_epoch": run.overview.status.get("best_epoch")}
        | run.scores
        for run in runs
    ]
    pooled = (
        None if pool is None else pool.metrics | {"confusion": pool.confusion.tolist(), "class_names": pool.class_names}
    )
    return {**facts, "folds": folds, "mean": spread(runs), "pooled": pooled}


def read_scores(runs: Sequence[FoldRun]) -> None:
    """Read the scores of all runs.

    Raises:
        UserError: A file is damaged.
    """
    for run in runs:
        try:
            _ = run.scores, run.data if run.is_finished else None
        except (UnreadableError, OSError) as error:
            raise UserError(f"{run.folder}: {error} Remove this folder, and type the same words again.") from error

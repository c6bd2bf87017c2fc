"""Loggers that continue the records of an earlier process, and survive a full disk."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from omegaconf import DictConfig

from imago.files import atomic_write, forget_write_errors, log_write_errors
from imago.run.folder import RunFolder

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
WANDB = "lightning.pytorch.loggers.WandbLogger"
MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"
WRITING = ("log_metrics", "log_hyperparams", "save", "finalize")


def continue_records(nodes: Any, former: dict[str, Any], step: int) -> None:
    """Change the config group `logger` so that its loggers continue their records from `step` on."""
    if not isinstance(nodes, DictConfig):
        return  # logger=[]
    ids = former.get("loggers", {})
    for name, node in nodes.items():
        target = node.get("_target_") if node is not None else None
        if target == TENSORBOARD:
            nodes[name] = {**node, "purge_step": step}  # what was logged from there on is logged again
        elif target == WANDB and "wandb" in ids:
            nodes[name] = {**node, "id": ids["wandb"], "resume": "allow"}
        elif target == MLFLOW and "mlflow" in ids:
            nodes[name] = {**node, "run_id": ids["mlflow"]}


class CSVLogger(LightningCSVLogger):
    """Lightning's CSVLogger, but it keeps the rows of an earlier process, and writes its file atomically."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    def forget_from(self, step: int, repeats_validation: bool = False) -> None:
        """Remove the rows logged at `step` and later, and an incomplete last row; with `repeats_validation`, also the
        row of the validation after the step before."""
        file = Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        if not file.is_file():
            return
        with file.open(newline="") as lines:
            table = csv.DictReader(lines)
            rows = [row for row in table if None not in row.values() and row["step"].isdigit()]
        if repeats_validation:
            rows = [
                row
                for row in rows
                if int(row["step"]) < step - 1 or not any(row[name] for name in row if "val/" in name)
            ]
        _write_rows(file, list(table.fieldnames or []), [row for row in rows if int(row["step"]) < step])


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Read the columns of an existing file instead of deleting it."""
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="") as lines:
                self.metrics_keys = next(csv.reader(lines), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        _write_rows(Path(self.metrics_file_path), fieldnames, rows)


def _write_rows(file: Path, names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(file) as temporary, temporary.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, names)
        writer.writeheader()
        writer.writerows(rows)


def remember_records(loggers: Sequence[Logger], run: RunFolder) -> None:
    """Record in `status.json` the ids under which servers know the run."""
    ids: dict[str, str] = {}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            ids["wandb"] = str(logger.experiment.id)  # `version` has none before the record is made
        elif isinstance(logger, MLFlowLogger):
            ids["mlflow"] = str(logger.run_id)
    if ids:
        run.update(loggers=ids)


def tolerate_full_disks(loggers: Sequence[Logger]) -> None:
    """Make loggers report once that they cannot write, instead of ending the run."""
    forget_write_errors()
    for logger in loggers:
        for name in WRITING:
            setattr(logger, name, log_write_errors(type(logger).__name__)(getattr(logger, name)))

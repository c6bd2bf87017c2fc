"""Loggers that continue the records of an earlier process, survive a full disk, and show the curves first."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from omegaconf import DictConfig

from imago.config.invocation import override_key, override_value
from imago.config.tree import leaves
from imago.files import UnreadableError, atomic_write, forget_write_errors, log_write_errors, read_json
from imago.masking import masked, masked_override
from imago.report.content import LARGEST
from imago.report.tensorboard import tag_of_metric
from imago.run.folder import RunFolder
from imago.run.overview import NO_SETTINGS

TENSORBOARD = ("imago.training.TensorBoardLogger", "lightning.pytorch.loggers.TensorBoardLogger")
WANDB = "lightning.pytorch.loggers.WandbLogger"
MLFLOW = "lightning.pytorch.loggers.MLFlowLogger"
WHOLE = ("recipe", "experiment", "debug", "hparams_search")
"""Groups whose options set keys anywhere in the config."""
WRITING = ("log_metrics", "log_hyperparams", "save", "finalize")


def continue_records(nodes: Any, former: dict[str, Any], step: int) -> None:
    """Change the config group `logger` so that its loggers continue their records from `step` on."""
    if not isinstance(nodes, DictConfig):
        return  # logger=[]
    ids = former.get("loggers", {})
    for name, node in nodes.items():
        target = node.get("_target_") if node is not None else None
        if target in TENSORBOARD:
            nodes[name] = {**node, "purge_step": step}  # what was logged from there on is logged again
        elif target == WANDB and "wandb" in ids:
            nodes[name] = {**node, "id": ids["wandb"], "resume": "allow"}
        elif target == MLFLOW and "mlflow" in ids:
            nodes[name] = {**node, "run_id": ids["mlflow"]}


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's TensorBoardLogger, with names by which TensorBoard shows the curves of train and val first."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({tag_of_metric(name): value for name, value in metrics.items()}, step)


def log_settings(logger: Logger, settings: dict[str, Any], run: RunFolder) -> None:
    """Log the settings of a run; to TensorBoard, whose table has a column for each, only those that were chosen."""
    is_board = isinstance(logger, LightningTensorBoardLogger)
    logger.log_hyperparams(hyperparameters(settings, run) if is_board else settings)


def hyperparameters(settings: Mapping[str, Any], run: RunFolder) -> dict[str, Any]:
    """Choose what TensorBoard shows as hyperparameters: the seed, what was typed, and what differs from the defaults.

    An option that was typed (`experiment=digits`) stands for all that it sets.

    Args:
        settings: The whole config, in plain containers.
        run: The run, whose `reports/changes.json` lists what differs.
    """
    try:
        changes = read_json(run.path / "reports" / "changes.json", [{"key!": str}], LARGEST)
    except (OSError, UnreadableError):
        changes = []
    words = [word for word in run.invocation.overrides if "=" in word]
    typed = {override_key(word): masked(override_value(word)) for word in words if masked_override(word) == word}
    options = tuple("" if key in WHOLE else f"{key.replace('/', '.')}." for key in typed)
    keys = {"seed", *(change["key"] for change in changes if not change["key"].startswith(options))}
    chosen = typed | {key: value for key, value in leaves(settings) if key in keys or key in typed}
    left_out = (*NO_SETTINGS, "logger", "tags")
    return {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in chosen.items()
        if key.partition(".")[0] not in left_out
    }


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

"""Score weights on splits, and write reports."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from imago.callbacks.average import CURRENT, weights_in
from imago.checkpoint.fits import load_weights
from imago.checkpoint.read import Checkpoint
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.evaluation.calibration import Calibration
from imago.evaluation.collect import score
from imago.evaluation.label_votes import add_votes
from imago.evaluation.outputs import LABELS_CHECKED, note_data, show_hyperparameters, write_reports
from imago.evaluation.score import Score
from imago.model.module import DictModule
from imago.run.folder import RunFolder
from imago.terminal import counted

log = logging.getLogger(__name__)


@dataclass
class Result:
    """Scores by split, the checkpoint they belong to, and the best value of the monitored metric; `longer` is the
    setting with which more training may help, because of the `trend`: what was still improving at its end. A trial of a
    search that `is_pruned` has no scores."""

    scores: dict[str, Score] = field(default_factory=dict)
    checkpoint: Path | None = None
    best_value: float | None = None
    was_trained: bool = False
    longer: str | None = None
    trend: str | None = None
    is_pruned: bool = False

    @property
    def objective(self) -> float | None:
        """Objective of a sweep: the best value of the monitor, or, if nothing was trained, the first accuracy."""
        accuracies = (score.metrics["acc"] for score in self.scores.values())
        return self.best_value if self.was_trained else next(accuracies, None)

    @property
    def weights(self) -> str:
        """Description of the weights that were scored."""
        return self.checkpoint.name if self.checkpoint is not None else "the final weights"


def evaluate(
    data: ImageDataModule,
    model: DictModule,
    trainer: Trainer,
    run: RunFolder,
    ckpt_path: str | Path | None,
    splits: list[str],
    calibrate: Callable[[Callable[[str], Score], Checkpoint], Calibration] | None = None,
    pictures: bool = True,
) -> Result:
    """Score the weights of a checkpoint, or those that the model has, on `splits`.

    `calibrate` is called first, with a function that scores a split, and the checkpoint. Without `pictures`, reports
    show no images.
    """
    result = Result(checkpoint=Path(ckpt_path) if ckpt_path is not None else None)
    calibration = None
    scores = _Scores(trainer, model, data, splits, pictures)
    if ckpt_path is not None:
        checkpoint = load_weights(model, data, ckpt_path)
        if trainer.is_global_zero and (weights := weights_in(checkpoint)) != CURRENT:
            log.info("%s has %s", Path(ckpt_path).name, weights)
        if checkpoint["imago"]["data"]["fingerprint"] != data.facts["fingerprint"]:
            log.info("These data differ from those that the checkpoint was trained on")
        if calibrate is not None and "val" not in data.sets.splits:
            raise UserError(f"calibrate=true needs a val split, and {data.sets.root} has none. Add a folder val/.")
        if calibrate is not None:
            calibration = calibrate(scores.of, checkpoint)
    step = trainer.global_step
    for split in splits:
        result.scores[split] = replace(scores.of(split), calibration=calibration)
        if trainer.is_global_zero:
            add_votes(result.scores[split], model, run.path)
            images, weights = data.split(split), result.weights
            loggers = trainer.loggers
            write_reports(result.scores[split], images, run.path, loggers, step, weights, pictures, run.plots)
    metrics = {name: split_score.metrics for name, split_score in result.scores.items()}
    show_hyperparameters(trainer.loggers, metrics, step)
    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # otherwise the next job of a sweep would continue this one's record
    if data.damaged and trainer.is_global_zero:
        note_data(run, data)
    run.sections["Results"] = {
        f"{name} {metric}": value
        for name, split_score in result.scores.items()
        for metric, value in _shown(split_score).items()
    }
    return result


class _Scores:
    """Scores of the splits that are asked for. Where val is scored as test too, it is scored once."""

    def __init__(
        self, trainer: Trainer, model: DictModule, data: ImageDataModule, splits: list[str], pictures: bool
    ) -> None:
        self.trainer, self.model, self.data, self.pictures = trainer, model, data, pictures
        same_limits = trainer.limit_test_batches == trainer.limit_predict_batches
        self.test_is = data.scored_split("test") if "test" in splits and same_limits else None
        self._done: dict[str, Score] = {}

    def of(self, split: str) -> Score:
        """Score of `split`; one for test is logged as `test/*`."""
        run_as = "test" if self.data.scored_split(split) == self.test_is else split
        if run_as not in self._done:
            also = " (also as test)" if run_as == "test" and self.test_is != "test" else ""
            images = counted(len(self.data.split(split)), "image")
            log.info("Scoring %s%s: %s", self.data.scored_split(split), also, images)
            doubts_labels = self.pictures and self.data.scored_split(split) in LABELS_CHECKED
            self._done[run_as] = score(self.trainer, self.model, self.data, run_as, with_features=doubts_labels)
        return replace(self._done[run_as], asked=split)


def _shown(split_score: Score) -> dict[str, Any]:
    metrics = split_score.metrics
    scored = {"scored on": split_score.split} if split_score.split != split_score.asked else {}
    keys = ("acc", "top5_acc", "f1", "loss", "baseline_acc", "n")
    return scored | {key: metrics[key] for key in keys if key in metrics}

"""Score a checkpoint. Its config is stored in it, and overrides take precedence.

python src/eval.py ckpt_path=RUN
python src/eval.py ckpt_path=latest split=val data.data_dir=PATH
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.start_from import resolve_checkpoint_args
from imago.config.checks import check_from_checkpoint, splits_of
from imago.config.invocation import Invocation
from imago.config.root import KeptRoot
from imago.config.setting_source import is_typed
from imago.config.trainer import check_as_tested
from imago.definitions import CALIBRATION
from imago.errors import UserError
from imago.run.folder import RunFolder

if TYPE_CHECKING:
    from imago.checkpoint.read import Checkpoint
    from imago.data.module import ImageDataModule
    from imago.evaluation.calibration import Answers, Calibration
    from imago.evaluation.evaluate import Result
    from imago.evaluation.score import Score

log = logging.getLogger(__name__)

OF_CALIBRATION = ("target_accuracy", "confidence", "coverage")
"""Settings of `calibrate=true`, fractions."""


@dataclass
class EvalRoot(KeptRoot):
    """What `eval.yaml` has besides."""

    split: Any = "test"
    calibrate: bool = False
    target_accuracy: float = 0.99
    confidence: float = 0.95
    coverage: float = 0.9


def check_eval(cfg: DictConfig, invocation: Invocation) -> None:
    """Raises ValueError for settings that cannot work, before anything is made."""
    check_from_checkpoint(cfg, invocation)
    splits_of(cfg.split, cfg)
    check_as_tested(cfg, invocation, "calibrate", cfg.trainer.get("precision"))
    for option in OF_CALIBRATION:
        if not cfg.calibrate and is_typed(option, invocation):
            raise UserError(f"{option}={cfg[option]} is a setting of calibrate=true. Add it, or remove {option}=.")
        if not 0 < cfg[option] < 1:
            meant = f" Type {option}={cfg[option] / 100:g}" if 10 <= cfg[option] < 100 else ""
            raise UserError(f"{option} must be a number between 0 and 1, for example 0.99; got {cfg[option]}.{meant}")


def evaluate_from_config(cfg: DictConfig, run: RunFolder) -> "Result":
    """Makes the objects, loads the checkpoint, scores."""
    from imago.checkpoint.read import read_checkpoint
    from imago.dp.published import privacy_of
    from imago.evaluation.console import note_scored_again, show_results
    from imago.evaluation.evaluate import evaluate
    from imago.training.build import build_to_score

    data, model, trainer = build_to_score(cfg, run)

    splits = splits_of(cfg.split, cfg)
    listed = " and ".join(split for split in ("train", "val", CALIBRATION) if split in splits)
    entry = read_checkpoint(cfg.ckpt_path, mmap=True)["imago"] if cfg.calibrate or listed else None
    is_private = entry is not None and privacy_of(Path(cfg.ckpt_path), entry) is not None
    if cfg.calibrate and is_private:
        log.warning(
            "calibrate=true of a checkpoint that was trained with strategy=dp: temperature and thresholds have no "
            "noise, and tell of the images of val and calibration. Unless these are public, type ml-export with "
            "calibration=false"
        )
    if listed and is_private:
        log.warning(
            "The checkpoint was trained with strategy=dp, and split has %s: reports/ will list path, label and loss of "
            "each %s image, which may be private",
            listed,
            listed,
        )
    calibrate = partial(_calibrate, cfg, run, data) if cfg.calibrate else None
    result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits, calibrate, cfg.report.pictures)
    show_results(result, run, is_private=is_private)
    if run.rank == 0:
        note_scored_again(result, run)
    return result


def _calibrate(
    cfg: DictConfig,
    run: RunFolder,
    data: "ImageDataModule",
    score_of: "Callable[[str], Score]",
    checkpoint: "Checkpoint",
) -> "Calibration":
    """Fit the calibration of the checkpoint, and keep it in a file beside it."""
    from imago.evaluation.calibration import Answers, Wanted, fit
    from imago.evaluation.calibration_file import file_beside, key_of, write
    from imago.evaluation.console import show_calibration
    from imago.evaluation.from_config import typed_looks

    val, unseen = score_of("val"), _unseen(cfg, run, data, score_of, checkpoint["imago"])
    calibration = fit(
        Answers(val.log_probabilities, val.labels),
        unseen,
        Wanted(cfg.target_accuracy, cfg.confidence, cfg.coverage),
        data.facts["fingerprint"],
        key_of(checkpoint["imago"]["timestamp"], cfg.data),
    )
    calibration = replace(calibration, settings=typed_looks(run.invocation.overrides))
    if run.rank == 0:
        calibration = write(calibration, file_beside(Path(cfg.ckpt_path)))
        show_calibration(calibration, val, (unseen or val).labels, file_beside(Path(cfg.ckpt_path)))
    return calibration


def _unseen(
    cfg: DictConfig,
    run: RunFolder,
    data: "ImageDataModule",
    score_of: "Callable[[str], Score]",
    entry: "Mapping[str, Any]",
) -> "Answers | None":
    """Predict the images of the calibration split that count; None without that split."""
    from imago.evaluation.calibration import Answers
    from imago.evaluation.calibration_images import HOW, independent_images, note_on_earlier_runs

    if CALIBRATION not in data.sets.splits:
        if is_typed("confidence", run.invocation):
            raise UserError(
                f"confidence={cfg.confidence}: nothing can be promised, because {data.sets.root} has no calibration "
                f"split, and val also chose the checkpoint. {HOW}, or add a folder calibration/ of images that it has "
                "not seen."
            )
        return None
    is_counted, notes = independent_images(data, entry)
    for note in notes + note_on_earlier_runs(data, entry, Path(cfg.paths.log_dir)):
        log.warning("%s", note)
    score = score_of(CALIBRATION)
    if len(score.labels) < len(is_counted):
        raise UserError(
            f"trainer.limit_predict_batches leaves {len(score.labels)} of the {len(is_counted)} images of "
            f"{CALIBRATION}, and the first of a split are of one class. Remove it."
        )
    if not is_counted.any():
        raise UserError(f"No image of {CALIBRATION} is left: nothing can be promised. {HOW}.")
    chosen = is_counted[score.indices]
    return Answers(score.log_probabilities[chosen], score.labels[chosen])


main = Command("eval", evaluate_from_config, check_eval, root=EvalRoot, arguments=resolve_checkpoint_args)
"""The command line of evaluation."""


if __name__ == "__main__":
    main()

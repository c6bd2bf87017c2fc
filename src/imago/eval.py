"""Score a checkpoint. Its config is stored in it, and overrides take precedence.

python src/eval.py ckpt_path=RUN
python src/eval.py ckpt_path=latest split=val data.data_dir=PATH
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.start_from import resolve_checkpoint_args
from imago.config.checks import check_from_checkpoint, splits_of
from imago.config.invocation import Invocation
from imago.config.root import KeptRoot
from imago.errors import UserError
from imago.run.folder import RunFolder

if TYPE_CHECKING:
    from imago.checkpoint.read import Checkpoint
    from imago.evaluation.calibration import Calibration
    from imago.evaluation.evaluate import Result
    from imago.evaluation.score import Score

log = logging.getLogger(__name__)


@dataclass
class EvalRoot(KeptRoot):
    """What `eval.yaml` has besides."""

    split: Any = "test"
    calibrate: bool = False
    target_accuracy: float = 0.99
    coverage: float = 0.9


def check_eval(cfg: DictConfig, invocation: Invocation) -> None:
    """Raises ValueError for settings that cannot work, before anything is made."""
    check_from_checkpoint(cfg, invocation)
    splits_of(cfg.split, cfg)
    for option in ("target_accuracy", "coverage"):
        if not 0 < cfg[option] < 1:
            meant = f" Type {option}={cfg[option] / 100:g}" if 10 <= cfg[option] < 100 else ""
            raise UserError(f"{option} must be a number between 0 and 1, for example 0.99; got {cfg[option]}.{meant}")


def evaluate_from_config(cfg: DictConfig, run: RunFolder) -> "Result":
    """Makes the objects, loads the checkpoint, scores."""
    from imago.checkpoint.read import read_checkpoint
    from imago.dp.published import privacy_of
    from imago.evaluation.calibration import file_beside, fit, key_of, write
    from imago.evaluation.console import note_scored_again, show_calibration, show_results
    from imago.evaluation.evaluate import evaluate
    from imago.training.build import build_to_score

    data, model, trainer = build_to_score(cfg, run)

    def calibrate(score: "Score", checkpoint: "Checkpoint") -> "Calibration":
        fingerprint, key = data.facts["fingerprint"], key_of(checkpoint["imago"]["timestamp"], cfg.data)
        calibration = fit(score.log_probabilities, score.labels, cfg.target_accuracy, cfg.coverage, fingerprint, key)
        if run.rank == 0:
            write(calibration, file_beside(Path(cfg.ckpt_path)))
            show_calibration(calibration, score, file_beside(Path(cfg.ckpt_path)))
        return calibration

    splits = splits_of(cfg.split, cfg)
    listed = " and ".join(split for split in ("train", "val") if split in splits)
    entry = read_checkpoint(cfg.ckpt_path, mmap=True)["imago"] if cfg.calibrate or listed else None
    is_private = entry is not None and privacy_of(Path(cfg.ckpt_path), entry) is not None
    if cfg.calibrate and is_private:
        log.warning(
            "calibrate=true of a checkpoint that was trained with strategy=dp: temperature and thresholds have no "
            "noise, and tell of the val images. Unless these are public, type ml-export with calibration=false"
        )
    if listed and is_private:
        log.warning(
            "The checkpoint was trained with strategy=dp, and split has %s: reports/ will list path, label and loss of "
            "each %s image, which may be private",
            listed,
            listed,
        )
    fit_on_val = calibrate if cfg.calibrate else None
    result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits, fit_on_val, cfg.report.pictures)
    show_results(result, run, is_private=is_private)
    if run.rank == 0:
        note_scored_again(result, run)
    return result


main = Command("eval", evaluate_from_config, check_eval, root=EvalRoot, arguments=resolve_checkpoint_args)
"""The command line of evaluation."""


if __name__ == "__main__":
    main()

"""Score a checkpoint: its config comes with it, and what is typed wins.

python src/eval.py ckpt_path=RUN
python src/eval.py ckpt_path=latest split=val data.data_dir=PATH
"""

from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from imago.carried_config import starts_from_checkpoint
from imago.checks import check_from_checkpoint, splits_of
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder

if TYPE_CHECKING:
    from imago.calibration import Calibration
    from imago.checkpoints import Checkpoint
    from imago.scoring import Score


@type_as_usual
@starts_from_checkpoint
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="eval")
def main(cfg: DictConfig) -> float | None:
    """The command line of evaluation."""
    return run_command(evaluate_from_config, cfg, check_eval)


def check_eval(cfg: DictConfig, typed: list[str]) -> None:
    """Raises ValueError for settings that cannot work, before anything is made."""
    check_from_checkpoint(cfg, typed)
    splits_of(cfg.split, cfg)
    for option in ("target_accuracy", "coverage"):
        if not 0 < cfg[option] < 1:
            raise ValueError(f"{option}={cfg[option]}: give a share between 0 and 1, 0.99 for example.")


def evaluate_from_config(cfg: DictConfig, run: RunFolder) -> float | None:
    """Makes the objects, loads the checkpoint, scores; returns the accuracy of the first split."""
    from imago.building import build_to_score
    from imago.calibration import file_beside, fit, key_of, write
    from imago.results import note_scored_again, show_calibration, show_results
    from imago.training import evaluate

    data, model, trainer = build_to_score(cfg, run)

    def calibrate(score: "Score", checkpoint: "Checkpoint") -> "Calibration":
        fingerprint, key = data.facts["fingerprint"], key_of(checkpoint["imago"]["timestamp"], cfg.data)
        found = fit(score.log_probabilities, score.labels, cfg.target_accuracy, cfg.coverage, fingerprint, key)
        if run.rank == 0:
            write(found, file_beside(Path(cfg.ckpt_path)))
            show_calibration(found, score, file_beside(Path(cfg.ckpt_path)))
        return found

    splits = splits_of(cfg.split, cfg)
    fit_on_val = calibrate if cfg.calibrate else None
    result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits, fit_on_val, cfg.report.pictures)
    show_results(result, run)
    if run.rank == 0:
        note_scored_again(result, run)
    return next(score.metrics["acc"] for score in result.scores.values())


if __name__ == "__main__":
    main()

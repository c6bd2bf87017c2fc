"""Score a checkpoint; type the same overrides as in the run that wrote it.

python src/eval.py ckpt_path=logs/train/runs/RUN/checkpoints/best.ckpt experiment=digits
"""

import hydra
from omegaconf import DictConfig

from imago.checks import check_scoring
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="eval")
def main(cfg: DictConfig) -> float | None:
    """The command line of evaluation."""
    return run_command(evaluate_from_config, cfg, check_scoring)


def evaluate_from_config(cfg: DictConfig, run: RunFolder) -> float | None:
    """Makes the objects, loads the checkpoint, scores; returns the accuracy of the first split."""
    from imago.building import build_to_score
    from imago.results import show_results
    from imago.training import evaluate

    data, model, trainer = build_to_score(cfg, run)
    result = evaluate(data, model, trainer, run, cfg.ckpt_path, list(cfg.report.splits))
    show_results(result, run, cfg.seed)
    return next(score.metrics["acc"] for score in result.scores.values())


if __name__ == "__main__":
    main()

"""Write what a checkpoint predicts for each image of a split.

ml-inference ckpt_path=logs/train/runs/RUN/checkpoints/best.ckpt experiment=digits
"""

import hydra
from omegaconf import DictConfig

from imago.checks import check_scoring
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="inference")
def main(cfg: DictConfig) -> float | None:
    """The command line of inference."""
    return run_command(infer_from_config, cfg, check_scoring)


def infer_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Makes the objects, loads the checkpoint, and writes `predictions_<split>.csv` to the run folder."""
    from imago.building import build_to_score
    from imago.checkpoints import load_weights
    from imago.reports import write_predictions
    from imago.results import show_predictions
    from imago.scoring import score

    data, model, trainer = build_to_score(cfg, run)
    load_weights(model, data, cfg.ckpt_path)
    for split in cfg.report.splits:
        scored = score(trainer, model, data, split)
        path = run.path / f"predictions_{split}.csv"
        if run.rank == 0:
            write_predictions(scored, path)
            show_predictions(scored, path)


if __name__ == "__main__":
    main()

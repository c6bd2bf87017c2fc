"""Train a network on a folder of images, score its best checkpoint and write the reports.

python src/train.py experiment=digits
python src/train.py data.data_dir=PATH trainer.max_epochs=20
"""

import hydra
from omegaconf import DictConfig

from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The command line of training."""
    return run_command(train_from_config, cfg)


def train_from_config(cfg: DictConfig, run: RunFolder) -> float | None:
    """Makes the objects, trains, scores; returns the best value of `monitor`."""
    from imago.building import build
    from imago.results import show_results
    from imago.training import evaluate, train

    data, model, trainer = build(cfg, run)
    splits = list(cfg.report.splits) if cfg.test else []
    if cfg.train:
        result = train(data, model, trainer, run, cfg.monitor, cfg.mode, splits, cfg.ckpt_path)
    else:
        result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits)
    show_results(result, run)
    return result.best_value


if __name__ == "__main__":
    main()

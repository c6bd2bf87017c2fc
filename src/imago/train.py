"""Train a network on a folder of images, score its best checkpoint and write the reports.

python src/train.py experiment=digits
python src/train.py data.data_dir=PATH trainer.max_epochs=20
python src/train.py resume=RUN
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR, with_data
from imago.from_run import goes_on
from imago.run_folder import RunFolder


@type_as_usual
@goes_on
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The command line of training."""
    return run_command(train_from_config, with_data(cfg))


def train_from_config(cfg: DictConfig, run: RunFolder) -> float | None:
    """Makes the objects, trains, scores; returns the best value of `monitor`."""
    from imago.building import build
    from imago.results import show_results
    from imago.training import evaluate, train

    data, model, trainer = build(cfg, run)
    splits = list(cfg.report.splits) if cfg.test and cfg.preflight != "only" else []
    if cfg.train:
        ckpt_path = cfg.ckpt_path if run.goes_on_from is None else str(run.goes_on_from)
        result = train(data, model, trainer, run, cfg.monitor, splits, ckpt_path, cfg.report.pictures)
        if cfg.preflight == "only":
            return None
    else:
        result = evaluate(data, model, trainer, run, cfg.ckpt_path, splits, pictures=cfg.report.pictures)
    show_results(result, run)
    if cfg.replay is not None and run.rank == 0:
        _say_whether_it_is_the_same(Path(cfg.replay), run.path)
    return result.best_value


def _say_whether_it_is_the_same(before: Path, now: Path) -> None:
    from imago.replaying import compare, in_words

    found = compare(before, now)
    if found["different"]:
        raise ValueError(in_words(found))
    print(in_words(found))


if __name__ == "__main__":
    main()

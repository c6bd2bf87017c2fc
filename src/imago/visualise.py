"""Look at runs in TensorBoard, or at images before and after augmentation.

ml-visualise
ml-visualise what=augmentations experiment=digits
"""

import hydra
from omegaconf import DictConfig

from imago.checks import check_visualise
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="visualise")
def main(cfg: DictConfig) -> float | None:
    """The command line of visualisation."""
    return run_command(visualise_from_config, cfg, check_visualise, one_process=True)


def visualise_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Serves TensorBoard until Ctrl-C, or writes `augmentations.png` to the run folder."""
    if cfg.what == "tensorboard":
        from imago.boards import serve_tensorboard

        serve_tensorboard(cfg.logdir, cfg.port)
        return
    from hydra.utils import instantiate

    from imago.plots import augmentations_figure, drawn, save

    data = instantiate(cfg.data, _convert_="all")
    path = run.path / "augmentations.png"
    save(drawn(augmentations_figure(data, cfg.samples, cfg.seed)), path)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()

"""Look at what a network is shown, at what it says, at curves, reports, and runs in TensorBoard.

ml-visualise
ml-visualise mode=samples experiment=digits
ml-visualise mode=report run=RUN
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from imago.checks import check_visualise
from imago.command import run_command, type_as_usual
from imago.config import CONFIG_DIR
from imago.run_folder import RunFolder, find_run


@type_as_usual
@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="visualise")
def main(cfg: DictConfig) -> float | None:
    """The command line of visualisation."""
    return run_command(visualise_from_config, cfg, check_visualise, one_process=True)


def visualise_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Serves TensorBoard until Ctrl-C, or writes a picture to the command's folder, or a run's report again."""
    if cfg.mode == "launch":
        from imago.boards import serve_tensorboard

        serve_tensorboard(cfg.logdir, cfg.port)
        return
    from imago.results import show_written

    if cfg.mode == "samples":
        show_written(_samples(cfg, run.path / "samples.png"))
        return
    folder = find_run(cfg.run, Path(cfg.paths.log_dir))
    drawing = {"curves": _curves, "predictions": _predictions, "report": _report}[cfg.mode]
    show_written(drawing(folder, run.path / cfg.mode, cfg.plots.format))


def _samples(cfg: DictConfig, path: Path) -> Path:
    from hydra.utils import instantiate

    from imago.plots import augmentations_figure, save

    data = instantiate(cfg.data, _convert_="all")
    return save(augmentations_figure(data, cfg.samples, cfg.seed), path, cfg.plots.format)


def _curves(folder: Path, path: Path, form: str) -> Path:
    from imago.plots import curves_figure, save
    from imago.run_report import history

    rows = history(folder)
    if not rows:
        raise ValueError(f"run={folder} has finished no epoch: there are no curves yet.")
    return save(curves_figure(rows), path, form)


def _predictions(folder: Path, path: Path, form: str) -> Path:
    from imago.plots import save, thumbnails_figure
    from imago.run_report import thumbnails

    found = thumbnails(folder)
    if found is None:
        raise ValueError(f"run={folder} has no predictions in reports/: score it first, ml-eval ckpt_path={folder}")
    return save(thumbnails_figure(*found), path, form)


def _report(folder: Path, path: Path, form: str) -> Path:
    from imago.run_report import write_report

    del path, form
    return write_report(folder)


if __name__ == "__main__":
    main()

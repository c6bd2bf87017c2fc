"""Show augmented images, predictions, curves, reports, labels to check, and runs in TensorBoard.

ml-visualise
ml-visualise mode=samples experiment=digits
ml-visualise mode=report run=RUN
ml-visualise mode=labels run=RUN
ml-visualise mode=explain run=RUN
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.typed_words import check_choice
from imago.config.checks import check_settings
from imago.config.invocation import Invocation
from imago.config.monitors import VIEWS
from imago.config.private import is_private
from imago.config.root import KeptRoot
from imago.errors import UserError
from imago.run.find import find_run
from imago.run.folder import PlotOptions, RunFolder
from imago.run.spent import is_private_run

log = logging.getLogger(__name__)

METHODS = ("auto", "grad_cam", "occlusion")  # of mode=explain


@dataclass
class VisualiseRoot(KeptRoot):
    """Settings that `visualise.yaml` adds."""

    mode: str = "launch"
    run: str = "latest"
    logdir: str = "logs"
    port: int = 6006
    samples: int = 8
    method: str = "auto"


def check_visualise(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise ValueError for settings that cannot work. Only `mode=samples` needs data."""
    check_choice("mode", cfg.mode, VIEWS)
    check_choice("method", cfg.method, METHODS)
    for option, value, least in (("port", cfg.port, 0), ("samples", cfg.samples, 1)):
        if value < least:
            raise UserError(f"{option} must be {least} or more, got {value}.")
    if cfg.mode == "samples":
        check_settings(cfg, invocation)
        if is_private(cfg):
            log.warning("mode=samples with strategy=dp: samples.png shows train images, which may be private")


def visualise_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Serve TensorBoard or the labels of a run until Ctrl-C, or write a figure to the command's folder, or a run's
    report again."""
    if cfg.mode == "launch":
        from imago.report.tensorboard import serve_tensorboard

        serve_tensorboard(cfg.logdir, cfg.port)
        return
    from imago.evaluation.console import show_written

    if cfg.mode == "samples":
        for path in _samples(cfg, run.path / "samples.png", run.plots):
            show_written(path)
        return
    folder = find_run(cfg.run, Path(cfg.paths.log_dir))
    if cfg.mode == "labels":
        _labels(folder, cfg)
        return
    if cfg.mode == "explain":
        show_written(_explain(folder, cfg, run.invocation))
        return
    drawing = {"curves": _curves, "predictions": _predictions, "report": _report}[cfg.mode]
    for path in drawing(folder, run.path / cfg.mode, run.plots):
        show_written(path)


def _samples(cfg: DictConfig, path: Path, plots: PlotOptions) -> list[Path]:
    from hydra.utils import instantiate

    from imago.report.plots import augmentations_figure, save

    data = instantiate(cfg.data, _convert_="all")
    return save(augmentations_figure(data, cfg.samples, cfg.seed), path, plots)


def _curves(folder: Path, path: Path, plots: PlotOptions) -> list[Path]:
    from imago.report.content import best_epoch, history
    from imago.report.plots import curves_figure, save

    rows = history(folder)
    if not rows:
        raise UserError(f"run={folder} has no finished epoch, so there are no curves yet.")
    return save(curves_figure(rows, best_epoch(folder)), path, plots)


def _predictions(folder: Path, path: Path, plots: PlotOptions) -> list[Path]:
    from imago.report.content import thumbnails
    from imago.report.gallery import thumbnails_figure
    from imago.report.plots import save

    pictures = thumbnails(folder)
    if pictures is None:
        raise UserError(f"run={folder} has no predictions in reports/. Score it first: ml-eval ckpt_path={folder}")
    return save(thumbnails_figure(*pictures), path, plots)


def _report(folder: Path, path: Path, plots: PlotOptions) -> list[Path]:
    from imago.report.page import write_report

    del path, plots
    return [write_report(folder)]


def _labels(folder: Path, cfg: DictConfig) -> None:
    from imago.report.label_page import serve_labels
    from imago.training.label_suspects import suspects_and_decisions

    serve_labels(*suspects_and_decisions(folder, cfg.paths), folder.name, cfg.port)


def _explain(folder: Path, cfg: DictConfig, invocation: Invocation) -> Path:
    from imago.report.page import write_report
    from imago.training.explained_images import explain_run

    if is_private_run(folder) and "report.pictures=true" not in invocation.overrides:
        raise UserError(
            f"run={folder} was trained with strategy=dp, and explanations show its test or val images. Type "
            "report.pictures=true to show them to those who may see them"
        )
    explain_run(folder, cfg.paths, cfg.method)
    return write_report(folder)


main = Command(
    "visualise",
    visualise_from_config,
    check_visualise,
    root=VisualiseRoot,
    choices={"mode": VIEWS, "method": METHODS},
    one_process=True,
)
"""Command line of `ml-visualise`."""


if __name__ == "__main__":
    main()

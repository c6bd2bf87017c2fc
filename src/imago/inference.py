"""Write the predictions of one or several checkpoints for each image.

ml-inference ckpt_path=RUN source=PATH
ml-inference ckpt_path=latest split=val
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from imago.cli.compose import typed_value
from imago.cli.entry import Command
from imago.cli.start_from import Arguments, resolve_checkpoint_args
from imago.cli.typed_words import check_choice
from imago.config.checks import check_from_checkpoint, splits_of
from imago.config.ensemble import TTA, check_ensemble, checkpoints_of
from imago.config.invocation import Invocation, override_key
from imago.config.root import KeptRoot
from imago.config.trainer import check_as_tested
from imago.data.source_paths import check_source
from imago.definitions import is_export
from imago.errors import IncompleteError, UserError
from imago.run.folder import RunFolder
from imago.terminal import counted

if TYPE_CHECKING:
    from imago.data.images import Images
    from imago.evaluation.classifier import Classifier

log = logging.getLogger(__name__)

CHOICES = {"tta": TTA, "format": ("csv", "jsonl")}

SOURCE = "source"


@dataclass
class InferenceRoot(KeptRoot):
    """Settings that `inference.yaml` adds."""

    source: Any = None
    split: Any = "test"
    weights: Any = None
    tta: str = "none"
    calibrated: bool = False
    format: str = "csv"
    rows: int = 10
    gallery: bool = False


def check_inference(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise ValueError for settings that cannot work, or not together, before anything is made."""
    check_from_checkpoint(cfg, invocation, needs_data=cfg.source is None)
    if cfg.source is not None and "split" in invocation.keys:
        raise UserError(f"source={cfg.source} and split={cfg.split}: type only one of them.")
    exports = [path for path in checkpoints_of(cfg) if is_export(path)]
    if cfg.source is None and exports:
        raise UserError(f"{exports[0]} is an export, which does not say where its data are. Type source=PHOTOS.")
    if cfg.source is not None and cfg.data.get("relabel") is not None and "data.relabel" in invocation.keys:
        raise UserError(
            f"data.relabel={cfg.data.relabel} is for the splits of the data. With source=, labels come from the "
            "folders, or from a CSV with the columns path and label: source=FILE.csv"
        )
    check_ensemble(cfg, invocation)
    check_as_tested(cfg, invocation, "calibrated", cfg.trainer.get("precision"))
    for option, choices in CHOICES.items():
        check_choice(option, cfg[option], choices)
    limit = cfg.trainer.get("limit_predict_batches", 1.0)
    if isinstance(limit, int) or limit != 1.0 or cfg.trainer.get("fast_dev_run"):  # 1 is one batch, 1.0 are all
        raise UserError("ml-inference predicts every image. Remove limits, and type a smaller source= instead.")
    if cfg.rows < 0:
        raise UserError(f"rows must be 0 or more, got {cfg.rows}.")
    if cfg.source is None:
        splits_of(cfg.split, cfg)


def infer_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Load the checkpoints, predict, and write `predictions.csv` (for a split, `predictions_<split>.csv`)."""
    from imago.evaluation.calibration_file import calibration_of
    from imago.evaluation.console import show_predictions, show_written
    from imago.evaluation.loading import members_of
    from imago.evaluation.predict import predict
    from imago.training.build import build_predictor

    files = checkpoints_of(cfg)
    members = members_of(cfg, files)
    calibration = calibration_of(members[0].checkpoint, cfg.data, files[0]) if cfg.calibrated else None
    trainer = build_predictor(cfg, run)
    bad: dict[str, str] = {}
    total = 0
    all_written: list[Path] = []
    for name, images in _images(cfg, members, files, run.invocation).items():
        loading = {"batch_size": cfg.data.batch_size, "num_workers": cfg.data.num_workers}
        loading |= {"rank": run.rank, "processes": run.processes}
        began = time.monotonic()
        predictions = predict(trainer, members, cfg.weights, images, cfg.tta, **loading)
        seconds = time.monotonic() - began
        unread = {path: reason for path, reason in zip(predictions.paths, predictions.bad, strict=True) if reason}
        bad |= unread
        total += len(predictions.paths)
        if unread and cfg.data.on_bad_image != "error":
            unreadable = _describe_unread(unread, len(predictions.paths))
            log.warning("%s\nThe exit status is 0 because of data.on_bad_image=skip", unreadable)
        if run.rank == 0:
            path = run.path / f"{name}.{cfg.format}"
            written = _write(predictions, path, calibration, images, cfg.gallery)
            split = name.removeprefix("predictions_") if cfg.source is None else SOURCE
            written += _write_reports(predictions, split, members, images, run, cfg.report.pictures)
            show_predictions(predictions, cfg.rows, calibration, seconds, split if cfg.source is None else "")
            all_written += written
    for file in dict.fromkeys(all_written):
        show_written(file)
    if bad:
        run.sections["Results"] = {"unreadable": f"{counted(len(bad), 'image')}\n" + "\n".join(bad.values())}
        if cfg.data.on_bad_image == "error":
            advice = "To end with exit status 0 in spite of this, type data.on_bad_image=skip"
            raise IncompleteError(f"{_describe_unread(bad, total)}\n{advice}")


def _describe_unread(bad: dict[str, str], total: int) -> str:
    """How many images of `total` could not be read, and why: the first ten."""
    reasons = "\n  ".join([*list(bad.values())[:10], *(["…"] if len(bad) > 10 else [])])
    rest = " All others were predicted." if len(bad) < total else ""
    return f"{counted(len(bad), 'image')} could not be read.{rest}\n  {reasons}"


def _images(
    cfg: DictConfig, members: "list[Classifier]", files: list[Path], invocation: Invocation
) -> "dict[str, Images]":
    """Map the name of each file that is written, without its suffix, to its images."""
    from imago.checkpoint.fits import check_data
    from imago.data.sources import read_source
    from imago.training.build_data import make_data

    if cfg.source is not None:
        source = list(map(str, cfg.source)) if OmegaConf.is_list(cfg.source) else str(cfg.source)
        return {"predictions": read_source(source, members[0].class_names, members[0].channels)}
    data = make_data(cfg.data, members[0].checkpoint, invocation.overrides)
    asked = splits_of(cfg.split, cfg)
    scored = {data.scored_split(split) for split in asked}
    for member, file in zip(members, files, strict=True):
        check_data(member.checkpoint, data, file, sorted(scored))
        data.leave_out_trained(member.checkpoint, scored)
    return {f"predictions_{split}": data.split(split) for split in asked}


def _write(predictions: Any, path: Path, calibration: Any, images: "Images", gallery: bool) -> list[Path]:
    """Write a row per image, and with `gallery` a contact sheet. Returns the files."""
    from imago.evaluation.outputs import write_gallery
    from imago.evaluation.rows import prediction_rows, write_rows

    write_rows(prediction_rows(predictions, calibration), path)
    if not gallery:
        return [path]
    sheet = path.with_name(f"{path.stem.replace('predictions', 'gallery')}.png")
    write_gallery(predictions, images, sheet)
    return [path, sheet]


def _write_reports(
    predictions: Any, split: str, members: "list[Classifier]", images: "Images", run: RunFolder, pictures: bool
) -> list[Path]:
    """Write the reports of evaluation for the images that have a label; `source` is reported as `test`. Returns the
    folder and the page, if there are any."""
    from imago.evaluation.outputs import write_reports
    from imago.evaluation.score import score_of

    _warn_if_trained_on(images, predictions, members)
    score = score_of(predictions, "test" if split == SOURCE else split, split, members[0].checkpoint)
    if score is None:
        return []
    write_reports(score, images, run.path, [], 0, "the predictions of ml-inference", pictures, run.plots)
    return [run.path / "reports", run.path / "plots", run.path / "report.html"]


def _warn_if_trained_on(images: "Images", predictions: Any, members: "list[Classifier]") -> None:
    """Warn that an accuracy is too good. The images are predicted all the same."""
    import numpy as np

    known = [digests for member in members if (digests := member.checkpoint.get("train_images")) is not None]
    if not known or predictions.accuracy is None:
        return
    digests, has_digest = images.digests()
    known_images = int((np.isin(digests, np.concatenate([seen.numpy() for seen in known])) & has_digest).sum())
    if known_images:
        of = f"{known_images} of the {counted(len(images), 'image')}"
        log.warning("The checkpoint was trained on %s: the accuracy is too good", of)


def _resolve_args(words: list[str]) -> Arguments:
    """Resolve the checkpoint, after a check of `source=`, which needs neither torch nor a checkpoint.

    Raises:
        ValueError: As `check_source` and `resolve_checkpoint_args`.
    """
    for word in words:
        source = typed_value(word) if override_key(word) == SOURCE and "${" not in word else None
        if isinstance(source, str | list):
            check_source(source if isinstance(source, str) else list(map(str, source)))
    return resolve_checkpoint_args(words, predicts=True)


main = Command(
    "inference",
    infer_from_config,
    check_inference,
    root=InferenceRoot,
    arguments=_resolve_args,
    choices=CHOICES,
)
"""Command line of `ml-inference`."""


if __name__ == "__main__":
    main()

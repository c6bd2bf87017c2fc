"""Write the weights of a checkpoint in a format that other software reads.

ml-export ckpt_path=RUN
ml-export ckpt_path=latest output=ants.safetensors
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.start_from import resolve_checkpoint_args
from imago.cli.typed_words import OTHER_FORMATS, check_choice
from imago.config.allow_list import TRANSFORMS, own_prefixes
from imago.config.carried import prediction_config
from imago.config.checks import check_from_checkpoint
from imago.config.invocation import Invocation
from imago.config.root import KeptRoot
from imago.errors import UserError
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

FORMATS = ("safetensors",)


@dataclass
class ExportRoot(KeptRoot):
    """Settings that `export.yaml` adds."""

    format: str = "safetensors"
    output: str | None = None
    calibration: bool = True


def check_export(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise ValueError for settings that cannot work, before anything is made."""
    check_from_checkpoint(cfg, invocation, needs_data=False)
    check_choice("format", cfg.format, FORMATS)
    if cfg.model.get("forward_fn") is not None:
        raise UserError(
            "model.forward_fn is part of this network, but the export contains the weights of model.net only. Use the "
            "checkpoint itself, with imago.load_classifier or ml-inference"
        )
    if cfg.output is not None and Path(cfg.output).suffix != ".safetensors":
        raise UserError(f"output must be a file that ends in .safetensors, got {cfg.output}.{OTHER_FORMATS}")


def export_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Write the network's own tensors, under its own names, and what is needed to use them as metadata."""
    from imago.checkpoint.exported import export_entry, write_export
    from imago.checkpoint.read import read_checkpoint
    from imago.dp.published import privacy_of, warn_before_publishing
    from imago.evaluation.calibration_file import file_beside
    from imago.evaluation.classifier import Classifier
    from imago.evaluation.console import show_next, show_privacy, show_written
    from imago.evaluation.from_config import seen_images
    from imago.evaluation.loading import check_own_code
    from imago.evaluation.next_commands import after_export

    checkpoint = read_checkpoint(cfg.ckpt_path)
    classifier = Classifier.from_config(cfg, checkpoint, cfg.ckpt_path, check_own_code(checkpoint))
    metadata: dict[str, Any] = {
        "class_names": classifier.class_names,
        **seen_images(cfg.data, classifier.transform),
        "versions": classifier.checkpoint["versions"],
    }
    metadata["network"] = {key: value for key, value in cfg.model.net.items() if isinstance(value, str | int | float)}
    calibration = _calibration(cfg, checkpoint) if cfg.calibration else None
    if (privacy := privacy_of(Path(cfg.ckpt_path), checkpoint["imago"])) is not None:
        metadata["privacy"] = privacy
        run.sections["Strategy"] = privacy
        warn_before_publishing(
            Path(cfg.ckpt_path), calibration, file_beside(Path(cfg.ckpt_path)), Path(cfg.paths.log_dir)
        )
    if checkpoint["imago"].get("unrecorded"):
        metadata["unrecorded"] = True
    metadata["imago"] = export_entry(checkpoint["imago"], prediction_config(cfg), calibration)
    path = Path(cfg.output) if cfg.output is not None else run.path / "model_only.safetensors"
    is_there = path.exists()
    write_export(classifier.model.net.state_dict(), metadata, path)
    condition = (
        "if the images of val and calibration are public, which its calibration tells of (or type calibration=false)"
    )
    limits = condition if calibration is not None else "within what docs/privacy.md says"
    is_part = privacy is not None and "counted" in privacy
    publish = "Its run may have spent more: to publish the weights, export them from the run folder (ckpt_path=RUN)"
    show_privacy(run, publish if is_part else f"This file may be published, {limits}")
    show_written(path, replaced=is_there)
    show_next(after_export(path, calibration is not None, own_prefixes(cfg, ("model", *TRANSFORMS))))


def _calibration(cfg: DictConfig, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The calibration of the checkpoint, as plain types; None if it has none, or one for another transform."""
    from imago.evaluation.calibration_file import calibration_of, file_beside

    if not file_beside(Path(cfg.ckpt_path)).is_file():
        return None
    try:
        return asdict(calibration_of(checkpoint["imago"], cfg.data, Path(cfg.ckpt_path)))
    except UserError as error:
        log.warning("The export has no calibration: %s", error)
        return None


main = Command(
    "export",
    export_from_config,
    check_export,
    root=ExportRoot,
    arguments=resolve_checkpoint_args,
    choices={"format": FORMATS},
    one_process=True,
)
"""Command line of `ml-export`."""


if __name__ == "__main__":
    main()

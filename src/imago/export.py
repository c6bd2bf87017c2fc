"""Write the network of a checkpoint in a format that other software reads, or a mean of several.

ml-export ckpt_path=RUN
ml-export ckpt_path=RUN format=onnx
ml-export ckpt_path=latest output=ants.safetensors
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from imago.cli.entry import Command
from imago.cli.start_from import resolve_checkpoint_args
from imago.cli.typed_words import check_choice
from imago.config.allow_list import TRANSFORMS, own_prefixes
from imago.config.carried import prediction_config
from imago.config.checks import check_from_checkpoint
from imago.config.invocation import Invocation, typed_path
from imago.config.missing_data import forget_missing_data, lacks_images
from imago.config.root import KeptRoot
from imago.errors import UserError
from imago.files import UnreadableError, read_text
from imago.run.folder import RunFolder

if TYPE_CHECKING:
    from imago.evaluation.classifier import Classifier
    from imago.exporting.proven import ProvenExport

log = logging.getLogger(__name__)

WEIGHTS, BUNDLE, SOUP = "safetensors", "bundle", "soup"
FILES = {
    WEIGHTS: "model_only.safetensors",
    "onnx": "model.onnx",
    "onnx_fp16": "model_fp16.onnx",
    "onnx_int8": "model_int8.onnx",
    "torch_export": "model.pt2",
    BUNDLE: "model.zip",
    SOUP: "soup.ckpt",
}
"""Format -> the file in the run folder. All but weights and soup are compared with the checkpoint."""
COARSE = ("onnx_fp16", "onnx_int8")
"""Formats with fewer digits than the checkpoint: `tolerance` is for them only if it is typed."""
OF_PROOF = ("allow_flips", "tolerance", "proof_images")
RECORD = "export.json"


@dataclass
class ExportRoot(KeptRoot):
    """Settings that `export.yaml` adds."""

    format: str = WEIGHTS
    output: str | None = None
    average_of: list[str] | None = None
    calibration: bool = True
    proof_images: int = 100
    allow_flips: int = 0
    tolerance: float = 1e-4


def check_export(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise ValueError for settings that cannot work, before anything is made."""
    check_choice("format", cfg.format, tuple(FILES))
    is_proven = cfg.format not in (WEIGHTS, SOUP)
    if cfg.format == SOUP:
        check_from_checkpoint(cfg, invocation)
    else:
        forget_missing_data(cfg, invocation)
        check_from_checkpoint(cfg, invocation, needs_data=is_proven and not lacks_images(cfg.data))
    if (cfg.format == SOUP) != bool(cfg.average_of):
        raise UserError(
            "format=soup and average_of=[RUN,RUN] belong together: the mean of the weights of ckpt_path and of these "
            "checkpoints, as far as val gains by it. Type both, or neither."
        )
    if cfg.format == SOUP and "calibration" in invocation.keys:
        raise UserError("calibration= is for other formats: a soup has none until ml-eval calibrate=true. Remove it.")
    if cfg.format in (WEIGHTS, BUNDLE) and cfg.model.get("forward_fn") is not None:
        raise UserError(
            "model.forward_fn is part of this network, but the file of weights contains those of model.net only. Type "
            "format=onnx, which contains all of it, or use the checkpoint itself, with imago.load_classifier or "
            "ml-inference"
        )
    suffix = Path(FILES[cfg.format]).suffix
    if cfg.output is not None and Path(cfg.output).suffix != suffix:
        close = next((name for name, file in FILES.items() if Path(cfg.output).suffix == Path(file).suffix), None)
        meant = f" For such a file type format={close}" if close is not None else ""
        raise UserError(f"output must be a file that ends in {suffix}, got {cfg.output}.{meant}")
    for key in OF_PROOF:
        if not is_proven and key in invocation.keys:
            raise UserError(f"{key}={cfg[key]} is for exports that are compared with the checkpoint: type format=onnx")
        if cfg[key] < 0:
            raise UserError(f"{key} must be 0 or more, got {cfg[key]}.")
    if is_proven and cfg.format != "torch_export":
        from imago.exporting.onnx_file import check_packages

        check_packages(cfg.format)


def export_from_config(cfg: DictConfig, run: RunFolder) -> None:
    """Write the network in the chosen format, and what is needed to use it as metadata."""
    from imago.checkpoint.read import read_checkpoint
    from imago.dp.published import privacy_of, warn_before_publishing
    from imago.evaluation.calibration_file import file_beside
    from imago.evaluation.classifier import Classifier
    from imago.evaluation.console import show_next, show_privacy, show_written
    from imago.evaluation.loading import check_own_code
    from imago.evaluation.next_commands import after_export

    file = Path(cfg.ckpt_path)
    if cfg.format == SOUP:
        _write_soup(cfg, run)
        return
    checkpoint = read_checkpoint(file)
    classifier = Classifier.from_config(cfg, checkpoint, cfg.ckpt_path, check_own_code(checkpoint))
    calibration = _calibration(cfg, checkpoint) if cfg.calibration else None
    if (privacy := privacy_of(file, checkpoint["imago"])) is not None:
        run.sections["Strategy"] = privacy
        warn_before_publishing(file, calibration, file_beside(file), Path(cfg.paths.log_dir))
    metadata = _metadata(cfg, classifier, privacy)
    path = Path(cfg.output) if cfg.output is not None else run.path / FILES[cfg.format]
    is_there = path.exists()
    if cfg.format == WEIGHTS:
        _write_weights(cfg, classifier, metadata, calibration, path)
    else:
        _write_proven(cfg, run, classifier, metadata, calibration, path)
    condition = (
        "if the images of val and calibration are public, which its calibration tells of (or type calibration=false)"
    )
    limits = condition if calibration is not None else "within what docs/privacy.md says"
    is_part = privacy is not None and "counted" in privacy
    publish = "Its run may have spent more: to publish the weights, export them from the run folder (ckpt_path=RUN)"
    show_privacy(run, publish if is_part else f"This file may be published, {limits}")
    show_written(path, replaced=is_there)
    if cfg.format != WEIGHTS:
        show_written(run.path / RECORD)
    further = file if cfg.format == "onnx" else None
    show_next(after_export(path, calibration is not None, own_prefixes(cfg, ("model", *TRANSFORMS)), further))


def _write_soup(cfg: DictConfig, run: RunFolder) -> None:
    """Write a checkpoint of averaged weights."""
    from imago.evaluation.console import show_next, show_written
    from imago.exporting.soup import write_soup

    path = Path(cfg.output) if cfg.output is not None else run.path / FILES[SOUP]
    is_there = path.exists()
    write_soup(cfg, run, path)
    show_written(path, replaced=is_there)
    show_next([f"ml-eval {typed_path('ckpt_path', str(path))}"])


def _metadata(cfg: DictConfig, classifier: "Classifier", privacy: dict[str, Any] | None) -> dict[str, Any]:
    """Class names, how the network sees an image, and where it comes from, as plain types."""
    from imago.evaluation.from_config import seen_images

    network = cfg.model.net or {}
    metadata = {
        "class_names": classifier.class_names,
        **seen_images(cfg.data, classifier.transform),
        "versions": classifier.checkpoint["versions"],
        "network": {key: value for key, value in network.items() if isinstance(value, str | int | float)},
    }
    if privacy is not None:
        metadata["privacy"] = privacy
    if classifier.checkpoint.get("unrecorded"):
        metadata["unrecorded"] = True
    return metadata


def _write_weights(
    cfg: DictConfig,
    classifier: "Classifier",
    metadata: dict[str, Any],
    calibration: dict[str, Any] | None,
    path: Path,
) -> None:
    """Write the network's own tensors, under its own names."""
    from imago.checkpoint.exported import export_entry, write_export

    entry = export_entry(classifier.checkpoint, prediction_config(cfg), calibration)
    write_export(classifier.model.net.state_dict(), {**metadata, "imago": entry}, path)


def _write_proven(
    cfg: DictConfig,
    run: RunFolder,
    classifier: "Classifier",
    metadata: dict[str, Any],
    calibration: dict[str, Any] | None,
    path: Path,
) -> None:
    """Write a file that other software runs, once it has answered as the checkpoint does; and `export.json`."""
    from imago.evaluation.calibration import Calibration
    from imago.exporting.bundle import write_bundle
    from imago.exporting.facts import facts_of
    from imago.exporting.images import data_of
    from imago.exporting.proven import ProvenExport, Terms

    is_private = "privacy" in metadata
    if calibration is not None:
        classifier.calibration = Calibration(**calibration)
    elif cfg.calibration:
        log.info("The probabilities are not calibrated: first type ml-eval ckpt_path=RUN calibrate=true")
    data = None if is_private else data_of(cfg, classifier.checkpoint, run.invocation)
    if is_private:
        log.info("Private training: no image of the data is used, and the export is compared on odd images alone")
    is_coarse = cfg.format in COARSE and "tolerance" not in run.invocation.keys
    terms = Terms(cfg.proof_images, cfg.allow_flips, None if is_coarse else cfg.tolerance)
    kind = "onnx" if cfg.format == BUNDLE else cfg.format
    if calibration is not None and kind in COARSE:
        log.warning(
            "format=%s has no threshold in its metadata: its probabilities are coarser than those that were tested, "
            "and other images would be accepted. For the threshold type format=onnx",
            kind,
        )
    export = ProvenExport(classifier, kind, metadata | facts_of(classifier, is_private, kind not in COARSE), data)
    if cfg.format != BUNDLE:
        export.write(path, terms, run.path / RECORD)
    else:
        with TemporaryDirectory(dir=run.path, prefix=".", suffix=".tmp") as folder:
            onnx, weights = Path(folder, "model.onnx"), Path(folder, "model.safetensors")
            export.write(onnx, terms, run.path / RECORD)
            _write_weights(cfg, classifier, metadata, calibration, weights)
            write_bundle(onnx, weights, _card(Path(cfg.ckpt_path), export), export.metadata, export.record, path)
    _show_proof(export, cfg.format)


def _card(checkpoint: Path, export: "ProvenExport") -> str:
    """Model card of the run whose `best.ckpt` this is, with what was compared; empty for others, and without one."""
    from imago.exporting.proof import describe
    from imago.report.model_card import CARD_FILE

    if checkpoint.name != "best.ckpt":
        return ""
    try:
        card = read_text(checkpoint.absolute().parent.parent / CARD_FILE)
    except (OSError, UnreadableError):
        return ""
    return "\n\n".join([f"{card}\n## Export", *describe(export.proof, export.split)]) + "\n"


def _show_proof(export: "ProvenExport", name: str) -> None:
    """Print what was compared, sizes, and the table of speed."""
    from imago.exporting.proof import describe
    from imago.exporting.speed import speed_table
    from imago.terminal import console

    for line in describe(export.proof, export.split):
        console().print(line, highlight=False, soft_wrap=True)
    sizes = export.record["weights_bytes"] / 1e6, export.record["bytes"] / 1e6
    console().print(f"Size: {sizes[0]:.1f} MB of weights -> {sizes[1]:.1f} MB", highlight=False)
    console().print(speed_table(export.record["speed"], name))


def _calibration(cfg: DictConfig, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The calibration of the checkpoint, as plain types; None if it has none, or one for another transform."""
    from imago.evaluation.calibration_file import calibration_if_any

    file, without = Path(cfg.ckpt_path), "The export has no calibration"
    calibration = calibration_if_any(checkpoint["imago"], cfg.data, file, without)
    return asdict(calibration) if calibration is not None else None


main = Command(
    "export",
    export_from_config,
    check_export,
    root=ExportRoot,
    arguments=resolve_checkpoint_args,
    choices={"format": tuple(FILES)},
    one_process=True,
)
"""Command line of `ml-export`."""


if __name__ == "__main__":
    main()

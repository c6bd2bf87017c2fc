"""Classifiers from checkpoints and exports: `imago.load_classifier`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.checkpoint.exported import read_model
from imago.checkpoint.read import KEY, Checkpoint, find_checkpoint
from imago.checkpoint.signing import is_signed
from imago.config.allow_list import TRANSFORMS, check_targets
from imago.config.carried import leave_out_training, read_checkpoint_config
from imago.config.own_code import OWN_CODE, allow_imports, is_writable_by_others
from imago.config.root import PROJECT_ROOT
from imago.definitions import is_export
from imago.errors import UserError, message_of
from imago.evaluation.classifier import Classifier

log = logging.getLogger(__name__)


def check_own_code(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is the user's own. Its code may then be imported from where it was in training."""
    if not is_signed(checkpoint):
        return False
    for name, folder in checkpoint["imago"].get("own_code", {}).items():
        if is_writable_by_others(Path(folder)):
            log.warning(
                "%s, where %s was imported from in training, can be written by others: it is not used", folder, name
            )
        else:
            allow_imports([name], Path(folder))
    return True


def load_classifier(
    path: str | Path, device: str = "cpu", trusted_targets: Sequence[str] = (), calibrated: bool = False
) -> Classifier:
    """Load the classifier in a checkpoint, executing nothing in the file and making only what is known to be harmless.

    Args:
        path: A run folder (its best checkpoint), a checkpoint, a `.safetensors` file of `ml-export`, or `latest` (of
            the runs in logs/).
        device: Device of the network: `cpu`, `cuda`, …
        trusted_targets: Prefixes of names in your own code that the config of the checkpoint may use, `["my_net."]`.
        calibrated: Calibrate the probabilities as `ml-inference calibrated=true` does. Predictions then have `accepted`
            and `set`. Needs `ml-eval ckpt_path=… calibrate=true` before.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is not a checkpoint, its config makes something else, it has no calibration, or there is no such
            device.
    """
    if not isinstance(path, str | os.PathLike):
        several = " For an ensemble, load each of them, or type ml-inference 'ckpt_path=[A,B]'."
        raise UserError(
            "load_classifier takes one path: a run folder, a checkpoint, a .safetensors file of ml-export, or 'latest'."
            f" Got {path!r} ({type(path).__name__}).{several if isinstance(path, list | tuple) else ''}"
        )
    file = find_checkpoint(os.fspath(path), PROJECT_ROOT / "logs", "path")
    with OWN_CODE.keeping():
        classifier = of_checkpoint(file, trusted_targets, calibrated, "path")
    try:
        classifier.model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0].rstrip(".")
        meant = " Type device='cuda'." if str(device).lower() in ("gpu", "nvidia") else ""
        raise UserError(f"device={device!r}: {reason}. It must be cpu, cuda, cuda:0, mps, ….{meant}") from error
    return classifier


def of_checkpoint(
    file: Path, trusted_targets: Sequence[str] = (), calibrated: bool = False, key: str = KEY
) -> Classifier:
    """Make the classifier from the checkpoint's own config, with the calibration beside it if `calibrated`.

    `key` is the setting that names the file, for messages.
    """
    from imago.config.resolvers import register_functions  # which imports Hydra, as `make` does
    from imago.evaluation.calibration_file import calibration_of

    register_functions()
    checkpoint = read_model(file, key)
    allow_imports(trusted_targets, Path.cwd())
    is_own = check_own_code(checkpoint)
    try:
        cfg = OmegaConf.create(read_checkpoint_config(checkpoint["imago"].get("config"), file, is_own))
        leave_out_training(cfg, ("model",))
        if not is_own:
            groups, in_python = ("model", *TRANSFORMS), key != KEY
            check_targets(cfg, groups, trusted_targets, is_export=is_export(file), in_python=in_python)
            OmegaConf.set_struct(cfg, False)
            cfg.data.batch_size = None  # `predict` has its own
            cfg.trusted_targets = list(trusted_targets)
        calibration = calibration_of(checkpoint["imago"], cfg.data, file) if calibrated else None
        classifier = Classifier.from_config(cfg, checkpoint, file, is_own)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"{key}={file}: the config in it cannot be used: {message_of(error)}") from error
    classifier.calibration = calibration
    return classifier


def members_of(cfg: DictConfig, files: Sequence[Path]) -> list[Classifier]:
    """Make one classifier from the composed config, with the typed settings; several from their own configs.

    Raises:
        ValueError: A checkpoint cannot be used, or those of an ensemble have different classes or channels.
    """
    if len(files) == 1:
        checkpoint = read_model(files[0])
        return [Classifier.from_config(cfg, checkpoint, files[0], check_own_code(checkpoint))]
    members = [of_checkpoint(file, list(cfg.trusted_targets)) for file in files]
    names = members[0].class_names
    for file, member in zip(files, members, strict=True):
        if member.channels != members[0].channels:
            raise UserError(f"{files[0]} and {file}: one takes colour images, the other grey ones.")
        if member.class_names != names:
            raise UserError(
                "The checkpoints of an ensemble must have the same classes.\n"
                f"  {files[0]}: {', '.join(names)}\n  {file}: {', '.join(member.class_names)}"
            )
    return members

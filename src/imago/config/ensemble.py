"""Settings of commands that predict with one checkpoint or several: `ckpt_path`, `weights`, `tta`, `calibrated`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import Invocation, override_key
from imago.errors import UserError

TTA = ("none", "flip", "five_crop", "ten_crop")
"""Values of `tta`."""
OF_A_NETWORK = ("model", "data.image_size", "data.eval_transform")


def checkpoints_of(cfg: DictConfig) -> list[Path]:
    """Return the files in `ckpt_path`: one, or those of an ensemble."""
    return [Path(path) for path in (cfg.ckpt_path if OmegaConf.is_list(cfg.ckpt_path) else [cfg.ckpt_path])]


def check_ensemble(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise UserError for settings that do not fit the number of checkpoints, or each other."""
    several = OmegaConf.is_list(cfg.ckpt_path)
    if cfg.weights is not None:
        if not several or not OmegaConf.is_list(cfg.weights) or len(cfg.weights) != len(cfg.ckpt_path):
            raise UserError(
                f"weights must be one per checkpoint, as in 'ckpt_path=[A,B]' 'weights=[2,1]'; got {cfg.weights}."
            )
        if not all(type(weight) in (int, float) and weight >= 0 for weight in cfg.weights) or not sum(cfg.weights):
            raise UserError(f"weights must be numbers of 0 or more, not all 0; got {cfg.weights}.")
    if several and cfg.calibrated is True:
        raise UserError("calibrated=true works with one checkpoint only, because each has its own calibration.")
    of_each = [word for word in invocation.overrides if override_key(word).startswith(OF_A_NETWORK)]
    if several and of_each:
        raise UserError(
            f"{of_each[0]}: the checkpoints of an ensemble set their own networks and image sizes. Remove it."
        )
    if cfg.calibrated is True and cfg.tta != "none":
        raise UserError(
            "calibrated=true does not apply to test-time augmentation, without which it was fitted. Type tta=none."
        )

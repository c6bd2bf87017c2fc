"""Settings of the Trainer that are out of range, or for other devices."""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.combinations import number_or_infinity
from imago.config.durations import is_duration, read_duration
from imago.config.invocation import Invocation, override_key
from imago.config.setting_source import in_file, is_users_own
from imago.config.strategies import strategy_problems
from imago.errors import UserError

NO_LIMIT = "0 or more, -1 for no limit, or null"
LEAST = {  # option of the Trainer -> smallest valid number, all valid values
    "max_epochs": (-1, NO_LIMIT),
    "max_steps": (-1, NO_LIMIT),
    "min_epochs": (0, "0 or more, or null"),
    "min_steps": (0, "0 or more, or null"),
}
LIMITS = (*(f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")), "overfit_batches")
FULL_PRECISION = (None, 32, "32", "32-true")
OTHER_NUMBERS = ("model.net.", "model.forward_fn.", "data.decode.")
"""Settings with which a checkpoint answers otherwise, beside those that the calibration itself records."""
ACCELERATORS = ("auto", "cpu", "gpu", "mps", "cuda")


def device_problems(cfg: DictConfig) -> Iterator[str]:
    """Problems with the kind of device, or with what the chosen one cannot do; they are known without asking it."""
    yield from strategy_problems(cfg)
    accelerator = str(cfg.trainer.get("accelerator", "auto"))
    if accelerator not in ACCELERATORS:
        yield f"trainer.accelerator must be auto, cpu, gpu or mps, got {accelerator}. For a GPU type trainer=gpu"
    if cfg.get("train") and cfg.trainer.get("precision") == "16-true":
        yield (
            "trainer.precision=16-true trains in float16 without loss scaling, where the smallest numbers become 0 and "
            "AdamW divides by them. Type trainer.precision=16-mixed, or bf16-true."
        )
    if cfg.trainer.get("sync_batchnorm") and accelerator == "cpu" and not is_one_device(cfg):
        yield "trainer.sync_batchnorm=true needs GPUs. On the CPU type trainer.sync_batchnorm=false"


def device_warnings(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Settings for several devices that do nothing on one."""
    if cfg.trainer.get("sync_batchnorm") and is_one_device(cfg) and is_users_own("trainer.sync_batchnorm", invocation):
        yield "trainer.sync_batchnorm=true does nothing with one device (trainer.devices=1)"


def is_one_device(cfg: DictConfig) -> bool:
    """Whether a run is known to have one device, and one process; that GPUs may be several counts as several."""
    devices = cfg.trainer.get("devices", "auto")
    if cfg.trainer.get("num_nodes", 1) != 1:
        return False
    if OmegaConf.is_list(devices):
        return len(devices) == 1
    devices = str(devices)
    return devices == "1" or (devices in ("auto", "-1") and cfg.trainer.get("accelerator") == "cpu")


def trainer_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Numbers of the Trainer that are out of range; Lightning would refuse them once the data are read."""
    for unit in ("epochs", "steps"):
        start, end = cfg.trainer.get(f"min_{unit}"), cfg.trainer.get(f"max_{unit}")
        if isinstance(start, int) and start > _limit(end):
            of_start, of_end = (in_file(f"trainer.{name}_{unit}", invocation) for name in ("min", "max"))
            yield (
                f"trainer.min_{unit}={start}{of_start} is above trainer.max_{unit}={end}{of_end}, where the run ends. "
                f"Type a larger trainer.max_{unit}=, or trainer.min_{unit}=null."
            )
    for option, (least, valid) in LEAST.items():
        value = cfg.trainer.get(option)
        if value is not None and number_or_infinity(value) < least:
            yield f"trainer.{option} must be {valid}; got {value}."
    time = cfg.trainer.get("max_time")
    if isinstance(time, str | int | float) and not is_duration(str(time)):
        meant = read_duration(str(time))
        typed = f"Type trainer.max_time={meant}" if meant else "For 12 hours type trainer.max_time=00:12:00:00"
        yield f"trainer.max_time must be DD:HH:MM:SS or null, got {time}. {typed}"
    for option in LIMITS:
        value = cfg.trainer.get(option)
        if value is not None and (number_or_infinity(value) < 0 or (isinstance(value, float) and value > 1)):
            yield f"trainer.{option} must be a fraction (0.0 to 1.0) or a whole number of batches, got {value}."


def _limit(value: Any) -> float:
    return value if isinstance(value, int) and value >= 0 else math.inf


def check_as_tested(cfg: DictConfig, invocation: Invocation, option: str, precision: Any = "32-true") -> None:
    """Raise UserError if `option`, which fits or uses a calibration, is on and other numbers would be computed than
    those of the checkpoint in full precision: other images would be accepted than those that were tested. `precision`
    is that of the command."""
    if not cfg[option]:
        return
    if precision not in FULL_PRECISION:
        raise UserError(
            f"{option}=true and trainer.precision={precision}: probabilities would differ from those of other "
            "commands, and so would what is accepted. Type trainer.precision=32-true"
        )
    if cfg.matmul_precision == "medium":
        raise UserError(
            f"{option}=true and matmul_precision=medium: on a GPU, products of 8 bits would change what is accepted. "
            "Type matmul_precision=high"
        )
    for word in invocation.overrides:
        if f"{override_key(word)}.".startswith(OTHER_NUMBERS):
            raise UserError(
                f"{option}=true and {word}: a calibration is that of the network in the checkpoint, which sees images "
                f"as it was trained. Remove {word}"
            )

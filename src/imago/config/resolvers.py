"""Functions that configs may call."""

import re
import sys
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from imago.config.invocation import composed_overrides
from imago.config.root import COMMAND_KEYS, PROJECT_ROOT, Root
from imago.errors import UserError
from imago.masking import is_secret, learn_secrets, masked, masked_override

LONGEST_NAME = 60


def name_of_run() -> str:
    """Name of the run: last part of each overridden key and its value, `lr_0.01_batch_size_32`; `base` without any."""
    if not HydraConfig.initialized():
        return "base"
    parts = []
    learn_secrets({})
    for override in sorted(composed_overrides(), key=lambda word: word in sys.argv):  # what a sweep varies comes first
        key, _, value = masked_override(override).lstrip("+~").partition("=")
        if is_secret(key):
            continue
        if key not in ("name", "ckpt_path", *COMMAND_KEYS) and not key.startswith(("hydra", "paths")):
            parts.append(f"{key.split('.')[-1].split('/')[-1]}_{value.rstrip('/').split('/')[-1]}")
    return slug(masked("_".join(parts))) or "base"


def slug(text: str) -> str:
    """Convert `text` to a folder name: letters, digits, dots, dashes and underscores, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:LONGEST_NAME].rstrip("_.")


def unused_folder(path: str) -> str:
    """Make the folder `path`, or `path`_2, `path`_3, … if it exists; two processes never get the same one."""
    candidate, number = Path(path), 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return str(candidate)
        except FileExistsError:
            number += 1
            candidate = Path(f"{path}_{number}")
        except OSError as error:
            raise UserError(f"The run folder cannot be created: {error}. Type another paths.log_dir=") from error


def best_mode(metric: str) -> str:
    """Mode of a metric: `min` for losses, `max` for everything else."""
    return "min" if "loss" in metric else "max"


def share_of_fit(fit: str) -> float:
    """Fraction of the image for `data.eval_transform.box`: the usual 224 of 256 pixels for `crop`, otherwise 1."""
    return 0.875 if fit == "crop" else 1.0


def direction(mode: str) -> str:
    """Optuna's name of `mode`: minimize or maximize."""
    return {"min": "minimize", "max": "maximize"}.get(mode, mode)


def without_stage(metric: str) -> str:
    """Remove the stage from the name of a metric: `val/acc` -> `acc`."""
    return metric.partition("/")[2] or metric


def register() -> None:
    """Register the root schema and the resolvers with Hydra; may be called again."""
    ConfigStore.instance().store(name="root_schema", node=Root)
    OmegaConf.register_new_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)
    OmegaConf.register_new_resolver("unused_folder", unused_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("name_of_run", name_of_run, replace=True)
    register_functions(replace=True)


def register_functions(replace: bool = False) -> None:
    """Register the functions that the config of a checkpoint may call: `RESOLVERS` of `imago.config.carried`.

    Without `replace`, a program's own functions of these names stay.
    """
    functions = {function.__name__: function for function in (slug, best_mode, direction, share_of_fit, without_stage)}
    for name, function in {**functions, "joined": ", ".join}.items():
        if replace or not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function, replace=True)

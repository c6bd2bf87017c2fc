"""Functions that configs may call."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from imago.config.auto_model import register_auto_model
from imago.config.invocation import composed_overrides, override_key
from imago.config.root import COMMAND_KEYS, CONFIG_DIR, PROJECT_ROOT, Root
from imago.config.schema import shipped
from imago.definitions import EXPORT_SUFFIX, best_mode
from imago.errors import UserError
from imago.masking import is_secret, learn_secrets, masked, masked_override

LONGEST_NAME, LONGEST_NUMBER = 60, 7
SCORING = ("eval", "inference", "export", "serve")


def name_of_run(sweep: Mapping[str, Any] | None = None) -> str:
    """Name of the run: last part of each overridden key and its value, `lr_0.01_batch_size_32`; `base` without any.

    In a `sweep`, it names only what differs between the jobs. A run that scores a checkpoint is named after its run.
    """
    if not HydraConfig.initialized():
        return "base"
    learn_secrets({})
    words = composed_overrides()
    constant = sweep["typed"] if sweep else []
    varied = [word for word in words if word not in constant] or words
    parts = {override_key(word): masked(part) for word in varied if (part := _part_of_name(masked_override(word)))}
    return slug(_joined_parts(parts)) or "base"


def _part_of_name(override: str) -> str | None:
    """Part of a name that an override makes; None for those that say where and how to run."""
    key, _, value = override.lstrip("+~").partition("=")
    command = str(HydraConfig.get().job.config_name)
    if (command in SCORING and key == "ckpt_path") or (command == "visualise" and key == "run"):
        return f"of_{_source_name(value)}"
    if is_secret(key) or key in ("name", "ckpt_path", *COMMAND_KEYS) or key.startswith(("hydra", "paths")):
        return None
    value = value.rstrip("/").split("/")[-1]
    if key.endswith("._target_"):  # optimizer_SGD
        is_own = value.partition(".")[0] not in {target.partition(".")[0] for target in shipped()}
        key, value = key.removesuffix("._target_"), ".".join(value.split(".")[-2 if is_own else -1 :])
    with suppress(ValueError):
        value = f"{float(value):.4g}" if len(value) > LONGEST_NUMBER else value
    return value if key == "experiment" else f"{key.split('.')[-1].split('/')[-1]}_{value}"


def _source_name(value: str) -> str:
    """Name of the run whose checkpoints an override names."""
    paths = [Path(path.strip().strip("'\"")) for path in value.strip("[]").split(",")]
    first = paths[0]
    in_run = first.parent.name == "checkpoints"
    is_file = first.suffix in (".ckpt", EXPORT_SUFFIX)
    name = first.parent.parent.name if in_run else first.stem if is_file else first.name
    which = f"_{first.stem}" if in_run and first.stem != "best" else ""
    return f"{name}{which}" + (f"_and_{len(paths) - 1}_more" if len(paths) > 1 else "")


def _joined_parts(parts: Mapping[str, str]) -> str:
    """Join the parts, by their keys, that fit into a name; those that do not are left out as a whole. Options of groups
    and classes come first in that, as they change more than a setting does."""
    chosen: list[str] = []
    safe = {key: _safe(part) for key, part in parts.items()}
    for key in sorted(safe, key=lambda key: "." in key and not key.endswith("._target_")):
        if not chosen or sum(len(safe[name]) + 1 for name in chosen) + len(safe[key]) <= LONGEST_NAME:
            chosen.append(key)
    return "_".join(part for key, part in safe.items() if key in chosen)


def job_number(number: int, sweep: Mapping[str, Any] | None = None) -> str:
    """Number of a job, with as many digits as the last job of the `sweep` has, and two at least."""
    first, jobs = (sweep["first"], sweep["jobs"]) if sweep else (0, 0)
    return f"{first + number:0{max(2, len(str(first + jobs - 1)))}d}"


def slug(text: str) -> str:
    """Convert `text` to a folder name: letters, digits, dots, dashes and underscores, at most 60 characters.

    Longer ones end with a whole word.
    """
    name = _safe(text)
    if len(name) <= LONGEST_NAME:
        return name
    name, rest = name[:LONGEST_NAME], name[LONGEST_NAME]
    word_end = LONGEST_NAME if rest in "_-" else max(name.rfind("_"), name.rfind("-"))
    return (name[:word_end] if word_end >= LONGEST_NAME // 2 else name).rstrip("_.-")


def unique_slug(text: str) -> str:
    """Convert `text` to a folder name that no other text has: where `slug` leaves something out, a digest is added."""
    name = slug(text)
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("_")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")


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


def share_of_fit(fit: str, share: float = 0.875) -> float:
    """Fraction of the image for `data.eval_transform.box`: `share` for `crop`, by default the usual 224 of 256 pixels,
    otherwise 1."""
    return share if fit == "crop" else 1.0


def mode_of(metric: str | None, monitor: str, mode: str) -> str:
    """Mode of `metric`: `mode`, if it is the `monitor` of the run, and otherwise that of its name; None is the loss."""
    return mode if metric == monitor else best_mode(metric or "loss")


def direction(mode: str) -> str:
    """Optuna's name of `mode`: minimize or maximize."""
    return {"min": "minimize", "max": "maximize"}.get(mode, mode)


def without_stage(metric: str) -> str:
    """Remove the stage from the name of a metric: `val/acc` -> `acc`."""
    return metric.partition("/")[2] or metric


def remember_sweep(config: DictConfig, typed: Sequence[str], jobs: int, first: int = 0) -> None:
    """Let `${sweep:}` be what was `typed`, the number of `jobs`, and that of the first, in the configs of all jobs.

    A job is composed from its own overrides alone, maybe in another process or on another machine. What Hydra takes
    over from the `config` of the sweep is the cache of its resolvers.
    """
    facts = {"typed": list(typed), "jobs": jobs, "first": first}
    OmegaConf.register_new_resolver("sweep", lambda: facts, replace=True, use_cache=True)
    OmegaConf.select(OmegaConf.create({"sweep": "${sweep:}"}, parent=config), "sweep")
    OmegaConf.register_new_resolver("sweep", _no_sweep, replace=True, use_cache=True)


def know_sweep(facts: Mapping[str, Any]) -> None:
    """Let `${sweep:}` be `facts` in what is composed next, until `register`."""
    OmegaConf.register_new_resolver("sweep", lambda: facts, replace=True, use_cache=True)


def _no_sweep() -> None:
    """Value of `${sweep:}` in a single run."""


def register(typed: Sequence[str] = (), folders: Sequence[Path] = ()) -> None:
    """Register the root schema and the resolvers with Hydra; may be called again.

    `typed` are the words of the command line, `folders` those of own configs.
    """
    register_auto_model(typed, [*folders, Path(CONFIG_DIR)])
    ConfigStore.instance().store(name="root_schema", node=Root)
    OmegaConf.register_new_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)
    OmegaConf.register_new_resolver("unused_folder", unused_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("sweep", _no_sweep, replace=True, use_cache=True)
    for resolver in (name_of_run, job_number):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    register_functions(replace=True)


def register_functions(replace: bool = False) -> None:
    """Register the functions that the config of a checkpoint may call: `RESOLVERS` of `imago.config.carried`.

    Without `replace`, a program's own functions of these names stay.
    """
    callable_in_any = (slug, best_mode, direction, mode_of, share_of_fit, without_stage)
    functions = {function.__name__: function for function in callable_in_any}
    for name, function in {**functions, "joined": ", ".join}.items():
        if replace or not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function, replace=True)

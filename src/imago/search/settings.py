"""Settings of a search, checked before its first trial."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.schema import problems, shipped
from imago.errors import UserError

NODE = "hydra.sweeper"
DIRECTIONS = ("maximize", "minimize")
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
MEASURED = ("parameters", "seconds")
"""Objectives that are no metrics."""


def sign_of(direction: str) -> int:
    """1 if greater values are better, else -1."""
    return 1 if direction == "maximize" else -1


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search: those of `hydra.sweeper`, with `auto` replaced.

    Args:
        command: Name of the command whose runs are the trials.
        monitor: The metric that is pruned by, and the objective unless others are typed.
        study: Name of the study in its storage.
        devices: Devices of each trial.
        max_epochs: Epochs of each trial; -1 without a limit.
    """

    command: str
    monitor: str
    study: str
    n_trials: int
    directions: tuple[str, ...]
    objectives: tuple[str, ...]
    storage: str | None
    n_jobs: int
    pruner: str
    isolation: str
    max_failure_rate: float
    receipt: int
    devices: int = 1
    max_epochs: int = -1
    sampler: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def prunes(self) -> bool:
        """Whether trials are pruned."""
        return self.pruner != "none"

    @property
    def sign(self) -> int:
        """1 if greater values of the first objective are better, else -1."""
        return sign_of(self.directions[0])


def search_settings(config: DictConfig) -> SearchSettings:
    """Settings of the search that Hydra's config of a sweep describes.

    Raises:
        UserError: They cannot work.
    """
    node = config.hydra.sweeper
    known = OmegaConf.create({"hydra": {"sweeper": OmegaConf.to_container(node, resolve=True)}})
    lines = [f"{problem.key}{problem.what}" for problem in problems(known, shipped())]
    plain: Any = OmegaConf.to_container(known.hydra.sweeper)
    if not lines:
        lines = [*_conflicts(config, plain)]
    if lines:
        raise UserError("\n".join(lines))
    directions = _directions(plain)
    pruner = plain["pruner"]
    return SearchSettings(
        command=str(config.hydra.job.config_name),
        monitor=str(config.monitor),
        study=_study_name(config, plain),
        directions=directions,
        objectives=tuple(plain["objectives"] or [str(config.monitor)]),
        pruner=("median" if len(directions) == 1 else "none") if pruner == "auto" else pruner,
        devices=_number(config.trainer.get("devices"), 1),
        max_epochs=_number(config.trainer.get("max_epochs"), -1),
        **{key: plain[key] for key in ("n_trials", "storage", "n_jobs", "isolation", "max_failure_rate", "receipt")},
        sampler=plain["sampler"] or {},
        params=plain["params"] or {},
    )


def _study_name(config: DictConfig, plain: dict[str, Any]) -> str:
    """Name of the study: in a storage that was typed, searches in several folders have several."""
    if plain["study_name"] is not None:
        return str(plain["study_name"])
    is_shared = plain["storage"] not in (None, "auto")
    return f"{config.task_name}_{Path(config.hydra.sweep.dir).name}" if is_shared else str(config.task_name)


def _directions(plain: dict[str, Any]) -> tuple[str, ...]:
    value = plain["direction"]
    return tuple(value) if isinstance(value, list) else (str(value),)


def _number(value: Any, instead: int) -> int:
    return value if isinstance(value, int) else instead


def _conflicts(config: DictConfig, plain: dict[str, Any]) -> Iterator[str]:
    """Settings that contradict each other, or do not fit a search."""
    directions, objectives = _directions(plain), plain["objectives"]
    for direction in directions:
        if direction not in DIRECTIONS:
            yield f"{NODE}.direction must be maximize or minimize, or a list of these; got {direction}."
    if objectives is None and len(directions) > 1:
        yield (
            f"{NODE}.direction has {len(directions)} directions. Type what they are of, for example "
            f"'{NODE}.objectives=[{config.monitor},parameters]'."
        )
    if objectives is not None and len(objectives) != len(directions):
        shown = ",".join(["maximize", *["minimize"] * (len(objectives) - 1)])
        yield f"{NODE}.objectives has {len(objectives)} names: type as many directions, '{NODE}.direction=[{shown}]'."
    if objectives is not None and len(objectives) == 1 and objectives[0] != config.monitor:
        yield (
            f"{NODE}.objectives=[{objectives[0]}]: trials are pruned by the monitor, {config.monitor}. Type "
            + (
                f"'{NODE}.objectives=[{config.monitor},{objectives[0]}]' '{NODE}.direction=[{directions[0]},minimize]'."
                if objectives[0] in MEASURED
                else f"monitor={objectives[0]}, by which trials are pruned, too, in place of {NODE}.objectives."
            )
        )
    if len(directions) > 1 and plain["pruner"] not in ("auto", "none"):
        yield (
            f"{NODE}.pruner={plain['pruner']} compares one value, and {NODE}.direction has {len(directions)}. Type "
            f"{NODE}.pruner=none, or one direction."
        )
    if plain["n_jobs"] > 1 and plain["isolation"] == "none":
        yield (
            f"{NODE}.n_jobs={plain['n_jobs']} needs a process for each trial. Type {NODE}.isolation=process, or "
            f"{NODE}.n_jobs=1."
        )
    if (launcher := str(config.hydra.launcher.get("_target_"))) != BASIC_LAUNCHER:
        yield (
            f"hydra/launcher: {launcher.rpartition('.')[2]} starts all jobs of a sweep, and a search starts its trials "
            f"itself. Remove hydra/launcher=, and type {NODE}.n_jobs=4 for four trials at the same time."
        )


def check_command(command: Any) -> None:
    """Raise UserError if the `command` that was started is not Imago's: trials are started by its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = getattr(command, "name", "train")
    is_ours = command is getattr(sys.modules.get(f"imago.{name}"), "main", None)
    if command is not None and not is_ours and getattr(spec, "name", "") != f"imago.{name}":
        raise UserError(
            "The trials of a search are runs of ml-train, and this is a command of your own. Type hydra/sweeper=optuna "
            "(pip install hydra-optuna-sweeper), which starts your command for each trial."
        )


def check_gpus(settings: SearchSettings, gpus: int) -> None:
    """Raise UserError if the trials that run at the same time need more than the `gpus` of this machine."""
    if gpus and settings.devices > 1 and settings.n_jobs * settings.devices > gpus:
        raise UserError(
            f"{NODE}.n_jobs={settings.n_jobs} trials of trainer.devices={settings.devices} need "
            f"{settings.n_jobs * settings.devices} GPUs, and this machine has {gpus}. Type {NODE}.n_jobs="
            f"{max(1, gpus // settings.devices)}."
        )


def gpus_of(slot: int, devices: int, gpus: Sequence[str]) -> str | None:
    """The GPUs, as CUDA_VISIBLE_DEVICES takes them, of the trials in a slot; None without any.

    Single-GPU trials take turns where there are more of them than GPUs.
    """
    if not gpus:
        return None
    return ",".join(gpus[(slot * devices + number) % len(gpus)] for number in range(min(devices, len(gpus))))


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return visible[:count] if visible else [str(number) for number in range(count)]

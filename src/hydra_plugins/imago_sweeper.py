"""Hydra's sweeper for `hparams_search=optuna`. Hydra imports this file at every start, and a search imports the rest.

No `from __future__ import annotations` here: Hydra executes plugins before they are in `sys.modules`.
"""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from imago.definitions import AtLeast, AtMost, Positive

SAMPLERS = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "seed": None, "n_startup_trials": 10, "multivariate": False},
    "random": {"_target_": "optuna.samplers.RandomSampler", "seed": None},
    "cmaes": {"_target_": "optuna.samplers.CmaEsSampler", "seed": None},
    "nsgaii": {"_target_": "optuna.samplers.NSGAIISampler", "seed": None, "population_size": 50},
    "grid": {"_target_": "optuna.samplers.GridSampler", "_partial_": True},
}
"""Options of hydra/sweeper/sampler, for an Optuna without hydra-optuna-sweeper, which has them itself."""

if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
    for name, node in SAMPLERS.items():
        ConfigStore.instance().store(group="hydra/sweeper/sampler", name=name, node=node, provider="imago")


class ImagoSweeper(Sweeper):
    """Search for settings with Optuna: trials are pruned, and a search that was stopped continues.

    Args:
        n_trials: Number of trials in all, those of an earlier start of the search included.
        direction: `maximize` or `minimize`, or a list with one for each of the objectives.
        objectives: Metrics of the best epoch, `parameters` or `seconds`; None is the monitored metric alone.
        study_name: Name of the study and of its folder; None names it after its time.
        storage: `auto` keeps the study in its folder, None in memory; or a URL, or a path.
        n_jobs: Trials that run at the same time, each in a process.
        pruner: What ends bad trials early.
        isolation: `process` starts one for each trial, and `auto` lets that of a short trial on the CPU run the next
            one, too; with `none`, all of them run in that of the search.
        max_failure_rate: Fraction of failed trials above which the search ends, of three finished trials or more.
        receipt: Number of pruned trials that are finished at the end, the best first.
        sampler: What chooses the values of the next trial.
        params: Setting -> its values.
    """

    def __init__(
        self,
        n_trials: Positive = 20,
        direction: Any = "maximize",
        objectives: list[str] | None = None,
        study_name: str | None = None,
        storage: str | None = "auto",
        n_jobs: Positive = 1,
        pruner: Literal["auto", "median", "hyperband", "first_epoch", "none"] = "auto",
        isolation: Literal["auto", "process", "none"] = "auto",
        max_failure_rate: Annotated[float, AtLeast(0.0), AtMost(1.0)] = 0.5,
        receipt: Annotated[int, AtLeast(0)] = 3,
        sampler: Any = None,
        params: Any = None,
    ) -> None:
        self.context: HydraContext | None = None
        self.task: TaskFunction | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Called by Hydra with the overrides that were typed."""
        from imago.search import check_command, search

        assert self.config is not None
        check_command(getattr(self.task, "command", None))
        return search(self.config, arguments)

"""Every reach into what Hydra does not promise to keep: one function each, with its reason.

All were read in Hydra 1.3.2. tests/test_architecture.py holds each to what it is needed for, and fails with a sentence
when Hydra changes. The messages of Hydra that are translated stand in hydra_errors.py.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import omegaconf.base
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from imago.config.root import CONFIG_DIR


def run_job(config_name: str, words: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Composes as the command line does and calls `job` in its run folder: `hydra.main` alone would read `sys.argv`."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3", job_name=config_name):
        application = GlobalHydra.instance().hydra
        assert application is not None
        application.run(config_name, job, list(words), with_log_configuration=False)


def composed_again(config_name: str, words: Sequence[str]) -> DictConfig:
    """The config with other overrides, while Hydra runs a job: the public `compose` would forget the search path."""
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration(config_name, overrides=list(words), run_mode=RunMode.RUN)


def restore_hydra(settings: str) -> None:
    """Makes `${hydra:…}` lead where it led in another process; `settings` are Hydra's own there, as YAML."""
    setup_globals()
    saved = cast(DictConfig, OmegaConf.create(settings))
    hydra = OmegaConf.structured(HydraConf)
    OmegaConf.set_struct(hydra, False)  # Hydra itself keeps more there than its own class has
    hydra.merge_with(saved.hydra)
    HydraConfig.instance().set_config(OmegaConf.create({"hydra": hydra}))


def forget_application() -> None:
    """Lets Hydra be initialised again."""
    GlobalHydra.instance().clear()


@contextmanager
def singletons_kept() -> Iterator[None]:
    """Inside, Hydra may be initialised; afterwards its singletons are as they were."""
    config, application = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    forget_application()
    try:
        yield
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = config, application


@contextmanager
def errors_raised() -> Iterator[None]:
    """Inside, Hydra raises what is wrong, instead of printing it and leaving."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


MOST_TEXTS = 4096
_parsed = lru_cache(MOST_TEXTS)(omegaconf.base.parse)


@contextmanager
def interpolations_parsed_once() -> Iterator[None]:
    """Inside, OmegaConf parses each text with a `${…}` once, not each time that it is read: 1,700 times in a run, a
    fifth of the time of a short one. What it evaluates, it reads from the same tree."""
    before = omegaconf.base.parse
    omegaconf.base.parse = _parsed
    try:
        yield
    finally:
        omegaconf.base.parse = before


@contextmanager
def config_store_not_copied() -> Iterator[None]:
    """Hydra copies the store of all schemas with each of the 130 questions of --help, and again what it loads."""
    store: Any = ConfigStore
    if "__deepcopy__" in vars(store):  # a trial in the process of its search
        yield
        return
    store.__deepcopy__ = lambda store, memo: store
    try:
        yield
    finally:
        del store.__deepcopy__


@contextmanager
def composed_fast() -> Iterator[None]:
    """Inside, configs are composed and read without doing anything twice."""
    with config_store_not_copied(), interpolations_parsed_once():
        yield

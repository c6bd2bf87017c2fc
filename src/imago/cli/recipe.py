"""The recipe of a training: what `default` and `auto` stand for, and what gives way to settings that were typed."""

import copy
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.cli.hydra_internals import composed_again
from imago.config.checks import check, check_paths, own_targets
from imago.config.invocation import Invocation, override_key
from imago.config.own_code import allow_imports
from imago.config.preprocessing import choose_preprocessing
from imago.config.private import is_private
from imago.config.recipe import AUTO, DEFAULT, NONE, TrainFacts, choose_recipe, default_recipe
from imago.config.setting_source import is_inherited, is_of_group
from imago.errors import UserError, message_of
from imago.terminal import say

GROUP = "recipe"
PHOTOGRAPHS = ("image_folder", "csv")
"""Options of the group `data` that have a recipe by default."""
NETWORK = ("model.net", "model.init_from")
"""Settings of the model that say what is trained; all others say how, which is what a recipe does."""
Look = Callable[[DictConfig], TrainFacts]
"""Reads the facts from the data of a config."""


def with_recipe(cfg: DictConfig, invocation: Invocation, look: Look) -> tuple[DictConfig, Invocation]:
    """Replace `recipe=auto`, and the default, by the recipe that suits the data, which `look` reads.

    The invocation then has the name of that recipe. Epochs that are typed, or set in an experiment, take the place of a
    recipe's steps.

    Raises:
        UserError: `auto` is typed, and the data or the settings cannot work, or the data are private.
    """
    option = invocation.choices.get(GROUP)
    if option == DEFAULT or (option == AUTO and cfg.train):
        chosen, line = (_by_default if option == DEFAULT else _chosen)(cfg, invocation, look)
        if line:
            say(line)
        invocation = invocation.with_choice(GROUP, chosen)
        if chosen != NONE:
            cfg = _composed(cfg, invocation, chosen)
    if is_of_group("trainer.max_steps", GROUP, invocation) and is_inherited(
        "trainer.max_steps", "trainer.max_epochs", invocation
    ):
        epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
        say(f"trainer.max_epochs={epochs} takes the place of the recipe's trainer.max_steps={steps}")
        cfg.trainer.max_steps = -1
    return cfg, invocation


def _composed(cfg: DictConfig, invocation: Invocation, chosen: str) -> DictConfig:
    words = [word for word in invocation.overrides if override_key(word) != GROUP]
    again = composed_again(invocation.config_name, [*invocation.search_path, *words, f"{GROUP}={chosen}"])
    content: Any = OmegaConf.to_container(again, resolve=False)
    OmegaConf.set_struct(cfg, False)
    for key in cfg:
        cfg[key] = content[key]
    OmegaConf.set_struct(cfg, True)
    return cfg


def _by_default(cfg: DictConfig, invocation: Invocation, look: Look) -> tuple[str, str]:
    choices = invocation.choices
    is_new = cfg.train and cfg.ckpt_path is None and choices.get("experiment") is None
    if not is_new or choices.get("data") not in PHOTOGRAPHS or is_private(cfg):
        return NONE, ""
    try:
        chosen, line = default_recipe(_facts(cfg, invocation, look))
    except Exception:  # the run meets it again, and says where
        return NONE, ""
    keys = sorted(key.replace("/", ".") for key in invocation.keys)
    how = [key for key in keys if key.startswith("model.") and not key.startswith(NETWORK)]
    if chosen != NONE and how:
        why = f"recipe={NONE}, because {', '.join(how)} says how to train"
        return NONE, f"{why}; for these images there is recipe={chosen}"
    return chosen, line


def _chosen(cfg: DictConfig, invocation: Invocation, look: Look) -> tuple[str, str]:
    try:
        return choose_recipe(_facts(cfg, invocation, look))
    except Exception as error:
        if invocation.sweep_dir is None:
            with suppress(OSError):
                Path(invocation.output_dir).rmdir()  # the resolver of its name has made it
        if isinstance(error, UserError):
            raise
        raise UserError(f"recipe=auto: {message_of(error)}") from error


def _facts(cfg: DictConfig, invocation: Invocation, look: Look) -> TrainFacts:
    tried = choose_preprocessing(copy.deepcopy(cfg))
    tried.seed = cfg.seed or 0
    logging.disable()  # the run says it again
    try:
        if is_private(cfg):
            raise UserError(
                "strategy=dp and recipe=auto: the choice would depend on private images. Type recipe=none, or the name "
                "of a recipe."
            )
        check(tried, invocation)
        check_paths(tried)
        allow_imports(own_targets(cfg, invocation), Path.cwd())
        return look(tried)
    finally:
        logging.disable(logging.NOTSET)

"""The recipe of a training: what `recipe=auto` stands for, and what gives way to settings that were typed."""

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
from imago.config.recipe import AUTO, NONE, TrainFacts, choose_recipe
from imago.config.setting_source import is_inherited, is_of_group
from imago.errors import UserError, message_of
from imago.terminal import say

GROUP = "recipe"


def with_recipe(
    cfg: DictConfig, invocation: Invocation, look: Callable[[DictConfig], TrainFacts]
) -> tuple[DictConfig, Invocation]:
    """Replace `recipe=auto` by the recipe that suits the data, which `look` reads; the invocation then has its name.

    Epochs that are typed, or set in an experiment, take the place of a recipe's steps.

    Raises:
        UserError: The data or the settings cannot work, or the data are private.
    """
    if invocation.choices.get(GROUP) == AUTO and cfg.train:
        facts = _facts(cfg, invocation, look)
        chosen, line = choose_recipe(facts)
        say(line)
        invocation = invocation.with_choice(GROUP, chosen)
        if chosen != NONE:
            cfg = _composed(cfg, invocation, chosen)
    if is_of_group("trainer.max_steps", GROUP, invocation) and is_inherited(
        "trainer.max_steps", "trainer.max_epochs", invocation
    ):
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


def _facts(cfg: DictConfig, invocation: Invocation, look: Callable[[DictConfig], TrainFacts]) -> TrainFacts:
    if is_private(cfg):
        raise UserError(
            "strategy=dp and recipe=auto: the choice would depend on private images. Type recipe=none, or the name of "
            "a recipe."
        )
    tried = choose_preprocessing(copy.deepcopy(cfg))
    tried.seed = cfg.seed or 0
    logging.disable()  # the run says it again
    try:
        check(tried, invocation)
        check_paths(tried)
        allow_imports(own_targets(cfg, invocation), Path.cwd())
        return look(tried)
    except Exception as error:
        if invocation.sweep_dir is None:
            with suppress(OSError):
                Path(invocation.output_dir).rmdir()  # the resolver of its name has made it
        if isinstance(error, UserError):
            raise
        raise UserError(f"recipe=auto: {message_of(error)}") from error
    finally:
        logging.disable(logging.NOTSET)

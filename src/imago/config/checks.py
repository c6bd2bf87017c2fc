"""Checks of a config before anything heavy is imported or made."""

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.config.allow_list import TRANSFORMS, check_targets
from imago.config.batch_size import batch_size_problems
from imago.config.carried import GROUPS, OPTION, leave_out_training
from imago.config.combinations import REFUSED
from imago.config.invocation import Invocation, override_key, override_value
from imago.config.model_combinations import REFUSED_MODELS
from imago.config.monitors import mode_warnings, monitor_problems, unlogged_monitors
from imago.config.node_checks import class_problems, node_problems
from imago.config.outputs import output_problems
from imago.config.own_files import file_problems, replaced_defaults
from imago.config.part_places import is_class, misplaced_part
from imago.config.private import private_problems, private_warnings
from imago.config.refused_callbacks import checkpoint_problems, lightning_name, refused_callback
from imago.config.root import CONFIG_DIR, Root
from imago.config.schema import drop_inherited, problems, shipped
from imago.config.setting_source import in_file, is_inherited, is_users_own
from imago.config.targets import MEMORY_SETS, NETWORKS, families_of
from imago.config.time_budget import budget_problems
from imago.config.trainer import device_problems, device_warnings, is_one_device, trainer_problems
from imago.config.tree import nodes
from imago.definitions import SPLIT_NAMES, SPLITS, is_export
from imago.errors import NO_CSV, NO_DATASET, NO_SHARDS, MissingFileError, UserError, no_data
from imago.files import did_you_mean
from imago.masking import masked_override

GROUPS_OF_SETTINGS = ("data", "model", "trainer", "strategy")

log = logging.getLogger(__name__)

PATHS = {  # setting -> what to say if the file or folder that it names does not exist
    "data.data_dir": "does not exist. It must be a folder with class folders, or with train/ val/ test/.",
    "data.split_file": "does not exist. Make it with: ml-split PATH --output {}",
    "data.shards": "does not exist. Make it with: ml-shard PHOTOS --output {}",
    "data.exclude": "does not exist. ml-doctor data.data_dir=PATH writes one.",
    "data.relabel": "does not exist. Give a CSV with the columns path and label, or type data.relabel=null.",
    "ckpt_path": "does not exist.",
    "model.init_from": "does not exist.",
    "source": "does not exist. Type an image, a folder, a glob, or a .txt or .csv list.",
}


def own_targets(cfg: DictConfig, invocation: Invocation) -> list[str]:
    """Names of user code (neither Imago's nor a library's) that were typed, or are in the user's own configs or in
    `trusted_targets`, but not those that a checkpoint names."""
    choices = invocation.choices
    from_checkpoint = {group for group, option in choices.items() if option == OPTION}
    from_checkpoint |= {"params"} if from_checkpoint else set()
    libraries = {target.partition(".")[0] for target in shipped()}
    with suppress(OmegaConfBaseException):  # dangling interpolations are reported later
        targets = [
            str(node._target_)
            for key, node in nodes(cfg)
            if key.partition(".")[0] not in from_checkpoint or _is_typed(key, str(node._target_), invocation)
        ]
        targets += list(cfg.trusted_targets)
        return [target for target in targets if target.partition(".")[0] not in libraries]
    return []


def _is_typed(key: str, target: str, invocation: Invocation) -> bool:
    words = [(override_key(word), override_value(word)) for word in invocation.overrides]
    return any(
        (name == f"{key}._target_" and value == target)
        or (f"{key}.".startswith(f"{name}.") and "_target_" in value and target in value)
        for name, value in words
    )


def check_from_checkpoint(cfg: DictConfig, invocation: Invocation, needs_data: bool = True) -> None:
    """Check the config of a command that starts from a checkpoint, and remove what only training needs.

    Unless every checkpoint is the user's own, its config may make only what is on the allow-list.
    """
    choices = invocation.choices
    if elsewhere := [group for group, option in choices.items() if option == OPTION and group not in GROUPS]:
        raise UserError(f"{', '.join(elsewhere)}: a checkpoint has only {', '.join(GROUPS)}.")
    groups = [group for group in GROUPS if choices.get(group) == OPTION]
    leave_out_training(cfg, groups, invocation.overrides)
    file = str(cfg.ckpt_path[0] if OmegaConf.is_list(cfg.ckpt_path) else cfg.ckpt_path)
    if invocation.own_checkpoint != file:
        if not needs_data and "data" in groups:
            groups = [*(group for group in groups if group != "data"), *TRANSFORMS]
        check_targets(cfg, [*groups, "params"], list(cfg.trusted_targets), invocation.overrides, is_export(file))
    if cfg.data.get("batch_size") == "auto":
        raise UserError("data.batch_size=auto is found by a training. Type a number, for example data.batch_size=32.")
    check_settings(cfg, invocation, needs_data)


def splits_of(split: Any, cfg: DictConfig) -> list[str]:
    """Convert `split` to a list: `test` -> [test]; a list stays one.

    Raises:
        UserError: It is neither a split nor a list of splits, or is empty.
    """
    splits = list(split) if OmegaConf.is_list(split) else [split]
    if not splits:
        raise UserError("split must name at least one of train, val, test; got [].")
    for name in splits:
        check_split(cfg, name)
    return splits


def check(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise one UserError for all settings of training that are missing, out of range or in conflict."""
    _raise_all(cfg, invocation, chain(_problems(cfg, invocation), _training_problems(cfg, invocation)))
    _log_replaced_options(invocation)
    if not cfg.train and cfg.ckpt_path is None and cfg.test:
        log.warning("train=false without ckpt_path=: scoring the untrained network")
    others = (warnings(cfg, invocation) for warnings in (mode_warnings, device_warnings, replaced_defaults))
    for text in chain(private_warnings(cfg), *others) if cfg.train else ():
        log.warning("%s", text)


def _log_replaced_options(invocation: Invocation) -> None:
    """Log each option of a group that a later word replaces: `trainer=ddp trainer=amp`."""
    typed: dict[str, str] = {}
    for word in invocation.overrides:
        key = override_key(word)
        if key in typed and key in invocation.choices and not word.startswith("~"):
            log.info("%s is replaced by %s, which was typed after it", *map(masked_override, (typed[key], word)))
        typed[key] = word


def check_settings(cfg: DictConfig, invocation: Invocation, needs_data: bool = True) -> None:
    """Check the settings that all commands share; raise one UserError for all problems."""
    _raise_all(cfg, invocation, _problems(cfg, invocation, needs_data))


def lacks_data(data: DictConfig) -> bool:
    """Whether a `data` node reads a folder, and none was chosen; what a class of one's own needs is its own affair."""
    is_chosen = any(data.get(key) for key in ("data_dir", "split_file", "source"))
    return data.get("_target_") in (None, "imago.data.ImageFolderDataModule") and "data_dir" in data and not is_chosen


def check_paths(cfg: DictConfig) -> None:
    """Raise MissingFileError for a file or folder that a setting names and that does not exist; none is read."""
    for key, sentence in PATHS.items():
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        is_download = key == "data.data_dir" and cfg.data.get("_target_") != "imago.data.ImageFolderDataModule"
        is_unused = is_download or (key == "model.init_from" and cfg.get("ckpt_path") is not None)
        is_path = isinstance(value, str) and value not in ("", "latest") and not re.search(r"[*?\[]|://", value)
        if is_path and not is_unused and not os.path.lexists(os.path.expanduser(value)):
            raise MissingFileError(f"{key}={value} {sentence.format(value)}{did_you_mean(value)}")


def _raise_all(cfg: DictConfig, invocation: Invocation, problems: Iterator[str]) -> None:
    """Raise one UserError for the problems of the root, of files of one's own, and `problems` with what is in these."""
    first = [*_root_problems(cfg, invocation)]
    if any(not isinstance(cfg.get(group), DictConfig) for group in GROUPS_OF_SETTINGS):
        raise UserError("\n".join(first))  # the other checks look into these
    first += class_problems(cfg, invocation)
    incomplete = dict(file_problems(cfg, invocation))
    said = {line.partition(" ")[0] for line in first}
    rest: list[str] = []
    try:
        rest.extend(problems)
    except Exception:  # what is wrong already may be what it stumbles over
        if not (first or incomplete):
            raise
    rest = [line for line in rest if line.partition(".")[0] not in incomplete and line.partition(" ")[0] not in said]
    if lines := [*first, *incomplete.values(), *rest]:
        raise UserError("\n".join(dict.fromkeys(lines)))


def _problems(cfg: DictConfig, invocation: Invocation, needs_data: bool = True) -> Iterator[str]:
    if needs_data and lacks_data(cfg.data):
        yield NO_CSV if invocation.choices.get("data") == "csv" else no_data(invocation.program)
    if needs_data and "dataset" in cfg.data and OmegaConf.is_missing(cfg.data.dataset, "path"):
        yield NO_DATASET
    if needs_data and "dataset" in cfg.data and OmegaConf.is_missing(cfg.data.dataset, "name"):
        yield f"No data set was chosen. Type data.dataset.name= with one of {', '.join(sorted(MEMORY_SETS))}."
    if needs_data and OmegaConf.is_missing(cfg.data, "shards"):
        yield NO_SHARDS
    yield from _argument_problems(cfg, invocation, needs_data)
    yield from output_problems(cfg)
    if is_users_own("paths.output_dir", invocation) and str(cfg.paths.output_dir) != invocation.output_dir:
        yield "paths.output_dir is the folder that Hydra makes. Type hydra.run.dir=FOLDER (hydra.sweep.dir= with -m)."
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        yield f"seed must be a whole number from 0 to 2**32 - 1, or null; got {cfg.seed}."
    yield from trainer_problems(cfg, invocation)
    yield from device_problems(cfg)
    yield from (refusal for is_given, refusal in (*REFUSED, *REFUSED_MODELS) if is_given(cfg, invocation))
    yield from monitor_problems(cfg, invocation)


def _training_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    if cfg.data.get("cache") == "ram" and not is_one_device(cfg):
        yield (
            "data.cache=ram with several processes: each would keep all images. Type data.cache=disk, which is shared."
        )
    if not OmegaConf.is_list(cfg.report.splits):
        yield f"report.splits must be a list, for example 'report.splits=[test]'; got {cfg.report.splits}."
    elif cfg.test:
        for split in cfg.report.splits:
            try:
                check_split(cfg, split)
            except ValueError as error:
                yield str(error)
    yield from chain(budget_problems(cfg), batch_size_problems(cfg))
    if cfg.train:
        yield from private_problems(cfg)
        yield from checkpoint_problems(cfg)
        yield from unlogged_monitors(cfg, invocation)
        for key, node in nodes(cfg.callbacks, "callbacks"):
            name = lightning_name(str(node._target_))
            if name is not None and (why := refused_callback(name)) is not None:
                yield f"{key} ({name}): {why}"
    if not (cfg.train or cfg.test):
        yield "train=false and test=false together leave nothing to do. Remove one of them."
    if cfg.train and cfg.ckpt_path is not None and cfg.model.get("init_from") is not None:
        what = "the first continues a run from its state, the second starts a new run from weights"
        yield f"ckpt_path= and model.init_from=: {what}. Remove one of them."
    if cfg.train and cfg.model.get("optimizer") is None:
        yield "model.optimizer is missing. Choose one, for example model/optimizer=adamw."
    if not isinstance(cfg.ckpt_path, str | None):
        yield f"ckpt_path must be one file or null, got {cfg.ckpt_path}."


def _root_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with the keys of the root: Hydra accepts `+KEY=` and `~KEY`."""
    known = [field.name for field in fields(OmegaConf.get_type(cfg) or Root)]
    unknown: list[str] = []
    for key in (key for key in map(str, cfg) if key not in known):
        if (what := misplaced_part(key, cfg, invocation.overrides)) is not None:
            yield f"Unknown setting {key}{in_file(key, invocation)}. {what}"
        else:
            unknown.append(key)
    if unknown:
        yield (
            f"Unknown setting {', '.join(unknown)}. The top-level settings are {', '.join(known)}. "
            f"Put variables of your own below params: +params.{unknown[0]}"
        )
    for key in (*GROUPS_OF_SETTINGS, "report", "plots"):
        if cfg.get(key) is None:
            if key in GROUPS_OF_SETTINGS:
                yield f"{key} is missing. Remove ~{key}, or choose an option with {key}=…"
        elif not isinstance(cfg[key], DictConfig):
            value = str(cfg[key])
            path = "model.net" if key == "model" else key
            if is_class(value) and key in ("data", "model", "strategy"):
                yield f"{key} must be a group of settings, got {value}. Type {path}._target_={value}"
                continue
            instead = f"Choose an option with {key}=…" if Path(CONFIG_DIR, key).is_dir() else f"Type {key}.KEY=VALUE"
            yield f"{key} must be a group of settings, got {value}{in_file(key, invocation)}. {instead}"


def _argument_problems(cfg: DictConfig, invocation: Invocation, needs_data: bool) -> Iterator[str]:
    """Problems with the keys and types of all nodes whose targets are known."""
    _drop_foreign_settings(cfg, invocation)
    drop_inherited(cfg, invocation, shipped())
    for problem in problems(cfg, shipped(), invocation.keys):
        is_weight = re.match(r"model\.criterions\.criterions\.[^.]+\.weight$", problem.key)
        hint = " For class weights type model.class_weights=auto, or 'model.class_weights={NAME: 5}'."
        part = misplaced_part(problem.key, cfg, invocation.overrides) if not problem.is_type else None
        what = f" stands in the wrong place. {part}" if part is not None else problem.what
        yield f"{problem.key}{what}{hint if is_weight else ''}{in_file(problem.key, invocation)}"
    yield from node_problems(cfg, invocation, needs_data)
    for key, node in nodes(cfg):
        for package, extra in [family.extra for family in families_of(node._target_) if family.extra is not None]:
            if importlib.util.find_spec(package) is None:
                yield f"{key} needs the package {package}, which is not installed: pip install 'imago[{extra}]'"
    net = cfg.model.get("net")
    if isinstance(net, DictConfig) and net.get("_target_") in NETWORKS:
        try:
            NETWORKS[net._target_](net.name)
        except ValueError as error:
            yield str(error)


def _drop_foreign_settings(cfg: DictConfig, invocation: Invocation) -> None:
    """Remove from an optimizer or schedule whose `_target_` was replaced the settings of the former one: AdamW's weight
    decay does not suit Adam. The learning rate stays and is logged."""
    for part in ("optimizer", "scheduler"):
        node = cfg.model.get(part)
        if not isinstance(node, DictConfig):
            continue
        for key in [name for name in map(str, node) if not name.startswith("_")]:
            if not is_inherited(f"model.{part}.{key}", f"model.{part}._target_", invocation):
                continue
            if part == "optimizer" and key == "lr":
                log.info("model.optimizer.lr=%s was set for another optimizer: type one for %s", node.lr, node._target_)
                continue
            if is_users_own(f"model.{part}.{key}", invocation):
                what = (part, key, node[key], part, node._target_)
                log.info("model.%s.%s=%s was set for another %s: dropped for %s", *what)
            OmegaConf.set_struct(node, False)
            del node[key]


def check_split(cfg: DictConfig, split: Any) -> None:
    """Raise UserError unless `split` is a split of which at least a part is scored."""
    if split not in SPLITS:
        meant = next(
            (f" Did you mean {ours}?" for ours, names in SPLIT_NAMES.items() if str(split).lower() in names), ""
        )
        raise UserError(f"Unknown split {split}. The splits are {', '.join(SPLITS)}.{meant}")
    option = f"limit_{'test' if split == 'test' else 'predict'}_batches"
    if cfg.trainer.get(option) == 0:
        raise UserError(f"trainer.{option}=0 leaves nothing of {split} to score: type test=false instead.")

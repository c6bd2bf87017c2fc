"""Files of one's own for a model, data, a trainer or a strategy: what they lack, and what belongs elsewhere."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.carried import OPTION
from imago.config.invocation import Invocation
from imago.config.own_code import inherits
from imago.config.root import CONFIG_DIR
from imago.config.saved import RUN_OPTION
from imago.config.schema import shipped
from imago.config.setting_source import in_file, shown_path

TOP = "  defaults:\n    - "
SHARED = {  # group -> what its file takes over, and from which option
    "model": ("of all models: losses, optimizer and schedule", "default"),
    "data": ("of all data: crops, batches and workers", "default"),
    "trainer": ("of the Trainer: devices, precision and limits", "default"),
    "strategy": ("of a strategy, and its _target_", "dp"),
}
OF_DEFAULT_CALLBACKS = {  # name -> what there is not without it
    "metrics": "no metrics such as val/acc",
    "model_checkpoint": "no best.ckpt",
    "resume": "nothing to resume from",
}
FOLDER = "data_dir"
"""Setting of data in a folder, which start from another option."""


def own_file(folders: Iterable[str | Path], group: str, option: str) -> Path | None:
    """The file of `group=option` in these folders of configs; None if Imago ships it, or there is none."""
    own = [Path(folder, group, f"{option}.yaml") for folder in folders if Path(folder) != Path(CONFIG_DIR)]
    return next((file for file in own if file.is_file()), None)


def has_defaults(file: Path) -> bool:
    """Whether a YAML file begins with a list of defaults."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return isinstance(content, dict) and bool(content.get("defaults"))


def lacks_default(file: Path, option: str = "default") -> str:
    """Message for a file that takes over nothing from an option of Imago's."""
    return f"{shown_path(file)} lacks the defaults {SHARED[file.parent.name][0]}. Put at its top\n{TOP}{option}"


def file_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[tuple[str, str]]:
    """Group and problem for each file of one's own that takes over nothing, or names a class that does not go there."""
    if (model := _model_problem(cfg, invocation)) is not None:
        yield "model", model
    needed = {
        "data": not _is_own(cfg.data) and "train_transform" not in cfg.data,
        "trainer": not {"_target_", "accelerator", "strategy", "precision"} <= set(map(str, cfg.trainer)),
        "strategy": "_target_" not in cfg.strategy,
    }
    for group in (group for group, is_needed in needed.items() if is_needed):
        file = own_file(invocation.config_folders, group, invocation.choices.get(group, ""))
        if file is not None and not has_defaults(file):
            is_folder = group == "data" and "_target_" not in cfg.data and FOLDER in cfg.data
            yield group, lacks_default(file, "image_folder" if is_folder else SHARED[group][1])


def replaced_defaults(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Warning for `callbacks=OPTION`, which replaces the default callbacks where a list would add to them."""
    option = str(invocation.choices.get("callbacks", "default"))
    names = [name for name in re.split(r"[\s,'\[\]]+", option) if name]
    lacking = [what for name, what in OF_DEFAULT_CALLBACKS.items() if (cfg.callbacks or {}).get(name) is None]
    if cfg.callbacks is None or not lacking or {"default", "none", OPTION, RUN_OPTION} & {*names}:
        return
    added = f"[{','.join(['default', *names])}]"
    is_typed = "callbacks" in invocation.keys
    how = f"Type 'callbacks={added}'" if is_typed else f'Write "override /callbacks: {added}" in its file'
    yield (
        f"callbacks={','.join(names)} replaces the default callbacks: there will be {', '.join(lacking)}. {how} to "
        "add to them."
    )


def _is_own(node: DictConfig) -> bool:
    return "_target_" in node and node._target_ not in shipped()


def _model_problem(cfg: DictConfig, invocation: Invocation) -> str | None:
    """Message for a network or a LightningModule of one's own in the place of the model, or alone in its file."""
    if invocation.choices.get("model") == OPTION:
        return None
    file = own_file(invocation.config_folders, "model", invocation.choices.get("model", ""))
    if cfg.model.get("_target_") is None:
        return lacks_default(file) if file is not None else "model has no _target_. Choose a model with model=…"
    target = str(cfg.model.get("_target_"))
    if target in shipped() or inherits(target, "imago.model.module.DictModule"):
        return None
    if cfg.model.get("net") is not None and "criterions" not in cfg.model:
        return _of_the_template(cfg.model, target, invocation)
    if inherits(target, "lightning.pytorch.core.module.LightningModule"):
        net = "Keep model.net" if cfg.model.get("net") is not None else "Put its network below net:"
        return (
            f"model._target_={target}{in_file('model._target_', invocation)}: delete it. Imago has the "
            f"LightningModule, with the losses, metrics, optimizer and schedule of the config. {net} "
            "(docs/extend/network.md)."
        )
    if cfg.model.get("net") is not None:
        return None  # what it lacks is said once it can be imported
    of_model = shipped()["imago.model.DictModule"]["properties"]
    own = {str(key): cfg.model[key] for key in cfg.model if key not in of_model and not str(key).startswith("_")}
    lines = ["defaults:", "  - default", "", "net:", f"  _target_: {target}", "  _partial_: true"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(OmegaConf.create(own)).splitlines() if own]
    return (
        f"model: {target} stands in the place of the whole model{in_file('model._target_', invocation)}. A network "
        "goes below net:\n" + "\n".join(f"  {line}".rstrip() for line in lines)
    )


def _of_the_template(model: DictConfig, target: str, invocation: Invocation) -> str:
    """Message for a model file of lightning-hydra-template, which names a LightningModule: the lines to write."""
    lines = [
        f"model._target_={target}{in_file('model._target_', invocation)}: delete it (Imago has the LightningModule) "
        f"and write\n{TOP}default"
    ]
    net, where = model.net, in_file("model.net", invocation)
    if str(net.get("_target_")).endswith(".SimpleDenseNet") and net.get("_target_") not in shipped():
        hidden = [net[key] for key in sorted(map(str, net)) if re.fullmatch(r"lin\d+_size", key)]
        features = net.get("input_size", 784)
        lines.append(
            f"model.net{where}: write\n  net:\n    _target_: imago.model.SimpleDenseNet\n    _partial_: true\n"
            f"    in_features: {features}\n    hidden: {hidden}"
        )
    elif net.get("_partial_") is not True:
        lines.append(
            f"model.net{where}: add _partial_: true, and delete output_size and the like: the number of classes comes "
            "from the data, as num_classes."
        )
    return "\n".join(lines)

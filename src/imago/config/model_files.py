"""Files of models of one's own: what they lack, and what belongs elsewhere."""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from imago.config.carried import OPTION
from imago.config.invocation import Invocation
from imago.config.own_code import inherits
from imago.config.root import CONFIG_DIR
from imago.config.schema import shipped
from imago.config.setting_source import in_file
from imago.errors import UserError

TOP = "  defaults:\n    - default"


def own_file(folders: Iterable[str | Path], group: str, option: str) -> Path | None:
    """The file of `group=option` in these folders of configs; None if Imago ships it, or there is none."""
    own = [Path(folder, group, f"{option}.yaml") for folder in folders if Path(folder) != Path(CONFIG_DIR)]
    return next((file for file in own if file.is_file()), None)


def has_defaults(file: Path) -> bool:
    """Whether a YAML file begins with a list of defaults."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return isinstance(content, dict) and bool(content.get("defaults"))


def lacks_default(file: Path) -> str:
    """Message for the file of a model that takes over nothing from Imago's."""
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown} lacks the defaults of all models: losses, optimizer and schedule. Put at its top\n{TOP}"


def check_model_file(cfg: DictConfig, invocation: Invocation) -> None:
    """Raise UserError for a network of one's own in the place of the model, or alone in its file."""
    if invocation.choices.get("model") == OPTION:
        return
    if cfg.model.get("_target_") is None:
        file = own_file(invocation.config_folders, "model", invocation.choices.get("model", ""))
        raise UserError(
            lacks_default(file) if file is not None else "model has no _target_. Choose a model with model=…"
        )
    target = str(cfg.model.get("_target_"))
    if target in shipped():
        return
    if cfg.model.get("net") is not None:
        if "criterions" not in cfg.model and not inherits(target, "imago.model.module.DictModule"):
            raise UserError(_of_the_template(cfg.model, target, invocation))
        return
    of_model = shipped()["imago.model.DictModule"]["properties"]
    own = {str(key): cfg.model[key] for key in cfg.model if key not in of_model and not str(key).startswith("_")}
    lines = ["defaults:", "  - default", "", "net:", f"  _target_: {target}", "  _partial_: true"]
    lines += [f"  {line}" for line in OmegaConf.to_yaml(OmegaConf.create(own)).splitlines() if own]
    raise UserError(
        f"model: {target} stands in the place of the whole model{in_file('model._target_', invocation)}. A network "
        "goes below net:\n" + "\n".join(f"  {line}".rstrip() for line in lines)
    )


def _of_the_template(model: DictConfig, target: str, invocation: Invocation) -> str:
    """Message for a model file of lightning-hydra-template, which names a LightningModule: the lines to write."""
    lines = [
        f"model._target_={target}{in_file('model._target_', invocation)}: delete it (Imago has the LightningModule) "
        f"and write\n{TOP}"
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

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from imago.config import CONFIG_DIR, Root, best_mode, slug, unused_folder, without_stage

OPTIONS = sorted(
    (str(path.parent.relative_to(CONFIG_DIR)), path.stem)
    for path in Path(CONFIG_DIR).rglob("*.yaml")
    if path.parent != Path(CONFIG_DIR) and path.parent.name != "hydra"
)


def composed(*overrides: str, command: str = "train") -> DictConfig:
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose(command, [*overrides, "hydra.runtime.output_dir=/out"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.fixture(autouse=True)
def hydra_config_is_put_back(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_is_an_argument_of_its_target(group, option):
    cfg = composed(f"{group}={option}")
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    checked = 0
    for node in nodes(cfg):
        target = get_object(node._target_)
        if inspect.isbuiltin(target):  # torch.argmax: has no signature to look at
            continue
        accepted = inspect.signature(target).parameters
        keys = {str(key) for key in node if not str(key).startswith("_")}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
            assert keys <= set(accepted), f"{node._target_} has no {keys - set(accepted)}"
        checked += 1
    assert checked > 5


def nodes(cfg) -> list[DictConfig]:
    """Every node with a `_target_`."""
    if not OmegaConf.is_config(cfg):
        return []
    children = [cfg._get_node(key) for key in cfg] if OmegaConf.is_dict(cfg) else list(cfg)
    found = [node for child in children for node in nodes(child)]
    return [cfg, *found] if OmegaConf.is_dict(cfg) and cfg.get("_target_") else found


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] in ("callbacks", "logger")])
def test_callbacks_and_loggers_are_made(group, option, tmp_path):
    cfg = composed(f"{group}={option}", f"hydra.runtime.output_dir={tmp_path}")
    made = instantiate(cfg[group] or {}, _convert_="all")
    assert option == "none" or len(made) >= 1


def test_our_defaults_are_those_of_the_classes():
    data, model = composed().data, composed().model
    for node, silent in ((data, {"cache_dir", "seed", "data_dir"}), (model, {"monitor"})):
        for name, parameter in inspect.signature(get_object(node._target_)).parameters.items():
            if parameter.default is not parameter.empty and name not in silent and name != "scheduler":
                assert node[name] == parameter.default, name


def test_every_root_key_is_in_the_schema_and_the_config():
    keys = set(composed()) - {"hydra"}
    assert keys == set(Root.__dataclass_fields__)


def test_monitor_is_defined_once():
    cfg = composed("monitor=val/loss")
    assert cfg.mode == "min"
    watched = [cfg.callbacks.model_checkpoint, cfg.callbacks.early_stopping, cfg.model]
    assert [node.monitor for node in watched] == ["val/loss"] * 3
    assert cfg.callbacks.metrics.tracked_metric_name == "loss"
    assert composed("optimized_metric=val/f1").callbacks.model_checkpoint.monitor == "val/f1"
    assert composed("mode=min").callbacks.early_stopping.mode == "min"


def test_defaults_are_those_for_photographs():
    cfg = composed()
    assert (cfg.data.image_size, cfg.model.net.name, cfg.model.net.weights) == (224, "resnet18", "auto")
    assert cfg.trainer.accelerator == "auto"


def test_eval_has_the_groups_of_train():
    train, evaluation = composed(), composed(command="eval")
    assert set(train) == set(evaluation)
    assert (evaluation.task_name, list(evaluation.report.splits)) == ("eval", ["test"])


def test_folder_names(tmp_path):
    assert slug("lr_0.01 batch/size=[1,2]") == "lr_0.01_batch_size_1_2"
    assert len(slug("x" * 100)) == 60
    assert slug("../..") == ""
    assert [Path(unused_folder(f"{tmp_path}/run")).name for _ in range(3)] == ["run", "run_2", "run_3"]


def test_small_functions():
    assert (best_mode("val/loss"), best_mode("val/acc")) == ("min", "max")
    assert (without_stage("val/loss/ce"), without_stage("acc")) == ("loss/ce", "acc")

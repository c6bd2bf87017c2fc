import importlib.util
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import type_shard, write_mnist
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from imago.cli.start_from import register_checkpoint_options
from imago.config.preprocessing import choose_preprocessing
from imago.config.resolvers import best_mode, slug, unique_slug, unused_folder, without_stage
from imago.config.root import CONFIG_DIR, Root
from imago.config.signatures import arguments_schema
from imago.run.folder import RunFolder
from imago.training.trainer import build_trainer

OPTIONS = sorted(
    (str(path.parent.relative_to(CONFIG_DIR)), path.stem)
    for path in Path(CONFIG_DIR).rglob("*.yaml")
    if path.parent != Path(CONFIG_DIR) and path.parent.name not in ("hydra", "local")
)


def composed(*overrides: str, command: str = "train") -> DictConfig:
    import_module(f"imago.{command}").main.register(overrides)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose(command, [*overrides, "hydra.runtime.output_dir=/out"], return_hydra_config=True)
    choose_preprocessing(cfg)
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
        accepted = arguments_schema(target)
        keys = {str(key) for key in node if not str(key).startswith("_")}
        if not accepted["additionalProperties"]:
            assert keys <= set(accepted["properties"]), f"{node._target_} has no {keys - set(accepted['properties'])}"
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
    of_data = {
        "cache_dir",
        "seed",
        "data_dir",
        "trained",
        "recorded",
        "interpolation",
    }  # of a checkpoint, or its network
    for node, silent in ((data, of_data), (model, {"monitor"})):
        target = get_object(node._target_)
        parameters = [
            inspect.signature(kind).parameters for kind in target.__mro__ if kind.__module__.startswith("imago.")
        ]
        named = {name: parameter for kind in reversed(parameters) for name, parameter in kind.items()}
        for name, parameter in named.items():
            if parameter.default is not parameter.empty and name not in silent and name != "scheduler":
                assert node[name] == parameter.default, name


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning")  # debug has no metrics
@pytest.mark.parametrize("experiment", [option for group, option in OPTIONS if group == "experiment"])
def test_every_experiment_runs_a_batch_of_everything(experiment, command, tmp_path, request):
    data = []
    if experiment == "example":
        write_mnist(tmp_path / "sets")
        data = [f"data.data_dir={tmp_path}/sets"]
    elif experiment == "resnet18_ants":
        photographs = request.getfixturevalue("hymenoptera")
        data = [f"data.data_dir={photographs}", "model.net.weights=null", "data.image_size=64"]
    elif experiment == "linear_probe":
        weights = request.getfixturevalue("trained").dir
        data = [f"data.data_dir={request.getfixturevalue('colours')}", "model=tiny_net", f"model.init_from={weights}"]
    scored = "val" if experiment in ("digits_autoencoder", "digits_two_heads") else ""  # whose heads are called by name
    run = command("train", f"experiment={experiment}", "debug=fdr", f"report.splits=[{scored}]", *data)
    assert run.exit_code == 0, run.output


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data" and option != "default"])
def test_every_kind_of_data_is_made(option, tmp_path, data_dir, colours, request):
    words = [f"paths.data_dir={data_dir}", f"paths.cache_dir={tmp_path}"]
    if option == "image_folder":
        words += [f"data.data_dir={colours}"]
    elif option == "hymenoptera":
        words += [f"data.data_dir={request.getfixturevalue('hymenoptera')}"]
    elif option in ("mnist", "torchvision"):
        write_mnist(tmp_path / "sets")
        words += [f"data.data_dir={tmp_path}/sets", *(["data.dataset.name=MNIST"] if option == "torchvision" else [])]
    elif option == "csv":
        lines = [f"{file},{file.parent.name}" for file in sorted(colours.rglob("train/*/*.png"))]
        (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
        words += [f"data.split_file={tmp_path}/table.csv"]
    elif option == "shards":
        type_shard(colours, "--output", tmp_path / "shards")
        words += [f"data.shards={tmp_path}/shards"]
    elif option == "hugging_face":
        words += ["data.dataset.path=imagefolder", f"data.dataset.data_dir={colours}"]
    data = instantiate(composed(f"data={option}", *words, "data.num_workers=0").data, _convert_="all")
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"image", "label", "index", "epoch"}
    assert batch["image"].dtype == torch.uint8
    assert len(data.class_names) > 1


@pytest.mark.parametrize("option", [o for g, o in OPTIONS if g == "trainer" and o not in ("gpu", "mps", "ddp")])
def test_every_trainer_that_this_machine_has_is_made(option, tmp_path):
    cfg = composed(f"trainer={option}", "logger=[]", "trainer.accelerator=cpu", f"hydra.runtime.output_dir={tmp_path}")
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks = None
    run = RunFolder(tmp_path, processes=2 if option == "ddp_sim" else 1)
    trainer = build_trainer(cfg, run, [])
    assert trainer.world_size == run.processes


@pytest.mark.parametrize("option", ["gpu", "mps", "ddp"])
def test_the_trainers_of_other_machines_name_their_device(option):
    cfg = composed(f"trainer={option}").trainer
    assert cfg.accelerator == {"mps": "mps"}.get(option, "gpu")
    assert cfg.strategy == {"ddp": "ddp"}.get(option, "auto")


@pytest.mark.quick
def test_every_root_key_is_in_the_schema_and_the_config():
    keys = set(composed()) - {"hydra"}
    assert keys == set(Root.__dataclass_fields__)


@pytest.mark.quick
def test_monitor_is_defined_once():
    cfg = composed("monitor=val/loss")
    assert cfg.mode == "min"
    watched = [cfg.callbacks.model_checkpoint, cfg.callbacks.early_stopping, cfg.model]
    assert [node.monitor for node in watched] == ["val/loss"] * 3
    assert cfg.callbacks.metrics.tracked_metric_name == "loss"
    assert composed("optimized_metric=val/f1").callbacks.model_checkpoint.monitor == "val/f1"
    assert composed("mode=min").callbacks.early_stopping.mode == "min"


@pytest.mark.quick
def test_the_mode_is_that_of_what_is_watched():
    callbacks = "callbacks.early_stopping.monitor=val/loss", "callbacks.metrics.tracked_metric_name=null"
    cfg = composed(*callbacks, "model/scheduler=plateau", "model.monitor=val/loss")
    assert (cfg.mode, cfg.callbacks.model_checkpoint.mode) == ("max", "max")
    assert [node.mode for node in (cfg.callbacks.early_stopping, cfg.callbacks.metrics, cfg.model.scheduler)] == [
        "min"
    ] * 3
    typed = composed(*callbacks[:1], "callbacks.early_stopping.mode=max", "model/scheduler=plateau", "mode=min")
    assert (typed.callbacks.early_stopping.mode, typed.model.scheduler.mode) == ("max", "min")


def test_the_preprocessing_is_that_of_the_weights():
    def chosen(*words: str) -> tuple[float, str]:
        data = composed(*words).data
        return data.eval_transform.box.share, data.interpolation

    assert chosen("model=efficientnet_lite0") == (0.875, "bicubic")
    assert chosen("model=resnet18") == (0.875, "bilinear")
    assert chosen("model=efficientnet_lite0", "data.fit=pad", "data.interpolation=bilinear") == (1.0, "bilinear")
    assert chosen("model=efficientnet_lite0", "data.eval_transform.box.share=0.9") == (0.9, "bicubic")
    if importlib.util.find_spec("timm") is not None:
        assert chosen("model=timm", "model.net.name=convnext_atto", "data.fit=crop") == (0.875, "bicubic")
        assert chosen("model=timm", "model.net.name=convnext_atto", "data.fit=squash") == (1.0, "bicubic")


def test_defaults_are_those_for_photographs():
    cfg = composed()
    assert (cfg.data.image_size, cfg.model.net.weights) == (224, "auto")
    assert cfg.trainer.accelerator == "auto"


@pytest.mark.parametrize("command", ["eval", "inference", "export", "serve"])
def test_commands_that_start_from_a_checkpoint_have_the_groups_of_train(command):
    register_checkpoint_options({"data": {"image_size": 8}, "trainer": {"precision": "bf16-mixed"}, "seed": 5})
    cfg = composed(command=command)
    assert set(composed()) - set(cfg) == set()
    assert (cfg.data, cfg.seed, cfg.task_name) == ({"image_size": 8}, 5, command)
    assert (cfg.trainer.precision, cfg.trainer.accelerator) == ("bf16-mixed", "auto")
    assert composed("data=digits", command=command).data.image_size == 16
    register_checkpoint_options({})


def test_folder_names(tmp_path):
    assert slug("lr_0.01 batch/size=[1,2]") == "lr_0.01_batch_size_1_2"
    assert len(slug("x" * 100)) == 60
    assert slug("../..") == ""
    names = [unique_slug(text) for text in ("a_b", "a b", "..", "日本語", "x" * 61)]
    assert names[0] == "a_b"
    assert len({*names}) == 5
    assert all(slug(name) == name != "" for name in names[:4])
    assert [Path(unused_folder(f"{tmp_path}/run")).name for _ in range(3)] == ["run", "run_2", "run_3"]


def test_small_functions():
    assert (best_mode("val/loss"), best_mode("val/acc")) == ("min", "max")
    assert (without_stage("val/loss/ce"), without_stage("acc")) == ("loss/ce", "acc")


@pytest.mark.parametrize("experiment", [option for group, option in OPTIONS if group == "experiment"])
def test_every_experiment_says_what_it_trains_on_and_what_it_reached(experiment):
    head = Path(CONFIG_DIR, "experiment", f"{experiment}.yaml").read_text().partition("defaults:")[0]
    assert f"# python src/train.py experiment={experiment}" in head
    assert "# Data: " in head
    assert "accuracy" in head
    assert "not measured" in head or ("n = " in head and "seconds" in head)

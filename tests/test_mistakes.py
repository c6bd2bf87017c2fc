"""Command lines that cannot be composed, beyond those of docs/errors.md; and some that a check must not refuse."""

import copy
import dataclasses
import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import SMALL
from omegaconf import OmegaConf
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from imago.callbacks.metrics import MetricsCallback
from imago.config.invocation import override_key, override_value
from imago.config.monitors import mode_warnings
from imago.config.own_files import replaced_defaults
from imago.data.contract import check_box, check_module, check_sets, failed_step
from imago.data.crops import FittedBox, WholeBox
from imago.data.images import Images, ImageSets
from imago.data.transforms import ImageTransform
from imago.errors import MissingFileError, UserError, message_of
from imago.model.contract import (
    check_log_probabilities,
    check_logits,
    check_loss,
    check_output,
    end_warning,
    failed_layer,
    make_net,
    wrong_width,
)
from imago.model.losses import CriterionsComposition
from imago.model.metrics import MetricsComposition
from imago.model.optimizers import make_optimizer, make_scheduler
from imago.randomness import seeded
from imago.train import main
from imago.training.build_data import make_data
from imago.training.own_parts import check_own_parts
from imago.training.start_weights import check_start_weights


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name='${nope}'"], "${nope} refers to an unknown setting: nope"),
        (["name='${oc.env:NOT_SET_HERE}'"], "The environment variable NOT_SET_HERE is not set"),
        (["+trainer.max_epochs=3"], "trainer.max_epochs already exists: remove the +"),
        (["experiment", "digits"], '"experiment digits" is not KEY=VALUE. Type experiment=digits'),
        (["data.data_dir=/a", "b/c"], "\"data.data_dir='/a b/c'\""),
        (["hydra.run.dirr=x"], "Unknown setting hydra.run.dirr (command line)."),
        (["-m", "seed=1,2", "hydra.sweeper.n_trials=3"], "It belongs to a search: add -m hparams_search=optuna"),
        (["deterministic=maybe"], "deterministic must be true or false, got maybe."),
        (
            ["debug=true"],
            "Unknown option debug=true. The options are default, fdr, limit, overfit, preflight, profiler.",
        ),
        (["experiment=1"], "Unknown option experiment=1. The options are digits, "),
        (["model.net._target_=my.Net", "model.net.width=32"], "Type +model.net.width=32."),
        (["model.optimizer._target_=my.Opt", "model.optimizer.beta=1"], "Type +model.optimizer.beta=1."),
        (
            ["model.criterions.criterions.own._target_=my.Loss"],
            "Type +model.criterions.criterions.own._target_=my.Loss.",
        ),
        (
            ["+model.criterions.criterions.own._target_=my.Loss", "model.criterions.criterions.own.gamma=2"],
            "Type +model.criterions.criterions.own.gamma=2.",
        ),
        (
            ["loss._target_=my.Loss", "epochs=2"],
            "+model.criterions.criterions.loss._target_=my.Loss trainer.max_epochs=2",
        ),
        (["model.criterions.conf._target_=my.Loss"], "Type +model.criterions.criterions.conf._target_=my.Loss. A loss"),
        (
            ["model.optimzer._target_=my.Opt", "model.optimzer.beta=1", "model.net._target_=my.Net", "epochs=2"],
            "model.optimizer._target_=my.Opt +model.optimizer.beta=1 model.net._target_=my.Net trainer.max_epochs=2",
        ),
        (
            ["model.net._target_=imago.model.module.DictModule", "model.net.compil=true"],
            "Type +model.net.compile=true. imago.model.module.DictModule takes net, ",
        ),
        (
            ["loss._target_=my.Loss", "loss.gamma=2"],
            "Type +model.criterions.criterions.loss.gamma=2. A loss goes below model.criterions.criterions.",
        ),
        (["callbacks=default,ema"], "Type 'callbacks=[default,ema]'. For a sweep add -m."),
        (["debug=fdr,overfit"], "Type 'debug=[fdr,overfit]'. For a sweep add -m."),
        (["callbacks=default_callbacks"], "Did you mean callbacks=default?"),
        (["experiment=mnist"], "experiment has no option mnist. Type experiment=example."),
        (["experiment=digits", "hparams_search=optuna"], "and this would be one. Add -m for the search."),
        (["experiment=hymenoptera"], "Did you mean data=hymenoptera?"),
        (["hydra/launcher=joblib"], "needs a package that is not installed: pip install hydra-joblib-launcher"),
        (
            ["-m", "experiment=glob(*)", "--cfg", "job"],
            "--cfg shows the settings of one run. Remove -m, and type one value in 'experiment=glob(*)'",
        ),
        (["callbacks.hook=my.Hook"], "type +callbacks.hook._target_=my.Hook"),
        (["strategy=my.Steps"], "For a class of your own, type strategy._target_=my.Steps"),
        (["model/optimizr=sgd"], "Unknown setting model/optimizr (command line). Did you mean model/optimizer?"),
        (["seed=1,2"], "seed=1,2: a comma separates the values of a sweep."),
        (["experiment=digits", "-cn", "train", "seed=x"], "seed must be a whole number, got x."),
        (["experiment=digits", "seed=%a"], "got %a. scripts/train.slurm replaces %a by the number of the task"),
        (
            ["model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}"],
            "To replace all settings of a group, type ++model.scheduler={…}",
        ),
    ],
)
def test_what_cannot_be_composed_is_explained(command, words, message):
    run = command("train", *words)
    assert run.exit_code == 1
    assert message in run.last_line + run.output
    assert "object_type" not in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.data_dir="], "No data was chosen"),
        (["report.splits=test"], "report.splits must be a list, for example 'report.splits=[test]'; got test."),
        (["+nonsense.thing=3"], "Unknown setting nonsense. The top-level settings are data, model"),
        (["+trainer.logger=false"], "trainer.logger is not supported: loggers have a config group. Type logger=csv"),
        (["+trainer.callbacks=[]"], "trainer.callbacks is not supported: callbacks have a config group."),
        (["+model.criterions.conf._target_=my.Loss"], "Type +model.criterions.criterions.conf._target_=my.Loss"),
        (
            ["+model.loss={_target_: my.Loss, gamma: 2}"],
            "A loss goes below model.criterions.criterions. Type '+model.criterions.criterions.loss={_target_: my.Loss",
        ),
        (
            ["+callbacks.metrics.metrics.top._target_=my.Top", "+callbacks.metrics.metrics.top.k=2"],
            "Type +callbacks.metrics.metrics.metrics.top._target_=my.Top +callbacks.metrics.metrics.metrics.top.k=2",
        ),
        (["+metrics.top._target_=my.Top"], "Type +callbacks.metrics.metrics.metrics.top._target_=my.Top"),
        (
            ["+data.train_transform.invert._target_=my.Invert"],
            "Type +data.train_transform.pixels.invert._target_=my.In",
        ),
        (
            ["+data.transform.invert._target_=my.Invert"],
            "A transform of single images goes below data.train_transform.",
        ),
        (
            ["+model.criterions.criterions.ce.weight=[1,2]"],
            "ce.weight must be a group with a _target_ or null, got [1, 2].",
        ),
        (["~strategy"], "strategy is missing. Remove ~strategy"),
        (["train=false", "test=false"], "train=false and test=false together leave nothing to do."),
        (["callbacks.early_stopping.monitor=val/acc_best"], "Type callbacks.early_stopping.monitor=val/acc: its best"),
        (["model.optimizer=sgd"], "model.optimizer holds several settings."),
        (["model.scheduler=sine"], "model.scheduler holds several settings."),
        (["model.optimizer=RMSprop"], "Type model/optimizer=rmsprop"),
        (["model.optimizer=NAdam"], "Type model/optimizer=adam model.optimizer._target_=torch.optim.NAdam."),
        (
            ["+model.net.init='lambda weight: 0'"],
            "model.net.init=lambda weight: 0 is text: a config holds no functions. Write it in a",
        ),
        (["model.net=my_nets.Net"], "got my_nets.Net. Type model.net._target_=my_nets.Net"),
        (["model.optimizer=torch.optim.SGD"], "Type model.optimizer._target_=torch.optim.SGD"),
        (["data.train_transform.box=my.Box"], "Type data.train_transform.box._target_=my.Box"),
        (["+callbacks.hook=my.Hook"], "Type +callbacks.hook._target_=my.Hook"),
        (
            ["model.criterions=torch.nn.MultiMarginLoss"],
            "Type model.criterions.criterions.ce=null "
            "+model.criterions.criterions.multi_margin_loss._target_=torch.nn.MultiMarginLoss",
        ),
    ],
)
def test_what_hydra_lets_through_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.error


@pytest.mark.parametrize(
    "words",
    [
        ["+data.train_transform.pixels.turn={_target_: torchvision.transforms.v2.RandomRotation, degrees: 15}"],
        ["+data.train_transform.pixels.erase={_target_: torchvision.transforms.v2.RandomErasing, value: random}"],
        ["model.scheduler._target_=torch.optim.lr_scheduler.PolynomialLR"],
        ["++model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}"],
        ["model.optimizer._target_=torch.optim.Adagrad"],
        ["+trainer.plugins=[]", "+trainer.inference_mode=false"],
        ["trainer.deterministic=warn", "trainer.limit_val_batches=2", "trainer.precision=bf16-mixed"],
    ],
)
def test_what_works_is_not_refused(train, words):
    run = train(*words, "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output


HEADER = "# @package _global_\n"
FILES = {
    "data: {image_size: 3}\n": "needs its package: the first line of such a file must be",
    f"# mine\n{HEADER}data: {{image_size: 3}}\nnonsense: 1\n": "needs its package",
    f"{HEADER}callbacks:\n  early_stoping: {{patience: 1}}\n": "odd.yaml, line 3). Did you mean "
    "callbacks.early_stopping?",
    f"{HEADER}logger:\n  wandb: {{tags: [a]}}\n": "odd.yaml, line 3). Type logger=wandb, or write "
    '"override /logger: wandb" in the defaults of the file.',
    f"{HEADER}data: {{train_transform: {{pixels: {{colour: {{brightness: 2}}}}}}}}\n": "pixels.colour has no _target_",
    f"{HEADER}data:\n\timage_size: 3\n": "line 3, column 1 is not valid YAML: found character",
    f"{HEADER}model:\n  optimizer:\n    _partial_: false\n": "model.optimizer needs _partial_: true",
    f"{HEADER}model: {{net: null}}\n": "odd.yaml, line 2). Choose a network, for example model=resnet18",
    f"{HEADER}callbacks:\n  mine: {{_target_: my.Mine, _partial_: true}}\n": "callbacks.mine: remove _partial_: true (",
    f"{HEADER}model:\n  net:\n    width: ???\n": "model.net.width has no value: it is ??? (in",
    f"{HEADER}callbacks:\n  _target_: my.MineOwn\n": "odd.yaml, line 3). Put a name of your choice above it, and "
    "indent the rest:\n  mine_own:\n    _target_: my.MineOwn",
    f"{HEADER}model: {{criterions: {{conf: {{_target_: my.Loss}}}}}}\n": "model.criterions.conf stands in the wrong "
    "place. A loss goes below model.criterions.criterions: it is model.criterions.criterions.conf there. (in",
    f"{HEADER}model:\n  net: null\n  _target_: my.Net\n  width: 3\n": "odd.yaml, line 4). A network goes below net:\n"
    "  defaults:\n    - default\n\n  net:\n    _target_: my.Net\n    _partial_: true\n    width: 3",
    f"{HEADER}seed: 1\nseed: 2\n": "line 3, column 1 is not valid YAML: found duplicate key seed",
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_mistakes_in_files_are_said_with_their_place(command, colours, tmp_path, monkeypatch, text, message):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "odd.yaml").write_text(text)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    run = command("train", f"--config-dir={tmp_path}/mine", "experiment=odd", f"data.data_dir={colours}", *SMALL)
    assert run.exit_code == 1
    assert message in run.output
    assert "odd.yaml" in run.output
    assert "Traceback" not in run.output


PLATEAU = "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau"
PASSED = "data.data_dir=/nowhere does not exist."
OPTION_FILES = [  # group, text of a file of one's own, message: paths are checked after all settings
    ("model", f"defaults: [resnet18]\nscheduler: {{{PLATEAU}, _partial_: true, factor: 0.1}}\n", PASSED),
    ("model", "defaults: [resnet18]\ncriterions: {criterions: {ce: {_target_: torch.nn.NLLLoss}}}\n", PASSED),
    ("model", f"defaults: [resnet18]\nscheduler: {{{PLATEAU}, warmup: 1}}\n", "odd.yaml, line 2)"),
    (
        "callbacks",
        "defaults:\n  - rich_progress_bar\n  - model_chekpoint\n",
        "line 2: callbacks has no option rich_progress_bar. The progress bar is callbacks.progress_bar, and "
        "callbacks.progress_bar=null removes it. The options are confusion_matrix, default, ",
    ),
    (
        "model",
        "_target_: src.models.mnist_module.MNISTLitModule\nnet: {_target_: src.models.components.simple_dense_net."
        "SimpleDenseNet, input_size: 9, lin1_size: 8, output_size: 10}\n",
        "odd.yaml, line 1): delete it (Imago has the LightningModule) and write\n  defaults:\n    - default",
    ),
    (
        "callbacks",
        "defaults:\n  - early_stopping\n",
        "callbacks.early_stopping waits for val/acc, which callbacks.",
    ),
    (
        "callbacks",
        "model_checkpoint: {monitor: val/acc}\n",
        'odd.yaml, line 1). Put "- model_checkpoint" into the defaults at the top of ',
    ),
    ("trainer", "max_epochs: 3\n", "odd.yaml lacks the defaults of the Trainer: devices, precision and limits. Put at"),
    (
        "strategy",
        "target_epsilon: 3\n",
        "lacks the defaults of a strategy, and its _target_. Put at its top\n  defaults:",
    ),
    ("data", "data_dir: photos\n", "crops, batches and workers. Put at its top\n  defaults:\n    - image_folder"),
    (
        "model",
        "defaults: [default]\n_target_: lightning.pytorch.LightningModule\n",
        "odd.yaml, line 2): delete it. Imago has the LightningModule, with the losses, metrics, optimizer and schedule "
        "of the config. Put its network below net: (docs/extend/network.md).",
    ),
    (
        "model",
        "defaults: [default]\nnet:\n  _target_: my.Net\n  output_size: 10\n",
        "because its remaining arguments are added later. Rename output_size to num_classes in my.Net, and delete "
        "output_size from model.net.",
    ),
    ("callbacks", "defaults:\n  - model_chekpoint\n", "line 2: callbacks has no option model_chekpoint. Did you mean"),
    ("model", "defaults:\n  - default\n  - override optimizer: adm\n", "line 3: model/optimizer has no option adm."),
    ("experiment", f"{HEADER}defaults:\n  - override /model: defualt\n", "line 3: model has no option defualt. Did"),
]


@pytest.mark.parametrize(("group", "text", "message"), OPTION_FILES)
def test_an_option_of_ones_own_is_checked(command, tmp_path, group, text, message):
    (tmp_path / "mine" / group).mkdir(parents=True)
    (tmp_path / "mine" / group / "odd.yaml").write_text(text)
    run = command("train", f"--config-dir={tmp_path}/mine", f"{group}=odd", "data.data_dir=/nowhere")
    assert run.exit_code == 1
    assert message in run.error
    assert not run.dir.exists()


def test_a_search_is_checked_before_its_study_is_made(command, tmp_path):
    (tmp_path / "mine" / "hparams_search").mkdir(parents=True)
    space = "model.optimizer.lr: interval(0.1, 1)\n      data.batchsize: choice(1, 2)\n      +model.optimizer.eps: 1"
    (tmp_path / "mine" / "hparams_search" / "own.yaml").write_text(
        f"{HEADER}optimized_metric: val/acc_best\nhydra:\n  sweeper:\n    params:\n      {space}\n"
    )
    run = command("train", f"--config-dir={tmp_path}/mine", "-m", "experiment=digits", "hparams_search=own")
    assert run.error.replace(f"{tmp_path}/", "").splitlines() == [
        "mine/hparams_search/own.yaml, line 7: Unknown setting data.batchsize. Did you mean data.batch_size?",
        "optimized_metric=val/acc_best (in mine/hparams_search/own.yaml, line 2) is the best val/acc so far, which "
        "never gets worse. Type optimized_metric=val/acc: its best value counts already.",
    ]


def test_what_several_files_and_words_lack_is_said_at_once(command, tmp_path):
    files = {
        "trainer": "max_epochs: 3\n",
        "data": "data_dir: photos\n",
        "model": "net: {_target_: my_nets.Net, _partial_: true}\n",
        "callbacks": "defaults:\n  - default\nearly_stoping: {patience: 3}\n",
    }
    for group, text in files.items():
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / "odd.yaml").write_text(text)
    words = [*(f"{group}=odd" for group in files), "seed=-1", "+stray._target_=my.Stray"]
    run = command("train", f"--config-dir={tmp_path}/mine", *words, "monitor=acc")
    messages = [f"{group}/odd.yaml lacks the defaults of" for group in ("model", "data", "trainer")]
    messages += [
        "callbacks.early_stoping has no _target_",
        "seed must be",
        "monitor must name",
        "Unknown setting stray",
    ]
    assert [message for message in messages if message not in run.error] == []
    assert not run.dir.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Unknown option model=odd. mine/model/odd.yaml: add --config-dir mine"),
        (["--config-dir=mine"], "mine/model/odd.yaml lacks the defaults of all models"),
        (["--config-dir=mine", "model/optimizer=adamw"], "Put at its top\n  defaults:\n    - default"),
        (["--config-dir=mine", "+model/optimizer=adamw"], "Put at its top\n  defaults:\n    - default"),
    ],
)
def test_what_the_file_of_a_model_lacks_is_said(command, tmp_path, monkeypatch, words, message):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "odd.yaml").write_text("net: {_target_: my_nets.Net, _partial_: true}\n")
    monkeypatch.chdir(tmp_path)
    run = command("train", "experiment=digits", "model=odd", *words)
    assert run.exit_code == 1
    assert message in run.output
    assert "params" not in run.output


def test_default_callbacks_are_not_replaced_in_silence(command, tmp_path, digits_config):
    """A list adds to them, and what a single option leaves out is said before anything is trained."""
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    (tmp_path / "mine" / "callbacks" / "own.yaml").write_text("own: {_target_: lightning.pytorch.Callback}\n")
    added = command("train", f"--config-dir={tmp_path}/mine", "experiment=digits", "+callbacks=own")
    assert "callbacks=default is chosen already. Type 'callbacks=[default,own]' for both" in added.output
    cfg, invocation = copy.deepcopy(digits_config[0]), digits_config[1].with_choice("callbacks", "own")
    assert not list(replaced_defaults(cfg, invocation))  # it has all of them
    for name in ("metrics", "model_checkpoint"):
        del cfg.callbacks[name]
    (warning,) = replaced_defaults(cfg, dataclasses.replace(invocation, overrides=("callbacks=own",)))
    assert warning == (
        "callbacks=own replaces the default callbacks: there will be no metrics such as val/acc, no best.ckpt. Type "
        "'callbacks=[default,own]' to add to them."
    )
    (of_file,) = replaced_defaults(cfg, invocation)
    assert 'Write "override /callbacks: [default,own]" in its file' in of_file
    cfg.callbacks = None  # as with debug=fdr
    assert not list(replaced_defaults(cfg, invocation))
    cfg.callbacks = {}
    for option in ("none", "['default', 'own']"):
        assert not list(replaced_defaults(cfg, invocation.with_choice("callbacks", option)))


OWN = """
from imago.data import ImageDataModule
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.optim import SGD
from torchmetrics import Metric


class Net(nn.Linear):
    def __init__(self, num_classes, width):
        super().__init__(width, num_classes)


class NoClasses(nn.Linear):
    def __init__(self, width=1):
        super().__init__(width, width)


def loaded(num_classes):
    torch.manual_seed(1)
    return nn.Linear(2, num_classes)


class Masked(nn.Module):
    def __init__(self, num_classes):
        super().__init__()

    def forward(self, x, mask): ...


class Unwired(nn.Module):
    def __init__(self, num_classes):
        super().__init__()


class Loss(nn.Module):
    def forward(self, logits): ...


class Two(nn.Module):
    def forward(self, pred, y): ...


class Hook(Callback):
    def __init__(self, least=1): ...

    def setup(self, trainer, pl_module, stage): ...

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx): ...

    def on_worst_image(self, path): ...


class Signals(Callback):
    def setup(self, trainer, module, phase): ...

    def on_train_batch_end(self, trainer, pl_module, outputs, batch): ...

    def on_train_epoch_ends(self, trainer, pl_module): ...

    def on_validation_ended(self): ...

    def teardown(self, trainer, pl_module, stage):
        self.on_validation_ended()


class Step(SGD):
    def step(self): ...


class Stray:
    pass


class Box:
    def __call__(self, height, width): ...


class Pair:
    def __call__(self, image, label): ...


class Lightning(LightningModule):
    def __init__(self, net=None, **kwargs):
        super().__init__()


class Top(Metric):
    def __init__(self, k=1):
        super().__init__()

    def update(self, preds, target): ...

    def compute(self): ...


class PerClass(Top):
    def __init__(self, num_classes):
        super().__init__()


class Baseless(Top):
    def __init__(self, k=1):
        self.k = k


def top(preds, target): ...


class Whole(ImageDataModule):
    def __init__(self, seed=1, **loading):
        super().__init__(None, **loading)


class Data(ImageDataModule):
    def __init__(self, val_ratio=0.1, seed=1, **loading):
        super().__init__(None, **loading)
"""
METRIC = "callbacks.metrics.metrics.metrics.own={_target_: own_parts"
LOSS = "model.criterions.criterions.own={_target_: own_parts.Loss"
HOOK = "callbacks.hook={_target_: own_parts"
CE = "model.criterions.criterions.ce._target_"
SCHEDULER = "model.scheduler={_target_: %s, _partial_: true}"


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import no_such_package_here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("own_parts", "own_broken"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def digits_config():
    """The config and invocation of `experiment=digits`."""
    words = ("experiment=digits", "hydra.run.dir=.")

    def resolved(cfg, invocation):
        OmegaConf.set_struct(cfg, False)
        OmegaConf.resolve(cfg)
        return cfg, invocation

    return main._compose(words, resolved)


def with_words(composed, words):
    """The config with further overrides, without composing it anew."""
    cfg, invocation = copy.deepcopy(composed[0]), composed[1]
    for word in words:
        OmegaConf.update(cfg, override_key(word), yaml.safe_load(override_value(word)), force_add=True)
    return cfg, dataclasses.replace(invocation, overrides=(*invocation.overrides, *words))


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [f"+{LOSS}}}"],
            "own_parts.Loss.forward takes logits, but is called with input, target. Map keys",
        ),
        ([f"+{LOSS}}}"], "below model.criterions:\n  mapping:\n    own: {logits: logits}"),
        ([f"+{LOSS}}}", "model.criterions.mapping={own: {label: logit}}"], "criterions.mapping.own: own_parts.Loss."),
        ([f"+{LOSS}, gamma: 2}}"], "criterions.own.gamma is not an argument of own_parts.Loss. It takes no arguments."),
        (
            [f"+{HOOK}.Hok}}"],
            "hook._target_=own_parts.Hok: own_parts has no Hok. Did you mean own_parts.Hook?",
        ),
        ([f"+{HOOK}.Hook, leest: 2}}"], "Did you mean callbacks.hook.least=2?"),
        ([f"+{HOOK}.Stray}}"], "own_parts.Stray must inherit from lightning.pytorch.Callback"),
        (["+callbacks.hook={_target_: own_prts.Hook}"], "and none is installed. Did you mean own_parts?"),
        (["+callbacks.hook={_target_: Hook}"], "a _target_ names its module too, for example my_module.Hook"),
        (["+callbacks.hook={_target_: own_broken.Hook}"], "own_broken cannot be imported. ModuleNotFoundError"),
        (["+callbacks.hook={_target_: own_broken.Hook}"], "(own_broken.py, line 1, in <module>)"),
        (["model.net._target_=torch.nn.Lineer"], "torch.nn has no Lineer. Did you mean torch.nn.Linear"),
        (["model.net._target_=own_parts.NoClasses"], "own_parts.NoClasses does not take num_classes"),
        (["model.net._target_=own_parts.Net"], "own_parts.Net needs width. Type +model.net.width=VALUE"),
        (["model._target_=own_parts.Net"], "must inherit from imago.model.DictModule. A network goes below net:"),
        ([f"+{LOSS}, _partial_: true}}"], "criterions.own: remove _partial_: true. Nothing is added to the arguments"),
        (
            ["+model.criterions.criterions.own={_target_: torch.nn.functional.nll_loss}"],
            "nll_loss is a function, and needs _partial_: true: input, target are added when it is called",
        ),
        (
            ["+data.train_transform.pixels.own={_target_: own_parts.Stray, _partial_: true}"],
            "data.train_transform.pixels.own: remove _partial_: true",
        ),
        (
            ["+callbacks.top={_target_: own_parts.Top}"],
            "is a metric, and does not go there. A metric goes below callbacks.metrics.metrics.metrics. Type "
            "+callbacks.metrics.metrics.metrics.top._target_=own_parts.Top",
        ),
        ([f"+{METRIC}.Top, _partial_: true}}"], "own_parts.Top does not take num_classes. Remove _partial_: true"),
        ([f"+{METRIC}.PerClass}}"], "own_parts.PerClass needs _partial_: true, because num_classes is added later"),
        (["data._target_=own_parts.Data"], "own_parts.Data does not take data_dir, split_file, test_ratio, exclude, "),
        (
            ["+data.train_transform.pixels.own={_target_: own_parts.Pair}"],
            "pixels.own: own_parts.Pair.__call__ takes image, label, but is called with one image.",
        ),
        (
            ["+data.eval_transform.batch.own={_target_: own_parts.Stray}"],
            "own_parts.Stray has no __call__, which gets the batch.",
        ),
        (["data._target_=own_parts.Data"], "Its file begins with defaults: [default], which has what all kinds share"),
        (
            ["callbacks.metrics.metrics.mapping={acc: {logits: input}}"],
            "update takes preds, target, but is called with input.",
        ),
        (
            ["model.net._target_=own_parts"],
            "own_parts is a module, and a _target_ is a class or a function in it. It has",
        ),
        (
            ["model.net._target_=own_parts.Masked"],
            "Masked.forward takes x, mask, but is called with the images. model.f",
        ),
        (
            ["model.net._target_=own_parts.Unwired"],
            "model.net: own_parts.Unwired has no forward, which gets the images.",
        ),
        (
            ["data.train_transform.box._target_=own_parts.Stray"],
            "Stray has no __call__, which gets the height and the w",
        ),
        (["model.optimizer._target_=own_parts.Step"], "own_parts.Step.step must be step(self, closure=None), and call"),
        (
            [SCHEDULER % "torch.optim.lr_scheduler.StepLR"],
            "model.scheduler: torch.optim.lr_scheduler.StepLR needs step_s",
        ),
        (
            [SCHEDULER % "torch.optim.lr_scheduler.LambdaLR"],
            "torch.optim.lr_scheduler.LambdaLR needs lr_lambda. Type +mod",
        ),
        (
            [f"+{HOOK}.Signals}}"],
            "setup is called with trainer, pl_module, stage. Write def setup(self, trainer, pl_module, s",
        ),
        (
            [f"+{HOOK}.Signals}}"],
            "on_train_batch_end is called with trainer, pl_module, outputs, batch, batch_idx. Write def",
        ),
        (
            [f"+{HOOK}.Signals}}"],
            "own_parts.Signals.on_train_epoch_ends would never be called: Lightning has no such hook. Did",
        ),
        (
            [f"+{LOSS.replace('Loss', 'Two')}}}"],
            "below model.criterions:\n  mapping:\n    own: {logits: pred, label: y}",
        ),
        (
            [f"{CE}=torch.nn.BCEWithLogitsLoss", "+model.criterions.mapping.ce={logits: input, label: target}"],
            "takes a target of the shape of the logits, (images, classes), and label",
        ),
        ([f"{CE}=torch.nn.MSELoss"], f"Type {CE}=torch.nn.CrossEntropyLoss, or write a loss of one-hot labels"),
        (
            [f"+{METRIC}.top}}"],
            "metrics.own: own_parts.top is a function. A metric is a class that inherits from torchmetrics",
        ),
        ([f"+{METRIC}.Baseless}}"], "metrics.own: own_parts.Baseless needs super().__init__() in its __init__"),
        (
            [f"+{METRIC.replace('own_parts', 'torchmetrics.classification.BinaryAUROC')}}}"],
            "BinaryAUROC does not fit the logits, which have a column per class. Type +callbacks.metrics.metrics.",
        ),
        (
            [f"+{METRIC.replace('own_parts', 'torchmetrics.MatthewsCorrCoef')}, _partial_: true}}"],
            "own._target_=torchmetrics.classification.MulticlassMatthewsCorrCoef",
        ),
        (
            [f"+{METRIC.replace('own_parts', 'torchmetrics.classification.MulticlassFBetaScore')}, _partial_: true}}"],
            "own: torchmetrics.classification.MulticlassFBetaScore needs beta. Type +",
        ),
    ],
)
def test_parts_of_ones_own_are_checked_before_they_are_made(digits_config, words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_own_parts(*with_words(digits_config, words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], []),
        (["mode=min"], ["mode=min, but val/acc is better the higher it is. Leave mode out, or type monitor="]),
        (
            ["callbacks.early_stopping.mode=min"],
            ["callbacks.early_stopping.mode=min, but val/acc is better the"],
        ),
        (["model.scheduler.mode=min"], ["model.scheduler.mode=min, but val/acc is better the higher it is. Leave"]),
        (["model.scheduler.mode=min", "model.monitor=val/loss"], []),
        (["model.scheduler.mode=max", "model.monitor=val/loss"], ["model.scheduler.mode=max, but val/loss is better"]),
        (["callbacks.early_stopping.mode=min", "callbacks.early_stopping.monitor=val/ece"], []),  # one's own
    ],
)
def test_a_mode_against_its_metric_is_said(digits_config, words, said):
    warnings = list(mode_warnings(*with_words(digits_config, words)))
    assert len(warnings) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(warnings, said, strict=True))


@pytest.mark.usefixtures("own_parts")
def test_parts_that_fit_are_not_refused(digits_config):
    fitting = [f"+{LOSS}}}", "model.criterions.mapping={own: {logits: logits}}", f"+{HOOK}.Hook, least: 2}}"]
    fitting += ["model.net._target_=own_parts.Net", "+model.net.width=3"]
    fitting += ["data.train_transform.box._target_=own_parts.Box"]
    fitting += [f"+{METRIC.replace('own_parts', 'torchmetrics.Accuracy')}, task: multiclass, num_classes: 10}}"]
    check_own_parts(*with_words(digits_config, fitting))
    wired = [f"{CE}=torch.nn.MSELoss", "model.criterions.mapping={ce: {logits: input, one_hot: target}}"]
    wired += ["model.net._target_=own_parts.Masked", "model.forward_fn={a: b}"]
    wired += [f"+{METRIC.replace('own_parts', 'torchmetrics.classification.BinaryAUROC')}}}"]
    wired += ["callbacks.metrics.metrics.mapping={own: {score: preds, label: target}}"]
    check_own_parts(*with_words(digits_config, wired))
    replaced = ["++model.criterions.criterions.ce={_target_: torch.nn.NLLLoss}"]  # label_smoothing was of the former
    check_own_parts(*with_words(digits_config, replaced))
    cfg, invocation = with_words(digits_config, [])
    cfg.data = {"_target_": "own_parts.Whole", "val_ratio": 0.1}  # that of all files of data
    check_own_parts(cfg, invocation)
    assert "val_ratio" not in cfg.data


def test_a_constructor_that_raises_is_shown_with_its_line_and_that_of_the_config(train, own_parts, monkeypatch):
    raises = "class Raises(Net):\n    def __init__(self, num_classes):\n        super().__init__(1 // 0, num_classes)\n"
    (own_parts / "own_parts.py").write_text(OWN + raises)
    (own_parts / "mine" / "model").mkdir(parents=True)
    (own_parts / "mine" / "model" / "raises.yaml").write_text(
        "defaults: [default]\nnet:\n  _target_: own_parts.Raises\n  _partial_: true\n"
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    run = train("--config-dir=mine", "model=raises")
    line = len((own_parts / "own_parts.py").read_text().splitlines())
    places = f"while creating model.net (in mine/model/raises.yaml, line 2); own_parts.py, line {line}, in __init__"
    assert run.error == f"ZeroDivisionError: integer division or modulo by zero\n({places})"


def test_outputs_of_the_wrong_kind_are_named():
    batch = {"logits": torch.zeros(4, 7), "label": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(UserError, match=r"MyNet returns 7 columns of logits .* the data have 3 classes"):
        check_logits("MyNet", batch, 3)
    with pytest.raises(UserError, match=r"MyNet returns logits of shape \(4, 7, 1\) for 4 images and 7 classes"):
        check_logits("MyNet", batch | {"logits": torch.zeros(4, 7, 1)}, 7)
    check_logits("MyNet", batch, 7)
    with pytest.raises(UserError, match="Identity returns a tuple. A network must return one tensor"):
        check_output(nn.Identity(), (batch["logits"], None))
    with pytest.raises(UserError, match=r"The loss has the shape \(4,\)"):
        check_loss(torch.zeros(4, requires_grad=True))
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss(), "own": nn.CrossEntropyLoss(reduction="none")})
    with pytest.raises(UserError, match=r"criterions.own returns a tensor of shape \(4,\). A loss returns one number"):
        losses(batch)
    with pytest.raises(UserError, match="does not depend on the weights"):
        check_loss(torch.zeros(()))
    with pytest.raises(UserError, match=r"criterions.own returns a float. .* over the batch. Leave out .item\(\)"):
        CriterionsComposition({"own": lambda input, target: input.mean().item()})(batch)
    with pytest.raises(RuntimeError, match="multi-target not supported") as caught:
        CriterionsComposition({"ce": nn.CrossEntropyLoss()})(batch | {"label": torch.zeros(4, 3)})
    said = "(while computing model.criterions.criterions.ce of input float32 (4, 7), target float32 (4, 3);"
    assert said in message_of(caught.value)


def test_what_ones_own_functions_return_is_checked():
    weights, words = nn.Parameter(torch.zeros(1)), r"its _target_ returns None \(is a return missing\?\)"
    with pytest.raises(UserError, match=rf"model.net: {words}. It must return a torch.nn.Module"):
        make_net(lambda num_classes: None, 3)
    listed = nn.Sequential(nn.Linear(2, 3))
    listed.again = list(listed)  # registered, too
    make_net(lambda num_classes: listed, 3)
    listed.layers = [nn.Linear(3, 3), nn.ReLU()]
    with pytest.raises(UserError, match=r"Sequential.layers is a list of layers, which are neither trained nor saved"):
        make_net(lambda num_classes: listed, 3)
    trainer = SimpleNamespace(max_epochs=1, gradient_clip_val=None)
    with pytest.raises(UserError, match=rf"model.optimizer: {words}. It must return an optimizer"):
        make_optimizer(lambda parameters: None, [weights], weights.device, trainer)
    with pytest.raises(UserError, match=rf"model.scheduler: {words}. It must return a scheduler"):
        make_scheduler(lambda optimizer: None, torch.optim.SGD([weights]), "epoch", trainer, "val/loss")
    with pytest.raises(UserError, match=r"train_transform.box returns a tuple. It must return imago.data.CropBox\("):
        check_box("data.train_transform.box", FittedBox(lambda height, width: (0, 0, height, width), (8, 8), "crop"))
    check_box("data.train_transform.box", FittedBox(WholeBox(), (8, 8), "crop"))


@pytest.mark.usefixtures("own_parts")
def test_frozen_layers_of_a_network_of_ones_own_are_not_those_that_were_drawn():
    run = SimpleNamespace(resume_from=None, invocation=SimpleNamespace(choices={}))
    model = SimpleNamespace(net=nn.Linear(2, 3), class_names="abc", head={"bias"}, replaced_norms=[])
    for target, drawn in (("own_parts.Net", True), ("own_parts.loaded", False)):
        net = {"_target_": target, "_partial_": True} | ({"width": 2} if drawn else {})
        cfg = OmegaConf.create({"ckpt_path": None, "model": {"net": net, "freeze": "backbone"}})
        if drawn:
            with pytest.raises(
                UserError, match="model.freeze=backbone needs pretrained weights: Linear starts from scr"
            ):
                check_start_weights(cfg, run, model)
        else:
            with seeded(0):
                torch.manual_seed(1)
                model.net = nn.Linear(2, 3)
            check_start_weights(cfg, run, model)


def test_outputs_that_are_no_logits_are_said():
    logits = torch.tensor([[3.0, -1.0, 0.5]], requires_grad=True) * 1
    assert end_warning("MyNet", logits) is None
    assert end_warning("MyNet", logits.log_softmax(dim=1)) is None  # cross-entropy leaves it as it is
    assert end_warning("MyNet", logits.softmax(dim=1)).startswith(
        "MyNet ends with a softmax, but what a network returns"
    )
    assert end_warning("MyNet", logits.sigmoid()).endswith("Return the values before sigmoid")
    for loss in (nn.NLLLoss(), partial(nn.functional.nll_loss)):
        check_log_probabilities({"ce": loss}, {}, logits.log_softmax(dim=1))
        check_log_probabilities({"ce": loss}, {"ce": {"log_p": "input", "label": "target"}}, logits)
        with pytest.raises(
            UserError, match=r"needs log-probabilities.* Type model.criterions.criterions.ce._target_=torch"
        ):
            check_log_probabilities({"ce": loss}, {}, logits)
    check_log_probabilities({"ce": nn.CrossEntropyLoss()}, {}, logits)


def test_what_a_batch_cannot_be_used_for_is_found_before_training():
    def entropy(logits):
        return logits.mean()

    batch = {"logits": torch.zeros(4, 3), "label": torch.zeros(4, dtype=torch.int64), "prediction": torch.zeros(4)}
    losses = CriterionsComposition({"own": entropy}, mapping={"own": {"input": "logits"}})
    with pytest.raises(UserError, match=r"mapping.own: The batch has no input; .* Here it is {logits: logits}"):
        losses(batch)
    mapping = {"acc": {"preds": "logits", "target": "label"}}
    acc = partial(MulticlassAccuracy, average="micro")
    callback = MetricsCallback(partial(MetricsComposition, {"acc": acc}, mapping))
    callback.setup(SimpleNamespace(strategy=SimpleNamespace(root_device="cpu")), SimpleNamespace(class_names="abc"), "")
    with pytest.raises(UserError, match=r"mapping.acc: The batch has no preds, target; it has label, logits"):
        callback.try_batch(batch)

    class Own(Metric):
        def update(self, preds, target): ...

        def compute(self):
            return 1.0

    metrics = MetricsComposition({"own": Own()}, {}, 3)
    metrics.update(batch)
    with pytest.raises(UserError, match=r"metrics.own: compute returns a float. It must return a tensor"):
        metrics.check_values()
    metrics = MetricsComposition({"own": MulticlassAUROC(num_classes=3)}, {}, 3)
    with pytest.raises(ValueError, match="Expected the shape of `preds`") as caught:
        metrics.update(batch | {"label": torch.zeros(5, dtype=torch.int64)})
    said = "(while updating callbacks.metrics.metrics.metrics.own with preds float32 (4, 3), target int64 (5,)"
    assert said in message_of(caught.value)
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError) as caught:
        net(torch.zeros(1, 2, 2))
    assert failed_layer(net, caught.value) == "Sequential.1 (Linear)"
    assert wrong_width("Sequential.1 (Linear)", caught.value, (1, 1, 2, 2)).startswith(
        "Sequential.1 (Linear) takes 5 values, and an image here has 1 * 2 * 2 = 4. Type model.net.in_features=4,"
    )
    assert wrong_width("Sequential.1 (Linear)", caught.value, (1, 3, 4, 4)) is None  # not of a whole image


@pytest.mark.parametrize(
    ("stage", "other", "step", "message"),
    [
        (
            "pixels",
            "batch",
            lambda batch: batch["image"],
            r"pixels.own, which gets one image, .*; a step of batches goes",
        ),
        ("batch", "pixels", lambda image: 255 - image, r"batch.own, which gets the batch, .*; a step of single images"),
    ],
)
def test_a_transform_in_the_wrong_stage_is_named(stage, other, step, message):
    transform = ImageTransform(lambda height, width: (0, 0, height, width), **{stage: {"own": step}})
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises((IndexError, TypeError)) as caught, failed_step("data.train_transform", stage, other):
        transform.to_batch([transform.resized(image, 4)])
    assert re.search(rf"while running data.train_transform.{message}", message_of(caught.value))


def test_data_of_ones_own_break_no_contract_unnoticed():
    class Own(Images):
        paths, labels, image = ["a", "b"], [0, 1], torch.zeros(3, 4, 4, dtype=torch.uint8)

        def read(self, index):
            return self.image

        def select(self, indices):
            return self

    sets = ImageSets("here", ["x", "y"], {"train": Own()})
    check_sets(sets)
    for name, value, message in [
        (
            "image",
            torch.zeros(4, 4, 3, dtype=torch.uint8),
            r"read returns uint8 \(4, 4, 3\). It must be uint8 \(3, height",
        ),
        ("image", torch.zeros(3, 4, 4), r"read returns float32 \(3, 4, 4\)"),
        ("image", "a.png", "read returns a str"),
        ("labels", ["x", "y"], "has the label 'x'. A label is the position .* from 0 to 1. Write class_names.index"),
        ("labels", ["0", "1"], r"has the label '0'. .* Write int\(label\)"),
        ("labels", [1, 2], "has the label 2. .* from 0 to 1. Write label - 1"),
        ("labels", [0.0, 1.0], "has the label 0.0. .* Write int"),
        ("labels", [0], "has 2 paths and 1 labels"),
    ]:
        images = Own()
        setattr(images, name, value)
        with pytest.raises(UserError, match=message):
            check_sets(ImageSets("here", ["x", "y"], {"train": images}))
    for names, split, message in [
        (["x", "y"], "trian", "Unknown split 'trian' of here. Did you mean 'train'"),
        ([0, 1], "train", "class name 0 of here is no text"),
        (["x", "x"], "train", "class name 'x' of here stands in the list 2 times"),
    ]:
        with pytest.raises(UserError, match=message):
            ImageSets("here", names, {split: Own()})
    with pytest.raises(MissingFileError, match=r"^data.file=nowhere.csv does not exist\."):
        make_data(OmegaConf.create({"_target_": "builtins.open", "file": "nowhere.csv"}))
    with pytest.raises(UserError, match=r"object does not call super\(\).__init__\(sets, \*\*loading\)"):
        check_module(object())

"""Words of other trainers: what is printed for them composes, and docs/coming_from.md says the same (`make docs`)."""

import importlib.util
import os
import random
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import REPO, write_mnist
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from test_configs import composed

from imago.cli.experiment_words import FILES, check_file
from imago.cli.findings import Typed
from imago.cli.typed_words import check_words
from imago.cli.word_hints import examine
from imago.config.foreign_words import EXAMPLES, meaning
from imago.config.hints import Hint
from imago.config.root import CONFIG_DIR, Root
from imago.config.schema import problems, shipped
from imago.errors import UserError
from imago.train import main

PAGE = REPO / "docs" / "coming_from.md"
SETTINGS = [entry.name for entry in fields(Root)]
PROJECTS = {
    "Ultralytics": (
        *("data=PATH", "epochs=5", "imgsz=64", "batch=16", "workers=4", "device=0", "device=0,1", "device=cpu"),
        *("optimizer=SGD", "lr0=0.01", "momentum=0.9", "weight_decay=0.01", "cos_lr=True", "label_smoothing=0.1"),
        *("patience=5", "pretrained=False", "freeze=10", "dropout=0.2", "augment=False", "fliplr=0.5", "cache=ram"),
        *("amp=True", "fraction=0.5", "time=00:01:00:00", "resume=True", "project=runs", "exist_ok=True"),
        *("model=yolo11n-cls.pt", "plots=True", "val=True"),
    ),
    "timm": (
        *("--data-dir PATH", "--model resnet50", "--pretrained", "--num-classes 10", "--img-size 64", "--epochs 5"),
        *("-b 64", "-j 4", "--lr 0.1", "--opt sgd", "--momentum 0.9", "--weight-decay 0.01", "--sched cosine"),
        *("--warmup-epochs 3", "--smoothing 0.1", "--clip-grad 1.0", "--grad-accum-steps 2", "--hflip 0.5"),
        *("--crop-pct 0.9", "--mixup 0.2", "--model-ema", "--amp", "--initial-checkpoint best.ckpt", "--log-wandb"),
        *("--eval-metric top1", "--output runs/first", "--experiment first"),
    ),
    "fastai": (
        *("path=PATH", "arch=resnet34", "bs=64", "size=64", "n_epoch=5", "lr_max=0.001", "wd=0.01", "valid_pct=0.2"),
        *("pretrained=True", "freeze_epochs=1", "n_out=10", "to_fp16=True", "metrics=accuracy", "lr_find=True"),
    ),
    "Keras": (
        *("directory=PATH", "epochs=5", "batch_size=64", "image_size=64", "validation_split=0.2", "optimizer=adam"),
        *("learning_rate=0.001", "loss=categorical_crossentropy", "metrics=accuracy", "weights=imagenet"),
        *("trainable=False", "class_weight=balanced", "clipnorm=1.0", "shuffle=True", "verbose=1"),
    ),
    "Hugging Face": (
        *("--train_dir PATH", "--model_name_or_path microsoft/resnet-50", "--num_train_epochs 5"),
        *("--per_device_train_batch_size 64", "--per_device_eval_batch_size 64", "--learning_rate 0.001"),
        *("--weight_decay 0.01", "--lr_scheduler_type cosine", "--warmup_ratio 0.1", "--optim adamw_torch", "--fp16"),
        *("--gradient_accumulation_steps 2", "--dataloader_num_workers 4", "--train_val_split 0.2", "--max_steps 100"),
        *("--metric_for_best_model eval_accuracy", "--report_to none", "--output_dir runs/first", "--do_train"),
        *("--do_eval", "--save_strategy epoch", "--resume_from_checkpoint True"),
    ),
    "lightning-hydra-template": (
        *("datamodule.batch_size=64", "data_dir=PATH", "optimizer.lr=0.1", "model.optimizer=sgd", "trainer.gpus=1"),
        *("datamodule=mnist", "trainer=ddp_spawn", "strategy=ddp", "logger=none", "logger=many_loggers"),
        *("hparams_search=mnist_optuna", "callbacks=rich_progress_bar", "extras.print_config=False", "tags=mnist"),
        *("trainer.resume_from_checkpoint=RUN",),
    ),
    "Opacus": (
        *("make_private=True", "target_epsilon=3", "target_delta=1e-5", "max_grad_norm=1.0", "noise_multiplier=1.1"),
        *("max_physical_batch_size=16", "secure_mode=True", "accountant=rdp", "grad_sample_mode=hooks"),
        *("poisson_sampling=True",),
    ),
    "ml_core, nnClassification": (
        *("model.architecture=resnet50", "model.num_classes=10", "n_classes=10", "num_epochs=5", "batch_size=64"),
        *("optimizer.name=sgd", "optimizer.lr=0.1", "scheduler.step_size=7", "scheduler.gamma=0.1", "gpus=1"),
        *("augment=false", "data_dir=PATH", "run_dir=runs/first", "pretrained=true"),
    ),
}
INTRODUCTION = """# Coming from other trainers

Settings of other trainers, and what Imago calls them. The tests write this page from the table in
`src/imago/config/foreign_words.py` (`make docs`), which the error messages read, too. If you type a word of the left
column, the message has that of the right one, with your value. Settings that Imago calls the same are left out.

Imago's commands take `KEY=VALUE` without dashes. `GROUP=OPTION` chooses a file in `configs/GROUP/`.
"""

BEFORE = """# @package _global_
defaults:
  - override /datamodule: mnist.yaml
  - override /model: mnist.yaml
  - override /callbacks: default.yaml
  - override /trainer: default.yaml

tags: ["mnist", "simple_dense_net"]
seed: 12345
trainer:
  min_epochs: 10
  max_epochs: 10
  gradient_clip_val: 0.5
model:
  optimizer:
    lr: 0.002
  net:
    lin1_size: 128
    lin2_size: 256
    lin3_size: 64
datamodule:
  batch_size: 64
logger:
  wandb:
    tags: ${tags}
    group: "mnist"
"""
AFTER = """# @package _global_
defaults:
  - override /data: mnist            # was /datamodule
  - override /model: mnist
  - override /callbacks: default
  - override /trainer: default

tags: ["mnist", "simple_dense_net"]  # a logger takes them from here
seed: 12345
trainer:
  min_epochs: 10
  max_epochs: 10
  gradient_clip_val: 0.5
model:
  optimizer:
    lr: 0.002
  net:
    hidden: [128, 256, 64]           # was lin1_size, lin2_size, lin3_size
data:                                # was datamodule
  batch_size: 64
"""
MODEL_AFTER = """defaults:
  - default                               # was _target_: src.models.mnist_module.MNISTLitModule
  - override optimizer: adam              # was optimizer: _target_: torch.optim.Adam, _partial_: true
  - override scheduler: plateau           # was scheduler: _target_: torch.optim.lr_scheduler.ReduceLROnPlateau

optimizer:
  lr: 0.001
  weight_decay: 0.0
scheduler:
  factor: 0.1
  patience: 10
monitor: val/loss                         # was in configure_optimizers; the schedule follows it
net:
  _target_: imago.model.SimpleDenseNet    # was src.models.components.simple_dense_net.SimpleDenseNet
  _partial_: true                         # the number of classes comes from the data: no output_size
  in_features: 784                        # was input_size
  hidden: [64, 128, 64]                   # was lin1_size, lin2_size, lin3_size
compile: false
"""
FILES_OF_THE_TEMPLATE = f"""
An experiment file of the template, which stands in `configs/experiment/`:

```yaml
{BEFORE}```

The same experiment for Imago. `--config-dir FOLDER experiment=NAME` chooses `FOLDER/experiment/NAME.yaml`, so that your
files stay in your own folder. A logger is chosen on the command line (`logger=wandb logger.wandb.group=mnist`) or by
`override /logger: wandb` in the defaults, and only then has settings.

```yaml
{AFTER}```

Their `model/mnist.yaml` becomes `FOLDER/model/their_mnist.yaml`, which `--config-dir FOLDER model=their_mnist` chooses:

```yaml
{MODEL_AFTER}```

The LightningModule of the template is left out: Imago's has the loss, the metrics and the steps. A network of your own
keeps its `_target_` and takes `num_classes` ([network](extend/network.md)). `callbacks.model_checkpoint` needs no
`dirpath`, `filename` and `save_last`: `best.ckpt` and `last.ckpt` are always kept, and `monitor: val/acc` at the root
says which is best. `logger: csv` becomes `override /logger: csv`. Defaults of a callbacks file of your own begin with
`- default`, or have `- metrics`, which computes `val/acc`.

A LightningDataModule of your own becomes an `ImageDataModule` ([custom data sets](extend/dataset.md)). Imago makes the
loaders itself, because exact resume and one score per image depend on their order:

- `prepare_data` and `setup`: the constructor, which reads paths and labels and passes `ImageSets` on.
- `Dataset.__getitem__`: `Images.read(index)`, the uint8 pixels (3, height, width) before any transform.
- `random_split`: `sets.draw_splits(val_ratio, seed)`, which checkpoints record.
- Transforms: `data.train_transform` and `data.eval_transform`. `collate_fn` and `on_after_batch_transfer`: the steps of
  these below `batch`.
- `train_dataloader` and the others: leave them out. `data.batch_size`, `data.num_workers` and the like are settings.

If a file of the template is chosen as it is, the message names each line and what to write there. `override` needs the
slash: `override /model: mnist`. `extras` and `logger=many_loggers` have become `--cfg job` and `logger=many`, and
`hparams_search=mnist_optuna` is `-m hparams_search=optuna`.
"""


@pytest.fixture(autouse=True)
def hydra_config_is_put_back(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


def hint_for(typed: str, command: str = "train") -> Hint:
    """What is printed for words that were typed."""
    for _, finding in examine(shlex.split(typed), Typed(command, SETTINGS)):
        if finding is not None:
            return finding.hint
    key, _, value = typed.partition("=")  # below one of our groups: the message comes once Hydra does not know it
    hint = meaning(key, value)
    assert hint is not None, typed
    return hint


def tables() -> Iterator[str]:
    for project, words in PROJECTS.items():
        yield f"\n## {project}\n\n| {project} | Imago |\n| --- | --- |"
        for typed in words:
            beside = "strategy=dp " if project == "Opacus" else ""
            hint = hint_for(beside + (typed.replace("PATH", "./PATH") if typed == "data=PATH" else typed))
            ours = f"`{' '.join(hint.words).replace('./', '')}`" if hint.words else ""
            yield f"| `{typed}` | {'. '.join(filter(None, [ours, hint.note]))} |"
        if project == "lightning-hydra-template":
            yield FILES_OF_THE_TEMPLATE.rstrip()


def test_the_page_is_what_is_printed():
    text = INTRODUCTION + "\n".join(tables()) + "\n"
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "type make docs"


def keys_of(words: Sequence[str]) -> list[str]:
    return [word.partition("=")[0].replace("/", ".") for word in words]


def batches(hints: Sequence[Hint]) -> list[list[str]]:
    """The overrides of the hints, packed so that no two set the same thing: composing takes its time."""
    packed: list[list[str]] = []
    alone: list[list[str]] = []
    for words in dict.fromkeys(tuple(word for word in hint.words if word != "-m") for hint in hints if hint.words):
        if {"debug", "strategy", "hparams_search", "data.augment"} & {*keys_of(words)}:  # these set further settings
            alone.append([*words])
            continue
        for batch in packed:
            pairs = [(f"{a}.", f"{b}.") for a in keys_of(words) for b in keys_of(batch)]
            if not any(a.startswith(b) or b.startswith(a) for a, b in pairs):
                batch += words
                break
        else:
            packed.append([*words])
    return packed + alone


@pytest.mark.quick
def test_every_setting_that_is_offered_exists_and_takes_the_value():
    hints = [hint for name, value in EXAMPLES.items() if (hint := meaning(name, value)) is not None]
    hints += [hint_for(typed.replace("=PATH", "=./PATH")) for words in PROJECTS.values() for typed in words]
    hints = [hint for hint in hints if "hparams_search=optuna" not in hint.words]  # needs a package
    hints += [meaning(name, value) for name in ("device", "gpus") for value in ("0", "1", "2", "0,1", "cuda:1", "-1")]
    hints += [meaning(name, value) for name in ("freeze", "amp", "fp16", "cos_lr", "wandb") for value in ("0", "1")]
    hints += [meaning("optimizer", value) for value in ("Adam", "RMSprop", "adamw_torch", "nadam", "lamb")]
    hints += [meaning("scheduler", value) for value in ("StepLR", "none", "reduce_on_plateau", "onecycle")]
    for words in batches(hints):
        cfg = composed(*words)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        found = [f"{problem.key}{problem.what}" for problem in problems(cfg, shipped())]
        assert found == [], words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epochs=5"], "Unknown setting epochs. Type trainer.max_epochs=5"),
        (["--lr", "0.1"], "--lr 0.1 is not a flag of Imago. Type model.optimizer.lr=0.1"),
        (["--model.net.name", "resnet34"], "Type model.net.name=resnet34"),
        (["model=resnet50"], "resnet50 is a network of torchvision. Type model.net.name=resnet50"),
        (["experiment=digits", "model=resnet50"], "Type model=torchvision model.net.name=resnet50"),
        (["model.optimizer=sgd"], "model.optimizer holds several settings. Type model/optimizer=sgd"),
        (["-m", "optimizer=sgd,adam", "lr=0.1,0.01"], "optimizer=sgd,adam  Type model/optimizer=sgd,adam"),
        (
            ["-m", "experiment=example", "hparams_search=mnist_optuna"],
            "Together:\n  ml-train -m experiment=example hparams_search=optuna",
        ),
        (["strategy=opacus"], "Type strategy=dp"),
        (["trainer=[ddp,amp]"], "trainer takes one option. Type trainer=ddp trainer.precision=auto-mixed"),
        (["ckpt_path=none"], "Type ckpt_path=null"),
        (["debug=None"], "Type debug=null"),
        (["delta=1e-5"], "Unknown setting delta. Type strategy=dp strategy.target_delta=1e-5"),
        (["noise_multiplier=1"], "Type strategy=dp strategy.noise_multiplier=1"),
        (["privacy=dp"], "Unknown setting privacy. Type strategy=dp"),
        (["max_grad_norm=1"], "Type trainer.gradient_clip_val=1. For private training, type strategy=dp strategy.max_"),
        (["strategy=dp", "max_grad_norm=1"], "Unknown setting max_grad_norm. Type strategy.max_grad_norm=1"),
        (["--epsilon", "3", "max_grad_norm=1"], "max_grad_norm=1  Type strategy.max_grad_norm=1"),
        (["sampler=weighted"], "Type data.sampler=balanced. Or sqrt, or weights"),
        (["trainer.gpus=2"], "Type trainer=ddp trainer.devices=2"),
        (["help"], '"help" is not KEY=VALUE. See --help.'),
        (["predict"], "To predict, type ml-inference ckpt_path=RUN source=PATH."),
        (["--data", "FOLDER"], "Type data.data_dir=FOLDER"),
        (["data=FOLDER"], "data= chooses a kind of data. A folder has a setting of its own. Type data.data_dir=FOLDER"),
        (["FOLDER"], "Type data.data_dir=FOLDER"),
        (["RUN"], "Type resume=RUN. To score it, type ml-eval ckpt_path=RUN."),
        (["best.ckpt"], "Type ckpt_path=best.ckpt. This trains on from it."),
        (["./FOLDR"], "./FOLDR does not exist either. To choose a folder of images, type data.data_dir=PATH."),
    ],
)
def test_the_first_answer_is_the_right_one(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    Path("RUN").mkdir()
    Path("RUN/status.json").touch()
    with pytest.raises(UserError) as raised:
        check_words(words, "train", SETTINGS, "ml-train")
    assert message in str(raised.value)


@pytest.mark.parametrize("run", ["RUN", "latest", "RUN/best.pt"])
def test_a_run_is_no_network_where_a_checkpoint_is_read(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    Path("RUN").mkdir()
    with pytest.raises(UserError, match=rf"has a setting of its own\. Type ckpt_path={run}$"):
        check_words([f"model={run}"], "eval", SETTINGS, "ml-eval")


def refusal(*words: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        check_words(words, "train", SETTINGS, "ml-train")
    return str(raised.value).splitlines()


def test_several_words_are_answered_at_once_with_the_whole_command():
    main.register()
    lines = refusal("--epochs", "5", "imgsz=64", "seed=3", "-m")
    assert lines[1:3] == ["  --epochs 5  Type trainer.max_epochs=5", "  imgsz=64    Type data.image_size=64"]
    assert lines[-1] == "  ml-train trainer.max_epochs=5 data.image_size=64 seed=3 -m"


PASTED = {
    "yolo classify train data=PATH model=yolo11n-cls.pt epochs=5 imgsz=64 plots=True val=True": (
        "data.data_dir=PATH trainer.max_epochs=5 data.image_size=64"
    ),
    "--model resnet50 --data-dir PATH --batch-size 32 -b 32 --lr 0.1 --epochs 5 --pretrained --input-size 3 96 96": (
        "model.net.name=resnet50 data.data_dir=PATH data.batch_size=32 model.optimizer.lr=0.1 trainer.max_epochs=5 "
        "model.net.weights=auto data.image_size=96"
    ),
    "--model_name_or_path google/vit-base-patch16-224-in21k --train_dir PATH --output_dir out --do_train --do_eval "
    "--remove_unused_columns False --learning_rate 2e-5 --num_train_epochs 5 --per_device_train_batch_size 8 "
    "--save_strategy epoch --load_best_model_at_end True --save_total_limit 3 --seed 1337 --report_to wandb": (
        "model.net.name=vit_b_16 data.data_dir=PATH hydra.run.dir=out model.optimizer.lr=2e-5 trainer.max_epochs=5 "
        "data.batch_size=8 seed=1337 logger=wandb"
    ),
    "path=PATH arch=resnet34 bs=64 valid_pct=0.2 n_epoch=5 base_lr=0.002 metrics=error_rate": (
        "data.data_dir=PATH model.net.name=resnet34 data.batch_size=64 data.val_ratio=0.2 trainer.max_epochs=5 "
        "model.optimizer.lr=0.002"
    ),
    "directory=PATH 'image_size=(180, 180)' batch_size=32 validation_split=0.2 optimizer=adam epochs=10 verbose=2": (
        "data.data_dir=PATH data.image_size=180 data.batch_size=32 data.val_ratio=0.2 model/optimizer=adam "
        "trainer.max_epochs=10 hydra.verbose=true"
    ),
    "datamodule.batch_size=64 logger=many_loggers trainer.gpus=1 hparams_search=mnist_optuna extras.print_config=true "
    "callbacks.rich_progress_bar.refresh_rate=1 tags=mnist": (
        "data.batch_size=64 logger=many trainer=gpu -m hparams_search=optuna 'tags=[mnist]'"
    ),
    "experiment=digits model.optimizer._target_=torch.optim.SGD model.optimizer.momentum=0.9 "
    "model.optimizer.betas=[0.9,0.9] logger=none": (
        "experiment=digits model.optimizer._target_=torch.optim.SGD +model.optimizer.momentum=0.9 'logger=[]'"
    ),
    "-m --lr 0.1,0.01 data.batchsize=3,4": "-m model.optimizer.lr=0.1,0.01 data.batch_size=3,4",
    "--lr 0.1 --momentum 0.9 --opt adam test_ratio=0.2 -e 5 data.batchsize=4 seed 3 --wd": (
        "model.optimizer.lr=0.1 model/optimizer=adam data.test_ratio=0.2 trainer.max_epochs=5 data.batch_size=4 seed=3"
    ),
}


@pytest.mark.parametrize("pasted", PASTED)
def test_a_pasted_command_becomes_one_that_starts(pasted, tmp_path, monkeypatch):
    main.register()
    monkeypatch.chdir(tmp_path)
    Path("PATH").mkdir()
    lines = refusal(*shlex.split(pasted))
    if "hparams_search" not in pasted or importlib.util.find_spec("hydra_plugins") is not None:
        assert lines[-1] == f"  ml-train {PASTED[pasted]}"


def test_the_corrected_command_of_any_words_starts():
    """All words of the table, and some with a wrong value, in commands of 150: none is dropped without a word."""
    main.register()
    words = [f"{name}={value}" for name, value in EXAMPLES.items() if not name.startswith("resume")]
    words += ["epochs=many", "cos_lr=False", "lr=fast", "scheduler.factor=high"]
    random.Random(0).shuffle(words)
    for command in (words[start : start + 150] for start in range(0, len(words), 150)):
        lines = refusal(*command, "trainer.min_epoch=1")
        named = [line.split()[0] for line in lines[1:-2]]
        assert {word for word in command if examined(word)} <= {*named}
        assert lines[-2] == "Together:"
        together = shlex.split(lines[-1])[1:]
        check_words(together, "train", SETTINGS, "ml-train")
        cfg = composed(*together)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        assert [f"{problem.key}{problem.what}" for problem in problems(cfg, shipped())] == []


def examined(word: str) -> bool:
    """Whether a word is answered before anything is composed."""
    return next(examine([word], Typed("train", SETTINGS)))[1] is not None


THEIRS = """# @package _global_
defaults:
  - override /datamodule: mnist
  - override model: mnist
  - override /callbacks: default
  - override /logger: many_loggers
  - override /extras: default
tags: [mnist, simple_dense_net]
seed: 12345
trainer:
  gpus: 1
  max_epochs: 10
datamodule:
  batch_size: 64
callbacks:
  rich_progress_bar:
    refresh_rate: 5
model:
  net:
    lin1_size: 128
    lin2_size: 256
"""


def test_settings_of_a_logger_need_its_choice(tmp_path):
    file = tmp_path / "experiment" / "theirs.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\nlogger:\n  wandb:\n    group: mnist\n  tensorboard: {name: a}\n")
    words = [f"--config-dir={tmp_path}", "experiment=theirs"]
    with pytest.raises(UserError, match=r'line 3: logger.wandb is not chosen. Write "override /logger: wandb" in the'):
        check_words(words, "train", SETTINGS)
    check_words([*words, "logger=wandb"], "train", SETTINGS)


def test_a_file_of_the_template_is_answered_with_its_lines(tmp_path):
    file = tmp_path / "experiment" / "theirs.yaml"
    file.parent.mkdir()
    file.write_text(THEIRS)
    with pytest.raises(UserError) as raised:
        check_words([f"--config-dir={tmp_path}", "experiment=theirs"], "train", SETTINGS)
    assert str(raised.value).replace(f"{file}, ", "").splitlines() == [
        'line 3: Write "override /data: mnist" in place of "override /datamodule: mnist".',
        'line 4: Write "override /model: mnist" in place of "override model: mnist".',
        'line 6: Write "override /logger: many" in place of "override /logger: many_loggers".',
        'line 7: "override /extras: default" chooses an option of a group that does not exist. It has no counterpart: '
        "--cfg job prints the settings, and nothing asks for tags.",
        'line 11: Unknown setting trainer.gpus. Write "override /trainer: gpu" in the defaults.',
        'line 13: Write "data:" in place of "datamodule:".',
        "line 16: Unknown setting callbacks.rich_progress_bar. The progress bar is callbacks.progress_bar, and "
        "callbacks.progress_bar=null removes it.",
        'line 20: Write "hidden: [128, 256]" in place of lin1_size, lin2_size.',
    ]


@pytest.mark.parametrize("file", [file for group in FILES for file in Path(CONFIG_DIR, group).glob("*.yaml")])
def test_our_own_files_pass(file):
    check_file(file, Typed("train", SETTINGS))


def test_the_experiment_of_the_page_trains(command, tmp_path):
    write_mnist(tmp_path / "sets")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "first.yaml").write_text(AFTER)
    (tmp_path / "mine" / "model").mkdir()
    (tmp_path / "mine" / "model" / "their_mnist.yaml").write_text(MODEL_AFTER)
    words = [f"data.data_dir={tmp_path}/sets", "trainer.min_epochs=1", "trainer.max_epochs=1", "trainer=cpu"]
    words.append("model=their_mnist")
    run = command("train", f"--config-dir={tmp_path}/mine", "experiment=first", *words, "logger=csv", "test=false")
    assert run.exit_code == 0, run.output
    assert len(run.history) == 1


@pytest.mark.parametrize(
    "words", [["seed=1"], ["-m", "seed=1,2"], ["~model.scheduler"], ["--cfg", "job"], ["-cn", "x"]]
)
def test_our_own_words_pass(words):
    check_words(words, "train", SETTINGS, "ml-train")


def test_options_and_groups_of_own_configs_pass(tmp_path):
    for name in ("model/resnet50.yaml", "epochs/long.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    check_words([f"--config-dir={tmp_path}", "model=resnet50", "+epochs=long"], "train", SETTINGS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.net.pretrained=true"],
            "Unknown setting model.net.pretrained (command line). Type model.net.weights=auto.",
        ),
        (
            ["+model.net.pretrained=true"],
            "model.net.pretrained is not an argument of imago.model.efficientnet_lite0. Type",
        ),
        (
            ["data.bs=64", "model.lr=0.1"],
            "  data.bs=64    Type data.batch_size=64\n  model.lr=0.1  Type model.optimizer.lr=0.1",
        ),
        (["model.optimizer.momentum=0.9"], "type model/optimizer=sgd model.optimizer.momentum=0.9"),
        (["experiment=digits", "model.net.name=vgg11"], "type model=torchvision model.net.name=vgg11"),
        (
            ["data.batchsize=4", "model.optimzer.lr=1", "trainer.max_epoch=3"],
            "  data.batchsize=4     Did you mean data.batch_size=4?\n"
            "  model.optimzer.lr=1  Type model.optimizer.lr=1\n"
            "  trainer.max_epoch=3  Did you mean trainer.max_epochs=3?\nTogether:\n",
        ),
        (
            ["experiment=digits", "model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.01", "logger=none"],
            "logger=none: logger has no option none. Type 'logger=[]'",
        ),
        (
            ["-m", "experiment=digits", "model.optimizer.lr=0.1,0.01", "model.optimizer=sgd,adam"],
            "model.optimizer holds several settings. Type model/optimizer=sgd,adam",
        ),
        (
            ["experiment=digits", "+callbacks.model_summary.max_depth=2"],
            "Type 'callbacks=[default,model_summary]', or write \"override /callbacks: [default, model_summary]\"",
        ),
        (
            ["experiment=digits", "callbacks=[default,lr_monitor]", "+callbacks.model_summary.max_depth=2"],
            "Type 'callbacks=[default,lr_monitor,model_summary]'",
        ),
        (
            ["experiment=example", "trainer.max_epochs=2"],
            "example.yaml, line 19) is above trainer.max_epochs=2, where the run ends. Type a larger "
            "trainer.max_epochs=, or trainer.min_epochs=null.",
        ),
        (["trainer.foo=1"], "The closest are "),
        (["trainer.precision=fp16"], "bf16 or null, got fp16. Type trainer.precision=16-mixed"),
        (["model.net.weights=none"], "model.net.weights=none is the text none. Type model.net.weights=null"),
        (["model.layer_decay=None"], "must be a number or null, got None. Type model.layer_decay=null"),
        (["trainer.max_time=5h"], "must be DD:HH:MM:SS or null, got 5h. Type trainer.max_time=00:05:00:00"),
        (["trainer=ddp,amp"], "Type trainer=ddp trainer.precision=auto-mixed. For a sweep over them add -m."),
        (["trainer.max_epochs=-3"], "trainer.max_epochs must be 0 or more, -1 for no limit, or null; got -3."),
        (["trainer.limit_val_batches=1.5"], "must be a fraction (0.0 to 1.0) or a whole number of batches, got 1.5."),
        (["model.net.name=resnet81"], "(ml-train --networks lists all)."),
        (["data.data_dir=/nowhere"], "data.data_dir=/nowhere does not exist."),
        (["ckpt_path=/nowhere.ckpt"], "ckpt_path=/nowhere.ckpt does not exist."),
    ],
)
def test_what_is_refused_leaves_no_folder(command, colours, words, message):
    data = (
        [] if any(word.startswith(("experiment", "data.data_dir")) for word in words) else [f"data.data_dir={colours}"]
    )
    run = command("train", *data, *words)
    assert run.exit_code == 1
    assert message in run.error
    assert not run.dir.exists()
    assert "+trainer" not in run.error


def test_a_resumed_run_keeps_its_optimizer(command, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / "status.json").write_text('{"status": "dead"}')
    for name in (".hydra/config.yaml", "config.yaml"):
        (run_dir / name).write_text("task_name: train\n")
    run = command("train", f"resume={run_dir}", "model/optimizer=sgd", folder=run_dir)
    assert "continues with the optimizer and scheduler of that run, so model/optimizer cannot be chosen" in run.output
    assert "model.init_from=RUN model/optimizer=OPTION" in run.output


def test_the_command_in_a_message_is_the_one_that_was_typed(command):
    typed = command("train", "data=image_folder")
    assert "  python src/train.py data.data_dir=PATH " in typed.error

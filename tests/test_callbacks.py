"""Every callback that Lightning ships, and every argument of its Trainer, works or is refused: docs/callbacks.md."""

import inspect
import json
import os
from pathlib import Path

import lightning.pytorch.callbacks as shipped
import pytest
from helpers import REPO
from lightning.pytorch import Trainer

from imago.config.refused_callbacks import BASES, CALLBACKS

PAGE = REPO / "docs" / "callbacks.md"
L = "lightning.pytorch.callbacks"
TOGETHER = {  # name -> arguments, in one run
    "Callback": "",
    "EMAWeightAveraging": "decay: 0.9",
    "EarlyStopping": "monitor: val/loss, patience: 20",
    "GradientAccumulationScheduler": "scheduling: {0: 2, 1: 3}",
    "LambdaCallback": "",
    "LearningRateMonitor": "",
    "DeviceStatsMonitor": "cpu_stats: false",
    "ModelCheckpoint": "monitor: val/loss, dirpath: '${paths.output_dir}/more'",
    "ModelSummary": "max_depth: 2",
    "RichModelSummary": "",
    "RichProgressBar": "",
    "ThroughputMonitor": "batch_size_fn: {_target_: helpers.size_of, _partial_: true}",
    "Timer": "duration: '00:01:00:00'",
    "BasePredictionWriter": "",
    "WeightAveraging": "",
    "TQDMProgressBar": "",
}
WORKS = {
    "Callback": "does nothing by itself",
    "BasePredictionWriter": "a subclass of your own is called for each scored split",
    "DeviceStatsMonitor": "with a logger; on a CPU `cpu_stats: false`, or psutil installed",
    "EMAWeightAveraging": "the average is validated, saved and scored; `callbacks=[default,ema]` can start it later",
    "EarlyStopping": "in addition to `callbacks.early_stopping`",
    "GradientAccumulationScheduler": "schedulers that step per batch count optimizer steps",
    "LambdaCallback": "",
    "LearningRateMonitor": "with a logger; `callbacks.lr_monitor` is one",
    "ModelCheckpoint": "more files; best.ckpt remains the one that is scored",
    "ModelSummary": "`callbacks.model_summary` is one",
    "RichModelSummary": "",
    "RichProgressBar": "with `~callbacks.progress_bar`",
    "TQDMProgressBar": "with `~callbacks.progress_bar`",
    "ThroughputMonitor": "",
    "Timer": "the run reports when the time is up; a longer `duration` continues the run",
    "WeightAveraging": "the average is validated, saved and scored",
}
OTHERS = ("WeightAveraging", "TQDMProgressBar", "BasePredictionWriter")  # do not go together with one of the others
FLAGS = {  # argument of the Trainer -> what is refused, and what is said of it
    "accelerator": ([], "`trainer=cpu`, `gpu`, `mps`"),
    "strategy": (["ddp_spawn", "deepspeed"], "`auto`, `ddp`, `ddp_find_unused_parameters_true` or `fsdp`"),
    "devices": ([], ""),
    "num_nodes": (["2"], "set by `torchrun` and `srun`"),
    "precision": ([], "any of Lightning's, and `auto-mixed`"),
    "logger": (["true"], "the group `logger`"),
    "callbacks": (["[]"], "the group `callbacks`"),
    "fast_dev_run": ([], ""),
    "max_epochs": ([], ""),
    "min_epochs": (["11"], "not above `max_epochs`"),
    "max_steps": ([], ""),
    "min_steps": ([], "not above the planned number of steps"),
    "max_time": ([], "the run reports when the time is up"),
    "limit_train_batches": ([], ""),
    "limit_val_batches": ([], ""),
    "limit_test_batches": (["0"], "above 0 where a split is scored"),
    "limit_predict_batches": ([], ""),
    "overfit_batches": ([], ""),
    "val_check_interval": (["'00:00:01:00'", "0"], "a fraction of an epoch, or batches; the best validation counts"),
    "check_val_every_n_epoch": (["0"], ""),
    "num_sanity_val_steps": ([], ""),
    "log_every_n_steps": ([], "short runs log every step"),
    "enable_checkpointing": (["false"], "`callbacks=none`"),
    "enable_progress_bar": (["false"], "`~callbacks.progress_bar`"),
    "enable_model_summary": ([], "`'callbacks=[default,model_summary]'` shows one"),
    "accumulate_grad_batches": (["0", "-1"], ""),
    "gradient_clip_val": (["-1"], ""),
    "gradient_clip_algorithm": (["value"], "with `gradient_clip_val`"),
    "deterministic": ([], "the root's `deterministic`"),
    "benchmark": ([], ""),
    "inference_mode": ([], ""),
    "use_distributed_sampler": ([], "the data module distributes the images itself"),
    "profiler": ([], "`simple`, `advanced`, `pytorch`"),
    "detect_anomaly": ([], ""),
    "barebones": (["true"], ""),
    "plugins": (["[x]"], ""),
    "sync_batchnorm": ([], ""),
    "reload_dataloaders_every_n_epochs": ([], "loaders are created again, with `datamodule.batch_size`"),
    "default_root_dir": ([], "the run folder"),
    "enable_autolog_hparams": ([], "settings are always logged"),
    "model_registry": ([], ""),
}


def typed(name: str, arguments: str) -> str:
    return f"+callbacks.my_{name.lower()}={{_target_: {L}.{name}{', ' if arguments else ''}{arguments}}}"


@pytest.mark.quick
def test_the_page_has_every_callback_and_every_argument():
    assert {*WORKS, *CALLBACKS, *BASES} - {"AsyncCheckpointIO"} == set(shipped.__all__)
    assert set(FLAGS) == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    lines = [
        "# Lightning's callbacks and the Trainer's arguments",
        "",
        "`make docs` writes this page from the tables in tests/test_callbacks.py, which tests them. To add a callback,",
        "type `'+callbacks.NAME={_target_: lightning.pytorch.callbacks.CLASS, ARGUMENT: VALUE}'`. \"Works\" means that",
        "a run with it finishes, that `resume=` gives the same results, that its effect is in the scored weights, and",
        "that `ml-eval`, `ml-inference` and `ml-export` accept the checkpoint afterwards.",
        "",
        "| callback | | |",
        "| --- | --- | --- |",
    ]
    for name in sorted(shipped.__all__):
        why = CALLBACKS.get(name) or BASES.get(name)
        lines.append(f"| `{name}` | {'refused' if why else 'works'} | {why or WORKS[name]} |")
    lines += ["", "To write a callback of your own, see [extend/callback.md](extend/callback.md).", ""]
    lines += ["| `trainer.` | refused | |", "| --- | --- | --- |"]
    lines += [
        f"| `{flag}` | {', '.join(f'`{v}`' for v in refused)} | {what} |" for flag, (refused, what) in FLAGS.items()
    ]
    text = "\n".join([*lines, ""])
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "type make docs"


@pytest.mark.parametrize("name", sorted({*CALLBACKS, *BASES} & set(shipped.__all__)))
def test_callbacks_that_cannot_work_are_refused_before_training(train, name):
    run = train(typed(name, ""))
    assert run.exit_code == 1
    assert f"({name}): {(CALLBACKS | BASES)[name]}" in run.output
    assert "epoch 1" not in run.output


@pytest.mark.parametrize(
    ("flag", "value"), [(flag, value) for flag, (refused, _) in FLAGS.items() for value in refused]
)
def test_arguments_that_cannot_work_are_refused_with_what_to_type(train, flag, value):
    run = train(f"++trainer.{flag}={value}", "trainer.max_epochs=10")
    assert run.exit_code == 1
    assert f"trainer.{flag}" in run.last_line
    assert "epoch 1" not in run.output


def history(run) -> list[str]:
    return run.text("metrics.jsonl").splitlines()


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`, you need to define a `flops_per_batch`")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_all_that_work_go_together_and_on(train, command):
    words = [typed(name, arguments) for name, arguments in TOGETHER.items() if name not in OTHERS]
    words += ["~callbacks.progress_bar", "logger=csv", "model.scheduler=null", "callbacks.early_stopping.patience=20"]
    whole = train(*words, "trainer.max_epochs=3")
    assert whole.exit_code == 0, whole.output
    part = train(*words, "trainer.max_epochs=1")
    again = command("train", f"resume={part.dir}", "trainer.max_epochs=3", folder=part.dir)
    assert again.exit_code == 0, again.output
    assert history(again) == history(whole)
    assert again.json("reports/metrics_test.json") == whole.json("reports/metrics_test.json")
    scored = command("eval", f"ckpt_path={whole.dir}")
    assert scored.json("reports/metrics_test.json") == whole.json("reports/metrics_test.json")
    assert (whole.dir / "more").is_dir()
    assert whole.json("status.json")["step"] == 3 + 2 + 2  # 5 batches: 2, then 3 for a step


@pytest.mark.parametrize("name", OTHERS)
def test_those_that_exclude_each_other_work_alone(train, command, name):
    without = ["~callbacks.progress_bar"] if "Bar" in name else []
    run = train(typed(name, TOGETHER[name]), *without, "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert command("eval", f"ckpt_path={run.dir}").json("reports/metrics_test.json") == run.json(
        "reports/metrics_test.json"
    )


def test_one_of_ones_own_that_inherits_from_a_refused_one_is_refused(train, tmp_path, monkeypatch):
    (tmp_path / "my_callbacks.py").write_text(
        f"from {L} import StochasticWeightAveraging\n\nclass Mine(StochasticWeightAveraging): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = train("+callbacks.x={_target_: my_callbacks.Mine, swa_lrs: 0.1}")
    assert "Mine is a StochasticWeightAveraging: its average would be neither saved nor scored" in run.output


def test_loaders_are_made_anew_when_lightning_asks(train, tmp_path, monkeypatch):
    (tmp_path / "grow.py").write_text(
        "from lightning.pytorch import Callback\n\nclass Grow(Callback):\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n        trainer.datamodule.batch_size *= 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = train(
        "+callbacks.grow={_target_: grow.Grow}", "+trainer.reload_dataloaders_every_n_epochs=1", "model.scheduler=null"
    )
    assert run.exit_code == 0, run.output
    assert [row["step"] for row in run.history] == [5, 5 + 3]  # 39 images: batches of 8, then of 16


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("torch.optim.lr_scheduler.CyclicLR, base_lr: 0.001, max_lr: 0.01, step_size_up: 5", 10),
        ("torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.01, total_steps: 12", 10),
        ("torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.01", 10),
        ("torch.optim.lr_scheduler.StepLR, step_size: 1", 2),
    ],
)
@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'")
def test_a_schedule_is_stepped_per_step_or_per_epoch(train, schedule, steps, interval):
    if interval == "epoch" and "OneCycle" not in schedule:
        pytest.skip("as without it, or of no use")
    more = [] if interval is None else [f"model.scheduler_interval={interval}"]
    run = train(
        f"++model.scheduler={{_target_: {schedule}, _partial_: true}}", *more, "model/optimizer=sgd", "test=false"
    )
    assert run.exit_code == 0, run.output
    (state,) = run.checkpoint()["lr_schedulers"]
    expected = {None: steps, "step": 10, "epoch": 2}[interval]
    assert state["last_epoch"] == expected


def test_a_schedule_that_is_too_short_is_refused(train):
    schedule = "{_target_: torch.optim.lr_scheduler.OneCycleLR, _partial_: true, max_lr: 0.01, total_steps: 7}"
    run = train(f"++model.scheduler={schedule}")
    assert "model.scheduler has 7 steps, but it will be stepped 10 times" in run.output
    assert run.exit_code == 1


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_unfreezing_and_a_schedule_per_step_are_refused_together(train, tmp_path, monkeypatch):
    (tmp_path / "thaw.py").write_text(
        f"from {L} import BaseFinetuning\n\nclass Thaw(BaseFinetuning):\n"
        "    def freeze_before_training(self, pl_module):\n        self.freeze(pl_module.net.features)\n\n"
        "    def finetune_function(self, pl_module, epoch, optimizer):\n"
        "        if epoch == 1:\n            self.unfreeze_and_add_param_group(pl_module.net.features, optimizer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["+callbacks.thaw={_target_: thaw.Thaw}", "trainer.max_epochs=3"]
    refused = train(*words)
    assert "Thaw adds parameters to the optimizer, which a schedule per step cannot take" in refused.output
    run = train(*words, "model/scheduler=step")
    assert run.exit_code == 0, run.output
    assert len(run.checkpoint()["optimizer_states"][0]["param_groups"]) == 2


def test_an_average_that_starts_late_is_refused_for_one_that_can(train):
    run = train(typed("EMAWeightAveraging", "decay: 0.9, update_starting_at_step: 5"))
    assert "until then its average is the untrained network" in run.output
    assert "'callbacks=[default,ema]' callbacks.ema.start=0.5" in run.output
    assert run.exit_code == 1


@pytest.mark.quick
def test_the_end_of_the_time_is_said(train):
    run = train("trainer.max_time='00:00:00:00'", "trainer.max_epochs=50")
    assert run.exit_code == 0, run.output
    assert "Training ended: trainer.max_time was reached" in run.output
    assert "trainer.max_time was reached" in run.json("status.json")["reason"]
    assert "trainer.max_time was reached" in Path(run.dir, "summary.txt").read_text()


def test_another_optimizer_cannot_go_on(train):
    run = train("trainer.max_epochs=1", "test=false")
    words = [f"ckpt_path={run.dir}/checkpoints/last.ckpt", "trainer.max_epochs=2", "test=false"]
    other = train(*words, "model/optimizer=sgd")
    assert other.exit_code == 1
    before, now = "torch.optim.adamw.AdamW", "torch.optim.sgd.SGD"
    said = f"model.optimizer: the checkpoint was trained with {before}, and {now} cannot continue from its state"
    assert said in other.output
    assert "model.init_from=" in other.output
    for word in ("model/scheduler=step", "model.scheduler_interval=epoch"):
        assert "model.scheduler: the checkpoint was trained with" in train(*words, word).output
    divided = train(*words, "model.head_lr=0.1").output
    assert f"trained with {before}, and {before}, divided by model.head_lr cannot continue" in divided
    assert (
        "model.freeze_batch_norm: the checkpoint was trained with false, and true"
        in train(*words, "model.freeze_batch_norm=true").output
    )
    assert train(*words, "model.optimizer.lr=0.001").exit_code == 0


def test_a_long_accumulation_is_said(train):
    run = train("trainer.accumulate_grad_batches=50")
    assert "trainer.accumulate_grad_batches=50, but an epoch has 5 batches" in run.output
    assert json.loads(history(run)[-1])["step"] == 2

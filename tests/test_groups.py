"""Every option of every group, run as people type it."""

import csv
import json
import math

import pytest
import torch
import wandb
from helpers import SMALL
from omegaconf import OmegaConf

from imago.training.trainer import full_precision


@pytest.mark.parametrize(
    ("words", "least_loss"),
    [
        (["debug=default"], math.inf),
        (["debug=limit"], math.inf),
        (["debug=overfit", "model.optimizer.lr=0.02", "trainer.max_epochs=30"], 0.2),
    ],
)
def test_debug_presets_run_on_the_cpu_without_callbacks_and_loggers(train, words, least_loss):
    run = train("trainer=cpu", "logger=tensorboard", "trainer.max_epochs=1", *words)
    assert run.exit_code == 0, run.output
    cfg = OmegaConf.load(run.dir / "config.yaml")
    assert (cfg.logger, cfg.data.num_workers, cfg.trainer.detect_anomaly) == (None, 0, True)
    assert (cfg.trainer.accelerator, cfg.trainer.devices) == ("cpu", 1)
    assert " DEBUG " in run.output
    assert not (run.dir / "checkpoints").exists()
    assert run.history[-1]["train/loss"] < least_loss


def test_debug_runs_stand_in_a_folder_of_their_own(command, colours, tmp_path):
    run = command(
        "train", f"data.data_dir={colours}", *SMALL, "debug=fdr", f"hydra.run.dir={tmp_path}/x", folder=tmp_path / "x"
    )
    assert (run.dir / "debug.log").is_file()
    cfg = OmegaConf.load(run.dir / ".hydra" / "config.yaml")
    assert cfg.task_name == "debug"


def test_overfitting_three_batches_of_the_digits_brings_the_loss_to_0(command):
    run = command(
        "train",
        "experiment=digits",
        "debug=overfit",
        "test=false",
        "trainer.limit_val_batches=1",
        "trainer.detect_anomaly=false",
    )
    assert run.exit_code == 0, run.output
    losses = [row["train/loss"] for row in run.history]
    assert len(losses) == 20
    assert losses[-1] < 0.05


def test_limit_takes_a_batch_at_least_of_each_split_for_three_epochs(train):
    run = train("debug=limit", "trainer.max_epochs=3", "report.splits=[val,test]")
    assert [row["step"] for row in run.history] == [1, 2, 3]
    assert (run.json("reports/metrics_val.json")["n"], run.json("reports/metrics_test.json")["n"]) == (8, 8)


@pytest.mark.filterwarnings("ignore:.*Profiler:UserWarning")  # of PyTorch's about events and steps
@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_the_profile_is_in_the_run_folder(train, profiler):
    run = train("debug=profiler", f"trainer.profiler={profiler}", "test=false", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert {"pytorch": "aten::"}.get(profiler, "training_step") in run.text(f"profile/fit-{profiler}.txt")


def test_amp_trains_on_the_cpu_in_bf16_and_keeps_weights_in_fp32(train):
    run = train("trainer.precision=bf16-mixed", "trainer.accelerator=cpu", "trainer.max_epochs=4")
    assert run.exit_code == 0, run.output
    assert "bf16-mixed" in run.text("summary.txt")
    assert {tensor.dtype for tensor in run.weights().values() if tensor.is_floating_point()} == {torch.float32}
    assert run.history[-1]["train/loss"] < run.history[0]["train/loss"]


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_amp_is_left_out_on_a_cpu_that_would_be_slower_with_it(train, monkeypatch, has_bf16, precision):
    monkeypatch.setattr("imago.training.trainer._cpu_has_bf16", lambda: has_bf16)
    run = train("trainer=amp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    assert precision in run.text("summary.txt")
    assert ("this CPU has no native bf16" in run.output) != has_bf16


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_16_bits_are_bf16_on_a_cpu(monkeypatch, caplog):
    monkeypatch.setattr("imago.training.trainer._cpu_has_bf16", lambda: False)
    assert [full_precision(name, "cpu") for name in ("16", "bf16")] == ["bf16-mixed"] * 2
    assert caplog.messages == [
        "trainer.precision=16 needs a GPU: using bf16-mixed, which this CPU emulates: trainer.precision=32-true is "
        "faster"
    ]


def test_accumulated_batches_take_a_step_together_and_gradients_are_clipped(train):
    whole = train("trainer.max_epochs=1", "trainer.limit_train_batches=4", "test=false")
    parts = train(
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
        "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=0.5",
        "test=false",
    )
    assert (whole.checkpoint()["global_step"], parts.checkpoint()["global_step"]) == (4, 2)
    still = train(
        "trainer.gradient_clip_val=1e-12",
        "model/optimizer=sgd",
        "model.optimizer.weight_decay=0",
        "trainer.max_epochs=1",
        "test=false",
    )
    start = train(
        "model.optimizer.lr=0",
        "model/optimizer=sgd",
        "model.optimizer.weight_decay=0",
        "trainer.max_epochs=1",
        "test=false",
    )
    for name, tensor in still.weights().items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(tensor, start.weights()[name], atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_loggers_at_once_have_metrics_settings_and_tags_and_go_on(train, command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train("logger=many", "tags=[spring,leaf]", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    with (run.dir / "csv" / "metrics.csv").open() as file:
        assert any(row.get("val/acc") for row in csv.DictReader(file))
    assert OmegaConf.load(run.dir / "csv" / "hparams.yaml").tags == ["spring", "leaf"]
    assert list(run.dir.glob("tensorboard/events*"))
    assert list(run.dir.glob("wandb/offline-run-*/*.wandb"))
    assert wandb.run is None  # the next job of a sweep starts one of its own
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/logs/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["tags"] == "spring, leaf"
    assert found.data.params["trainer/max_epochs"] == "1"
    assert found.data.metrics["val/acc"] == pytest.approx(run.history[0]["val/acc"])
    more = command("train", f"resume={run.dir}", "trainer.max_epochs=2", folder=run.dir)
    assert more.exit_code == 0, more.output
    (found,) = client.search_runs([found.info.experiment_id])
    assert found.info.status == "FINISHED"
    steps = [each.step for each in client.get_metric_history(found.info.run_id, "val/acc")]
    assert steps == [row["step"] - 1 for row in more.history]
    (of_wandb,) = {folder.name.rpartition("-")[2] for folder in run.dir.glob("wandb/offline-run-*")}
    assert of_wandb == run.json("status.json")["loggers"]["wandb"] != "None"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("monitor", "best"), [("val/acc", max), ("val/loss", min)])
def test_optuna_gets_the_best_monitored_value_of_each_job(train, tmp_path, monitor, best):
    run = train(
        "-m",
        "hparams_search=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.params={model.optimizer.lr: 'interval(0.001, 0.03)'}",
        f"monitor={monitor}",
        "test=false",
    )
    assert run.exit_code == 0, run.output
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    found = OmegaConf.load(sweep / "optimization_results.yaml")
    histories = [
        [json.loads(line)[monitor] for line in (job / "metrics.jsonl").read_text().splitlines()]
        for job in sweep.iterdir()
        if (job / "metrics.jsonl").is_file()
    ]
    assert len(histories) == 3
    assert found.best_value == pytest.approx(best(best(values) for values in histories))


def test_settings_of_this_machine_stand_in_local(train, tmp_path):
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text("# @package _global_\ntags: [this machine]\n")
    run = train(f"--config-dir={tmp_path}/mine", "trainer.max_epochs=1", "test=false")
    assert OmegaConf.load(run.dir / "config.yaml").tags == ["this machine"]
    (tmp_path / "mine" / "local" / "default.yaml").write_text("tags: [this machine]\n")
    refused = train(f"--config-dir={tmp_path}/mine")
    assert (
        "default.yaml needs its package: the first line of such a file must be\n  # @package _global_" in refused.output
    )


def test_variables_of_ones_own_stand_in_params(train, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nparams: {width: 5}\nname: width_${params.width}\ntrainer: {max_epochs: 1}\n"
    )
    run = train(
        f"--config-dir={tmp_path}/mine", "experiment=mine", "trainer.max_epochs=1", "test=false", "params.width=7"
    )
    assert OmegaConf.load(run.dir / "config.yaml").name == "width_7"

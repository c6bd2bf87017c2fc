"""Runs in several processes on the CPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import REPO, rows, same
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import OmegaConf
from sklearn.metrics import accuracy_score

from imago.cli.devices import process_count
from imago.cli.processes import ProcessError, error_in, other_processes
from imago.config.invocation import Invocation
from imago.config.launcher import Launch
from imago.config.strategies import STRATEGIES, strategy_problems
from imago.errors import UserError
from imago.run.folder import RunFolder

AUROC = "torchmetrics.classification.MulticlassAUROC"


def test_two_processes_make_one_run_and_score_every_image_once(train):
    early = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=0.9", "trainer.max_epochs=9"]
    words = ["callbacks.confusion_matrix.every_n_epochs=1", "logger=csv", "report.splits=[train,test]"]
    run = train("trainer=ddp_sim", *early, *words)
    assert run.exit_code == 0, run.output
    assert run.json("status.json")["status"] == "completed"
    for split, n in (("train", 39), ("test", 15)):
        predictions = rows(run, split)
        assert len({row["path"] for row in predictions}) == len(predictions) == n
        expected = accuracy_score([r["label"] for r in predictions], [r["prediction"] for r in predictions])
        assert run.json(f"reports/metrics_{split}.json")["acc"] == pytest.approx(expected)
    assert [row["epoch"] for row in run.history] == [0, 1]  # early stopping ends all of them
    assert "did not improve for 1 epoch" in run.text("summary.txt")
    assert run.output.count(" 1/9 ") == 1
    assert run.text("train.log").count(" 2/9 ") == 1
    assert not [line for line in run.output.splitlines() if re.search("WARNING (?!.*test split|val has)", line)]
    assert run.json("status.json")["card"]["device"].startswith("2 x cpu")


def test_validation_and_predictions_are_to_the_bit_those_of_one_process(train, tmp_path, monkeypatch):
    """With a learning rate of 0 and no BatchNorm the networks stay equal: so must their val metrics be. Of the three
    processes, one has no batch of the 15 val images."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "class Plain(nn.Sequential):\n"
        "    def __init__(self, num_classes: int) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    still = ["model.net._target_=plain.Plain", "model.optimizer.lr=0", "model.optimizer.weight_decay=0"]
    still += ["trainer.max_epochs=1", "report.splits=[train,test]", "callbacks.confusion_matrix.every_n_epochs=1"]
    still += [f"+callbacks.metrics.metrics.metrics.auroc={{_target_: {AUROC}, _partial_: true}}"]
    one, three = train(*still), train(*still, "trainer=ddp_sim", "trainer.devices=3")
    assert (one.exit_code, three.exit_code) == (0, 0), three.output
    names = [name for name in one.history[0] if name.startswith("val/")]
    assert len(names) > 5
    assert [three.history[0][name] for name in names] == [one.history[0][name] for name in names]
    for split in ("train", "test"):
        assert three.json(f"reports/metrics_{split}.json") == one.json(f"reports/metrics_{split}.json")
        assert rows(three, split) == rows(one, split)
    margins = [np.load(run.dir / "reports" / "label_margins.npz")["margins"] for run in (one, three)]
    np.testing.assert_allclose(*margins, atol=1e-4)  # each image was in a part of another size


def test_a_sweep_in_two_processes_makes_exactly_two_folders(train, tmp_path):
    run = train("-m", "seed=1,2", "trainer=ddp_sim", "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    (sweep,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    jobs = [path for path in sweep.iterdir() if path.is_dir()]
    assert sorted(json.loads((job / "status.json").read_text())["status"] for job in jobs) == ["completed"] * 2
    weights = [torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for job in jobs]
    assert not same(*weights)


def test_what_goes_wrong_in_another_process_is_said_in_its_words(train, own_colours):
    for path in (own_colours / "train").rglob("*.png"):
        if path.stem >= "004":
            path.write_bytes(b"")
    run = train("trainer=ddp_sim", f"data.data_dir={own_colours}")
    assert run.exit_code == 1
    assert "the file is empty" in run.error
    assert "data.on_bad_image=skip" in run.error
    assert "Traceback" not in run.output


def fails(_, run):
    """A task whose other process fails while the first one waits."""
    mark = run.path / "rank_1_was_here"
    if run.rank:
        mark.touch()
        raise ValueError("the disk of rank 1 is full")
    while not mark.exists():
        time.sleep(0.1)
    time.sleep(1)
    raise RuntimeError("the connection was closed by a peer")


def test_the_first_cause_is_raised(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO / "tests"))
    with pytest.raises(ProcessError, match="In process 1 of 2: .*the disk of rank 1 is full"):
        run_it(fails, tmp_path)


@pytest.mark.quick
def test_a_warning_of_a_loader_worker_after_the_error_does_not_hide_it():
    lines = [b'{"message": "the disk is full", "traceback": ""}\n', b'{"warning": "the \\"message\\" of a worker"}\n']
    assert error_in(lines)["message"] == "the disk is full"
    assert error_in(lines[1:]) is None


def is_killed(_, run):
    """A task whose other process dies without a word while the first one waits for it, as in a collective call."""
    if run.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_run_ends_when_another_process_is_killed(tmp_path):
    code = (
        "import imago.cli.processes as p, test_processes as t, sys, pathlib\n"
        "p.SECONDS_TO_RAISE = 1\n"
        "t.run_it(t.is_killed, pathlib.Path(sys.argv[1]))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{REPO}/tests:{REPO}/src"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, timeout=300, check=False)
    assert done.returncode == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "failed"
    assert "In process 1 of 2: it was killed by SIGKILL: the system sends it where memory" in status["error"]


def run_it(task, folder):
    run = RunFolder.claim(folder)
    run.invocation = Invocation("train", hydra="hydra: {}")
    cfg = OmegaConf.create({"seed": 1})
    run.processes = 2
    try:
        with other_processes(task, cfg, run):
            task(None, run)
    finally:
        run.release()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("devices", "count"), [(1, 1), ("2", 2), (3, 3), ("auto", 1), (-1, 1), ([0, 1], 2), ("0,1,", 2)]
)
def test_one_process_for_each_device(devices, count):
    assert process_count(OmegaConf.create({"accelerator": "cpu", "devices": devices})) == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=cpu", "trainer.devices=64"], "on the CPU this is the number of processes"),
        (["trainer=ddp_sim", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=true needs GPUs"),
        (["trainer.accelerator=tpu"], "trainer.accelerator must be auto, cpu, gpu or mps, got tpu"),
        (["trainer.precision=transformer-engine"], "must be 32-true, bf16-mixed, 16-mixed, auto-mixed, "),
        (["trainer.precision=16-true"], "Type trainer.precision=16-mixed"),
        (["trainer=deepspeed"], "trainer=deepspeed: DeepSpeed is not supported. To divide a network"),
        (["data.cache=memory"], "must be none, ram, disk or auto, got memory. Type data.cache=ram"),
        (["trainer.max_time=90min"], "Type trainer.max_time=00:01:30:00"),
        (["trainer.max_time=1-12:00:00"], "Type trainer.max_time=01:12:00:00"),
        (["trainer.devices=0"], "trainer.devices must be a number (1 or more)"),
        (["trainer.devices=none"], "trainer.devices must be a number (1 or more)"),
        (["+trainer.num_nodes=2"], "start the command with torchrun --nnodes= on each node"),
        (["trainer.strategy=deepspeed"], "trainer.strategy=deepspeed: its checkpoints are folders with the shards of"),
        (
            ["trainer.strategy=ddp_spawn"],
            "trainer.strategy=ddp_spawn: it only starts the processes in another way. Type ",
        ),
        (["trainer=cpu", "trainer.devices=2", "data.cache=ram"], "data.cache=ram with several processes: each would"),
        (["trainer.strategy=horovod"], "trainer.strategy must be auto, ddp, "),
    ],
)
def test_what_cannot_be_divided_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.error
    assert not run.dir.exists()


def test_all_devices_of_the_cpu_are_one_and_sync_batchnorm_does_nothing_there(train):
    words = ["trainer=cpu", "trainer.devices=-1", "trainer.sync_batchnorm=true", "preflight=only"]
    run = train(*words)
    assert run.exit_code == 0, run.output
    assert "trainer.sync_batchnorm=true does nothing with one device" in run.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp", "mps", "default"])
def test_devices_that_are_not_there_are_refused(command, colours, trainer):
    run = command("train", f"trainer={trainer}", f"data.data_dir={colours}", "trainer.devices=4")
    assert run.exit_code == 1
    assert "trainer.devices=4: this machine has no GPU. Type trainer=cpu trainer.devices=1, or" in run.error
    assert "trainer=ddp_sim, which tries DDP in processes on the CPU" in run.error
    assert not run.dir.exists()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("trainer", "gpus", "environment", "message"),
    [
        (("auto", 8), 2, {}, "this machine has 2 GPUs, numbers 0 to 1. Type trainer.devices=2, or"),
        (("gpu", [1]), 1, {}, "this machine has 1 GPU, number 0. Type trainer.devices=1, or"),
        (("gpu", 2), 1, {"CUDA_VISIBLE_DEVICES": "3"}, r"number 0 \(CUDA_VISIBLE_DEVICES=3\)"),
        (("gpu", 1), 0, {"SLURM_JOB_ID": "7"}, r"no GPU\. Type trainer=cpu\. The Slurm job has no GPU: .*--gres=gpu:1"),
        (("gpu", -1), 0, {"CUDA": ""}, r"PyTorch 2\S+ was built without CUDA .* install a build with CUDA"),
    ],
)
def test_messages_say_how_many_gpus_there_are_and_why(monkeypatch, trainer, gpus, environment, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.version.cuda", None if "CUDA" in environment else "13.0")
    monkeypatch.setattr("torch.version.hip", None)
    cfg = OmegaConf.create({"accelerator": trainer[0], "devices": trainer[1], "strategy": "auto"})
    with pytest.raises(UserError, match=message):
        process_count(cfg)


@pytest.mark.quick
def test_processes_of_a_launch_need_a_gpu_each(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    cfg, launch = OmegaConf.create({"accelerator": "auto"}), Launch("torchrun", 2, 4, 2, 4, 0, 1, "", 0, has_store=True)
    virtual, slurm = launch._replace(local_rank=0), launch._replace(launcher="srun")
    message = "torchrun started 4 processes, and this machine has 1 GPU: each process needs one. Type torchrun --nproc"
    with pytest.raises(UserError, match=message):
        process_count(cfg, launch=launch)
    assert launch.device == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=r"has 1 GPU \(CUDA_VISIBLE_DEVICES=3\): each process needs one"):
        process_count(cfg, launch=launch)
    for own in (virtual, slurm):  # torchrun --virtual-local-rank, and Slurm's --gpus-per-task
        assert process_count(cfg, launch=own) == 4
        assert own.device == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="this machine has no GPU.* Add trainer=ddp_sim, which runs DDP on the CPU"):
        process_count(cfg, launch=launch)


@pytest.mark.quick
def test_each_strategy_of_lightning_is_taken_or_refused_by_name():
    def refusal(strategy):
        return next(strategy_problems(OmegaConf.create({"trainer": {"strategy": strategy}})), None)

    names = StrategyRegistry.available_strategies()
    assert len(names) > 15
    for name in names:
        said = refusal(name)
        assert said is None if name in STRATEGIES else re.match(rf"trainer\.strategy={name}: .*[Tt]ype \w+", said)
    for sharded in ("deepspeed_stage_3", {"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}):
        assert "folders with the shards of each process, which resume= and eval.py cannot read" in refusal(sharded)
    assert refusal("ddp_spawn_find_unused_parameters_true").endswith(
        "trainer.strategy=ddp_find_unused_parameters_true."
    )


def test_loader_workers_of_a_process_that_failed_hold_nobody_up(train, tmp_path, monkeypatch):
    (tmp_path / "unwell.py").write_text(
        "import logging\n"
        "from lightning.pytorch import Callback\n"
        "class Unwell(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 2:\n"
        "            logging.getLogger(__name__).warning('rank 1 is pale')\n"
        "            raise ValueError('rank 1 is unwell')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = time.monotonic()
    run = train("trainer=ddp_sim", "data.num_workers=2", "+callbacks.unwell={_target_: unwell.Unwell}")
    assert run.exit_code == 1
    assert run.error == "In process 1 of 2: ValueError: rank 1 is unwell\n(unwell.py, line 7, in on_train_batch_start)"
    assert "WARNING [rank 1] rank 1 is pale" in run.output
    assert "[rank 1] rank 1 is pale" in run.text("train.log")
    assert time.monotonic() - started < 300  # gloo would wait for half an hour

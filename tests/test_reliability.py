"""Checkpoints are whole, disks may be full, losses may be bad, and what can go wrong is tried before."""

import csv
import errno
import json
import os
import signal
import socket
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, same, type_in_subprocess
from lightning.pytorch.trainer.states import TrainerFn

from imago.callbacks.memory import memory_advice
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.cli.command import TaskError, _end
from imago.errors import DiskError, UserError
from imago.run import lock as run_lock
from imago.run.find import find_run
from imago.run.folder import RunFolder
from imago.run.overview import find_runs
from imago.status import true_state


def test_kills_while_saving_leave_a_whole_checkpoint():
    from kill_saving import main

    found = main(["--kills", "12", "--megabytes", "2"])
    assert found["in the middle of a file"] > 0
    assert (found["kills"], found["unreadable"]) == (12, 0)


@pytest.mark.quick
def test_what_is_written_is_read_back_before_it_replaces_anything(tmp_path, monkeypatch):
    io, path = WholeFileCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"a": torch.zeros(1000)}}, path)
    save = torch.save

    def spoilt(content, file):
        save(content, file)
        file.seek(1200)
        file.write(b"\xff" * 100)

    monkeypatch.setattr("torch.save", spoilt)
    with pytest.raises(OSError, match=r"last\.ckpt could not be written"):
        io.save_checkpoint({"state_dict": {"a": torch.ones(1000)}}, path)
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["a"], torch.zeros(1000))
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("on_full_disk", ["stop", "continue"])
def test_a_disk_that_fills_up_while_training(tmp_path, colours, on_full_disk):
    """SimpleCNN's checkpoints are larger than TinyNet's: the limit lets the first runs' be written, and no more."""
    words = [f"data.data_dir={colours}", *SMALL, f"hydra.run.dir={tmp_path}/run", "callbacks.early_stopping=null"]
    fills = "import resource\nfrom lightning.pytorch import Callback\nimport snapshots\n"
    fills += "class Fill(Callback):\n"
    fills += "    def on_train_epoch_start(self, trainer, module):\n"
    fills += "        if trainer.current_epoch == 1: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
    fills += "snapshots.Fill = Fill\n"
    more = ["+callbacks.fill._target_=snapshots.Fill", f"callbacks.resume.on_full_disk={on_full_disk}", "test=false"]
    done = type_in_subprocess(*words, *more, code=fills)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert f"{tmp_path}/run/checkpoints/last.ckpt" in done.stdout
    assert "MB are free" in done.stdout
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    if on_full_disk == "stop":
        assert (done.returncode, status["status"]) == (1, "failed")
        assert "could not be written" in status["error"]
        assert done.stdout.strip().endswith(f"Resume with: python src/train.py resume={tmp_path}/run")
    else:
        assert (done.returncode, status["status"]) == (0, "completed"), done.stdout + done.stderr
        assert status["epoch"] == 2
        assert "The run continues without it" in done.stdout


def test_logs_that_cannot_be_written_do_not_end_the_run(train, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("imago.training.loggers._Writer.save", refuse)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", refuse)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_image", refuse)
    monkeypatch.setattr("imago.callbacks.run_status.RunStatus._write", refuse)
    run = train("logger=[csv,tensorboard]")
    assert run.exit_code == 0, run.output
    for name in ("CSVLogger", "TensorBoardLogger", "The record in the run folder"):
        assert run.output.count(f"{name} cannot be written, and the run continues without") == 1
    assert run.checkpoint()["epoch"] == 1


def bad_losses(folder: Path, which: int) -> str:
    """A loss that is NaN at call `which`; returns the override that chooses it."""
    (folder / f"bad_losses_{which}.py").write_text(
        "import torch\n"
        "class Breaks(torch.nn.CrossEntropyLoss):\n"
        "    calls = 0\n"
        "    def forward(self, input, target):\n"
        "        self.calls += torch.is_grad_enabled()\n"
        f"        bad = torch.is_grad_enabled() and self.calls == {which}\n"
        "        return super().forward(input, target) * (float('nan') if bad else 1)\n"
    )
    return f"model.criterions.criterions.ce._target_=bad_losses_{which}.Breaks"


def test_a_batch_with_a_bad_loss_is_skipped_if_that_is_asked_for(train, tmp_path, monkeypatch):
    breaks = bad_losses(tmp_path, 8)
    monkeypatch.chdir(tmp_path)
    run = train(breaks, "model.on_bad_loss=skip", "trainer.max_epochs=3", "logger=csv")
    assert run.exit_code == 0, run.output
    assert "The loss became nan in epoch 2, batch 3 (step 7): skipping the batch" in run.output
    assert "batches skipped (loss not finite)" in run.text("summary.txt")
    assert all(value == value for row in run.history for value in row.values())  # no NaN


def test_what_an_exception_leaves_is_kept_apart(train, tmp_path, monkeypatch):
    breaks = bad_losses(tmp_path, 9)
    monkeypatch.chdir(tmp_path)
    run = train(breaks, "callbacks.resume.every_n_train_steps=2")
    assert run.exit_code == 1
    assert "The loss became nan in epoch 2, batch 4 (step 8)" in run.error
    assert run.checkpoint("last")["global_step"] == 8
    assert run.checkpoint("on_exception")["global_step"] == 8
    assert all(tensor.isfinite().all() for tensor in run.weights("last").values())


def test_several_problems_are_said_in_one_message(train, own_colours):
    kept = (own_colours / "train" / "blue" / "000.png").read_bytes()
    (own_colours / "train" / "blue" / "000.png").write_bytes(kept[:60] + bytes(20) + kept[80:])
    words = [f"data.data_dir={own_colours}", "+trainer.min_steps=900"]
    run = train(*words, "data.on_bad_image=error")
    error = run.error
    assert "2 problems were found before the first epoch" in error
    assert "trainer.min_steps=900, and there are " in error
    assert "blue/000.png" in error
    mixed = train("+data.train_transform.batch.mix={_target_: torchvision.transforms.v2.MixUp, num_classes: 3}")
    assert "data.train_transform.batch makes soft labels, as MixUp and CutMix of torchvision do" in mixed.error
    assert "Type imago.data.MixUp" in mixed.error
    settings = train("monitor=acc", "mode=best", "seed=-1", "+trainer.num_nodes=2", "preflight=maybe")
    for words in (
        "must name the stage too",
        "mode must be min",
        "seed must be",
        "trainer.num_nodes",
        "preflight must be true",
    ):
        assert words in settings.error


def test_preflight_changes_nothing(train):
    words = ["model=simple_cnn", "data.image_size=24"]
    assert same(train(*words, "test=false").weights(), train(*words, "test=false", "preflight=false").weights())


def test_preflight_alone_trains_nothing(command, tmp_path):
    run = command("train", "experiment=digits", "debug=preflight")
    assert run.exit_code == 0, run.output
    assert "Preflight passed (" in run.output
    line = run.output.partition("Next:\n")[2].splitlines()[0]
    assert "train" in line
    assert "experiment=digits" in line
    assert "debug=preflight" not in line
    assert "Disk: checkpoints about" in run.text("debug.log")
    assert not list(run.dir.glob("checkpoints/*"))
    assert run.text("metrics.jsonl") == ""
    assert run.json("status.json")["status"] == "checked"
    log_dir = tmp_path / "listed"
    (log_dir / "debug" / "runs").mkdir(parents=True)
    run.dir.rename(log_dir / "debug" / "runs" / "tried")
    with pytest.raises(UserError, match="no run in"):
        find_run("latest", log_dir)
    assert not [entry for entry in find_runs(log_dir) if entry.has_begun]


@pytest.mark.parametrize(
    ("patched", "words"),
    [
        ("imago.callbacks.preflight.shutil.disk_usage", "MB are free. Remove something"),
        (
            "imago.callbacks.preflight._free_memory",
            "0.0 MB are free. Type data.batch_size=1 trainer.accumulate",
        ),
    ],
)
def test_too_little_disk_or_memory_is_said_before_the_first_epoch(train, monkeypatch, patched, words):
    usage = type("Usage", (), {"free": 5})()
    monkeypatch.setattr(patched, lambda *_: usage if "disk" in patched else 5)
    run = train()
    assert run.exit_code == 1
    assert words in run.error


HUNGRY = """
import torch
class Hungry(torch.nn.Sequential):
    def __init__(self, num_classes, most, first_step=0):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(768, num_classes))
        self.most, self.first_step, self.steps = most, first_step, 0
    def forward(self, image):
        self.steps += 1
        if len(image) > self.most and self.steps > self.first_step:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which "
                "15.38 GiB is free. Of the allocated memory 63.09 GiB is allocated by PyTorch, and 29.92 MiB is "
                "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation"
            )
        return super().forward(image)
"""


@pytest.mark.parametrize("most", [4, 2])
def test_what_to_type_when_a_batch_does_not_fit_into_memory(train, tmp_path, monkeypatch, most):
    """In training, and, before it, in the preflight."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.chdir(tmp_path)
    net = ["model.net._target_=hungry.Hungry", f"+model.net.most={most}", "trainer.max_epochs=1"]
    in_training = ["preflight=false", "+model.net.first_step=2"]
    run = train(*net, "trainer.accumulate_grad_batches=3", *(in_training if most == 4 else []))
    assert run.exit_code == 1
    assert run.error == (
        "The CPU is out of memory with data.batch_size=8 (CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has "
        "a total capacity of 79.18 GiB of which 15.38 GiB is free.). "
        "Type data.batch_size=4 trainer.accumulate_grad_batches=6, or trainer=amp, or a smaller data.image_size=."
    )
    if most == 4:
        typed = train(*net, "data.batch_size=4", "trainer.accumulate_grad_batches=6")
        assert typed.exit_code == 0, typed.output


@pytest.mark.quick
@pytest.mark.parametrize(
    ("processes", "batch_size", "smaller", "precision", "strategy", "advice"),
    [
        (2, 6, 3, "32-true", {}, "data.batch_size=2 trainer.accumulate_grad_batches=3, or trainer.precision=auto"),
        (1, 64, 4, "bf16-mixed", {}, "data.batch_size=4 trainer.accumulate_grad_batches=16, or a smaller data.image"),
        (1, 1, 0, "bf16-mixed", {}, "a smaller data.image_size=."),
        (1, 64, 32, "32-true", {"physical_batch_size": 16}, "strategy.physical_batch_size=8, which changes no result"),
    ],
)
def test_advice_about_memory_fits_the_run(processes, batch_size, smaller, precision, strategy, advice):
    trainer = SimpleNamespace(world_size=processes, precision=precision, accumulate_grad_batches=1)
    trainer.state = SimpleNamespace(fn=TrainerFn.FITTING)
    most = strategy.get("physical_batch_size", batch_size)
    model = SimpleNamespace(strategy=SimpleNamespace(microbatch_size=lambda images: min(images, most), **strategy))
    assert memory_advice(trainer, model, batch_size, smaller).startswith(f"Type {advice}")
    trainer.state.fn = TrainerFn.PREDICTING  # nothing to accumulate
    amp = {"32-true": ", or trainer=amp" if processes == 1 else ", or trainer.precision=auto-mixed"}.get(precision, "")
    assert memory_advice(trainer, model, 8, 4) == f"Type data.batch_size=4{amp}."


def test_a_network_that_keeps_state_outside_of_its_buffers_is_refused(train, tmp_path, monkeypatch):
    (tmp_path / "forgetful.py").write_text(
        "import torch\n"
        "class Forgetful(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(768, num_classes)\n"
        "    def state_dict(self, *args, **kwargs):\n"
        "        state = super().state_dict(*args, **kwargs)\n"
        "        for name in state:\n"
        "            state[name] = state[name] if torch.is_grad_enabled() is False else state[name] * 0\n"
        "        return state\n"
        "    def forward(self, image):\n"
        "        return self.layer(image.flatten(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train("model.net._target_=forgetful.Forgetful")
    assert run.exit_code == 1
    assert "saved and loaded gives other logits" in run.error


def test_a_replay_is_compared(train, command, tmp_path):
    run = train("trainer.max_epochs=2", "model.optimizer.lr=0.003")
    again = command("train", f"replay={run.dir}", folder=tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert "is bit-identical" in again.output
    assert again.json("reports/replay.json") == {"replayed": str(run.dir), "different": [], "around": []}
    assert "model.optimizer.lr=0.003" in again.json("reports/environment.json")["command"]
    assert again.json("reports/changes.json") == run.json("reports/changes.json")
    other = command("train", f"replay={run.dir}", "model.optimizer.lr=0.004", folder=tmp_path / "other")
    assert other.exit_code == 1
    assert "differs: epochs (metrics.jsonl), weights (checkpoints/last.ckpt)" in other.output


def test_receipts_say_what_it_takes_to_run_it_again(trained):
    here = trained.json("reports/environment.json")
    assert here["command"].startswith("python")
    assert {"torch", "torchvision", "imago", "python"} <= here["versions"].keys()
    assert {"commit", "dirty"} == here["git"].keys()
    assert len(trained.json("reports/data.json")["fingerprint"]) == 16


@pytest.mark.quick
def test_status_tells_the_dead_from_the_living(tmp_path, monkeypatch, capsys):
    from imago.status import main

    names = ("alive", "dead", "done", "elsewhere", "gone")
    folders = {name: tmp_path / "train" / "runs" / name for name in names}
    for name, folder in folders.items():
        run = RunFolder.claim(folder)
        run.start()
        if name != "alive":
            run.update(status="completed") if name == "done" else None
            run.release()
    for name, age in (("elsewhere", 10), ("gone", 1000)):
        status = json.loads((folders[name] / "status.json").read_text())
        beat = (datetime.now().astimezone() - timedelta(seconds=age)).isoformat()
        (folders[name] / "status.json").write_text(json.dumps(status | {"host": "other", "heartbeat": beat}))
    (folders["dead"] / "checkpoints").mkdir()
    (folders["dead"] / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(sys, "argv", ["ml-status", str(tmp_path), "--json"])
    main()
    states = {Path(run["folder"]).name: run["state"] for run in json.loads(capsys.readouterr().out)}
    expected = {"alive": "running", "dead": "dead", "done": "completed", "elsewhere": "running", "gone": "dead"}
    assert states == expected
    monkeypatch.setattr(sys, "argv", ["ml-status", str(tmp_path)])
    monkeypatch.setattr("rich._console", None)
    main()
    shown = capsys.readouterr().out
    assert f"ml-train resume={folders['dead']}" in shown
    assert f"Runs below {tmp_path}/train/runs" in shown
    assert next(line for line in shown.splitlines() if line.startswith("alive")).split()[:2] == ["alive", "running"]
    assert "Hidden: 2 never began to train. Show them with --all" in shown  # "done" and "gone"
    run_lock.release(folders["alive"])
    assert true_state(folders["alive"], {"status": "running", "host": socket.gethostname()}) == "dead"


def test_a_full_disk_leaves_a_run_failed_and_not_running(tmp_path, monkeypatch, caplog):
    run = RunFolder.claim(tmp_path)
    run.start()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()

    def refuse(*_):
        raise DiskError("no room")

    monkeypatch.setattr("imago.run.folder.write_json", refuse)
    with pytest.raises(TaskError, match="it broke"):
        _end(run, RuntimeError("it broke"))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["error"].splitlines()[0]) == ("failed", "RuntimeError: it broke")
    assert caplog.messages[-1].endswith(f"ml-train resume={tmp_path}")
    before = (tmp_path / "status.json").read_text()
    run.status["error"] = "x" * 100_000
    with pytest.raises(OSError, match="No space left"):
        run.overwrite_status()
    assert (tmp_path / "status.json").read_text() == before


def test_a_slow_run_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr("imago.run.folder.HEARTBEAT_SECONDS", 0.05)
    run = RunFolder.claim(tmp_path)
    run.start()
    (tmp_path / "status.json").unlink()
    with run.beating():
        time.sleep(0.5)  # a step that takes long
        assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
    run.release()


def test_a_killed_run_is_dead_and_goes_on(tmp_path, colours):
    folder = tmp_path / "run"
    words = [f"data.data_dir={colours}", *SMALL, "callbacks.early_stopping=null", f"hydra.run.dir={folder}"]
    kill = ["+callbacks.signal._target_=snapshots.Signal", f"+callbacks.signal.number={int(signal.SIGKILL)}"]
    words += ["logger=csv", "callbacks.resume=null"]  # it goes on from best.ckpt
    done = type_in_subprocess(*words, "trainer.max_epochs=3", *kill, "+callbacks.signal.batch=7")
    assert done.returncode == -signal.SIGKILL
    assert true_state(folder, json.loads((folder / "status.json").read_text())) == "dead"
    rest = type_in_subprocess(*words, "trainer.max_epochs=3", "auto_resume=true")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert json.loads((folder / "status.json").read_text())["times_resumed"] == 1
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        losses = [row["step"] for row in csv.DictReader(file) if row["train/loss_step"]]
    assert losses == [str(step) for step in range(15)]


def test_the_one_before_may_be_the_same_file_already(tmp_path):
    """That is what a kill between the two renames leaves; 1,000 kills found it."""
    io, path = WholeFileCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"a": torch.zeros(9)}}, path)
    os.link(path, tmp_path / "previous.ckpt")
    io.save_checkpoint({"state_dict": {"a": torch.ones(9)}}, path, {"keep": "previous.ckpt"})
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(path, weights_only=True)["state_dict"]["a"].sum() == 9

"""Whatever ends a run, it goes on to the same bits."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPO, SMALL, same, type_command, type_in_subprocess
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imago.callbacks.resume_state import check_epochs
from imago.cli.stop_signals import stopped_by_signals
from imago.errors import UserError

ONE_CYCLE = "++model.scheduler={_target_:torch.optim.lr_scheduler.OneCycleLR,_partial_:true,max_lr:0.01}"
NO_STOPPING = "callbacks.early_stopping=null"


EACH_STEP = ("trainer.max_epochs=3", "callbacks.resume.every_n_train_steps=1", "logger=csv")


@pytest.fixture
def snapshots(train, tmp_path, monkeypatch):
    """A whole run, and what its folder was at each of its checkpoints."""
    monkeypatch.setenv("PYTHONPATH", f"{REPO / 'src'}:{REPO / 'tests'}")  # for the second of two processes

    def run_it(*overrides: str):
        to = tmp_path / "snapshots"
        watch = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={to}"]
        whole = train(*EACH_STEP, *overrides, *watch)
        assert whole.exit_code == 0, whole.output
        return whole, sorted(to.iterdir())

    return run_it


@pytest.fixture(scope="module")
def plain_snapshots(colours, tmp_path_factory):
    """Those of a run without further overrides. Not to be changed."""
    to = tmp_path_factory.mktemp("plain")
    watch = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={to}/snapshots"]
    words = [f"data.data_dir={colours}", *SMALL, *EACH_STEP, *watch, f"paths.log_dir={to}/logs"]
    whole = type_command("train", words, to / "run")
    assert whole.exit_code == 0, whole.output
    return whole, sorted((to / "snapshots").iterdir())


@pytest.fixture
def of_plain_run(plain_snapshots, tmp_path):
    """The whole run of `plain_snapshots`, and a copy of the folder at checkpoint `number`."""

    def copied(number: int) -> Path:
        return Path(shutil.copytree(plain_snapshots[1][number], tmp_path / f"at_{number}"))

    return plain_snapshots[0], copied


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def resumed(command, folder: Path, *overrides: str):
    return command("train", f"resume={folder}", "callbacks.snapshots=null", *overrides, folder=folder)


def check_the_same(run, whole) -> None:
    assert run.exit_code == 0, run.output
    assert same(run.weights(), whole.weights())
    assert run.history == whole.history
    assert logged(run.dir) == logged(whole.dir)
    assert run.text("reports/predictions_test.csv") == whole.text("reports/predictions_test.csv")
    assert run.json("status.json")["status"] == "completed"
    margins = [folder / "reports" / "label_margins.npz" for folder in (run.dir, whole.dir)]  # none of mixed images
    assert len({file.read_bytes() if file.is_file() else b"" for file in margins}) == 1
    names = {path.name for path in (run.dir / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt"}


CUTMIX = "+data.train_transform.batch.cutmix={_target_: imago.data.CutMix}"
SHORT = ("trainer.max_epochs=2", "trainer.limit_train_batches=3")


def test_every_checkpoint_of_a_run_with_one_cycle_goes_on_to_the_same_bits(snapshots, command):
    whole, folders = snapshots(ONE_CYCLE, "model=simple_cnn", "data.image_size=24", *SHORT)  # with dropout
    assert [folder.name for folder in folders] == [f"{step:03d}" for step in range(1, 6)]
    for folder in folders:
        check_the_same(resumed(command, folder), whole)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "+callbacks.gas={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {1: 2}}",
            *("callbacks=[default,ema]", "callbacks.ema.start=0.3", "callbacks.ema.decay=0.8"),
            *("model.head_lr=0.02", "model.layer_decay=0.5", "model.decay_norms_and_biases=false"),
            "+data.train_transform.batch.mixup={_target_: imago.data.MixUp}",
        ],
        ["model/scheduler=plateau", "model.scheduler.patience=0", "monitor=val/loss", "model.scheduler.mode=max"],
        ["callbacks.early_stopping.patience=1", "monitor=val/loss", "mode=max", "trainer.max_epochs=6"],
        ["trainer.val_check_interval=2", "callbacks.early_stopping.patience=3", "monitor=val/loss", "mode=max"],
        [
            *("callbacks=[default,unfreeze,swa]", "callbacks.swa.start=0.3", ONE_CYCLE),
            *("model/optimizer=muon", "model/criterions=focal"),
        ],
        [
            *("data.num_workers=2", "trainer.precision=bf16-mixed", "trainer.max_steps=12", "trainer.max_epochs=-1"),
            *(CUTMIX, "data.sampler=balanced", "data/augment=[strong,color_jitter,vertical_flip]"),
        ],
        ["trainer=ddp_sim", "trainer.val_check_interval=2", "data.sampler=sqrt"],
    ],
    ids=lambda overrides: overrides[0].replace("trainer.", ""),
)
def test_whatever_is_switched_on_a_run_goes_on_to_the_same_bits(snapshots, command, overrides):
    whole, folders = snapshots(*overrides)
    assert len(folders) >= 4
    end_of_epoch = next(each for each in folders if not saved(each)["imago"]["progress"]["batch"])
    for folder in {folders[1], end_of_epoch} if "trainer=ddp_sim" not in overrides else {folders[1]}:
        check_the_same(resumed(command, folder), whole)


def test_killed_runs_end_as_one_that_nobody_killed():
    from kill_resume import PHASES, main

    tally = main(["--kills", str(len(PHASES)), "--configurations", "1", "--seed", "5"])
    assert sum(tally.kills.values()) >= len(PHASES)
    assert (tally.lost, tally.different) == (0, [])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_weights_do_not_depend_on_the_workers_nor_on_where_the_global_generators_stand(train):
    wanted = ["model=simple_cnn", "data.image_size=24", NO_STOPPING]
    weights = [train(*wanted, f"data.num_workers={count}").weights() for count in (0, 1, 3)]
    assert all(same(weights[0], each) for each in weights[1:])


def test_transforms_of_batches_and_of_pythons_generator_are_keyed_too(snapshots, command, tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "import random, numpy, torch\n"
        "class Noise(torch.nn.Module):\n"
        "    def forward(self, batch):\n"
        "        return {'image': batch['image'] + torch.rand_like(batch['image'])}\n"
        "class Shift(torch.nn.Module):\n"
        "    def forward(self, image):\n"
        "        return image.roll(random.randrange(9) + numpy.random.randint(9), -1)\n"
    )
    monkeypatch.chdir(tmp_path)
    noise = "+data.train_transform.batch.noise._target_=noisy.Noise"
    shift = "+data.train_transform.pixels.shift._target_=noisy.Shift"
    whole, folders = snapshots(noise, shift, "data.num_workers=2")
    check_the_same(resumed(command, folders[7], "data.num_workers=0"), whole)


def test_a_finished_run_is_left_as_it_is_and_more_epochs_go_on_in_it(train, command):
    run = train("trainer.max_epochs=2", NO_STOPPING, "logger=tensorboard", "model.scheduler=null")
    before = {path: path.stat().st_mtime_ns for path in run.dir.rglob("[!.]*") if path.is_file()}
    run_timing = run.json("status.json")["timing"]
    again = command("train", f"resume={run.dir}", folder=run.dir)
    assert again.exit_code == 0
    assert "contains a finished run (2 epochs): nothing to do" in again.output
    assert {path: path.stat().st_mtime_ns for path in run.dir.rglob("[!.]*") if path.is_file()} == before
    more = command("train", f"resume={run.dir}", "trainer.max_epochs=4", folder=run.dir)
    assert "Settings changed since the run began: trainer.max_epochs 2 -> 4" in more.output
    said = rf"Resumed at epoch 3 of 4, from {run.dir}/checkpoints/last.ckpt: 10 of 20 steps were done, in 0:\d\d"
    assert re.search(said, more.text("train.log"))
    assert more.json("status.json")["timing"]["compute"] > run_timing["compute"]
    assert [row["epoch"] for row in more.history] == [0, 1, 2, 3]
    assert more.history == train("trainer.max_epochs=4", NO_STOPPING, "model.scheduler=null").history
    (board,) = {path.parent for path in more.dir.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(board))
    events.Reload()
    assert [event.value for event in events.Scalars("val/acc")] == [row["val/acc"] for row in more.history]
    environment = more.json("reports/environment.json")
    assert len(environment["resumed"]) == 1
    changes = {change["key"]: change["value"] for change in run.json("reports/changes.json")}
    assert changes["trainer.max_epochs"] == 4  # compared with the defaults, as for a new run
    assert {"data.data_dir", "data.image_size", "model.scheduler._target_"} <= changes.keys()
    assert "resume" not in changes
    typed = " ".join(shlex.split(environment["command"].removeprefix("python src/train.py ")))
    assert re.search(r"^data\.data_dir=.*model\.scheduler=null.* trainer\.max_epochs=4$", typed)
    assert "max_epochs=2" not in typed
    assert re.search(rf"typed +{re.escape(typed)}\n", more.text("summary.txt"))
    assert "from_run" not in more.text(".hydra/hydra.yaml")


@pytest.mark.quick
def test_a_finished_run_stays_finished_when_what_is_typed_cannot_work(train, command):
    run = train("trainer.max_epochs=1")
    wrong = command("train", f"resume={run.dir}", "trainer.max_epochs=2", "monitor=acc", folder=run.dir)
    assert wrong.exit_code == 1
    assert "must name the stage too" in wrong.output
    assert "nothing to do" in command("train", f"resume={run.dir}", folder=run.dir).output


def test_a_seed_that_was_drawn_is_kept(train):
    words = ["seed=null", "trainer.max_epochs=1", NO_STOPPING]
    run = train(*words, "auto_resume=true")
    seed = re.search(r"drew seed=(\d+)", run.output).group(1)
    more = train(*words, "auto_resume=true", "trainer.max_epochs=2", folder=run.dir)
    assert more.exit_code == 0, more.output
    assert f"seed: {seed}" in more.text("config.yaml")
    assert "drew seed" not in more.output


def test_a_run_that_was_stopped_early_stays_stopped_unless_more_patience_is_typed(train, command):
    stop = ["callbacks.early_stopping.patience=1", "monitor=val/loss", "mode=max", "trainer.max_epochs=6"]
    run = train(*stop)
    epochs = len(run.history)
    assert epochs < 6
    status = json.loads((run.dir / "status.json").read_text())
    (run.dir / "status.json").write_text(json.dumps(status | {"status": "running"}))  # killed while it was scored
    scored = command("train", f"resume={run.dir}", folder=run.dir)
    assert len(scored.history) == epochs
    patient = command("train", f"resume={run.dir}", "callbacks.early_stopping.patience=5", folder=run.dir)
    assert len(patient.history) == 6


def test_a_run_that_was_stopped_by_a_threshold_stays_stopped(train, command):
    run = train("+callbacks.early_stopping.stopping_threshold=100", "monitor=val/loss", "mode=min")
    assert len(run.history) == 1
    assert "Early stopping after epoch 1" in run.output
    status = json.loads((run.dir / "status.json").read_text())
    (run.dir / "status.json").write_text(json.dumps(status | {"status": "running"}))
    assert len(command("train", f"resume={run.dir}", folder=run.dir).history) == 1


def test_what_is_typed_of_optimizer_and_scheduler_holds_when_a_run_goes_on(snapshots, command):
    _, folders = snapshots("model.scheduler=null")
    typed = ["model.optimizer.lr=0.5", "model.optimizer.weight_decay=0.25", "trainer.max_epochs=2"]
    run = resumed(command, folders[7], *typed)
    assert run.exit_code == 0, run.output
    (group,) = run.checkpoint()["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_torchs_own_schedules_take_more_epochs(train, command):
    run = train(ONE_CYCLE, NO_STOPPING)
    more = command("train", f"resume={run.dir}", "trainer.max_epochs=4", folder=run.dir)
    assert more.exit_code == 0, more.output
    assert len(more.history) == 4
    (scheduler,) = more.checkpoint()["lr_schedulers"]
    assert (scheduler["total_steps"], scheduler["last_epoch"]) == (20, 20)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_checkpoint_of_another_callback_at_the_last_batch_keeps_the_epoch(snapshots, command):
    own = "_target_: lightning.pytorch.callbacks.ModelCheckpoint, every_n_train_steps: 5, enable_version_counter: false"
    own += ", dirpath: '${paths.output_dir}/checkpoints', filename: best"
    other = ["callbacks.resume=null", "callbacks.model_checkpoint=null", "+callbacks.snapshots.file=best.ckpt"]
    whole, folders = snapshots(*other, f"+callbacks.own={{{own}}}")
    rest = resumed(command, folders[0])
    assert rest.exit_code == 0, rest.output
    assert rest.history == whole.history
    assert logged(rest.dir) == logged(whole.dir)


def test_the_same_command_goes_on_where_it_is_told_to(train, of_plain_run):
    whole, copied = of_plain_run
    unfinished, other_folder = copied(5), copied(6)
    words = ["trainer.max_epochs=3", "callbacks.resume.every_n_train_steps=1", "logger=csv"]
    auto = "auto_resume=true"
    assert "add hydra.run.dir=FOLDER" not in train(*words, auto, folder=unfinished).output
    assert same(train(*words, auto, folder=unfinished).weights(), whole.weights())
    assert "nothing to do" in train(*words, auto, folder=unfinished).output
    other = train(*words, auto, "model.optimizer.lr=0.5", folder=unfinished)
    assert other.exit_code == 1
    assert "a finished run with other settings: model.optimizer.lr 0.01 -> 0.5" in other.output
    refused = train(*words, folder=other_folder)
    assert refused.exit_code == 1
    assert f"resume={other_folder}" in refused.output


def test_a_finished_run_with_a_network_of_ones_own_is_known(train, tmp_path, monkeypatch):
    """The network does not take the arguments of the one that it replaces."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "class Plain(nn.Sequential):\n"
        "    def __init__(self, num_classes: int) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["model=simple_cnn", "model.net={_target_: plain.Plain}", "trainer.max_epochs=1", "test=false"]
    first, again = (train(*words, "auto_resume=true", folder=tmp_path / "run") for _ in range(2))
    assert first.exit_code == 0, first.output
    assert "contains a finished run (1 epoch): nothing to do" in again.output


def test_a_run_without_a_checkpoint_begins_anew(train, command):
    run = train("trainer.max_epochs=1", "model.optimizer.lr=0.003")
    shutil.rmtree(run.dir / "checkpoints")
    status = json.loads((run.dir / "status.json").read_text())
    (run.dir / "status.json").write_text(json.dumps(status | {"status": "running"}))
    again = command("train", f"resume={run.dir}", folder=run.dir)
    assert again.exit_code == 0, again.output
    assert "lr: 0.003" in again.text("config.yaml")
    assert again.history == run.history


def test_latest_is_the_newest_run_and_keeps_its_own_settings(command, colours, tmp_path):
    small = [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=1", "name=mine", "+params.mine=3"]
    folder = tmp_path / "logs" / "train" / "runs" / "first"
    run = command("train", *small, folder=folder)
    assert run.exit_code == 0, run.output
    more = command("train", "resume=latest", "trainer.max_epochs=2", folder=folder)
    assert more.exit_code == 0, more.output
    assert len(more.history) == 2
    assert "name: mine" in more.text("config.yaml")
    assert "mine: 3" in more.text("config.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=/nowhere"], "/nowhere is not a run folder"),
        (["resume={run}", "experiment=digits"], "remove experiment="),
        (["resume={run}", "ckpt_path=x.ckpt"], "remove ckpt_path="),
        (["resume={run}", "-m"], "remove -m"),
        (["resume={run}", "train=false", "trainer.max_epochs=5"], "remove train=false and preflight=only"),
        (["resume={run}", "debug=preflight", "preflight=only"], "remove debug="),
        (["resume={run}", "trainer.max_epoch=3"], "trainer.max_epochs"),
        (["auto_resume=true", "hydra.job.name=x"], "add hydra.run.dir=FOLDER"),
    ],
)
def test_what_cannot_go_on_is_said(trained, colours, tmp_path, words, message):
    words = [word.format(run=trained.dir) for word in words]
    given = [*words, f"paths.log_dir={tmp_path}/logs"]
    if "auto_resume=true" in words:
        given += [f"data.data_dir={colours}", *SMALL]
    done = type_in_subprocess(*given)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def content_of(folder: Path) -> dict[str, bytes]:
    """The files of a run folder, without its log."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("train.log", ".lock")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_other_batches_are_refused_within_an_epoch_and_said_between_two(of_plain_run, command):
    whole, copied = of_plain_run
    middle = copied(6)
    before = content_of(middle)
    for number, override in ((4, "data.batch_size=4"), (9, "trainer.accumulate_grad_batches=2"), (None, "seed=7")):
        refused = resumed(command, middle, override)
        assert refused.exit_code == 1
        name, value = override.split("=")
        assert "from the middle of epoch 2 (batch 2), and the batches that follow would differ" in refused.output
        changed = re.search(rf"{name}: (\w+), now {value}", refused.output)
        assert changed is not None
        assert f"To resume, type {name}={changed[1]}. To train with the new settings" in refused.output
        assert f"type ckpt_path={middle}/checkpoints/best.ckpt in place of resume=" in refused.output
        assert content_of(middle) == before
        if number is not None:
            end = copied(number)
            assert saved(end)["imago"]["progress"]["batch"] == 0
            said = resumed(command, end, override)
            assert said.exit_code == 0, said.output
            assert "The batches of the next epochs differ from those before" in said.output
    check_the_same(resumed(command, middle), whole)  # its own settings are not lost


def test_other_data_are_refused_within_an_epoch(snapshots, command, own_colours):
    _, folders = snapshots(f"data.data_dir={own_colours}")
    (own_colours / "train" / "red" / "000.png").unlink()
    refused = resumed(command, folders[6])
    assert refused.exit_code == 1
    assert "the data (fingerprint)" in refused.output


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(of_plain_run, command):
    whole, copied = of_plain_run
    folder, lost = copied(8), copied(9)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    weights = torch.load(last, weights_only=True)["state_dict"]["net.head.weight"].numpy().tobytes()
    content[content.find(weights)] ^= 1  # one bit of a weight
    last.write_bytes(content)
    run = resumed(command, folder)
    assert "last.ckpt cannot be used" in run.output
    assert f"Resuming from {folder}/checkpoints/previous.ckpt" in run.output
    check_the_same(run, whole)
    for name in ("best", "last"):
        (lost / "checkpoints" / f"{name}.ckpt").write_bytes(b"")
    (lost / "checkpoints" / "previous.ckpt").write_bytes(b"")
    done = type_in_subprocess(f"resume={lost}")
    assert done.returncode == 1
    assert "No checkpoint in" in done.stdout


def test_a_run_of_an_earlier_version_is_refused_and_kept(of_plain_run, command):
    folder = of_plain_run[1](8)
    for file in (folder / "checkpoints").iterdir():
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["imago"]["schema"] = 1
        torch.save(checkpoint, file)
    before = content_of(folder)
    refused = resumed(command, folder)
    assert refused.exit_code == 1
    assert refused.last_line.endswith("was written by Imago 0.1. Train again, or install Imago 0.1.")
    assert content_of(folder) == before


@pytest.fixture(scope="module")
def undisturbed(colours, tmp_path_factory):
    """Three epochs that nothing interrupts. Not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=3", NO_STOPPING, f"paths.log_dir={folder}/logs"]
    return type_command("train", words, folder / "run")


SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "preempted"), (signal.SIGUSR1, 143, "preempted")]


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "status", "override"),
    [
        *((*each, "trainer=cpu") for each in SIGNALS),
        (signal.SIGHUP, 143, "preempted", "trainer=cpu"),
        (*SIGNALS[1], "trainer=ddp_sim"),
        (*SIGNALS[1], "+callbacks.signal.group=true"),
    ],
)
def test_a_signal_ends_the_step_saves_and_is_recorded(
    command, undisturbed, tmp_path, colours, number, code, status, override
):
    """To a group: as `timeout`, and schedulers, send it; the loader's workers get it too."""
    words = [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=3", override, NO_STOPPING]
    send = ["+callbacks.signal._target_=snapshots.Signal", f"+callbacks.signal.number={int(number)}"]
    trainer = [override] if override.startswith("trainer") else []
    if not trainer:
        words.append("data.num_workers=2")
    folder = tmp_path / "run"
    done = type_in_subprocess(*words, *send, "+callbacks.signal.batch=6", f"hydra.run.dir={folder}")
    assert done.returncode == code, done.stdout + done.stderr
    recorded = json.loads((folder / "status.json").read_text())
    assert recorded["status"] == status
    assert f"Resume with: python src/train.py resume={folder}" in recorded["error"]
    assert done.stdout.strip().endswith(recorded["error"])
    assert "Traceback" not in done.stdout + done.stderr
    assert saved(folder)["global_step"] == recorded["step"] == 7  # nothing is lost
    assert done.stdout.count("stopping after this step") == 1
    rest = command("train", f"resume={folder}", "callbacks.signal=null", folder=folder)
    assert rest.exit_code == 0, rest.output
    assert [row["epoch"] for row in rest.history] == [0, 1, 2]
    if override != "trainer=ddp_sim":  # test_whatever_is_switched_on compares the bits of two processes
        assert same(rest.weights(), undisturbed.weights())
        assert rest.history == undisturbed.history


def test_a_job_that_slurm_ends_is_queued_again_and_goes_on(tmp_path, colours):
    """`srun` and `scontrol` are stand-ins; SIGUSR1 is what Slurm sends before the time limit. The job is a task of an
    array, and `%a` its number."""
    (tmp_path / "bin").mkdir()
    for name, does in (
        ("srun", 'SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 exec "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/queued'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "src").symlink_to(REPO / "src")
    send = ["+callbacks.signal._target_=snapshots.Signal", f"+callbacks.signal.number={int(signal.SIGUSR1)}"]
    words = [f"data.data_dir={colours}", *SMALL, NO_STOPPING, *send, "+callbacks.signal.batch=6"]
    words.append("seed=%a")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "imago"}
    environment |= {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "1"}
    environment |= {"PYTHONPATH": str(REPO / "tests"), "PYTHONWARNINGS": "ignore"}
    statuses = []
    for _ in range(2):
        job = ["bash", REPO / "scripts" / "train.slurm", *words]
        done = subprocess.run(job, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        statuses.append(done.returncode)
    assert statuses == [143, 0], done.stdout + done.stderr
    assert (tmp_path / "queued").read_text() == "requeue 4711_3\n"
    folder = tmp_path / "logs" / "slurm" / "4711_3"
    assert "Resumed at epoch 2 of 2, batch 3 of 5, from" in done.stdout
    assert "seed: 3\n" in (folder / "config.yaml").read_text()
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["times_resumed"], status["epoch"]) == ("completed", 1, 2)


def test_the_slurm_script_says_what_to_type_where_slurm_has_not_started_it():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    job = ["bash", "scripts/train.slurm", "experiment=digits"]
    done = subprocess.run(job, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "This is a job script of Slurm. Type: sbatch scripts/train.slurm experiment=digits\n"
        "Without Slurm, type: python src/train.py experiment=digits\n"
    )


def test_the_page_explains_each_line_of_the_slurm_script():
    script = (REPO / "scripts" / "train.slurm").read_text()
    page = (REPO / "docs" / "devices.md").read_text()
    options = re.findall(r"^#SBATCH (--\S+)", script, re.MULTILINE)
    assert len(options) > 5
    assert [option for option in options if f"`{option}`" not in page] == []


def test_a_second_signal_does_not_hide_how_the_run_ended(tmp_path, colours):
    again = "import os, signal\nfrom imago.run.folder import RunFolder\noriginal = RunFolder.update\n"
    again += "def update(self, **status):\n"
    again += "    if status.get('status') == 'preempted': os.kill(os.getpid(), signal.SIGTERM)\n"
    again += "    original(self, **status)\nRunFolder.update = update\n"
    send = ["+callbacks.signal._target_=snapshots.Signal", "+callbacks.signal.number=15", "+callbacks.signal.batch=1"]
    words = [f"data.data_dir={colours}", *SMALL, f"hydra.run.dir={tmp_path}/run", *send]
    assert type_in_subprocess(*words, code=again).returncode == 143
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "preempted"


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        (["trainer.val_check_interval=2"], 14),
        ([], 20),
        (["trainer.val_check_interval=5", "trainer.accumulate_grad_batches=3"], 6),
        (["trainer.val_check_interval=2", "callbacks=[default,ema]"], 15),
    ],
    ids=["in an epoch", "at its end", "in an accumulation", "of averaged weights"],
)
def test_a_signal_in_a_validation_keeps_all_training(train, command, monkeypatch, overrides, step):
    monkeypatch.setenv("PYTHONPATH", str(REPO / "tests"))
    words = ["trainer.max_epochs=3", NO_STOPPING, "logger=csv", "data.batch_size=4", *overrides]
    send = ["+callbacks.signal._target_=snapshots.Signal", "+callbacks.signal.number=15", "+callbacks.signal.batch=13"]
    stopped = train(*words, *send, "+callbacks.signal.in_validation=true")
    assert stopped.exit_code == 143
    assert stopped.checkpoint()["global_step"] == stopped.json("status.json")["step"] == step
    rest = command("train", f"resume={stopped.dir}", "callbacks.signal=null", folder=stopped.dir)
    check_the_same(rest, train(*words))


def test_a_second_ctrl_c_stops_at_once(tmp_path, colours):
    words = [f"data.data_dir={colours}", *SMALL, f"hydra.run.dir={tmp_path}/run"]
    send = ["+callbacks.signal._target_=snapshots.Signal", "+callbacks.signal.number=2", "+callbacks.signal.batch=1"]
    done = type_in_subprocess(*words, *send, "+callbacks.signal.times=2")
    assert done.returncode == 130
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_fewer_epochs_than_the_checkpoint_has_are_refused():
    checkpoint = {"imago": {"progress": {"epoch": 2}}}
    with pytest.raises(UserError, match=r"^trainer.max_epochs=1: the checkpoint has 2 epochs already. Type a larger"):
        check_epochs(1, checkpoint)
    check_epochs(2, checkpoint)
    check_epochs(-1, checkpoint)

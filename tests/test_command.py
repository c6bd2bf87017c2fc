"""The command line as a whole: start-up, errors, signals."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPO, SMALL, type_in_subprocess
from PIL import Image

from imago.run.folder import RunFolder, RunFolderError
from imago.run.lock import is_taken
from imago.status import true_state


def python(*words: str, cwd: Path = REPO, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_and_config_import_nothing_heavy(script, flag):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], *sys.argv[2].split('=')]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'torchvision', 'lightning', 'numpy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = python("-c", code, f"src/{script}", flag)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    assert "data_dir" in done.stdout


def test_a_clone_runs_from_any_folder(tmp_path, colours):
    done = python(
        "-W",
        "ignore",
        str(REPO / "src" / "train.py"),
        f"data.data_dir={colours}",
        *SMALL,
        "debug=fdr",
        f"paths.log_dir={tmp_path}/logs",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "logs" / "debug" / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["status"] == "completed"
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.quick
def test_without_data_three_lines_say_what_to_type(command):
    run = command("train", "data=image_folder")
    assert run.exit_code == 1
    for words in ("python src/train.py data.data_dir=PATH", "python src/train.py experiment=digits"):
        assert words in run.output
    assert len(run.error.splitlines()) == 3
    assert "Traceback" not in run.output
    assert not run.dir.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.data_dir=/nowhere", "data.data_dir=/nowhere does not exist"),
        ("model.net.name=resnet81", "resnet18"),
        ("data.on_bad_image=maybe", "must be error or skip"),
        ("ckpt_path=/nowhere.ckpt", "ckpt_path=/nowhere.ckpt does not exist"),
        (
            "monitor=val/acurracy",
            "monitor=val/acurracy: acurracy is not logged. Type monitor=val/NAME, where NAME is one of acc, "
            "balanced_acc, precision, recall, f1, loss, loss/ce.",
        ),
        ("monitor=val/accuracy", "accuracy is not logged. Did you mean monitor=val/acc? Type"),
        ("optimized_metric=val/acc_best", "never gets worse. Type optimized_metric=val/acc: its best value counts"),
        ("callbacks.early_stopping.monitor=val/los", "Did you mean callbacks.early_stopping.monitor=val/loss?"),
        ("mode=best", "mode must be min or max, got best"),
        ("model.freeze=head", "model.freeze must be backbone"),
        ("model.freeze_batch_norm=true", "model.freeze_batch_norm=true needs pretrained weights"),
        ("callbacks.ema.start=2", "callbacks.ema.start must be a fraction of the run"),
        ("report.splits=[tset]", "Unknown split tset. The splits are train, val, calibration, test"),
        ("monitor=acc", "monitor must name the stage too, for example monitor=val/acc"),
        ("model.optimizer.lr=fast", "model.optimizer.lr must be a number, got fast"),
        ("data.image_size=[32,32,3]", "data.image_size must be the side of a square (1 or more) or [height,width]"),
        ("seed=-1", "seed must be a whole number from 0 to 2**32 - 1, or null; got -1"),
        ("trainer.accelerator=gpu", "this machine has no GPU. Type trainer=cpu"),
        ("trainer.limit_test_batches=0", "leaves nothing of test to score: type test=false"),
    ],
)
def test_mistakes_end_in_one_message_and_a_status(train, override, message):
    if override == "trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    net = ["model=torchvision", "model.net.weights=null"] if "net.name" in override else []
    net += ["callbacks=[default,ema]"] if "ema" in override else []
    run = train(*net, "trainer.max_epochs=1", override)
    assert run.exit_code == 1
    assert message in run.error
    assert "Traceback" not in run.output
    assert run.last_line.endswith(run.error.splitlines()[-1])
    if run.dir.exists():  # the settings were sound, as far as one can see without the data
        assert run.json("status.json")["status"] == "failed"
        assert "failed" in run.text("summary.txt")
        assert "Traceback" in run.text("train.log")


@pytest.mark.quick
@pytest.mark.parametrize("override", ["data.batchsize=3", "trainr=cpu", "model=resnet19"])
def test_unknown_keys_and_options_fail_before_anything_is_made(train, override):
    run = train(override)
    assert run.exit_code == 1
    assert override.partition("=")[2] in run.output or override.partition("=")[0] in run.output
    assert not run.dir.exists()


def test_a_stray_key_of_an_experiment_is_named(train, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "stray.yaml").write_text("# @package _global_\nlearning_rate: 3\n")
    run = train(f"--config-dir={tmp_path}/mine", "experiment=stray")
    assert run.exit_code == 1
    assert "learning_rate" in run.output
    assert "experiment/stray" in run.output


def test_a_bad_image_is_named_and_the_last_checkpoint_stays(train, own_colours):
    before = train(f"data.data_dir={own_colours}", "test=false")
    kept = before.weights()
    Image.new("RGB", (64, 64)).save(own_colours / "val" / "red" / "cut.jpg")
    whole = (own_colours / "val" / "red" / "cut.jpg").read_bytes()
    (own_colours / "val" / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    run = train(f"data.data_dir={own_colours}")
    assert run.exit_code == 1
    assert f"{own_colours}/val/red/cut.jpg" in run.error
    assert "data.on_bad_image=skip" in run.error
    skipping = train(f"data.data_dir={own_colours}", "data.on_bad_image=skip")
    assert skipping.exit_code == 0
    assert skipping.json("reports/metrics_test.json")["n"] == 15
    assert "skipped 1 file" in skipping.text("summary.txt")
    assert kept.keys() == before.weights().keys()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(train, tmp_path, monkeypatch):
    (tmp_path / "breaking.py").write_text(
        "import torch\n"
        "class Breaks(torch.nn.CrossEntropyLoss):\n"
        "    calls = 0\n"
        "    def forward(self, input, target):\n"
        "        self.calls += torch.is_grad_enabled()\n"
        "        return super().forward(input, target) * (float('nan') if self.calls == 8 else 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train("model.criterions.criterions.ce._target_=breaking.Breaks", "trainer.max_epochs=3")
    assert run.exit_code == 1
    assert "The loss became nan in epoch 2, batch 3 (step 7)" in run.error
    assert run.checkpoint("last")["epoch"] == 0
    assert run.json("status.json")["epoch"] == 1


def test_a_network_that_diverged_is_not_taken_for_trained(train):
    run = train("model/optimizer=sgd", "model.optimizer.lr=1e30", "trainer.limit_train_batches=1")
    assert run.exit_code == 1
    assert "The loss became nan in epoch 1, after validation" in run.error
    assert not list(run.dir.glob("checkpoints/*"))


def test_a_folder_that_a_living_process_uses_is_refused_even_to_one_that_goes_on(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from imago.run.folder import RunFolder\n"
        "run = RunFolder.claim(Path(sys.argv[1])); run.start(); print(os.getpid(), flush=True)\n"
        "if os.fork() == 0: os.close(1); input(); os._exit(0)  # a loader worker that outlives its run\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO / "src"
    ) as other:
        pid = int(other.stdout.readline())
        for goes_on in (False, True):
            with pytest.raises(RunFolderError, match=f"in use by process {pid}"):
                RunFolder.claim(tmp_path, goes_on)
            (tmp_path / "status.json").write_text('{"status": "running", "pid": 1}')  # of the process before
        assert is_taken(tmp_path)
        other.kill()  # and the worker lives on
        other.wait()
        RunFolder.claim(tmp_path).release()
        other.stdin.close()
    assert not is_taken(tmp_path)


@pytest.mark.quick
def test_a_finished_run_is_not_overwritten(train):
    first = train("test=false")
    before = {path: path.stat().st_mtime_ns for path in first.dir.rglob("[!.]*") if path.is_file()}
    again = train("test=false", folder=first.dir)
    assert again.exit_code == 1
    assert "contains a finished run" in again.output
    assert {path: path.stat().st_mtime_ns for path in first.dir.rglob("[!.]*") if path.is_file()} == before


@pytest.mark.quick
def test_a_dead_run_is_used_again_only_without_a_checkpoint(tmp_path):
    run = RunFolder.claim(tmp_path)
    run.start()
    run.update(status="failed")
    RunFolder.claim(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "checkpoints" / ".last.ckpt.4711.tmp").touch()
    with pytest.raises(RunFolderError, match=f"resume={tmp_path}"):
        RunFolder.claim(tmp_path)
    assert RunFolder.claim(tmp_path, goes_on=True).former["status"] == "failed"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    (tmp_path / "status.json").write_text("{")  # damaged: the checkpoint is still somebody's
    with pytest.raises(RunFolderError, match=f"resume={tmp_path}"):
        RunFolder.claim(tmp_path)
    run.release()


def test_a_run_that_was_killed_before_it_wrote_anything_is_no_strange_folder(tmp_path):
    (tmp_path / ".status.json.4711.tmp").touch()
    run = RunFolder.claim(tmp_path)
    assert not (tmp_path / ".status.json.4711.tmp").exists()
    run.release()


def test_a_disk_without_locks_does_not_keep_runs_from_starting(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    run = RunFolder.claim(tmp_path)
    run.start()
    with pytest.raises(OSError, match="No locks"):
        is_taken(tmp_path)
    assert true_state(tmp_path, run.status) == "running"  # by its heartbeat
    (tmp_path / "status.json").write_text(json.dumps(run.status | {"pid": os.getppid()}))
    with pytest.raises(RunFolderError, match="in use by process"):
        RunFolder.claim(tmp_path)


def test_a_log_folder_that_cannot_be_written_is_said(tmp_path, colours):
    (tmp_path / "file").touch()
    done = python("src/train.py", f"data.data_dir={colours}", f"paths.log_dir={tmp_path}/file/logs")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The run folder cannot be created")
    assert f"{tmp_path}/file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_with_files_of_something_else_is_refused(train, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("precious")
    run = train(folder=tmp_path / "mine")
    assert run.exit_code == 1
    assert "has files, but is not a run folder" in run.output
    assert (tmp_path / "mine" / "config.yaml").read_text() == "precious"
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_null_group_gets_the_right_words(train):
    assert train("logger=null").last_line == "Error: logger=null: a config group cannot be null. Type logger=[]"


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, colours):
    """A limit on the size of files stands in for a full disk: the writer sees the same kind of error."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    words = [f"data.data_dir={colours}", *SMALL, "model=simple_cnn", f"hydra.run.dir={tmp_path}/run"]
    done = type_in_subprocess(*words, code=limit)
    assert done.returncode == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "failed"
    assert f"{tmp_path}/run/checkpoints/.preflight.tmp could not be written" in status["error"]
    assert "MB are free" in status["error"]
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert "Traceback" not in done.stdout + done.stderr

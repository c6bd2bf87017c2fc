import csv
import importlib
import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import SMALL, Run, draw_classes
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss

import imago
from imago.checkpoint.fits import code_digests
from imago.checkpoint.read import SCHEMA, read_checkpoint
from imago.config.carried import checkpoint_config, read_checkpoint_config
from imago.config.own_code import OWN_CODE, allow_imports
from imago.model.contract import make_net

SPLITS = ("train", "val", "test")


@pytest.fixture
def evaluate(command, trained):
    """Scores a checkpoint (the best of `trained`), which needs nothing else."""

    def run_it(*overrides: str, ckpt_path=trained.dir):
        return command("eval", f"ckpt_path={ckpt_path}", *overrides)

    return run_it


@pytest.mark.quick
def test_a_run_folder_is_scored_as_it_was_at_the_end_of_training(evaluate, trained):
    run = evaluate("split=[train,val,test]")
    assert run.exit_code == 0, run.output
    for split in SPLITS:
        for name in (f"metrics_{split}.json", f"predictions_{split}.csv", f"confusion_matrix_{split}.csv"):
            assert run.text(f"reports/{name}") == trained.text(f"reports/{name}")
    assert run.json("status.json")["status"] == "completed"
    assert (run.dir / "eval.log").exists()


def test_a_run_that_moved_and_lost_its_experiment_is_scored_elsewhere(command, colours, tmp_path, monkeypatch):
    """Five overrides, a relative path, a config of one's own: none of it is there any more."""
    monkeypatch.chdir(colours.parent)
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nparams: {width: 24}\ndata: {image_size: '${params.width}'}\n"
        "model: {optimizer: {lr: 0.02}}\n"
    )
    words = [word for word in SMALL if not word.startswith("data.image_size")]
    more = ["experiment=mine", "seed=7", "data.eval_transform.box.share=0.9", "monitor=val/loss", "params.width=20"]
    run = command("train", f"--config-dir={own}", f"data.data_dir={colours.name}", *words, *more)
    assert run.exit_code == 0, run.output
    moved = shutil.move(run.dir, tmp_path / "elsewhere")
    shutil.rmtree(own)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    scored = command("eval", f"ckpt_path={moved}")
    assert scored.exit_code == 0, scored.output
    for name in ("metrics_test.json", "predictions_test.csv"):
        assert scored.text(f"reports/{name}") == (moved / "reports" / name).read_text()


def test_what_is_typed_wins_and_reaches_what_depends_on_it(evaluate):
    run = evaluate("seed=3", "data.batch_size=5", "trainer=amp", "callbacks.early_stopping=null")
    assert run.exit_code == 0, run.output
    told = run.text("config.yaml")
    assert "precision: auto-mixed" in told
    assert told.count("seed: 3") == 2  # ${seed} in the data; the flip is for training
    assert run.json("reports/metrics_test.json")["n"] == 15


def test_another_option_of_a_group_can_be_typed(evaluate, colours):
    run = evaluate("data=image_folder", f"data.data_dir={colours}", "data.image_size=16", "data.num_workers=0")
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["n"] == 15


def test_latest_is_the_newest_run_with_a_checkpoint(train, command, tmp_path):
    for number, seed in enumerate((1, 2)):
        run = train(f"seed={seed}", "trainer.max_epochs=1", folder=tmp_path / "logs" / "train" / "runs" / f"{number}")
        assert run.exit_code == 0, run.output
    (tmp_path / "logs" / "train" / "runs" / "2" / "checkpoints").mkdir(parents=True)
    scored = command("eval", "ckpt_path=latest")
    assert scored.exit_code == 0, scored.output
    assert f"ckpt_path=latest: {run.dir}/checkpoints/best.ckpt" in scored.output
    assert scored.text("reports/predictions_test.csv") == run.text("reports/predictions_test.csv")
    resumed = command("train", f"resume={scored.dir}")
    assert f"{scored.dir} is not a run of ml-train" in resumed.output
    assert resumed.exit_code == 1


def test_there_is_no_latest_in_an_empty_folder(command):
    assert "no run in" in command("eval", "ckpt_path=latest").output


def test_scores_do_not_depend_on_batch_size_or_workers(evaluate):
    one, four = evaluate("data.batch_size=1"), evaluate("data.batch_size=4", "data.num_workers=2")
    ours, theirs = one.json("reports/metrics_test.json"), four.json("reports/metrics_test.json")
    assert ours["per_class"] == theirs["per_class"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_any_number_of_processes_writes_the_same_metrics(evaluate, tmp_path):
    """Seven images in batches of three: one process has no batch at all."""
    few = draw_classes(tmp_path / "few" / "train", {"blue": 2, "green": 2, "red": 2}).parent
    draw_classes(few / "val", {"blue": 3, "green": 2, "red": 2}, seed=1)
    words = [f"data.data_dir={few}", "data.batch_size=4", "trainer=ddp_sim", "trainer.precision=bf16-mixed"]
    runs = [evaluate(*words, f"trainer.devices={n}") for n in (1, 3)]
    assert [run.exit_code for run in runs] == [0, 0], runs[-1].output
    assert runs[0].json("reports/metrics_test.json")["n"] == 7
    for name in ("metrics_test.json", "predictions_test.csv"):
        assert runs[0].text(f"reports/{name}") == runs[1].text(f"reports/{name}")


def test_the_pretrained_weights_are_not_looked_for(command, train):
    words = ["model=resnet18", "model.net.name=mobilenet_v3_small", "data.image_size=32", "model.net.weights=null"]
    run = train(*words, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false")
    scored = command("eval", f"ckpt_path={run.dir}", "model.net.weights=DEFAULT")
    assert scored.exit_code == 0, scored.output


def test_odd_file_names_come_back_from_the_csv(evaluate, own_colours):
    names = ["a,b.png", '"quoted".png', "new\nline.png", "=1+1.png", "ünïcødé 猫.png"]
    for name, path in zip(names, sorted((own_colours / "val" / "red").iterdir()), strict=True):
        path.rename(path.with_name(name))
    run = evaluate(f"data.data_dir={own_colours}")
    assert run.exit_code == 0, run.output
    with (run.dir / "reports" / "predictions_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {f"val/red/{name}" for name in names} <= {row["path"] for row in rows}
    metrics = run.json("reports/metrics_test.json")
    labels = [row["label"] for row in rows]
    assert metrics["acc"] == accuracy_score(labels, [row["prediction"] for row in rows])
    probabilities = [[float(row[f"prob_{name}"]) for name in ("blue", "green", "red")] for row in rows]
    assert metrics["cross_entropy"] == pytest.approx(log_loss(labels, probabilities))


def test_checkpoints_carry_their_run_in_plain_types(trained):
    told = trained.checkpoint("best")["imago"]
    assert told["schema"] == SCHEMA
    assert told["class_names"] == ["blue", "green", "red"]
    assert told["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert told["eval_transform"]["box"] == {"_target_": "imago.data.CenterBox", "share": 0.875}
    assert told["image_size"] == 16
    assert told["data"]["counts"] == {
        "train": {"blue": 14, "green": 12, "red": 13},
        "val": {"blue": 5, "green": 5, "red": 5},
    }
    assert told["best_value"] == max(row["val/acc"] for row in told["history"])
    assert set(told["git"]) == {"commit", "dirty"}
    assert set(told["versions"]) == {"imago", "torch", "torchvision", "python"}
    content = read_checkpoint_config(told["config"], "x")
    assert content["data"]["seed"] == "${seed}"
    assert "accelerator" not in content["trainer"]
    assert "paths" not in content


def test_what_reads_the_environment_becomes_its_value_and_secrets_stay_out(monkeypatch):
    from omegaconf import OmegaConf

    monkeypatch.setenv("PHOTOS", "/photos")
    monkeypatch.setenv("HUB_TOKEN", "hidden")
    cfg = OmegaConf.create(
        {
            "data": {"data_dir": "${oc.env:PHOTOS}/a", "seed": "${seed}", "login": "${oc.env:HUB_TOKEN}"},
            "model": {"_target_": "${params.net}"},
            "trainer": {"max_epochs": 1, "devices": 4},
            "params": {"net": "my.Tokenizer"},
            "seed": 1,
            "logger": {"key": "x"},
        }
    )
    content = read_checkpoint_config(checkpoint_config(cfg), "x")
    assert content["data"] == {"data_dir": "/photos/a", "seed": "${seed}", "login": None}
    assert content["model"] == {"_target_": "my.Tokenizer"}
    assert content["trainer"] == {"max_epochs": 1}
    assert "logger" not in content


def wholly_pickled(path):
    torch.save(torch.nn.Linear(2, 2), path)


def lightning(path):
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": {}, "epoch": 1}, path)


def of_version_0_1(path):
    torch.save({"state_dict": {}, "imago": {"schema": 1}}, path)


def newer(path):
    torch.save({"state_dict": {}, "imago": {"schema": SCHEMA + 1, "versions": {"imago": "9.0"}}}, path)


def older(path):
    torch.save({"state_dict": {}, "imago": {"class_names": []}}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "does not exist"),
        (lambda path: path.touch(), "is damaged or not a checkpoint of Imago"),
        (lambda path: path.write_text("some text"), "is damaged or not a checkpoint of Imago"),
        (
            lambda path: torch.save({"fc.weight": torch.zeros(2)}, path),
            "is a state dict of 1 tensors. To train with it",
        ),
        (lambda path: torch.save({"model": {"w": torch.zeros(1)}}, path), "has its weights under 'model'"),
        (lambda path: torch.save([1, 2], path), "is not a checkpoint of Imago: it holds a list"),
        (lightning, "comes from another Lightning project"),
        (wholly_pickled, "contains torch.nn.modules.linear.Linear, which is not allowed in a checkpoint"),
        (of_version_0_1, "was written by Imago 0.1. Train again, or install Imago 0.1."),
        (newer, f"has schema {SCHEMA + 1}, written by Imago 9.0"),
        (older, "has no config: it was written by an earlier version"),
        (lambda path: path.mkdir(), "is a folder without checkpoints/best.ckpt"),
    ],
)
def test_what_is_no_checkpoint_is_said(evaluate, tmp_path, write, message):
    path = tmp_path / "given.ckpt"
    if write is not None:
        write(path)
    run = evaluate(ckpt_path=path)
    assert run.exit_code == 1
    assert message in run.output
    assert str(path) in run.output
    assert "Traceback" not in run.output


def test_half_a_checkpoint_is_said(evaluate, trained, tmp_path):
    whole = (trained.dir / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in evaluate(ckpt_path=tmp_path / "half.ckpt").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ckpt_path is missing. Type ckpt_path=RUN"),
        (["ckpt_path="], "ckpt_path is missing"),
        (["ckpt_path=https://example.org/best.ckpt"], "curl -L -o best.ckpt 'https://example.org/best.ckpt'"),
        (["ckpt_path=[a.ckpt,b.ckpt]"], "ckpt_path must be one checkpoint"),
        (["-m", "ckpt_path=a.ckpt,b.ckpt"], "checkpoints cannot be swept"),
        (["CKPT", "split=[]"], "split must name at least one of train, val, test"),
        (["CKPT", "split=valid"], "Unknown split valid"),
        (["CKPT", "report.splits=[val]"], "applies to training only. To choose what is scored, type split=test"),
        (["CKPT", "data.batchsize=3"], "Did you mean data.batch_size=3?"),
        (["CKPT", "calibrate=true", "coverage=1.5"], "coverage must be a number between 0 and 1"),
        (["CKPT", "calibrate=true", "coverage=90%"], "Type coverage=0.9"),
        (["CKPT", "calibrate=true", "target_accuracy=99"], "Type target_accuracy=0.99"),
        (["CKPT", "conf=0.5"], "Type calibrate=true target_accuracy=0.95"),
        (["CKPT", "tta=flip"], "ml-inference ckpt_path=RUN split=test tta=flip"),
        (["CKPT", "model=simple_cnn"], "does not fit the network of this run"),
    ],
)
def test_what_cannot_be_scored_is_said(command, trained, words, message):
    run = command("eval", *(f"ckpt_path={trained.dir}" if word == "CKPT" else word for word in words))
    assert run.exit_code == 1
    assert message in run.output
    assert "Traceback" not in run.output


def test_going_on_with_another_network_is_said(train, trained):
    resumed = train("model=simple_cnn", f"ckpt_path={trained.dir}/checkpoints/last.ckpt")
    assert "does not fit the network" in resumed.output
    assert resumed.exit_code == 1


def test_other_classes_are_said_with_both_lists(evaluate, own_colours):
    for split in ("train", "val"):
        (own_colours / split / "red").rename(own_colours / split / "rust")
    run = evaluate(f"data.data_dir={own_colours}")
    assert "5 images of val are in folders that are not a class: rust" in run.output
    assert run.json("reports/metrics_test.json")["n"] == 10
    for split in ("train", "val"):
        for name in ("blue", "green"):
            (own_colours / split / name).rename(own_colours / split / f"{name}ish")
    run = evaluate(f"data.data_dir={own_colours}")
    assert run.exit_code == 1
    assert "checkpoint: blue, green, red\n  folders:    blueish, greenish, rust" in run.output


def test_the_evaluation_is_drawn_and_calibrated(evaluate, trained, tmp_path):
    moved = shutil.copytree(trained.dir, tmp_path / "copy")
    run = evaluate("calibrate=true", "target_accuracy=0.9", ckpt_path=moved)
    assert run.exit_code == 0, run.output
    line = next(line for line in run.output.splitlines() if "flagged for review" in line)
    assert line.startswith("test (on val): fitted on these images, which makes it look too good (for an honest score ")
    assert "train with data.test_ratio=0.2): " in line
    with Image.open(run.dir / "plots" / "reliability_test.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 20
    metrics = run.json("reports/metrics_test.json")
    assert 0 <= metrics["ece"] <= 1
    assert sum(each["n"] for each in metrics["reliability"]) == 15
    assert metrics["calibrated"]["set_coverage"] >= 0.6
    assert (moved / "checkpoints" / "best.calibration.json").is_file()
    plain = evaluate(ckpt_path=moved)
    assert "calibrated" not in plain.json("reports/metrics_test.json")


def test_every_checkpoint_is_read_without_running_anything(trained):
    for path in trained.dir.rglob("*.ckpt"):
        assert read_checkpoint(path)["imago"]["class_names"]
        assert torch.load(path, weights_only=True)["state_dict"]


@contextmanager
def forgetting_own_code():
    """As if another process did what is done inside."""
    with OWN_CODE.forgetting():
        yield
    assert "my_layers" not in sys.modules  # though `type_command` has the current folder on the path


@pytest.fixture
def own_net(train, monkeypatch, tmp_path) -> Run:
    """A run whose network is in a file of the folder in which it was typed."""
    (tmp_path / "code").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "code")
    Path("my_layers.py").write_text("from imago.model import TinyNet\nclass MyNet(TinyNet):\n    pass\n")
    with forgetting_own_code():
        run = train("model.net._target_=my_layers.MyNet", "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    return run


def test_an_export_of_ones_own_network_is_used_as_it_says(own_net, command):
    with forgetting_own_code():
        exported = command("export", f"ckpt_path={own_net.dir}")
    (line,) = (line for line in exported.output.splitlines() if line.startswith("  ml-inference"))
    words = shlex.split(line.replace("PHOTOS", "none"))[1:]
    assert words[-1] == "trusted_targets=[my_layers.]"
    with forgetting_own_code():
        path = words[0].partition("=")[2]
        assert imago.load_classifier(path, trusted_targets=["my_layers."]).class_names == ["blue", "green", "red"]
        with pytest.raises(
            imago.UserError, match=r"pass trusted_targets=\['my_layers\.'\]\. An export has no signature"
        ):
            imago.load_classifier(path)


def test_a_module_that_is_missing_is_said_with_the_folder_of_the_training(own_net, command, monkeypatch, tmp_path):
    """Its own folder is known for a run of one's own, also where the module is trusted and the folder is another."""
    code = Path.cwd()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with forgetting_own_code():
        assert imago.load_classifier(own_net.dir, trusted_targets=["my_layers."]).class_names[0] == "blue"
    (code / "my_layers.py").unlink()
    message = rf"there is no module my_layers in .*elsewhere.*PYTHONPATH=FOLDER.*In training it was in {code}\."
    with forgetting_own_code(), pytest.raises(imago.UserError, match=message):
        imago.load_classifier(own_net.dir)
    for words in (["eval"], ["inference", "split=val"]):
        with forgetting_own_code():
            run = command(words[0], f"ckpt_path={own_net.dir}", *words[1:])
        assert run.exit_code == 1
        assert re.search(message, run.output)
        assert not run.dir.exists()


def test_code_that_has_changed_since_the_training_is_said(own_net, caplog):
    with forgetting_own_code():
        first = imago.load_classifier(own_net.dir)
        assert not caplog.messages
        with Path("my_layers.py").open("a") as file:
            file.write("\n    def forward(self, x):\n        return -super().forward(x)\n")
        with OWN_CODE.forgetting():  # as a run in the same process does
            again = imago.load_classifier(own_net.dir)
        assert "my_layers.py has changed since" in caplog.messages[0]
        assert sys.modules["my_layers"].MyNet is type(first.model.net) is not type(again.model.net)
    source = "from imago.model import TinyNet\nclass MyNet(TinyNet):\n    def __init__(self, num_classes):\n"
    more = "super().__init__(num_classes + 1)\n        self.more = nn.Linear(2, 2)"
    Path("my_layers.py").write_text(f"from torch import nn\n{source}        {more}\n")
    with forgetting_own_code(), pytest.raises(imago.UserError) as refused:
        imago.load_classifier(own_net.dir)
    for words in (
        "my_layers.MyNet in ",
        "only in the network: net.more.bias, net.more.weight",
        "of another shape: net.head.bias (3,) instead of (4,)",
        "Its code, or a setting below model.net, has changed",
        "type model.init_from=",
    ):
        assert words in str(refused.value)


def test_the_code_of_functions_and_of_files_that_they_import_is_known(monkeypatch, tmp_path):
    (tmp_path / "my_layers.py").write_text(
        "from my_sizes import width\nfrom torch.nn import Linear\n"
        "def make(num_classes):\n    return Linear(width(), num_classes)\n"
    )
    (tmp_path / "my_sizes.py").write_text("def width():\n    return 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    with OWN_CODE.forgetting():
        allow_imports(["my_layers.make", "my_sizes.width"], tmp_path)
        net = make_net(partial(importlib.import_module("my_layers").make), 3)
        before = code_digests(net)
        (tmp_path / "my_sizes.py").write_text("def width():\n    return 2 * 2\n")
        after = code_digests(net)
    assert before.keys() == {"my_layers", "my_sizes"}
    assert [name for name in before if before[name] != after[name]] == ["my_sizes"]

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.mark.quick
def test_it_learns(trained):
    assert trained.exit_code == 0
    assert trained.json("reports/metrics_test.json")["acc"] > 0.9


def test_the_run_folder_holds_what_the_blueprint_promises(trained):
    files = {str(path.relative_to(trained.dir)) for path in trained.dir.rglob("*") if path.is_file()}
    expected = {"config.yaml", "train.log", "status.json", "summary.txt", "metrics.jsonl", ".hydra/config.yaml"}
    expected |= {".hydra/overrides.yaml", ".hydra/hydra.yaml", "csv/metrics.csv"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "plots/curves.png", "report.html", "report.md"}
    expected |= {"model_card.md"}
    expected |= {f"reports/{name}.json" for name in ("changes", "data", "environment", "samples")}
    for split in ("train", "val", "test"):
        expected |= {f"reports/classification_report_{split}.{kind}" for kind in ("txt", "json")}
        expected |= {f"reports/predictions_{split}.csv", f"reports/metrics_{split}.json"}
        expected |= {f"reports/confusion_matrix_{split}.csv", f"reports/images_{split}.json"}
        expected |= {f"plots/confusion_matrix_{split}.png", f"plots/reliability_{split}.png"}
    expected |= {"reports/label_margins.npz", *(f"reports/label_errors_{split}.csv" for split in ("train", "val"))}
    assert expected <= files
    others = {name for name in files - expected if not name.startswith("tensorboard/")}
    assert others - {"scored_again.jsonl"} == {"csv/hparams.yaml", ".lock"}  # other tests score it again


def test_status_and_summary_say_how_it_went(trained):
    status = trained.json("status.json")
    assert (status["status"], status["epoch"], status["error"]) == ("completed", 6, None)
    summary = trained.text("summary.txt")
    for words in (
        "completed",
        "spring, leaf",
        "6 of 6",
        "test acc",
        "blue",
        "trainer.max_epochs",
        "3: blue, green, red",
        "cpu",
    ):
        assert words in summary, words


def test_the_end_shows_scores_beside_the_baseline_and_what_to_type(trained):
    table = r"test \(on val\) +│ +15 │ +(0\.9\d\d\d|1\.0000) │ +0\.3333 │ +(0\.9\d\d\d|1\.0000) │ +\d\.\d{4} │"
    assert re.search(table, trained.output), trained.output
    assert "most frequent class of train" in trained.output
    end = trained.output[trained.output.index("Run folder:") :].splitlines()
    assert end == [
        f"Run folder: {trained.dir}",
        f"Checkpoint: {trained.dir}/checkpoints/best.ckpt",
        f"Report: {trained.dir}/report.html",
        "Next:",
        f"  ml-inference ckpt_path={trained.dir} source=PHOTOS",
        f"  ml-visualise mode=predictions run={trained.dir}",
        f"  python src/eval.py ckpt_path={trained.dir}",
        f"  tensorboard --logdir {trained.dir}",
    ]


def test_the_substitute_for_a_missing_test_folder_is_said_everywhere(trained):
    words = "val split is scored as test"
    assert words in trained.text("train.log")
    assert words in trained.text("summary.txt")
    assert trained.json("reports/metrics_test.json")["split"] == "val"
    assert "test (scored on val)" in trained.text("reports/classification_report_test.txt")


@pytest.mark.quick
def test_metrics_can_be_recomputed_from_the_predictions(trained):
    for split in ("train", "val"):
        with (trained.dir / "reports" / f"predictions_{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        labels, predictions = ([row[key] for row in rows] for key in ("label", "prediction"))
        names = ["blue", "green", "red"]
        probabilities = np.array([[float(row[f"prob_{name}"]) for name in names] for row in rows])
        metrics = trained.json(f"reports/metrics_{split}.json")
        assert metrics["n"] == len(rows) == {"train": 39, "val": 15}[split]
        assert metrics["acc"] == accuracy_score(labels, predictions)
        assert metrics["f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)
        assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities, labels=names), abs=1e-6)
        assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(metrics["loss"], abs=1e-6)
        assert [row["correct"] for row in rows] == [str(int(a == b)) for a, b in zip(labels, predictions, strict=True)]
        assert all((Path(row["path"]).parts[:2]) == (split, row["label"]) for row in rows)


def test_what_is_logged_has_the_promised_names(trained):
    events = EventAccumulator(str(trained.dir / "tensorboard"))
    events.Reload()
    stages = {
        f"{stage}{name}" for stage in ("train/", "val/", "weights/test_") for name in ("loss", "acc", "f1", "loss/ce")
    }
    assert stages | {"train/loss_step", "val/acc_best"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss_step")) >= 15
    assert [event.value for event in events.Scalars("val/acc")] == [row["val/acc"] for row in trained.history]
    assert {"visual/confusion_matrix_test", "visual/confusion_matrix_val_while_training"} <= set(
        events.Tags()["images"]
    )
    assert "classification_report/test/text_summary" in events.Tags()["tensors"]
    assert {f"vectors/val/f1_per_class/{name}" for name in ("blue", "green", "red")} <= set(events.Tags()["scalars"])
    assert any(name.startswith("lr-") for name in trained.history[0])


def test_the_history_adds_up(trained):
    history = trained.history
    assert [row["epoch"] for row in history] == list(range(6))
    best = np.maximum.accumulate([row["val/acc"] for row in history])
    assert [row["val/acc_best"] for row in history] == best.tolist()
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    val = trained.json("reports/metrics_val.json")
    top = max(history, key=lambda row: row["val/acc"])
    assert val["acc"] == pytest.approx(top["val/acc"], abs=1e-6)
    assert val["loss"] == pytest.approx(top["val/loss"], rel=1e-4)
    for name, scores in val["per_class"].items():
        assert scores["f1"] == pytest.approx(top[f"val/f1_per_class/{name}"], abs=1e-6)


@pytest.mark.quick
def test_checkpoints_are_plain_and_carry_the_run(trained):
    last, best = trained.checkpoint("last"), trained.checkpoint("best")  # read with weights_only=True
    assert last["epoch"] == 5
    assert last["imago"]["history"] == trained.history
    assert best["imago"]["class_names"] == ["blue", "green", "red"]
    assert best["imago"]["history"][-1]["val/acc"] == max(row["val/acc"] for row in trained.history)
    assert last["imago"]["monitor"] == "val/acc"
    assert re.match(r"\d{4}-\d\d-\d\dT", last["imago"]["timestamp"])
    assert all(tensor.device.type == "cpu" for tensor in last["state_dict"].values())


def test_the_log_is_plain(trained):
    log = trained.text("train.log")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} DEBUG +imago", log, re.MULTILINE)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log + trained.output)


def test_two_runs_with_one_seed_have_the_same_weights(train):
    first, second = (train("deterministic=true", "test=false") for _ in range(2))
    assert same(first.weights(), second.weights())
    assert first.history == second.history


def test_seed_0_seeds(train):
    zero, again, one = (train(f"seed={seed}", "test=false") for seed in (0, 0, 1))
    assert same(zero.weights(), again.weights())
    assert not same(zero.weights(), one.weights())


@pytest.mark.quick
def test_training_goes_on_from_a_checkpoint(train):
    words = ["model.scheduler=null", "test=false"]
    whole = train("trainer.max_epochs=4", *words)
    half = train("trainer.max_epochs=2", *words)
    rest = train("trainer.max_epochs=4", *words, f"ckpt_path={half.dir}/checkpoints/last.ckpt")
    assert [row["epoch"] for row in rest.history] == [0, 1, 2, 3]
    assert rest.history == whole.history
    assert rest.checkpoint()["imago"]["history"] == rest.history
    assert torch.equal(rest.weights()["net.head.weight"], whole.weights()["net.head.weight"])


def test_last_is_the_last_epoch_and_the_best_goes_along_into_the_folder_of_the_run_that_goes_on(train):
    short = train(
        "trainer.max_epochs=3", "monitor=train/loss", "mode=max", "callbacks.early_stopping=null", "test=false"
    )
    assert (short.checkpoint("last")["epoch"], short.checkpoint("best")["epoch"]) == (2, 0)  # last is not the best
    rest = train(
        "trainer.max_epochs=5",
        "monitor=train/loss",
        "mode=max",
        "callbacks.early_stopping=null",
        f"ckpt_path={short.dir}/checkpoints/last.ckpt",
    )
    assert rest.checkpoint("best")["epoch"] == 0
    assert same(rest.weights("best"), short.weights("best"))
    assert rest.checkpoint("last")["epoch"] == 4


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.early_stopping=null", "logger=[]"],
        ["logger=csv", "trainer.log_every_n_steps=1", "trainer.limit_train_batches=2"],
        ["callbacks=none"],
        ["model/optimizer=sgd", "model/scheduler=step", "model.optimizer.lr=0.05"],
        ["model/scheduler=plateau", "optimized_metric=val/loss"],
        ["model.net._target_=imago.model.SimpleCNN", "data.image_size=24"],
        ["model=torchvision", "model.net.name=mobilenet_v3_small", "model.net.weights=null", "data.image_size=32"],
        ["trainer=cpu", "trainer.max_epochs=1", "trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2"],
        ["strategy=none", "data.on_bad_image=skip", "test=false", "trainer=ddp_sim", "trainer=cpu"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_overrides_that_people_know(train, overrides):
    run = train("trainer.max_epochs=1", *overrides)
    assert run.exit_code == 0, run.output
    assert run.json("status.json")["status"] == "completed"
    typed_twice = "trainer=ddp_sim is replaced by trainer=cpu, which was typed after it" in run.output
    assert typed_twice == ("trainer=ddp_sim" in overrides)


def test_every_batch_can_be_logged(train):
    run = train("logger=csv", "trainer.log_every_n_steps=1", "test=false")
    with (run.dir / "csv" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["train/loss_step"]]) == 2 * 5


def test_monitor_and_its_alias_are_one_setting(train):
    run = train("optimized_metric=val/loss")
    assert run.checkpoint()["imago"]["monitor"] == "val/loss"
    assert "val/loss_best" in run.history[0]
    both = train("optimized_metric=val/loss", "monitor=val/f1")
    assert both.exit_code == 1
    assert "two names of one setting" in both.last_line or "two names of one setting" in both.output


def test_debug_fdr_runs_one_batch_and_keeps_nothing(command, colours):
    run = command("train", f"data.data_dir={colours}", "model=tiny_net", "data.image_size=16", "debug=fdr")
    assert run.exit_code == 0
    warnings = [line for line in run.output.splitlines() if "WARNING" in line]
    assert all("no test split" in line for line in warnings)  # one batch logs, saves and teaches nothing, as expected
    assert not (run.dir / "checkpoints").exists()
    assert run.json("reports/metrics_test.json")["n"] == 15
    assert (run.dir / "debug.log").exists()


def test_a_frozen_backbone_stays_as_it_is(train, trained):
    words = ["model.freeze=backbone", f"model.init_from={trained.dir}", "test=false"]
    run = train(*words)
    untrained = train(*words, "model.optimizer.lr=0", "model.optimizer.weight_decay=0")
    trained, before = run.weights(), untrained.weights()
    changed = {name for name in trained if not torch.equal(trained[name], before[name])}
    assert changed == {"net.head.weight", "net.head.bias"}


def test_an_own_network_is_one_file(train, tmp_path, monkeypatch):
    (tmp_path / "flat_nets.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "        self(__import__('torch').zeros(1, 3, 16, 16))\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train("model=resnet18", "model.net._target_=flat_nets.Flat", "model.optimizer.lr=0.01")
    assert run.exit_code == 0, run.output
    assert "net.1.weight" in run.weights()
    typed = train("model=resnet18", "model.net._target_=flat_nets.Flat", "model.net.weights=DEFAULT")
    assert typed.exit_code == 1
    assert "model.net.weights is not an argument of flat_nets.Flat" in typed.output


def test_compiling_leaves_the_names_of_the_weights(train):
    words = ["model=mnist", "model.net.in_features=768", "model.net.hidden=[4]", "trainer.max_epochs=1", "test=false"]
    words += ["data.batch_size=5", "trainer.limit_train_batches=1"]  # each other size of a batch is compiled anew
    run = train(*words, "model.compile=true")
    assert run.exit_code == 0, run.output
    assert set(run.weights()) == set(train(*words).weights())


def test_the_network_wired_in_yaml_learns(command):
    run = command("train", "experiment=digits_dense", "trainer.max_epochs=4", "logger=[]", "report.splits=[test]")
    metrics = run.json("reports/metrics_test.json")
    assert metrics["acc"] > 0.85
    assert metrics["loss"] == pytest.approx(metrics["loss/ce"] + 0.5 * metrics["loss/margin"], rel=1e-5)


def test_weights_of_imagenet_start_the_ants(command, hymenoptera):
    from torchvision.models import resnet18

    cache = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    cache.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), cache)
    run = command(
        "train",
        "experiment=resnet18_ants",
        f"data.data_dir={hymenoptera}",
        "data.image_size=32",
        "data.num_workers=0",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "report.splits=[test]",
    )
    assert run.exit_code == 0, run.output
    assert "Loaded the auto weights of resnet18; newly initialised: fc.bias, fc.weight" in run.output
    assert "imageNotFound.gif" in run.text("summary.txt")
    metrics = run.json("reports/metrics_test.json")
    assert (metrics["split"], metrics["n"]) == ("val", 153)


def test_photographs_of_ants_and_bees_are_learnt_from_scratch(command, hymenoptera):
    run = command(
        "train",
        f"data.data_dir={hymenoptera}",
        "model=simple_cnn",
        "data.image_size=32",
        "trainer.max_epochs=3",
        "logger=[]",
        "report.splits=[train]",
    )
    assert run.exit_code == 0, run.output
    assert run.history[-1]["train/loss"] < run.history[0]["train/loss"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=3"],
        ["trainer.limit_val_batches=0"],
        ["model/scheduler=plateau", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
        ["trainer.precision=bf16-true"],
        ["trainer.num_sanity_val_steps=2"],
    ],
    ids=lambda overrides: overrides[-1],
)
@pytest.mark.filterwarnings("ignore:.*(which is not available|could not find the monitored key):UserWarning")
@pytest.mark.filterwarnings("ignore:.*(which is not available|could not find the monitored key):RuntimeWarning")
def test_runs_without_a_validation_in_each_epoch_end_well(train, overrides):
    run = train(*overrides)
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["n"] == 15


def test_epochs_without_validation_repeat_no_old_values(train):
    run = train("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3", "callbacks.early_stopping=null")
    assert ["val/acc" in row for row in run.history] == [False, True, False]
    assert all("train/loss" in row for row in run.history)


def test_overfitting_sees_the_same_batch_in_each_epoch(train, tmp_path, monkeypatch):
    (tmp_path / "watching_one_batch.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Watch(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        print('SEEN', batch['index'].tolist())\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train(
        "trainer.overfit_batches=1", "+callbacks.watch._target_=watching_one_batch.Watch", "trainer.max_epochs=3"
    )
    seen = re.findall("SEEN .*", run.output)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_a_drawn_seed_is_kept_and_a_val_split_that_was_drawn_otherwise_is_refused(train, colours):
    first = train("seed=null", f"data.data_dir={colours}/train")
    seed = re.search(r"drew seed=(\d+)", first.output).group(1)
    assert f"seed: {seed}" in first.text("config.yaml")
    assert f"seed: {seed}\n" in first.checkpoint()["imago"]["config"]
    options = [f"data.data_dir={colours}/train", f"ckpt_path={first.dir}/checkpoints/last.ckpt", "trainer.max_epochs=3"]
    other = train(*options, f"seed={int(seed) + 1}")
    assert other.exit_code == 1
    assert f"Type seed={seed} data.val_ratio=0.1" in other.output
    assert train(*options, f"seed={seed}").exit_code == 0


def test_the_best_of_another_metric_is_not_taken_over(train):
    first = train("monitor=val/loss", "callbacks.model_checkpoint=null", "callbacks.early_stopping=null")
    rest = train("monitor=val/acc", "trainer.max_epochs=3", f"ckpt_path={first.dir}/checkpoints/last.ckpt")
    assert rest.exit_code == 0, rest.output
    assert rest.history[-1]["val/acc_best"] <= 1


def test_a_class_may_have_the_name_of_a_metric_and_val_may_lack_one(train, own_colours):
    for split in ("train", "val"):
        (own_colours / split / "red").rename(own_colours / split / "accuracy")
    shutil.rmtree(own_colours / "val" / "blue")
    run = train(f"data.data_dir={own_colours}", "trainer.max_epochs=6")
    metrics = run.json("reports/metrics_test.json")
    assert metrics["per_class"]["accuracy"]["support"] == 5
    assert metrics["per_class"]["blue"]["support"] == 0
    text = run.text("reports/classification_report_test.txt")
    assert f"{metrics['f1']:.4f}" in re.search("macro avg.*", text).group()


def test_label_smoothing_does_not_reach_the_cross_entropy(train):
    run = train("model.criterions.criterions.ce.label_smoothing=0.3")
    metrics = run.json("reports/metrics_test.json")
    with (run.dir / "reports" / "predictions_test.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert metrics["cross_entropy"] == pytest.approx(np.mean(losses))
    assert metrics["loss"] != pytest.approx(metrics["cross_entropy"], abs=1e-3)


def test_early_stopping_says_so(train):
    run = train("callbacks.early_stopping.patience=1", "trainer.max_epochs=20", "monitor=train/loss", "mode=max")
    words = "train/loss did not improve for 1 epoch"
    assert f"Early stopping after epoch 2: {words}" in run.output
    assert words in run.text("summary.txt")


def test_a_checkpoint_with_nothing_left_to_train_says_so(train, trained):
    run = train(f"ckpt_path={trained.dir}/checkpoints/last.ckpt", "trainer.max_epochs=6")
    assert "No epoch was trained: the checkpoint has 6 already" in run.output


def test_pictures_are_pictures(trained):
    for name in ("confusion_matrix_test", "curves"):
        with Image.open(trained.dir / "plots" / f"{name}.png") as image:
            assert min(image.size) > 250
            assert len(image.convert("RGB").getcolors(10**6) or []) > 20


def test_a_strategy_takes_part_in_sampling_stepping_saving_and_reporting(train, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(
        "from imago.model import Strategy\n"
        "class Counting(Strategy):\n"
        "    steps = 0\n"
        "    def train_batch_sampler(self, sampler):\n"
        "        sampler.batch_size = 13\n"
        "        return sampler\n"
        "    def optimizer_step(self, optimizer, closure):\n"
        "        self.steps += 1\n"
        "        super().optimizer_step(optimizer, closure)\n"
        "    def state_dict(self):\n"
        "        return {'steps': self.steps}\n"
        "    def load_state_dict(self, state):\n"
        "        self.steps = state['steps']\n"
        "    def report(self):\n"
        "        return {'steps counted': self.steps}\n"
    )
    monkeypatch.chdir(tmp_path)
    first = train("strategy._target_=counting.Counting")
    assert first.checkpoint()["imago"]["strategy"] == {"steps": 2 * 3}  # 39 images in batches of 13
    assert re.search(r"steps counted +6\n", first.text("summary.txt"))
    checkpoint = f"ckpt_path={first.dir}/checkpoints/last.ckpt"
    rest = train("strategy._target_=counting.Counting", checkpoint, "trainer.max_epochs=3")
    assert rest.checkpoint()["imago"]["strategy"] == {"steps": 3 * 3}

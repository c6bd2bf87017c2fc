"""What a run says on the console, and what of it stays: the card, epochs, warnings, scores, where things are."""

import io
import json
import logging
import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from drawn_results import drawn_score
from lightning.pytorch.callbacks import RichProgressBar, Timer
from rich.console import Console
from torch import nn

from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.epoch_table import EpochTable
from imago.callbacks.pace import Pace, format_duration
from imago.callbacks.progress import PlainProgress, TimedBar
from imago.cli.command import _record
from imago.evaluation.console import show_results
from imago.evaluation.evaluate import Result
from imago.evaluation.next_commands import after_export, next_commands
from imago.files import write_json
from imago.model.origin import mark, name_of, weights_of
from imago.run.folder import RunFolder
from imago.run.logs import logging_to
from imago.training.fit import describe_trend, longer_training


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that only the test moves."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock


def trainer_of(epochs: int | None = 4, batches: int = 10, **more: Any) -> Any:
    """As much of a Trainer as the estimate looks at."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0, ready=0))
    loop = SimpleNamespace(
        epoch_progress=progress, epoch_loop=SimpleNamespace(batch_progress=progress), max_epochs=epochs
    )
    facts = {"max_epochs": epochs, "max_steps": -1, "num_training_batches": batches, "accumulate_grad_batches": 1}
    return SimpleNamespace(**facts, current_epoch=0, callbacks=[], fit_loop=loop, **more)


def test_a_run_says_first_what_it_is(trained):
    line = "TinyNet, 1,467 parameters, from scratch, AdamW, lr 0.01, batch size 8, cpu ("
    (first,) = [text for text in trained.output.splitlines() if line in text]
    assert first.endswith("32-true, images: train 39, val 15, 3 classes")
    card = trained.json("status.json")["card"]
    assert (card["parameters"], card["trained_parameters"], card["learning_rate"]) == (1467, 1467, 0.01)
    assert card["images"] == {"train": 39, "val": 15}
    for file in ("summary.txt", "report.html", "report.md"):
        for word in ("TinyNet", "from scratch", "AdamW", "train 39, val 15", "32-true"):
            assert word in trained.text(file), (file, word)


def test_weights_have_a_name():
    net = nn.Linear(2, 2)
    assert (name_of(net), weights_of(net, "my_nets.Net", {})) == ("Linear", "weights made by my_nets.Net")
    assert weights_of(net, "torchvision.models.resnet18", {"weights": "DEFAULT"}) == "pretrained (DEFAULT)"
    assert weights_of(net, "torchvision.models.resnet18", {"weights": None}) == "from scratch"
    mark(net, "resnet18", "IMAGENET1K_V1")
    assert (name_of(net), weights_of(net, "imago.model.torchvision_net", {})) == (
        "resnet18",
        "pretrained (IMAGENET1K_V1)",
    )


def test_each_epoch_is_one_line_below_one_header(trained):
    lines = [line for line in trained.output.splitlines() if re.search(r"INFO +(epoch|\d+/6) ", line)]
    assert [line.split()[2] for line in lines] == ["epoch", *(f"{n}/6" for n in range(1, 7))]
    assert max(map(len, lines)) <= 100
    for row, line in zip(trained.history, lines[1:], strict=True):
        values = [f"{row[name]:.4f}" for name in ("train/loss", "val/loss", "train/acc", "val/acc", "val/acc_best")]
        assert line.split()[3:8] == values
    assert trained.output.count("Epoch 0") == 0


def test_columns_stay_aligned():
    row = {"epoch": 98, "train/loss": 0.43, "val/loss": 0.52, "val/acc": 0.75, "val/f1": 0.74}
    table = EpochTable("val/f1", row)
    header, line = table.header(100), table.line(row, 100, (0.761, 87), 12.3, 12.4)
    assert header == "  epoch train/loss val/loss val/acc val/f1  best         time     ETA"
    assert line == " 99/100     0.4300   0.5200  0.7500 0.7400  0.7610 @87 12.3 s    0:12"
    assert table.line({**row, "epoch": 99}, 100, (None, None), 75, 0.0).endswith("  1:15")
    private = EpochTable("val/acc", row | {"train/acc": 0.8, "privacy/epsilon": 2.6702})
    header, line = private.header(100), private.line(row | {"privacy/epsilon": 2.6702}, 100, (0.761, 87), 12.3, 12.4)
    assert header == "  epoch train/loss val/loss val/acc epsilon  best         time     ETA"
    assert line == " 99/100     0.4300   0.5200  0.7500  2.6702  0.7610 @87 12.3 s    0:12"


def test_a_private_run_that_is_stopped_says_its_epsilon(caplog):
    for spent in ({}, {"epsilon": "2.6702", "delta": 1e-5, "unit": "one image"}):
        run = SimpleNamespace(path="RUN", sections={"Strategy": spent}, is_accepted=False, update=lambda **_: None)
        with caplog.at_level("INFO"):
            _record(cast(Any, run), "preempted", "Stopped by SIGTERM")
    said = [message for message in caplog.messages if message.startswith("Privacy")]
    assert said == ["Privacy: epsilon so far 2.6702, delta 1e-05, unit: one image"]


def test_the_time_left_is_that_of_the_whole_run(clock):
    pace, trainer = Pace(), trainer_of()
    pace.start(trainer)
    clock.now += 2
    assert pace.seconds_left(trainer, 4) is None  # too early to tell
    clock.now += 3
    assert pace.seconds_left(trainer, 5) == pytest.approx(35)
    clock.now += 5
    assert pace.end_epoch(trainer) == (pytest.approx(10), pytest.approx(30))
    trainer.current_epoch = 1
    clock.now += 10
    assert pace.seconds_left(trainer, 5) == pytest.approx(20 / 1.5 * 2.5)
    assert Pace().seconds_left(trainer_of(epochs=-1), 9) is None
    assert [format_duration(seconds) for seconds in (12.4, 754, 3723)] == ["0:12", "12:34", "1:02:03"]


def test_lines_within_an_epoch_are_for_long_epochs(clock, caplog):
    caplog.set_level(logging.INFO, "imago")
    trainer = trainer_of(epochs=2, is_global_zero=True)
    bar = PlainProgress(seconds_between_lines=10.0)
    bar.setup(trainer, None, "fit")
    bar._trainer = trainer
    for seconds in (1.5, 4.0):  # of a batch
        bar.on_train_start(trainer, None)
        bar.on_train_epoch_start(trainer, None)
        for batch in range(10):
            clock.now += seconds
            bar.on_train_batch_end(trainer, None, None, None, batch)
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        if seconds == 1.5:
            assert said == []  # the epoch ends in less than the ten seconds until the next line
    assert said == ["epoch 1/2: batch 3/10", "epoch 1/2: batch 6/10, ETA 0:56"]


def test_the_bar_counts_from_1_and_names_what_is_scored():
    bar, data = TimedBar(), SimpleNamespace(predict_split="train", scored_split=lambda _: "val")
    bar._trainer = trainer_of(epochs=9, datamodule=data)
    bar._trainer._data_connector = SimpleNamespace(_datahook_selector=SimpleNamespace(datamodule=data))
    assert "_get_train_description" in vars(RichProgressBar)  # Lightning's, which has no public name
    assert bar._get_train_description(0).rstrip() == "Epoch 1/9"
    assert (bar.predict_description, bar.test_description) == ("Scoring train", "Scoring val")


def test_where_test_is_val_it_is_scored_once(trained):
    assert trained.output.count("Scoring val (also as test): 15 images") == 1
    assert trained.output.count("Scoring ") == 2
    val, test = (trained.json(f"reports/metrics_{split}.json") for split in ("val", "test"))
    assert val == test
    assert trained.text("reports/predictions_val.csv") == trained.text("reports/predictions_test.csv")
    assert "val: 15 images" in trained.text("reports/classification_report_val.txt")


def test_warnings_are_repeated_above_the_scores_and_kept(trained):
    warning = "the val split is scored as test"
    first, again, table = (trained.output.index(text) for text in (warning, "Warnings:\n  - ", "Scores of best.ckpt"))
    assert first < again < trained.output.index(warning, again) < table
    assert [text for text in trained.json("status.json")["warnings"] if warning in text]
    assert "val has 15 images, and chooses the checkpoint (monitor=val/acc), largely by chance" in trained.output
    assert re.search(r"\n95% intervals of the accuracy: .*test 0\.\d{3} to 1\.000", trained.output)
    assert warning in trained.text("summary.txt").partition("Warnings")[2].partition("\n\n")[0]
    for page in ("report.html", "report.md"):
        assert warning in trained.text(page).partition("Warnings")[2]
        assert trained.text(page).count(warning) == 1  # and not among the notes on the data


def test_a_warning_is_kept_once_and_others_are_not(tmp_path):
    kept: list[str] = []
    with logging_to(tmp_path / "train.log", warnings_list=kept):
        for _ in range(2):
            logging.getLogger("imago.x").warning("%s of \x1b[31mred\x1b[0m", 3)
        logging.getLogger("imago.x").error("an error ends the run")
        logging.getLogger("py.warnings").warning("x is deprecated")
    assert kept == ["3 of red"]


@pytest.mark.parametrize("words", [["model=resnet18"], []])
def test_a_backbone_of_random_weights_is_not_frozen(train, words):
    run = train("model.freeze=backbone", *words)
    assert run.exit_code == 1
    assert "model.freeze=backbone needs pretrained weights: " in run.last_line
    assert "model.init_from=RUN" in run.last_line
    assert not (run.dir / "checkpoints").exists()


def test_a_frozen_run_can_be_continued(train, trained, command):
    words = ["model.freeze=backbone", "trainer.max_epochs=1", "report.splits=[test]"]
    run = train(*words, f"model.init_from={trained.dir}")
    assert run.exit_code == 0, run.output
    start = run.json("status.json")["card"]["weights"]
    assert start == f"from {trained.dir}/checkpoints/best.ckpt"
    assert "1,467 (51 trained) parameters" in run.output
    resumed = command("train", f"resume={run.dir}", "trainer.max_epochs=2", folder=run.dir)
    assert resumed.exit_code == 0, resumed.output
    assert resumed.json("status.json")["card"]["weights"] == start
    other = train(*words, "trainer.max_epochs=2", f"ckpt_path={run.dir}/checkpoints/last.ckpt")
    assert other.exit_code == 0, other.output
    assert other.json("status.json")["card"]["weights"].endswith("last.ckpt")


def test_without_callbacks_one_warning_says_what_is_missing(train):
    run = train("callbacks=none", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    said = [line for line in run.output.splitlines() if re.search("WARNING (?!.*(val split|val has))", line)]
    (first, *_) = said
    assert "val/acc was never logged; no checkpoint was saved, and the final weights are scored" in first
    assert not any("never logged" in line or "checkpoint" in line for line in said[1:])


def test_a_trial_run_is_quiet(command, colours):
    run = command("train", f"data.data_dir={colours}", "model=tiny_net", "data.image_size=16", "debug=fdr")
    assert [line for line in run.output.splitlines() if "WARNING" in line and "val split" not in line] == []


def test_lightnings_summary_is_there_on_request(train, trained):
    assert "Trainable params" not in trained.output
    run = train("callbacks=[default,model_summary]", "trainer.max_epochs=1", "test=false")
    assert "Trainable params" in run.output


@pytest.mark.parametrize(
    ("program", "evaluate"), [("/opt/venv/bin/ml-train", "ml-eval"), ("src/train.py", "python src/eval.py")]
)
def test_the_next_commands_have_the_names_of_the_installation(program, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "logs" / "a run")
    for name in ("tensorboard", "reports"):
        (run.path / name).mkdir(parents=True)
    (run.path / "reports" / "images_test.json").write_text("{}")
    commands = next_commands(Result(checkpoint=run.path / "checkpoints" / "best.ckpt"), run)
    assert [re.split(r" '?(?:ckpt_path|mode|--logdir)", command)[0] for command in commands] == [
        "ml-inference",
        "ml-visualise",
        evaluate,
        "tensorboard",
    ]
    assert "/opt" not in " ".join(commands)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jupyter"])
    from_python = next_commands(Result(checkpoint=run.path / "checkpoints" / "best.ckpt"), run)
    assert [command.split()[0] for command in from_python] == ["ml-inference", "ml-visualise", "ml-eval", "tensorboard"]
    assert [command.split()[0] for command in next_commands(Result(), run)] == ["tensorboard"]
    trained = tmp_path / "trained with csv"
    trained.mkdir()
    (trained / "status.json").touch()
    assert next_commands(Result(checkpoint=trained / "checkpoints" / "best.ckpt"), run) == []


def test_a_run_whose_last_epoch_was_the_best_may_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ml-train"])
    run = RunFolder(tmp_path / "run")
    result = Result(checkpoint=run.path / "checkpoints" / "best.ckpt", longer="trainer.max_epochs=20")
    assert next_commands(result, run)[-1] == "ml-train resume=run trainer.max_epochs=20"
    run.sections["Strategy"] = {"epsilon": 3.0}  # more epochs would spend more
    assert not any("resume=" in command for command in next_commands(result, run))


def test_more_epochs_help_if_the_last_ones_were_the_best(tmp_path, monkeypatch):
    log = EpochLog(RunFolder(tmp_path), "val/acc", "max")
    log.history = [{"epoch": 0, "val/acc": 0.5, "val/loss": 1.0}, {"epoch": 1, "val/acc": 0.6, "val/loss": 1.1}]
    trainer = trainer_of(epochs=2, fast_dev_run=False, global_step=20)
    trainer.callbacks, trainer.current_epoch = [log], 2
    assert longer_training(trainer, "val/acc") == ("trainer.max_epochs=4", "val/acc was still rising")
    trainer.max_steps = 20
    assert longer_training(trainer, "val/acc") == ("trainer.max_steps=40", "val/acc was still rising")
    trainer.max_steps, trainer.max_epochs = -1, 9  # early stopping
    assert longer_training(trainer, "val/acc") == (None, None)
    timer = SimpleNamespace(time_remaining=lambda: -0.5, time_elapsed=lambda: 4.5)
    monkeypatch.setattr(
        "imago.training.fit.callbacks_of", lambda _, kind: {Timer: [timer], EpochLog: [log]}.get(kind, [])
    )
    assert longer_training(trainer, "val/acc") == ("trainer.max_time=00:00:00:08", None)
    monkeypatch.undo()
    log.history[1]["val/acc"], trainer.max_epochs = 0.5, 2  # no better than before
    assert longer_training(trainer, "val/acc") == (None, None)


def test_what_was_still_improving_is_said_with_what_goes_on(tmp_path, capsys):
    history = [{"epoch": n, "val/acc": 0.9 - abs(17 - n) / 100, "val/loss": 1 / (n + 1)} for n in range(20)]
    modes = {"val/acc": "max", "val/loss": "min"}
    assert describe_trend(history, modes) == "val/loss was still falling"
    history[18]["val/acc"] = 0.95  # within the last tenth
    trend = describe_trend(history, modes)
    assert trend == "val/acc was still rising and val/loss was still falling"
    assert describe_trend([], modes) is None
    for sections, is_said in (({}, True), ({"Strategy": {"epsilon": 3.0}}, False)):  # where more would spend more
        run = RunFolder(tmp_path)
        run.sections |= sections
        show_results(Result(longer="trainer.max_epochs=40", trend=trend), run)
        sentence = f"At the end {trend}: more training may help"
        assert (sentence in capsys.readouterr().out) == is_said


def test_after_a_calibration_it_is_said_how_to_use_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ml-eval"])
    score = SimpleNamespace(calibration="fitted")
    result = Result({"val": cast(Any, score)}, tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert next_commands(result, RunFolder(tmp_path / "scored")) == [
        "ml-inference ckpt_path=run source=PHOTOS calibrated=true",
        "ml-export ckpt_path=run",
    ]
    assert after_export(tmp_path / "model_only.safetensors", is_calibrated=True) == [
        "ml-inference ckpt_path=model_only.safetensors source=PHOTOS calibrated=true"
    ]


def test_the_report_is_a_link_on_a_terminal(tmp_path, monkeypatch):
    said = io.StringIO()
    terminal = Console(file=said, force_terminal=True, width=100, legacy_windows=False, _environ={"TERM": "xterm"})
    monkeypatch.setattr("imago.evaluation.console.console", lambda: terminal)
    show_results(Result(), RunFolder(tmp_path))
    link = (tmp_path / "report.html").as_uri()
    assert re.search(rf"Report: \x1b\]8;[^;]*;{re.escape(link)}\x1b\\", said.getvalue())


def test_predictions_end_with_counts_speed_and_files(command, trained, colours, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("blue", "red"):
        (photos / f"{name}.png").write_bytes((colours / "val" / name / "000.png").read_bytes())
    (photos / "broken.png").write_bytes(b"no image")
    run = command("inference", f"ckpt_path={trained.dir}", f"source={photos}", "gallery=true", "data.on_bad_image=skip")
    assert run.exit_code == 0, run.output
    end = run.output[run.output.index("Predicted: ") :].splitlines()
    assert sorted(end[0].removeprefix("Predicted: ").split(", ")) == ["blue 1", "red 1"]
    assert re.fullmatch(r"3 images in \d+\.\d s, \d+\.\d images per second; 1 could not be read", end[1])
    assert end[2:] == [f"Written: {run.dir}/{name}" for name in ("predictions.csv", "gallery.png")]


def test_status_of_others_is_read_as_far_as_it_fits(tmp_path):
    from imago.report.page import write_report

    status = {
        "status": "completed",
        "error": None,
        "card": {"network": 3, "classes": 2},
        "warnings": ["<b>"],
        "best_epoch": "x",
    }
    (tmp_path / "status.json").write_text(json.dumps(status))
    page = write_report(tmp_path).read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.partition("<h2>Warnings</h2>")[2].partition("</ul>")[0]


def test_the_warning_about_the_baseline_is_that_of_the_last_scoring(tmp_path):
    run = RunFolder(tmp_path)
    with logging_to(tmp_path / "train.log", warnings_list=run.warnings):
        for right, expected in ((0, 2), (9, 1)):
            score = drawn_score("val", ["a", "b"], 5, wrong=range(right, 10))
            show_results(Result({"val": replace(score, baseline=0.5)}), run)
            logging.getLogger("imago.x").warning("another")
            run.update()
            assert len(run.status["warnings"]) == len(run.sections["Warnings"]) == expected
    assert run.warnings == ["another"]


def test_the_end_says_how_many_labels_are_contradicted(tmp_path, capsys):
    score = drawn_score("train", ["a", "b"], 20, wrong=[3, 25, 26])
    result = Result({"train": score})
    show_results(result, RunFolder(tmp_path))
    assert "mislabelled" not in capsys.readouterr().out  # without pictures, there is no list
    write_json(tmp_path / "reports/images_train.json", {})
    show_results(result, RunFolder(tmp_path))
    assert "Possibly mislabelled: 3 images of train. The report marks them" in capsys.readouterr().out
    show_results(Result({"train": drawn_score("train", ["a", "b"], 4, wrong=[0, 1, 2, 3, 4, 5])}), RunFolder(tmp_path))
    assert "mislabelled" not in capsys.readouterr().out  # the network knows too little
    show_results(Result({"train": replace(score, baseline=1.0)}), RunFolder(tmp_path))
    assert "mislabelled" not in capsys.readouterr().out
    write_json(tmp_path / "reports/images_test.json", {})
    show_results(Result({"test": drawn_score("test", ["a", "b"], 20, wrong=[3])}), RunFolder(tmp_path))
    assert "mislabelled" not in capsys.readouterr().out

"""`data.batch_size=auto` and `ml-find-lr`: what they find, and that they leave no trace."""

import math
import random
import re
import sys

import numpy as np
import pytest
import torch
from helpers import SMALL, same
from PIL import Image

import imago
from imago.tuning import find_lr
from imago.tuning.experiment_file import write_rate
from imago.tuning.range_test import Curve


def test_the_batch_size_that_is_found_leaves_no_trace_but_its_number(train, command):
    found = train("data.batch_size=auto", "model=simple_cnn", "data.image_size=24")  # with dropout
    assert "data.batch_size=auto: 8. Tried 8 images: " in found.output
    assert "More than 8 would leave fewer than 10 steps an epoch (39 train images)" in found.output
    typed = train("data.batch_size=8", "model=simple_cnn", "data.image_size=24")
    assert same(found.weights(), typed.weights())
    assert "batch_size: 8\n" in found.text("config.yaml")
    longer = command("train", f"resume={found.dir}", "trainer.max_epochs=3", folder=found.dir)
    assert "data.batch_size" not in longer.output, longer.output  # neither tried again nor changed
    assert longer.checkpoint()["imago"]["progress"]["settings"]["data.batch_size"] == 8


def test_the_memory_bounds_the_batch_size(train, monkeypatch):
    monkeypatch.setattr("imago.training.batch_size.free_memory", lambda: 160_000)
    small = train("data.batch_size=auto", "preflight=false", "test=false")
    size = small.checkpoint()["imago"]["progress"]["settings"]["data.batch_size"]
    assert size in (1, 2, 4)
    assert f"data.batch_size=auto: {size}. Tried 8 images" in small.output
    monkeypatch.setattr("imago.training.batch_size.free_memory", lambda: 1_000)
    refused = train("data.batch_size=auto", "preflight=false")
    assert "data.batch_size=auto: a step on one image needs" in refused.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=ddp_sim"], "data.batch_size=auto and several devices"),
        (["model.compile=true"], "data.batch_size=auto and model.compile=true"),
        (["train=false"], "data.batch_size=auto and train=false"),
    ],
)
def test_what_the_batch_size_cannot_be_found_with(train, words, message):
    assert message in train("data.batch_size=auto", *words).error


def test_a_learning_rate_is_found_and_written_and_nothing_else(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_configs" / "experiment" / "mine.yaml"
    words = [f"data.data_dir={colours}", *SMALL, "model=simple_cnn", f"paths.log_dir={tmp_path}/logs"]
    words += [f"paths.cache_dir={tmp_path}/cache"]
    monkeypatch.setattr(sys, "argv", ["ml-find-lr", *words, "--steps", "60", "--write", str(file)])
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    find_lr.main()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    said = capsys.readouterr().out
    assert re.search(r"Tried \d+ learning rates from 1e-06 to [\d.]+", said), said
    rate = float(re.search(r"Suggested: model.optimizer.lr=(\S+) \(set: 0.003\)", said)[1])
    assert 1e-4 < rate < 1
    with Image.open(tmp_path / "lr_curve.png") as curve:
        assert curve.size[0] > 500
    assert {path.name for path in tmp_path.iterdir()} <= {"my_configs", "lr_curve.png", "cache"}  # no run folder
    cfg = imago.load_config(f"hydra.searchpath=[file://{tmp_path}/my_configs]", "experiment=mine")
    assert (cfg.model.optimizer.lr, cfg.model.net._target_) == (rate, "imago.model.SimpleCNN")
    assert cfg.data.data_dir == str(colours)
    for word in ("resume=latest", "-m", "budget=10m"):
        monkeypatch.setattr(sys, "argv", ["ml-find-lr", word])
        with pytest.raises(SystemExit, match=f"{word}: ml-find-lr trains a few steps"):
            find_lr.main()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("model:\n  optimizer:\n    lr: 0.1  # mine\n", "model:\n  optimizer:\n    lr: 0.002  # mine\n"),
        ("model:\n  optimizer:\n    betas: [1, 2]\n", "model:\n  optimizer:\n    lr: 0.002\n    betas: [1, 2]\n"),
        ("# x\nmodel:\n    net: a\ntags: []", "# x\nmodel:\n    optimizer:\n      lr: 0.002\n    net: a\ntags: []"),
        ("tags: []", "tags: []\nmodel:\n  optimizer:\n    lr: 0.002\n"),
    ],
)
def test_the_other_lines_of_an_experiment_stay(tmp_path, before, after):
    file = tmp_path / "mine.yaml"
    file.write_text(before)
    write_rate(file, 0.002, [], "")
    assert file.read_text() == after


def test_the_suggestion_is_in_the_longest_fall():
    rates = [10 ** (-6 + number / 10) for number in range(70)]
    losses = [2.3 if rate < 1e-4 else max(0.5, 2.3 - 0.9 * math.log10(rate / 1e-4)) for rate in rates]
    curve = Curve(rates, [loss + (10 if rate > 0.5 else 0) for rate, loss in zip(rates, losses, strict=True)])
    assert 1e-3 < curve.suggestion < 3e-2
    assert Curve(rates, [1.0] * 70).suggestion is None
    assert Curve().suggestion is None

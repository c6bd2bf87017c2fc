"""What a command says about itself: --help, --version; and how it starts: .env, pipes that are closed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO

from imago.cli.environment import read_env_file
from imago.cli.help import help_page, page_for, version_line

COMMANDS = ("train", "eval", "inference", "export", "serve", "visualise", "doctor")
FRAGMENT = re.compile(r"(of|or|that|below|at|up to|for which|when|name ->) ")


@pytest.mark.quick
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_fits_100_columns_and_every_explanation_stands_alone(command, flag, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    page = page_for([flag], command, f"ml-{command}")
    assert page is not None
    assert max(map(len, page.splitlines())) <= 100
    own = page.partition("Settings and their defaults\n")[2].partition("\n\n")[0].splitlines()
    for line in own:
        setting, _, text = line.strip().partition("  ")
        assert "=" in setting, f"{line}: the explanation takes more than a line"
        assert text.strip(), f"{setting} is not explained"
        assert not FRAGMENT.match(text.strip()), f"{setting}: {text.strip()}"


def test_the_first_lines_say_what_to_type_for_a_folder_a_network_and_epochs():
    first = "\n".join(help_page("train", "ml-train").splitlines()[:15])
    for typed in ("data.data_dir=PATH ", "trainer.max_epochs=30", "model.net.name=efficientnet_b0", "resume=latest"):
        assert f" {typed}" in first


def test_own_settings_come_first_and_all_others_behind_help_all():
    short, long = (help_page("inference", "ml-inference", every) for every in (False, True))
    assert short.index("ckpt_path=null") < short.index("source=null") < short.index("data.batch_size=")
    assert "tta=none          {none, flip, five_crop, ten_crop} " in short
    assert "accumulate_grad_batches" not in short
    assert "trainer.accumulate_grad_batches=1 " in long
    assert len(short.splitlines()) < 50
    assert "hydra." not in long


def test_options_that_are_typed_show_their_settings():
    page = str(page_for(["strategy=dp", "data=nothing", "--help"], "train", "ml-train"))
    part = page.partition("Settings of strategy=dp\n")[2].partition("\n\n")[0]
    assert "strategy.target_epsilon=null " in part
    assert "strategy=dp         {dp, none}" in page
    assert "Settings of" not in str(page_for(["--help"], "train", "ml-train"))
    assert "Settings of" not in str(page_for(["../strategy=dp", "--help"], "train", "ml-train"))


def test_version_and_networks():
    assert re.fullmatch(r"imago \S+ \(torch \S+, lightning \S+, Python 3\.\d+\.\d+\)", version_line())
    assert "\nefficientnet_b0\n" in str(page_for(["--networks"], "train", "ml-train"))
    assert page_for(["seed=1"], "train", "ml-train") is None


@pytest.mark.parametrize("words", [["src/train.py", "--help-all"], ["-m", "imago.status", ".", "--json"]])
def test_a_pipe_that_is_closed_ends_a_command_silently(words):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    process.stderr.close()


def test_env_file_is_read_unless_it_decides_what_runs(tmp_path, monkeypatch):
    pytest.importorskip("dotenv")
    monkeypatch.chdir(tmp_path)
    assert read_env_file() is None
    monkeypatch.setenv("IMAGO_TEST_SET", "before")
    monkeypatch.delenv("WANDB_TEST", raising=False)
    Path(".env").write_text("WANDB_TEST=3\nIMAGO_KEY_FILE=/evil\nIMAGO_TEST_SET=after\n")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    key = os.environ["IMAGO_KEY_FILE"]
    assert read_env_file() == "Note: .env may not set IMAGO_KEY_FILE, IMAGO_TEST_SET. Set it in the shell."
    assert (os.environ["WANDB_TEST"], os.environ["IMAGO_TEST_SET"], os.environ["IMAGO_KEY_FILE"]) == (
        "3",
        "before",
        key,
    )


def test_an_env_file_that_cannot_be_read_is_mentioned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("A=1\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert read_env_file() == "Note: .env was not read. To read it: pip install 'imago[dotenv]'"

"""The commands as Python functions: the same runs, exceptions instead of exit statuses, no traces in the process."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from helpers import REPO, SMALL
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import imago
from imago.cli.isolation import isolated

DOCS = REPO / "docs"
LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


@pytest.fixture
def overrides(colours, tmp_path):
    return [f"data.data_dir={colours}", *SMALL, f"paths.log_dir={tmp_path}/logs", f"paths.cache_dir={tmp_path}/cache"]


def process_state() -> dict[str, object]:
    root = logging.getLogger()
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "filters": list(warnings.filters),
        "hooks": (warnings.showwarning, sys.excepthook),
        "loggers": [(name, logging.getLogger(name).level) for name in ("", "lightning", "matplotlib", "torch")],
        "handlers": [
            (logger.handlers[:], logger.propagate) for logger in (root, *map(logging.getLogger, LIGHTNING_LOGGERS))
        ],
        "path": (sys.path[:], sys.meta_path[:], sys.argv[:], dict(os.environ), Path.cwd()),
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
        "torch": (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.get_rng_state().sum()),
        "precision": (torch.backends.cuda.matmul.fp32_precision, torch.is_grad_enabled()),
    }


def test_a_call_is_the_command_and_leaves_no_trace(overrides, train, tmp_path):
    before = process_state()
    result = imago.train(*overrides, "deterministic=true", "seed=7")
    again = imago.train(*overrides, "seed=8")
    assert process_state() == before
    typed = train("deterministic=true", "seed=7")
    weights = typed.weights("best")
    saved = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    assert result.history == typed.history
    assert len(result.history) == 2
    assert result.best_value == max(row["val/acc"] for row in result.history)
    assert result.scores["test"].metrics["acc"] == typed.json("reports/metrics_test.json")["acc"]
    assert result.run_dir.parent == again.run_dir.parent == tmp_path / "logs" / "train" / "runs"
    assert json.loads((result.run_dir / "status.json").read_text())["status"] == "completed"
    assert result.scores["test"].confusion.shape == (3, 3)
    assert "<td>15</td>" in result._repr_html_()
    assert result.confusion_matrix("test").axes
    assert result.curves().axes
    with pytest.raises(imago.UserError, match="The split train was not scored"):
        result.score("train")

    scored = imago.evaluate("latest", f"paths.log_dir={tmp_path}/logs", split=["val", "test"])
    assert list(scored.scores) == ["val", "test"]
    assert scored.checkpoint == again.checkpoint
    assert (
        imago.evaluate(result.run_dir, f"paths.log_dir={tmp_path}/logs").scores["test"].metrics["acc"]
        == (result.scores["test"].metrics["acc"])
    )

    assert imago.load_config(f"resume={result.run_dir}").seed == 7
    finished = imago.train(f"resume={result.run_dir}")
    assert (finished.best_value, finished.scores, finished.history) == (result.best_value, {}, result.history)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_epoch=3"], "Unknown setting trainer.max_epoch (override). Did you mean trainer.max_epochs=3?"),
        (["experiment=nope"], "Unknown option experiment=nope. The options are digits"),
        (["model.optimizer.lr=x"], "model.optimizer.lr must be a number, got x."),
        (["data.data_dir=/nowhere"], "data.data_dir=/nowhere does not exist"),
        (["-m", "seed=1,2"], "A function starts one run, not a sweep"),
        (["resume=/nowhere"], "/nowhere is not a run folder"),
        (["hydra.mode=MULTIRUN"], "A function starts one run, not a sweep"),
        (["--config-dir", "/mine"], "To add a config folder: 'hydra.searchpath=[file:///mine]'"),
        ([["seed=1"]], "Overrides must be strings"),
        (["callbacks.resume.on_full_disk=shrug"], "callbacks.resume.on_full_disk must be stop or continue, got shrug."),
        (["model.optimizer.lr=${oc.env:IMAGO_NOT_SET}"], "The environment variable IMAGO_NOT_SET is not set"),
        (["+params.token=literal_secret", "data.data_dir=/no/literal_secret"], "data.data_dir=/no/*** does not exist"),
    ],
)
def test_mistakes_are_exceptions_with_the_words_of_the_command(overrides, words, message):
    before = process_state()
    with pytest.raises(imago.UserError, match=re.escape(message)):
        imago.train(*overrides, *words)
    assert process_state() == before


def test_the_folder_of_an_own_option_is_added_by_an_override(tmp_path, monkeypatch):
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    (tmp_path / "mine" / "callbacks" / "own.yaml").write_text("own: {_target_: lightning.pytorch.Callback}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(imago.UserError, match=r"add 'hydra\.searchpath=") as refused:
        imago.load_config("callbacks=own")
    assert "own" in imago.load_config("callbacks=own", str(refused.value).split("'")[1]).callbacks


def test_what_fails_inside_a_run_is_told_with_its_cause(overrides, tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text(
        "import torch\n\n\nclass Loss(torch.nn.Module):\n    def forward(self, input, target):\n"
        "        raise RuntimeError('the loss is broken')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(imago.TaskError, match="the loss is broken") as caught:
        imago.train(*overrides, "preflight=false", "+model.criterions.criterions.mine={_target_: breaks.Loss}")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "breaks" not in sys.path
    (folder,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["error"]) == ("failed", str(caught.value))


def test_ctrl_c_saves_the_state_and_is_a_keyboard_interrupt(overrides, tmp_path, monkeypatch):
    (tmp_path / "presses.py").write_text(
        "import os, signal\nfrom lightning.pytorch import Callback\n\n\nclass CtrlC(Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 3:\n            os.kill(os.getpid(), signal.SIGINT)\n"
    )
    monkeypatch.chdir(tmp_path)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        before = process_state()
        with pytest.raises(KeyboardInterrupt):
            imago.train(*overrides, "+callbacks.ctrl_c={_target_: presses.CtrlC}")
        assert process_state()["signals"] == before["signals"]
    finally:
        signal.signal(signal.SIGINT, inherited)
    (folder,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    resumed = imago.train(f"resume={folder}", "callbacks.ctrl_c=null")
    assert len(resumed.history) == 2


def test_each_call_imports_the_modules_of_its_own_folder(overrides, tmp_path, monkeypatch):
    weights = []
    for name in ("first", "second"):
        (folder := tmp_path / name).mkdir()
        (folder / "nets.py").write_text(
            "import torch\nfrom imago.model import TinyNet\n\n\nclass Net(TinyNet):\n"
            "    def __init__(self, **kwargs):\n        super().__init__(**kwargs)\n"
            f"        self.{name} = torch.nn.Parameter(torch.zeros(1))\n"
        )
        monkeypatch.chdir(folder)
        result = imago.train(*overrides, "model.net._target_=nets.Net", "preflight=false", "test=false")
        weights.append(torch.load(result.checkpoint, weights_only=True)["state_dict"])
    assert [name in weights[0] for name in ("net.first", "net.second")] == [True, False]
    assert [name in weights[1] for name in ("net.first", "net.second")] == [False, True]
    assert "nets" not in sys.modules


def test_one_call_at_a_time():
    inside, through = threading.Event(), threading.Event()

    def call():
        with isolated():
            inside.set()
            through.wait(60)

    other = threading.Thread(target=call)
    other.start()
    inside.wait(60)
    try:
        with pytest.raises(imago.UserError, match="Another thread of this process is running Imago"):
            imago.load_config("experiment=digits")
    finally:
        through.set()
        other.join()


def test_the_settings_can_be_looked_at(tmp_path):
    cfg = imago.load_config("experiment=digits", "trainer.max_epochs=3", f"paths.log_dir={tmp_path}")
    assert (cfg.trainer.max_epochs, cfg.task_name, cfg.callbacks.model_checkpoint.dirpath) == (
        *(3, "train"),
        "RUN/checkpoints",
    )
    assert not list(tmp_path.iterdir())
    configs = tmp_path / "configs" / "experiment"
    configs.mkdir(parents=True)
    (configs / "mine.yaml").write_text("# @package _global_\ntrainer:\n  max_epochs: 9\n")
    own = imago.load_config(f"hydra.searchpath=[file://{configs.parent}]", "experiment=mine")
    assert (own.trainer.max_epochs, own.data.source._target_) == (9, "imago.data.write_digits")
    with pytest.raises(imago.UserError, match="command must be train, .* got fly"):
        imago.load_config(command="fly")


def test_imago_is_light_until_it_is_asked_for_something():
    code = "import sys, imago; assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules); print(imago.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO / "src", timeout=60)
    assert done.stdout.strip() == imago.__version__, done.stderr


def test_the_python_of_the_page_runs(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real, short = imago.train, ["trainer.limit_train_batches=2", "trainer.accelerator=cpu", "report.splits=[test]"]
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={tmp_path}/logs", f"paths.cache_dir={tmp_path}/cache"]
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL):
        exec(code.replace("imago.train(", "train("), {"train": lambda *words: real(*words, *short, *paths)})
    assert len(list((tmp_path / "logs" / "train" / "runs").iterdir())) == 3


def test_the_notebook_runs_and_shows_table_matrix_and_curves(data_dir, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(DOCS / "notebooks" / "first_run.ipynb", as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(REPO / "src"))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={tmp_path}/logs", f"paths.cache_dir={tmp_path}/cache"]
    for cell in cells:
        cell.source = cell.source.replace('"experiment=digits"', '"experiment=digits", ' + repr(paths)[1:-1])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [set(output.data) for cell in cells for output in cell.outputs if "data" in output]
    assert any("text/html" in kind for kind in kinds)
    assert sum("image/png" in kind for kind in kinds) >= 2

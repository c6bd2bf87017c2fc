"""What does not depend on how busy a machine is: calls, imports, what is fused, how often a bar moves."""

import sys
from typing import Any

import pytest
import torch
from helpers import draw_classes, type_in_new_interpreter
from lightning.pytorch import Callback, Trainer
from torch import nn

from imago.callbacks.profiler import format_profile
from imago.callbacks.progress import TimedBar

MOST_CALLS = 2600


class CountCalls(Callback):
    """The Python functions that are called in a step, on average from step 20 to 60."""

    per_step = 0.0

    def __init__(self) -> None:
        self.calls = 0
        self.steps = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps += 1
        if self.steps == 20:
            sys.setprofile(self._count)
        elif self.steps == 60:
            sys.setprofile(None)
            CountCalls.per_step = self.calls / 40

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += event == "call"


def test_a_step_with_everything_on_takes_few_python_calls(command, tmp_path):
    """Metrics, two loggers, checkpoints, early stopping, record, progress. lightning-hydra-template takes 7,279."""
    folder = draw_classes(tmp_path / "data" / "train", {"blue": 320, "red": 320}, size=16).parent
    run = command(
        "train",
        f"data.data_dir={folder}",
        "model=mnist",
        "model.net.in_features=768",
        "data.image_size=16",
        "data.batch_size=8",
        "data.num_workers=0",
        "data.train_transform=${data.eval_transform}",  # sliced from memory, as MNIST
        "data.cache=ram",
        "trainer=cpu",
        "trainer.max_epochs=2",
        "logger=[csv,tensorboard]",
        "test=false",
        "+callbacks.count._target_=test_speed.CountCalls",
    )
    assert run.exit_code == 0, run.output
    assert 200 < CountCalls.per_step <= MOST_CALLS


UNNEEDED = ("tensorboard", "opacus", "datasets", "wandb", "mlflow", "optuna", "sklearn", "pandas", "safetensors")


def test_only_what_a_run_needs_is_imported(colours, tmp_path):
    """By name, not by seconds. torchvision's networks are not among them: torchmetrics imports them itself."""
    code = (
        f"import atexit, sys\natexit.register(lambda: print('FOUND', sorted(set({UNNEEDED!r}) & sys.modules.keys())))"
    )
    words = [f"data.data_dir={colours}", "model=simple_cnn", "debug=fdr", "test=false", f"hydra.run.dir={tmp_path}/run"]
    done = type_in_new_interpreter(*words, f"paths.cache_dir={tmp_path}/cache", code=code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FOUND []" in done.stdout


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_are_fused_unless_something_else_is_typed(train, optimizer):
    words = [f"model/optimizer={optimizer}", "model.optimizer.lr=0.01", "test=false", "trainer.max_epochs=3"]
    fused, plain = train(*words), train(*words, "+model.optimizer.fused=false")
    assert (fused.exit_code, plain.exit_code) == (0, 0), plain.output
    groups = [run.checkpoint()["optimizer_states"][0]["param_groups"][0] for run in (fused, plain)]
    assert [group["fused"] for group in groups] == [True, False]
    for name, tensor in plain.weights().items():
        assert torch.allclose(tensor.float(), fused.weights()[name].float(), atol=1e-3), name


def test_weights_pixel_by_pixel_give_the_same_network(train):
    words = ["model=simple_cnn", "test=false"]
    last, first = train(*words), train(*words, "model.channels_last=false")
    assert last.exit_code == 0, last.output
    weights = [next(each for each in run.weights().values() if each.ndim == 4) for run in (last, first)]
    assert [each.is_contiguous(memory_format=torch.channels_last) for each in weights] == [True, False]
    assert last.history[-1]["train/loss"] == pytest.approx(first.history[-1]["train/loss"], abs=1e-3)


NETS = """
from torch import nn
class Viewing(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.deep = nn.Conv3d(1, 1, 1)
        self.head = nn.Linear(4 * 14 * 14, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).relu().view(len(x), -1))
"""


def test_own_networks_may_use_view(train, tmp_path, monkeypatch):
    (tmp_path / "view_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    words = ["model.net._target_=view_nets.Viewing", "test=false"]
    run = train(*words)
    assert run.exit_code == 0, run.output
    refused = train(*words, "model.channels_last=true")
    assert refused.exit_code == 1
    assert "Type model.channels_last=false" in refused.output


def test_what_an_optimizer_has_kept_follows_the_layout_of_the_weights(train, command):
    """A fused kernel would else pair each weight with another one's moments."""
    runs = []
    for layout in ("true", "false"):
        half = train("model=simple_cnn", "trainer.max_epochs=1", "test=false", "model.channels_last=true")
        words = ["trainer.max_epochs=3", f"model.channels_last={layout}"]
        runs.append(command("train", f"resume={half.dir}", *words, folder=half.dir))
        assert runs[-1].exit_code == 0, runs[-1].output
    checkpoint = runs[1].checkpoint()
    weights = [each for name, each in checkpoint["state_dict"].items() if name.startswith("net.") and each.ndim == 4]
    moments = [each["exp_avg"] for each in checkpoint["optimizer_states"][0]["state"].values()]
    assert [each.stride() for each in moments if each.ndim == 4] == [each.stride() for each in weights]
    for name, tensor in runs[0].weights().items():
        assert torch.allclose(tensor.float(), runs[1].weights()[name].float(), atol=2e-3), name


def test_a_deterministic_trainer_does_not_let_cudnn_choose(train):
    assert train("trainer.deterministic=true", "trainer.max_epochs=1", "test=false").exit_code == 0
    assert torch.backends.cudnn.benchmark is False
    assert train("trainer.max_epochs=1", "test=false").exit_code == 0
    assert torch.backends.cudnn.benchmark is True


class Moves(TimedBar):
    """Counts, instead of drawing."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[int] = []

    @property
    def total_train_batches(self) -> int:  # type: ignore[override]
        return 5000


def test_the_bar_moves_by_time_and_at_the_last_batch(monkeypatch):
    clock = iter(number / 1000 for number in range(10_000, 20_000))  # a millisecond per batch
    monkeypatch.setattr("imago.callbacks.progress.time.monotonic", lambda: next(clock))
    bar = Moves()
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end",
        lambda self, trainer, module, outputs, batch, batch_idx: self.moves.append(batch_idx),
    )
    for batch_idx in range(5000):
        bar.on_train_batch_end(None, None, None, None, batch_idx)  # type: ignore[arg-type]
    assert 45 <= len(bar.moves) <= 55
    assert (bar.moves[0], bar.moves[-1]) == (0, 4999)


class Slow(nn.Module):
    """A transform that takes its time."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(0.06)
        return image


def test_slow_loading_is_said_with_what_to_type(train):
    slow = "+data.train_transform.pixels.slow._target_=test_speed.Slow"
    run = train(slow, "trainer.max_epochs=3", "test=false", "data.cache=none")
    assert run.exit_code == 0, run.output
    line, repeated = [line for line in run.output.splitlines() if "was spent waiting for images" in line]
    assert repeated.strip(" -") in line  # below "Warnings", at the end
    assert "of epoch 2" in line
    assert "data.cache=auto" in line
    assert "data.num_workers=" in line
    assert "spent waiting for images" not in train("test=false").output
    short = train(slow, "test=false").output.splitlines()  # two epochs, for which `auto` caches nothing
    assert "data.cache" not in next(line for line in short if "was spent waiting" in line)


def test_the_profile_adds_up_and_is_in_summary_and_report(train):
    run = train("debug=profiler", "logger=csv")
    assert run.exit_code == 0, run.output
    assert "Where the time went:" in run.output
    profile = run.json("status.json")["profile"]
    assert {"waiting for images", "forward", "backward", "optimizer", "validation", "checkpoints"} <= profile.keys()
    shares = [float(value.split("%")[0]) for value in profile.values() if "%" in value]
    assert sum(shares) == pytest.approx(100, abs=0.6)
    assert float(profile["images per second, free loader"]) > float(profile["images per second while training"]) > 0
    for name in ("summary.txt", "report.html", "report.md"):
        assert profile["forward"].split()[0] in run.text(name)


def test_a_profile_without_images_has_no_rate():
    assert format_profile({"forward": 3.0, "waiting for images": 1.0}, 0) == {
        "forward": " 75.0%  3.00 s",
        "waiting for images": " 25.0%  1.00 s",
    }

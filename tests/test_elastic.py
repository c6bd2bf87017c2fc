"""A training does not depend on the number of its processes, not even where it changes within an epoch."""

import json
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import REPO, SMALL, rows, type_command
from kill_ranks import images_of_steps, wrong_steps
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from imago.errors import UserError
from imago.model.metrics import MetricsComposition

BATCHES = ("data.batch_size=17", "callbacks.resume.every_n_train_steps=1")  # 17, 17 and 5 of 39 images
PLAIN = ("model.net._target_=plain.Plain", "model/optimizer=sgd", "callbacks.early_stopping=null")


@pytest.fixture(scope="module", autouse=True)
def plain(tmp_path_factory):
    """A network without BatchNorm, and a loss that is NaN for one batch of one process."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "plain.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Plain(nn.Sequential):\n"
        "    def __init__(self, num_classes: int) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, num_classes))\n"
        "class Breaks(nn.CrossEntropyLoss):\n"
        "    calls = 0\n"
        "    def forward(self, input, target):\n"
        "        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 1\n"
        "        self.calls += torch.is_grad_enabled()\n"
        "        bad = torch.is_grad_enabled() and self.calls in (2, 6) and rank == 1\n"
        "        return super().forward(input, target) * (float('nan') if bad else 1)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(REPO / "tests"))
        yield


@pytest.fixture(scope="module")
def started(colours, tmp_path_factory):
    """Runs of one and of two processes, and the folder of the latter after its first step."""
    folder = tmp_path_factory.mktemp("started")

    def run(name: str, *words: str):
        watch = ["+callbacks.indices._target_=snapshots.Indices", f"+callbacks.indices.to={folder}/{name}_images"]
        small = [f"data.data_dir={colours}", *SMALL, *PLAIN, *BATCHES, *watch, f"paths.log_dir={folder}/logs"]
        done = type_command("train", [*small, *words], folder / name)
        assert done.exit_code == 0, done.output
        return done, images_of(folder / f"{name}_images")

    snapshots = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={folder}/snapshots"]
    return run("one"), run("two", "trainer=ddp_sim", *snapshots), folder / "snapshots" / "001"


def images_of(folder: Path) -> dict[tuple[int, int], list[int]]:
    """Epoch and batch -> images of all processes."""
    images = defaultdict(list)
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            epoch, batch, indices = json.loads(line)
            images[epoch, batch] += indices
    return {step: sorted(indices) for step, indices in images.items()}


def check_close(run, whole) -> None:
    weights, expected = run.weights(), whole.weights()
    assert all(torch.allclose(weights[name], expected[name], rtol=0, atol=1e-5) for name in expected)
    for row, expected_row in zip(run.history, whole.history, strict=True):
        for name, value in expected_row.items():
            exact = name.startswith("train/") and "loss" not in name
            assert row[name] == (value if exact else pytest.approx(value, abs=1e-5)), name
    predicted = [[row["path"], row["prediction"]] for row in rows(run, "test")]
    assert predicted == [[row["path"], row["prediction"]] for row in rows(whole, "test")]


def test_two_processes_train_on_the_batches_of_one_to_the_same_weights(started):
    (one, images), (two, images_of_two), _ = started
    assert [len(batch) for batch in images.values()] == [17, 17, 5] * 2
    assert images_of_two == images
    check_close(two, one)


@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_continues_within_an_epoch(started, command, tmp_path, processes):
    (whole, images), _, snapshot = started
    folder, to = Path(shutil.copytree(snapshot, tmp_path / "resumed")), tmp_path / "images"
    devices = f"trainer.devices={processes}"
    words = [f"resume={folder}", devices, "callbacks.snapshots=null", f"callbacks.indices.to={to}"]
    run = command("train", *words, folder=folder)
    assert run.exit_code == 0, run.output
    assert "Resumed at epoch 1 of 2, batch 2 of 3" in run.output
    assert "would differ" not in run.output
    assert images_of(to) == {step: batch for step, batch in images.items() if step != (0, 0)}
    check_close(run, whole)


class Largest(Metric):
    """The largest label, with a state that torchmetrics reduces by `reduce`."""

    def __init__(self, reduce: str | None = "max") -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(-1.0), dist_reduce_fx=reduce)

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.largest = torch.maximum(self.largest, target.max())

    def compute(self) -> torch.Tensor:
        return self.largest


def test_metrics_of_two_processes_are_merged_or_refused():
    metrics = {"acc": partial(MulticlassAccuracy), "auroc": partial(MulticlassAUROC), "largest": Largest()}
    whole = MetricsComposition(metrics, num_classes=3)
    logits, label = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    batch = {"logits": logits, "label": label, "prediction": logits.argmax(dim=1)}
    parts = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 7), slice(7, 20))]
    states = []
    for part in parts:
        whole.update(part)
        process = MetricsComposition(metrics, num_classes=3).clone()
        process.reset()
        process.update(part)
        states.append(process.state())
    resumed = MetricsComposition(metrics, num_classes=3).clone()
    resumed.load_state(resumed.merged(states))
    assert resumed.compute() == whole.compute()
    for reduce in ("mean", None):
        own = MetricsComposition({"own": Largest(reduce)}, num_classes=3)
        own.update(batch)
        state = own.state()
        assert own.merged([state]) is state
        with pytest.raises(UserError, match=r"metrics\.own: Largest\.largest of several .* Type trainer\.devices=2$"):
            own.merged([state, state])


def test_all_processes_skip_a_batch_whose_loss_is_bad_on_one(train):
    breaks = ["model.criterions.criterions.ce._target_=plain.Breaks", "model.on_bad_loss=skip"]
    words = [*PLAIN, *BATCHES[:1], *breaks, "trainer.accumulate_grad_batches=2"]
    one, two = train(*words), train(*words, "trainer=ddp_sim")
    assert two.exit_code == 0, two.output
    for run in (one, two):
        assert "The loss became nan in epoch 1, batch 2 (step 0): skipping the batch" in run.output
        assert "The loss became nan in epoch 2, batch 3 (step 3): skipping the batch" in run.output
        assert run.text("summary.txt").count("batches skipped (loss not finite)") == 1
    check_close(two, one)


def test_the_benchmark_of_kills_sees_lost_steps_and_other_images(tmp_path):
    expected = {(0, 0): [1, 2, 3], (0, 1): [4, 5, 6]}
    noted = {"0_0": [[0, 0, [1]], [0, 1, [4]]], "0_1": [[0, 0, [3, 2]]], "1_0": [[0, 1, [4, 5, 6]]]}
    for name, lines in noted.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempts = images_of_steps(tmp_path)
    assert wrong_steps(expected, attempts) == (0, [])  # the second start has repeated the step that was killed
    assert wrong_steps(expected, attempts[:1]) == (1, [])
    others = wrong_steps(expected, [*attempts, {(0, 1): [4, 5, 7]}])
    assert others == (0, ["start 2, step (0, 1): [4, 5, 7], not [4, 5, 6]"])

"""Run with `make test-gpu`."""

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule

import imago
from imago.data.transfer import CopyingDataModule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_a_checkpoint_written_on_a_gpu_is_scored_on_a_cpu(train, command):
    run = train("trainer=gpu", "trainer.accelerator=gpu", "data.num_workers=2")
    assert run.exit_code == 0, run.output
    assert torch.cuda.get_device_name(0) in run.text("summary.txt")
    scored = command("eval", f"ckpt_path={run.dir}", "trainer=cpu")
    assert scored.exit_code == 0, scored.output
    ours, theirs = scored.json("reports/metrics_test.json"), run.json("reports/metrics_test.json")
    assert ours["per_class"] == theirs["per_class"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def test_the_default_trainer_takes_the_gpu(train):
    run = train("trainer.accelerator=auto")
    assert torch.cuda.get_device_name(0) in run.text("summary.txt")


class CountWaits(Callback):
    """The times that a step waits for the GPU, over steps 5 to 14."""

    waits = -1

    def __init__(self) -> None:
        self.steps = 0
        self.caught = warnings.catch_warnings(record=True)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == 5:
            self.found = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif self.steps == 15:
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            CountWaits.waits = sum("synchronizing CUDA operation" in str(each.message) for each in self.found or [])


def test_no_step_waits_for_the_gpu(train):
    words = [
        "trainer=gpu",
        "trainer.accelerator=gpu",
        "data.batch_size=2",
        "trainer.log_every_n_steps=0",
    ]  # logging reads the loss
    run = train(*words, "+callbacks.count._target_=test_gpu.CountWaits", "logger=[]", "test=false")
    assert run.exit_code == 0, run.output
    assert CountWaits.waits == 0


def test_batches_that_are_copied_aside_are_those_that_are_waited_for(train, monkeypatch):
    words = ["trainer=gpu", "trainer.accelerator=gpu", "deterministic=true", "test=false", "logger=[]"]
    aside = train(*words)
    assert aside.exit_code == 0, aside.output

    def wait(self, batch, device, dataloader_idx):
        batch = LightningDataModule.transfer_batch_to_device(self, batch, device, dataloader_idx)
        torch.cuda.synchronize()
        return batch

    monkeypatch.setattr(CopyingDataModule, "transfer_batch_to_device", wait)
    waited = train(*words)
    assert waited.exit_code == 0, waited.output
    theirs = waited.weights()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in aside.weights().items())


def test_a_classifier_on_the_gpu_predicts_what_one_on_the_cpu_does(trained, colours):
    files = sorted(colours.joinpath("val").rglob("*.png"))
    wanted = imago.load_classifier(trained.dir).predict(files)
    moved = imago.load_classifier(trained.dir)
    moved.model.to("cuda")
    for classifier in (imago.load_classifier(trained.dir, device="cuda"), moved):
        found = classifier.predict([*files[:-1], torch.zeros(3, 8, 8, dtype=torch.uint8, device="cuda")])
        for on_gpu, on_cpu in zip(found[:-1], wanted, strict=False):
            assert list(on_gpu.probabilities.values()) == pytest.approx(list(on_cpu.probabilities.values()), abs=1e-3)

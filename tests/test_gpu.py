"""Run with `make test-gpu`."""

import pytest
import torch

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

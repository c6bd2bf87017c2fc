"""FSDP in two processes on the CPU; tests/test_gpu.py has a GPU."""

import pytest
import torch
import torchvision
from helpers import rows, same

from imago.training.fsdp import PARTS, SMALLEST, units

FSDP = ("trainer=ddp_sim", "trainer.strategy=fsdp")


def weights(run, name="last"):
    return torch.load(run.dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def test_divided_weights_are_trained_as_whole_ones_and_saved_in_whole(train, command):
    """Gradients are added in another order than in DDP, which AdamW, but not SGD, makes visible where they are about 0.
    A resumed run has the bits of one that was never stopped."""
    words = ["model.scheduler=null", "trainer.max_epochs=2", "trainer.gradient_clip_val=1"]
    words += ["model.optimizer._target_=torch.optim.SGD", "model.optimizer.lr=0.05"]
    whole, divided = train("trainer=ddp_sim", *words), train(*FSDP, *words)
    assert (whole.exit_code, divided.exit_code) == (0, 0), divided.output
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(divided)[name], weight, rtol=0, atol=1e-5)
    assert [row["prediction"] for row in rows(whole, "test")] == [row["prediction"] for row in rows(divided, "test")]
    first = train(*FSDP, *words, "trainer.max_epochs=1", "test=false")
    resumed = train(*FSDP, *words, "test=false", f"ckpt_path={first.dir}/checkpoints/last.ckpt")
    assert resumed.exit_code == 0, resumed.output
    assert same(weights(resumed), weights(divided))
    scored = command("eval", f"ckpt_path={divided.dir}")  # one process, an ordinary checkpoint
    assert scored.json("reports/metrics_test.json") == divided.json("reports/metrics_test.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["callbacks=[default,ema]"], "trainer.strategy=fsdp and callbacks that average weights"),
        (["recipe=head"], "trainer.strategy=fsdp and model.probe: no process has the whole head"),
        (["model.compile=true"], "trainer.strategy=fsdp and model.compile=true"),
        (["trainer.precision=16-mixed"], "Type trainer.precision=bf16-mixed"),
    ],
)
def test_what_needs_whole_weights_is_refused(train, words, message):
    run = train(*FSDP, *words)
    assert run.exit_code == 1
    assert message in run.error


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "convnext_tiny"])
def test_a_network_is_divided_into_parts_of_similar_size(name):
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    sizes = [sum(weight.numel() for weight in unit.parameters()) for unit in units(net)]
    whole = sum(weight.numel() for weight in net.parameters())
    assert len(sizes) >= PARTS
    assert SMALLEST <= min(sizes) <= max(sizes) <= whole / PARTS * 2
    assert sum(sizes) > 0.8 * whole

"""Gradient checkpointing: the same numbers, with fewer tensors kept."""

import copy
from functools import partial

import pytest
import torch
from helpers import same
from torch import nn

from imago.errors import UserError
from imago.model.networks import SimpleCNN, TinyNet
from imago.model.recompute import _blocks, checkpoint_gradients
from imago.model.timm import timm_net
from imago.model.torchvision import torchvision_net


def step(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits and gradients of a train step, and the bytes that were kept for it."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = net(images)
    nn.functional.cross_entropy(logits, torch.arange(len(images)) % 3).backward()
    return logits.detach(), {name: p.grad for name, p in net.named_parameters()}, sum(kept.values())


NETS = {
    "resnet18": partial(torchvision_net, name="resnet18", weights=None),
    "efficientnet_b0": partial(torchvision_net, name="efficientnet_b0", weights=None),  # dropout, stochastic depth
    "densenet121": partial(torchvision_net, name="densenet121", weights=None),  # blocks that take lists
    "vit_tiny": partial(timm_net, name="vit_tiny_patch16_224", weights=None, image_size=32),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_and_statistics_are_the_same_and_less_is_kept(name):
    if name.startswith("vit"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = NETS[name](num_classes=3).train()
    cheap = copy.deepcopy(plain)
    checkpoint_gradients(cheap)
    images = torch.randn(4, 3, 32, 32)
    (logits, grads, much), (again, others, little) = step(plain, images), step(cheap, images)
    assert torch.equal(logits, again)
    assert same(grads, others)
    assert same(plain.state_dict(), cheap.state_dict())  # also the counters of BatchNorm
    assert little < 0.7 * much
    twin = copy.deepcopy(cheap)  # as of averages: its blocks are its own
    assert next(iter(dict(_blocks(twin, "")).values())).forward.args[0] in set(twin.modules())


def test_a_network_without_a_stack_is_refused_by_name():
    for net, name in (
        (TinyNet(3), "TinyNet"),
        (torchvision_net(name="alexnet", weights=None, num_classes=3), "AlexNet"),
    ):
        with pytest.raises(UserError, match=f"{name} has no stack of blocks"):
            checkpoint_gradients(net)
    assert len(checkpoint_gradients(SimpleCNN(3))) == 3
    block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.Linear(3, 3))
    net = nn.Sequential(nn.Linear(3, 3), *(copy.deepcopy(block) for _ in range(3)))
    checkpoint_gradients(net)
    with pytest.raises(UserError, match="Sequential changes its input in place, so that it cannot be computed again"):
        net(torch.randn(2, 3))


def test_a_run_with_it_has_the_bits_of_one_without(train, command):
    words = ("model=simple_cnn", "data.image_size=24", "trainer.max_epochs=1", "callbacks=[default,ema]")
    plain, run = train(*words), train(*words, "model.gradient_checkpointing=true")
    assert run.exit_code == 0, run.output
    assert same(run.weights(), plain.weights())
    assert run.history == plain.history
    scored = command("eval", f"ckpt_path={run.dir}")
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    for refused in ("strategy=dp", "trainer=fsdp", "model.compile=true"):
        assert "model.gradient_checkpointing" in train(*words, "model.gradient_checkpointing=true", refused).error

"""Muon for the matrices of a network, AdamW for the rest."""

import copy

import pytest
import torch
from helpers import same
from torch import nn

from imago.model.muon import Muon, matrices_of
from imago.model.networks import TinyNet
from imago.model.optimizers import optimizer_settings
from imago.model.surgery import to_channels_last

HEAD = {"head.weight", "head.bias"}


def stepped(net: nn.Module, steps: int = 3) -> Muon:
    optimizer = Muon(net.parameters(), matrices_of(net, HEAD), lr=0.01)
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(8) % 3).backward()
        optimizer.step()
    return optimizer


@pytest.mark.quick
def test_matrices_get_the_step_of_muon_and_the_rest_that_of_adamw():
    torch.manual_seed(0)
    net = TinyNet(3)
    before = copy.deepcopy(net)
    stepped(net, steps=1)
    grads = {name: weight.grad for name, weight in net.named_parameters()}
    for name, weight in before.named_parameters():
        matrix = nn.Parameter(weight.detach().flatten(1) if weight.ndim == 4 else weight.detach())
        matrix.grad = grads[name].reshape(matrix.shape)
        settings = {"lr": 0.01, "weight_decay": 0.01}
        if weight.ndim == 4:
            theirs = torch.optim.Muon([matrix], **settings, adjust_lr_fn="match_rms_adamw")
        else:
            theirs = torch.optim.AdamW([matrix], **settings)
        theirs.step()
        assert torch.equal(net.get_parameter(name), matrix.reshape(weight.shape)), name


@pytest.mark.quick
def test_the_layout_in_memory_is_of_no_account_and_a_state_continues():
    torch.manual_seed(0)
    net = TinyNet(3)
    last, again = copy.deepcopy(net), copy.deepcopy(net)
    to_channels_last(last)
    first = stepped(net)
    stepped(last)
    for one, other in zip(net.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-3)  # Muon computes in bfloat16
    other = Muon(again.parameters(), matrices_of(again, HEAD), lr=0.5)
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    assert optimizer_settings(other, None) == optimizer_settings(first, None)
    again.load_state_dict(net.state_dict())
    for optimizer, its in ((first, net), (other, again)):
        for weight in its.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert same(net.state_dict(), again.state_dict())


def test_a_run_with_muon_is_resumed_to_the_same_bits_and_keeps_its_groups(train, command):
    words = ("model/optimizer=muon", "model.head_lr=0.02", "model.decay_norms_and_biases=false", "model.scheduler=null")
    whole = train(*words)
    part = train(*words, "trainer.max_epochs=1")
    again = command("train", f"resume={part.dir}", "trainer.max_epochs=2", folder=part.dir)
    assert again.exit_code == 0, again.output
    assert same(again.weights(), whole.weights())
    groups = {
        g["name"]: (g["lr"], g["weight_decay"]) for g in whole.checkpoint()["optimizer_states"][0]["param_groups"]
    }
    assert groups == {
        "muon_backbone": (0.01, 0.01),
        "backbone_no_decay": (0.01, 0.0),
        "head": (0.02, 0.01),
        "head_no_decay": (0.02, 0.0),
    }
    rms = train("model/optimizer=rmsprop", "trainer.max_epochs=1")
    assert rms.exit_code == 0, rms.output
    assert not same(rms.weights(), part.weights())
    refused = train("model/optimizer=muon", "trainer=fsdp")
    assert "model/optimizer=muon: an update needs the whole matrix" in refused.error

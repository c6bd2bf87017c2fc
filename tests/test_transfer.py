"""Frozen layers, and layers that are unfrozen while a run lasts."""

from functools import partial

import pytest
import torch
from helpers import draw_classes
from torch import nn

from imago.errors import UserError
from imago.model.networks import TinyNet
from imago.model.stages import freeze_until, stages_of
from imago.model.surgery import head_names
from imago.model.torchvision import torchvision_net


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("resnet18", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("efficientnet_b0", [f"features.{n}" for n in range(9)]),
        ("vit_b_16", ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12))]),
        ("vgg11", [*(f"features.{n}" for n in (0, 3, 6, 8, 11, 13, 16, 18)), "classifier.0", "classifier.3"]),
    ],
)
def test_stages_are_those_of_the_architecture_and_have_all_but_the_head(name, labels):
    build = partial(torchvision_net, name=name, weights=None)
    with torch.device("meta"):
        net = build(num_classes=3)
    head = head_names(build, 3)
    stages = stages_of(net, head)
    assert [stage.label for stage in stages] == labels
    names = [name for stage in stages for name in stage.names]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters() if name not in head)


@pytest.mark.quick
def test_layers_are_frozen_up_to_one_and_a_wrong_name_is_answered():
    class Tokens(nn.Module):  # as in a transformer, a tensor of the whole stands first
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.below, self.above = nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))

    net = Tokens()
    assert freeze_until(net, "above.0") == [net, net.below]
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["above.0.weight", "above.0.bias"]
    with pytest.raises(UserError, match=r"TinyNet has no layer feature. Did you mean features\? It has features, "):
        freeze_until(TinyNet(2), "feature")
    with pytest.raises(UserError, match="freezes nothing: features is the first layer. Type model.freeze=null"):
        freeze_until(TinyNet(2), "features")


def test_layers_below_stay_as_they_are_with_their_statistics(train, trained):
    start = [f"model.init_from={trained.dir}", "test=false", "trainer.max_epochs=1"]
    run = train(*start, "model.freeze=until:features.1")
    assert run.exit_code == 0, run.output
    before, after = trained.weights("best"), run.weights()
    changed = {name.removeprefix("net.") for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in TinyNet(3).state_dict() if not name.startswith("features.0.")}
    assert "needs pretrained weights" in train("model.freeze=until:features.1", "trainer.max_epochs=1").error


def test_a_private_training_of_the_upper_layers(train, trained, tmp_path):
    others = draw_classes(tmp_path / "others" / "train", {"blue": 9, "green": 9, "red": 9}, seed=7).parent
    draw_classes(others / "val", {"blue": 3, "green": 3, "red": 3}, seed=8)
    words = [f"data.data_dir={others}", f"model.init_from={trained.dir}", "trainer.max_epochs=1", "test=false"]
    words += ["strategy=dp", "model.norm=group", "strategy.target_epsilon=50", "model.freeze=until:features.1"]
    run = train(*words)
    assert run.exit_code == 0, run.output
    before, after = trained.weights("best"), run.weights()
    changed = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    below = {name for name in before if name.startswith("net.features.0.")}
    assert not changed & below
    assert run.json("reports/privacy.json")["replaced"] == ["features.1.1"]


def test_stages_are_unfrozen_from_the_top(train, trained):
    words = [f"model.init_from={trained.dir}", "test=false", "callbacks=[default,unfreeze]", "model.optimizer.lr=0.003"]
    one = train(*words, "trainer.max_epochs=1")
    assert one.exit_code == 0, one.output
    assert "1 of 2 stages are never trained" not in one.output
    assert "2 of 2 stages are never trained. Type trainer.max_epochs=3 for all" in one.output
    before, after = trained.weights("best"), one.weights()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"net.head.weight", "net.head.bias"}
    whole = train(*words, "trainer.max_epochs=3")
    assert "Epoch 2 trains features.1.0 and above" in whole.output
    assert "Epoch 3 trains all layers" in whole.output
    assert all(not torch.equal(before[name], whole.weights()[name]) for name in before)
    for refused in ("strategy=dp", "trainer=fsdp", "model.freeze=backbone"):
        assert "unfreez" in train(*words, refused, "model.norm=group").error

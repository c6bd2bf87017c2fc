"""Learning rates and weight decay by layer, frozen BatchNorm, and averaged weights."""

from functools import partial

import pytest
import torch
from helpers import same
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from imago.errors import UserError
from imago.model.networks import TinyNet
from imago.model.optimizers import make_scheduler
from imago.model.parameter_groups import ParameterGroups, depths
from imago.model.surgery import head_names
from imago.model.timm import timm_net
from imago.model.torchvision import torchvision_net
from imago.report.curves import curves_of


def built(name: str) -> tuple[nn.Module, set[str]]:
    build = partial(torchvision_net, name=name, weights=None)
    with torch.device("meta"):
        return build(num_classes=3), head_names(build, 3)


@pytest.mark.quick
def test_layers_are_the_blocks_of_a_network_in_their_order():
    depth = depths(*built("resnet18"))
    assert (depth["fc.weight"], depth["layer4.1.conv1.weight"], depth["layer4.0.downsample.1.bias"]) == (0, 1, 2)
    assert depth["conv1.weight"] == depth["bn1.weight"] == max(depth.values()) == 9
    depth = depths(*built("vit_b_16"))  # the encoder is unfolded, tokens and positions belong to the first layer
    assert depth["class_token"] == depth["encoder.pos_embedding"] == depth["conv_proj.weight"] == 13
    assert depth["encoder.layers.encoder_layer_11.mlp.0.weight"] == depth["encoder.ln.weight"] == 1
    own = nn.ModuleDict({"backbone": built("resnet18")[0], "head": nn.Linear(3, 2)})
    assert depths(own, {"head.weight", "head.bias"})["backbone.conv1.weight"] == 10


def rates_of(net: nn.Module, groups: ParameterGroups, **settings: float) -> dict[str, tuple[float, float]]:
    optimizer = torch.optim.AdamW(groups.divide(net, net, head_names(TinyNet, 3)), **settings)
    groups.apply(optimizer)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.quick
def test_each_setting_changes_the_rate_or_the_decay_of_its_parameters():
    net = TinyNet(3)
    settings = {"lr": 0.1, "weight_decay": 0.2}
    plain = ParameterGroups().divide(net, net, set())
    assert all(one is other for one, other in zip(plain, net.parameters(), strict=True))
    rates = rates_of(net, ParameterGroups(head_lr=0.3, layer_decay=0.5, decay_norms_and_biases=False), **settings)
    assert rates == {
        "features.0.0.weight": (0.025, 0.2),
        "features.0.1.weight": (0.025, 0.0),
        "features.0.1.bias": (0.025, 0.0),
        "features.1.0.weight": (0.05, 0.2),
        "features.1.1.weight": (0.05, 0.0),
        "features.1.1.bias": (0.05, 0.0),
        "head.weight": (0.3, 0.2),
        "head.bias": (0.3, 0.0),
    }
    assert set(rates_of(net, ParameterGroups(head_lr=0.3), **settings).values()) == {(0.1, 0.2), (0.3, 0.2)}
    for name, value in (("head_lr", -1), ("layer_decay", 0), ("layer_decay", 1.5)):
        with pytest.raises(UserError, match=f"model.{name} must be"):
            ParameterGroups(**{name: value})
    with pytest.raises(UserError, match="has no head"):
        ParameterGroups(head_lr=0.3).divide(net, net, set())


@pytest.mark.quick
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_the_layers_and_decay_of_a_network_of_timm_are_those_of_timm(name):
    optim = pytest.importorskip("timm.optim")
    build = partial(timm_net, name=name, weights=None)
    with torch.device("meta"):
        net = build(num_classes=3)
    groups = ParameterGroups(layer_decay=0.75, decay_norms_and_biases=False)
    ours = torch.optim.AdamW(groups.divide(net, net, head_names(build, 3)), lr=1.0, weight_decay=0.05)
    groups.apply(ours)
    exempt = getattr(net, "no_weight_decay", set)()
    theirs = optim.param_groups_layer_decay(net, 0.05, exempt, layer_decay=0.75)
    expected = {id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    for group in ours.param_groups:
        for parameter in group["params"]:
            assert (group["lr"], group["weight_decay"]) == pytest.approx(expected[id(parameter)])


class Plan:
    """The part of a Trainer that tells a schedule its steps."""

    max_epochs, estimated_stepping_batches, callbacks = 1, 10, ()


@pytest.mark.quick
@pytest.mark.parametrize("maker", [partial(OneCycleLR, max_lr=1.0), partial(CyclicLR, base_lr=0.1, max_lr=1.0)])
def test_a_schedule_that_would_make_all_rates_equal_is_refused(maker):
    def optimizer(*rates: float) -> torch.optim.Optimizer:
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
        return torch.optim.SGD(groups, momentum=0.9)

    with pytest.raises(UserError, match="sets one learning rate for all parameters"):
        make_scheduler(maker, optimizer(0.1, 0.5), "step", Plan(), "val/loss")
    make_scheduler(maker, optimizer(0.1, 0.1), "step", Plan(), "val/loss")
    both = optimizer(0.1, 0.5)
    make_scheduler(
        partial(LambdaLR, lr_lambda=lambda step: 0.0 if step == 0 else 0.5), both, "step", Plan(), "val/loss"
    )


@pytest.mark.quick
def test_the_report_shows_the_rate_of_the_head_beside_the_others():
    row = {"lr-SGD/depth_02": 0.1, "lr-SGD/depth_01": 0.2, "lr-SGD/head": 0.9, "lr-SGD/head_no_decay": 0.9}
    (curve,) = curves_of([{"epoch": 0, **row}])["shown"]
    assert [(entry["name"], entry["last"]) for entry in curve["series"]] == [("lr", 0.2), ("lr of the head", 0.9)]


def test_the_head_has_its_rate_and_frozen_batchnorm_stays_as_it_is(train, trained):
    start = [f"model.init_from={trained.dir}", "test=false", "model.optimizer.weight_decay=0", "logger=csv"]
    before = trained.weights("best")

    def changed(*words: str) -> set[str]:
        run = train(*start, "model.freeze_batch_norm=true", *words)
        assert run.exit_code == 0, run.output
        now = run.weights()
        assert any(name.startswith("lr-AdamW/head") for name in run.history[0])
        assert ", lr of the head 0.05, batch size 8" in run.output
        return {name for name in now if not torch.equal(now[name], before[name])}

    head = {"net.head.weight", "net.head.bias"}
    assert changed("model.head_lr=0.05", "model.optimizer.lr=0") == head
    convolutions = {"net.features.0.0.weight", "net.features.1.0.weight"}
    assert changed("model.head_lr=0.05", "model.layer_decay=0.5") == head | convolutions


RECORD = """
import torch
from lightning.pytorch import Callback

class Record(Callback):
    weights = []

    def on_train_start(self, trainer, pl_module):
        self.weights.clear()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})
"""


def test_the_average_is_validated_saved_and_scored_once_it_has_started(train, command, tmp_path, monkeypatch):
    (tmp_path / "record.py").write_text(RECORD)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["+callbacks.record._target_=record.Record", "trainer.max_epochs=3"]
    average = ["callbacks=[default,ema]", "callbacks.ema.start=0.4", "callbacks.ema.decay=0.6", "monitor=val/loss"]
    run = train(*words, *average)
    assert run.exit_code == 0, run.output
    from record import Record

    expected = dict(Record.weights[6])  # 15 steps; the average is that of steps 7 to 15
    for count, step in enumerate(Record.weights[7:], 1):
        kept = min(0.6, (1 + count) / (10 + count))
        for name, value in step.items():
            is_mean = value.is_floating_point()
            expected[name] = kept * expected[name] + (1 - kept) * value if is_mean else value
    last = run.checkpoint()
    for name, value in expected.items():
        torch.testing.assert_close(last["state_dict"][name], value)
    assert same(last["current_model_state"], Record.weights[-1])
    assert not same(last["current_model_state"], last["state_dict"])
    plain = train(*words, "monitor=val/loss")
    assert same(plain.weights(), last["current_model_state"])  # averaging does not change the training
    first, *later = zip(plain.history, run.history, strict=True)
    assert first[0]["val/loss"] == first[1]["val/loss"]  # it has not started: the current weights are validated
    assert all(one["val/loss"] != other["val/loss"] for one, other in later)
    best = min(row["val/loss"] for row in run.history)
    for scored in (run, command("eval", f"ckpt_path={run.dir}")):  # test is val
        assert scored.exit_code == 0, scored.output
        assert scored.json("reports/metrics_test.json")["loss"] == pytest.approx(best, rel=1e-6)
    refused = command("train", f"resume={run.dir}", "callbacks.ema=null", "trainer.max_epochs=4", folder=run.dir)
    assert "The checkpoint has averaged weights, and this run does not average" in refused.output

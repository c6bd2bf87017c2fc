"""Weights of classes in the losses, and weights to start from."""

import copy
import math
from collections import OrderedDict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import draw_classes
from omegaconf import OmegaConf
from torch import nn

import imago
from imago.errors import UserError
from imago.model.initial_weights import start_from
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.training.origins import Origin, check_private_start, origins_of, unrecorded_by

DATA: Any = SimpleNamespace(split=lambda _: [1, 2, 3], train_digests=torch.tensor([1, 2, 3]))


def model(**options) -> DictModule:
    criterions = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    return DictModule(
        ["defect", "ok"], lambda num_classes: nn.Linear(3, num_classes), criterions, optimizer=None, **options
    )


@pytest.mark.quick
def test_the_loss_is_that_of_each_image_whatever_the_batch():
    criterions = model(class_weights={"defect": 5}).criterions
    logits, labels = torch.randn(12, 2), torch.tensor([0] + [1] * 11)
    each = nn.functional.cross_entropy(logits, labels, reduction="none") * torch.tensor([5.0, 1.0])[labels]
    for size in (1, 4, 12):
        parts = [
            criterions({"logits": logits[i : i + size], "label": labels[i : i + size]}) for i in range(0, 12, size)
        ]
        assert sum(float(part["total"]) for part in parts) / len(parts) == pytest.approx(float(each.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"defekt": 5}, "names defekt, but the classes are defect, ok. Did you mean defect"),
        ([1.0], "has 1 weights for 2 classes"),
        ({"defect": -1}, "must be numbers of 0 or more"),
        ("balanced", "must be auto, effective, or class names with weights"),
    ],
)
def test_weights_that_fit_no_class_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        model(class_weights=weights)


def test_auto_weights_are_plain_numbers_afterwards(train, command, tmp_path):
    folder = draw_classes(tmp_path / "rare" / "train", {"blue": 30, "red": 6}).parent
    draw_classes(folder / "val", {"blue": 5, "red": 5}, seed=1)
    run = train(f"data.data_dir={folder}", "model.class_weights=auto", "data.batch_size=6")
    assert run.exit_code == 0, run.output
    assert "model.class_weights=auto: blue 0.6, red 3" in run.output
    assert "blue: 0.6" in run.checkpoint()["imago"]["config"]
    scored = command("eval", f"ckpt_path={run.dir}")
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    other = train(f"data.data_dir={folder}", "model.class_weights={blue: 0.6, red: 3.0}", "data.batch_size=6")
    assert other.history == run.history
    metrics = run.json("reports/metrics_test.json")
    assert metrics["loss"] != pytest.approx(metrics["cross_entropy"], rel=1e-3)  # val has other shares than train
    typed = train("model.criterions.criterions.ce.weight=[5,1,1]", f"data.data_dir={folder}")
    assert (
        "For class weights type model.class_weights=auto"
        in typed.output + train("+model.criterions.criterions.ce.weight=[5,1,1]", f"data.data_dir={folder}").output
    )


def test_auto_weights_are_not_private(train):
    run = train("strategy=dp", "model.class_weights=auto")
    assert run.exit_code == 1
    assert "strategy=dp and model.class_weights=auto" in run.last_line


def test_a_run_starts_from_another_one_with_other_classes(train, trained, tmp_path):
    folder = draw_classes(tmp_path / "two" / "train", {"blue": 8, "red": 8}).parent
    draw_classes(folder / "val", {"blue": 3, "red": 3}, seed=1)
    words = [f"data.data_dir={folder}", "trainer.max_epochs=1", "model.optimizer.lr=0.0"]
    run = train(*words, f"model.init_from={trained.dir}")
    assert run.exit_code == 0, run.output
    assert "Newly initialised (the head: the classes differ, or are unknown): head.bias, head.weight" in run.output
    assert "Not used: head.bias, head.weight" in run.output
    ours, theirs = run.weights(), trained.weights("best")
    assert torch.equal(ours["net.features.0.0.weight"], theirs["net.features.0.0.weight"])
    assert ours["net.head.weight"].shape == (2, 16)
    same = train(*words[1:], f"model.init_from={trained.dir}/checkpoints/best.ckpt")
    assert torch.equal(same.weights()["net.head.weight"], theirs["net.head.weight"])
    assert same.checkpoint()["epoch"] == 0


def test_a_run_starts_from_a_file_and_goes_on_without_it(train, command, trained, tmp_path):
    net = imago.load_classifier(trained.dir).model.net
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    run = train("trainer.max_epochs=1", f"model.init_from={tmp_path}/weights.pth")
    assert "the head: the classes differ, or are unknown" in run.output
    (tmp_path / "weights.pth").unlink()
    assert command("eval", f"ckpt_path={run.dir}").exit_code == 0
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=2", folder=run.dir)
    assert again.exit_code == 0, again.output


def test_an_export_is_known_with_its_classes_and_its_privacy(trained, command, tmp_path):
    file = tmp_path / "ants.safetensors"
    assert command("export", f"ckpt_path={trained.dir}", f"output={file}").exit_code == 0
    classifier = imago.load_classifier(trained.dir)
    net, trained_net = copy.deepcopy(classifier.model.net), classifier.model.net
    head = {"head.weight", "head.bias"}
    for class_names, is_kept in ((classifier.class_names, True), (["a", "b", "c"], False)):
        nn.init.zeros_(net.head.weight)
        assert start_from(net, str(file), class_names, head) is None
        assert torch.equal(net.head.weight, trained_net.head.weight) == is_kept
        assert torch.equal(net.features[0][0].weight, trained_net.features[0][0].weight)
    for start in ({"init_from": str(file)}, {"net": {"weights": str(file)}}):  # both load it
        origins = origins_of(OmegaConf.create(start))
        with pytest.raises(UserError, match=r"their train images are not recorded.* type strategy\.public_init=true"):
            check_private_start(origins, None, DATA, is_promised=False)
        (promised,) = check_private_start(origins, None, DATA, is_promised=True)
        assert "you promise (strategy.public_init=true) that these weights have seen none" in promised
        assert unrecorded_by(origins, is_private=False).endswith("ants.safetensors")


def test_what_weights_have_seen_is_known_over_several_runs(caplog):
    """A private run keeps no list of images, and an export none at all: what comes after them is not known either."""
    images = torch.tensor([7, 8])
    cases = [  # weights, whether a private training may start from them, whether all their images are known afterwards
        (Origin("FILE", is_foreign=True), True, True),
        (Origin("RUN", seen=images), True, True),
        (Origin("RUN", seen=torch.tensor([3, 7])), False, True),
        (Origin("RUN", seen=images, unrecorded="training began with X"), False, False),
        (Origin("RUN", seen=torch.tensor([], dtype=torch.int64)), False, False),
        (Origin("EXPORT"), False, False),
        (Origin("PRIVATE", spent="epsilon 3, delta 1e-05"), True, False),
        (Origin("PRIVATE", spent="epsilon 3, delta 1e-05", unrecorded="training began with X"), False, False),
    ]
    for origin, may_start, is_known in cases:
        with nullcontext() if may_start else pytest.raises(UserError, match="strategy=dp and"):
            check_private_start([origin], None, DATA, is_promised=False)
        assert (unrecorded_by([origin], is_private=False) == "") == is_known
        assert (unrecorded_by([origin], is_private=True) == "") == origin.is_foreign
    with pytest.raises(UserError, match=r"strategy\.public_init=true does not help"):
        check_private_start([cases[2][0]], None, DATA, is_promised=True)
    (sums,) = check_private_start([cases[6][0]], None, DATA, is_promised=False)
    assert "(epsilon 3, delta 1e-05). If it has seen images of this run, both epsilons and both deltas add up" in sums
    assert sums in caplog.messages


def test_weights_of_another_network_are_refused(train, trained, tmp_path):
    other = train("model=simple_cnn", f"model.init_from={trained.dir}")
    assert other.exit_code == 1
    assert f"model.init_from={trained.dir}/checkpoints/best.ckpt has no weights that fit this network" in other.output
    net = nn.Sequential(OrderedDict(head=nn.Linear(4, 3)))
    torch.save({"head.weight": torch.zeros(3, 5), "head.bias": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"Shapes differ: head.weight \(3, 5\) instead of \(3, 4\)\. Type the model="):
        start_from(net, str(tmp_path / "other.pth"), ["a", "b", "c"], {"head.weight", "head.bias"})
    with pytest.raises(UserError, match="Only tensors of the head, which depends on the classes, have the same"):
        start_from(nn.Sequential(OrderedDict(head=nn.Linear(5, 3))), str(tmp_path / "other.pth"), ["a", "b", "c"],
                   {"head.weight", "head.bias"})  # fmt: skip
    absent = train("model.init_from=/nowhere/at/all.ckpt")
    assert "model.init_from=/nowhere/at/all.ckpt does not exist" in absent.output


def test_a_forward_function_alone_can_be_the_network(train, command):
    wrap = "_target_: imago.wiring.WrapTransform"
    linear = "{_target_: torch.nn.Linear, _args_: [768, 3]}"
    layers = f"{{_target_: torch.nn.Sequential, _args_: [{{_target_: torch.nn.Flatten}}, {linear}]}}"
    argmax = "{_target_: torch.argmax, _partial_: true, dim: 1}"
    forward = (
        "{_target_: imago.wiring.ComposeTransform, "
        f"logits: {{{wrap}, transform: {layers}, mapping: {{image: input}}, new_key: logits}}, "
        f"prediction: {{{wrap}, transform: {argmax}, mapping: {{logits: input}}, new_key: prediction}}}}"
    )
    run = train("model.net=null", f"++model.forward_fn={forward}", "trainer.max_epochs=4", "model.optimizer.lr=0.01")
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["acc"] > 0.6
    assert command("eval", f"ckpt_path={run.dir}").json("reports/metrics_test.json") == run.json(
        "reports/metrics_test.json"
    )
    refused = command("export", f"ckpt_path={run.dir}")
    assert "model.forward_fn is part of this network" in refused.output
    assert refused.exit_code == 1
    whole = command("export", f"ckpt_path={run.dir}", "format=onnx", "proof_images=5")  # contains it
    assert "5 images of val and 30 odd images, in batches of 1 and 17: 0 flips" in whole.output
    missing = train("model.net=null")
    assert "model.net is missing" in missing.output
    assert missing.exit_code == 1


def test_no_metrics_besides_the_losses(train):
    run = train("callbacks.metrics.metrics=null", "monitor=val/loss")
    assert run.exit_code == 0, run.output
    assert {"val/loss", "train/loss"} <= run.history[0].keys()
    assert "val/acc" not in run.history[0]
    assert math.isfinite(run.json("status.json")["best_value"])


def test_one_transform_for_the_batches_of_all_splits(train, command, colours, tmp_path, monkeypatch):
    (tmp_path / "grey.py").write_text(
        "def grey(batch):\n    image = batch['image'].mean(dim=1, keepdim=True)\n"
        "    return {'image': image.expand(-1, 3, -1, -1)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["++data.transform={_target_: grey.grey, _partial_: true}", "trainer.max_epochs=1"]
    run, plain = train(*words), train("trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert run.history != plain.history
    monkeypatch.chdir(tmp_path)
    scored = command("eval", f"ckpt_path={run.dir}")
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    predicted = command("inference", f"ckpt_path={run.dir}", f"source={colours}/val")
    assert predicted.json("reports/metrics_test.json")["acc"] == run.json("reports/metrics_test.json")["acc"]

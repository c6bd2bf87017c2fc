"""The head first: exact, validated as epoch 0, resumed to the same bits, and kept where fine-tuning gains nothing."""

import csv
import filecmp

import numpy as np
import pytest
import torch
from helpers import same
from sklearn.linear_model import LogisticRegression
from torchvision import models

from imago.callbacks.head_first import describe_gain, paired_gain
from imago.data.features import FEATURES, FeatureCache
from imago.model.linear_head import fit_linear_head, held_out_answers, stratified_folds
from imago.model.networks import TinyNet
from imago.run.overview import Overview

NEVER = "callbacks.early_stopping=null"


def examples(images: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(images)
    labels = torch.arange(images) % classes
    means = 0.3 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(images, width, generator=generator, dtype=torch.float64), labels


@pytest.mark.quick
@pytest.mark.parametrize(("images", "width", "classes"), [(40, 100, 2), (30, 80, 3), (200, 12, 2), (150, 20, 4)])
def test_the_head_is_that_of_scikit_learn(images, width, classes):
    features, labels = examples(images, width, classes)
    head = fit_linear_head(features, labels, classes)
    # with two classes, scikit-learn penalises the difference of their weights
    strength = head.inverse_penalty * (2 if classes == 2 else 1)
    centred = features - features.mean(dim=0)  # where its solver converges sooner; the bias takes it up
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000).fit(centred.numpy(), labels.numpy())
    ours = head.log_probabilities(features).exp().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(centred.numpy()), atol=1e-5)
    assert head.folds == 5
    assert head.cv_loss[head.inverse_penalty] == min(head.cv_loss.values())
    held_out = -head.held_out[torch.arange(len(labels)), labels].mean().item()
    assert held_out == pytest.approx(head.cv_loss[head.inverse_penalty], rel=1e-4)
    assert torch.equal(held_out_answers(features, labels, classes), head.held_out)
    alone = torch.cat([labels, torch.tensor([classes])])  # the only image of its class is never held out
    unknown = held_out_answers(torch.cat([features, features[:1]]), alone, classes + 1).isnan()
    assert unknown.any(dim=1).nonzero().flatten().tolist() == [len(labels)]


def test_the_head_is_the_one_that_is_trained_through_the_frozen_network():
    torch.manual_seed(0)
    net = TinyNet(3).double().eval()
    images = torch.randn(24, 3, 8, 8, dtype=torch.float64)
    labels = torch.arange(24) % 3
    images += labels[:, None, None, None] / 3
    weights = torch.tensor([1.0, 2.0, 0.5])
    inputs: list[torch.Tensor] = []
    hook = net.head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    net(images)
    hook.remove()
    head = fit_linear_head(inputs[0], labels, 3, weights)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name.startswith("head.")
    trained = [net.head.weight, net.head.bias]
    optimizer = torch.optim.LBFGS(
        trained, max_iter=1000, history_size=60, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(net(images), labels, reduction="none")
        total = (weights[labels] * losses).sum() + net.head.weight.square().sum() / (2 * head.inverse_penalty)
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        through_network = net(images).softmax(dim=1)
    assert (through_network - head.log_probabilities(inputs[0]).exp()).abs().max() < 1e-6


def test_folds_are_stratified_and_a_single_image_is_never_held_out():
    labels = torch.tensor([0] * 20 + [1] * 7 + [2] * 3 + [3])
    fold_of, folds = stratified_folds(labels)
    assert folds == 3
    assert [sorted((fold_of[labels == label]).bincount().tolist()) for label in range(3)] == [
        [6, 7, 7],
        [2, 2, 3],
        [1, 1, 1],
    ]
    assert fold_of[-1] == -1
    assert stratified_folds(torch.arange(4)) == (pytest.approx(torch.full((4,), -1)), 0)
    features, _ = examples(4, 6, 4)
    assert fit_linear_head(features, torch.arange(4), 4).folds == 0
    with pytest.raises(ValueError, match=r"the classes \[2\] have no image"):
        fit_linear_head(features, torch.tensor([0, 1, 0, 1]), 3)


def test_the_noise_of_a_gain_is_that_of_mcnemar():
    head, tuned = torch.zeros(100), torch.zeros(100)
    head[:3], tuned[3:12] = 1, 1  # right: 3 images only with the head, 9 only after fine-tuning
    gain, noise = paired_gain(head, tuned)
    assert (gain, noise) == pytest.approx((0.06, 12**0.5 / 100))
    assert describe_gain(gain, noise, "val/acc") == "Fine-tuning gained 6.0 points on val, more than its noise of 3.5"
    assert paired_gain(head, tuned, -1)[0] == pytest.approx(-0.06)
    assert describe_gain(0.004, 0.013, "val/acc") == (
        "Fine-tuning gained 0.4 points on val, within its noise of 1.3: best.ckpt is the head alone"
    )
    assert describe_gain(0.0, 0.0, "val/loss") == "Fine-tuning gained nothing on val: best.ckpt is the head alone"


def test_features_on_the_disk_are_whole_or_made_again(tmp_path, caplog):
    features, place = torch.randn(5, 3), tmp_path / "pixels" / "key"
    cache = FeatureCache(tmp_path, "")
    assert cache.read(place, 5) is None
    cache.write(place, features)
    assert torch.equal(cache.read(place, 5), features)
    assert cache.read(place, 6) is None
    file = place / FEATURES
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert cache.read(place, 5) is None
    assert "are damaged, and are computed again" in caplog.text
    with caplog.at_level("INFO"):
        small = FeatureCache(tmp_path, "", budget=10)
        small.write(tmp_path / "pixels" / "other", features)
    assert "are not kept on the disk: the limit is" in caplog.text
    assert not (tmp_path / "pixels" / "other").exists()
    assert (cache.bytes_beside(tmp_path, 5, 3), small.bytes_beside(tmp_path, 5, 3)) == (60, 0)


def logged(run) -> list[dict[str, str]]:
    with (run.dir / "csv" / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture
def backbone(trained):
    """Words of a run that starts from the weights of `trained`, with the head first."""
    return [f"model.init_from={trained.dir}", "model.probe=true", NEVER]


def test_the_head_is_epoch_0_and_is_kept_within_the_noise_of_val(train, command, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("imago.callbacks.head_first.paired_gain", lambda *_: (0.004, 0.013))
    watch = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={tmp_path}/snapshots"]
    average = ["callbacks=[default,ema]", "model.head_lr=0.02", "model.layer_decay=0.5", "model.freeze_batch_norm=true"]
    watch.append("report.splits=[train,test]")
    run = train(*backbone, *average, "logger=csv", "callbacks.resume.every_n_train_steps=1", *watch)
    assert run.exit_code == 0, run.output
    with np.load(run.dir / "reports" / "held_out_train.npz") as kept:
        doubted = kept["log_probabilities"][np.arange(len(kept["labels"])), kept["labels"]]
    listed = run.json("reports/images_train.json")["possibly_mislabelled"]
    assert listed[0]["held_out"]
    assert min(abs(np.exp(doubted) - listed[0]["label_probability"])) < 1e-9
    head, *epochs = run.history
    assert (head["epoch"], head["step"], [row["epoch"] for row in epochs]) == (-1, 0, [0, 1])
    assert not any(name.startswith("train/") for name in head)
    first = next(row for row in logged(run) if "val/acc" in row)
    assert (first["step"], float(first["val/acc"])) == ("0", pytest.approx(head["val/acc"]))
    status = run.json("status.json")
    assert (status["epoch"], status["best_epoch"], status["best_value"]) == (2, 0, head["val/acc"])
    assert status["head"]["acc"] == head["val/acc"]
    sentence = "Fine-tuning gained 0.4 points on val, within its noise of 1.3: best.ckpt is the head alone"
    sentence += f" (epoch 0, val/acc {head['val/acc']:.4f})"
    for text in (run.output, run.text("summary.txt"), run.text("report.html"), run.text("report.md")):
        assert sentence in text
    assert "more training may help" not in run.output
    plain = Overview.read(run.dir).to_plain()
    assert plain["best_metrics"]["val/acc"] == plain["best_value"] == head["val/acc"]
    assert f"accuracy {head['val/acc']:.4f} on val (majority-class baseline 0.3333)" in run.output
    files = run.dir / "checkpoints"
    assert {file.name for file in files.iterdir()} == {"best.ckpt", "last.ckpt", "head.ckpt", "finetuned.ckpt"}
    assert filecmp.cmp(files / "best.ckpt", files / "head.ckpt", shallow=False)
    scored = command("eval", f"ckpt_path={run.dir}", "split=val").json("reports/metrics_val.json")
    assert (scored["acc"], scored["loss"]) == pytest.approx((head["val/acc"], head["val/loss"]))
    for folder in sorted((tmp_path / "snapshots").iterdir())[:3:2]:  # killed before the first step, and in epoch 1
        again = command("train", f"resume={folder}", "callbacks.snapshots=null", folder=folder)
        assert again.exit_code == 0, again.output
        assert "Head alone: accuracy" not in again.output
        assert same(again.weights(), run.weights())
        assert again.history == run.history
        assert logged(again) == logged(run)
        assert again.json("status.json")["head"] == status["head"]
        assert {file.name for file in (folder / "checkpoints").iterdir()} == {file.name for file in files.iterdir()}
    more = command(
        "train", f"resume={run.dir}", "trainer.max_epochs=3", "callbacks.snapshots=null", "test=false", folder=run.dir
    )
    assert more.exit_code == 0, more.output
    assert [row["epoch"] for row in more.history] == [-1, 0, 1, 2]


def test_the_head_alone_is_an_ordinary_checkpoint(train, command, backbone, colours, trained):
    run = train(*backbone, "model.probe=only", "monitor=val/loss", "callbacks=[default,ema]", "model.head_lr=0.02")
    assert run.exit_code == 0, run.output
    assert [row["epoch"] for row in run.history] == [-1]
    assert run.json("status.json")["epoch"] == 0
    best = run.weights("best")
    assert all(torch.equal(best[name], value) for name, value in run.weights("last").items())
    for name, more in (("eval", []), ("inference", [f"source={colours}/val"]), ("export", [])):
        done = command(name, f"ckpt_path={run.dir}", *more)
        assert done.exit_code == 0, done.output
    again = command("train", f"resume={run.dir}", folder=run.dir)
    assert "contains a finished run (0 epochs): nothing to do" in again.output
    assert f"resume={run.dir} model.probe=true trainer.max_epochs=" in again.output
    assert "chooses the checkpoint" not in run.output  # there is one
    assert "epoch train/loss" not in run.output
    assert "none: the head alone" in run.text("summary.txt")
    assert run.json("status.json")["card"]["learning_rate"] is None
    assert "Learning curves" not in run.text("report.html")
    assert "trainer.max_epochs" not in Overview.read(run.dir).settings
    assert "trains no epochs: trainer.max_epochs=2 and model.head_lr=0.02 have no effect" in run.output
    tuned = command("train", f"resume={run.dir}", "model.probe=true", folder=run.dir)
    assert tuned.exit_code == 0, tuned.output
    assert [row["epoch"] for row in tuned.history] == [-1, 0, 1]
    assert "Fine-tuning gained" in tuned.output
    late = train(f"ckpt_path={trained.dir}/checkpoints/last.ckpt", "model.probe=true", "trainer.max_epochs=9")
    assert "was trained without a head first" in late.output


def test_pretrained_weights_have_their_head_fitted_first(train, tmp_path):
    torch.manual_seed(1)
    torch.save(models.resnet18(num_classes=1000).state_dict(), tmp_path / "resnet.pth")
    words = [
        "model=resnet18",
        f"model.net.weights={tmp_path}/resnet.pth",
        "trainer.limit_train_batches=1",
        "test=false",
    ]
    words += ["trainer.max_epochs=1", "data.image_size=32"]
    margin = "+model.criterions.criterions.margin={_target_: torch.nn.MultiMarginLoss}"
    first = train(*words)
    assert "Head alone: accuracy" in first.output
    (file,) = (tmp_path / "cache" / "pixels").glob(f"*/{FEATURES}")
    assert np.load(file).shape == (39, 512)
    assert "features for the head about 0.1 MB; " in first.text("train.log")
    again = train(*words)
    assert "The features of the train images are read from" in again.output
    assert same(again.weights("head"), first.weights("head"))
    other = train(*words, "data.interpolation=bicubic", "model.probe=only")
    assert "The features of the train images are read from" not in other.output
    none = train(*words, "~model.criterions.criterions.ce", margin)
    assert "No head first (model.probe=auto): it minimises the cross-entropy" in none.output
    assert [row["epoch"] for row in none.history] == [0]
    off = train(*words, "model.probe=false")
    assert [row["epoch"] for row in off.history] == [0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.probe=only"], "model.probe=only needs pretrained weights: TinyNet starts from scratch"),
        (["model.probe=perhaps"], "model.probe must be auto or only or true or false, got perhaps"),
        (["model.probe=true", "strategy=dp"], "strategy=dp and model.probe: the head would see private images"),
        (["model.probe=only", "train=false"], "train=false and model.probe: nothing is fitted"),
    ],
    ids=lambda entry: entry[0] if isinstance(entry, list) else "",
)
def test_a_head_that_cannot_come_first_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.output

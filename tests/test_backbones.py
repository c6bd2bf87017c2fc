import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from imago.config.targets import torchvision_names
from imago.model.efficientnet import efficientnet_lite0
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.model.networks import SimpleCNN, SimpleDenseNet, TinyNet
from imago.model.surgery import _WithoutMemory, head_names
from imago.model.torchvision import _build, torchvision_net
from imago.model.weight_files import read_weights


@pytest.fixture(scope="session")
def imagenet() -> dict[str, torch.Tensor]:
    """A state dict as torchvision distributes it for ResNet-18: 1,000 classes."""
    torch.manual_seed(1)
    return models.resnet18(num_classes=1000).state_dict()


def cached(weights: dict[str, torch.Tensor]) -> Path:
    """Puts `weights` where torch.hub looks for those of ResNet-18."""
    path = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    return path


@pytest.mark.quick
@pytest.mark.parametrize("net", [SimpleCNN(4), TinyNet(4), torchvision_net(4, "mobilenet_v3_small", None)])
def test_the_head_has_an_output_per_class(net):
    assert net.eval()(torch.zeros(2, 3, 48, 48)).shape == (2, 4)


def test_a_dense_net_takes_flat_values():
    assert SimpleDenseNet(4, in_features=12, hidden=[8]).eval()(torch.zeros(2, 12)).shape == (2, 4)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1", "auto"])
def test_cached_weights_fill_all_but_the_head(imagenet, weights):
    cached(imagenet)
    state = torchvision_net(3, "resnet18", weights).state_dict()
    assert state["fc.weight"].shape == (3, 512)
    assert all(torch.equal(state[name], imagenet[name]) for name in state if not name.startswith("fc."))


def test_weights_from_before_batchnorm_counted_fit_too(imagenet):
    cached({name: tensor for name, tensor in imagenet.items() if not name.endswith("num_batches_tracked")})
    state = torchvision_net(3, "resnet18", "DEFAULT").state_dict()
    assert torch.equal(state["layer4.1.bn2.running_var"], imagenet["layer4.1.bn2.running_var"])


def test_the_old_names_of_densenet_are_understood(tmp_path):
    weights = models.densenet121(num_classes=7).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): t for name, t in weights.items()}
    assert old.keys() != weights.keys()
    torch.save(old, tmp_path / "old.pth")
    state = torchvision_net(7, "densenet121", str(tmp_path / "old.pth")).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_the_version_of_mnasnet_goes_along(tmp_path):
    torch.save(models.mnasnet0_5(num_classes=7).state_dict(), tmp_path / "own.pth")
    torchvision_net(3, "mnasnet0_5", str(tmp_path / "own.pth"))


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_networks_with_two_outputs_have_one(name, size):
    assert torchvision_net(3, name, None).train()(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    torchvision_net(3, "resnet18", "auto")
    assert "training resnet18 from scratch" in caplog.text


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_file(imagenet, tmp_path, suffix):
    path = tmp_path / f"own.{suffix}"
    save_file(imagenet, path) if suffix == "safetensors" else torch.save(imagenet, path)
    net = torchvision_net(1000, "resnet18", str(path))
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in imagenet.items())


def test_weights_of_another_network_are_refused(imagenet, tmp_path):
    save_file(imagenet, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="do not fit: besides the head, .* tensors"):
        torchvision_net(3, "resnet34", str(tmp_path / "own.safetensors"))


def test_auto_without_a_network_trains_from_scratch_with_a_warning(caplog):
    torchvision_net(3, "resnet18", "auto")
    assert "training resnet18 from scratch" in caplog.text


def test_default_without_a_network_says_what_to_do():
    with pytest.raises(ConnectionError) as error:
        torchvision_net(3, "resnet18", "DEFAULT")
    place = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    for words in ("model.net.weights=null", "https://download.pytorch.org/models/resnet18-f37072fd.pth", str(place)):
        assert words in str(error.value)


def test_a_damaged_cache_is_said(imagenet):
    path = cached(imagenet)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth has no weights .* Remove it"):
        torchvision_net(3, "resnet18", "DEFAULT")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [Evil(), {"a": 1}, torch.zeros(2)])
def test_a_file_that_is_no_state_dict_is_refused_and_not_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "own.pth")
    with pytest.raises(ValueError, match=r"own\.pth"):
        read_weights(Path("own.pth"))
    assert not Path("executed").exists()


def test_unknown_names_get_the_closest():
    with pytest.raises(ValueError, match=r"model\.net\.name=resnet81 .* closest are .*resnet18"):
        torchvision_net(3, "resnet81", None)
    with pytest.raises(ValueError, match=r"weights of resnet18 must be IMAGENET1K_V1, DEFAULT, auto, .* got V9"):
        torchvision_net(3, "resnet18", "V9")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        torchvision_net(3, "resnet18", "nowhere.pth")


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (partial(torchvision_net, name="resnet18", weights=None), {"fc.weight", "fc.bias"}),
        (partial(torchvision_net, name="regnet_y_400mf", weights=None), {"fc.weight", "fc.bias"}),
        (partial(torchvision_net, name="efficientnet_b0", weights=None), {"classifier.1.weight", "classifier.1.bias"}),
        (partial(torchvision_net, name="vit_b_16", weights=None), {"heads.head.weight", "heads.head.bias"}),
        (partial(efficientnet_lite0, weights=None), {"fc.weight", "fc.bias"}),
        (SimpleCNN, {"head.weight", "head.bias"}),
    ],
)
def test_the_head_is_what_changes_with_the_classes(build, head):
    assert head_names(build, 5) == head


IMAGE_SIZES = {"inception_v3": 299}  # 75 is its least; all others take 224
SMALLEST = {  # of each family, with the least image it takes
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 32,
    "wide_resnet50_2": 32,
}


def model_of(name: str, image_size: int) -> DictModule:
    net = partial(torchvision_net, name=name, weights=None, image_size=image_size)
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    return DictModule(["a", "b", "c"], net, losses, partial(torch.optim.SGD, lr=0.1))


def step(model: DictModule, image_size: int, device: str) -> dict[str, Any]:
    model.train()
    image = torch.ones(2, 3, image_size, image_size, device=device)
    image[1] = -1
    batch = model({"image": image, "label": torch.zeros(2, dtype=torch.long, device=device)})
    model.criterions(batch)["total"].backward()
    optimizer = model.optimizer(list(model.parameters()))
    optimizer.step()
    return batch


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_network_of_torchvision_gets_a_head_and_takes_a_step(name):
    """On the meta device: shapes are real, values are not, and vit_h_14 takes no memory."""
    size = IMAGE_SIZES.get(name, 224)
    with _WithoutMemory():
        model = model_of(name, size).to("meta")
    batch = step(model, size, "meta")
    assert batch["logits"].shape == (2, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())
    state = model.net.state_dict()
    head = head_names(partial(_build, name, image_size=size), 3)
    assert head
    assert all(state[tensor].shape[0] == 3 for tensor in head)


@pytest.mark.parametrize(("name", "size"), SMALLEST.items())
def test_every_family_takes_a_real_step_on_small_images(name, size):
    torch.manual_seed(0)
    model = model_of(name, size)
    before = {key: value.clone() for key, value in model.net.named_parameters()}
    batch = step(model, size, "cpu")
    assert torch.isfinite(batch["logits"]).all()
    assert any(not torch.equal(before[key], value) for key, value in model.net.named_parameters())


def test_there_is_a_real_step_for_every_family():
    def families(names):
        return {models.get_model_builder(name).__module__ for name in names}

    assert families(SMALLEST) == families(models.list_models(module=models))


def test_the_names_read_from_the_source_are_those_of_the_registry():
    assert torchvision_names() == models.list_models(module=models)


def test_a_vision_transformer_takes_other_sizes_and_pretrained_positions_are_interpolated(tmp_path):
    torch.save(models.vit_b_32(num_classes=5).state_dict(), tmp_path / "vit.pth")
    net = torchvision_net(3, "vit_b_32", str(tmp_path / "vit.pth"), image_size=64)
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(
        ValueError, match=r"data.image_size=100: vit_b_32 divides .* 32 pixels. Type data.image_size=96"
    ):
        torchvision_net(3, "vit_b_32", None, image_size=100)

import socket
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from safetensors.torch import save_file

from imago.config.carried import without_pretrained
from imago.config.targets import timm_names
from imago.errors import DownloadError, UserError
from imago.model.origin import weights_of
from imago.model.surgery import head_names
from imago.model.timm import timm_net

timm = pytest.importorskip("timm")

FAMILIES = {  # small networks of ten families -> side of an image
    "test_byobnet": 64,
    "test_convnext": 64,
    "test_efficientnet": 64,
    "test_mambaout": 64,
    "test_nfnet": 64,
    "test_resnet": 64,
    "test_vit": 160,
    "mobilenetv3_small_050": 64,
    "regnetx_002": 64,
    "ghostnet_050": 64,
}


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_ten_families_train_from_scratch_and_take_all_but_the_head_of_a_file(name, size, tmp_path):
    theirs = timm.create_model(name, num_classes=7, **({"img_size": size} if "vit" in name else {}))
    save_file(theirs.state_dict(), tmp_path / "own.safetensors")
    net = timm_net(3, name, str(tmp_path / "own.safetensors"), size)
    head = head_names(partial(timm_net, name=name, weights=None, image_size=size), 3)
    own, given = net.state_dict(), theirs.state_dict()
    assert head == {f"{layer}.{kind}" for layer in [net.pretrained_cfg["classifier"]] for kind in ("weight", "bias")}
    assert all(torch.equal(own[key], given[key]) for key in own.keys() - head)
    scratch = timm_net(3, name, None, size)
    scratch(torch.rand(2, 3, size, size).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert all(parameter.grad is not None for parameter in scratch.parameters())


def cached(name: str, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Puts weights where the client of the hub looks for those of `name`."""
    repository = Path(folder, f"models--timm--{name}")
    for path in (repository / "refs" / "main", repository / "snapshots" / "1" / "model.safetensors"):
        path.parent.mkdir(parents=True)
    Path(repository, "refs", "main").write_text("1")
    save_file(state, repository / "snapshots" / "1" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "auto"),
        ("resnet18", "a1_in1k"),
        ("resnet18.a1_in1k", "DEFAULT"),
        ("resnet18", "hf-hub:timm/resnet18.a1_in1k"),
    ],
)
def test_weights_by_name_tag_and_repository_come_from_the_cache_without_a_connection(
    name, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection"))
    theirs = timm.create_model("resnet18").state_dict()
    cached("resnet18.a1_in1k", theirs, tmp_path)
    net = timm_net(3, name, weights)
    own = net.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith("fc."))
    assert weights_of(net, "imago.model.timm_net", {}) in (
        "pretrained (resnet18.a1_in1k)",
        "pretrained (hf-hub:timm/resnet18.a1_in1k)",
    )


def test_without_a_connection_auto_trains_from_scratch_and_a_name_is_refused(tmp_path, monkeypatch, caplog):
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    assert weights_of(timm_net(3, "test_resnet", "auto"), "imago.model.timm_net", {}) == "from scratch"
    assert "training test_resnet from scratch, because there are no weights" in caplog.text
    with pytest.raises(DownloadError, match=r"(?s)could not be downloaded.*no route.*model.net.weights=null"):
        timm_net(3, "test_resnet", "DEFAULT")


def test_a_run_on_timm_evaluates_resumes_and_exports(train, command, tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "own.safetensors")
    words = ["model=timm", "model.net.name=test_resnet", f"model.net.weights={tmp_path}/own.safetensors"]
    run = train(*words, "data.image_size=32", "model.freeze=backbone", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert "test_resnet" in run.text("summary.txt")
    assert "pretrained (" in run.text("summary.txt")
    data, theirs = OmegaConf.load(run.dir / "config.yaml").data, timm.get_pretrained_cfg("test_resnet")
    assert list(data.eval_transform.batch.normalize.mean) == list(theirs.mean) == [0.5, 0.5, 0.5]
    assert (
        (data.eval_transform.box.share, data.interpolation)
        == (theirs.crop_pct, theirs.interpolation)
        == (0.95, "bilinear")
    )
    (tmp_path / "own.safetensors").unlink()
    scored = command("eval", f"ckpt_path={run.dir}")
    assert scored.exit_code == 0, scored.output
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    assert command("train", f"resume={run.dir}", "trainer.max_epochs=2", folder=run.dir).exit_code == 0
    exported = command("export", f"ckpt_path={run.dir}")
    assert exported.exit_code == 0, exported.output


def test_the_config_of_a_checkpoint_names_no_hub():
    """Its weights are loaded from the checkpoint: `without_pretrained` takes those of timm_net away."""
    model = OmegaConf.create({"net": {"_target_": "imago.model.timm_net", "weights": "hf-hub:a/b", "name": "resnet18"}})
    without_pretrained(model)
    assert model.net.weights is None


def test_the_names_read_from_the_source_are_those_of_timm():
    assert timm_names() == sorted(timm.list_models())


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet_18", None, "not a network of timm. The closest are resnet18"),
        ("resnet18", "a9_in1k", "model.net.weights of resnet18 must be a1_in1k, a2_in1k"),
        ("resnet18.nix", "auto", "got nix"),
        ("resnet18", "nowhere.safetensors", "does not exist"),
    ],
)
def test_wrong_names_and_weights_are_told_with_what_is_valid(name, weights, words):
    with pytest.raises(UserError, match=words):
        timm_net(3, name, weights)

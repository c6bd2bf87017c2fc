"""Checkpoints from strangers: nothing in them is executed, and what was refused is named."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import SMALL, draw_classes
from hydra.utils import instantiate
from omegaconf import OmegaConf

import imago
from imago.checkpoint.read import read_checkpoint
from imago.config.allow_list import check_targets
from imago.config.carried import GROUPS, read_checkpoint_config

MARK = "executed"
CODE = f"open('{MARK}', 'w').close()"
CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("os.system", (f"touch {MARK}",)),
    ("posix.system", (f"touch {MARK}",)),
    ("os.popen", (f"touch {MARK}",)),
    ("os.mkdir", (MARK,)),
    ("os.rename", ("kept", MARK)),
    ("os.remove", ("kept",)),
    ("subprocess.Popen", (["touch", MARK],)),
    ("subprocess.check_output", (["touch", MARK],)),
    ("builtins.eval", (CODE,)),
    ("builtins.exec", (CODE,)),
    ("builtins.open", (MARK, "w")),
    ("builtins.__import__", ("antigravity",)),
    ("builtins.getattr", ("", "join")),
    ("io.open", (MARK, "w")),
    ("pathlib.Path", (MARK,)),
    ("shutil.copy", ("kept", MARK)),
    ("shutil.rmtree", ("kept",)),
    ("importlib.import_module", ("this",)),
    ("runpy.run_path", ("kept",)),
    ("pty.spawn", (["touch", MARK],)),
    ("timeit.timeit", (CODE,)),
    ("code.interact", ()),
    ("types.FunctionType", ()),
    ("marshal.loads", (b"",)),
    ("pickle.loads", (pickle.dumps(1),)),
    ("functools.partial", (print,)),
    ("operator.methodcaller", ("unlink",)),
    ("logging.config.dictConfig", ({},)),
    ("torch.load", ("kept",)),
    ("torch.hub.load", ("kept",)),
    ("torch.jit.load", ("kept",)),
    ("torch.storage._load_from_bytes", (b"",)),
    ("torch.utils.collect_env.run", (f"touch {MARK}",)),
    ("numpy.load", ("kept",)),
    ("hydra.utils.instantiate", ({"_target_": "os.system"},)),
    ("imago.checkpoint.read.read_checkpoint", ("kept",)),
]


@pytest.fixture(autouse=True)
def guarded(tmp_path, monkeypatch):
    """Wherever a call would leave its mark, it is looked for afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("kept").write_text("")
    yield
    assert not Path(MARK).exists()
    assert Path("kept").exists()


def calling(name: str, arguments: tuple[Any, ...]) -> bytes:
    """A pickle that calls `name` when it is loaded."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode().join([b"\x80\x02", pickle.dumps(arguments, 2)[2:-1]]) + b"R."


def in_checkpoint(pickled: bytes) -> bytes:
    """A checkpoint of torch whose content is `pickled`."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {}, "imago": {}}, buffer)
    rewritten = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(rewritten, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return rewritten.getvalue()


def test_the_corpus_is_not_tame():
    assert len(CALLS) >= 25
    pickle.loads(calling("os.system", (f"touch {MARK}",)))
    assert Path(MARK).exists()
    Path(MARK).unlink()


@pytest.mark.parametrize("container", [in_checkpoint, bytes], ids=["zip", "bare"])
@pytest.mark.parametrize(("name", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_a_pickle_that_calls_is_refused_by_name(name, arguments, container, monkeypatch):
    arguments = () if name == "functools.partial" else arguments
    Path("evil.ckpt").write_bytes(container(calling(name, arguments)))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(
        ValueError, match=name.removeprefix("builtins.") if container is in_checkpoint else "evil.ckpt"
    ) as refused:
        read_checkpoint("evil.ckpt")
    assert "a checkpoint" in str(refused.value)


def test_other_shapes_of_malice_are_refused():
    reduced = b"\x80\x02}q\x00X\x05\x00\x00\x00imago" + calling("os.system", ("true",))[2:-1] + b"s."
    by_stack = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    built = b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}b."
    instance = b"(S'true'\nios\nsystem\n."
    for number, pickled in enumerate((reduced, by_stack, built, instance)):
        Path(f"{number}.ckpt").write_bytes(in_checkpoint(pickled))
        with pytest.raises(ValueError, match="a checkpoint"):
            read_checkpoint(f"{number}.ckpt")


GADGETS: list[tuple[str, Any]] = [
    *((name, {"argument": list(map(str, arguments))}) for name, arguments in CALLS[:12]),
    ("torch.utils.collect_env.run", {"command": f"touch {MARK}"}),
    ("setuptools._distutils.spawn.spawn", {"cmd": ["touch", MARK]}),
    ("asyncio.create_subprocess_shell", {"cmd": f"touch {MARK}"}),
    ("torch.hub.load", {"repo_or_dir": ".", "source": "local", "model": "x"}),
    ("numpy.load", {"file": "kept", "allow_pickle": True}),
    ("pathlib.Path.unlink", {"argument": ["kept"]}),
    ("open", {"argument": [MARK, "w"]}),
    ("torchvision.io.write_file", {"filename": MARK, "data": [1]}),
    ("torch.nn.modules.module.torch.load", {"f": "kept", "weights_only": False}),
    ("torch.nn.modules.module.torch.hub.load", {"repo_or_dir": "."}),
    ("torchvision.models.resnet.torch.load", {"f": "kept"}),
    ("torchvision.transforms.transforms.torch.load", {"f": "kept"}),
    ("torchmetrics.utilities.imports.os.system", {"argument": [f"touch {MARK}"]}),
    ("lightning.pytorch.callbacks.model_checkpoint.os.system", {"argument": [f"touch {MARK}"]}),
    ("lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree", {"path": "kept"}),
    ("imago.wiring.nn.modules.module.torch.load", {"f": "kept"}),
    ("imago.model.torchvision.read_weights", {"path": "kept"}),
    ("imago.files.write_text", {"path": MARK, "text": ""}),
    ("torch.optim.optimizer.torch.load", {"f": "kept"}),
    ("torch.nn.utils.stateless.torch.load", {"f": "kept"}),
    ("torchvision.datasets.utils.download_and_extract_archive", {"url": "example.org/x.zip"}),
    ("torchvision.datasets.ImageFolder", {"root": "."}),
    ("torchvision.datasets.folder.os.system", {"argument": [f"touch {MARK}"]}),
    ("lightning.pytorch.callbacks.OnExceptionCheckpoint", {"dirpath": "/tmp/elsewhere"}),
    ("imago.callbacks.RunCheckpoint", {"dirpath": "/tmp/elsewhere"}),
    ("lightning.pytorch.Trainer", {"default_root_dir": "/tmp/elsewhere"}),
    ("imago.data.download_hymenoptera", {"root": ".", "url": "example.org/x.zip", "sha256": "0"}),
    ("datasets.load_dataset", {"path": "pandas", "data_files": "kept"}),
    ("datasets.load_dataset", {"path": "a_stranger/data"}),
    ("datasets.load_dataset", {"path": "imagefolder", "trust_remote_code": True}),
    ("hydra.utils.get_method", {"path": "os.system"}),
    ("hydra._internal.instantiate._instantiate2.instantiate", {"config": {"_target_": "os.system"}}),
    ("omegaconf.OmegaConf.save", {"config": {}, "f": MARK}),
    ("torch.jit.load", {"f": "kept"}),
    ("torch.package.PackageImporter", {"file_or_buffer": "kept"}),
    ("torch.__builtins__.eval", {"argument": [CODE]}),
    ("imago.__dict__.x", {}),
    ("imago.data.write_digits", {"root": "/tmp/elsewhere"}),
    ("lightning.pytorch.loggers.CSVLogger", {"save_dir": "/tmp/elsewhere"}),
    ("lightning.pytorch.callbacks.ModelCheckpoint", {"dirpath": "/tmp/elsewhere"}),
    ("imago.data.ImageFolderDataModule", {"cache_dir": "/tmp/elsewhere"}),
    ("my_net.Net", {}),
]


@pytest.mark.parametrize("place", ["data", "model.net", "callbacks.mine", "model.criterions.list"])
@pytest.mark.parametrize(("name", "arguments"), GADGETS, ids=[name for name, _ in GADGETS])
def test_a_config_that_makes_something_else_is_refused_by_name(name, arguments, place):
    node: Any = {"_target_": name, **arguments}
    if place.endswith("list"):
        node = [{"deep": node}]
    content: dict[str, Any] = {}
    *parents, last = place.split(".")
    inner = content
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = node
    cfg = OmegaConf.create(read_checkpoint_config(yaml.dump(content), "stranger.ckpt"))
    with pytest.raises(ValueError, match="not on the allow-list. Nothing was executed") as refused:
        check_targets(cfg, GROUPS, trusted=[])
    assert name in str(refused.value)
    assert place.removesuffix(".list") in str(refused.value)


def test_the_gadgets_are_not_tame():
    assert len(GADGETS) >= 25
    instantiate({"_target_": "torch.utils.collect_env.run", "command": f"touch {MARK}"})
    assert Path(MARK).exists()
    Path(MARK).unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {x: '${oc.env:HOME}'}", r"calls \$\{oc.env:HOME"),
        ("data: {x: '${oc.decode:${y}}'}", r"calls \$\{oc.decode"),
        ("data: {x: '${${y}:1}'}", r"calls \$\{\$\{y\}"),
        ("data: {x: ['a ${unused_folder:/tmp/x}']}", r"calls \$\{unused_folder"),
        ("data: {x: '${hydra:runtime.cwd}'}", r"calls \$\{hydra"),
        ("model: {_target_: '${params.t}'}\nparams: {t: os.system}", "computes the name of what to import"),
        ("logger: {x: 1}", "has logger, which does not belong in a checkpoint"),
        ("hydra: {run: {dir: /tmp}}", "has hydra, which does not belong in a checkpoint"),
        ("data: !!python/object/apply:os.system ['touch executed']", "cannot be read"),
        ("data: &a [1]\nmodel: [*a, *a]", "has YAML aliases"),
        ("data: [", "cannot be read"),
        ("[1, 2]", "has no settings"),
        ("callbacks: {defaults: [{/strategy@_global_.hydra.callbacks: from_checkpoint}]}", "has the key 'defaults'"),
        ("callbacks: {a: {hydra: 1}}", "has the key 'hydra'"),
        ("callbacks: {'/strategy@_global_': x}", "has the key '/strategy@_global_'"),
        ('callbacks: {"\\e[31m": x}', r"has the key '\\x1b\[31m'"),
        ("callbacks: 'x: {_target_: os.system}'", "has no settings in callbacks"),
        ("callbacks: [{_target_: os.system}]", "has no settings in callbacks"),
        ("data: {x: {_target_: datasets.load_dataset, _args_: [pandas]}}", "has the key '_args_'"),
        ("data: {x: {_target_: torch.nn.ReLU, _recursive_: false}}", "has the key '_recursive_'"),
        ("data: {data_files: 'http://127.0.0.1/?${paths.log_dir}'}", "takes data from http://127.0.0.1"),
        ("data: " + "[" * 5000, "is nested too deeply"),
        ("\n".join(" " * n + "a:" for n in range(300)), "is nested too deeply"),
        (
            "params: {"
            + ", ".join(f"p{i}: '${{params.p{i + 1}}}${{params.p{i + 1}}}'" for i in range(30))
            + ", p30: x}",
            "expand to too many values",
        ),
        ("params: {a: '${.b}', b: '${.a}'}", "expand to too many values"),
        (
            "params: {"
            + ", ".join(f"l{i}: ['${{..l{i + 1}[0]}}${{..l{i + 1}[0]}}']" for i in range(30))
            + ", l30: [x]}",
            "expand to too many values",
        ),
        ("params: {x: '{oc.env:HOME}'}\nmodel: {a: '$${params.x}'}", r"calls \$\$\{params"),
        ("model: {a: '${without_stage:\"a/$\"}{oc.env:HOME}'}", r"calls \$\"\}"),
        ("params: {x: 'a$'}", r"calls \$ "),
        ("params: {x: '${joined:[" + "a," * 600 + "]}'}", "a long text with interpolations"),
        ("# " + "]" * 3000 + "\nparams: " + "[" * 3000, "is nested too deeply"),
        ("x" * 2_000_000, "too long"),
        (None, "is not text"),
    ],
)
def test_a_text_that_is_no_carried_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint_config(text, "stranger.ckpt")


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.CrossEntropyLoss",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torchvision.models.resnet18",
        "torchvision.transforms.v2.ColorJitter",
        "torchmetrics.classification.MulticlassAUROC",
        "torchmetrics.Accuracy",
        "lightning.pytorch.callbacks.EarlyStopping",
        "imago.wiring.RenameTransform",
        "torchvision.datasets.FashionMNIST",
    ],
)
def test_what_people_use_is_allowed(name):
    place = "data.dataset" if "datasets" in name else "model.net"
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, place, {"_target_": name})
    check_targets(cfg, GROUPS, trusted=[])


def test_local_files_of_harmless_kinds_are_read():
    node = {"_target_": "datasets.load_dataset", "_partial_": True, "path": "parquet", "data_files": "a.parquet"}
    check_targets(OmegaConf.create({"data": {"dataset": node}}), ["data"], trusted=[])


def composed_folders(tmp_path) -> Any:
    return {
        "paths": {"output_dir": f"{tmp_path}/out", "data_dir": f"{tmp_path}/data", "cache_dir": f"{tmp_path}/cache"}
    }


@pytest.mark.parametrize(
    ("place", "node", "is_allowed"),
    [
        (
            "callbacks.x",
            {"_target_": "imago.callbacks.RunCheckpoint", "dirpath": "HERE/out/checkpoints"},
            True,
        ),
        ("callbacks.x", {"_target_": "imago.callbacks.RunCheckpoint", "filename": "/tmp/best"}, False),
        ("callbacks.x", {"_target_": "imago.callbacks.RunCheckpoint", "filename": ".."}, False),
        (
            "callbacks.x",
            {"_target_": "imago.callbacks.RunCheckpoint", "dirpath": "HERE/out/../x"},
            False,
        ),
        ("data.source", {"_target_": "imago.data.write_digits", "root": "HERE/data"}, True),
        ("data.source", {"_target_": "imago.data.write_digits", "root": "HERE"}, False),
        ("model.net", {"_target_": "imago.data.write_digits", "root": "HERE/data"}, False),
        ("model.criterions.x", {"_target_": "imago.model.torchvision_net", "weights": "DEFAULT"}, False),
        ("model.criterions.x", {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}, False),
        ("model.net", {"_target_": "torchvision.models.resnet18"}, True),
        ("params.x", {"_target_": "lightning.pytorch.Trainer"}, False),
        ("model.net", {"_target_": "torchvision.models.resnet18", "pretrained": "1"}, False),
        ("model.net", {"_target_": "torchvision.models.segmentation.deeplabv3_resnet50"}, False),
        ("data", {"_target_": "imago.data.TorchVisionDataModule", "data_dir": "HERE"}, False),
        ("data", {"_target_": "imago.data.TorchVisionDataModule", "data_dir": "HERE/data"}, True),
    ],
)
def test_places_and_folders(tmp_path, place, node, is_allowed):
    node = {key: value.replace("HERE", str(tmp_path)) for key, value in node.items()}
    cfg = OmegaConf.create(composed_folders(tmp_path))
    OmegaConf.update(cfg, place, node)
    if is_allowed:
        check_targets(cfg, [*GROUPS, "params"], trusted=[])
    else:
        with pytest.raises(ValueError, match="not on the allow-list|not allowed"):
            check_targets(cfg, [*GROUPS, "params"], trusted=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(class_names="blue"), "class names"),
        (lambda told: told.update(class_names=["a", "a"]), "class names"),
        (lambda told: told.update(class_names=[1, 2, 3]), "class names"),
        (lambda told: told.pop("class_names"), "class names"),
        (lambda told: told.pop("data"), "lacks data"),
        (lambda told: told.update(schema=True), "has no config: it was written by an earlier version"),
        (lambda told: told.update(schema=99, versions="x"), "has schema 99"),
        (lambda told: told.update(config=None), "is not text"),
        (lambda told: told.update(versions={"a": [1]}), "versions"),
    ],
)
def test_odd_content_is_said(trained, change, message):
    checkpoint = read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    change(checkpoint["imago"])
    torch.save(checkpoint, "odd.ckpt")
    with pytest.raises(ValueError, match=message):
        imago.load_classifier("odd.ckpt")


def test_names_of_classes_are_never_resolved(trained, command, tmp_path):
    """Neither those in a checkpoint nor those of folders."""
    evil = f"${{oc.create:{{_target_:torch.utils.collect_env.run,command:touch {MARK}}}}}"
    checkpoint = read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    checkpoint["imago"]["class_names"] = [evil, "${oc.env:HOME}", "c"]
    torch.save(checkpoint, "names.ckpt")
    assert imago.load_classifier("names.ckpt").class_names == [evil, "${oc.env:HOME}", "c"]
    photos = draw_classes(tmp_path / "photos", {"blue": 8, "red": 8})
    (photos / "red").rename(photos / evil)
    run = command("train", f"data.data_dir={photos}", *SMALL, "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert command("eval", f"ckpt_path={run.dir}").exit_code == 0


def test_data_from_elsewhere_are_refused_however_they_are_put_together():
    text = (
        "data: {dataset: {_target_: datasets.load_dataset, path: parquet, data_files: '${params.u}//x/${params.u}'}}\n"
        "params: {u: 'http:'}"
    )
    cfg = OmegaConf.create(read_checkpoint_config(text, "stranger.ckpt"))
    with pytest.raises(ValueError, match="has 'http://x/http:'"):
        check_targets(cfg, GROUPS, trusted=[])
    check_targets(cfg, GROUPS, trusted=[], typed=["data.dataset.data_files=http://x/http:"])


def test_a_compressed_checkpoint_is_refused(trained):
    with (
        zipfile.ZipFile(trained.dir / "checkpoints" / "best.ckpt") as old,
        zipfile.ZipFile("small.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="is compressed, and could expand to any size"):
        read_checkpoint("small.ckpt")


def test_hydra_is_not_steered_by_a_checkpoint(trained, command):
    """A defaults list in a carried group would put nodes where Hydra makes them while it starts."""
    for target in ("hydra.callbacks", "logger"):

        def change(content: dict[str, Any], target: str = target) -> None:
            node = {"_target_": "torch.utils.collect_env.run", "command": f"touch {MARK}"}
            content["strategy"] = {"x": node}
            content["callbacks"]["defaults"] = ["_self_", {f"/strategy@_global_.{target}": "from_checkpoint"}]

        run = command("eval", f"ckpt_path={stranger(trained, change)}")
        assert run.exit_code == 1
        assert "has the key 'defaults' (callbacks)" in run.output


def stranger(trained, change) -> Path:
    checkpoint = read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    content = yaml.safe_load(checkpoint["imago"]["config"])
    change(content)
    checkpoint["imago"]["config"] = yaml.dump(content)
    torch.save(checkpoint, "stranger.ckpt")
    return Path("stranger.ckpt").absolute()


def test_the_commands_and_python_refuse_a_stranger(trained, command):
    def change(content: dict[str, Any]) -> None:
        content["model"]["net"] = {"_target_": "torch.utils.collect_env.run", "command": f"touch {MARK}"}

    path = stranger(trained, change)
    for words in (["eval"], ["inference", "source=kept"], ["inference", "tta=flip"], ["export"], ["serve"]):
        run = command(words[0], f"ckpt_path={path}", *words[1:])
        assert run.exit_code == 1
        assert "wants to create torch.utils.collect_env.run (model.net), which is not on the allow-list" in run.output
    with pytest.raises(ValueError, match=r"torch\.utils\.collect_env\.run"):
        imago.load_classifier(path)


def test_code_of_ones_own_is_made_when_it_is_trusted(train, command, monkeypatch):
    Path("my_net.py").write_text("from imago.model import TinyNet\nclass MyNet(TinyNet):\n    '''As it is.'''\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    run = train("model.net._target_=my_net.MyNet")
    assert run.exit_code == 0, run.output
    theirs = stranger(run, lambda content: None)  # without a signature that fits
    refused = command("eval", f"ckpt_path={theirs}")
    assert "If you trust its author, type 'trusted_targets=[my_net.]'" in refused.output
    trusted = command("eval", f"ckpt_path={theirs}", "trusted_targets=[my_net.]")
    assert trusted.exit_code == 0, trusted.output
    typed = command("eval", f"ckpt_path={theirs}", "model.net._target_=my_net.MyNet")
    assert typed.exit_code == 0, typed.output
    assert imago.load_classifier(theirs, trusted_targets=["my_net."]).class_names == ["blue", "green", "red"]

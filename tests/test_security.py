"""A stranger's file, folder or data: nothing of it is executed, and it cannot take the machine."""

import base64
import json
import os
import random
import re
import resource
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import REPO, SMALL, draw_classes

import imago
from imago.checkpoint.guard import check_legacy
from imago.checkpoint.read import read_checkpoint
from imago.checkpoint.signing import is_signed, key_file
from imago.files import MISFIT, fitting
from imago.model.weight_files import read_weights
from imago.run.provenance import git_state
from imago.terminal import console

MARK = "EXECUTED"
ESCAPE = "\x1b]52;c;ZWNobyBoYWNrZWQ=\x07"


def typed(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Types `python .../src/<words>` in a folder, in a process of its own."""
    command = [sys.executable, str(REPO / "src" / words[0]), *words[1:]]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def best(trained, tmp_path) -> Path:
    """A copy of a checkpoint that nobody here has signed."""
    checkpoint = read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    del checkpoint["imago"]["signature"]
    torch.save(checkpoint, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def changed(source: Path, target: Path, change: Any) -> Path:
    checkpoint = read_checkpoint(source)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def with_config(source: Path, target: Path, change: Any) -> Path:
    def of_checkpoint(checkpoint: dict[str, Any]) -> None:
        content = yaml.safe_load(checkpoint["imago"]["config"])
        change(content)
        checkpoint["imago"]["config"] = yaml.dump(content)

    return changed(source, target, of_checkpoint)


def test_git_is_asked_about_no_folder_but_the_clone(tmp_path, monkeypatch):
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run(["git", "init"], **run)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "commit", "--allow-empty", "-m", "x"], **run)
    subprocess.run(["git", "config", "core.fsmonitor", f"touch {tmp_path}/{MARK}; false"], **run)
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "imago"  # an unpacked archive of Imago, within a stranger's repository
    inside.mkdir()
    for clone in (None, inside):
        assert git_state.__wrapped__(clone) == {"commit": None, "dirty": None}
    assert not (tmp_path / MARK).exists()
    assert git_state.__wrapped__(tmp_path)["dirty"] is False  # a clone of one's own
    assert not (tmp_path / MARK).exists()


def test_modules_in_the_current_folder_are_imported_only_when_they_are_named(best, colours):
    """Libraries look for tabulate, colorama, regex and some forty others."""
    tmp_path = best.parent
    for name in ("tabulate", "colorama", "regex", "psutil", "accimage", "gmpy2", "lz4", "snappy", "defusedxml"):
        (tmp_path / f"{name}.py").write_text(f"open({MARK!r}, 'w'); raise ImportError")
    (tmp_path / "my_parts.py").write_text("from imago.model import TinyNet\n")
    (tmp_path / "my_net.py").write_text("from my_parts import TinyNet\nclass MyNet(TinyNet):\n    pass\n")
    done = typed(tmp_path, "eval.py", "ckpt_path=best.ckpt", "hydra.run.dir=eval", "trainer=cpu", "logger=[]")
    assert done.returncode == 0, done.stdout + done.stderr
    words = [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=1", "model.net._target_=my_net.MyNet"]
    done = typed(tmp_path, "train.py", *words, "hydra.run.dir=run", "test=false", "trainer=ddp_sim")
    assert done.returncode == 0, done.stdout + done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "my_net.py").write_text(f"open({MARK!r}, 'w')")
    done = typed(elsewhere, "eval.py", f"ckpt_path={tmp_path}/run", "hydra.run.dir=eval", "trainer=cpu", "logger=[]")
    assert done.returncode == 0, done.stdout + done.stderr  # the network of the folder where it was trained
    assert not (tmp_path / MARK).exists()
    assert not (elsewhere / MARK).exists()


def test_a_picture_in_a_report_is_opened_with_the_closed_list_of_formats(trained, tmp_path, command, monkeypatch):
    run = Path(shutil.copytree(trained.dir, tmp_path / "stranger"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(EXECUTED) print flush {} loop\n"
    entry = {"path": "a.png", "label": "red", "prediction": "blue", "probability": 0.5, "label_probability": 0.1}
    entry["image"] = "data:image/jpeg;base64," + base64.b64encode(program).decode()
    (run / "reports" / "images_test.json").write_text(json.dumps({"mistakes": [entry], "unsure": [entry]}))
    opened: list[str] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: opened.append("EPS"))
    shown = command("visualise", "mode=predictions", f"run={run}")
    assert shown.exit_code == 0, shown.output
    assert not opened


def pickled_bomb(path: Path, pickled: bytes, first: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        if first is not None:  # looked at by one reader, and not by the other
            file.writestr("archive/x/data.pkl", first)
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    return path


def tensor(count: int, size: int, stride: int) -> bytes:
    """A pickle of a tensor of `size` values over a storage of `count`."""
    return (
        b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03"
        b"ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06J"
        + struct.pack("<i", count)
        + b"tQK\x00J"
        + struct.pack("<i", size)
        + b"\x85J"
        + struct.pack("<i", stride)
        + b"\x85\x89ccollections\nOrderedDict\n)RtR.s."
    ).replace(b".s.", b"s.")


SHARED = (
    b"\x80\x02]q\x00"
    + b"".join(b"]" + b"q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(60))
    + b"."
)
BOMBS: dict[str, bytes] = {
    "bytearrays": b"\x80\x02]" + 3 * b"cbuiltins\nbytearray\n(J\x00\xca\x9a;tRa" + b".",
    "a memo that is far away": b"\x80\x02]r\xff\xff\xff\x7f.",
    "lists of lists": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "lists that share": SHARED,
    "a tensor of nothing": tensor(1, 2**30, 0),
    "a storage that is not there": tensor(2**30, 4, 1),
    "many lists": b"\x80\x02" + b"]" * 900_000 + b".",
    "text": b"no pickle at all",
    "ends early": b"\x80\x02}q\x00X\xff\xff\xff\x7fabc",
}


def limited() -> None:
    """Of the process to come: 1 GB more than importing takes, and 60 s."""
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


READ = """
import resource, sys, time
import torch, imago, imago.evaluation.classifier
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for file in sys.argv[1:]:
    try:
        imago.load_classifier(file)
        print('READ', file)
    except ValueError as error:
        print('REFUSED', str(error).splitlines()[0])
print('COST', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, time.monotonic() - began)
"""


def read_with_limits(*files: Path) -> tuple[list[str], float, float]:
    """What was said of each file, and what all of them cost: GB and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, files)],
        env=os.environ | {"PYTHONPATH": str(REPO / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, preexec_fn=limited, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *said, cost = done.stdout.splitlines()
    _, gigabytes, seconds = cost.split()
    return said, float(gigabytes), float(seconds)


def test_a_small_hostile_file_costs_less_than_a_gigabyte_and_twenty_seconds(best, tmp_path):
    files = [pickled_bomb(tmp_path / f"{number}.ckpt", each) for number, each in enumerate(BOMBS.values())]
    files.append(pickled_bomb(tmp_path / "two.ckpt", BOMBS["bytearrays"], first=b"\x80\x02}."))
    big = {
        "_target_": "imago.model.SimpleDenseNet",
        "_partial_": True,
        "in_features": 40_000,
        "hidden": [40_000],
    }
    deep = {"_target_": "torch.nn.TransformerEncoder", "_partial_": True, "num_layers": 4000}
    deep["encoder_layer"] = {"_target_": "torch.nn.Identity"}
    pads = {f"pad{n}": {"_target_": "torchvision.transforms.v2.Pad", "padding": 4000} for n in range(9)}
    up = {"_target_": "torch.nn.Upsample", "scale_factor": 4000}
    changes: list[Any] = [
        lambda content: content["model"].update(net=big),
        lambda content: content["model"].update(net=deep | {"num_classes": 3}),
        lambda content: content["data"].update(image_size=4000),
        lambda content: content["data"]["eval_transform"].update(pixels=pads),
        lambda content: content["model"]["net"].update(hidden=10**9),
        lambda content: content["callbacks"]["metrics"]["metrics"]["metrics"].update(
            x={"_target_": "torchmetrics.classification.MulticlassConfusionMatrix", "num_classes": 10**6}
        ),
        lambda content: content["model"]["net"].update(
            junk=[{"_target_": "torch.nn.Linear", "in_features": 4096, "out_features": 4096, "device": "cpu"}] * 40
        ),
        lambda content: content["data"]["eval_transform"].update(pixels={"x": {
            "_target_": "torchvision.transforms.v2.Compose",
            "transforms": [{"_target_": "torchvision.transforms.v2.Pad", "padding": 4000}] * 4,
        }}),
        lambda content: content.update(params={"a": "x" * 30_000, "b": "${params.a}" * 30, "c": "${params.b}" * 30}),
        lambda content: content.update(params={"a": "w" * 60_000 + " x://"}, seed="${params.a"),
        lambda content: content.update(params={"a": [1] * 9000, "b": "${params.a}", "c": ["${params.b}"] * 900}),
        lambda content: content["model"].update(forward_fn={
            "_target_": "imago.wiring.ComposeTransform",
            "up": {"_target_": "imago.wiring.WrapTransform", "transform": up, "mapping": {"image": "input"},
                   "new_key": "image"},
        }),
    ]  # fmt: skip
    files += [with_config(best, tmp_path / f"c{number}.ckpt", change) for number, change in enumerate(changes)]
    assert all(file.stat().st_size < 2**20 for file in files)
    said, gigabytes, seconds = read_with_limits(*files)
    assert [line for line in said if not re.match("REFUSED (ckpt_)?path=", line)] == []
    assert len(said) == len(files)
    assert gigabytes < 1, said
    assert seconds < 20 * len(files)


def test_legacy_weights_name_nothing_but_tensors(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check_legacy(tmp_path / "old.pth")
    (tmp_path / "bomb.pth").write_bytes(b"\x80\x02cbuiltins\nbytearray\n(J\x00\xca\x9a;tR." * 5)
    with pytest.raises(ValueError, match=r"contains builtins\.bytearray"):
        check_legacy(tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"contains builtins\.bytearray"):
        read_weights(tmp_path / "bomb.pth")


@pytest.mark.quick
def test_damage_is_noticed_by_every_reader(trained, tmp_path):
    from kill_resume import equal

    whole = (trained.dir / "checkpoints" / "best.ckpt").read_bytes()
    right = read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    chance, file = random.Random(0), tmp_path / "damaged.ckpt"
    refused = 0
    for number in range(100):
        damaged = bytearray(whole)
        if number % 2:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(whole)) :]
        file.write_bytes(damaged)
        try:
            assert equal(read_checkpoint(file), right)
        except ValueError as error:
            refused += str(error).startswith(f"ckpt_path={file} ")
    assert refused >= 80


def hostile_runs(folder: Path) -> None:
    """Folders with a status.json that is not one."""
    contents = ["[]", "null", "7", "[" * 100_000, "{", "", '{"status": 7, "epoch": "x"}', '"x"', "{}" + " " * 2**21]
    for number, content in enumerate(contents):
        (folder / f"r{number}").mkdir(parents=True)
        (folder / f"r{number}" / "status.json").write_text(content)
    (folder / "folder" / "status.json").mkdir(parents=True)
    for name in ("pipe", "lock"):
        (folder / name).mkdir()
        os.mkfifo(folder / name / (".lock" if name == "lock" else "status.json"))
    status = {"status": "running", "host": socket.gethostname(), "heartbeat": "2020-01-01T00:00:00+00:00"}
    (folder / "lock" / "status.json").write_text(json.dumps(status))
    evil = folder / f"$(touch {MARK})"
    (evil / "checkpoints").mkdir(parents=True)
    (evil / "checkpoints" / "last.ckpt").touch()
    said = {"folder": f"st/$(touch {MARK})", "state": "dead", "resumable": True, "error": f"a{ESCAPE}b"}
    (evil / "status.json").write_text(json.dumps(status | {"host": "elsewhere"} | said))


def test_hostile_run_folders_are_listed(tmp_path):
    hostile_runs(tmp_path / "runs")
    for words in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "imago.status", str(tmp_path / "runs"), *words],
            env=os.environ | {"PYTHONPATH": str(REPO / "src")}, cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "\x1b]" not in done.stdout
        if words:
            assert len(json.loads(done.stdout)) == 13
            assert all(run["folder"].startswith(str(tmp_path)) for run in json.loads(done.stdout))
        else:
            word = shlex.quote(f"resume='{tmp_path}/runs/$(touch {MARK})'")
            assert done.stdout.splitlines()[-1] == f"Resume a dead run with: ml-train {word}"


def test_names_of_a_stranger_do_not_steer_the_terminal(best, tmp_path, capsys, command):
    evil = changed(best, tmp_path / "evil.ckpt", lambda c: c["imago"].update(class_names=[f"a{ESCAPE}", "b", "c"]))
    with pytest.raises(ValueError, match="has control characters"):
        imago.load_classifier(evil)
    photos = draw_classes(tmp_path / "photos", {"blue": 4, "red": 4})
    (photos / "red").rename(photos / "red\x9b31m")
    refused = command("train", f"data.data_dir={photos}", *SMALL)
    assert refused.exit_code == 1
    assert r"The class name 'red\x9b31m'" in refused.output
    console().print(f"a{ESCAPE}b", markup=False)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics_test.json", "images_test.json", "data.json", "privacy.json", "samples.json"])
@pytest.mark.parametrize("content", ["[1]", "{}", '{"n": "x"}', "[" * 99_999, '[{"image": 7}]', "nonsense"])
def test_odd_results_are_said_or_left_out(trained, tmp_path, name, content):
    from imago.report.page import write_report

    run = Path(shutil.copytree(trained.dir, tmp_path / "stranger"))
    (run / "reports" / name).write_text(content)
    write_report(run)
    (run / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        write_report(run)


def test_pages_hold_no_html_of_a_stranger_and_load_nothing(trained, tmp_path):
    from imago.report.page import write_report

    run = Path(shutil.copytree(trained.dir, tmp_path / "stranger"))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"error": "```\n<script>alert(1)</script>"}))
    write_report(run)
    assert "<script" not in (run / "report.md").read_text()
    page = (run / "report.html").read_text()
    assert page.count("<script") == 1  # the page's own, allowed by its hash: tests/test_run_report.py
    assert "<script>alert" not in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in page


def test_a_run_folder_with_links_leaves_other_folders_alone(tmp_path, train):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / ".notes.tmp").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text('{"status": "failed"}')
    (run / "link").symlink_to(precious)
    assert train("trainer.max_epochs=1", "test=false", folder=run).exit_code == 0
    assert (precious / ".notes.tmp").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").symlink_to(tmp_path / "made")
    refused = train("trainer.max_epochs=1", folder=other)
    assert refused.exit_code == 1
    assert not (tmp_path / "made").exists()


def test_fitting_keeps_what_is_known():
    shape = {"a": int, "b!": [str], "c": {"*": (int, float)}}
    assert fitting({"a": 1, "b": ["x"], "c": {"d": 1.5}, "e": 3}, shape) == {"a": 1, "b": ["x"], "c": {"d": 1.5}}
    assert fitting({"a": True, "b": []}, shape) == {"b": []}
    assert fitting({"a": 1, "b": [1]}, shape) is MISFIT
    assert fitting([], shape) is MISFIT
    assert fitting({"a": 1, "b": "any"}, {"a!": int, "*": object}) == {"a": 1, "b": "any"}
    assert fitting({"a": "x", "b": "any"}, {"a!": int, "*": object}) is MISFIT


def test_a_checkpoint_does_not_name_files_to_remove(train, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes").write_text("mine")
    first, run = train("trainer.max_epochs=1", "test=false"), tmp_path / "run"

    def change(checkpoint: dict[str, Any]) -> None:
        state = next(state for name, state in checkpoint["callbacks"].items() if "RunCheckpoint" in name)
        where = f"local://{precious}"
        state |= {"dirpath": str(run / "checkpoints"), "best_model_path": "", "kth_best_model_path": where}
        state |= {"best_k_models": {where: torch.tensor(-1.0)}, "kth_value": torch.tensor(-1.0), "last_model_path": ""}

    theirs = changed(first.dir / "checkpoints" / "last.ckpt", tmp_path / "theirs.ckpt", change)
    done = train("trainer.max_epochs=3", "test=false", f"ckpt_path={theirs}", folder=run)
    assert done.exit_code == 0, done.output
    assert (precious / "notes").read_text() == "mine"


def test_whose_a_checkpoint_is_depends_on_what_is_read(trained, best, tmp_path):
    """A file that is replaced in place by one of the same size and times."""
    file = Path(shutil.copy(trained.dir / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt"))
    imago.load_classifier(file)
    stat = file.stat()

    def call(content: dict[str, Any]) -> None:
        content["model"]["net"] = {"_target_": "torch.utils.collect_env.run", "command": f"touch {tmp_path}/{MARK}"}

    theirs = with_config(best, tmp_path / "theirs.ckpt", call).read_bytes()
    file.write_bytes(theirs)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match="not on the allow-list"):
        imago.load_classifier(file)
    assert not (tmp_path / MARK).exists()


def test_own_code_is_not_imported_from_where_others_can_write(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "shared_net.py").write_text("from imago.model import TinyNet\nclass Net(TinyNet):\n    pass\n")
    words = ["model.net._target_=shared_net.Net", "trainer.max_epochs=1", "test=false"]
    photos = draw_classes(tmp_path / "photos", {"blue": 4, "red": 4})
    done = typed(code, "train.py", *SMALL, *words, f"data.data_dir={photos}", "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    code.chmod(0o777)
    (code / "shared_net.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')")
    done = typed(tmp_path, "eval.py", f"ckpt_path={code}/run", "hydra.run.dir=eval", "split=val", "logger=[]")
    assert done.returncode == 1
    assert "can be written by others: it is not used" in done.stdout
    assert not (tmp_path / MARK).exists()


def test_arguments_of_a_network_are_no_secrets(train, command, tmp_path, monkeypatch):
    """A network whose argument is called like a token is scored with it."""
    (tmp_path / "mixer_net.py").write_text(
        "from imago.model import TinyNet\n"
        "class Net(TinyNet):\n"
        "    def __init__(self, num_classes, token_mixer=None):\n"
        "        super().__init__(num_classes)\n"
        "        self.scale = 3.0 if token_mixer == 'attn' else -3.0\n"
        "    def forward(self, x):\n"
        "        return self.scale * super().forward(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SECRET", "backbones")
    run = train("model.net._target_=mixer_net.Net", "+model.net.token_mixer=attn")
    assert run.exit_code == 0, run.output
    again = command("eval", f"ckpt_path={run.dir}")
    assert again.json("reports/metrics_test.json")["loss"] == run.json("reports/metrics_test.json")["loss"]
    assert "token_mixer: attn" in run.text("config.yaml")
    assert "imago.data.ImageFolderDataModule" in run.text("config.yaml")
    done = command("train", f"resume={run.dir}", "trainer.max_epochs=3", folder=run.dir)
    assert done.exit_code == 0, done.output


def test_dollars_in_names_are_no_mathematics(tmp_path, command, trained):
    photos = draw_classes(tmp_path / "photos", {"blue": 4, "red": 4})
    (photos / "red").rename(photos / r"a$\bad{$x")
    run = command("train", f"data.data_dir={photos}", *SMALL, "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    (photos / "blue" / "000.png").rename(photos / "blue" / r"i$\foo1$.png")
    shown = command("inference", f"ckpt_path={trained.dir}", f"source={photos}", "gallery=true")
    assert shown.exit_code == 0, shown.output


SECRETS = ("hf_SECRETFROMTHEENVIRONMENT", "literal_secret_that_was_typed", "hunter2hunter2")


def test_secrets_are_in_no_file(command, colours, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS[0])
    words = ["+params.token=${oc.env:HF_TOKEN}", f"+params.hub_token={SECRETS[1]}", "+params.password=X1"]
    words += ["+params.pin_token=73519846201", "+params.db={password: short1}", "+params.credentials={value: inner77}"]
    words += [f"+params.store='mysql://user:{SECRETS[2]}@host/db'", "+params.comment='token ${oc.env:HF_TOKEN}'"]
    run = command("train", f"data.data_dir={colours}", *SMALL, *words, "trainer.max_epochs=1",
                  "logger=[tensorboard,csv]", "name='${name_of_run:}'")  # fmt: skip
    assert run.exit_code == 0, run.output
    files = [file for file in run.dir.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], file
        assert b"password: X1" not in content, file
        for secret in (b"password=X1", b"73519846201", b"short1", b"inner77"):
            assert secret not in content, (file, secret)
    assert not [secret for secret in SECRETS if secret in run.output]
    assert "hf_" not in (run.dir / "config.yaml").read_text()
    assert "${oc.env:HF_TOKEN}" in run.text(".hydra/config.yaml")
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=2", folder=run.dir)
    assert "params.hub_token is a secret, which is not stored. Type it again" in again.output
    words = ["params.hub_token=another_secret", "params.password=X1", "params.store=none", "params.pin_token=1"]
    words += ["params.db.password=x", "params.credentials.value=y"]
    again = command("train", f"resume={run.dir}", *words, "trainer.max_epochs=2", folder=run.dir)
    assert again.exit_code == 0, again.output


def test_secrets_of_sweeps_and_other_processes_are_in_no_file(tmp_path, train):
    words = [f"+params.hub_token={SECRETS[1]}", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    run = train("-m", *words, "test=false", "trainer=ddp_sim", "seed=1")
    assert run.exit_code == 0, run.output
    files = [file for file in (tmp_path / "sweep").rglob("*") if file.is_file()]
    assert any(file.name == "multirun.yaml" for file in files)
    assert not [file for file in files if SECRETS[1].encode() in file.read_bytes()]


@pytest.mark.quick
def test_what_one_has_trained_is_ones_own(trained, tmp_path, monkeypatch):
    best = trained.dir / "checkpoints" / "best.ckpt"
    assert is_signed(read_checkpoint(best))
    assert key_file().stat().st_mode & 0o777 == 0o600
    moved = Path(shutil.copy(best, tmp_path / "moved.ckpt"))
    assert is_signed(read_checkpoint(moved))
    for change in (
        lambda c: c["state_dict"]["net.head.bias"].add_(1),
        lambda c: c["imago"].update(config=c["imago"]["config"] + "\n"),
        lambda c: c["imago"].update(class_names=c["imago"]["class_names"][::-1]),
        lambda c: c["imago"].update(own_code={"my_net": "/tmp"}),
    ):
        assert not is_signed(read_checkpoint(changed(best, tmp_path / "changed.ckpt", change)))
    monkeypatch.setenv("IMAGO_KEY_FILE", str(tmp_path / "another" / "key"))
    other = Path(shutil.copy(best, tmp_path / "other.ckpt"))
    assert not is_signed(read_checkpoint(other))
    assert not (tmp_path / "another").exists()  # looking makes no key


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_key_that_others_can_read_signs_nothing(tmp_path, monkeypatch, train, mode):
    key = tmp_path / "key"
    key.write_text("a" * 64)
    key.chmod(mode)
    monkeypatch.setenv("IMAGO_KEY_FILE", str(key))
    run = train("trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    assert f"{key}, which signs your checkpoints, is accessible to others" in run.output
    assert "signature" not in run.checkpoint()["imago"]


OWN = """
import torch
from torch import nn
from imago.model.networks import TinyNet
class Net(TinyNet):
    def __init__(self, scale, num_classes):
        super().__init__(num_classes)
        self.scale = scale
        self.register_buffer("looked", torch.tensor(self.head.weight.detach().numpy().copy()))  # needs values
class Adam(torch.optim.Adam):
    '''As it is.'''
class Stage(nn.Module):
    def forward(self, image):
        return image
"""
FREELY = (
    *("model.net._target_=own_parts.Net", "+model.net._args_=[2]", "model.optimizer._target_=own_parts.Adam"),
    "+data.train_transform.pixels.own._target_=own_parts.Stage",
    "+callbacks.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}",
)


def test_everything_that_trains_can_be_evaluated_afterwards(train, command, tmp_path, monkeypatch, colours):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    run = train(*FREELY)
    assert run.exit_code == 0, run.output
    for words in (["eval"], ["inference", f"source={colours}/val"], ["export"]):
        done = command(words[0], f"ckpt_path={run.dir}", *words[1:])
        assert done.exit_code == 0, done.output
    assert imago.load_classifier(run.dir).class_names == ["blue", "green", "red"]


def test_a_run_whose_checkpoint_could_not_be_read_does_not_start(train, tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGO_KEY_FILE", str(tmp_path / "file" / "key"))  # it cannot be made
    run = train(*FREELY)
    assert run.exit_code == 1
    assert "ml-eval could not read the checkpoints of this run" in run.output
    assert "Set IMAGO_KEY_FILE= to a file in a folder that you own" in run.output
    assert not run.dir.joinpath("checkpoints").exists()
    assert train("trainer.max_epochs=1", "test=false").exit_code == 0  # all of it on the allow-list


def test_a_stranger_decides_nothing_about_this_machine(best, tmp_path, command, colours):
    evil = with_config(
        best,
        tmp_path / "evil.ckpt",
        lambda content: content["data"].update(num_workers=999, cache="disk", batch_size=10**7),
    )
    done = command("eval", f"ckpt_path={evil}", f"data.data_dir={colours}")
    assert done.exit_code == 0, done.output
    assert "num_workers: null" in done.text("config.yaml")
    assert "cache: none" in done.text("config.yaml")
    assert "data.batch_size=10000000 of " in done.output


def test_decoded_private_images_are_for_their_owner(train, tmp_path):
    run = train("data.cache=disk", "trainer.max_epochs=3", "test=false", "data.image_size=24")
    assert run.exit_code == 0, run.output
    assert (tmp_path / "cache" / "pixels").stat().st_mode & 0o077 == 0


def test_a_damaged_list_is_named(tmp_path):
    from imago.data.sources import read_source

    (tmp_path / "list.csv").write_text("path\n" + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"list\.csv"):
        read_source(str(tmp_path / "list.csv"), ["a", "b"])

"""Every command in README.md and docs/ is run, shortened: one epoch of two batches.

Those in `TRIED` differ from another one by a setting with which a test of its own trains. They end after the preflight:
composed, checked, all objects made, a batch and a checkpoint tried.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from drawn_runs import draw_run
from helpers import HYMENOPTERA, REPO, Run, draw_classes, type_command, type_shard
from torchvision.models import resnet18

import imago
from imago import compare, split, status
from imago.cli.fold_words import FoldPlan
from imago.serving.address import listen
from imago.train import main
from imago.tuning import find_lr

FROM_CHECKPOINT = ("python src/eval.py", "ml-eval", "ml-inference", "ml-export")
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
SHORT = [f"trainer.limit_{what}_batches=2" for what in ("train", "val", "test", "predict")]
SHORT += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.num_workers=0", "report.splits=[test]"]
SHORT += ["plots.format=svg"]
TRIED = {  # the override -> the module with the test that trains with it
    "model.net.name=efficientnet_b0": "test_backbones.py",
    "model.net.name=convnext_tiny": "test_backbones.py",
    "model.freeze=backbone": "test_train.py",
    "recipe=auto": "test_recipes.py",
    "recipe=small": "test_recipes.py",
    "model.init_from=RUN": "test_weights.py",
    "model/optimizer=sgd": "test_train.py",
    "experiment=digits_dense": "test_train.py",
    "model.class_weights=auto": "test_weights.py",
    "data.fit=pad": "test_fit.py",
    "data.on_bad_image=skip": "test_command.py",
    "data.decode=fast": "test_decode.py",
    "monitor=val/loss": "test_train.py",
    "deterministic=true": "test_train.py",
    "logger=[]": "test_train.py",
    "logger=[csv,tensorboard]": "test_reliability.py",
    "data.train_transform.batch.flip=null": "test_privacy.py",
    "data.exclude=RUN/exclude.txt": "test_new_images.py",
    "data/augment=[light,color_jitter]": "test_augment.py",
    "data.sampler=balanced": "test_sampling.py",
    "data.split_file=splits.csv": "test_commands.py",
    "data.test_ratio=0.2": "test_test_ratio.py",
    "data.fold=1": "test_folds.py",
    "data.calibration_ratio=0.5": "test_promise.py",
    "data.relabel=corrections.csv": "test_relabel.py",
    "trainer.accumulate_grad_batches=2": "test_groups.py",
    "model.criterions.criterions.ce.label_smoothing=0.1": "test_train.py",
    "model.optimizer={_target_: torch.optim.NAdam, _partial_: true, lr: 0.001}": "test_mistakes.py",
    "strategy=dp": "test_privacy.py",
    "budget=10m": "test_time_budget.py",
    "data.batch_size=auto": "test_finders.py",
    "data.cache=disk": "test_cache.py",
    "+data.train_transform.pixels.jitter={_target_: torchvision.transforms.v2.ColorJitter, brightness: 0.3}":
        "test_mistakes.py",
    "+model.net.width=32": "test_security.py",
}  # fmt: skip


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        found += [line.strip() for block in blocks for line in block.splitlines()]
        found += re.findall(r"^\|[^|]*\| `((?:python|ml-)[^`]*)` \|$", text, re.MULTILINE)
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", line) for line in found if line))


@pytest.fixture(scope="module")
def digits_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("digits")
    overrides = ["experiment=digits", *SHORT, "logger=[]", "report.splits=[test]", f"paths.data_dir={data_dir}"]
    return type_command("train", overrides, folder / "run")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), file)
    return file


@pytest.fixture
def workplace(data_dir: Path, trained: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the files that the pages show, a run, pretrained weights, and photographs."""
    for page in PAGES:
        for name, code in re.findall(
            r"```(?:python|yaml)\n(?=(?:# @package _global_\n)?# (\S+\.(?:py|yaml))\n)(.*?)```",
            page.read_text(),
            re.DOTALL,
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(code)
    (tmp_path / "docs").symlink_to(REPO / "docs")
    draw_classes(tmp_path / "PHOTOS", {"blue": 20, "green": 20, "red": 20}, size=64)
    shutil.copytree(trained.dir, tmp_path / "RUN")
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in (tmp_path / "PHOTOS").rglob("*.png")]
    (tmp_path / "TABLE").write_text("\n".join(["path,label", *rows]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    cache = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    cache.parent.mkdir(parents=True)
    cache.symlink_to(weights)
    photographs = data_dir / "hymenoptera_data"
    if HYMENOPTERA.is_dir() and not photographs.exists():
        photographs.symlink_to(HYMENOPTERA)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("my_", "count_classes"))]:
        del sys.modules[name]


TOLD = dict.fromkeys(("--help", "--help-all", "--cfg"), "data_dir") | {"--networks": "resnet18", "--version": "imago "}


def is_training(line: str) -> bool:
    return line.startswith(("python ", "ml-train")) and "src/eval.py" not in line


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith(FROM_CHECKPOINT)])
def test_commands_that_start_from_a_checkpoint_run(line, workplace, colours):
    script, words = typed(line)
    words = [word.replace("PATH", str(colours)) for word in words]
    paths = [f"paths.log_dir={workplace}/logs", f"paths.cache_dir={workplace}/cache"]
    here = [] if script == "export" else ["trainer.accelerator=cpu", "data.num_workers=0"]
    run = type_command(script, [*paths, *words, *here], workplace / "out")
    assert run.exit_code == 0, run.output
    written = {"eval": "report.html", "export": "model*"}.get(script, "predictions*")
    assert list(run.dir.glob(written))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("line", [line for line in commands() if is_training(line)])
def test_the_commands_run(line, workplace, data_dir, colours, digits_run):
    script, words = typed(line)
    if "experiment=resnet18_ants" in words and not HYMENOPTERA.is_dir():
        pytest.skip(f"the photographs of ants and bees are not at {HYMENOPTERA}")
    words = [word.replace("PATH", str(colours)).replace("RUN", str(digits_run.dir)) for word in words]
    if said := [TOLD[word] for word in words if word in TOLD]:
        run = type_command(script, words, workplace / "run")
        assert run.exit_code == 0
        assert said[0] in run.output
        return
    if any(word.startswith(("resume=", "replay=")) for word in words):
        goes_on(words, workplace, digits_run)
        return
    if any("exclude" in word for word in words):
        Path(digits_run.dir, "exclude.txt").write_text("train/red/000.png\n")
    if any("relabel" in word for word in words):
        (workplace / "corrections.csv").write_text("path,label\ntrain/red/000.png,blue\n")
    if any("split_file" in word for word in words):
        type_split(["PHOTOS", "--output", "splits.csv"])
    if any("data.shards" in word for word in words):
        type_shard("PHOTOS", "--output", "SHARDS")
    small = (
        []
        if any(word.startswith(("experiment=digits", "experiment=unsure")) for word in words)
        else ["data.image_size=32"]
    )
    epochs = ["trainer.max_epochs=2"] if any("last.ckpt" in word for word in words) else []
    trials = ["hydra.sweeper.n_trials=2"] if any("n_trials" in word for word in words) else []
    words = [word for word in words if "n_trials" not in word]
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={workplace}/logs", f"paths.cache_dir={workplace}/cache"]
    short = [word for word in SHORT if "debug=overfit" not in words or "limit" not in word]
    short = [word for word in short if "budget=10m" not in words or "epochs" not in word]
    words = [word.replace("seed=1,2,3", "seed=1,2").replace("lr=0.001,0.003", "lr=0.003") for word in words]
    if "trainer=ddp_sim" in words:  # test_processes.py runs it, in processes that take long to start
        assert imago.load_config(*words).trainer.devices == 2
        return
    tried = ["preflight=only"] if TRIED.keys() & set(typed(line)[1]) else []
    run = type_command(script, [*paths, *words, *small, *short, *epochs, *trials, *tried], workplace / "run")
    assert run.exit_code == 0, run.output
    assert not tried or "Preflight passed" in run.output


@pytest.mark.parametrize(("override", "module"), TRIED.items())
def test_what_is_only_tried_is_trained_with_elsewhere(override, module):
    key = re.match(r"\+?([\w./]+)=", override)[1]
    named = {"model.net.name": "SMALLEST", "model.net.width": "+model.net._args_"}
    named["data.train_transform.pixels.jitter"] = "data.train_transform.pixels.turn"
    text = (REPO / "tests" / module).read_text()
    assert named.get(key, key) in text
    assert any(override in typed(line)[1] for line in commands() if is_training(line))


def goes_on(words: list[str], workplace: Path, finished: Run) -> None:
    """`resume=` and `replay=`: on a copy of a finished run, two more epochs at most."""
    folder = workplace / "logs" / "train" / "runs" / "copy"
    shutil.copytree(finished.dir, folder, ignore=shutil.ignore_patterns(".lock"))
    words = [word.replace(str(finished.dir), str(folder)).replace("epochs=20", "epochs=2") for word in words]
    where = folder if "resume" in words[0] else workplace / "again"
    run = type_command("train", [*words, f"paths.log_dir={workplace}/logs"], where)
    assert run.exit_code == 0, run.output
    assert any(said in run.output for said in ("nothing to do", "Run folder:"))


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith(("ml-status", "ml-doctor"))])
def test_runs_and_data_are_looked_at(line, workplace, trained, monkeypatch, capsys):
    script, words = typed(line)
    if script == "doctor":
        words = [word.replace("PATH", "PHOTOS") for word in words]
        run = type_command("doctor", [*words, f"paths.log_dir={workplace}/logs"], workplace / "run")
        looked = words != ["clean"]
        assert (run.exit_code, (run.dir / "doctor.html").is_file()) == (0, looked), run.output
        return
    (workplace / "logs" / "train" / "runs").mkdir(parents=True)
    for folder in ("train/runs/one", "slurm/17"):
        shutil.copytree(trained.dir, workplace / "logs" / folder, dirs_exist_ok=True)
    monkeypatch.setattr("imago.status.LOGS", workplace / "logs")
    monkeypatch.setattr(sys, "argv", ["ml-status", *words])
    status.main()
    assert "completed" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-compare")])
def test_runs_are_compared(line, workplace, trained, monkeypatch, capsys):
    logs = workplace / "logs" / "train" / "multiruns"
    for folder in (logs / "one", logs / "two", workplace / "RUN_A", workplace / "RUN_B"):
        shutil.copytree(trained.dir, folder)
    for lr in (0.1, 0.01):
        for seed in (1, 2, 3):
            draw_run(workplace / "SWEEP" / f"lr_{lr}_seed_{seed}", range(seed), seed=seed, model__optimizer__lr=lr)
    monkeypatch.setattr("imago.compare.LOGS", workplace / "logs")
    monkeypatch.setattr(sys, "argv", ["ml-compare", *typed(line)[1]])
    compare.main()
    said = capsys.readouterr().out
    starts = ("2 runs below", "A and B give the same answer on all of 15 images", "A and B are right equally often")
    assert said.startswith(starts)
    files = re.findall(r"Written: (\S+)", said)
    assert len(files) == line.count("--output")
    assert all(Path(file).is_file() for file in files)


def typed(line: str) -> tuple[str, list[str]]:
    """The command's module, and its words; `--config-dir X` as one."""
    first, *words = shlex.split(line)
    script = Path(words.pop(0)).stem if first == "python" else first.removeprefix("ml-")
    if "--config-dir" in words:
        at = words.index("--config-dir")
        words[at : at + 2] = [f"--config-dir={words[at + 1]}"]
    return script, words


def type_split(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ml-split", *words])
        split.main()


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-split ")])
def test_the_splits_are_drawn(line, workplace):
    type_split(typed(line)[1])
    assert (workplace / "splits.csv").exists() is ("--output" in line)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-cv ")])
def test_the_folds_are_planned(line, workplace, data_dir):
    """test_folds.py trains them."""
    type_split(["PHOTOS", "--folds", "5", "--output", "splits.csv"])
    words = [*typed(line)[1], f"paths.log_dir={workplace}/logs", f"paths.data_dir={data_dir}"]
    main.register(words)
    plan = FoldPlan.of(words)
    assert plan.folds == 5
    assert plan.folder.parent == workplace / "logs" / "cv"
    assert plan.sweep([0, 1])[-4] == "data.fold=0,1"


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-shard ")])
def test_the_shards_are_written(line, workplace):
    type_split(["PHOTOS", "--output", "splits.csv"])
    type_shard(*typed(line.replace("PATH", "PHOTOS"))[1])
    assert (workplace / "SHARDS" / "index.npz").is_file()


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-find-lr")])
def test_a_learning_rate_is_tried(line, workplace, colours, data_dir, monkeypatch, capsys):
    words = [word.replace("PATH", str(colours)) for word in typed(line)[1]]
    small = [] if any(word.startswith("experiment=") for word in words) else ["data.image_size=32"]
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={workplace}/logs", f"paths.cache_dir={workplace}/cache"]
    here = ["trainer.accelerator=cpu", "data.num_workers=0", "--steps", "30"]
    monkeypatch.setattr(sys, "argv", ["ml-find-lr", *words, *small, *paths, *here])
    find_lr.main()
    assert "Suggested: model.optimizer.lr=" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-visualise")])
def test_what_is_shown(line, workplace, data_dir):
    _, words = typed(line)
    if not words or "mode=labels" in words:
        pytest.skip("a page is served until Ctrl-C: test_commands.py and test_labels.py do that")
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={workplace}/logs"]
    run = type_command("visualise", [*paths, *words], workplace / "run")
    assert run.exit_code == 0, run.output
    assert "Written: " in run.output


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("ml-serve")])
def test_what_is_served(line, workplace):
    """Until SIGTERM, as soon as it answers."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not statuses and not ended.is_set():
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                statuses.append(answer.status)
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    words = [word for word in typed(line)[1] if not word.startswith("port=")]
    run = type_command("serve", [*words, f"port={port}", f"paths.log_dir={workplace}/logs"], workplace / "out")
    ended.set()
    asking.join()
    assert (run.exit_code, statuses) == (0, [200]), run.output


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_the_make_targets_run(line, tmp_path):
    if not (REPO / ".venv" / ".installed").exists():
        pytest.skip("no .venv: this is for `make test`")
    target = line.split()[1]
    arguments = {
        "train": [f"ARGS={' '.join(SHORT)} paths.log_dir={tmp_path}/logs paths.data_dir={tmp_path}/data"],
        "test": ["ARGS=--collect-only --numprocesses 0 tests/test_randomness.py"],
        "test-quick": ["ARGS=--collect-only --numprocesses 0 tests/test_loading.py"],
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    command = ["make", target, *arguments.get(target, [])] if target != "bench" else ["make", "--dry-run", "bench"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if target == "train":
        assert "Run folder:" in done.stdout
    if target.startswith("test"):
        assert "tests/test_" in done.stdout
    if target == "help":
        targets = {
            "install",
            "train",
            "test",
            "test-quick",
            "test-gpu",
            "lint",
            "format",
            "schema",
            "docs",
            "bench",
            "wheel",
            "clean",
        }
        assert set(re.findall(r"make ([a-z-]+)", done.stdout)) >= targets


def test_nothing_is_left_out():
    run = (
        "python ",
        "make ",
        "ml-train",
        "ml-visualise",
        "ml-split",
        "ml-shard",
        "ml-cv",
        "ml-status",
        "ml-compare",
        "ml-doctor",
        "ml-serve",
        "ml-find-lr",
        "ml-new",
        *FROM_CHECKPOINT,
    )
    others = [line for line in commands() if not line.startswith((*run, *FROM_CHECKPOINT))]
    assert others == ["source .venv/bin/activate", 'eval "$(ml-train -sc install=bash)"']  # test_commands.py
    assert len(commands()) > 50


def test_the_python_of_the_docs_runs(colours, capsys):
    code = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "wiring.md").read_text(), re.DOTALL)
    exec(code[0].replace("PATH", str(colours)), {})
    assert "['blue', 'green', 'red'] {'train': 39, 'val': 15}" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/inference.md"])
def test_the_python_of_inference_runs(page, workplace, capsys):
    code, *_ = re.findall(r"```python\n(.*?)```", (REPO / page).read_text(), re.DOTALL)
    assert len(code.splitlines()) == 5
    exec(code, {})
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in said] == ["red", "blue"]
    assert workplace == Path.cwd()


def test_the_web_service_of_the_docs_answers(workplace):
    testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI and httpx are not installed")
    _, code, _ = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "inference.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 12
    service: dict[str, Any] = {}
    exec(code, service)
    client = testclient.TestClient(service["app"])
    photo = (workplace / "PHOTOS" / "red" / "000.png").read_bytes()
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):  # the last: curl's
        answer = client.post("/predict", content=photo, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == sorted(answer.json(), key=answer.json().get, reverse=True)
        assert next(iter(answer.json())) == "red"
    refused = client.post("/predict", content=photo[:100], headers={"content-type": "image/png"})
    assert (refused.status_code, "an image of 100 bytes: " in refused.json()["detail"]) == (422, True)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (REPO / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_repository_layout_names_every_room():
    text = (REPO / "CONTRIBUTING.md").read_text()
    package = REPO / "src" / "imago"
    rooms = [f"`{path.parent.name}/`" for path in package.glob("*/__init__.py")]
    primitives = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    assert [name for name in [*rooms, *primitives] if name not in text] == []

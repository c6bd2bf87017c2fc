"""Every command in README.md and docs/ is run, shortened: one epoch of two batches."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import HYMENOPTERA, REPO, Run, type_command
from torchvision.models import resnet18

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
SHORT = [f"trainer.limit_{what}_batches=2" for what in ("train", "val", "test", "predict")]
SHORT += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.num_workers=0", "report.splits=[test]"]


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
        found += [line.strip() for block in blocks for line in block.splitlines()]
        found += re.findall(r"^\|[^|]*\| `(python [^`]*)` \|$", text, re.MULTILINE)
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", line) for line in found if line))


@pytest.fixture(scope="module")
def digits_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("digits")
    overrides = ["experiment=digits", *SHORT, "logger=[]", "report.splits=[test]", f"paths.data_dir={data_dir}"]
    return type_command("train", overrides, folder / "run")


@pytest.fixture
def workplace(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the file that docs/models.md shows, pretrained weights, and the photographs."""
    code = re.search(r"```python\n(# my_nets\.py.*?)```", (REPO / "docs" / "models.md").read_text(), re.DOTALL)
    (tmp_path / "my_nets.py").write_text(code.group(1))
    monkeypatch.chdir(tmp_path)
    cache = Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
    cache.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), cache)
    photographs = data_dir / "hymenoptera_data"
    if HYMENOPTERA.is_dir() and not photographs.exists():
        photographs.symlink_to(HYMENOPTERA)
    return tmp_path


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python ")])
def test_the_commands_run(line, workplace, data_dir, colours, digits_run):
    _, script, *words = shlex.split(line)
    if "experiment=resnet18_ants" in words and not HYMENOPTERA.is_dir():
        pytest.skip(f"the photographs of ants and bees are not at {HYMENOPTERA}")
    words = [word.replace("PATH", str(colours)).replace("RUN", str(digits_run.dir)) for word in words]
    if any(word in words for word in ("--help", "--cfg")):
        run = type_command(Path(script).stem, words, workplace / "run")
        assert run.exit_code == 0
        assert "data_dir" in run.output
        return
    small = [] if any(word.startswith("experiment=digits") for word in words) else ["data.image_size=32"]
    epochs = ["trainer.max_epochs=2"] if any("last.ckpt" in word for word in words) else []
    paths = [f"paths.data_dir={data_dir}", f"paths.log_dir={workplace}/logs", f"paths.cache_dir={workplace}/cache"]
    run = type_command(Path(script).stem, [*paths, *words, *small, *SHORT, *epochs], workplace / "run")
    assert run.exit_code == 0, run.output


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_the_make_targets_run(line, tmp_path):
    if not (REPO / ".venv" / ".installed").exists():
        pytest.skip("no .venv: this is for `make test`")
    target = line.split()[1]
    arguments = {
        "train": [f"ARGS={' '.join(SHORT)} paths.log_dir={tmp_path}/logs paths.data_dir={tmp_path}/data"],
        "test": ["ARGS=--collect-only tests/test_randomness.py"],
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    command = ["make", target, *arguments.get(target, [])] if target != "bench" else ["make", "--dry-run", "bench"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if target == "train":
        assert "Run folder:" in done.stdout
    if target == "help":
        targets = {"install", "train", "test", "test-gpu", "lint", "format", "bench", "wheel", "clean"}
        assert set(re.findall(r"make ([a-z-]+)", done.stdout)) >= targets


def test_nothing_is_left_out():
    others = [line for line in commands() if not line.startswith(("python ", "make "))]
    assert others == ["source .venv/bin/activate"]
    assert len(commands()) > 25


def test_the_python_of_the_docs_runs(colours, capsys):
    code = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "wiring.md").read_text(), re.DOTALL)
    exec(code[0].replace("PATH", str(colours)), {})
    assert "['blue', 'green', 'red'] {'train': 39, 'val': 15}" in capsys.readouterr().out


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (REPO / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tree_in_the_readme_names_every_module():
    text = (REPO / "README.md").read_text()
    modules = [path.name for path in (REPO / "src" / "imago").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if name not in text] == []

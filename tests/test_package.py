"""The wheel and the source distribution, built and installed somewhere else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import REPO, SMALL

pytest.importorskip("hatchling", reason="hatchling builds the package")


def built(source: Path, out: Path, kind: str) -> Path:
    code = f"from hatchling.build import build_{kind} as build; print(build({str(out)!r}))"
    out.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it, with nothing but it."""
    root = tmp_path_factory.mktemp("packages")
    clone = root / "clone"
    clone.mkdir()
    for name in ("src", "configs", "docs", "tests"):
        shutil.copytree(REPO / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml", ".gitignore"):
        shutil.copy(REPO / name, clone)
    sdist = built(clone, root / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    return sdist, built(unpacked, root / "wheel", "wheel")


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(packages[1]) as wheel:
        wheel.extractall(root)
    return root


def test_the_wheel_holds_all_modules_and_configs_and_nothing_else(packages):
    with zipfile.ZipFile(packages[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        f"imago/{path.relative_to(REPO / 'src' / 'imago')}"
        for path in (REPO / "src" / "imago").rglob("*.*")
        if path.suffix in (".py", ".j2", ".js", ".css", ".typed", ".txt", ".tmpl")
    }
    configs = {
        f"imago/configs/{path.relative_to(REPO / 'configs')}"
        for path in (REPO / "configs").rglob("*.*")
        if path.is_file() and path.parent.name != "local"
    }
    plugin = {"hydra_plugins/imago_sweeper.py"}
    assert {name for name in names if "/local/" not in name} == ours | configs | plugin


def run_installed(root: Path, cwd: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """As the console script does it, from the installed package: `-P` keeps the current folder out of the way."""
    code = f"import sys; sys.argv[0] = 'ml-{module}'; from imago.{module} import main; main()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(root)}
    environment["HOME"] = str(root)
    command = [sys.executable, "-W", "ignore", "-P", "-c", code, *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_an_installed_package_trains_where_one_stands_in_two_processes(installed, tmp_path):
    short = [word for word in SMALL if not word.startswith("data.image_size")]
    done = run_installed(
        installed,
        tmp_path,
        "train",
        "experiment=digits",
        *short,
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
        "data.batch_size=16",
        "trainer=ddp_sim",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "logs" / "train" / "runs").iterdir()
    assert json.loads((run / "status.json").read_text())["status"] == "completed"
    assert (tmp_path / "data" / "digits" / "train").is_dir()
    assert {path.name for path in tmp_path.iterdir()} <= {"logs", "data", ".cache"}
    end = done.stdout[done.stdout.index("Next:") :].splitlines()[1:]
    assert [line.split()[0] for line in end[:3]] == ["ml-inference", "ml-visualise", "ml-eval"]


def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    done = run_installed(installed, tmp_path, "train", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert f"root_dir: {tmp_path}" in done.stdout or "${project_root:}" in done.stdout
    info = run_installed(installed, tmp_path, "train", "--info", "searchpath", "data.data_dir=x")
    assert f"file://{installed}/imago/configs" in info.stdout

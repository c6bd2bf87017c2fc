"""`ml-new`: a project that trains and passes its own test, without a file of Imago's."""

import os
import subprocess
import sys

import pytest
from helpers import REPO

from imago.cli.new_project import main


@pytest.fixture
def new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def type_it(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ml-new", *words])
        main()

    return type_it


def test_a_project_passes_its_tests_and_trains_where_it_stands(new, tmp_path, capsys):
    new("my_project")
    assert capsys.readouterr().out.endswith("Next: cd my_project && make train\n")
    project = tmp_path / "my_project"
    assert not any("PROJECT" in path.read_text() for path in project.rglob("*") if path.is_file())
    environment = os.environ | {"PYTHONPATH": str(REPO / "src"), "PYTHONWARNINGS": "ignore"}
    for target in ("test", "train"):  # the former trains six epochs
        short = "trainer.max_epochs=1 trainer.accelerator=cpu logger=[] report.splits=[test]"
        words = ["make", target, f"PYTHON={sys.executable}", f"ARGS={short}"]
        done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (project / "logs" / "train" / "runs").iterdir()
    assert (run / "report.html").is_file()
    assert len(list((project / "data" / "shapes" / "train" / "circle").iterdir())) == 80


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-project", "my-project cannot be the name of a Python package. Type ml-new my_project, for example."),
        ("class", "class cannot be the name of a Python package"),
        ("torch", "torch is the name of a Python package that is installed. Type ml-new my_torch"),
        ("tests", "tests is the name of a folder of each project"),
        ("taken", "taken already exists, and nothing is overwritten"),
        ("--force", "Type ml-new FOLDER, for example ml-new my_project."),
    ],
)
def test_what_cannot_be_a_project(new, tmp_path, name, message):
    (tmp_path / "taken").mkdir()
    with pytest.raises(SystemExit, match=message):
        new(name)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

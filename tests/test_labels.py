"""Wrong labels: margins of the training, the ranking, and the page on which a person decides."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from drawn_results import drawn_score
from helpers import SMALL, draw_classes, type_command
from omegaconf import OmegaConf
from PIL import Image

from imago.callbacks.label_margins import margins_of
from imago.data.relabel import read_labels
from imago.errors import DiskError, UserError
from imago.report.label_decisions import Decisions
from imago.report.label_errors import nearest, suspicion
from imago.report.label_page import LabelPage, Suspect
from imago.report.label_ranking import read_ranking, write_ranking
from imago.training.label_suspects import suspects_and_decisions


def test_a_margin_is_that_of_the_label_over_the_likeliest_other_class():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.999, 0.001, 0]]))
    expected = [math.log(3.5), -math.log(3.5), math.log(2), 5]
    assert margins_of(logits, torch.tensor([0, 1, 2, 0])).tolist() == pytest.approx(expected)
    assert margins_of(torch.full((1, 3), torch.nan), torch.tensor([0])).tolist() == [0]


def test_images_are_ranked_by_margin_and_vote():
    """Image 0 is wrong to both votes, and images 1 and 6 are to one of them; the margin of image 3 is unknown."""
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 200)
    of_label, margins = generator.uniform(0.8, 0.99, 400), generator.uniform(2, 4, 400)
    of_label[[0, 1]], margins[[0, 6]], margins[3] = 0.1, -2, np.nan
    log_p = np.log(np.where(np.arange(2) == labels[:, None], of_label[:, None], 1 - of_label[:, None]))
    order = np.argsort(suspicion(labels, log_p, margins), kind="stable").tolist()
    assert order[0] == 0
    assert {1, 6} < {*order[:200]}
    of_vote = np.argsort(suspicion(labels, log_p), kind="stable").tolist()
    assert of_vote[:2] == [0, 1]
    assert abs(order.index(3) - of_vote.index(3)) < 60
    unknown = suspicion(labels, log_p, np.full(400, np.nan))
    assert np.argsort(unknown, kind="stable")[:2].tolist() == [0, 1]


def test_neighbours_point_into_the_same_direction():
    features = np.array([[1, 0], [5, 0.1], [0, 1], [0.1, 3], [-6.1, -4.1]], np.float32)
    assert nearest(features, np.array([0, 3]), 1)[:, 0].tolist() == [1, 2]
    assert nearest(features, np.array([2]), 9).shape == (1, 4)


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    """A finished run on 64 images of two colours, of which two have the other label."""
    folder = tmp_path_factory.mktemp("mislabelled")
    photos = draw_classes(folder / "photos" / "train", {"blue": 32, "red": 32}).parent
    for name, other in (("blue", "red"), ("red", "blue")):
        (photos / "train" / name / "003.png").rename(photos / "train" / other / "wrong.png")
    words = [f"data.data_dir={photos}", *SMALL, "trainer.max_epochs=8", "report.splits=[train,val]"]
    run = type_command("train", [*words, "data.cache=none", f"paths.log_dir={folder}/logs"], folder / "run")
    assert run.exit_code == 0, run.output
    return run


def test_a_run_ranks_its_labels_and_shows_similar_images(mislabelled):
    with np.load(mislabelled.dir / "reports" / "label_margins.npz") as kept:
        paths = [row["path"] for row in table(mislabelled.dir / "reports" / "predictions_train.csv")]
        margins = dict(zip(paths, kept["margins"].tolist(), strict=True))
    wrong = {path for path in paths if "wrong" in path}
    assert max(margins[path] for path in wrong) < min(margins[path] for path in margins.keys() - wrong)
    ranking = table(mislabelled.dir / "reports" / "label_errors_train.csv")
    assert {row["path"] for row in ranking[: len(wrong)]} == wrong
    for row in ranking[: len(wrong)]:
        assert row["suggestion"] != row["label"]
        near = [row[f"neighbour_{number}"] for number in range(1, 6)]
        assert sum(row["suggestion"] in path for path in near) >= 4
    shown = mislabelled.json("reports/images_train.json")["possibly_mislabelled"]
    assert {entry["path"] for entry in shown[: len(wrong)]} == wrong
    assert [len(entry["neighbours"]) for entry in shown] == [5] * len(shown)
    assert 'class="near"' in mislabelled.text("report.html")


def test_a_ranking_keeps_any_path(tmp_path):
    score = drawn_score("train", ["a", "b,c"], 30, wrong=[3, 40])
    score.paths[3] = odd = 'a\n"b"\u2028\udcff.jpg'
    score = replace(score, features=np.eye(60, dtype=np.float32))
    write_ranking(score, tmp_path / "ranking.csv")
    first = read_ranking(tmp_path / "ranking.csv")[:2]
    assert {(row.path, row.label, row.suggestion) for row in first} == {
        (odd, "b,c", "a"),
        (score.paths[40], "a", "b,c"),
    }
    assert [len(row.neighbours) for row in first] == [5, 5]
    (tmp_path / "ranking.csv").write_text("something else\n1\n")
    with pytest.raises(UserError, match="is damaged"):
        read_ranking(tmp_path / "ranking.csv")


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def test_the_page_makes_no_data_that_a_stranger_names(mislabelled, tmp_path):
    paths = OmegaConf.load(mislabelled.dir / "config.yaml").paths
    with pytest.raises(UserError, match="has no list of possibly mislabelled images in reports/"):
        suspects_and_decisions(tmp_path, paths)
    run = Path(shutil.copytree(mislabelled.dir, tmp_path / "run"))
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    config = checkpoint["imago"]["config"]
    checkpoint["imago"]["config"] = config.replace("imago.data.ImageFolderDataModule", "subprocess.run")
    torch.save(checkpoint, file)
    with pytest.raises(UserError, match="subprocess.run"):
        suspects_and_decisions(run, paths)


@contextmanager
def served(run: Path, folder: Path):
    """`ml-visualise mode=labels` of a run, and the address that it logs."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "imago.visualise",
            "mode=labels",
            f"run={run}",
            "port=0",
            f"paths.log_dir={folder}/logs",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if address := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line):
                break
        else:
            raise AssertionError("".join(lines))
        yield process, address.group()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_labels_are_decided_in_a_browser(mislabelled, tmp_path, command):
    """Keys decide, undo takes back, a restarted page goes on, and the files are those that a training reads."""
    run = Path(shutil.copytree(mislabelled.dir, tmp_path / "run"))
    ranking = table(run / "reports" / "label_errors_train.csv")
    browser = Browser(tmp_path / "profile")
    try:
        with served(run, tmp_path) as (process, address):
            browser.open(address)
            browser.wait_for("get('picture').naturalWidth > 100")
            browser.wait_for(
                "[...document.querySelectorAll('#neighbours img')].filter((n) => n.naturalWidth).length == 5"
            )
            assert browser.value("get('path').textContent") == ranking[0]["path"]
            assert browser.value("get('choice').value") == ranking[0]["suggestion"]
            for number, key in enumerate("rxkk", 1):
                browser.press(key)
                browser.wait_for(f"get('count').textContent == '{number} decided'")
            browser.press("u")
            browser.wait_for("get('count').textContent == '3 decided'")
            assert browser.value("get('path').textContent") == ranking[3]["path"]
            assert browser.value("get('settings').textContent") == (
                f"data.exclude={run}/labels/exclude.txt data.relabel={run}/labels/relabel.csv"
            )
            browser.press("c")  # the field of the class: its letters are no decisions
            browser.press("x")
            assert browser.value("get('count').textContent") == "3 decided"
            browser.press("Enter")
            browser.wait_for("get('error').textContent == \"'x' is not a class of this run.\"")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            for _ in range(2):  # a page whose server is gone says so, at each key
                browser.value("get('error').textContent = ''")
                browser.press("k")
                browser.wait_for("get('error').textContent.startsWith('The server has ended.')")
            assert "3 decisions in" in process.stdout.read()
        suspects, decisions = suspects_and_decisions(run, OmegaConf.load(run / "config.yaml").paths)
        with serving(LabelPage(suspects, decisions, "run", 0)) as page:
            browser.open(page.address)
            again = browser.value("[get('count').textContent, get('path').textContent]")
            assert again == ["3 decided", ranking[3]["path"]]
    finally:
        browser.close()
    assert [(row["path"], row["decision"], row["label"]) for row in table(run / "labels" / "decisions.csv")] == [
        (ranking[0]["path"], "relabel", ranking[0]["suggestion"]),
        (ranking[1]["path"], "exclude", ranking[1]["label"]),
        (ranking[2]["path"], "keep", ranking[2]["label"]),
    ]
    photos = mislabelled.json("reports/data.json")["folder"]
    words = [
        f"data.exclude={run}/labels/exclude.txt",
        f"data.relabel={run}/labels/relabel.csv",
        f"data.data_dir={photos}",
    ]
    again = command("train", *words, *SMALL, "trainer.max_epochs=1", "test=false")
    assert again.json("reports/data.json")["excluded"] == [ranking[1]["path"]]
    assert again.json("reports/data.json")["corrections"] == {ranking[0]["path"]: ranking[0]["suggestion"]}


@contextmanager
def serving(page: LabelPage):
    """The page, in a thread."""
    with page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        try:
            yield page
        finally:
            page.shutdown()
            thread.join()


def ask(address: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    content = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address, content, {name.replace("_", "-"): text for name, text in headers.items()})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_the_page_itself_can_read_and_decide(tmp_path):
    grey = partial(Image.new, "RGB", (8, 8))
    suspect = Suspect("x.png", "a", "b", grey, [Suspect("near.png", "b", "", grey)])
    with serving(LabelPage([suspect], Decisions(tmp_path, ["a", "b"]), "run", 0)) as page:
        root, decision = f"http://127.0.0.1:{page.server_port}", {"index": 0, "decision": "keep", "label": "a"}
        assert ask(page.address)[0] == 200
        assert ask(f"{page.address}image/0/0")[1][:2] == b"\xff\xd8"
        for path in ("/", "/wrong/", "/wrong/image/0", f"/{page.token}", f"/{page.token}/image/0/../../../etc/passwd"):
            assert ask(root + path)[0] == 404, path
        for place in ("1", "-1", "0/1", "0/-1", "%30", "\N{SUPERSCRIPT TWO}".encode().hex(), "9" * 30, ""):
            assert ask(f"{page.address}image/{place}")[0] == 404, place
        assert ask(page.address, Host="attacker.example:80")[0] == 404  # a name that points to this machine
        assert ask(f"{page.address}decide", decision, Origin="https://attacker.example")[0] == 404
        assert ask(f"{root}/wrong/decide", decision)[0] == 404
        for wrong, message in (
            ({**decision, "index": 1}, "index must be a whole number below 1, got 1."),
            ({**decision, "index": True}, "got True"),
            ({**decision, "decision": "burn"}, "decision must be keep, relabel or exclude, got 'burn'."),
            ({**decision, "label": "c"}, "'c' is not a class of this run."),
            ([], "The request is no decision."),
            ({**decision, "label": "a" * 10_000}, "A request has 1 to 10000 bytes."),
        ):
            status, answer = ask(f"{page.address}decide", wrong)
            assert (status, message in json.loads(answer)["error"]) == (400, True), (wrong, answer)
        assert not (tmp_path / "labels").exists()
        assert ask(f"{page.address}decide", decision, Origin=root)[0] == 200
        assert page.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=f"port={page.server_port} is in use. Type another port="):
            LabelPage([], page.decisions, "run", page.server_port)


def test_decisions_are_whole_or_not_made(tmp_path, monkeypatch):
    """What the run had stays in the files, a full disk loses nothing, and a file that is none is not overwritten."""
    had = (tmp_path, ["a", "b"], ["old.png"], {"new.png": "b", "x.png": "a"})
    decisions = Decisions(*had)
    odd = ' a,"b"\udcff.png'
    decisions.decide("x.png", "relabel", "b")
    decisions.decide(odd, "exclude", "a")
    assert (tmp_path / "labels/exclude.txt").read_text().splitlines() == ["old.png", json.dumps(odd)]
    assert table(tmp_path / "labels/relabel.csv") == [
        {"path": "new.png", "label": "b"},
        {"path": "x.png", "label": "b"},
    ]
    files = {file: file.read_bytes() for file in (tmp_path / "labels").iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="could not be written"):
            decisions.decide("y.png", "keep", "a")
    assert {file: file.read_bytes() for file in (tmp_path / "labels").iterdir()} == files
    assert Decisions(*had).made == decisions.made
    assert [decisions.undo(), decisions.undo(), decisions.undo()] == [odd, "x.png", None]
    assert table(tmp_path / "labels/relabel.csv")[1] == {"path": "x.png", "label": "a"}
    first, second = Decisions(*had), Decisions(*had)  # two pages of one run
    first.decide("x.png", "relabel", "b")
    second.decide(" y.png", "relabel", "b")
    first.decide("x.png", "exclude", "a")
    assert [*second.made] == ["x.png", " y.png"]
    assert (first.undo(), first.made["x.png"].kind) == ("x.png", "relabel")  # as it was before the change of mind
    assert read_labels(tmp_path / "labels/relabel.csv", ["a", "b"]).keys() >= {"x.png", " y.png"}
    typed = Decisions(shutil.copytree(tmp_path / "labels", tmp_path / "my run/labels").parent, ["a", "b"]).settings()
    assert shlex.split(typed)[-1] == f"data.relabel='{tmp_path}/my run/labels/relabel.csv'"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/labels").symlink_to(tmp_path / "labels")
    with pytest.raises(UserError, match="linked/labels is a link, and files elsewhere could be replaced"):
        Decisions(tmp_path / "linked", ["a", "b"])
    (tmp_path / "labels/decisions.csv").write_text("something else\n")
    with pytest.raises(UserError, match="is not a list of decisions"):
        Decisions(*had)

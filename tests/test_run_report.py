"""report.html and report.md, and what TensorBoard shows of a run."""

import base64
import csv
import html
import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from drawn_results import DrawnImages, draw_run, drawn_score
from helpers import REPO, draw_classes
from markupsafe import escape
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from imago.data.split_files import listed_paths
from imago.files import write_json
from imago.report import page as run_report
from imago.report.clusters import clustered_order, confused_groups
from imago.report.content import describe_doubt, describe_label_errors
from imago.report.curves import curves_of
from imago.report.label_errors import (
    confident_errors,
    label_margin,
    likeliest_other,
    possible_label_errors,
    read_held_out,
    write_held_out,
)
from imago.report.page import refresh_report, write_report
from imago.report.split import wilson
from imago.report.thumbnails import noteworthy_images

MEASURE = """<script>
for (const each of document.querySelectorAll("details")) each.open = true;
for (const each of document.querySelectorAll(".panel")) each.style.display = "block";
for (const each of document.images) each.loading = "eager";
window.measured = Promise.all([...document.images].map(each => each.decode().catch(() => 0))).then(() => {
const faults = [];
const page = document.documentElement.clientWidth;
for (const each of document.querySelectorAll("main *")) {
  const box = each.getBoundingClientRect();
  if (!box.width || each.closest("svg") && each.tagName != "svg") continue;
  if (!each.closest(".wide") && box.right > page + 1) faults.push("overflows: " + each.outerHTML.slice(0, 80));
}
const blocks = [...document.querySelectorAll(".card, figure, h1, h2, h3, main > p, .pictures li, .wide, pre, .split")];
const boxes = blocks.map(each => each.getBoundingClientRect());
for (let i = 0; i < blocks.length; i++) for (let j = i + 1; j < blocks.length; j++) {
  const [a, b] = [boxes[i], boxes[j]];
  const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (over > 1 && down > 1 && !blocks[i].contains(blocks[j]))
    faults.push("overlap: " + blocks[i].outerHTML.slice(0, 60) + " | " + blocks[j].outerHTML.slice(0, 60));
}
for (const svg of document.querySelectorAll("figure svg"))
  if (svg.querySelectorAll("polyline, rect").length == 0 || svg.getBoundingClientRect().height < 50)
    faults.push("empty chart");
for (const image of document.images)
  if (!image.complete || !image.naturalWidth || !image.alt) faults.push("image: " + image.alt);
for (const cell of document.querySelectorAll("text")) {
  const svg = cell.ownerSVGElement.getBoundingClientRect(), box = cell.getBoundingClientRect();
  if (box.left < svg.left - 1 || box.right > svg.right + 1) faults.push("text outside its chart: " + cell.textContent);
}
return JSON.stringify({faults, charts: document.querySelectorAll("figure svg").length,
  images: document.images.length, width: page, background: getComputedStyle(document.body).backgroundColor});
});
</script>"""


def text_of(page: str) -> str:
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", page, flags=re.DOTALL))
    )


def assert_only_our_script(page: str) -> None:
    """The page holds one script, which its policy allows by the hash."""
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert script == (REPO / "src/imago/report/html/script.js").read_text()
    assert page.count("<script") == 1


@pytest.mark.quick
def test_the_numbers_are_those_of_the_metrics(trained):
    page, markdown = text_of(trained.text("report.html")), trained.text("report.md")
    for split in ("train", "val", "test"):
        metrics = trained.json(f"reports/metrics_{split}.json")
        for name in ("acc", "f1", "loss", "ece", "baseline_acc"):
            assert f"{metrics[name]:.4f}" in page, (split, name)
            assert f"{metrics[name]:.4f}" in markdown, (split, name)
    metrics = trained.json("reports/metrics_test.json")
    for name, row in metrics["per_class"].items():
        assert f"{name} {row['support']} {row['recall']:.4f}" in page
        assert f"{row['precision']:.4f} {row['f1']:.4f}" in page
    low, high = wilson(metrics["acc"], metrics["n"])
    assert f"95%: {low:.4f} to {high:.4f}" in page
    assert "test (scored on val)" in page.replace("accuracy on ", "")


def test_it_says_what_ran_and_how_to_do_it_again(trained):
    page = text_of(trained.text("report.html"))
    environment = trained.json("reports/environment.json")
    assert environment["command"] in page
    for words in ("tags", "[ ]", "data.image_size 224 16", "waiting for data", "images a second", "completed"):
        assert words in page or words == "[ ]"
    changes = {each["key"]: each for each in trained.json("reports/changes.json")}
    assert changes["trainer.max_epochs"] == {"key": "trainer.max_epochs", "default": 10, "value": 6}
    assert "seed" not in changes
    assert environment["versions"]["torch"] in page
    assert trained.json("status.json")["timing"]["compute"] > 0


@pytest.mark.quick
def test_it_is_self_contained(trained):
    page = trained.text("report.html")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "url(" not in page
    assert 'http-equiv="refresh"' not in page
    assert_only_our_script(page)
    assert page.count("<img") == len(re.findall(r'alt="[^"]+"', page)) > 10


def test_it_is_there_after_each_epoch_and_refreshes_itself(train, monkeypatch):
    pages = []

    def keep(folder: Path) -> None:
        write_report(folder)
        pages.append((folder / "report.html").read_text())

    monkeypatch.setattr("imago.callbacks.run_status.refresh_report", keep)
    run = train("trainer.max_epochs=3")
    assert run.exit_code == 0, run.output
    assert len(pages) >= 4
    assert [f"{n} epochs" in page for n, page in enumerate(pages[1:4], 1)] == [True] * 3
    assert all('http-equiv="refresh"' in page for page in pages)
    assert "refresh" not in run.text("report.html")


def test_a_failed_run_says_why(train):
    run = train("model/optimizer=sgd", "model.optimizer.lr=1e30")
    assert run.exit_code == 1
    assert "The loss became" in text_of(run.text("report.html"))
    assert "failed" in run.text("report.md")


def test_a_report_that_cannot_be_written_does_not_end_the_run(trained, tmp_path, caplog, monkeypatch):
    copy = Path(shutil.copytree(trained.dir, tmp_path / "copy"))
    (copy / "reports" / "metrics_test.json").write_text('{"acc": 1}')
    refresh_report(copy)
    assert "metrics_test.json is damaged: its content is not what Imago writes there" in caplog.text
    monkeypatch.setattr(run_report, "write_text", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    refresh_report(trained.dir)
    assert "No space left" in caplog.text


def test_it_is_built_again_from_the_folder_alone(trained, command, tmp_path):
    copy = Path(shutil.copytree(trained.dir, tmp_path / "moved" / trained.dir.name))
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    run = command("visualise", "mode=report", f"run={copy}")
    assert run.exit_code == 0, run.output
    assert (copy / "report.html").read_text() == before


def test_names_cannot_break_the_page(tmp_path, train):
    name = '<b>a|b & "c"<script>alert(1)<'
    root = draw_classes(tmp_path / "odd", {"blue": 8, "red": 8})
    (root / "red").rename(root / name.replace("/", "-"))
    run = train(f"data.data_dir={root}", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert_only_our_script(run.text("report.html"))
    assert name in text_of(run.text("report.html"))
    assert "&lt;b>a\\|b" in run.text("report.md")


HOSTILE = ["<script>document.title = 7</script>", "a\"b'c</script><img src=x onerror=alert(1)>", "x, y", "${z} {{ 7 }}"]


def test_the_model_card_has_the_metadata_of_the_hub_and_no_path_of_this_machine(trained, tmp_path, capsys):
    card = trained.text("model_card.md")
    data = pytest.importorskip("huggingface_hub").ModelCard(card).data
    metrics = trained.json("reports/metrics_val.json")  # there is no test split
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"accuracy": round(metrics["acc"], 4), "f1": round(metrics["f1"], 4)}
    assert (data.pipeline_tag, data.eval_results[0].dataset_split) == ("image-classification", "val")
    assert "Val chose the checkpoint, so that its scores are too good." in card
    low, high = wilson(metrics["acc"], metrics["n"])
    assert f"| val | {metrics['n']} | {metrics['acc']:.4f} | {low:.4f} to {high:.4f} |" in card
    counts = trained.json("reports/data.json")["counts"]
    assert f"- train: {sum(counts['train'].values())} images" in card
    assert "pixels, fit: crop, interpolation: bilinear" in card
    folders = (REPO, trained.dir, trained.dir.parent, Path.home(), trained.json("reports/data.json")["folder"])
    assert [folder for folder in map(str, folders) if folder in card] == []
    code = re.search("```python\n(.*?)```", card, re.DOTALL)[1]
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 30), "red").save(photo)
    exec(code.replace("best.ckpt", str(trained.dir / "checkpoints/best.ckpt")).replace("photo.jpg", str(photo)))
    assert capsys.readouterr().out.startswith("Prediction('")


def test_the_model_card_names_weak_classes_and_of_private_training_no_score(tmp_path):
    run = draw_run(tmp_path / "run", [*HOSTILE, "![p](https://evil.example/p.png) *b*"], images=20)
    write_report(run)
    assert not (run / "model_card.md").exists()  # a run that only scored a checkpoint
    card = {"network": "SimpleCNN", "parameters": 94_762, "weights": "from /home/Jane Doe/best.ckpt"}
    write_json(run / "status.json", json.loads((run / "status.json").read_text()) | {"card": card})
    write_report(run)
    text = (run / "model_card.md").read_text()
    score = json.loads((run / "reports/metrics_test.json").read_text())
    weakest = min(row["recall"] for row in score["per_class"].values())
    table = text[text.index("lowest recall") :]
    assert f" | 20 | {weakest:.4f} |" in table
    assert r"!\[p\](https:\//evil.example/p.png) \*b\*" in text
    assert "(from best.ckpt)" in text
    assert re.search(r"taken for .*: \d+ \(", table)
    assert "<script" not in text
    spent = {"epsilon": 3.2, "delta": 1e-5, "max_grad_norm": 1, "sample_rate": 0.1, "noise_multiplier": 1, "steps": 9}
    words = {"mechanism": "DP-SGD", "accountant": "rdp", "unit": "image", "counted": "", "not_covered": ["val images"]}
    write_json(run / "reports/privacy.json", spent | words)
    write_report(run)
    private = (run / "model_card.md").read_text()
    assert "epsilon 3.2" in private
    assert "Not covered: val images." in private
    assert f"{score['acc']:.4f}" not in private
    assert "model-index" not in private
    assert "images\n- fingerprint" not in private
    (run / "model_card.md").unlink()
    (run / "reports/privacy.json").write_text("{}")  # damaged
    write_report(run)
    assert not (run / "model_card.md").exists()


def test_hostile_names_stay_text(tmp_path):
    run = draw_run(tmp_path / "run", HOSTILE)
    page = write_report(run).read_text()
    assert_only_our_script(page)
    assert "<img src=x" not in page
    for name in HOSTILE:
        assert re.sub(r"\s+", " ", name) in text_of(page)


@pytest.fixture(scope="module", params=[2, 10, 100, 1000])
def drawn(request, tmp_path_factory):
    """The page of a run with so many classes, some of them with hostile names, and the names."""
    names = [*HOSTILE, *(f"class_{n}" for n in range(request.param))][: request.param]
    return write_report(draw_run(tmp_path_factory.mktemp("drawn") / "run", names, images=2)), names


def test_pages_of_few_and_of_many_classes(drawn):
    path, names = drawn
    page, classes = path.read_text(), len(names)
    assert_only_our_script(page)
    assert len(page) < 2_000_000
    assert all(f'id="tab-{split}"' in page and f'id="panel-{split}"' in page for split in ("train", "val", "test"))
    assert ("top-5 accuracy" in page) == (classes >= 10)
    assert ('class="search"' in page) == (classes > 20)
    assert ('alt="Confusion matrix of' in page) == (classes > 20)
    assert page.count("Groups of confused classes") == (3 if classes > 20 else 0)
    for name in names:
        assert page.count(f'<td class="name">{escape(name)}</td>') >= 3


def test_epsilon_is_a_card(tmp_path):
    run = draw_run(tmp_path / "run", ["a", "b"])
    assert ">epsilon<" not in write_report(run).read_text()
    numbers = {"epsilon": 2.99311, "delta": 1e-5, "max_grad_norm": 1.0, "sample_rate": 0.01, "noise_multiplier": 1.1}
    words = {"mechanism": "Gaussian", "accountant": "prv", "unit": "one image", "counted": "all", "not_covered": ["x"]}
    (run / "reports/privacy.json").write_text(json.dumps(numbers | words | {"steps": 3}))
    assert "epsilon 2.9932 delta 1e-05, unit: one image" in text_of(write_report(run).read_text())


def test_wrong_labels_are_found(own_colours, train):
    """The wrong labels lead the lists of train and val; for test no list is made."""
    planted = {"train/red/wrong_0.png", "train/red/wrong_1.png", "val/green/wrong.png"}
    for source, target in zip(
        ("train/blue/000.png", "train/green/003.png", "val/red/001.png"), sorted(planted), strict=True
    ):
        (own_colours / source).rename(own_colours / target)
    run = train(f"data.data_dir={own_colours}", "trainer.max_epochs=6", "report.splits=[train,val,test]")
    assert run.exit_code == 0, run.output
    found = set()
    for split, count in (("train", 2), ("val", 1)):
        found |= {entry["path"] for entry in run.json(f"reports/images_{split}.json")["possibly_mislabelled"][:count]}
    assert found == planted
    page = run.text("report.html")
    for path in planted:
        assert f'data-path="{path}" data-line="{path}"' in page
        assert path in run.text("report.md")
    (run.dir / "exclude.txt").write_text("".join(f"{path}\n" for path in found))
    again = train(f"data.data_dir={own_colours}", f"data.exclude={run.dir}/exclude.txt", "trainer.max_epochs=1")
    assert set(again.json("reports/data.json")["excluded"]) == planted


@pytest.mark.quick
def test_images_of_test_are_relabelled_but_not_left_out(tmp_path):
    page = write_report(draw_run(tmp_path / "run", [f"class {n}" for n in range(4)])).read_text()
    panels = {panel.partition('"')[0]: panel for panel in page.partition("<datalist")[0].split('id="panel-')[1:]}
    assert {name: ('class="change"' in panel, 'class="leave"' in panel) for name, panel in panels.items()} == {
        "train": (True, True),
        "val": (True, True),
        "test": (True, False),
    }


def test_wrong_labels_among_many_images():
    wrong = list(range(0, 500, 20))
    score = drawn_score("train", [f"class {n}" for n in range(10)], 120, wrong)
    shown = noteworthy_images(score, DrawnImages(score.labels, score.paths), label_errors=True)["possibly_mislabelled"]
    assert len(shown) == 48
    assert {score.paths[index] for index in wrong} <= {entry["path"] for entry in shown}
    contradicted = int(confident_errors(score.labels, score.log_probabilities).sum())
    assert sum(entry["contradicted"] for entry in shown) == contradicted
    assert f"48 images to look at, {contradicted} of them contradicted" in describe_label_errors(shown)
    assert "possibly_mislabelled" not in noteworthy_images(score, DrawnImages(score.labels, score.paths))


def test_a_weak_network_doubts_no_label(tmp_path):
    """Its list would be noise: the page says so instead."""
    run = draw_run(tmp_path / "run", [f"class {n}" for n in range(4)], 25)
    score = drawn_score("val", [f"class {n}" for n in range(4)], 25)
    for share, is_listed in ((0.2, False), (0.8, True)):
        knows = np.arange(100) % 25 < share * 25
        log_p = np.where(knows[:, None], score.log_probabilities, np.log([[0.4, 0.2, 0.2, 0.2]]))
        weak = replace(score, log_probabilities=log_p, predictions=log_p.argmax(axis=1))
        shown = noteworthy_images(weak, DrawnImages(weak.labels, weak.paths), label_errors=True)
        assert ("possibly_mislabelled" in shown) == is_listed
        write_json(run / "reports" / "images_val.json", shown)
        write_json(run / "reports" / "metrics_val.json", weak.metrics)
        page = text_of(write_report(run).read_text())
        assert ("Possibly mislabelled in val" in page) == is_listed
        assert ("the network knows too little to doubt a label" in page) != is_listed


def test_labels_that_were_learned_are_contradicted_by_held_out_answers(tmp_path):
    """A network has learned its train labels, wrong ones too. Heads that were fitted without the image have not."""
    score = drawn_score("train", ["a", "b"], 20, wrong=[3, 25, 26])
    learned = np.log(np.where(np.arange(2) == score.labels[:, None], 0.99, 0.01))
    memorised = replace(score, log_probabilities=learned, predictions=score.labels)
    (tmp_path / "reports").mkdir()
    assert read_held_out(tmp_path, score.indices, score.labels) is None
    write_held_out(tmp_path, score.log_probabilities, score.labels)
    held_out = read_held_out(tmp_path, score.indices, score.labels)
    for kept, count in ((None, 0), (held_out, 3)):
        answers = replace(memorised, held_out=kept)
        shown = noteworthy_images(answers, DrawnImages(score.labels, score.paths), label_errors=True)
        contradicted = [each for each in shown["possibly_mislabelled"] if each["contradicted"]]
        assert len(contradicted) == count
        assert all(each["held_out"] and each["prediction"] != each["label"] for each in contradicted)
    assert np.array_equal(read_held_out(tmp_path, [3, 4], score.labels[3:5]), score.log_probabilities[3:5])
    assert read_held_out(tmp_path, score.indices, 1 - score.labels) is None  # the labels have been corrected since
    (tmp_path / "reports" / "held_out_train.npz").write_bytes(b"damaged")
    assert read_held_out(tmp_path, score.indices, score.labels) is None


def test_answers_that_agree_are_listed_only_if_they_are_less_sure_than_usual():
    """A network has learned the wrong label of image 3; 20 to 23 are sure, and fewer than a fifth of all are left."""
    labels = np.repeat([0, 1], 12)
    of_label = np.full(24, 0.9)
    of_label[[3, 20, 21, 22]] = 0.6, 0.99, 0.99, 0.99
    log_p = np.log(np.where(np.arange(2) == labels[:, None], of_label[:, None], 1 - of_label[:, None]))
    listed = possible_label_errors(labels, log_p, least=12, most=48)
    assert listed[0] == 3
    assert not {20, 21, 22} & set(listed.tolist())
    assert describe_doubt("ants", "ants", 0.6) == "ants; the network agrees, unsurely 60.0%"
    assert likeliest_other(labels, log_p)[3] == 1


def test_a_hard_class_does_not_fill_the_list_of_wrong_labels():
    """Of class 0 all labels have a probability of 0.3, of class 1 of 0.95, but for five wrong labels with 0.35. The
    only image of class 2 is wrong as well."""
    labels = np.repeat([0, 1, 2], [60, 60, 1])
    of_label = np.concatenate([np.full(60, 0.3), np.full(55, 0.95), np.full(5, 0.35), [0.1]])
    log_p = np.full((121, 3), np.log(0.01))
    log_p[np.arange(121), (labels + 1) % 3] = np.log(0.99 - of_label)
    log_p[np.arange(121), labels] = np.log(of_label)
    assert set(np.argsort(label_margin(labels, log_p))[:6]) == {115, 116, 117, 118, 119, 120}
    assert np.flatnonzero(confident_errors(labels, log_p)).tolist() == [115, 116, 117, 118, 119, 120]


def test_curves_mark_the_best_epoch_and_have_round_ticks():
    rows = [
        {"epoch": n, "val/acc": 0.39 + 0.0557 * n, "val/f1": 0.5, "lr-AdamW": 1e-3, "lr-AdamW-momentum": 0.9}
        for n in range(11)
    ]
    curves = curves_of(rows, best_epoch=10)
    accuracy, rate = curves["shown"]
    assert [text for text, _ in accuracy["y_ticks"]] == ["0.2", "0.4", "0.6", "0.8", "1"]
    assert accuracy["series"][0]["best"] == pytest.approx(0.8913)
    assert accuracy["best"] == pytest.approx(0.9)
    assert (rate["title"], rate["series"][0]["last"]) == ("learning rate", 1e-3)
    assert [curve["title"] for curve in curves["folded"]] == ["f1"]
    assert curves_of([]) == {"shown": [], "folded": []}


def test_the_best_epoch_is_that_of_the_monitor(trained):
    values = [row["val/acc"] for row in trained.history]
    assert trained.json("status.json")["best_epoch"] == values.index(max(values)) + 1


def test_confused_classes_stand_side_by_side():
    counts = np.eye(6, dtype=np.int64) * 10
    for one, other in ((0, 3), (1, 5)):
        counts[one, other] = counts[other, one] = 8
    order = clustered_order(counts)
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(3)) == abs(order.index(1) - order.index(5)) == 1
    assert confused_groups(counts) == [[0, 3], [1, 5]]
    assert confused_groups(np.eye(6, dtype=np.int64)) == []


def test_top_5_accuracy():
    assert "top5_acc" not in drawn_score("val", [f"{n}" for n in range(9)], 2).metrics
    score = drawn_score("val", [f"{n}" for n in range(12)], 5)
    order = np.argsort(-score.log_probabilities, axis=1)[:, :5]
    expected = np.mean([label in row for label, row in zip(score.labels, order, strict=True)])
    assert score.metrics["top5_acc"] == pytest.approx(expected)
    assert score.metrics["acc"] < score.metrics["top5_acc"]


def measured(page: Path, width: int, tmp_path: Path, *flags: str) -> Any:
    copy = tmp_path / "measured.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(text.replace("</main>", f"</main>{MEASURE}"))
    return in_browser("measured.html", "f.contentWindow.measured", width, tmp_path, *flags)


def in_browser(name: str, expression: str, width: int, tmp_path: Path, *flags: str) -> Any:
    """Opens a page of `tmp_path` in a frame of this width; returns the value of an expression that gives JSON."""
    frame = tmp_path / "frame.html"  # windows of a headless browser are at least 500 px wide
    frame.write_text(f'<iframe id="f" src="{name}" style="width:{width}px;height:40000px;border:0"></iframe>')
    with Browser(tmp_path / "profile", "--allow-file-access-from-files", "--window-size=1800,9000", *flags) as browser:
        browser.open(f"file://{frame}")
        return json.loads(browser.value(expression))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
@pytest.mark.parametrize(
    ("width", "flags"), [(360, []), (1600, []), (1600, ["--blink-settings=preferredColorScheme=0"])]
)
def test_nothing_overlaps_or_overflows_in_a_browser(trained, tmp_path, width, flags):
    run = Path(shutil.copytree(trained.dir, tmp_path / "run"))
    again = {"time": "2026-11-26T12:36:59", "checkpoint": "checkpoints/best.ckpt", "asked": "test", "split": "val"}
    again |= {"n": 15, "acc": 1.0, "f1": 1.0, "loss": 0.1, "folder": "logs/eval/runs/" + "a_name_that_is_long_" * 5}
    (run / "scored_again.jsonl").write_text(json.dumps(again) + "\n")
    refresh_report(run)
    found = measured(run / "report.html", width, tmp_path, *flags)
    assert found["faults"] == []
    assert found["width"] == width
    assert found["charts"] >= 4
    assert found["images"] >= 20
    assert found["background"] == ("rgb(13, 17, 23)" if flags else "rgb(255, 255, 255)")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_pages_of_few_and_of_many_classes_in_a_browser(drawn, tmp_path):
    page, names = drawn
    found = measured(page, 1200 if len(names) == 1000 else 390, tmp_path)
    assert found["faults"] == []
    assert found["images"] >= 16


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_ticks_become_files_under_the_policy(tmp_path):
    """The script runs, although the policy allows no other; the frame around the page does the clicking."""
    write_report(draw_run(tmp_path / "run", [*HOSTILE, "class_4"])).rename(tmp_path / "page.html")
    expression = """(() => {
      const d = f.contentDocument, all = (s) => [...d.querySelectorAll(s)];
      const boxes = all("#panel-train .actions");
      const paths = boxes.slice(0, 3).map((each) => each.dataset.path);
      const hidden = d.getElementById("selection").hidden;
      boxes[0].querySelector(".leave").click();
      boxes[1].querySelector(".leave").click();
      boxes[2].querySelector(".change").click();
      const label = boxes[2].querySelector(".label");
      label.value = "x, y";
      label.dispatchEvent(new Event("input", { bubbles: true }));
      const value = (id) => d.getElementById(id).value;
      const first = { exclude: value("exclude"), relabel: value("relabel") };
      label.value = "no class";
      label.dispatchEvent(new Event("input", { bubbles: true }));
      boxes[0].querySelector(".leave").click();
      return JSON.stringify({ paths, hidden, first, title: d.title, exclude: value("exclude"),
        relabel: value("relabel"),
        settings: d.getElementById("settings").textContent,
        shown: !d.getElementById("selection").hidden, scripts: d.scripts.length });
    })()"""
    found = in_browser("page.html", expression, 1200, tmp_path)
    leave, other, change = found["paths"]
    assert (found["title"], found["scripts"], found["hidden"], found["shown"]) == ("run", 1, True, True)
    assert found["exclude"].splitlines() == ["train/#old.jpg", other]
    (tmp_path / "exclude.txt").write_text(found["first"]["exclude"])
    assert listed_paths(tmp_path / "exclude.txt") == {"train/#old.jpg", leave, other}
    assert list(csv.reader(found["first"]["relabel"].splitlines())) == [
        ["path", "label"],
        ["train/corrected.jpg", HOSTILE[0]],  # of the run before
        [change, "x, y"],
    ]
    assert list(csv.reader(found["relabel"].splitlines())) == [["path", "label"], ["train/corrected.jpg", HOSTILE[0]]]
    assert found["settings"] == "data.exclude=exclude.txt data.relabel=relabel.csv"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_the_browser_would_see_it(trained, tmp_path):
    page = trained.text("report.html")
    spoilt = {
        "overflows": page.replace("<h2>Scores", '<div style="width:2000px">x</div><h2>Scores'),
        "overlap": page.replace("<h2>Learning", '<h2 style="margin-top:-80px">Learning'),
        "empty chart": page.replace("<polyline", "<g").replace("<rect", "<g"),
        "image": page.replace("data:image/jpeg;base64,", "data:image/jpeg;base64,x"),
    }
    for fault, text in spoilt.items():
        (tmp_path / "spoilt.html").write_text(text)
        assert fault in str(measured(tmp_path / "spoilt.html", 360, tmp_path)["faults"])


def test_the_template_is_short():
    folder = REPO / "src" / "imago" / "report"
    for path in (folder / "report.html.j2", *folder.glob("html/*")):
        assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    ("share", "n", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0), (0.0, 0, 0.0, 1.0)]
)
def test_wilson(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def test_tensorboard_has_pictures_reports_and_hyperparameters(trained):
    tags: dict[str, set[str]] = {"images": set(), "tensors": set(), "scalars": set()}
    hparams = []
    for path in (trained.dir / "tensorboard").rglob("events.*"):
        events = EventAccumulator(str(path)).Reload()
        for kind, found in tags.items():
            found |= set(events.Tags()[kind])
        hparams += [(name, data.plugin_data.content) for name, data in events.summary_metadata.items()]
    for split in ("train", "val", "test"):
        assert {f"visual/{name}_{split}" for name in ("confusion_matrix", "reliability", "predictions")} <= tags[
            "images"
        ]
        assert f"classification_report/{split}/text_summary" in tags["tensors"]
        assert f"weights/{split}_acc" in tags["scalars"]
    (start,) = {content for name, content in hparams if name.endswith("session_start_info")}
    shown = set(parse_session_start_info_plugin_data(start).hparams)
    assert {"seed", "model", "data.batch_size", "trainer.max_epochs"} <= shown
    assert not any("_target_" in name or name.startswith(("paths", "callbacks")) for name in shown)
    groups = {tag.partition("/")[0] for tag in tags["scalars"] | tags["images"]}
    assert sorted(groups)[:2] == ["train", "val"]  # those that TensorBoard opens

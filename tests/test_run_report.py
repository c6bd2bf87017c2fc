"""report.html and report.md, and what TensorBoard shows of a run."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import REPO, draw_classes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from imago.report import page as run_report
from imago.report.page import refresh_report, wilson, write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MEASURE = """<script>
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
document.title = JSON.stringify({faults, charts: document.querySelectorAll("figure svg").length,
  images: document.images.length, width: page, background: getComputedStyle(document.body).backgroundColor});
</script>"""


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)))


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
    assert "<script" not in run.text("report.html")
    assert name in text_of(run.text("report.html"))
    assert "&lt;b>a\\|b" in run.text("report.md")


def test_hundred_classes_fit(trained, tmp_path):
    copy = Path(shutil.copytree(trained.dir, tmp_path / "copy"))
    names = [f"class_{n}" for n in range(100)]
    metrics = json.loads((copy / "reports/metrics_test.json").read_text())
    metrics["per_class"] = {
        n: {"precision": 0.5, "recall": 0.5, "f1": i / 100, "support": 4} for i, n in enumerate(names)
    }
    (copy / "reports/metrics_test.json").write_text(json.dumps(metrics))
    rows = [",".join([n, *("1" if i == j else "0" for j in range(100))]) for i, n in enumerate(names)]
    (copy / "reports/confusion_matrix_test.csv").write_text("\n".join([",".join(["label", *names]), *rows]))
    page = text_of(write_report(copy).read_text())
    assert "The 40 classes with the least F1 of 100" in page
    assert "class_39 4" in page
    assert "class_40 4" not in page
    assert "Too many classes to draw" in page


def measured(page: Path, width: int, tmp_path: Path, *flags: str) -> dict:
    copy = tmp_path / "measured.html"
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'  # it forbids all scripts, the one that measures too
    copy.write_text(re.sub(policy, "", page.read_text()).replace("</main>", f"</main>{MEASURE}"))
    frame = tmp_path / "frame.html"  # windows of a headless browser are at least 500 px wide
    frame.write_text(f'<iframe id="f" src="measured.html" style="width:{width}px;height:9000px;border:0"></iframe>')
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-sync",
        *quiet,
        "--allow-file-access-from-files",
    ]
    script = "<script>f.onload = () => document.title = f.contentDocument.title</script>"
    frame.write_text(frame.read_text() + script)
    command = [CHROMIUM, *options, *flags, f"--user-data-dir={tmp_path}/profile", "--window-size=1800,9000"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", f"file://{frame}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)))


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
    assert len((REPO / "src" / "imago" / "report" / "report.html.j2").read_text().splitlines()) <= 300


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

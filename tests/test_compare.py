"""`ml-compare`: the table of runs, its files, conditions, and two or more runs against each other."""

import csv
import json
import sys
from datetime import date
from pathlib import Path

import pytest
from drawn_runs import CLASSES, LABELS, draw_run

from imago import compare
from imago.cli.run_columns import Columns
from imago.cli.run_filter import parse_condition
from imago.cli.run_rows import mean_history
from imago.cli.run_table import Group
from imago.data.folder_images import FolderImages
from imago.errors import UserError
from imago.files import read_text
from imago.run.overview import Overview, find_runs
from imago.run.saved_yaml import read_yaml

OPENED: list[str] = []
sys.addaudithook(lambda event, details: OPENED.append(str(details[0])) if event == "open" else None)


@pytest.fixture
def typed(monkeypatch, capsys):
    """Types `ml-compare <words>`; returns what it prints, or the error that it ends with."""

    def type_it(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ml-compare", *map(str, words)])
        monkeypatch.setattr("rich._console", None)
        monkeypatch.setenv("COLUMNS", "120")
        try:
            compare.main()
        except SystemExit as stop:
            return str(stop.code)
        return capsys.readouterr().out

    return type_it


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two learning rates with three seeds each, of which one died, and a run with another network."""
    root = tmp_path_factory.mktemp("sweep")
    for lr, wrong in ((0.1, (8, 10, 12)), (0.01, (2, 3, 4))):
        for seed, count in enumerate(wrong, 1):
            draw_run(root / f"lr_{lr}_seed_{seed}", range(count), model__optimizer__lr=lr, seed=seed)
    draw_run(root / "lr_0.1_seed_4", state="running", model__optimizer__lr=0.1, seed=4)
    draw_run(root / "resnet50", range(5), model__net__name="resnet50")
    return root


def test_the_curve_of_a_row_is_the_mean_of_its_runs(tmp_path):
    for name, values in (("a", (0.2, 0.4, 0.6)), ("b", (0.4, 0.8))):
        lines = [json.dumps({"epoch": epoch, "val/acc": value}) for epoch, value in enumerate(values)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    runs = [Overview(tmp_path / name, state="completed") for name in "ab"]
    rows = mean_history(Group([*runs, Overview(tmp_path / "c", state="dead")]))
    assert [(row["epoch"], row["val/acc"]) for row in rows] == [(0, pytest.approx(0.3)), (1, pytest.approx(0.6))]
    assert [row["val/acc"] for row in mean_history(Group(runs[:1]))] == [0.2, 0.4, 0.6]


def test_runs_that_differ_in_their_seed_are_one_row(typed, sweep):
    shown = typed(sweep)
    assert shown.splitlines()[0] == f"8 runs below {sweep} in 3 rows"
    rows = [line.split() for line in shown.splitlines()[3:6]]
    assert [row[:4] for row in rows] == [
        ["lr_0.01_seed_1", "+2", "3", "completed"],
        ["resnet50", "completed", "0.8750", "0.01"],
        ["lr_0.1_seed_1", "+3", "3", "completed,"],
    ]
    assert "0.9250 ± 0.0250" in shown
    assert "3 completed, 1 dead" in shown
    assert "0.8629 to 0.9871" in typed(sweep, "--columns", "lr,interval")
    rows = json.loads(typed(sweep, "--json", "--sort", "lr"))
    assert [row["settings"]["model.optimizer.lr"] for row in rows] == [0.01, 0.01, 0.1]
    best = rows[0]
    assert best["metrics"]["test/acc"] == pytest.approx(
        {"mean": 0.925, "n": 3, "sd": 0.025, "low": 0.8629, "high": 0.9871}, abs=1e-4
    )
    assert (best["states"], best["seconds"], best["settings"]["seed"]) == ({"completed": 3}, 90.0, [1, 2, 3])
    assert best["checkpoint"] == str(sweep / "lr_0.01_seed_1" / "checkpoints" / "best.ckpt")


def test_a_run_that_was_typed_twice_counts_once(typed, tmp_path):
    for name, seed in (("one", 1), ("two", 2), ("again", 1)):
        draw_run(tmp_path / name, range(seed), seed=seed)
    rows = json.loads(typed(tmp_path, "--json"))
    assert sorted(row["metrics"]["test/acc"]["n"] for row in rows) == [1, 2]
    draw_run(tmp_path / "dated", begun=date(2026, 11, 27))
    assert '"begun": "2026-11-27"' in typed(tmp_path, "--json")
    (tmp_path / "dated" / "status.json").unlink()
    assert "A has two runs with seed 1" in typed(tmp_path, tmp_path)


def test_the_table_is_written_as_csv_markdown_json_and_one_page(typed, sweep, tmp_path):
    files = [tmp_path / f"runs.{suffix}" for suffix in ("csv", "md", "json", "html")]
    shown = typed(sweep, *(word for file in files for word in ("--output", file)))
    assert [line for line in shown.splitlines() if line.startswith("Written")] == [f"Written: {file}" for file in files]
    table = list(csv.DictReader(files[0].read_text().splitlines()))
    assert (table[0]["runs"], table[0]["test/acc_n"], float(table[0]["test/acc"])) == ("3", "3", pytest.approx(0.925))
    assert files[1].read_text().startswith("| run | state | lr |")
    typed(sweep, "--columns", "lr,interval", "--output", tmp_path / "few.md")
    assert (tmp_path / "few.md").read_text().startswith("| run | lr | 95% of test acc |")
    assert len(json.loads(files[2].read_text())) == 3
    page = files[3].read_text()
    assert page.count("<polyline") == 6  # val/acc and val/loss of three rows
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("lr==0.01", 4),
        ("model.net.name==resnet18 and val/acc>0.85", 4),
        ("not (lr<0.05 or state==dead)", 3),
        ("seed!=1 and seed!=2", 3),
        ("not lr==0.1 or seed==4", 5),
        ("fold==null and acc<=0.8", 3),
        ("model.net.name=='resnet50'", 1),
        ("epsilon<3", 0),
    ],
)
def test_conditions_choose_runs(sweep, condition, count):
    runs = find_runs(sweep)
    keeps = parse_condition(condition, Columns(runs))
    assert sum(map(keeps, runs)) == count


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("model.net.nam==resnet18", "Unknown column model.net.nam. Did you mean model.net.name?"),
        (
            "model.net.name==resnet81",
            "No run has model.net.name resnet81. Did you mean resnet18? There are: resnet18, resnet50.",
        ),
        ("state==complete", "Did you mean completed?"),
        ("lr=0.1", "lr= compares nothing. Type lr=="),
        ("lr>high", "> needs a number, got high"),
        ("lr==0.1 seed==1", "'and' or 'or' is missing before seed"),
        ("(lr==0.1", "a ) is missing"),
        ("lr==", "a value after lr== is missing at the end"),
        ("__import__('os').system('id')", "Unknown column __import__."),
        ("lr==0.1 and", "a column, such as val/acc or lr is missing at the end"),
    ],
)
def test_a_condition_that_is_mistyped_is_answered(sweep, condition, said):
    with pytest.raises(UserError) as error:
        parse_condition(condition, Columns(find_runs(sweep)))
    assert said in str(error.value)


def test_a_thousand_runs_are_shown_without_opening_a_checkpoint(typed, tmp_path):
    for number in range(30):
        draw_run(tmp_path / f"run_{number}", range(number), seed=number)
    OPENED.clear()
    assert "30 runs" in typed(tmp_path, "where=val/acc>0.1", "sort=acc", "--output", tmp_path / "runs.html")
    assert sum(name.endswith("config.yaml") for name in OPENED) == 30
    assert not [name for name in OPENED if name.endswith(".ckpt")]


def test_two_runs(typed, tmp_path):
    a, b = draw_run(tmp_path / "a", range(10)), draw_run(tmp_path / "b", (0, 1, 30), reverse=True, stamp="a")
    shown = typed(a, b)
    assert shown.splitlines()[0] == (
        "B is right on 7 more of 40 images (95%: +1 to +13); that is more than chance (p = 0.039)"
    )
    assert f"A: {a}, accuracy on test 0.7500 (30 of 40)" in shown
    assert "both right 29, only A 1, only B 8, neither 2" in shown
    content = json.loads(typed(a / "checkpoints" / "best.ckpt", b, "--json", "--margin", "2%"))
    (result,) = content["comparisons"]
    assert result["p"] == pytest.approx(0.0390625)
    assert [entry["path"] for entry in content["flips"]["only_A"]] == ["test/blue/030.png"]
    page, table = tmp_path / "flips.html", tmp_path / "flips.csv"
    assert "--output" not in typed(a, b, "--output", page, "--output", table)
    assert "8 images of test that only B has right" in page.read_text()
    assert "pictures" not in typed(a, a)
    assert [row["right"] for row in csv.DictReader(table.read_text().splitlines())] == ["A"] + 8 * ["B"]


def test_flips_are_shown_with_pictures(typed, tmp_path):
    from PIL import Image

    photos = tmp_path / "photos" / "test"
    for number, label in enumerate(LABELS):
        (photos / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), label).save(photos / label / f"{number:03d}.png")
    paths = [f"test/{label}/{number:03d}.png" for number, label in enumerate(LABELS)]
    stamp = FolderImages(photos.parent, paths, [CLASSES.index(label) for label in LABELS]).stamp()[:16]
    runs = [
        draw_run(tmp_path / name, wrong, folder_of_images=str(photos.parent), stamp=stamp)
        for name, wrong in (("a", (1, 2)), ("b", (3,)))
    ]
    page = tmp_path / "page.html"
    typed(*runs, "--output", page)
    assert "data:image" not in page.read_text()
    assert "report.pictures=false" in page.read_text()
    for run in runs:
        (run / "reports" / "images_test.json").write_text('{"mistakes": [], "unsure": []}')
    typed(*runs, "--output", page)
    assert page.read_text().count('src="data:image/jpeg') == 3
    (photos / "blue" / "038.png").write_bytes(b"a file of another size")
    typed(*runs, "--output", page)
    assert "data:image" not in page.read_text()  # a run of a stranger may name any folder
    assert "Pictures are those of the reports alone" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": LABELS[:30]}, "were scored on different images: 40 and 30, of which 30 have the same path"),
        ({"stamp": "b"}, "different images with the same paths: their fingerprints are a and b"),
        ({"split": "val"}, "has no predictions for test (predictions_test.csv). Score it"),
    ],
)
def test_other_images_are_refused(typed, tmp_path, changes, said):
    a, b = draw_run(tmp_path / "a"), draw_run(tmp_path / "b", **changes)
    assert said in typed(a, b)


def test_other_labels_of_the_same_images_are_refused(typed, tmp_path):
    a, b = draw_run(tmp_path / "a"), draw_run(tmp_path / "b")
    table = b / "reports" / "predictions_test.csv"
    table.write_text(table.read_text().replace(",blue,blue,", ",green,blue,", 3))
    assert "have different labels for 3 of 40 images, such as test/blue/000.png" in typed(a, b)


def test_seeds_are_paired_and_folds_have_a_test_of_their_own(typed, sweep, tmp_path):
    shown = typed(f"{sweep}/*lr_0.1*", f"{sweep}/*lr_0.01*")
    assert shown.splitlines()[0] == (
        "B is right on 17.5% more of these images, on average over 3 seeds (95%: +11.3% to +23.7%, if the differences "
        "are normally distributed); 3 seeds cannot decide at 5%: the least p is 0.25; if the difference is as large as "
        "seen, 6 seeds would do (80% power)"
    )
    assert "probability that B wins a pair" in shown
    (result,) = json.loads(typed(f"{sweep}/*lr_0.1*", f"{sweep}/*lr_0.01*", "--json"))["comparisons"]
    assert (result["a"], result["b"], result["accuracies_a"]) == ("A", "B", [0.8, 0.75, 0.7])
    assert "1.00 (95%: 0.29 to 1.00)" in shown
    assert "1 of 4 runs of A is not completed, and is left out" in shown
    for name, counts in (("a", (9, 8, 7, 9, 8)), ("b", (2, 1, 2, 1, 3))):
        for fold, wrong in enumerate(counts):
            draw_run(tmp_path / name / str(fold), range(wrong), split="val", data__fold=fold, stamp=str(fold))
    shown = typed(tmp_path / "a", tmp_path / "b")
    assert "on average over 5 folds (95%: +9.8% to +22.2%); that is more than chance" in shown
    assert "corrected resampled t" in shown
    assert "accuracy on val 0.9550 (mean of 5 runs)" in shown
    assert "val has chosen the epoch of each run (monitor val/acc)" in shown
    assert "--split test: the folds of a training share images of test" in typed(
        tmp_path / "a", tmp_path / "b", "--split", "test"
    )
    assert "A has seed 1" in typed(sweep / "lr_0.1_seed_1", f"{sweep}/*lr_0.01*")
    assert "differ in model.optimizer.lr, model.net.name, too" in typed(sweep, tmp_path / "a")


def test_several_runs_are_corrected_for(typed, sweep, tmp_path):
    runs = [draw_run(tmp_path / str(count), range(count), model__optimizer__lr=count / 100) for count in (1, 4, 20)]
    shown = typed(*runs)
    assert shown.splitlines()[0] == (
        "A has the best accuracy, 97.5%; after Holm's correction for 3 comparisons, it is better than C, and cannot be "
        "told from B"
    )
    assert "cannot be told apart" in shown
    assert "p of equivalence (TOST, of this pair)" in typed(*runs, "--margin", "0.1")
    assert "--seed is that of the bootstrap" in typed(*runs, "--seed", "1")
    assert typed(*(sweep / f"lr_{lr}_seed_{seed}" for lr in (0.1, 0.01) for seed in (1, 2, 3))).startswith(
        "B is right on 17.5%"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}", "--where", "seed==1", "--columns", "seed"], "3 runs below"),
        (["{}", "--seed", "0"], "--seed compares two runs: ml-compare A B"),
        (["{}", "{}/none.ckpt"], "{}/none.ckpt is no run folder"),
        (["{}", "--margin", "0.02"], "--margin compares two runs: ml-compare A B"),
        (["{}", "{}", "--sort", "lr"], "--sort is for the table of one folder: ml-compare FOLDER"),
        (["{}", "--output", "runs.xlsx"], "the name must end in one of .csv, .json, .md, .html"),
        (["{}/nothing"], "is not a folder"),
        (["{}", "{}/nothing"], "is no run folder, and no folder or pattern of any"),
        (["{}", "{}", "--seed", "-1"], "--seed must be 0 or more, got -1."),
        (["{}", "--where", "(" * 3000 + "lr==1" + ")" * 3000], "it has more than 50 brackets and nots"),
        (["{}", "{}", "--margin", "0"], "--margin must be a fraction above 0 and below 1, got 0"),
        (["{}", "--sotr", "lr"], "unrecognized arguments: --sotr"),
        (["{}/resnet50", "{}/resnet50"], "A and B are the same run: {}/resnet50"),
        (["{}", "--columns", "lr,"], "3 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said(typed, sweep, words, said):
    assert said.format(sweep) in typed(*(word.format(sweep) for word in words))


def test_a_checkpoint_outside_of_a_run_and_folders_of_scores(typed, sweep, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "best.ckpt").write_bytes(b"")
    assert "best.ckpt is in no run folder" in typed(sweep, tmp_path / "a" / "b" / "best.ckpt")
    for lr in (1, 2):
        for seed in (1, 2):
            draw_run(
                tmp_path / f"eval_{lr}_{seed}",
                range(seed),
                seed=seed,
                task_name="eval",
                ckpt_path=f"{seed}",
                model__optimizer__lr=lr,
            )
    assert "on average over 2 seeds" in typed(tmp_path / "eval_1_*", tmp_path / "eval_2_*")


def test_too_few_seeds_for_several_trainings_are_named(typed, tmp_path):
    for lr in (1, 2, 3):
        for seed in range(6):
            draw_run(tmp_path / f"lr_{lr}_{seed}", range(seed, seed + 10 * lr - 9), seed=seed, model__optimizer__lr=lr)
    shown = typed(*(tmp_path / f"lr_{lr}_*" for lr in (1, 2, 3)))
    assert (
        "6 seeds cannot decide between 3 pairs of trainings at 5%: the least p after Holm's correction is 0.094"
        in shown
    )
    assert "7 seeds could" in shown


def test_runs_are_ranked_over_the_seeds_that_all_have(typed, tmp_path):
    """B is better than A in each seed that both have, and the further seeds of A are easy ones."""
    for seed in range(8):
        for name, count in (("A", 8), ("B", 7), ("C", 30)):
            draw_run(tmp_path / f"{name}{seed}", range(seed, seed + count), seed=seed, model__optimizer__lr=ord(name))
    for seed in range(8, 12):
        draw_run(tmp_path / f"A{seed}", (), seed=seed, model__optimizer__lr=ord("A"))
    shown = typed(*(tmp_path / f"{name}*" for name in "ABC"))
    assert shown.startswith(
        "B has the best accuracy, 82.5%; after Holm's correction for 3 comparisons, it is better than A and C\n"
    )
    assert "Left out, because not all of A, B and C have them: seed 10, seed 11, seed 8, seed 9" in shown


def test_seeds_without_effect_are_one_run(typed, tmp_path):
    for seed in range(6):
        for name, wrong in (("a", range(4)), ("b", range(3)), ("c", range(seed))):
            draw_run(tmp_path / f"{name}{seed}", wrong, seed=seed, model__optimizer__lr=ord(name))
    shown = typed(tmp_path / "a*", tmp_path / "b*")
    assert shown.startswith("B is right on 1 more of 40 images (95%: -3 to +5); that cannot be told from chance\n")
    assert "All 6 runs of each training gave the same answers, as if the seeds changed nothing" in shown
    assert "All 6 runs of A gave the same answers" in typed(tmp_path / "a*", tmp_path / "c*")
    assert "95% of test acc\n" in (shown := typed(tmp_path, "--where", "lr<99", "--columns", "interval"))
    assert " to " not in shown


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"reverse": True}, "the images stand in another order"),
        ({"class_names": ["green", "blue"]}, "the classes stand in another order"),
        ({"counts": {}}, "not every run has one"),
    ],
)
def test_fingerprints_that_say_nothing_are_said(typed, tmp_path, changed, why):
    a, b = draw_run(tmp_path / "a"), draw_run(tmp_path / "b", stamp="b", reverse="reverse" in changed)
    file = b / "reports" / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert f"Fingerprints could not be compared, because {why}" in typed(a, b)


def test_seeds_that_draw_their_own_images_have_the_test_of_folds(typed, tmp_path):
    for lr, more in (("1", 4), ("2", 0)):
        for seed in range(6):
            draw_run(tmp_path / f"{lr}_{seed}", range(seed + more), seed=seed, model__optimizer__lr=int(lr))
            table = tmp_path / f"{lr}_{seed}" / "reports" / "predictions_test.csv"
            table.write_text(table.read_text().replace("test/", f"seed_{seed}/"))
    shown = typed(tmp_path / "1_*", tmp_path / "2_*")
    assert "more of the images, on average over 6 seeds, each with images of its own" in shown
    assert "corrected resampled t" in shown


def test_folds_with_the_same_images_are_refused_and_seeds_are_counted(typed, tmp_path):
    for lr in (1, 2):
        for seed in (1, 2):
            for fold in (0, 1):
                draw_run(
                    tmp_path / f"{lr}_{seed}_{fold}",
                    range(lr + seed + fold),
                    split="val",
                    seed=seed,
                    data__fold=fold,
                    model__optimizer__lr=lr,
                )
    words = [tmp_path / "1_*", tmp_path / "2_*"]
    assert "on average over 4 runs (2 seeds, 2 folds) (95%" in typed(*words)
    for table in tmp_path.glob("*/reports/predictions_val.csv"):
        table.write_text(table.read_text().replace("val_1/", "val_0/"))
    assert "seed 1, fold 0 and seed 1, fold 1 of A have the same images in val, such as val_0/" in typed(*words)


def test_what_was_scored_is_said(typed, tmp_path):
    """val in place of test, images that could not be read, groups, and probabilities that are none."""
    split = tmp_path / "split.csv"
    split.write_text("# imago split: {}\nsplit,path,label,group\n")
    runs = [draw_run(tmp_path / name, range(10), data__split_file=str(split)) for name in ("a", "b")]
    for run in runs:
        file = run / "reports" / "metrics_test.json"
        file.write_text(file.read_text().replace('"split": "test"', '"split": "val"'))
    table = runs[0] / "reports" / "predictions_test.csv"
    rows = table.read_text().replace("000.png,blue,green,0.9", "000.png,blue,,nan")
    table.write_text(rows.replace(",green,blue,0.9", ",green,blue,inf"))
    draw_run(tmp_path / "right")
    shown = typed(*runs)
    assert "accuracy on val 0.7500" in shown
    assert "A could not read 1 of 40 images: they count as wrong" in shown
    assert "The split file has groups" in shown
    assert "This is about these 2 networks: another seed of the same trainings may say otherwise" in shown
    flips = json.loads(typed(runs[0], tmp_path / "right", "--json"))["flips"]["only_B"]
    assert [entry["probability"] for entry in flips] == 4 * [0.9] + 6 * [0.0]


def test_runs_without_a_number_are_the_last(typed, tmp_path):
    for name, lr in (("a", 0.3), ("b", float("nan")), ("c", 0.1)):
        draw_run(tmp_path / name, model__optimizer__lr=lr)
    assert [row["name"] for row in json.loads(typed(tmp_path, "--sort", "lr", "--json"))] == ["c", "a", "b"]


def test_folds_have_images_of_their_own(typed, tmp_path):
    for fold in range(3):
        draw_run(tmp_path / str(fold), range(fold), split="val", data__fold=fold, stamp=str(fold))
    shown = typed(tmp_path, "--sort", "val/acc")
    assert "3 runs below" in shown
    assert "different sets of images" not in shown


def test_settings_are_read_as_yaml_reads_them(tmp_path):
    texts = [
        "a:\n  b: 1\n  c:\n    d: [1, 2]\n    e: |\n      f: 1\n\n      g\n  h: 'x:\n\n    y'\nseed: 3\n",
        "a:\n- b: 1\n- c\n",
        "on:\n  1: x\n",
        "- a\n- b\n",
        "{a: 1}\n",
        'a: "b\n  c"\nd:\n  # nothing\n  e: null\n',
        "a:\n  just: text\n  \n  # c\nb: {}\n",
    ]
    import yaml

    for text in texts:
        (tmp_path / "a.yaml").write_text(text)
        assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(read_text(tmp_path / "a.yaml")), text
    (tmp_path / "a.yaml").write_text(texts[0])
    assert read_yaml(tmp_path / "a.yaml", "a", "c") == {"d": [1, 2], "e": "f: 1\n\ng\n"}
    assert read_yaml(tmp_path / "a.yaml", "a", "d") is None

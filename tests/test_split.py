"""`ml-split`: folds, groups and duplicates, and a second call on the same file."""

import csv
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_classes, photograph
from sklearn.model_selection import StratifiedGroupKFold

from imago import split
from imago.data.allocation import Allocation, linked, units_of
from imago.data.split_files import read_rows, read_table

SplitCommand = Callable[..., str]


@pytest.fixture
def ml_split(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SplitCommand:
    """Types `ml-split WORDS`; returns what it prints."""

    def run_it(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ml-split", *map(str, words)])
        monkeypatch.setattr("rich._console", None)
        capsys.readouterr()
        split.main()
        return " ".join(capsys.readouterr().out.split())

    return run_it


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """20 patients with 1 to 5 images each, some of them in both classes."""
    root = draw_classes(tmp_path / "patients", {"blue": 30, "red": 30})
    for label in ("blue", "red"):
        for number, file in enumerate(sorted((root / label).iterdir())):
            file.rename(file.with_name(f"p{(number * 7 + (label == 'red')) % 20:02d}_{number}.png"))
    return root


def table_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()[1:]))


def places_of(file: Path) -> dict[str, str]:
    """Path -> split of test, or fold."""
    return {row["path"]: row.get("fold") or row["split"] for row in table_of(file)}


def test_groups_never_cross_splits_or_folds(patients, ml_split, tmp_path):
    for words in (("--folds", 4, "--test", 0.2), ("--val", 0.2, "--test", 0.2)):
        file = tmp_path / f"{words[0][2:]}.csv"
        said = ml_split(patients, *words, "--group-regex", r"p\d+", "--output", file)
        assert "20 groups, each in one part" in said
        parts = defaultdict(set)
        for row in table_of(file):
            parts[row["group"]].add(row.get("fold") or row["split"])
            assert row["group"] in row["path"]
        assert len(parts) == 20
        assert all(len(own) == 1 for own in parts.values())
        sizes = Counter(places_of(file).values())
        wanted = (
            {"0": 12, "1": 12, "2": 12, "3": 12, "test": 12}
            if "--folds" in words
            else {"train": 36, "val": 12, "test": 12}
        )
        assert all(abs(sizes[part] - wanted[part]) <= 2 for part in wanted), sizes
        labels = Counter((row.get("fold") or row["split"], row["label"]) for row in table_of(file))
        assert all(abs(labels[part, "blue"] - labels[part, "red"]) <= 3 for part in wanted), labels
    first, chart = (tmp_path / "folds.csv").read_bytes(), tmp_path / "folds.png"
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert "Next: ml-cv data.split_file=" in ml_split(
        patients, "--folds", 4, "--test", 0.2, "--group-regex", r"p\d+", "--output", tmp_path / "again.csv"
    )
    assert (tmp_path / "again.csv").read_bytes() == first
    table = tmp_path / "meta.csv"
    rows = [f"{path.relative_to(patients)},{path.name[:3]}" for path in patients.rglob("*.png")]
    table.write_text("\n".join(["path,patient", *rows]))
    by_table = (patients, "--folds", 4, "--test", 0.2, "--group-file", table, "--group-column", "patient")
    ml_split(*by_table, "--output", tmp_path / "table.csv")
    assert places_of(tmp_path / "table.csv") == places_of(tmp_path / "folds.csv")


def test_duplicates_are_on_one_side(ml_split, tmp_path):
    root = draw_classes(tmp_path / "photos", {"blue": 20, "red": 20})
    for number in range(8):
        shutil.copy(root / "blue" / f"{number:03d}.png", root / "blue" / f"copy_{number}.png")
        view = photograph(number)
        view.save(root / "red" / f"view_{number}.png")
        view.resize((90, 90)).save(root / "red" / f"smaller_{number}.jpg")
    ml_split(root, "--folds", 5, "--output", tmp_path / "exact.csv")
    exact = places_of(tmp_path / "exact.csv")
    assert all(exact[f"blue/{n:03d}.png"] == exact[f"blue/copy_{n}.png"] for n in range(8))
    assert not all(exact[f"red/view_{n}.png"] == exact[f"red/smaller_{n}.jpg"] for n in range(8))
    said = ml_split(root, "--folds", 5, "--duplicates", "near", "--output", tmp_path / "near.csv")
    near = places_of(tmp_path / "near.csv")
    assert all(near[f"blue/{n:03d}.png"] == near[f"blue/copy_{n}.png"] for n in range(8))
    assert all(near[f"red/view_{n}.png"] == near[f"red/smaller_{n}.jpg"] for n in range(8))
    assert "stay together (--duplicates near)" in said
    group_of = {
        row["path"]: row["group"] for row in table_of(tmp_path / "near.csv")
    }  # of which one counts for a promise
    assert all(group_of[f"red/view_{n}.png"] == group_of[f"red/smaller_{n}.jpg"] != "" for n in range(8))
    ml_split(root, "--folds", 5, "--duplicates", "none", "--output", tmp_path / "none.csv")
    none = places_of(tmp_path / "none.csv")
    assert not all(none[f"blue/{n:03d}.png"] == none[f"blue/copy_{n}.png"] for n in range(8))


def test_what_exists_stays_and_new_images_are_added(patients, ml_split, tmp_path):
    file = tmp_path / "splits.csv"
    words = (patients, "--folds", 4, "--group-regex", r"p\d+", "--output", file)
    (tmp_path / "exclude.txt").write_text("blue/p00_0.png\n")
    ml_split(*words)
    before, text, chart = places_of(file), file.read_bytes(), (tmp_path / "splits.png").read_bytes()
    assert f"{file} is unchanged" in ml_split(*words)
    assert (file.read_bytes(), (tmp_path / "splits.png").read_bytes()) == (text, chart)
    for number in range(24):
        photograph(number, 24).save(patients / "red" / f"p{number:02d}_new.png")
    dry = ml_split(*words, "--dry-run", "--exclude", tmp_path / "exclude.txt")
    assert "59 images stay where they are, 24 are new, 1 are gone or left out" in dry
    assert file.read_bytes() == text
    ml_split(*words, "--exclude", tmp_path / "exclude.txt")
    after = places_of(file)
    assert after.keys() - before.keys() == {f"red/p{n:02d}_new.png" for n in range(24)}
    assert all(after[path] == part for path, part in before.items() if path != "blue/p00_0.png")
    assert "blue/p00_0.png" not in after
    group_of = {row["path"]: row["group"] for row in table_of(file)}
    assert all(after[path] == before[next(p for p in before if group_of.get(p) == group_of[path])]
               for path in after if group_of[path] < "p20")  # fmt: skip
    sets = read_rows(file, None)
    assert {name: len(images) for name, images in sets.splits.items()} == Counter(
        row["split"] for row in table_of(file)
    )
    assert {row["fold"] for row in table_of(file) if row["split"] == "val"} == {"0"}
    file.write_text(re.sub(r"^train,(\S+?),(\w+),\d", r"train,\1,\2,9", file.read_text(), count=1, flags=re.M))
    with pytest.raises(
        SystemExit, match=r"The row of \S+\.png has split train, fold 9; the settings of .* 0, 1, 2, 3, t"
    ):
        ml_split(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "5", "--val", "0.2", "--dry-run"], "--folds and --val contradict each other"),
        (["--folds", "1", "--dry-run"], "folds are two or more"),
        (["--folds", "3", "--copy-to", "x"], "Remove --copy-to"),
        (["--folds", "30", "--dry-run"], "would be empty|two folds or more"),
        (["data.folds=5", "--dry-run"], r"Type: ml-split \S+ --folds 5 --dry-run"),
        (["--group-regex", "p(", "--dry-run"], "is no regular expression"),
        (["--group-regex", r"\d*", "--dry-run"], "matches no character of blue/000.png"),
        (
            ["--group-regex", r"p\d", "--dry-run"],
            r"matches 0 of 16 images, and not blue/000.png.*--group-regex 'p\\d\|",
        ),
        (["--group-file", "nowhere.csv", "--dry-run"], "nowhere.csv does not exist"),
        (["--group-file", "meta.csv", "--dry-run"], "has no column group; it has path,patient|it has path, patient"),
        (
            ["--group-file", "meta.csv", "--group-column", "patient", "--dry-run"],
            "has no patient of 15 images: blue/001",
        ),
        (["--duplicates", "some", "--dry-run"], "invalid choice: 'some'"),
        (["--output", "x.png"], "--output x.png: the split file is a CSV. Type --output x.csv"),
        (["--output", "chart.csv"], "chart.png already exists, and nothing is overwritten"),
        (["--seed", "7", "--output", "there.csv"], r"with other settings: seed 42 \(now 7\)"),
        (["--folds", "5", "--output", "there.csv"], r"val 0.15 \(now None\), folds None \(now 5\)"),
    ],
)
def test_what_contradicts_is_refused(tmp_path, monkeypatch, ml_split, words, message):
    monkeypatch.chdir(tmp_path)
    photos = draw_classes(tmp_path / "photos", {"blue": 8, "red": 8})
    (tmp_path / "meta.csv").write_text("path,patient\nblue/000.png,p1\n")
    (tmp_path / "chart.png").touch()
    if "there.csv" in words:
        ml_split(photos, "--output", "there.csv")
    with pytest.raises(SystemExit, match=message):
        ml_split(photos, *words)


@pytest.mark.quick
def test_allocation_is_as_balanced_as_that_of_scikit_learn():
    """40 sets of groups of unequal sizes and classes: the largest difference of a class among 5 folds."""
    ours, theirs = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), generator.integers(1, 12, 60))
        labels = np.where(
            generator.random(len(groups)) < 0.7,
            generator.integers(0, 4, 60)[groups],
            generator.integers(0, 4, len(groups)),
        )
        places = generator.random(len(groups))
        allocation = Allocation({str(n): 0.2 for n in range(5)}, labels, units_of(len(groups), linked(groups)), places)
        parts, torn = allocation.of_all([None] * len(groups))
        assert not torn
        assert all(len({*np.array(parts)[groups == group]}) == 1 for group in range(60))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        of_sklearn = np.zeros(len(groups), dtype=int)
        for number, (_, held_out) in enumerate(folds):
            of_sklearn[held_out] = number
        for chosen, spread in ((np.array(parts, dtype=int), ours), (of_sklearn, theirs)):
            counts = np.array([np.bincount(chosen[labels == label], minlength=5) for label in range(4)])
            spread.append(np.ptp(counts, axis=1).max())
    assert np.mean(ours) <= np.mean(theirs), (np.mean(ours), np.mean(theirs))


def test_a_table_of_ones_own_may_have_folds(tmp_path):
    table = tmp_path / "own.csv"
    for rows, message in (
        (["a/1.png,a,0", "b/1.png,b,"], "b/1.png of train and val have no fold"),
        (["a/1.png,a,1", "b/1.png,b,2"], "its folds are 1, 2. Folds are 0, 1"),
        (["a/1.png,a,x", "b/1.png,b,0"], "invalid literal for int"),
    ):
        table.write_text("\n".join(["path,label,fold", *rows]))
        for name in ("a/1.png", "b/1.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            read_rows(table, tmp_path)
    table.write_text("path,label,fold\na/1.png,a,0\nb/1.png,b,1\n")
    assert read_rows(table, tmp_path).folds == {"a/1.png": 0, "b/1.png": 1}
    assert read_table(table)[0] == {}


def test_a_new_image_follows_its_group_also_where_it_equals_one_of_another_group(patients, ml_split, tmp_path):
    file = tmp_path / "splits.csv"
    words = (patients, "--folds", 4, "--group-regex", r"p\d+", "--output", file)
    ml_split(*words)
    part_of = {row["group"]: row["fold"] or "test" for row in table_of(file)}
    here, there = "p00", next(group for group in part_of if part_of[group] != part_of["p00"])
    source = next(path for path in patients.rglob(f"{there}_*.png"))
    shutil.copy(source, patients / "red" / f"{here}_new.png")
    assert "belong together are in several parts: what was there stays: " in ml_split(*words)
    assert places_of(file)[f"red/{here}_new.png"] == part_of[here]

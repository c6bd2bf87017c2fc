import hashlib
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from helpers import draw_classes

from imago.data.drawn_splits import by_place, draw_split, up_to
from imago.data.folder_images import FolderImages
from imago.data.folders import read_tree
from imago.data.images import class_counts

LETTERS = str.maketrans("0123456789", "ghijklmnop")


def read(root: Path, val_ratio: float = 0.1, seed: int = 0):
    return read_tree(root, val_ratio, seed)


def test_three_splits(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        draw_classes(tmp_path / split, {"red": count, "blue": count})
    tree = read(tmp_path)
    assert tree.class_names == ["blue", "red"]
    assert {name: len(split) for name, split in tree.splits.items()} == {"train": 8, "val": 4, "test": 6}
    assert tree.splits["val"].paths[0] == "val/blue/000.png"
    assert tree.notes == []


@pytest.mark.quick
def test_class_folders_directly_are_split_by_class(tmp_path):
    draw_classes(tmp_path, {"red": 40, "blue": 20, "green": 4})
    tree = read(tmp_path, val_ratio=0.2)
    counts = class_counts(tree.splits["val"], tree.class_names)
    assert counts == {"blue": 4, "green": 1, "red": 8}
    assert not set(tree.splits["train"].paths) & set(tree.splits["val"].paths)
    assert "13 of the 64 train images (20%) were drawn as the val split (data.val_ratio=0.2" in tree.notes[0]
    assert tree.notes[0].endswith("blue 4 of 20, green 1 of 4, red 8 of 40")
    assert tree.warnings == []
    assert read(tmp_path, 0.2).fingerprint() == tree.fingerprint()
    assert read(tmp_path, 0.2, seed=1).fingerprint() != tree.fingerprint()


def images_of(counts: list[int], shift: int = 0) -> FolderImages:
    """Images without files: `counts` of each class, numbered from `shift` on."""
    numbered = [(f"class{label}/{shift + n}.png", label) for label, count in enumerate(counts) for n in range(count)]
    return FolderImages(Path(), [path for path, _ in numbered], [label for _, label in numbered])


def images_of_any_name(counts: list[int]) -> FolderImages:
    """Images whose names have no numbers to spread them by; the first of a class are the same for all counts."""
    named = [
        (f"class{label}/{hashlib.sha256(f'{label} {n}'.encode()).hexdigest().translate(LETTERS)}.png", label)
        for label, count in enumerate(counts)
        for n in range(count)
    ]
    return FolderImages(Path(), [path for path, _ in named], [label for _, label in named])


def drawn(images: FolderImages, ratio: float, seed: int, **options) -> list[int]:
    return draw_split(images.paths, images.labels, ratio, seed, **options).indices


def counts_of(images: FolderImages, indices: list[int]) -> list[int]:
    counts = Counter(images.labels[index] for index in indices)
    return [counts[label] for label in range(max(images.labels) + 1)]


@pytest.mark.parametrize("named", [images_of, images_of_any_name])
def test_each_class_gives_its_share_to_within_an_image_and_all_of_them_give_theirs(named):
    uneven, alike, small = named([60, 60, 30, 15]), named([14] * 10), named([4] * 100)
    for seed in range(20):
        assert counts_of(uneven, drawn(uneven, 0.2, seed)) == [12, 12, 6, 3]
        assert sorted(counts_of(alike, drawn(alike, 0.1, seed))) == [1] * 6 + [2] * 4
        assert len(drawn(small, 0.1, seed)) == 40


def test_few_images_change_sides_when_images_are_added():
    few, one_more, many = images_of_any_name([60]), images_of_any_name([61]), images_of_any_name([100])
    moved = 0
    for seed in range(100):
        before, after = set(drawn(few, 0.2, seed)), set(drawn(many, 0.2, seed))  # the first 60 are the same images
        moved += len(before ^ {index for index in after if index < 60})
        assert len(before - set(drawn(one_more, 0.2, seed))) <= 1
    assert moved / (100 * 60) < 0.03  # docs/data.md: about 2%


@pytest.mark.parametrize("from_end", [False, True])
def test_a_recorded_draw_moves_no_image_when_images_are_added(from_end):
    few, many = images_of_any_name([60]), images_of_any_name([100])
    for seed in range(50):
        draw = draw_split(few.paths, few.labels, 0.2, seed, from_end=from_end)
        again = drawn(many, 0.2, seed, from_end=from_end, rule=up_to(draw.edges))
        assert [index for index in again if index < 60] == draw.indices
        assert 12 < len(again) < 30


def test_checkpoints_of_earlier_versions_get_the_splits_of_their_run():
    """The numbers are those that `draw_sides` of those versions drew."""
    images = images_of_any_name([60, 9, 3, 3])
    assert drawn(images, 0.1, 42, rule=by_place) == [4, 33, 36, 41, 43, 44, 46, 52, 58, 64, 71]
    test = drawn(images, 0.3, 42, from_end=True, rule=by_place)
    assert test == [7, 8, 13, 14, 19, 21, 22, 28, 29, 30, 31, 32, 35, 38, 39, 45, 48, 49, 51, 57, 67, 73]
    assert drawn(images, 0.1, 42, taken=test, rule=by_place) == [4, 33, 36, 41, 43, 44, 46, 52, 58, 64, 71]


def test_a_drawn_split_has_at_most_half_of_a_class_and_two_images_at_least():
    images, small = images_of([1, 2, 3, 4, 5]), images_of([3, 3])
    for seed in range(50):
        assert counts_of(images, drawn(images, 0.5, seed)) == [0, 1, 1, 2, 2]
        assert len(drawn(small, 0.1, seed)) == 2


def test_a_class_of_one_image_stays_in_train():
    assert drawn(images_of([1, 2]), 0.5, seed=0) in ([1], [2])


def test_labels_are_matched_by_name_where_val_lacks_a_class(tmp_path):
    draw_classes(tmp_path / "train", {"blue": 3, "green": 3, "red": 3})
    draw_classes(tmp_path / "val", {"red": 2})
    assert read(tmp_path).splits["val"].labels.tolist() == [2, 2]


def test_a_class_that_train_lacks_is_an_error_with_both_lists(tmp_path):
    draw_classes(tmp_path / "train", {"blue": 3, "green": 3})
    draw_classes(tmp_path / "val", {"red": 2, "green": 1})
    with pytest.raises(ValueError, match=r"missing in train: red(.|\n)*train: blue, green\n *val: green, red"):
        read(tmp_path)


def test_val_may_be_called_valid(tmp_path):
    draw_classes(tmp_path / "train", {"blue": 3, "red": 3})
    draw_classes(tmp_path / "valid", {"blue": 1, "red": 1})
    assert read(tmp_path).splits["val"].paths == ["valid/blue/000.png", "valid/red/000.png"]


def test_case_does_not_matter_for_splits(tmp_path):
    draw_classes(tmp_path / "Training", {"blue": 3, "red": 3})
    draw_classes(tmp_path / "Val", {"blue": 1, "red": 1})
    assert read(tmp_path).splits["val"].paths == ["Val/blue/000.png", "Val/red/000.png"]


def test_splits_without_classes_are_no_classes(tmp_path):
    draw_classes(tmp_path, {"blue": 3, "red": 3})
    (tmp_path / "blue").rename(tmp_path / "train")
    (tmp_path / "red").rename(tmp_path / "val")
    with pytest.raises(ValueError, match="has train and val, but without class folders in them"):
        read(tmp_path)


def test_one_image_per_class_is_too_few(tmp_path):
    draw_classes(tmp_path, {"blue": 1, "red": 1})
    with pytest.raises(ValueError, match="too few images per class"):
        read(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    draw_classes(tmp_path, {"blue": 4, "red": 4})
    (tmp_path / "blue").rename(tmp_path / "train")
    assert read(tmp_path, 0.5).class_names == ["red", "train"]


def test_hidden_folders_and_other_files_are_not_taken(tmp_path):
    draw_classes(tmp_path, {"blue": 4, "red": 4})
    (tmp_path / ".ipynb_checkpoints").mkdir()
    hidden = tmp_path / "red" / ".thumbnails"
    hidden.mkdir()
    (hidden / "a.png").touch()
    for name in ("stray.psd", "notes.txt", "._000.png"):
        (tmp_path / "red" / name).touch()
    nested = tmp_path / "red" / "more"
    nested.mkdir()
    (tmp_path / "red" / "000.png").rename(nested / "UPPER.PNG")
    tree = read(tmp_path, 0.25)
    assert tree.class_names == ["blue", "red"]
    assert sorted(tree.ignored) == ["red/._000.png", "red/notes.txt", "red/stray.psd"]
    taken = [*tree.splits["train"].paths, *tree.splits["val"].paths]
    assert len(taken) == 8
    assert "red/more/UPPER.PNG" in taken


def test_what_lies_beside_the_classes_is_named(tmp_path):
    draw_classes(tmp_path / "train", {"blue": 4, "red": 4})
    draw_classes(tmp_path / "extra", {"blue": 1})
    for name in ("readme.txt", "train/stray.png"):
        (tmp_path / name).touch()
    tree = read(tmp_path, 0.25)
    assert sorted(tree.ignored) == ["readme.txt", "train/stray.png"]
    assert any("the folder extra" in text for text in tree.warnings)


def test_a_link_back_into_the_folder_is_walked_once(tmp_path):
    draw_classes(tmp_path, {"blue": 4, "red": 4})
    (tmp_path / "red" / "loop").symlink_to(tmp_path / "red")
    tree = read(tmp_path, 0.25)
    assert len(tree.splits["train"]) + len(tree.splits["val"]) == 8


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "no class folders"),
        ({"red": 3}, "only one class folder"),
        ({"red": 3, "blue": 0}, "blue has no images"),
    ],
)
def test_what_is_no_data_is_said(tmp_path, folders, message):
    draw_classes(tmp_path / "data", folders) if folders else (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "data")


def test_images_without_class_folders_get_a_hint(tmp_path):
    draw_classes(tmp_path / "drawn", {"red": 1})
    with pytest.raises(ValueError, match="a folder of their own"):
        read(tmp_path / "drawn" / "red")


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_two_spellings_of_an_accent_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    draw_classes(tmp_path / "train", {}).mkdir(parents=True, exist_ok=True)
    for split, name in (("train", composed), ("val", decomposed)):
        photos = draw_classes(tmp_path / f"{split}_all", {"blue": 3, "red": 3})
        (photos / "red").rename(photos / name)
        shutil.copytree(photos, tmp_path / split, dirs_exist_ok=True)
    sets = read_tree(tmp_path, 0.1, 0)
    assert sets.class_names == ["blue", composed]
    assert len(sets.splits["val"]) == 6
    assert sets.splits["val"].read(5).shape[0] == 3  # from the folder as it is called
    shutil.copytree(tmp_path / "val" / decomposed, tmp_path / "train" / decomposed)
    with pytest.raises(ValueError, match="twice: 'caf"):
        read_tree(tmp_path, 0.1, 0)


def test_names_that_nearly_fit_are_shown_with_what_was_meant(tmp_path):
    for split in ("train", "val"):
        draw_classes(tmp_path / split, {"blue": 3, "red": 3})
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "Red ")
    with pytest.raises(ValueError, match="Did you mean 'red' for 'Red '"):
        read_tree(tmp_path, 0.1, 0)

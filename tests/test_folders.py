import shutil
import unicodedata
from pathlib import Path

import pytest
from helpers import draw_classes

from imago.data.folder_images import FolderImages
from imago.data.folders import read_tree
from imago.data.images import class_counts
from imago.data.val_split import draw_sides


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
    assert 4 <= counts["red"] <= 12
    assert 1 <= counts["blue"] <= 8
    assert not set(tree.splits["train"].paths) & set(tree.splits["val"].paths)
    drawn = len(tree.splits["val"])
    assert (
        f"{drawn} of the 64 train images ({drawn / 64:.0%}) were drawn as the val split (data.val_ratio=0.2"
        in tree.notes[0]
    )
    assert read(tmp_path, 0.2).fingerprint() == tree.fingerprint()
    assert read(tmp_path, 0.2, seed=1).fingerprint() != tree.fingerprint()


def images_of(counts: list[int], shift: int = 0) -> FolderImages:
    """Images without files: `counts` of each class, numbered from `shift` on."""
    numbered = [(f"class{label}/{shift + n}.png", label) for label, count in enumerate(counts) for n in range(count)]
    return FolderImages(Path(), [path for path, _ in numbered], [label for _, label in numbered])


def drawn(images: FolderImages, val_ratio: float, seed: int) -> dict[str, list[int]]:
    return draw_sides(images.paths, images.labels, {"val": val_ratio}, seed)


def sides_of(images: FolderImages, shares: dict[str, float], seed: int) -> dict[str, str]:
    sides = dict.fromkeys(images.paths, "train")
    for name, indices in draw_sides(images.paths, images.labels, shares, seed).items():
        sides |= {images.paths[index]: name for index in indices}
    return sides


@pytest.mark.parametrize("shares", [{"val": 0.1}, {"test": 0.2, "val": 0.15}])
def test_images_that_are_added_later_move_no_other_one(shares):
    for seed in range(100):
        few, many = (sides_of(images_of([size, 3 * size, 40]), shares, seed) for size in (60, 100))
        assert {path: many[path] for path in few} == few
        for name, share in shares.items():
            assert list(many.values()).count(name) / len(many) == pytest.approx(share, abs=0.06)


def test_a_drawn_split_has_at_most_half_of_a_class_and_about_its_share_of_small_ones():
    for seed in range(50):
        images = images_of([1, 2, 3, 4, 5])
        val = draw_sides(images.paths, images.labels, {"val": 0.5}, seed)["val"]
        counts = class_counts(images.select(val), list("abcde"))
        assert counts["a"] == 0
        assert all(count <= size // 2 for count, size in zip(counts.values(), (1, 2, 3, 4, 5), strict=True))
        assert len(drawn(images_of([2] * 30), 0.1, seed)["val"]) <= 16
        of_each = class_counts(ten := images_of([10] * 5), list("abcde"))
        counted = class_counts(ten.select(drawn(ten, 0.1, seed)["val"]), list("abcde"))
        assert all(counted[name] >= 1 for name in of_each)
        assert len(drawn(images_of([3, 3]), 0.1, seed)["val"]) >= 2


def test_a_class_of_one_image_stays_in_train():
    assert drawn(images_of([1, 2]), 0.5, seed=0)["val"] in ([1], [2])


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
    assert any("the folder extra" in note for note in tree.notes)


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

import os
import time

import pytest
from omegaconf import OmegaConf

from imago.data.crops import CenterBox
from imago.data.digits import write_digits
from imago.data.image_folder import ImageFolderDataModule
from imago.data.images import class_counts
from imago.data.transforms import ImageTransform, Normalize

TRANSFORM = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize([0.5] * 3, [0.5] * 3)})


def module(data_dir, **options) -> ImageFolderDataModule:
    options = {"image_size": 16, "batch_size": 8, "num_workers": 0, "seed": 0} | options
    return ImageFolderDataModule(TRANSFORM, TRANSFORM, str(data_dir), **options)


def snapshot(root) -> dict:
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(root.rglob("*"))}


@pytest.mark.quick
def test_it_works_in_a_notebook(colours):
    data = module(colours)
    assert data.class_names == ["blue", "green", "red"]
    assert data.sizes == {"train": 39, "val": 15}
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (8, 3, 16, 16)
    assert -1 <= batch["image"].min() < 0 < batch["image"].max() <= 1


def test_val_stands_in_for_a_missing_test_and_says_so(colours):
    data = module(colours)
    assert data.scored_split("test") == "val"
    assert data.split("test") == data.split("val")
    assert any("val split is scored as test" in text for text in data.warnings)


def test_evaluation_goes_through_a_split_in_order(colours):
    data = module(colours)
    indices = [int(i) for batch in data.eval_dataloader("train") for i in batch["index"]]
    assert indices == list(range(39))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be auto or a whole number \\(1 or more\\), got 0"),
        ({"image_size": 0}, "data.image_size must be"),
        ({"num_workers": -1}, "data.num_workers must be"),
        ({"on_bad_image": "maybe"}, "data.on_bad_image must be error or skip, got maybe"),
    ],
)
def test_options_out_of_range_are_refused(colours, options, message):
    with pytest.raises(ValueError, match=message):
        module(colours, **options)


def test_skip_leaves_bad_images_out_counts_and_names_them(own_colours, tmp_path):
    (own_colours / "train" / "red" / "003.png").write_bytes(b"")
    (own_colours / "val" / "blue" / "000.png").write_text("no image")
    before = snapshot(own_colours)
    data = module(own_colours, on_bad_image="skip", cache_dir=str(tmp_path / "cache"))
    assert data.sizes == {"train": 38, "val": 14}
    assert class_counts(data.split("train"), data.class_names) == {"blue": 14, "green": 12, "red": 12}
    assert any("skipped 2 files" in text and "red/003.png" in text for text in data.warnings)
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 38
    assert snapshot(own_colours) == before


def test_a_link_that_leads_nowhere_is_skipped(own_colours, tmp_path):
    (own_colours / "train" / "red" / "broken.png").symlink_to(own_colours / "nowhere.png")
    data = module(own_colours, on_bad_image="skip", cache_dir=str(tmp_path / "cache"))
    assert data.sizes["train"] == 39
    assert "broken.png: no such file" in data.skipped[0]


def test_skip_remembers_what_it_found_until_a_file_changes(own_colours, tmp_path, monkeypatch):
    broken = own_colours / "train" / "red" / "003.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    options = {"on_bad_image": "skip", "cache_dir": str(tmp_path / "cache")}
    assert module(own_colours, **options).sizes["train"] == 38
    with monkeypatch.context() as patch:
        patch.setattr("imago.data.folder_images.read_image", lambda path: pytest.fail(f"decoded {path} again"))
        assert module(own_colours, **options).sizes["train"] == 38
    broken.write_bytes(whole)
    os.utime(broken, (time.time(), time.time() + 5))
    assert module(own_colours, **options).sizes["train"] == 39


def test_skip_refuses_a_class_that_has_no_readable_image(own_colours, tmp_path):
    for path in (own_colours / "train" / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="No readable image of red is left in the train split"):
        module(own_colours, on_bad_image="skip", cache_dir=str(tmp_path))


def test_the_digits_are_written_once_and_whole(tmp_path):
    folder = write_digits(str(tmp_path))
    before = snapshot(folder)
    assert write_digits(str(tmp_path)) == folder
    assert snapshot(folder) == before
    data = module(folder)
    assert data.sizes == {"train": 1257, "val": 270, "test": 270}
    shares = [count / 270 for count in class_counts(data.split("test"), data.class_names).values()]
    assert all(0.09 < share < 0.11 for share in shares)


def test_digits_that_were_half_written_are_written_again(tmp_path):
    half = tmp_path / ".digits.tmp" / "train" / "0"
    half.mkdir(parents=True)
    assert len(list(write_digits(str(tmp_path)).rglob("*.png"))) == 1797
    assert not (tmp_path / ".digits.tmp").exists()


def test_a_data_folder_stays_as_it_is_through_a_run(train, own_colours):
    before = snapshot(own_colours)
    run = train(f"data.data_dir={own_colours}")
    assert run.exit_code == 0
    assert snapshot(own_colours) == before


def test_data_dir_alone_selects_a_tree_whatever_the_group(train, colours):
    run = train("data=digits", f"data.data_dir={colours}", "data.image_size=16")
    assert OmegaConf.load(run.dir / "config.yaml").data.data_dir == str(colours)
    assert list(run.json("reports/metrics_test.json")["per_class"]) == ["blue", "green", "red"]

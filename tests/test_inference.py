"""ml-inference and ml-export."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPO, SMALL, damaged_jpeg, draw_classes, photograph, type_command, write_mnist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import imago
from imago.data.decode import read_image
from imago.model.networks import TinyNet

NAMES = ("blue", "green", "red")


@pytest.fixture
def infer(command, trained):
    def run_it(*overrides: str, ckpt_path=trained.dir):
        return command("inference", f"ckpt_path={ckpt_path}", *overrides)

    return run_it


def rows(run, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (run.dir / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(run, name: str = "predictions.csv") -> np.ndarray:
    return np.array([[float(row[f"prob_{name}"]) for name in NAMES] for row in rows(run, name)])


@pytest.mark.quick
def test_a_split_of_the_runs_data_is_predicted_as_it_was_scored(infer, trained):
    run = infer("split=[val,train]")
    assert run.exit_code == 0, run.output
    for split in ("val", "train"):
        assert run.text(f"predictions_{split}.csv") == trained.text(f"reports/predictions_{split}.csv")
    assert f"Written: {run.dir}/predictions_train.csv" in run.output
    assert "The first 10 of 39 predictions of train" in run.output
    assert run.output.count(f"Written: {run.dir}/report.html") == 1
    assert "Configuration" not in run.text("summary.txt")
    assert "\x1b" not in run.output


@pytest.fixture
def photos(tmp_path) -> Path:
    """Labelled by folders, with one unknown folder and files that are none of ours."""
    root = draw_classes(tmp_path / "photos" / "deep", {"blue": 2, "red": 3}, seed=5).parent
    (root / "unknown").mkdir()
    shutil.copy(root / "deep" / "red" / "000.png", root / "unknown" / "x.png")
    (root / "notes.txt").write_text("none")
    (root / ".hidden.png").write_text("none")
    return root


def test_a_folder_is_walked_and_labelled_where_folders_are_classes(infer, photos):
    run = infer(f"source={photos}", "rows=3")
    assert run.exit_code == 0, run.output
    found = rows(run)
    assert [row["path"] for row in found] == [
        *(f"deep/blue/00{i}.png" for i in range(2)),
        *(f"deep/red/00{i}.png" for i in range(3)),
        "unknown/x.png",
    ]
    assert [row["label"] for row in found] == ["blue"] * 2 + ["red"] * 3 + [""]
    first = ["index", "path", "label", "prediction", "correct", "loss", "probability"]
    assert list(found[0]) == [*first, *(f"prob_{n}" for n in NAMES), "warning", "error"]
    assert found[0]["probability"] == found[0][f"prob_{found[0]['prediction']}"]
    assert found[5]["correct"] == found[5]["loss"] == ""
    assert found[5]["prob_red"] == found[2]["prob_red"]
    right = np.mean([row["label"] == row["prediction"] for row in found[:5]])
    assert f"accuracy {right:.4f}" in run.output
    assert "The first 3 of 6" in run.output


def test_files_globs_and_lists(infer, photos, tmp_path):
    one = infer(f"source={photos}/deep/red/000.png")
    assert [row["path"] for row in rows(one)] == ["000.png"]
    several = infer(f"source='{photos}/**/00*.png'")
    assert len(rows(several)) == 5
    (tmp_path / "list.txt").write_text("photos/deep/red/000.png\n\nphotos/unknown/x.png\n")
    assert len(rows(infer(f"source={tmp_path}/list.txt"))) == 2
    (tmp_path / "list.csv").write_text("label,path\nred,photos/deep/red/000.png\nzebra,photos/unknown/x.png\n")
    from_csv = infer(f"source={tmp_path}/list.csv", "format=jsonl")
    lines = [json.loads(line) for line in from_csv.text("predictions.jsonl").splitlines()]
    assert [line["label"] for line in lines] == ["red", None]
    assert lines[0]["prob_red"] == pytest.approx(float(rows(one)[0]["prob_red"]), abs=1e-6)
    both = infer(f"source=[{photos}/deep/red/000.png,{photos}/deep/blue]")
    one, *others = (row["path"] for row in rows(both))
    assert (one, len(others)) == (f"{photos}/deep/red/000.png", 2)  # whole paths: two sources may have equal names


def test_a_bad_file_is_a_row_with_its_error_and_an_exit_status(infer, photos):
    (photos / "deep" / "red" / "bad.png").write_bytes(b"")
    (photos / "deep" / "red" / "damaged.jpg").write_bytes(damaged_jpeg())
    truncated = photos / "deep" / "red" / "truncated.jpg"
    photograph(1).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-200])
    run = infer(f"source={photos}")
    assert run.exit_code == 1
    assert "2 images could not be read. All others were predicted" in run.output
    assert run.json("status.json")["status"] == "completed"  # it has done its work, and says what is missing
    assert "bad.png: the file is empty" in run.error
    assert "bad.png" in run.text("summary.txt")
    found = {row["path"]: row for row in rows(run)}
    assert len(found) == 9
    warnings = {path: row["warning"] for path, row in found.items() if row["warning"]}
    assert list(warnings) == ["deep/red/damaged.jpg"]
    assert warnings["deep/red/damaged.jpg"].startswith("damaged inside, and read with wrong pixels: ")
    assert found["deep/red/damaged.jpg"]["prediction"]
    assert "truncated" in found["deep/red/truncated.jpg"]["error"]
    assert "truncated.jpg is damaged inside" not in run.output  # an error says enough
    assert "the file is empty" in found["deep/red/bad.png"]["error"]
    assert found["deep/red/bad.png"]["prediction"] == found["deep/red/bad.png"]["prob_red"] == ""
    assert found["deep/red/000.png"]["error"] == ""
    skipped = infer(f"source={photos}", "data.on_bad_image=skip", "data.num_workers=2")
    assert skipped.exit_code == 0, skipped.output
    assert skipped.text("predictions.csv") == run.text("predictions.csv")
    assert "bad.png" in skipped.text("summary.txt")
    assert "The exit status is 0 because of data.on_bad_image=skip" in skipped.output


def test_processes_and_precision_give_the_same_rows(infer, photos):
    one = infer(f"source={photos}", "data.batch_size=2", "trainer.precision=bf16-mixed")
    two = infer(f"source={photos}", "data.batch_size=2", "trainer=ddp_sim", "trainer.precision=bf16-mixed")
    assert (one.exit_code, two.exit_code) == (0, 0), two.output
    assert one.text("predictions.csv") == two.text("predictions.csv")
    plain = infer(f"source={photos}", "data.batch_size=2")
    assert [row["path"] for row in rows(plain)] == [row["path"] for row in rows(one)]
    assert probabilities(plain) == pytest.approx(probabilities(one), abs=0.02)


def test_flips_and_crops_are_means_over_views(infer, photos, tmp_path):
    """Those of images that were mirrored and cut out by hand."""
    image = Image.open(photos / "deep" / "red" / "002.png")
    alone = tmp_path / "views"
    alone.mkdir()
    image.save(alone / "0.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(alone / "1.png")
    share = ["data.eval_transform.box.share=1.0"]
    both = probabilities(infer(f"source={alone}", *share))
    flipped = probabilities(infer(f"source={alone}/0.png", "tta=flip", *share))
    assert flipped[0] == pytest.approx(both.mean(axis=0), abs=1e-6)
    side = round(0.875 * min(image.size))
    width, height = image.size
    corners = [(0, 0), (width - side, 0), (0, height - side), (width - side, height - side)]
    for number, (left, top) in enumerate(corners, 2):
        image.crop((left, top, left + side, top + side)).save(alone / f"{number}.png")
    (alone / "1.png").unlink()
    seen = probabilities(infer(f"source={alone}", *share))
    assert probabilities(infer(f"source={alone}/0.png", "tta=five_crop", *share))[0] == pytest.approx(
        seen.mean(axis=0), abs=1e-6
    )
    by_one = probabilities(infer(f"source={photos}", "tta=ten_crop", "data.batch_size=1"))
    by_four = probabilities(infer(f"source={photos}", "tta=ten_crop", "data.batch_size=4"))
    assert by_one == pytest.approx(by_four, abs=1e-6)


@pytest.fixture(scope="session")
def other(tmp_path_factory, colours, data_dir):
    """A second run, of another network and image size."""
    folder = tmp_path_factory.mktemp("other")
    words = [f"data.data_dir={colours}", *SMALL, "model=simple_cnn", "data.image_size=24", "test=false"]
    return type_command("train", [*words, f"paths.log_dir={folder}/logs", f"paths.data_dir={data_dir}"], folder / "run")


def test_an_ensemble_is_the_mean_of_its_members(infer, trained, other, photos):
    a, b = (probabilities(infer(f"source={photos}", ckpt_path=run.dir)) for run in (trained, other))
    even = probabilities(infer(f"source={photos}", ckpt_path=f"[{trained.dir},{other.dir}]"))
    assert even == pytest.approx((a + b) / 2, abs=1e-9)
    weighted = infer(f"source={photos}", "weights=[3,1]", "tta=flip", ckpt_path=f"[{trained.dir},{other.dir}]")
    fa, fb = (probabilities(infer(f"source={photos}", "tta=flip", ckpt_path=run.dir)) for run in (trained, other))
    assert probabilities(weighted) == pytest.approx((3 * fa + fb) / 4, abs=1e-9)


def test_members_have_to_know_the_same_classes(infer, train, trained, own_colours):
    for split in ("train", "val"):
        (own_colours / split / "red").rename(own_colours / split / "rust")
    run = train(f"data.data_dir={own_colours}", "trainer.max_epochs=1", "test=false")
    refused = infer("split=val", ckpt_path=f"[{trained.dir},{run.dir}]")
    assert refused.exit_code == 1
    assert "blue, green, red" in refused.output
    assert "blue, green, rust" in refused.output


def test_calibrated_answers_are_given_or_left_to_a_person(infer, command, trained, tmp_path, photos):
    copy = shutil.copytree(trained.dir, tmp_path / "copy")
    assert "There is no calibration" in infer(f"source={photos}", "calibrated=true", ckpt_path=copy).output
    command("eval", f"ckpt_path={copy}", "calibrate=true", "target_accuracy=0.95", "coverage=0.8")
    file = copy / "checkpoints" / "best.calibration.json"
    files = sorted(photos.rglob("[!.]*.png"))
    flat = np.array([list(each.probabilities.values()) for each in imago.load_classifier(copy).predict(files)]) ** 0.5
    best = np.sort((flat / flat.sum(axis=1, keepdims=True)).max(axis=1))
    told = {"temperature": 2.0, "threshold": best[2:4].mean(), "set_thresholds": [0.1, 0.2, 0.3], "why_not": None}
    told = json.loads(file.read_text()) | told  # val has too few mistakes to fit a temperature
    file.write_text(json.dumps(told))
    run = infer(f"source={photos}", "calibrated=true", ckpt_path=copy)
    assert run.exit_code == 0, run.output
    for row, p in zip(rows(run), probabilities(run), strict=True):
        assert row["accepted"] == str(int(told["threshold"] is not None and p.max() >= told["threshold"]))
        expected = {
            n for n, x in zip(NAMES, p, strict=True) if x >= told["set_thresholds"][NAMES.index(n)] or x == p.max()
        }
        assert set(row["set"].split(" | ")) == expected
    otherwise = infer(f"source={photos}", "calibrated=true", "data.image_size=20", ckpt_path=copy)
    assert "with another transform" in otherwise.output
    plain = probabilities(infer(f"source={photos}", ckpt_path=copy))
    scaled = plain ** (1 / told["temperature"])
    assert probabilities(run) == pytest.approx(scaled / scaled.sum(axis=1, keepdims=True))
    assert "flagged for review" in run.output
    assert files == [photos / row["path"] for row in rows(run)]
    predictions = imago.load_classifier(copy, calibrated=True).predict(files, batch_size=8)
    for row, prediction in zip(rows(run), predictions, strict=True):
        assert row["prediction"] == prediction.class_name
        assert {name: float(row[f"prob_{name}"]) for name in NAMES} == prediction.probabilities
        assert (int(row["accepted"]), row["set"].split(" | ")) == (prediction.accepted, prediction.set)
    assert {prediction.accepted for prediction in predictions} == {True, False}
    export = tmp_path / "server.safetensors"
    assert command("export", f"ckpt_path={copy}", f"output={export}").exit_code == 0
    assert imago.load_classifier(export, calibrated=True).predict(files, batch_size=8) == predictions
    with pytest.raises(ValueError, match="There is no calibration"):
        imago.load_classifier(copy / "checkpoints" / "last.ckpt", calibrated=True)


def test_the_contact_sheet_shows_the_images(infer, photos):
    run = infer(f"source={photos}", "gallery=true")
    with Image.open(run.dir / "gallery.png") as sheet:
        assert sheet.width > 800
        colours = sheet.convert("RGB").getcolors(10**6)
    assert sum(count for count, (r, g, b) in colours if r > 160 and g < 100 and b < 100) > 1000  # red images
    assert len(colours) > 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source=/nowhere"], "source=/nowhere does not exist. Type an image, a folder, a glob"),
        (["source=EMPTY"], "has no images (.jpg"),
        (["source=EMPTY/*.png"], "matches no images"),
        (["source=https://example.org/a.jpg"], "is a URL. Download the file first"),
        (["source=EMPTY/table.csv"], "has no column path; it has a, b"),
        (["source=EMPTY/named.csv"], "has no column path; it has Filename. Rename the column Filename to path."),
        (["source=/dev/null"], "is a device or a pipe, from which nothing is read"),
        (["source=-"], "one per line: source=list.txt"),
        (["source=a.jpg,b.jpg"], "Type 'source=[a.jpg,b.jpg]'"),
        (["source=A", "output=out.csv"], "Type hydra.run.dir=out. This is a folder, and predictions.csv is written"),
        (["source=A", "output=out.json"], "Type hydra.run.dir=out format=jsonl."),
        (["source=A", "threshold=0.6"], "Type calibrated=true"),
        (["source=A", "topk=5"], "In Python, predict takes top=5"),
        (["input=a.jpg"], "Type source=a.jpg"),
        (["source=A", "split=val"], "type only one of them"),
        (["tta=twice"], "tta must be none, flip, five_crop or ten_crop, got twice"),
        (["tta=hflip"], "got hflip. Type tta=flip"),
        (["format=json"], "Type format=jsonl"),
        (["format=xml"], "format must be csv or jsonl, got xml"),
        (["weights=[1,2]"], "must be one per checkpoint"),
        (["source=EMPTY/gaps.csv"], "row 2 does not name an image"),
        (["trainer.limit_predict_batches=1"], "predicts every image"),
        (["ckpt_path=[A,A]", "weights=[1,true]"], "not all 0"),
        (["rows=-1"], "rows must be 0 or more, got -1"),
        (["calibrated=true", "tta=flip"], "does not apply to test-time augmentation"),
        (["ckpt_path=[A,A]", "data.image_size=8"], "set their own networks and image sizes"),
        (["ckpt_path=[A,A]", "weights=[0,0]"], "not all 0"),
        (["ckpt_path=[A,A]", "calibrated=true"], "calibrated=true works with one checkpoint only"),
        (["split=nothing"], "Unknown split nothing"),
        (["split=validation"], "Did you mean val?"),
    ],
)
def test_what_cannot_be_predicted_is_said(command, trained, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty" / "named.csv").write_text("Filename\na.png\n")
    (tmp_path / "empty" / "gaps.csv").write_text("path,label\na.png,blue\n,red\n")
    words = [word.replace("EMPTY", f"{tmp_path}/empty").replace("A", str(trained.dir)) for word in words]
    checkpoint = [] if words[0].startswith("ckpt_path") else [f"ckpt_path={trained.dir}"]
    run = command("inference", *checkpoint, *words)
    assert run.exit_code == 1
    assert message in run.output
    assert "Traceback" not in run.output


def test_a_val_split_that_was_drawn_otherwise_is_refused(train, infer, colours):
    run = train(f"data.data_dir={colours}/train", "trainer.max_epochs=1", "test=false")
    refused = infer("split=val", "seed=1", ckpt_path=run.dir)
    assert refused.exit_code == 1
    assert "has seen images of this one" in refused.output


def test_grey_networks_see_grey_images(command, tmp_path, photos):
    write_mnist(tmp_path / "sets")
    words = ["data=mnist", "model=mnist", f"data.data_dir={tmp_path}/sets", "trainer.max_epochs=1", "logger=[]"]
    run = command("train", *words, "test=false", "trainer.accelerator=cpu")
    assert run.exit_code == 0, run.output
    found = command("inference", f"ckpt_path={run.dir}", f"source={photos}")
    assert found.exit_code == 0, found.output
    assert len(rows(found)) == 6


@pytest.mark.quick
def test_exported_weights_stand_alone(command, trained, tmp_path, monkeypatch):
    run = command("export", f"ckpt_path={trained.dir}")
    assert run.exit_code == 0, run.output
    path = run.dir / "model_only.safetensors"
    assert path.stat().st_mode == (run.dir / "summary.txt").stat().st_mode
    net = TinyNet(3)
    net.load_state_dict(load_file(path))
    for name, tensor in trained.weights("best").items():
        if name.startswith("net."):
            assert torch.equal(net.state_dict()[name.removeprefix("net.")], tensor)
    with safe_open(path, "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
    assert told["class_names"] == list(NAMES)
    assert told["image_size"] == 16
    assert told["normalisation"]["mean"] == [0.485, 0.456, 0.406]
    assert told["network"]["_target_"] == "imago.model.TinyNet"
    assert "must be a file that ends in" in command("export", f"ckpt_path={trained.dir}", "output=x.pt").output
    assert f"Replaced: {path}" in command("export", f"ckpt_path={trained.dir}", f"output={path}").output
    refused = command("eval", f"ckpt_path={path}")
    assert f"type ml-inference ckpt_path={path} source=PHOTOS" in refused.output
    assert f"type model.init_from={path}" in refused.output
    assert refused.exit_code == 1
    _the_code_of_the_docs_gives_the_same(path, trained.dir, tmp_path, monkeypatch)


def _the_code_of_the_docs_gives_the_same(export, run, folder, monkeypatch) -> None:
    """That of docs/inference.md for a server without Imago."""
    code = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "inference.md").read_text(), re.DOTALL)[-1]
    photos = draw_classes(folder / "PHOTOS", {"red": 5})
    photograph(3, 131).crop((0, 0, 131, 96)).save(photos / "red" / "wide.png")
    exif = Image.Exif()
    exif[274] = 6  # orientation
    photograph(4, 90).crop((0, 0, 45, 90)).save(photos / "red" / "turned.jpg", exif=exif)
    shutil.copy(export, folder / "model_only.safetensors")
    monkeypatch.chdir(folder)
    server: dict = {"TinyNet": TinyNet}
    exec(code.replace("torchvision.models.resnet18(num_classes=len(", "TinyNet(num_classes=len("), server)
    classifier = imago.load_classifier(run)
    for file in sorted(photos.rglob("*.*")):
        ours = classifier.transform([read_image(file)], classifier.image_size)["image"][0]
        theirs = server["preprocess"](str(file))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6), file
    expected = list(classifier.predict(photos / "red" / "000.png").probabilities.values())
    assert server["probabilities"].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_export_predicts_as_its_checkpoint_does(command, infer, trained, photos, tmp_path):
    """To the bit, and it tells nothing of the data."""
    export = tmp_path / "server" / "red.safetensors"
    assert command("export", f"ckpt_path={trained.dir}", f"output={export}").exit_code == 0
    files = sorted(photos.rglob("[!.]*.png"))
    predictions = imago.load_classifier(export).predict(files)
    assert predictions == imago.load_classifier(trained.dir).predict(files)
    with safe_open(export, "pt") as file:
        text = json.dumps(file.metadata())
    for secret in (str(trained.dir), str(tmp_path), trained.checkpoint("best")["imago"]["data"]["fingerprint"]):
        assert secret not in text
    run = infer(f"source={photos}", ckpt_path=export.parent)  # its folder will do
    assert run.exit_code == 0, run.output
    assert [list(each.probabilities.values()) for each in predictions] == probabilities(run).tolist()
    refused = infer("split=val", ckpt_path=export)
    assert (refused.exit_code, "is an export, which does not say where its data are" in refused.output) == (1, True)
    with pytest.raises(ValueError, match=r"There is no calibration in .*red\.safetensors"):
        imago.load_classifier(export, calibrated=True)


def test_exports_of_strangers_execute_nothing(command, trained, tmp_path, monkeypatch):
    export, changed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert command("export", f"ckpt_path={trained.dir}", f"output={export}").exit_code == 0
    weights = load_file(export)
    with safe_open(export, "pt") as file:
        metadata = file.metadata()
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("it was executed"))

    def refusal(**entries: str) -> str:
        kept = metadata | {"sha256": ""} | entries
        save_file(weights, changed, {key: value for key, value in kept.items() if value})
        with pytest.raises(ValueError) as error:  # noqa: PT011
            imago.load_classifier(changed)
        return str(error.value)

    entry = json.loads(metadata["imago"])
    evil = entry["config"].replace("imago.model.TinyNet", "os.system")
    assert "os.system (model.net), which is not on the allow-list" in refusal(
        imago=json.dumps(entry | {"config": evil})
    )
    assert "its class names are not a list" in refusal(class_names='"ant"')
    assert "has control characters" in refusal(class_names='["a\\u001b[2J", "b", "c"]')
    assert "its metadata are not JSON" in refusal(imago="{")
    assert "has no config" in refusal(imago="[]")
    assert "its config is not text" in refusal(imago=json.dumps(entry | {"config": None}))
    assert "install a newer one" in refusal(imago=json.dumps(entry | {"schema": 99}))
    assert "contains weights only" in refusal(imago="")
    assert "does not fit the network" in refusal(class_names='["a", "b", "c", "d"]')
    changed.write_bytes(export.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is damaged, or not a safetensors file"):
        imago.load_classifier(changed)
    for place, bit in ((-3, 1), (export.read_bytes().index(b"blue"), 2)):
        content = bytearray(export.read_bytes())
        content[place] ^= bit
        changed.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: its sha256 is another. Copy it again"):
            imago.load_classifier(changed)
    broken = torch.load(trained.dir / "checkpoints/best.ckpt", weights_only=True)
    broken["state_dict"]["net.head.weight"][0, 0] = float("nan")
    torch.save(broken, tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match="has weights that are no finite numbers: net.head.weight. Whatever"):
        imago.load_classifier(tmp_path / "broken.ckpt")
    with pytest.raises(ValueError, match=r"loaded with imago.load_classifier\('RUN'\)"):
        imago.Classifier("RUN")


def test_exported_weights_can_be_trained_on(train, command, tmp_path):
    words = [
        "model=resnet18",
        "model.net.name=mobilenet_v3_small",
        "data.image_size=32",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "test=false",
    ]
    run = train(*words, "model.net.weights=null")
    exported = command("export", f"ckpt_path={run.dir}", f"output={tmp_path}/own.safetensors")
    assert exported.exit_code == 0, exported.output
    again = train(*words, f"model.net.weights={tmp_path}/own.safetensors")
    assert again.exit_code == 0, again.output
    classifier = imago.load_classifier(tmp_path / "own.safetensors")
    assert repr(classifier).startswith("Classifier(mobilenet_v3_small, 3 classes")
    assert classifier.predict(photograph(1)) == imago.load_classifier(run.dir).predict(photograph(1))


def test_an_image_has_the_label_that_training_would_give_it(tmp_path, trained, command):
    """Folders below a class may be called like another one: patients, days, grades."""
    photos = draw_classes(tmp_path / "photos" / "test", {"red": 4, "blue": 4})
    for name in ("red", "blue"):
        (photos / name / "green").mkdir()
        for file in photos.joinpath(name).glob("*.png"):
            file.rename(photos / name / "green" / file.name)
    run = command("inference", f"ckpt_path={trained.dir}", f"source={tmp_path}/photos")
    assert run.exit_code == 0, run.output
    assert {(row["path"].split("/")[1], row["label"]) for row in rows(run)} == {("red", "red"), ("blue", "blue")}


def test_what_is_not_taken_and_labels_that_are_no_class_are_said(tmp_path, trained, command):
    photos = draw_classes(tmp_path / "photos", {"red": 2})
    (photos / "red" / "000.png").rename(photos / "red" / "0.heic")
    Image.open(photos / "red" / "001.png").save(photos / "red" / "1.jfif", "JPEG")
    run = command("inference", f"ckpt_path={trained.dir}", f"source={photos}")
    assert "skipped 1 file (a format that is not read: convert to JPEG or PNG): red/0.heic" in run.output
    assert [row["path"] for row in rows(run)] == ["red/001.png", "red/1.jfif"]
    (photos / "list.csv").write_bytes("\ufeffpath,label\r\nred/001.png, red\r\nred/1.jfif,Rouge\r\n".encode())
    run = command("inference", f"ckpt_path={trained.dir}", f"source={photos}/list.csv")
    assert [row["label"] for row in rows(run)] == ["red", ""]
    assert "list.csv: 'Rouge': not a class of the checkpoint, whose classes are blue, green, red" in run.output
    assert "of the 1 image with a label that is a class" in run.output

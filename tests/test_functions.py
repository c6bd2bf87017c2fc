"""What Python may call, and runs without data."""

import numpy as np
import pytest
import torch
from helpers import SMALL, draw_figure
from sklearn.metrics import accuracy_score

import imago
from imago.data.crops import CenterBox
from imago.data.image_folder import ImageFolderDataModule
from imago.data.transforms import ImageTransform, Normalize


def test_a_network_is_scored_on_a_data_module(trained, colours):
    normalize = Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    transform = ImageTransform(CenterBox(0.875), batch={"normalize": normalize})
    data = ImageFolderDataModule(transform, transform, str(colours), image_size=16, batch_size=8, num_workers=0)
    net = imago.load_classifier(trained.dir).model.net
    score = imago.evaluate(net, data)
    metrics = trained.json("reports/metrics_test.json")
    assert score.metrics["acc"] == metrics["acc"]
    assert score.metrics["cross_entropy"] == pytest.approx(metrics["cross_entropy"], abs=1e-6)
    assert score.split == "val"
    assert accuracy_score(score.labels, score.predictions) == metrics["acc"]
    for width in (2, 4):
        with pytest.raises(ValueError, match=f"{width} logits for 3 classes"):
            imago.evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, width)), data)
    with pytest.raises(ValueError, match=r"a tensor of shape \(1, 768\)|768 logits"):
        imago.evaluate(torch.nn.Flatten(), data)
    with pytest.raises(ValueError, match=r"a network \(a torch.nn.Module; of a classifier, classifier.model.net\)"):
        imago.evaluate(imago.load_classifier(trained.dir), data)


def test_figures_and_reports_from_labels_and_predictions():
    labels, predictions, names = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], ["a", "b", "c"]
    figure = imago.confusion_matrix(labels, predictions, names, "three")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "0", "0", "2", "0", "1", "0", "0"]
    text = imago.classification_report(labels, predictions, names)
    assert "0.6667" in text
    assert imago.classification_report(labels, predictions, names, as_dict=True)["accuracy"] == 0.6
    with pytest.raises(ValueError, match="one label and one prediction per image"):
        imago.confusion_matrix([0, 1], [0], names)
    with pytest.raises(ValueError, match="must be a list of different names"):
        imago.confusion_matrix([0], [0], ["a", "a"])
    with pytest.raises(ValueError, match="must be at least one label"):
        imago.confusion_matrix([], [], names)
    with pytest.raises(ValueError, match="labels must be indices of the 3 class names"):
        imago.classification_report(np.array([3]), np.array([0]), names)


def test_a_checkpoint_is_read(trained):
    checkpoint = imago.read_checkpoint(trained.dir / "checkpoints" / "best.ckpt")
    assert checkpoint["imago"]["class_names"] == ["blue", "green", "red"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        imago.read_checkpoint("nowhere.ckpt")
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'. It has BadImageError, "):
        imago.nothing  # noqa: B018


@pytest.mark.parametrize(
    "words",
    [
        ["debug=fdr"],
        ["trainer=ddp_sim", "trainer.limit_train_batches=2"],
        ["logger=csv", "trainer.limit_train_batches=2"],
    ],
)
def test_commands_without_data_use_the_digits(command, words):
    words = [*(word for word in SMALL if not word.startswith("logger")), *words, "trainer.max_epochs=1"]
    run = command("train", *words)
    assert run.exit_code == 0, run.output
    assert "No data was chosen: using the embedded digits. To use your own folder type data.data_dir=PATH" in run.output
    assert "10 classes" in run.output
    assert "digits" in run.text("config.yaml")


def test_pictures_have_200_dpi(train):
    from PIL import Image

    run = train("trainer.max_epochs=1", "plots.format=png")
    with Image.open(run.dir / "plots" / "confusion_matrix_test.png") as picture:
        assert round(picture.info["dpi"][0]) == 200
        assert picture.width > 1500
    refused = train("plots.format=[svg,gif]", "plots.title=no-title").output
    assert "plots.format must be png, svg or pdf, or a list of them" in refused
    assert "plots.title must be true or false, got no-title" in refused


def test_figures_for_a_paper(command, colours, monkeypatch):
    monkeypatch.setattr("helpers.save_figure", draw_figure)
    options = ("plots.format=[pdf,svg]", "plots.title=false")
    run = command("train", f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=1", *options)
    assert run.exit_code == 0, run.output
    stems = ("confusion_matrix_test", "curves", "reliability_test")
    files = {file.name for file in (run.dir / "plots").iterdir()}
    assert files == {f"{stem}.{form}" for stem in stems for form in ("pdf", "svg")}
    assert (run.dir / "plots/curves.pdf").read_bytes().startswith(b"%PDF")
    assert "</svg>" in run.text("plots/curves.svg")
    title = "<!-- test (scored on val) -->"  # Matplotlib's comment above the outlines of a text
    assert title not in run.text("plots/confusion_matrix_test.svg")
    with_title = command("visualise", "mode=predictions", f"run={run.dir}", "plots.format=svg")
    assert "<!-- test: the " in with_title.text("predictions.svg")
    without = command("visualise", "mode=predictions", f"run={run.dir}", *options)
    assert "<!-- test: the " not in without.text("predictions.svg")
    assert "predictions.pdf" in without.output
    assert "fontTools" not in run.output
    assert "pruned" not in run.output


def test_captions_of_pictures_are_true():
    from imago.evaluation.rows import captions
    from imago.evaluation.score import Predictions

    log_p = np.log(np.array([[0.503, 0.497], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5]]))
    labels, answers = np.array([0, 0, -1, 0]), np.array([0, 1, 0, 0])
    paths = ["far/away/bees/1.jpg", "bees/2.jpg", "3.jpg", "4.jpg"]
    shown = Predictions(["bees", "ants"], paths, labels, answers, log_p, ["", "", "", "broken"])
    assert captions(shown, [1, 0, 2, 3]) == [
        ("bees/2.jpg\nbees taken for ants 80.0%", False),
        ("bees/1.jpg\nbees, rightly 50.3%", True),
        ("3.jpg\nbees 90.0%", None),
        ("4.jpg\nunreadable", None),
    ]


def test_many_classes_have_a_compact_table():
    from imago.evaluation.rows import BEST, bytes_of_predictions, prediction_rows
    from imago.evaluation.score import Score

    names = [f"class{number:03d}" for number in range(150)]
    logits = np.random.default_rng(0).normal(size=(4, 150))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels, best = np.array([1, 2, 3, 4]), log_p.argmax(axis=1)
    score = Score("test", "test", names, [0, 1, 2, 3], list("abcd"), labels, best, log_p, 0.0, {})
    rows = list(prediction_rows(score))
    assert list(rows[0])[7:-2] == [f"class_{n}" for n in range(1, BEST + 1)] + [f"prob_{n}" for n in range(1, BEST + 1)]
    for row, values, label in zip(rows, log_p, labels, strict=True):
        assert row["class_1"] == row["prediction"]
        assert row["prob_1"] == pytest.approx(np.exp(values.max()))
        assert row["loss"] == pytest.approx(-values[label])
        assert row["prob_1"] >= row["prob_2"] >= row["prob_5"]
    assert bytes_of_predictions(1_281_167, [f"n{n:08d}" for n in range(1000)]) < 500e6

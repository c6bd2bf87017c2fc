"""The promise of accepted predictions: how often it is broken, when it cannot be made, and on which images it rests."""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SMALL, draw_classes, type_command
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from imago.checkpoint.fits import check_draw
from imago.data import ImageFolderDataModule, ImageSets, ImageTransform, WholeBox, divide
from imago.data.digests import file_digest
from imago.data.folder_images import FolderImages
from imago.data.split_files import read_rows
from imago.data.split_plan import SplitPlan
from imago.evaluation.calibration import Answers, Wanted, describe_looks, describe_threshold, fit
from imago.evaluation.calibration_file import write
from imago.evaluation.calibration_images import independent_images, note_on_earlier_runs
from imago.evaluation.conformal import set_thresholds, small_classes
from imago.evaluation.from_config import typed_looks
from imago.evaluation.promise import GRID, estimated_threshold, first_threshold, promised_threshold
from imago.report import page
from imago.terminal import percent_down, threshold_text

SPLITS, CONFIDENCE = 1000, 0.95
MOST_BROKEN = 72
"""Promises of 1,000 that a method which breaks 5% of them breaks more often with a probability of 1 in 1,000."""


def digits() -> Answers:
    """Predictions of a regression that has seen 150 of the digits, for the others."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    seen, others = order[:150], order[150:]
    model = LogisticRegression(max_iter=1000).fit(images[seen] / 16, labels[seen])
    return Answers(model.predict_log_proba(images[others] / 16), labels[others])


def drawn(spread: float, sharpness: float, noise: float, classes: int = 4) -> Answers:
    """Predictions that are `sharpness` times as sure as they should be; a fraction `noise` of the labels is wrong."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, spread, (20_000, classes))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) < generator.random((len(true), 1))).sum(axis=1).clip(0, classes - 1)
    labels = np.where(generator.random(len(labels)) < noise, generator.integers(0, classes, len(labels)), labels)
    logits = logits * sharpness
    return Answers(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), labels)


def wrong_where_sure() -> Answers:
    """Predictions of which the surest tenth is wrong more often than the others."""
    right, sure = drawn(6, 1, 0), np.zeros((2_000, 4))
    sure[:, 0] = 40
    return Answers(np.concatenate([right[0], sure - 40]), np.concatenate([right[1], np.arange(2_000) % 5 == 0]))


def test_a_32_bit_probability_can_be_compared_with_each_threshold():
    """Exported files return these; above 1 - 2**-25 all of them are 1."""
    assert all(np.float32(threshold) < 1 and np.float32(1 - 6e-8) >= threshold for threshold in GRID)
    assert estimated_threshold(np.log(np.array([[1 - 1e-12, 1e-12]] * 9)), np.zeros(9, int), 0.9) == GRID[0]


def sure_and_right(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    return np.exp(answers[0].max(axis=1)), answers[0].argmax(axis=1) == answers[1]


def some(answers: Answers, generator: np.random.Generator, n: int) -> Answers:
    chosen = generator.integers(0, len(answers.labels), n)
    return Answers(answers.log_probabilities[chosen], answers.labels[chosen])


@pytest.mark.parametrize(
    ("make", "n", "target", "made"),
    [
        (digits, 150, 0.95, 0.5),
        (partial(drawn, 6, 1, 0), 300, 0.95, 0.9),
        (wrong_where_sure, 500, 0.9, 0.3),
    ],
)
def test_of_1000_promises_at_most_a_twentieth_is_broken(make, n, target, made):
    """All images are the population, from which val and calibration are drawn, so that the true accuracy is known."""
    generator, wanted, answers = np.random.default_rng(0), (target, CONFIDENCE), make()
    sure, right = sure_and_right(answers)
    accuracy = {float(t): right[sure >= t].mean() for t in GRID if (sure >= t).any()}
    broken = promised = estimates_broken = 0
    for _ in range(SPLITS):
        val, calibration = some(answers, generator, n), some(answers, generator, n)
        promise = promised_threshold(*calibration, first_threshold(*val, n, *wanted), *wanted)
        promised += promise.threshold is not None
        broken += promise.threshold is not None and accuracy[promise.threshold] < target
        estimate = estimated_threshold(*val, target)
        estimates_broken += estimate is not None and right[sure >= estimate].mean() < target
    assert broken <= MOST_BROKEN
    assert promised >= made * SPLITS
    assert estimates_broken > 0.3 * SPLITS  # what counts mistakes on the images that set the threshold


@pytest.mark.parametrize(
    ("n", "wrong", "target", "words"),
    [
        (
            40,
            0,
            0.99,
            "99% accuracy cannot be promised with 40 images (confidence 95%): about 300 new ones would do. No",
        ),
        (298, 0, 0.99, "cannot be promised with 298 images (confidence 95%): about 300 new ones would do"),
        (299, 0, 0.99, "at least 99% of the accepted predictions are right, on new images like those of calibration."),
        (472, 1, 0.99, "cannot be promised with 472 images (confidence 95%): about 630 new ones would do"),
        (473, 1, 0.99, "of 473 images, 1 of the 473 accepted ones wrong"),
        (40, 20, 0.9, "20 of the 40 accepted ones wrong. Type a smaller target_accuracy. No prediction is accepted"),
    ],
)
def test_how_many_images_a_promise_needs_is_said(n, wrong, target, words):
    """By the limits of Clopper and Pearson: 0.99 ** 299 is below 0.05, 0.99 ** 298 is not."""
    logs, labels = np.log(np.tile([0.75, 0.25], (n, 1))), np.zeros(n, int)
    labels[:wrong] = 1
    unseen = Answers(logs, labels)
    calibration = fit(Answers(logs, np.zeros(n, int)), unseen, Wanted(target, CONFIDENCE, 0.9), "data", "now")
    assert words in describe_threshold(calibration)
    assert calibration.accepts(logs).all() == (calibration.threshold is not None)
    assert json.loads(json.dumps(calibration.threshold)) == calibration.threshold


def test_each_look_at_the_images_is_counted(tmp_path):
    def looked(n: int, target: float, images: str, confidence: float = 0.95) -> str:
        answers = Answers(np.log(np.tile([0.75, 0.25], (n, 1))), np.zeros(n, int))
        calibration = fit(answers, answers, Wanted(target, confidence, 0.9), images, "now")
        return describe_looks(write(calibration, tmp_path / "best.calibration.json"))

    assert looked(40, 0.99, "forty images") == ""
    assert looked(40, 0.99, "forty images") == ""  # the same question, and the same answer
    assert looked(40, 0.9, "forty images").startswith(
        "This is look 2 at images of calibration; before: 99% with confidence 95% by 40 images (not promised). Each"
    )
    third = looked(300, 0.99, "further images")
    assert (
        "before: 99% with confidence 95% by 40 images (not promised), 90% with confidence 95% by 40 images. E" in third
    )
    assert "who plans 3 types confidence=0.98334 for each" in third


def test_no_page_promises_more_than_was_shown():
    """Neither a target nor a confidence is rounded up, nor a threshold down."""
    assert [percent_down(fraction) for fraction in (0.95, 0.9995, 0.9975)] == ["95%", "99.95%", "99.75%"]
    assert [threshold_text(value) for value in (0.99874, 1 - 4.47e-6, 0.87651234, 0.0)] == [
        *("0.99874", "0.99999553", "0.8766", "0")
    ]
    assert all(float(threshold_text(threshold)) == threshold for threshold in GRID)
    made = {"temperature": 1.3, "threshold": 0.99874, "target_accuracy": 0.9995, "confidence": 0.9995}
    score = {"calibrated": made | {"accepted_acc": 0.9, "accepted_share": 0.9, "fitted_here": False}}
    promises = {}
    for template, facts in (
        ("model_card.md.j2", {"model": {"calibration": made | {"settings": ["data.image_size=24"]}}}),
        ("report.html.j2", {"score": score}),
    ):
        text = (Path(page.__file__).parent / template).read_text()
        part = text[text.index("{% if model.calibration %}" if "card" in template else "{% if score.calibrated") :]
        part = part[: part.index("## Images" if "card" in template else "<h2>Scores")]
        promises[template] = page.templates(template.removesuffix(".j2")).from_string(part).render(**facts)
    assert (
        "probability of at least 0.99874, at least 99.95% are right, with a confidence of 99.95%"
        in (promises["model_card.md.j2"])
    )
    assert (
        "`ml-inference calibrated=true data.image_size=24` divides the logits, and which is valid with these"
        in (promises["model_card.md.j2"])
    )
    assert "below 0.99874 are flagged" in promises["report.html.j2"]
    assert "With confidence 99.95%, at least 99.95% are right" in promises["report.html.j2"]


def test_the_sets_of_each_class_hold_it_and_small_classes_share_a_threshold():
    """Of a class that is hard, the threshold of all classes would leave out many images."""
    generator, answers = np.random.default_rng(1), drawn(2, 1, 0)
    logs = answers.log_probabilities - 1.5 * (np.arange(4) == 3)
    answers = Answers(logs - np.log(np.exp(logs).sum(axis=1, keepdims=True)), answers.labels)
    own, means = np.exp(answers[0])[np.arange(len(answers.labels)), answers.labels], []
    for _ in range(300):
        thresholds = set_thresholds(*some(answers, generator, 200), coverage=0.9)
        means.append([(own >= threshold)[answers.labels == c].mean() for c, threshold in enumerate(thresholds)])
    assert (np.mean(means, axis=0) >= 0.895).all()
    assert (np.mean(means, axis=0) <= 0.93).all()
    of_class = [np.flatnonzero(answers.labels == label) for label in range(4)]
    for few, place in ((8, 2), (1, None)):  # of 16 images that two small classes share: (16 + 1) / 10; of 2: none
        chosen = np.concatenate([*(images[:50] for images in of_class[:2]), *(images[:few] for images in of_class[2:])])
        thresholds = set_thresholds(answers.log_probabilities[chosen], answers.labels[chosen], coverage=0.9)
        shared = 0 if place is None else np.sort(own[chosen[100:]])[place - 2]
        assert (thresholds[2], thresholds[3], len({*thresholds})) == (shared, shared, 3)
        assert small_classes(answers.labels[chosen], 4, coverage=0.9) == {2: few, 3: few}
    covered = []
    for _ in range(300):  # many small classes, which are harder: on average 90% of all images, and of theirs
        many = some(answers, generator, 2_000)
        classes = np.where(many.labels < 3, many.labels, 3 + generator.integers(0, 20, 2_000))
        logs = np.concatenate([many.log_probabilities[:, :3], np.repeat(many.log_probabilities[:, 3:], 20, axis=1)], 1)
        logs = logs - np.where(np.arange(23) < 3, 0, np.log(20))
        fitted, tested = np.arange(2_000) < 150, np.arange(2_000) >= 150
        inside = np.exp(logs) >= set_thresholds(logs[fitted], classes[fitted], coverage=0.9)
        hit = inside[np.arange(2_000), classes]
        covered.append([hit[tested].mean(), hit[tested & (classes > 2)].mean()])
    assert (np.mean(covered, axis=0) >= 0.895).all()


@pytest.fixture(scope="module")
def set_aside(colours, tmp_path_factory):
    """A run with 6 of the 15 val images set aside, and its folder of images."""
    folder = tmp_path_factory.mktemp("set_aside")
    words = [*SMALL, "trainer.max_epochs=5", "data.calibration_ratio=0.4", f"paths.log_dir={folder}/logs"]
    images = shutil.copytree(colours, folder / "images")
    run = type_command("train", [f"data.data_dir={images}", *words], folder / "run")
    assert run.exit_code == 0, run.output
    return run, images


def test_images_that_chose_the_checkpoint_promise_nothing(set_aside, command):
    run, images = set_aside
    assert "train 39, val 9, calibration 6 images" in run.output
    assert "6 of the 15 val images (40%) were drawn as the calibration split (data.calibration_ratio=0.4" in run.output
    entry = run.checkpoint("best")["imago"]
    assert len(entry["val_images"]) == 9
    assert entry["drawn_calibration"].items() >= {"calibration_ratio": 0.4, "seed": 42}.items()
    fit_words = ["calibrate=true", "target_accuracy=0.5", "confidence=0.9"]
    scored = command("eval", f"ckpt_path={run.dir}", *fit_words)
    promise = "Promise: with confidence 90%, at least 50% of the accepted predictions are right, on new images"
    assert promise in scored.output
    assert "of 6 images, 0 of the 6 accepted ones wrong" in scored.output
    words = ["data/eval_transform=squash", "+data.fit=pad", "data.batch_size=8", "data.image_size=[8,9]"]
    assert typed_looks(words) == [words[0], words[1], words[3]]
    predicted = command("inference", f"ckpt_path={run.dir}", "calibrated=true", f"source={images}/val", "rows=0")
    assert "15 accepted, 0 flagged for review (50% right, promised with confidence 90%" in predicted.output


def test_only_unseen_images_of_another_folder_count(set_aside, command, tmp_path):
    """Of 30 images in calibration/, 3 were trained on, 3 chose the checkpoint, 3 are in val/ too, and 3 are copies."""
    run, images = set_aside
    root, counts = tmp_path / "new", dict.fromkeys(("blue", "green", "red"), 6)
    for split, seed in (("val", 7), ("calibration", 8)):
        draw_classes(root / split, counts, seed)
    chose = set(run.checkpoint("best")["imago"]["val_images"].tolist())
    for name in counts:
        of_val = next(path for path in (images / "val" / name).iterdir() if file_digest(path) in chose)
        for source in (images / "train" / name / "000.png", of_val, root / "val" / name / "000.png"):
            shutil.copy(source, root / "calibration" / name / f"{source.parents[2].name}_{source.parents[1].name}.png")
        shutil.copy(root / "calibration" / name / "001.png", root / "calibration" / name / "copy.png")
    words = [f"ckpt_path={run.dir}", f"data.data_dir={root}", "calibrate=true", "target_accuracy=0.5", "split=val"]
    scored = command("eval", *words)
    assert (
        "3 of the 30 images of calibration are images that the checkpoint was trained on, and are exc" in scored.output
    )
    assert "6 of the 27 images of calibration are also in train or val, or trained or chose the chec" in scored.output
    assert "3 of the 27 images of calibration have the content of another one, and do not count" in scored.output
    assert "of 18 images, 0 of the 18 accepted ones wrong" in scored.output
    forgetful = run.checkpoint("best")
    del forgetful["imago"]["val_images"]
    torch.save(forgetful, tmp_path / "old.ckpt")
    refused = command("eval", f"ckpt_path={tmp_path}/old.ckpt", *words[1:])
    assert "does not record all images that it was trained on and chosen by" in refused.output
    assert refused.exit_code == 1


def test_images_that_are_added_move_none_between_val_and_calibration():
    def splits(count: int, recorded=None, ratio: float = 0.5) -> tuple[ImageSets, dict[str, set[str]]]:
        images = [(f"val/{name}/{name}{n}x.png", label) for label, name in enumerate("ab") for n in range(count)]
        of_both = {split: FolderImages(Path(), *map(list, zip(*images, strict=True))) for split in ("train", "val")}
        sets = ImageSets("images", ["a", "b"], of_both)
        divide(sets, 0.1, 0, recorded=recorded, calibration_ratio=ratio)
        return sets, {name: {*images.paths} for name, images in sets.splits.items()}

    sets, before = splits(30)
    assert list(before) == ["train", "val", "calibration"]
    assert (len(before["val"]), len(before["calibration"]), before["val"] & before["calibration"]) == (30, 30, set())
    _, after = splits(60, {"drawn_calibration": sets.drawn_calibration})
    assert before["val"] < after["val"]
    assert before["calibration"] < after["calibration"]
    entry = {"drawn_val": None, "data": {"counts": {"val": {"a": 30, "b": 30}}}, "train_images": []}
    with pytest.raises(ValueError, match="trained without data.calibration_ratio, so all images of val chose it"):
        check_draw(entry, SimpleNamespace(sets=sets, class_names=sets.class_names), "RUN")
    with pytest.raises(ValueError, match="must be above 0 and at most 0.5, or 0 for no calibration split"):
        splits(30, ratio=0.6)


def test_images_that_may_have_been_seen_or_chosen_are_refused(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        draw_classes(tmp_path / "images" / split, {"blue": 10, "red": 10}, seed)

    def data_with(ratio: float, recorded=None) -> ImageFolderDataModule:
        options = {"data_dir": str(tmp_path / "images"), "image_size": 8, "cache_dir": str(tmp_path)}
        look = ImageTransform(WholeBox())
        return ImageFolderDataModule(look, look, calibration_ratio=ratio, recorded=recorded, **options)

    def entry_of(data: ImageFolderDataModule, is_known: bool = True) -> dict:
        names = ("train", "val", "calibration")
        seen = dict(zip(names, (data.train_digests, data.val_digests, data.calibration_images), strict=True))
        images = {f"{name}_images": seen[name] if is_known else None for name in names}
        draws = {f"drawn_{name}": getattr(data.sets, f"drawn_{name}") for name in ("val", "test", "calibration")}
        return {"data": data.facts, "class_names": data.class_names, "unrecorded": "", **draws, **images}

    aside = data_with(0.5)
    entry, unknown = entry_of(aside), entry_of(data_with(0), is_known=False)
    assert independent_images(aside, entry)[0].sum() == 10
    (tmp_path / "logs/first/reports").mkdir(parents=True)
    (tmp_path / "logs/first/status.json").write_text(json.dumps({"started": "2026-01-01T00:00:00+00:00"}))
    facts = data_with(0).facts | {"folder": str((tmp_path / "images").resolve())}
    (tmp_path / "logs/first/reports/data.json").write_text(json.dumps(facts))
    now = {"timestamp": "2026-01-02T00:00:00+00:00"}
    (note,) = note_on_earlier_runs(aside, entry | now, tmp_path / "logs")
    assert note.startswith("1 earlier run had no calibration split, and scored these 20 images as val (first): if")
    assert note_on_earlier_runs(aside, entry | {"timestamp": "2025-12-31T00:00:00+00:00"}, tmp_path / "logs") == []
    with pytest.raises(ValueError, match=r"may have seen images of calibration, .* \(training began with OLD\)"):
        independent_images(aside, entry | {"unrecorded": "training began with OLD"})
    extra = draw_classes(tmp_path / "extra", {"blue": 1}, seed=2) / "blue/000.png"
    shutil.copy(extra, tmp_path / "images/val/blue/010.png")  # the split is not that of the run any more
    with pytest.raises(ValueError, match="does not record all images that it was trained on and chosen by"):
        independent_images(data_with(0.5, unknown), unknown)
    (tmp_path / "images/val/blue/010.png").unlink()
    first, *_, last = aside.split("calibration").paths
    shutil.move(tmp_path / "images" / last, tmp_path / "images/val/blue/moved.png")
    (tmp_path / "images" / first).unlink()
    with pytest.raises(ValueError, match="2 images of calibration that the run set aside are gone, or have another la"):
        independent_images(data_with(0.5, entry), entry)


def test_one_image_of_each_group_counts(tmp_path):
    """Images of one patient are right or wrong together: a hundred of them say little more than one."""
    draw_classes(tmp_path, {"blue": 8, "red": 8})
    places = [("train", "p0")] * 2 + [("val", "p1"), ("calibration", "p1")]
    places += [("calibration", group) for group in ("p2", "p2", "p3", "p3")]
    rows = [(place, f"{name}/00{n}.png", name) for name in ("blue", "red") for n, place in enumerate(places)]
    lines = [f"{split},{path},{name},{group}" for (split, group), path, name in rows]
    (tmp_path / "splits.csv").write_text("\n".join(["split,path,label,group", *lines]))
    look = ImageTransform(WholeBox())
    data = ImageFolderDataModule(
        look, look, split_file=str(tmp_path / "splits.csv"), image_size=8, cache_dir=str(tmp_path)
    )
    counts, notes = independent_images(data, {"data": data.facts})
    kept = [path for path, is_counted in zip(data.split("calibration").paths, counts, strict=True) if is_counted]
    assert sorted({4: "p2", 5: "p2", 6: "p3", 7: "p3"}[int(path[-5])] for path in kept) == ["p2", "p3"]
    assert notes == [
        "2 of the 10 images of calibration are of a group that trained or chose the checkpoint, and do not count",
        "6 of the 10 images of calibration are of the group of another one, and do not count",
    ]
    digests = data.split("calibration").digests()[0]
    of_p2 = torch.from_numpy(digests[[data.split("calibration").paths.index("blue/004.png")]])
    another = {"data": {"fingerprint": "another"}, "train_images": of_p2, "val_images": of_p2}
    counts, _ = independent_images(data, another)  # the other images of a patient that was trained on
    assert [
        path[-7:-4] for path, is_counted in zip(data.split("calibration").paths, counts, strict=True) if is_counted
    ] == [kept[-1][-7:-4]]
    photos = FolderImages(tmp_path, [f"{name}/{n}.png" for name in "ab" for n in range(20)], [0] * 20 + [1] * 20)
    parts, _ = SplitPlan(0.2, 0.2, 0, calibration=0.2).parts(photos, [[n, n + 1] for n in range(0, 40, 2)], {})
    assert Counter(parts) == {"train": 16, "val": 8, "calibration": 8, "test": 8}
    assert parts[::2] == parts[1::2]
    with pytest.raises(ValueError, match=r"data.calibration_ratio=0.5 draws single images, .* --calibration 0.1"):
        divide(read_rows(tmp_path / "splits.csv", None), 0.1, 0, calibration_ratio=0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.calibration_ratio=0.2"],
            "trained with a different calibration split drawn from val and has seen images",
        ),
        (["data.calibration_ratio=0", "confidence=0.9"], "confidence=0.9: nothing can be promised"),
        (["trainer.limit_predict_batches=1", "data.batch_size=2"], "leaves 2 of the 6 images of calibration"),
        (["data.exclude=EXCLUDE"], "data.exclude changes images of calibration after the training"),
        (["matmul_precision=medium"], "calibrate=true and matmul_precision=medium: on a GPU, products of 8 bits"),
        (["data.decode=fast"], "calibrate=true and data.decode=fast: a calibration is that of the network in the"),
    ],
)
def test_a_promise_that_could_be_false_is_refused(set_aside, command, tmp_path, words, message):
    run, _ = set_aside
    listed = "".join(f"val/{name}/00{number}.png\n" for name in ("blue", "green", "red") for number in range(4))
    (tmp_path / "list.txt").write_text(listed)
    words = [word.replace("EXCLUDE", str(tmp_path / "list.txt")) for word in words]
    refused = command("eval", f"ckpt_path={run.dir}", "calibrate=true", *words)
    assert refused.exit_code == 1
    assert message in refused.output

"""Results of a run that nobody has trained: files of a run folder, for tests of its report."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from imago.evaluation.score import Score
from imago.files import write_json
from imago.report.thumbnails import noteworthy_images

BEST_EPOCH = 8


class DrawnImages:
    """Grey images, each of another brightness."""

    def __init__(self, labels: Sequence[int], paths: Sequence[str]) -> None:
        self.labels, self.paths = labels, paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> torch.Tensor:
        return torch.full((3, 24, 32), index % 256, dtype=torch.uint8)


def drawn_score(split: str, class_names: Sequence[str], images: int, wrong: Sequence[int] = ()) -> Score:
    """Score of `images` images a class; classes are confused in groups of four, and the labels of `wrong` are wrong."""
    classes, generator = len(class_names), np.random.default_rng(0)
    truth = np.repeat(np.arange(classes), images)
    near = np.minimum(truth // 4 * 4 + generator.integers(0, 4, len(truth)), classes - 1)
    logits = generator.normal(size=(len(truth), classes))
    logits[np.arange(len(truth)), truth] += generator.normal(4, 1.5, len(truth))
    logits[np.arange(len(truth)), near] += 2
    labels = truth.copy()
    for index in wrong:
        logits[index] = np.eye(classes)[truth[index]] * 20
        labels[index] = (truth[index] + 1) % classes
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    names = [name.replace("/", "_") for name in class_names]
    paths = [f"{split}/{names[label]}/{index:05d}.jpg" for index, label in enumerate(labels.tolist())]
    extra = {"loss": float(-log_p[np.arange(len(labels)), labels].mean())}
    predictions = log_p.argmax(axis=1)
    return Score(
        split, split, list(class_names), list(range(len(labels))), paths, labels, predictions, log_p, 0.1, extra
    )


def draw_run(folder: Path, class_names: Sequence[str], images: int = 4) -> Path:
    """Write the results of a finished run with these classes; returns its folder."""
    reports = folder / "reports"
    for split in ("train", "val", "test"):
        score = drawn_score(split, class_names, images)
        write_json(reports / f"metrics_{split}.json", score.metrics)
        shown = noteworthy_images(score, DrawnImages(score.labels, score.paths), label_errors=split != "test")
        write_json(reports / f"images_{split}.json", shown)
        with (reports / f"confusion_matrix_{split}.csv").open("w", newline="") as file:
            rows = zip(class_names, score.confusion.tolist(), strict=True)
            csv.writer(file).writerows([["label", *class_names], *([name, *row] for name, row in rows)])
    counts = dict.fromkeys(class_names, images)
    facts = {"root": "/photos", "fingerprint": "f", "class_names": list(class_names), "notes": [], "skipped": []}
    excluded = {"excluded": ["train/#old.jpg"], "corrections": {"train/corrected.jpg": class_names[0]}}
    write_json(reports / "data.json", facts | excluded | {"counts": dict.fromkeys(("train", "val", "test"), counts)})
    status = {"status": "completed", "error": None, "started": "then", "heartbeat": "now", "best_epoch": BEST_EPOCH}
    write_json(folder / "status.json", status)
    keys = ("train/loss", "val/loss", "train/acc", "val/acc", "train/f1", "val/f1", "lr-AdamW")
    rows = [{"epoch": n, "step": n} | dict.fromkeys(keys, 0.947 - (n - 7) ** 2 / 100) for n in range(12)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder

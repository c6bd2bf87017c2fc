"""Run folders that nobody has trained, for tests of tables and comparisons."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CLASSES = ("blue", "green")
LABELS = [CLASSES[number % 2] for number in range(40)]
CONFIG = {
    "task_name": "train",
    "seed": 1,
    "monitor": "val/acc",
    "mode": "max",
    "data": {"_target_": "imago.data.ImageFolderDataModule", "data_dir": "photos", "seed": "${seed}", "fold": None},
    "model": {"net": {"_target_": "imago.model.torchvision_net", "name": "resnet18"}, "optimizer": {"lr": 0.01}},
}


def answers(wrong: Sequence[int], labels: Sequence[str] = LABELS) -> list[str]:
    """Answers for the labels: right, but for the images with these numbers."""
    other = {"blue": "green", "green": "blue"}
    return [other[label] if number in wrong else label for number, label in enumerate(labels)]


def draw_run(
    folder: Path,
    wrong: Sequence[int] = (),
    state: str = "completed",
    labels: Sequence[str] = LABELS,
    split: str = "test",
    stamp: str = "a",
    folder_of_images: str = "photos",
    reverse: bool = False,
    **settings: Any,
) -> Path:
    """Write a run whose answers for the images `wrong` are wrong; `settings` are overrides, with `__` for dots."""
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    config = json.loads(json.dumps(CONFIG))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    accuracy = 1 - len(wrong) / len(labels)
    _write_yaml(folder / ".hydra" / "config.yaml", config)
    _write_yaml(folder / ".hydra" / "overrides.yaml", [f"{key}={value}" for key, value in overrides.items()])
    _write_yaml(folder / ".hydra" / "hydra.yaml", {"hydra": {"runtime": {"choices": {"model": "resnet18"}}}})
    card = {"images": {"train": 160, "val": 40, "test": 40}, "stamps": {split: stamp}}
    times = {"started": "2026-11-27T10:00:00+00:00", "heartbeat": "2026-11-27T10:01:30+00:00"}
    _write_json(folder / "status.json", {"status": state, "epoch": 2, "best_value": accuracy, "card": card, **times})
    rows = [{"epoch": n, "step": n, "val/acc": accuracy - 0.1 / (n + 1), "val/loss": 1 / (n + 1)} for n in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = {"split": split, "n": len(labels), "acc": accuracy, "f1": accuracy, "loss": 1 - accuracy}
    _write_json(folder / "reports" / f"metrics_{split}.json", score)
    facts = {"folder": folder_of_images, "fingerprint": "f", "class_names": list(CLASSES), "drawn": []}
    counts = {name: labels.count(name) for name in CLASSES}
    _write_json(folder / "reports" / "data.json", facts | {"counts": {split: counts}, "stamps": {split: stamp}})
    place = split if config["data"]["fold"] is None else f"{split}_{config['data']['fold']}"  # images of its own
    table = [
        {"index": n, "path": f"{place}/{label}/{n:03d}.png", "label": label, "prediction": answer, "probability": 0.9}
        for n, (label, answer) in enumerate(zip(labels, answers(wrong, labels), strict=True))
    ]
    with (folder / "reports" / f"predictions_{split}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(reversed(table) if reverse else table)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    return folder


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_yaml(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))

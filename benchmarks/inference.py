"""CPU time of `ml-inference` for an image, beside timm's inference.py.

Both predict the same JPEGs from the disk with a ResNet-18 with random weights, at 224 pixels, on one thread, and else
with their defaults. What starting costs is taken off: a turn runs each tool on few images and on many, and divides the
difference.

    python benchmarks/inference.py --data_dir PATH/hymenoptera_data --timm pytorch-image-models
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
import torchvision
from serve import environment, trained


def images(data_dir: Path, folder: Path, count: int) -> Path:
    """A folder with links to the photographs, repeated to `count`."""
    files = sorted(data_dir.rglob("*.jpg"))
    place = folder / f"images_{count}"
    place.mkdir()
    for number in range(count):
        (place / f"{number:05}.jpg").symlink_to(files[number % len(files)])
    return place


def cpu_seconds(words: list[str], folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        words, cwd=folder, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--timm", type=Path, help="a clone of huggingface/pytorch-image-models")
    parser.add_argument("--counts", type=int, nargs=2, default=(200, 1000))
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    python = [sys.executable, "-W", "ignore"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, (few, many) = trained("resnet18", folder), options.counts
        places = {count: images(options.data_dir.resolve(), folder, count) for count in options.counts}
        tools = {"ml-inference": [*python, "-m", "imago.inference", f"ckpt_path={run}", "source=IMAGES", "rows=0"]}
        if options.timm is not None:
            script = str(options.timm.resolve() / "inference.py")
            torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
            words = ["--data-dir", "IMAGES", "--model", "resnet18", "--device", "cpu", "--results-dir", name]
            words += ["--checkpoint", f"{name}/resnet18.pth"]
            tools["timm"] = [*python, script, *words, "--batch-size", "32"]
        results: dict[str, list[float]] = {tool: [] for tool in tools}
        for turn in range(options.turns):
            for tool, words in tools.items():
                spent = [
                    cpu_seconds([word.replace("IMAGES", str(places[count])) for word in words], folder)
                    for count in (few, many)
                ]
                results[tool].append(1000 * (spent[1] - spent[0]) / (many - few))
                print(
                    f"turn {turn} {tool}: {spent[0]:.1f} and {spent[1]:.1f} s, {results[tool][-1]:.1f} ms", flush=True
                )
        for tool, times in results.items():
            ratio = median(ours / theirs for ours, theirs in zip(results["ml-inference"], times, strict=True))
            print(f"{tool}: {median(times):.1f} ms of CPU an image; ml-inference takes {ratio:.2f} of that")


if __name__ == "__main__":
    main()

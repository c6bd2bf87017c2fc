"""Accuracy on the test images of the digits for several privacy budgets, over seeds.

`experiment=digits_dp`: softmax regression on 8 x 8 pixels, 100 steps on 256 images in the mean. The row without privacy
has the same recipe, with strategy=none. A seed settles the weights at the start; batches and noise are secret, so that
numbers differ a little each time.

    python benchmarks/privacy_accuracy.py --seeds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def trained(seed: int, epsilon: str | None) -> tuple[float, float | None]:
    """Accuracy on test, and what was spent."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=digits_dp", f"seed={seed}", "trainer=cpu", "logger=[]", f"hydra.run.dir={folder}/run"]
        words += ["report.splits=[test]", f"paths.cache_dir={folder}/cache"]
        words += ["strategy=none"] if epsilon is None else [f"strategy.target_epsilon={epsilon}"]
        command = [sys.executable, str(ROOT / "src" / "train.py"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reports = Path(folder, "run", "reports")
        accuracy = json.loads((reports / "metrics_test.json").read_text())["acc"]
        told = reports / "privacy.json"
        return accuracy, json.loads(told.read_text())["epsilon"] if told.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epsilons", nargs="+", default=["1", "3", "8"])
    given = parser.parse_args()
    print("| budget | spent | test accuracy, mean ± sd | n |\n| --- | --- | --- | --- |")
    for epsilon in (*given.epsilons, None):
        found = [trained(seed, epsilon) for seed in range(given.seeds)]
        scores = [accuracy for accuracy, _ in found]
        spent = max((each for _, each in found if each is not None), default=None)
        sd = statistics.stdev(scores) if len(scores) > 1 else 0.0
        budget = "none: not private" if epsilon is None else f"epsilon {epsilon}"
        shown = "" if spent is None else f"{spent:.3f}"
        print(f"| {budget} | {shown} | {statistics.mean(scores):.3f} ± {sd:.3f} | {len(scores)} |", flush=True)


if __name__ == "__main__":
    main()

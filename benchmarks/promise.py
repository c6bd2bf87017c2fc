"""How often accepted predictions are less right than they should be: estimates against promises, on the digits.

python benchmarks/promise.py [--splits 1000]

A network of one hidden layer is trained on 300 digits for 60 epochs. The others are the population, so that the true
accuracy of each threshold is known. Of each of 1,000 resampled splits, val chooses the epoch by its accuracy. Then a
threshold is fitted in three ways: estimated on val, tested on val, and tested on as many images that are set aside.
"""

import argparse
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from imago.evaluation.promise import estimated_threshold, first_threshold, promised_threshold

TRAINED, EPOCHS, CONFIDENCE = 300, 60, 0.95
WAYS = ("estimate on val", "test on val", "test on calibration")
CASES = ((100, 0.95), (300, 0.95), (1000, 0.95), (300, 0.98), (1000, 0.98), (3000, 0.99))


def epochs() -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the population after each epoch, float64 (epochs, n, classes), and its labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    seen, others = order[:TRAINED], order[TRAINED:]
    model = MLPClassifier((32,), learning_rate_init=0.01, batch_size=32, random_state=0)
    answers = []
    for _ in range(EPOCHS):
        model.partial_fit(images[seen] / 16, labels[seen], classes=np.arange(10))
        answers.append(model.predict_log_proba(images[others] / 16))
    return np.maximum(np.array(answers), -700), labels[others]


def main() -> None:
    """Print a row for each number of images and accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=1000)
    splits = parser.parse_args().splits
    warnings.simplefilter("ignore")
    answers, labels = epochs()
    right = answers.argmax(axis=2) == labels
    sure = np.exp(answers.max(axis=2))
    print(f"accuracy of the epochs: {right.mean(axis=1).min():.3f} to {right.mean(axis=1).max():.3f}")
    print(f"| images | target | {' | '.join(f'{way}: broken | made | accepted' for way in WAYS)} |")
    for n, target in CASES:
        generator, rows = np.random.default_rng(0), []
        for _ in range(splits):
            val, unseen = generator.integers(0, len(labels), (2, n))
            best = int(right[:, val].mean(axis=1).argmax())
            of_val, of_unseen = ((answers[best, chosen], labels[chosen]) for chosen in (val, unseen))
            first = first_threshold(*of_val, n, target, CONFIDENCE)
            thresholds = [
                estimated_threshold(*of_val, target),
                promised_threshold(*of_val, first, target, CONFIDENCE).threshold,
                promised_threshold(*of_unseen, first, target, CONFIDENCE).threshold,
            ]
            rows.append([outcome(sure[best], right[best], threshold, target) for threshold in thresholds])
        means = [np.nanmean([row[way] for row in rows], axis=0) for way in range(len(WAYS))]
        cells = " | ".join(f"{broken:.1%} | {made:.0%} | {share:.0%}" for broken, made, share in means)
        print(f"| {n} | {target:.0%} | {cells} |", flush=True)


def outcome(sure: np.ndarray, right: np.ndarray, threshold: float | None, target: float) -> tuple[float, float, float]:
    """Whether the threshold breaks the promise, whether there is one, and the fraction of images that it accepts."""
    if threshold is None:
        return 0.0, 0.0, np.nan
    accepted = sure >= threshold
    return float(right[accepted].mean() < target), 1.0, float(accepted.mean())


if __name__ == "__main__":
    main()

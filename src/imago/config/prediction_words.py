"""Words of other programs that mean something else where a checkpoint predicts or is scored."""

from collections.abc import Callable
from pathlib import Path

from imago.config.hints import Hint, says, types_path
from imago.config.invocation import for_hydra

FIT = "ml-eval ckpt_path=RUN calibrate=true target_accuracy=0.95"
THRESHOLD = "threshold conf conf_thres conf_threshold confidence min_confidence confidence_threshold score_threshold"
TABLES = (".csv", ".json", ".jsonl")


def output_hint(value: str) -> Hint | None:
    """The name of a table: the folder in which it is written. None for other names."""
    path = Path(value)
    if path.suffix not in TABLES:
        return None
    suffix = ".csv" if path.suffix == ".csv" else ".jsonl"
    words = (f"hydra.run.dir={for_hydra(str(path.with_suffix('')))}", *["format=jsonl"] * (suffix == ".jsonl"))
    return Hint(words, f"This is a folder, and predictions{suffix} is written into it.")


def input_hint(value: str) -> Hint | None:
    """The path of images; None for a number, which is their size."""
    return None if value.isdigit() else types_path("source={}")(value)


ROWS: tuple[tuple[str, str, Callable[[str], Hint | None]], ...] = (  # command, its words, what to type
    (
        "inference",
        THRESHOLD,
        lambda _: Hint(
            ("calibrated=true",),
            f"Its threshold is fitted before, to reach an accuracy: {FIT}",
        ),
    ),
    (
        "eval",
        THRESHOLD,
        lambda _: Hint(
            ("calibrate=true", "target_accuracy=0.95"),
            "This fits the threshold of an accuracy, which ml-inference calibrated=true then uses.",
        ),
    ),
    (
        "inference",
        "topk top_k top k",
        says(
            "Leave it out: predictions.csv has the probability of each class, or the five most likely of 100 classes "
            "or more. In Python, predict takes top=5."
        ),
    ),
    ("eval", "topk top_k top k", says("Leave it out: top5_acc is scored where there are 10 classes or more.")),
    ("inference", "input inputs image images img file files folder path directory input_dir image_dir", input_hint),
    ("inference", "output o out output_dir out_dir output_file out_file save_path csv", output_hint),
    ("eval", "tta", says("ml-inference has it, and scores too: ml-inference ckpt_path=RUN split=test tta=flip")),
)


def meaning_for(command: str, key: str, value: str) -> Hint | None:
    """The hint for a word that means something of its own to a command; None for all others."""
    return next((hint(value) for name, words, hint in ROWS if name == command and key.lower() in words.split()), None)

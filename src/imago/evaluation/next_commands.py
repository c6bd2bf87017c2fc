"""Commands to type next, as the person who typed this one would type them."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from imago.config.invocation import typed_path
from imago.definitions import is_export
from imago.evaluation.evaluate import Result
from imago.run.folder import RunFolder


def next_commands(result: Result, run: RunFolder, is_private: bool = False) -> list[str]:
    """Commands to type after a training, with the names under which they are installed; after a calibration that which
    uses it, and after other commands only that of TensorBoard, if the training logged to it."""
    script = Path(sys.argv[0])
    commands = []
    is_training = script.name in ("ml-train", "train.py")
    if result.checkpoint is not None and (is_training or result.checkpoint.is_relative_to(run.path)):  # or in Python
        word = _checkpoint_word(result.checkpoint)
        is_private = "epsilon" in run.sections.get("Strategy", {})
        commands += [f"ml-export {word}"] * is_private
        commands.append(f"ml-inference {word} source=PHOTOS")
        if any(run.path.glob("reports/images_*.json")):  # else there are no pictures to show
            commands.append(f"ml-visualise mode=predictions {_word('run', run.path)}")
        commands.append(f"{_program('eval', script)} {word}")
        if result.longer is not None and not is_private:
            commands.append(f"{_program('train', script)} {_word('resume', run.path)} {result.longer}")
    elif result.checkpoint is not None and any(score.calibration is not None for score in result.scores.values()):
        commands += after_calibration(result.checkpoint, is_private)
    trained = result.checkpoint.parent.parent if result.checkpoint is not None else run.path
    uses_board = not (trained / "status.json").is_file() or (trained / "tensorboard").is_dir()
    if uses_board and (run.path / "tensorboard").is_dir():
        commands.append(f"tensorboard --logdir {shlex.quote(relative(run.path))}")
    return commands


def after_calibration(checkpoint: Path, is_private: bool = False) -> list[str]:
    """Commands that use the calibration of a checkpoint; an export of a private one leaves it out."""
    word = _checkpoint_word(checkpoint)
    export = f"ml-export {word}{' calibration=false' * is_private}"
    return [f"ml-inference {word} source=PHOTOS calibrated=true", export]


def after_export(
    file: Path, is_calibrated: bool, prefixes: Sequence[str] = (), checkpoint: Path | None = None
) -> list[str]:
    """Commands that predict with an export; one has no signature, so `prefixes` of the user's own code are allowed.
    Files for other software are not read by Imago: with its `checkpoint`, a bundle is named, which has a script."""
    if file.suffix == ".zip":
        folder = shlex.quote(relative(file.with_suffix("")))
        return [
            f"{python()} -m zipfile -e {shlex.quote(relative(file))} {folder}",
            f"{python()} {folder}/predict.py PHOTO",
        ]
    if not is_export(file):
        return [f"ml-export {_checkpoint_word(checkpoint)} format=bundle"] if checkpoint is not None else []
    words = [_word("ckpt_path", file), "source=PHOTOS", *["calibrated=true"] * is_calibrated]
    words += [shlex.quote(f"trusted_targets=[{','.join(prefixes)}]")] if prefixes else []
    return [f"ml-inference {' '.join(words)}"]


def _checkpoint_word(checkpoint: Path) -> str:
    is_best = checkpoint.parts[-2:] == ("checkpoints", "best.ckpt")
    return _word("ckpt_path", checkpoint.parents[1] if is_best else checkpoint)


def _word(key: str, path: Path) -> str:
    return typed_path(key, relative(path))


def _program(name: str, script: Path) -> str:
    """Word that starts a command: `ml-eval`, or `python src/eval.py` in a clone, which has files for two of them."""
    is_clone = script.name == "train.py"
    return f"{python()} {shlex.quote(relative(script.with_name(f'{name}.py')))}" if is_clone else f"ml-{name}"


def python() -> str:
    """Word that starts Python: never the path of this interpreter, which nobody wants to type."""
    return "python" if shutil.which("python") else "python3"


def relative(path: Path) -> str:
    """Path as one would type it here: relative to the current folder if it is below."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

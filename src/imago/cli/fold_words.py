"""The words of `ml-cv`: a command line of `ml-train` without a fold, from which one sweep over the folds is made."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.cli.compose import composed, is_sweep, log_dir_of
from imago.cli.typed_words import check_words
from imago.config.checks import check_paths
from imago.config.invocation import for_hydra, override_key, override_value
from imago.config.resolvers import slug
from imago.config.root import Root
from imago.errors import UserError
from imago.files import read_json, write_json
from imago.masking import masked_override
from imago.run import lock
from imago.terminal import shortened

FOLDS = 5
MOST_NAMED = 20
"""Folds that a message lists."""
FILE = "cv_plan.json"
OF_ML_CV = ("folds", "data.folds", "hydra.sweep.dir")
REFUSED = {
    **dict.fromkeys(("-m", "--multirun"), "ml-cv runs the folds of one setting. Type ml-cv once for each setting"),
    "data.fold": "ml-cv runs all folds. For a single one use ml-train",
    "hydra.run.dir": "ml-cv makes a folder for each fold. Type hydra.sweep.dir= for the folder of all",
    "hydra.sweep.subdir": "the folders of the folds have fixed names, by which ml-cv finds them again",
    **dict.fromkeys(
        ("hparams_search", "hydra/sweeper"),
        "ml-cv is a sweep over the folds. Search with ml-train -m, and cross-validate the best settings",
    ),
    **dict.fromkeys(
        ("resume", "replay"), "to continue a cross-validation, type the words with which it was started: ml-cv finds it"
    ),
    "ckpt_path": "its weights may have seen the images of a fold, and the scores would be too good",
    "train": "ml-cv trains. To score one checkpoint use ml-eval",
    "test": "ml-cv pools the predictions of each run",
    **dict.fromkeys(
        ("trainer.limit_predict_batches", "trainer.fast_dev_run"),
        "ml-cv pools the predictions for all images of each fold",
    ),
    "preflight": "only ml-train tries a run without training it",
}
"""Word -> reason why ml-cv does not take it."""
HARMLESS = (("test", "true"), ("train", "true"), ("preflight", "true"), ("preflight", "false"))
"""Words and values that change nothing of what ml-cv needs."""


@dataclass(frozen=True)
class FoldPlan:
    """A cross-validation that was typed.

    Args:
        folder: Folder of the sweep.
        folds: Number of folds.
        typed: The words, as they may be typed again.
        words: Those for each run of ml-train.
    """

    folder: Path
    folds: int
    typed: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of(cls, typed: Sequence[str]) -> "FoldPlan":
        """Read what was typed.

        Raises:
            UserError: ml-cv does not take a word, or the data have no folds.
        """
        _check(typed)
        plain = [f"data.{word}" if override_key(word) == "folds" else word for word in typed]
        check_words(plain, "train", [field.name for field in fields_of(Root)], "ml-cv")
        words = [word for word in typed if override_key(word) not in OF_ML_CV]
        cfg = composed("train", words)
        if cfg is not None and isinstance(cfg.data, DictConfig):
            check_paths(cfg)
        of_file = None if cfg is None else _folds_of_file(cfg)
        asked = _number_of_folds(typed) or (OmegaConf.select(cfg, "data.folds") if cfg is not None else None)
        if of_file is not None and asked not in (None, of_file):
            raise UserError(f"folds={asked}: the split file has {of_file}. Remove folds=.")
        if cfg is not None and of_file is None and cfg.seed is None and OmegaConf.select(cfg, "data.seed") is None:
            raise UserError("seed=null would draw other folds in each run. Type a seed, such as seed=42.")
        folds = of_file or asked or FOLDS
        words += [] if of_file is not None else [f"data.folds={folds}"]
        if cfg is not None:
            _check_settings(cfg)
        return cls(_folder(typed, words, cfg), folds, tuple(map(masked_override, typed)), tuple(words))

    def folder_of(self, fold: int) -> Path:
        """Run folder of a fold."""
        return self.folder / f"fold_{fold}"

    def sweep(self, folds: Sequence[int]) -> list[str]:
        """Command line of ml-train that runs `folds` and resumes what was begun."""
        places = [f"hydra.sweep.dir={for_hydra(str(self.folder))}", "hydra.sweep.subdir=fold_${data.fold}"]
        resume = [] if any(override_key(word) == "auto_resume" for word in self.words) else ["auto_resume=true"]
        return ["-m", *self.words, f"data.fold={','.join(map(str, folds))}", *places, *resume]

    def claim(self) -> None:
        """Record the plan in its folder.

        Raises:
            UserError: The folder has another one, or something else.
        """
        plan: dict[str, Any] = {"folds": self.folds, "words": [masked_override(word) for word in self.words]}
        file = self.folder / FILE
        if file.is_file():
            before = read_json(file, {"folds!": int, "words!": [str]})
            if before != plan:
                raise UserError(
                    f"{self.folder} has a cross-validation with other words: {' '.join(before['words'])}. Type "
                    "these, or another hydra.sweep.dir="
                )
            return
        if there := sorted(entry.name for entry in self.folder.iterdir() if entry.name != lock.FILE):
            raise UserError(
                f"{self.folder} has files, and no cross-validation: {shortened(there)}. Type another hydra.sweep.dir="
            )
        write_json(file, plan)


def _check(typed: Sequence[str]) -> None:
    for word in typed:
        key = override_key(word)
        if key in REFUSED and (key, override_value(word)) not in HARMLESS:
            raise UserError(f"{word}: {REFUSED[key]}.")
        if key.startswith("--fold"):
            raise UserError(f"{word} is not a flag of ml-cv. Type the number of folds as folds={FOLDS}.")
        if key == "auto_resume" and override_value(word) != "true":
            raise UserError(f"{word}: ml-cv resumes what was begun. Remove it.")
        if is_sweep(word):
            raise UserError(f"{masked_override(word)} has several values. {REFUSED['-m']}.")


def _check_settings(cfg: DictConfig) -> None:
    """Raise UserError for settings, wherever they come from, with which an image would have no prediction."""
    if OmegaConf.select(cfg, "trainer.fast_dev_run"):
        raise UserError(f"trainer.fast_dev_run: {REFUSED['trainer.fast_dev_run']}.")
    if "val" not in (cfg.report.splits or []):
        raise UserError(f"report.splits={cfg.report.splits} lacks val, whose predictions ml-cv pools. Add val to it.")
    if ratio := OmegaConf.select(cfg, "data.calibration_ratio"):
        raise UserError(
            f"data.calibration_ratio={ratio}: ml-cv predicts each image of a fold, so that none is set aside. Type "
            "data.calibration_ratio=0."
        )


def _number_of_folds(typed: Sequence[str]) -> int | None:
    values = [override_value(word) for word in typed if override_key(word) in ("folds", "data.folds")]
    if not values:
        return None
    if len({*values}) > 1 or not values[0].isdecimal() or int(values[0]) < 2:
        raise UserError(f"folds must be one whole number, 2 or more; got {' and '.join(values)}.")
    return int(values[0])


def _folds_of_file(cfg: DictConfig) -> int | None:
    """Number of folds of a split file; None if folds are drawn.

    Raises:
        UserError: The data have no folds.
    """
    if not isinstance(cfg.data, DictConfig) or "_target_" not in cfg.data:
        return None
    if "fold" not in cfg.data:
        raise UserError(
            f"{cfg.data._target_} has no folds. Image folders, split files, shards, Hugging Face and torchvision have. "
            "A data module of your own needs the arguments fold and folds, in its file too (docs/cross_validation.md)."
        )
    file = OmegaConf.select(cfg, "data.split_file")
    if file is None:
        return None
    from imago.data.split_files import read_table

    numbers = {row.fold for row in read_table(Path(file).expanduser())[1] if row.fold is not None}
    return len(numbers) or None


def _folder(typed: Sequence[str], words: Sequence[str], cfg: DictConfig | None) -> Path:
    """Folder of the sweep: one that was typed, or one that the same words lead to again."""
    asked = [override_value(word).strip("'\"") for word in typed if override_key(word) == "hydra.sweep.dir"]
    if asked:
        return Path(asked[-1]).expanduser().absolute()
    shown = [masked_override(word) for word in words]
    data = [OmegaConf.select(cfg, f"data.{key}") for key in ("data_dir", "split_file")] if cfg is not None else []
    paths = [str(Path(path).expanduser().resolve()) for path in data if path]
    digest = hashlib.sha256(json.dumps([shown, paths]).encode()).hexdigest()[:8]
    parts = [
        value if key == "experiment" else f"{key.rpartition('.')[2]}_{value.rstrip('/').rpartition('/')[2]}"
        for key, value in ((override_key(word), override_value(word)) for word in shown)
        if not key.startswith(("hydra", "paths"))
    ]
    return log_dir_of(list(words)) / "cv" / f"{slug('_'.join(parts))}_{digest}"

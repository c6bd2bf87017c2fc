"""Parts of a private training that its epsilon does not cover, by its settings, for reports/privacy.md."""

import logging
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from imago.config.tree import nodes
from imago.data.colour import PLAIN
from imago.data.module import ImageDataModule
from imago.model.module import DictModule
from imago.model.origin import weights_of
from imago.run.folder import RunFolder
from imago.run.spent import describe_others, others_on_same_data
from imago.terminal import counted

log = logging.getLogger(__name__)

ROLES = {
    "ModelCheckpoint": "the checkpoint",
    "RunCheckpoint": "the best checkpoint",
    "EarlyStopping": "the end of training",
}


def uncovered(cfg: DictConfig, run: RunFolder, data: ImageDataModule, model: DictModule) -> list[str]:
    """List what this training does that its epsilon does not cover."""
    return [
        *_of_val(cfg, data),
        *_of_other_runs(cfg, run, data),
        *_of_facts(cfg, data, model),
        *_of_files(cfg, data),
    ]


def _of_val(cfg: DictConfig, data: ImageDataModule) -> Iterator[str]:
    chosen = [
        f"{ROLES.get(target.rpartition('.')[2], key)} ({node.get('monitor')})"
        for key, node in nodes(cfg.callbacks or {}, "callbacks")
        for target in [str(node._target_)]
        if str(node.get("monitor")).startswith("val/")
    ]
    if "ReduceLROnPlateau" in str((cfg.model.get("scheduler") or {}).get("_target_")):
        chosen.append(f"the learning rate ({cfg.model.get('monitor')})")
    yield f"the val images: {f'they choose {_joined(chosen)}, and ' if chosen else ''}nothing is guaranteed to them"
    for split, drawn in (("val", data.sets.drawn_val), ("test", data.sets.drawn_test)):
        if drawn is not None and "seed" in drawn:
            name = "folds" if "folds" in drawn else f"{split}_ratio"
            yield f"the draw of {split} from train (data.{name}={drawn[name]:g}): one more image " + (
                "may move up to two others of each class"
                if name == "folds"
                else "of a small class may move another one"
            )
    yield (
        "a temperature and thresholds, if they are fitted on private images of val or calibration later (ml-eval "
        "calibrate=true)"
    )


def _of_other_runs(cfg: DictConfig, run: RunFolder, data: ImageDataModule) -> Iterator[str]:
    log_dir = Path(cfg.paths.log_dir)
    continued = Path(cfg.ckpt_path).resolve().parent.parent if cfg.ckpt_path is not None else None
    same = others_on_same_data(run.path, log_dir, data.sets.root, data.facts["fingerprint"])
    same = [known for known in same if known.folder.resolve() != continued]
    if private := describe_others(same, log_dir):
        log.warning("%s", private)
        yield private.replace(f" below {log_dir.absolute()}", "")
    plain = [known for known in same if "epsilon" not in known.status and known.task == "train" and known.has_begun]
    if plain:
        text = (
            f"{counted(len(plain), 'run')} without privacy on these data, such as "
            f"{plain[-1].folder.name}: whatever is published of it has no guarantee, and your choice of settings by "
            "it is not covered"
        )
        log.warning("%s", text)
        yield text
    if run.invocation.sweep_dir is not None:
        yield "the choice among the runs of this sweep, and what each of them spends"
    yield "runs on the same images elsewhere, and your choice of settings by them: each spends an epsilon of its own"


def _of_facts(cfg: DictConfig, data: ImageDataModule, model: DictModule) -> Iterator[str]:
    names = counted(len(data.class_names), "class name")
    yield (
        f"the number of train images ({len(data.split('train'))}), which scales the noise, and the {names}: both are "
        "treated as public. Checkpoints also have the numbers of images of each class, and a fingerprint"
    )
    normalise = data.train_transform.normalisation
    if normalise is not None:
        mean, std = ([round(float(value), 4) for value in values] for values in (normalise.mean, normalise.std))
        yield f"the statistics of the normalisation (mean {mean}, std {std}), which are treated as public"
    if data.range != PLAIN.greatest:
        yield f"the range of 16-bit images (data.range={data.range}), which is treated as public"
    if cfg.model.get("class_weights") is not None:
        yield "the class weights (model.class_weights), which are treated as public"
    if any("class_counts" in node for _, node in nodes(cfg.model, "model")):
        yield "the class frequencies in the loss (class_counts), which are treated as public"
    weights = weights_of(model.net, str((cfg.model.get("net") or {}).get("_target_", "imago.")), {})
    if weights.startswith(("pretrained", "weights made")):
        yield f"the weights to start from ({weights}), which are treated as public"
    if own := sorted({str(node._target_) for _, node in nodes(cfg) if _is_own(str(node._target_))}):
        yield f"what {_joined(own)} do beyond what a trial on random images sees"


def _of_files(cfg: DictConfig, data: ImageDataModule) -> Iterator[str]:
    loggers = [str(node._target_).rpartition(".")[2] for _, node in nodes(cfg.logger or {}, "logger")]
    yield (
        "the losses and metrics of train and val, which have no noise, in metrics.jsonl, checkpoints and reports"
        f"{f', and in {_joined(loggers)}' if loggers else ''}"
    )
    if "test" in data.sets.splits:
        yield "the scores of test, which have no noise: nothing is guaranteed to its images"
    splits = [data.scored_split(split) for split in cfg.report.splits] if cfg.test else []
    if splits:
        with_pictures = ", with thumbnails" if cfg.report.pictures else ""
        yield f"the reports about single images of {_joined(sorted(set(splits)))}: path, label and loss{with_pictures}"
    for option in ("exclude", "relabel"):
        if cfg.data.get(option) is not None:
            name = Path(str(cfg.data[option])).name
            yield f"the list data.{option}={name}, if it comes from a look at train images, and its paths"
    if data.skipped:
        yield f"{counted(len(data.skipped), 'unreadable image')} that was left out (data.on_bad_image=skip)"
    if cfg.data.get("cache") == "disk":
        yield "the decoded images in the cache folder (data.cache=disk)"


def _is_own(target: str) -> bool:
    return target.partition(".")[0] not in ("imago", "lightning", "torch", "torchmetrics", "torchvision", "timm")


def _joined(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)

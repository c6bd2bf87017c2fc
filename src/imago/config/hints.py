"""Functions from the value of a foreign setting to what to type: the right column of the table in foreign_words.py."""

import difflib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imago.config.auto_model import PRETRAINED
from imago.config.invocation import for_hydra
from imago.config.root import CONFIG_DIR
from imago.config.targets import MEMORY_SETS, torchvision_names

YES = ("true", "yes", "on", "1")
NO = ("false", "no", "off", "0", "none", "null")
WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")
"""Suffixes of files with weights."""


@dataclass(frozen=True)
class Hint:
    """What to type instead of a foreign word: overrides, a remark, or both."""

    words: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        typed = f"Type {' '.join(map(shlex.quote, self.words))}" if self.words else ""
        return " ".join(filter(None, [typed + ("." if typed and self.note else ""), self.note]))


NETWORKS = {  # pattern of names in timm and on hubs -> name in torchvision
    r"vit_base_patch(16|32)_.*": r"vit_b_\1",
    r"vit_large_patch(16|32)_.*": r"vit_l_\1",
    r"(resnet|densenet|vgg)_?(\d+).*": r"\1\2",
    r"(?:tf_)?efficientnet_?(b\d).*": r"efficientnet_\1",
    r"mobilenet_?v2.*": "mobilenet_v2",
    r"mobilenet_?v3_(large|small).*": r"mobilenet_v3_\1",
    r"(convnext_(?:tiny|small|base|large)).*": r"\1",
    r"swin_(t|s|b)(?:iny|mall|ase)?_.*": r"swin_\1",
}
Translate = Callable[[str], Hint]
AMP = Hint(("trainer.precision=auto-mixed",))
"""Not `trainer=amp`, which another option of the trainer would replace."""


def types(*templates: str, note: str = "") -> Translate:
    """Type these, with the value in place of {}."""
    return lambda value: Hint(tuple(template.replace("{}", value) for template in templates), note)


def types_path(*templates: str, note: str = "") -> Translate:
    """Type these, with a path in place of {}."""
    return lambda value: types(*templates, note=note)(for_hydra(value))


def says(note: str) -> Translate:
    """Say `note` whatever the value."""
    return lambda value: Hint(note=note)


def no_counterpart(why: str) -> Translate:
    """Say that Imago has nothing of the kind, and why it needs none."""
    return says(f"It has no counterpart: {why}.")


def switch(on: str | Hint, off: str | Hint) -> Translate:
    """Type `on` or `off`, as the value says."""

    def translate(value: str) -> Hint:
        chosen = off if value.lower() in NO else on
        return chosen if isinstance(chosen, Hint) else Hint((chosen,))

    return translate


def device_hint(value: str) -> Hint:
    """`cpu`, `0`, `cuda:1` or `0,1`: one device or several, by number."""
    name = value.lower().strip("[]'\"")
    if name in ("cpu", "mps"):
        return Hint((f"trainer={name}",))
    if name in ("auto", "", "null"):
        return Hint(note="Leave it out: a GPU is used where there is one.")
    numbers = re.findall(r"-?\d+", name)
    if len(numbers) > 1:
        return Hint(("trainer=ddp", f"trainer.devices=[{','.join(numbers)}]"))
    if numbers and numbers[0] not in ("0", "-1"):
        return Hint(("trainer=gpu", f"trainer.devices=[{numbers[0]}]"))
    return Hint(("trainer=gpu",))


def gpus_hint(value: str) -> Hint:
    """A number of GPUs, 0 for the CPU, or a list of their numbers."""
    if value.startswith("[") or "," in value:
        return device_hint(value)
    if value.lower() in NO:
        return Hint(("trainer=cpu",))
    return Hint(("trainer=gpu",)) if value in ("1", "true") else Hint(("trainer=ddp", f"trainer.devices={value}"))


def devices_hint(value: str) -> Hint:
    """A number of devices, or a list of their numbers."""
    return Hint((f"trainer.devices={value}",)) if value in ("1", "auto") else gpus_hint(value)


def batch_hint(value: str) -> Hint:
    """A number of images."""
    if not value.isdigit():
        return Hint(note="The batch size is a whole number: type data.batch_size=32, for example.")
    return Hint((f"data.batch_size={value}",))


def augment_hint(value: str) -> Hint:
    """An option of data/augment, or whether images are augmented."""
    name = value.lower()
    options = sorted(file.stem for file in Path(CONFIG_DIR, "data", "augment").glob("*.yaml"))
    chosen = [option for option in re.split(r"[\s,\[\]]+", name) if option in options]
    if chosen and chosen != ["none"]:
        return Hint((f"data/augment={chosen[0]}" if len(chosen) == 1 else f"data/augment=[{','.join(chosen)}]",))
    if name in NO:
        return Hint(("data/augment=none",), "This trains on the images as they are scored.")
    return Hint(
        note="Crops and flips are on by default. For others type data/augment=light, medium or strong, or a list such "
        "as 'data/augment=[light,color_jitter]' (docs/recipes.md)."
    )


def image_size_hint(value: str) -> Hint:
    """A number of pixels, or a shape: `(64,64)`, `3 224 224`."""
    sizes = re.findall(r"\d+", value) if re.fullmatch(r"[\d\s,x()\[\]]+", value) else []
    if len(sizes) == 3:  # the channels are first or last
        sizes = sizes[1:] if sizes[0] in ("1", "3") else sizes[:2]
    if len(sizes) not in (1, 2):
        return Hint(note="The size is a number of pixels: type data.image_size=224, for example.")
    return Hint((f"data.image_size={sizes[0]}" if len({*sizes}) == 1 else f"data.image_size=[{','.join(sizes)}]",))


def is_ultralytics(value: str) -> bool:
    """Whether this is a network of Ultralytics, or a file of its weights: `yolo11n-cls.pt`."""
    return re.match(r"yolo|rtdetr", Path(value).name.lower()) is not None


def weights_hint(value: str) -> Hint:
    """A file of weights: those of Ultralytics fit no network of ours."""
    if is_ultralytics(value):
        network = "model=auto is the default, and --networks lists those of torchvision"
        return Hint(note=f"The network of {value} has no counterpart: {network}.")
    return Hint((f"model.init_from={for_hydra(value)}",))


def dropout_hint(value: str) -> Hint:
    """A rate, which one network has."""
    return Hint(
        note=f"Only model=simple_cnn takes a dropout rate: model.net.dropout={value}. The others have their own."
    )


def evaluate_hint(value: str) -> Hint:
    """`-e`: the number of epochs, or in PyTorch's ImageNet example whether to evaluate."""
    if value.isdigit():
        return Hint((f"trainer.max_epochs={value}",))
    return Hint(note="To score a run, type ml-eval ckpt_path=RUN.")


def model_hint(value: str) -> Hint:
    """The name of a network, perhaps of another library or hub, or a file of weights."""
    if Path(value).suffix in WEIGHTS or is_ultralytics(value):
        hint = weights_hint(value)
        return Hint(hint.words, "model.net.name chooses the network.") if hint.words else hint
    hub = value.rpartition("/")[2].partition(".")[0].lower().replace("-", "_")  # microsoft/resnet-50, resnet50.a1_in1k
    for pattern, ours in NETWORKS.items():
        if re.fullmatch(pattern, hub):
            hub = re.sub(pattern, ours, hub)
            break
    if hub.removeprefix("tf_") == PRETRAINED:
        return Hint((f"model={PRETRAINED}",))
    known = torchvision_names()
    if hub in known:
        return Hint((f"model.net.name={hub}",))
    close = ", ".join(difflib.get_close_matches(hub, known, n=5, cutoff=0))
    return Hint(note=f"{value} is not a network of torchvision. The closest are model.net.name={close}.")


def dataset_hint(value: str) -> Hint:
    """The name of a public data set."""
    name = value.rpartition("/")[2].lower()
    if name in ("digits", "hymenoptera", "mnist"):
        return Hint((f"data={name}",))
    for known in MEMORY_SETS:
        if name.replace("-", "").replace("_", "") == known.lower():
            return Hint(("data=torchvision", f"data.dataset.name={known}"), "See docs/data.md.")
    return Hint(("data=hugging_face", f"data.dataset.path={value}"), "A folder of images is data.data_dir=PATH.")


def optimizer_hint(value: str) -> Hint:
    """The name of an optimizer, in any spelling."""
    name = value.lower().removesuffix("_torch").removesuffix("_torch_fused").removesuffix("w_hf")
    if name in ("adam", "adamw", "sgd", "rmsprop", "muon"):
        return Hint((f"model/optimizer={name}",))
    if name in ("momentum", "nesterov"):  # timm's sgd variants
        return Hint(("model/optimizer=sgd",))
    proper = {entry.lower(): entry for entry in ("NAdam", "RAdam", "Adagrad", "Adamax", "Adadelta", "ASGD")}
    if name in proper:
        words = ("model/optimizer=adam", f"model.optimizer._target_=torch.optim.{proper[name]}")
        return Hint(words, "The options of model/optimizer are adamw, adam, sgd, rmsprop and muon.")
    return Hint(
        note="Choose model/optimizer=adamw, adam, sgd, rmsprop or muon. docs/extend/optimizer.md shows how to use "
        "another."
    )


def scheduler_hint(value: str) -> Hint:
    """The name of a schedule, in any spelling."""
    name = value.lower()
    if name in NO or name == "constant":
        return Hint(("model.scheduler=null",))
    for sign, option in (("cos", "cosine"), ("step", "step"), ("plateau", "plateau")):
        if sign in name and "multi" not in name:
            return Hint((f"model/scheduler={option}",))
    return Hint(
        note="Choose model/scheduler=cosine, step or plateau. docs/extend/optimizer.md shows how to use another."
    )


def pretrained_hint(value: str) -> Hint:
    """Whether to start from pretrained weights, or a file of them."""
    if value.lower() in (*YES, "imagenet", "auto"):
        return Hint(("model.net.weights=auto",), "This is the default.")
    if value.lower() in NO:
        return Hint(("model.net.weights=null",))
    return weights_hint(value)


def freeze_hint(value: str) -> Hint:
    """Whether to train the head only; Ultralytics gives a number of layers."""
    if value.isdigit() and int(value) > 1:
        return Hint(
            ("model.freeze=backbone",), "To freeze the layers below one of them, type model.freeze=until:LAYER."
        )
    return switch("model.freeze=backbone", "model.freeze=null")(value)


def clip_hint(value: str) -> Hint:
    """The norm to which gradients are clipped, by Hugging Face's name, which Opacus gives to that of each image."""
    private = f"strategy=dp strategy.max_grad_norm={value}"
    return Hint((f"trainer.gradient_clip_val={value}",), f"For private training, type {private} instead.")


def precision_hint(value: str) -> Hint:
    """Lightning's words for a precision, or those of others."""
    name = value.lower().strip("'\"")
    halves = dict.fromkeys(("16", "fp16", "float16", "half"), "16-mixed")
    known = {**halves, **dict.fromkeys(("bf16", "bfloat16"), "bf16-mixed")}
    known |= dict.fromkeys(("32", "fp32", "float32", "full"), "32-true")
    return AMP if name in ("amp", "auto", "mixed") else Hint((f"trainer.precision={known.get(name, value)}",))


def cache_hint(value: str) -> Hint:
    """Where decoded images are kept."""
    name = value.lower()
    known = {**dict.fromkeys(YES, "ram"), **dict.fromkeys(NO, "none"), "memory": "ram", "ssd": "disk", "file": "disk"}
    return Hint((f"data.cache={known.get(name, value)}",))


def logger_hint(value: str) -> Hint:
    """The name of a logger, or none."""
    names = re.findall(r"\w+", value.lower())
    known = ("tensorboard", "csv", "wandb", "mlflow", "many")
    if not names or names[0] in NO:
        return Hint(("logger=[]",))
    if all(name in known for name in names):
        return Hint((f"logger={names[0] if len(names) == 1 else '[' + ','.join(names) + ']'}",))
    return Hint(note=f"The options of logger are {', '.join(known[:-1])} and {known[-1]}.")


def monitor_hint(value: str) -> Hint:
    """A metric, with its stage or without: `val_accuracy`, `eval_loss`, `top1`."""
    stage, _, metric = value.lower().replace("eval_", "val_").replace("/", "_").partition("_")
    if stage not in ("train", "val"):
        stage, metric = "val", value.lower()
    known = {"accuracy": "acc", "top1": "acc", "error_rate": "acc", "valid_loss": "loss", "f1_score": "f1"}
    return Hint((f"monitor={stage}/{known.get(metric, metric)}",))


def resume_hint(value: str) -> Hint:
    """The newest run, or a folder."""
    return Hint(("resume=latest",)) if value.lower() in YES else Hint((f"resume={for_hydra(value)}",))

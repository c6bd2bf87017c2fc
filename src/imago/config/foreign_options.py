"""Options of groups, and first words of command lines, that other trainers have: what to type instead."""

from imago.config.hints import Hint

TASKS = {  # words with which other command lines begin -> what to do here
    **dict.fromkeys(("train", "fit", "classify", "yolo", "python", "train.py"), "Leave it out: ml-train trains."),
    **dict.fromkeys(("val", "validate", "test", "eval", "evaluate"), "To score a run, type ml-eval ckpt_path=RUN."),
    **dict.fromkeys(("predict", "inference"), "To predict, type ml-inference ckpt_path=RUN source=PATH."),
    "export": "To export a run, type ml-export ckpt_path=RUN.",
    "serve": "To serve a run, type ml-serve ckpt_path=RUN.",
}
NO_LOGGER = Hint(note="There is no option for it. The options of logger are tensorboard, csv, wandb, mlflow and many.")
PROGRESS_BAR = Hint(note="The progress bar is callbacks.progress_bar, and callbacks.progress_bar=null removes it.")
IN_DEFAULTS = Hint(note="Leave it out: it is among the default callbacks.")
OPTIONS: dict[tuple[str, str], Hint] = {  # group and foreign option -> what to type
    ("strategy", "ddp"): Hint(("trainer=ddp",)),
    ("strategy", "auto"): Hint(note="Leave it out."),
    **{("strategy", name): Hint(("strategy=dp",)) for name in ("opacus", "dpsgd", "dp_sgd")},
    ("logger", "false"): Hint(("logger=[]",)),
    ("logger", "none"): Hint(("logger=[]",)),
    ("logger", "many_loggers"): Hint(("logger=many",)),
    **{("logger", name): NO_LOGGER for name in ("comet", "neptune", "aim")},
    ("callbacks", "early_stopping"): IN_DEFAULTS,
    ("callbacks", "rich_progress_bar"): PROGRESS_BAR,
    ("experiment", "mnist"): Hint(("experiment=example",), "It trains a dense net on MNIST."),
    ("hparams_search", "mnist_optuna"): Hint(("-m", "hparams_search=optuna"), "hydra.sweeper.params holds the ranges."),
    ("trainer", "ddp_spawn"): Hint(("trainer=ddp",)),
    ("trainer", "cuda"): Hint(("trainer=gpu",)),
    ("data", "cifar10"): Hint(("data=torchvision", "data.dataset.name=CIFAR10"), "See docs/data.md."),
}
NODES = {
    "callbacks.rich_progress_bar": PROGRESS_BAR,
    **{f"logger.{name}": NO_LOGGER for name in ("comet", "neptune", "aim")},
}
"""Foreign entries of a group, with settings of their own -> what to say."""
GROUPS = {
    "datamodule": "data",
    "optimizer": "model/optimizer",
    "optim": "model/optimizer",
    "scheduler": "model/scheduler",
    "lr_scheduler": "model/scheduler",
}
"""Foreign group -> ours."""

"""Check the words of a command line before anything is composed: flags, paths and settings of other trainers."""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imago.cli.compose import own_folders
from imago.cli.help import option_with
from imago.config.checks import VIEWS
from imago.config.foreign_words import EXAMPLES, meaning
from imago.config.hints import NO, WEIGHTS, YES, Hint, dataset_hint, model_hint
from imago.config.invocation import for_hydra, override_key, override_value
from imago.config.root import CONFIG_DIR
from imago.config.schema import shipped
from imago.config.targets import MEMORY_SETS, torchvision_names
from imago.errors import UserError
from imago.masking import is_secret

FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c"),
    *("--package", "-p", "--info", "-i", "--shell-completion", "-sc", "--experimental-rerun"),
)
FLAGS = (
    *("--help", "-h", "--help-all", "--hydra-help", "--version", "--networks", "--resolve", "--run", "-r"),
    *("--multirun", "-m", *FLAGS_WITH_VALUE),
)
FROM_CHECKPOINT = ("eval", "inference", "export")
TASKS = {  # words with which other command lines begin -> what to do here
    **dict.fromkeys(("train", "fit", "classify", "yolo"), "Leave it out: ml-train trains."),
    **dict.fromkeys(("val", "validate", "test", "eval", "evaluate"), "Scoring is ml-eval ckpt_path=RUN."),
    **dict.fromkeys(("predict", "inference"), "Predicting is ml-inference ckpt_path=RUN source=PATH."),
    "export": "Exporting is ml-export ckpt_path=RUN.",
}
UNKNOWN = Hint(note="This setting does not exist (--help-all).")
NO_FLAG = Hint(note="This setting does not exist. Settings are typed as KEY=VALUE (--help).")
OPTIONS: dict[tuple[str, str], Hint] = {  # group and foreign option -> what to type
    ("strategy", "ddp"): Hint(("trainer=ddp",)),
    ("strategy", "auto"): Hint(note="Leave it out."),
    ("logger", "false"): Hint(("logger=[]",)),
    ("logger", "none"): Hint(("logger=[]",)),
    ("callbacks", "early_stopping"): Hint(note="Leave it out: it is among the default callbacks."),
    ("trainer", "ddp_spawn"): Hint(("trainer=ddp",)),
    ("trainer", "cuda"): Hint(("trainer=gpu",)),
    ("data", "cifar10"): Hint(
        ("data=mnist", "data.dataset._target_=torchvision.datasets.CIFAR10"), "See docs/data.md."
    ),
}


@dataclass(frozen=True)
class Typed:
    """The command for which words were typed.

    `settings` are the keys at the root of its config, `folders` those of own configs; `experiment` says whether one was
    typed.
    """

    command: str
    settings: Collection[str]
    folders: Sequence[Path] = ()
    experiment: bool = False

    def has_option(self, group: str, value: str) -> bool:
        """Whether a file is that option of a group."""
        return any(Path(folder, group, f"{value}.yaml").is_file() for folder in (Path(CONFIG_DIR), *self.folders))


@dataclass(frozen=True)
class Finding:
    """A word that no command of Imago takes, as it was typed, and the hint for it."""

    typed: str
    what: str
    hint: Hint


def check_words(words: Sequence[str], command: str, settings: Collection[str], program: str = "") -> None:
    """Raise UserError for the words that other trainers take and this command does not, all of them at once.

    Args:
        words: What was typed after the program.
        command: Name of the command, such as `train`.
        settings: Keys at the root of its config.
        program: The program as it was typed, for the corrected command line; empty for a Python function.
    """
    folders = [folder for folder in own_folders(words) if folder.is_dir()]
    groups = [entry.name for folder in folders for entry in folder.iterdir()]
    experiment = any(override_key(word) == "experiment" for word in words)
    findings: list[Finding] = []
    corrected: list[str] = []
    for part, finding in examine(words, Typed(command, {*settings, *groups}, folders, experiment)):
        if finding is None:
            corrected += part
        else:
            findings.append(finding)
            corrected += finding.hint.words
    if any(finding.hint != UNKNOWN for finding in findings):  # unknown words alone are Hydra's to refuse
        by_key = {override_key(word) if "=" in word else word: word for word in corrected}
        whole = f"{program} {' '.join(map(shlex.quote, by_key.values()))}" if program and by_key else ""
        raise UserError(describe(findings, whole))


def describe(findings: Sequence[Finding], corrected: str = "") -> str:
    """The message for one finding, or a table of several with the `corrected` command line."""
    if len(findings) == 1:
        return f"{findings[0].what} {findings[0].hint}"
    width = min(max(len(finding.typed) for finding in findings), 30)
    lines = ["Words that Imago does not take:"]
    lines += [f"  {finding.typed:<{width}}  {finding.hint}" for finding in findings]
    if corrected:
        lines += ["Together:", f"  {corrected}"]
    return "\n".join(lines)


def check_choices(words: Sequence[str], choices: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a typed value that is not among the choices of its setting."""
    is_sweep = any(word in ("-m", "--multirun") for word in words)
    for word in words:
        key, value = override_key(word), override_value(word).strip("'\"")
        if key in choices and "=" in word and not (is_sweep and "," in value):
            check_choice(key, value, choices[key])


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    if value in choices:
        return
    if len(choices) == 1:
        raise UserError(f"{key}={value} is not supported yet; available: {choices[0]}.")
    raise UserError(f"{key} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value}.")


def flags_first(words: Sequence[str]) -> list[str]:
    """Move what starts with a dash, and its value, to the front: argparse does not want them between overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    before = ""
    for word in words:
        is_value = before in FLAGS_WITH_VALUE
        (flags if word.startswith("-") or is_value else overrides).append(word)
        before = "" if is_value else word
    return flags + overrides


def examine(words: Sequence[str], typed: Typed) -> Iterator[tuple[list[str], Finding | None]]:
    """Each word, with the value of a flag, and what is wrong with it."""
    rest = list(words)
    before = ""
    while rest:
        word = rest.pop(0)
        if word in FLAGS_WITH_VALUE:
            value = [rest.pop(0)] if rest else []
            yield [word, *value], None
        elif word.startswith("-") and not _is_flag(word):
            flag = [word]
            while "=" not in word and rest and _is_value(rest[0], typed) and (len(flag) == 1 or _is_number(rest[0])):
                flag.append(rest.pop(0))
            yield flag, _flag(flag, typed)
        elif word.startswith(("-", "~")):
            yield [word], None
        elif "=" not in word:
            yield [word], _bare(word, before, rest[0] if rest else "", typed)
        else:
            yield [word], _setting(word, typed)
        before = word


def _is_flag(word: str) -> bool:
    """Whether Hydra takes a flag; it takes abbreviations too."""
    name = word.partition("=")[0]
    return name in FLAGS or (len(name) > 3 and sum(flag.startswith(name) for flag in FLAGS[:-1]) == 1)


def _is_value(word: str, typed: Typed) -> bool:
    """Whether the word after a flag is its value, and not the next flag or setting."""
    if word.startswith("-") and not _is_number(word):
        return False
    return not ("=" in word and override_key(word).partition(".")[0].partition("/")[0] in {*typed.settings, "hydra"})


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e-?\d+)?", word) is not None


def _flag(words: Sequence[str], typed: Typed) -> Finding:
    name, _, value = words[0].partition("=")
    name = name.lstrip("-").replace("-", "_")
    shown = f"--{name} ***" if is_secret(name) else " ".join(words)
    value = words[1] if len(words) == 2 else f"[{','.join(words[1:])}]" if len(words) > 2 else value
    value = value or ("true" if EXAMPLES.get(name, "true") in ("true", "false") else "VALUE")
    if name.startswith("no_") and meaning(name, value) is None:
        name, value = name[3:], "false" if value == "true" else value
    word = f"{name}={_quoted(value)}"
    if name == "experiment" and not typed.has_option(name, value):
        word = f"name={_quoted(value)}"
    finding = _setting(word, typed)
    if finding is None and override_key(word).partition(".")[0] in typed.settings:
        known = "." not in name or option_with(name) is not None
        finding = Finding(shown, "", (None if known else meaning(name, value)) or Hint((word,)))
    hint = finding.hint if finding is not None and finding.hint != UNKNOWN else NO_FLAG
    return Finding(shown, f"{shown} is not a flag of Imago.", hint)


def _bare(word: str, before: str, after: str, typed: Typed) -> Finding | None:
    """A word without `=`: a folder, a file, the name of an option, or what other command lines begin with."""
    if "=" in before and Path(f"{override_value(before)} {word}").exists():
        return None  # a path with a space, for which Hydra's error has the right words
    if typed.has_option(before, word) or before in typed.settings or before == "=":
        return None  # it has those for `experiment digits`, too; `name first` and `seed = 1` are answered before
    path = Path(word).expanduser()
    what = f'"{word}" is not KEY=VALUE.'
    hint: Hint | None = None
    if path.suffix in WEIGHTS or (path / "status.json").is_file():
        hint = _file("resume", word, typed.command)
    elif path.is_dir() and (word not in TASKS or after == ""):
        hint = _folder(word, typed.command)
    elif path.is_file() and typed.command == "inference":
        hint = Hint((f"source={for_hydra(word)}",))
    elif word.startswith(("/", "./", "../", "~/")) or word.endswith("/"):
        hint = Hint(note=f"{word} does not exist, either. Images: {_folder('PATH', typed.command).words[0]}.")
    elif Path(CONFIG_DIR, "experiment", f"{word}.yaml").is_file():
        hint = Hint((f"experiment={word}",))
    elif word in torchvision_names() and typed.command == "train":
        hint = Hint((f"model.net.name={word}",))
    elif word in TASKS and not Path(CONFIG_DIR, word).is_dir():
        hint = Hint(note=TASKS[word])
    elif after == "=":
        hint = Hint(note="Leave out the spaces around =.")
    elif word == "latest":
        hint = Hint(({"train": "resume=latest", "visualise": "run=latest"}.get(typed.command, "ckpt_path=latest"),))
    elif word in VIEWS and typed.command == "visualise":
        hint = Hint((f"mode={word}",))
    elif word in typed.settings and after and "=" not in after:
        hint = Hint((f"{word}={_quoted(after)}",))
    elif word == "help":
        hint = Hint(note="See --help.")
    return Finding(word, what, hint) if hint is not None else None


def _setting(word: str, typed: Typed) -> Finding | None:
    key, value = override_key(word), override_value(word)
    plain = value.strip("'\"")
    root, _, last = key.partition(".")
    if root == "hydra" or "@" in key or "/" in key:
        return None
    if key in ("model", "data") or (key in typed.settings and Path(CONFIG_DIR, key).is_dir()):
        return _option(word, key, plain, typed)
    what = f"Unknown setting {key}."
    hint: Hint | None = None
    if key == "resume" and (plain.lower() in YES or Path(plain).suffix in WEIGHTS):
        hint = Hint(("resume=latest",)) if plain.lower() in YES else _file("resume", plain, typed.command)
        what = f"{word}: resume takes a run folder, or latest."
    elif key == "weights" and typed.command in FROM_CHECKPOINT and Path(plain).suffix in WEIGHTS:
        hint, what = _file("weights", plain, typed.command), f"{word} names a checkpoint."
    elif key == "mode" and plain in TASKS and typed.command != "visualise":
        hint, what = Hint(note=TASKS[plain]), f"{word}: each mode is a command."
    elif root == "trainer" and last not in shipped()["lightning.pytorch.Trainer"]["properties"]:
        hint = meaning(key, value)
    elif key in ("model.net", "model.optimizer", "model.scheduler", "data.dataset"):
        is_name = re.fullmatch(r"\w+", plain) is not None and plain.lower() != "null"
        hint, what = meaning(key, plain) if is_name else None, f"{key} holds several settings."
    elif root not in typed.settings:
        is_folder = root in ("data", "dataset", "source") and Path(plain).expanduser().is_dir()
        hint = _folder(plain, typed.command) if is_folder else meaning(key, value)
        if hint == Hint((f"model.init_from={for_hydra(plain)}",)) and typed.command != "train":
            hint = _file("model", plain, typed.command)
        if hint is None and not Path(CONFIG_DIR, root).is_dir():
            hint = UNKNOWN
    return Finding(word, what, hint) if hint is not None else None


def _option(word: str, group: str, value: str, typed: Typed) -> Finding | None:
    """A foreign value of a group: a folder for `data`, the name of a network for `model`."""
    if typed.has_option(group, value) or value.startswith(("[", "{", "$")) or "," in value:
        return None
    what = f"{word}: {group} has no option {value}."
    hint = OPTIONS.get((group, value.lower()))
    path = Path(value).expanduser()
    if group == "data" and (path.is_dir() or value.startswith(("/", "./", "../", "~"))):
        hint, what = _folder(value, typed.command), "data= chooses a kind of data. A folder has a setting of its own."
    elif group == "data" and value.lower() in map(str.lower, MEMORY_SETS):
        hint = dataset_hint(value)
    elif group == "model" and path.suffix in WEIGHTS:
        hint = _file("model", value, typed.command)
        what = "model= chooses a kind of network. A file of weights has a setting of its own."
    elif group == "model" and (chosen := model_hint(value)).words:
        of_experiment = ("model=torchvision",) if typed.experiment else ()  # its network may be of another kind
        hint = Hint((*of_experiment, *chosen.words))
        what = f"{word}: {chosen.words[0].rpartition('=')[2]} is a network of torchvision."
    return Finding(word, what, hint) if hint is not None else None


def _folder(value: str, command: str) -> Hint:
    if command == "inference":
        return Hint((f"source={for_hydra(value)}",), f"With labels: data.data_dir={for_hydra(value)}")
    return Hint((f"data.data_dir={for_hydra(value)}",))


def _file(name: str, value: str, command: str) -> Hint:
    """A run folder, a checkpoint or a file of weights."""
    quoted = for_hydra(value)
    if command in FROM_CHECKPOINT:
        return Hint((f"ckpt_path={quoted}",))
    if command == "visualise":
        return Hint((f"run={quoted}",))
    if name == "resume" and Path(value).suffix in ("", ".ckpt"):
        folder = Path(value).parent.parent if Path(value).suffix else Path(value)
        if (folder / "status.json").is_file():
            return Hint((f"resume={for_hydra(str(folder))}",), "To score it: ml-eval ckpt_path=RUN.")
        return Hint((f"ckpt_path={quoted}",), "This trains on from it.")
    return Hint((f"model.init_from={quoted}",))


def _quoted(value: str) -> str:
    """The value of a flag as an override needs it."""
    is_plain = value.lower() in (*YES, *NO) or value.startswith(("[", "{", "$"))
    return value if is_plain else for_hydra(value)

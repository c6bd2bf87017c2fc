"""What to type instead of a word that no command of Imago takes; nothing is composed for it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from imago.cli.findings import Finding, Part, Typed
from imago.cli.help import option_with, settings_named
from imago.config.foreign_options import NODES, OPTIONS, TASKS
from imago.config.foreign_words import EXAMPLES, WORDS, is_private, meaning, meaning_of_sweep
from imago.config.hints import (
    NO,
    WEIGHTS,
    YES,
    Hint,
    dataset_hint,
    is_ultralytics,
    model_hint,
    monitor_hint,
    weights_hint,
)
from imago.config.invocation import for_hydra, override_key, override_value
from imago.config.monitors import VIEWS
from imago.config.part_places import right_place
from imago.config.prediction_words import meaning_for
from imago.config.root import CONFIG_DIR
from imago.config.schema import is_word_for_null, shipped
from imago.config.targets import MEMORY_SETS, torchvision_names
from imago.masking import is_secret

FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c"),
    *("--package", "-p", "--info", "-i", "--shell-completion", "-sc", "--experimental-rerun"),
)
FLAGS = (
    *("--help", "-h", "--help-all", "--hydra-help", "--version", "--networks", "--resolve", "--run", "-r"),
    *("--multirun", "-m", *FLAGS_WITH_VALUE),
)
NOT_FILES = ("from_run", "from_checkpoint")  # options that Imago makes
FROM_CHECKPOINT = ("eval", "inference", "export", "serve")
NULLABLE = ("ckpt_path", "debug", "experiment", "hparams_search", "replay", "resume", "seed")
"""Settings of the root, and groups, that can be null."""
OF_ONE_OPTION = ("data", "model", "model/optimizer", "model/scheduler", "strategy", "trainer")
UNKNOWN = Hint(note="This setting does not exist. --help-all lists all settings.")
NO_FLAG = Hint(note="This setting does not exist. Settings are typed as KEY=VALUE (--help).")


def examine(words: Sequence[str], typed: Typed) -> Iterator[Part]:
    """Each word, with the value of a flag, and what is wrong with it."""
    parts = [override_key(word).removesuffix("._target_") for word in words if "._target_=" in word]
    rest, typed = list(words), replace(typed, parts=parts, private=is_private(words))
    while rest:
        part = _pop_part(rest, typed)
        yield part, _finding(part, not rest, typed)


def _pop_part(rest: list[str], typed: Typed) -> list[str]:
    """Take the first word, and what belongs to it, from `rest`."""
    word = rest.pop(0)
    part = [word]
    if word in FLAGS_WITH_VALUE:
        part += [rest.pop(0)] if rest else []
    elif word.startswith("-") and not _is_flag(word):
        while "=" not in word and rest and _is_value(rest[0], typed) and (len(part) == 1 or _is_number(rest[0])):
            part.append(rest.pop(0))
    elif rest and not word.startswith(("-", "~")):
        after = rest[0]
        if "=" not in word and after.startswith("="):  # `seed = 1` and `seed =1`
            part += [rest.pop(0) for _ in rest[: 2 if after == "=" else 1]]
        elif not after.startswith("-") and "=" not in after and _takes(word, after, typed):
            part.append(rest.pop(0))
    return part


def _takes(word: str, after: str, typed: Typed) -> bool:
    """Whether a word without a dash is the value of the one before it: `seed= 1`, `seed 1`, `experiment digits`."""
    if "=" in word:
        return word.endswith("=") or Path(f"{override_value(word)} {after}").exists()  # a path with a space
    if Path(word).exists() or (word in TASKS and not typed.is_group(word)):
        return False
    return word in (*typed.settings, *WORDS) or typed.has_option(word, after)


def _finding(part: list[str], is_last: bool, typed: Typed) -> Finding | None:
    word = part[0]
    if word.startswith("-") and word not in FLAGS_WITH_VALUE and not _is_flag(word):
        return _flag(part, typed)
    if word.startswith(("-", "~")):
        return None
    if len(part) > 1:
        return _with_spaces(part, typed)
    return _setting(word, typed) if "=" in word else _bare(word, is_last, typed)


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
    word = f"{name}={_quoted(value, typed)}"
    if name == "experiment" and not typed.has_option(name, value):
        word = f"name={_quoted(value, typed)}"
    finding = _setting(word, typed)
    if finding is None and override_key(word).partition(".")[0] in {*typed.settings, "hydra"}:
        known = "." not in name or option_with(name) is not None
        finding = Finding(shown, "", (None if known else meaning(name, value)) or Hint((word,)))
    if finding is None and typed.is_group(name):
        finding = Finding(shown, "", Hint((word,)))
    is_unknown = finding is None or finding.is_unknown
    hint = NO_FLAG if finding is None or is_unknown else finding.hint
    return Finding(shown, f"{shown} is not a flag of Imago.", hint)


def _with_spaces(part: list[str], typed: Typed) -> Finding:
    """A setting and its value as words of their own."""
    shown = " ".join(part)
    key, _, start = part[0].partition("=")
    value = " ".join(filter(None, [start, *part[1:]])).removeprefix("=").strip()
    word = f"{key}={_quoted(value, typed)}"
    inner = _setting(word, typed)
    hint = inner.hint if inner is not None else Hint((word,))
    return Finding(shown, f'"{shown}" is not KEY=VALUE.', hint, inner is not None and inner.is_unknown)


def _bare(word: str, is_last: bool, typed: Typed) -> Finding:
    """A word without `=`: a folder, a file, the name of an option, or what other command lines begin with."""
    path = Path(word).expanduser()
    what = f'"{word}" is not KEY=VALUE.'
    hint: Hint | None = None
    if path.suffix in WEIGHTS or (path / "status.json").is_file():
        hint = _file("resume", word, typed.command)
    elif path.is_dir() and (word not in TASKS or is_last):
        hint = _folder(word, typed.command)
    elif path.is_file() and typed.command == "inference":
        hint = Hint((f"source={for_hydra(word)}",))
    elif word in TASKS and not Path(CONFIG_DIR, word).is_dir():
        hint = Hint(note=TASKS[word])
    elif word.startswith(("/", "./", "../", "~/")) or word.endswith("/"):
        images = _folder("PATH", typed.command).words[0]
        hint = Hint(note=f"{word} does not exist either. To choose a folder of images, type {images}.")
    elif Path(CONFIG_DIR, "experiment", f"{word}.yaml").is_file():
        hint = Hint((f"experiment={word}",))
    elif word in torchvision_names() and typed.command == "train":
        hint = Hint((f"model.net.name={word}",))
    elif word == "latest":
        hint = Hint(({"train": "resume=latest", "visualise": "run=latest"}.get(typed.command, "ckpt_path=latest"),))
    elif word in VIEWS and typed.command == "visualise":
        hint = Hint((f"mode={word}",))
    elif word == "help":
        hint = Hint(note="See --help.")
    return Finding(word, what, hint or Hint(note="Settings are typed as KEY=VALUE (--help)."), hint is None)


def _setting(word: str, typed: Typed) -> Finding | None:
    key, value = override_key(word), override_value(word)
    plain = value.strip("'\"")
    root, _, last = key.partition(".")
    if root == "hydra" or "@" in key:
        return None
    if "/" in key or typed.is_group(key):
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
    elif key == "plots" and not plain.startswith(("{", "$")):
        hint, what = meaning(key, plain), f"{key} holds several settings."
    elif key in NULLABLE and is_word_for_null(plain):
        hint, what = Hint((f"{key}=null",)), f"{word}: {plain} is a text here."
    elif key == "tags" and not plain.startswith(("[", "$")):
        hint, what = Hint((f"tags=[{value}]",)), "tags is a list."
    elif key in ("monitor", "optimized_metric") and re.fullmatch(r"\w+_\w+", plain):
        hint, what = Hint((monitor_hint(plain).words[0],)), f"{word}: the name of a metric begins with its stage."
    elif root == "trainer" and last not in shipped()["lightning.pytorch.Trainer"]["properties"]:
        hint = meaning(key, value)
    elif key in ("model.net", "model.optimizer", "model.scheduler", "data.dataset"):
        is_name = re.fullmatch(r"\w+(,\w+)*" if typed.sweep else r"\w+", plain) is not None and plain.lower() != "null"
        hint, what = _meaning(key, plain, typed) if is_name else None, f"{key} holds several settings."
    elif root not in typed.settings:
        return _foreign(word, typed)
    else:
        hint = next((hint for node, hint in NODES.items() if f"{key}.".startswith(f"{node}.")), None)
    return Finding(word, what, hint) if hint is not None else None


def _foreign(word: str, typed: Typed) -> Finding | None:
    """A setting whose first part Imago does not have: one of another trainer, or one without the name of its group."""
    key, value = override_key(word), override_value(word)
    plain = value.strip("'\"")
    root = key.partition(".")[0]
    what = f"Unknown setting {key}."
    of_part = key.rpartition(".")[0]
    if of_part in typed.parts and right_place(of_part) is not None:  # an argument of that part
        return Finding(word, what, UNKNOWN, True)
    is_folder = root in ("data", "dataset", "source") and Path(plain).expanduser().is_dir()
    hint = _folder(plain, typed.command) if is_folder else meaning_for(typed.command, key, plain)
    hint = hint or _meaning(key, value, typed)
    if hint is None and key.startswith("extras."):
        hint = meaning("extras", value)
    if typed.private and root == "max_grad_norm":
        hint = Hint((f"strategy.max_grad_norm={value}",))
    if hint == Hint((f"model.init_from={for_hydra(plain)}",)) and typed.command != "train":
        hint = _file("model", plain, typed.command)
    if hint is None and "." not in key and len(named := settings_named(key, typed.command)) == 1:
        hint = Hint((f"{named[0]}={value}",))
    return Finding(word, what, hint or UNKNOWN, hint is None)


def _meaning(key: str, value: str, typed: Typed) -> Hint | None:
    """The hint for a foreign setting, whose values in a sweep are separated by commas."""
    is_swept = typed.sweep and re.fullmatch(r"[\w./-]+(,[\w./-]+)+", value) is not None
    return (meaning_of_sweep(key, value) if is_swept else None) or meaning(key, value)


def _option(word: str, group: str, value: str, typed: Typed) -> Finding | None:
    """A foreign value of a group: a folder for `data`, the name of a network for `model`, or several options."""
    if value.startswith("[") and (one := one_option(group, value, typed)) is not None:
        return Finding(word, f"{word}: {group} takes one option.", one)
    is_file = not (value in ("null", *NOT_FILES) or value.startswith(("[", "{", "$")) or "," in value)
    if not is_file or typed.has_option(group, value):
        return None
    what = f"{word}: {group} has no option {value}."
    hint = OPTIONS.get((group, value.lower()))
    if group in NULLABLE and is_word_for_null(value):
        hint = Hint((f"{group}=null",))
    path = Path(value).expanduser()
    is_run = typed.command in FROM_CHECKPOINT and (path.is_dir() or value == "latest")
    if group == "data" and (path.is_dir() or value.startswith(("/", "./", "../", "~"))):
        hint, what = _folder(value, typed.command), "data= chooses a kind of data. A folder has a setting of its own."
    elif group == "data" and value.lower() in map(str.lower, MEMORY_SETS):
        hint = dataset_hint(value)
    elif group == "model" and (path.suffix in WEIGHTS or is_run):
        hint = _file("model", value, typed.command)
        what = f"model= chooses a kind of network. A {'run' if is_run else 'file of weights'} has a setting of its own."
    elif group == "model" and ((chosen := model_hint(value)).words or is_ultralytics(value)):
        of_torchvision = "model.net.name=" in str(chosen.words)
        of_experiment = ("model=torchvision",) if typed.experiment and of_torchvision else ()  # another kind of network
        hint = Hint((*of_experiment, *chosen.words), chosen.note)
        what = f"{word}: {chosen.words[0].rpartition('=')[2]} is a network of torchvision." if of_torchvision else what
    if hint is not None:
        return Finding(word, what, hint)
    if not typed.is_group(group):
        return Finding(word, f"Unknown setting {group}.", meaning(group, value) or UNKNOWN, True)
    note = f"There is no such option: the options of {group} are {', '.join(typed.options(group))}."
    return Finding(word, what, Hint(note=note), True)


def one_option(group: str, value: str, typed: Typed) -> Hint | None:
    """The hint for several options of a group of which one can be chosen: the last would replace the others."""
    first, *others = re.findall(r"[\w-]+", value) or [""]
    if group not in OF_ONE_OPTION or not others:
        return None
    words = [f"{group}={first}"]
    for name in others if group == "trainer" else ():
        files = [Path(folder, group, f"{name}.yaml") for folder in (Path(CONFIG_DIR), *typed.folders)]
        texts = (file.read_text(encoding="utf-8") for file in files if file.is_file())
        content = yaml.safe_load(next(texts, "{}"))
        words += [f"{group}.{key}={content[key]}" for key in content if key not in ("defaults", "_target_")]
    return Hint(tuple(words))


def _folder(value: str, command: str) -> Hint:
    if command == "inference":
        labels = f"If it has a folder for each class, type data.data_dir={for_hydra(value)}"
        return Hint((f"source={for_hydra(value)}",), labels)
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
            return Hint((f"resume={for_hydra(str(folder))}",), "To score it, type ml-eval ckpt_path=RUN.")
        return Hint((f"ckpt_path={quoted}",), "This trains on from it.")
    return weights_hint(value)


def _quoted(value: str, typed: Typed) -> str:
    """The value of a flag as an override needs it; a comma separates the values of a sweep."""
    is_plain = value.lower() in (*YES, *NO) or value.startswith(("[", "{", "$")) or (typed.sweep and "," in value)
    return value if is_plain else for_hydra(value)

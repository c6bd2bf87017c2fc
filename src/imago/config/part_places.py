"""Where a loss, a metric, a transform or a network of one's own goes: for those that stand a level too high."""

import re
import shlex
from collections.abc import Iterable, Sequence

from omegaconf import DictConfig, OmegaConf

from imago.config.invocation import override_key, override_value
from imago.config.tree import nodes

LOSSES = "model.criterions.criterions"
NET = "model.net"
METRICS = "callbacks.metrics.metrics.metrics"
CLASS_ARGUMENTS = (
    "output_size",
    "output_dim",
    "out_dim",
    "n_classes",
    "nb_classes",
    "num_labels",
    "n_out",
    "num_outputs",
)
"""Names that networks of other projects give to `num_classes`."""
A_LOSS = f"A loss goes below {LOSSES}"
A_METRIC = f"A metric goes below {METRICS}"
A_TRANSFORM = (
    "A transform of single images goes below data.{which}.pixels, one of whole batches below data.{which}.batch"
)
PLACES: tuple[tuple[str, str, str], ...] = (  # path of a part -> what is said, where it goes
    (r"model\.criterions\.(?!criterions$)\w+", A_LOSS, LOSSES),
    (r"(model\.)?(criteri(on|a)|loss(es|_fn|_function)?)(\.\w+)?", A_LOSS, LOSSES),
    (r"criterions(\.criterions)?\.\w+", A_LOSS, LOSSES),
    (r"callbacks\.metrics(\.metrics)?\.(?!metrics$)\w+", A_METRIC, METRICS),
    (r"(model\.|callbacks\.)?metric\.\w+", A_METRIC, METRICS),
    (r"(model\.)?metrics(\.metrics){0,2}\.\w+", A_METRIC, METRICS),
    (
        r"data\.(?P<which>train_transform|eval_transform)\.(?!box$|pixels$|batch$)\w+",
        A_TRANSFORM,
        "data.{which}.pixels",
    ),
    (r"(data\.)?(?P<which>train_transform|eval_transform)s?(\.\w+)?", A_TRANSFORM, "data.{which}.pixels"),
    (r"data\.transforms?\.\w+", A_TRANSFORM, "data.train_transform.pixels"),
    (r"(data\.)?(transforms?|augment(ation)?s?)(\.\w+)?", A_TRANSFORM, "data.train_transform.pixels"),
    (r"net(work)?|model\.(network|backbone)", "A network is model.net", NET),
)


def how_to_take_classes(target: str, arguments: Iterable[str], node: Iterable[str]) -> str:
    """Advice for a network that does not take `num_classes`, by its `arguments` and by the keys of its node."""
    name = next((name for name in CLASS_ARGUMENTS if name in arguments), None)
    if name is None:
        return f"Add this argument to {target}"
    deleted = f", and delete {name} from model.net" if name in node else ""
    return f"Rename {name} to num_classes in {target}{deleted}"


def is_class(value: str) -> bool:
    """Whether a value looks like the name of a class or a function, with that of its module."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) is not None


def right_place(path: str) -> tuple[str, str] | None:
    """Rule that a part at `path` breaks, and where it belongs; None for a path that is right, or unheard of."""
    for pattern, what, place in PLACES:
        if (match := re.fullmatch(pattern, path)) is not None:
            which = match.groupdict().get("which") or "train_transform"
            entry = "" if place == NET else f".{path.rpartition('.')[2]}"
            return what.format(which=which), place.format(which=which) + entry
    return None


def moved_words(path: str, place: str, typed: Sequence[str]) -> tuple[str, ...]:
    """The typed words of a part at `path`, as they are typed where it belongs."""
    return tuple(
        f"{'' if key == NET + '._target_' else '+'}{key}={override_value(word)}"
        for word in typed
        if f"{override_key(word)}.".startswith(f"{path}.")
        for key in [place + override_key(word).removeprefix(path)]
    )


def misplaced_part(key: str, cfg: DictConfig, typed: Sequence[str]) -> str | None:
    """Message for a setting that nothing takes, if a part was put there: where it goes, and what to type."""
    path = next((path for path, _ in nodes(OmegaConf.select(cfg, key, throw_on_missing=False), key)), None)
    rule = right_place(path) if path is not None else None
    if path is None or rule is None:
        return None
    what, place = rule
    words = moved_words(path, place, typed)
    return f"{what}. Type {' '.join(map(shlex.quote, words))}" if words else f"{what}: it is {place} there."

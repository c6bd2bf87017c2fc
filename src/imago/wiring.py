"""Transforms of dictionaries: each reads keys of a batch and adds keys to it, so that independent parts compose."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from imago.definitions import Batch
from imago.errors import MissingKeyError, UserError

NET = "net"


class ComposeTransform(nn.Module):
    """Run named transforms in order; each gets the batch merged with the results of the earlier ones.

    Args:
        unnamed: Transforms, `dict -> dict`, that run first; None is skipped.
        named: Transforms by name, that run next; None is skipped.
    """

    def __init__(self, *unnamed: Callable[[Batch], Batch] | None, **named: Callable[[Batch], Batch] | None) -> None:
        super().__init__()
        named = {f"step {number}": step for number, step in enumerate(unnamed)} | named
        self.steps = {name: step for name, step in named.items() if step is not None}
        self.registered = nn.ModuleList(step for step in self.steps.values() if isinstance(step, nn.Module))

    def forward(self, batch: Batch) -> Batch:
        for name, step in self.steps.items():
            try:
                added = step(batch)
            except MissingKeyError as error:
                raise MissingKeyError(f"{name}: {error}") from error
            except Exception as error:
                error.add_note(f"while running {name}, which gets the batch, a dictionary")
                raise
            if not isinstance(added, dict):
                raise UserError(
                    f"{name} returns a {type(added).__name__}. A transform of batches returns a dictionary with the "
                    "entries that it adds or changes, for example {'image': image}."
                )
            batch = batch | added
        return batch

    def bind(self, net: nn.Module) -> None:
        """Pass `net` to every step that asks for it with `transform: net`."""
        for name, step in self.steps.items():
            if isinstance(step, ComposeTransform | WrapTransform):
                try:
                    step.bind(net)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error


class WrapTransform(nn.Module):
    """Turn any callable into a transform of dictionaries.

    Args:
        transform: Callable, or the word `net` for the network of the module that runs the transform.
        mapping: Batch key -> argument of the callable.
        new_key: Key of the result; if None, the callable returns a dictionary.
    """

    def __init__(
        self, transform: Callable[..., Any] | str, mapping: Mapping[str, str], new_key: str | None = None
    ) -> None:
        super().__init__()
        if isinstance(transform, str) and transform != NET:
            raise UserError(
                f"transform must be a callable, or {NET!r} for the network of the module; got {transform!r}."
            )
        self.transform = transform
        self.mapping = dict(mapping)
        self.new_key = new_key

    def forward(self, batch: Batch) -> Batch:
        assert callable(self.transform), "bind() gives the net before the first batch"
        result = self.transform(**arguments(batch, self.mapping))
        return {self.new_key: result} if self.new_key is not None else result

    def bind(self, net: nn.Module) -> None:
        """Use `net` if the config says `transform: net`."""
        if self.transform == NET:
            _check_call(net, self.mapping)
            object.__setattr__(self, "transform", net)  # not a submodule: its owner saves the weights


class RenameTransform(nn.Module):
    """Return entries of a batch under new keys.

    Args:
        mapping: Old key -> new key.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        super().__init__()
        self.mapping = dict(mapping)

    def forward(self, batch: Batch) -> Batch:
        return arguments(batch, self.mapping)


class TorchVisionTransform(nn.Module):
    """Apply a torchvision transform to one entry of a batch.

    Args:
        transform: Callable, for example from `torchvision.transforms.v2`.
        key: Key of the entry that is replaced.
    """

    def __init__(self, transform: Callable[[Any], Any], key: str = "image") -> None:
        super().__init__()
        self.transform = transform
        self.key = key

    def forward(self, batch: Batch) -> Batch:
        return {self.key: self.transform(arguments(batch, {self.key: "value"})["value"])}


def arguments(batch: Batch, mapping: Mapping[str, str], call: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Return the entries of `batch` under the names of `mapping` (batch key -> argument) of `call`.

    Raises:
        MissingKeyError: The batch lacks a key; the message says if the mapping seems to be reversed.
    """
    if missing := sorted(mapping.keys() - batch.keys()):
        hint = ""
        close = {key: next(iter(difflib.get_close_matches(key, batch, n=1, cutoff=0.75)), None) for key in missing}
        if all(close.values()):
            hint = f" Did you mean {', '.join(map(str, close.values()))}?"
        elif set(mapping.values()) <= batch.keys():
            taken = _parameters(call)
            is_known = taken is not None and set(mapping.values()) <= taken and not mapping.keys() <= taken
            turned = ", ".join(f"{name}: {name if is_known else key}" for key, name in mapping.items())
            what = "Here it is" if is_known else "Reversed, it would be"
            hint = f" A mapping goes from batch key to argument. {what} {{{turned}}}."
        elif similar := difflib.get_close_matches(missing[0], batch, n=1):
            hint = f" Did you mean {similar[0]}?"
        raise MissingKeyError(f"The batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}.{hint}")
    return {argument: batch[key] for key, argument in mapping.items()}


def keys_read(step: Any) -> set[str]:
    """Keys of the batch that a transform reads, as far as its `mapping` says."""
    if isinstance(step, ComposeTransform):
        return {key for inner in step.steps.values() for key in keys_read(inner)}
    return {*step.mapping} if isinstance(step, WrapTransform | RenameTransform) else set()


def shapes_of(inputs: Mapping[str, Any]) -> str:
    """Arguments of a call, with type and shape of each tensor: `input float32 (8, 3), target int64 (8,)`."""
    return ", ".join(
        f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else name
        for name, value in inputs.items()
    )


def check_names(setting: str, entries: Collection[str], known: Collection[str], kind: str) -> None:
    """Raise UserError if the `entries` of a setting are not all `known` names, those of the `kind`."""
    if unknown := sorted(set(entries) - set(known)):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"{setting} names {', '.join(unknown)}, but the {kind} are {', '.join(known)}.{meant}")


def _parameters(call: Callable[..., Any] | None) -> set[str] | None:
    """Names of the arguments that a callable takes; None if they are unknown."""
    try:
        return set(inspect.signature(call).parameters) if call is not None else None
    except (TypeError, ValueError):
        return None


def _check_call(net: nn.Module, mapping: Mapping[str, str]) -> None:
    """Raise UserError if `net` does not take the arguments of `mapping`."""
    try:
        signature = inspect.signature(net.forward)
        signature.bind(**dict.fromkeys(mapping.values()))
    except ValueError:  # it has no signature
        return
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise UserError(
            f"{type(net).__name__}.forward takes {names}, but is called with {', '.join(mapping.values())}. A mapping "
            "goes from batch key to argument."
        ) from error

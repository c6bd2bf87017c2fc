"""Options that all kinds of data share: `ImageDataModule` has their meaning and their defaults."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from imago.definitions import Batch, Interpolation, Positive, ZeroOrMore, ZeroOrMoreFloat


class DataOptions(TypedDict, total=False):
    """Keyword arguments of every data module, with the types that configs are checked against."""

    image_size: Positive | Sequence[int]
    batch_size: Positive | Literal["auto"]
    num_workers: ZeroOrMore | None
    on_bad_image: Literal["error", "skip"]
    cache_dir: str
    cache: Literal["none", "ram", "disk", "auto"]
    cache_gb: ZeroOrMoreFloat | None
    fit: Literal["crop", "squash", "pad"]
    fill: Sequence[int]
    interpolation: Interpolation
    transform: Callable[[Batch], Batch] | None
    pin_memory: bool | None
    prefetch_factor: Positive | None
    persistent_workers: bool
    relabel: str | None
    sampler: Literal["balanced", "sqrt", "weights"] | None
    sample_weights: Mapping[str, float] | None


class FileOptions(DataOptions, total=False):
    """Keyword arguments of data modules that decode image files."""

    range: Literal["auto"] | int
    icc: bool

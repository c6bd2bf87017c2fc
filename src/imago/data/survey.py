"""What a run checks in all images before it begins: faults, value ranges, and cropped ends."""

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock

from imago.data.cache import FORMAT
from imago.data.colour import range_of
from imago.data.crops import seen_fraction
from imago.data.decode import BadImageError
from imago.data.headers import without_frames
from imago.data.images import Images, ImageSets
from imago.data.transforms import ImageTransform
from imago.errors import UserError
from imago.files import write_text
from imago.resources import usable_cores
from imago.terminal import counted, shortened

log = logging.getLogger(__name__)

MOST_NAMED = 10  # files in a message
COLOURS = " of colours"
SAMPLE = 200  # images that represent all
LITTLE_SEEN = 0.5  # of an image: crops of photographs of 4:3 and 3:2 pixels show more
PART = 100  # images that a thread checks in a row: handing them out one by one takes as long as reading headers


def leave_out_bad_images(sets: ImageSets, cache_dir: Path) -> list[str]:
    """Leave the unreadable images out of `sets`; return their errors, sorted."""
    errors: list[str] = []
    for name, images in sets.splits.items():
        log.info(
            "data.on_bad_image=skip: checking the %s of %s for unreadable ones", counted(len(images), "image"), name
        )
        reasons = _cached_scan("bad_images", sets.root, images, cache_dir, _reason)
        errors += reasons.values()
        if reasons:
            sets.leave_out(name, reasons, "readable ")
    return sorted(errors)


def check_headers(sets: ImageSets, cache_dir: Path, advice: str = "") -> None:
    """Raise BadImageError with all files whose header or end shows that they are no images; `advice` replaces that for
    a run."""
    errors: list[str] = []
    for images in sets.splits.values():
        look = type(images).fault
        if look is Images.fault:  # files that say nothing without decoding
            continue
        errors += _cached_scan("faults", sets.root, images, cache_dir, look).values()
    if errors:
        advice = advice or (
            "Repair or remove them, or skip them with data.on_bad_image=skip. For details, and a list for "
            f"data.exclude=: ml-doctor data.data_dir={sets.root}"
        )
        raise BadImageError(
            f"{counted(len(errors), 'file')} cannot be used as {'an image' if len(errors) == 1 else 'images'}:\n  "
            + "\n  ".join(sorted(errors)[:MOST_NAMED])
            + (f"\n  and {len(errors) - MOST_NAMED} more" if len(errors) > MOST_NAMED else "")
            + f"\n{advice}"
        )


def _cached_scan(
    what: str, root: str, images: Images, cache_dir: Path, look: Callable[[Any, int], BadImageError | str | None]
) -> dict[str, str]:
    """Map paths to what `look` reports, above all faults; cached until the images, or Pillow, change."""
    key = hashlib.sha256(
        f"{root}\n{images.stamp(times=True)}\n{PIL.__version__} {FORMAT}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    memory = cache_dir / what / f"{key[:32]}.json"
    with ExitStack() as stack:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(memory.with_suffix(".lock")))  # only one of several processes scans
        except OSError as error:
            log.warning("The result of scanning the images could not be cached: %s", error)
        with suppress(OSError, ValueError):
            return json.loads(memory.read_text())
        parts = [range(first, min(first + PART, len(images))) for first in range(0, len(images), PART)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            errors = list(chain.from_iterable(pool.map(lambda part: [look(images, index) for index in part], parts)))
        passing = [str(error) for error in errors if isinstance(error, BadImageError) and not error.lasting]
        if passing:
            what = f"{passing[0]}{f' (and {len(passing) - 1} more such files)' if len(passing) > 1 else ''}"
            raise BadImageError(
                f"{what}. The image itself may be fine. Make sure that it can be read, and start again."
            )
        reasons = {path: str(error) for path, error in zip(images.paths, errors, strict=True) if error is not None}
        with suppress(OSError):
            write_text(memory, json.dumps(reasons))
        return reasons


def _reason(images: Images, index: int) -> BadImageError | None:
    try:
        images.read(index)
    except BadImageError as error:
        return without_frames(error)
    return None


def chosen_range(sets: ImageSets, cache_dir: Path) -> int:
    """Return the white value for `data.range=auto`, by the largest values of the images."""
    images = sets.splits.get("train") or next(iter(sets.splits.values()))
    values = _cached_scan("largest_values", sets.root, images, cache_dir, _largest_value)
    greatest = range_of(max((int(value.partition(" ")[0]) for value in values.values()), default=65535))
    of_colours = [path for path, value in values.items() if value.endswith(COLOURS)]
    if greatest < 65535 and of_colours:
        have = f"{counted(len(of_colours), 'image')} {'has' if len(of_colours) == 1 else 'have'}"
        raise UserError(
            f"{have} 16 bits per colour, of which 8 are read, but the largest value is {greatest} of 65535 "
            f"({shortened(of_colours)}): they would be nearly black. Convert them to 8 bits, scaled to the full range. "
            "To use them as they are, type data.range=65535"
        )
    return greatest


def _largest_value(images: Images, index: int) -> str | None:
    with suppress(BadImageError):  # reported elsewhere
        value, of_colours = images.largest_value(index)
        return f"{value}{COLOURS if of_colours else ''}" if value else None
    return None


def notes_on_pixels(
    sets: ImageSets, asked: str | int, greatest: int, icc: bool, transform: ImageTransform
) -> list[str]:
    """Return notes on what is not seen of the images, and on the value taken for white."""
    notes = []
    if asked == "auto" and greatest < 65535:
        notes.append(f"16-bit images have no value above {greatest} of 65535, which is read as white (data.range=auto)")
    images = sets.splits.get("train")
    if images is None:
        return notes
    some = sorted({round(index) for index in np.linspace(0, len(images) - 1, SAMPLE)})
    if transform.is_fixed:
        shapes = [shape for index in some if (shape := images.shape(index)) is not None]
        seen = sorted(seen_fraction(transform.box, *shape) for shape in shapes)
        if seen and (median := seen[len(seen) // 2]) < LITTLE_SEEN:
            notes.append(
                f"the network sees {median:.0%} of an image (median), because the rest is cropped. To show all of it, "
                "type data.fit=pad or data.fit=squash"
            )
    if not icc and (count := sum(images.profile(index) == "converted" for index in some)):
        notes.append(f"{count} of {len(some)} images have a colour profile that is ignored (data.icc=false)")
    return notes

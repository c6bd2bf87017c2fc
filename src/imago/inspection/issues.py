"""What can be wrong with the images of a data set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imago.data.tree import SUFFIXES, is_image
from imago.definitions import SPLITS

ERROR, WARNING, NOTE = "error", "warning", "note"
KINDS: dict[str, tuple[str, str]] = {  # level, and what it means
    "unreadable": (ERROR, "files without read permission, or broken links"),
    "empty file": (ERROR, "files of zero bytes"),
    "not an image": (ERROR, "files that no decoder recognises"),
    "decompression bomb": (ERROR, "files whose headers claim more pixels than are safe to decode"),
    "damaged": (ERROR, "files that cannot be decoded completely"),
    "unsupported pixels": (ERROR, "files with pixels that decoders would misread, such as floats"),
    "damaged shard": (ERROR, "shards that are missing, truncated or changed since they were written"),
    "empty class": (ERROR, "class folders without a usable image"),
    "unknown class": (ERROR, "classes that are missing in train"),
    "same folder": (ERROR, "classes that are the same folder, through a link"),
    "refused": (ERROR, "the folder cannot be used for training"),
    "leak": (ERROR, "the same file in two splits, which makes scores too good"),
    "two labels": (ERROR, "the same file under two classes"),
    "dot-underscore file": (WARNING, "metadata files of macOS; not used"),
    "format not read": (WARNING, "photographs that are skipped, for example HEIC: convert them to JPEG or PNG"),
    "ignored file": (
        WARNING,
        f"files outside class folders, or without one of {' '.join(SUFFIXES)}; not used",
    ),
    "unused folder": (WARNING, "folders next to the splits"),
    "damaged inside": (WARNING, "JPEGs that decode, but with wrong pixels from some point on"),
    "cut off": (WARNING, "crops show little of an image; data.fit=pad or data.fit=squash shows all of it"),
    "wrong suffix": (WARNING, "files whose format differs from their suffix; they are read all the same"),
    "link loop": (WARNING, "links back into the folder; not followed"),
    "missing class": (WARNING, "classes of train that are missing in another split"),
    "tiny class": (WARNING, "classes of train with few images"),
    "imbalance": (WARNING, "the largest class of train compared with the smallest"),
    "duplicate": (WARNING, "the same file twice in a split; a leak if val is drawn from it"),
    "near-duplicate": (WARNING, "images that look the same"),
    "near-leak": (WARNING, "images that look the same in two splits"),
    "near-duplicate, two labels": (WARNING, "images that look the same under two classes"),
    "16 bits": (NOTE, "scaled to 8 bits when they are read"),
    "part of the range": (NOTE, "16-bit images that use fewer bits; data.range=auto scales them to the full range"),
    "colour profile": (NOTE, "converted to sRGB when they are read (data.icc=true)"),
    "unusable colour profile": (NOTE, "not converted, because the profile does not fit the image"),
    "unlabelled": (NOTE, "a test folder without class folders; not used"),
    "part of the picture": (
        NOTE,
        "crops leave out the ends of images; data.fit=pad or data.fit=squash shows all of them",
    ),
    "turned by EXIF": (NOTE, "rotated upright when they are read"),
    "transparent": (NOTE, "placed on a white background when they are read"),
    "several frames": (NOTE, "only the first one is used"),
}
UNUSABLE = ("unreadable", "empty file", "not an image", "decompression bomb", "damaged", "unsupported pixels")
ORDER = SPLITS
MOST_BITS, MOST_LEVELS = 3, 6.0  # by which near-duplicates may differ: of 64 bits, and in mean grey levels
WINDOW = 200  # images sharing a band that are compared with each other; if there are more, in the order of their hashes


@dataclass(frozen=True)
class Issue:
    """One fault; `path` is relative to the data folder, `other` is the file that it is compared with."""

    kind: str
    path: str
    detail: str = ""
    other: str = ""

    @property
    def level(self) -> str:
        """`error`, `warning` or `note`."""
        return KINDS[self.kind][0]


@dataclass
class Findings:
    """Result of a scan of `root`: the faults, the number of images scanned, and the files to leave out. `name`
    is that of a root which is no folder."""

    root: Path
    images: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    faults: list[Issue] = field(default_factory=list)
    name: str = ""

    @property
    def title(self) -> str:
        """Name of the data."""
        return self.name or str(self.root)

    @property
    def exit_status(self) -> int:
        """2 with errors, 1 with warnings, else 0."""
        levels = {fault.level for fault in self.faults}
        return 2 if ERROR in levels else 1 if WARNING in levels else 0

    def of_kind(self) -> dict[str, list[Issue]]:
        """Group the faults by kind, in the order of `KINDS`."""
        by_kind = {kind: [fault for fault in self.faults if fault.kind == kind] for kind in KINDS}
        return {kind: faults for kind, faults in by_kind.items() if faults}

    def to_exclude(self) -> dict[str, str]:
        """Map paths to the reason to leave them out: unusable images, all but one of equal files (that of test stays,
        or else of val), and all files that have two labels."""
        excluded: dict[str, str] = {}
        for fault in self.faults:
            is_bad = fault.kind in UNUSABLE and is_image(Path(fault.path).name)
            if is_bad or fault.kind in ("duplicate", "leak"):
                excluded.setdefault(fault.path, fault.kind + (f": {fault.other}" if fault.other else ""))
            elif fault.kind == "two labels":
                excluded |= {fault.path: f"two labels: {fault.other}", fault.other: f"two labels: {fault.path}"}
        return dict(sorted(excluded.items()))


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image file."""

    path: str
    split: str
    label: str
    faults: tuple[Issue, ...]
    digest: bytes = b""
    hash: int | None = None
    small: Any = None  # uint8 (8, 8, 3)
    largest: int = 0  # largest value of a 16-bit image
    fraction: float | None = None  # of the picture that the network sees

    @property
    def is_usable(self) -> bool:
        return not any(fault.kind in UNUSABLE for fault in self.faults)

"""Which images of which class stand in a tree of folders."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass
class Split:
    """Images of one split: paths relative to the data folder, and labels as indices of the class names."""

    paths: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: list[int]) -> "Split":
        """The images at `indices`, in that order."""
        return Split([self.paths[i] for i in indices], [self.labels[i] for i in indices])


@dataclass
class Tree:
    """What a data folder holds; `ignored` are the files that were not taken, `notes` what a user should know."""

    root: Path
    class_names: list[str]
    splits: dict[str, Split]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    drawn_val: dict[str, float] | None = None
    """`val_ratio` and `seed` where val was drawn from train."""


def read_tree(root: Path, val_ratio: float, seed: int) -> Tree:
    """Reads `train/ val/ test/`, `train/ val/`, `train/`, or class folders directly.

    Class names are the sorted class folders of the train split; other splits are matched to them by name. Without
    a `val` folder a stratified share `val_ratio` of train, drawn with `seed`, becomes the val split.
    """
    folders = _split_folders(root)
    found = {name: _class_folders(folder) for name, folder in folders.items()}
    class_names = sorted(found["train"])
    _check_classes(root, folders, found, class_names)
    tree = Tree(root, class_names, {})
    for folder in dict.fromkeys([root, *folders.values()]):  # each once: without splits, train is the root
        tree.ignored.extend(sorted(str(p.relative_to(root)) for p in folder.iterdir() if p.is_file()))
    if root not in folders.values():
        others = [path.name for path in _folders(root) if path not in folders.values()]
        tree.notes.extend(f"the folder {name} in {root} is no split: it is not used" for name in others)
    for split, classes in found.items():
        tree.splits[split] = _read_split(tree, classes)
    if "val" not in tree.splits:
        if not 0 < val_ratio < 1:
            raise ValueError(f"data.val_ratio={val_ratio}: give a share of train between 0 and 1; {root} has no val/.")
        tree.splits["train"], tree.splits["val"] = stratified_split(tree.splits["train"], val_ratio, seed)
        tree.drawn_val = {"val_ratio": val_ratio, "seed": seed}
        tree.notes.append(
            f"no val folder in {root}: {len(tree.splits['val'])} images of train "
            f"(data.val_ratio={val_ratio}, stratified, seed {seed}) are the val split"
        )
    for split, images in tree.splits.items():
        if not len(images):
            raise ValueError(
                f"{root} has too few images per class to draw a val split from train: give two or more of each."
                if tree.drawn_val is not None
                else f"The {split} split of {root} has no images ({', '.join(SUFFIXES)})."
            )
    return tree


def stratified_split(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """`split` in two, the second with `share` of each class, at least one image where a class has two or more."""
    generator = np.random.default_rng(seed)
    labels = np.array(split.labels)
    second: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        second.extend(members[:count].tolist())
    chosen = set(second)
    first = [index for index in range(len(split)) if index not in chosen]
    return split.select(first), split.select(sorted(second))


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"data.data_dir={root} {what}. Give a folder of class folders, or of train/ val/ test/."
        )
    inside = {folder.name.lower(): folder for folder in _folders(root)}
    found = {split: inside[name] for split, names in SPLIT_FOLDERS.items() for name in names[::-1] if name in inside}
    if "train" in found and _folders(found["train"]):
        return found
    if any(_folders(folder) for folder in found.values()):
        raise ValueError(f"{root} has {' and '.join(sorted(found))}, but no train/ with class folders in it.")
    if found and set(found.values()) == set(inside.values()):
        raise ValueError(f"{root} has {' and '.join(sorted(found))}, but without class folders in them.")
    return {"train": root}


def _class_folders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in _folders(folder)}


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _check_classes(
    root: Path, folders: dict[str, Path], found: dict[str, dict[str, Path]], class_names: list[str]
) -> None:
    if not class_names:
        hint = " The images stand in it directly: put those of each class into a folder of its own."
        has_images = any(_is_image(p.name) for p in root.iterdir())
        raise ValueError(f"{folders['train']} has no class folders.{hint if has_images else ''}")
    if len(class_names) == 1:
        raise ValueError(
            f"{folders['train']} has one class folder only ({class_names[0]}): a classifier needs two classes or more."
        )
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise ValueError(
                f"{folders[split]} has classes that train lacks: {', '.join(unknown)}.\n"
                f"  train: {', '.join(class_names)}\n  {split}: {', '.join(sorted(classes))}"
            )


def _read_split(tree: Tree, classes: dict[str, Path]) -> Split:
    split = Split([], [])
    for label, name in enumerate(tree.class_names):
        if name not in classes:
            continue
        files = _files(classes[name])
        images = [path for path in files if _is_image(path.name)]
        tree.ignored.extend(str(path.relative_to(tree.root)) for path in files if not _is_image(path.name))
        if not images:
            raise ValueError(
                f"{classes[name]} has no images ({', '.join(SUFFIXES)}); it has {len(files)} other files. "
                "Add images, or remove the folder."
            )
        split.paths.extend(path.relative_to(tree.root).as_posix() for path in images)
        split.labels.extend([label] * len(images))
    return split


def _files(folder: Path) -> list[Path]:
    """All files below `folder`, sorted; hidden folders are left out, and links that lead back into the walk."""
    found: list[Path] = []
    seen: set[str] = set()
    for directory, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        found.extend(Path(directory, name) for name in files)
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def class_counts(split: Split, class_names: list[str]) -> dict[str, int]:
    """Class name -> number of its images, for every class."""
    counts = Counter(split.labels)
    return {name: counts[label] for label, name in enumerate(class_names)}

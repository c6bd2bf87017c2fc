"""Image sets from folders named after their classes."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from imago.data.folder_images import FolderImages
from imago.data.folds import divide
from imago.data.images import ImageSets
from imago.data.tree import SUFFIXES, class_name, files_below, is_image, subfolders, walk
from imago.definitions import SPLIT_NAMES
from imago.errors import MissingFileError, UserError
from imago.terminal import counted, shortened

MOST_LISTED = 20  # names in a message


def read_tree(root: Path, val_ratio: float, seed: int) -> ImageSets:
    """Read the splits of a folder. Without a val split, a stratified fraction `val_ratio` of train, drawn with `seed`,
    becomes it."""
    tree = read_undrawn(root)
    divide(tree, val_ratio, seed)
    return tree


def read_undrawn(root: Path) -> ImageSets:
    """Read `train/ val/ test/`, `train/ val/`, `train/`, or class folders directly, and draw no splits.

    Class names are the sorted class folders of the train split; other splits are matched to them by name. A `test`
    folder without class folders is left out, with a note.

    Raises:
        FileNotFoundError, ValueError: As `split_folders`.
    """
    folders, unlabelled = labelled_splits(root)
    classes_of = {name: class_folders(folder) for name, folder in folders.items()}
    class_names = sorted(classes_of["train"])
    tree = ImageSets(str(root), class_names, {})
    for folder in unlabelled:
        _note_unlabelled(tree, folder)
    _check_classes(root, folders, classes_of, class_names)
    _read_splits(root, tree, folders, classes_of)
    return tree


def labelled_splits(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return `split_folders`, and separately the test folder if it has no class folders.

    Raises:
        FileNotFoundError, ValueError: As `split_folders`.
    """
    folders = split_folders(root)
    test = folders.get("test")
    if test is None or not _is_unlabelled(test, class_folders(test), list(class_folders(folders["train"]))):
        return folders, []
    return {split: folder for split, folder in folders.items() if split != "test"}, [test]


def read_labelled(root: Path, class_names: Sequence[str]) -> ImageSets:
    """Read images to score, of some of the classes `class_names`: any splits that exist, or class folders, which become
    the test split. Folders that are no class are left out, with a note.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, or nothing of these classes in it.
    """
    _check_is_folder(root)
    folders = _named_splits(root)
    if not any(subfolders(folder) for folder in folders.values()):
        folders = {"test": root} if not folders or any(name in class_names for name in class_folders(root)) else folders
    if list(folders) == ["train"]:
        folders = {"test": folders["train"]}
    tree, classes_of = ImageSets(str(root), list(class_names), {}), {}
    for split, folder in list(folders.items()):
        classes = class_folders(folder)
        for name in [name for name, path in classes.items() if not any(is_image(f.name) for f in files_below(path))]:
            tree.warnings.append(f"{classes.pop(name)} is not used, because it has no images")
        if not classes.keys() & set(class_names):
            _note_unlabelled(tree, folders.pop(split))
            continue
        classes_of[split] = {name: path for name, path in classes.items() if name in class_names}
        if unknown := sorted(classes.keys() - set(class_names)):
            count = sum(is_image(file.name) for name in unknown for file in files_below(classes[name]))
            tree.no_class[split] = count
            meant = _meant(unknown, class_names)
            are = f"{counted(count, 'image')} of {split} {'is' if count == 1 else 'are'}"
            tree.warnings.append(f"{are} in folders that are not a class: {_listed(unknown)}.{meant}")
    if not classes_of:
        there = sorted({path.name for folder in (root, *_named_splits(root).values()) for path in subfolders(folder)})
        raise UserError(
            f"{root} has no folder for any class of the checkpoint.{_meant(there, class_names)}\n"
            f"  checkpoint: {_listed(class_names)}\n  folders:    {_listed(there) or 'none'}\n"
            f"For images without labels, type ml-inference source={root}"
        )
    _read_splits(root, tree, folders, classes_of)
    return tree


def _read_splits(root: Path, tree: ImageSets, folders: dict[str, Path], classes_of: dict[str, dict[str, Path]]) -> None:
    for folder in dict.fromkeys([root, *folders.values()]):  # once per folder: without splits, all are the root
        tree.ignored.extend(sorted(str(p.relative_to(root)) for p in folder.iterdir() if p.is_file()))
    if root not in folders.values():
        unlabelled = [path for path in _named_splits(root).values() if path not in folders.values()]  # noted already
        unused = [path.name for path in subfolders(root) if path not in [*folders.values(), *unlabelled]]
        tree.warnings.extend(f"the folder {name} in {root} is not used, because it is not a split" for name in unused)
    for split, classes in classes_of.items():
        tree.splits[split] = _read_split(root, tree, classes)


def _is_unlabelled(folder: Path, classes: Mapping[str, Path], class_names: Sequence[str]) -> bool:
    """Whether images lie directly in `folder`, or in one folder that neither is nor resembles a class."""
    if not classes:
        return any(is_image(path.name) for path in folder.iterdir())
    return len(classes) == 1 and not classes.keys() & set(class_names) and not _meant(list(classes), class_names)


def _note_unlabelled(tree: ImageSets, folder: Path) -> None:
    tree.notes.append(
        f"{folder} is not used, because it has no class folders. To predict it: ml-inference source={folder}"
    )


def class_tree(root: Path) -> tuple[list[str], FolderImages]:
    """Return the class names and all images of a folder of class folders.

    Raises:
        ValueError: The folder has splits already, or no classes.
    """
    folders = split_folders(root)
    if folders != {"train": root}:
        raise UserError(f"{root} is already split into {', '.join(folder.name for folder in folders.values())}.")
    classes = class_folders(root)
    _check_classes(root, folders, {"train": classes}, sorted(classes))
    return sorted(classes), _read_split(root, ImageSets(str(root), sorted(classes), {}), classes)


def split_folders(root: Path) -> dict[str, Path]:
    """Map splits to their folders; class folders alone are train.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, or no train split in it.
    """
    _check_is_folder(root)
    splits = _named_splits(root)
    inside = set(subfolders(root))
    if "train" in splits and subfolders(splits["train"]):
        _check_train_is_a_split(root, splits)
        return splits
    if any(subfolders(folder) for folder in splits.values()):
        raise UserError(
            f"{root} has {' and '.join(sorted(splits))}, but no train/ with class folders in it. To score a checkpoint "
            f"on it, type ml-eval ckpt_path=RUN data.data_dir={root}"
        )
    if splits and set(splits.values()) == inside:
        raise UserError(f"{root} has {' and '.join(sorted(splits))}, but without class folders in them.")
    return {"train": root}


def _check_is_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise MissingFileError(
            f"data.data_dir={root} {what}. It must be a folder with class folders, or with train/ val/ test/."
        )


def _named_splits(root: Path) -> dict[str, Path]:
    inside = {folder.name.lower(): folder for folder in subfolders(root)}
    return {split: inside[name] for split, names in SPLIT_NAMES.items() for name in names[::-1] if name in inside}


def _check_train_is_a_split(root: Path, splits: Mapping[str, Path]) -> None:
    """Raise ValueError if `train` is the only folder named like a split, and similar folders lie beside it."""
    if set(splits) != {"train"}:
        return
    classes = {class_name(path.name) for path in subfolders(splits["train"])}
    beside = [path for path in subfolders(root) if path != splits["train"]]
    like = [path.name for path in beside if _has_images(path) and not {f.name for f in subfolders(path)} & classes]
    if like:
        raise UserError(
            f"{root} has train/ with folders in it, and {_listed(like)} with images next to it. If train is one of the "
            f"classes, rename it; if it is a split, type data.data_dir={splits['train']}"
        )


def _has_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in walk(folder, loop=lambda path: None, unreadable=lambda error: None))


def class_folders(folder: Path) -> dict[str, Path]:
    """Map classes to their folders in the folder of a split.

    Raises:
        ValueError: Two folders are the same class in two spellings.
    """
    folders: dict[str, Path] = {}
    for path in subfolders(folder):
        if (name := class_name(path.name)) in folders:
            raise UserError(f"{folder} has {name} twice: {folders[name].name!a} and {path.name!a}. Merge them.")
        folders[name] = path
    return folders


def _check_classes(
    root: Path, folders: dict[str, Path], classes_of: dict[str, dict[str, Path]], class_names: list[str]
) -> None:
    if not class_names:
        hint = " It has images: put those of each class into a folder of their own."
        has_images = any(is_image(p.name) for p in root.iterdir())
        raise UserError(f"{folders['train']} has no class folders.{hint if has_images else ''}")
    if len(class_names) == 1:
        raise UserError(
            f"{folders['train']} has only one class folder ({class_names[0]}). A classifier needs two classes or more."
        )
    for split, classes in classes_of.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise UserError(
                f"{folders[split]} has classes that are missing in train: "
                f"{_listed(unknown)}.{_meant(unknown, class_names)}\n  train: {_listed(class_names)}\n  {split}: "
                f"{_listed(sorted(classes))}"
            )


def _listed(names: Sequence[str]) -> str:
    """Join names in one line; those with blanks at their ends are quoted."""
    return shortened((name if name == name.strip() else repr(name) for name in names), MOST_LISTED)


def _meant(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """Suggest known names that differ only in case and blanks, or nearly so."""
    known = {name.strip().casefold(): name for name in class_names}
    pairs = [(name, difflib.get_close_matches(name.strip().casefold(), known, n=1, cutoff=0.8)) for name in unknown]
    meant = [f"{known[close[0]]!r} for {name!r}" for name, close in pairs[:MOST_LISTED] if close]
    return f" Did you mean {', '.join(meant)}?" if meant else ""


def _read_split(root: Path, tree: ImageSets, classes: dict[str, Path]) -> FolderImages:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(tree.class_names):
        if name not in classes:
            continue
        files = files_below(classes[name])
        images = [path for path in files if is_image(path.name)]
        tree.ignored.extend(str(path.relative_to(root)) for path in files if not is_image(path.name))
        if not images:
            others = f", only {len(files)} other file{'s' if len(files) > 1 else ''}" if files else ""
            raise UserError(
                f"{classes[name]} has no images ({', '.join(SUFFIXES)}){others}. Add images, or remove the folder."
            )
        paths.extend(path.relative_to(root).as_posix() for path in images)
        labels.extend([label] * len(images))
    return FolderImages(root, paths, labels)

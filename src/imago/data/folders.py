"""Which images of which class stand in a tree of folders."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from imago.data.folder_images import FolderImages
from imago.data.images import ImageSets
from imago.data.tree import SUFFIXES, class_name, files_below, is_image, subfolders, walk
from imago.definitions import SPLIT_NAMES
from imago.errors import MissingFileError, UserError
from imago.terminal import shortened

MOST_LISTED = 20  # names in a message


def read_tree(root: Path, val_ratio: float, seed: int) -> ImageSets:
    """Reads `train/ val/ test/`, `train/ val/`, `train/`, or class folders directly.

    Class names are the sorted class folders of the train split; other splits are matched to them by name. Without
    a `val` folder a stratified share `val_ratio` of train, drawn with `seed`, becomes the val split. A `test` folder
    without class folders is left out, and said.
    """
    folders, unlabelled = labelled_splits(root)
    found = {name: class_folders(folder) for name, folder in folders.items()}
    class_names = sorted(found["train"])
    tree = ImageSets(str(root), class_names, {})
    for folder in unlabelled:
        _note_unlabelled(tree, folder)
    _check_classes(root, folders, found, class_names)
    _read_splits(root, tree, folders, found)
    tree.draw_val(val_ratio, seed)
    return tree


def labelled_splits(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """`split_folders`, and the test folders among them that have no class folders.

    Raises:
        FileNotFoundError, ValueError: As `split_folders`.
    """
    folders = split_folders(root)
    test = folders.get("test")
    if test is None or not _is_unlabelled(test, class_folders(test), list(class_folders(folders["train"]))):
        return folders, []
    return {split: folder for split, folder in folders.items() if split != "test"}, [test]


def read_labelled(root: Path, class_names: Sequence[str]) -> ImageSets:
    """Reads images to score, of some of the classes `class_names`: splits, whichever there are, or class folders, which
    are then the test split. Folders that are no class are left out, and said.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, or nothing of these classes in it.
    """
    _check_is_folder(root)
    folders = _named_splits(root)
    if not any(subfolders(folder) for folder in folders.values()):
        folders = {"test": root} if not folders or any(name in class_names for name in class_folders(root)) else folders
    if list(folders) == ["train"]:
        folders = {"test": folders["train"]}
    tree, found = ImageSets(str(root), list(class_names), {}), {}
    for split, folder in list(folders.items()):
        classes = class_folders(folder)
        for name in [name for name, path in classes.items() if not any(is_image(f.name) for f in files_below(path))]:
            tree.notes.append(f"{classes.pop(name)} has no images: it is not used")
        if not classes.keys() & set(class_names):
            _note_unlabelled(tree, folders.pop(split))
            continue
        found[split] = {name: path for name, path in classes.items() if name in class_names}
        if others := sorted(classes.keys() - set(class_names)):
            count = sum(is_image(file.name) for name in others for file in files_below(classes[name]))
            tree.no_class[split] = count
            meant = _meant(others, class_names)
            tree.notes.append(f"{count} images of {split} are in folders that are no class: {_listed(others)}.{meant}")
    if not found:
        there = sorted({path.name for folder in (root, *_named_splits(root).values()) for path in subfolders(folder)})
        raise UserError(
            f"{root} has no folder of a class of the checkpoint.{_meant(there, class_names)}\n"
            f"  checkpoint: {_listed(class_names)}\n  folders:    {_listed(there) or 'none'}\n"
            f"Images without labels are for ml-inference source={root}"
        )
    _read_splits(root, tree, folders, found)
    return tree


def _read_splits(root: Path, tree: ImageSets, folders: dict[str, Path], found: dict[str, dict[str, Path]]) -> None:
    for folder in dict.fromkeys([root, *folders.values()]):  # each once: without splits, they are the root
        tree.ignored.extend(sorted(str(p.relative_to(root)) for p in folder.iterdir() if p.is_file()))
    if root not in folders.values():
        unlabelled = [path for path in _named_splits(root).values() if path not in folders.values()]  # said already
        others = [path.name for path in subfolders(root) if path not in [*folders.values(), *unlabelled]]
        tree.notes.extend(f"the folder {name} in {root} is no split: it is not used" for name in others)
    for split, classes in found.items():
        tree.splits[split] = _read_split(root, tree, classes)


def _is_unlabelled(folder: Path, classes: Mapping[str, Path], class_names: Sequence[str]) -> bool:
    """Whether images stand in it directly, or in one folder that is no class and resembles none."""
    if not classes:
        return any(is_image(path.name) for path in folder.iterdir())
    return len(classes) == 1 and not classes.keys() & set(class_names) and not _meant(list(classes), class_names)


def _note_unlabelled(tree: ImageSets, folder: Path) -> None:
    tree.notes.append(f"{folder} has no class folders: it is not used. Predict it with ml-inference source={folder}")


def class_tree(root: Path) -> tuple[list[str], FolderImages]:
    """The class names and all images of a folder of class folders.

    Raises:
        ValueError: It has splits already, or no classes.
    """
    folders = split_folders(root)
    if folders != {"train": root}:
        raise UserError(f"{root} is split already: it has {', '.join(folder.name for folder in folders.values())}.")
    classes = class_folders(root)
    _check_classes(root, folders, {"train": classes}, sorted(classes))
    return sorted(classes), _read_split(root, ImageSets(str(root), sorted(classes), {}), classes)


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder; class folders alone are train.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, or no train split in it.
    """
    _check_is_folder(root)
    found = _named_splits(root)
    inside = set(subfolders(root))
    if "train" in found and subfolders(found["train"]):
        _check_train_is_a_split(root, found)
        return found
    if any(subfolders(folder) for folder in found.values()):
        raise UserError(
            f"{root} has {' and '.join(sorted(found))}, but no train/ with class folders in it. To score a checkpoint "
            f"on it: ml-eval ckpt_path=RUN data.data_dir={root}"
        )
    if found and set(found.values()) == inside:
        raise UserError(f"{root} has {' and '.join(sorted(found))}, but without class folders in them.")
    return {"train": root}


def _check_is_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise MissingFileError(f"data.data_dir={root} {what}. Give a folder of class folders, or of train/ val/ test/.")


def _named_splits(root: Path) -> dict[str, Path]:
    inside = {folder.name.lower(): folder for folder in subfolders(root)}
    return {split: inside[name] for split, names in SPLIT_NAMES.items() for name in names[::-1] if name in inside}


def _check_train_is_a_split(root: Path, found: Mapping[str, Path]) -> None:
    """Raises ValueError where `train` alone is named like a split, and has folders like its own beside it."""
    if set(found) != {"train"}:
        return
    classes = {class_name(path.name) for path in subfolders(found["train"])}
    beside = [path for path in subfolders(root) if path != found["train"]]
    like = [path.name for path in beside if _has_images(path) and not {f.name for f in subfolders(path)} & classes]
    if like:
        raise UserError(
            f"{root} has train/ with folders in it, and {_listed(like)} with images beside it. If train is one of the "
            f"classes, rename it; if it is a split, type data.data_dir={found['train']}"
        )


def _has_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in walk(folder, loop=lambda path: None, unreadable=lambda error: None))


def class_folders(folder: Path) -> dict[str, Path]:
    """Class -> its folder in that of a split.

    Raises:
        ValueError: Two folders are the same class in two spellings.
    """
    folders: dict[str, Path] = {}
    for path in subfolders(folder):
        if (name := class_name(path.name)) in folders:
            raise UserError(f"{folder} has {name} twice: {folders[name].name!a} and {path.name!a}. Put them together.")
        folders[name] = path
    return folders


def _check_classes(
    root: Path, folders: dict[str, Path], found: dict[str, dict[str, Path]], class_names: list[str]
) -> None:
    if not class_names:
        hint = " The images stand in it directly: put those of each class into a folder of its own."
        has_images = any(is_image(p.name) for p in root.iterdir())
        raise UserError(f"{folders['train']} has no class folders.{hint if has_images else ''}")
    if len(class_names) == 1:
        raise UserError(
            f"{folders['train']} has one class folder only ({class_names[0]}): a classifier needs two classes or more."
        )
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise UserError(
                f"{folders[split]} has classes that train lacks: {_listed(unknown)}.{_meant(unknown, class_names)}\n"
                f"  train: {_listed(class_names)}\n  {split}: {_listed(sorted(classes))}"
            )


def _listed(names: Sequence[str]) -> str:
    """In one line; blanks at the ends of a name are shown."""
    return shortened((name if name == name.strip() else repr(name) for name in names), MOST_LISTED)


def _meant(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    """Names that differ in case and blanks only, or nearly so."""
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
            raise UserError(
                f"{classes[name]} has no images ({', '.join(SUFFIXES)}); it has {len(files)} other files. "
                "Add images, or remove the folder."
            )
        paths.extend(path.relative_to(root).as_posix() for path in images)
        labels.extend([label] * len(images))
    return FolderImages(root, paths, labels)

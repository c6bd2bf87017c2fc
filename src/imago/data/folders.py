"""Which images of which class stand in a tree of folders."""

import csv
import difflib
import hashlib
import json
import os
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from imago.checks import SPLITS
from imago.data.decode import BadImageError, header_fault, largest_value, profile_of, read_box, read_image, shape_of
from imago.data.formats import FORMATS
from imago.data.images import SPLIT_NAMES, Images, ImageSets, Names, file_digest, shortened
from imago.data.stages import BoxOf, Size
from imago.writing import write_text

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"),
    *((".avif",) if "AVIF" in FORMATS else ()),
)
PLACEHOLDERS = ("imagenotfound.gif", "image_not_found.gif", "photo_unavailable.gif")
"""What some web sites give for a picture that is gone."""
HIDDEN = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "__macosx"),
    *("$recycle.bin", "system volume information", "lost+found"),
)
"""Folders of network drives, archives and file systems, besides those that begin with a dot."""
SIXTEEN_BITS = (".png", ".tif", ".tiff", ".pgm")
SPLIT_FILE_HEADER = "# imago split: "
MOST_LISTED = 20  # names in a message


class FolderImages(Images):
    """Image files below `root`."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.paths = Names(paths)
        self.labels = array("i", labels)

    def read(self, index: int) -> Tensor:
        return read_image(self.root / self.paths[index], decoding=self.decoding)

    def read_box(self, index: int, box: BoxOf, size: Size) -> Tensor:
        if self.decode == "exact":
            return super().read_box(index, box, size)
        return read_box(self.root / self.paths[index], box, size, self.decoding)

    def fault(self, index: int) -> BadImageError | None:
        return header_fault(self.root / self.paths[index])

    def digest(self, index: int) -> int | None:
        return file_digest(self.root / self.paths[index])

    def largest_value(self, index: int) -> tuple[int, bool]:
        path = self.root / self.paths[index]
        return largest_value(path) if path.suffix.lower() in SIXTEEN_BITS else (0, False)

    def profile(self, index: int) -> str | None:
        return profile_of(self.root / self.paths[index])

    def shape(self, index: int) -> tuple[int, int] | None:
        return shape_of(self.root / self.paths[index])

    def select(self, indices: Sequence[int]) -> "FolderImages":
        chosen = FolderImages(self.root, [self.paths[i] for i in indices], [self.labels[i] for i in indices])
        chosen.decode, chosen.decoding = self.decode, self.decoding
        return chosen

    def stamp(self, times: bool = False) -> str:
        digest = hashlib.sha256(super().stamp().encode())
        for path in self.paths:
            digest.update(f"{_size_and_time(self.root / path)[: 1 + times]}\n".encode())
        return digest.hexdigest()


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
    if not any(_folders(folder) for folder in folders.values()):
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
        there = sorted({path.name for folder in (root, *_named_splits(root).values()) for path in _folders(folder)})
        raise ValueError(
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
        others = [path.name for path in _folders(root) if path not in [*folders.values(), *unlabelled]]
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
        raise ValueError(f"{root} is split already: it has {', '.join(folder.name for folder in folders.values())}.")
    classes = class_folders(root)
    _check_classes(root, folders, {"train": classes}, sorted(classes))
    return sorted(classes), _read_split(root, ImageSets(str(root), sorted(classes), {}), classes)


def read_split_file(file: Path, data_dir: Path | None, val_ratio: float, seed: int) -> ImageSets:
    """Reads what `ml-split` writes, a header with the class names and the folder, then a row per image; or a CSV of
    one's own with the columns `path`, `label` and perhaps `split`, whose paths are relative to `data_dir`, or to it."""
    if not file.is_file():
        raise FileNotFoundError(f"data.split_file={file} does not exist. Make it with: ml-split PATH --output {file}")
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            first = lines.readline()
            told = json.loads(first.removeprefix(SPLIT_FILE_HEADER)) if first.startswith(SPLIT_FILE_HEADER) else {}
            table = csv.DictReader(lines if told else chain([first], lines), skipinitialspace=True)
            if missing := {"path", "label"} - set(table.fieldnames or ()):
                raise ValueError(f"it lacks {' and '.join(sorted(missing))}")
            rows = [(row.get("split") or "train", row["path"], class_name(row["label"].strip())) for row in table]
        class_names = list(told.get("class_names") or sorted({name for _, _, name in rows}))
        root = data_dir or Path(told.get("data_dir") or file.parent)
        label_of = {name: label for label, name in enumerate(class_names)}
        split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
        found = [(split_of[split.strip().lower()], path, label_of[name]) for split, path, name in rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as error:
        raise ValueError(
            f"data.split_file={file} is none that ml-split wrote, and no CSV with the columns path, label and perhaps "
            f"split (train, val, test): {error}"
        ) from error
    if len(class_names) < 2:
        raise ValueError(f"data.split_file={file} has one class only: a classifier needs two classes or more.")
    sets = ImageSets(str(root), class_names, {}, notes=[f"the splits are those of {file}"])
    for split in [name for name in SPLITS if any(name == row[0] for row in found)]:
        images = [(path, label) for name, path, label in found if name == split]
        sets.splits[split] = FolderImages(root, [path for path, _ in images], [label for _, label in images])
    gone = next((path for _, path, _ in found if not (root / path).is_file()), None)
    if gone is not None:
        raise FileNotFoundError(
            f"{root / gone} of data.split_file={file} is gone. Type data.data_dir= if the folder moved."
        )
    if "train" not in sets.splits:
        raise ValueError(f"data.split_file={file} has no images of train.")
    sets.draw_val(val_ratio, seed)
    return sets


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder; class folders alone are train.

    Raises:
        FileNotFoundError, ValueError: There is no such folder, or no train split in it.
    """
    _check_is_folder(root)
    found = _named_splits(root)
    inside = set(_folders(root))
    if "train" in found and _folders(found["train"]):
        _check_train_is_a_split(root, found)
        return found
    if any(_folders(folder) for folder in found.values()):
        raise ValueError(
            f"{root} has {' and '.join(sorted(found))}, but no train/ with class folders in it. To score a checkpoint "
            f"on it: ml-eval ckpt_path=RUN data.data_dir={root}"
        )
    if found and set(found.values()) == inside:
        raise ValueError(f"{root} has {' and '.join(sorted(found))}, but without class folders in them.")
    return {"train": root}


def _check_is_folder(root: Path) -> None:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(
            f"data.data_dir={root} {what}. Give a folder of class folders, or of train/ val/ test/."
        )


def _named_splits(root: Path) -> dict[str, Path]:
    inside = {folder.name.lower(): folder for folder in _folders(root)}
    return {split: inside[name] for split, names in SPLIT_NAMES.items() for name in names[::-1] if name in inside}


def _check_train_is_a_split(root: Path, found: Mapping[str, Path]) -> None:
    """Raises ValueError where `train` alone is named like a split, and has folders like its own beside it."""
    if set(found) != {"train"}:
        return
    classes = {class_name(path.name) for path in _folders(found["train"])}
    beside = [path for path in _folders(root) if path != found["train"]]
    like = [path.name for path in beside if _has_images(path) and not {f.name for f in _folders(path)} & classes]
    if like:
        raise ValueError(
            f"{root} has train/ with folders in it, and {_listed(like)} with images beside it. If train is one of the "
            f"classes, rename it; if it is a split, type data.data_dir={found['train']}"
        )


def _has_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in walk(folder, loop=lambda path: None, unreadable=lambda error: None))


def class_name(text: str) -> str:
    """A folder's name, or a label in a list, as the name of a class: Macs and archives write accents in two ways (NFC
    and NFD), which look alike."""
    return unicodedata.normalize("NFC", text)


def label_of(folders: Sequence[str], class_names: Sequence[str]) -> int | None:
    """The class of an image in `folders` (outermost first): the first of them that is one, as in training."""
    labels = {name: label for label, name in enumerate(class_names)}
    return next((labels[class_name(folder)] for folder in folders if class_name(folder) in labels), None)


def folders_of_class(root: Path, file: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """The folders below `root` in which a file stands, outermost first, without that of its split: a folder named like
    a split is one where a class stands in it."""
    folders = file.relative_to(root).parts[:-1]
    is_split = len(folders) > 1 and folders[0].lower() in {name for names in SPLIT_NAMES.values() for name in names}
    return folders[1:] if is_split and class_name(folders[1]) in class_names else folders


def class_folders(folder: Path) -> dict[str, Path]:
    """Class -> its folder in that of a split.

    Raises:
        ValueError: Two folders are the same class in two spellings.
    """
    folders: dict[str, Path] = {}
    for path in _folders(folder):
        if (name := class_name(path.name)) in folders:
            raise ValueError(f"{folder} has {name} twice: {folders[name].name!a} and {path.name!a}. Put them together.")
        folders[name] = path
    return folders


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))


def is_hidden(name: str) -> bool:
    """Whether a folder is none of the user's."""
    return name.startswith(".") or name.casefold() in HIDDEN


def _check_classes(
    root: Path, folders: dict[str, Path], found: dict[str, dict[str, Path]], class_names: list[str]
) -> None:
    if not class_names:
        hint = " The images stand in it directly: put those of each class into a folder of its own."
        has_images = any(is_image(p.name) for p in root.iterdir())
        raise ValueError(f"{folders['train']} has no class folders.{hint if has_images else ''}")
    if len(class_names) == 1:
        raise ValueError(
            f"{folders['train']} has one class folder only ({class_names[0]}): a classifier needs two classes or more."
        )
    for split, classes in found.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise ValueError(
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
            raise ValueError(
                f"{classes[name]} has no images ({', '.join(SUFFIXES)}); it has {len(files)} other files. "
                "Add images, or remove the folder."
            )
        paths.extend(path.relative_to(root).as_posix() for path in images)
        labels.extend([label] * len(images))
    return FolderImages(root, paths, labels)


def files_below(folder: Path) -> list[Path]:
    """All files below `folder`, sorted; hidden folders are left out, and links that lead back into the walk.

    Raises:
        OSError: A folder in it cannot be listed.
    """
    return sorted(walk(folder, loop=lambda path: None, unreadable=_refuse))


def _refuse(error: OSError) -> NoReturn:
    raise error


def walk(folder: Path, loop: Callable[[Path], object], unreadable: Callable[[OSError], object]) -> Iterator[Path]:
    """The files below `folder`, hidden folders left out. Links to folders are followed, but not to where the walk has
    been, and not to what `folder` is in: `loop` is told of those."""
    seen = {os.path.realpath(parent) for parent in Path(os.path.abspath(folder)).parents}
    for directory, names, files in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(directory)
        if real in seen:
            loop(Path(directory))
            names.clear()
            continue
        seen.add(real)
        visible = [name for name in names if not is_hidden(name)]
        names[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(directory, name)), name))
        yield from (Path(directory, name) for name in sorted(files))


def listed_paths(file: Path) -> set[str]:
    """What a file of paths holds, as `write_paths` writes it: one per line, `#` begins a comment.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or a line in it cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"data.exclude={file} does not exist. ml-doctor data.data_dir=PATH writes one.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")]
    try:
        return {json.loads(line) if line[0] == '"' else line for line in lines if line and line[0] != "#"}
    except ValueError as error:
        raise ValueError(f"data.exclude={file}: a line that begins with a quote is no JSON string: {error}") from None


def write_paths(file: Path, paths: Mapping[str, str]) -> None:
    """Writes paths, each after a comment that says why; names that would be read otherwise as JSON strings."""
    write_text(file, "".join(f"# {_quoted(why)}\n{_quoted(path)}\n" for path, why in paths.items()))


def _quoted(text: str) -> str:
    return text if text.isprintable() and text == text.strip() and text[0] not in '#"' else json.dumps(text)


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image: by its suffix, and not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".") and name.lower() not in PLACEHOLDERS


def _size_and_time(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere
        return ()
    return stat.st_size, stat.st_mtime_ns

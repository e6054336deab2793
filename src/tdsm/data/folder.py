"""A folder of image files: splits of classes, classes of splits, classes, or images without labels."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdsm.base.errors import DataError, UsageError
from tdsm.data.config import DataConfig
from tdsm.data.decode import MAX_LISTED, refuse_bad
from tdsm.data.listed import FILE, listed_labels
from tdsm.data.names import SplitName, is_neutral, natural_key, split_name
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled
from tdsm.data.walk import LABEL_TABLES, Found, walk

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xml", ".mat", ".xlsx")  # in which labels of images are kept


class Image(NamedTuple):
    """A file, by its path from the root, and the class its folder names, or None."""

    path: str
    label: str | None


def load_folder(where: str, config: DataConfig) -> Source:
    """Load a folder of image files.

    Four layouts are told apart by the folders' names:

        ROOT/SPLIT/CLASS/FILES, ROOT/CLASS/SPLIT/FILES    the user's splits are kept
        ROOT/CLASS/FILES                                  one split
        ROOT/FILES, ROOT/SPLIT/FILES                      images without labels

    Splits are called train, validation or test (Training, val, dev, seg_test, test2017, ...). A folder that holds but
    one folder is entered, and ROOT is what lies in it; so is `images` as the one folder of a split. Files may lie
    deeper below their class. Where no folder names a class, or `label_column` is set, labels are read from a
    metadata.csv or .jsonl beside the images. Classes and files stand in natural order. Files that are no images are
    ignored and counted. Links are followed to files inside ROOT only, unless `follow_links` is set.

    Raises:
        DataError: If some folders are splits by their names and others beside them are not, all classes hold the same
            folders, which may be the classes, a class holds no image, or links leave ROOT.
    """
    root = Path(where)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    found = walk(root, follow_links=config.follow_links)
    if not config.skip_bad:
        refuse_bad(found.refused)
    if not found.images:
        raise DataError(f"{root}: no images here (seen: {found.listed()}). Expected ROOT/CLASS/images.")
    splits, notes = arrange(found, root)
    paths = {split: [image.path for image in images] for split, images in splits.items()}
    values, said = _labels(found, root, splits, paths, config)
    classes, labels = encode_labels(values)
    fetch = {split: _fetch(listed, root) for split, listed in paths.items()}
    files = partial(_files, root, paths, found.tables)
    return Source(classes, labels, fetch, (*found.notes(), *notes, *said), tuple(found.refused), made_of=files)


def _labels(
    found: Found,
    root: Path,
    splits: Mapping[str, list[Image]],
    paths: Mapping[str, list[str]],
    config: DataConfig,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the labels of each split, from folders or from tables beside the images, and what is to be said of it."""
    listed = listed_labels(root, found.tables, paths, config.label_column)
    if listed is None and config.label_column is not None:
        raise UsageError(f"{root}: label_column is for {' or '.join(LABEL_TABLES)} beside images; none is here.")
    named = {split: _folder_labels(images) for split, images in splits.items()}
    has_folders = any(labels.dtype.kind == "U" for labels in named.values())
    if listed is not None and has_folders and config.label_column is None:
        _refuse_contradiction(named, listed, root, found.tables[0])
    if listed is None or (has_folders and config.label_column is None):
        return named, [] if has_folders else _unread(found)
    return listed, [f"Labels are those of {', '.join(found.tables[:MAX_LISTED])}."]


def _refuse_contradiction(
    named: Mapping[str, np.ndarray], listed: Mapping[str, np.ndarray], root: Path, table: str
) -> None:
    """Refuse labels of a table that are not the folders' under other names."""
    both = [(named[split], listed[split]) for split in named]
    pairs = {
        pair
        for folders, labels in both
        if folders.dtype.kind == labels.dtype.kind == "U"
        for pair in zip(folders.tolist(), labels.tolist(), strict=True)
    }
    if len(pairs) > min(len({folder for folder, _ in pairs}), len({label for _, label in pairs})):
        raise DataError(
            f"{root}: folders and {table} sort the images differently. Expected one reading. Set label_column to read "
            "the table, or move it away to read the folders."
        )


def _unread(found: Found) -> list[str]:
    """Say, of images without labels, which tables that may hold them are not read."""
    kinds = [f"{kind} files" for kind in sorted(found.ignored) if kind in TABLES]
    kinds += [f"{name}, without columns {FILE} and label (see label_column)" for name in found.tables]
    said = (
        "labels in them are not read. Put images into a folder for each class, name files and labels in a "
        f"metadata.csv ({FILE},label), or write images and labels as parquet."
    )
    return [f"Beside the images lie {' and '.join(kinds)}; {said}"] if kinds else []


def arrange(found: Found, root: Path) -> tuple[dict[str, list[Image]], tuple[str, ...]]:
    """Sort images by split and class, and say in notes what lies beside the classes.

    Raises:
        DataError: If names allow two readings.
    """
    base = _enter(found, "", lambda name: not _is_plain(split_name(name)))
    found, root = _below(found, base), root / base
    inside = {tuple(path.split("/")[:-1]) for path in found.images}
    tops = _distinct(place[0] for place in inside if place)
    if splits := _split_folders(tops, inside, root):
        sorted_out = {split: _class_images(found, root, split) for split in splits}
    elif splits := _splits_in_classes(inside, root):
        sorted_out = {split: _one_split(found, split) for split in splits}
    else:
        sorted_out = {"train": _class_images(found, root, "")}
    loose = len(found.images) - sum(map(len, sorted_out.values()))
    notes = [f"All images lie in {base[:-1]!r}, which is neither a split nor a class."] if base else []
    notes += [f"{loose} images beside the class folders were ignored."] if loose else []
    return {split: _in_order(images, base) for split, images in sorted_out.items()}, tuple(notes)


def _enter(found: Found, start: str, may_enter: Callable[[str], bool]) -> str:
    """Go down while a folder holds nothing but one folder that may be entered; return where that ends."""
    while True:
        folders, loose = _children(found.folders, start), _children(found.images, start)
        if len(folders) != 1 or loose or not may_enter(folders[0]):
            return start
        start += f"{folders[0]}/"


def _children(paths: list[str], start: str) -> list[str]:
    """List the names of what lies directly in a folder, which is "" or ends with a slash."""
    return [path[len(start) :] for path in paths if path.startswith(start) and "/" not in path[len(start) :]]


def _below(found: Found, base: str) -> Found:
    """Return what lies in a folder, by its path from there."""
    images, folders = ([p[len(base) :] for p in paths if p.startswith(base)] for paths in (found.images, found.folders))
    return Found(images, folders)


def _in_order(images: list[Image], base: str) -> list[Image]:
    """Sort by class, then by path, numbers by value; name paths from the root on."""
    classes: dict[str, list[Image]] = {}
    for image in images:
        classes.setdefault(image.label or "", []).append(image)
    order = sorted(classes, key=natural_key)
    ordered = [image for name in order for image in sorted(classes[name], key=lambda image: natural_key(image.path))]
    return [Image(base + image.path, image.label) for image in ordered]


def _distinct(names) -> list[str]:
    return sorted(set(names), key=natural_key)


def _split_folders(tops: list[str], inside: set[tuple[str, ...]], root: Path) -> list[str]:
    """Return the folders of the root that are splits, or none where they are classes."""
    named = {name: split_name(name) for name in tops}
    splits = _siblings(named)
    if len(tops) == 1 and _is_plain(named[tops[0]]):
        return tops
    if splits and len(splits) == len(tops):
        return tops
    holding = [n for n in tops if _is_plain(named[n]) and any(place[0] == n and place[1:] for place in inside if place)]
    if splits or holding:
        others = [name for name in tops if name not in (splits or holding)]
        raise DataError(
            f"{root}: {splits or holding} are splits by their names, {others[:MAX_LISTED]} are not. Expected only "
            "train, validation and test, or only classes. Move the others away, or rename."
        )
    return []


def _is_plain(name: SplitName) -> bool:
    return name.role is not None and not name.rest


def _siblings(named: Mapping[str, SplitName]) -> list[str]:
    """Return the names that say train and at least one other split, and otherwise the same."""
    for rest in dict.fromkeys(name.rest for name in named.values() if name.role):
        alike = {name: said.role for name, said in named.items() if said.role and said.rest == rest}
        if len(set(alike.values())) > 1:
            return list(alike)
    return []


def _splits_in_classes(inside: set[tuple[str, ...]], root: Path) -> list[str]:
    """Return the splits of ROOT/CLASS/SPLIT/FILES, or none where classes hold none."""
    subfolders = _distinct(place[1] for place in inside if len(place) > 1)
    named = {name: split_name(name) for name in subfolders}
    plain = [name for name in subfolders if _is_plain(named[name])]
    if not plain:
        return []
    if all(len(place) > 2 for place in inside):
        tops = _distinct(place[0] for place in inside)
        raise DataError(f"{root}: {plain} lie one folder deeper, in {tops[:MAX_LISTED]}. Pass one of these folders.")
    if len(plain) < len(subfolders) or any(len(place) < 2 for place in inside):
        raise DataError(
            f"{root}: some images lie in CLASS/SPLIT ({plain}), others do not. Expected ROOT/CLASS/SPLIT/images "
            "throughout, or ROOT/SPLIT/CLASS/images."
        )
    return plain


def _one_split(found: Found, split: str) -> list[Image]:
    """List the images of ROOT/CLASS/SPLIT/FILES."""
    return [Image(path, names[0]) for path in found.images if (names := path.split("/"))[1] == split]


def _class_images(found: Found, root: Path, folder: str) -> list[Image]:
    """List the images of FOLDER/CLASS/FILES, or of FOLDER/FILES without labels if no class folder is there."""
    start = _enter(found, f"{folder}/", lambda name: _says_no_more(name, folder)) if folder else ""
    classes = sorted(_children(found.folders, start), key=natural_key)
    images = [path for path in found.images if path.startswith(start)]
    held = [Image(path, label[0]) for path in images if len(label := path[len(start) :].split("/")) > 1]
    if not held:
        return [Image(path, None) for path in images]
    _refuse_empty(classes, {image.label for image in held}, root / start)
    _refuse_other_readings(held, start, root / start)
    return held


def _says_no_more(name: str, split: str) -> bool:
    """Tell whether a folder's name says nothing that the split around it does not say, so that it is no class."""
    inner, outer = split_name(name), split_name(split)
    return is_neutral(name) or (inner.role == outer.role and inner.rest == outer.rest)


def _refuse_other_readings(images: list[Image], start: str, folder: Path) -> None:
    """Refuse classes that may be splits, folds or domains of the classes below, or be what belongs to images."""
    classes = _distinct(image.label for image in images)
    if len(classes) > 1 and (neutral := [name for name in classes if is_neutral(name)]):
        others = [name for name in classes if name not in neutral]
        raise DataError(
            f"{folder}: {neutral} beside {others[:MAX_LISTED]} names no class. Expected a folder for each class. Pass "
            f"{folder / neutral[0]} to read these images alone."
        )
    below: dict[str | None, set[str]] = {}
    for image in images:
        below.setdefault(image.label, set()).update(image.path[len(start) :].split("/")[1:-1][:1])
    if len(common := set.intersection(*below.values())) > 1 < len(below):
        raise DataError(
            f"{folder}: all of {classes[:MAX_LISTED]} hold the folders {sorted(common)[:MAX_LISTED]}. If these are the "
            "classes, name those above them train, validation and test, or pass one of them (a fold, a domain). If "
            "not, put the images of each class into one folder."
        )


def _refuse_empty(classes: list[str], filled: set[str | None], folder: Path) -> None:
    if empty := [name for name in classes if name not in filled]:
        raise DataError(f"{folder}: class folders without images: {empty[:MAX_LISTED]}. Fill or remove them.")


def _folder_labels(images: list[Image]) -> np.ndarray:
    if images and images[0].label is None:
        return unlabelled(len(images))
    return np.array([image.label for image in images], dtype=str)


def _files(root: Path, paths: Mapping[str, list[str]], tables: list[str]) -> Iterator[Path]:
    return (root / path for listed in (*paths.values(), tables) for path in listed)


def _fetch(paths: list[str], root: Path) -> Fetch:
    def fetch(rows) -> Iterator[tuple[str, Path]]:
        return ((paths[row], root / paths[row]) for row in rows)

    return fetch

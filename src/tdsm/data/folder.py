"""A folder of image files: splits of classes, classes of splits, classes, or images without labels."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdsm.base.errors import DataError
from tdsm.data.config import DataConfig
from tdsm.data.decode import MAX_LISTED, refuse_bad
from tdsm.data.names import SplitName, natural_key, split_name
from tdsm.data.source import Fetch, Source, encode_labels, unlabelled
from tdsm.data.walk import Found, walk


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

    Splits are called train, validation or test (Training, val, dev, seg_test, test2017, ...). Files may lie deeper
    below their class. Classes and files stand in natural order. Files that are no images are ignored and counted.
    Links are followed to files inside ROOT only, unless `follow_links` is set.

    Raises:
        DataError: If some folders are splits by their names and others beside them are not, a class holds no image,
            or links leave ROOT.
    """
    root = Path(where)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder.")
    try:
        found = walk(root, follow_links=config.follow_links)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    if not config.skip_bad:
        refuse_bad(found.refused)
    if not found.images:
        raise DataError(f"{root}: no images here (seen: {found.listed()}). Expected ROOT/CLASS/images.")
    splits, notes = arrange(found, root)
    values = {split: _labels(images) for split, images in splits.items()}
    classes, labels = encode_labels(values)
    paths = {split: [image.path for image in images] for split, images in splits.items()}
    fetch = {split: _fetch(listed, root) for split, listed in paths.items()}
    files = partial(_files, root, paths)
    return Source(classes, labels, fetch, (*found.notes(), *notes), tuple(found.refused), made_of=files)


def arrange(found: Found, root: Path) -> tuple[dict[str, list[Image]], tuple[str, ...]]:
    """Sort images by split and class, and say in notes what lies beside the classes.

    Raises:
        DataError: If names allow two readings.
    """
    inside = {tuple(path.split("/")[:-1]) for path in found.images}
    tops = _distinct(place[0] for place in inside if place)
    if splits := _split_folders(tops, inside, root):
        sorted_out = {split: _class_images(found, root, split) for split in splits}
    elif splits := _splits_in_classes(inside, root):
        sorted_out = {split: _one_split(found, split) for split in splits}
    else:
        sorted_out = {"train": _class_images(found, root, "")}
    loose = len(found.images) - sum(map(len, sorted_out.values()))
    notes = (f"{loose} images beside the class folders were ignored.",) if loose else ()
    return {split: _in_order(images) for split, images in sorted_out.items()}, notes


def _in_order(images: list[Image]) -> list[Image]:
    """Sort by class, then by path, numbers by value."""
    classes: dict[str, list[Image]] = {}
    for image in images:
        classes.setdefault(image.label or "", []).append(image)
    order = sorted(classes, key=natural_key)
    return [image for name in order for image in sorted(classes[name], key=lambda image: natural_key(image.path))]


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
    start = f"{folder}/" if folder else ""
    classes = _distinct(p[len(start) :] for p in found.folders if p.startswith(start) and "/" not in p[len(start) :])
    if folder and [name.lower() for name in classes] == [folder.lower()]:  # as archives of folders unpack
        return _class_images(found, root, f"{start}{classes[0]}")
    images = [path for path in found.images if path.startswith(start)]
    held = [Image(path, label[0]) for path in images if len(label := path[len(start) :].split("/")) > 1]
    if not held:
        return [Image(path, None) for path in images]
    _refuse_names(classes, {image.label for image in held}, root / folder)
    return held


def _refuse_names(classes: list[str], filled: set[str | None], folder: Path) -> None:
    if unprintable := [ascii(name) for name in classes if not name.isprintable()]:
        raise DataError(
            f"{folder}: class names cannot be printed: {', '.join(unprintable[:MAX_LISTED])}. Rename these folders."
        )
    if empty := [name for name in classes if name not in filled]:
        raise DataError(f"{folder}: class folders without images: {empty[:MAX_LISTED]}. Fill or remove them.")


def _labels(images: list[Image]) -> np.ndarray:
    if images and images[0].label is None:
        return unlabelled(len(images))
    return np.array([image.label for image in images], dtype=str)


def _files(root: Path, paths: Mapping[str, list[str]]) -> Iterator[Path]:
    return (root / path for listed in paths.values() for path in listed)


def _fetch(paths: list[str], root: Path) -> Fetch:
    def fetch(rows) -> Iterator[tuple[str, Path]]:
        return ((paths[row], root / paths[row]) for row in rows)

    return fetch

"""Read splits, configs and folds off the names of folders and files, never choosing between two meanings."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from tdsm.base.errors import DataError, UsageError

ROLE_OF = {
    **dict.fromkeys(("training", "train", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "development", "devel", "dev"), "validation"),
    **dict.fromkeys(("testing", "test", "tst", "t10k"), "test"),
}
ROLE = re.compile(rf"({'|'.join(ROLE_OF)})(?:set|split|data|images?)?(\d*)")
NEUTRAL = ("set", "split", "data", "dataset", "image", "images", "img", "imgs", "files", "partial", "parquet")
# What stands behind a name to number its files: -00000-of-00004, _3, and Spark's part-00000-HASH.
SHARD = re.compile(r"(^|(?<!fold)(?<!cv)[-_.])\d+([-_.]of[-_.]\d+)?([-_.][0-9a-f]{8,})*$|^part-\d+.*$")
DEFAULT = "default"


class SplitName(NamedTuple):
    """What a name says: the role of a split, the word that says so, and what else it says."""

    role: str | None
    word: str
    rest: str


class Location(NamedTuple):
    """What a file's path says: its config (or fold), its split's name, and whether that name is a split's."""

    config: str
    split: str
    has_role: bool


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort numbers inside names by value.

    >>> sorted(["img10", "img2", "img1"], key=natural_key)
    ['img1', 'img2', 'img10']
    """
    pieces = [(int(piece) if piece.isdecimal() else -1, piece) for piece in re.split(r"([0-9]+)", text)]
    return [*pieces, (-1, text)]


def split_name(name: str) -> SplitName:
    """Find the one word of a name that is a split's, such as train; case and words such as images aside.

    A name with two such words has no role.

    >>> split_name("seg_Train"), split_name("test-images"), split_name("Oxford")
    (SplitName(role='train', word='train', rest='seg'), SplitName(role='test', word='test', rest=''), \
SplitName(role=None, word='', rest='oxford'))
    """
    found, rest = [], []
    for token in _words(name):
        if match := ROLE.fullmatch(token):
            found.append(match[1])
            rest += [match[2]] * bool(match[2])
        elif token not in NEUTRAL:
            rest.append(token)
    if len(found) != 1:
        return SplitName(None, "", "-".join([*found, *rest]))
    return SplitName(ROLE_OF[found[0]], found[0], "-".join(rest))


def _words(name: str) -> list[str]:
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", unicodedata.normalize("NFC", name)).lower()
    return re.findall(r"[^\W_]+", re.sub(r"(fold|cv)[\W_]+(\d+)", r"\1\2", text))


def is_neutral(name: str) -> bool:
    """Tell whether a name says only that data are there, so that it is neither a split nor a class.

    >>> is_neutral("Images"), is_neutral("image-data"), is_neutral("train"), is_neutral("+")
    (True, True, False, False)
    """
    return bool(words := _words(name)) and all(word in NEUTRAL for word in words)


def locate(path: PurePath) -> Location:
    """Read config and split off the path of a file of many samples, given from the source's root.

    >>> locate(PurePath("plain/train-00000-of-00002.parquet")), locate(PurePath("data/extra-0.parquet"))
    (Location(config='plain', split='train', has_role=True), Location(config='default', split='extra', has_role=False))

    Raises:
        DataError: If the path names two splits.
    """
    stem = SHARD.sub("", path.name.split(".")[0])
    folders, file = [split_name(part) for part in path.parts[:-1]], split_name(stem)
    words = {name.role: name.word for name in (*folders, file) if name.role}
    if len(words) > 1:
        raise DataError(f"{path}: names the splits {' and '.join(words.values())}, expected one. Rename it.")
    config = [part for part, name in zip(path.parts, folders, strict=False) if not name.role and name.rest]
    config += [_without_numbers(name.rest) for name in (*folders, file) if name.role]
    own_name = next(iter(words.values()), stem if file.rest else "")
    return Location("/".join(filter(None, config)) or DEFAULT, own_name, bool(words))


def _without_numbers(rest: str) -> str:
    return "-".join(token for token in rest.split("-") if not token.isdecimal())


def choose_config(found: Iterable[str], wanted: str | None, where: str) -> str:
    """Return the wanted config, or the only one.

    Raises:
        UsageError: If there are several and none is wanted, or the wanted one is not there.
    """
    names = sorted(set(found))
    if wanted is not None and wanted not in names:
        raise UsageError(f"{where}: has no config {wanted!r}. Configs: {', '.join(names)}. Set config to one of these.")
    if wanted is None and len(names) > 1:
        raise UsageError(
            f"{where}: holds {len(names)} configs or folds, which may share images: {', '.join(names)}. "
            "Choose one (config)."
        )
    return wanted or names[0]


def find_roles(names: Iterable[str], test_split: str | None = None) -> dict[str, str]:
    """Tell which split serves as "train", "validation" and "test", as far as the names say.

    A single split of any name is train. Splits whose names say nothing have no role.

    >>> find_roles(["Training", "dev", "extra"])
    {'train': 'Training', 'validation': 'dev'}

    Raises:
        DataError: If no split is train, or two would have one role.
        UsageError: If the split wanted as test is not there, or is train.
    """
    names = list(names)
    listed = ", ".join(map(repr, names)) or "none"
    if len(names) == 1 and test_split is None:
        return {"train": names[0]}
    roles: dict[str, str] = {"test": test_split} if test_split is not None else {}
    for name in names:
        role = split_name(name).role
        if role is None or name == test_split or (role == "test" and test_split is not None):
            continue
        if role in roles:
            raise DataError(f"Splits seen: {listed}. Both {roles[role]!r} and {name!r} would be {role}. Rename one.")
        roles[role] = name
    if test_split is not None and test_split not in names:
        raise UsageError(f"test_split {test_split!r} is none of the splits: {listed}.")
    if "train" not in roles:
        raise DataError(f"Splits seen: {listed}. Expected one that is train by its name.")
    return {role: roles[role] for role in ("train", "validation", "test") if role in roles}


def group_files(files: Iterable[Path], root: Path, wanted: str | None) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Sort files of many samples by split, in natural order, and say in notes what else was decided.

    Files none of which names a split are read together as train.

    Raises:
        DataError: If a path names two splits, or a file numbered such as 3 of 5 is missing.
        UsageError: If there are several configs and none was chosen.
    """
    ordered = sorted(files, key=lambda file: natural_key(file.relative_to(root).as_posix()))
    located = {file: locate(PurePath(file.relative_to(root))) for file in ordered}
    configs = sorted({place.config for place in located.values()})
    config = choose_config(configs, wanted, str(root))
    located = {file: place for file, place in located.items() if place.config == config}
    _refuse_gaps(list(located))
    chosen = (f"Config {config!r} was chosen of {', '.join(configs)}.",) if len(configs) > 1 else ()
    notes = (*chosen, *_gaps(list(located)))
    named = list(dict.fromkeys(place.split for place in located.values()))
    if not any(place.has_role for place in located.values()):
        pooled = f"No file names a split; these are read together as train: {', '.join(named)}."
        return {"train": list(located)}, (*notes, pooled) if len(named) > 1 else notes
    splits: dict[str, list[Path]] = {}
    for file, place in located.items():
        splits.setdefault(place.split or "unnamed", []).append(file)
    return splits, notes


def _refuse_gaps(files: list[Path]) -> None:
    """Refuse sets of which a file numbered such as 00003-of-00005 is missing, or that are there twice."""
    seen: dict[str, dict[int, set[int]]] = {}
    for file in files:
        if match := re.search(r"[-_.](\d+)[-_.]of[-_.](\d+)", file.name):
            totals = seen.setdefault(str(file.parent / file.name[: match.start()]), {})
            totals.setdefault(int(match[2]), set()).add(int(match[1]))
    for name, totals in seen.items():
        if len(totals) > 1:
            listed = " and as ".join(f"{count} files" for count in sorted(totals))
            raise DataError(f"{name}: is there as {listed}. Expected one of these sets; remove the others.")
        for count, numbers in totals.items():
            if len(numbers) < count:
                raise DataError(f"{name}: {len(numbers)} of {count} files are here. Copy the others too.")


def _gaps(files: list[Path]) -> tuple[str, ...]:
    """Say in notes which numbers are left out where files are numbered such as 0003 without saying of how many."""
    seen: dict[str, set[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d{4,})\.\D*", file.name):
            seen.setdefault(match[1] or file.parent.name, set()).add(int(match[2]))
    gaps = {name: sorted(set(range(min(found), max(found))) - found) for name, found in seen.items()}
    return tuple(
        f"Files {name!r} are numbered {min(seen[name])} to {max(seen[name])}, but {len(gap)} are not here, the first "
        f"{gap[0]}."
        for name, gap in gaps.items()
        if gap
    )

"""What makes the shards of a store one thing: what they are of, the card people read, and the seal when all are there.

    store.json            field, data, settings, shape and dtype of each feature
    samples.safetensors   SPLIT.ids and SPLIT.labels
    README.md             the card
    manifest.json         written last: size and hash of every file

Whoever begins writes the first three, always the same; whoever finds the last shard there writes the manifest.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tdsm.base import io
from tdsm.base.errors import CheckpointError, ResourceError, UsageError
from tdsm.base.settings import differences
from tdsm.base.text import markdown_table, thousands
from tdsm.data.config import DataConfig
from tdsm.data.imageset import SPLITS
from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES
from tdsm.features.registry import FORMATS
from tdsm.features.store import sidecar_of
from tdsm.features.work import Job, Unit, Work

PLACES = ("source", "cache", "memory_limit")  # where images are, which decides nothing
ABOUT, SAMPLES, CARD = "store.json", "samples.safetensors", "README.md"


def about(work: Work) -> dict[str, Any]:
    """Say all that a store is made from and holds, as JSON can hold it."""
    job, sets = work.job, {split: work.images(split) for split in SPLITS}
    splits = {split: {"images": len(images), "fingerprint": images.fingerprint()} for split, images in sets.items()}
    features = {
        name: {"shape": values.shape[1:], "dtype": str(values.dtype), "meaning": FEATURES[name].meaning}
        for name, values in work.probe().items()
    }
    return io.plain(
        {
            "field": {"hash": work.features.field_hash} | work.features.field.config.model_dump(mode="json"),
            "data": {"name": work.data.name, "classes": work.data.train.classes, "splits": splits},
            "settings": job.data.model_dump(mode="json", exclude=set(PLACES)) | {"seed": job.seed},
            "notes": work.data.notes,
            "maps": job.maps.model_dump(mode="json", exclude={"strategy"}),
            "features": features,
            "format": job.format,
            "shard_samples": job.shard_samples,
        }
    )


def begin(work: Work) -> dict[str, Any]:
    """Say what the store will be, in the store, or check that it is the one begun before.

    Raises:
        UsageError: If the folder holds something else.
        ResourceError: If the store is not on this machine's disks.
    """
    folder, said = work.folder, about(work)
    check_place(work.job.to)
    if (folder / ABOUT).is_file():
        if changed := differences(io.read_object(folder / ABOUT), said):
            raise UsageError(
                f"{folder}: holds another store: {_few(changed)}. Choose another --to, or remove that folder."
            )
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UsageError(f"{folder}: is not empty and holds no store. Choose another --to.")
    sets = {split: work.images(split) for split in SPLITS}
    parts = {f"{split}.{part}": getattr(images, part) for split, images in sets.items() for part in ("ids", "labels")}
    io.write_json(folder / ABOUT, said)  # first: a folder with it is a store that was begun
    io.write_tensors(folder / SAMPLES, parts)
    io.write_text(folder / CARD, card(work.job, said))
    return said


def check_place(to: str) -> None:
    """Refuse a store that is no folder of this machine."""
    if "://" in to:
        raise ResourceError(
            f"--to {to}: expected a folder that every machine sees under this path, such as a shared or mounted "
            "disk; object stores are not written to. Extract to a folder and copy that."
        )
    if Path(to).is_file():
        raise UsageError(f"--to {to}: this is a file, expected a folder or none yet.")


def absent(work: Work) -> list[Unit]:
    """List the shards that are not there, by their files alone."""
    return [unit for unit in work.units if not all(_is_there(file) for file in _files(work, unit))]


def finish(work: Work, *, is_changed: bool) -> list[Unit]:
    """Seal a store of which every shard is there; return those that are not. A seal stays while nothing is changed."""
    if (missing := absent(work)) or (not is_changed and (work.folder / io.MANIFEST).is_file()):
        return missing
    io.sweep(work.folder)
    files = [file for unit in work.units for file in _files(work, unit)]
    hashes = {file.relative_to(work.folder).as_posix(): io.read_object(sidecar_of(file))["sha256"] for file in files}
    io.seal_folder(work.folder, io.read_object(work.folder / ABOUT), hashes)
    return []


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a store by its hash, and that ids are unique and complete; return what the store is.

    Raises:
        CheckpointError: It names the first damage, or what is missing.
    """
    said = require_whole(folder)
    io.verify_folder(folder, holds=[ABOUT, SAMPLES, CARD])
    samples = io.read_tensors(folder / SAMPLES)
    for split, entry in said["data"]["splits"].items():
        ids = samples[f"{split}.ids"]
        if not len(ids) == len(ids.unique()) == len(samples[f"{split}.labels"]) == entry["images"]:
            raise CheckpointError(f"{folder}: {split} has {len(ids.unique())} ids for {entry['images']} images.")
        for index, start in enumerate(range(0, len(ids), said["shard_samples"])):
            _check_ids(folder / split, index, ids[start : start + said["shard_samples"]].tolist(), said)
    return said


def require_whole(folder: Path) -> dict[str, Any]:
    """Return what a store is; refuse a folder that is none, or whose shards are not all there.

    Raises:
        CheckpointError: It says which.
    """
    if not (folder / ABOUT).is_file():
        raise CheckpointError(f"{folder}: no store here ({ABOUT} is missing). Make one with `tdsm extract`.")
    if (folder / io.MANIFEST).is_file():
        return io.read_manifest(folder).made_from
    said = io.read_object(folder / ABOUT)
    names = [
        f"{split}/shard-{index:05d}"
        for split, entry in said["data"]["splits"].items()
        for index in range(-(-entry["images"] // said["shard_samples"]))
        if not all(_is_there(folder / split / file) for file in _unit_files(said, index))
    ]
    raise CheckpointError(
        f"{folder}: not complete: {_few(names) or 'its seal'} missing. Run the same `tdsm extract` again, or the parts "
        "(--shards) that have not ended."
    )


def card(job: Job, said: Mapping[str, Any]) -> str:
    """Write what people must know of a store: what it holds, what it was made from, how to read it."""
    data, command = said["data"], command_of(job)
    kinds = [
        [f"`{name}`", " × ".join(map(str, kind["shape"])), kind["dtype"], thousands(bytes_of(kind)), kind["meaning"]]
        for name, kind in said["features"].items()
    ]
    counts = [[split, thousands(entry["images"]), entry["fingerprint"][:16]] for split, entry in data["splits"].items()]
    is_parquet, first = said["format"] == "parquet", next(iter(said["features"]))
    raw = (
        'pandas.read_parquet("PATH/test")  # id, label, class, and each feature as a list; files SPLIT/*.parquet'
        if is_parquet
        else f'safetensors.torch.load_file("PATH/test/{first}/shard-00000.safetensors")["feature"]'
    )
    return "\n".join(
        [
            f"# Features of {data['name']}",
            "",
            f"Made by `tdsm extract` from a neural field; a store of the form `{said['format']}`, "
            f"{FORMATS[said['format']].meaning}.",
            "",
            f"    {command}",
            "",
            "## Features",
            "",
            markdown_table(["feature", "shape", "dtype", "bytes a sample", "meaning"], kinds, ["feature", "meaning"]),
            "",
            "Shapes are channels last: maps (height, width, maps), tokens (tokens, 1, width). Values have no unit: the "
            "field sees pixels as x / 127.5 − 1, and maps are in that scale.",
            "",
            "## Samples",
            "",
            markdown_table(["split", "samples", "fingerprint"], counts, ["split", "fingerprint"]),
            "",
            f"Classes, in label order: {', '.join(data['classes']) or 'none, labels are −1'}.",
            "",
            *(f"- {note}" for note in said["notes"]),
            "",
            "## Made from",
            "",
            f"Field `{said['field']['hash']}`, {said['field']['num_latents']} tokens. All settings are in `{ABOUT}`, "
            f"the hash of every file in `{io.MANIFEST}`; `tdsm verify PATH` checks them.",
            "",
            "## Read it",
            "",
            "```python",
            "import pandas, tdsm" if is_parquet else "import safetensors.torch, tdsm",
            'store = tdsm.open_store("PATH")',
            f'store.numpy("{first}", split="test"), store.labels("test"), store.ids("test")',
            raw,
            "```",
            "",
        ]
    )


def command_of(job: Job) -> str:
    """Write the command that makes a store, whoever makes which part of it."""
    words = ["tdsm", "extract", job.field, "--features", *job.features, "--to", "STORE", "--format", job.format]
    words += ["--shard-samples", str(job.shard_samples)]
    for prefix, settings, usual in (("data", job.data, DataConfig()), ("maps", job.maps, MapConfig())):
        for name, value in settings.model_dump().items():
            if (value != getattr(usual, name) and name not in PLACES) or name == "source":
                words += _flag(f"{prefix}.{name}".replace("_", "-"), value)
    return shlex.join([*words, "--seed", str(job.seed)])


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, _, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{head}.no-{last}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def bytes_of(kind: Mapping[str, Any]) -> int:
    """Count the bytes of one sample of a feature."""
    return int(np.prod(kind["shape"])) * np.dtype(kind["dtype"]).itemsize


def _check_ids(folder: Path, index: int, ids: list[int], said: Mapping[str, Any]) -> None:
    for file in _unit_files(said, index):
        if io.read_object(sidecar_of(folder / file)).get("ids") != ids:
            raise CheckpointError(f"{folder / file}: holds other samples than the store's; it is of another store.")


def _unit_files(said: Mapping[str, Any], index: int) -> list[Path]:
    return FORMATS[said["format"]].files(index, list(said["features"]))


def _files(work: Work, unit: Unit) -> list[Path]:
    return [work.folder / unit.split / file for file in work.format.files(unit.index, work.job.features)]


def _is_there(file: Path) -> bool:
    return file.is_file() and sidecar_of(file).is_file()


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(name[:120] for name in names[:most]) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )

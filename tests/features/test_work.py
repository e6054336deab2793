"""A store is the same whoever makes which part of it, in whatever order, however often it is stopped."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError, NonFiniteError, ResourceError, UsageError
from tdsm.cli.options import preset
from tdsm.features import run as module
from tdsm.features.card import verify
from tdsm.features.config import ExtractConfig, MapConfig
from tdsm.features.extract import FeatureSet
from tdsm.features.kinds import FEATURES
from tdsm.features.run import plan
from tdsm.features.work import Work, dealt, part_of
from tests.conftest import small_field
from tests.features.stores import COUNTS, NAMES, command, job, made, same, sealed
from tests.tinyrun import content, tdsm

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed store."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert made(folder)
    return folder


def start(to, *more, prefix=(sys.executable, "-m", "tdsm")):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*prefix, *command(to, *more)], env=environment, stdout=-3, stderr=-3)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("parts", [1, 2, 3, 40])
def test_parts_hold_every_shard_once(parts):
    units = [str(number) for number in range(29)]
    together = [unit for n in range(1, parts + 1) for unit in dealt(units, part_of(f"{n}/{parts}"))]
    assert sorted(together) == sorted(units)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_a_part_out_which_stays_the_same(processes):
    units = list(range(29))
    shared = [unit for p in range(processes) for unit in dealt(units, part_of("2/5", p, processes))]
    assert sorted(shared) == dealt(units, part_of("2/5"))


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", ""])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="expected PART/PARTS with PART from 1 to PARTS, such as 3/40"):
        part_of(text)


def test_the_parts_of_a_store_make_the_store(whole, tmp_path):
    said = []
    assert not made(tmp_path / "store", said, shards="3/4")
    assert said == [f"{tmp_path}/store: this part is there; the store is complete when these are too: 1/4, 2/4, 4/4."]
    assert not sealed(tmp_path / "store")
    for number in (1, 4):
        assert not made(tmp_path / "store", said, shards=f"{number}/4")
    assert said[-1].endswith("when these are too: 2/4.")
    assert made(tmp_path / "store", shards="2/4")
    assert same(tmp_path / "store", whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_of_torchrun_make_the_same_store(whole, tmp_path, processes):
    for process in reversed(range(processes)):
        is_complete = made(tmp_path / "store", process=process, processes=processes)
        assert is_complete == (process == 0)
    assert same(tmp_path / "store", whole)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_real_processes_make_the_same_store(whole, tmp_path, processes):
    launcher = (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "tdsm")
    assert start(tmp_path / "store", prefix=launcher).wait(300) == 0
    assert same(tmp_path / "store", whole)


# ---------------------------------------------------------------- what is in it


def test_every_sample_is_there_once_and_as_a_run_would_store_it(whole):
    work = Work(job(whole))
    for split, count in COUNTS.items():
        images = work.images(split)
        sidecars = [io.read_object(file) for file in sorted((whole / split / "tdsm").glob("*.json"))]
        assert [i for sidecar in sidecars for i in sidecar["ids"]] == images.ids.tolist()
        assert len(images) == count
        rows = FeatureSet(whole / split, work.features.field, work.features.field_hash, images, job(whole).maps)
        assert rows.made_from("tdsm") == sidecars[0]["made_from"]


def test_a_store_does_not_depend_on_the_size_of_its_shards(whole, tmp_path):
    made(tmp_path / "store", shard_samples=512)
    first = io.read_tensors(tmp_path / "store" / "test" / "tokens" / "shard-00000.safetensors")["feature"]
    parts = sorted((whole / "test" / "tokens").glob("*.safetensors"))
    torch.testing.assert_close(first, torch.cat([io.read_tensors(part)["feature"] for part in parts]))


def test_the_help_names_features_that_there_are():
    words = ExtractConfig.model_fields["features"].description.split(": ")[1]
    named = re.findall(r"\b(?!or|maps|of|a|decomposition|such|as\b)\w+", words)
    assert set(named) <= set(FEATURES)
    assert set(NAMES) <= set(named)


# ---------------------------------------------------------------- stopped and resumed


@needs_fork
def test_a_store_that_was_killed_again_and_again_ends_as_if_nothing_had_happened(whole, tmp_path):
    """Real SIGKILLs, before, while and after a shard is written."""
    assert kills(tmp_path / "store", random.Random(1)) >= 3
    assert same(tmp_path / "store", whole)


@needs_fork
@pytest.mark.slow
def test_sixty_kills_lose_and_repeat_nothing(whole, tmp_path):
    draw, killed, rounds = random.Random(0), 0, 0
    while killed < 60:
        killed += kills(tmp_path / f"store-{rounds}", draw)
        assert same(tmp_path / f"store-{rounds}", whole)
        rounds += 1
    print(f"{killed} kills in {rounds} stores")


def kills(folder, draw):
    """Extract in processes that are killed once some more files are there, until one ends; return how many were."""
    killed = 0
    while True:
        wanted = files_in(folder) + draw.randint(1, 20)
        if not (process := os.fork()):
            try:
                made(folder)
                os._exit(0)
            finally:
                os._exit(1)
        while files_in(folder) < wanted and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(draw.uniform(0, 0.002))
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code == 0:
            return killed
        assert code == -signal.SIGKILL
        killed += 1


def files_in(folder):
    return sum(1 for _ in folder.rglob("*"))


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    made(tmp_path / "store")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shard*")}
    monkeypatch.setattr(Work, "make", None)
    assert made(tmp_path / "store")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("shard*")} == before


def test_a_damaged_shard_alone_is_made_again_and_it_is_said(whole, tmp_path):
    made(tmp_path / "store")
    file, said = tmp_path / "store" / "test" / "tdsm" / "shard-00001.safetensors", []
    file.write_bytes(file.read_bytes()[:-2] + b"xx")
    assert made(tmp_path / "store", said)
    assert said == ["test/shard-00001: extracted anew, it was damaged."]
    assert same(tmp_path / "store", whole)


@pytest.mark.parametrize("name", ["samples.safetensors", "README.md", "test/tdsm/shard-00001.json"])
def test_what_is_damaged_is_put_right_and_never_sealed(whole, tmp_path, name):
    made(tmp_path / "store")
    file = tmp_path / "store" / name
    file.write_bytes(file.read_bytes()[:-3] + b"xxx")
    assert made(tmp_path / "store")
    assert same(tmp_path / "store", whole)
    verify(tmp_path / "store")


def test_what_killed_writes_left_is_gone_from_a_complete_store(whole, tmp_path):
    made(tmp_path / "store", shards="1/2")
    (tmp_path / "store" / "test" / "tdsm" / ".shard-00001.safetensors.1-ab.tmp").write_bytes(b"half")
    made(tmp_path / "store", shards="2/2")
    assert same(tmp_path / "store", whole)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ("tokens",)}, "features"),
        ({"maps": MapConfig(reduction="l2", batch_size=7)}, "maps.reduction: mean -> l2"),
        ({"seed": 1}, "data.splits.test.fingerprint: "),
        ({"format": "parquet"}, "format: safetensors -> parquet"),
        ({"shard_samples": 13}, "shard_samples: 12 -> 13"),
    ],
    ids=["features", "maps", "seed", "format", "shards"],
)
def test_another_extraction_never_mixes_with_a_store(whole, change, words):
    before = content(whole)
    with pytest.raises(UsageError, match=r"holds another store: .*Choose another --to"):
        made(whole, **change)
    with pytest.raises(UsageError, match=words.split(":")[0]):
        made(whole, **change)
    assert content(whole) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no store"):
        made(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        made(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_object_store_is_refused_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(module, "Work", None)
    with pytest.raises(ResourceError, match=r"object stores are not written to\. Extract to a folder and copy"):
        module.extract(job("s3://bucket/store"), ExtractConfig(), print)


def test_a_field_of_other_channels_and_a_changed_field_are_refused(tmp_path):
    small_field(torch.float32, channels=3).save_pretrained(tmp_path / "field")
    with pytest.raises(UsageError, match=r"reads 3 channels, the images have 1\. Set --data\.channels rgb"):
        made(tmp_path / "store", field=str(tmp_path / "field"))
    with pytest.raises(CheckpointError, match="another than the one the job was made for"):
        made(tmp_path / "store", field_hash="0" * 64)
    with pytest.raises(UsageError, match=r"unknown tokns, perhaps you meant 'tokens'; expected some of .*pooled"):
        made(tmp_path / "store", features=("tokns",))
    assert not (tmp_path / "store").exists()


def test_what_float16_cannot_hold_is_refused_and_float32_holds_it(tmp_path):
    field = small_field(torch.float32, channels=1)
    with torch.no_grad():
        field.to_channels.weight.mul_(6e4)
    field.save_pretrained(tmp_path / "field")
    with pytest.raises(NonFiniteError, match="which float16 cannot hold"):
        made(tmp_path / "store", field=str(tmp_path / "field"))
    assert made(tmp_path / "wide", field=str(tmp_path / "field"), maps=MapConfig(dtype="float32"))


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 1000, 1000))
    with pytest.raises(ResourceError, match=r"tokens, pooled, tdsm of 90 images take .* pooled ones"):
        made(tmp_path / "store")
    assert list(tmp_path.rglob("*.safetensors")) == [tmp_path / "store" / "samples.safetensors"]


# ---------------------------------------------------------------- the plan and the verbs


def test_a_plan_counts_bytes_and_writes_nothing(tmp_path):
    words = plan(job(tmp_path / "store"), ExtractConfig(shards="2/3"))
    assert "54 train, 6 validation, 30 test images of 1 × 8 × 8" in words
    assert "feature: tdsm, 8 × 8 × 5 float16, 640 bytes an image" in words
    assert "9 shards of 12 images" in words
    assert "here 3 of them: 30 images" in words
    assert list(tmp_path.iterdir()) == []


def test_the_verbs_make_and_check_a_store(whole, tmp_path, capsys):
    assert tdsm(*command(tmp_path / "store")) == 0
    assert capsys.readouterr().out == f"{tmp_path}/store\n"
    assert same(tmp_path / "store", whole)
    assert tdsm("verify", tmp_path / "store") == 0
    assert "whole; tokens, pooled, tdsm of 54 train, 6 validation, 30 test images" in capsys.readouterr().out


def test_the_card_says_what_the_store_is(whole):
    card = (whole / "README.md").read_text()
    said = io.read_object(whole / "store.json")
    assert said["field"]["hash"] in card
    assert "| `tdsm` | 8 × 8 × 5 | float16 | 640 |" in card
    line = re.search(r"    tdsm (extract .*)", card)[1]
    assert "--to STORE --format safetensors --shard-samples 12" in line
    assert "--data.max-train 60" in line


@pytest.mark.parametrize("name", ["cifar10-reference"])
def test_the_command_on_a_card_makes_the_same_job(tmp_path, name):
    from tdsm.cli.main import parse
    from tdsm.features.card import command_of

    settings = preset(name)
    data = settings.data.model_copy(update={"skip_bad": True, "source": "digits"})
    given = job(tmp_path, data=data, maps=settings.maps.model_copy(update={"size": (3, 4)}))
    words = command_of(given).split()[1:]
    assert parse(words)._job().model_dump(exclude={"to"}) == given.model_dump(exclude={"to"})


def damage_bit(folder):
    file = folder / "test" / "tokens" / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def lose(folder):
    (folder / "train" / "tdsm" / "shard-00002.safetensors").unlink()


def swap(folder):
    one, other = (folder / "train" / "tokens" / f"shard-0000{number}.safetensors" for number in (0, 1))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)


def relabel(folder):
    samples = io.read_tensors(folder / "samples.safetensors")
    io.write_tensors(folder / "samples.safetensors", samples | {"test.labels": samples["test.labels"].flip(0)})


def edit(folder):
    (folder / "store.json").write_text((folder / "store.json").read_text().replace("digits", "digitz"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage_bit, "test/tokens/shard-00000.safetensors: size or hash differ"),
        (lose, "'train/tdsm/shard-00002.safetensors', which is missing"),
        (swap, "size or hash differ"),
        (relabel, "samples.safetensors: size or hash differ"),
        (edit, "store.json: size or hash differ"),
        (lambda folder: (folder / "manifest.json").unlink(), "not complete: its seal missing"),
        (lambda folder: (folder / "store.json").unlink(), "no store here"),
    ],
    ids=["bit", "lost", "swapped", "labels", "settings", "unsealed", "no store"],
)
def test_a_damaged_store_is_refused_in_one_line(tmp_path, capsys, change, words):
    made(tmp_path / "store")
    change(tmp_path / "store")
    capsys.readouterr()
    assert tdsm("verify", tmp_path / "store") == 4
    opening, text = capsys.readouterr().err.splitlines()
    assert opening.startswith("verify ")
    assert text.startswith("tdsm: ")
    assert words in text


def test_a_store_of_parts_names_the_shards_that_are_missing(tmp_path):
    made(tmp_path / "store", shards="1/5")
    with pytest.raises(CheckpointError, match=r"not complete: train/shard-00001, .* and 3 more missing.*--shards"):
        verify(tmp_path / "store")


def test_a_sidecar_of_other_samples_is_noticed(tmp_path):
    made(tmp_path / "store")
    file = tmp_path / "store" / "test" / "tokens" / "shard-00000.json"
    sidecar = io.read_object(file)
    io.write_json(file, sidecar | {"ids": sidecar["ids"][::-1]})
    io.seal_folder(tmp_path / "store", io.read_object(tmp_path / "store" / "store.json"))
    with pytest.raises(CheckpointError, match="holds other samples than the store's"):
        verify(tmp_path / "store")


def test_extraction_does_not_change_the_batch_it_is_given(tmp_path):
    features = Work(job(tmp_path)).features
    images = np.zeros((2, 1, 8, 8), np.uint8)
    images.flags.writeable = False
    result = features({"image": images, "name": np.array(["a", "b"])})
    assert list(result) == ["name", *NAMES]
    assert result["tokens"].dtype == np.float32
    assert result["tdsm"].dtype == np.float16
    for wrong in (images[0], images.astype(np.float32), images.repeat(3, 1)):
        with pytest.raises(UsageError, match=r"expected uint8 of shape \(batch, 1, height, width\)"):
            features({"image": wrong})

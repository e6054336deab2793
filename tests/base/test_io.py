import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import CheckpointError

OLD, NEW = b"old" * 1000, b"new" * 2000


class Disk:
    """Stands in for the file system calls of `tdsm.base.io`; the one number `fail_at` goes wrong by `fail()`."""

    def __init__(self, monkeypatch, fail_at, fail):
        self.calls, self.fail_at, self.fail = [], fail_at, fail
        for module, name in (
            (io, "open"),
            (io.os, "open"),
            (io.os, "fsync"),
            (io.os, "close"),
            (io.os, "replace"),
            (io.Path, "mkdir"),
        ):
            real = getattr(module, name, open)
            monkeypatch.setattr(module, name, self.wrapped(name, real), raising=False)

    def step(self, name):
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail_at:
            self.fail()

    def wrapped(self, name, real):
        def call(*args, **kwargs):
            if len(self.calls) <= self.fail_at:  # what cleans up afterwards works
                self.step(name)
            result = real(*args, **kwargs)
            return File(result, self) if name == "open" and hasattr(result, "write") else result

        return call


class File:
    """A file whose write can stop half way."""

    def __init__(self, handle, disk):
        self.handle, self.disk = handle, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.close()

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def write(self, data):
        self.handle.write(data[: len(data) // 2])
        self.handle.flush()
        self.disk.step("write")
        self.handle.write(data[len(data) // 2 :])

    def flush(self):
        self.disk.step("flush")
        self.handle.flush()


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device")


def write_file(path):
    io.write_bytes(path, NEW)


def write_folder(path):
    io.write_folder(path, lambda folder: io.write_bytes(folder / "inside" / "data", NEW))


def content(path):
    """What a reader finds: the bytes of a file or of a verified folder."""
    if path.is_file():
        return path.read_bytes()
    io.verify_folder(path)
    return (path / "inside" / "data").read_bytes()


def with_old(folder, write):
    """Put old content where `write` will write."""
    path = folder / "target"
    if write is write_file:
        path.write_bytes(OLD)
    else:
        io.write_folder(path, lambda inside: io.write_bytes(inside / "inside" / "data", OLD))
    return path


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_any_failing_operation_leaves_old_or_new_and_nothing_half(tmp_path, write):
    survived, fail_at = [], 0
    while True:
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        path = with_old(folder, write)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at, no_space)
            try:
                write(path)
            except OSError:
                pass
            else:
                break
        assert content(path) in (OLD, NEW), disk.calls
        assert not list(path.parent.glob("*.tmp")), disk.calls
        survived.append(content(path))
        write(path)
        assert content(path) == NEW
        assert [p.name for p in path.parent.iterdir()] == ["target"]
        fail_at += 1
    assert content(path) == NEW
    assert survived[0] == OLD
    assert survived[-1] == NEW
    assert len(survived) >= 7


def test_a_rename_comes_after_the_data_and_before_the_folder_are_on_disk(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 1000, no_space)
        write_file(tmp_path / "target")
    order = [call for call in disk.calls if call in ("write", "flush", "fsync", "replace")]
    assert order == ["write", "flush", "fsync", "replace", "fsync"]


def test_a_system_that_opens_no_folder_writes_all_the_same(tmp_path, monkeypatch):
    real, refused = os.open, []

    def as_windows_does(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            refused.append(Path(path))
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(io.os, "open", as_windows_does)
    io.write_text(tmp_path / "run" / "a.txt", "one")
    io.write_text(tmp_path / "run" / "a.txt", "two")
    io.write_folder(tmp_path / "whole", lambda folder: folder.joinpath("b").write_text("three"))
    assert (tmp_path / "run" / "a.txt").read_text() == "two"
    assert io.verify_folder(tmp_path / "whole").files.keys() == {"b"}
    assert {tmp_path / "run", tmp_path} <= set(refused)


CRASH = """
import os, signal, sys
from pathlib import Path
import pytest
from tests.base import test_io

for write in (test_io.write_file, test_io.write_folder):
    for fail_at in range(1000):
        folder = Path(sys.argv[1]) / write.__name__ / str(fail_at)
        folder.mkdir(parents=True)
        path = test_io.with_old(folder, write)
        if (child := os.fork()) == 0:
            test_io.Disk(pytest.MonkeyPatch(), fail_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            write(path)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """Folders in which a child process was killed for good before each operation in turn, the last one not."""
    folder = tmp_path_factory.mktemp("crashed")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CRASH, folder], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_kill_at_any_operation_leaves_old_or_new(crashed, write):
    found = []
    for folder in sorted((crashed / write.__name__).iterdir(), key=lambda folder: int(folder.name)):
        path = folder / "target"
        # Between the two renames of a folder the old one waits beside its place.
        waiting = path.with_name(".target.old")
        found.append(content(waiting if write is write_folder and not path.exists() else path))
        write(path)
        assert content(path) == NEW
    assert len(found) >= 8
    assert found[0] == OLD
    assert found[-1] == NEW
    assert set(found) == {OLD, NEW}


def test_an_interruption_while_filling_leaves_the_old_folder(tmp_path):
    path = with_old(tmp_path, write_folder)

    def fill(folder):
        io.write_bytes(folder / "inside" / "data", NEW)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_folder(path, fill)
    assert content(path) == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_modes_follow_the_umask(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        io.write_bytes(tmp_path / "file", NEW)
        io.write_tensors(tmp_path / "tensors", {"a": torch.zeros(1)})
        write_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"file": file_mode, "tensors": file_mode, "folder": folder_mode}


def test_everything_returns_the_hash_of_what_is_on_disk(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for write, value in (
        (io.write_bytes, b""),
        (io.write_text, "Größe\n"),
        (io.write_json, {"a": [1, None]}),
        (io.write_tensors, {"a": torch.ones(2)}),
    ):
        assert write(path, value) == io.file_hash(path)
    io.write_bytes(path, b"abc")
    assert io.file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_round_trip_and_what_json_cannot_hold(tmp_path):
    value = {"name": "Größe", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    io.write_json(tmp_path / "a.json", value)
    assert io.read_json(tmp_path / "a.json") == value
    for bad in (float("nan"), float("inf"), {1, 2}, b"bytes"):
        with pytest.raises((ValueError, TypeError)):
            io.write_json(tmp_path / "a.json", {"value": bad})
    assert io.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_round_trip_bit_for_bit(tmp_path, dtype):
    whole = torch.randn(3, 4).to(dtype)
    tensors = {"whole": whole, "view": whole.T[1:], "scalar": whole[0, 0].clone(), "empty": whole[:0]}
    io.write_tensors(tmp_path / "a.safetensors", tensors, metadata={"format": "pt"})
    again = io.read_tensors(tmp_path / "a.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], tensor)


# ---------------------------------------------------------------- damage is noticed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "checkpoint"

    def fill(folder):
        io.write_bytes(folder / "weights", np.random.default_rng(0).bytes(300))
        io.write_json(folder / "deep" / "state.json", {"step": 3})

    io.write_folder(path, fill)
    io.verify_folder(path)
    return path


FILES = ["weights", "deep/state.json", io.MANIFEST]


def noticed(folder, file, damaged):
    """Whether damaged bytes in one file are refused as damage; the file is put back."""
    good = (folder / file).read_bytes()
    (folder / file).write_bytes(damaged)
    try:
        io.verify_folder(folder)
        return False
    except CheckpointError:
        return True
    finally:
        (folder / file).write_bytes(good)


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_and_flipped_bit_is_noticed(folder, file):
    data = (folder / file).read_bytes()
    cuts = {n: data[:n] for n in range(0, len(data) - (file == io.MANIFEST))}  # its last byte is a line end
    flips = {}
    for place in range(len(data)):
        bit = 1 << place % 8
        flips[place, bit] = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
    missed = [how for how, damaged in (cuts | flips).items() if not noticed(folder, file, damaged)]
    assert missed == []
    io.verify_folder(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_noticed_and_named(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).name):
        io.verify_folder(folder)
    (folder / file).write_bytes(data)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        None,
        {},
        5,
        {"files": {}, "made_from": {}, "seal": ""},
        {"weights": 3},
        {"weights": {}},
        {"weights": {"size": "300"}},
        {"../secret": {"size": 1, "sha256": ""}},
    ],
    ids=json.dumps,
)
def test_a_manifest_of_another_form_is_noticed(folder, entries):
    assert noticed(folder, io.MANIFEST, json.dumps(entries).encode())


def test_a_folder_says_what_it_was_made_from_and_an_edit_of_that_is_noticed(tmp_path):
    io.write_folder(tmp_path / "row", lambda path: io.write_text(path / "a", "a"), {"size": (2, 3), "seed": 0})
    manifest = io.verify_folder(tmp_path / "row", holds=["a"])
    assert manifest.made_from == {"size": [2, 3], "seed": 0}
    with pytest.raises(CheckpointError, match=r"lacks b\."):
        io.verify_folder(tmp_path / "row", holds=["b", "a"])
    file = tmp_path / "row" / io.MANIFEST
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match="seal does not fit"):
        io.read_manifest(tmp_path / "row")


def test_sweeping_clears_what_killed_writes_left_and_puts_back_what_they_set_aside(tmp_path):
    (tmp_path / "checkpoints" / ".step-3.77.tmp").mkdir(parents=True)
    (tmp_path / ".config.json.77.tmp").write_text("half")
    for name in (".field.old", ".row.old", "row"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    io.sweep(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
        "checkpoints",
        "field",
        "field/of",
        "row",
        "row/of",
    }
    assert (tmp_path / "field" / "of").read_text() == ".field.old"
    assert (tmp_path / "row" / "of").read_text() == "row"


def test_json_that_is_no_table_or_too_deep_is_one_clear_error(tmp_path):
    file = tmp_path / "state.json"
    for text, words in {"5": "saw int", "[]": "saw list", "[" * 100_000: "cannot be read as JSON"}.items():
        file.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            io.read_object(file)


@pytest.mark.parametrize("read", [io.read_json, io.read_tensors])
@pytest.mark.parametrize("data", [None, b"", b"{", b"\xff\xfe", bytes(100)], ids=str)
def test_unreadable_files_are_checkpoint_errors_naming_the_file(tmp_path, read, data):
    path = tmp_path / "some.file"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"some\.file"):
        read(path)
    with pytest.raises(CheckpointError, match=tmp_path.name):
        read(tmp_path)

import io
import json
import tarfile

import pytest
import torch
from tests.samples import assert_sound, levels, load, picture, write

from tdsm.base.errors import DataError, UsageError


def tar(path, members, kind="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, kind) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(first, count, label=lambda i: (".cls", str(i % 2).encode())):
    for i in range(first, first + count):
        ending, data = label(i)
        yield from ((f"./a/{i:04}.png", picture(i)), (f"./a/{i:04}{ending}", data))


def test_tars_of_splits(tmp_path):
    tar(tmp_path / "pets-train-000000.tar", samples(0, 25))
    tar(tmp_path / "pets-train-000001.tar", samples(25, 15))
    tar(tmp_path / "pets-val-000000.tar", samples(100, 10))
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("0", "1")
    assert levels(data.train) == data.train.ids.tolist()
    assert levels(data.validation) == list(range(100, 110))
    assert torch.equal(data.train.labels, data.train.ids % 2)
    assert "Train is 'train'; validation is 'val'; test is 20% of 'train'" in "".join(data.notes)


@pytest.mark.parametrize(
    ("label", "options", "classes"),
    [
        (lambda i: (".cls", b"ant" if i % 2 else b"bee\n"), {}, ("ant", "bee")),
        (lambda i: (".json", json.dumps({"label": i % 2, "width": 4}).encode()), {}, ("0", "1")),
        (lambda i: (".json", json.dumps({"kind": "ab"[i % 2]}).encode()), {"label_column": "kind"}, ("a", "b")),
    ],
)
def test_labels(tmp_path, label, options, classes):
    assert load(tar(tmp_path / "set.tar", samples(0, 40, label)), **options).train.classes == classes


def test_tars_without_labels(tmp_path):
    data = load(tar(tmp_path / "set.tar", [(f"{i}.png", picture(i)) for i in range(40)]))
    assert not data.has_labels
    assert levels(data.train) == data.train.ids.tolist()


def test_labels_of_minus_one_are_none(tmp_path):
    assert not load(tar(tmp_path / "set.tar", samples(0, 40, lambda i: (".cls", b"-1")))).has_labels


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(f"{c}/{i}.png", picture(i)) for c in ("ant", "bee") for i in range(9)], r"in 2 folders \(ant, bee\)"),
        ([(f"{i}.img.png", picture(i)) for i in range(9)], r"no images in its tars \(seen: 9 \.img\.png"),
    ],
)
def test_tars_of_another_layout_are_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        load(tar(tmp_path / "set.tar", members))


def test_what_is_no_sample_is_counted_and_nothing_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "here" / "set.tar"
    tar(
        path,
        [*samples(0, 40), ("../../evil.png", b"0"), ("b.cls", b"0"), ("a/0001.txt", b"x"), ("__MACOSX/._1.png", b"")],
    )
    with tarfile.open(path, "a") as file:
        for name, kind in (("a/link.png", tarfile.SYMTYPE), ("a/null.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    data = load(path)
    assert data.notes[0] == (
        "6 files in tars were not read: 1 .txt, 2 hidden, 1 labels without an image, 2 links or devices."
    )
    assert len(data.test) == 8
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["here", "set.tar"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*samples(0, 40), ("a/0007.jpg", picture(0))], "a second image of its key"),
        ([*samples(0, 40), ("b.png", picture(0))], "b: has no .cls or .json"),
        ([*samples(0, 40), ("b.png", picture(0)), ("b.cls", b"ant")], "integers in some samples and strings in others"),
        ([*samples(0, 40, lambda i: (".json", b"[" * 3000))], "0000.json: cannot be read"),
        ([*samples(0, 40, lambda i: (".json", b"{}"))], r"holds \[\], expected a label under label or cls or class"),
        ([*samples(0, 40, lambda i: (".json", b'{"label": [1]}'))], r"label is \[1\], expected an integer or a string"),
        ([*samples(0, 40, lambda i: (".cls", b"0" * 70000))], "70000 bytes, expected a label"),
        ([*samples(0, 40, lambda i: (".cls", b"\xff"))], "0000.cls: cannot be read"),
        ([*samples(0, 40), ("a/0041.png", b"no picture"), ("a/0041.cls", b"1")], "set.tar a/0041: not an image"),
    ],
)
def test_unusable_tars_are_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        load(tar(tmp_path / "set.tar", members), max_train=1000)


def test_keys_in_two_tars_are_refused(tmp_path):
    for number in (0, 1):
        tar(tmp_path / f"train-{number}.tar", samples(0, 20))
    with pytest.raises(DataError, match="'a/0000' is in another tar too"):
        load(tmp_path)


def test_damaged_and_packed_tars_are_refused(tmp_path):
    whole = tar(tmp_path / "set.tar", samples(0, 40)).read_bytes()
    packed = tar(tmp_path / "packed.tar", samples(0, 40), "w:gz").read_bytes()
    for data in (b"", whole[:100], b"x" * 600, packed, whole[: 512 + 20]):
        write(tmp_path / "set.tar", data)
        with pytest.raises(DataError, match=r"set\.tar"):
            load(tmp_path / "set.tar")


def test_entries_that_go_backwards_end(tmp_path):
    whole = bytearray(tar(tmp_path / "set.tar", samples(0, 40)).read_bytes())
    for size in (-512, -1024, -(2**40)):
        header = whole[512 * 4 : 512 * 5]
        header[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        whole[512 * 4 : 512 * 5] = header
        write(tmp_path / "set.tar", bytes(whole))
        with pytest.raises(DataError, match=r"set\.tar"):
            load(tmp_path / "set.tar")


def test_tars_beside_images_are_a_choice(tmp_path):
    tar(tmp_path / "set.tar", samples(0, 40))
    write(tmp_path / "ant" / "1.png", picture(0))
    with pytest.raises(UsageError, match=r"Say which is meant: tar:.* or folder:"):
        load(tmp_path)
    assert len(load(f"tar:{tmp_path}").test) == 8

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tdsm.base.errors import DataError, UsageError
from tdsm.data import SOURCES, DataConfig, decode_image, load_data
from tdsm.data.load import JPEG_NOTE, resolve
from tdsm.data.source import natural_key
from tdsm.data.toy import toy_scenes

CIFAR10 = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"


def picture(level, shape=(4, 4), kind="PNG"):
    handle = io.BytesIO()
    Image.fromarray(np.full(shape, level, np.uint8)).save(handle, kind)
    return handle.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def load(source, seed=0, **options):
    return load_data(DataConfig(source=str(source), **options), seed)


def assert_sound(data):
    """Every set is non-empty and shares classes and shape; train and validation never share an id."""
    sets = (data.train, data.validation, data.test)
    assert all(len(part) for part in sets)
    assert len({part.classes for part in sets}) == 1
    assert len({part.images.shape[1:] for part in sets}) == 1
    assert not set(data.train.ids.tolist()) & set(data.validation.ids.tolist())


# --- names ---------------------------------------------------------------------------------------------------------


def test_sources_are_resolved_by_name_path_and_id(tmp_path):
    write(tmp_path / "a" / "cat" / "1.png", b"")
    write(tmp_path / "b" / "data" / "train.parquet", b"")
    write(tmp_path / "c.npz", b"")
    assert resolve("digits") == ("digits", "")
    assert resolve(str(tmp_path / "a")) == ("folder", str(tmp_path / "a"))
    assert resolve(str(tmp_path / "b")) == ("parquet", str(tmp_path / "b"))
    assert resolve(str(tmp_path / "b" / "data" / "train.parquet"))[0] == "parquet"
    assert resolve(str(tmp_path / "c.npz")) == ("npz", str(tmp_path / "c.npz"))
    assert resolve("uoft-cs/cifar10") == ("hub", "uoft-cs/cifar10")
    assert resolve("folder:x/y") == ("folder", "x/y")


@pytest.mark.parametrize("source", ["digit", "digits8", "parket:there", "", "folder"])
def test_unknown_sources_name_what_was_tried(source):
    with pytest.raises(UsageError, match="is none of") as caught:
        resolve(source)
    assert all(kind in str(caught.value) for kind in SOURCES)


def test_the_nearest_name_is_offered():
    with pytest.raises(UsageError, match="Perhaps you meant 'digits'"):
        load("digit")


@pytest.mark.parametrize(
    "options", [{"sorce": "digits"}, {"validation_fraction": 0.0}, {"validation_fraction": 0.9}, {"max_train": 0}]
)
def test_settings_are_a_closed_schema(options):
    with pytest.raises(ValidationError):
        DataConfig(**options)


def test_every_setting_is_described():
    assert all(field.description for field in DataConfig.model_fields.values())


def test_settings_become_flags():
    import tyro

    assert tyro.cli(DataConfig, args=["--source", "npz:a.npz", "--max-train", "7"]).max_train == 7


def test_reading_settings_imports_nothing_heavy():
    heavy = ("torch", "datasets", "sklearn", "PIL", "pyarrow")
    code = f"import sys, tdsm.data; tdsm.data.DataConfig(); print([m for m in {heavy} if m in sys.modules])"
    code += f"; tdsm.data.load_data; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "['torch']"]


def test_natural_order():
    assert sorted(["b10", "b9", "a", "b01", "b1", "10", "9"], key=natural_key) == [
        "9",
        "10",
        "a",
        "b01",
        "b1",
        "b9",
        "b10",
    ]


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits():
    data = load("digits")
    assert_sound(data)
    assert data.name == "digits"
    assert data.train.classes == tuple("0123456789")
    assert data.train.images.min() == 0
    assert data.train.images.max() == 255
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert sorted(ids.tolist()) == list(range(1797))
    assert any("no test split" in note and "seed 0" in note for note in data.notes)


def test_toy_scenes_are_two_shapes_on_a_background():
    """What `masks` says is what the images show: one colour a part, a dark background, shapes that do not touch."""
    images, masks, labels = toy_scenes("test")
    assert images.shape == (512, 16, 16, 3)
    assert labels.unique().tolist() == list(range(6))
    for image, mask in zip(images, masks, strict=True):
        parts = [image[mask == part] for part in range(3)]
        assert all(len(part.unique(dim=0)) == 1 for part in parts)
        assert parts[0].max() < 64
        assert parts[1].max() == parts[2].max() == 255
        grown = torch.nn.functional.max_pool2d((mask == 1).float()[None], 3, stride=1, padding=1)[0]
        assert not grown[mask == 2].any()


def test_toy_ids_are_rows_of_the_scenes():
    data, scenes = load("toy", max_train=300, max_test=40, seed=3), toy_scenes("test")
    assert_sound(data)
    assert data.name == "toy"
    assert data.train.classes[0] == "disc+disc"
    assert torch.equal(data.test.images, scenes.images[data.test.ids].movedim(-1, 1))
    with pytest.raises(UsageError, match="drawn, not read"):
        load("toy:there")


def test_ids_name_the_same_picture_whatever_was_drawn():
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert first.test.fingerprint() == load("digits", seed=0).test.fingerprint()
    assert first.test.fingerprint() != second.test.fingerprint()
    pictures = dict(zip(first.train.ids.tolist(), first.train.images, strict=True))
    shared = [row for row, i in enumerate(second.test.ids.tolist()) if i in pictures]
    assert len(shared) > 100
    assert all(torch.equal(second.test.images[row], pictures[int(second.test.ids[row])]) for row in shared)


def test_limits_and_sizes():
    data = load("digits", max_train=200, max_test=50, image_size=16, channels="rgb")
    assert len(data.train) + len(data.validation) == 200
    assert len(data.test) == 50
    assert data.train.images.shape[1:] == (3, 16, 16)
    assert any("250 of the images were resized" in note for note in data.notes)


def test_digits_take_no_path_and_no_columns():
    with pytest.raises(UsageError, match="built in"):
        load("digits:there")
    with pytest.raises(UsageError, match="image_column"):
        load("digits", image_column="img")


def test_progress_wraps_a_loop_of_known_length():
    seen = []

    def progress(steps, title):
        seen.append((len(steps), title))
        for step in steps:
            seen.append(step)
            yield step

    load_data(DataConfig(max_train=100, max_test=20), 0, progress)
    assert seen == [(120, "decode images"), *range(120)]


# --- folders -------------------------------------------------------------------------------------------------------


def fill(root, splits=("",), classes=("cat2", "cat10", "ant"), count=10):
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(count):
                write(root / split / name / f"img{i}.png", picture(10 * i + label))


def test_folder_of_classes(tmp_path):
    fill(tmp_path, count=12)
    write(tmp_path / "README.md", b"about")
    write(tmp_path / "ant" / ".hidden.png", b"")
    write(tmp_path / ".cache" / "x.png", b"")
    data = load(tmp_path, validation_fraction=0.2)
    assert_sound(data)
    assert data.train.classes == ("ant", "cat2", "cat10")
    ids, images = (
        torch.cat([getattr(part, name) for part in (data.train, data.validation, data.test)])
        for name in ("ids", "images")
    )
    assert images[ids.argsort()][:12, 0, 0, 0].tolist() == [10 * i + 2 for i in range(12)]
    assert data.notes[0] == "1 files beside the class folders were ignored."
    assert "no test split" in data.notes[1]


def test_folder_of_splits(tmp_path):
    fill(tmp_path, ("train", "test"))
    data = load(tmp_path)
    assert_sound(data)
    assert len(data.test) == 30
    assert data.notes == ()
    assert data.name == tmp_path.name


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path, classes=("car", "train"))
    assert load(tmp_path).train.classes == ("car", "train")


def test_mixed_sizes_need_image_size(tmp_path):
    fill(tmp_path)
    write(tmp_path / "ant" / "odd.png", picture(3, (5, 9)))
    with pytest.raises(DataError, match=r"5×9.*ant/odd\.png.*Set image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=4).train.images.shape[1:] == (1, 4, 4)


def test_all_bad_files_of_all_splits_are_listed_at_once(tmp_path):
    fill(tmp_path, ("train", "test"))
    write(tmp_path / "train" / "ant" / "notes.txt", b"hello")
    write(tmp_path / "train" / "cat2" / "half.png", picture(0, kind="BMP")[:-5])
    write(tmp_path / "test" / "ant" / "void.png", b"")
    with pytest.raises(DataError, match="3 images cannot be used") as caught:
        load(tmp_path)
    for name in ("train/ant/notes.txt: not an image", "train/cat2/half.png: damaged", "test/ant/void.png: is empty"):
        assert name in str(caught.value)


def test_links_out_of_the_root_are_refused(tmp_path):
    root = tmp_path / "root"
    fill(root)
    write(tmp_path / "outside" / "secret.png", picture(1))
    (root / "ant" / "inner.png").symlink_to(root / "ant" / "img0.png")
    load(root)
    (root / "ant" / "leak.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "ant" / "broken.png").symlink_to(root / "nowhere.png")
    (root / "cat2" / "more").symlink_to(tmp_path / "outside")
    (root / "dog").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "ant" / "pipe.png")
    with pytest.raises(DataError, match="5 images cannot be used") as caught:
        load(root)
    assert all(name in str(caught.value) for name in ("leak.png", "broken.png", "cat2/more", "dog", "pipe.png"))


def test_odd_file_names_are_read(tmp_path):
    fill(tmp_path)
    for name in ("a b.png", "ü 日本.PNG", "new\nline.png", "no ending", "%20..png", "-rf.png"):
        write(tmp_path / "ant" / name, picture(5))
    (Path(os.fsdecode(os.fsencode(tmp_path / "ant") + b"/\xff.png"))).write_bytes(picture(6))
    assert len(load(tmp_path, validation_fraction=0.2).train) > 20


def _unprintable_class(root):
    fill(root, classes=("cat", "do\ng"))


def _empty_class(root):
    fill(root)
    (root / "bee").mkdir()


def _strange_split(root):
    fill(root, ("train", "test", "extra"))


def _no_classes(root):
    write(root / "1.png", picture(0))


def _class_missing_in_test(root):
    fill(root, ("train",))
    fill(root, ("test",), classes=("ant", "cat2"))


def _one_class(root):
    fill(root, classes=("ant",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_unprintable_class, r"do\\ng"),
        (_empty_class, "without files: .*bee"),
        (_strange_split, "extra"),
        (_no_classes, "no class folders"),
        (_class_missing_in_test, "test split has no image of 'cat10'"),
        (_one_class, "one class"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet"])
def test_missing_paths_are_named(kind):
    with pytest.raises(DataError, match="no-such-place"):
        load(f"{kind}:no-such-place")


# --- npz -----------------------------------------------------------------------------------------------------------

LEVELS = np.arange(40 * 3 * 5, dtype=np.int64).reshape(40, 3, 5).astype(np.uint8)
TWO = np.arange(40) % 2


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


def test_npz_of_one_split(tmp_path):
    data = load(npz(tmp_path, images=LEVELS, labels=TWO * 3 + 4))
    assert_sound(data)
    assert data.train.classes == ("4", "7")
    assert data.name == "set.npz"
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(LEVELS)[data.train.ids])
    assert torch.equal(data.test.labels, torch.from_numpy(TWO)[data.test.ids])


def test_npz_of_two_splits_with_string_labels(tmp_path):
    colour = np.stack([LEVELS] * 3, axis=-1)
    names = np.array(["dog", "cat"])[TWO]
    data = load(npz(tmp_path, train_images=colour, train_labels=names, test_images=colour[:9], test_labels=names[:9]))
    assert_sound(data)
    assert data.train.classes == ("cat", "dog")
    assert data.test.images.shape == (9, 3, 3, 5)
    assert data.test.labels.tolist() == [1, 0] * 4 + [1]


def test_npz_floats_are_rounded(tmp_path):
    data = load(npz(tmp_path, images=LEVELS[..., None] / 255, labels=TWO))
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(LEVELS)[data.train.ids])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": LEVELS}, "expected"),
        ({"images": LEVELS, "labels": TWO, "extra": TWO}, "extra"),
        ({"images": LEVELS, "labels": TWO[:-1]}, "40 images but labels of shape"),
        ({"images": LEVELS / 128, "labels": TWO}, "within 0..1"),
        ({"images": LEVELS * np.nan, "labels": TWO}, "nan"),
        ({"images": LEVELS.astype(int), "labels": TWO}, "int64, expected uint8"),
        ({"images": LEVELS[0], "labels": TWO[:3]}, "shape"),
        ({"images": np.zeros((40, 4, 4, 2), np.uint8), "labels": TWO}, "1 or 3"),
        ({"images": LEVELS, "labels": TWO / 2}, "float64"),
        ({"images": LEVELS, "labels": TWO - 1}, "-1 marks unlabelled"),
        ({"images": LEVELS, "labels": TWO.astype(object)}, "refused"),
        ({"images": LEVELS[:0], "labels": TWO[:0]}, "no empty one"),
        (
            {"train_images": LEVELS, "train_labels": TWO, "test_images": LEVELS, "test_labels": TWO.astype(str)},
            "one kind",
        ),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, **arrays))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 half a zip", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00"])
def test_damaged_npz_is_refused(tmp_path, data):
    write(tmp_path / "set.npz", data)
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        load(tmp_path / "set.npz")


# --- parquet -------------------------------------------------------------------------------------------------------


def table(images, labels, features=None, **more):
    import pyarrow as pa

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([image if isinstance(image, dict) else {"bytes": image, "path": None} for image in images], kind)
    built = pa.table({"img": cells, "label": labels, **more})
    if features:
        built = built.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return built


def save(path, built, **options):
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(built, path, **options)


PETS = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def pets(first, count, kind="PNG"):
    labels = [i % 2 for i in range(count)]
    return table([picture(first + i, kind=kind) for i in range(count)], labels, PETS)


def test_parquet_folder(tmp_path):
    save(tmp_path / "data" / "train-00000-of-00002.parquet", pets(0, 25), row_group_size=4)
    save(tmp_path / "data" / "train-00001-of-00002.parquet", pets(25, 15), row_group_size=100)
    save(tmp_path / "data" / "test-00000-of-00001.parquet", pets(100, 10))
    write(tmp_path / ".cache" / "train.parquet", b"hidden")
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("cat", "dog")
    assert len(data.test) == 10
    assert data.notes == ()
    for part in (data.train, data.validation):
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.ids)
    assert torch.equal(data.test.images[:, 0, 0, 0].long(), data.test.ids + 100)


def test_only_kept_images_are_decoded(tmp_path):
    images = [picture(i) for i in range(40)]
    images[17] = b"damaged"
    save(tmp_path / "train.parquet", table(images, [i % 2 for i in range(40)], PETS))
    save(tmp_path / "test.parquet", pets(0, 10))
    with pytest.raises(DataError, match=r"train\.parquet row 17: not an image"):
        load(tmp_path)
    seeds_without = [seed for seed in range(20) if _loads(tmp_path, seed)]
    assert 5 <= len(seeds_without) <= 19


def _loads(path, seed):
    try:
        return bool(load(path, seed, max_train=20))
    except DataError:
        return False


def test_jpeg_is_noted(tmp_path):
    save(tmp_path / "set.parquet", pets(0, 20, "JPEG"))
    assert JPEG_NOTE in load(tmp_path / "set.parquet").notes
    save(tmp_path / "set.parquet", pets(0, 20, "PNG"))
    assert JPEG_NOTE not in load(tmp_path / "set.parquet").notes


def test_parquet_without_metadata(tmp_path):
    import pyarrow as pa

    levels = [picture(i) for i in range(20)]
    save(tmp_path / "set.parquet", pa.table({"raw": levels, "kind": ["b10", "b9"] * 10}))
    assert load(tmp_path).train.classes == ("b9", "b10")


def test_columns_are_chosen_by_name(tmp_path):
    features = {**PETS, "coarse": {"_type": "ClassLabel", "names": ["x", "y", "z"]}}
    built = table([picture(i) for i in range(20)], [i % 2 for i in range(20)], features, coarse=[0, 1, 2, 0] * 5)
    save(tmp_path / "set.parquet", built)
    with pytest.raises(DataError, match=r"2 columns may be the label.*img \(Image\), label \(ClassLabel\), coarse"):
        load(tmp_path)
    assert load(tmp_path, label_column="coarse").train.classes == ("x", "y", "z")
    with pytest.raises(UsageError, match="label_column 'fine' cannot be used"):
        load(tmp_path, label_column="fine")
    with pytest.raises(UsageError, match="image_column 'label' cannot be used"):
        load(tmp_path, image_column="label")


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (table([picture(0)] * 4, [0, 1, -1, 0], PETS), "-1 marks unlabelled"),
        (table([picture(0)] * 4, [0, 1, 2, 0], PETS), "Expected 0 to 1"),
        (table([picture(0)] * 4, [0, 1, None, 0], PETS), "1 labels are missing"),
        (table([picture(0)] * 4, ["a", "b", "a", "b"], PETS), "<U1"),
        (table([None] * 20, [0, 1] * 10, PETS), "no image bytes"),
        (table([{"bytes": None, "path": "/etc/passwd"}] * 20, [0, 1] * 10, PETS), "no image bytes"),
        (table([], [], PETS), "expected|Expected"),
        (table([picture(0)] * 4, [0.5, 1, 0, 1]), "no column may be the label column"),
        (table([picture(0)] * 4, [0, 1, 0, 1]).drop_columns("img"), "no column may be the image column"),
        (table([], []).replace_schema_metadata({"huggingface": "[broken"}), "cannot be read"),
        (table([], []).replace_schema_metadata({"huggingface": "[1]"}), "cannot be read"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, built, message):
    save(tmp_path / "set.parquet", built)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_files_that_disagree_are_refused(tmp_path):
    save(tmp_path / "train.parquet", pets(0, 20))
    other = {**PETS, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    save(tmp_path / "test.parquet", table([picture(0)] * 4, [0, 1] * 2, other))
    with pytest.raises(DataError, match="differ between its files"):
        load(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_damaged_parquet_is_refused(tmp_path, cut):
    save(tmp_path / "set.parquet", pets(0, 20))
    whole = (tmp_path / "set.parquet").read_bytes()
    write(tmp_path / "set.parquet", whole[:cut])
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read as parquet"):
        load(tmp_path)


# --- hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and a network that is never reached."""
    import datasets
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_network)
    return tmp_path / "cache"


def test_an_unreachable_hub_says_the_three_ways_out(hub_cache):
    begun = time.monotonic()
    with pytest.raises(DataError, match="cannot be reached") as caught:
        load("owner/pets")
    assert time.monotonic() - begun < 3
    assert all(way in str(caught.value) for way in ("parquet:", "folder:", "npz:"))


def test_hub_ids_that_cannot_be():
    with pytest.raises(DataError, match="no hub id"):
        load("/no/such/folder")


def test_the_cache_answers_without_a_network(hub_cache, tmp_path, capfd):
    import datasets

    for split, count in (("train", 30), ("test", 10)):
        save(tmp_path / f"{split}.parquet", pets(50, count))
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    builder = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=str(tmp_path / "built"))
    builder.download_and_prepare()
    cached = hub_cache / "owner___pets" / "default" / "0.0.0" / "hash"
    for file in Path(builder.cache_dir).iterdir():
        write(cached / file.name.replace("parquet", "pets"), file.read_bytes())
    info = json.loads((cached / "dataset_info.json").read_text())
    write(cached / "dataset_info.json", json.dumps({**info, "config_name": "default", "dataset_name": "pets"}).encode())
    capfd.readouterr()
    data = load("owner/pets")
    assert capfd.readouterr() == ("", "")
    assert_sound(data)
    assert data.name == "owner/pets"
    assert data.train.classes == ("cat", "dog")
    assert torch.equal(data.train.images[:, 0, 0, 0].long(), data.train.ids + 50)
    assert not datasets.config.HF_HUB_OFFLINE


# --- CIFAR-10 ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no CIFAR-10 parquet folder at ../shared/data/cifar10")
def test_cifar10():
    import pyarrow.parquet as pq

    data = load(CIFAR10, max_train=300, max_test=100)
    assert_sound(data)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.classes[3] == "cat"
    assert data.notes == (JPEG_NOTE,)
    rows = pq.read_table(CIFAR10 / "train-00000-of-00001.parquet").take(data.validation.ids.numpy())
    assert rows["label"].to_pylist() == data.validation.labels.tolist()
    assert torch.equal(decode_image(rows["img"][0].as_py()["bytes"]), data.validation.images[0])

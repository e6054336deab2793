import contextlib
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.samples import PETS, assert_sound, levels, load, pets, picture, save, table, write

from tdsm.base.errors import DataError, UsageError
from tdsm.data.load import JPEG_NOTE


def test_parquet_folder(tmp_path):
    save(tmp_path / "data" / "train-00000-of-00002.parquet", pets(0, 25), row_group_size=4)
    save(tmp_path / "data" / "train-00001-of-00002.parquet", pets(25, 15), row_group_size=100)
    save(tmp_path / "data" / "test-00000-of-00001.parquet", pets(100, 10))
    write(tmp_path / ".cache" / "train.parquet", b"hidden")
    data = load(tmp_path)
    assert_sound(data)
    assert data.train.classes == ("cat", "dog")
    assert len(data.test) == 10
    assert data.notes == ("Train is 'train'; validation is 10% of 'train', drawn by seed 0; test is 'test'.",)
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


@pytest.mark.parametrize(
    ("more", "classes"),
    [
        ({"label": [0, 1] * 10, "id": range(20), "name": ["cat", "dog"] * 10}, ("0", "1")),
        ({"Class": ["a", "b"] * 10, "width": [4] * 20}, ("a", "b")),
        ({"species": ["a", "b"] * 10, "split": ["train"] * 20}, ("a", "b")),
        ({"split": ["train"] * 20}, ()),
    ],
)
def test_a_column_is_taken_for_labels_by_its_name_or_where_it_is_the_only_one(tmp_path, more, classes):
    save(tmp_path / "set.parquet", table([picture(i) for i in range(20)], None, **more))
    assert load(tmp_path).train.classes == classes


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
        (table([picture(0)] * 4, [0.5, 1, 0, 1]), "row 0 holds 0.5, expected a whole number"),
        (table([picture(0)] * 4, [0, 1, 0, 1]).drop_columns("img"), "no column may be the image column"),
        (table([picture(0)] * 4, None, age=[1, 2] * 2, kind=["a", "b"] * 2), "2 columns may be the label column"),
        (table([picture(0)] * 4, [{"name": "cat"}] * 4), r"label \(struct<name: string>\) cannot be read as labels"),
        (table([picture(0)] * 4, [0, 1] * 2, split=["train", "train", "test", "x"]), "names the splits train, test, x"),
        (table([picture(0)] * 4, ["", "dog"] * 2), "Class names are empty or cannot be printed: ''"),
        (table([picture(0)] * 4, ["\x1b[31m", "dog"] * 2), r"cannot be printed: '\\x1b\[31m'"),
        (table([picture(i) for i in range(20)], None, id=range(20)), "20 classes are too few.*or are the labels ids"),
        (table([], []).replace_schema_metadata({"huggingface": "[broken"}), "cannot be read"),
        (table([], []).replace_schema_metadata({"huggingface": "[1]"}), "cannot be read"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, built, message):
    save(tmp_path / "set.parquet", built)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_parts_may_be_empty_or_without_labels(tmp_path):
    import pyarrow as pa

    save(tmp_path / "TRAIN-0.PARQUET", pets(0, 20))
    save(tmp_path / "TRAIN-1.PARQUET", pets(0, 0))
    save(tmp_path / "TEST.PARQUET", table([picture(i) for i in range(100, 110)], pa.nulls(10, pa.int64()), PETS))
    data = load(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    assert "Split 'test' (10 images) has no labels and is not used." in data.notes


def test_names_that_differ_in_case_or_spaces_only_are_said(tmp_path):
    save(tmp_path / "set.parquet", table([picture(i) for i in range(40)], ["cat", "Cat", "dog", "dog "] * 10))
    said = "Classes differ in case or spaces only and are kept apart: 'Cat', 'cat'; 'dog', 'dog '."
    assert said in load(tmp_path).notes


def test_files_that_disagree_are_refused(tmp_path):
    save(tmp_path / "train.parquet", pets(0, 20))
    other = {**PETS, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    save(tmp_path / "test.parquet", table([picture(0)] * 4, [0, 1] * 2, other))
    with pytest.raises(DataError, match=r"differ between its files: .*2 classes \(dog, cat\).*2 classes \(cat, dog\)"):
        load(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_damaged_parquet_is_refused(tmp_path, cut):
    save(tmp_path / "set.parquet", pets(0, 20))
    whole = (tmp_path / "set.parquet").read_bytes()
    write(tmp_path / "set.parquet", whole[:cut])
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read as parquet"):
        load(tmp_path)


# --- configs, folds and splits by their names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("plain/train.parquet", "noisy/train.parquet"), "noisy, plain"),
        (("fold0/train.parquet", "fold1/train.parquet", "fold1/test.parquet"), "fold0, fold1"),
        (("train_fold0.parquet", "train_fold1.parquet"), "fold0, fold1"),
        (("pets-train.parquet", "cars-train.parquet"), "cars, pets"),
    ],
)
def test_configs_and_folds_are_a_choice(tmp_path, paths, names):
    for number, path in enumerate(paths):
        save(tmp_path / path, pets(40 * number, 40))
    with pytest.raises(UsageError, match=f"holds 2 configs or folds, which may share images: {names}"):
        load(tmp_path)
    last = names.split(", ")[1]
    data = load(tmp_path, config=last)
    assert f"Config '{last}' was chosen of {names}." in data.notes
    with pytest.raises(UsageError, match="has no config 'other'"):
        load(tmp_path, config="other")


@pytest.mark.parametrize(
    ("train", "other", "role"),
    [
        ("training", "testing", "test"),
        ("Train", "Test", "test"),
        ("train", "dev", "validation"),
        ("train", "valid", "validation"),
        ("pets-train", "pets-val", "validation"),
    ],
)
def test_splits_are_recognised(tmp_path, train, other, role):
    save(tmp_path / f"{train}.parquet", pets(0, 40))
    save(tmp_path / f"{other}.parquet", pets(100, 10))
    data = load(tmp_path)
    assert levels(getattr(data, role)) == list(range(100, 110))
    assert max(levels(data.train)) < 40


def test_other_splits_are_accounted_for(tmp_path):
    for number, name in enumerate(("train", "test", "extra")):
        save(tmp_path / f"{name}-00000-of-00001.parquet", pets(50 * number, 40))
    data = load(tmp_path)
    assert "Split 'extra' (40 images) serves neither as train, validation nor test and is not used." in data.notes
    assert max(levels(data.train) + levels(data.validation)) < 40
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="Expected one that is train"):
        load(tmp_path)


def test_a_test_split_with_hidden_labels_is_not_used(tmp_path):
    save(tmp_path / "train.parquet", pets(0, 40))
    save(tmp_path / "test.parquet", table([picture(200)] * 5, [-1] * 5, PETS))
    assert "Split 'test' (5 images) has no labels and is not used." in load(tmp_path).notes
    save(tmp_path / "test.parquet", table([picture(200)] * 5, None))
    assert "Split 'test' (5 images) has no labels and is not used." in load(tmp_path).notes


def test_a_missing_file_is_noticed(tmp_path):
    save(tmp_path / "train-00001-of-00002.parquet", pets(0, 40))
    with pytest.raises(DataError, match="1 of 2 files are here"):
        load(tmp_path)


# --- label columns ---------------------------------------------------------------------------------------------------


def label_columns():
    import pyarrow as pa

    words = ["cat", "dog"] * 20
    return {
        "string": (pa.array(words), ("cat", "dog")),
        "string_view": (pa.array(words).cast(pa.string_view()), ("cat", "dog")),
        "large_string": (pa.array(words, pa.large_string()), ("cat", "dog")),
        "dictionary": (pa.array(words).dictionary_encode(), ("cat", "dog")),
        "dictionary of integers": (pa.array([7, 3] * 20).dictionary_encode(), ("3", "7")),
        "bool": (pa.array([False, True] * 20), ("false", "true")),
        "whole floats": (pa.array([0.0, 1.0] * 20), ("0", "1")),
        "list of one": (pa.array([[0], [1]] * 20), ("0", "1")),
        "fixed list of one": (pa.array([["cat"], ["dog"]] * 20, pa.list_(pa.string(), 1)), ("cat", "dog")),
        "names of 300 characters": (pa.array(["x" * 300, "日本"] * 20), ("x" * 300, "日本")),
        "two ways to type an accent": (pa.array(["caf\u00e9", "cafe\u0301", "tea", "tea"] * 10), ("caf\u00e9", "tea")),
    }


@pytest.mark.parametrize("kind", label_columns())
def test_kinds_of_label_columns(tmp_path, kind):
    labels, classes = label_columns()[kind]
    save(tmp_path / "set.parquet", table([picture(i) for i in range(40)], labels))
    data = load(tmp_path)
    assert data.train.classes == classes
    shown = [data.train.classes[label] for label in data.train.labels.tolist()]
    order = dict(zip(range(40), labels.to_pylist(), strict=True))
    said = [order[i][0] if isinstance(order[i], list) else order[i] for i in data.train.ids.tolist()]
    spelt = [unicodedata.normalize("NFC", str(int(v) if isinstance(v, float) else v)) for v in said]
    assert shown == [text.lower() if kind == "bool" else text for text in spelt]


def test_a_list_of_class_labels(tmp_path):
    features = {"img": {"_type": "Image"}, "label": {"_type": "Sequence", "feature": PETS["label"]}}
    save(tmp_path / "set.parquet", table([picture(i) for i in range(40)], [[0], [1]] * 20, features))
    assert load(tmp_path).train.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [1, 0]] * 20, r"label: row 1 holds \[1, 0\], expected a list of one label \(20 such rows\)"),
        ([[0], []] * 20, r"row 1 holds \[\], expected a list of one label"),
        ([0.0, float("nan")] * 20, "row 1 holds nan, expected a whole number"),
        ([[0], [None]] * 20, "20 labels are missing"),
    ],
)
def test_labels_that_are_no_class_are_named(tmp_path, labels, message):
    save(tmp_path / "set.parquet", table([picture(i) for i in range(40)], labels))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_table_without_labels(tmp_path):
    save(tmp_path / "set.parquet", table([picture(i) for i in range(40)], None))
    data = load(tmp_path)
    assert not data.has_labels
    assert sorted(levels(data.train) + levels(data.validation) + levels(data.test)) == list(range(40))


def test_bad_cells_are_skipped_if_asked(tmp_path):
    images = [picture(i) for i in range(40)]
    images[3], images[8] = b"damaged", None
    save(tmp_path / "set.parquet", table(images, [i % 2 for i in range(40)], PETS))
    data = load(tmp_path, skip_bad=True)
    assert sorted(name for name, _ in data.skipped) == ["set.parquet row 3", "set.parquet row 8"]
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids]).tolist()
    assert sorted(ids) == [i for i in range(40) if i not in (3, 8)]
    assert levels(data.train) == data.train.ids.tolist()


@settings(max_examples=150)
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_but_data_errors(tmp_path, place, byte):
    save(tmp_path / "set.parquet", pets(0, 20), compression="none")
    data = bytearray((tmp_path / "set.parquet").read_bytes())
    data[int(place * len(data))] = byte
    write(tmp_path / "set.parquet", bytes(data))
    with contextlib.suppress(DataError):
        assert len(load(tmp_path, validation_fraction=0.2).test) == 4


def test_damaged_text_is_refused(tmp_path):
    """Pyarrow raises a plain UnicodeDecodeError here."""
    save(tmp_path / "set.parquet", pets(0, 20), compression="none")
    write(tmp_path / "set.parquet", (tmp_path / "set.parquet").read_bytes().replace(b"path", b"p\xf5th"))
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read as parquet"):
        load(tmp_path)
